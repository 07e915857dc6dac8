package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/failpoint"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Due is one entry of an index of errands.
type Due struct {
	KeyName
	Errand Errand
	Date   time.Time

	revision int64
}

// Due lists the keys of a Region whose date for the errand is at or before now, oldest first, at most limit, those after the one given (nil: from the start).
func (s *Store) Due(ctx context.Context, e Errand, region string, now time.Time, after *Due, limit int) ([]Due, error) {
	prefix := duePrefix(e, region)
	from := prefix
	if after != nil {
		from = after.dueKey(e, after.Date) + "\x00"
	}
	// '/' ends the date in the index, '0' is the byte after it: every entry of this millisecond is in the range.
	end := prefix + now.UTC().Format(dueLayout) + "0"
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var list []Due
	for _, kv := range resp.Kvs {
		parts := strings.Split(string(kv.Key[len(prefix):]), "/")
		if len(parts) != 3 {
			return nil, ErrDamaged
		}
		date, err := time.Parse(dueLayout, parts[0])
		account, accountOK := keyid.ParseAccount([]byte(parts[1]))
		id, idOK := keyid.ParseID([]byte(parts[2]))
		if err != nil || !accountOK || !idOK {
			return nil, ErrDamaged
		}
		list = append(list, Due{KeyName: KeyName{Region: region, Account: account, ID: id}, Errand: e, Date: date, revision: kv.ModRevision})
	}
	return list, nil
}

// DeleteKey destroys a key whose deletion is due: now, the wall clock, has reached its date, and elapsed (Store.Elapsed), which nobody can set, has gone on by its
// waiting period since a worker first saw it pending deletion. Its record, policy, grants, aliases and index entry go in one transaction that leaves
// a tombstone. It returns the aliases that went with it and the revision to compact. done is false, and nothing has happened to the key,
// if it is not pending deletion any more, its date has moved, or it is not due; an index entry that no record backs is removed. first is called, once, when the
// key is about to be destroyed; its error keeps the key.
func (s *Store) DeleteKey(ctx context.Context, d Due, now time.Time, elapsed time.Duration, first func(*Key) error) (aliases []string, revision int64, done bool, err error) {
	unlock, err := s.keys.lock(ctx, d.key())
	if err != nil {
		return nil, 0, false, err
	}
	defer unlock()
	unlockCount, err := s.counts.lock(ctx, d.countKey())
	if err != nil {
		return nil, 0, false, err
	}
	defer unlockCount()
	index, told, created := d.dueKey(Deletion, d.Date), false, int64(0)
	err = retry(ctx, func() (bool, error) {
		k, err := s.bareKey(ctx, d.KeyName)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		if k == nil || k.State != kmsapi.StatePendingDeletion || !k.due(Deletion).Equal(d.Date) {
			if k != nil {
				k.Wipe()
			}
			_, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(index, d.revision)}, []clientv3.Op{clientv3.OpDelete(index)})
			return true, err
		}
		defer k.Wipe()
		if k.DeletionDate.After(now) || k.DeletionDays == 0 || k.DeletionSeen == Unseen || elapsed-k.DeletionSeen < time.Duration(k.DeletionDays)*24*time.Hour {
			return true, nil
		}
		if !told {
			if err := first(k); err != nil {
				return false, err
			}
			told = true
			failpoint.Here("deletion.recorded")
		}
		when, then, err := s.destruction(ctx, k, now)
		if err != nil {
			return false, err
		}
		ok, rev, err := s.commit(ctx, when, then)
		if ok {
			aliases, revision, done, created = k.Aliases, rev, true, milli(k.Created)
		}
		return ok, err
	})
	if done {
		failpoint.Here("deletion.done")
		s.graves.bury(d.lifeName(created))
	}
	return aliases, revision, done, err
}

// destruction is the transaction that destroys a key. Its tombstone names, besides this life of the key, those given.
func (s *Store) destruction(ctx context.Context, k *Key, now time.Time, over ...int64) (when []clientv3.Cmp, then []clientv3.Op, err error) {
	when, then, err = s.engrave(ctx, k.KeyName, now, append(slices.Clip(over), milli(k.Created)))
	if err != nil {
		return nil, nil, err
	}
	uncounted, count, err := s.without(ctx, k.KeyName)
	if err != nil {
		return nil, nil, err
	}
	then = append(then, count, clientv3.OpDelete(k.key()), clientv3.OpDelete(k.policyKey()))
	for _, due := range k.dueKeys() {
		if due != "" {
			then = append(then, clientv3.OpDelete(due))
		}
	}
	for _, entry := range k.storeKeys() {
		then = append(then, clientv3.OpDelete(entry))
	}
	farewell, err := k.farewell()
	if err != nil {
		return nil, nil, err
	}
	then = append(then, farewell...)
	then = append(then, k.deleteGrants()...)
	for _, name := range k.Aliases {
		then = append(then, clientv3.OpDelete(aliasKey(k.Region, k.Account, name)))
	}
	// The record's list of aliases changes with every alias, so its revision guards them all.
	return append(when, unchanged(k.key(), k.Revision), uncounted), then, nil
}

// storedTombstone is what is left under a deleted key's name. A replica may have been made, and deleted, more than once.
type storedTombstone struct {
	Deleted int64   `json:"deleted"`           // when it was deleted last
	Created []int64 `json:"created,omitempty"` // when each of its lives that are over was created, in order; those of versions before these were kept are not in it
}

// tombstone reads a key's tombstone; revision is 0 if it has none.
func (s *Store) tombstone(ctx context.Context, n KeyName) (stone storedTombstone, revision int64, err error) {
	value, revision, err := s.get(ctx, n.tombstoneKey())
	if errors.Is(err, ErrNotFound) {
		return stone, 0, nil
	}
	if err == nil {
		err = decode(value, &stone)
	}
	return stone, revision, err
}

// engrave is the part of a transaction that has a key's tombstone name lives that are over too.
func (s *Store) engrave(ctx context.Context, n KeyName, now time.Time, created []int64) ([]clientv3.Cmp, []clientv3.Op, error) {
	stone, revision, err := s.tombstone(ctx, n)
	if err != nil {
		return nil, nil, err
	}
	stone.Deleted, stone.Created = now.UnixMilli(), append(stone.Created, created...)
	slices.Sort(stone.Created)
	stone.Created = slices.Compact(stone.Created)
	value, err := encode(&stone)
	if err != nil {
		return nil, nil, err
	}
	return []clientv3.Cmp{unchanged(n.tombstoneKey(), revision)}, []clientv3.Op{clientv3.OpPut(n.tombstoneKey(), string(value))}, nil
}

// Compact drops every revision before the one given from etcd's history, and with it what the records of deleted keys held.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	_, err := s.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // another process or etcd's own compaction came first
	}
	return err
}
