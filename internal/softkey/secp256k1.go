package softkey

import (
	"crypto/rand"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// signSecp256k1 signs a digest of at most 32 bytes: r and s, of which s is the lower of the two that are valid.
//
// The library multiplies points and inverts scalars in time that depends on them, and its own signatures have the nonce of RFC 6979, so that whoever
// asks for one digest again and again could measure the nonce's zero bytes and with enough of them find the key. Here every nonce is another, drawn
// with random besides key and digest, and no operation of varying time meets a secret: k·G is a·G + (k-a)·G, and k is inverted as k·b, for
// random a and b that are used once.
func signSecp256k1(private, digest []byte, raw []byte) {
	var d, e secp256k1.ModNScalar
	d.SetByteSlice(private)
	e.SetByteSlice(digest)
	defer d.Zero()
	for try := uint32(0); !signOnce(&d, &e, private, digest, try, raw); try++ {
		// r or s was zero, which nobody will live to see
	}
}

func signOnce(d, e *secp256k1.ModNScalar, private, digest []byte, try uint32, raw []byte) bool {
	var extra [32]byte
	_, _ = rand.Read(extra[:]) // never fails
	k := secp256k1.NonceRFC6979(private, digest, extra[:], nil, try)
	a, b := randomScalar(), randomScalar()
	defer k.Zero()
	defer a.Zero()
	defer b.Zero()

	var rest, r, s, bd secp256k1.ModNScalar
	defer rest.Zero()
	defer bd.Zero()
	rest.NegateVal(&a).Add(k)
	var one, other, kG secp256k1.JacobianPoint
	secp256k1.ScalarBaseMultNonConst(&a, &one)
	secp256k1.ScalarBaseMultNonConst(&rest, &other)
	secp256k1.AddNonConst(&one, &other, &kG)
	kG.ToAffine()
	r.SetBytes(kG.X.Bytes()) // mod n

	// s = (k·b)⁻¹ · (b·e + r·b·d)
	var be, kb secp256k1.ModNScalar
	defer kb.Zero()
	bd.Mul2(&b, d)
	be.Mul2(&b, e)
	kb.Mul2(&b, k)
	s.Mul2(&r, &bd).Add(&be).Mul(kb.InverseNonConst())
	if r.IsZero() || s.IsZero() {
		return false
	}
	if s.IsOverHalfOrder() {
		s.Negate()
	}
	r.PutBytesUnchecked(raw[:32])
	s.PutBytesUnchecked(raw[32:])
	return true
}

// randomScalar is neither zero nor reduced.
func randomScalar() (s secp256k1.ModNScalar) {
	var b [32]byte
	defer clear(b[:])
	for {
		_, _ = rand.Read(b[:])
		if overflow := s.SetBytes(&b); overflow == 0 && !s.IsZero() {
			return s
		}
	}
}
