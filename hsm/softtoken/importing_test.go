package softtoken

import (
	"bytes"
	"crypto/aes"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/keywrap"
	"github.com/keyplane/keyplane/internal/softkey"
	"github.com/keyplane/keyplane/internal/wycheproof"
)

// everyImport is what the soft token imports and exports: all that there is.
func everyImport() map[keyspec.Spec]hsmtest.Importing {
	all := map[keyspec.Spec]hsmtest.Importing{}
	for _, s := range keyspec.Backing() {
		wrappings := map[keyspec.Wrapping]bool{}
		for w := keyspec.WrapOAEP1; w <= keyspec.WrapRSAAES256; w++ {
			if hsm.Importable(s, w) {
				wrappings[w] = false
			}
		}
		if len(wrappings) > 0 {
			all[s] = hsmtest.Importing{Wrappings: wrappings, Exports: []keyspec.Wrapping{keyspec.WrapRSAAES1, keyspec.WrapRSAAES256}}
		}
	}
	return all
}

func TestImport(t *testing.T) {
	dir := fresh(t)
	hsmtest.TestImportToken(t, func(t testing.TB) hsm.Token { return mustOpen(t, Config{Dir: dir}) }, everyImport(), nil)
}

func TestImportOpenSSL(t *testing.T) {
	dir := fresh(t)
	hsmtest.TestImportOpenSSL(t, func(t testing.TB) hsm.Token { return mustOpen(t, Config{Dir: dir}) }, everyImport())
}

// inClear are keys that nothing seals.
func inClear() Keys {
	return Keys{
		Seal: func(_ keyspec.Spec, private []byte) ([]byte, error) { return bytes.Clone(private), nil },
		Open: func(_ keyspec.Spec, sealed []byte) ([]byte, error) { return bytes.Clone(sealed), nil },
	}
}

// TestImportFaultsAreOne: a wrong padding, an AES key of a wrong length and a wrong AES key are the same error, with nothing besides it.
func TestImportFaultsAreOne(t *testing.T) {
	k := inClear()
	kek := bytes.Repeat([]byte{7}, kekLen)
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	rest := keywrap.Wrap(nil, block, make([]byte, 32))
	for name, c := range map[string]struct{ opened, rest []byte }{
		"padding": {nil, rest}, "short": {kek[:31], rest}, "long": {append(kek, 0), rest}, "none": {[]byte{}, rest}, "another": {make([]byte, kekLen), rest}, "cut": {kek, rest[:len(rest)-8]},
		"odd": {kek, rest[:len(rest)-1]}, "nothing": {kek, nil},
	} {
		sealed, public, err := k.ImportOpened(keyspec.AES256, keyspec.WrapRSAAES256, c.opened, c.rest)
		if err != hsm.ErrMaterial || sealed != nil || public != nil { //nolint:errorlint // it tells nothing more
			t.Errorf("%s: %x, %v", name, sealed, err)
		}
	}
	if sealed, _, err := k.ImportOpened(keyspec.AES256, keyspec.WrapRSAAES256, kek, rest); err != nil || !bytes.Equal(sealed, make([]byte, 32)) {
		t.Errorf("%x, %v", sealed, err)
	}
}

// TestWycheproofOAEP: Project Wycheproof's ciphertexts as material. What decrypts to 32 bytes is an AES_256 key; what decrypts to anything else, or to nothing,
// is no material.
func TestWycheproofOAEP(t *testing.T) {
	if testing.Short() {
		t.Skip("vectors are for runs that are not short")
	}
	for _, f := range []struct {
		name              string
		s                 keyspec.Spec
		w                 keyspec.Wrapping
		imported, refused int
	}{
		{"rsa_oaep_2048_sha1_mgf1sha1", keyspec.RSA2048, keyspec.WrapOAEP1, 1, 35},
		{"rsa_oaep_2048_sha256_mgf1sha256", keyspec.RSA2048, keyspec.WrapOAEP256, 1, 36},
		{"rsa_oaep_3072_sha256_mgf1sha256", keyspec.RSA3072, keyspec.WrapOAEP256, 1, 36},
		{"rsa_oaep_4096_sha256_mgf1sha256", keyspec.RSA4096, keyspec.WrapOAEP256, 1, 36},
	} {
		imported, refused := 0, 0
		for _, g := range wycheproof.Load[struct {
			Private wycheproof.Bytes `json:"privateKeyPkcs8"`
		}, struct {
			wycheproof.Case
			Msg   wycheproof.Bytes `json:"msg"`
			CT    wycheproof.Bytes `json:"ct"`
			Label wycheproof.Bytes `json:"label"`
		}](t, f.name) {
			for _, c := range g.Tests {
				sealed, _, err := inClear().ImportKey(keyspec.AES256, f.s, g.Parameters.Private, f.w, c.CT)
				if good := c.Valid() && len(c.Msg) == 32 && len(c.Label) == 0; good {
					imported++
					if err != nil || !bytes.Equal(sealed, c.Msg) {
						t.Errorf("%s, case %d (%s): %x, %v", f.name, c.ID, c.Comment, sealed, err)
					}
					continue
				}
				refused++
				if err != hsm.ErrMaterial { //nolint:errorlint // it tells nothing more
					t.Errorf("%s, case %d (%s, %v): %v", f.name, c.ID, c.Comment, c.Flags, err)
				}
			}
		}
		if imported != f.imported || refused != f.refused {
			t.Errorf("%s: %d imported, %d refused; want %d, %d", f.name, imported, refused, f.imported, f.refused)
		}
	}
}

// TestWycheproofKWP: Project Wycheproof's AES-256-KWP vectors behind the AES key that they are under. What unwraps to 32 bytes is an AES_256 key.
func TestWycheproofKWP(t *testing.T) {
	imported, refused := 0, 0
	for _, g := range wycheproof.Load[struct{}, struct {
		wycheproof.Case
		Key wycheproof.Bytes `json:"key"`
		Msg wycheproof.Bytes `json:"msg"`
		CT  wycheproof.Bytes `json:"ct"`
	}](t, "aes_kwp") {
		for _, c := range g.Tests {
			sealed, _, err := inClear().ImportOpened(keyspec.AES256, keyspec.WrapRSAAES1, c.Key, c.CT)
			if c.Valid() && len(c.Msg) == 32 && len(c.Key) == 32 {
				imported++
				if err != nil || !bytes.Equal(sealed, c.Msg) {
					t.Errorf("case %d (%s): %x, %v", c.ID, c.Comment, sealed, err)
				}
				continue
			}
			refused++
			if err != hsm.ErrMaterial { //nolint:errorlint // it tells nothing more
				t.Errorf("case %d (%s): %v", c.ID, c.Comment, err)
			}
		}
	}
	if imported != 3 || refused != 251 {
		t.Errorf("%d imported, %d refused; want 3, 251", imported, refused)
	}
}

// FuzzImportKey unwraps what is well wrapped and was any bytes before, and what is any bytes. It is refused with the one error, or is a key: one that loads, that
// comes in again as the same, and of which nothing is left of how it was encoded.
func FuzzImportKey(f *testing.F) {
	specs := []keyspec.Spec{keyspec.AES256, keyspec.HMAC224, keyspec.HMAC512, keyspec.P256, keyspec.P384, keyspec.P521, keyspec.Secp256k1, keyspec.Ed25519, keyspec.RSA2048}
	for i, s := range specs {
		f.Add(byte(i), byte(2), hsmtest.MakeMaterial(f, s).Plain)
		f.Add(byte(i), byte(0), hsmtest.MakeMaterial(f, s).Plain)
	}
	wrapping := hsmtest.MakeMaterial(f, keyspec.RSA2048)
	public, err := x509.ParsePKIXPublicKey(wrapping.Public)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(0), byte(7), make([]byte, 256))
	f.Add(byte(0), byte(5), hsmtest.WrapMaterial(f, keyspec.WrapOAEP256, public.(*rsa.PublicKey), make([]byte, 32)))
	k := inClear()
	kek := bytes.Repeat([]byte{7}, kekLen)
	block, err := aes.NewCipher(kek)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, which, how byte, b []byte) {
		s, w := specs[int(which)%len(specs)], keyspec.Wrapping(how%4)+keyspec.WrapOAEP1
		var sealed, spki []byte
		var err error
		switch {
		case how >= 4: // how-4 is the wrapping
			sealed, spki, err = k.ImportKey(s, keyspec.RSA2048, wrapping.Plain, w, b)
		case hsm.Hybrid(w) && len(b) > 0 && len(b) < 8192:
			sealed, spki, err = k.ImportOpened(s, w, kek, keywrap.Wrap(nil, block, b))
		default:
			sealed, spki, err = k.ImportOpened(s, w, b, nil)
		}
		if err != nil {
			if !errors.Is(err, hsm.ErrMaterial) && hsm.Importable(s, w) || sealed != nil || spki != nil {
				t.Fatalf("%x, %x, %v", sealed, spki, err)
			}
			return
		}
		loaded, err := k.LoadKey(s, sealed)
		if err != nil {
			t.Fatal(err)
		}
		_ = k.UnloadKey(loaded)
		again, public, err := softkey.Import(s, sealed)
		if err != nil || !bytes.Equal(again, sealed) || !bytes.Equal(public, spki) {
			t.Fatalf("it comes in again as another: %v", err)
		}
	})
}
