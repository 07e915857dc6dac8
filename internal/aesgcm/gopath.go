package aesgcm

import (
	"crypto/aes"
	"crypto/cipher"
)

// goAEAD is the standard library's AES-256-GCM under key.
func goAEAD(key *[KeyLen]byte) cipher.AEAD {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("aesgcm: crypto/aes refuses a 32-byte key")
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("aesgcm: crypto/cipher refuses AES")
	}
	return aead
}

func goSeal(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, plaintext, aad []byte) {
	goAEAD(key).Seal(out[:0], nonce[:], plaintext, aad)
}

func goOpen(out []byte, key *[KeyLen]byte, nonce *[NonceLen]byte, sealed, aad []byte) bool {
	// The capacity is cut so that a longer result could not reach what lies behind out.
	_, err := goAEAD(key).Open(out[:0:len(out)], nonce[:], sealed, aad)
	return err == nil
}
