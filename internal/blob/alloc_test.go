//go:build !race

package blob_test

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/blob"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestAlloc(t *testing.T) {
	const runs = 10_000
	h := sampleHeader()
	b := append(h.Append(nil), make([]byte, 48)...)
	aad := make([]byte, 0, blob.HeaderLen+kmsapi.ContextBytesMax)
	keys := make([][]byte, kmsapi.ContextPairsMax)
	for i := range keys {
		keys[i] = []byte{'a' + byte(i*37%26), '0' + byte(i)}
	}
	context := new(blob.Context)
	n := alloctest.Mallocs(runs, func() {
		var h blob.Header
		if _, ok := blob.Parse(b, &h); !ok {
			t.Fatal("does not parse")
		}
		if _, ok := blob.Parse(b[:80], &h); ok {
			t.Fatal("parses when cut")
		}
		for _, k := range keys {
			if f := context.Add(k, k); f != blob.FaultNone {
				t.Fatal(f)
			}
		}
		if context.Add(keys[0], nil) != blob.FaultDuplicate {
			t.Fatal("a duplicate is taken")
		}
		aad = context.AppendTo(h.Append(aad[:0]))
		context.Reset()
	})
	// The test's own goroutines may allocate a little; one allocation per hundred runs would be 100.
	if n > 10 {
		t.Errorf("%d allocations in %d runs", n, runs)
	}
}

func BenchmarkParse(b *testing.B) {
	h := sampleHeader()
	in := append(h.Append(nil), make([]byte, 48)...)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := blob.Parse(in, &h); !ok {
			b.Fatal("does not parse")
		}
	}
}

func BenchmarkContext(b *testing.B) {
	keys := [][]byte{[]byte("tenant"), []byte("purpose"), []byte("aws:s3:arn")}
	c, dst := new(blob.Context), make([]byte, 0, 512)
	b.ReportAllocs()
	for b.Loop() {
		for _, k := range keys {
			c.Add(k, k)
		}
		dst = c.AppendTo(dst[:0])
		c.Reset()
	}
}
