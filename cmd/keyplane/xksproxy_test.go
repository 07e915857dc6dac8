package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/xks"
)

// TestXKSCredential: what it makes is a credential as the API wants one, in files of this user's, and is printed nowhere.
func TestXKSCredential(t *testing.T) {
	dir := t.TempDir()
	secretFile, consoleFile := filepath.Join(dir, "secret"), filepath.Join(dir, "console.json")
	var stdout, stderr bytes.Buffer
	args := []string{"xks-proxy", "credential", "--path", "/team-a", "--secret-file", secretFile, "--console-file", consoleFile}
	if status := run(args, &stdout, &stderr); status != 0 {
		t.Fatalf("%d %s", status, &stderr)
	}
	id := strings.TrimSuffix(stdout.String(), "\n")
	b, err := os.ReadFile(secretFile)
	secret := strings.TrimSuffix(string(b), "\n")
	if err != nil || !xks.ValidAccessKeyID(id) || !xks.ValidSecret(secret) || strings.Contains(stdout.String()+stderr.String(), secret) {
		t.Errorf("ID %q, a secret of %d bytes: %v", id, len(secret), err)
	}
	var console struct {
		XksProxyUriPath                  string
		XksProxyAuthenticationCredential struct{ AccessKeyId, RawSecretAccessKey string }
	}
	text, err := os.ReadFile(consoleFile)
	if err != nil || json.Unmarshal(text, &console) != nil || console.XksProxyUriPath != "/team-a/kms/xks/v1" ||
		console.XksProxyAuthenticationCredential.AccessKeyId != id || console.XksProxyAuthenticationCredential.RawSecretAccessKey != secret {
		t.Errorf("%s: %v", text, err)
	}
	for _, file := range []string{secretFile, consoleFile} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", file, info.Mode(), err)
		}
	}
	if status := run(args, &stdout, &stderr); status != 1 {
		t.Error("a secret is written over another")
	}
	// A secret whose ID nobody knows is not left behind.
	again := filepath.Join(dir, "again")
	args[5] = again
	if status := run(args, &stdout, &stderr); status != 1 {
		t.Error("the console's file is written over another")
	}
	if _, err := os.Stat(again); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the secret of no ID: %v", err)
	}
}
