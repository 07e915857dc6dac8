package iam

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
)

const (
	reloadTimeout = 5 * time.Second
	settlePause   = 250 * time.Millisecond // between two attempts to learn that earlier writes have settled
	settleTimeout = 10 * time.Second       // of one attempt
	sweepInterval = time.Minute
)

// unsettled remembers what to read again. A write whose outcome is unknown (store.ErrUncertain) may be applied after it was read back, and a
// read may have failed.
type unsettled struct {
	mu      sync.Mutex
	again   map[string]func(context.Context) error // by what changed, so that it is bounded by the names that exist
	arrived chan struct{}                          // capacity 1
}

// publish brings the table up to date after a write, and again once a write of unknown outcome has settled. err is the write's, and comes
// back with what went wrong here: no change is acknowledged that the table does not have. A write that found nothing to change
// (store.ErrNotFound) is published too: the one that took it away may not be yet, and the answer will be that it is gone. reload is called
// with mu held.
func (t *Table) publish(ctx context.Context, name string, err error, reload func(context.Context) error) error {
	uncertain := errors.Is(err, store.ErrUncertain)
	gone := errors.Is(err, store.ErrNotFound)
	if err != nil && !uncertain && !gone {
		return err
	}
	locked := func(ctx context.Context) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		return reload(ctx)
	}
	// The client's time may be up, but the write is done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reloadTimeout)
	defer cancel()
	failed := locked(ctx)
	if failed == nil && !uncertain {
		t.spread()
	}
	if uncertain || failed != nil {
		t.unsettled.mu.Lock()
		t.unsettled.again[name] = locked
		t.unsettled.mu.Unlock()
		select {
		case t.unsettled.arrived <- struct{}{}:
		default:
		}
	}
	if gone && failed != nil {
		return failed // that it is gone is not told before the table knows
	}
	return errors.Join(err, failed)
}

func (t *Table) publishPrincipal(ctx context.Context, n store.PrincipalName, err error) error {
	name := "role/"
	if n.Kind == store.User {
		name = "user/"
	}
	return t.publish(ctx, name+n.Account.String()+"/"+n.Name, err, func(ctx context.Context) error { return t.reloadPrincipal(ctx, n) })
}

func (t *Table) publishAccount(ctx context.Context, a keyid.Account, err error) error {
	return t.publish(ctx, "account/"+a.String(), err, func(ctx context.Context) error { return t.reloadAccount(ctx, a) })
}

func (t *Table) publishPolicy(ctx context.Context, arn string, err error) error {
	return t.publish(ctx, "policy/"+arn, err, func(ctx context.Context) error { return t.reloadPolicy(ctx, arn) })
}

func (t *Table) publishService(ctx context.Context, name string, err error) error {
	return t.publish(ctx, "service/"+name, err, func(ctx context.Context) error { return t.reloadService(ctx, name) })
}

func (t *Table) publishAccessKey(ctx context.Context, id string, err error) error {
	return t.publish(ctx, "accesskey/"+id, err, func(ctx context.Context) error { return t.reload(ctx, id) })
}

// Run removes sessions that expired, deletes the records of those that were ended and settles what publish could not. It ends with ctx.
func (t *Table) Run(ctx context.Context) error {
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-sweep.C:
			t.sessions.sweep(t.now().Add(-store.SessionGrace))
		case <-t.ended.arrived:
			t.deleteEnded(ctx)
		case <-t.unsettled.arrived:
			t.settle(ctx)
		}
	}
}

// settle waits until the writes of unknown outcome are done, or never will be, and reads again what they may have changed. What cannot be
// read waits for the next time.
func (t *Table) settle(ctx context.Context) {
	t.unsettled.mu.Lock()
	again := t.unsettled.again
	t.unsettled.again = map[string]func(context.Context) error{}
	t.unsettled.mu.Unlock()
	pause := func() bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(settlePause):
			return true
		}
	}
	within := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(ctx, settleTimeout)
		defer cancel()
		return f(ctx)
	}
	// A write that is proposed now comes after the uncertain ones in the log, or they are not in it at all.
	for within(t.store.Barrier) != nil {
		if !pause() {
			return
		}
	}
	for _, reload := range again {
		for within(reload) != nil {
			if !pause() {
				return
			}
		}
	}
}
