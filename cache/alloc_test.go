//go:build !race

package cache

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// Get allocates ristretto's buffer of reads once in `hits` calls, and nothing else.
func TestAllocGet(t *testing.T) {
	c := newCache[int](t, 1<<20)
	keep(t, c, "name", 1)
	name, other := []byte("name"), []byte("other")
	get := func(n int) {
		for range n {
			if c.Get(name) == nil || c.Get(other) != nil {
				t.Fatal("not what was kept")
			}
		}
	}
	const runs = 20_000
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	get(runs)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	get(runs)
	runtime.ReadMemStats(&after)
	n := after.Mallocs - before.Mallocs
	t.Logf("%d allocations in %d calls", n, 2*runs)
	if n > 2*runs/hits+50 {
		t.Errorf("%d allocations in %d calls of Get", n, 2*runs)
	}
}
