package softtoken

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
)

// older turns a token's file into one of version 1, which has no audit key, and returns the file.
func older(t testing.TB, dir string) []byte {
	t.Helper()
	f, err := read(dir, cheap)
	if err != nil {
		t.Fatal(err)
	}
	pin, err := hsm.ReadPIN(filepath.Join(dir, pinName))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := f.open(pin)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := f.gcm(pin)
	if err != nil {
		t.Fatal(err)
	}
	f.Version, f.Nonce[0] = 1, f.Nonce[0]^1
	f.Sealed = gcm.Seal(nil, f.Nonce, keys[:2*rootLen], f.aad())
	b, err := f.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, fileName), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return b
}

func auditPublic(t testing.TB, token *Token) *ecdsa.PublicKey {
	t.Helper()
	s, err := token.OpenAuditSession()
	if err != nil {
		t.Fatal(err)
	}
	return s.Public()
}

// A file without an audit key opens as it is; with Create it gets one, and stays the same token.
func TestUpgrade(t *testing.T) {
	dir := fresh(t)
	path := filepath.Join(dir, fileName)
	before := older(t, dir)
	token := mustOpen(t, Config{Dir: dir})
	if _, err := token.OpenAuditSession(); !errors.Is(err, hsm.ErrNoAuditKey) {
		t.Errorf("version 1: %v", err)
	}
	if now, _ := os.ReadFile(path); string(now) != string(before) {
		t.Error("opening without Create changed the file")
	}
	upgraded := mustOpen(t, Config{Dir: dir, Create: true})
	if upgraded.id != token.id || upgraded.info != token.info {
		t.Errorf("another token: %+v, was %+v", upgraded.info, token.info)
	}
	public := auditPublic(t, upgraded)
	if again := mustOpen(t, Config{Dir: dir, Create: true}); !auditPublic(t, again).Equal(public) {
		t.Error("a second start made another audit key")
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// The two versions are kept apart: neither opens under the other's number.
	for _, b := range [][]byte{before, mustRead(t, path)} {
		var f file
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		f.Version = 3 - f.Version
		if f.check(cheap) == nil {
			t.Errorf("keys of version %d under number %d", 3-f.Version, f.Version)
		}
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Without the right PIN nothing is replaced.
func TestUpgradeWrongPIN(t *testing.T) {
	dir := fresh(t)
	before := older(t, dir)
	if err := os.WriteFile(filepath.Join(dir, pinName), []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(Config{Dir: dir, Create: true}, cheap); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong PIN: %v", err)
	}
	if now := mustRead(t, filepath.Join(dir, fileName)); string(now) != string(before) {
		t.Error("the file was replaced")
	}
}

// Of many starts at once one makes the audit key and all have that one.
func TestUpgradeRace(t *testing.T) {
	dir := fresh(t)
	older(t, dir)
	tokens := make([]*Token, 8)
	var wg sync.WaitGroup
	for i := range tokens {
		wg.Go(func() {
			var err error
			if tokens[i], err = open(Config{Dir: dir, Create: true}, cheap); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, token := range tokens {
		if token != nil && !auditPublic(t, token).Equal(auditPublic(t, tokens[0])) {
			t.Fatal("several audit keys")
		}
	}
}
