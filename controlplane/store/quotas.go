package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// QuotasMax bounds the quotas of one account that are not the usual ones.
const QuotasMax = 256

const quotaPrefix = root + "quota/"

func quotasPrefix(region string) string { return quotaPrefix + region + "/" }

func quotaKey(region string, a keyid.Account) string { return quotasPrefix(region) + a.String() }

// storedQuotas is what an account has instead of the usual values, by the names of quotas. Unlimited ones are of value +Inf, which JSON does not
// have.
type storedQuotas struct {
	Values    map[string]float64 `json:"values,omitempty"`
	Unlimited []string           `json:"unlimited,omitempty"`
}

func encodeQuotas(values map[string]float64) ([]byte, error) {
	st := storedQuotas{Values: map[string]float64{}}
	for name, v := range values {
		switch {
		case name == "" || math.IsNaN(v) || v < 0:
			return nil, ErrDamaged
		case math.IsInf(v, 1):
			st.Unlimited = append(st.Unlimited, name)
		default:
			st.Values[name] = v
		}
	}
	return encode(&st)
}

func decodeQuotas(value []byte) (map[string]float64, error) {
	var st storedQuotas
	if err := decode(value, &st); err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for name, v := range st.Values {
		if name == "" || v < 0 {
			return nil, ErrDamaged
		}
		values[name] = v
	}
	for _, name := range st.Unlimited {
		values[name] = math.Inf(1)
	}
	return values, nil
}

// SetQuota changes one quota of an account, to the usual value again where value is nil, and returns all that are not the usual ones. +Inf is
// unlimited. Names and values are the caller's to check.
func (s *Store) SetQuota(ctx context.Context, region string, a keyid.Account, name string, value *float64) (values map[string]float64, err error) {
	key := quotaKey(region, a)
	unlock, err := s.counts.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	err = retry(ctx, func() (bool, error) {
		resp, err := s.client.Get(ctx, key)
		if err != nil {
			return false, fmt.Errorf("store: %w", err)
		}
		values = map[string]float64{}
		revision := int64(0)
		if len(resp.Kvs) > 0 {
			revision = resp.Kvs[0].ModRevision
			if values, err = decodeQuotas(resp.Kvs[0].Value); err != nil {
				return false, fmt.Errorf("%s: %w", key, err)
			}
		}
		if value == nil {
			delete(values, name)
		} else {
			values[name] = *value
		}
		if len(values) > QuotasMax {
			return false, &Quota{"Quotas", QuotasMax}
		}
		then := clientv3.OpDelete(key)
		if len(values) > 0 {
			record, err := encodeQuotas(values)
			if err != nil {
				return false, err
			}
			then = clientv3.OpPut(key, string(record))
		}
		ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(key, revision)}, []clientv3.Op{then})
		return ok, err
	})
	return values, err
}

// AccountQuotas reads what an account has instead of the usual quotas, nil for nothing.
func (s *Store) AccountQuotas(ctx context.Context, region string, a keyid.Account) (map[string]float64, error) {
	key := quotaKey(region, a)
	value, _, err := s.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	values, err := decodeQuotas(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return values, nil
}

// Quotas reads what accounts have instead of the usual quotas. An error of use ends the walk.
func (s *Store) Quotas(ctx context.Context, region string, use func(a keyid.Account, values map[string]float64) error, damaged ...func(error)) error {
	prefix := quotasPrefix(region)
	return s.walk(ctx, prefix, spare(damaged, func(key string, value []byte, _ int64) error {
		a, ok := keyid.ParseAccount([]byte(strings.TrimPrefix(key, prefix)))
		values, err := decodeQuotas(value)
		if !ok && err == nil {
			err = ErrDamaged
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return use(a, values)
	}))
}
