package authztest

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "write the golden cases")

// TestGoldenFiles checks that the files of golden cases are what the tables say.
func TestGoldenFiles(t *testing.T) {
	const dir = "../testdata/golden"
	var names []string
	for _, f := range Families() {
		names = append(names, f.Name+".jsonl.gz")
		file := filepath.Join(dir, f.Name+".jsonl.gz")
		want := f.Lines()
		if *update {
			var b bytes.Buffer
			w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
			if err != nil {
				t.Fatal(err)
			}
			w.Write(want)
			w.Close()
			if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		r, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		z, err := gzip.NewReader(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what the tables say: go test ./internal/authz/authztest -run Golden -update", file)
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(names, filepath.Base(f)) {
			t.Errorf("%s belongs to no family", f)
		}
	}
}

// TestReferenceGolden asks the naive evaluator the golden cases.
func TestReferenceGolden(t *testing.T) {
	for _, f := range Families() {
		seen := map[string]bool{}
		for i := range f.Cases {
			c := &f.Cases[i]
			if seen[c.Name] {
				t.Errorf("%s: two cases are named %s", f.Name, c.Name)
			}
			seen[c.Name] = true
			got := Malformed
			ref, err := NewReference(&c.World)
			if err == nil && c.KeyPolicy != nil {
				err = duplicates(c.KeyPolicy)
			}
			var v Verdict
			if err == nil {
				v = ref.Decide(&c.Request)
				got = allowIf(v.Allow)
			}
			if got != c.Want {
				t.Errorf("%s: %s: %s (%v %v), want %s", f.Name, c.Name, got, v.Reasons, err, c.Want)
			}
			if c.Reason != "" && !slices.Contains(v.Reasons, c.Reason) {
				t.Errorf("%s: %s: reasons %v, want %s", f.Name, c.Name, v.Reasons, c.Reason)
			}
		}
	}
}
