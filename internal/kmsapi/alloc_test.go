//go:build !race

package kmsapi

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// mallocs is the total of heap allocations in n runs. The counter is the whole process's, and the runtime now and then starts a thread, which
// allocates some six objects; so the least of five measurements counts. What run itself allocates is in all of them.
func mallocs(n int, run func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	least := ^uint64(0)
	for try := 0; try < 5 && least > 0; try++ {
		runtime.GC() // ends a collection that is under way
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			run()
		}
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	return least
}

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
	if n := mallocs(20_000, run); n != 0 {
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
