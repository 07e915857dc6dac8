package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Due is one entry of the deletion index.
type Due struct {
	KeyName
	Date time.Time

	revision int64
}

// DueDeletions lists the keys of a Region whose deletion date is at or before now, oldest first, at most limit.
func (s *Store) DueDeletions(ctx context.Context, region string, now time.Time, limit int) ([]Due, error) {
	prefix := deletionPrefix(region)
	// '/' ends the date in the index, '0' is the byte after it: every entry of this millisecond is in the range.
	end := prefix + now.UTC().Format(deletionLayout) + "0"
	resp, err := s.client.Get(ctx, prefix, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)), clientv3.WithKeysOnly())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var list []Due
	for _, kv := range resp.Kvs {
		parts := strings.Split(string(kv.Key[len(prefix):]), "/")
		if len(parts) != 3 {
			return nil, ErrDamaged
		}
		date, err := time.Parse(deletionLayout, parts[0])
		account, accountOK := keyid.ParseAccount([]byte(parts[1]))
		id, idOK := keyid.ParseID([]byte(parts[2]))
		if err != nil || !accountOK || !idOK {
			return nil, ErrDamaged
		}
		list = append(list, Due{KeyName: KeyName{Region: region, Account: account, ID: id}, Date: date, revision: kv.ModRevision})
	}
	return list, nil
}

// DeleteKey destroys a key whose deletion is due at now: its record, policy, grants, aliases and index entry go in one transaction that leaves
// a tombstone. It returns the aliases that went with it and the revision to compact. done is false, and nothing has happened to the key,
// if it is not pending deletion any more or its date has moved; an index entry that no record backs is removed. first is called, once, when the
// key is about to be destroyed; its error keeps the key.
func (s *Store) DeleteKey(ctx context.Context, d Due, now time.Time, first func() error) (aliases []string, revision int64, done bool, err error) {
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
	index, told := d.deletionKey(d.Date), false
	err = retry(ctx, func() (bool, error) {
		k, err := s.bareKey(ctx, d.KeyName)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		if k == nil || k.State != kmsapi.StatePendingDeletion || !k.DeletionDate.Equal(d.Date) {
			if k != nil {
				k.Wipe()
			}
			_, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(index, d.revision)}, []clientv3.Op{clientv3.OpDelete(index)})
			return true, err
		}
		defer k.Wipe()
		if k.DeletionDate.After(now) {
			return true, nil
		}
		if !told {
			if err := first(); err != nil {
				return false, err
			}
			told = true
		}
		tombstone, err := encode(&storedTombstone{Deleted: now.UnixMilli()})
		if err != nil {
			return false, err
		}
		uncounted, count, err := s.without(ctx, d.KeyName)
		if err != nil {
			return false, err
		}
		then := []clientv3.Op{
			count, clientv3.OpDelete(d.key()), clientv3.OpDelete(d.policyKey()), clientv3.OpDelete(index),
			clientv3.OpPut(d.tombstoneKey(), string(tombstone)),
		}
		then = append(then, d.deleteGrants()...)
		for _, name := range k.Aliases {
			then = append(then, clientv3.OpDelete(aliasKey(d.Region, d.Account, name)))
		}
		// The record's list of aliases changes with every alias, so its revision guards them all.
		ok, rev, err := s.commit(ctx, []clientv3.Cmp{unchanged(d.key(), k.Revision), uncounted}, then)
		if ok {
			aliases, revision, done = k.Aliases, rev, true
		}
		return ok, err
	})
	return aliases, revision, done, err
}

type storedTombstone struct {
	Deleted int64 `json:"deleted"`
}

// Compact drops every revision before the one given from etcd's history, and with it what the records of deleted keys held.
func (s *Store) Compact(ctx context.Context, revision int64) error {
	_, err := s.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // another process or etcd's own compaction came first
	}
	return err
}
