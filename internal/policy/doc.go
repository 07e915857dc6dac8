// Package policy reads AWS policy documents: strict parsing with AWS's refusals, compilation once, and evaluation as a pure function that
// allocates nothing. It knows the policy language and the names of condition keys; it does not know keys, grants, accounts' policies or
// who may do what in the end, which is package authz.
//
//	policy.go      Kind, Principal, Context, Request, Result: what callers see
//	parse.go       Parse: the document's elements, its limits, what is refused (reader.go: its JSON)
//	action.go      the actions of KMS by number
//	principal.go   whom Principal and NotPrincipal name
//	condition.go   condition operators (keys.go: condition keys; value.go: numbers, dates, IP addresses)
//	pattern.go     * and ?
//	variable.go    policy variables
//	evaluate.go    Evaluate
//
// Specification: "IAM JSON policy element reference" in the AWS Identity and Access Management user guide, "Key policies in AWS KMS" and
// "Condition keys for AWS KMS" in the AWS KMS Developer Guide.
package policy
