//go:build !race

package kmsapi

import (
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestNoAllocations(t *testing.T) {
	target, unknown, message, value := []byte("TrentService.GenerateDataKey"), []byte("TrentService.NoSuchOperation"), []byte("a \"é\" \xff"), []byte("x y")
	out := make([]byte, 0, 2048)
	var v Violations
	run := func() {
		if Route(target) == nil || Route(unknown) != nil {
			t.Fatal("routing is broken")
		}
		v.Null("keyId")
		v.MaxLength("grantTokens.1.member", value, GrantTokenMax)
		v.Max("numberOfBytes", 1025, RandomBytesMax)
		v.Enum("keySpec", value, "[AES_256, AES_128]")
		v.Hidden("plaintext", NotNull)
		out = v.AppendMessage(out[:0])
		v.Reset()
		out = AppendErrorBody(out, NotFound, message)
		out = AppendString(out, "é")
	}
	run()
	if n := alloctest.Mallocs(20_000, run); n != 0 {
		t.Errorf("%d allocations in 20000 runs", n)
	}
}

func BenchmarkRoute(b *testing.B) {
	target := []byte("TrentService.GenerateDataKey")
	for b.Loop() {
		if Route(target) == nil {
			b.Fatal("nil")
		}
	}
}
