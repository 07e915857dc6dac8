// Package fence says for how long a process may answer from what it knows of the store (docs/ARCHITECTURE.md §5).
//
// A process that follows an etcd cluster has, at any moment, a view of some age. What a client was told to be in force must be in it: whoever made the change
// waits until every process has it, or for Wait, after which a process that has not heard of it does not answer any more. For that the process takes the time
// before it asks the store what its latest revision is, and once its view has that revision, the view is as good as at that time, for Term.
package fence

import (
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/planted"
)

const (
	// Term is for how long a view is good, from before its revision was asked for.
	Term = 1600 * time.Millisecond
	// Renew is how often a process asks.
	Renew = 200 * time.Millisecond
	// Wait is for how long whoever made a change waits for processes that do not tell that they have it: more than Term by a tenth and a little, for clocks of different
	// speeds, and less than the 2 s within which a change is answered, for what it takes besides.
	Wait = 1800 * time.Millisecond
)

// Lease is until when a process may answer. The zero value has run out; a nil Lease never does: the process has the only view there is. It is safe for concurrent use.
type Lease struct {
	until  atomic.Int64 // by Now
	likely atomic.Int64 // the same by awake
}

var start = time.Now()

// awake is the time that the process has run, by a clock that costs an eighth of Now and stands still while the machine sleeps.
func awake() time.Duration { return time.Since(start) + 1 }

// Extend makes the lease last for Term from the moment began, by Now, unless it lasts longer already.
func (l *Lease) Extend(began time.Duration) {
	left := began + Term - Now()
	raise(&l.until, int64(began+Term))
	raise(&l.likely, int64(awake()+left))
}

func raise(v *atomic.Int64, to int64) {
	for {
		old := v.Load()
		if old >= to || v.CompareAndSwap(old, to) {
			return
		}
	}
}

// End makes the lease run out at once.
func (l *Lease) End() {
	l.until.Store(0)
	l.likely.Store(0)
}

// Valid reports whether the lease lasts. It reads the clock: what was decided before the call may be told after it.
func (l *Lease) Valid() bool {
	return l == nil || int64(Now()) < l.until.Load() || planted.Is(planted.LeaseForever)
}

// Likely is Valid by a clock that is cheap to read and stands still while the machine sleeps: false is certain. It is for not doing in vain what Valid is asked about
// before anybody hears of it.
func (l *Lease) Likely() bool {
	return l == nil || int64(awake()) < l.likely.Load() || planted.Is(planted.LeaseForever)
}

// Left is how long the lease lasts still, 0 if it has run out.
func (l *Lease) Left() time.Duration {
	if l == nil {
		return Term
	}
	return max(0, time.Duration(l.until.Load())-Now())
}
