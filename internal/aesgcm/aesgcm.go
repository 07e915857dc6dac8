package aesgcm

import "slices"

// Lengths, in bytes. MessageMax bounds plaintext and additional data each; it is far above what a KMS request carries and far below what
// GCM (2^36 - 32 bytes) and the libraries (2^31 - 1) take.
const (
	KeyLen     = 32
	NonceLen   = 12
	TagLen     = 16
	MessageMax = 1 << 20
)

// Seal appends ciphertext || tag of plaintext to dst. It allocates only where dst has less than len(plaintext) + TagLen bytes of spare
// capacity (and on the go path). The spare capacity is plaintext itself, plaintext[:0], or does not overlap it; it overlaps neither key,
// nonce nor aad. Plaintext or aad beyond MessageMax panic, as does sealing when Configure refused.
func Seal(dst []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, plaintext, aad []byte) []byte {
	if len(plaintext) > MessageMax || len(aad) > MessageMax {
		panic("aesgcm: message too long to seal")
	}
	n := len(plaintext) + TagLen
	dst = slices.Grow(dst, n)
	out := dst[len(dst) : len(dst)+n]
	sealed := false
	switch current() {
	case pathLibcrypto:
		sealed = libcryptoSeal(out, key, nonce, plaintext, aad)
	case pathBearSSL:
		bearsslSeal(out, key, nonce, plaintext, aad)
		sealed = true
	}
	if !sealed {
		// Also where libcrypto failed, which it does for want of memory only: Go's code is as constant-time on a CPU that libcrypto was chosen for.
		goSeal(out, key, nonce, plaintext, aad)
	}
	return dst[:len(dst)+n]
}

// Open appends the plaintext of sealed, ciphertext || tag, to dst and returns true; or it returns dst and false where key, nonce, aad or
// sealed are not those of one Seal, and then no byte of the plaintext is left in dst's spare capacity. It allocates and overlaps as Seal
// does, with the spare capacity being sealed[:0] or apart from it. Anything shorter than a tag or beyond MessageMax is refused.
func Open(dst []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, sealed, aad []byte) ([]byte, bool) {
	n := len(sealed) - TagLen
	if n < 0 || n > MessageMax || len(aad) > MessageMax {
		return dst, false
	}
	dst = slices.Grow(dst, n)
	out := dst[len(dst) : len(dst)+n]
	var ok, done bool
	switch current() {
	case pathLibcrypto:
		ok, done = libcryptoOpen(out, key, nonce, sealed, aad)
	case pathBearSSL:
		ok, done = bearsslOpen(out, key, nonce, sealed, aad), true
	}
	if !done {
		ok = goOpen(out, key, nonce, sealed, aad)
	}
	if !ok {
		clear(out)
		return dst, false
	}
	return dst[:len(dst)+n], true
}
