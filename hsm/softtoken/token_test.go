package softtoken

import (
	"bytes"
	"crypto/aes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/secret"
)

// cheap is the tests' number of iterations.
const cheap = 1000

func mustOpen(t testing.TB, cfg Config) *Token {
	t.Helper()
	token, err := open(cfg, cheap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { token.Close() })
	return token
}

// fresh makes a token and returns its directory.
func fresh(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "token")
	mustOpen(t, Config{Dir: dir, Create: true})
	return dir
}

func TestConformance(t *testing.T) {
	dir := fresh(t)
	hsmtest.TestToken(t, func(t testing.TB) hsm.Token { return mustOpen(t, Config{Dir: dir}) })
}

// TestConformanceFaulty: without faults, the faulty token is a good one.
func TestConformanceFaulty(t *testing.T) {
	dir := fresh(t)
	hsmtest.TestToken(t, func(t testing.TB) hsm.Token { return hsmtest.NewFaulty(mustOpen(t, Config{Dir: dir})) })
}

func TestKnownAnswer(t *testing.T) {
	dir := fresh(t)
	token := mustOpen(t, Config{Dir: dir})
	f, err := read(dir, cheap)
	if err != nil {
		t.Fatal(err)
	}
	pin, err := hsm.ReadPIN(filepath.Join(dir, "pin"))
	if err != nil {
		t.Fatal(err)
	}
	roots, err := f.open(pin)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(roots[:32])
	if err != nil {
		t.Fatal(err)
	}
	in := bytes.Repeat([]byte("0123456789abcdefFEDCBA9876543210"), 5)
	want := make([]byte, len(in))
	for i := 0; i < len(in); i += 16 {
		block.Encrypt(want[i:], in[i:])
	}
	s, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(in))
	if err := s.Round(in, out, nil); err != nil || !bytes.Equal(out, want) {
		t.Errorf("round under R: %x, %v, want %x", out, err, want)
	}
	if bytes.Equal(roots[:32], roots[32:]) {
		t.Error("the two roots are one")
	}
}

func TestRealCost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "token")
	if _, err := Open(Config{Dir: dir}); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("no token and no Create: %v", err)
	}
	token, err := Open(Config{Dir: dir, Create: true, Label: strings.Repeat("l", labelMax)})
	if err != nil {
		t.Fatal(err)
	}
	token.Close()
	for name, mode := range map[string]os.FileMode{"": 0o700, "token.json": 0o600, "pin": 0o600} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
	f, err := read(dir, iterations)
	if err != nil || f.Iterations != iterations {
		t.Errorf("iterations: %+v, %v", f, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*.new-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := open(Config{Dir: dir + "2", Create: true, Label: strings.Repeat("l", labelMax+1)}, cheap); err == nil {
		t.Error("a label over the limit was accepted")
	}
	// A token sealed more cheaply than this build seals is refused.
	if _, err := Open(Config{Dir: fresh(t)}); err == nil || !strings.Contains(err.Error(), "1000 iterations") {
		t.Errorf("cheap token: %v", err)
	}
}

func TestWrongPIN(t *testing.T) {
	dir := fresh(t)
	other := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(other, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(Config{Dir: dir, PINFile: other}, cheap); !errors.Is(err, hsm.ErrPIN) {
		t.Errorf("wrong PIN: %v", err)
	}
}

func TestPermissions(t *testing.T) {
	for _, test := range []struct {
		name string
		mode os.FileMode
		want string
	}{
		{"", 0o750, "want 0700"}, {"", 0o701, "want 0700"}, {"token.json", 0o640, "want 0600"}, {"pin", 0o604, "want 0600"},
	} {
		dir := fresh(t)
		if err := os.Chmod(filepath.Join(dir, test.name), test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := open(Config{Dir: dir, Create: true}, cheap); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q with %o: %v", test.name, test.mode, err)
		}
	}
}

// TestTampering: every field is bound to the sealed roots, and a file this version did not write is refused before the PIN is used.
func TestTampering(t *testing.T) {
	dir := fresh(t)
	path := filepath.Join(dir, fileName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*file){
		"version":    func(f *file) { f.Version = 3 },
		"old":        func(f *file) { f.Version = 1 },
		"label":      func(f *file) { f.Label += "x" },
		"serial":     func(f *file) { f.Serial = strings.Repeat("0", serialLen) },
		"long label": func(f *file) { f.Label = strings.Repeat("l", labelMax+1) },
		"kdf":        func(f *file) { f.KDF = "none" },
		"cheaper":    func(f *file) { f.Iterations-- },
		"dearer":     func(f *file) { f.Iterations++ },
		"endless":    func(f *file) { f.Iterations = iterationsMax + 1 },
		"salt":       func(f *file) { f.Salt[0] ^= 1 },
		"short salt": func(f *file) { f.Salt = f.Salt[1:] },
		"nonce":      func(f *file) { f.Nonce[0] ^= 1 },
		"sealed":     func(f *file) { f.Sealed[70] ^= 1 },
		"truncated":  func(f *file) { f.Sealed = f.Sealed[:111] },
	} {
		var f file
		if err := json.Unmarshal(good, &f); err != nil {
			t.Fatal(err)
		}
		change(&f)
		b, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(Config{Dir: dir, Create: true}, cheap); err == nil {
			t.Errorf("%s changed: opened", name)
		}
	}
	if err := os.WriteFile(path, append(good, bytes.Repeat([]byte(" "), fileMax)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(Config{Dir: dir}, cheap); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("a file over the limit: %v", err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Config{Dir: dir})
}

// TestInterruptedCreate: a PIN without a token, which is what a crash between the two leaves, is used and not replaced.
func TestInterruptedCreate(t *testing.T) {
	dir := fresh(t)
	pin, err := os.ReadFile(filepath.Join(dir, pinName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, fileName)); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, Config{Dir: dir, Create: true})
	if again, _ := os.ReadFile(filepath.Join(dir, pinName)); !bytes.Equal(again, pin) {
		t.Error("the PIN was replaced")
	}
}

// TestCreateRace: of many first starts one makes the token and all open that one.
func TestCreateRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "token")
	ids := make([]hsm.RootID, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			token, err := open(Config{Dir: dir, Create: true}, cheap)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = token.id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several tokens: %x", ids)
		}
	}
}

func FuzzTokenFile(f *testing.F) {
	pin := secret.New([]byte("pin"))
	good, err := newFile("l", pin, nil, cheap)
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(good)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"iterations":-1}`))
	f.Add([]byte(`{"version":1,"kdf":"PBKDF2-HMAC-SHA-256","iterations":600000,"salt":"AA==","nonce":null,"sealed":""}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b, cheap)
		if err != nil {
			return
		}
		if p.Iterations > 2*cheap {
			p.Iterations = 2 * cheap // keeps an execution short
		}
		keys, err := p.open(pin)
		if err == nil && len(keys) != p.keysLen() {
			t.Fatalf("%d bytes of keys", len(keys))
		}
	})
}
