// Package authztest holds a second, naive evaluator of policies and grants, and the cases that it and the product are both asked. Only tests
// import it. The evaluator is written from the specification alone and shares no code with packages policy and authz: it reads documents
// with encoding/json, matches by table, asks every policy everything, and caches nothing between questions.
//
//	case.go       World, Request, Case: everything that a decision depends on
//	document.go   the evaluator: reading a document
//	match.go      the evaluator: wildcards, variables, condition operators
//	values.go     the evaluator: what a request says of condition keys
//	decide.go     the evaluator: one policy, and the decision of all of them
//	product.go    the same questions, put to package authz
//	compare.go    where the answers differ
//	golden.go     cases with the decision stated by rule, and what their tables share; one file for each kind of rule:
//	  operators.go    condition operators on values that match, do not, are absent, do not parse or are several
//	  elements.go     Action, Resource, their Not forms, variables
//	  keys.go         what each condition key says of a request
//	  principals.go   ways of naming a caller
//	  grants.go       operations, grantees, constraints
//	  flows.go        delegation, accounts, boundaries, sessions, services
//	  bugs.go         known faults of other implementations
//	  malformed.go    documents that are refused
//	generate.go   random cases
package authztest
