//go:build !race

package audit

import (
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

// TestAllocAppend asserts on the total of the process: the callers, the writer, the watchdog and the integrator. The keeper, which signs once in a
// while, is kept quiet.
func TestAllocAppend(t *testing.T) {
	const callers, each = 8, 10_000
	for _, d := range []Durability{Write, Fsync} {
		cfg := testConfig(t.TempDir())
		cfg.Durability, cfg.CheckpointEvery = d, time.Hour
		n := each
		if d == Fsync {
			n = 500
		}
		l := mustOpen(t, cfg)
		start, ready := make(chan int), make(chan struct{}, callers)
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				rec := record(1)
				for n := range start {
					for range n {
						if err := l.Append(rec); err != nil {
							t.Error(err)
						}
					}
					ready <- struct{}{}
				}
			})
		}
		phase := func(n int) {
			for range callers {
				start <- n
			}
			for range callers {
				<-ready
			}
			await(t, "integration", func() bool { s := l.Stats(); return s.Integrated == s.Next })
		}
		phase(n) // buffers of hashes have grown as far as they do
		least := ^uint64(0)
		for range 5 {
			gc := debug.SetGCPercent(-1)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			phase(n)
			runtime.ReadMemStats(&after)
			debug.SetGCPercent(gc)
			least = min(least, after.Mallocs-before.Mallocs)
		}
		close(start)
		wg.Wait()
		t.Logf("%v: %d allocations in %d appends", d, least, callers*n)
		// A goroutine's wait records, a timer of the test and growing stacks: a constant, not a share of the calls.
		if least > 64 {
			t.Errorf("%v: %d allocations in %d appends", d, least, callers*n)
		}
		mustClose(t, l)
	}
}
