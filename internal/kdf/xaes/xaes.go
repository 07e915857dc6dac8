// Package xaes is XAES-256-GCM as published by C2SP ("XAES-256-GCM", c2sp.org/XAES-256-GCM): AES-256-GCM with a 24-byte nonce N, of which
// N[0:12] derives the key Kx = B_1 || B_2 of the message and N[12:24] is the GCM nonce under it. Random nonces are safe for 2^80 messages. It is
// suite 0x02 of docs/ciphertext.md §3 without its commitment, and the proof by published vectors that internal/kdf and internal/aesgcm
// together are what that page says.
//
// The key is only known to the block encryption that the caller gives, which may be an HSM's. No goroutine is started.
package xaes

import (
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/kdf"
)

// NonceLen is the nonce N, in bytes.
const NonceLen = 24

// AEAD is XAES-256-GCM under one key. It holds scratch for one message and is for one goroutine at a time; between messages the scratch is
// zero.
type AEAD struct {
	encrypt func(dst, src *[kdf.BlockLen]byte)
	k1      [kdf.BlockLen]byte

	block [kdf.BlockLen]byte
	kx    [aesgcm.KeyLen]byte
	nx    [aesgcm.NonceLen]byte
}

// New makes the AEAD over encrypt, which encrypts one block under the key; dst may be src. It is called once now, for L, and twice
// per message.
func New(encrypt func(dst, src *[kdf.BlockLen]byte)) *AEAD {
	x := &AEAD{encrypt: encrypt}
	encrypt(&x.block, &x.block)
	kdf.SubkeyK1(&x.k1, &x.block)
	clear(x.block[:])
	return x
}

// Seal appends ciphertext || tag to dst, as aesgcm.Seal does.
func (x *AEAD) Seal(dst []byte, nonce *[NonceLen]byte, plaintext, aad []byte) []byte {
	x.derive(nonce)
	defer x.wipe()
	return aesgcm.Seal(dst, &x.kx, &x.nx, plaintext, aad)
}

// Open appends the plaintext to dst, as aesgcm.Open does.
func (x *AEAD) Open(dst []byte, nonce *[NonceLen]byte, sealed, aad []byte) ([]byte, bool) {
	x.derive(nonce)
	defer x.wipe()
	return aesgcm.Open(dst, &x.kx, &x.nx, sealed, aad)
}

// derive sets kx and nx for one message.
func (x *AEAD) derive(nonce *[NonceLen]byte) {
	for i := range aesgcm.KeyLen / kdf.BlockLen {
		kdf.Input(&x.block, &x.k1, nonce[:kdf.NonceLen], byte(kdf.BlockKey1+i))
		x.encrypt(&x.block, &x.block)
		copy(x.kx[i*kdf.BlockLen:], x.block[:])
	}
	x.nx = [aesgcm.NonceLen]byte(nonce[kdf.NonceLen:])
}

func (x *AEAD) wipe() {
	clear(x.block[:])
	clear(x.kx[:])
	clear(x.nx[:])
}
