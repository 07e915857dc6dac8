package blob

import (
	"encoding/binary"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Version1 is the first byte of every blob of this layout.
const Version1 = 0x01

// Suites: how the message key comes from the KMS key (docs/ciphertext.md §3).
const (
	SuiteDerived  = 0x01 // derived backing key: CMAC under the token's derivation root, salted per key version
	SuiteResident = 0x02 // resident backing key: an AES-256 key of its own in the HSM; XAES-256-GCM
	SuiteExternal = 0x03 // derived backing key, and what it makes is encrypted again by an external key: Outer
)

// Lengths, in bytes.
const (
	HeaderLen = 69
	TagLen    = 16
	Overhead  = HeaderLen + TagLen

	LenMin = Overhead + 1                   // a blob of one byte of plaintext
	LenMax = Overhead + kmsapi.PlaintextMax // 4181, below the 6144 that the API accepts; of SuiteExternal ExternalLenMax

	NonceLen      = 24
	CommitmentLen = 16
)

// Offsets of the header's fields.
const (
	offVersion    = 0
	offSuite      = 1
	offAccount    = 2
	offForm       = 8
	offKeyID      = 9
	offKeyVersion = 25
	offNonce      = 29
	offCommitment = 53
)

// Key ID forms.
const (
	formUUID        = 0x00
	formMultiRegion = 0x01
)

// Header is the clear part of a blob: whose key, which backing key, and what made the message key.
type Header struct {
	Suite      byte // SuiteDerived, SuiteResident or SuiteExternal
	Account    keyid.Account
	Key        keyid.ID
	KeyVersion uint32              // of the backing key, from 1
	Nonce      [NonceLen]byte      // N: bytes 0..11 choose the message key, 12..23 are the GCM nonce under it
	Commitment [CommitmentLen]byte // C: compared in constant time before the tag is looked at
}

// valid says whether the header has an encoding.
func (h *Header) valid() bool {
	return h.Suite >= SuiteDerived && h.Suite <= SuiteExternal && h.Account <= keyid.AccountMax && h.KeyVersion != 0
}

// Append appends the 69 bytes of the header to dst. It panics when a field has no encoding: a suite that is not defined, an account of more than 12
// digits, key version 0. Such a blob could never be decrypted.
func (h *Header) Append(dst []byte) []byte {
	if !h.valid() {
		panic("blob: Append of a header without encoding")
	}
	var account [8]byte
	binary.BigEndian.PutUint64(account[:], uint64(h.Account))
	form := byte(formUUID)
	if h.Key.MultiRegion {
		form = formMultiRegion
	}
	dst = append(dst, Version1, h.Suite)
	dst = append(dst, account[2:]...)
	dst = append(dst, form)
	dst = append(dst, h.Key.UUID[:]...)
	dst = binary.BigEndian.AppendUint32(dst, h.KeyVersion)
	dst = append(dst, h.Nonce[:]...)
	return append(dst, h.Commitment[:]...)
}

// Parse reads the header of the blob b into h and returns the rest, ciphertext || tag, of SuiteExternal what ParseOuter takes, which aliases b. It accepts only
// what Append and a seal of 1 to 4096 bytes make: appending h and sealed gives b again. Where it refuses, h is left as it was; every refusal is the one
// InvalidCiphertextException. b[:HeaderLen] is the header's part of the AAD.
func Parse(b []byte, h *Header) (sealed []byte, ok bool) {
	if len(b) < LenMin || len(b) > LenMax && b[offSuite] != SuiteExternal {
		return nil, false
	}
	var account [8]byte
	copy(account[2:], b[offAccount:offForm])
	p := Header{
		Suite:      b[offSuite],
		Account:    keyid.Account(binary.BigEndian.Uint64(account[:])),
		KeyVersion: binary.BigEndian.Uint32(b[offKeyVersion:offNonce]),
	}
	if b[offVersion] != Version1 || b[offForm] > formMultiRegion || !p.valid() {
		return nil, false
	}
	if p.Suite == SuiteExternal && !ParseOuter(b[HeaderLen:], new(Outer)) {
		return nil, false
	}
	p.Key.MultiRegion = b[offForm] == formMultiRegion
	copy(p.Key.UUID[:], b[offKeyID:offKeyVersion])
	copy(p.Nonce[:], b[offNonce:offCommitment])
	copy(p.Commitment[:], b[offCommitment:HeaderLen])
	*h = p
	return b[HeaderLen:], true
}
