package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm/softtoken"
)

func TestCloneSoftToken(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if _, err := softtoken.Open(softtoken.Config{Dir: from, Create: true}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"roots         copied", "roots         was there"} {
		var out, errs bytes.Buffer
		if got := run([]string{"hsm", "clone", "--from-soft-token", from, "--to-soft-token", to}, &out, &errs); got != 0 || !strings.Contains(out.String(), want) {
			t.Fatalf("status %d\n%s%s", got, &out, &errs)
		}
	}
	var out, errs bytes.Buffer
	if got := run([]string{"hsm", "clone", "--from-soft-token", filepath.Join(dir, "c"), "--to-soft-token", to}, &out, &errs); got != 1 {
		t.Errorf("without a source: status %d", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "c")); err == nil {
		t.Error("a source was made")
	}
}

func TestCloneUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"--from", "a"}, {"--from", "a", "--to", "b"}, {"--from", "a", "--to", "b", "--so-pin-file", "c", "--to-soft-token", "d"},
		{"--from-soft-token", "a"}, {"--from-soft-token", "a", "--to-soft-token", "b", "--so-pin-file", "c"}, {"--from-soft-token", "a", "--to-soft-token", "b", "c"},
		{"--so-pin", "1234"},
	} {
		var out, errs bytes.Buffer
		if got := run(append([]string{"hsm", "clone"}, args...), &out, &errs); got != 2 || !strings.Contains(errs.String(), "usage: keyplane hsm clone") {
			t.Errorf("%v: status %d\n%s", args, got, &errs)
		}
	}
}
