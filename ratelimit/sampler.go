package ratelimit

import "sync/atomic"

// Sampler lets through what fits its Limit and counts what it leaves out, for records and warnings whose number a stranger decides. Safe for
// concurrent use.
type Sampler struct {
	Limit   Limit
	gcra    GCRA
	skipped atomic.Uint64
}

// Take reports whether an event at now fits, in nanoseconds as GCRA.Take has it. For one that does, skipped is how many were left out since
// the last that did; whoever cannot tell of them gives them back with Return.
func (s *Sampler) Take(now int64) (ok bool, skipped uint64) {
	if ok, _ = s.gcra.Take(s.Limit, now); !ok {
		s.skipped.Add(1)
		return false, 0
	}
	return true, s.skipped.Swap(0)
}

// Return counts n events as left out.
func (s *Sampler) Return(n uint64) { s.skipped.Add(n) }
