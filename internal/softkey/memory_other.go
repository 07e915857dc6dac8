//go:build unix && !linux

package softkey

// leaveOutOfDumps does nothing where memory has no such advice.
func leaveOutOfDumps([]byte) {}
