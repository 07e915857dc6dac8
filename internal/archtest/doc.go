// Package archtest holds the boundaries between the packages, as a test over the import graph: which package may import which, where
// unsafe and cgo may be, what hot-path packages must leave alone. It has no code of its own besides the tests.
//
//	rules_test.go    the rules: one row per package, one reason per exception     read this one first
//	check_test.go    a graph against the rules
//	load_test.go     the graph, from `go list` and from every Go file whatever its build tags
//	arch_test.go     this repository against the rules; invented graphs that break each rule, so that the test itself is tested
//
// A rule that is in the way may be wrong: then change it together with docs/ARCHITECTURE.md. Do not add a line merely to get green.
package archtest
