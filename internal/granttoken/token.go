// Package granttoken is the wire form of grant tokens: what CreateGrant hands out, and what the cryptographic operations, DescribeKey, CreateGrant
// and RetireGrant take. A token names a grant. It is no secret and proves nothing: grants are looked up, and decide.
//
//	base64, with the alphabet of RFC 4648 §4, of
//	version (1) || salt (16) || account (6) || key ID: form (1), UUID (16) || grant ID (32) || check (12)
//
// Numbers are big-endian. The salt is fresh for each token, so that tokens of one grant differ; check is the start of SHA-256 over a label and
// all that comes before it, and keeps typing errors and garbage apart from tokens. The length is such that base64 needs no padding.
package granttoken

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"

	"github.com/keyplane/keyplane/internal/keyid"
)

const (
	version  = 1
	saltLen  = 16
	checkLen = 12
	bodyLen  = 1 + saltLen + 6 + 1 + 16 + 32
	rawLen   = bodyLen + checkLen

	// Len is the length of every token, in bytes.
	Len = rawLen / 3 * 4

	label = "keyplane grant token v1"
)

// Token is what a token says.
type Token struct {
	Account keyid.Account
	Key     keyid.ID
	Grant   [32]byte
}

// GrantID is the grant's ID as the API shows it: 64 hexadecimal digits.
func (t *Token) GrantID() string { return hex.EncodeToString(t.Grant[:]) }

var encoding = base64.StdEncoding.Strict()

// Append appends the token's wire form. salt is random.
func Append(dst []byte, t *Token, salt [saltLen]byte) []byte {
	var raw [rawLen]byte
	b := append(raw[:0], version)
	b = append(b, salt[:]...)
	var account [8]byte
	binary.BigEndian.PutUint64(account[:], uint64(t.Account))
	b = append(b, account[2:]...) // an account is below 10^12, hence six bytes
	if t.Key.MultiRegion {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, t.Key.UUID[:]...)
	b = append(b, t.Grant[:]...)
	c := check(b)
	b = append(b, c[:]...)
	return encoding.AppendEncode(dst, b)
}

// Parse reads a token's wire form; ok false for everything that Append did not write. It does not allocate.
func Parse(token []byte) (t Token, ok bool) {
	if len(token) != Len {
		return Token{}, false
	}
	var raw [rawLen]byte
	// The decoder skips line breaks: a token that holds some comes out short.
	if n, err := encoding.Decode(raw[:], token); err != nil || n != rawLen || raw[0] != version {
		return Token{}, false
	}
	if check(raw[:bodyLen]) != [checkLen]byte(raw[bodyLen:]) {
		return Token{}, false
	}
	b := raw[1+saltLen : bodyLen]
	var account [8]byte
	copy(account[2:], b)
	t.Account = keyid.Account(binary.BigEndian.Uint64(account[:]))
	if t.Account > keyid.AccountMax || b[6] > 1 {
		return Token{}, false
	}
	t.Key.MultiRegion = b[6] == 1
	copy(t.Key.UUID[:], b[7:])
	copy(t.Grant[:], b[23:])
	return t, true
}

func check(body []byte) [checkLen]byte {
	var in [len(label) + bodyLen]byte
	n := copy(in[:], label)
	copy(in[n:], body)
	sum := sha256.Sum256(in[:])
	return [checkLen]byte(sum[:])
}
