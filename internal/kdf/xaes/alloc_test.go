//go:build !race

package xaes_test

import (
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestAlloc(t *testing.T) {
	const runs = 10_000
	nonce := make([]byte, 24)
	x := newXAES(t, make([]byte, 32))
	plaintext, out, back := make([]byte, 32), make([]byte, 0, 48), make([]byte, 0, 32)
	n := alloctest.Mallocs(runs, func() {
		out = x.Seal(out[:0], (*[24]byte)(nonce), plaintext, nil)
		if _, ok := x.Open(back, (*[24]byte)(nonce), out, nil); !ok {
			t.Fatal("does not open")
		}
	})
	want := uint64(0)
	if strings.HasPrefix(aesgcm.Path(), "go ") {
		want = 2 * 2 * runs // the standard library's block and AEAD for each Seal and Open
	}
	// The test's own goroutines may allocate a little; one allocation per hundred runs would be 100.
	if n > want+10 {
		t.Errorf("XAES: %d allocations in %d runs, want %d", n, runs, want)
	}
}
