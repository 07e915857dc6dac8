// Package alloctest counts heap allocations in tests, in total: an average would round a rare one away.
package alloctest

import (
	"runtime"
	"runtime/debug"
)

// Mallocs is the total of heap allocations in n runs. The counter is the whole process's, and the runtime now and then starts a thread, which
// allocates some six objects; so the least of five measurements counts. What run itself allocates is in all of them.
func Mallocs(n int, run func()) uint64 {
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
