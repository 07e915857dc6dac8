package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// settler says of a revision of the store whether a process may still answer from before it: while one may, this process does not answer from it either. A change is
// seen nowhere before it is seen everywhere, also by those who did not ask for it and wait for no answer. docs/planes.md has the proof.
type settler struct {
	now func() time.Duration                            // fence.Now
	ask func(ctx context.Context, revision int64) error // a control plane: planes.Client.Settled

	mu      sync.Mutex
	known   int64 // settled, and all before it
	applied []appliedAt
}

// appliedAt is a revision that this process has applied, and when, by settler.now.
type appliedAt struct {
	revision int64
	at       time.Duration
}

// heard takes note of a revision that this process has applied: it is settled fence.Wait later.
func (s *settler) heard(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.age(now)
	s.applied = append(s.applied, appliedAt{revision, now})
}

// age moves what was applied fence.Wait ago to what is known. s.mu is held.
func (s *settler) age(now time.Duration) {
	n := 0
	for n < len(s.applied) && now-s.applied[n].at >= fence.Wait {
		s.known = max(s.known, s.applied[n].revision)
		n++
	}
	s.applied = append(s.applied[:0], s.applied[n:]...)
}

func (s *settler) settled(revision int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if revision > s.known {
		s.age(s.now())
	}
	return revision <= s.known
}

// wait returns nil once a revision, which this process has read, is settled: at once as a rule, after a question to a control plane if it was written a moment ago, and
// fence.Wait after the call at the latest. The error is ctx's.
func (s *settler) wait(ctx context.Context, revision int64) error {
	if s.settled(revision) {
		return nil
	}
	late, cancel := context.WithTimeout(ctx, fence.Wait)
	defer cancel()
	if s.ask(late, revision) != nil {
		<-late.Done() // there is nobody to ask
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.mu.Lock()
	s.known = max(s.known, revision)
	s.mu.Unlock()
	return nil
}

// settledRecords are the store's, each told when it is settled.
type settledRecords struct {
	*store.Store
	settler *settler
}

func (s settledRecords) KeyRecord(ctx context.Context, region string, a keyid.Account, id keyid.ID) (*snapshot.Record, error) {
	rec, err := s.Store.KeyRecord(ctx, region, a, id)
	var revision int64
	if err == nil {
		revision = rec.Revision
	}
	if waited := s.wait(ctx, revision, err); waited != nil {
		if rec != nil {
			rec.Wipe()
		}
		return nil, waited
	}
	return rec, err
}

func (s settledRecords) AliasTarget(ctx context.Context, region string, a keyid.Account, alias string) (keyid.ID, error) {
	id, revision, err := s.Store.AliasTargetAt(ctx, region, a, alias)
	if waited := s.wait(ctx, revision, err); waited != nil {
		return keyid.ID{}, waited
	}
	return id, err
}

// wait waits for the revision of a record, or for that of the store in which there is none.
func (s settledRecords) wait(ctx context.Context, revision int64, err error) error {
	switch {
	case errors.Is(err, snapshot.ErrNotFound):
		revision = s.Committed()
	case err != nil:
		return nil // nothing is told
	}
	return s.settler.wait(ctx, revision)
}
