package softkey

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"

	"filippo.io/mldsa"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// parse reads PKCS #8 with nothing after it, which the library does not look at. That the parts of a key fit together it does check.
func parse(der []byte) (any, error) {
	var all asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &all); err != nil || len(rest) != 0 {
		return nil, ErrKey
	}
	return x509.ParsePKCS8PrivateKey(der)
}

func parseRSA(s keyspec.Spec, der []byte) (*rsa.PrivateKey, error) {
	k, err := parse(der)
	if err != nil {
		return nil, err
	}
	r, ok := k.(*rsa.PrivateKey)
	if !ok || r.N.BitLen() != s.Info().Bits || len(r.Primes) != 2 {
		return nil, ErrKey
	}
	return r, nil
}

func parseNIST(s keyspec.Spec, der []byte) (*ecdsa.PrivateKey, error) {
	k, err := parse(der)
	if err != nil {
		return nil, err
	}
	e, ok := k.(*ecdsa.PrivateKey)
	if !ok || e.Params().BitSize != s.Info().Bits {
		return nil, ErrKey
	}
	return e, nil
}

func parseEd25519(der []byte) (ed25519.PrivateKey, error) {
	k, err := parse(der)
	if err != nil {
		return nil, err
	}
	e, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, ErrKey
	}
	return e, nil
}

// PKCS #8 of a secp256k1 key, as x509.MarshalPKCS8PrivateKey and OpenSSL write those on other curves: the curve named outside, the scalar and the
// point inside. Every length is fixed.
const (
	secpHead = "\x30\x81\x84\x02\x01\x00\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x0a\x04\x6d\x30\x6b\x02\x01\x01\x04\x20"
	secpMid  = "\xa1\x44\x03\x42\x00"
)

func marshalSecp256k1(scalar, point []byte) []byte {
	der := make([]byte, 0, len(secpHead)+len(scalar)+len(secpMid)+len(point))
	der = append(append(der, secpHead...), scalar...)
	return append(append(der, secpMid...), point...)
}

// loadSecp256k1 takes what marshalSecp256k1 makes, and no other encoding.
func (k *Key) loadSecp256k1(der []byte) error {
	const mid = len(secpHead) + 32
	if len(der) != mid+len(secpMid)+65 || string(der[:len(secpHead)]) != secpHead || string(der[mid:mid+len(secpMid)]) != secpMid {
		return ErrKey
	}
	scalar, point := der[len(secpHead):mid], der[mid+len(secpMid):]
	var n secp256k1.ModNScalar
	if n.SetByteSlice(scalar) || n.IsZero() {
		return ErrKey
	}
	private := secp256k1.NewPrivateKey(&n)
	own := private.PubKey().SerializeUncompressed()
	private.Zero()
	n.Zero()
	if string(own) != string(point) {
		return ErrKey
	}
	return k.keep(scalar)
}

// kemHeads are what PKCS #8 of ML-KEM keys in seed form starts with: RFC 9935, OneAsymmetricKey with [0] of 64 bytes.
var kemHeads = map[keyspec.Spec]string{
	keyspec.MLKEM512:  kemHead + "\x01" + kemMid,
	keyspec.MLKEM768:  kemHead + "\x02" + kemMid,
	keyspec.MLKEM1024: kemHead + "\x03" + kemMid,
}

const (
	kemHead = "\x30\x54\x02\x01\x00\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x04"
	kemMid  = "\x04\x42\x80\x40"
)

func mldsaParameters(s keyspec.Spec) mldsa.Parameters {
	switch s {
	case keyspec.MLDSA44:
		return mldsa.MLDSA44()
	case keyspec.MLDSA65:
		return mldsa.MLDSA65()
	}
	return mldsa.MLDSA87()
}
