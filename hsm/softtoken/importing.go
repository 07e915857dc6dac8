package softtoken

import (
	"crypto/aes"
	"crypto/rand"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/keywrap"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/softkey"
)

var _ hsm.ImportToken = (*Token)(nil)

const kekLen = 32 // AES-256, of RSA_AES_KEY_WRAP_*

// Imports is everything that there is. The material is in clear in this process.
func (k Keys) Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error) {
	return hsm.Importable(s, w), false, nil
}

// ImportKey brings a key in from outside: hsm.ImportToken.
//
// What the RSA key gives is decoded by crypto/rsa in a time that does not depend on it. If that is a fault, everything goes on with a key that nobody
// knows, so that a wrong padding, a wrong length and a wrong AES key take the same way to the one error. Whether the encoding or the numbers of a
// private key are at fault does show in the time; to get there the material has to be sealed under a key that whoever sends it knows, so he knows the
// material too.
func (k Keys) ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (sealed, public []byte, err error) {
	if !hsm.Importable(s, w) || wrapping.Info().Family != keyspec.RSA {
		return nil, nil, hsm.ErrNotOffered
	}
	loaded, err := k.LoadKey(wrapping, private)
	if err != nil {
		return nil, nil, err
	}
	defer k.UnloadKey(loaded)
	modulus := wrapping.Info().Public
	if len(material) < modulus || len(material) > hsm.MaterialMax {
		return nil, nil, hsm.ErrMaterial // lengths are no secret
	}
	_, m := hsm.OAEPOf(w)
	opened := make([]byte, wrapping.Info().Result)
	defer secret.Wipe(opened)
	n, err := loaded.Object.(*softkey.Key).Do(softkey.Op(m), material[:modulus], opened)
	if err != nil {
		return k.ImportOpened(s, w, nil, material[modulus:])
	}
	return k.ImportOpened(s, w, opened[:n], material[modulus:])
}

// ImportOpened goes on where the RSA key is done: hsm.SoftwareKeys.
func (k Keys) ImportOpened(s keyspec.Spec, w keyspec.Wrapping, opened, rest []byte) (sealed, public []byte, err error) {
	if !hsm.Importable(s, w) {
		return nil, nil, hsm.ErrNotOffered
	}
	plain, ok := opened, opened != nil && len(rest) == 0
	if hsm.Hybrid(w) {
		plain, ok = unwrapUnder(opened, rest)
		defer secret.Wipe(plain)
	}
	if !ok {
		return nil, nil, hsm.ErrMaterial
	}
	own, public, err := softkey.Import(s, plain)
	if err != nil {
		return nil, nil, hsm.ErrMaterial
	}
	defer secret.Wipe(own)
	if sealed, err = k.Seal(s, own); err != nil {
		return nil, nil, err
	}
	return sealed, public, nil
}

// unwrapUnder unwraps what is wrapped under kek, or under a key that nobody knows if kek is none.
func unwrapUnder(kek, wrapped []byte) (plain []byte, ok bool) {
	var key [kekLen]byte
	defer secret.Wipe(key[:])
	_, _ = rand.Read(key[:]) // never fails
	good := len(kek) == kekLen
	if good {
		copy(key[:], kek)
	}
	cipher, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, false
	}
	plain, ok = keywrap.Unwrap(cipher, wrapped)
	return plain, ok && good
}

// ExportKey wraps a key for another token: hsm.ImportToken.
func (k Keys) ExportKey(s keyspec.Spec, sealed []byte, w keyspec.Wrapping, public []byte) (material []byte, err error) {
	if !hsm.Importable(s, w) || !hsm.Hybrid(w) {
		return nil, hsm.ErrNotOffered
	}
	peer, err := hsm.PeerKey(public)
	if err != nil {
		return nil, err
	}
	private, err := k.Open(s, sealed)
	if err != nil {
		return nil, err
	}
	defer secret.Wipe(private)
	own, _, err := softkey.Import(s, private)
	secret.Wipe(own)
	if err != nil { // what the importing token would not take
		return nil, ErrSealed
	}
	kek := make([]byte, kekLen)
	defer secret.Wipe(kek)
	_, _ = rand.Read(kek) // never fails
	a, _ := hsm.OAEPOf(w)
	material = make([]byte, peer.Spec().Info().Public)
	if _, err = peer.EncryptOAEP(a, kek, material); err != nil {
		return nil, &hsm.Error{CKR: hsm.CKR_FUNCTION_FAILED, Function: "C_WrapKey"}
	}
	cipher, err := aes.NewCipher(kek)
	if err != nil {
		return nil, &hsm.Error{CKR: hsm.CKR_FUNCTION_FAILED, Function: "C_WrapKey"}
	}
	return keywrap.Wrap(material, cipher, private), nil
}

// Imports says what the soft token imports: all that there is, in this process.
func (t *Token) Imports(s keyspec.Spec, w keyspec.Wrapping) (ok, inside bool, err error) {
	return t.keys().Imports(s, w)
}

// ImportKey brings a key in from outside.
func (t *Token) ImportKey(s keyspec.Spec, wrapping keyspec.Spec, private []byte, w keyspec.Wrapping, material []byte) (wrapped, public []byte, err error) {
	if err := t.alive(t.generation.Load(), "C_UnwrapKey"); err != nil {
		return nil, nil, err
	}
	return t.keys().ImportKey(s, wrapping, private, w, material)
}

// ExportKey wraps a key for another token.
func (t *Token) ExportKey(s keyspec.Spec, wrapped []byte, w keyspec.Wrapping, public []byte) (material []byte, err error) {
	if err := t.alive(t.generation.Load(), "C_WrapKey"); err != nil {
		return nil, err
	}
	return t.keys().ExportKey(s, wrapped, w, public)
}
