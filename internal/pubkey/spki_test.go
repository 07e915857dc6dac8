package pubkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"sync"
	"testing"

	"filippo.io/mldsa"
	mldsax509 "filippo.io/mldsa/x509"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// public are SubjectPublicKeyInfo of keys of every spec, by Go's library where it knows them. Some moduli are no products of primes: nothing looks.
var public = sync.OnceValue(func() map[keyspec.Spec][]byte {
	all := map[keyspec.Spec][]byte{}
	pkix := func(s keyspec.Spec, k any, err error) {
		if err == nil {
			all[s], err = x509.MarshalPKIXPublicKey(k)
		}
		if err != nil {
			panic(err)
		}
	}
	raw := func(s keyspec.Spec, key []byte) {
		der, err := Marshal(s, key)
		if err != nil {
			panic(err)
		}
		all[s] = der
	}
	for s, bits := range map[keyspec.Spec]int{keyspec.RSA2048: 2048, keyspec.RSA3072: 3072, keyspec.RSA4096: 4096} {
		n := make([]byte, bits/8)
		_, _ = rand.Read(n)
		n[0] |= 0x80
		n[len(n)-1] |= 1
		pkix(s, &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}, nil)
	}
	for s, c := range map[keyspec.Spec]elliptic.Curve{keyspec.P256: elliptic.P256(), keyspec.P384: elliptic.P384(), keyspec.P521: elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		pkix(s, &k.PublicKey, err)
	}
	e, _, err := ed25519.GenerateKey(nil)
	pkix(keyspec.Ed25519, e, err)
	k, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		panic(err)
	}
	raw(keyspec.Secp256k1, k.PubKey().SerializeUncompressed())
	for s, p := range map[keyspec.Spec]mldsa.Parameters{keyspec.MLDSA44: mldsa.MLDSA44(), keyspec.MLDSA65: mldsa.MLDSA65(), keyspec.MLDSA87: mldsa.MLDSA87()} {
		k, err := mldsa.GenerateKey(p)
		if err == nil {
			all[s], err = mldsax509.MarshalPKIXPublicKey(k.PublicKey())
		}
		if err != nil {
			panic(err)
		}
	}
	k768, err := mlkem.GenerateKey768()
	if err != nil {
		panic(err)
	}
	raw(keyspec.MLKEM768, k768.EncapsulationKey().Bytes())
	k1024, err := mlkem.GenerateKey1024()
	if err != nil {
		panic(err)
	}
	raw(keyspec.MLKEM1024, k1024.EncapsulationKey().Bytes())
	k512, _, err := mlkem512.GenerateKeyPair(rand.Reader)
	if err != nil {
		panic(err)
	}
	packed := make([]byte, mlkem512.PublicKeySize)
	k512.Pack(packed)
	raw(keyspec.MLKEM512, packed)
	return all
})

// Every spec's key is read as that spec and no other, has its parts, and is no key with a byte more, a byte less, or any byte of its head changed.
func TestParse(t *testing.T) {
	for _, s := range keyspec.All() {
		der, exists := public()[s]
		if (s.Info().Family == keyspec.HMAC) == exists {
			t.Fatalf("%s: a public key: %t", s, exists)
		}
		for _, other := range keyspec.All() {
			if k, err := Parse(other, der); (err == nil) != (exists && other == s) || (k == nil) != (err != nil) {
				t.Errorf("%s as %s: %v", s, other, err)
			}
		}
		if !exists {
			continue
		}
		k, err := Parse(s, der)
		if err != nil {
			t.Fatal(err)
		}
		if k.Spec() != s || !bytes.Equal(k.SPKI(), der) || len(k.Raw()) != s.Info().Public || !bytes.Contains(der, k.Raw()) {
			t.Errorf("%s: %s, %d bytes of %d", s, k.Spec(), len(k.Raw()), len(k.SPKI()))
		}
		head := bytes.Index(der, k.Raw())
		for i := range head {
			for _, flip := range []byte{1, 0x80, 0xff} {
				bad := bytes.Clone(der)
				bad[i] ^= flip
				if _, err := Parse(s, bad); !errors.Is(err, ErrKey) {
					t.Errorf("%s with byte %d changed: %v", s, i, err)
				}
			}
		}
		for _, bad := range [][]byte{nil, der[:1], der[:head], der[:len(der)-1], der[1:], append(bytes.Clone(der), 0)} {
			if _, err := Parse(s, bad); !errors.Is(err, ErrKey) {
				t.Errorf("%s, %d of %d bytes: %v", s, len(bad), len(der), err)
			}
		}
		copied := bytes.Clone(der)
		if k, err = Parse(s, copied); err != nil {
			t.Fatal(err)
		}
		clear(copied)
		if !bytes.Equal(k.SPKI(), der) {
			t.Errorf("%s: the key changes with the caller's bytes", s)
		}
		if s.Info().Family == keyspec.RSA {
			continue
		}
		if made, err := Marshal(s, k.Raw()); err != nil || !bytes.Equal(made, der) {
			t.Errorf("%s: Marshal: %x, %v", s, made, err)
		}
		if _, err := Marshal(s, k.Raw()[1:]); !errors.Is(err, ErrKey) {
			t.Errorf("%s: Marshal of a key that is short: %v", s, err)
		}
	}
}

// Our encodings are those of Go's library, and the library's keys those that we read.
func TestParseAgreesWithX509(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.RSA3072, keyspec.RSA4096, keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Ed25519} {
		k, err := Parse(s, public()[s])
		if err != nil {
			t.Fatal(err)
		}
		lib, err := x509.ParsePKIXPublicKey(k.SPKI())
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case k.rsa != nil:
			if !k.rsa.Equal(lib) {
				t.Errorf("%s: other numbers", s)
			}
		case k.nist != nil:
			if !k.nist.Equal(lib) {
				t.Errorf("%s: another point", s)
			}
		default:
			if !ed25519.PublicKey(k.raw).Equal(lib) {
				t.Errorf("%s: another key", s)
			}
		}
	}
	for _, s := range []keyspec.Spec{keyspec.MLDSA44, keyspec.MLDSA65, keyspec.MLDSA87} {
		k, err := Parse(s, public()[s])
		if err != nil {
			t.Fatal(err)
		}
		if lib, err := mldsax509.ParsePKIXPublicKey(k.SPKI()); err != nil || !k.mldsa.Equal(lib) {
			t.Errorf("%s: another key, %v", s, err)
		}
	}
}

func TestMarshalRSA(t *testing.T) {
	k, err := Parse(keyspec.RSA2048, public()[keyspec.RSA2048])
	if err != nil {
		t.Fatal(err)
	}
	n := k.Raw()
	for _, e := range [][]byte{{3}, {17}, {0x7f}, {0x81}, {1, 0, 1}, {0, 0, 1, 0, 1}, {0x80, 1}, {0x80, 0, 1}, {0x7f, 0xff, 0xff, 0xff}} {
		want := int(new(big.Int).SetBytes(e).Int64())
		der, err := MarshalRSA(keyspec.RSA2048, append([]byte{0}, n...), e)
		if err != nil {
			t.Errorf("%x: %v", e, err)
			continue
		}
		lib, err := x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: new(big.Int).SetBytes(n), E: want})
		if err != nil || !bytes.Equal(lib, der) {
			t.Errorf("%x: %x, want %x (%v)", e, der, lib, err)
		}
		if k, err := Parse(keyspec.RSA2048, der); err != nil || k.rsa.E != want {
			t.Errorf("%x: %v", e, err)
		}
	}
	even, short := bytes.Clone(n), bytes.Clone(n)
	even[255] &^= 1
	short[0] &= 0x7f
	for _, c := range []struct{ n, e []byte }{
		{n, nil}, {n, []byte{0}}, {n, []byte{1}}, {n, []byte{2}}, {n, []byte{1, 0, 0}}, {n, []byte{0x80, 0, 0, 1}}, {n, []byte{1, 0, 0, 0, 1}},
		{even, []byte{3}}, {short, []byte{3}}, {n[1:], []byte{3}}, {append([]byte{1}, n...), []byte{3}}, {nil, []byte{3}},
	} {
		if _, err := MarshalRSA(keyspec.RSA2048, c.n, c.e); !errors.Is(err, ErrKey) {
			t.Errorf("%x, %x: %v", c.n, c.e, err)
		}
		if len(c.e) > 0 && len(c.n) == 256 {
			lib := rsaPlain(c.n, c.e)
			if _, err := Parse(keyspec.RSA2048, lib); !errors.Is(err, ErrKey) {
				t.Errorf("%x: parsed: %v", lib, err)
			}
		}
	}
	if _, err := MarshalRSA(keyspec.P256, n, []byte{3}); !errors.Is(err, ErrKey) {
		t.Errorf("P256: %v", err)
	}
	if _, err := Marshal(keyspec.RSA2048, n); !errors.Is(err, ErrKey) {
		t.Errorf("Marshal of RSA: %v", err)
	}
}

// rsaPlain encodes without any check, with the exponent as it is.
func rsaPlain(n, e []byte) []byte {
	der := append([]byte(rsaHead), n...)
	der = append(append(der, 2, byte(len(e))), e...)
	for _, at := range []int{2, 21, 26} {
		putLength(der[at:], len(der)-at-2)
	}
	putLength(der[30:], len(n)+1)
	return der
}

// An exponent has one encoding: no zero too many, none too few.
func TestRSAExponentIsMinimal(t *testing.T) {
	k, err := Parse(keyspec.RSA2048, public()[keyspec.RSA2048])
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range [][]byte{{0, 3}, {0, 1, 0, 1}, {0x81}, {0xff, 0xff}, {}, {0}} {
		if _, err := Parse(keyspec.RSA2048, rsaPlain(k.Raw(), e)); !errors.Is(err, ErrKey) {
			t.Errorf("%x: %v", e, err)
		}
	}
}

// Points that are not on the curve, in other forms, or not in the field.
func TestBadPoints(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Secp256k1} {
		k, err := Parse(s, public()[s])
		if err != nil {
			t.Fatal(err)
		}
		point := k.Raw()
		half := len(point) / 2
		off := bytes.Clone(point)
		off[len(off)-1] ^= 1
		hybrid := bytes.Clone(point)
		hybrid[0] = 6 | point[len(point)-1]&1
		zero := make([]byte, len(point))
		zero[0] = 4
		large := bytes.Repeat([]byte{0xff}, len(point))
		large[0] = 4
		swapped := slices.Concat([]byte{4}, point[1+half:], point[1:1+half])
		compressed := append([]byte{2 | point[len(point)-1]&1}, point[1:1+half]...)
		for name, bad := range map[string][]byte{"off": off, "hybrid": hybrid, "zero": zero, "large": large, "swapped": swapped, "compressed": compressed, "infinity": {0}} {
			if _, err := Marshal(s, bad); !errors.Is(err, ErrKey) {
				t.Errorf("%s, %s: %v", s, name, err)
			}
		}
	}
	ones := bytes.Repeat([]byte{0xff}, 1568) // coefficients of 4095, which are not below q
	for _, s := range []keyspec.Spec{keyspec.MLKEM512, keyspec.MLKEM768, keyspec.MLKEM1024} {
		if _, err := Marshal(s, ones[:s.Info().Public]); !errors.Is(err, ErrKey) {
			t.Errorf("%s: a key of ones: %v", s, err)
		}
	}
}

// About half of all y are those of a point. The library does not say which, so they are compared with square roots.
func TestEdwardsPoint(t *testing.T) {
	on := 0
	for i := range 256 {
		raw := make([]byte, 32)
		_, _ = rand.Read(raw)
		if i == 0 {
			copy(raw, public()[keyspec.Ed25519][12:])
		}
		le := bytes.Clone(raw)
		le[31] &= 0x7f
		slices.Reverse(le)
		y := new(big.Int).SetBytes(le)
		y2 := new(big.Int).Mul(y, y)
		u := new(big.Int).Sub(y2, big.NewInt(1))
		v := new(big.Int).Add(new(big.Int).Mul(edwardsD, y2), big.NewInt(1))
		x2 := u.Mul(u, v.ModInverse(v, edwardsP))
		root := new(big.Int).ModSqrt(x2.Mod(x2, edwardsP), edwardsP)
		if want := y.Cmp(edwardsP) < 0 && root != nil && root.Sign() != 0; edwardsPoint(raw) != want {
			t.Errorf("%x: %t", raw, !want)
		} else if want {
			on++
		}
	}
	if on < 64 || on > 192 {
		t.Errorf("%d of 256 are points", on)
	}
}

func TestPeer(t *testing.T) {
	for _, s := range keyspec.All() {
		if public()[s] == nil {
			continue
		}
		k, err := Parse(s, public()[s])
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range keyspec.All() {
			agrees := s == other && s.Info().Usages&keyspec.KeyAgreement != 0
			point, err := k.Peer(public()[other])
			if (err == nil) != agrees || agrees && !bytes.Equal(point, k.Raw()) || !agrees && !errors.Is(err, ErrKey) {
				t.Errorf("%s with %s: %x, %v", s, other, point, err)
			}
		}
	}
}

// What Parse takes, x509 takes and encodes to the same bytes; what x509 takes and encodes to the same bytes, Parse takes if it is of one of the
// specs, but for points and numbers that it is stricter about.
func FuzzParse(f *testing.F) {
	for _, der := range public() {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		taken := keyspec.None
		for _, s := range keyspec.All() {
			k, err := Parse(s, der)
			if err != nil {
				continue
			}
			if taken != keyspec.None {
				t.Fatalf("%s and %s", taken, s)
			}
			taken = s
			if !bytes.Equal(k.SPKI(), der) {
				t.Fatalf("%s: %x", s, k.SPKI())
			}
		}
		lib, err := x509.ParsePKIXPublicKey(der)
		switch taken.Info().Family {
		case keyspec.RSA, keyspec.EC, keyspec.Edwards:
			if taken != keyspec.Secp256k1 && err != nil {
				t.Fatalf("%s, which x509 refuses: %v", taken, err)
			}
		}
		if err != nil {
			return
		}
		if again, err := x509.MarshalPKIXPublicKey(lib); err != nil || !bytes.Equal(again, der) {
			return
		}
		switch k := lib.(type) {
		case *ecdsa.PublicKey:
			if k.Params().BitSize > 224 && taken == keyspec.None {
				t.Fatalf("a point on %s that is refused", k.Params().Name)
			}
		case *rsa.PublicKey:
			bits := k.N.BitLen()
			if (bits == 2048 || bits == 3072 || bits == 4096) && k.N.Bit(0) == 1 && k.E&1 == 1 && k.E > 1 && k.E < 1<<31 && taken == keyspec.None {
				t.Fatalf("a key of %d bits with %d that is refused", bits, k.E)
			}
		}
	})
}
