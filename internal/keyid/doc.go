// Package keyid parses and writes the identifiers of the KMS API: account IDs, key IDs, key ARNs, alias names and alias ARNs.
//
// Every identifier has one accepted spelling: what Parse accepts, Append gives back byte for byte. So an identifier that was compared,
// cached, evaluated in a policy or written to the audit log is the one that the caller sent.
//
// The package does not know which keys, aliases, Regions or accounts exist, and nothing of requests. It has no state and no goroutines,
// and its parsers and append functions allocate nothing.
package keyid
