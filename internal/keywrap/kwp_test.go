package keywrap

import (
	"bytes"
	"crypto/aes"
	"testing"

	"github.com/keyplane/keyplane/internal/wycheproof"
)

// TestWycheproofKWP: the construction is the same for all key lengths, so all are run.
func TestWycheproofKWP(t *testing.T) {
	n := 0
	for _, g := range wycheproof.Load[struct{}, struct {
		wycheproof.Case
		Key wycheproof.Bytes `json:"key"`
		Msg wycheproof.Bytes `json:"msg"`
		CT  wycheproof.Bytes `json:"ct"`
	}](t, "aes_kwp") {
		for _, c := range g.Tests {
			n++
			block, err := aes.NewCipher(c.Key)
			if err != nil {
				t.Fatal(err)
			}
			got, ok := Unwrap(block, c.CT)
			if ok != c.Valid() || ok && !bytes.Equal(got, c.Msg) {
				t.Errorf("test %d: unwraps to %x, %t", c.ID, got, ok)
			}
			if ok && !bytes.Equal(Wrap([]byte("head"), block, c.Msg), append([]byte("head"), c.CT...)) {
				t.Errorf("test %d: wraps to something else", c.ID)
			}
		}
	}
	if n < 250 {
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
		wrapped := Wrap(nil, block, key)
		if got, ok := Unwrap(block, wrapped); !ok || !bytes.Equal(got, key) {
			t.Errorf("%d bytes do not come back", n)
		}
		for _, bad := range [][]byte{wrapped[:len(wrapped)-1], wrapped[8:], append(bytes.Clone(wrapped), make([]byte, 8)...), nil} {
			if _, ok := Unwrap(block, bad); ok {
				t.Errorf("%d bytes unwrapped out of %d", n, len(bad))
			}
		}
	}
}
