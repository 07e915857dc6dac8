package audit

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// algECDSA is the signature type of c2sp.org/signed-note for ECDSA with SHA-256, ASN.1 DER; Ed25519 is in package note.
const algECDSA = 2

// NewECDSAVerifier checks ECDSA signatures of checkpoints. Its key hash is that of c2sp.org/signed-note: the first four bytes of the SHA-256 of the public
// key in SPKI form.
func NewECDSAVerifier(name string, key *ecdsa.PublicKey) (note.Verifier, error) {
	if name == "" || strings.ContainsAny(name, " +\n") {
		return nil, fmt.Errorf("audit: %q cannot be the name of a key", name)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(spki)
	return &ecdsaVerifier{name: name, key: key, spki: spki, hash: binary.BigEndian.Uint32(sum[:])}, nil
}

type ecdsaVerifier struct {
	name string
	key  *ecdsa.PublicKey
	spki []byte
	hash uint32
}

func (v *ecdsaVerifier) Name() string    { return v.name }
func (v *ecdsaVerifier) KeyHash() uint32 { return v.hash }

func (v *ecdsaVerifier) Verify(msg, sig []byte) bool {
	sum := sha256.Sum256(msg)
	return ecdsa.VerifyASN1(v.key, sum[:], sig)
}

// VerifierKey is the text of an ECDSA public key that ParseVerifier reads: name+hash+base64(2 ‖ SPKI).
func VerifierKey(name string, key *ecdsa.PublicKey) (string, error) {
	v, err := NewECDSAVerifier(name, key)
	if err != nil {
		return "", err
	}
	spki := v.(*ecdsaVerifier).spki
	return fmt.Sprintf("%s+%08x+%s", name, v.KeyHash(), base64.StdEncoding.EncodeToString(append([]byte{algECDSA}, spki...))), nil
}

// ParseVerifier reads a public key: a verifier key of c2sp.org/signed-note (Ed25519 or ECDSA), or a PEM block "PUBLIC KEY" with an ECDSA key, which has
// no name: name is taken.
func ParseVerifier(text, name string) (note.Verifier, error) {
	text = strings.TrimSpace(text)
	if block, _ := pem.Decode([]byte(text)); block != nil {
		return parseSPKI(name, block.Bytes)
	}
	name, rest, _ := strings.Cut(text, "+")
	hash, encoded, _ := strings.Cut(rest, "+")
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) < 1 || len(hash) != 8 {
		return nil, errors.New("audit: neither a verifier key (name+hash+key) nor a PEM public key")
	}
	if key[0] != algECDSA {
		return note.NewVerifier(text)
	}
	v, err := parseSPKI(name, key[1:])
	if err == nil && fmt.Sprintf("%08x", v.KeyHash()) != hash {
		return nil, errors.New("audit: the hash of the verifier key is not that of its key")
	}
	return v, err
}

func parseSPKI(name string, der []byte) (note.Verifier, error) {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("audit: a public key of type %T does not sign checkpoints", key)
	}
	return NewECDSAVerifier(name, ec)
}
