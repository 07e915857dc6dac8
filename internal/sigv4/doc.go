// Package sigv4 verifies AWS Signature Version 4 on requests to AWS KMS, and to the other services a Verifier is given, in the form that
// carries the signature in the Authorization header, and signs requests the same way for tests and the load generator.
//
// Specification: "AWS Signature Version 4 for API requests" in the AWS Identity and Access Management user guide.
//
// Verify is the only function that makes a valid Identity, so code that takes an Identity cannot run for a request nobody signed:
//
//	Verify
//	  checkShape      limits; no control bytes, no query string, one Authorization header
//	  authorization   algorithm, Credential, SignedHeaders, Signature
//	  checkTime       X-Amz-Date, strict, within the window
//	  checkSigned     host, content-type and every x-amz-* header signed, each once; with Config.SignedFew only host and x-amz-date
//	  checkScope      date, region, service, terminator
//	  checkSignature  hash of the body, canonical request, string to sign, HMAC, constant-time compare
//
// The steps before checkSignature depend on the request and the clock alone. checkSignature does the same work for an access key that is
// unknown as for one that is known, with a secret drawn at start.
//
// Canonicalisation is stricter than the algorithm asks, because KMS is POST / with a JSON body: a query string is refused, the path is
// encoded as received and never cleaned, a signed header occurs once. Header values lose blanks at both ends and keep one space of each
// inner run; a tab inside a value stays as it is.
//
// Messages are AWS's where AWS has one. They may repeat parts of the Authorization header to whoever sent it and do not belong in a log.
//
// The package knows nothing of HTTP servers, storage or policies. It starts no goroutine and reads no clock. A Verifier is safe for
// concurrent use; a Scratch belongs to one request at a time. In steady state Verify and AppendAuthorization allocate nothing.
package sigv4
