package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// aliasKey is where the alias is in etcd. name is a valid alias name, prefix included.
func aliasKey(region string, a keyid.Account, name string) string {
	return aliasPrefix(region, a) + strings.TrimPrefix(name, kmsapi.AliasPrefix)
}

// Alias reads an alias.
func (s *Store) Alias(ctx context.Context, region string, a keyid.Account, name string) (*Alias, error) {
	value, revision, err := s.get(ctx, aliasKey(region, a, name))
	if err != nil {
		return nil, err
	}
	return decodeAlias(name, value, revision)
}

// CreateAlias makes name an alias of the key n at the time now, if allow agrees to the key as it is. limit is the most aliases that the key may
// have (ErrAliasLimit). ErrNotFound: no such key. ErrExists: the name is taken.
func (s *Store) CreateAlias(ctx context.Context, n KeyName, name string, limit int, now time.Time, allow func(*Key) error) error {
	at := aliasKey(n.Region, n.Account, name)
	unlockAlias, err := s.aliases.lock(ctx, at)
	if err != nil {
		return err
	}
	defer unlockAlias()
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return err
	}
	defer unlock()
	value, err := encodeAlias(&Alias{Name: name, Target: n.ID, Created: now, Updated: now})
	if err != nil {
		return err
	}
	return retry(ctx, func() (bool, error) {
		old, err := s.Key(ctx, n)
		if err != nil {
			return false, err
		}
		defer old.Wipe()
		if err := allow(old); err != nil {
			return false, err
		}
		if _, _, err := s.get(ctx, at); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = ErrExists
			}
			return false, err
		}
		if err := old.aliasRoom(limit); err != nil {
			return false, err
		}
		k := old.clone()
		defer k.Wipe()
		k.addAlias(name)
		when, then, err := s.putKey(old, k)
		if err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, append(when, absent(at)), append(then, clientv3.OpPut(at, string(value))))
		return ok, err
	})
}

// UpdateAlias points the alias name at the key n instead of the one it points at, if allow agrees to both as they are. old is nil if that
// key's record is gone, which only damage can bring about. limit is CreateAlias's, of n. ErrNotFound: no such alias; ErrNoTarget: no such key;
// ErrAliasLimit.
func (s *Store) UpdateAlias(ctx context.Context, n KeyName, name string, limit int, now time.Time, allow func(old, target *Key) error) error {
	at := aliasKey(n.Region, n.Account, name)
	unlockAlias, err := s.aliases.lock(ctx, at)
	if err != nil {
		return err
	}
	defer unlockAlias()
	return retry(ctx, func() (bool, error) {
		alias, err := s.Alias(ctx, n.Region, n.Account, name)
		if err != nil {
			return false, err
		}
		from := KeyName{Region: n.Region, Account: n.Account, ID: alias.Target}
		unlock, err := s.keys.lock(ctx, n.key(), from.key())
		if err != nil {
			return false, err
		}
		defer unlock()
		target, err := s.Key(ctx, n)
		if errors.Is(err, ErrNotFound) {
			return false, ErrNoTarget
		}
		if err != nil {
			return false, err
		}
		defer target.Wipe()
		old := target
		if from != n {
			if old, err = s.Key(ctx, from); err != nil && !errors.Is(err, ErrNotFound) {
				return false, err
			}
		}
		if old != nil {
			defer old.Wipe()
		}
		if err := allow(old, target); err != nil {
			return false, err
		}
		when := []clientv3.Cmp{unchanged(at, alias.Revision)}
		var then []clientv3.Op
		if from != n {
			if err := target.aliasRoom(limit); err != nil {
				return false, err
			}
			w, t, err := s.moveAlias(name, old, target)
			if err != nil {
				return false, err
			}
			when, then = append(when, w...), append(then, t...)
		} else {
			when = append(when, target.asRead()...)
		}
		alias.Target, alias.Updated = n.ID, now
		value, err := encodeAlias(alias)
		if err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, when, append(then, clientv3.OpPut(at, string(value))))
		return ok, err
	})
}

// ErrNoTarget says that the key an alias is to point at does not exist.
var ErrNoTarget = errors.New("store: no such target key")

// moveAlias is the part of a transaction that takes name from one key's list, if that key exists, and adds it to another's.
func (s *Store) moveAlias(name string, old, target *Key) ([]clientv3.Cmp, []clientv3.Op, error) {
	added := target.clone()
	defer added.Wipe()
	added.addAlias(name)
	when, then, err := s.putKey(target, added)
	if err != nil || old == nil {
		return when, then, err
	}
	removed := old.clone()
	defer removed.Wipe()
	removed.removeAlias(name)
	w, t, err := s.putKey(old, removed)
	return append(when, w...), append(then, t...), err
}

// DeleteAlias removes the alias if allow agrees to the key that it points at, as it is. ErrNotFound: no such alias.
func (s *Store) DeleteAlias(ctx context.Context, region string, a keyid.Account, name string, allow func(*Key) error) error {
	at := aliasKey(region, a, name)
	unlockAlias, err := s.aliases.lock(ctx, at)
	if err != nil {
		return err
	}
	defer unlockAlias()
	return retry(ctx, func() (bool, error) {
		alias, err := s.Alias(ctx, region, a, name)
		if err != nil {
			return false, err
		}
		n := KeyName{Region: region, Account: a, ID: alias.Target}
		unlock, err := s.keys.lock(ctx, n.key())
		if err != nil {
			return false, err
		}
		defer unlock()
		when := []clientv3.Cmp{unchanged(at, alias.Revision)}
		var then []clientv3.Op
		old, err := s.Key(ctx, n)
		switch {
		case err == nil:
			defer old.Wipe()
			if err := allow(old); err != nil {
				return false, err
			}
			k := old.clone()
			defer k.Wipe()
			k.removeAlias(name)
			w, t, err := s.putKey(old, k)
			if err != nil {
				return false, err
			}
			when, then = append(when, w...), append(then, t...)
		case !errors.Is(err, ErrNotFound):
			return false, err
		}
		ok, _, err := s.commit(ctx, when, append(then, clientv3.OpDelete(at)))
		return ok, err
	})
}

// Aliases lists an account's aliases in ascending order of their names, those after the name given ("": from the start), at most limit.
// more says that there are others behind them.
func (s *Store) Aliases(ctx context.Context, region string, a keyid.Account, after string, limit int) (list []*Alias, more bool, err error) {
	prefix := aliasPrefix(region, a)
	from := prefix
	if after != "" {
		from = aliasKey(region, a, after) + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, false, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		alias, err := decodeAlias(kmsapi.AliasPrefix+string(kv.Key[len(prefix):]), kv.Value, kv.ModRevision)
		if err != nil {
			return nil, false, err
		}
		list = append(list, alias)
	}
	return list, resp.More, nil
}

// AliasesNamed reads the aliases with these names, at most kmsapi.AliasesPerKeyMost, in one transaction. Names that are no aliases are
// left out.
func (s *Store) AliasesNamed(ctx context.Context, region string, a keyid.Account, names []string) ([]*Alias, error) {
	if len(names) == 0 {
		return nil, nil
	}
	ops := make([]clientv3.Op, len(names))
	for i, name := range names {
		ops[i] = clientv3.OpGet(aliasKey(region, a, name))
	}
	resp, err := s.client.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var list []*Alias
	for i, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().Kvs {
			alias, err := decodeAlias(names[i], kv.Value, kv.ModRevision)
			if err != nil {
				return nil, err
			}
			list = append(list, alias)
		}
	}
	return list, nil
}
