package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// AccessKey is one access key with its secret in the clear. Whoever holds one wipes the secret.
type AccessKey struct {
	ID           string // 1 to 128 letters, digits or underscores
	Account      keyid.Account
	PrincipalARN string
	UserName     string
	Active       bool
	Created      time.Time
	Secret       secret.Bytes
	Revision     int64 // etcd mod revision; not part of the record
}

const (
	accessKeyPrefix = root + "accesskey/"
	accessKeyIDMax  = 128
	accessKeysPage  = 500 // read at a time
)

type storedAccessKey struct {
	ID           string `json:"id"`
	Account      string `json:"account"`
	PrincipalARN string `json:"principalArn"`
	UserName     string `json:"userName"`
	SealedSecret []byte `json:"sealedSecret"`
	Active       bool   `json:"active"`
	Created      int64  `json:"created"`
}

// aad binds a sealed secret to whom it authenticates and to whether it may: moved to another record, or revived by editing its own, it does
// not open.
func (st *storedAccessKey) aad() []byte {
	b := []byte("keyplane access key v1")
	for _, s := range []string{st.ID, st.Account, st.PrincipalARN, st.UserName} {
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

// PutAccessKey writes an access key. With Revision 0 the key must be new, else the record must still have that revision; ErrExists or
// ErrConflict otherwise.
func (s *Store) PutAccessKey(ctx context.Context, k *AccessKey) error {
	if s.sealer == nil {
		return ErrNoSealer
	}
	if !validAccessKeyID(k.ID) || len(k.PrincipalARN) > 1<<11 || len(k.UserName) > 1<<8 || k.Secret.Len() == 0 {
		return errors.New("store: not a valid access key")
	}
	st := storedAccessKey{
		ID: k.ID, Account: k.Account.String(), PrincipalARN: k.PrincipalARN, UserName: k.UserName, Active: k.Active,
		Created: k.Created.UnixMilli(),
	}
	var err error
	if st.SealedSecret, err = s.sealer.Seal(k.Secret.Expose(), st.aad()); err != nil {
		return fmt.Errorf("store: sealing an access key: %w", err)
	}
	value, err := encode(&st)
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

// DeleteAccessKey removes an access key. Removing one that is not there is no error.
func (s *Store) DeleteAccessKey(ctx context.Context, id string) error {
	if !validAccessKeyID(id) {
		return nil
	}
	_, _, err := s.commit(ctx, nil, []clientv3.Op{clientv3.OpDelete(accessKeyPrefix + id)})
	return err
}

// AccessKeys reads and opens every access key, in ascending order of their IDs. use owns each key that it gets; its error ends the walk.
// A record that does not open ends it with ErrDamaged: to serve without a part of the credentials would hide that.
func (s *Store) AccessKeys(ctx context.Context, use func(*AccessKey) error) error {
	from, end := accessKeyPrefix, clientv3.GetPrefixRangeEnd(accessKeyPrefix)
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(accessKeysPage))
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, kv := range resp.Kvs {
			k, err := s.openAccessKey(string(kv.Key[len(accessKeyPrefix):]), kv.Value, kv.ModRevision)
			if err != nil {
				return err
			}
			if err := use(k); err != nil {
				return err
			}
		}
		if !resp.More {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
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
		return nil, fmt.Errorf("access key %s: %w: %w", id, ErrDamaged, err)
	}
	return &AccessKey{
		ID: id, Account: account, PrincipalARN: st.PrincipalARN, UserName: st.UserName, Active: st.Active,
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
