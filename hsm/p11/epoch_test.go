package p11

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/miekg/pkcs11"
)

// TestModuleBeginsAnew: when a module was finalised and one token's Reset has it begin anew, numbers of another token's sessions and keys are given
// out again. They are never used, nor closed, until that token has its own.
func TestModuleBeginsAnew(t *testing.T) {
	ua, ub := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	for _, u := range []string{ua, ub} {
		if _, err := InitRoots(u); err != nil {
			t.Fatal(err)
		}
	}
	a, b := mustOpen(t, ua), mustOpen(t, ub)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	wrappedA, _, err := a.GenerateKey(keyspec.P256)
	must(err)
	wrappedB, _, err := b.GenerateKey(keyspec.P256)
	must(err)
	opened, err := b.OpenSession()
	must(err)
	old := opened.(*session)
	var key hsm.LoadedKey
	for range 10 {
		key, err = b.LoadKey(keyspec.P256, wrappedB)
		must(err)
	}
	must(a.mod.fns.finalize())
	must(a.Reset())
	var handle pkcs11.SessionHandle
	for handle < old.handle {
		handle, err = a.mod.ctx.OpenSession(a.slot, pkcs11.CKF_SERIAL_SESSION)
		must(err)
	}
	for n := hsm.Handle(0); n < key.Handle; {
		k, err := a.LoadKey(keyspec.P256, wrappedA)
		must(err)
		n = k.Handle
	}
	digest, out := sha256.Sum256([]byte("m")), make([]byte, 64)
	var e *hsm.Error
	if _, err := old.Use(key, keyspec.P256, hsm.SignECDSA, digest[:], out); !errors.As(err, &e) || e.CKR != hsm.CKR_KEY_HANDLE_INVALID || !bytes.Equal(out, make([]byte, 64)) {
		t.Errorf("%v, %x", err, out)
	}
	block := make([]byte, 16)
	if err := old.Round([]byte(hsm.RootIDBlock), block, nil); !errors.As(err, &e) || e.CKR != hsm.CKR_SESSION_HANDLE_INVALID {
		t.Error(err)
	}
	must(b.UnloadKey(key))
	must(old.Close())
	if _, err := a.mod.ctx.GetSessionInfo(handle); handle == old.handle && err != nil {
		t.Errorf("another token's session was closed: %v", err)
	}
	must(b.Reset())
	opened, err = b.OpenSession()
	must(err)
	defer opened.Close()
	key, err = b.LoadKey(keyspec.P256, wrappedB)
	must(err)
	if n, err := opened.(*session).Use(key, keyspec.P256, hsm.SignECDSA, digest[:], out); err != nil || n != 64 {
		t.Errorf("%d, %v", n, err)
	}
}

// TestRingRootStale: a ring whose handle of the wrapping root is no longer one is made anew.
func TestRingRootStale(t *testing.T) {
	u := hsmtest.SoftHSM(t)
	if _, err := InitRoots(u); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, u)
	wrapped, _, err := token.GenerateKey(keyspec.HMAC256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.LoadKey(keyspec.HMAC256, wrapped); err != nil {
		t.Fatal(err)
	}
	token.ring.root += 1000
	generation := token.Generation()
	if _, err := token.LoadKey(keyspec.HMAC256, wrapped); err == nil {
		t.Fatal("a stale handle unwrapped")
	}
	if token.Generation() == generation {
		t.Error("the generation goes on")
	}
	if _, err := token.LoadKey(keyspec.HMAC256, wrapped); err != nil {
		t.Error(err)
	}
	// What is wrong with the key says nothing of the ring.
	generation = token.Generation()
	wrapped[len(wrapped)-1] ^= 1
	if _, err := token.LoadKey(keyspec.HMAC256, wrapped); err == nil || token.Generation() != generation {
		t.Errorf("%v, generation %d, %d before", err, token.Generation(), generation)
	}
}
