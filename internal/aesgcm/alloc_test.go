//go:build !race

package aesgcm_test

import (
	"testing"

	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestAlloc(t *testing.T) {
	const runs = 10_000
	eachPath(t, func(t *testing.T) {
		key, nonce, plaintext, aad := sample(32, 71)
		out := make([]byte, 0, 64)
		back := make([]byte, 0, 64)
		sealed := aesgcm.Seal(nil, &key, &nonce, plaintext, aad)
		bad := append([]byte{^sealed[0]}, sealed[1:]...)
		n := alloctest.Mallocs(runs, func() {
			out = aesgcm.Seal(out[:0], &key, &nonce, plaintext, aad)
			if _, ok := aesgcm.Open(back, &key, &nonce, out, aad); !ok {
				t.Fatal("does not open")
			}
			if _, ok := aesgcm.Open(back, &key, &nonce, bad, aad); ok {
				t.Fatal("opens a flipped message")
			}
		})
		want := uint64(0)
		if t.Name() == "TestAlloc/path=go" {
			want = 3 * 2 * runs // block and AEAD of each message
		}
		// The test's own goroutines may allocate a little in 10 000 runs; one allocation per hundred messages would be 300.
		if n > want+10 {
			t.Errorf("%d allocations in %d runs, want %d", n, runs, want)
		}
	})
}
