package backup

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
)

var manifest = Manifest{
	Store: "00112233445566778899aabbccddeeff", Epoch: 2, EpochName: "0123456789abcdef", Revision: 77, Time: time.Date(2026, 11, 27, 1, 2, 3, 0, time.UTC), Tombstones: 1, LeftOut: 3,
	Tokens: []string{"0102030405060708", "1112131415161718"},
}

func keys(t testing.TB, name string) (note.Signer, note.Verifier) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	return s, v
}

func write(t testing.TB, s note.Signer, n, size int) ([]byte, Manifest) {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for i := range n {
		if err := w.Add(fmt.Sprintf("/k/%06d", i), bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := w.Close(manifest, s)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), m
}

func TestRoundTrip(t *testing.T) {
	s, v := keys(t, "name")
	for _, c := range [][2]int{{1, 0}, {1, valueMax}, {3, valueMax}, {1000, 1000}, {5, 10}} {
		b, m := write(t, s, c[0], c[1])
		i := 0
		got, err := Read(bytes.NewReader(b), v, func(key string, value []byte) error {
			if key != fmt.Sprintf("/k/%06d", i) || !bytes.Equal(value, bytes.Repeat([]byte{byte(i), byte(i >> 8)}, c[1]/2)) {
				t.Errorf("%s has %d bytes", key, len(value))
			}
			i++
			return nil
		})
		if err != nil || !reflect.DeepEqual(got, m) || i != c[0] || got.Values != int64(c[0]) {
			t.Errorf("%v: %d, %+v, want %+v: %v", c, i, got, m, err)
		}
		if got, err = Unverified(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v %v", got, err)
		}
		if names, err := Signers(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(names, []string{"name"}) {
			t.Error(names, err)
		}
	}
	refusal := errors.New("no")
	b, _ := write(t, s, 2, 2)
	if _, err := Read(bytes.NewReader(b), v, func(string, []byte) error { return refusal }); err != refusal {
		t.Error(err)
	}
	if _, err := NewWriter(&bytes.Buffer{}).Close(manifest, s); err == nil {
		t.Error("an empty backup")
	}
	w := NewWriter(&bytes.Buffer{})
	for key, ok := range map[string]bool{"b": true} {
		if err := w.Add(key, nil); (err == nil) != ok {
			t.Error(err)
		}
	}
	for _, key := range []string{"b", "a", strings.Repeat("c", keyMax+1)} {
		if err := w.Add(key, nil); err == nil {
			t.Errorf("%.10q after b", key)
		}
	}
}

// No byte can be another, and none be missing or added.
func TestEveryByteCounts(t *testing.T) {
	s, v := keys(t, "name")
	b, _ := write(t, s, 3, 40)
	for i := range b {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(b)
			bad[i] ^= bit
			if _, err := Read(bytes.NewReader(bad), v, nil); !errors.Is(err, ErrFile) {
				t.Errorf("byte %d of %d changed: %v", i, len(b), err)
			}
		}
		if _, err := Read(bytes.NewReader(b[:i]), v, nil); !errors.Is(err, ErrFile) {
			t.Errorf("cut to %d bytes of %d: %v", i, len(b), err)
		}
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(b), 0)), v, nil); !errors.Is(err, ErrFile) {
		t.Error("longer:", err)
	}
	_, other := keys(t, "name")
	if _, err := Read(bytes.NewReader(b), other, nil); !errors.Is(err, ErrFile) {
		t.Error("another's signature:", err)
	}
	// The values of one and the manifest of another.
	c, _ := write(t, s, 4, 40)
	for _, mixed := range [][]byte{append(bytes.Clone(b[:bytes.Index(b, []byte("m\x00"))]), c[bytes.Index(c, []byte("m\x00")):]...)} {
		if _, err := Read(bytes.NewReader(mixed), v, nil); !errors.Is(err, ErrFile) {
			t.Error("mixed:", err)
		}
	}
	// A whole file of somebody else says so only where it is asked.
	if _, err := Unverified(bytes.NewReader(b)); err != nil {
		t.Error(err)
	}
}

// The tree is that of RFC 6962 §2.1.
func TestTree(t *testing.T) {
	var leaves [][sha256.Size]byte
	var root func(l [][sha256.Size]byte) [sha256.Size]byte
	root = func(l [][sha256.Size]byte) [sha256.Size]byte {
		if len(l) == 1 {
			return l[0]
		}
		k := 1
		for 2*k < len(l) {
			k *= 2
		}
		return join(root(l[:k]), root(l[k:]))
	}
	var tr tree
	for i := range 70 {
		tr.add(fmt.Sprint(i), []byte{byte(i)})
		var one tree
		one.add(fmt.Sprint(i), []byte{byte(i)})
		if leaves = append(leaves, one.root()); tr.root() != root(leaves) {
			t.Fatalf("the root of %d", i+1)
		}
	}
}

func FuzzRead(f *testing.F) {
	s, v := keys(f, "name")
	b, _ := write(f, s, 3, 40)
	f.Add(b)
	f.Add(b[:40])
	f.Add([]byte(magic + "v\x00\x00\x00\x01\x00m\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if _, err := Read(bytes.NewReader(file), v, nil); err == nil && !bytes.Equal(file, b) {
			t.Errorf("%q is taken", file)
		}
		_, _ = Unverified(bytes.NewReader(file))
	})
}

func FuzzManifest(f *testing.F) {
	f.Add(manifest.text())
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseManifest(text)
		if err == nil && m.text() != text {
			t.Errorf("%q was read as %q", text, m.text())
		}
	})
}
