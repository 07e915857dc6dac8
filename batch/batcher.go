package batch

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// Errors of Do. With each of them the job was not run.
var (
	ErrFull     = errors.New("batch: queue of the shard is full")
	ErrDeadline = errors.New("batch: deadline passed before the job could start")
	ErrClosed   = errors.New("batch: closed")
)

// ErrPanic is Do's answer to the callers whose round panicked in another caller's goroutine. Their jobs have no outcome.
var ErrPanic = errors.New("batch: the round panicked")

// Config sizes a Batcher. All fields are required.
type Config struct {
	Shards   int // > 0; jobs of one shard run one round at a time
	RoundMax int // jobs in one round, 1..1024
	QueueMax int // jobs waiting per shard, ≥ 1; beyond it Do returns ErrFull
}

// Run executes one round. It must leave an outcome in every job and keep none of them, nor the slice, when it returns.
// Calls for one shard never overlap; calls for different shards do. It must not panic.
type Run[J any] func(shard int, round []*J)

// Batcher joins callers into rounds. Its methods are safe for concurrent use.
type Batcher[J any] struct {
	cfg    Config
	run    Run[J]
	shards []shard[J]
	seats  sync.Pool // *seat[J]
}

// New makes a batcher. It starts no goroutine.
func New[J any](cfg Config, run Run[J]) (*Batcher[J], error) {
	if cfg.Shards < 1 || cfg.RoundMax < 1 || cfg.RoundMax > 1024 || cfg.QueueMax < 1 {
		return nil, fmt.Errorf("batch: config out of range: %+v", cfg)
	}
	b := &Batcher[J]{cfg: cfg, run: run, shards: make([]shard[J], cfg.Shards)}
	b.seats.New = func() any { return &seat[J]{wake: make(chan verdict, 1)} }
	for i := range b.shards {
		b.shards[i].init(cfg)
	}
	return b, nil
}

// Do hands j to a shard, 0 <= shard < Config.Shards, and returns when j has an outcome or could not start by deadline (zero: no deadline).
// When Do returns, j belongs to the caller again, whatever the result. A job whose round has begun is waited for even past its deadline,
// because the round may still write into it; the bound on that wait is Run's own.
func (b *Batcher[J]) Do(shard int, j *J, deadline time.Time) error {
	s := &b.shards[shard]
	st := b.seats.Get().(*seat[J])
	st.job, st.deadline = j, deadline

	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		b.free(st)
		return ErrClosed
	case len(s.queue) >= b.cfg.QueueMax:
		s.full++
		s.mu.Unlock()
		b.free(st)
		return ErrFull
	}
	s.callers.Add(1)
	defer s.callers.Done()
	s.queue = append(s.queue, st)
	lead := !s.busy
	s.busy = true
	s.mu.Unlock()

	v := leads
	if !lead {
		v = <-st.wake
	}
	if v == leads {
		// A leader's own job is in the round it runs: it was first in the queue when it was chosen.
		v = b.lead(shard, s, st)
	}
	b.free(st)
	switch v {
	case late:
		return ErrDeadline
	case broken:
		return ErrPanic
	}
	return nil
}

// lead runs one round, hands the shard on and returns the verdict on the leader's own job.
func (b *Batcher[J]) lead(n int, s *shard[J], own *seat[J]) verdict {
	runtime.Gosched()

	s.mu.Lock()
	take := min(len(s.queue), b.cfg.RoundMax)
	s.taken = append(s.taken[:0], s.queue[:take]...)
	rest := copy(s.queue, s.queue[take:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	s.mu.Unlock()

	ownVerdict := s.dropLate(own)
	outcome := broken
	defer func() { s.handOn(own, outcome) }() // also when run panics: nobody is left waiting
	if len(s.round) > 0 {
		b.run(n, s.round)
	}
	outcome = done
	return ownVerdict
}

// dropLate turns taken into round: the jobs that can still start. The others are told and their place in taken is cleared.
func (s *shard[J]) dropLate(own *seat[J]) verdict {
	ownVerdict := done
	s.round = s.round[:0]
	var now time.Time
	for i, st := range s.taken {
		if !st.deadline.IsZero() {
			if now.IsZero() {
				now = time.Now()
			}
			if now.After(st.deadline) {
				s.taken[i] = nil
				if st == own {
					ownVerdict = late
				} else {
					st.wake <- late
				}
				continue
			}
		}
		s.round = append(s.round, st.job)
	}
	return ownVerdict
}

// handOn wakes the callers of the round that ended and chooses the next leader.
func (s *shard[J]) handOn(own *seat[J], outcome verdict) {
	taken, jobs := len(s.taken), len(s.round)
	for _, st := range s.taken {
		if st != nil && st != own {
			st.wake <- outcome
		}
	}
	clear(s.round)
	clear(s.taken)

	s.mu.Lock()
	defer s.mu.Unlock()
	if jobs > 0 {
		s.rounds++
		s.jobs += uint64(jobs)
		s.sizes[sizeClass(jobs)]++
	}
	s.late += uint64(taken - jobs)
	if len(s.queue) > 0 {
		s.queue[0].wake <- leads
	} else {
		s.busy = false
	}
}

func (b *Batcher[J]) free(st *seat[J]) {
	st.job = nil
	b.seats.Put(st)
}

// Close refuses new jobs and returns when the jobs already queued have been run.
func (b *Batcher[J]) Close() {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
	}
	for i := range b.shards {
		b.shards[i].callers.Wait()
	}
}
