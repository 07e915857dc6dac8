package replication

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha512"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/go-json-experiment/json"
)

// EnvelopeMax bounds a message on the wire, in bytes: several times what a key with 65 versions, or the longest policy with all its tags and aliases, needs.
const EnvelopeMax = 512 << 10

// An envelope is
//
//	magic (8) || n (4, big-endian) || body, n bytes || signature, DER
//	body = sender || ' ' || receiver || '\n' || message, JSON
//
// and the signature is ECDSA with P-384 of SHA-384(signedLabel || body). Sender, receiver, purpose, nonce and time are in the message; the first two come
// before it too, so that nothing of it is decoded before it is known to be a peer's.
const (
	magic       = "kprepl1\n"
	signedLabel = "keyplane replication message v1\n"
	nonceLen    = 16
)

// headerMax is longer than the names of two Regions.
const headerMax = 256

// signatureMax is the longest DER encoding of two numbers of 48 bytes.
const signatureMax = 2 + 2*(2+49)

var errEnvelope = errors.New("replication: not an envelope")

// Sign makes an ECDSA signature, DER, of a SHA-384 digest with the Region's replication key. It is called concurrently and may wait for the HSM.
type Sign func(digest []byte) (signature []byte, err error)

// seal encodes and signs.
func seal(m *Message, sign Sign) ([]byte, error) {
	message, err := json.Marshal(m, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	body := append(append(make([]byte, 0, len(m.From)+len(m.To)+2+len(message)), m.From+" "+m.To+"\n"...), message...)
	digest := digestOf(body)
	signature, err := sign(digest[:])
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, len(magic)+4+len(body)+len(signature)), magic...), uint32(len(body)))
	b = append(append(b, body...), signature...)
	if len(b) > EnvelopeMax {
		return nil, errors.New("replication: the message is too long")
	}
	return b, nil
}

// split takes an envelope apart. Nothing of what it returns is verified.
func split(b []byte) (body, signature []byte, err error) {
	if len(b) > EnvelopeMax || len(b) < len(magic)+4 || string(b[:len(magic)]) != magic {
		return nil, nil, errEnvelope
	}
	n, rest := binary.BigEndian.Uint32(b[len(magic):]), b[len(magic)+4:]
	if uint64(n) > uint64(len(rest)) || len(rest)-int(n) > signatureMax {
		return nil, nil, errEnvelope
	}
	return rest[:n], rest[n:], nil
}

// header takes a body apart. Nothing of what it returns is verified.
func header(body []byte) (from, to string, message []byte, err error) {
	end := bytes.IndexByte(body[:min(len(body), headerMax)], '\n')
	if end < 0 {
		return "", "", nil, errEnvelope
	}
	from, to, ok := strings.Cut(string(body[:end]), " ")
	if !ok {
		return "", "", nil, errEnvelope
	}
	return from, to, body[end+1:], nil
}

// open verifies an envelope for the Region to, under the key of the Region that it says it is from, and then decodes its message.
func open(b []byte, to string, peer func(region string) *ecdsa.PublicKey) (*Message, error) {
	body, signature, err := split(b)
	if err != nil {
		return nil, err
	}
	from, receiver, message, err := header(body)
	if err != nil {
		return nil, err
	}
	if receiver != to {
		return nil, errors.New("replication: the message is for somebody else")
	}
	key := peer(from)
	digest := digestOf(body)
	if key == nil || !ecdsa.VerifyASN1(key, digest[:], signature) {
		return nil, errStranger
	}
	m, err := decode(message)
	if err != nil {
		return nil, err
	}
	if m.From != from || m.To != to {
		return nil, errMessage
	}
	return m, nil
}

var errStranger = errors.New("replication: the message is from no peer")

// To is the Region that an envelope says it is for, "" if it is none: to find who will verify it.
func To(envelope []byte) string {
	body, _, err := split(envelope)
	if err != nil {
		return ""
	}
	_, to, _, err := header(body)
	if err != nil {
		return ""
	}
	return to
}

func digestOf(body []byte) (sum [sha512.Size384]byte) {
	h := sha512.New384()
	h.Write([]byte(signedLabel))
	h.Write(body)
	h.Sum(sum[:0])
	return sum
}

// ParsePublicKey reads a replication public key, DER SubjectPublicKeyInfo of a point on P-384.
func ParsePublicKey(der []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("replication: not a public key")
	}
	p, ok := k.(*ecdsa.PublicKey)
	if !ok || p.Curve != elliptic.P384() {
		return nil, errors.New("replication: not a public key on P-384")
	}
	return p, nil
}
