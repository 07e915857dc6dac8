//go:build !race

package hsm_test

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// TestAllocRun: nothing is allocated per round, neither in process nor where a goroutine watches over the module.
func TestAllocRun(t *testing.T) {
	for name, token := range map[string]hsm.Token{"in process": softToken(t), "watched": hsmtest.NewFaulty(softToken(t))} {
		t.Run(name, func(t *testing.T) {
			s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 2, RoundMax: 8})
			gen := &hsm.Job{N: 1, Root: s.Primary(), Random: make([]byte, 32)}
			gen.Derive[0].Draw = true
			dec := &hsm.Job{N: 1, Root: s.Primary()}
			random := &hsm.Job{Random: make([]byte, 1024)}
			foreign := &hsm.Job{N: 1, Root: hsm.RootID{1}}
			round := []*hsm.Job{gen, dec, random, foreign, gen}
			run := func(n int) {
				for i := range n {
					shard, err := s.Pick(s.Primary(), uint64(i))
					if err != nil {
						t.Fatal(err)
					}
					if other, err := s.PickOther(s.Primary(), shard, uint64(i)); err != nil || other == shard {
						t.Fatal(other, err)
					}
					s.Run(shard, round)
					if hsm.Outcome(gen.Err) != hsm.Done || hsm.Outcome(foreign.Err) != hsm.Unavailable {
						t.Fatal(gen.Err, foreign.Err)
					}
				}
			}
			run(1000)
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			run(10_000)
			runtime.ReadMemStats(&after)
			if n := after.Mallocs - before.Mallocs; n > 20 { // the runtime's own: supervisors' timers, ReadMemStats
				t.Errorf("%d allocations in 10 000 rounds", n)
			}
		})
	}
}
