// Package planes is the wire between the planes where they run apart: HTTP/2 over mutual TLS, from each member of a cluster to its control planes.
//
//	POST /planes/1/request   a client's request to the control plane, as it was signed, and its answer
//	POST /planes/1/managed   such a request, which uses the AWS managed key of an alias for the first time
//	POST /planes/1/applied   a stream: which revision of the store a member has applied
//	POST /planes/1/lease     parts of request quotas
//	POST /planes/1/uses      last uses of keys
//	POST /planes/1/renew     a certificate for the same name and role
//	GET  /healthz, /readyz
//
// Who is at the other end is what its certificate says. Messages are frames with a strict reading: what does not use up its bytes, or is longer than
// its limit, is refused. Nothing of a request or of its answer goes to a log.
package planes
