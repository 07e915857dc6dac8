//go:build !race

package hsm_test

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
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

// TestAllocBlocks: a round of jobs with two keys, a call for each, allocates nothing.
func TestAllocBlocks(t *testing.T) {
	plain := softToken(t)
	for name, token := range map[string]hsm.Token{"in process": plain, "watched": hsmtest.NewFaulty(plain)} {
		t.Run(name, func(t *testing.T) {
			var round func(int, []*hsm.KeyJob)
			r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) {
				c.Tokens = []hsm.Token{token}
				c.Batch = func(n int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
					round = run
					return batched(64)(n, run)
				}
			})
			a, b := r.key(t, keyspec.AES256), r.key(t, keyspec.AES256)
			again := *a.Key
			a1, b1 := r.k1(t, a), r.k1(t, b)
			jobs := make([]*hsm.KeyJob, 8)
			for i := range jobs {
				jobs[i] = &hsm.KeyJob{Key: []*hsm.Key{a.Key, b.Key, &again, a.Key}[i%4], Mechanism: hsm.EncryptBlocks, In: make([]byte, 48), Out: make([]byte, 96)}
				if jobs[i].K1 = a1; i%4 == 1 {
					jobs[i].K1 = b1
				}
			}
			run := func(n int) {
				for range n {
					round(0, jobs)
					for _, j := range jobs {
						if j.Err != nil || j.N != len(j.In) {
							t.Fatal(j.N, j.Err)
						}
					}
				}
			}
			run(1000)
			defer debug.SetGCPercent(debug.SetGCPercent(-1))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			run(5000)
			runtime.ReadMemStats(&after)
			if n := after.Mallocs - before.Mallocs; n > 20 { // the runtime's own: supervisors' timers, ReadMemStats
				t.Errorf("%d allocations in 5000 rounds", n)
			}
		})
	}
}

// TestAllocKeys: a job with a warm key allocates what Go's crypto does for it, and nothing besides.
func TestAllocKeys(t *testing.T) {
	plain := softToken(t).(hsm.KeyToken)
	for name, token := range map[string]hsm.Token{"in process": plain, "watched": hsmtest.NewFaulty(plain)} {
		for _, s := range []keyspec.Spec{keyspec.HMAC256, keyspec.Ed25519} {
			t.Run(name+" "+s.String(), func(t *testing.T) {
				r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{token} })
				k := r.key(t, s)
				j := &hsm.KeyJob{Key: k.Key, Mechanism: hsmtest.FirstOf(hsm.MechanismsOf(s)), In: make([]byte, 64), Out: make([]byte, 64)}
				run := func(n int) {
					for range n {
						if err := r.Run(j, time.Now()); err != nil {
							t.Fatal(err)
						}
					}
				}
				loaded, err := plain.LoadKey(s, k.Wrapped)
				if err != nil {
					t.Fatal(err)
				}
				session, err := plain.OpenSession()
				if err != nil {
					t.Fatal(err)
				}
				defer session.Close()
				bare := func(n int) {
					for range n {
						if _, err := session.(hsm.KeySession).Use(loaded, s, j.Mechanism, j.In, j.Out); err != nil {
							t.Fatal(err)
						}
					}
				}
				defer debug.SetGCPercent(debug.SetGCPercent(-1))
				const jobs = 5000
				mallocs := func(f func(int)) uint64 {
					f(1000)
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					f(jobs)
					runtime.ReadMemStats(&after)
					return after.Mallocs - before.Mallocs
				}
				want := mallocs(bare)
				if got := mallocs(run); got > want+20 { // the runtime's own: supervisors' timers, ReadMemStats
					t.Errorf("%d allocations in %d jobs, %d without us", got, jobs, want)
				}
				t.Logf("%d allocations a job, all of Go's crypto", want/jobs)
			})
		}
	}
}
