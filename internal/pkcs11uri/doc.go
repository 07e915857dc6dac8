// Package pkcs11uri parses PKCS #11 URIs (RFC 7512):
//
//	pkcs11:token=keyplane;serial=0123?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/keyplane/pin
//
// It knows the syntax, and which attribute may stand where; what an attribute means to whom is for the caller. It starts no goroutine.
package pkcs11uri
