package softtoken

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/softkey"
)

// everything is what the soft token offers: all that there is.
func everything() map[keyspec.Spec][]hsm.Mechanism {
	all := map[keyspec.Spec][]hsm.Mechanism{}
	for _, s := range keyspec.Backing() {
		for m := hsm.NoMechanism; m < 32; m++ {
			if hsm.MechanismsOf(s).Has(m) {
				all[s] = append(all[s], m)
			}
		}
	}
	return all
}

func TestKeys(t *testing.T) {
	dir := fresh(t)
	hsmtest.TestKeyToken(t, func(t testing.TB) hsm.Token { return mustOpen(t, Config{Dir: dir}) }, everything())
}

// TestKeysFaulty: without faults, the faulty token is a good one.
func TestKeysFaulty(t *testing.T) {
	dir := fresh(t)
	want := everything()
	for s := range slow {
		delete(want, s)
	}
	hsmtest.TestKeyToken(t, func(t testing.TB) hsm.Token { return quick{hsmtest.NewFaulty(mustOpen(t, Config{Dir: dir}))} }, want)
}

// quick is a token that does not offer what takes long to make.
type quick struct{ *hsmtest.Faulty }

var slow = map[keyspec.Spec]bool{keyspec.RSA3072: true, keyspec.RSA4096: true}

func (q quick) Keys(s keyspec.Spec) hsm.Mechanisms {
	if slow[s] {
		return 0
	}
	return q.Faulty.Keys(s)
}

func (q quick) GenerateKey(s keyspec.Spec) (wrapped, public []byte, err error) {
	if slow[s] {
		return nil, nil, hsm.ErrNotOffered
	}
	return q.Faulty.GenerateKey(s)
}

func (q quick) LoadKey(s keyspec.Spec, wrapped []byte) (hsm.LoadedKey, error) {
	if slow[s] {
		return hsm.LoadedKey{}, hsm.ErrNotOffered
	}
	return q.Faulty.LoadKey(s, wrapped)
}

// TestOps: the numbers of internal/softkey's operations are those of the mechanisms.
func TestOps(t *testing.T) {
	for m, op := range map[hsm.Mechanism]softkey.Op{
		hsm.SignPKCS1: softkey.SignPKCS1, hsm.SignPSS256: softkey.SignPSS256, hsm.SignPSS384: softkey.SignPSS384, hsm.SignPSS512: softkey.SignPSS512,
		hsm.SignECDSA: softkey.SignECDSA, hsm.SignEd25519: softkey.SignEd25519, hsm.SignEd25519ph: softkey.SignEd25519ph,
		hsm.SignMLDSA: softkey.SignMLDSA, hsm.MAC: softkey.MAC, hsm.DecryptOAEP1: softkey.DecryptOAEP1, hsm.DecryptOAEP256: softkey.DecryptOAEP256,
		hsm.DeriveECDH: softkey.DeriveECDH, hsm.DecapsulateMLKEM: softkey.DecapsulateMLKEM, hsm.EncryptBlocks: softkey.EncryptBlocks,
	} {
		if softkey.Op(m) != op {
			t.Errorf("mechanism %d is operation %d", m, op)
		}
	}
}

// TestWrappedIsOfItsSpec: a wrapped key opens as one of its spec only, in its own token only, and does not show its private half.
func TestWrappedIsOfItsSpec(t *testing.T) {
	dir := fresh(t)
	token := mustOpen(t, Config{Dir: dir})
	wrapped, _, err := token.GenerateKey(keyspec.MLDSA44) // its seed is as long as the others'
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(wrapped, []byte("ML_DSA")) {
		t.Error("the frame is not wrapped")
	}
	for _, s := range keyspec.Backing() {
		if _, err := token.LoadKey(s, wrapped); (err == nil) != (s == keyspec.MLDSA44) {
			t.Errorf("as %v: %v", s, err)
		}
	}
	if _, err := token.LoadKey(keyspec.MLDSA44, wrapped); err != nil {
		t.Error(err)
	}
	var e *hsm.Error
	if _, err := mustOpen(t, Config{Dir: fresh(t)}).LoadKey(keyspec.MLDSA44, wrapped); !errors.As(err, &e) || e.CKR != hsm.CKR_WRAPPED_KEY_INVALID {
		t.Errorf("in another token: %v", err)
	}
	// The token is the same after it was opened again.
	if _, err := mustOpen(t, Config{Dir: dir}).LoadKey(keyspec.MLDSA44, wrapped); err != nil {
		t.Error(err)
	}
	token.Close()
	if _, err := token.LoadKey(keyspec.MLDSA44, wrapped); err == nil {
		t.Error("a closed token loads keys")
	}
	if _, _, err := token.GenerateKey(keyspec.HMAC256); err == nil {
		t.Error("a closed token makes keys")
	}
}
