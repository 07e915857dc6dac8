//go:build !race

package batch

import (
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"
)

// TestAllocDo asserts on the total, because an average per call rounds down.
func TestAllocDo(t *testing.T) {
	const callers, each = 8, 10000
	b := must(t, Config{Shards: 1, RoundMax: 64, QueueMax: 64}, double)
	start, ready := make(chan int), make(chan struct{}, callers)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			var j job
			for n := range start {
				for range n {
					if err := b.Do(0, &j, time.Now().Add(time.Minute)); err != nil {
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
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	phase(1000) // every caller has a seat, every channel its waiters
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	phase(each)
	runtime.ReadMemStats(&after)
	close(start)
	wg.Wait()
	// The runtime itself may allocate a goroutine's wait records and a pool's tables: a constant, not a share of the calls.
	if n := after.Mallocs - before.Mallocs; n > 64 {
		t.Errorf("%d allocations in %d calls", n, callers*each)
	}
}
