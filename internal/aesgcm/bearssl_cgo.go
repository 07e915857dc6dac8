//go:build cgo && unix

package aesgcm

/*
#cgo noescape keyplane_bearssl_seal
#cgo nocallback keyplane_bearssl_seal
#cgo noescape keyplane_bearssl_open
#cgo nocallback keyplane_bearssl_open
#include <stdlib.h>
#include "bearssl.h"
*/
import "C"

import (
	"sync"
	"unsafe"
)

// bearsslNames are the library as Debian names it and as BearSSL's own build does.
var bearsslNames = [...]string{"libbearssl.so.0", "libbearssl.so"}

// loadBearSSL loads the library at its first call and reports whether it can be used.
var loadBearSSL = sync.OnceValue(func() bool {
	for _, n := range bearsslNames {
		name := C.CString(n)
		ok := C.keyplane_bearssl_load(name) == 1
		C.free(unsafe.Pointer(name))
		if ok {
			return true
		}
	}
	return false
})

// bearsslSeal writes ciphertext || tag to out.
func bearsslSeal(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, plaintext, aad []byte) {
	C.keyplane_bearssl_seal(bytePtr(key[:]), bytePtr(nonce[:]), bytePtr(plaintext), C.size_t(len(plaintext)),
		bytePtr(aad), C.size_t(len(aad)), bytePtr(out))
}

// bearsslOpen writes the plaintext to out and reports whether the tag matches.
func bearsslOpen(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, sealed, aad []byte) bool {
	return C.keyplane_bearssl_open(bytePtr(key[:]), bytePtr(nonce[:]), bytePtr(sealed), C.size_t(len(sealed)-TagLen),
		bytePtr(aad), C.size_t(len(aad)), bytePtr(out)) == 1
}
