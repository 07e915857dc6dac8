package softtoken

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

// A token of any version gets a CA key and stays what it was otherwise.
func TestInitCA(t *testing.T) {
	for _, old := range []int{1, 2} {
		dir := fresh(t)
		if old == 1 {
			older(t, dir)
		}
		before := mustOpen(t, Config{Dir: dir})
		if _, err := hsm.OpenCAKey([]hsm.Token{before}, nil, time.Minute); !errors.Is(err, hsm.ErrNoCAKey) {
			t.Errorf("version %d, before: %v", old, err)
		}
		if made, err := initCA(Config{Dir: dir}, cheap); err != nil || !made {
			t.Fatalf("version %d: made %v, %v", old, made, err)
		}
		if made, err := initCA(Config{Dir: dir}, cheap); err != nil || made {
			t.Errorf("version %d, again: made %v, %v", old, made, err)
		}
		after := mustOpen(t, Config{Dir: dir, Create: true})
		if after.id != before.id || after.info != before.info {
			t.Errorf("version %d: another token", old)
		}
		if old == 2 && !auditPublic(t, after).Equal(auditPublic(t, before)) {
			t.Error("another audit key")
		}
		key, err := hsm.OpenCAKey([]hsm.Token{after}, nil, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if key.Public().Equal(auditPublic(t, after)) {
			t.Error("the CA key is the audit key")
		}
		if _, err := key.Sign(make([]byte, 32)); err != nil {
			t.Error(err)
		}
		key.Close()
	}
	if _, err := initCA(Config{Dir: filepath.Join(t.TempDir(), "none")}, cheap); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a token: %v", err)
	}
	dir := fresh(t)
	if err := os.WriteFile(filepath.Join(dir, pinName), []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := initCA(Config{Dir: dir}, cheap); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong PIN: %v", err)
	}
}
