package p11

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

func isCKR(err error, code hsm.CKR) bool {
	e, ok := errors.AsType[*hsm.Error](err)
	return ok && e.CKR == code
}

// TestModuleBeginsAnewMeanwhile: calls that wait while the module begins anew do not use the handles they had before.
func TestModuleBeginsAnewMeanwhile(t *testing.T) {
	u := hsmtest.SoftHSM(t)
	if _, err := InitRoots(u); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, u)
	token.Keys(keyspec.P256)
	s, k, _ := keySession(t, token, keyspec.P256)
	audit, err := token.OpenAuditSession()
	if err != nil {
		t.Fatal(err)
	}
	closing, err := token.OpenAuditSession()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 64)
	results := map[string]chan error{"Use": make(chan error, 1), "Round": make(chan error, 1), "Sign": make(chan error, 1), "Close": make(chan error, 1)}
	other, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	token.mod.mu.Lock()
	go func() {
		_, err := s.Use(k, keyspec.P256, hsm.SignECDSA, make([]byte, 32), out)
		results["Use"] <- err
	}()
	go func() { results["Round"] <- other.Round(make([]byte, 16), make([]byte, 16), nil) }()
	go func() { _, err := audit.Sign([32]byte{1}); results["Sign"] <- err }()
	go func() { results["Close"] <- closing.Close() }()
	time.Sleep(100 * time.Millisecond) // for them to come to the lock; without it the test could only miss a fault
	token.handles.Add(1)
	token.generation.Add(1)
	token.mod.mu.Unlock()
	for name, code := range map[string]hsm.CKR{
		"Use": hsm.CKR_KEY_HANDLE_INVALID, "Round": hsm.CKR_SESSION_HANDLE_INVALID, "Sign": hsm.CKR_SESSION_HANDLE_INVALID,
	} {
		if err := <-results[name]; !isCKR(err, code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := <-results["Close"]; err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := token.mod.ctx.GetSessionInfo(closing.(*pairSession).handle); err != nil {
		t.Errorf("Close closed a session that may be another token's: %v", err)
	}
	if !bytes.Equal(out, make([]byte, 64)) {
		t.Error("Use left something in out")
	}
}

// TestResetAfterAnothers: a Reset that waited while another token's had the module begin anew connects its own token all the same.
func TestResetAfterAnothers(t *testing.T) {
	ua, ub := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	for _, u := range []string{ua, ub} {
		if _, err := InitRoots(u); err != nil {
			t.Fatal(err)
		}
	}
	a, b := mustOpen(t, ua), mustOpen(t, ub)
	b.mu.Lock()
	done := make(chan error, 1)
	go func() { done <- b.Reset() }()
	time.Sleep(100 * time.Millisecond) // for it to come to the lock
	err := errors.Join(a.mod.fns.finalize(), a.Reset())
	b.mu.Unlock()
	if err = errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	s, err := b.OpenSession()
	if err != nil {
		t.Fatalf("after a Reset without an error: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestRingOutdated: a ring whose session was opened while the generation ended is not kept.
func TestRingOutdated(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	if _, err := InitRoots(slow.URI()); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, slow.URI())
	wrapped, _, err := token.GenerateKey(keyspec.HMAC256)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Reset(); err != nil { // ends the ring
		t.Fatal(err)
	}
	setSlow(t, slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_OpenSession", Nth: 1, Hang: time.Second}}})
	done := make(chan error, 1)
	go func() { _, err := token.LoadKey(keyspec.HMAC256, wrapped); done <- err }()
	time.Sleep(300 * time.Millisecond) // for it to hang
	token.generation.Add(1)
	if err := <-done; !isCKR(err, hsm.CKR_SESSION_HANDLE_INVALID) {
		t.Error(err)
	}
	if token.ring.open {
		t.Error("the ring is kept")
	}
	if k, err := token.LoadKey(keyspec.HMAC256, wrapped); err != nil || k.Generation != token.Generation() {
		t.Errorf("%+v, %v", k, err)
	}
}

// stripping is a module whose shared secrets are as long as the session's number says.
const stripping = `
#include <string.h>
typedef unsigned long ul;
typedef struct { ul type; void *value; ul len; } attribute;
static ul no(void) { return 0x54; }
static ul derive(ul s, void *m, ul k, void *t, ul n, ul *h) { (void)s, (void)m, (void)k, (void)t, (void)n; *h = 7; return 0; }
static ul get(ul s, ul o, attribute *a, ul n) { (void)o, (void)n; memset(a->value, 0xab, s < a->len ? s : a->len); a->len = s; return 0; }
static ul destroy(ul s, ul o) { (void)s, (void)o; return 0; }
static struct { unsigned char version[2]; void *f[68]; } list;
ul C_GetFunctionList(void **l)
{
	for (int i = 0; i < 68; i++) list.f[i] = (void *)no;
	list.f[22] = (void *)destroy;
	list.f[24] = (void *)get;
	list.f[62] = (void *)derive;
	*l = &list;
	return 0;
}
`

// TestDeriveStripped: a secret without its leading zeros gets them back; an empty or too long one is none.
func TestDeriveStripped(t *testing.T) {
	dir := t.TempDir()
	source, module := filepath.Join(dir, "strip.c"), filepath.Join(dir, "strip.so")
	if err := os.WriteFile(source, []byte(stripping), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", module, source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := load(module)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []keyspec.Spec{keyspec.P256, keyspec.P384, keyspec.P521} {
		info := s.Info()
		n := (info.Bits + 7) / 8
		in := make([]byte, info.Public)
		in[0] = 4
		for _, length := range []int{n, n - 1, n - 2, 1} {
			out := bytes.Repeat([]byte{1}, info.Result)
			want := append(make([]byte, n-length), bytes.Repeat([]byte{0xab}, length)...)
			if got, err := f.operate(uint(length), 1, s, hsm.DeriveECDH, false, in, out, nil); err != nil || !bytes.Equal(out[:got], want) {
				t.Errorf("%v, %d bytes: %x, %v", s, length, out[:got], err)
			}
		}
		for _, length := range []int{0, n + 1} {
			out := bytes.Repeat([]byte{1}, info.Result)
			if _, err := f.operate(uint(length), 1, s, hsm.DeriveECDH, false, in, out, nil); err == nil || !bytes.Equal(out, make([]byte, len(out))) {
				t.Errorf("%v, %d bytes: %x, %v", s, length, out, err)
			}
		}
	}
}

// TestWrappedAsAnotherSpec: HMAC_224 and HMAC_256 keys are equally long when they are wrapped. A token that tells CKA_VALUE_LEN does not load one as
// the other; SoftHSM tells 0 (docs/hsm-modules.md).
func TestWrappedAsAnotherSpec(t *testing.T) {
	u := hsmtest.NSS(t)
	if _, err := InitRoots(u); err != nil {
		t.Fatal(err)
	}
	token := mustOpen(t, u)
	wrapped, _, err := token.GenerateKey(keyspec.HMAC224)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.LoadKey(keyspec.HMAC256, wrapped); !errors.Is(err, hsm.ErrKeyRefused) {
		t.Errorf("loaded as HMAC_256: %v", err)
	}
	if _, err := token.LoadKey(keyspec.HMAC224, wrapped); err != nil {
		t.Error(err)
	}
}
