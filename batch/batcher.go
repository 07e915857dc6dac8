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
	// WaitMax bounds the wait that a shard's queue promises: a job that would wait longer, going by how long the shard's rounds take, gets
	// ErrFull at once. The next round can always be filled. 0 means no such bound.
	WaitMax time.Duration
}

// Run executes one round. It must leave an outcome in every job and keep none of them, nor the slice, when it returns.
// Calls for one shard never overlap; calls for different shards do. It must not panic.
type Run[J any] func(shard int, round []*J)

// Batcher joins callers into rounds. Its methods are safe for concurrent use.
type Batcher[J any] struct {
	cfg    Config
	run    Run[J]
	same   func(a, b *J) bool // nil: no two jobs are run as one
	most   int                // jobs in one round
	shards []shard[J]
	seats  sync.Pool // *seat[J]
}

// New makes a batcher. It starts no goroutine.
func New[J any](cfg Config, run Run[J]) (*Batcher[J], error) {
	return NewJoining(cfg, cfg.RoundMax, nil, run)
}

// NewJoining makes a batcher whose run does those jobs of a round as one that same says are. Config.RoundMax counts them as one, and most, RoundMax..1024, bounds all
// jobs of a round. same is called with jobs that are handed in, while others may be handed in.
func NewJoining[J any](cfg Config, most int, same func(a, b *J) bool, run Run[J]) (*Batcher[J], error) {
	if most < cfg.RoundMax || most > 1024 {
		return nil, fmt.Errorf("batch: config out of range: %+v, rounds of %d at most", cfg, most)
	}
	if cfg.Shards < 1 || cfg.RoundMax < 1 || cfg.RoundMax > 1024 || cfg.QueueMax < 1 || cfg.WaitMax < 0 {
		return nil, fmt.Errorf("batch: config out of range: %+v", cfg)
	}
	b := &Batcher[J]{cfg: cfg, run: run, same: same, most: most, shards: make([]shard[J], cfg.Shards)}
	b.seats.New = func() any { return &seat[J]{wake: make(chan verdict, 1)} }
	for i := range b.shards {
		b.shards[i].init(cfg, most)
	}
	return b, nil
}

// Do hands j to a shard, 0 <= shard < Config.Shards, and returns when j has an outcome or could not start by deadline (zero: no deadline).
// When Do returns, j belongs to the caller again, whatever the result. A job whose round has begun is waited for even past its deadline,
// because the round may still write into it; the bound on that wait is Run's own.
func (b *Batcher[J]) Do(shard int, j *J, deadline time.Time) error {
	return b.do(shard, j, deadline, false)
}

// Insist is Do for a job that others wait for: only QueueMax refuses it, not the wait it is going to have.
func (b *Batcher[J]) Insist(shard int, j *J, deadline time.Time) error {
	return b.do(shard, j, deadline, true)
}

func (b *Batcher[J]) do(shard int, j *J, deadline time.Time, insist bool) error {
	s := &b.shards[shard]
	st := b.seats.Get().(*seat[J])
	st.job, st.deadline = j, deadline

	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		b.free(st)
		return ErrClosed
	case len(s.queue) >= s.room && !insist, len(s.queue) >= b.cfg.QueueMax:
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

// lead runs one round, hands the shard on and returns the verdict on the leader's own job, which is first in the queue.
func (b *Batcher[J]) lead(n int, s *shard[J], own *seat[J]) verdict {
	runtime.Gosched()

	now := time.Now()
	ownVerdict := s.take(b, own, now)
	outcome := broken
	defer func() { b.handOn(s, own, outcome) }() // also when run panics: nobody is left waiting
	if len(s.round) > 0 {
		b.run(n, s.round)
	}
	outcome = done
	return ownVerdict
}

// take moves the jobs of the next round from the queue to round and their seats to taken. Those whose deadline has passed are told, and take
// no room in the round.
func (s *shard[J]) take(b *Batcher[J], own *seat[J], now time.Time) verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	ownVerdict, n := done, 0
	for ; n < len(s.queue) && len(s.round) < b.most; n++ {
		st := s.queue[n]
		if st.deadline.IsZero() || !now.After(st.deadline) {
			if b.same != nil && !s.counts(b, st.job) {
				break
			}
			s.taken = append(s.taken, st)
			s.round = append(s.round, st.job)
			continue
		}
		s.late++
		if st == own {
			ownVerdict = late
		} else {
			st.wake <- late
		}
	}
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	return ownVerdict
}

// counts reports whether the round takes one more job: one that is run as one with another of the round, or as one of its own.
func (s *shard[J]) counts(b *Batcher[J], j *J) bool {
	for _, first := range s.firsts {
		if b.same(first, j) {
			return true
		}
	}
	if len(s.firsts) == b.cfg.RoundMax {
		return false
	}
	s.firsts = append(s.firsts, j)
	return true
}

// handOn wakes the callers of the round that ended and chooses the next leader.
func (b *Batcher[J]) handOn(s *shard[J], own *seat[J], outcome verdict) {
	jobs := len(s.round)
	for _, st := range s.taken {
		if st != own {
			st.wake <- outcome
		}
	}
	clear(s.round)
	clear(s.taken)
	clear(s.firsts)
	s.round, s.taken, s.firsts = s.round[:0], s.taken[:0], s.firsts[:0]

	s.mu.Lock()
	defer s.mu.Unlock()
	if jobs > 0 {
		s.rounds++
		s.jobs += uint64(jobs)
		s.sizes[sizeClass(jobs)]++
	}
	if len(s.queue) == 0 {
		s.busy = false
		s.idled(&b.cfg)
		return
	}
	s.paced(&b.cfg, time.Now())
	s.queue[0].wake <- leads
}

// paced takes the time from one hand-on to the next into account: a round under load, with the waking of its leader.
func (s *shard[J]) paced(c *Config, now time.Time) {
	switch took := now.Sub(s.since); {
	case s.since.IsZero(): // the shard was idle before this round
	case s.pace == 0:
		s.pace = took
	default:
		s.pace += (took - s.pace) / 8
	}
	s.since = now
	s.room = c.room(s.pace)
}

// idled lets the past fade while there is no load to measure a round by.
func (s *shard[J]) idled(c *Config) {
	s.since = time.Time{}
	if s.pace > 0 {
		s.pace -= (s.pace + 7) / 8
		s.room = c.room(s.pace)
	}
}

// room is how many jobs may wait at a shard whose rounds take pace: as many as WaitMax is enough for, and always one round.
func (c *Config) room(pace time.Duration) int {
	if c.WaitMax == 0 || pace <= 0 {
		return c.QueueMax
	}
	rounds := float64(c.WaitMax) / float64(pace)
	return min(c.QueueMax, max(c.RoundMax, int(min(rounds*float64(c.RoundMax), float64(c.QueueMax)))))
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
