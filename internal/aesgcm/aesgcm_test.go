package aesgcm_test

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/internal/aesgcm"
)

// eachPath runs the test on every path there is.
func eachPath(t *testing.T, test func(t *testing.T)) {
	for _, p := range aesgcm.Paths() {
		t.Run("path="+p, func(t *testing.T) {
			aesgcm.Use(t, p)
			test(t)
		})
	}
}

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

type wycheproof struct {
	NumberOfTests int
	TestGroups    []struct {
		IVSize, KeySize, TagSize int
		Tests                    []struct {
			TcID                       int
			Comment, Result            string
			Key, IV, AAD, Msg, Ct, Tag hexBytes
		}
	}
}

func loadWycheproof(t *testing.T) *wycheproof {
	t.Helper()
	f, err := os.Open("testdata/aes_gcm_test.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	w := new(wycheproof)
	if err := json.NewDecoder(z).Decode(w); err != nil {
		t.Fatal(err)
	}
	return w
}

// Of the 316 cases, the 66 with a 256-bit key and a 96-bit nonce are in reach. The types [32]byte and [12]byte keep the others out: 131
// cases with such a nonce but a shorter key, and 119 with another nonce length.
func TestWycheproof(t *testing.T) {
	w := loadWycheproof(t)
	eachPath(t, func(t *testing.T) {
		var valid, invalid, otherKey, otherNonce int
		for _, g := range w.TestGroups {
			if g.TagSize != 8*aesgcm.TagLen {
				t.Fatalf("a group has tags of %d bits", g.TagSize)
			}
			for _, c := range g.Tests {
				if g.IVSize != 8*aesgcm.NonceLen {
					otherNonce++
					continue
				}
				if g.KeySize != 8*aesgcm.KeyLen {
					otherKey++
					continue
				}
				key, nonce := [32]byte(c.Key), [12]byte(c.IV)
				want := append(bytes.Clone(c.Ct), c.Tag...)
				got := aesgcm.Seal(nil, &key, &nonce, c.Msg, c.AAD)
				plain, ok := aesgcm.Open(nil, &key, &nonce, want, c.AAD)
				switch c.Result {
				case "valid":
					valid++
					if !bytes.Equal(got, want) {
						t.Errorf("case %d (%s): sealed %x, want %x", c.TcID, c.Comment, got, want)
					}
					if !ok || !bytes.Equal(plain, c.Msg) {
						t.Errorf("case %d (%s): opened %x, %v, want %x", c.TcID, c.Comment, plain, ok, c.Msg)
					}
				case "invalid":
					invalid++
					if ok || len(plain) != 0 {
						t.Errorf("case %d (%s): opened", c.TcID, c.Comment)
					}
				default:
					t.Fatalf("case %d: result %q", c.TcID, c.Result)
				}
			}
		}
		if valid != 39 || invalid != 27 || otherKey != 131 || otherNonce != 119 || w.NumberOfTests != 316 {
			t.Errorf("%d valid, %d invalid, %d other keys, %d other nonces of %d", valid, invalid, otherKey, otherNonce, w.NumberOfTests)
		}
	})
}

// sample is a message whose parts differ in every length.
func sample(n, aadLen int) (key [32]byte, nonce [12]byte, plaintext, aad []byte) {
	for i := range key {
		key[i] = byte(3*i + n)
	}
	for i := range nonce {
		nonce[i] = byte(5*i + aadLen)
	}
	plaintext, aad = make([]byte, n), make([]byte, aadLen)
	for i := range plaintext {
		plaintext[i] = byte(7*i + 1)
	}
	for i := range aad {
		aad[i] = byte(11*i + 2)
	}
	return key, nonce, plaintext, aad
}

// All paths seal alike, for every length around the libraries' block and batch sizes.
func TestPathsAgree(t *testing.T) {
	lengths := []int{0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1023, 1024, 4095, 4096}
	type sealedBy struct{ n, a int }
	first := map[sealedBy][]byte{}
	eachPath(t, func(t *testing.T) {
		for _, n := range lengths {
			for _, a := range []int{0, 1, 15, 16, 17, 71, 100, 8261} {
				key, nonce, plaintext, aad := sample(n, a)
				sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
				if want, ok := first[sealedBy{n, a}]; !ok {
					first[sealedBy{n, a}] = sealed
				} else if !bytes.Equal(sealed, want) {
					t.Fatalf("n=%d aad=%d: another result than the first path", n, a)
				}
				if got, ok := aesgcm.Open(nil, &key, &nonce, sealed, aad); !ok || !bytes.Equal(got, plaintext) {
					t.Fatalf("n=%d aad=%d: does not open", n, a)
				}
			}
		}
	})
}

// Every flipped bit of sealed, key, nonce and aad is refused, and leaves nothing of the plaintext in the spare capacity.
func TestFlipsLeaveNothing(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		for _, n := range []int{1, 32, 200} {
			key, nonce, plaintext, aad := sample(n, 40)
			sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
			for _, part := range [][]byte{sealed, key[:], nonce[:], aad} {
				for bit := range 8 * len(part) {
					part[bit/8] ^= 1 << (bit % 8)
					dst := bytes.Repeat([]byte{0xA5}, 3+n+aesgcm.TagLen)
					got, ok := aesgcm.Open(dst[:3], &key, &nonce, sealed, aad)
					part[bit/8] ^= 1 << (bit % 8)
					if ok || len(got) != 3 || !bytes.Equal(dst[:3], []byte{0xA5, 0xA5, 0xA5}) {
						t.Fatalf("n=%d: flipped bit %d is accepted, or dst changed", n, bit)
					}
					if !bytes.Equal(dst[3:3+n], make([]byte, n)) {
						t.Fatalf("n=%d: flipped bit %d leaves % x in dst", n, bit, dst[3:3+n])
					}
					if !bytes.Equal(dst[3+n:], bytes.Repeat([]byte{0xA5}, aesgcm.TagLen)) {
						t.Fatalf("n=%d: wrote beyond the plaintext", n)
					}
				}
			}
			if _, ok := aesgcm.Open(nil, &key, &nonce, sealed, aad); !ok {
				t.Fatalf("n=%d: the unflipped message does not open", n)
			}
		}
	})
}

func TestAppends(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		key, nonce, plaintext, aad := sample(50, 20)
		want := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)

		// Room enough: the result is in dst's own memory, and what stood before and behind stays.
		dst := bytes.Repeat([]byte{0xEE}, 2+len(want)+4)
		got := aesgcm.Seal(dst[:2], &key, &nonce, plaintext, aad)
		if &got[0] != &dst[0] || !bytes.Equal(got[2:], want) || got[1] != 0xEE || !bytes.Equal(dst[2+len(want):], []byte{0xEE, 0xEE, 0xEE, 0xEE}) {
			t.Fatal("Seal does not append in place")
		}
		// One byte short: a new slice.
		if got := aesgcm.Seal(make([]byte, 2, 2+len(want)-1), &key, &nonce, plaintext, aad); !bytes.Equal(got[2:], want) {
			t.Fatal("Seal does not append to a short slice")
		}
		// In place, as plaintext[:0] and sealed[:0].
		buf := make([]byte, len(plaintext), len(want))
		copy(buf, plaintext)
		sealed := aesgcm.Seal(buf[:0], &key, &nonce, buf, aad)
		if !bytes.Equal(sealed, want) {
			t.Fatal("Seal in place differs")
		}
		if got, ok := aesgcm.Open(sealed[:0], &key, &nonce, sealed, aad); !ok || !bytes.Equal(got, plaintext) {
			t.Fatal("Open in place differs")
		}
	})
}

func TestLimits(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		key, nonce, most, _ := sample(aesgcm.MessageMax, 0)
		sealed := aesgcm.Seal(nil, &key, &nonce, most, most)
		if got, ok := aesgcm.Open(nil, &key, &nonce, sealed, most); !ok || !bytes.Equal(got, most) {
			t.Error("the largest message does not open")
		}
		more := make([]byte, aesgcm.MessageMax+1)
		for name, call := range map[string]func(){
			"plaintext": func() { aesgcm.Seal(nil, &key, &nonce, more, nil) },
			"aad":       func() { aesgcm.Seal(nil, &key, &nonce, nil, more) },
		} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("a %s over the limit is sealed", name)
					}
				}()
				call()
			}()
		}
		if _, ok := aesgcm.Open(nil, &key, &nonce, make([]byte, aesgcm.MessageMax+aesgcm.TagLen+1), nil); ok {
			t.Error("a message over the limit is opened")
		}
		if _, ok := aesgcm.Open(nil, &key, &nonce, sealed, more); ok {
			t.Error("an aad over the limit is taken")
		}
		for n := range aesgcm.TagLen {
			if _, ok := aesgcm.Open(nil, &key, &nonce, make([]byte, n), nil); ok {
				t.Errorf("%d bytes are opened", n)
			}
		}
	})
}

// Threads come and go while they seal: contexts of threads are neither shared nor lost.
func TestManyThreads(t *testing.T) {
	eachPath(t, func(t *testing.T) {
		var wg sync.WaitGroup
		for g := range 32 {
			wg.Go(func() {
				lockUntilExit() // ends the thread, and so its context, with the goroutine
				for i := range 200 {
					key, nonce, plaintext, aad := sample(g+i, g)
					sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
					sealed[i%len(sealed)] ^= byte(g % 2)
					got, ok := aesgcm.Open(nil, &key, &nonce, sealed, aad)
					if ok != (g%2 == 0) || ok && !bytes.Equal(got, plaintext) {
						t.Errorf("goroutine %d, message %d: %v", g, i, ok)
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func FuzzPathsAgree(f *testing.F) {
	f.Add(make([]byte, 32), make([]byte, 12), []byte("plaintext"), []byte("aad"), uint(0))
	f.Add(bytes.Repeat([]byte{0xFF}, 32), bytes.Repeat([]byte{0xFF}, 12), make([]byte, 129), []byte{}, uint(1000))
	f.Add([]byte("short"), []byte("short"), []byte{}, make([]byte, 300), uint(7))
	f.Fuzz(func(t *testing.T, k, n, plaintext, aad []byte, flip uint) {
		var key [32]byte
		var nonce [12]byte
		copy(key[:], k)
		copy(nonce[:], n)
		if len(plaintext) > aesgcm.MessageMax || len(aad) > aesgcm.MessageMax {
			return
		}
		var want []byte
		for _, p := range aesgcm.Paths() {
			aesgcm.Use(t, p)
			sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
			if want == nil {
				want = sealed
			} else if !bytes.Equal(sealed, want) {
				t.Fatalf("%s seals %x, another path %x", p, sealed, want)
			}
			if got, ok := aesgcm.Open(nil, &key, &nonce, sealed, aad); !ok || !bytes.Equal(got, plaintext) {
				t.Fatalf("%s does not open what it sealed", p)
			}
			bit := flip % uint(8*len(sealed))
			bad := bytes.Clone(sealed)
			bad[bit/8] ^= 1 << (bit % 8)
			if got, ok := aesgcm.Open(nil, &key, &nonce, bad, aad); ok || len(got) != 0 {
				t.Fatalf("%s opens a flipped message", p)
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	bench(b, func(out []byte, key *[32]byte, nonce *[12]byte, plaintext, _, aad []byte) bool {
		return len(aesgcm.Seal(out, key, nonce, plaintext, aad)) > 0
	})
}

func BenchmarkOpen(b *testing.B) {
	bench(b, func(out []byte, key *[32]byte, nonce *[12]byte, _, sealed, aad []byte) bool {
		_, ok := aesgcm.Open(out, key, nonce, sealed, aad)
		return ok
	})
}

func bench(b *testing.B, op func(out []byte, key *[32]byte, nonce *[12]byte, plaintext, sealed, aad []byte) bool) {
	for _, p := range aesgcm.Paths() {
		for _, n := range []int{32, 4096} {
			b.Run(fmt.Sprintf("path=%s/bytes=%d", p, n), func(b *testing.B) {
				aesgcm.Use(b, p)
				key, nonce, plaintext, aad := sample(n, 71) // a header and an empty context
				sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
				out := make([]byte, 0, n+aesgcm.TagLen)
				b.ReportAllocs()
				b.SetBytes(int64(n))
				for b.Loop() {
					if !op(out, &key, &nonce, plaintext, sealed, aad) {
						b.Fatal("refused")
					}
				}
			})
		}
	}
}
