package softkey

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// generated are one key of each spec: making RSA_4096 takes seconds.
var generated = sync.OnceValue(func() map[keyspec.Spec]pair {
	all := map[keyspec.Spec]pair{}
	for _, s := range keyspec.All() {
		private, public, err := Generate(s)
		if err != nil {
			panic(err)
		}
		all[s] = pair{private, public}
	}
	return all
})

type pair struct{ private, public []byte }

// must loads one of them.
func must(t testing.TB, s keyspec.Spec) (*Key, *pubkey.Key) {
	t.Helper()
	p := generated()[s]
	k, err := Load(s, p.private)
	if err != nil {
		t.Fatalf("%s: Load: %v", s, err)
	}
	t.Cleanup(k.Wipe)
	if s.Info().Family == keyspec.HMAC {
		return k, nil
	}
	public, err := pubkey.Parse(s, p.public)
	if err != nil {
		t.Fatalf("%s: Parse: %v", s, err)
	}
	return k, public
}

// do does what has to work.
func do(t testing.TB, k *Key, op Op, in []byte) []byte {
	t.Helper()
	out := make([]byte, k.Spec().Info().Result)
	n, err := k.Do(op, in, out)
	if err != nil {
		t.Fatalf("%s, operation %d: %v", k.Spec(), op, err)
	}
	return out[:n]
}

// opOf is the operation of a signing algorithm.
var opOf = map[keyspec.Algorithm]Op{
	keyspec.PKCS1SHA256: SignPKCS1, keyspec.PKCS1SHA384: SignPKCS1, keyspec.PKCS1SHA512: SignPKCS1,
	keyspec.PSSSHA256: SignPSS256, keyspec.PSSSHA384: SignPSS384, keyspec.PSSSHA512: SignPSS512,
	keyspec.ECDSASHA256: SignECDSA, keyspec.ECDSASHA384: SignECDSA, keyspec.ECDSASHA512: SignECDSA,
	keyspec.Ed25519SHA512: SignEd25519, keyspec.Ed25519PHSHA512: SignEd25519ph, keyspec.MLDSAShake256: SignMLDSA,
}

// Every signing algorithm of every spec: what Prepare gives is signed, and the signature verifies with each message type that there is, and with
// nothing changed.
func TestSignAndVerify(t *testing.T) {
	message := []byte("a message to be signed")
	wide := sha512.Sum512(message)
	count := 0
	for _, s := range keyspec.All() {
		for _, a := range s.Algorithms(keyspec.SignVerify) {
			k, public := must(t, s)
			type form struct {
				t pubkey.Message
				m []byte
			}
			var forms []form
			switch a {
			case keyspec.Ed25519PHSHA512:
				forms = []form{{pubkey.DIGEST, wide[:]}}
			case keyspec.Ed25519SHA512:
				forms = []form{{pubkey.RAW, message}}
			case keyspec.MLDSAShake256:
				mu, ok := pubkey.Prepare(a, pubkey.RAW, public, message, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatal("no μ")
				}
				forms = []form{{pubkey.RAW, message}, {pubkey.EXTERNALMU, mu}}
			default:
				digest, ok := pubkey.Prepare(a, pubkey.RAW, public, message, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatal("no digest")
				}
				forms = []form{{pubkey.RAW, message}, {pubkey.DIGEST, digest[len(digest)-a.Info().Digest:]}}
			}
			for _, signed := range forms {
				in, ok := pubkey.Prepare(a, signed.t, public, signed.m, make([]byte, 0, pubkey.PreparedMax))
				if !ok {
					t.Fatalf("%s, %s, %d: not prepared", s, a, signed.t)
				}
				signature := pubkey.AppendSignature(nil, a, do(t, k, opOf[a], in))
				for _, f := range forms {
					count++
					if !public.Verify(a, f.t, f.m, signature) {
						t.Errorf("%s, %s: signed as %d, does not verify as %d", s, a, signed.t, f.t)
					}
					other := bytes.Clone(f.m)
					other[0] ^= 1
					if public.Verify(a, f.t, other, signature) {
						t.Errorf("%s, %s: another message verifies as %d", s, a, f.t)
					}
					bad := bytes.Clone(signature)
					bad[len(bad)-1] ^= 1
					if public.Verify(a, f.t, f.m, bad) {
						t.Errorf("%s, %s: another signature verifies as %d", s, a, f.t)
					}
					if public.Verify(a, f.t, f.m, append(signature[:len(signature):len(signature)], 0)) {
						t.Errorf("%s, %s: a longer signature verifies as %d", s, a, f.t)
					}
				}
			}
		}
	}
	if want := 3*6*4 + 4*4 + 2 + 3*4; count != want {
		t.Errorf("%d combinations, want %d", count, want)
	}
}

func TestEncryption(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.RSA3072, keyspec.RSA4096} {
		k, public := must(t, s)
		for a, op := range map[keyspec.Algorithm]Op{keyspec.OAEPSHA1: DecryptOAEP1, keyspec.OAEPSHA256: DecryptOAEP256} {
			for _, size := range []int{0, 1, 32, s.PlaintextMax(a)} {
				plaintext := bytes.Repeat([]byte{1}, size)
				c := make([]byte, s.Info().Public)
				n, err := public.EncryptOAEP(a, plaintext, c)
				if err != nil || n != len(c) {
					t.Fatalf("%s, %s: %d, %v", s, a, n, err)
				}
				if got := do(t, k, op, c); !bytes.Equal(got, plaintext) {
					t.Errorf("%s, %s: %x, want %x", s, a, got, plaintext)
				}
				out := make([]byte, s.Info().Result)
				for _, bad := range [][]byte{c[1:], append(c[:len(c):len(c)], 0), nil, append([]byte{c[0] ^ 1}, c[1:]...), bytes.Repeat([]byte{255}, len(c))} {
					if n, err := k.Do(op, bad, out); n != 0 || !errors.Is(err, ErrData) {
						t.Errorf("%s, %s: %d, %v, want ErrData", s, a, n, err)
					}
				}
			}
			if _, err := public.EncryptOAEP(a, make([]byte, s.PlaintextMax(a)+1), make([]byte, s.Info().Public)); !errors.Is(err, pubkey.ErrLength) {
				t.Errorf("%s, %s: a plaintext that is too long: %v", s, a, err)
			}
		}
	}
}

func TestEncapsulation(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.MLKEM512, keyspec.MLKEM768, keyspec.MLKEM1024} {
		k, public := must(t, s)
		secret, c := make([]byte, pubkey.SecretBytes), make([]byte, pubkey.CiphertextBytes(s))
		if err := public.Encapsulate(secret, c); err != nil {
			t.Fatal(err)
		}
		if got := do(t, k, DecapsulateMLKEM, c); !bytes.Equal(got, secret) {
			t.Errorf("%s: %x, want %x", s, got, secret)
		}
		c[5] ^= 1 // implicit rejection: another secret, and the same each time
		one, two := do(t, k, DecapsulateMLKEM, c), do(t, k, DecapsulateMLKEM, c)
		if !bytes.Equal(one, two) || bytes.Equal(one, secret) || len(one) != pubkey.SecretBytes {
			t.Errorf("%s: implicit rejection gives %x and %x", s, one, two)
		}
		for _, bad := range [][]byte{nil, c[1:], append(c[:len(c):len(c)], 0)} {
			if _, err := k.Do(DecapsulateMLKEM, bad, make([]byte, 32)); !errors.Is(err, ErrData) {
				t.Errorf("%s: %d bytes: %v, want ErrData", s, len(bad), err)
			}
			if err := public.Encapsulate(secret, bad); !errors.Is(err, pubkey.ErrLength) {
				t.Errorf("%s: room of %d bytes: %v, want ErrLength", s, len(bad), err)
			}
		}
	}
}

func TestAgreement(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521} {
		k, public := must(t, s)
		private, other, err := Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		k2, err := Load(s, private)
		if err != nil {
			t.Fatal(err)
		}
		point, err := public.Peer(other)
		if err != nil {
			t.Fatal(err)
		}
		one, two := do(t, k, DeriveECDH, point), do(t, k2, DeriveECDH, public.Raw())
		if !bytes.Equal(one, two) || len(one) != (s.Info().Bits+7)/8 {
			t.Errorf("%s: %x and %x", s, one, two)
		}
		off := bytes.Clone(point)
		off[len(off)-1] ^= 1
		for _, bad := range [][]byte{nil, off, point[1:], {0}, append([]byte{2}, point[1:1+len(point)/2]...)} {
			if _, err := k.Do(DeriveECDH, bad, make([]byte, s.Info().Result)); !errors.Is(err, ErrData) {
				t.Errorf("%s: %x: %v, want ErrData", s, bad, err)
			}
		}
	}
}
