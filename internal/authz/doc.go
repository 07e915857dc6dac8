// Package authz decides whether a caller may do an action: key policy, identity policies, permissions boundary, session policies and grants,
// as AWS KMS evaluates them together. Both planes ask it. It is a pure function of what it is given and allocates nothing.
//
//	caller.go    Subject: a principal with its policies; Caller: whom an access key speaks for
//	context.go   Context: what a request says of condition keys
//	grant.go     grants: operations, constraints
//	grantset.go  the grants of a key to a grantee, of which few are looked at; grantindex.go: how they are found
//	action.go    the actions of KMS
//	decide.go    Decide, and the words of a refusal
//
// Specification: "Determining whether a request is allowed or denied" in the AWS KMS Developer Guide and "Policy evaluation logic" in the AWS
// Identity and Access Management user guide. Where they leave room: docs/divergences.md.
package authz
