package pubkey

import (
	"bytes"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
)

// encodeOAEP is EME-OAEP encoding of RFC 8017, 7.1.1 step 2, for tests: db is what is masked, so that it can be wrong.
func encodeOAEP(h func() hash.Hash, first byte, seed, db []byte) []byte {
	masked := bytes.Clone(db)
	xorMGF1(h, masked, seed)
	seed = bytes.Clone(seed)
	xorMGF1(h, seed, masked)
	return append(append([]byte{first}, seed...), masked...)
}

func xorMGF1(h func() hash.Hash, data, seed []byte) {
	for i := range data {
		f := h()
		_, _ = f.Write(seed)
		_, _ = f.Write([]byte{0, 0, 0, byte(i / f.Size())})
		data[i] ^= f.Sum(nil)[i%f.Size()]
	}
}

// dataBlock is the label's hash, zeros, a one and the plaintext.
func dataBlock(h func() hash.Hash, size int, plaintext []byte) []byte {
	db := h().Sum(nil)
	db = append(db, make([]byte, size-len(db)-1-len(plaintext))...)
	return append(append(db, 1), plaintext...)
}

var oaepHashes = map[keyspec.Algorithm]func() hash.Hash{keyspec.OAEPSHA1: sha1.New, keyspec.OAEPSHA256: sha256.New}

// Every length of plaintext comes back, whatever its bytes, and every fault gives the same: nothing, and room of zeros.
func TestDecodeOAEP(t *testing.T) {
	for a, h := range oaepHashes {
		for _, k := range []int{256, 384, 512} {
			size := h().Size()
			longest := k - 2*size - 2
			seed := make([]byte, size)
			_, _ = rand.Read(seed)
			good := func(plaintext []byte) []byte { return dataBlock(h, k-size-1, plaintext) }
			for n := range longest + 1 {
				for _, fill := range []byte{0, 1, 0xff} {
					plaintext := bytes.Repeat([]byte{fill}, n)
					em := encodeOAEP(h, 0, seed, good(plaintext))
					before := bytes.Clone(em)
					out := bytes.Repeat([]byte{0xee}, longest+3)
					got, ok := DecodeOAEP(a, em, out)
					if !ok || got != n || !bytes.Equal(out[:n], plaintext) || len(bytes.Trim(out[n:], "\x00")) != 0 {
						t.Fatalf("%s, %d of %d bytes of %d: %d, %t, %x", a, n, longest, fill, got, ok, out)
					}
					if !bytes.Equal(em, before) {
						t.Fatal("em is changed")
					}
				}
			}
			if n, ok := DecodeOAEP(a, encodeOAEP(h, 0, seed, good([]byte("x"))), make([]byte, longest-1)); ok || n != 0 {
				t.Errorf("%s: room of %d bytes is taken", a, longest-1)
			}
			faults := map[string][]byte{
				"first byte 1": encodeOAEP(h, 1, seed, good([]byte("x"))), "first byte 128": encodeOAEP(h, 128, seed, good([]byte("x"))),
				"first byte and label": encodeOAEP(h, 1, seed, append([]byte{9}, good([]byte("x"))[1:]...)),
				"no one":               encodeOAEP(h, 0, seed, append(h().Sum(nil), make([]byte, longest+1)...)),
				"all zeros":            make([]byte, k), "all ones": bytes.Repeat([]byte{0xff}, k),
			}
			for i := range size {
				db := good([]byte("x"))
				db[i] ^= 0x40
				faults[fmt.Sprint("label byte ", i)] = encodeOAEP(h, 0, seed, db)
			}
			for i := size; i < k-size-1; i++ {
				db := good(nil) // zeros up to the one at the end
				db[i] = 2
				faults[fmt.Sprint("padding byte ", i)] = encodeOAEP(h, 0, seed, db)
			}
			for name, em := range faults {
				out := bytes.Repeat([]byte{0xee}, longest)
				if n, ok := DecodeOAEP(a, em, out); ok || n != 0 || len(bytes.Trim(out, "\x00")) != 0 {
					t.Errorf("%s, %s: %d, %t, %x", a, name, n, ok, out)
				}
			}
		}
	}
	for _, a := range []keyspec.Algorithm{keyspec.NoAlgorithm, keyspec.PSSSHA256, keyspec.PKCS1SHA256} {
		if _, ok := DecodeOAEP(a, make([]byte, 256), make([]byte, 256)); ok {
			t.Errorf("%s is taken", a)
		}
	}
	for _, size := range []int{0, 1, 41, 513, 4096} {
		if _, ok := DecodeOAEP(keyspec.OAEPSHA1, make([]byte, size), make([]byte, 4096)); ok {
			t.Errorf("a block of %d bytes is taken", size)
		}
	}
}

func TestEncryptOAEPRefuses(t *testing.T) {
	k, err := Parse(keyspec.RSA2048, public()[keyspec.RSA2048])
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a          keyspec.Algorithm
		size, room int
		want       error
	}{
		{keyspec.OAEPSHA1, 214, 256, nil}, {keyspec.OAEPSHA1, 215, 256, ErrLength}, {keyspec.OAEPSHA256, 190, 256, nil}, {keyspec.OAEPSHA256, 191, 256, ErrLength},
		{keyspec.OAEPSHA256, 0, 256, nil}, {keyspec.OAEPSHA256, 10, 255, ErrLength}, {keyspec.PSSSHA256, 10, 256, ErrKey}, {keyspec.NoAlgorithm, 10, 256, ErrKey},
	} {
		if _, err := k.EncryptOAEP(c.a, make([]byte, c.size), make([]byte, c.room)); !errors.Is(err, c.want) {
			t.Errorf("%s, %d bytes, room of %d: %v, want %v", c.a, c.size, c.room, err, c.want)
		}
	}
	p, err := Parse(keyspec.P256, public()[keyspec.P256])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.EncryptOAEP(keyspec.OAEPSHA256, nil, make([]byte, 512)); !errors.Is(err, ErrKey) {
		t.Errorf("P256 encrypts: %v", err)
	}
	if err := p.Encapsulate(make([]byte, 32), make([]byte, 768)); !errors.Is(err, ErrKey) {
		t.Errorf("P256 encapsulates: %v", err)
	}
}

// One decoding allocates nothing and takes one time, whatever is wrong: compare the lines. (It is no test, because a busy machine fails it.)
func BenchmarkDecodeOAEP(b *testing.B) {
	h := sha256.New
	seed, out := make([]byte, 32), make([]byte, 256)
	label := dataBlock(h, 223, []byte("x"))
	label[0] ^= 1
	early := dataBlock(h, 223, nil)
	early[32] = 2
	for _, c := range []struct {
		name string
		em   []byte
	}{
		{"good=empty", encodeOAEP(h, 0, seed, dataBlock(h, 223, nil))},
		{"good=longest", encodeOAEP(h, 0, seed, dataBlock(h, 223, make([]byte, 190)))},
		{"bad=first", encodeOAEP(h, 1, seed, dataBlock(h, 223, nil))},
		{"bad=label", encodeOAEP(h, 0, seed, label)},
		{"bad=padding", encodeOAEP(h, 0, seed, early)},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				DecodeOAEP(keyspec.OAEPSHA256, c.em, out)
			}
		})
	}
}
