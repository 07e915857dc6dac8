//go:build !race

package granttoken

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
	if n := mallocs(20_000, run); n != 0 {
		t.Errorf("%d allocations in 20000 runs", n)
	}
}
