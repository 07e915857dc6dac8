// Package barrier makes a change known before it is answered: whoever made it waits until every process that may answer has applied it, or may not answer any more.
//
// Why Wait is enough. Let a change be committed at revision R, and Wait(R) be called after that. A process answers only while its lease is valid, which it extends
// by Term from a moment T at which it was a member, and only once it has applied what the store's latest revision was at a moment after T (follower, fence).
//
//	(a) This process's own view has R, and all members in it have told that they applied R. A process that could answer from before R joined at a revision J.
//	    If J < R, it is in our view, which has R, unless its membership has ended; that comes long after its lease ran out, because it extends the lease only
//	    while the membership has seconds left, and ends it before it leaves. So it has told, and applied R before it told. If J > R, it extended its lease after
//	    it had applied a revision read after J, so its view has R. That is why a member counts from the start as having applied J.
//	(b) fence.Wait has passed since the call. A process whose lease is valid now extended it from a moment T less than fence.Term ago by its clock. As the two clocks
//	    do not differ in speed by more than a tenth, and Term and a tenth of it are less than Wait, T is after the call and so after R was committed: the revision it read and applied was R at least.
//
// A stream of a member that breaks takes nothing back that it told: an incarnation never forgets. It counts as not telling until the stream is back, or its
// membership ends.
package barrier

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/follower"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/planted"
)

const (
	// earlyMost is how many incarnations may tell before they are known to be members. To forget them makes waits longer, not wrong.
	earlyMost = 1024
	// logPause is between two messages that somebody did not tell.
	logPause = 10 * time.Second
)

// Barrier knows the members of the store and what each has told. Its methods are safe for concurrent use.
type Barrier struct {
	store *store.Store
	own   *follower.Follower
	log   *slog.Logger

	mu      sync.Mutex
	applied int64            // by this process
	members map[string]int64 // what each has told, by incarnation; at first the revision at which it joined
	early   map[string]int64 // what was told by those who are not known to be members, yet or any more
	floor   int64            // everybody has applied it
	waiters waiters
	logged  time.Time
}

// New makes the Barrier of a process with a view of its own. Whoever loads that view calls Load, and whoever applies changes to it Apply.
func New(s *store.Store, own *follower.Follower, log *slog.Logger) *Barrier {
	if log == nil {
		log = slog.Default()
	}
	b := &Barrier{store: s, own: own, log: log, members: map[string]int64{}, early: map[string]int64{}}
	own.OnApplied(b.moved)
	return b
}

// Load reads who is a member.
func (b *Barrier) Load(ctx context.Context) error {
	list, _, err := b.store.Members(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.members
	b.members = make(map[string]int64, len(list))
	for _, m := range list {
		b.joined(m.Incarnation, max(m.Joined, old[m.Incarnation]))
	}
	b.release()
	return nil
}

// Apply takes in who has joined and left; changes of other kinds it skips.
func (b *Barrier) Apply(changes []store.Change) {
	for i := range changes {
		switch c := &changes[i]; {
		case c.What != store.MemberChanged:
		case c.Gone:
			b.Left(c.Name)
		default:
			b.Joined(c.Name, c.Revision)
		}
	}
}

// Joined says that a process became a member at a revision.
func (b *Barrier) Joined(incarnation string, revision int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.joined(incarnation, revision)
	b.release()
}

func (b *Barrier) joined(incarnation string, revision int64) {
	b.members[incarnation] = max(revision, b.members[incarnation], b.early[incarnation])
	delete(b.early, incarnation)
}

// Left says that an incarnation is no member any more.
func (b *Barrier) Left(incarnation string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.members, incarnation)
	b.release()
}

// Tell says that an incarnation has applied everything up to a revision.
func (b *Barrier) Tell(incarnation string, revision int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	told, known := b.members[incarnation]
	if !known {
		if len(b.early) >= earlyMost {
			clear(b.early)
		}
		b.early[incarnation] = max(revision, b.early[incarnation])
		return
	}
	if revision <= told {
		return
	}
	b.members[incarnation] = revision
	if told <= b.floor { // else it was not the last one
		b.release()
	}
}

// moved hears of what this process has applied.
func (b *Barrier) moved(revision int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.applied = max(b.applied, revision)
	b.release()
}

// release finds out what everybody has applied, and lets those go on who wait for it.
func (b *Barrier) release() {
	b.floor = b.applied
	own := b.own.Incarnation()
	for incarnation, told := range b.members {
		if incarnation != own {
			b.floor = min(b.floor, told)
		}
	}
	for len(b.waiters) > 0 && b.waiters[0].revision <= b.floor {
		close(heap.Pop(&b.waiters).(*waiter).done)
	}
}

// Wait returns when no process answers any more that does not know what was committed at a revision or before, which is fence.Wait after the call at the latest. It
// does not return earlier because ctx ends: the change would be answered before it is in force.
func (b *Barrier) Wait(ctx context.Context, revision int64) {
	if planted.Is(planted.BarrierAtOnce) {
		return
	}
	b.mu.Lock()
	if revision <= b.floor {
		b.mu.Unlock()
		return
	}
	w := &waiter{revision: revision, done: make(chan struct{})}
	heap.Push(&b.waiters, w)
	b.mu.Unlock()
	timer := time.NewTimer(fence.Wait)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		b.mu.Lock()
		defer b.mu.Unlock()
		if w.at >= 0 {
			heap.Remove(&b.waiters, w.at)
			b.report(ctx, revision)
		}
	}
}

// report says who made somebody wait for so long.
func (b *Barrier) report(ctx context.Context, revision int64) {
	now := time.Now()
	if now.Sub(b.logged) < logPause {
		return
	}
	b.logged = now
	own := b.own.Incarnation()
	var late []string
	for incarnation, told := range b.members {
		if told < revision && incarnation != own {
			late = append(late, incarnation)
		}
	}
	b.log.WarnContext(ctx, "a change was in force only after its time limit", "revision", revision, "applied", b.applied, "members that did not tell", late)
}

// waiter is one Wait. at is its place among the others, -1 when it is done.
type waiter struct {
	revision int64
	done     chan struct{}
	at       int
}

// waiters is a heap.Interface, the lowest revision first.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].revision < w[j].revision }
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].at, w[j].at = i, j
}

func (w *waiters) Push(x any) {
	e := x.(*waiter)
	e.at = len(*w)
	*w = append(*w, e)
}

func (w *waiters) Pop() any {
	last := len(*w) - 1
	e := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	e.at = -1
	return e
}
