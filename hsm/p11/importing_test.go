package p11

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

// What the two modules do with material from outside: docs/hsm-modules.md. SoftHSM 2.6 has OAEP with SHA-1 only, so that an RSA block under SHA-256 is decoded in
// this process; and of keys whose length is no multiple of 8 it wraps zeros too, so that HMAC_224 keys do not leave it.
var (
	softHSMImports = func() map[keyspec.Spec]hsmtest.Importing {
		all := map[keyspec.Spec]hsmtest.Importing{}
		for s := range softHSMKeys {
			i := hsmtest.Importing{Wrappings: map[keyspec.Wrapping]bool{keyspec.WrapRSAAES1: true, keyspec.WrapRSAAES256: true}}
			if hsm.Importable(s, keyspec.WrapOAEP1) {
				i.Wrappings[keyspec.WrapOAEP1], i.Wrappings[keyspec.WrapOAEP256] = true, false
			}
			i.Takes = lax(s)
			if s.Info().Family == keyspec.RSA {
				// OpenSSL, which does its arithmetic, checks what the prime factors give with the public half, and where that is wrong takes the private exponent. Where
				// both are wrong nothing is right, and the key is refused.
				for _, part := range []string{"D", "P", "Q", "Dp", "Dq", "Qi"} {
					i.Takes = append(i.Takes, part+hsmtest.WrongPart)
				}
			}
			if s != keyspec.HMAC224 {
				i.Exports = []keyspec.Wrapping{keyspec.WrapRSAAES1}
			}
			all[s] = i
		}
		return all
	}()
	nssImports = func() map[keyspec.Spec]hsmtest.Importing {
		all := map[keyspec.Spec]hsmtest.Importing{}
		for s := range nssKeys {
			i := hsmtest.Importing{Wrappings: map[keyspec.Wrapping]bool{}, Exports: []keyspec.Wrapping{keyspec.WrapRSAAES1, keyspec.WrapRSAAES256}, Takes: lax(s)}
			for w := keyspec.WrapOAEP1; w < wrappings; w++ {
				if hsm.Importable(s, w) {
					i.Wrappings[w] = true
				}
			}
			all[s] = i
		}
		return all
	}()
)

// lax is what the parsers of both take for a private key.
func lax(s keyspec.Spec) []string {
	if secretKey(s.Info().Family) {
		return nil
	}
	return []string{hsmtest.ByteMore, hsmtest.OtherVersion}
}

func countObjects(t testing.TB, token hsm.Token) int { return sessionObjects(t, token.(*Token)) }

func TestImportSoftHSM(t *testing.T) {
	beside(t, &softHSMTurn)
	hsmtest.TestImportToken(t, opener(t, hsmtest.SoftHSM(t)), softHSMImports, countObjects)
}

func TestImportNSS(t *testing.T) {
	beside(t, &nssTurn)
	hsmtest.TestImportToken(t, opener(t, hsmtest.NSS(t)), nssImports, countObjects)
}

// TestBetweenTokens: what one token exports another imports, as far as both have it.
func TestBetweenTokens(t *testing.T) {
	soft, err := softtoken.Open(softtoken.Config{Dir: filepath.Join(t.TempDir(), "token"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer soft.Close()
	everything := map[keyspec.Spec]hsmtest.Importing{}
	for s := range softHSMKeys {
		everything[s] = hsmtest.Importing{Wrappings: map[keyspec.Wrapping]bool{keyspec.WrapRSAAES1: true, keyspec.WrapRSAAES256: true},
			Exports: []keyspec.Wrapping{keyspec.WrapRSAAES1, keyspec.WrapRSAAES256}}
	}
	type party struct {
		name  string
		token hsm.ImportToken
		does  map[keyspec.Spec]hsmtest.Importing
	}
	one := party{"SoftHSM", opener(t, hsmtest.SoftHSM(t))(t).(*Token), softHSMImports}
	other := party{"another SoftHSM", opener(t, hsmtest.SoftHSM(t))(t).(*Token), softHSMImports}
	nss := party{"NSS", opener(t, hsmtest.NSS(t))(t).(*Token), nssImports}
	ours := party{"soft token", soft, everything}
	for _, p := range []party{one, other, nss} {
		defer p.token.Close()
	}
	for _, pair := range [][2]party{{one, other}, {one, ours}, {ours, one}, {nss, ours}, {ours, nss}, {one, nss}, {nss, one}} {
		from, to := pair[0], pair[1]
		want := map[keyspec.Spec][]keyspec.Wrapping{}
		for s, i := range from.does {
			if from.name == "SoftHSM" && to.name == "soft token" && !secretKey(s.Info().Family) {
				continue // SoftHSM wraps zeros after the encoding, which only lax parsers take
			}
			for _, w := range i.Exports {
				if _, ok := to.does[s].Wrappings[w]; ok && s != keyspec.RSA3072 && s != keyspec.RSA4096 {
					want[s] = append(want[s], w)
				}
			}
		}
		t.Run("from "+from.name+" to "+to.name, func(t *testing.T) { hsmtest.TestBetween(t, from.token, to.token, want) })
	}
}

func TestImportOpenSSLSoftHSM(t *testing.T) {
	beside(t, &softHSMTurn)
	hsmtest.TestImportOpenSSL(t, opener(t, hsmtest.SoftHSM(t)), softHSMImports)
}

func TestImportOpenSSLNSS(t *testing.T) {
	beside(t, &nssTurn)
	hsmtest.TestImportOpenSSL(t, opener(t, hsmtest.NSS(t)), nssImports)
}

// What the token refuses half-way leaves nothing, and is the error of the function that refused, or the material's where the token says so of it.
func TestImportFaultsLeaveNothing(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	defer token.Close()
	private, public, err := token.GenerateKey(keyspec.RSA2048) // operations with longer ones are most of the test's time
	if err != nil {
		t.Fatal(err)
	}
	_, peer, err := token.GenerateKey(keyspec.RSA3072)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	wrapping := parsed.(*rsa.PublicKey)
	var bring []func() error
	for _, s := range []keyspec.Spec{keyspec.AES256, keyspec.P256} {
		m := hsmtest.MakeMaterial(t, s)
		for _, w := range []keyspec.Wrapping{keyspec.WrapRSAAES1, keyspec.WrapRSAAES256, keyspec.WrapOAEP256} {
			material := hsmtest.WrapMaterial(t, w, wrapping, m.Plain)
			bring = append(bring, func() error { _, _, err := token.ImportKey(s, keyspec.RSA2048, private, w, material); return err })
		}
	}
	wrapped, _, err := token.GenerateKey(keyspec.P256)
	if err != nil {
		t.Fatal(err)
	}
	bring = append(bring, func() error {
		_, err := token.ExportKey(keyspec.P256, wrapped, keyspec.WrapRSAAES1, peer)
		return err
	})
	for _, call := range bring {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	before := sessionObjects(t, token)
	struck := 0
	for _, function := range []string{"C_UnwrapKey", "C_GetAttributeValue", "C_CreateObject", "C_Decrypt", "C_SignInit", "C_Sign", "C_WrapKey", "C_GenerateKey",
		"C_EncryptInit", "C_Encrypt"} {
		for i, call := range bring {
			for _, code := range []hsm.CKR{hsm.CKR_DEVICE_MEMORY, hsm.CKR_FUNCTION_FAILED} {
				for nth := 1; nth < 40; nth += 1 + nth/3 {
					setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: function, Nth: nth, CKR: code}}})
					err := call()
					setSlow(t, slow, slowhsm.Settings{})
					if after := sessionObjects(t, token); after != before {
						t.Fatalf("call %d, %s %d: %d session objects are left", i, function, nth, after-before)
					}
					if err == nil {
						break // it has fewer calls of that function
					}
					struck++
					e, ok := errors.AsType[*hsm.Error](err)
					named := ok && e.CKR == code && e.Function == function
					if code == hsm.CKR_DEVICE_MEMORY && !named || !named && !errors.Is(err, hsm.ErrMaterial) {
						t.Errorf("call %d, %s %d, %v: %v", i, function, nth, code, err)
					}
				}
			}
		}
	}
	if struck < 50 {
		t.Errorf("%d faults struck", struck)
	}
	for _, call := range bring {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
}

// TestImportCodes: whatever code a call on the material gives that no material can bring about goes on as it is; every other is the material's.
func TestImportCodes(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	defer token.Close()
	private, public, err := token.GenerateKey(keyspec.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	m := hsmtest.MakeMaterial(t, keyspec.P256)
	codes := []hsm.CKR{hsm.CKR_VENDOR_DEFINED + 7, hsm.CKR_GENERAL_ERROR, hsm.CKR_KEY_NOT_WRAPPABLE, hsm.CKR_WRAPPED_KEY_INVALID}
	for code := range hsm.CKR(0x220) {
		if passing(code) {
			codes = append(codes, code)
		}
	}
	for _, call := range []struct {
		w        keyspec.Wrapping
		function string
		nth      int // the first is the unwrapping of the wrapping key
	}{{keyspec.WrapRSAAES1, "C_UnwrapKey", 2}, {keyspec.WrapRSAAES1, "C_UnwrapKey", 3}, {keyspec.WrapRSAAES1, "C_WrapKey", 1}, {keyspec.WrapRSAAES1, "C_Sign", 1},
		{keyspec.WrapRSAAES256, "C_Decrypt", 1}} {
		material := hsmtest.WrapMaterial(t, call.w, parsed.(*rsa.PublicKey), m.Plain)
		if _, _, err := token.ImportKey(m.Spec, keyspec.RSA2048, private, call.w, material); err != nil {
			t.Fatal(err)
		}
		for _, code := range codes {
			setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: call.function, Nth: call.nth, CKR: code}}})
			_, _, err := token.ImportKey(m.Spec, keyspec.RSA2048, private, call.w, material)
			setSlow(t, slow, slowhsm.Settings{})
			if got := errors.Is(err, hsm.ErrMaterial); err == nil || got == lost(code) {
				t.Errorf("%s %d, %v: %v", call.function, call.nth, code, err)
			}
			e, ok := errors.AsType[*hsm.Error](err)
			if (!ok || e.CKR != code) && passing(code) {
				t.Errorf("%s %d, %v: the code is lost: %v", call.function, call.nth, code, err)
			}
		}
	}
}

// TestImportsWithoutAnswer: a code that is no answer leaves open what it was asked about and nothing else, and it is asked again, but not by every caller.
func TestImportsWithoutAnswer(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	defer token.Close()
	private, _, err := token.GenerateKey(keyspec.RSA2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range keyspec.Backing() {
		token.Keys(s)
	}
	setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_UnwrapKey", Nth: 2, CKR: hsm.CKR_VENDOR_DEFINED + 3}}})
	known, open := 0, 0
	var s keyspec.Spec
	var w keyspec.Wrapping
	for spec, imports := range softHSMImports {
		for wrapping := range imports.Wrappings {
			switch ok, _, err := token.Imports(spec, wrapping); {
			case ok && err == nil:
				known++
			case !ok && errors.Is(err, hsm.ErrUnavailable):
				open++
				s, w = spec, wrapping
			default:
				t.Errorf("%v, %v: %t, %v", spec, wrapping, ok, err)
			}
		}
	}
	setSlow(t, slow, slowhsm.Settings{})
	if open < 1 || open > 3 || known < 8 { // RSA keys of all lengths share an answer
		t.Fatalf("%d known, %d open", known, open)
	}
	o := *token.importing[s].known.Load()
	if o.again = time.Now().Add(time.Hour); o.wait != importsWaitMin {
		t.Errorf("asked again after %v", o.wait)
	}
	token.importing[s].known.Store(&o)
	if _, _, err := token.ImportKey(s, keyspec.RSA2048, private, w, make([]byte, 256)); !errors.Is(err, hsm.ErrUnavailable) || errors.Is(err, hsm.ErrNotOffered) {
		t.Errorf("an import that is not known yet: %v", err)
	}
	due := o
	due.again = time.Now()
	token.importing[s].known.Store(&due)
	if ok, _, err := token.Imports(s, w); !ok || err != nil || token.importing[s].known.Load().wait != 0 {
		t.Errorf("asked again: %t, %v", ok, err)
	}
}

// TestImportRefusedIsDestroyed: a token that says something else of an imported key than it was asked for has it destroyed.
func TestImportRefusedIsDestroyed(t *testing.T) {
	eachKeyModule(t, func(t *testing.T, token *Token, _ map[keyspec.Spec][]hsm.Mechanism) {
		private, public, err := token.GenerateKey(keyspec.RSA2048)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParsePKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		m := hsmtest.MakeMaterial(t, keyspec.P256)
		material := hsmtest.WrapMaterial(t, keyspec.WrapRSAAES256, parsed.(*rsa.PublicKey), m.Plain)
		if ok, _, _ := token.Imports(m.Spec, keyspec.WrapRSAAES256); !ok {
			t.Fatal("not imported")
		}
		before := sessionObjects(t, token)
		of := map[bool]error{true: hsm.ErrMaterial, false: hsm.ErrKeyRefused} // that the token does not protect the key is nobody's material
		for attr, lie := range map[uint][]byte{pkcs11.CKA_SENSITIVE: {0}, pkcs11.CKA_TOKEN: {1}, pkcs11.CKA_PRIVATE: {0}, pkcs11.CKA_VALUE: {7}, pkcs11.CKA_EC_PARAMS: {6, 1, 1}} {
			token.attribute = func(s pkcs11.SessionHandle, o pkcs11.ObjectHandle, a uint) ([]byte, error) {
				if a == attr {
					return bytes.Clone(lie), nil
				}
				return token.getAttribute(s, o, a)
			}
			if wrapped, _, err := token.ImportKey(m.Spec, keyspec.RSA2048, private, keyspec.WrapRSAAES256, material); !errors.Is(err, of[attr == pkcs11.CKA_EC_PARAMS]) || wrapped != nil ||
				errors.Is(err, of[attr != pkcs11.CKA_EC_PARAMS]) {
				t.Errorf("attribute %#x: %v", attr, err)
			}
		}
		token.attribute = token.getAttribute
		if after := sessionObjects(t, token); after != before {
			t.Errorf("%d session objects are left", after-before)
		}
		if _, _, err := token.ImportKey(m.Spec, keyspec.RSA2048, private, keyspec.WrapRSAAES256, material); err != nil {
			t.Error(err)
		}
	})
}
