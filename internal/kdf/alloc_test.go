//go:build !race

package kdf_test

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/kdf"
)

func TestAlloc(t *testing.T) {
	const runs = 10_000
	nonce := make([]byte, 24)
	var sum byte
	n := alloctest.Mallocs(runs, func() {
		var l, k1, c1, offset, in [16]byte
		l[0], c1[3] = sum, 7
		kdf.SubkeyK1(&k1, &l)
		kdf.ChainInput2(&in, &c1, &k1)
		kdf.Offset(&offset, &in, &k1)
		for i := byte(1); i <= 3; i++ {
			kdf.Input(&in, &offset, nonce[:12], i)
			sum ^= in[5]
		}
	})
	// The test's own goroutines may allocate a little; one allocation per hundred runs would be 100.
	if n > 10 {
		t.Errorf("derivation inputs: %d allocations in %d runs", n, runs)
	}
}

func BenchmarkInput(b *testing.B) {
	var dst, offset [16]byte
	nonce := make([]byte, 12)
	b.ReportAllocs()
	for b.Loop() {
		kdf.Input(&dst, &offset, nonce, 1)
	}
}
