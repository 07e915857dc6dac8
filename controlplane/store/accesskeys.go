package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// AccessKey is one access key with its secret in the clear. Whoever holds one wipes the secret.
type AccessKey struct {
	ID           string // 1 to 128 letters, digits or underscores
	Account      keyid.Account
	PrincipalARN string // of a service: its name
	PrincipalID  string // unique ID of the user or service, the account's digits for a root user; "" in records of older versions
	UserName     string
	Active       bool
	Created      time.Time
	Secret       secret.Bytes
	Revision     int64 // etcd mod revision; not part of the record
}

const (
	accessKeyPrefix = root + "accesskey/"
	accessKeyIDMax  = 128
)

type storedAccessKey struct {
	ID           string `json:"id"`
	Account      string `json:"account"`
	PrincipalARN string `json:"principalArn"`
	PrincipalID  string `json:"principalId,omitzero"`
	UserName     string `json:"userName"`
	SealedSecret []byte `json:"sealedSecret"`
	Active       bool   `json:"active"`
	Created      int64  `json:"created"`
}

// aad binds a sealed secret to whom it authenticates and to whether it may: moved to another record, or revived by editing its own, it does
// not open. Records without a principal's ID are those of older versions.
func (st *storedAccessKey) aad() []byte {
	b, fields := []byte("keyplane access key v1"), []string{st.ID, st.Account, st.PrincipalARN, st.UserName}
	if st.PrincipalID != "" {
		b, fields = []byte("keyplane access key v2"), append(fields, st.PrincipalID)
	}
	for _, s := range fields {
		b = append(b, byte(len(s)>>8), byte(len(s)))
		b = append(b, s...)
	}
	if st.Active {
		return append(b, 1)
	}
	return append(b, 0)
}

// ErrNoSealer says that the store was opened without a Sealer.
var ErrNoSealer = errors.New("store: no sealer for access key secrets")

// sealAccessKey makes the value of an access key's record.
func (s *Store) sealAccessKey(k *AccessKey) ([]byte, error) {
	if s.sealer == nil {
		return nil, ErrNoSealer
	}
	if !validAccessKeyID(k.ID) || len(k.PrincipalARN) > 1<<11 || len(k.PrincipalID) > 1<<8 || len(k.UserName) > 1<<8 || k.Secret.Len() == 0 {
		return nil, errors.New("store: not a valid access key")
	}
	st := storedAccessKey{
		ID: k.ID, Account: k.Account.String(), PrincipalARN: k.PrincipalARN, PrincipalID: k.PrincipalID, UserName: k.UserName, Active: k.Active,
		Created: k.Created.UnixMilli(),
	}
	var err error
	if st.SealedSecret, err = s.sealer.Seal(k.Secret.Expose(), st.aad()); err != nil {
		return nil, fmt.Errorf("store: sealing an access key: %w", err)
	}
	return encode(&st)
}

// PutAccessKey writes an access key's record and leaves its owner's list of access keys alone. With Revision 0 the key must be new, else the
// record must still have that revision; ErrExists or ErrConflict otherwise.
func (s *Store) PutAccessKey(ctx context.Context, k *AccessKey) error {
	value, err := s.sealAccessKey(k)
	if err != nil {
		return err
	}
	at := accessKeyPrefix + k.ID
	ok, revision, err := s.commit(ctx, []clientv3.Cmp{unchanged(at, k.Revision)}, []clientv3.Op{clientv3.OpPut(at, string(value))})
	if err != nil {
		return err
	}
	if !ok {
		if k.Revision == 0 {
			return ErrExists
		}
		return ErrConflict
	}
	k.Revision = revision
	return nil
}

// DeleteUnownedKey deletes an access key that is in no owner's list, if it is still what was read; ErrConflict otherwise.
func (s *Store) DeleteUnownedKey(ctx context.Context, k *AccessKey) error {
	at := accessKeyPrefix + k.ID
	ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(at, k.Revision)}, []clientv3.Op{clientv3.OpDelete(at)})
	if err == nil && !ok {
		err = ErrConflict
	}
	return err
}

// Owner is whom access keys belong to: a user, a registered service, or if neither is named the account's root user.
type Owner struct {
	Account keyid.Account
	User    string
	Service string
	ID      string // unique ID of the user or service who is meant: one that was made later under the name is not found; "" for whoever has the name
}

// is reports whether a record with a unique ID is the owner's.
func (o *Owner) is(id string) bool { return o.ID == "" || o.ID == id }

// owned is an owner's record as a write of its access keys needs it.
type owned struct {
	key      string
	revision int64
	keys     *[]string
	encode   func() ([]byte, error)
}

func (s *Store) owned(ctx context.Context, o Owner) (*owned, error) {
	switch {
	case o.User != "":
		p, err := s.Principal(ctx, PrincipalName{Kind: User, Account: o.Account, Name: o.User})
		if err == nil && !o.is(p.ID) {
			err = ErrNotFound
		}
		if err != nil {
			return nil, err
		}
		return &owned{p.key(), p.Revision, &p.AccessKeys, func() ([]byte, error) { return encodePrincipal(p) }}, nil
	case o.Service != "":
		v, err := s.Service(ctx, o.Service)
		if err == nil && (v.Account != o.Account || !o.is(v.ID)) {
			err = ErrNotFound
		}
		if err != nil {
			return nil, err
		}
		return &owned{v.key(), v.Revision, &v.AccessKeys, func() ([]byte, error) { return encodeService(v) }}, nil
	}
	a, err := s.Account(ctx, o.Account)
	if err != nil {
		return nil, err
	}
	return &owned{a.key(), a.Revision, &a.AccessKeys, func() ([]byte, error) { return encodeAccount(a) }}, nil
}

// AccessKeyIDs are the IDs of an owner's access keys, in the order they were made. ErrNotFound: no such owner.
func (s *Store) AccessKeyIDs(ctx context.Context, o Owner) ([]string, error) {
	r, err := s.owned(ctx, o)
	if err != nil {
		return nil, err
	}
	return *r.keys, nil
}

// CreateAccessKey writes a new access key and adds it to its owner's. ErrNotFound: no such owner; ErrQuota: it has two; ErrExists.
func (s *Store) CreateAccessKey(ctx context.Context, o Owner, k *AccessKey) error {
	value, err := s.sealAccessKey(k)
	if err != nil {
		return err
	}
	return s.serial(ctx, o.Account, func() (bool, error) {
		r, err := s.owned(ctx, o)
		if err != nil {
			return false, err
		}
		if len(*r.keys) >= AccessKeysMax {
			return false, &Quota{"AccessKeysPerUser", AccessKeysMax}
		}
		at := accessKeyPrefix + k.ID
		if _, _, err := s.get(ctx, at); !errors.Is(err, ErrNotFound) {
			if err == nil {
				err = ErrExists
			}
			return false, err
		}
		*r.keys = append(*r.keys, k.ID)
		list, err := r.encode()
		if err != nil {
			return false, err
		}
		ok, revision, err := s.commit(ctx, []clientv3.Cmp{unchanged(r.key, r.revision), absent(at)},
			[]clientv3.Op{clientv3.OpPut(r.key, string(list)), clientv3.OpPut(at, string(value))})
		k.Revision = revision
		return ok, err
	})
}

// SetAccessKeyActive makes one of an owner's access keys active or inactive. ErrNotFound: no such owner, or the key is not its. The caller
// wipes the key's secret.
func (s *Store) SetAccessKeyActive(ctx context.Context, o Owner, id string, active bool) (*AccessKey, error) {
	var k *AccessKey
	err := s.serial(ctx, o.Account, func() (bool, error) {
		r, err := s.owned(ctx, o)
		if err != nil {
			return false, err
		}
		if !slices.Contains(*r.keys, id) {
			return false, ErrNotFound
		}
		if k, err = s.AccessKey(ctx, id); err != nil {
			return false, err
		}
		if k.Active == active {
			return true, nil
		}
		k.Active = active
		value, err := s.sealAccessKey(k)
		if err != nil {
			return false, err
		}
		at := accessKeyPrefix + id
		ok, revision, err := s.commit(ctx, []clientv3.Cmp{unchanged(r.key, r.revision), unchanged(at, k.Revision)}, []clientv3.Op{clientv3.OpPut(at, string(value))})
		if !ok {
			k.Secret.Wipe()
		}
		k.Revision = revision
		return ok, err
	})
	return k, err
}

// RemoveAccessKey deletes one of an owner's access keys. ErrNotFound: no such owner, or the key is not its.
func (s *Store) RemoveAccessKey(ctx context.Context, o Owner, id string) error {
	return s.serial(ctx, o.Account, func() (bool, error) {
		r, err := s.owned(ctx, o)
		if err != nil {
			return false, err
		}
		i := slices.Index(*r.keys, id)
		if i < 0 {
			return false, ErrNotFound
		}
		*r.keys = slices.Delete(*r.keys, i, i+1)
		list, err := r.encode()
		if err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(r.key, r.revision)},
			[]clientv3.Op{clientv3.OpPut(r.key, string(list)), clientv3.OpDelete(accessKeyPrefix + id)})
		return ok, err
	})
}

// removeMax is how many access keys one transaction removes: etcd allows 128 operations in one.
const removeMax = 100

// ReplaceAccessKeys makes k the only access key of its owner, and returns the IDs of those that are gone, with an error too. k may be one of
// them with another secret; one of another principal is never taken over (ErrExists). What fits is one transaction; of more, the oldest go first.
func (s *Store) ReplaceAccessKeys(ctx context.Context, o Owner, k *AccessKey) (gone []string, err error) {
	value, err := s.sealAccessKey(k)
	if err != nil {
		return nil, err
	}
	at := accessKeyPrefix + k.ID
	err = s.serial(ctx, o.Account, func() (bool, error) {
		r, err := s.owned(ctx, o)
		if err != nil {
			return false, err
		}
		when, then := []clientv3.Cmp{unchanged(r.key, r.revision)}, []clientv3.Op{clientv3.OpPut(at, string(value))}
		if slices.Contains(*r.keys, k.ID) {
			// Whose record it is, is the list's to say, which is compared.
		} else {
			when = append(when, absent(at))
			if _, _, err := s.get(ctx, at); !errors.Is(err, ErrNotFound) {
				if err == nil {
					err = ErrExists
				}
				return false, err
			}
		}
		var remove []string
		for _, id := range *r.keys {
			if id != k.ID {
				remove = append(remove, id)
			}
		}
		last := len(remove) <= removeMax
		if last {
			*r.keys = []string{k.ID}
		} else {
			remove = remove[:removeMax]
			*r.keys = slices.DeleteFunc(*r.keys, func(id string) bool { return slices.Contains(remove, id) })
			when, then = when[:1], nil
		}
		for _, id := range remove {
			then = append(then, clientv3.OpDelete(accessKeyPrefix+id))
		}
		list, err := r.encode()
		if err != nil {
			return false, err
		}
		ok, revision, err := s.commit(ctx, when, append(then, clientv3.OpPut(r.key, string(list))))
		if ok || err != nil {
			gone = append(gone, remove...)
		}
		k.Revision = revision
		return ok && last, err
	})
	return gone, err
}

// AccessKey reads and opens one access key.
func (s *Store) AccessKey(ctx context.Context, id string) (*AccessKey, error) {
	if !validAccessKeyID(id) {
		return nil, ErrNotFound
	}
	value, revision, err := s.get(ctx, accessKeyPrefix+id)
	if err != nil {
		return nil, err
	}
	return s.openAccessKey(id, value, revision)
}

// AccessKeys reads and opens every access key, in ascending order of their IDs. use owns each key that it gets; its error ends the walk.
// A record that does not open ends it with ErrDamaged, but for damaged (spare): to serve without a part of the credentials would hide that.
func (s *Store) AccessKeys(ctx context.Context, use func(*AccessKey) error, damaged ...func(error)) error {
	return s.walk(ctx, accessKeyPrefix, spare(damaged, func(key string, value []byte, revision int64) error {
		k, err := s.openAccessKey(key[len(accessKeyPrefix):], value, revision)
		if err != nil {
			return err
		}
		return use(k)
	}))
}

func (s *Store) openAccessKey(id string, value []byte, revision int64) (*AccessKey, error) {
	if s.sealer == nil {
		return nil, ErrNoSealer
	}
	var st storedAccessKey
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("access key %s: %w", id, err)
	}
	account, ok := keyid.ParseAccount([]byte(st.Account))
	if !ok || st.ID != id {
		return nil, fmt.Errorf("access key %s: %w", id, ErrDamaged)
	}
	plain, err := s.sealer.Open(st.SealedSecret, st.aad())
	if err != nil {
		return nil, fmt.Errorf("access key %s: %w", id, unsealed(err))
	}
	return &AccessKey{
		ID: id, Account: account, PrincipalARN: st.PrincipalARN, PrincipalID: st.PrincipalID, UserName: st.UserName, Active: st.Active,
		Created: time.UnixMilli(st.Created).UTC(), Secret: secret.New(plain), Revision: revision,
	}, nil
}

// validAccessKeyID keeps access key IDs from reaching into other parts of the key space.
func validAccessKeyID(id string) bool {
	for _, c := range []byte(id) {
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c == '_') {
			return false
		}
	}
	return len(id) > 0 && len(id) <= accessKeyIDMax
}
