package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func elapsedKey(region string) string { return root + "elapsed/" + region }

// Elapsed is the time for which workers of the Region have been seen to run over this store, by clocks that cannot be set: a measure of how long ago
// something was that no jump of the wall clock moves. It never runs ahead of real time, because a Ticker adds to it only what has passed since it last did
// without another doing so in between. It stands still while none runs.
func (s *Store) Elapsed(ctx context.Context, region string) (time.Duration, error) {
	d, _, err := s.elapsed(ctx, region)
	return d, err
}

func (s *Store) elapsed(ctx context.Context, region string) (time.Duration, int64, error) {
	value, revision, err := s.get(ctx, elapsedKey(region))
	if errors.Is(err, ErrNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil || n < 0 {
		return 0, 0, fmt.Errorf("%w: %s", ErrDamaged, elapsedKey(region))
	}
	return time.Duration(n), revision, nil
}

// Ticker adds to the Elapsed of a Region. Safe for concurrent use.
type Ticker struct {
	store   *Store
	region  string
	running func() time.Duration // the time since some moment, by a clock that nobody can set

	mu       sync.Mutex
	at       time.Duration // running when it last added
	revision int64         // of the record that it wrote then; 0: it has written none, or does not know
}

// NewTicker makes a ticker by a clock that nobody can set.
func (s *Store) NewTicker(region string, running func() time.Duration) *Ticker {
	return &Ticker{store: s, region: region, running: running}
}

// Tick adds what has passed since this ticker's last Tick, nothing if another ticker has added since or this is its first, and returns what Elapsed is then.
func (t *Ticker) Tick(ctx context.Context) (elapsed time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.store.graves.bury() // what could not be written when it was deleted
	err = retry(ctx, func() (bool, error) {
		was, revision, err := t.store.elapsed(ctx, t.region)
		if err != nil {
			return false, err
		}
		// After the record was read: what passed before belongs to whoever wrote it.
		now, mine := t.running(), t.revision != 0 && t.revision == revision
		elapsed = was
		if mine {
			elapsed += max(now-t.at, 0)
			if elapsed == was {
				return true, nil
			}
		}
		t.revision = 0 // until it is known what came of it
		key := elapsedKey(t.region)
		ok, written, err := t.store.commit(ctx, []clientv3.Cmp{unchanged(key, revision)}, []clientv3.Op{clientv3.OpPut(key, strconv.FormatInt(int64(elapsed), 10))})
		if err == nil && ok {
			t.at, t.revision = now, written
		}
		return ok, err
	})
	return elapsed, err
}

// Now is what Tick would return, without adding anything; false if another ticker has added since this one did, who alone knows.
func (t *Ticker) Now(ctx context.Context) (elapsed time.Duration, known bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was, revision, err := t.store.elapsed(ctx, t.region)
	if err != nil || t.revision == 0 || t.revision != revision {
		return 0, false, err
	}
	return was + max(t.running()-t.at, 0), true, nil
}
