// Package awsjson reads and writes the JSON of the AWS JSON 1.1 protocol without allocating: a Scanner over a request body, and the append
// functions for blobs and timestamps (kmsapi has the one for strings).
//
// An operation's decoder walks the body and picks the members it knows:
//
//	s.Reset(body)
//	if s.Object() {
//		for name, ok := s.Next(); ok; name, ok = s.Next() {
//			switch string(name) {
//			case "KeyId":
//				in.keyID, _ = s.String()
//			case "Plaintext":
//				in.plaintext, _ = s.Base64()
//			case "GrantTokens":
//				if s.List() {
//					for s.More() {
//						token, ok := s.String()
//						…
//					}
//				}
//			} // any other member is checked and skipped by the next call of Next
//		}
//	}
//	s.End()
//	code := s.Fault().Code()
//
// The first fault stops the scan: every later call returns nothing, so that a decoder looks at Fault once, at the end.
//
// The Scanner accepts RFC 8259 in valid UTF-8 and refuses what leaves room for two readings: duplicate names (compared after unescaping, in
// known and unknown members alike), lone surrogates, data after the body's object, bad base64. Names are case-sensitive. null is the same as
// absent, and so is an empty body. Objects and lists nest at most kmsapi.JSONDepthMax deep, an object has at most
// kmsapi.JSONMembersMax members; lists and strings are bounded by the body, whose length the HTTP layer bounds.
//
// The package does not know operations, their members or what values they may have. It has no goroutines; a Scanner belongs to one request
// at a time.
package awsjson
