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
	DeletionDate        timestamp
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
	c.context.Extra = []authz.ExtraValue{{Key: policy.KMSScheduleKeyDeletionPendingWindowInDays, Value: strconv.Itoa(int(days))}}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		k.State, k.Resume = after(c.op.Name, k.State)
		k.DeletionDate = c.now.Add(time.Duration(days) * 24 * time.Hour)
		return nil
	})
	if err != nil {
		return scheduleKeyDeletionOut{}, err
	}
	defer k.Wipe()
	return scheduleKeyDeletionOut{
		KeyId: s.keyARN(n), DeletionDate: timestamp{k.DeletionDate}, KeyState: k.State.String(), PendingWindowInDays: days,
	}, nil
}

type cancelKeyDeletionOut struct{ KeyId string }

// CancelKeyDeletion leaves the key Disabled. It works until the worker has deleted the key, also after the deletion date.
func (s *Server) cancelKeyDeletion(ctx context.Context, c *call, in *keyIn) (cancelKeyDeletionOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return cancelKeyDeletionOut{}, err
	}
	k, err := s.change(ctx, c, n, func(k *store.Key) error {
		k.State, k.Resume = after(c.op.Name, k.State)
		k.DeletionDate = time.Time{}
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
	// deletionTurnTimeout bounds one turn, compaction included.
	deletionTurnTimeout = time.Minute
)

// Run deletes keys whose deletion date has come and, in a goroutine that it waits for, publishes again what was of unknown outcome
// (settle.go), until ctx ends; it returns ctx's error. Several control planes may run it at once: the
// transaction that deletes a key compares its record, so that one of them does it, and a CancelKeyDeletion before it wins.
func (s *Server) Run(ctx context.Context) error {
	var settling sync.WaitGroup
	settling.Go(func() { s.settle(ctx) })
	defer settling.Wait()
	ticker := time.NewTicker(s.deletionInterval)
	defer ticker.Stop()
	for {
		if err := s.deleteDue(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("deleting keys that are due failed; it is tried again", "error", err.Error())
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deleteDue deletes every key that is due now. A key that cannot be deleted does not keep the others from it.
func (s *Server) deleteDue(ctx context.Context) error {
	for {
		done, more, err := s.deleteTurn(ctx)
		// Without progress the next turn would read the same entries again.
		if err != nil || !more || done == 0 {
			return err
		}
	}
}

// deleteTurn deletes up to deletionsPerTurn keys and compacts away what their records held. more says that there may be others.
func (s *Server) deleteTurn(ctx context.Context) (deleted int, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, deletionTurnTimeout)
	defer cancel()
	now := s.now().UTC()
	due, err := s.store.DueDeletions(ctx, s.region, now, deletionsPerTurn)
	if err != nil {
		return 0, false, err
	}
	var errs []error
	var last int64
	for _, d := range due {
		aliases, revision, done, err := s.store.DeleteKey(ctx, d, now, func() error { return s.auditDeletion(s.keyARN(d.KeyName), d.Account, now) })
		if done || errors.Is(err, store.ErrUncertain) {
			s.publishKey(d.KeyName, err)
			for _, name := range aliases {
				s.publishAlias(d.Account, name, err)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if done {
			deleted, last = deleted+1, max(last, revision)
			s.log.Info("KMS key deleted", "key", s.keyARN(d.KeyName), "deletionDate", d.Date)
		}
	}
	if deleted > 0 {
		if err := s.store.Compact(ctx, last); err != nil {
			errs = append(errs, err)
		}
	}
	return deleted, len(due) == deletionsPerTurn, errors.Join(errs...)
}
