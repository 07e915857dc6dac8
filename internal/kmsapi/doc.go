// Package kmsapi holds what both planes must agree on about the AWS KMS API: operation names, exceptions and their wire form, limits,
// and the text of validation failures. It is tables and append functions; it knows nothing of HTTP, storage or keys.
//
// The tables are checked against the service model (testdata/kms-model.json) by this package's tests.
package kmsapi
