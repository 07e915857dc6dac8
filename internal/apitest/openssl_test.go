package apitest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// openssl is the openssl program, for a second opinion: files to give it, and its runs counted.
type openssl struct {
	path, dir string
	runs      int
}

// newOpenSSL skips nothing: where there is no openssl, the tests that ask for it fail.
func newOpenSSL(t *testing.T) *openssl {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal(err)
	}
	return &openssl{path: path, dir: t.TempDir()}
}

// file writes a file for openssl and returns its path.
func (o *openssl) file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs it and returns what it prints. It must succeed.
func (o *openssl) run(t *testing.T, args ...string) []byte {
	t.Helper()
	o.runs++
	cmd := exec.Command(o.path, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("openssl %v: %v\n%s%s", args, err, out, stderr.Bytes())
	}
	return out
}
