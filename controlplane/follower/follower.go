// Package follower keeps a process's view of the store up to date, and says for how long it is good: it applies every change in order, and extends the process's
// lease (internal/fence) by asking the store what its latest revision is and having applied it. docs/planes.md has the proof of what that gives.
package follower

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/planted"
)

const (
	// attemptsMost is how many renewals may be on their way together. One that hangs on a member of etcd which does not answer does not keep the next from asking
	// another: whatever their order, a lease is only ever as long as the latest that succeeded makes it.
	attemptsMost = 4
	// attemptTerm is for how long one is tried. What is left of the lease after that would not be worth much.
	attemptTerm = fence.Term / 2

	// keepEvery is how often the membership is renewed. The lease is extended only while the last renewal is no older than keptMost, so that it ends long before the
	// membership can, which etcd keeps for 10 seconds after a renewal.
	keepEvery = time.Second
	keptMost  = 5 * time.Second

	// retryFirst and retryMost are between two tries of what failed; after applyMost all is loaded anew.
	retryFirst = 10 * time.Millisecond
	retryMost  = time.Second
	applyMost  = 5 * time.Second
)

// Config says what a Follower does. Load and Apply are never called together.
type Config struct {
	Store  *store.Store
	Lease  *fence.Lease
	Member store.Member // ID and Role; each membership draws its Incarnation
	// Load reads everything anew, first of all and when changes are not known any more that Apply has not had. The lease has run out meanwhile. What it reads
	// may be newer than the revision from which Apply is called next: Apply may get changes that are in it already.
	Load func(ctx context.Context) error
	// Apply takes changes in, in order: when it returns nil, whoever asks the process gets an answer that knows of them. After an error it is called again with
	// the same changes, and the lease is not extended until it succeeds.
	Apply   func(ctx context.Context, changes []store.Change) error
	Applied func(revision int64) // hears of every revision that is applied; nil: nobody does
	Logger  *slog.Logger         // nil is slog.Default
}

// Follower is a process's view of the store. Its methods are safe for concurrent use; Run is called once.
type Follower struct {
	cfg       Config
	applied   atomic.Int64
	applyMost time.Duration

	mu         sync.Mutex
	moved      chan struct{} // closed when applied moves
	hear       []func(int64)
	membership *store.Membership // nil: not a member
	kept       time.Duration     // by fence.Now: before the last renewal of the membership that succeeded
}

// New checks a Config.
func New(cfg Config) (*Follower, error) {
	if cfg.Store == nil || cfg.Lease == nil || cfg.Load == nil || cfg.Apply == nil || cfg.Member.ID == "" || cfg.Member.Role == "" {
		return nil, errors.New("follower: store, lease, member, Load and Apply are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	f := &Follower{cfg: cfg, applyMost: applyMost, moved: make(chan struct{})}
	if cfg.Applied != nil {
		f.hear = append(f.hear, cfg.Applied)
	}
	return f, nil
}

// OnApplied makes hear called with every revision that is applied from now on, one after the other, as Config.Applied is.
func (f *Follower) OnApplied(hear func(revision int64)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hear = append(f.hear, hear)
}

// Applied is the revision up to which all changes are applied, 0 before everything was loaded for the first time.
func (f *Follower) Applied() int64 { return f.applied.Load() }

// Incarnation is the membership that the process has now, "" if none. What it has applied is told under this name.
func (f *Follower) Incarnation() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.membership == nil {
		return ""
	}
	return f.membership.Incarnation
}

// Wait waits until a revision is applied. An error is ctx's.
func (f *Follower) Wait(ctx context.Context, revision int64) error {
	for {
		f.mu.Lock()
		moved := f.moved
		f.mu.Unlock()
		if f.applied.Load() >= revision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Run follows until ctx ends, whose error it returns, or the store's revision has gone back (store.ErrBack): what the process knows is of no use then. The lease has
// run out when it returns.
func (f *Follower) Run(ctx context.Context) error {
	defer f.cfg.Lease.End()
	pause := retryFirst
	for {
		began := time.Now()
		err := f.life(ctx)
		f.cfg.Lease.End()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, store.ErrBack):
			return err
		}
		f.cfg.Logger.Warn("the view of the store is loaded anew", "error", err)
		if time.Since(began) > retryMost {
			pause = retryFirst
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, retryMost)
	}
}

// life loads everything and follows until that does not go on.
func (f *Follower) life(ctx context.Context) error {
	f.cfg.Lease.End()
	revision, err := f.cfg.Store.Latest(ctx) // before Load, which so has everything up to it
	if err != nil {
		return err
	}
	if err := f.cfg.Load(ctx); err != nil {
		return fmt.Errorf("loading: %w", err)
	}
	f.move(revision)
	ctx, end := context.WithCancelCause(ctx)
	var loops sync.WaitGroup
	loops.Go(func() { f.member(ctx) })
	loops.Go(func() { f.renew(ctx, end) })
	err = f.cfg.Store.Follow(ctx, revision, func(revision int64, changes []store.Change) error { return f.apply(ctx, revision, changes) })
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	end(nil)
	loops.Wait()
	// The lease ends before the membership does: whoever waits for members would not wait for this one any more.
	f.cfg.Lease.End()
	f.leave(context.WithoutCancel(ctx))
	return err
}

// apply applies changes, again and again if it has to.
func (f *Follower) apply(ctx context.Context, revision int64, changes []store.Change) error {
	began, pause := time.Now(), retryFirst
	for len(changes) > 0 && !planted.Every(10, planted.FollowerSkips) {
		err := f.cfg.Apply(ctx, changes)
		if err == nil {
			break
		}
		f.cfg.Logger.Warn("changes of the store could not be applied", "revision", revision, "error", err)
		if time.Since(began) > f.applyMost {
			return fmt.Errorf("applying: %w", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, retryMost)
	}
	for i := range changes {
		if c := &changes[i]; c.What == store.MemberChanged && c.Gone {
			f.lost(c.Name)
		}
	}
	f.move(revision)
	return nil
}

// move says that a revision is applied. After everything was loaded anew, revisions may come again that were applied before.
func (f *Follower) move(revision int64) {
	if revision <= f.applied.Load() {
		return
	}
	f.applied.Store(revision)
	f.mu.Lock()
	close(f.moved)
	f.moved = make(chan struct{})
	hear := f.hear
	f.mu.Unlock()
	for _, h := range hear {
		h(revision)
	}
}

// renew extends the lease, every fence.Renew.
func (f *Follower) renew(ctx context.Context, end context.CancelCauseFunc) {
	attempts := make(chan struct{}, attemptsMost)
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(fence.Renew)
	defer tick.Stop()
	for {
		select {
		case attempts <- struct{}{}:
			running.Go(func() {
				defer func() { <-attempts }()
				if err := f.attempt(ctx); errors.Is(err, store.ErrBack) {
					end(err)
				}
			})
		default: // all of them hang
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// attempt is one renewal of the lease: everything that was committed before began is applied when it extends it from there.
func (f *Follower) attempt(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTerm)
	defer cancel()
	incarnation := f.Incarnation()
	if incarnation == "" {
		return nil
	}
	began := fence.Now()
	revision, err := f.cfg.Store.Latest(ctx) // after Join, whose revision it so covers
	if err != nil {
		return err
	}
	if err := f.Wait(ctx, revision); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.membership != nil && f.membership.Incarnation == incarnation && began-f.kept <= keptMost && ctx.Err() == nil {
		f.cfg.Lease.Extend(began)
	}
	return nil
}

// member keeps the process a member, which it becomes when it has caught up.
func (f *Follower) member(ctx context.Context) {
	pause := time.Duration(0)
	for {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = fence.Renew
		f.mu.Lock()
		m := f.membership
		f.mu.Unlock()
		trying, cancel := context.WithTimeout(ctx, keepEvery)
		began := fence.Now()
		var err error
		if m == nil {
			err = f.join(trying)
		} else if err = m.Renew(trying); err == nil {
			f.mu.Lock()
			f.kept = max(f.kept, began)
			f.mu.Unlock()
			pause = keepEvery
		}
		cancel()
		switch {
		case errors.Is(err, store.ErrLeft):
			f.lost(m.Incarnation)
			pause = 0
		case err != nil && ctx.Err() == nil:
			f.cfg.Logger.Warn("the membership could not be renewed", "error", err)
		}
	}
}

func (f *Follower) join(ctx context.Context) error {
	revision, err := f.cfg.Store.Latest(ctx)
	if err != nil {
		return err
	}
	if err := f.Wait(ctx, revision); err != nil {
		return err
	}
	began := fence.Now()
	m, err := f.cfg.Store.Join(ctx, store.Member{ID: f.cfg.Member.ID, Role: f.cfg.Member.Role})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.membership, f.kept = m, began
	return nil
}

// lost forgets a membership that has ended.
func (f *Follower) lost(incarnation string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.membership != nil && f.membership.Incarnation == incarnation {
		f.membership = nil
		f.cfg.Lease.End()
	}
}

func (f *Follower) leave(ctx context.Context) {
	f.mu.Lock()
	m := f.membership
	f.membership = nil
	f.mu.Unlock()
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, keepEvery)
	defer cancel()
	_ = m.Leave(ctx) // or it ends by itself
}
