package controlplane

import (
	"context"
	"errors"
	"slices"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// dropReplica takes a replica that is not there any more out of the record k, unless that has changed since it was asked for.
func (s *Server) dropReplica(ctx context.Context, k *store.Key, region string) error {
	done, err := s.store.UpdateKey(ctx, k.KeyName, func(now *store.Key) error {
		if now.Revision != k.Revision || !now.IsPrimary() {
			return errMoved
		}
		m := *now.MultiRegion
		m.Replicas = withoutRegion(m.Replicas, region)
		m.Have = slices.DeleteFunc(slices.Clone(m.Have), func(a store.Ack) bool { return a.Region == region })
		now.MultiRegion = &m
		if m.Promoting == region {
			m.Void = m.Revision // the change of the Replicas counts one more
			stay(now, &m)       // what is not there becomes no primary
		}
		return s.settleDeletion(ctx, now)
	})
	s.publishKey(k.KeyName, err)
	if err != nil {
		return err
	}
	done.Wipe()
	s.log.Info("a replica was deleted", "key", s.keyARN(k.KeyName), "region", region)
	return nil
}

// settleDeletion begins the waiting period of a primary that waited for its replicas to go.
func (s *Server) settleDeletion(ctx context.Context, k *store.Key) error {
	if !allReplicasGone(k) {
		return nil
	}
	k.State = kmsapi.StatePendingDeletion
	return s.beginDeletion(ctx, k, k.DeletionDays, fromMilli(s.now().UnixMilli()))
}

// allReplicasGone says that a primary that is pending replica deletion has no replica any more, nor is to have one.
func allReplicasGone(k *store.Key) bool {
	return k.State == kmsapi.StatePendingReplicaDeletion && len(k.MultiRegion.Replicas)+len(k.MultiRegion.Intents) == 0
}

// receiveGone is told that a replica was deleted. It asks the replica's Region itself, so that a message that is late does not remove another replica that
// has been made there since.
func (s *Server) receiveGone(ctx context.Context, m *replication.Message, n store.KeyName) (*replication.Answer, error) {
	k, err := s.store.Key(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		return &replication.Answer{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer k.Wipe()
	if !k.IsPrimary() || !slices.Contains(k.MultiRegion.Replicas, m.From) {
		return has(k), nil
	}
	a, err := s.ask(ctx, m.From, n, replication.Message{Kind: replication.State})
	if err != nil {
		return nil, err
	}
	if a.Exists {
		return has(k), nil
	}
	if err := s.dropReplica(ctx, k, m.From); err != nil {
		return nil, err
	}
	s.kick()
	return has(k), nil
}

// sayFarewell tells the primary, whoever is it now, that a replica was deleted.
func (s *Server) sayFarewell(ctx context.Context, f *store.Farewell) error {
	if s.away.skip(f.Primary, s.running()) {
		return nil
	}
	a, err := s.ask(ctx, f.Primary, f.KeyName, replication.Message{Kind: replication.Gone})
	if err != nil {
		return err
	}
	next := ""
	if a.Exists && a.Primary != f.Primary && a.Primary != s.region {
		next = a.Primary
	}
	return s.store.Redirect(ctx, *f, next)
}
