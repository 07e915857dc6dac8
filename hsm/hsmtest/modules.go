package hsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/internal/pkcs11uri"
)

// Where Debian has the modules.
const (
	softHSMModule = "/usr/lib/softhsm/libsofthsm2.so"
	nssModule     = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so"
)

// PIN is the user PIN of the tokens made here.
const PIN = "keyplane-test-pin"

// A module that is initialised does not see the tokens that softhsm2-util makes until it is initialised again, which is when a test has
// closed all its tokens. So they are made ahead, in batches, and the next batch while there is still a stock of older ones: a test may use
// that many at once.
const (
	softHSMBatch = 12
	softHSMStock = 6
)

// pool is the process's directory of SoftHSM tokens: its configuration is read once per C_Initialize and so is the process's.
var pool struct {
	mu    sync.Mutex
	dir   string // "" before Main
	made  int
	taken int
}

// Runner runs the tests of a process: a *testing.M, or what a package does around it.
type Runner interface{ Run() int }

// Main is for TestMain: it gives the process a SoftHSM configuration of its own, runs the tests, removes everything and exits.
func Main(m Runner) {
	code := run(m)
	os.Exit(code)
}

func run(m Runner) int {
	dir, err := os.MkdirTemp("", "keyplane-softhsm-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = configure(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hsmtest:", err)
		return 1
	}
	pool.dir = dir
	return m.Run()
}

func configure(dir string) error {
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return err
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "pin"), []byte(PIN+"\n"), 0o600); err != nil {
		return err
	}
	return os.Setenv("SOFTHSM2_CONF", conf)
}

// SoftHSM makes a fresh SoftHSM token without keys and returns its URI.
func SoftHSM(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat(softHSMModule); err != nil {
		t.Fatalf("SoftHSM is missing (%v): run make deps", err)
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	if pool.dir == "" {
		t.Fatal("hsmtest.Main was not called from TestMain")
	}
	if pool.made-pool.taken < softHSMStock {
		for range softHSMBatch {
			label := fmt.Sprintf("test-%d", pool.made)
			command(t, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", PIN+"-so")
			pool.made++
		}
	}
	u := pkcs11uri.URI{
		Path:  []pkcs11uri.Attr{{Name: "token", Value: fmt.Sprintf("test-%d", pool.taken)}},
		Query: []pkcs11uri.Attr{{Name: "module-path", Value: softHSMModule}, {Name: "pin-source", Value: "file:" + filepath.Join(pool.dir, "pin")}},
	}
	pool.taken++
	return u.String()
}

// NSS makes a fresh NSS database without keys and returns its token's URI. The module has one database at a time per process: a test
// closes its token before another one opens the next.
func NSS(t testing.TB) string {
	t.Helper()
	if _, err := os.Stat(nssModule); err != nil {
		t.Fatalf("NSS softokn is missing (%v): run make deps", err)
	}
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	if err := os.WriteFile(pin, []byte(PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "certutil", "-N", "-d", "sql:"+dir, "-f", pin)
	u := pkcs11uri.URI{
		Path: []pkcs11uri.Attr{{Name: "token", Value: "NSS Certificate DB"}},
		Query: []pkcs11uri.Attr{
			{Name: "module-path", Value: nssModule},
			{Name: "pin-source", Value: "file:" + pin},
			{Name: "x-init-args", Value: "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="},
		},
	}
	return u.String()
}

func command(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v (if it is missing: run make deps)\n%s", name, err, out)
	}
}
