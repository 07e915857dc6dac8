// Package auditkey signs and verifies the notes of the audit log, its checkpoints, with an ECDSA P-256 key that a token keeps: signature type
// 0x02 of c2sp.org/signed-note, which is ECDSA with SHA-256 over the text, in ASN.1 DER. The key ID is the first four bytes of the SHA-256 hash
// of the public key's SubjectPublicKeyInfo in DER; unlike Ed25519's it does not cover the name. It knows nothing of tokens and logs.
//
// A verifier key is one line of text:
//
//	<name>+<key ID, 8 hexadecimal digits>+<base64 of 0x02 || SubjectPublicKeyInfo in DER>
package auditkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

const (
	typeECDSA = 0x02
	nameMax   = 256 // bytes
)

// Key signs a SHA-256 digest and returns ASN.1 DER.
type Key interface {
	Public() *ecdsa.PublicKey
	Sign(digest []byte) ([]byte, error)
}

// NewSigner returns the signer of notes under a name.
func NewSigner(name string, k Key) (note.Signer, error) {
	id, err := identify(name, k.Public())
	if err != nil {
		return nil, err
	}
	return &signer{id, k}, nil
}

// NewVerifier returns the verifier of notes under a name.
func NewVerifier(name string, public *ecdsa.PublicKey) (note.Verifier, error) {
	id, err := identify(name, public)
	if err != nil {
		return nil, err
	}
	return &verifier{id, public}, nil
}

// VerifierKey is the verifier key in text.
func VerifierKey(name string, public *ecdsa.PublicKey) (string, error) {
	id, err := identify(name, public)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s+%08x+%s", name, id.hash, base64.StdEncoding.EncodeToString(append([]byte{typeECDSA}, id.spki...))), nil
}

var errVerifierKey = errors.New("auditkey: not a verifier key: want <name>+<8 hexadecimal digits>+<base64> of an ECDSA P-256 key")

// ParseVerifierKey reads what VerifierKey writes, and nothing else: there is one text for a name and key.
func ParseVerifierKey(text string) (name string, public *ecdsa.PublicKey, err error) {
	name, rest, _ := strings.Cut(text, "+")
	_, encoded, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || len(key) == 0 || key[0] != typeECDSA {
		return "", nil, errVerifierKey
	}
	parsed, err := x509.ParsePKIXPublicKey(key[1:])
	if err != nil {
		return "", nil, errVerifierKey
	}
	public, ok := parsed.(*ecdsa.PublicKey)
	if !ok {
		return "", nil, errVerifierKey
	}
	if again, err := VerifierKey(name, public); err != nil || again != text {
		return "", nil, errVerifierKey
	}
	return name, public, nil
}

// PEM is the public key as a PEM block PUBLIC KEY.
func PEM(public *ecdsa.PublicKey) ([]byte, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("auditkey: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

type identity struct {
	name string
	hash uint32
	spki []byte
}

func (id *identity) Name() string    { return id.name }
func (id *identity) KeyHash() uint32 { return id.hash }

func identify(name string, public *ecdsa.PublicKey) (identity, error) {
	if !validName(name) {
		return identity{}, fmt.Errorf("auditkey: %q cannot name a key: want 1 to %d bytes of UTF-8 without spaces, control characters and +", name, nameMax)
	}
	if public == nil || public.Curve != elliptic.P256() {
		return identity{}, errors.New("auditkey: the key is not on P-256")
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return identity{}, fmt.Errorf("auditkey: %w", err)
	}
	sum := sha256.Sum256(spki)
	return identity{name, binary.BigEndian.Uint32(sum[:]), spki}, nil
}

func validName(name string) bool {
	bad := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' }
	return name != "" && len(name) <= nameMax && utf8.ValidString(name) && strings.IndexFunc(name, bad) < 0
}

type signer struct {
	identity
	key Key
}

func (s *signer) Sign(text []byte) ([]byte, error) {
	digest := sha256.Sum256(text)
	return s.key.Sign(digest[:])
}

type verifier struct {
	identity
	public *ecdsa.PublicKey
}

func (v *verifier) Verify(text, sig []byte) bool {
	digest := sha256.Sum256(text)
	return ecdsa.VerifyASN1(v.public, digest[:], sig)
}
