// Package iamcli is the command line of IAM and STS: `keyplane iam …`. It signs and sends requests of the query protocol to a running server
// and shows the answers as JSON.
//
//	table.go   the commands: which action, which flags
//	main.go    Main: reads the flags, calls, prints
//	client.go  Client: one signed request and its answer
//	value.go   XML of an answer as JSON
//
// It is a client: it knows the server by its wire protocol only.
package iamcli
