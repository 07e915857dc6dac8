package blob_test

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func sampleOuter() blob.Outer {
	return blob.Outer{IV: bytes.Repeat([]byte{0xa1}, 12), Tag: bytes.Repeat([]byte{0xb2}, 16), Metadata: []byte("key_version=1"), Ciphertext: bytes.Repeat([]byte{0xc3}, 17)}
}

// The layout of docs/ciphertext.md §7 by hand.
func TestOuterLayout(t *testing.T) {
	h, o := sampleHeader(), sampleOuter()
	h.Suite = blob.SuiteExternal
	want, err := hex.DecodeString(golden[:2] + "03" + golden[4:] + "0c" + strings.Repeat("a1", 12) + strings.Repeat("b2", 16) +
		"0d" + hex.EncodeToString([]byte("key_version=1")) + strings.Repeat("c3", 17))
	if err != nil {
		t.Fatal(err)
	}
	b := o.Append(h.Append([]byte("before")))[len("before"):]
	if !bytes.Equal(b, want) {
		t.Errorf("blob %x, want %x", b, want)
	}
	h2 := sampleHeader()
	rest, ok := blob.Parse(b, &h2)
	var p blob.Outer
	if !ok || h2 != h || !blob.ParseOuter(rest, &p) {
		t.Fatalf("%t %+v", ok, h2)
	}
	for name, pair := range map[string][2][]byte{"IV": {p.IV, o.IV}, "tag": {p.Tag, o.Tag}, "metadata": {p.Metadata, o.Metadata}, "ciphertext": {p.Ciphertext, o.Ciphertext}} {
		if !bytes.Equal(pair[0], pair[1]) {
			t.Errorf("%s %x, want %x", name, pair[0], pair[1])
		}
	}
}

func TestOuterLengths(t *testing.T) {
	h := sampleHeader()
	h.Suite = blob.SuiteExternal
	shortest, longest := 1<<20, 0
	for _, iv := range []int{0, 11, 12, 13, 15, 16, 17} {
		for _, tag := range []int{0, 15, 16, 17} {
			for _, metadata := range []int{0, 1, 20, 21} {
				for _, n := range []int{0, 16, 17, 48, 4112, 4113} {
					o := blob.Outer{IV: make([]byte, iv), Tag: make([]byte, tag), Metadata: make([]byte, metadata), Ciphertext: make([]byte, n)}
					want := (iv == 12 || iv == 16) && tag == 16 && metadata <= 20 && n >= 17 && n <= 4112
					if o.Valid() != want {
						t.Errorf("%d, %d, %d, %d: %t", iv, tag, metadata, n, !want)
					}
					if !want {
						continue
					}
					b := o.Append(h.Append(nil))
					shortest, longest = min(shortest, len(b)), max(longest, len(b))
					got := sampleHeader()
					if rest, ok := blob.Parse(b, &got); !ok || got != h || len(rest) != len(b)-blob.HeaderLen {
						t.Errorf("%d, %d, %d, %d: does not parse", iv, tag, metadata, n)
					}
				}
			}
		}
	}
	if bounds := [2]int{blob.ExternalLenMin, blob.ExternalLenMax}; bounds != [2]int{shortest, longest} || bounds != [2]int{116, 4235} || longest > kmsapi.CiphertextBlobMax {
		t.Errorf("a blob is %d to %d bytes", shortest, longest)
	}
}

// What has another layout is refused, and changes neither the header nor the Outer.
func TestOuterRefuses(t *testing.T) {
	h, o := sampleHeader(), sampleOuter()
	h.Suite = blob.SuiteExternal
	good := o.Append(nil)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, b := range map[string][]byte{
		"IV of 0":            change(func(b []byte) []byte { b[0] = 0; return b }),
		"IV of 11":           change(func(b []byte) []byte { b[0] = 11; return b }),
		"IV of 13":           change(func(b []byte) []byte { b[0] = 13; return b }),
		"IV beyond the end":  change(func(b []byte) []byte { b[0] = 255; return b }),
		"metadata of 21":     change(func(b []byte) []byte { b[29] = 21; return append(b, make([]byte, 20)...) }),
		"metadata beyond":    change(func(b []byte) []byte { b[29] = 20; return b[:45] }),
		"metadata takes all": change(func(b []byte) []byte { b[29] = 20; return b[:50] }),
		"a byte less":        change(func(b []byte) []byte { return b[:len(b)-1] }),
		"a long ciphertext":  change(func(b []byte) []byte { return append(b, make([]byte, 4112-17+1)...) }),
	} {
		var p blob.Outer
		if blob.ParseOuter(b, &p) || p.IV != nil || p.Ciphertext != nil {
			t.Errorf("%s is accepted", name)
		}
		got := sampleHeader()
		if rest, ok := blob.Parse(append(h.Append(nil), b...), &got); ok || rest != nil || got != sampleHeader() {
			t.Errorf("%s: the blob is accepted", name)
		}
	}
	for n := range len(good) {
		if blob.ParseOuter(good[:n], new(blob.Outer)) {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("an Outer without encoding is appended")
		}
	}()
	o.Tag = nil
	o.Append(nil)
}
