package xaes_test

import (
	"bytes"
	"crypto/aes"
	"crypto/sha3"
	"encoding/hex"
	"encoding/json"
	"os"
	"strconv"
	"testing"

	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/kdf/xaes"
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

func newXAES(t testing.TB, key []byte) *xaes.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	return xaes.New(func(dst, src *[16]byte) { block.Encrypt(dst[:], src[:]) })
}

type xaesVectors struct {
	Tests []struct {
		TcID                                    int
		Comment                                 string
		Key, Nonce, AAD, Msg, L, K1, M1, M2, Kx hexBytes
		Sealed                                  hexBytes `json:"ct_and_tag"`
	}
	Accumulated struct {
		StreamPrefix hexBytes `json:"stream_prefix"`
		Results      map[string]string
	}
}

func loadXAES(t *testing.T) *xaesVectors {
	t.Helper()
	raw, err := os.ReadFile("testdata/xaes_256_gcm.json")
	if err != nil {
		t.Fatal(err)
	}
	v := new(xaesVectors)
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestXAESVectors(t *testing.T) {
	v := loadXAES(t)
	if len(v.Tests) != 2 {
		t.Fatalf("%d vectors, want 2", len(v.Tests))
	}
	for _, c := range v.Tests {
		block, err := aes.NewCipher(c.Key)
		if err != nil {
			t.Fatal(err)
		}
		nonce := [24]byte(c.Nonce)

		// The steps of the specification.
		var l, k1, m [16]byte
		block.Encrypt(l[:], l[:])
		kdf.SubkeyK1(&k1, &l)
		if !bytes.Equal(l[:], c.L) || !bytes.Equal(k1[:], c.K1) {
			t.Errorf("case %d (%s): L = %x, K1 = %x", c.TcID, c.Comment, l, k1)
		}
		var kx []byte
		for i, want := range [][]byte{c.M1, c.M2} {
			kdf.Input(&m, new([16]byte), nonce[:12], byte(i+1))
			if !bytes.Equal(m[:], want) {
				t.Errorf("case %d: M%d = %x, want %x", c.TcID, i+1, m, want)
			}
			kdf.Input(&m, &k1, nonce[:12], byte(i+1))
			block.Encrypt(m[:], m[:])
			kx = append(kx, m[:]...)
		}
		if !bytes.Equal(kx, c.Kx) {
			t.Errorf("case %d: Kx = %x, want %x", c.TcID, kx, c.Kx)
		}

		x := newXAES(t, c.Key)
		if got := x.Seal(nil, &nonce, c.Msg, c.AAD); !bytes.Equal(got, c.Sealed) {
			t.Errorf("case %d: sealed %x, want %x", c.TcID, got, c.Sealed)
		}
		if got, ok := x.Open(nil, &nonce, c.Sealed, c.AAD); !ok || !bytes.Equal(got, c.Msg) {
			t.Errorf("case %d: opened %x, %v", c.TcID, got, ok)
		}
		for bit := range 8 * len(nonce) {
			nonce[bit/8] ^= 1 << (bit % 8)
			if _, ok := x.Open(nil, &nonce, c.Sealed, c.AAD); ok {
				t.Errorf("case %d: opens with bit %d of the nonce flipped", c.TcID, bit)
			}
			nonce[bit/8] ^= 1 << (bit % 8)
		}
	}
}

// The accumulated hash of the specification: 10 000 iterations always, 1 000 000 (some ten seconds) with KEYPLANE_LONG_TESTS set.
func TestXAESAccumulated(t *testing.T) {
	iterations := []int{10_000}
	if os.Getenv("KEYPLANE_LONG_TESTS") != "" {
		iterations = append(iterations, 1_000_000)
	}
	v := loadXAES(t)
	for _, n := range iterations {
		want := v.Accumulated.Results[strconv.Itoa(n)]
		if got := accumulate(t, n, v.Accumulated.StreamPrefix); got != want || want == "" {
			t.Errorf("%d iterations: %s, want %s", n, got, want)
		}
	}
}

func accumulate(t *testing.T, iterations int, prefix []byte) string {
	probe := make([]byte, len(prefix))
	read(sha3.NewSHAKE128(), probe)
	if !bytes.Equal(probe, prefix) {
		t.Fatalf("the stream starts with %x, want %x", probe, prefix)
	}
	stream, sum := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	key, nonce := make([]byte, 32), new([24]byte)
	var length [1]byte
	plainBuf, aadBuf, out := make([]byte, 255), make([]byte, 255), make([]byte, 0, 255+16)
	back := make([]byte, 0, 255)
	for range iterations {
		read(stream, key)
		read(stream, nonce[:])
		read(stream, length[:])
		plaintext := plainBuf[:length[0]]
		read(stream, plaintext)
		read(stream, length[:])
		aad := aadBuf[:length[0]]
		read(stream, aad)

		x := newXAES(t, key)
		sealed := x.Seal(out, nonce, plaintext, aad)
		if got, ok := x.Open(back, nonce, sealed, aad); !ok || !bytes.Equal(got, plaintext) {
			t.Fatal("does not open what it sealed")
		}
		if _, err := sum.Write(sealed); err != nil {
			t.Fatal(err)
		}
	}
	digest := make([]byte, 32)
	read(sum, digest)
	return hex.EncodeToString(digest)
}

// read fills b; a SHAKE never ends and never fails.
func read(s *sha3.SHAKE, b []byte) {
	if n, err := s.Read(b); n != len(b) || err != nil {
		panic("short read from SHAKE128")
	}
}
