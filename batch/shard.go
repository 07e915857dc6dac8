package batch

import (
	"math/bits"
	"sync"
	"time"
)

// verdict is what a waiting caller is woken with.
type verdict uint8

const (
	done   verdict = iota // the job has been in a round
	late                  // the deadline passed first
	leads                 // lead the next round; the caller's job is first in the queue
	broken                // the round panicked
)

// seat is one caller's place in a queue. Pooled: wake is empty whenever the seat is free.
type seat[J any] struct {
	job      *J
	deadline time.Time
	wake     chan verdict // capacity 1, exactly one send per wait
}

// sizeClasses covers round sizes 1, 2, 3–4, 5–8, … 513–1024.
const sizeClasses = 11

type shard[J any] struct {
	mu     sync.Mutex
	queue  []*seat[J] // guarded by mu; arrival order; capacity QueueMax
	busy   bool       // guarded by mu; somebody leads
	closed bool       // guarded by mu

	// How long rounds under load take, a moving average over the last eight or so, and what follows from it.
	pace  time.Duration // guarded by mu; 0 is not known
	room  int           // guarded by mu; jobs that may wait
	since time.Time     // guarded by mu; when the round before handed on, zero if it left the shard idle

	callers sync.WaitGroup // inside Do; added to under mu while not closed

	taken  []*seat[J] // the leader's
	round  []*J       // the leader's
	firsts []*J       // the leader's: of those in round that are run as one, one each

	// Counters, guarded by mu.
	jobs, rounds, full, late uint64
	sizes                    [sizeClasses]uint64

	_ [64]byte // keep neighbours' locks off this cache line
}

func (s *shard[J]) init(cfg Config, most int) {
	s.room = cfg.QueueMax
	s.queue = make([]*seat[J], 0, cfg.QueueMax)
	s.taken = make([]*seat[J], 0, most)
	s.round = make([]*J, 0, most)
	s.firsts = make([]*J, 0, cfg.RoundMax)
}

// sizeClass is the index of the smallest power of two that is at least n, 1 <= n <= 1024.
func sizeClass(n int) int { return bits.Len(uint(n - 1)) }

// Stats counts since New.
type Stats struct {
	Jobs   uint64              `json:"jobs"`   // jobs that were in a round
	Rounds uint64              `json:"rounds"` // rounds run; Jobs/Rounds is the mean round
	Full   uint64              `json:"full"`   // refused with ErrFull
	Late   uint64              `json:"late"`   // refused with ErrDeadline
	Queued int                 `json:"queued"` // waiting now
	Sizes  [sizeClasses]uint64 `json:"sizes"`  // rounds of 1, 2, ≤4, ≤8, … ≤1024 jobs
}

// Stats adds up the shards.
func (b *Batcher[J]) Stats() Stats {
	var t Stats
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		t.Jobs += s.jobs
		t.Rounds += s.rounds
		t.Full += s.full
		t.Late += s.late
		t.Queued += len(s.queue)
		for c, n := range s.sizes {
			t.Sizes[c] += n
		}
		s.mu.Unlock()
	}
	return t
}
