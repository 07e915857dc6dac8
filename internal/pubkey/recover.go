package pubkey

import (
	"math/big"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Signed is a digest, of the curve's length at most, and its ECDSA signature r || s.
type Signed struct{ Digest, Signature []byte }

// RecoverECDSA is the DER SubjectPublicKeyInfo of the one key of the spec that has made both signatures, which are of different digests: for a token that
// signs with a private key and does not tell the public one. A signature fits two keys, and in rare cases four; of those the second signature leaves the
// one. The error is ErrKey. Everything here is public, and nothing takes constant time.
func RecoverECDSA(s keyspec.Spec, first, second Signed) ([]byte, error) {
	c, ok := weierstrassOf(s)
	if !ok {
		return nil, ErrKey
	}
	var found []byte
	for _, q := range c.candidates(first) {
		raw := make([]byte, s.Info().Public)
		raw[0] = 4
		half := (len(raw) - 1) / 2
		q.x.FillBytes(raw[1 : 1+half])
		q.y.FillBytes(raw[1+half:])
		spki, err := Marshal(s, raw)
		if err != nil {
			continue
		}
		k, err := Parse(s, spki)
		if err != nil || !k.made(first) || !k.made(second) {
			continue
		}
		if found != nil {
			return nil, ErrKey
		}
		found = spki
	}
	if found == nil {
		return nil, ErrKey
	}
	return found, nil
}

// made says whether the key has made the signature.
func (k *Key) made(s Signed) bool {
	a := k.spec.Algorithms(keyspec.SignVerify)[0]
	if len(s.Digest) != a.Info().Digest {
		return false
	}
	return k.Verify(a, DIGEST, s.Digest, AppendSignature(nil, a, s.Signature))
}

// weierstrass is a curve y² = x³ + ax + b over the integers modulo p, whose generator g has the order n.
type weierstrass struct {
	p, n, a, b *big.Int
	g          point
}

// point is on a curve; the one at infinity has no x.
type point struct{ x, y *big.Int }

func weierstrassOf(s keyspec.Spec) (c weierstrass, ok bool) {
	if s == keyspec.Secp256k1 {
		k := secp256k1.Params()
		return weierstrass{k.P, k.N, new(big.Int), big.NewInt(7), point{k.Gx, k.Gy}}, true
	}
	nist := curve(s)
	if nist == nil {
		return c, false
	}
	k := nist.Params()
	return weierstrass{k.P, k.N, big.NewInt(-3), k.B, point{k.Gx, k.Gy}}, true
}

// candidates are the keys that could have made the signature: (sR - eG) / r, for every point R whose x coordinate is r modulo n.
func (c *weierstrass) candidates(signed Signed) (all []point) {
	half := len(signed.Signature) / 2
	r, s := new(big.Int).SetBytes(signed.Signature[:half]), new(big.Int).SetBytes(signed.Signature[half:])
	if r.Sign() == 0 || s.Sign() == 0 || r.Cmp(c.n) >= 0 || s.Cmp(c.n) >= 0 {
		return nil
	}
	e := new(big.Int).SetBytes(signed.Digest) // not longer than n
	over := new(big.Int).ModInverse(r, c.n)
	u := new(big.Int).Mul(over, new(big.Int).Neg(e))
	u.Mod(u, c.n)
	v := new(big.Int).Mul(over, s)
	v.Mod(v, c.n)
	ug := c.times(u, c.g)
	for x := r; x.Cmp(c.p) < 0; x = new(big.Int).Add(x, c.n) {
		y := new(big.Int).Exp(x, big.NewInt(3), c.p)
		y.Add(y, new(big.Int).Mul(c.a, x)).Add(y, c.b).Mod(y, c.p)
		if y.ModSqrt(y, c.p) == nil {
			continue // no point of the curve
		}
		vr := c.times(v, point{x, y})
		for range 2 {
			if q := c.add(ug, vr); q.x != nil {
				all = append(all, q)
			}
			if vr.x == nil {
				break
			}
			vr = point{vr.x, new(big.Int).Sub(c.p, vr.y)} // of -R
		}
	}
	return all
}

func (c *weierstrass) add(a, b point) point {
	var slope *big.Int
	switch {
	case a.x == nil:
		return b
	case b.x == nil:
		return a
	case a.x.Cmp(b.x) != 0:
		slope = new(big.Int).Sub(b.x, a.x)
		slope.Mod(slope, c.p).ModInverse(slope, c.p)
		slope.Mul(slope, new(big.Int).Sub(b.y, a.y))
	case a.y.Cmp(b.y) != 0 || a.y.Sign() == 0:
		return point{}
	default:
		slope = new(big.Int).Lsh(a.y, 1)
		slope.ModInverse(slope, c.p)
		top := new(big.Int).Mul(a.x, a.x)
		slope.Mul(slope, top.Mul(top, big.NewInt(3)).Add(top, c.a))
	}
	slope.Mod(slope, c.p)
	x := new(big.Int).Mul(slope, slope)
	x.Sub(x, a.x).Sub(x, b.x).Mod(x, c.p)
	y := new(big.Int).Sub(a.x, x)
	y.Mul(y, slope).Sub(y, a.y).Mod(y, c.p)
	return point{x, y}
}

func (c *weierstrass) times(k *big.Int, p point) (sum point) {
	for i := k.BitLen() - 1; i >= 0; i-- {
		sum = c.add(sum, sum)
		if k.Bit(i) != 0 {
			sum = c.add(sum, p)
		}
	}
	return sum
}
