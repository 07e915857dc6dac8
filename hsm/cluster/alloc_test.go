//go:build !race

package cluster

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// TestAllocRun: that a member is chosen allocates nothing, and asserts so on the total, because an average per call rounds down.
func TestAllocRun(t *testing.T) {
	r := newRig(t, 0, 1)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	j := blocks()
	j.K1 = subkey(t, r.Cluster, copies)
	run := func(n int) {
		for range n {
			if err := r.Run(j, copies, time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(1000)
	served := r.Stats()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(10_000)
	runtime.ReadMemStats(&after)
	n := after.Mallocs - before.Mallocs
	t.Logf("%d allocs in 10 000 jobs on the members of a cluster", n)
	if n > 20 { // the runtime's own: supervisors' timers, ReadMemStats
		t.Errorf("%d allocations in 10 000 jobs", n)
	}
	for i, st := range r.Stats() {
		if st.Jobs == served[i].Jobs {
			t.Errorf("%s served nothing", st.Name)
		}
	}
}
