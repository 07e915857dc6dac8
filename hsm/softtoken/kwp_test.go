package softtoken

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

// TestWycheproofKWP: testdata/README.md says where the vectors are from. The construction is the same for all key lengths, so all are run.
func TestWycheproofKWP(t *testing.T) {
	f, err := os.Open("testdata/aes_kwp_test.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		NumberOfTests int
		TestGroups    []struct {
			Tests []struct {
				TcID                 int
				Key, Msg, Ct, Result string
			}
		}
	}
	if err := json.NewDecoder(r).Decode(&file); err != nil {
		t.Fatal(err)
	}
	b := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := 0
	for _, g := range file.TestGroups {
		for _, c := range g.Tests {
			n++
			block, err := aes.NewCipher(b(c.Key))
			if err != nil {
				t.Fatal(err)
			}
			got, ok := unwrapKWP(block, b(c.Ct))
			if ok != (c.Result == "valid") || ok && !bytes.Equal(got, b(c.Msg)) {
				t.Errorf("test %d: unwraps to %x, %t", c.TcID, got, ok)
			}
			if ok && !bytes.Equal(wrapKWP([]byte("head"), block, b(c.Msg)), append([]byte("head"), b(c.Ct)...)) {
				t.Errorf("test %d: wraps to something else", c.TcID)
			}
		}
	}
	if n != file.NumberOfTests || n < 250 {
		t.Errorf("%d tests", n)
	}
}

// TestKWPLengths: every length comes back, and nothing of another length than a wrapped key has.
func TestKWPLengths(t *testing.T) {
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 7, 8, 9, 15, 16, 17, 32, 2400, kwpMax} {
		key := bytes.Repeat([]byte{9}, n)
		wrapped := wrapKWP(nil, block, key)
		if got, ok := unwrapKWP(block, wrapped); !ok || !bytes.Equal(got, key) {
			t.Errorf("%d bytes do not come back", n)
		}
		for _, bad := range [][]byte{wrapped[:len(wrapped)-1], wrapped[8:], append(bytes.Clone(wrapped), make([]byte, 8)...), nil} {
			if _, ok := unwrapKWP(block, bad); ok {
				t.Errorf("%d bytes unwrapped out of %d", n, len(bad))
			}
		}
	}
}
