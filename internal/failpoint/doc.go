// Package failpoint ends the process between two steps of a change, so that tests can look at what a start makes of what is left. In a build without the
// tag failpoints Here does nothing.
package failpoint
