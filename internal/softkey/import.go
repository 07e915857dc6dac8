package softkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// publicExponent is the only one that imported RSA keys have, because it is that of all keys that tokens make.
const publicExponent = 65537

// Import makes of key material from outside what Generate gives. Material of AES and HMAC keys is the raw key, that of RSA, EC and Ed25519 keys a PKCS #8
// PrivateKeyInfo in DER; ML-DSA and ML-KEM keys are not imported. It is strict: one DER encoding with nothing after or between what the formats have, the
// curve named and not spelled out, a modulus of the spec's length and the exponent 65537, parts of an RSA key that fit together, a scalar in the range of
// the curve's order, and a public half, where there is one inside, that is the scalar's. What it gives is encoded anew, without what the material had
// besides the key. The error is ErrKey, whatever is wrong, or ErrUnsupported for a spec of which none are imported. private is the caller's to clear.
func Import(s keyspec.Spec, material []byte) (private, public []byte, err error) {
	switch s.Info().Family {
	case keyspec.AES, keyspec.HMAC:
		if len(material) != s.Info().Bits/8 {
			return nil, nil, ErrKey
		}
		return bytes.Clone(material), nil, nil
	case keyspec.RSA:
		private, public, err = importRSA(s, material)
	case keyspec.EC:
		private, public, err = importEC(s, material)
	case keyspec.Edwards:
		private, public, err = importEdwards(s, material)
	default:
		return nil, nil, ErrUnsupported
	}
	if err != nil {
		return nil, nil, ErrKey // of the libraries' errors nothing: they can quote what they parse
	}
	return private, public, nil
}

// Tags of DER, with the class and whether the content is elements.
const (
	derInteger   = 0x02
	derBits      = 0x03
	derOctets    = 0x04
	derSequence  = 0x30
	derContext0  = 0xa0
	derContext1  = 0xa1
	derImplicit1 = 0x81
)

// der are elements of DER, one after the other. It reads them in one encoding only: lengths are definite, and as short as they can be.
type der []byte

// next takes the first element, false if it has another tag or there is none.
func (d *der) next(tag byte) (content der, ok bool) {
	b := *d
	if len(b) < 2 || b[0] != tag {
		return nil, false
	}
	n, head := int(b[1]), 2
	if n >= 0x80 {
		bytesOf := n & 0x7f
		if bytesOf < 1 || bytesOf > 2 || len(b) < 2+bytesOf {
			return nil, false // nothing that is read here has 64 KiB
		}
		n, head = 0, 2+bytesOf
		for _, x := range b[2:head] {
			n = n<<8 | int(x)
		}
		if n < 0x80 || bytesOf == 2 && n < 0x100 {
			return nil, false
		}
	}
	if len(b)-head < n {
		return nil, false
	}
	content, *d = b[head:head+n], b[head+n:]
	return content, true
}

// is says whether the first element has the tag.
func (d der) is(tag byte) bool { return len(d) > 0 && d[0] == tag }

// info is a PrivateKeyInfo of RFC 5208, or a OneAsymmetricKey of RFC 5958.
type info struct {
	algorithm, key der
	public         der // what a bit string has of it; nil where there is none
}

func parseInfo(material []byte) (i info, ok bool) {
	all := der(material)
	body, ok := all.next(derSequence)
	if !ok || len(all) != 0 {
		return i, false
	}
	version, ok := body.next(derInteger)
	if !ok || len(version) != 1 || version[0] > 1 {
		return i, false
	}
	if i.algorithm, ok = body.next(derSequence); !ok {
		return i, false
	}
	if i.key, ok = body.next(derOctets); !ok {
		return i, false
	}
	if body.is(derContext0) { // attributes, of which none changes the key
		if _, ok = body.next(derContext0); !ok {
			return i, false
		}
	}
	if version[0] == 1 && body.is(derImplicit1) {
		if i.public, ok = body.next(derImplicit1); !ok || len(i.public) < 2 || i.public[0] != 0 {
			return i, false
		}
		i.public = i.public[1:]
	}
	return i, len(body) == 0
}

// Algorithm identifiers, without the sequence around them.
const (
	rsaAlgorithm     = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00"
	ecAlgorithm      = "\x06\x07\x2a\x86\x48\xce\x3d\x02\x01" // and the curve
	ed25519Algorithm = "\x06\x03\x2b\x65\x70"
)

// curveNames are the curves' object identifiers, as elements.
var curveNames = map[keyspec.Spec]string{
	keyspec.P256:      "\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07",
	keyspec.P384:      "\x06\x05\x2b\x81\x04\x00\x22",
	keyspec.P521:      "\x06\x05\x2b\x81\x04\x00\x23",
	keyspec.Secp256k1: "\x06\x05\x2b\x81\x04\x00\x0a",
}

func importRSA(s keyspec.Spec, material []byte) (private, public []byte, err error) {
	i, ok := parseInfo(material)
	if !ok || string(i.algorithm) != rsaAlgorithm || i.public != nil {
		return nil, nil, ErrKey
	}
	// An RSAPrivateKey of two primes: the library takes elements after them.
	all := i.key
	parts, ok := all.next(derSequence)
	if !ok || len(all) != 0 {
		return nil, nil, ErrKey
	}
	for n := range 9 {
		if part, ok := parts.next(derInteger); !ok || n == 0 && string(part) != "\x00" { // the version
			return nil, nil, ErrKey
		}
	}
	if len(parts) != 0 {
		return nil, nil, ErrKey
	}
	k, err := x509.ParsePKCS1PrivateKey(i.key) // which checks that all parts fit together
	if err != nil {
		return nil, nil, err
	}
	defer wipeRSA(k)
	if k.N.BitLen() != s.Info().Bits || k.E != publicExponent || len(k.Primes) != 2 {
		return nil, nil, ErrKey
	}
	if err := k.Validate(); err != nil {
		return nil, nil, err
	}
	return marshal(s, k)
}

// importEC reads an ECPrivateKey of RFC 5915. Its scalar may lack leading zeros, which some encoders leave out against the RFC: of 256 keys that
// is one.
func importEC(s keyspec.Spec, material []byte) (private, public []byte, err error) {
	i, ok := parseInfo(material)
	if !ok || string(i.algorithm) != ecAlgorithm+curveNames[s] {
		return nil, nil, ErrKey
	}
	all := i.key
	body, ok := all.next(derSequence)
	if !ok || len(all) != 0 {
		return nil, nil, ErrKey
	}
	if version, ok := body.next(derInteger); !ok || len(version) != 1 || version[0] != 1 {
		return nil, nil, ErrKey
	}
	short, ok := body.next(derOctets)
	size := (s.Info().Bits + 7) / 8
	if !ok || len(short) == 0 || len(short) > size {
		return nil, nil, ErrKey
	}
	points := []der{}
	if i.public != nil {
		points = append(points, i.public)
	}
	if body.is(derContext0) {
		if curve, ok := body.next(derContext0); !ok || string(curve) != curveNames[s] {
			return nil, nil, ErrKey
		}
	}
	if body.is(derContext1) {
		inner, ok := body.next(derContext1)
		if !ok {
			return nil, nil, ErrKey
		}
		bits, ok := inner.next(derBits)
		if !ok || len(inner) != 0 || len(bits) < 2 || bits[0] != 0 {
			return nil, nil, ErrKey
		}
		points = append(points, bits[1:])
	}
	if len(body) != 0 {
		return nil, nil, ErrKey
	}
	scalar := make([]byte, size)
	defer clear(scalar)
	copy(scalar[size-len(short):], short)
	if private, public, err = scalarKey(s, scalar); err != nil {
		return nil, nil, err
	}
	own := public[len(public)-s.Info().Public:]
	for _, p := range points {
		if !bytes.Equal(p, own) {
			clear(private)
			return nil, nil, ErrKey
		}
	}
	return private, public, nil
}

// scalarKey makes a key of a scalar as long as the curve's order. The error is that of one that is 0 or not below the order.
func scalarKey(s keyspec.Spec, scalar []byte) (private, public []byte, err error) {
	if s != keyspec.Secp256k1 {
		k, err := ecdsa.ParseRawPrivateKey(curve(s), scalar)
		if err != nil {
			return nil, nil, err
		}
		return marshal(s, k)
	}
	var n secp256k1.ModNScalar
	defer n.Zero()
	if n.SetByteSlice(scalar) || n.IsZero() {
		return nil, nil, ErrKey
	}
	k := secp256k1.NewPrivateKey(&n)
	defer k.Zero()
	point := k.PubKey().SerializeUncompressed()
	if public, err = pubkey.Marshal(s, point); err != nil {
		return nil, nil, err
	}
	return marshalSecp256k1(scalar, point), public, nil
}

// importEdwards reads a private key of RFC 8410.
func importEdwards(s keyspec.Spec, material []byte) (private, public []byte, err error) {
	i, ok := parseInfo(material)
	if !ok || string(i.algorithm) != ed25519Algorithm {
		return nil, nil, ErrKey
	}
	all := i.key
	seed, ok := all.next(derOctets)
	if !ok || len(all) != 0 || len(seed) != ed25519.SeedSize {
		return nil, nil, ErrKey
	}
	k := ed25519.NewKeyFromSeed(seed)
	defer clear(k)
	if i.public != nil && !bytes.Equal(i.public, k.Public().(ed25519.PublicKey)) {
		return nil, nil, ErrKey
	}
	return marshal(s, k)
}
