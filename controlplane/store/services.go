package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

const (
	// ServicesMax bounds the registered services, ServiceAccountsMax the accounts that one is registered for by name.
	ServicesMax        = 1000
	ServiceAccountsMax = 1000

	servicePrefix  = root + "iam/service/"
	serviceNameMax = 128
)

// Service is the record of a registered service.
type Service struct {
	Name       string // s3.us-east-1.amazonaws.com
	ID         string // ASVC…: a service that is registered again is another one
	Account    keyid.Account
	Created    time.Time
	Every      bool            // it may act for every account
	Accounts   []keyid.Account // else those it may act for, ascending
	AccessKeys []string        // IDs, in the order they were made
	Revision   int64           // etcd mod revision; not part of the record
}

// ActsFor reports whether the service is registered for an account.
func (v *Service) ActsFor(a keyid.Account) bool {
	_, found := slices.BinarySearch(v.Accounts, a)
	return v.Every || found
}

func (v *Service) key() string { return servicePrefix + v.Name }

// ValidServiceName reports whether a name is one that a service can be registered under: lower-case labels of a domain name, two at least.
func ValidServiceName(name string) bool {
	for label := range strings.SplitSeq(name, ".") {
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
		if label == "" {
			return false
		}
	}
	return len(name) <= serviceNameMax && strings.Contains(name, ".")
}

// ServiceParts takes a service's name apart: its first label, the Region if that is its second one, and the rest, with which the label is the name without
// Region. s3.us-east-1.amazonaws.com is s3, us-east-1 and amazonaws.com.
func ServiceParts(name string) (label, region, domain string) {
	label, domain, _ = strings.Cut(name, ".")
	if second, rest, ok := strings.Cut(domain, "."); ok && isRegion(second) {
		return label, second, rest
	}
	return label, "", domain
}

// isRegion reports whether s is a Region's name: us-east-1, us-gov-west-1.
func isRegion(s string) bool {
	parts := strings.Split(s, "-")
	for i, p := range parts {
		for _, c := range []byte(p) {
			digit := c >= '0' && c <= '9'
			if i == len(parts)-1 != digit || !digit && (c < 'a' || c > 'z') {
				return false
			}
		}
		if p == "" {
			return false
		}
	}
	return len(parts) > 2
}

// Overlap is the error of a service that cannot be registered beside another: the alias of the AWS managed key, which has a service's first label only,
// would be that of both for one account in one Region.
type Overlap struct{ Service string }

func (e *Overlap) Error() string {
	return "store: the AWS managed key would be that of the registered service " + e.Service + " too"
}

// overlaps says so of two services. With a Region and without one, a service is the same.
func (v *Service) overlaps(o *Service) bool {
	label, region, domain := ServiceParts(v.Name)
	otherLabel, otherRegion, otherDomain := ServiceParts(o.Name)
	if label != otherLabel || domain == otherDomain || region != "" && otherRegion != "" && region != otherRegion {
		return false
	}
	if v.Every {
		v, o = o, v // v is for every account only if both are
	}
	return v.Every || o.Every && len(v.Accounts) > 0 || slices.ContainsFunc(v.Accounts, o.ActsFor)
}

func (v *Service) check() error {
	if !ValidServiceName(v.Name) || !validUniqueID(v.ID, "ASVC") || v.Account > keyid.AccountMax || v.Created.IsZero() || v.Every && len(v.Accounts) > 0 ||
		len(v.Accounts) > ServiceAccountsMax || !slices.IsSorted(v.Accounts) || len(v.AccessKeys) > OwnedKeysMax {
		return ErrDamaged
	}
	return nil
}

type storedService struct {
	Name       string   `json:"name"`
	ID         string   `json:"id"`
	Account    string   `json:"account"`
	Created    int64    `json:"created"`
	Every      bool     `json:"every,omitzero"`
	Accounts   []string `json:"accounts,omitempty"`
	AccessKeys []string `json:"accessKeys,omitempty"`
}

func encodeService(v *Service) ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	st := storedService{Name: v.Name, ID: v.ID, Account: v.Account.String(), Created: v.Created.UnixMilli(), Every: v.Every, AccessKeys: v.AccessKeys}
	for _, a := range v.Accounts {
		st.Accounts = append(st.Accounts, a.String())
	}
	return encode(&st)
}

func decodeService(key string, value []byte, revision int64) (*Service, error) {
	var st storedService
	if err := decode(value, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	account, ok := keyid.ParseAccount([]byte(st.Account))
	v := &Service{
		Name: st.Name, ID: st.ID, Account: account, Created: time.UnixMilli(st.Created).UTC(), Every: st.Every, AccessKeys: st.AccessKeys,
		Revision: revision,
	}
	for _, text := range st.Accounts {
		a, valid := keyid.ParseAccount([]byte(text))
		ok = ok && valid
		v.Accounts = append(v.Accounts, a)
	}
	if !ok || v.check() != nil || v.key() != key {
		return nil, fmt.Errorf("%s: %w", key, ErrDamaged)
	}
	return v, nil
}

// RegisterService writes a new service with its first access key. ErrExists; ErrQuota; an *Overlap.
func (s *Store) RegisterService(ctx context.Context, v *Service, k *AccessKey) error {
	v.AccessKeys = []string{k.ID}
	value, err := encodeService(v)
	if err != nil {
		return err
	}
	sealed, err := s.sealAccessKey(k)
	if err != nil {
		return err
	}
	return retry(ctx, func() (bool, error) {
		n, last := 0, int64(0)
		err := s.walk(ctx, servicePrefix, func(key string, value []byte, revision int64) error {
			o, err := decodeService(key, value, revision)
			n, last = n+1, max(last, revision)
			switch {
			case err != nil:
				return err
			case o.Name == v.Name:
				return ErrExists
			case v.overlaps(o):
				return &Overlap{o.Name}
			}
			return nil
		})
		if err != nil {
			return false, err
		}
		if n >= ServicesMax {
			return false, &Quota{"Services", ServicesMax}
		}
		// No other has come meanwhile.
		others := clientv3.Compare(clientv3.ModRevision(servicePrefix), "<", last+1).WithPrefix()
		ok, revision, err := s.commit(ctx, []clientv3.Cmp{others, absent(accessKeyPrefix + k.ID)},
			[]clientv3.Op{clientv3.OpPut(v.key(), string(value)), clientv3.OpPut(accessKeyPrefix+k.ID, string(sealed))})
		v.Revision = revision
		return ok, err
	})
}

// Service reads a registered service.
func (s *Store) Service(ctx context.Context, name string) (*Service, error) {
	if !ValidServiceName(name) {
		return nil, ErrNotFound
	}
	value, revision, err := s.get(ctx, servicePrefix+name)
	if err != nil {
		return nil, err
	}
	return decodeService(servicePrefix+name, value, revision)
}

// DeregisterService removes a service with its access keys, whose IDs it returns.
func (s *Store) DeregisterService(ctx context.Context, name string) (keys []string, err error) {
	err = retry(ctx, func() (bool, error) {
		v, err := s.Service(ctx, name)
		if err != nil {
			return false, err
		}
		then := []clientv3.Op{clientv3.OpDelete(v.key())}
		for _, id := range v.AccessKeys {
			then = append(then, clientv3.OpDelete(accessKeyPrefix+id))
		}
		keys = v.AccessKeys
		ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(v.key(), v.Revision)}, then)
		return ok, err
	})
	if err != nil && !errors.Is(err, ErrUncertain) {
		return nil, err
	}
	return keys, err
}

// Services lists the services after the name given ("": from the start), at most limit. more says that there are others behind them.
func (s *Store) Services(ctx context.Context, after string, limit int, damaged ...func(error)) (list []*Service, more bool, err error) {
	more, err = s.list(ctx, servicePrefix, after, limit, spare(damaged, func(key string, value []byte, revision int64) error {
		v, err := decodeService(key, value, revision)
		if err == nil {
			list = append(list, v)
		}
		return err
	}))
	return list, more, err
}
