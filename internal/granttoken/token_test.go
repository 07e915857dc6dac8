package granttoken

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/keyid"
)

var example = Token{
	Account: 111122223333, Key: keyid.ID{UUID: [16]byte{0: 1, 15: 0xff}, MultiRegion: true}, Grant: [32]byte{0: 0xab, 31: 7},
}

func TestRoundTrip(t *testing.T) {
	for _, want := range []Token{example, {}, {Account: keyid.AccountMax, Grant: [32]byte(bytes.Repeat([]byte{0xff}, 32))}} {
		text := Append([]byte("x"), &want, [saltLen]byte{1})
		if len(text) != 1+Len || text[0] != 'x' {
			t.Errorf("%q", text)
		}
		if got, ok := Parse(text[1:]); !ok || got != want {
			t.Errorf("got %+v %v, want %+v", got, ok, want)
		}
	}
	if got, want := example.GrantID(), "ab"+strings.Repeat("0", 60)+"07"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if a, b := Append(nil, &example, [saltLen]byte{}), Append(nil, &example, [saltLen]byte{1}); bytes.Equal(a, b) {
		t.Error("two salts, one token")
	}
}

// The layout is written out by hand here from the package's documentation.
func TestLayout(t *testing.T) {
	body := "\x01" + strings.Repeat("s", 16) + "\x00\x19\xdf\x6e\x41\x4d" + "\x01\x01" + strings.Repeat("\x00", 14) + "\xff" +
		"\xab" + strings.Repeat("\x00", 30) + "\x07"
	token := example
	token.Account = 0x0019df6e414d
	sum := sha256.Sum256([]byte("keyplane grant token v1" + body))
	want := base64.StdEncoding.EncodeToString([]byte(body + string(sum[:12])))
	if got := string(Append(nil, &token, [saltLen]byte(bytes.Repeat([]byte("s"), 16)))); got != want || len(got) != 112 {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Whatever one byte of a token becomes, it is no token any more; nor is it one cut, prolonged or in another alphabet.
func TestGarbage(t *testing.T) {
	good := Append(nil, &example, [saltLen]byte{9})
	for i := range good {
		for c := range 256 {
			bad := bytes.Clone(good)
			bad[i] = byte(c)
			if got, ok := Parse(bad); ok != (good[i] == byte(c)) || !ok && got != (Token{}) {
				t.Fatalf("byte %d as %#x: %+v %v", i, c, got, ok)
			}
		}
		if _, ok := Parse(good[:i]); ok {
			t.Errorf("cut after %d bytes", i)
		}
	}
	seal := func(change func(raw []byte)) []byte {
		raw, err := encoding.DecodeString(string(good))
		if err != nil {
			t.Fatal(err)
		}
		change(raw)
		c := check(raw[:bodyLen])
		copy(raw[bodyLen:], c[:])
		return []byte(encoding.EncodeToString(raw))
	}
	if _, ok := Parse(seal(func([]byte) {})); !ok {
		t.Fatal("the test's own seal does not hold")
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "prolonged": append(bytes.Clone(good), 'A'), "twice": append(bytes.Clone(good), good...), "padded": append(bytes.Clone(good), "===="...),
		"line break": append(bytes.Clone(good[:Len-1]), '\n'), "break inside": append(append(bytes.Clone(good[:Len-2]), '\n'), good[Len-1]),
		"version":    seal(func(raw []byte) { raw[0] = 2 }),
		"account":    seal(func(raw []byte) { copy(raw[1+saltLen:], "\xff\xff\xff\xff\xff\xff") }),
		"key's form": seal(func(raw []byte) { raw[1+saltLen+6] = 2 }),
	} {
		if got, ok := Parse(bad); ok {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// FuzzParse: what is read is written again the same, and what is not read says nothing.
func FuzzParse(f *testing.F) {
	f.Add(Append(nil, &example, [saltLen]byte{3}))
	f.Add([]byte(strings.Repeat("A", Len)))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		got, ok := Parse(in)
		if !ok {
			if got != (Token{}) {
				t.Errorf("a refused token says %+v", got)
			}
			return
		}
		raw, err := encoding.DecodeString(string(in))
		if err != nil {
			t.Fatal(err)
		}
		if again := Append(nil, &got, [saltLen]byte(raw[1:])); !bytes.Equal(again, in) {
			t.Errorf("%q is written again as %q", in, again)
		}
	})
}
