package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// CreateKey writes a new key with its policy. limit is the most keys that its account may have in the Region (ErrKeyLimit). ErrExists if the
// key ID is taken or was once: the caller draws another, but a replica may have been deleted and made again: then k.Created is given a time that no other had. Of a key in a custom key store ErrNoKeyStore, ErrUnconnected, ErrXksKey.
func (s *Store) CreateKey(ctx context.Context, k *Key, limit int) error {
	if k.IsReplica() {
		stone, _, err := s.tombstone(ctx, k.KeyName)
		if err != nil {
			return err
		}
		for slices.Contains(stone.Created, milli(k.Created)) {
			k.Created = k.Created.Add(time.Millisecond) // deleted-keys takes it for another life
		}
	}
	value, err := encodeKey(k)
	if err != nil {
		return err
	}
	defer clear(value)
	policy, err := encodePolicy(&k.Policy)
	if err != nil {
		return err
	}
	unlock, err := s.counts.lock(ctx, k.countKey())
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, func() (bool, error) {
		counts, err := s.keyCounts(ctx, k.Region, k.Account)
		if err != nil {
			return false, err
		}
		when, then, err := counts.with(k.KeyName, limit)
		if err != nil {
			return false, err
		}
		inStore, indexed, err := s.intoStore(ctx, k)
		if err != nil {
			return false, err
		}
		when, then = append(when, inStore...), append(then, indexed...)
		if k.IsReplica() {
			// Another replica may have been here. Its tombstone stays: the primary, which has the key still, asked for this one all the same.
			when = append(when, absent(k.key()))
		} else {
			when = append(when, k.isNew()...)
		}
		then = append(then, k.creation(value, policy)...)
		ok, revision, err := s.commit(ctx, when, then)
		if err != nil {
			return false, err
		}
		if !ok { // the ID, a count, or the key store
			taken, err := s.taken(ctx, k.KeyName)
			if err == nil && taken {
				err = ErrExists
			}
			return false, err
		}
		k.Revision, k.Policy.Revision = revision, revision
		return true, nil
	})
}

// isNew compares that there is no key of that name and never was one.
func (n KeyName) isNew() []clientv3.Cmp {
	return []clientv3.Cmp{absent(n.key()), absent(n.tombstoneKey())}
}

// creation puts what is kept of a new key, without its account's count.
func (k *Key) creation(record []byte, policy string) []clientv3.Op {
	then := []clientv3.Op{clientv3.OpPut(k.key(), string(record)), clientv3.OpPut(k.policyKey(), policy)}
	for _, due := range k.dueKeys() {
		if due != "" {
			then = append(then, clientv3.OpPut(due, string([]byte{recordFormat})))
		}
	}
	return then
}

// AWS is the Manager of an AWS managed key.
const AWS = "AWS"

// CreateManagedKey writes a new AWS managed key with its policy and its one alias, k.Aliases[0]. It counts for no limit. first is called before it is made.
// ErrExists: the alias is there, or the key ID was.
func (s *Store) CreateManagedKey(ctx context.Context, k *Key, first func() error) error {
	name := k.Aliases[0]
	at := aliasKey(k.Region, k.Account, name)
	unlock, err := s.aliases.lock(ctx, at)
	if err != nil {
		return err
	}
	defer unlock()
	// Those who came for it together wait for the first one's.
	if _, _, err := s.get(ctx, at); !errors.Is(err, ErrNotFound) {
		if err == nil {
			err = ErrExists
		}
		return err
	}
	record, err := encodeKey(k)
	if err != nil {
		return err
	}
	defer clear(record)
	policy, err := encodePolicy(&k.Policy)
	if err != nil {
		return err
	}
	alias, err := encodeAlias(&Alias{Name: name, Target: k.ID, Created: k.Created, Updated: k.Created})
	if err != nil {
		return err
	}
	if err := first(); err != nil {
		return err
	}
	ok, revision, err := s.commit(ctx, append(k.isNew(), absent(at)), append(k.creation(record, policy), clientv3.OpPut(at, string(alias))))
	if err == nil && !ok {
		err = ErrExists
	}
	k.Revision, k.Policy.Revision = revision, revision
	return err
}

// taken reports whether a key of that name is there or was once.
func (s *Store) taken(ctx context.Context, n KeyName) (bool, error) {
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(n.key(), clientv3.WithCountOnly()), clientv3.OpGet(n.tombstoneKey(), clientv3.WithCountOnly())).Commit()
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	return resp.Responses[0].GetResponseRange().Count+resp.Responses[1].GetResponseRange().Count > 0, nil
}

// Key reads a key's record and its policy, both as they are at one revision of the store. The caller wipes it.
func (s *Store) Key(ctx context.Context, n KeyName) (*Key, error) {
	k, _, err := s.keyAnd(ctx, n)
	return k, err
}

// keyAnd reads a key and what more there is under names of other records, all at one revision: nil for a name that has none.
func (s *Store) keyAnd(ctx context.Context, n KeyName, names ...string) (*Key, []*mvccpb.KeyValue, error) {
	ops := []clientv3.Op{clientv3.OpGet(n.key()), clientv3.OpGet(n.policyKey())}
	for _, name := range names {
		ops = append(ops, clientv3.OpGet(name))
	}
	resp, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	kvs := make([]*mvccpb.KeyValue, len(ops))
	for i, r := range resp.Responses {
		if list := r.GetResponseRange().Kvs; len(list) > 0 {
			kvs[i] = list[0]
		}
	}
	if kvs[0] == nil {
		return nil, nil, ErrNotFound
	}
	defer clear(kvs[0].Value)
	if kvs[1] == nil {
		return nil, nil, ErrDamaged
	}
	policy, err := decodePolicy(kvs[1].Value, kvs[1].ModRevision)
	if err != nil {
		return nil, nil, err
	}
	k, err := decodeKey(n, kvs[0].Value, kvs[0].ModRevision)
	if err != nil {
		return nil, nil, err
	}
	k.Policy = policy
	return k, kvs[2:], nil
}

// bareKey reads a key's record without its policy: for deletion, which asks nobody's permission.
func (s *Store) bareKey(ctx context.Context, n KeyName) (*Key, error) {
	value, revision, err := s.get(ctx, n.key())
	if err != nil {
		return nil, err
	}
	defer clear(value)
	return decodeKey(n, value, revision)
}

// asRead compares the key and its policy with what was read: for transactions of what was decided on them.
func (k *Key) asRead() []clientv3.Cmp {
	return []clientv3.Cmp{unchanged(k.key(), k.Revision), unchanged(k.policyKey(), k.Policy.Revision)}
}

// UpdateKey changes a key's record. change decides on the record as it is and edits it; it may run several times, each time on a fresh
// copy, and must not touch name, policy, versions' salts or aliases. Its error ends the update and comes back as it is. A change that changes
// nothing is not written. The caller wipes the key returned.
func (s *Store) UpdateKey(ctx context.Context, n KeyName, change func(*Key) error) (*Key, error) {
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return nil, err
	}
	defer unlock()
	var result *Key
	err = retry(ctx, func() (bool, error) {
		old, err := s.Key(ctx, n)
		if err != nil {
			return false, err
		}
		defer old.Wipe()
		k := old.clone()
		keep := false
		defer func() {
			if !keep {
				k.Wipe()
			}
		}()
		if err := change(k); err != nil {
			return false, err
		}
		if err := k.countShared(old); err != nil {
			return false, err
		}
		when, then, err := s.putKey(old, k)
		if err != nil {
			return false, err
		}
		if len(then) > 0 {
			ok, revision, err := s.commit(ctx, when, then)
			if err != nil || !ok {
				return false, err
			}
			k.Revision = revision
		}
		keep, result = true, k
		return true, nil
	})
	return result, err
}

// putKey is the part of a transaction that replaces the record old by k and keeps the indexes of errands with it; no operations if the two
// are equal. The compare is always there: whoever decided on old wants to know that it still holds.
func (s *Store) putKey(old, k *Key) ([]clientv3.Cmp, []clientv3.Op, error) {
	before, err := encodeKey(old)
	if err != nil {
		return nil, nil, err
	}
	defer clear(before)
	after, err := encodeKey(k)
	if err != nil {
		return nil, nil, err
	}
	defer clear(after)
	when := old.asRead()
	if bytes.Equal(before, after) {
		return when, nil, nil
	}
	then := []clientv3.Op{clientv3.OpPut(k.key(), string(after))}
	was, is := old.dueKeys(), k.dueKeys()
	for i := range was {
		if was[i] == is[i] {
			continue
		}
		if was[i] != "" {
			then = append(then, clientv3.OpDelete(was[i]))
		}
		if is[i] != "" {
			then = append(then, clientv3.OpPut(is[i], string([]byte{recordFormat})))
		}
	}
	return when, then, nil
}

// Keys lists the IDs of an account's keys in ascending order of their text, those after the one given (nil: from the start), at most
// limit. more says that there are others behind them.
func (s *Store) Keys(ctx context.Context, region string, a keyid.Account, after *keyid.ID, limit int) (ids []keyid.ID, more bool, err error) {
	prefix := keyPrefix(region, a)
	from := prefix
	if after != nil {
		from = prefix + after.String() + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithKeysOnly(),
		clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, false, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		id, ok := keyid.ParseID(kv.Key[len(prefix):])
		if !ok {
			return nil, false, ErrDamaged
		}
		ids = append(ids, id)
	}
	return ids, resp.More, nil
}

// ErrAliasLimit says that the key has as many aliases as a key can have.
var ErrAliasLimit = errors.New("store: the key has the maximum of aliases")

// aliasRoom holds the limit of aliases of one key, in the transaction that adds one.
func (k *Key) aliasRoom(limit int) error {
	if len(k.Aliases) >= min(limit, kmsapi.AliasesPerKeyMost) {
		return ErrAliasLimit
	}
	return nil
}
