// Package apitest drives keyplane as its clients do: over a TCP connection, with AWS's own SDK and command line, with hand-made hostile
// bytes, and with SIGKILL. The tests are the round trips, refusals and crash tests of the whole service; what a single package promises is
// tested there.
//
//	apitest.go   Server: a node in this process (package node), on the soft token or a PKCS#11 module
//	command.go   Process: the keyplane binary as a process of its own, to be killed
//	endpoint.go  what both have: an SDK client, and signed requests under full control of every byte
//	wire.go      the request as bytes, and the reply
//
// The package knows the wire protocol and the assembly of the node, and nothing of what is inside either plane. It starts goroutines only
// to collect a subprocess's output and end; each ends with the process, which ends with the test.
package apitest
