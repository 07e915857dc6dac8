package hsm_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/invariants"
)

// canary fills what a reused job must not get results in.
var canary = bytes.Repeat([]byte{0xc5}, 64)

// reuseRig runs a job in the middle of a round.
type reuseRig struct {
	*hsm.Shards
	*hsm.Dispatch
	token            *hsmtest.Faulty
	first, job, last *hsm.Job
	queued           chan struct{} // told when the job is in the queue
	take             chan struct{} // then the round waits for this to be closed
	hangs            chan struct{} // then the call for this
	handIns          int
}

func newReuseRig(t *testing.T) *reuseRig {
	r := &reuseRig{token: hsmtest.NewFaulty(softToken(t)), queued: make(chan struct{}, 2), take: make(chan struct{}), hangs: make(chan struct{})}
	r.Shards = newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{r.token}, SessionsPerToken: 1, RoundMax: 4, RoundTimeout: time.Minute})
	r.first, r.job, r.last = r.ask(1), r.ask(2), r.ask(3)
	r.Dispatch = &hsm.Dispatch{Shards: r.Shards, QueueTimeMax: time.Minute, Do: func(shard int, j *hsm.Job, _ time.Time) error {
		r.handIns++
		r.queued <- struct{}{}
		<-r.take
		r.Shards.Run(shard, []*hsm.Job{r.first, j, r.last})
		return nil
	}}
	return r
}

// ask derives a message key that no other n gives, and 16 times n random bytes.
func (r *reuseRig) ask(n byte) *hsm.Job {
	j := &hsm.Job{N: 1, Root: r.Primary(), Random: make([]byte, 16*n)}
	j.Derive[0].Offset[0], j.Derive[0].Nonce[0] = n, n
	return j
}

// refill makes the job another request's.
func (r *reuseRig) refill(n, random int) {
	r.job.N, r.job.Root, r.job.Random = n, r.Primary(), bytes.Clone(canary[:random])
	for i := range r.job.Derive {
		d := &r.job.Derive[i]
		d.Offset[0], d.Nonce[0] = 9, 9
		copy(d.Out[:], canary)
	}
}

type runOutcome struct {
	err      error
	panicked bool
}

// start hands the job in.
func (r *reuseRig) start() <-chan runOutcome {
	ended := make(chan runOutcome, 1)
	go func() {
		o := runOutcome{panicked: true}
		defer func() {
			_ = recover()
			ended <- o
		}()
		o = runOutcome{err: r.Dispatch.Run(r.job, time.Now())}
	}()
	<-r.queued
	return ended
}

// inCall returns when the round is in the token.
func (r *reuseRig) inCall() {
	calls := r.token.Calls(hsmtest.Round)
	r.token.Add(hsmtest.Fault{Op: hsmtest.Round, Hang: r.hangs})
	close(r.take)
	for r.token.Calls(hsmtest.Round) == calls {
		time.Sleep(time.Millisecond)
	}
}

func panics(f func()) (p bool) {
	defer func() { p = recover() != nil }()
	f()
	return false
}

// TestReusedJobGetsNothing: a job that its owner wipes, refills or changes while a round has it gets nothing of that round, the owner is told,
// and the round's other jobs get their own results. Builds with invariants panic instead, in whoever notices first.
func TestReusedJobGetsNothing(t *testing.T) {
	for name, reuse := range map[string]func(r *reuseRig){
		"wiped":      func(r *reuseRig) { r.job.Wipe() },
		"same shape": func(r *reuseRig) { r.job.Wipe(); r.refill(1, 32) },
		"same request": func(r *reuseRig) {
			r.job.Wipe()
			r.refill(1, 32)
			r.job.Derive[0].Offset[0], r.job.Derive[0].Nonce[0] = 2, 2
		},
		"asks for more":            func(r *reuseRig) { r.job.Wipe(); r.refill(2, 64) },
		"asks for less":            func(r *reuseRig) { r.job.Wipe(); r.refill(0, 16) },
		"not wiped":                func(r *reuseRig) { r.refill(1, 32) },
		"not wiped, asks for more": func(r *reuseRig) { r.refill(2, 32) },
		"other version":            func(r *reuseRig) { r.job.Derive[0].Offset[15] ^= 1 },
		"other nonce":              func(r *reuseRig) { r.job.Derive[0].Nonce[11] ^= 1 },
		"not wiped, asks for less": func(r *reuseRig) { r.job.N = 0 },
		"raw":                      func(r *reuseRig) { r.job.Raw, r.job.N = true, 0 },
		"other random":             func(r *reuseRig) { r.job.Random = bytes.Clone(canary[:16]) },
		"out of its limits":        func(r *reuseRig) { r.job.N = 3 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newReuseRig(t)
			want := [2]*hsm.Job{r.ask(1), r.ask(3)}
			r.Shards.Run(0, want[:])
			given := r.job.Random
			ended := r.start()
			r.inCall()
			noticed := panics(func() { reuse(r) })
			close(r.hangs)
			o := <-ended
			if noticed = noticed || o.panicked; noticed != invariants.Enabled {
				t.Fatalf("panicked: %v, builds with invariants do: %v", noticed, invariants.Enabled)
			}
			if noticed {
				return
			}
			if !errors.Is(o.err, hsm.ErrReused) || hsm.Retryable(o.err) || hsm.Outcome(o.err) != hsm.Internal {
				t.Errorf("the owner got %v", o.err)
			}
			for i := range r.job.Derive {
				if out := r.job.Derive[i].Out[:]; !bytes.Equal(out, canary[:48]) && !bytes.Equal(out, make([]byte, 48)) {
					t.Errorf("derivation %d of the next owner is %x", i, out)
				}
			}
			if !bytes.Equal(given, make([]byte, 32)) {
				t.Errorf("random of the first owner is %x", given)
			}
			if random := r.job.Random; len(random) > 0 && &random[0] != &given[0] && !bytes.Equal(random, canary[:len(random)]) {
				t.Errorf("random of the next owner is %x", random)
			}
			for i, j := range []*hsm.Job{r.first, r.last} {
				if j.Err != nil || j.Derive[0].Out != want[i].Derive[0].Out || bytes.Equal(j.Random, make([]byte, len(j.Random))) {
					t.Errorf("neighbour %d: %v, %x, random %x", i, j.Err, j.Derive[0].Out, j.Random)
				}
			}
		})
	}
}

// TestHandedInTwice: a job that is handed in already is refused, and the first hand-in gets its result; one that was reused while it waited in
// the queue is not the first owner's any more.
func TestHandedInTwice(t *testing.T) {
	t.Run("twice", func(t *testing.T) {
		r := newReuseRig(t)
		ended := r.start()
		r.inCall()
		var err error
		if panics(func() { err = r.Dispatch.Run(r.job, time.Now()) }) != invariants.Enabled || !invariants.Enabled && !errors.Is(err, hsm.ErrReused) {
			t.Errorf("the second got %v", err)
		}
		close(r.hangs)
		if o := <-ended; o.err != nil || o.panicked || r.handIns != 1 {
			t.Errorf("the first got %+v, %d hand-ins", o, r.handIns)
		}
	})
	t.Run("again from the queue", func(t *testing.T) {
		r := newReuseRig(t)
		first := r.start()
		if panics(r.job.Wipe) {
			if !invariants.Enabled {
				t.Error("panicked")
			}
			close(r.take)
			<-first
			return
		}
		r.refill(1, 32)
		second := r.start()
		// What two rounds of one shard do to the job one after the other: the first delivers to its present owner.
		close(r.take)
		a, b := <-first, <-second
		if !errors.Is(a.err, hsm.ErrReused) || b.err != nil || a.panicked || b.panicked {
			t.Errorf("first owner %+v, second %+v", a, b)
		}
		if r.job.Derive[0].Out == [48]byte(canary[:48]) {
			t.Error("the second owner got nothing")
		}
	})
	t.Run("fault after reuse", func(t *testing.T) {
		r := newReuseRig(t)
		ended := r.start()
		r.token.Add(hsmtest.Fault{Op: hsmtest.Round, Hang: r.hangs, CKR: hsm.CKR_DEVICE_MEMORY})
		calls := r.token.Calls(hsmtest.Round)
		close(r.take)
		for r.token.Calls(hsmtest.Round) == calls {
			time.Sleep(time.Millisecond)
		}
		if panics(r.job.Wipe) != invariants.Enabled {
			t.Error("Wipe")
		}
		close(r.hangs)
		o := <-ended
		if invariants.Enabled {
			return
		}
		if !errors.Is(o.err, hsm.ErrReused) || r.handIns != 1 || r.job.Err != nil || r.job.Attempt != 0 {
			t.Errorf("%v after %d hand-ins; left in the job: %v, attempt %d", o.err, r.handIns, r.job.Err, r.job.Attempt)
		}
	})
}
