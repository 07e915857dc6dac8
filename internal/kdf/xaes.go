package kdf

import "github.com/keyplane/keyplane/internal/aesgcm"

// XAES is XAES-256-GCM (C2SP specification "XAES-256-GCM", c2sp.org/XAES-256-GCM) under one AES-256 key that only encrypt knows: a 24-byte
// nonce N, of which N[0:12] derives the key Kx = B_1 || B_2 of the message and N[12:24] is the GCM nonce under it. Random nonces are safe
// for 2^80 messages. It is suite 0x02 without its commitment.
//
// It holds scratch for one message and is for one goroutine at a time. Between messages the scratch is zero.
type XAES struct {
	encrypt func(dst, src *[BlockLen]byte)
	k1      [BlockLen]byte

	block [BlockLen]byte
	kx    [aesgcm.KeyLen]byte
	nx    [aesgcm.NonceLen]byte
}

// XAESNonceLen is the nonce of XAES-256-GCM, in bytes.
const XAESNonceLen = 24

// NewXAES makes the AEAD over encrypt, which encrypts one block under the key; dst may be src. It is called once now, for L, and twice
// per message.
func NewXAES(encrypt func(dst, src *[BlockLen]byte)) *XAES {
	x := &XAES{encrypt: encrypt}
	encrypt(&x.block, &x.block)
	SubkeyK1(&x.k1, &x.block)
	clear(x.block[:])
	return x
}

// Seal appends ciphertext || tag to dst, as aesgcm.Seal does.
func (x *XAES) Seal(dst []byte, nonce *[XAESNonceLen]byte, plaintext, aad []byte) []byte {
	x.derive(nonce)
	defer x.wipe()
	return aesgcm.Seal(dst, &x.kx, &x.nx, plaintext, aad)
}

// Open appends the plaintext to dst, as aesgcm.Open does.
func (x *XAES) Open(dst []byte, nonce *[XAESNonceLen]byte, sealed, aad []byte) ([]byte, bool) {
	x.derive(nonce)
	defer x.wipe()
	return aesgcm.Open(dst, &x.kx, &x.nx, sealed, aad)
}

// derive sets kx and nx for one message.
func (x *XAES) derive(nonce *[XAESNonceLen]byte) {
	for i := range aesgcm.KeyLen / BlockLen {
		Input(&x.block, &x.k1, nonce[:NonceLen], byte(BlockKey1+i))
		x.encrypt(&x.block, &x.block)
		copy(x.kx[i*BlockLen:], x.block[:])
	}
	x.nx = [aesgcm.NonceLen]byte(nonce[NonceLen:])
}

func (x *XAES) wipe() {
	clear(x.block[:])
	clear(x.kx[:])
	clear(x.nx[:])
}
