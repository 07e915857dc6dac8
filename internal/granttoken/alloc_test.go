//go:build !race

package granttoken

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestNoAllocations(t *testing.T) {
	good := Append(nil, &example, [saltLen]byte{})
	bad := append([]byte{'!'}, good[1:]...)
	dst := make([]byte, 0, Len)
	run := func() {
		if got, ok := Parse(good); !ok || got != example {
			t.Fatal("not read")
		}
		if _, ok := Parse(bad); ok {
			t.Fatal("read")
		}
		dst = Append(dst[:0], &example, [saltLen]byte{})
	}
	run()
	if n := alloctest.Mallocs(20_000, run); n != 0 {
		t.Errorf("%d allocations in 20000 runs", n)
	}
}
