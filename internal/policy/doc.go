// Package policy reads AWS policy documents: strict parsing with AWS's refusals, compilation once, and evaluation as a pure function that
// allocates nothing. It knows the policy language and the names of condition keys; it does not know keys, grants, accounts' policies or
// who may do what in the end, which is package authz.
//
// Specification: "IAM JSON policy element reference" in the AWS Identity and Access Management user guide, "Key policies in AWS KMS" and
// "Condition keys for AWS KMS" in the AWS KMS Developer Guide.
package policy
