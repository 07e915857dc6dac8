package xksclient

import (
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/xks"
)

const (
	tripsAfter = 5           // calls that come to nothing, one after the other
	restsFor   = time.Second // between two that try
)

// breaker keeps calls from a proxy that does not answer. It is closed, and calls pass, until tripsAfter of them came to nothing without an answer between them.
// Then it is open: it lets one call through each restsFor, and the next answer closes it. Errors that a proxy answers are answers. It knows no clock.
type breaker struct {
	tripsAfter int
	restsFor   time.Duration

	mu      sync.Mutex
	row     int         // calls that came to nothing, since the last answer; mu
	failure xks.Failure // why it is open, OK while it is closed; mu
	until   time.Time   // before which no call tries; mu
	trying  bool        // one does; mu
}

// pass says how a call came through.
type pass uint8

const (
	passClosed pass = iota // the breaker was closed
	passTry                // it is the one that tries
	passHealth             // it did not ask
)

// admit lets a call through, or says with which failure it fails. A call that was let through says how it ended: answered, failed or abandoned.
func (b *breaker) admit(now time.Time) (pass, xks.Failure) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.failure == xks.OK:
		return passClosed, xks.OK
	case b.trying || now.Before(b.until):
		return 0, b.failure
	}
	b.trying = true
	return passTry, xks.OK
}

// answered closes the breaker, whichever call got the answer. It reports whether it was open.
func (b *breaker) answered() (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed = b.failure != xks.OK
	b.row, b.failure, b.trying = 0, xks.OK, false
	return changed
}

// failed counts a call that came to nothing, and reports whether the breaker is open since. What was let through before that says nothing new.
func (b *breaker) failed(p pass, now time.Time, f xks.Failure) (changed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failure != xks.OK {
		if p == passTry {
			b.failure, b.until, b.trying = f, now.Add(b.restsFor), false
		}
		return false
	}
	if b.row++; b.row < b.tripsAfter {
		return false
	}
	b.failure, b.until = f, now.Add(b.restsFor)
	return true
}

// abandoned is for a call whose caller has gone: the next one may try.
func (b *breaker) abandoned(p pass) {
	if p != passTry {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
}
