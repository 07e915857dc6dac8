package p11

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/asn1"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

// What the two modules do with keys. SoftHSM 2.6 makes Ed25519 keys and does not wrap them; NSS 3.87 has neither them nor secp256k1.
var (
	rsaMechanisms  = []hsm.Mechanism{hsm.SignPKCS1, hsm.SignPSS256, hsm.SignPSS384, hsm.SignPSS512, hsm.DecryptOAEP1, hsm.DecryptOAEP256}
	nistMechanisms = []hsm.Mechanism{hsm.SignECDSA, hsm.DeriveECDH}
	nssKeys        = map[keyspec.Spec][]hsm.Mechanism{
		keyspec.RSA2048: rsaMechanisms, keyspec.RSA3072: rsaMechanisms, keyspec.RSA4096: rsaMechanisms,
		keyspec.P256: nistMechanisms, keyspec.P384: nistMechanisms, keyspec.P521: nistMechanisms,
		keyspec.HMAC224: {hsm.MAC}, keyspec.HMAC256: {hsm.MAC}, keyspec.HMAC384: {hsm.MAC}, keyspec.HMAC512: {hsm.MAC},
		keyspec.AES256: {hsm.EncryptBlocks},
	}
	softHSMKeys = func() map[keyspec.Spec][]hsm.Mechanism {
		all := map[keyspec.Spec][]hsm.Mechanism{keyspec.Secp256k1: {hsm.SignECDSA}}
		for s, m := range nssKeys {
			all[s] = m
		}
		return all
	}()
)

func TestKeysSoftHSM(t *testing.T) {
	beside(t, &softHSMTurn)
	hsmtest.TestKeyToken(t, opener(t, hsmtest.SoftHSM(t)), softHSMKeys)
}

func TestKeysNSS(t *testing.T) {
	beside(t, &nssTurn)
	hsmtest.TestKeyToken(t, opener(t, hsmtest.NSS(t)), nssKeys)
}

// keySession is a key of the spec, made, loaded, and a session to use it.
func keySession(t testing.TB, token *Token, s keyspec.Spec) (session hsm.KeySession, k hsm.LoadedKey, public []byte) {
	t.Helper()
	wrapped, public, err := token.GenerateKey(s)
	if err != nil {
		t.Fatal(err)
	}
	if k, err = token.LoadKey(s, wrapped); err != nil {
		t.Fatal(err)
	}
	opened, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	return opened.(hsm.KeySession), k, public
}

// soundKey is what a good token says of a loaded key.
func soundKey(s keyspec.Spec) attributes {
	a := attributes{}
	for _, x := range keyTemplate(s, false) {
		a[x.Type] = x.Value
	}
	switch info := s.Info(); info.Family {
	case keyspec.RSA:
		a[pkcs11.CKA_MODULUS] = bytes.Repeat([]byte{0xff}, info.Public)
		a[pkcs11.CKA_PUBLIC_EXPONENT] = publicExponent
	case keyspec.HMAC, keyspec.AES:
		a[pkcs11.CKA_VALUE_LEN] = pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, info.Bits/8).Value
	default:
		a[pkcs11.CKA_EC_PARAMS] = curves[s][0]
	}
	return a
}

func TestCheckKeyRefusesEveryLie(t *testing.T) {
	for _, s := range keyspec.Backing() {
		if mechanismsOf(s) == nil {
			continue
		}
		if err := checkKey(s, soundKey(s), false); err != nil {
			t.Fatalf("%v: %v", s, err)
		}
		for attr, value := range soundKey(s) {
			lie := bytes.Clone(value)
			lie[0] ^= 1
			if attr == pkcs11.CKA_MODULUS {
				lie[0] = 0x7f
			}
			for name, v := range map[string][]byte{"flipped": lie, "empty": {}} {
				a := soundKey(s)
				a[attr] = v
				if err := checkKey(s, a, false); !errors.Is(err, hsm.ErrKeyRefused) {
					t.Errorf("%v: attribute %#x %s: %v", s, attr, name, err)
				}
			}
		}
		for _, attr := range []uint{pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE, keyUsages(s)[0],
			pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE} {
			a := soundKey(s)
			if delete(a, attr); checkKey(s, a, false) == nil {
				t.Errorf("%v: attribute %#x missing was accepted", s, attr)
			}
		}
		for _, attr := range append(secretParts, pkcs11.CKA_WRAP, pkcs11.CKA_UNWRAP, pkcs11.CKA_SIGN_RECOVER) {
			a := soundKey(s)
			if a[attr] = []byte{1}; checkKey(s, a, false) == nil {
				t.Errorf("%v: attribute %#x was accepted", s, attr)
			}
		}
	}
}

func eachKeyModule(t *testing.T, f func(t *testing.T, token *Token, offered map[keyspec.Spec][]hsm.Mechanism)) {
	for name, m := range map[string]struct {
		uri     func(testing.TB) string
		offered map[keyspec.Spec][]hsm.Mechanism
	}{"SoftHSM": {hsmtest.SoftHSM, softHSMKeys}, "NSS": {hsmtest.NSS, nssKeys}} {
		t.Run(name, func(t *testing.T) {
			token := opener(t, m.uri(t))(t).(*Token)
			defer token.Close()
			f(t, token, m.offered)
		})
	}
}

// sessionObjects counts the token's session objects.
func sessionObjects(t testing.TB, token *Token) int {
	t.Helper()
	ctx := token.mod.ctx
	s, err := ctx.OpenSession(token.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.CloseSession(s)
	if err := ctx.FindObjectsInit(s, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false)}); err != nil {
		t.Fatal(err)
	}
	found, _, err := ctx.FindObjects(s, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if err := ctx.FindObjectsFinal(s); err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// What is in the token is what was loaded and not unloaded: nothing is left by a key that is made, tried, refused, used or unloaded.
func TestKeysLeaveNothing(t *testing.T) {
	eachKeyModule(t, func(t *testing.T, token *Token, offered map[keyspec.Spec][]hsm.Mechanism) {
		before := sessionObjects(t, token)
		expect := func(what string, n int) {
			t.Helper()
			if got := sessionObjects(t, token); got != before+n {
				t.Errorf("after %s: %d session objects, want %d", what, got-before, n)
			}
		}
		for s := range offered {
			if s == keyspec.RSA3072 || s == keyspec.RSA4096 {
				continue
			}
			token.Keys(s)
			expect("Keys", 0)
			wrapped, public, err := token.GenerateKey(s)
			if err != nil {
				t.Fatal(err)
			}
			expect("GenerateKey", 0)
			k, err := token.LoadKey(s, wrapped)
			if err != nil {
				t.Fatal(err)
			}
			expect("LoadKey", 1)
			damaged := bytes.Clone(wrapped)
			damaged[len(damaged)/2] ^= 1
			if _, err := token.LoadKey(s, damaged); err == nil {
				t.Error("damaged bytes were loaded")
			}
			if s == keyspec.P256 {
				if _, err := token.LoadKey(keyspec.P384, wrapped); !errors.Is(err, hsm.ErrKeyRefused) {
					t.Errorf("a key of another curve: %v", err)
				}
			}
			expect("a refusal", 1)
			session, err := token.OpenSession()
			if err != nil {
				t.Fatal(err)
			}
			expect("a session", 2) // its working copy of the root
			for _, m := range offered[s] {
				in, err := speedInput(s, m, public)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := session.(hsm.KeySession).Use(k, s, m, in, make([]byte, s.Info().Result)); err != nil {
					t.Errorf("%v, mechanism %d: %v", s, m, err)
				}
			}
			session.Close()
			expect("uses", 1) // no derived secret is left
			if err := token.UnloadKey(k); err != nil {
				t.Error(err)
			}
			expect("UnloadKey", 0)
			if _, err := token.LoadKey(s, wrapped); err != nil {
				t.Error(err)
			}
			if err := token.Reset(); err != nil {
				t.Fatal(err)
			}
			expect("Reset", 0)
		}
	})
}

// A key that the token wraps, and says something else of when it comes back, is refused and destroyed.
func TestKeyRefusedIsDestroyed(t *testing.T) {
	eachKeyModule(t, func(t *testing.T, token *Token, _ map[keyspec.Spec][]hsm.Mechanism) {
		wrapped, _, err := token.GenerateKey(keyspec.P256)
		if err != nil {
			t.Fatal(err)
		}
		before := sessionObjects(t, token)
		for attr, lie := range map[uint][]byte{pkcs11.CKA_EXTRACTABLE: {1}, pkcs11.CKA_SENSITIVE: {0}, pkcs11.CKA_TOKEN: {1}, pkcs11.CKA_VALUE: {7}} {
			token.attribute = func(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a uint) ([]byte, error) {
				if a == attr {
					return bytes.Clone(lie), nil
				}
				return token.getAttribute(s, o, a)
			}
			if _, err := token.LoadKey(keyspec.P256, wrapped); !errors.Is(err, hsm.ErrKeyRefused) {
				t.Errorf("attribute %#x: %v", attr, err)
			}
		}
		token.attribute = token.getAttribute
		if after := sessionObjects(t, token); after != before {
			t.Errorf("%d session objects are left", after-before)
		}
	})
}

// What the token refuses half-way leaves nothing either, and is the error of the function that refused.
func TestKeyFaultsLeaveNothing(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	defer token.Close()
	wrapped, _, err := token.GenerateKey(keyspec.P256)
	if err != nil {
		t.Fatal(err)
	}
	k, err := token.LoadKey(keyspec.P256, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	session, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	before := sessionObjects(t, token)
	generate := func() error { _, _, err := token.GenerateKey(keyspec.P256); return err }
	load := func() error { _, err := token.LoadKey(keyspec.P256, wrapped); return err }
	use := func(m hsm.Mechanism, in []byte) func() error {
		return func() error {
			out := bytes.Repeat([]byte{0xaa}, 64)
			_, err := session.(hsm.KeySession).Use(k, keyspec.P256, m, in, out)
			if !bytes.Equal(out, make([]byte, 64)) {
				t.Error("out was not wiped")
			}
			return err
		}
	}
	peer, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		function string
		nth      int
		do       func() error
	}{
		{"C_GenerateKeyPair", 1, generate}, {"C_GetAttributeValue", 1, generate}, {"C_GetAttributeValue", 5, generate}, {"C_WrapKey", 1, generate},
		{"C_UnwrapKey", 1, generate}, {"C_SignInit", 1, generate}, {"C_Sign", 1, generate},
		{"C_UnwrapKey", 1, load}, {"C_GetAttributeValue", 1, load}, {"C_GetAttributeValue", 9, load},
		{"C_SignInit", 1, use(hsm.SignECDSA, make([]byte, 32))}, {"C_Sign", 1, use(hsm.SignECDSA, make([]byte, 32))},
		{"C_DeriveKey", 1, use(hsm.DeriveECDH, peer.PublicKey().Bytes())}, {"C_GetAttributeValue", 1, use(hsm.DeriveECDH, peer.PublicKey().Bytes())},
	} {
		setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: c.function, Nth: c.nth, CKR: hsm.CKR_DEVICE_MEMORY}}})
		err := c.do()
		if e, ok := errors.AsType[*hsm.Error](err); !ok || e.CKR != hsm.CKR_DEVICE_MEMORY || e.Function != c.function {
			t.Errorf("%s %d: %v", c.function, c.nth, err)
		}
		setSlow(t, slow, slowhsm.Settings{})
		if after := sessionObjects(t, token); after != before {
			t.Errorf("%s %d: %d session objects are left", c.function, c.nth, after-before)
			before = after
		}
	}
}

// A token that was lost while it was asked has not answered.
func TestKeysAsksAgain(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	defer token.Close()
	setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_GenerateKeyPair", Nth: 1, CKR: hsm.CKR_DEVICE_ERROR},
		{Function: "C_GenerateKeyPair", Nth: 3, CKR: hsm.CKR_MECHANISM_INVALID}}})
	if token.Keys(keyspec.P256) != 0 {
		t.Error("a lost token offers something")
	}
	if !token.Keys(keyspec.P256).Has(hsm.SignECDSA) {
		t.Error("a token that is back was not asked again")
	}
	for range 2 {
		if token.Keys(keyspec.P384) != 0 {
			t.Error("a token that says no was asked again")
		}
	}
}

// A ring that somebody closed ends the generation: the handles of its keys are used no more, whatever the module makes of them later.
func TestRingLost(t *testing.T) {
	eachKeyModule(t, func(t *testing.T, token *Token, _ map[keyspec.Spec][]hsm.Mechanism) {
		wrapped, _, err := token.GenerateKey(keyspec.P256)
		if err != nil {
			t.Fatal(err)
		}
		k, err := token.LoadKey(keyspec.P256, wrapped)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.mod.ctx.CloseSession(token.ring.session); err != nil {
			t.Fatal(err)
		}
		_, err = token.LoadKey(keyspec.P256, wrapped)
		if e, ok := errors.AsType[*hsm.Error](err); !ok || e.CKR != hsm.CKR_SESSION_HANDLE_INVALID {
			t.Fatalf("a lost session: %v", err)
		}
		again, err := token.LoadKey(keyspec.P256, wrapped)
		if err != nil || again.Generation == k.Generation || again.Generation != token.Generation() {
			t.Fatalf("%+v after %+v: %v", again, k, err)
		}
		s, err := token.OpenSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for loaded, want := range map[hsm.LoadedKey]bool{k: false, again: true} {
			if _, err := s.(hsm.KeySession).Use(loaded, keyspec.P256, hsm.SignECDSA, make([]byte, 32), make([]byte, 64)); (err == nil) != want {
				t.Errorf("%+v: %v", loaded, err)
			}
		}
	})
}

// SoftHSM makes Ed25519 keys and signs with them, but wraps none: what this package does with them is tried on one that is not wrapped.
func TestEd25519Unwrapped(t *testing.T) {
	token := opener(t, hsmtest.SoftHSM(t))(t).(*Token)
	defer token.Close()
	err := token.withKeySession(func(_ uint, session pkcs11.SessionHandle) error {
		public, private, err := token.generateKey(session, keyspec.Ed25519)
		if err != nil {
			return err
		}
		spki, err := token.publicOf(session, public, keyspec.Ed25519)
		if err != nil {
			return err
		}
		made := &madeKey{public: spki}
		if err := token.checkUse(keyspec.Ed25519, hsm.SignEd25519, false, made, uint(session), uint(private)); err != nil {
			return err
		}
		// It takes the parameters of Ed25519ph and signs plain Ed25519.
		if err := token.checkUse(keyspec.Ed25519, hsm.SignEd25519ph, false, made, uint(session), uint(private)); !errors.Is(err, hsm.ErrWrong) {
			t.Errorf("Ed25519ph: %v", err)
		}
		a, err := token.readKey(session, private, keyspec.Ed25519)
		if err == nil {
			err = checkKey(keyspec.Ed25519, a, true)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestPointOf(t *testing.T) {
	for _, n := range []int{32, 65, 97, 133} {
		point := make([]byte, n)
		point[0], point[1] = 4, byte(n-2) // one that could be taken for an octet string
		octets, err := asn1.Marshal(point)
		if err != nil {
			t.Fatal(err)
		}
		bits, err := asn1.Marshal(asn1.BitString{Bytes: point, BitLength: 8 * n})
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string][]byte{"raw": point, "octet string": octets, "bit string": bits} {
			if got := pointOf(value, n); !bytes.Equal(got, point) {
				t.Errorf("%d bytes, %s: %x", n, name, got)
			}
		}
		if got := pointOf(append(octets, 0), n); len(got) == n {
			t.Errorf("trailing bytes: %x", got)
		}
	}
}

func TestSpeedOf(t *testing.T) {
	uri := hsmtest.SoftHSM(t)
	for s, m := range map[keyspec.Spec]hsm.Mechanism{keyspec.P256: hsm.SignECDSA, keyspec.Ed25519: hsm.SignEd25519, keyspec.HMAC256: hsm.MAC,
		keyspec.RSA2048: hsm.DecryptOAEP256} {
		if perSecond, err := SpeedOf(uri, s, m, 2, 20*time.Millisecond); err != nil || perSecond <= 0 {
			t.Errorf("%v: %v, %v", s, perSecond, err)
		}
	}
	if _, err := SpeedOf(uri, keyspec.P256, hsm.MAC, 1, time.Millisecond); !errors.Is(err, hsm.ErrNotOffered) {
		t.Errorf("a MAC by P-256: %v", err)
	}
}

// TestKeysElsewhere runs the suite on the token that KEYPLANE_TEST_HSM names, an RFC 7512 URI: its roots are made if they are not there.
func TestKeysElsewhere(t *testing.T) {
	uri := os.Getenv("KEYPLANE_TEST_HSM")
	if uri == "" {
		t.Skip("KEYPLANE_TEST_HSM names no token")
	}
	open := opener(t, uri)
	token := open(t).(*Token)
	offered := map[keyspec.Spec][]hsm.Mechanism{}
	for _, s := range keyspec.Backing() {
		o, err := token.keyOffer(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %v, missing %q", s, namesOf(s, o.mechanisms), o.missing)
		for _, m := range mechanismsOf(s) {
			if o.mechanisms.Has(m) {
				offered[s] = append(offered[s], m)
			}
		}
	}
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	hsmtest.TestKeyToken(t, open, offered)
}
