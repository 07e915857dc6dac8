package blob_test

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// golden is the header of docs/ciphertext.md §1 written by hand, field by field.
const golden = "01" + "01" + "0019df6690e5" + "00" + "123456789abcdef00fedcba987654321" + "00000007" +
	"000102030405060708090a0b0c0d0e0f1011121314151617" + "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"

func sampleHeader() blob.Header {
	h := blob.Header{
		Suite:      blob.SuiteDerived,
		Account:    111122223333,
		Key:        keyid.ID{UUID: [16]byte{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x0f, 0xed, 0xcb, 0xa9, 0x87, 0x65, 0x43, 0x21}},
		KeyVersion: 7,
	}
	for i := range h.Nonce {
		h.Nonce[i] = byte(i)
	}
	for i := range h.Commitment {
		h.Commitment[i] = 0xF0 + byte(i)
	}
	return h
}

func TestHeaderLayout(t *testing.T) {
	want, err := hex.DecodeString(golden)
	if err != nil {
		t.Fatal(err)
	}
	h := sampleHeader()
	got := h.Append([]byte("before"))
	if !bytes.Equal(got, append([]byte("before"), want...)) || len(want) != blob.HeaderLen {
		t.Errorf("header %x, want %x", got[len("before"):], want)
	}
}

func TestParse(t *testing.T) {
	for _, suite := range []byte{blob.SuiteDerived, blob.SuiteResident} {
		for _, multi := range []bool{false, true} {
			for _, account := range []keyid.Account{0, 1, 999_999_999_999} {
				for _, version := range []uint32{1, 1 << 31, 1<<32 - 1} {
					want := sampleHeader()
					want.Suite, want.Key.MultiRegion, want.Account, want.KeyVersion = suite, multi, account, version
					b := append(want.Append(nil), make([]byte, 32+blob.TagLen)...)
					var got blob.Header
					sealed, ok := blob.Parse(b, &got)
					if !ok || got != want {
						t.Fatalf("%+v parses to %+v, %v", want, got, ok)
					}
					if len(sealed) != 32+blob.TagLen || &sealed[0] != &b[blob.HeaderLen] {
						t.Fatal("sealed is not the rest of the blob")
					}
				}
			}
		}
	}
}

func TestParseLengths(t *testing.T) {
	for n := range blob.LenMax + 100 {
		h := sampleHeader()
		b := h.Append(make([]byte, 0, blob.LenMax+100+blob.HeaderLen))
		b = b[:n] // zeros beyond the header
		var got blob.Header
		_, ok := blob.Parse(b, &got)
		if want := n >= 86 && n <= 4181; ok != want {
			t.Errorf("%d bytes: %v, want %v", n, ok, want)
		}
	}
	if blob.LenMin != 86 || blob.LenMax != 4181 || blob.LenMax > kmsapi.CiphertextBlobMax {
		t.Errorf("a blob is %d to %d bytes", blob.LenMin, blob.LenMax)
	}
}

func TestParseRefuses(t *testing.T) {
	h := sampleHeader()
	good := append(h.Append(nil), make([]byte, 32+blob.TagLen)...)
	set := func(at int, b ...byte) []byte {
		c := bytes.Clone(good)
		copy(c[at:], b)
		return c
	}
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"version 0":            set(0, 0),
		"version 2":            set(0, 2),
		"suite 0":              set(1, 0),
		"suite 4":              set(1, 4),
		"suite 3 without more": set(1, 3),
		"account 10^12":        set(2, 0x00, 0xE8, 0xD4, 0xA5, 0x10, 0x00),
		"account of six 0xFF":  set(2, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF),
		"key ID form 2":        set(8, 2),
		"key ID form 0xFF":     set(8, 0xFF),
		"key version 0":        set(25, 0, 0, 0, 0),
		"header without a tag": good[:blob.Overhead],
	} {
		got := blob.Header{Suite: 9, KeyVersion: 42}
		if sealed, ok := blob.Parse(b, &got); ok || sealed != nil {
			t.Errorf("%s is accepted", name)
		}
		if got != (blob.Header{Suite: 9, KeyVersion: 42}) {
			t.Errorf("%s: the header was written", name)
		}
	}
	// One below the limit, to show that the account is refused for its value.
	if _, ok := blob.Parse(set(2, 0x00, 0xE8, 0xD4, 0xA5, 0x0F, 0xFF), &h); !ok || h.Account != 999_999_999_999 {
		t.Error("account 10^12 - 1 is refused")
	}
}

func TestAppendMisuse(t *testing.T) {
	for name, change := range map[string]func(*blob.Header){
		"no suite":      func(h *blob.Header) { h.Suite = 0 },
		"suite 4":       func(h *blob.Header) { h.Suite = 4 },
		"account 10^12": func(h *blob.Header) { h.Account = 1_000_000_000_000 },
		"key version 0": func(h *blob.Header) { h.KeyVersion = 0 },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			h := sampleHeader()
			change(&h)
			h.Append(nil)
		}()
	}
}

// FuzzParse: what is accepted appends to the same bytes, and no flip of it panics or parses to the same header and rest.
func FuzzParse(f *testing.F) {
	h := sampleHeader()
	for _, n := range []int{0, 1, 32, 4096, 4097} {
		f.Add(append(h.Append(nil), make([]byte, n+blob.TagLen)...), uint(n))
	}
	h.Suite, h.Key.MultiRegion = blob.SuiteResident, true
	f.Add(append(h.Append(nil), make([]byte, 48)...), uint(8*8))
	h.Suite = blob.SuiteExternal
	for _, o := range []blob.Outer{sampleOuter(), {IV: make([]byte, 16), Tag: make([]byte, 16), Metadata: make([]byte, 20), Ciphertext: make([]byte, 4112)}} {
		for _, bit := range []uint{8, 8 * 69, 8 * 98} {
			f.Add(o.Append(h.Append(nil)), bit)
		}
	}
	f.Add([]byte{}, uint(0))
	f.Add(bytes.Repeat([]byte{0xFF}, 100), uint(3))
	f.Fuzz(func(t *testing.T, b []byte, flip uint) {
		var h blob.Header
		sealed, ok := blob.Parse(b, &h)
		if !ok {
			return
		}
		if again := append(h.Append(nil), sealed...); !bytes.Equal(again, b) {
			t.Fatalf("%x parses and appends to %x", b, again)
		}
		var o blob.Outer
		if h.Suite == blob.SuiteExternal && (!blob.ParseOuter(sealed, &o) || !bytes.Equal(o.Append(h.Append(nil)), b)) {
			t.Fatalf("%x parses to %+v", b, o)
		}
		bit := flip % uint(8*len(b))
		bad := bytes.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		var other blob.Header
		if rest, ok := blob.Parse(bad, &other); ok && other == h && bytes.Equal(rest, sealed) {
			t.Fatalf("bit %d does not matter", bit)
		}
		for n := range min(len(b), blob.Overhead+2) {
			if _, ok := blob.Parse(b[:n], &other); ok && n <= blob.Overhead {
				t.Fatalf("cut to %d bytes it parses", n)
			}
		}
	})
}
