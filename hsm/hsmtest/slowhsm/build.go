package slowhsm

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

//go:embed module/slow.c
var source []byte

const moduleName = "libslowhsm.so"

// flags are what the module is compiled with; sanitisers come on top in tests.
var flags = []string{"-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"}

// BuildAt compiles the module into dir and returns its path. The compiler is $CC, or cc.
func BuildAt(dir string) (string, error) { return compile(dir, flags...) }

func compile(dir string, flags ...string) (string, error) {
	compiler := strings.Fields(os.Getenv("CC"))
	if len(compiler) == 0 {
		compiler = []string{"cc"}
	}
	path, err := filepath.Abs(filepath.Join(dir, moduleName))
	if err != nil {
		return "", err
	}
	args := append(compiler[1:], flags...)
	args = append(args, "-o", path, "-x", "c", "-", "-ldl", "-lpthread")
	cmd := exec.Command(compiler[0], args...)
	cmd.Stdin = bytes.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("slowhsm: %s: %w\n%s", compiler[0], err, out)
	}
	// Modules that others may write are refused, and the umask may allow it.
	if err := os.Chmod(path, 0o755); err != nil {
		return "", err
	}
	return path, nil
}

// built is the module, compiled once per process.
var built = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "keyplane-slowhsm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path, err := BuildAt(dir)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// Build puts the module into a directory of the test and returns its path. Every path is a module of its own, which reads the environment
// when it is opened first.
func Build(t testing.TB) string {
	t.Helper()
	b, err := built()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), moduleName)
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	// The umask takes bits away only, so that nobody else can write.
	return path
}
