package hsmtest

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
	"github.com/keyplane/keyplane/internal/softkey"
)

// TestKeys holds a token to the contracts of hsm.KeyToken and hsm.KeySession, for the specs that it offers; want are those that it must offer.
// open is as for TestToken.
func TestKeys(t *testing.T, open func(t testing.TB) hsm.Token, want []keyspec.Spec) {
	token := open(t).(hsm.KeyToken)
	defer mustClose(t, token)
	for _, s := range want {
		if token.Keys(s) == 0 {
			t.Errorf("%v is not offered", s)
		}
	}
	for _, s := range keyspec.All() {
		if token.Keys(s) == 0 {
			if _, _, err := token.GenerateKey(s); !errors.Is(err, hsm.ErrNotOffered) {
				t.Errorf("%v is not offered and made: %v", s, err)
			}
			continue
		}
		t.Run(s.String(), func(t *testing.T) { testKey(t, token, s) })
	}
	t.Run("Reset", func(t *testing.T) { testKeyReset(t, token) })
}

// LoadedTest is a key of a token, for tests.
type LoadedTest struct {
	Spec    keyspec.Spec
	Wrapped []byte
	Public  *pubkey.Key // nil for HMAC
	Loaded  hsm.LoadedKey
}

// MustKey makes a key and loads it.
func MustKey(t testing.TB, token hsm.KeyToken, s keyspec.Spec) *LoadedTest {
	t.Helper()
	wrapped, public, err := token.GenerateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	k := &LoadedTest{Spec: s, Wrapped: wrapped}
	if s.Info().Family != keyspec.HMAC {
		if k.Public, err = pubkey.Parse(s, public); err != nil {
			t.Fatal(err)
		}
	} else if public != nil {
		t.Error("a public half of an HMAC key")
	}
	if k.Loaded, err = token.LoadKey(s, wrapped); err != nil {
		t.Fatal(err)
	}
	return k
}

func testKey(t *testing.T, token hsm.KeyToken, s keyspec.Spec) {
	k := MustKey(t, token, s)
	a, b := mustSession(t, token).(hsm.KeySession), mustSession(t, token).(hsm.KeySession)
	defer mustClose(t, a)
	defer mustClose(t, b)
	if token.Keys(s)&^hsm.MechanismsOf(s) != 0 {
		t.Error("more mechanisms than there are")
	}
	for m := hsm.NoMechanism + 1; m < 32; m++ {
		if !token.Keys(s).Has(m) {
			continue
		}
		for _, session := range []hsm.KeySession{a, b, a} { // every session can use the key
			CheckKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return session.Use(k.Loaded, s, m, in, out) })
		}
	}
	if m := NotData(s); token.Keys(s).Has(m) {
		out := bytes.Repeat([]byte{1}, s.Info().Result)
		_, err := a.Use(k.Loaded, s, m, bytes.Repeat([]byte{4}, s.Info().Public), out)
		if hsm.Outcome(err) != hsm.DataError {
			t.Errorf("bad data: %v", err)
		}
		if !bytes.Equal(out, make([]byte, len(out))) {
			t.Error("the result's room is not wiped after an error")
		}
		CheckKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return a.Use(k.Loaded, s, m, in, out) })
	}

	// A second load is the same key, and outlives the first.
	again, err := token.LoadKey(s, k.Wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.UnloadKey(k.Loaded); err != nil {
		t.Error(err)
	}
	m := FirstOf(token.Keys(s))
	CheckKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return b.Use(again, s, m, in, out) })
	if err := token.UnloadKey(again); err != nil {
		t.Error(err)
	}
	out := make([]byte, s.Info().Result)
	if _, err := a.Use(again, s, m, make([]byte, 32), out); hsm.Outcome(err) == hsm.Done {
		t.Error("an unloaded key works")
	}

	for _, i := range []int{0, len(k.Wrapped) / 2, len(k.Wrapped) - 1} {
		bad := bytes.Clone(k.Wrapped)
		bad[i] ^= 1
		if _, err := token.LoadKey(s, bad); err == nil {
			t.Errorf("byte %d of %d changed: loaded", i, len(bad))
		}
	}
	if _, err := token.LoadKey(s, nil); err == nil {
		t.Error("nothing: loaded")
	}
}

// testKeyReset: a loaded key is of its generation.
func testKeyReset(t *testing.T, token hsm.KeyToken) {
	for _, s := range keyspec.All() {
		if token.Keys(s) == 0 || s.Info().Family == keyspec.RSA {
			continue
		}
		k := MustKey(t, token, s)
		if err := token.Reset(); err != nil {
			t.Fatal(err)
		}
		session := mustSession(t, token).(hsm.KeySession)
		defer mustClose(t, session)
		m := FirstOf(token.Keys(s))
		if _, err := session.Use(k.Loaded, s, m, make([]byte, 32), make([]byte, s.Info().Result)); err == nil {
			t.Error("a key of an older generation works")
		}
		fresh, err := token.LoadKey(s, k.Wrapped)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.UnloadKey(k.Loaded); err != nil {
			t.Logf("unloading a key of an older generation: %v", err)
		}
		CheckKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return session.Use(fresh, s, m, in, out) })
		return
	}
}

// FirstOf is the set's first mechanism.
func FirstOf(set hsm.Mechanisms) hsm.Mechanism {
	for m := hsm.NoMechanism + 1; m < 32; m++ {
		if set.Has(m) {
			return m
		}
	}
	return hsm.NoMechanism
}

// NotData is a mechanism of keys of the spec that refuses some inputs, NoMechanism if there is none.
func NotData(s keyspec.Spec) hsm.Mechanism {
	switch {
	case s.Info().Family == keyspec.RSA:
		return hsm.DecryptOAEP256
	case s.Info().Usages&keyspec.KeyAgreement != 0:
		return hsm.DeriveECDH
	}
	return hsm.NoMechanism
}

// signing are the algorithms whose signatures a mechanism makes.
var signing = map[hsm.Mechanism][]keyspec.Algorithm{
	hsm.SignPKCS1:     {keyspec.PKCS1SHA256, keyspec.PKCS1SHA384, keyspec.PKCS1SHA512},
	hsm.SignPSS256:    {keyspec.PSSSHA256},
	hsm.SignPSS384:    {keyspec.PSSSHA384},
	hsm.SignPSS512:    {keyspec.PSSSHA512},
	hsm.SignEd25519:   {keyspec.Ed25519SHA512},
	hsm.SignEd25519ph: {keyspec.Ed25519PHSHA512},
	hsm.SignMLDSA:     {keyspec.MLDSAShake256},
}

// CheckKey does the mechanism through use and holds the result to the public half. Of HMAC keys it holds that it is one and stays the same.
func CheckKey(t testing.TB, s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, use func(in, out []byte) (int, error)) {
	t.Helper()
	must := func(in []byte) []byte {
		t.Helper()
		out := make([]byte, s.Info().Result)
		n, err := use(in, out)
		if err != nil {
			t.Fatalf("%v of %v: %v", m.Function(), s, err)
		}
		return out[:n]
	}
	message := []byte("a message of a client")
	switch m {
	case hsm.MAC:
		one := must(message)
		if len(one) != s.Info().Result || !bytes.Equal(one, must(message)) || bytes.Equal(one, must(message[1:])) {
			t.Errorf("%v: no MAC", s)
		}
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		ciphertext := make([]byte, s.Info().Public)
		if _, err := public.EncryptOAEP(keyspec.OAEPSHA1+keyspec.Algorithm(m-hsm.DecryptOAEP1), message, ciphertext); err != nil {
			t.Fatal(err)
		}
		if got := must(ciphertext); !bytes.Equal(got, message) {
			t.Errorf("decrypted: %q", got)
		}
	case hsm.DecapsulateMLKEM:
		secret, ciphertext := make([]byte, pubkey.SecretBytes), make([]byte, pubkey.CiphertextBytes(s))
		if err := public.Encapsulate(secret, ciphertext); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(must(ciphertext), secret) {
			t.Error("another shared secret")
		}
	case hsm.DeriveECDH:
		private, spki, err := softkey.Generate(s)
		if err != nil {
			t.Fatal(err)
		}
		other, err := softkey.Load(s, private)
		if err != nil {
			t.Fatal(err)
		}
		point, err := public.Peer(spki)
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, s.Info().Result)
		n, err := other.Do(softkey.DeriveECDH, public.Raw(), want)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(must(point), want[:n]) {
			t.Error("another shared secret")
		}
	default:
		algorithms := signing[m]
		if m == hsm.SignECDSA {
			algorithms = s.Algorithms(keyspec.SignVerify)
		}
		for _, a := range algorithms {
			kind, given := pubkey.RAW, message
			if a == keyspec.Ed25519PHSHA512 {
				digest := sha512.Sum512(message)
				kind, given = pubkey.DIGEST, digest[:]
			}
			var room [pubkey.PreparedMax]byte
			in, ok := pubkey.Prepare(a, kind, public, given, room[:])
			if !ok {
				t.Fatalf("%v does not take the message", a)
			}
			if !public.Verify(a, kind, given, pubkey.AppendSignature(nil, a, must(in))) {
				t.Errorf("%v: the signature is wrong", a)
			}
		}
	}
}
