package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// AccountsMax bounds the accounts of one store.
const AccountsMax = 10_000

// Account is the record of one account and its root user. The counts hold its quotas.
type Account struct {
	ID                     keyid.Account
	Created                time.Time
	AccessKeys             []string // of the root user: IDs, in the order they were made
	Users, Roles, Policies int
	Revision               int64 // etcd mod revision; not part of the record
}

const accountPrefix = root + "iam/account/"

func (a *Account) key() string { return accountPrefix + a.ID.String() }

type storedAccount struct {
	ID         string   `json:"id"`
	Created    int64    `json:"created"`
	AccessKeys []string `json:"accessKeys,omitempty"`
	Users      int      `json:"users,omitzero"`
	Roles      int      `json:"roles,omitzero"`
	Policies   int      `json:"policies,omitzero"`
}

func (a *Account) check() error {
	if a.ID > keyid.AccountMax || a.Created.IsZero() || a.Users < 0 || a.Roles < 0 || a.Policies < 0 || len(a.AccessKeys) > OwnedKeysMax {
		return ErrDamaged
	}
	for _, id := range a.AccessKeys {
		if !validAccessKeyID(id) {
			return ErrDamaged
		}
	}
	return nil
}

func encodeAccount(a *Account) ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	return encode(&storedAccount{
		ID: a.ID.String(), Created: a.Created.UnixMilli(), AccessKeys: a.AccessKeys, Users: a.Users, Roles: a.Roles, Policies: a.Policies,
	})
}

func decodeAccount(key string, value []byte, revision int64) (*Account, error) {
	var st storedAccount
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	id, ok := keyid.ParseAccount([]byte(st.ID))
	a := &Account{
		ID: id, Created: time.UnixMilli(st.Created).UTC(), AccessKeys: st.AccessKeys, Users: st.Users, Roles: st.Roles, Policies: st.Policies,
		Revision: revision,
	}
	if !ok || a.check() != nil || a.key() != key {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	return a, nil
}

// put is the part of a transaction that writes the record again, if it is still what was read.
func (a *Account) put() ([]clientv3.Cmp, []clientv3.Op, error) {
	value, err := encodeAccount(a)
	if err != nil {
		return nil, nil, err
	}
	return []clientv3.Cmp{unchanged(a.key(), a.Revision)}, []clientv3.Op{clientv3.OpPut(a.key(), string(value))}, nil
}

// serial tries one write of an account's principals until it is done. Writers of one account wait for each other: they are few, and most of
// them would meet in the account's record.
func (s *Store) serial(ctx context.Context, a keyid.Account, attempt func() (done bool, err error)) error {
	unlock, err := s.accounts.lock(ctx, (&Account{ID: a}).key())
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, attempt)
}

// inAccount is serial for writes that change the account's record as well. ErrNotFound: no such account.
func (s *Store) inAccount(ctx context.Context, id keyid.Account, attempt func(*Account) (done bool, err error)) error {
	return s.serial(ctx, id, func() (bool, error) {
		a, err := s.Account(ctx, id)
		if err != nil {
			return false, err
		}
		return attempt(a)
	})
}

// CreateAccount writes a new account, with the first access key of its root user unless that is nil. ErrExists; ErrQuota.
func (s *Store) CreateAccount(ctx context.Context, a *Account, k *AccessKey) error {
	if a.ID > keyid.AccountMax {
		return errors.New("store: an account ID has 12 digits")
	}
	resp, err := s.client.Get(ctx, accountPrefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	if resp.Count >= AccountsMax {
		return &Quota{"Accounts", AccountsMax}
	}
	when := []clientv3.Cmp{absent(a.key())}
	var then []clientv3.Op
	a.AccessKeys = nil
	if k != nil {
		value, err := s.sealAccessKey(k)
		if err != nil {
			return err
		}
		a.AccessKeys = []string{k.ID}
		when, then = append(when, absent(accessKeyPrefix+k.ID)), append(then, clientv3.OpPut(accessKeyPrefix+k.ID, string(value)))
	}
	value, err := encodeAccount(a)
	if err != nil {
		return err
	}
	ok, revision, err := s.commit(ctx, when, append(then, clientv3.OpPut(a.key(), string(value))))
	if err == nil && !ok {
		return ErrExists
	}
	a.Revision = revision
	return err
}

// Account reads an account.
func (s *Store) Account(ctx context.Context, id keyid.Account) (*Account, error) {
	key := (&Account{ID: id}).key()
	value, revision, err := s.get(ctx, key)
	if err != nil {
		return nil, err
	}
	return decodeAccount(key, value, revision)
}

// Accounts lists the accounts after the one given ("": from the start), at most limit. more says that there are others behind them.
func (s *Store) Accounts(ctx context.Context, after string, limit int) (list []*Account, more bool, err error) {
	more, err = s.list(ctx, accountPrefix, after, limit, func(key string, value []byte, revision int64) error {
		a, err := decodeAccount(key, value, revision)
		list = append(list, a)
		return err
	})
	return list, more, err
}

// AllAccounts reads every account. An error of use ends the walk.
func (s *Store) AllAccounts(ctx context.Context, use func(*Account) error, damaged ...func(error)) error {
	return s.walk(ctx, accountPrefix, spare(damaged, func(key string, value []byte, revision int64) error {
		a, err := decodeAccount(key, value, revision)
		if err != nil {
			return err
		}
		return use(a)
	}))
}

// spare makes a walk go on after a record that is damaged, or of which use says so, and tells the first of damaged; without one the walk ends there.
func spare(damaged []func(error), use func(key string, value []byte, revision int64) error) func(key string, value []byte, revision int64) error {
	if len(damaged) == 0 {
		return use
	}
	return func(key string, value []byte, revision int64) error {
		err := use(key, value, revision)
		if errors.Is(err, ErrDamaged) {
			damaged[0](err)
			return nil
		}
		return err
	}
}

// walkPage is how many records are read at a time.
const walkPage = 500

// walk reads every record whose key has a prefix, in ascending order.
func (s *Store) walk(ctx context.Context, prefix string, use func(key string, value []byte, revision int64) error) error {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(walkPage))
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, kv := range resp.Kvs {
			if err := use(string(kv.Key), kv.Value, kv.ModRevision); err != nil {
				return err
			}
		}
		if !resp.More {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// list reads at most limit records under a prefix, those after the name given ("": from the start).
func (s *Store) list(ctx context.Context, prefix, after string, limit int, use func(key string, value []byte, revision int64) error) (more bool, err error) {
	from := prefix
	if after != "" {
		from += after + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return false, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		if err := use(string(kv.Key), kv.Value, kv.ModRevision); err != nil {
			return false, err
		}
	}
	return resp.More, nil
}
