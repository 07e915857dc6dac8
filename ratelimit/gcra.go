// Package ratelimit decides whether something may happen now, by the generic cell rate algorithm (GCRA, virtual scheduling form, ITU-T
// I.371 Annex A). It knows no HTTP, no operations and no clock: the caller passes the instant. It starts no goroutine.
//
//	gcra.go    GCRA: one limit; keeps the log readable when every request fails
//	table.go   Table: the buckets of all accounts, one for each pool of requests
//	lease.go   Shares, and tables with a Leaser: how several nodes share the rate of one pool
package ratelimit

import (
	"sync/atomic"
	"time"
)

// Limit is a rate and how far one may run ahead of it.
type Limit struct {
	Interval time.Duration // of one event at the steady rate, > 0
	Burst    int           // events that may come at once after a rest, ≥ 1
}

// GCRA holds one limit's state: the theoretical arrival time of the next event. The zero value is rested. Safe for concurrent use.
type GCRA struct {
	tat atomic.Int64 // nanoseconds of the caller's clock
}

// Take charges one event at now, in nanoseconds of any clock that does not go back. It reports whether the event fits and, if not, how long
// until it would; an event that does not fit is not charged. l out of range is a programming error and panics.
func (g *GCRA) Take(l Limit, now int64) (ok bool, wait time.Duration) { return g.TakeN(l, 1, now) }

// TakeN is Take for n ≥ 1 events at once, all or none. More than a burst fit only a rested limit, which is then that much longer in debt.
func (g *GCRA) TakeN(l Limit, n int, now int64) (ok bool, wait time.Duration) {
	if l.Interval <= 0 || l.Burst < 1 || n < 1 {
		panic("ratelimit: limit out of range")
	}
	// n events fit while the theoretical arrival time of the first is at most tolerance ahead.
	tolerance := int64(l.Interval) * int64(max(l.Burst-n, 0))
	for {
		tat := g.tat.Load()
		if early := tat - now - tolerance; early > 0 {
			return false, time.Duration(early)
		}
		if g.tat.CompareAndSwap(tat, max(tat, now)+int64(l.Interval)*int64(n)) {
			return true, 0
		}
	}
}
