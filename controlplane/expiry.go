package controlplane

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// expiriesPerTurn bounds what the worker reads at a time; it goes on at once while there is more.
const expiriesPerTurn = 100

// expireDue does what imported material's ValidTo asks for, in two steps. At that date by the wall clock nobody can use the material any more. Destroyed it is
// when as much time has been seen to pass since its import as lay between import and ValidTo, by a clock that nobody can set: if the wall clock was ahead,
// and is set back before that, the material is there again, and the key what it was.
func (s *Server) expireDue(ctx context.Context) error {
	elapsed, err := s.ticker.Tick(ctx)
	if err != nil {
		return err
	}
	var last int64
	turn := func(until time.Time, e store.Errand) error {
		revision, err := s.expiryTurn(ctx, e, until, elapsed)
		last = max(last, revision)
		return err
	}
	err = errors.Join(turn(s.now().UTC(), store.Expiry), turn(store.Never, store.Expired))
	if last > 0 {
		ctx, cancel := context.WithTimeout(ctx, turnTimeout)
		defer cancel()
		err = errors.Join(err, s.store.Compact(ctx, last))
	}
	return err
}

// expiryTurn goes through the keys of an index up to a date. It returns the last revision that destroyed something, 0 for none. A key with which that fails does
// not keep the others from it.
func (s *Server) expiryTurn(ctx context.Context, e store.Errand, until time.Time, elapsed time.Duration) (last int64, err error) {
	var errs []error
	var after *store.Due
	for {
		due, more, err := s.someDue(ctx, e, until, after)
		if err != nil {
			return last, errors.Join(append(errs, err)...)
		}
		for i := range due {
			revision, err := s.expire(ctx, due[i].KeyName, elapsed)
			if err != nil {
				errs = append(errs, err)
			}
			last = max(last, revision)
		}
		if !more {
			return last, errors.Join(errs...)
		}
		after = &due[len(due)-1]
	}
}

func (s *Server) someDue(ctx context.Context, e store.Errand, until time.Time, after *store.Due) (due []store.Due, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	due, err = s.store.Due(ctx, e, s.region, until, after, expiriesPerTurn)
	return due, len(due) == expiriesPerTurn, err
}

// expire does to one key what is due: it notes when the worker first saw material, marks what has expired and unmarks what the clock was set back for, and
// destroys what has expired by both clocks. revision is 0 unless something was destroyed.
func (s *Server) expire(ctx context.Context, n store.KeyName, elapsed time.Duration) (revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	now, recorded := s.now().UTC(), map[string]bool{}
	var did expiry
	k, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		seen := elapsed
		if unseen(k) {
			// It was imported before the record was read, not before this turn began.
			var err error
			if seen, err = s.ticker.Tick(ctx); err != nil {
				return err
			}
		}
		did = expireMaterial(k, now, seen)
		for _, id := range did.expired {
			if recorded[id] {
				continue // by an attempt that another writer has made void
			}
			if err := s.auditExpiry(n, id, now); err != nil {
				return err
			}
			recorded[id] = true
		}
		if len(did.expired) > 0 {
			failpoint.Here("expiry.recorded")
		}
		return nil
	})
	if len(did.expired) > 0 {
		failpoint.Here("expiry.written")
	}
	if errors.Is(err, store.ErrNotFound) {
		return 0, nil // deleted since
	}
	s.publishKey(n, err)
	if err != nil {
		return 0, err
	}
	defer k.Wipe()
	arn := s.keyARN(n)
	if len(did.expired) > 0 {
		s.log.Info("imported key material has expired", "key", arn, "state", k.State.String())
	}
	if did.returned {
		s.log.Warn("imported key material that had expired is there again: the clock was set back", "key", arn, "state", k.State.String())
	}
	if !did.destroyed {
		return 0, nil
	}
	s.log.Info("expired key material destroyed", "key", arn)
	return k.Revision, nil
}

// expiry is what was done to a key's material.
type expiry struct {
	expired             []string // material IDs of what has expired just now, "" of material that has none
	returned, destroyed bool
}

// unseen says that the key has material of which no worker has seen that it expires.
func unseen(k *store.Key) bool {
	of := func(f *store.Import) bool { return f != nil && !f.Expires.IsZero() && f.Seen == store.Unseen }
	return k.Private != nil && of(k.Import) || slices.ContainsFunc(k.Versions, func(v store.Version) bool { return !v.Missing && of(v.Import) })
}

// expireMaterial edits the key for that time by the wall clock and that Store.Elapsed. It is pure.
func expireMaterial(k *store.Key, now time.Time, elapsed time.Duration) (did expiry) {
	mark := func(f *store.Import, id string) *store.Import {
		if f == nil || f.Expires.IsZero() {
			return f
		}
		next := *f
		if next.Seen == store.Unseen {
			next.Seen = elapsed
		}
		switch next.Expired = !f.Expires.After(now); {
		case next.Expired && !f.Expired:
			did.expired = append(did.expired, id)
		case f.Expired && !next.Expired:
			did.returned = true
		}
		return &next
	}
	over := func(f *store.Import) bool {
		return f != nil && f.Expired && elapsed-f.Seen >= f.Expires.Sub(f.Imported)
	}
	if k.Private != nil {
		k.Import = mark(k.Import, "")
	}
	for i := range k.Versions {
		if v := &k.Versions[i]; !v.Missing {
			v.Import = mark(v.Import, string(v.MaterialID[:]))
		}
	}
	restate(k)
	if k.State == kmsapi.StateUpdating {
		return did // such a key has its material
	}
	if k.Private != nil && over(k.Import) {
		k.Private, did.destroyed = nil, true
	}
	for i := len(k.Versions) - 1; i >= 0; i-- {
		if v := &k.Versions[i]; !v.Missing && over(v.Import) {
			dropVersion(k, i)
			did.destroyed = true
		}
	}
	return did
}
