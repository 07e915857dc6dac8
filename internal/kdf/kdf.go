package kdf

import (
	"crypto/subtle"
	"encoding/binary"
)

// BlockLen is the AES block, in bytes. NonceLen is how much of a message's nonce N chooses its key: N[0:12].
const (
	BlockLen = 16
	NonceLen = 12
)

// Block numbers of Input: B_1 || B_2 is the message key K, B_3 the commitment C.
const (
	BlockKey1       = 1
	BlockKey2       = 2
	BlockCommitment = 3
)

// label is the KDF label of docs/ciphertext.md §3, the one XAES-256-GCM uses.
const label = 'X'

// Input sets dst to the AES input of block B_i of a message: offset ^ (00 i 'X' 00 N[0:12]). nonce12 is N[0:12]; any other length panics,
// as does i = 0, which SP 800-108r1 does not count. dst may be offset.
func Input(dst *[BlockLen]byte, offset *[BlockLen]byte, nonce12 []byte, i byte) {
	if len(nonce12) != NonceLen {
		panic("kdf: the nonce of a key derivation is 12 bytes")
	}
	if i == 0 {
		panic("kdf: blocks count from 1")
	}
	// Whole words: a byte loop took thirty times as long. Everything is read before dst, which may be offset, is written.
	head := binary.BigEndian.Uint32(offset[0:]) ^ (uint32(i)<<16 | label<<8)
	mid := binary.BigEndian.Uint32(offset[4:]) ^ binary.BigEndian.Uint32(nonce12)
	tail := binary.BigEndian.Uint64(offset[8:]) ^ binary.BigEndian.Uint64(nonce12[4:])
	binary.BigEndian.PutUint32(dst[0:], head)
	binary.BigEndian.PutUint32(dst[4:], mid)
	binary.BigEndian.PutUint64(dst[8:], tail)
}

// SubkeyK1 sets k1 to CMAC's first subkey: L doubled in GF(2^128), where L = E(0^128) (SP 800-38B §6.1, RFC 4493 §2.3). The second
// subkey K2 is the same function of K1. It is constant time. k1 may be L.
func SubkeyK1(k1, L *[BlockLen]byte) {
	carry := L[0] >> 7
	for i := range BlockLen - 1 {
		k1[i] = L[i]<<1 | L[i+1]>>7
	}
	k1[BlockLen-1] = L[BlockLen-1]<<1 ^ (0x87 & -carry)
}

// ChainInput2 sets dst to the AES input that gives chain: c1 ^ S[16:32], where c1 = E(S[0:16]) and s is S[16:32].
func ChainInput2(dst, c1, s *[BlockLen]byte) { subtle.XORBytes(dst[:], c1[:], s[:]) }

// Offset sets dst to chain ^ K1, what a key version's snapshot keeps. For suite 0x02 there is no chain and the offset is K1.
func Offset(dst, chain, k1 *[BlockLen]byte) { subtle.XORBytes(dst[:], chain[:], k1[:]) }
