package pubkey

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secp256k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// signer signs with a fresh key of the spec, once as it is and once with the other s, which is as good.
func signer(t *testing.T, s keyspec.Spec) (spki []byte, sign func(digest []byte, other bool) Signed) {
	t.Helper()
	size := (s.Info().Bits + 7) / 8
	raw := func(r, v, n *big.Int, other bool) []byte {
		if other {
			v = new(big.Int).Sub(n, v)
		}
		return append(r.FillBytes(make([]byte, size)), v.FillBytes(make([]byte, size))...)
	}
	if s == keyspec.Secp256k1 {
		k, err := secp256k1.GeneratePrivateKey()
		if err != nil {
			t.Fatal(err)
		}
		if spki, err = Marshal(s, k.PubKey().SerializeUncompressed()); err != nil {
			t.Fatal(err)
		}
		return spki, func(digest []byte, other bool) Signed {
			compact := secp256k1ecdsa.SignCompact(k, digest, false)
			return Signed{digest, raw(new(big.Int).SetBytes(compact[1:33]), new(big.Int).SetBytes(compact[33:]), secp256k1.Params().N, other)}
		}
	}
	k, err := ecdsa.GenerateKey(curve(s), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if spki, err = x509.MarshalPKIXPublicKey(&k.PublicKey); err != nil {
		t.Fatal(err)
	}
	return spki, func(digest []byte, other bool) Signed {
		r, v, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			t.Fatal(err)
		}
		return Signed{digest, raw(r, v, k.Params().N, other)}
	}
}

func TestRecoverECDSA(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Secp256k1} {
		size := s.Algorithms(keyspec.SignVerify)[0].Info().Digest
		digest := func(b byte) []byte { return bytes.Repeat([]byte{b}, size) }
		for round := range 4 {
			spki, sign := signer(t, s)
			_, another := signer(t, s)
			first, second := sign(digest(0xa5), round&1 != 0), sign(digest(3), round&2 != 0)
			if got, err := RecoverECDSA(s, first, second); err != nil || !bytes.Equal(got, spki) {
				t.Fatalf("%v: %x, want %x, %v", s, got, spki, err)
			}
			damaged := Signed{first.Digest, bytes.Clone(first.Signature)}
			damaged.Signature[len(damaged.Signature)-1] ^= 1
			for name, pair := range map[string][2]Signed{
				"by two keys": {first, another(digest(3), false)}, "damaged": {damaged, second}, "damaged second": {second, damaged},
				"zeros": {{first.Digest, make([]byte, len(first.Signature))}, second}, "ones": {{first.Digest, bytes.Repeat([]byte{0xff}, len(first.Signature))}, second},
				"short digest": {{first.Digest[1:], first.Signature}, second},
			} {
				if got, err := RecoverECDSA(s, pair[0], pair[1]); !errors.Is(err, ErrKey) || got != nil {
					t.Errorf("%v, %s: %x, %v", s, name, got, err)
				}
			}
		}
	}
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.Ed25519, keyspec.HMAC256, keyspec.None} {
		if _, err := RecoverECDSA(s, Signed{make([]byte, 32), make([]byte, 64)}, Signed{}); !errors.Is(err, ErrKey) {
			t.Errorf("%v: %v", s, err)
		}
	}
}
