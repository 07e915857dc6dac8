package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// The rotation worker. A key's record says what is to be rotated and when (store.Rotation), and the index of errands finds it. One transaction makes the new
// version the current one and moves the schedule on; it compares the record that it was decided on, so that however many workers there are and
// whenever they were killed, each date is rotated for once. A date is rotated for once too if the clock is set back behind it afterwards: the schedule has
// left it. A date that is further away than its period is of a clock that was ahead, or this clock is behind: which of the two shows later (healSchedule). Where a key has replicas there are two transactions: the version is there first, and is switched to when all replicas have it.

const (
	// rotationsPerTurn and healedPerTurn bound what the worker reads at a time.
	rotationsPerTurn = 100
	healedPerTurn    = 100

	// unhealedMax bounds the keys that heal remembers to have failed with.
	unhealedMax = 1000

	// healInterval is how often dates are looked at that seem to be of another clock; also at the start, when the clock was set back, and after an index could not be read.
	healInterval = day
	// healSlack is how far beyond one period a date may be: an hour's correction of the clock moves none.
	healSlack = day
)

// rotateDue rotates every key that is due now. A key that cannot be rotated does not keep the others from it, but there is no sense in asking an HSM for each
// of them that does not even make random numbers, or of the multi-Region ones that makes no keys.
func (s *Server) rotateDue(ctx context.Context) error {
	now := s.now().UTC().Truncate(time.Millisecond)
	var errs []error
	noKeys := false
	var after *store.Due
	for {
		due, err := s.store.Due(ctx, store.Rotating, s.region, now, after, rotationsPerTurn)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		for i := range due {
			if noKeys && due[i].ID.MultiRegion {
				continue
			}
			// A second time if a rotation was both due and asked for.
			for more := true; more && err == nil; {
				more, err = s.rotate(ctx, due[i].KeyName, now)
			}
			if err != nil {
				errs = append(errs, err)
			}
			if errors.Is(err, errNoRandom) || ctx.Err() != nil {
				return errors.Join(errs...)
			}
			noKeys, err = noKeys || errors.Is(err, errNoKeys), nil
		}
		if len(due) < rotationsPerTurn {
			return errors.Join(errs...)
		}
		after = &due[len(due)-1]
	}
}

// dueRotation says which rotation of the key is due now, "" for none.
func dueRotation(k *store.Key, now time.Time) string {
	switch {
	case k.State != kmsapi.StateEnabled || k.MultiRegion != nil && k.MultiRegion.Primary != k.Region:
	case k.Rotation.Enabled && !k.Rotation.Next.After(now):
		return automatic
	case !k.Rotation.OnDemand.IsZero():
		return onDemand
	}
	return ""
}

// rotate does what is due of one key now, or the first half of it. done says that a rotation was done.
func (s *Server) rotate(ctx context.Context, n store.KeyName, now time.Time) (done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	k, err := s.store.Key(ctx, n)
	if err != nil {
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return false, err
	}
	if !k.Rotation.Held.IsZero() && dueRotation(k, now) == automatic {
		k.Wipe()
		elapsed, err := s.store.Elapsed(ctx, s.region)
		if err != nil {
			return false, err
		}
		if k, err = s.healKey(ctx, n, now, elapsed); err != nil {
			return false, err
		}
	}
	defer k.Wipe()
	how := dueRotation(k, now)
	if how == "" {
		return false, nil
	}
	replicas := hasReplicas(k)
	next, fresh := waiting(k), false
	if next == nil && k.Origin == originKMS {
		v := store.Version{Created: now}
		v.Number, fresh = k.Versions[len(k.Versions)-1].Number+1, true
		if err := s.drawVersion(k, &v); err != nil {
			return false, err
		}
		defer clear(v.Salt[:])
		next = &v
		failpoint.Here("rotation.drawn")
	}
	if replicas && !fresh && !inSync(k) {
		return false, nil // syncReplica hurries when they have it
	}
	told := false
	changed, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		done = false
		if dueRotation(k, now) != how || replicas != hasReplicas(k) {
			return nil // another worker has done it, or it is not wanted any more, or not so
		}
		if next == nil { // the material that waited is gone: there is nothing to rotate to
			if waiting(k) == nil {
				k.Rotation.OnDemand = time.Time{}
			}
			return nil
		}
		if w := waiting(k); fresh {
			if w != nil || k.Versions[len(k.Versions)-1].Number+1 != next.Number {
				return nil // next time
			}
			k.Versions = append(k.Versions, *next)
		} else if w == nil || w.MaterialID != next.MaterialID {
			return nil
		}
		if replicas && fresh {
			return nil // the version waits for the replicas
		}
		if !told {
			if err := s.auditRotation(k, next, how, now); err != nil {
				return err
			}
			told = true
			failpoint.Here("rotation.recorded")
		}
		switchTo(k, next.Number, how, now)
		done = true
		return nil
	})
	s.publishKey(n, err)
	if err != nil {
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return false, err
	}
	defer changed.Wipe()
	s.kickFor(changed)
	if done {
		failpoint.Here("rotation.done")
		s.log.Info("KMS key rotated", "key", s.keyARN(n), "type", how, "version", next.Number)
	}
	return done, nil
}

// switchTo makes a version that waits the current one. The schedule goes on with its first date that is still to come, however many have passed.
func switchTo(k *store.Key, number uint32, how string, now time.Time) {
	k.Current = number
	for i := range k.Versions {
		if v := &k.Versions[i]; v.Number == number {
			v.Rotated, v.OnDemand = now, how == onDemand
		}
	}
	if how == onDemand {
		k.Rotation.OnDemand = time.Time{}
		return
	}
	period := time.Duration(k.Rotation.Period) * day
	k.Rotation.Next = k.Rotation.Next.Add((now.Sub(k.Rotation.Next)/period + 1) * period)
	k.Rotation.Held, k.Rotation.Seen = time.Time{}, 0
}

var (
	// errNoRandom says that the HSM made no random numbers.
	errNoRandom = errors.New("controlplane: no new key material")
	// errNoKeys says that the HSM did not make a key of its own.
	errNoKeys = errors.New("controlplane: no new key in the HSM")
)

// drawVersion makes the backing key of a numbered version: a salt, or of a multi-Region key a key of its own in the HSM (docs/ciphertext.md §3).
func (s *Server) drawVersion(k *store.Key, v *store.Version) error {
	if k.MultiRegion == nil {
		if err := s.random(v.Salt[:]); err != nil {
			return fmt.Errorf("%w: %w", errNoRandom, err)
		}
		v.Root = s.root()
		v.MaterialID = snapshot.MaterialID(k.Account, k.ID, v.Number, &v.Salt)
		return nil
	}
	if s.keys == nil {
		return errNoKeys
	}
	made, err := s.keys.New(keyspec.AES256)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoKeys, err)
	}
	images, err := s.keys.Images(keyspec.AES256, made)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoKeys, err)
	}
	v.Root, v.Resident, v.MaterialID = made.Root, named(k, made), snapshot.ResidentMaterialID(k.Account, k.ID, images)
	return nil
}

// unhealed is a key with which heal failed, and the index that has it.
type unhealed struct {
	errand store.Errand
	store.KeyName
}

// heal looks from time to time at every schedule (healSchedule) and every key that is pending deletion (healDeletion). With a key with which that failed it tries again with the
// next turn, and with all of them if an index could not be read, or it failed with many.
func (s *Server) heal(ctx context.Context) (err error) {
	now := s.now().UTC().Truncate(time.Millisecond)
	s.healing.Lock()
	defer s.healing.Unlock()
	setBack := now.Before(s.latest) || now.Before(s.healed)
	s.latest = now
	all := setBack || s.healed.IsZero() || now.Sub(s.healed) >= healInterval
	if !all && len(s.unhealed) == 0 {
		return nil
	}
	if all {
		s.healed = time.Time{}
	}
	elapsed, err := s.ticker.Tick(ctx)
	if err != nil {
		return err
	}
	var errs []error
	var failed []unhealed
	one := func(u unhealed) {
		if err := s.healOne(ctx, u, now, elapsed); err != nil {
			errs, failed = append(errs, err), append(failed, u)
		}
	}
	if all {
		err = errors.Join(s.healIndex(ctx, store.Rotating, one), s.healIndex(ctx, store.Deletion, one))
		if err == nil && len(failed) <= unhealedMax {
			s.healed = now
		}
	} else {
		for _, u := range s.unhealed {
			one(u)
		}
	}
	s.unhealed = failed
	return errors.Join(append(errs, err)...)
}

// healIndex calls heal for every key of an index of errands.
func (s *Server) healIndex(ctx context.Context, e store.Errand, heal func(unhealed)) error {
	var after *store.Due
	for {
		due, err := s.store.Due(ctx, e, s.region, store.Never, after, healedPerTurn)
		if err != nil {
			return err
		}
		for i := range due {
			heal(unhealed{e, due[i].KeyName})
		}
		if len(due) < healedPerTurn {
			return nil
		}
		after = &due[len(due)-1]
	}
}

// healOne heals a key.
func (s *Server) healOne(ctx context.Context, u unhealed, now time.Time, elapsed time.Duration) error {
	if u.errand == store.Deletion {
		return s.healDeletion(ctx, u.KeyName, now, elapsed)
	}
	k, err := s.healKey(ctx, u.KeyName, now, elapsed)
	if err == nil {
		k.Wipe()
	}
	return err
}

// healKey is healSchedule for the record of a key. Of one that is gone it returns an empty key.
func (s *Server) healKey(ctx context.Context, n store.KeyName, now time.Time, elapsed time.Duration) (*store.Key, error) {
	k, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		s.healSchedule(k, now, elapsed)
		return nil
	})
	if errors.Is(err, store.ErrNotFound) {
		return &store.Key{}, nil
	}
	return k, err
}

// healSchedule moves the next rotation of a key to one period from now if it is further away than that: it was made, or moved on, while the clock was ahead of what
// it is now, or the clock is behind now. The old date is held. It is the next rotation again if the clock turns out to have gone forward by more than the time that
// was seen to pass; otherwise the new date stands, and moves away from a clock that is set forward, but not so far, until the period has been seen to pass. So nothing is
// rotated before its period is over because a clock was wrong and is right again. elapsed is Store.Elapsed, or Unseen. A key that is not Enabled is in no index and has it
// done when it is enabled.
func (s *Server) healSchedule(k *store.Key, now time.Time, elapsed time.Duration) {
	r := &k.Rotation
	if !r.Enabled || s.primary(k) != nil {
		return
	}
	period := time.Duration(r.Period) * day
	if r.Held.IsZero() {
		if r.Next.After(now.Add(period + healSlack)) {
			s.log.Warn("the next rotation of a KMS key is further away than its period: the clock was ahead, or it is behind; the rotation is in one period now",
				"key", s.keyARN(k.KeyName), "was", r.Next, "periodInDays", r.Period)
			r.Held, r.Seen, r.Next = r.Next, elapsed, now.Add(period)
		}
		return
	}
	left := period // by the clock that nobody can set
	switch {
	case r.Seen == store.Unseen:
		r.Seen = elapsed
	case elapsed != store.Unseen:
		left -= elapsed - r.Seen
	}
	switch {
	case !r.Held.After(now.Add(left + healSlack)):
		s.log.Warn("the clock was behind: the next rotation of a KMS key is when it was to be before", "key", s.keyARN(k.KeyName), "was", r.Next, "next", r.Held)
		r.Next, r.Held, r.Seen = r.Held, time.Time{}, 0
	case !r.Next.After(now) && left > 0, r.Next.After(now.Add(period + healSlack)):
		r.Next = now.Add(max(left, 0)).Truncate(time.Millisecond).Add(time.Millisecond)
	}
}
