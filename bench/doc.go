// Command bench measures keyplane against the floor: a plain fasthttp server that echoes the same sizes, in the same session, with the
// same client (wrk, pre-signed requests) and on the same cores. Only ratios are to be compared; absolute figures belong to the machine.
//
//	main.go     flags, the plan, the table
//	target.go   what is measured: child processes, started once, measured in turn
//	echo.go     the floor (a child of this program)
//	wrk.go      one measurement: wrk, and the server's own CPU time from /proc
//	report.go   medians, ratios, bench/results/*.json and *.txt
//
// It needs wrk and softhsm2 (make deps) and Linux.
package main
