package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// How many keys an account has in a Region is kept as 16 counts, by the last hexadecimal digit of the keys' IDs, so that keys can be made and
// deleted at the same time. Whoever makes a key reads all counts at one revision and compares, in its transaction, its own one with what it
// read. That alone would let sixteen transactions, one for each count, be decided on the same sum; so within countSlots of the limit a
// transaction compares and writes all of them. The limit is exact, with any number of control planes: suppose the sum goes above it by a
// transaction T that compared its own count only. T had read a sum below limit − 16; what has been added since was added by others that
// compared one count only (one that writes all would have made T fail), each to another count than the next, since whoever reads after one of
// them has committed beyond limit − 16 reads that too. There are fifteen such counts.

// countSlots is the number of counts of one account and Region.
const countSlots = 16

// ErrKeyLimit says that the account has as many keys as it can have.
var ErrKeyLimit = errors.New("store: the account has the maximum of keys")

const countPrefix = root + "keycount/"

func countsPrefix(region string, a keyid.Account) string {
	return countPrefix + region + "/" + a.String() + "/"
}

// slot is which of its account's counts a key is in.
func (n KeyName) slot() int { return int(n.ID.UUID[15] & 0xf) }

func (n KeyName) countKey() string { return countKey(n.Region, n.Account, n.slot()) }

func countKey(region string, a keyid.Account, slot int) string {
	return countsPrefix(region, a) + "0123456789abcdef"[slot:slot+1]
}

type storedKeyCount struct {
	Keys int `json:"keys"`
}

// keyCounts are the counts of an account as they were at one revision; a count that is not there is 0.
type keyCounts struct {
	keys     [countSlots]int
	revision [countSlots]int64 // 0: it is not there
}

func (s *Store) keyCounts(ctx context.Context, region string, a keyid.Account) (c keyCounts, err error) {
	prefix := countsPrefix(region, a)
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return c, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		slot := strings.Index("0123456789abcdef", string(kv.Key[len(prefix):]))
		var st storedKeyCount
		if slot < 0 || len(kv.Key) != len(prefix)+1 || decode(kv.Value, &st) != nil || st.Keys < 0 {
			return c, fmt.Errorf("%s: %w", kv.Key, ErrDamaged)
		}
		c.keys[slot], c.revision[slot] = st.Keys, kv.ModRevision
	}
	return c, nil
}

func (c *keyCounts) sum() (n int) {
	for _, k := range c.keys {
		n += k
	}
	return n
}

// with is the part of a transaction that counts one key more. limit is the most that the account may have, the new one included.
func (c *keyCounts) with(n KeyName, limit int) (when []clientv3.Cmp, then []clientv3.Op, err error) {
	sum := c.sum()
	if sum >= limit {
		return nil, nil, ErrKeyLimit
	}
	c.keys[n.slot()]++
	for i := range countSlots {
		if i != n.slot() && sum+countSlots < limit {
			continue
		}
		key := countKey(n.Region, n.Account, i)
		value, err := encode(&storedKeyCount{c.keys[i]})
		if err != nil {
			return nil, nil, err
		}
		// A count that is not there has mod revision 0.
		when, then = append(when, unchanged(key, c.revision[i])), append(then, clientv3.OpPut(key, string(value)))
	}
	return when, then, nil
}

// without is the part of a transaction that counts one key less.
func (s *Store) without(ctx context.Context, n KeyName) (when clientv3.Cmp, then clientv3.Op, err error) {
	key := n.countKey()
	var st storedKeyCount
	value, revision, err := s.get(ctx, key)
	if err == nil {
		err = decode(value, &st)
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return when, then, err
	}
	if value, err = encode(&storedKeyCount{max(st.Keys-1, 0)}); err != nil {
		return when, then, err
	}
	return unchanged(key, revision), clientv3.OpPut(key, string(value)), nil
}

// KeyCount is how many keys an account has in a Region, in every state.
func (s *Store) KeyCount(ctx context.Context, region string, a keyid.Account) (int, error) {
	c, err := s.keyCounts(ctx, region, a)
	return c.sum(), err
}

// CountKeys makes the counts of a Region whose keys were made before there were counts. It does so once, before anybody makes a key.
func (s *Store) CountKeys(ctx context.Context, region string) error {
	const done = "done"
	name := "keycount/" + region
	if was, err := s.Pinned(ctx, name); err != nil || was == done {
		return err
	}
	counts := map[string]int{}
	prefix := root + "key/" + region + "/"
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(10*walkPage), clientv3.WithKeysOnly())
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		for _, kv := range resp.Kvs {
			account, id, _ := strings.Cut(string(kv.Key[len(prefix):]), "/")
			a, ok := keyid.ParseAccount([]byte(account))
			parsed, okID := keyid.ParseID([]byte(id))
			if !ok || !okID {
				return fmt.Errorf("%s: %w", kv.Key, ErrDamaged)
			}
			counts[KeyName{Region: region, Account: a, ID: parsed}.countKey()]++
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	for key, n := range counts {
		value, err := encode(&storedKeyCount{n})
		if err != nil {
			return err
		}
		// One that is there was made by another process that counted too, and may have made keys since.
		if _, _, err := s.commit(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(value))}); err != nil {
			return err
		}
	}
	_, err := s.Pin(ctx, name, done)
	return err
}
