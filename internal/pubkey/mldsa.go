package pubkey

import (
	"bytes"
	"crypto/sha3"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// Verification of ML-DSA signatures of an external μ: algorithm 8 of FIPS 204 from its line 7 on. The library verifies messages only, and a μ
// cannot be turned back into one. Everything is public here, so the code is written to be compared with the standard, which it follows by
// the names of its algorithms, and not to be constant in time. Tests compare it with the library for every message that they verify.

const (
	mldsaN = 256
	mldsaQ = 8380417
	mldsaD = 13 // bits dropped from t
)

// mldsaSet is a parameter set: FIPS 204, table 1.
type mldsaSet struct {
	k, l        int
	tau         int    // ones in the challenge
	beta        uint32 // τ·η
	gamma1      int    // bits of γ1
	gamma2      uint32
	omega       int // most hints
	challenge   int // bytes: λ/4
	highBitSize int // bits of a coefficient of w1
}

func mldsaSetOf(s keyspec.Spec) mldsaSet {
	switch s {
	case keyspec.MLDSA44:
		return mldsaSet{4, 4, 39, 78, 17, (mldsaQ - 1) / 88, 80, 32, 6}
	case keyspec.MLDSA65:
		return mldsaSet{6, 5, 49, 196, 19, (mldsaQ - 1) / 32, 55, 48, 4}
	}
	return mldsaSet{8, 7, 60, 120, 19, (mldsaQ - 1) / 32, 75, 64, 4}
}

// polynomial is an element of R_q or of T_q, its coefficients from 0 to q−1.
type polynomial [mldsaN]uint32

// verifyMu says whether the signature is one of μ, which has 64 bytes.
func (k *Key) verifyMu(mu, signature []byte) bool {
	p := mldsaSetOf(k.spec)
	if len(signature) != k.spec.Info().Result {
		return false
	}
	challenge, rest := signature[:p.challenge], signature[p.challenge:]
	var z [7]polynomial
	for i := range z[:p.l] {
		size := mldsaN * (p.gamma1 + 1) / 8
		if !unpackZ(&z[i], rest[:size], p) {
			return false
		}
		ntt(&z[i])
		rest = rest[size:]
	}
	var hints [8][mldsaN]bool
	if !unpackHints(&hints, rest, p) {
		return false
	}
	var c polynomial
	sampleInBall(&c, challenge, p)
	ntt(&c)

	var h sha3.SHAKE // SHAKE256
	_, _ = h.Write(mu)
	rho, t1 := k.raw[:32], k.raw[32:]
	for r := range p.k { // w1 = UseHint(h, NTT⁻¹(Â∘NTT(z) − NTT(c)∘NTT(t1·2^d)))
		var w, a, t polynomial
		for s := range p.l {
			rejectNTT(&a, rho, byte(s), byte(r))
			for i := range w {
				w[i] = (w[i] + multiply(a[i], z[s][i])) % mldsaQ
			}
		}
		unpackT1(&t, t1[r*320:][:320])
		ntt(&t)
		for i := range w {
			w[i] = (w[i] + mldsaQ - multiply(c[i], t[i])) % mldsaQ
		}
		inverseNTT(&w)
		writeHighBits(&h, &w, &hints[r], p)
	}
	var again [64]byte
	_, _ = h.Read(again[:p.challenge])
	return bytes.Equal(again[:p.challenge], challenge)
}

func multiply(a, b uint32) uint32 { return uint32(uint64(a) * uint64(b) % mldsaQ) }

// bits reads numbers of size bits, the lowest first: what SimpleBitUnpack and BitUnpack (algorithms 18 and 19) have in common.
func bits(in []byte, size int, each func(i int, n uint32)) {
	var have int
	var n uint32
	at := 0
	for _, b := range in {
		n |= uint32(b) << have
		for have += 8; have >= size; have -= size {
			each(at, n&(1<<size-1))
			n >>= size
			at++
		}
	}
}

// unpackZ is BitUnpack of a polynomial of z. ok is false when a coefficient is not below γ1−β.
func unpackZ(z *polynomial, in []byte, p mldsaSet) (ok bool) {
	gamma1, bound, ok := uint32(1)<<p.gamma1, uint32(1)<<p.gamma1-p.beta, true
	bits(in, p.gamma1+1, func(i int, n uint32) {
		z[i] = (mldsaQ + gamma1 - n) % mldsaQ
		ok = ok && (z[i] < bound || z[i] > mldsaQ-bound)
	})
	return ok
}

// unpackT1 is t1·2^d of a polynomial of t1.
func unpackT1(t *polynomial, in []byte) {
	bits(in, 10, func(i int, n uint32) { t[i] = n << mldsaD })
}

// unpackHints is HintBitUnpack (algorithm 21), with its checks that there is one encoding.
func unpackHints(hints *[8][mldsaN]bool, in []byte, p mldsaSet) (ok bool) {
	at := 0
	for r := range p.k {
		end := int(in[p.omega+r])
		if end < at || end > p.omega {
			return false
		}
		for first := at; at < end; at++ {
			if at > first && in[at-1] >= in[at] {
				return false
			}
			hints[r][in[at]] = true
		}
	}
	for _, b := range in[at:p.omega] {
		if b != 0 {
			return false
		}
	}
	return true
}

// sampleInBall is algorithm 29.
func sampleInBall(c *polynomial, seed []byte, p mldsaSet) {
	var h sha3.SHAKE // SHAKE256
	_, _ = h.Write(seed)
	var signs [8]byte
	_, _ = h.Read(signs[:])
	for i := mldsaN - p.tau; i < mldsaN; i++ {
		var j [1]byte
		for _, _ = h.Read(j[:]); int(j[0]) > i; {
			_, _ = h.Read(j[:])
		}
		c[i] = c[j[0]]
		c[j[0]] = 1
		if bit := i + p.tau - mldsaN; signs[bit/8]>>(bit%8)&1 == 1 {
			c[j[0]] = mldsaQ - 1
		}
	}
}

// rejectNTT is RejNTTPoly (algorithm 30) for the place of Â in column s and row r.
func rejectNTT(a *polynomial, rho []byte, s, r byte) {
	h := sha3.NewSHAKE128()
	_, _ = h.Write(rho)
	_, _ = h.Write([]byte{s, r})
	var block [168]byte
	for i, at := 0, len(block); i < mldsaN; at += 3 {
		if at == len(block) {
			_, _ = h.Read(block[:])
			at = 0
		}
		n := uint32(block[at]) | uint32(block[at+1])<<8 | uint32(block[at+2]&0x7f)<<16
		if n < mldsaQ {
			a[i] = n
			i++
		}
	}
}

// zetas are ζ^BitRev8(m), where ζ is 1753: FIPS 204, appendix B.
var zetas = func() (z [mldsaN]uint32) {
	for m := range z {
		power := uint32(1)
		for bit := 0; bit < 8; bit++ { // square and multiply: the lowest bit of m is the highest of the exponent
			power = multiply(power, power)
			if m>>bit&1 == 1 {
				power = multiply(power, 1753)
			}
		}
		z[m] = power
	}
	return z
}()

// ntt is algorithm 41.
func ntt(w *polynomial) {
	m := 0
	for length := 128; length >= 1; length /= 2 {
		for start := 0; start < mldsaN; start += 2 * length {
			m++
			for j := start; j < start+length; j++ {
				t := multiply(zetas[m], w[j+length])
				w[j+length] = (w[j] + mldsaQ - t) % mldsaQ
				w[j] = (w[j] + t) % mldsaQ
			}
		}
	}
}

// inverseNTT is algorithm 42.
func inverseNTT(w *polynomial) {
	m := mldsaN
	for length := 1; length < mldsaN; length *= 2 {
		for start := 0; start < mldsaN; start += 2 * length {
			m--
			for j := start; j < start+length; j++ {
				t := w[j]
				w[j] = (t + w[j+length]) % mldsaQ
				w[j+length] = multiply(mldsaQ-zetas[m], t+mldsaQ-w[j+length])
			}
		}
	}
	for i := range w {
		w[i] = multiply(8347681, w[i]) // 256⁻¹
	}
}

// writeHighBits is UseHint (algorithm 40) and w1Encode (algorithm 28) of one polynomial.
func writeHighBits(h *sha3.SHAKE, w *polynomial, hints *[mldsaN]bool, p mldsaSet) {
	var packed [mldsaN * 6 / 8]byte
	for i := range w {
		high := useHint(hints[i], w[i], p.gamma2)
		for bit := 0; bit < p.highBitSize; bit++ {
			at := i*p.highBitSize + bit
			packed[at/8] |= byte(high>>bit&1) << (at % 8)
		}
	}
	_, _ = h.Write(packed[:mldsaN*p.highBitSize/8])
}

func useHint(hint bool, r, gamma2 uint32) uint32 {
	m := (mldsaQ - 1) / (2 * gamma2)
	high, low := decompose(r, gamma2)
	switch {
	case hint && low > 0:
		return (high + 1) % m
	case hint:
		return (high + m - 1) % m
	}
	return high
}

// decompose is algorithm 36.
func decompose(r, gamma2 uint32) (high uint32, low int32) {
	low = int32(r % (2 * gamma2))
	if low > int32(gamma2) {
		low -= int32(2 * gamma2)
	}
	if int32(r)-low == mldsaQ-1 {
		return 0, low - 1
	}
	return uint32(int32(r)-low) / (2 * gamma2), low
}
