package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// CreateKey writes a new key and its policy. ErrExists if the key ID is taken or was once: the caller draws another.
func (s *Store) CreateKey(ctx context.Context, k *Key, policy []byte) error {
	value, err := encodeKey(k)
	if err != nil {
		return err
	}
	defer clear(value)
	when := []clientv3.Cmp{absent(k.key()), absent(k.tombstoneKey())}
	then := []clientv3.Op{
		clientv3.OpPut(k.key(), string(value)),
		clientv3.OpPut(k.policyKey(), encodePolicy(policy)),
	}
	ok, revision, err := s.commit(ctx, when, then)
	if err != nil {
		return err
	}
	if !ok {
		return ErrExists
	}
	k.Revision = revision
	return nil
}

// Key reads a key's record. The caller wipes it.
func (s *Store) Key(ctx context.Context, n KeyName) (*Key, error) {
	value, revision, err := s.get(ctx, n.key())
	if err != nil {
		return nil, err
	}
	defer clear(value)
	return decodeKey(n, value, revision)
}

// UpdateKey changes a key's record. change decides on the record as it is and edits it; it may run several times, each time on a fresh
// copy, and must not touch name, versions' salts or aliases. Its error ends the update and comes back as it is. A change that changes
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

// putKey is the part of a transaction that replaces the record old by k and keeps the deletion index with it; no operations if the two
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
	when := []clientv3.Cmp{unchanged(k.key(), old.Revision)}
	if bytes.Equal(before, after) {
		return when, nil, nil
	}
	then := []clientv3.Op{clientv3.OpPut(k.key(), string(after))}
	if !old.DeletionDate.Equal(k.DeletionDate) {
		if !old.DeletionDate.IsZero() {
			then = append(then, clientv3.OpDelete(old.deletionKey(old.DeletionDate)))
		}
		if !k.DeletionDate.IsZero() {
			then = append(then, clientv3.OpPut(k.deletionKey(k.DeletionDate), string([]byte{recordFormat})))
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

// Policy reads a key's policy, as it was given.
func (s *Store) Policy(ctx context.Context, n KeyName) ([]byte, error) {
	value, _, err := s.get(ctx, n.policyKey())
	if err != nil {
		return nil, err
	}
	if len(value) == 0 || value[0] != recordFormat {
		return nil, ErrDamaged
	}
	return value[1:], nil
}

// PutPolicy replaces a key's policy if allow agrees to the key as it is.
func (s *Store) PutPolicy(ctx context.Context, n KeyName, policy []byte, allow func(*Key) error) error {
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, func() (bool, error) {
		k, err := s.Key(ctx, n)
		if err != nil {
			return false, err
		}
		defer k.Wipe()
		if err := allow(k); err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(n.key(), k.Revision)},
			[]clientv3.Op{clientv3.OpPut(n.policyKey(), encodePolicy(policy))})
		return ok, err
	})
}

// encodePolicy keeps the policy's bytes: what GetKeyPolicy shows is what was put.
func encodePolicy(policy []byte) string {
	return string(append([]byte{recordFormat}, policy...))
}

// ErrAliasLimit says that the key has as many aliases as a key can have.
var ErrAliasLimit = errors.New("store: the key has the maximum of aliases")

// aliasRoom holds the limit of aliases of one key, in the transaction that adds one.
func (k *Key) aliasRoom() error {
	if len(k.Aliases) >= kmsapi.AliasesPerKeyMax {
		return ErrAliasLimit
	}
	return nil
}
