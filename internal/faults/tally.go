package main

import (
	"sync"
	"sync/atomic"
	"time"
)

// calls counts requests and those that failed: no reply, a reply that says that the server failed, or a refusal that nobody had reason to expect.
type calls struct{ Requests, Failures int64 }

// counters are of one kind of fault. While no fault is active, they are of the kind "none".
type counters struct {
	once, retried struct{ requests, failures atomic.Int64 }

	mu         sync.Mutex
	injections int
	back       []time.Duration // until service was back, of each injection
	failed     int             // injections that could not be made
}

func (c *counters) add(retried, ok bool) {
	of := &c.once
	if retried {
		of = &c.retried
	}
	of.requests.Add(1)
	if !ok {
		of.failures.Add(1)
	}
}

// tally is all counters, and which are counted on now.
type tally struct {
	mu  sync.Mutex
	of  map[string]*counters
	now atomic.Pointer[counters]
	who atomic.Pointer[string]
}

func newTally() *tally {
	t := &tally{of: map[string]*counters{}}
	t.enter("none")
	return t
}

// enter has requests counted for a kind of fault from now on.
func (t *tally) enter(kind string) *counters {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.of[kind]
	if c == nil {
		c = &counters{}
		t.of[kind] = c
	}
	t.now.Store(c)
	t.who.Store(&kind)
	return c
}

func (t *tally) kind() string { return *t.who.Load() }
