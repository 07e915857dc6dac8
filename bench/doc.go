// Command bench measures keyplane against the floor: a plain fasthttp server that echoes the same sizes, in the same session, with the
// same client (wrk, pre-signed requests) and on the same cores. Only ratios are to be compared; absolute figures belong to the machine.
//
//	main.go         flags, the list of tables, alternating rounds
//	floor.go        keyplane on the soft token and on SoftHSM, and the baseline, of the echo
//	variants.go     connections, rounds off, payload, TLS
//	keys.go         one key against many
//	slow.go         an HSM with 1 ms a call, and the baseline on it
//	overload.go     more than the server can do, open loop
//	quota.go        more than an account may send, and as many keys as it may have
//	load.go         keyplane loadtest as a child, and the server's memory and goroutines meanwhile
//	target.go       what is measured: child processes, requests, tokens
//	echo.go         the floor (a child of this program)
//	baseline.go     one PKCS#11 operation per request (a child of this program)
//	wrk.go          one measurement
//	counters.go     the server's own account of it: CPU time and memory from /proc, allocations and rounds from its stats socket
//	report.go       medians, ratios, tables; bench/results/*.json and *.txt
//	figures.go      bench/results/*.svg
//	profile.go      where the processor time of a request goes, with -profile
//	promises.go     what the design promises, and whether it was kept
//
// A measurement with more than one failed request in a thousand is thrown away, and so is a server that recovered a panic. Children die with
// this process. It needs wrk and softhsm2 (make deps) and Linux.
package main
