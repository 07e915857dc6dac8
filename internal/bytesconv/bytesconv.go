// Package bytesconv looks at strings as bytes and at bytes as strings without a copy. It holds the module's unsafe code outside cgo.
package bytesconv

import "unsafe"

// Bytes is s as bytes, which must not be written to.
func Bytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// String is b as a string, good for as long as b does not change. It must not be kept.
func String(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
