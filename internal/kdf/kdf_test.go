package kdf_test

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/keyplane/keyplane/internal/kdf"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	raw, err := hex.DecodeString(s)
	*h = raw
	return err
}

// cmac is AES-CMAC (SP 800-38B §6.2) for messages of any length, with the subkeys of this package.
func cmac(block cipher.Block, message []byte) []byte {
	var l, k1, k2, x [16]byte
	block.Encrypt(l[:], l[:])
	kdf.SubkeyK1(&k1, &l)
	kdf.SubkeyK1(&k2, &k1)
	for len(message) > 16 {
		kdf.ChainInput2(&x, &x, (*[16]byte)(message))
		block.Encrypt(x[:], x[:])
		message = message[16:]
	}
	var last [16]byte
	mask := &k1
	if copy(last[:], message) < 16 {
		last[len(message)] = 0x80
		mask = &k2
	}
	kdf.ChainInput2(&x, &x, &last)
	kdf.Offset(&x, &x, mask)
	block.Encrypt(x[:], x[:])
	return x[:]
}

// Of the 311 cases, 306 are in reach; the other 5 have keys of lengths that AES does not have, and are counted as refused by it.
func TestWycheproofCMAC(t *testing.T) {
	f, err := os.Open("testdata/aes_cmac_test.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var w struct {
		NumberOfTests int
		TestGroups    []struct {
			TagSize int
			Tests   []struct {
				TcID            int
				Comment, Result string
				Key, Msg, Tag   hexBytes
			}
		}
	}
	if err := json.NewDecoder(z).Decode(&w); err != nil {
		t.Fatal(err)
	}
	var valid, invalid, keyless int
	for _, g := range w.TestGroups {
		if g.TagSize != 128 {
			t.Fatalf("a group has tags of %d bits", g.TagSize)
		}
		for _, c := range g.Tests {
			block, err := aes.NewCipher(c.Key)
			if err != nil {
				keyless++
				continue
			}
			same := bytes.Equal(cmac(block, c.Msg), c.Tag)
			switch c.Result {
			case "valid":
				valid++
			case "invalid":
				invalid++
			default:
				t.Fatalf("case %d: result %q", c.TcID, c.Result)
			}
			if same != (c.Result == "valid") {
				t.Errorf("case %d (%s): tag equal: %v, %s", c.TcID, c.Comment, same, c.Result)
			}
		}
	}
	if valid != 63 || invalid != 243 || keyless != 5 || w.NumberOfTests != 311 {
		t.Errorf("%d valid, %d invalid, %d without AES key, of %d", valid, invalid, keyless, w.NumberOfTests)
	}
}

// The blocks that a token computes are the CMACs of docs/ciphertext.md §3, computed here over the whole message.
func TestBlocksAreCMAC(t *testing.T) {
	for seed := range 64 { // enough for both values of the top bit of L
		key := bytes.Repeat([]byte{byte(seed)}, 32)
		key[7] ^= 0x5A
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		e := func(dst, src *[16]byte) { block.Encrypt(dst[:], src[:]) }
		var salt [32]byte
		var nonce [24]byte
		for i := range salt {
			salt[i] = byte(i*seed + 1)
		}
		for i := range nonce {
			nonce[i] = byte(0xF0 - i*seed)
		}

		var zero, l, k1, c1, chain, derived [16]byte
		e(&l, &zero)
		kdf.SubkeyK1(&k1, &l)
		e(&c1, (*[16]byte)(salt[:16]))
		kdf.ChainInput2(&chain, &c1, (*[16]byte)(salt[16:]))
		e(&chain, &chain)
		kdf.Offset(&derived, &chain, &k1)

		for _, i := range []byte{kdf.BlockKey1, kdf.BlockKey2, kdf.BlockCommitment} {
			tail := append([]byte{0, i, 'X', 0}, nonce[:12]...)
			for name, c := range map[string]struct {
				offset  *[16]byte
				message []byte
			}{
				"suite 0x01": {&derived, append(bytes.Clone(salt[:]), tail...)},
				"suite 0x02": {&k1, tail},
			} {
				var got [16]byte
				kdf.Input(&got, c.offset, nonce[:12], i)
				e(&got, &got)
				if want := cmac(block, c.message); !bytes.Equal(got[:], want) {
					t.Fatalf("%s, seed %d, B_%d = %x, CMAC is %x", name, seed, i, got, want)
				}
			}
		}
	}
}

// Doubling by the definition: the 128-bit integer times two, reduced by x^128 + x^7 + x^2 + x + 1.
func TestSubkeyK1(t *testing.T) {
	for bit := range 128 {
		var l, want, got [16]byte
		l[15-bit/8] = 1 << (bit % 8)
		if bit == 127 {
			want[15] = 0x87
		} else {
			want[15-(bit+1)/8] = 1 << ((bit + 1) % 8)
		}
		kdf.SubkeyK1(&got, &l)
		if got != want {
			t.Errorf("2^%d doubled is %x, want %x", bit, got, want)
		}
		kdf.SubkeyK1(&l, &l) // in place
		if l != want {
			t.Errorf("2^%d doubled in place is %x, want %x", bit, l, want)
		}
	}
}

func TestInput(t *testing.T) {
	offset := [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	nonce := []byte{0xF0, 0xE0, 0xD0, 0xC0, 0xB0, 0xA0, 0x90, 0x80, 0x70, 0x60, 0x50, 0x40}
	want := [16]byte{1, 2 ^ 3, 3 ^ 'X', 4, 5 ^ 0xF0, 6 ^ 0xE0, 7 ^ 0xD0, 8 ^ 0xC0, 9 ^ 0xB0, 10 ^ 0xA0, 11 ^ 0x90, 12 ^ 0x80, 13 ^ 0x70, 14 ^ 0x60, 15 ^ 0x50, 16 ^ 0x40}
	var got [16]byte
	kdf.Input(&got, &offset, nonce, 3)
	if got != want {
		t.Errorf("%x, want %x", got, want)
	}
	kdf.Input(&offset, &offset, nonce, 3)
	if offset != want {
		t.Errorf("in place: %x, want %x", offset, want)
	}
}

func TestInputMisuse(t *testing.T) {
	var b [16]byte
	for name, call := range map[string]func(){
		"11 bytes": func() { kdf.Input(&b, &b, make([]byte, 11), 1) },
		"13 bytes": func() { kdf.Input(&b, &b, make([]byte, 13), 1) },
		"no nonce": func() { kdf.Input(&b, &b, nil, 1) },
		"block 0":  func() { kdf.Input(&b, &b, make([]byte, 12), 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			call()
		}()
	}
}
