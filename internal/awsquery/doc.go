// Package awsquery reads requests and writes replies of the AWS query protocol, which AWS STS and AWS IAM speak: a form
// (application/x-www-form-urlencoded) with Action and Version among its parameters, and XML.
//
// Reading is strict: a parameter occurs once, an escape is complete, a value is UTF-8, lists are numbered from 1 without gaps, and a parameter
// that the operation did not read is told (Unread). Numbers of parameters and lengths of names are bounded; the body's length is the caller's.
//
// Specification: "AWS Query protocol" in the Smithy documentation.
package awsquery
