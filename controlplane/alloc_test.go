//go:build !race

package controlplane

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestCredentialsAlloc: looking up an access key, known or not, allocates nothing. The total over all runs is checked, not an average.
func TestCredentialsAlloc(t *testing.T) {
	e := newEnv(t)
	known, unknown := []byte(e.keyID), []byte("AKIANOBODY")
	const runs = 10_000
	found := 0
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	measure := func() uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			if e.creds.AccessKey(known) != nil {
				found++
			}
			if e.creds.AccessKey(unknown) != nil {
				found--
			}
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	// etcd's own goroutines of this process allocate now and then: the lookups are clean if one of a few measurements is.
	least := measure()
	tries := 1
	for ; least != 0 && tries < 20; tries++ {
		least = min(least, measure())
	}
	if least != 0 {
		t.Errorf("at least %d mallocs in %d lookups", least, 2*runs)
	}
	if found != tries*runs {
		t.Errorf("%d lookups of %d found the key", found, tries*runs)
	}
}
