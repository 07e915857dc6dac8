package controlplane

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planted"
	"github.com/keyplane/keyplane/internal/policy"
)

type scheduleKeyDeletionIn struct {
	KeyId               *string
	PendingWindowInDays *int32
}

// pendingWindowModelMax is the service model's bound; the service itself allows 7 to 30 days.
const pendingWindowModelMax = 365

func (in *scheduleKeyDeletionIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkRange(v, "pendingWindowInDays", in.PendingWindowInDays, 1, pendingWindowModelMax)
}

type scheduleKeyDeletionOut struct {
	KeyId               string
	DeletionDate        timestamp `json:",omitzero"`
	KeyState            string
	PendingWindowInDays int32
}

func (s *Server) scheduleKeyDeletion(ctx context.Context, c *call, in *scheduleKeyDeletionIn) (scheduleKeyDeletionOut, error) {
	days := int32(kmsapi.PendingWindowDays)
	if in.PendingWindowInDays != nil {
		days = *in.PendingWindowInDays
	}
	if days < kmsapi.PendingWindowMin || days > kmsapi.PendingWindowMax {
		return scheduleKeyDeletionOut{}, kmsapi.New(kmsapi.Validation, "PendingWindowInDays must be between 7 and 30")
	}
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return scheduleKeyDeletionOut{}, err
	}
	c.context.Extra = append(s.trailing(n, c.now), authz.ExtraValue{Key: policy.KMSScheduleKeyDeletionPendingWindowInDays, Value: strconv.Itoa(int(days))})
	cluster := ""
	k, err := s.change(ctx, c, n, func(k *store.Key) (err error) {
		if cluster, err = s.clusterOf(ctx, k); err != nil {
			return err
		}
		k.State = after(c.op.Name, k.State)
		if k.IsPrimary() && len(k.MultiRegion.Replicas)+len(k.MultiRegion.Intents) > 0 {
			// Its waiting period begins when the last replica is gone (settleDeletion).
			k.State, k.DeletionDays = kmsapi.StatePendingReplicaDeletion, days
			return nil
		}
		return s.beginDeletion(ctx, k, days, c.now)
	})
	if err != nil {
		return scheduleKeyDeletionOut{}, err
	}
	defer k.Wipe()
	c.noteKeyIn(k, cluster)
	return scheduleKeyDeletionOut{
		KeyId: s.keyARN(n), DeletionDate: timestamp{k.DeletionDate}, KeyState: k.State.String(), PendingWindowInDays: days,
	}, nil
}

// beginDeletion begins the waiting period of a key that is pending deletion, by the wall clock and by the one that nobody can set. What that one says only the
// owner of the workers' work knows; if that is another control plane, its worker notes it when it sees the key.
func (s *Server) beginDeletion(ctx context.Context, k *store.Key, days int32, now time.Time) error {
	seen, err := s.seen(ctx)
	k.DeletionDate, k.DeletionDays, k.DeletionSeen = now.Add(time.Duration(days)*day), days, seen
	return err
}

// seen is what Store.Elapsed has come to, or store.Unseen where this control plane does not know.
func (s *Server) seen(ctx context.Context) (time.Duration, error) {
	elapsed, known, err := s.ticker.Now(ctx)
	if !known {
		elapsed = store.Unseen
	}
	return elapsed, err
}

type cancelKeyDeletionOut struct{ KeyId string }

// CancelKeyDeletion leaves the key Disabled, or PendingImport if key material is missing. It works until the worker has deleted the key, also after the
// deletion date.
func (s *Server) cancelKeyDeletion(ctx context.Context, c *call, in *keyIn) (cancelKeyDeletionOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return cancelKeyDeletionOut{}, err
	}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		k.State = after(c.op.Name, k.State)
		k.DeletionDate, k.DeletionDays, k.DeletionSeen = time.Time{}, 0, 0
		restate(k)
		return nil
	})
	if err != nil {
		return cancelKeyDeletionOut{}, err
	}
	k.Wipe()
	return cancelKeyDeletionOut{KeyId: s.keyARN(n)}, nil
}

const (
	// deletionsPerTurn bounds what the worker reads at a time; it goes on at once while there is more.
	deletionsPerTurn = 100
	// turnTimeout bounds one turn, compaction included, and one rotation.
	turnTimeout = time.Minute
)

// Work does once what is due now. One error does not keep the rest from being done. It is right, if wasteful, when several control planes do it at the same time:
// every transaction compares the records that it was decided on.
func (s *Server) Work(ctx context.Context) error {
	return errors.Join(s.workHere(ctx), s.replicate(ctx))
}

// workHere is Work without what waits for other Regions. Run calls it again and again.
func (s *Server) workHere(ctx context.Context) error {
	var errs []error
	for _, work := range []func(*Server, context.Context) error{(*Server).recordReburied, (*Server).expireDue, (*Server).heal, (*Server).rotateDue, (*Server).deleteDue, (*Server).repairStores} {
		errs = append(errs, work(s, ctx))
	}
	return errors.Join(errs...)
}

// Run works while it owns the Region's work, which one control plane does at a time (store.Own), and waits for it otherwise. In goroutines that it waits for
// it also publishes again what was of unknown outcome (settle.go), and does what was asked of this control plane and should not wait for the owner's next turn. It
// ends with ctx, whose error it returns.
func (s *Server) Run(ctx context.Context) error {
	var others sync.WaitGroup
	others.Go(func() { s.settle(ctx) })
	others.Go(func() { s.hurrying(ctx) })
	others.Go(func() { s.connecting(ctx) })
	others.Go(func() { s.replicating(ctx) })
	defer others.Wait()
	for {
		owned, release, err := s.store.Own(ctx, s.region)
		if err != nil {
			return err
		}
		s.connections.own(true)
		s.work(owned)
		s.connections.own(false)
		release()
	}
}

// work works at the interval until ctx ends. What there is to tell other Regions it leaves to replicating: a peer that is slow delays nothing here.
func (s *Server) work(ctx context.Context) {
	ticker := time.NewTicker(s.workInterval)
	defer ticker.Stop()
	for {
		s.kick()
		if err := s.workHere(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("work that is due failed; it is tried again", "error", err.Error())
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// hurry has due rotations done now, by this control plane.
func (s *Server) hurry() {
	select {
	case s.hurried <- struct{}{}:
	default:
	}
}

func (s *Server) hurrying(ctx context.Context) {
	for {
		select {
		case <-s.hurried:
		case <-ctx.Done():
			return
		}
		if err := s.rotateDue(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("a rotation that was asked for failed; it is tried again", "error", err.Error())
		}
	}
}

// recordReburied leaves the record of the deletion of each key that the store, when it was opened, found come back and deleted again.
func (s *Server) recordReburied(context.Context) error {
	s.reburying.Lock()
	defer s.reburying.Unlock()
	for len(s.reburied) > 0 {
		n := s.reburied[0]
		if n.Region == s.region {
			if err := s.auditDeletion(s.keyARN(n), n.Account, s.now().UTC(), nil); err != nil {
				return err
			}
		}
		s.reburied = s.reburied[1:]
	}
	return nil
}

// deleteDue deletes every key that is due now. A key that cannot be deleted does not keep the others from it.
func (s *Server) deleteDue(ctx context.Context) error {
	errs := []error{s.seeDeletions(ctx)}
	elapsed, err := s.ticker.Tick(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	var after *store.Due
	for {
		if after, err = s.deleteTurn(ctx, elapsed, after); err != nil {
			errs = append(errs, err)
		}
		if after == nil {
			return errors.Join(errs...)
		}
	}
}

// seeDeletions notes of keys that are new in the index when their waiting period began, by Store.Elapsed.
func (s *Server) seeDeletions(ctx context.Context) error {
	var errs []error
	var after *store.Due
	for {
		due, err := s.store.Due(ctx, store.Deletion, s.region, store.AtOnce, after, deletionsPerTurn)
		if err != nil || len(due) == 0 {
			return errors.Join(append(errs, err)...)
		}
		for i := range due {
			if err := s.seeDeletion(ctx, due[i].KeyName); err != nil {
				errs = append(errs, err)
			}
		}
		after = &due[len(due)-1]
	}
}

// seeDeletion notes when the waiting period of a key was first seen.
func (s *Server) seeDeletion(ctx context.Context, n store.KeyName) error {
	return s.changeDeletion(ctx, n, func(k *store.Key) error { return s.see(ctx, k) })
}

// see notes in the record of a key that is pending deletion when its waiting period was first seen, if that is not known. Of a record of a version before there
// was Elapsed nobody knows how long it was to wait either: the longest period.
func (s *Server) see(ctx context.Context, k *store.Key) (err error) {
	if k.DeletionSeen != store.Unseen && k.DeletionDays != 0 {
		return nil
	}
	if k.DeletionDays == 0 {
		k.DeletionDays = kmsapi.PendingWindowMax
	}
	// After the record was read: its waiting period began before this.
	k.DeletionSeen, err = s.ticker.Tick(ctx)
	return err
}

// healDeletion gives a key another date if its waiting period has passed by the clock that nobody can set, and the date that it has is further away than a whole
// period all the same: its deletion was scheduled while the clock was ahead, or the clock is behind. The key waits one more period, by both clocks: that it
// does nobody was told before, and whoever still needs the key can see it.
func (s *Server) healDeletion(ctx context.Context, n store.KeyName, now time.Time, elapsed time.Duration) error {
	return s.changeDeletion(ctx, n, func(k *store.Key) error {
		if err := s.see(ctx, k); err != nil {
			return err
		}
		period := time.Duration(k.DeletionDays) * day
		if elapsed-k.DeletionSeen < period || !k.DeletionDate.After(now.Add(period+healSlack)) {
			return nil
		}
		// By now the clocks may be far from what they were when the keys before this one were looked at: the period begins when its date is written, as for seeDeletion.
		now := s.now().UTC().Truncate(time.Millisecond)
		elapsed, err := s.ticker.Tick(ctx)
		if err != nil {
			return err
		}
		if !k.DeletionDate.After(now.Add(period + healSlack)) {
			return nil // the clock was set forward
		}
		s.log.Warn("the deletion of a KMS key is further away than its waiting period, which has passed: the clock was ahead, or it is behind; the key is deleted in one waiting period now",
			"key", s.keyARN(n), "was", k.DeletionDate, "waitingPeriodInDays", k.DeletionDays)
		k.DeletionDate, k.DeletionSeen = now.Add(period), elapsed
		return nil
	})
}

// changeDeletion changes the record of a key while it is pending deletion; it is no error if it is not, or gone.
func (s *Server) changeDeletion(ctx context.Context, n store.KeyName, change func(*store.Key) error) error {
	k, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		if k.State != kmsapi.StatePendingDeletion {
			return nil
		}
		return change(k)
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err == nil {
		k.Wipe()
	}
	return err
}

// deleteTurn deletes up to deletionsPerTurn keys, those after the one given, and compacts away what their records held. next is where to go on, nil at the end.
func (s *Server) deleteTurn(ctx context.Context, elapsed time.Duration, after *store.Due) (next *store.Due, err error) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	now := s.now().UTC()
	if planted.Is(planted.DeletedEarly) {
		now, elapsed = now.Add(day), elapsed+day
	}
	due, err := s.store.Due(ctx, store.Deletion, s.region, now, after, deletionsPerTurn)
	if err != nil {
		return nil, err
	}
	var errs []error
	var last int64
	for _, d := range due {
		if d.Date.Equal(store.AtOnce) {
			continue // it was put there since seeDeletions
		}
		aliases, revision, done, err := s.store.DeleteKey(ctx, d, now, elapsed, func(k *store.Key) error { return s.auditDeletionOf(ctx, k, now) })
		if done || errors.Is(err, store.ErrUncertain) {
			s.publishKey(d.KeyName, err)
			for _, name := range aliases {
				s.publishAlias(d.Account, name, err)
			}
		}
		if done {
			last = max(last, revision)
			s.log.Info("KMS key deleted", "key", s.keyARN(d.KeyName), "deletionDate", d.Date)
		}
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil || done {
			continue
		}
		if err := s.seeDeletion(ctx, d.KeyName); err != nil {
			errs = append(errs, err)
		}
	}
	if last > 0 {
		if err := s.store.Compact(ctx, last); err != nil {
			errs = append(errs, err)
		}
	}
	if len(due) == deletionsPerTurn {
		next = &due[len(due)-1]
	}
	return next, errors.Join(errs...)
}
