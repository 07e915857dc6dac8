// Package wycheproof reads the vectors of Project Wycheproof for the tests of several packages. The files are in testdata and part of the test
// binaries. What an "acceptable" case has to give is decided by the test, and written down there.
package wycheproof

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io"
	"testing"
)

//go:embed testdata/*.gz
var files embed.FS

// Group is one group of cases: its parameters, in a struct P of the test's, and its cases, each a struct C that embeds Case.
type Group[P, C any] struct {
	Parameters P
	Tests      []C
}

func (g *Group[P, C]) UnmarshalJSON(b []byte) error {
	var tests struct {
		Tests []C `json:"tests"`
	}
	if err := json.Unmarshal(b, &tests); err != nil {
		return err
	}
	g.Tests = tests.Tests
	return json.Unmarshal(b, &g.Parameters)
}

// Case is what all cases have.
type Case struct {
	ID      int      `json:"tcId"`
	Comment string   `json:"comment"`
	Flags   []string `json:"flags"`
	Result  string   `json:"result"` // valid, invalid or acceptable
}

// Valid says whether the case is valid. An acceptable one is not.
func (c Case) Valid() bool { return c.Result == "valid" }

// Bytes are written as hexadecimal digits.
type Bytes []byte

// UnmarshalText reads the digits.
func (b *Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.AppendDecode([]byte{}, text)
	return err
}

// Load is the groups of a file, named without "_test.json.gz". It fails the test unless the file has as many cases as it says it has.
func Load[P, C any](t testing.TB, name string) []Group[P, C] {
	t.Helper()
	var f struct {
		Count  int           `json:"numberOfTests"`
		Groups []Group[P, C] `json:"testGroups"`
	}
	if err := json.Unmarshal(read(t, name+"_test.json.gz"), &f); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	n := 0
	for _, g := range f.Groups {
		n += len(g.Tests)
	}
	if n != f.Count || n == 0 {
		t.Fatalf("%s: %d cases read, and it says %d", name, n, f.Count)
	}
	return f.Groups
}

// EdwardsCase is an edge case of Ed25519 of CCTV: Flags say what is odd about the points, not whether the signature is to be taken.
type EdwardsCase struct {
	Number int      `json:"number"`
	Key    Bytes    `json:"key"`
	Sig    Bytes    `json:"sig"`
	Msg    string   `json:"msg"`
	Flags  []string `json:"flags"`
}

// LoadEdwards is those cases.
func LoadEdwards(t testing.TB) []EdwardsCase {
	t.Helper()
	var all []EdwardsCase
	if err := json.Unmarshal(read(t, "cctv_ed25519.json.gz"), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	packed, err := files.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return b
}
