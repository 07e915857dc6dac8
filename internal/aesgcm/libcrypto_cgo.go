//go:build cgo && unix

package aesgcm

/*
#cgo CFLAGS: -O2 -Wall -Wextra
#cgo LDFLAGS: -ldl -lpthread
#cgo noescape keyplane_libcrypto_seal
#cgo nocallback keyplane_libcrypto_seal
#cgo noescape keyplane_libcrypto_open
#cgo nocallback keyplane_libcrypto_open
#include <stdlib.h>
#include "libcrypto.h"
*/
import "C"

import (
	"sync"
	"unsafe"
)

// libcryptoName is the ABI that the prototypes in libcrypto.c were read from.
const libcryptoName = "libcrypto.so.3"

// loadLibcrypto loads the library at its first call and reports whether it can be used.
var loadLibcrypto = sync.OnceValue(func() bool {
	name := C.CString(libcryptoName)
	defer C.free(unsafe.Pointer(name))
	return C.keyplane_libcrypto_load(name) == C.KEYPLANE_DONE
})

// bytePtr is for arguments of a call only: C may use the pointer until it returns. An empty slice gives a pointer C does not follow.
func bytePtr(b []byte) *C.uint8_t { return (*C.uint8_t)(unsafe.SliceData(b)) }

// libcryptoSeal writes ciphertext || tag to out. False means that the library failed and out holds nothing of use.
func libcryptoSeal(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, plaintext, aad []byte) bool {
	return C.keyplane_libcrypto_seal(bytePtr(key[:]), bytePtr(nonce[:]), bytePtr(plaintext), C.size_t(len(plaintext)),
		bytePtr(aad), C.size_t(len(aad)), bytePtr(out)) == C.KEYPLANE_DONE
}

// libcryptoOpen writes the plaintext to out. done is false where the library failed; ok says whether the tag matched.
func libcryptoOpen(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, sealed, aad []byte) (ok, done bool) {
	r := C.keyplane_libcrypto_open(bytePtr(key[:]), bytePtr(nonce[:]), bytePtr(sealed), C.size_t(len(sealed)-TagLen),
		bytePtr(aad), C.size_t(len(aad)), bytePtr(out))
	return r == C.KEYPLANE_DONE, r != C.KEYPLANE_FAILED
}
