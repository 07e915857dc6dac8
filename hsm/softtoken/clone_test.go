package softtoken

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// What one token wraps its clone unwraps, under another PIN, with another serial and audit key.
func TestClone(t *testing.T) {
	for _, version := range []int{1, 2, 3} {
		from, to := fresh(t), filepath.Join(t.TempDir(), "clone")
		switch version {
		case 1:
			older(t, from)
		case 3:
			if _, err := initCA(Config{Dir: from}, cheap); err != nil {
				t.Fatal(err)
			}
		}
		source := mustOpen(t, Config{Dir: from})
		root, copied, err := cloneAt(Config{Dir: from}, Config{Dir: to}, cheap)
		if err != nil || !copied || root != source.id {
			t.Fatalf("version %d: %x, copied %v, %v", version, root, copied, err)
		}
		clone := mustOpen(t, Config{Dir: to})
		if clone.id != source.id || clone.info.Serial == source.info.Serial || clone.ca != nil {
			t.Errorf("version %d: %+v", version, clone.info)
		}
		if version > 1 && auditPublic(t, clone).Equal(auditPublic(t, source)) {
			t.Error("the audit key is the source's")
		}
		if bytes.Equal(mustRead(t, filepath.Join(from, pinName)), mustRead(t, filepath.Join(to, pinName))) {
			t.Error("the PIN is the source's")
		}
		wrapped, public, err := source.GenerateKey(keyspec.P256)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := clone.LoadKey(keyspec.P256, wrapped); err != nil || len(public) == 0 {
			t.Errorf("a key of the source: %v", err)
		}
		before := mustRead(t, filepath.Join(to, fileName))
		if _, copied, err := cloneAt(Config{Dir: from}, Config{Dir: to}, cheap); err != nil || copied {
			t.Errorf("again: copied %v, %v", copied, err)
		}
		if !bytes.Equal(before, mustRead(t, filepath.Join(to, fileName))) {
			t.Error("a second clone changed the file")
		}
	}
}

func TestCloneRefused(t *testing.T) {
	from, other := fresh(t), fresh(t)
	before := mustRead(t, filepath.Join(other, fileName))
	if _, _, err := cloneAt(Config{Dir: from}, Config{Dir: other}, cheap); !errors.Is(err, ErrOtherRoot) {
		t.Errorf("another root: %v", err)
	}
	if !bytes.Equal(before, mustRead(t, filepath.Join(other, fileName))) {
		t.Error("the target was changed")
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, _, err := cloneAt(Config{Dir: none}, Config{Dir: none + "2"}, cheap); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no source: %v", err)
	}
	wrong := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(wrong, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := cloneAt(Config{Dir: from, PINFile: wrong}, Config{Dir: none}, cheap); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong PIN: %v", err)
	}
	if _, err := os.Stat(none); !errors.Is(err, os.ErrNotExist) {
		t.Error("a target was made")
	}
}
