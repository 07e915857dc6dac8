package pubkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/rsa"
	"crypto/sha3"
	"errors"
	"math/big"
	"slices"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// ErrKey says that bytes are not the DER SubjectPublicKeyInfo of a valid key of the spec, or the parts not those of one.
var ErrKey = errors.New("pubkey: no public key of this spec")

// Key is a public key. It is not changed, and safe for concurrent use.
type Key struct {
	spec keyspec.Spec
	spki []byte
	raw  []byte // part of spki: the modulus, an uncompressed point, a raw key

	// One of these, by the family.
	rsa      *rsa.PublicKey
	nist     *ecdsa.PublicKey
	secp     *secp256k1.PublicKey
	mldsa    *mldsa.PublicKey
	kem512   *mlkem512.PublicKey
	kem768   *mlkem.EncapsulationKey768
	kem1024  *mlkem.EncapsulationKey1024
	tr       [64]byte // SHAKE256 of an ML-DSA key
	exponent int      // of an RSA key
}

// Spec is the key's spec.
func (k *Key) Spec() keyspec.Spec { return k.spec }

// SPKI is the key as DER SubjectPublicKeyInfo. It is not to be changed.
func (k *Key) SPKI() []byte { return k.spki }

// Raw is the modulus, the uncompressed point or the raw key. It is not to be changed.
func (k *Key) Raw() []byte { return k.raw }

// heads are what a SubjectPublicKeyInfo starts with, up to the raw key. As every length in one is that of its spec, there is exactly one DER
// encoding of a key, and reading it is to compare. RSA keys, whose exponents differ, have none here.
var heads = map[keyspec.Spec]string{
	keyspec.P256:      "\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
	keyspec.P384:      "\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
	keyspec.P521:      "\x30\x81\x9b\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23\x03\x81\x86\x00",
	keyspec.Secp256k1: "\x30\x56\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x0a\x03\x42\x00",
	keyspec.Ed25519:   "\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00",
	keyspec.MLDSA44:   "\x30\x82\x05\x32\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03\x11\x03\x82\x05\x21\x00",
	keyspec.MLDSA65:   "\x30\x82\x07\xb2\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03\x12\x03\x82\x07\xa1\x00",
	keyspec.MLDSA87:   "\x30\x82\x0a\x32\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x03\x13\x03\x82\x0a\x21\x00",
	keyspec.MLKEM512:  "\x30\x82\x03\x32\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x04\x01\x03\x82\x03\x21\x00",
	keyspec.MLKEM768:  "\x30\x82\x04\xb2\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x04\x02\x03\x82\x04\xa1\x00",
	keyspec.MLKEM1024: "\x30\x82\x06\x32\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x04\x03\x03\x82\x06\x21\x00",
}

// Parse reads the DER SubjectPublicKeyInfo of a key of exactly the spec and checks the key: points are uncompressed and on the curve, not those of
// small order on Curve25519; a modulus has the length of the spec and is odd, its exponent is odd and of 2 to 31 bits; ML-KEM keys pass the
// modulus check of FIPS 203. Other encodings of the same key, and trailing bytes, are refused. The error is ErrKey. spki is copied.
func Parse(s keyspec.Spec, spki []byte) (*Key, error) {
	if s.Info().Family == keyspec.RSA {
		return parseRSA(s, spki)
	}
	head, known := heads[s]
	if !known || len(spki) != len(head)+s.Info().Public || string(spki[:len(head)]) != head {
		return nil, ErrKey
	}
	k := &Key{spec: s, spki: slices.Clone(spki)}
	k.raw = k.spki[len(head):len(k.spki):len(k.spki)]
	if err := k.load(); err != nil {
		return nil, ErrKey
	}
	return k, nil
}

// load makes the library's key of the raw one, which checks it.
func (k *Key) load() (err error) {
	switch k.spec {
	case keyspec.P256, keyspec.P384, keyspec.P521:
		k.nist, err = ecdsa.ParseUncompressedPublicKey(curve(k.spec), k.raw)
	case keyspec.Secp256k1:
		if k.raw[0] != 4 { // the library also reads hybrid points of the same length
			return ErrKey
		}
		k.secp, err = secp256k1.ParsePubKey(k.raw)
	case keyspec.Ed25519:
		if !edwardsPoint(k.raw) {
			return ErrKey
		}
	case keyspec.MLDSA44, keyspec.MLDSA65, keyspec.MLDSA87:
		k.mldsa, err = mldsa.NewPublicKey(mldsaParameters(k.spec), k.raw)
		var h sha3.SHAKE
		_, _ = h.Write(k.raw)
		_, _ = h.Read(k.tr[:])
	case keyspec.MLKEM512:
		k.kem512 = new(mlkem512.PublicKey)
		err = k.kem512.Unpack(k.raw)
	case keyspec.MLKEM768:
		k.kem768, err = mlkem.NewEncapsulationKey768(k.raw)
	case keyspec.MLKEM1024:
		k.kem1024, err = mlkem.NewEncapsulationKey1024(k.raw)
	default:
		return ErrKey
	}
	return err
}

func curve(s keyspec.Spec) elliptic.Curve {
	switch s {
	case keyspec.P256:
		return elliptic.P256()
	case keyspec.P384:
		return elliptic.P384()
	case keyspec.P521:
		return elliptic.P521()
	}
	return nil
}

func mldsaParameters(s keyspec.Spec) mldsa.Parameters {
	switch s {
	case keyspec.MLDSA44:
		return mldsa.MLDSA44()
	case keyspec.MLDSA65:
		return mldsa.MLDSA65()
	}
	return mldsa.MLDSA87()
}

// Marshal is the DER SubjectPublicKeyInfo of a key of any spec but RSA's and HMAC's, of an uncompressed point or a raw key. The key is checked as
// by Parse.
func Marshal(s keyspec.Spec, raw []byte) ([]byte, error) {
	head, known := heads[s]
	if !known {
		return nil, ErrKey
	}
	spki := append([]byte(head), raw...)
	if _, err := Parse(s, spki); err != nil {
		return nil, err
	}
	return spki, nil
}

// rsaHead is what comes before the modulus, with lengths to be set: the two bytes at 2, 21, 26 and 30. Everything in it has the same length
// for all three specs, because all lengths of theirs need two bytes.
const (
	rsaHead = "\x30\x82..\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82..\x00\x30\x82..\x02\x82..\x00"

	exponentBytesMax = 4 // and no more than 31 bits, the most that crypto/rsa takes
)

// MarshalRSA is the DER SubjectPublicKeyInfo of an RSA key of the spec. The integers are big-endian and may have leading zeros. The key is
// checked as by Parse.
func MarshalRSA(s keyspec.Spec, modulus, exponent []byte) ([]byte, error) {
	if s.Info().Family != keyspec.RSA {
		return nil, ErrKey
	}
	modulus, exponent = bytes.TrimLeft(modulus, "\x00"), bytes.TrimLeft(exponent, "\x00")
	if len(modulus) != s.Info().Public || modulus[0] < 0x80 || modulus[len(modulus)-1]&1 == 0 {
		return nil, ErrKey
	}
	if len(exponent) == 0 || len(exponent) > exponentBytesMax || len(exponent) == exponentBytesMax && exponent[0] >= 0x80 {
		return nil, ErrKey
	}
	if last := exponent[len(exponent)-1]; last&1 == 0 || len(exponent) == 1 && last == 1 {
		return nil, ErrKey
	}
	if exponent[0] >= 0x80 {
		exponent = append([]byte{0}, exponent...)
	}
	spki := append([]byte(rsaHead), modulus...)
	spki = append(spki, 2, byte(len(exponent)))
	spki = append(spki, exponent...)
	for _, at := range []int{2, 21, 26} { // each covers all that follows
		putLength(spki[at:], len(spki)-at-2)
	}
	putLength(spki[30:], len(modulus)+1)
	return spki, nil
}

// putLength puts a length of two bytes.
func putLength(b []byte, n int) { b[0], b[1] = byte(n>>8), byte(n) }

// parseRSA takes the integers from where they have to be, and compares with the encoding of what it took.
func parseRSA(s keyspec.Spec, spki []byte) (*Key, error) {
	end := len(rsaHead) + s.Info().Public // of the modulus
	if len(spki) < end+3 {
		return nil, ErrKey
	}
	modulus, exponent := spki[len(rsaHead):end], spki[end+2:]
	only, err := MarshalRSA(s, modulus, exponent)
	if err != nil || !bytes.Equal(only, spki) {
		return nil, ErrKey
	}
	k := &Key{spec: s, spki: only, raw: only[len(rsaHead):end:end]}
	for _, b := range exponent {
		k.exponent = k.exponent<<8 | int(b)
	}
	k.rsa = &rsa.PublicKey{N: new(big.Int).SetBytes(k.raw), E: k.exponent}
	return k, nil
}

// Peer is the uncompressed point of another's key for a key agreement with this one: of a key on the same curve, checked as by Parse.
func (k *Key) Peer(spki []byte) (point []byte, err error) {
	if k.nist == nil {
		return nil, ErrKey
	}
	peer, err := Parse(k.spec, spki)
	if err != nil {
		return nil, err
	}
	return peer.raw, nil
}
