package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/planetls"
)

// ca runs the command.
func ca(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(append([]string{"ca"}, args...), &out, &errs); got != want {
		t.Fatalf("keyplane ca %s: status %d, want %d\n%s%s", strings.Join(args, " "), got, want, &out, &errs)
	}
	return out.String(), errs.String()
}

// From a token to a handshake's files, by the commands alone.
func TestCA(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, token := range []string{"a", "b"} {
		if _, err := softtoken.Open(softtoken.Config{Dir: in(token), Create: true}); err != nil {
			t.Fatal(err)
		}
	}
	roots := in("ca.pem")
	if _, errs := ca(t, 1, "issue", "--soft-token", in("a"), "--ca", roots, "--role", "control", "--node", "c1", "--host", "c1", "--out", in("c1")); !strings.Contains(errs, "no such file") {
		t.Errorf("issue before init: %s", errs)
	}
	if out, _ := ca(t, 0, "init", "--soft-token", in("a"), "--ca", roots); !strings.Contains(out, "CA key        made") || !strings.Contains(out, "use           CA") {
		t.Errorf("init: %s", out)
	}
	first, err := os.ReadFile(roots)
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := ca(t, 0, "init", "--soft-token", in("a"), "--ca", roots); !strings.Contains(out, "CA key        was there") || !strings.Contains(out, "root          was there") {
		t.Errorf("a second init: %s", out)
	}
	if again, _ := os.ReadFile(roots); !bytes.Equal(first, again) {
		t.Error("a second init changed the file")
	}
	// Another token's root certificate, and another one of the first's, come beside it.
	ca(t, 0, "init", "--soft-token", in("b"), "--ca", roots)
	ca(t, 0, "init", "--soft-token", in("a"), "--ca", roots, "--renew")
	if out, _ := ca(t, 0, "show", roots); strings.Count(out, "keyplane CA") != 3 {
		t.Errorf("show: %s", out)
	}
	for _, token := range []string{"a", "b"} {
		out := in("of-" + token)
		text, _ := ca(t, 0, "issue", "--soft-token", in(token), "--ca", roots, "--role", "control", "--node", "c-"+token, "--host", "c1.example", "--host", "127.0.0.1", "--out", out)
		if !strings.Contains(text, "keyplane://control/c-"+token) || !strings.Contains(text, "c1.example, 127.0.0.1") || strings.Contains(text, "PRIVATE") {
			t.Errorf("issue: %s", text)
		}
		if _, err := planetls.Server(filesIn(out), "data"); err != nil {
			t.Error(err)
		}
		for _, name := range []string{"cert.pem", "key.pem", "ca.pem"} {
			if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	before, err := os.ReadFile(filepath.Join(in("of-a"), "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issue := []string{"issue", "--soft-token", in("a"), "--ca", roots, "--role", "data", "--node", "d1", "--days", "30", "--out", in("of-a")}
	if _, errs := ca(t, 1, issue...); !strings.Contains(errs, "--replace") {
		t.Errorf("over what is there: %s", errs)
	}
	if now, _ := os.ReadFile(filepath.Join(in("of-a"), "cert.pem")); !bytes.Equal(before, now) {
		t.Error("the certificate was replaced")
	}
	ca(t, 0, append(issue, "--replace")...)
	if s, err := planetls.Open(filesIn(in("of-a")), nil); err != nil {
		t.Error(err)
	} else if role, id := s.Name(); role != "data" || id != "d1" {
		t.Errorf("%s %s", role, id)
	}
	if _, errs := ca(t, 1, "renew", "--dir", in("of-a"), "--control", "https://127.0.0.1:1"); !strings.Contains(errs, "refused") {
		t.Errorf("renew at nobody: %s", errs)
	}
}

func TestCAUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"revoke"}, {"init"}, {"init", "--soft-token", "a"}, {"init", "--soft-token", "a", "--hsm", "b", "--ca", "c"}, {"init", "--hsm", "b", "--pin-file", "p", "--ca", "c"},
		{"init", "--soft-token", "a", "--ca", "c", "--years", "0"}, {"init", "--soft-token", "a", "--ca", "c", "more"}, {"show"}, {"renew"},
		{"issue", "--soft-token", "a", "--ca", "c"}, {"issue", "--soft-token", "a", "--ca", "c", "--out", "o", "--hours", "1", "--days", "1"},
		{"issue", "--soft-token", "a", "--ca", "c", "--out", "o", "--hours", "-1"},
	} {
		ca(t, 2, args...)
	}
	if out, _ := ca(t, 0, "--help"); !strings.Contains(out, "keyplane ca init") {
		t.Error(out)
	}
}
