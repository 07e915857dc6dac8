package hsmtest

import (
	"bytes"
	"cmp"
	"crypto/sha512"
	"errors"
	"fmt"
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
			checkKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return session.Use(k.Loaded, s, m, in, out) })
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
		checkKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return a.Use(k.Loaded, s, m, in, out) })
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
	checkKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return b.Use(again, s, m, in, out) })
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
		checkKey(t, s, m, k.Public, func(in, out []byte) (int, error) { return session.Use(fresh, s, m, in, out) })
		return
	}
}

func checkKey(t testing.TB, s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, use func(in, out []byte) (int, error)) {
	t.Helper()
	if err := CheckKey(s, m, public, use); err != nil {
		t.Errorf("mechanism %d: %v", m, err)
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

// CheckKey does the mechanism through use and holds the result to the public half. Of HMAC keys it holds that it is one and stays the same. The
// error is use's, or says what is wrong.
func CheckKey(s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, use func(in, out []byte) (int, error)) error {
	message := []byte("a message of a client")
	in, want := message, []byte(nil)
	switch m {
	case hsm.MAC:
		var macs [3][]byte
		for i, in := range [][]byte{message, message, message[1:]} {
			macs[i] = make([]byte, s.Info().Result)
			if n, err := use(in, macs[i]); err != nil || n != len(macs[i]) {
				return cmp.Or(err, errors.New("a MAC has another length"))
			}
		}
		if !bytes.Equal(macs[0], macs[1]) || bytes.Equal(macs[0], macs[2]) {
			return errors.New("no MACs")
		}
		return nil
	case hsm.DecryptOAEP1, hsm.DecryptOAEP256:
		in, want = make([]byte, s.Info().Public), message
		if _, err := public.EncryptOAEP(keyspec.OAEPSHA1+keyspec.Algorithm(m-hsm.DecryptOAEP1), message, in); err != nil {
			return err
		}
	case hsm.DecapsulateMLKEM:
		in, want = make([]byte, pubkey.CiphertextBytes(s)), make([]byte, pubkey.SecretBytes)
		if err := public.Encapsulate(want, in); err != nil {
			return err
		}
	case hsm.DeriveECDH:
		var err error
		if in, want, err = agree(s, public); err != nil {
			return err
		}
	default:
		return checkSignatures(s, m, public, message, use)
	}
	out := make([]byte, s.Info().Result)
	n, err := use(in, out)
	if err == nil && !bytes.Equal(out[:n], want) {
		err = errors.New("another plaintext or shared secret")
	}
	return err
}

// agree is the point of a fresh key and what it has in common with a public key.
func agree(s keyspec.Spec, public *pubkey.Key) (point, secret []byte, err error) {
	private, spki, err := softkey.Generate(s)
	if err != nil {
		return nil, nil, err
	}
	other, err := softkey.Load(s, private)
	if err != nil {
		return nil, nil, err
	}
	if point, err = public.Peer(spki); err != nil {
		return nil, nil, err
	}
	secret = make([]byte, s.Info().Result)
	n, err := other.Do(softkey.DeriveECDH, public.Raw(), secret)
	return point, secret[:n], err
}

func checkSignatures(s keyspec.Spec, m hsm.Mechanism, public *pubkey.Key, message []byte, use func(in, out []byte) (int, error)) error {
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
			return fmt.Errorf("%v does not take the message", a)
		}
		out := make([]byte, s.Info().Result)
		n, err := use(in, out)
		if err != nil {
			return err
		}
		if !public.Verify(a, kind, given, pubkey.AppendSignature(nil, a, out[:n])) {
			return fmt.Errorf("%v: the signature is wrong", a)
		}
	}
	return nil
}
