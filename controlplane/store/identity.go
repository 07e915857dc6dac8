package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	// ErrPlain says that the store has records of a version of keyplane that did not authenticate them.
	ErrPlain = errors.New("store: its records were written before they were authenticated")
	// ErrOlder says that the store is another one than this process had before, or older than it was.
	ErrOlder = errors.New("store: it is not the store that this process had before, or is older than it was")
)

// Trust is what whoever starts this process vouches for.
type Trust struct {
	// Plain takes the records of a store that were written before records were authenticated as they are.
	Plain bool
	// Older takes a store that is older than it was when this process had it last, and begins a new epoch.
	Older bool
}

// epochOf is which store it is, and since when its history has not been cut short: a store that was restored, or taken although it is older than it was, has the ID that it had,
// and an epoch of its own.
type epochOf struct {
	ID     string // 32 hexadecimal digits
	Number uint64 // ascends
	Name   string // 16 hexadecimal digits: two that went on from the same backup have another one
}

// storedIdentity is meta/store. Next is what the epoch is to be as soon as every value has a trailer of it; epoch 0 is the time before there were trailers.
type storedIdentity struct {
	ID        string       `json:"id"`
	Epoch     storedEpoch  `json:"epoch"`
	Next      *storedEpoch `json:"next,omitzero"`
	Restoring bool         `json:"restoring,omitzero"` // and nothing else but ID: it is not whole yet (Restore)
}

type storedEpoch struct {
	Number uint64 `json:"number"`
	Name   string `json:"name,omitzero"`
	Key    []byte `json:"key,omitempty"` // of the trailers' HMAC, sealed with all the rest of it
}

func (e *storedEpoch) aad(id string) []byte {
	return []byte("keyplane store 1 " + id + " " + strconv.FormatUint(e.Number, 10) + " " + e.Name)
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// newEpoch draws a key.
func (s *Store) newEpoch(id string, number uint64) (*storedEpoch, error) {
	e := &storedEpoch{Number: number, Name: randomHex(8)}
	key := make([]byte, 32)
	defer clear(key)
	rand.Read(key)
	var err error
	e.Key, err = s.sealer.Seal(key, e.aad(id))
	return e, err
}

func (s *Store) openEpoch(id string, e *storedEpoch) (*macKey, error) {
	if e.Number == 0 {
		return nil, nil
	}
	key, err := s.sealer.Open(e.Key, e.aad(id))
	if err != nil {
		return nil, fmt.Errorf("store: the key of its records does not open; they are of another HSM, or meta/store was changed: %w", err)
	}
	defer clear(key)
	return newMACKey(key), nil
}

// Authenticate opens the key by which the values of the store are authenticated, or makes it for a store that is empty. It is called once, when the Sealer works; from then on
// no value counts that does not verify. Before, there is nothing to be had of a store that has values but Pin and Pinned, which it verifies now.
//
// It refuses a store that is not the one that this process had, or older than it was (ErrOlder), and one with records that were never authenticated (ErrPlain), but for what
// trust says. Taking such records, or a new epoch, writes every value again: no other process may have the store meanwhile. What was interrupted goes on with the next call.
func (s *Store) Authenticate(ctx context.Context, trust Trust) error {
	if s.sealer == nil {
		return ErrNoSealer
	}
	floor, err := readFloor(s.dir)
	if err != nil {
		return err
	}
	var key *macKey
	err = retry(ctx, func() (done bool, err error) {
		key, err = s.enter(ctx, trust, floor)
		return key != nil, err
	})
	if err != nil {
		return err
	}
	s.auth.key.Store(key)
	if err := s.pins.settle(ctx, s); err != nil {
		return err
	}
	return s.keepFloor(ctx, floor)
}

// enter does one step to where the store's key opens. nil: there is another one.
func (s *Store) enter(ctx context.Context, trust Trust, floor *floor) (*macKey, error) {
	resp, err := s.client.Txn(ctx).Then(clientv3.OpGet(formatKey), clientv3.OpGet(identityKey)).Commit()
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	var format, identity *mvccpb.KeyValue
	for i, kv := range []**mvccpb.KeyValue{&format, &identity} {
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) == 1 {
			*kv = kvs[0]
		}
	}
	if format == nil {
		return nil, fmt.Errorf("%s: %w", formatKey, ErrDamaged)
	}
	sealed := string(format.Value) == formatVersion
	var st storedIdentity
	if identity != nil {
		if err := decode(identity.Value, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", identityKey, err)
		}
		if st.Restoring {
			return nil, ErrRestoring
		}
		if sealed != (st.Epoch.Number > 0) || !sealed && st.Next == nil {
			return nil, fmt.Errorf("%s: %w", identityKey, ErrDamaged)
		}
	} else if sealed {
		return nil, fmt.Errorf("%s is missing: %w", identityKey, ErrDamaged)
	}
	if !sealed {
		if floor != nil {
			return nil, fmt.Errorf("%w: its records were authenticated, and are not any more", ErrOlder)
		}
		if err := s.mayAdopt(ctx, trust); err != nil {
			return nil, err
		}
	}
	begin := func(number uint64) error { // the rest is another step's
		next := st
		if next.ID == "" {
			next.ID = randomHex(16)
		}
		if next.Next, err = s.newEpoch(next.ID, number); err != nil {
			return err
		}
		return s.putIdentity(ctx, format, identity, &next, string(format.Value))
	}
	if identity == nil {
		return nil, begin(1)
	}
	if floor != nil && floor.ID != st.ID {
		return nil, fmt.Errorf("%w: it is %s, not %s", ErrOlder, st.ID, floor.ID)
	}
	key, err := s.openEpoch(st.ID, &st.Epoch)
	if err != nil {
		return nil, err
	}
	if st.Next != nil {
		next, err := s.openEpoch(st.ID, st.Next)
		if err == nil {
			err = s.rewrite(ctx, key, next)
		}
		if err != nil {
			return nil, err
		}
		return nil, s.putIdentity(ctx, format, identity, &storedIdentity{ID: st.ID, Epoch: *st.Next}, formatVersion)
	}
	now := epochOf{st.ID, st.Epoch.Number, st.Epoch.Name}
	ran, err := s.ranFor(ctx, key)
	if err != nil {
		return nil, err
	}
	if older := floor.check(now, resp.Header.Revision, ran); older != nil {
		if !trust.Older {
			return nil, older
		}
		s.log.Warn("the store is older than it was; as it was said that this is so, a new epoch begins", "was", floor.String(), "is", now.String())
		return nil, begin(max(st.Epoch.Number, floor.Number) + 1)
	}
	if s.auth.sealed.Store(true); key != nil {
		s.identity = now
	}
	return key, nil
}

// mayAdopt refuses records that nobody vouches for.
func (s *Store) mayAdopt(ctx context.Context, trust Trust) error {
	if trust.Plain {
		return nil
	}
	for _, r := range [][2]string{{root, metaPrefix}, {clientv3.GetPrefixRangeEnd(metaPrefix), clientv3.GetPrefixRangeEnd(root)}} {
		resp, err := s.client.Get(ctx, r[0], clientv3.WithRange(r[1]), clientv3.WithCountOnly())
		if err != nil {
			return fmt.Errorf("store: %w", err)
		}
		if resp.Count > 0 {
			return ErrPlain
		}
	}
	return nil
}

// putIdentity writes meta/store and meta/format, if they are still what was read. If not, the next step finds out.
func (s *Store) putIdentity(ctx context.Context, format, identity *mvccpb.KeyValue, st *storedIdentity, to string) error {
	value, err := encode(st)
	if err != nil {
		return err
	}
	was := int64(0)
	if identity != nil {
		was = identity.ModRevision
	}
	_, _, err = s.commit(ctx, []clientv3.Cmp{unchanged(formatKey, format.ModRevision), unchanged(identityKey, was)},
		[]clientv3.Op{clientv3.OpPut(identityKey, string(value)), clientv3.OpPut(formatKey, to)})
	return err
}

const (
	rewritePage  = 100     // values in one transaction: etcd allows 128 operations
	rewriteBytes = 1 << 19 // and 1.5 MiB
)

// rewrite gives every value a trailer by next, in place of the one by key that it has; of no key: in addition. What does not verify stays as it is, and never will.
func (s *Store) rewrite(ctx context.Context, key, next *macKey) error {
	lost := 0
	for from, end := root, clientv3.GetPrefixRangeEnd(root); from != ""; {
		err := retry(ctx, func() (bool, error) {
			resp, err := s.auth.KV.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(rewritePage))
			if err != nil {
				return false, fmt.Errorf("store: %w", err)
			}
			var when []clientv3.Cmp
			var then []clientv3.Op
			page, bytes, more := from, 0, resp.More
			for _, kv := range resp.Kvs {
				if bytes > rewriteBytes {
					more = true
					break
				}
				page = string(kv.Key) + "\x00"
				if plain(string(kv.Key)) {
					continue
				}
				if _, err := next.open(kv); err == nil {
					continue // an earlier call did that
				}
				value := kv.Value
				if key != nil {
					value, err = key.open(kv)
				} else if _, _, _, ok := split(value); ok {
					err = errUnauthenticated
				}
				if err != nil {
					s.log.Error("a value is damaged, and stays so", "key", string(kv.Key))
					lost++
					continue
				}
				bytes += len(value)
				when = append(when, unchanged(string(kv.Key), kv.ModRevision))
				sealed := next.seal(string(kv.Key), at{kv.Version + 1, kv.CreateRevision}, 0, value)
				then = append(then, clientv3.OpPut(string(kv.Key), string(sealed), clientv3.WithIgnoreLease()))
				clear(value)
			}
			if len(then) > 0 {
				resp, err := s.auth.KV.Txn(ctx).If(when...).Then(then...).Commit()
				if err != nil || !resp.Succeeded {
					return false, err
				}
			}
			if from = page; !more {
				from = ""
			}
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	if lost > 0 {
		s.log.Error("values that are damaged were left as they are", "values", lost)
	}
	return nil
}

// CheckFloor asks etcd whether the store is still the one that Authenticate found, in the same epoch, and not older than an earlier answer: ErrOlder if not. For who loads everything anew.
func (s *Store) CheckFloor(ctx context.Context) error {
	seen := s.auth.seen.Load()
	resp, err := s.client.Get(ctx, identityKey)
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	var st storedIdentity
	if len(resp.Kvs) == 1 {
		if err := decode(resp.Kvs[0].Value, &st); err != nil {
			return fmt.Errorf("%s: %w", identityKey, err)
		}
	}
	was := floor{s.identity, seen, time.Duration(s.ran.Load())}
	if now := (epochOf{st.ID, st.Epoch.Number, st.Epoch.Name}); now != s.identity {
		return fmt.Errorf("%w: it was %s, and is %s", ErrOlder, was.String(), now.String())
	}
	ran, err := s.ranFor(ctx, s.auth.key.Load())
	if err != nil {
		return err
	}
	return was.check(s.identity, resp.Header.Revision, ran)
}

func (e epochOf) String() string { return fmt.Sprintf("%s epoch %d %s", e.ID, e.Number, e.Name) }

// pins are the facts that were asked for before they could be verified, and those that are still to be written.
type pins struct {
	mu      sync.Mutex
	read    map[string]string
	unread  []string // names to be written, in order
	pending map[string]string
}

func (p *pins) note(name, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.read == nil {
		p.read = map[string]string{}
	}
	p.read[name] = value
}

func (p *pins) waiting(name string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	value, ok := p.pending[name]
	return value, ok
}

func (p *pins) wait(name, value string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending == nil {
		p.pending = map[string]string{}
	}
	p.pending[name], p.unread = value, append(p.unread, name)
}

// settle verifies what was read, and writes what waited.
func (p *pins) settle(ctx context.Context, s *Store) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, was := range p.read {
		value, _, err := s.get(ctx, metaPrefix+name)
		if err != nil {
			return err
		}
		if string(value) != was {
			return fmt.Errorf("%s%s: %w", metaPrefix, name, ErrDamaged)
		}
	}
	for _, name := range p.unread {
		kept, err := s.Pin(ctx, name, p.pending[name])
		if err != nil {
			return err
		}
		if kept != p.pending[name] {
			return fmt.Errorf("store: another process has made %s %q meanwhile, and this one %q", name, kept, p.pending[name])
		}
	}
	p.read, p.unread, p.pending = nil, nil, nil
	return nil
}

// Pin keeps a fact about the whole store under a name: the first value given stays. It returns what is kept. Before Authenticate that is what etcd says, and a new fact is
// written by Authenticate only.
func (s *Store) Pin(ctx context.Context, name, value string) (kept string, err error) {
	key := metaPrefix + name
	for range 2 {
		if _, err := s.auth.on(); err != nil {
			if kept, err = s.Pinned(ctx, name); err != nil || kept != "" {
				return kept, err
			}
			s.pins.wait(name, value)
			return value, nil
		}
		when := []clientv3.Cmp{absent(key)}
		if s.auth.key.Load() == nil {
			when = append(when, clientv3.Compare(clientv3.Value(formatKey), "=", formatPlain)) // or it would have to have a trailer
		}
		resp, err := s.client.Txn(ctx).If(when...).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
		switch {
		case err != nil:
			return "", fmt.Errorf("store: %w", err)
		case resp.Succeeded:
			return value, nil
		}
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 1 {
			if kvs[0].Value != nil && string(kvs[0].Value) == string([]byte{damagedFormat}) {
				return "", fmt.Errorf("%s: %w: %w", key, ErrDamaged, errUnauthenticated)
			}
			if s.auth.key.Load() == nil {
				s.pins.note(name, string(kvs[0].Value))
			}
			return string(kvs[0].Value), nil
		}
		if s.auth.key.Load() != nil {
			break
		}
		s.auth.sealed.Store(true) // since it was opened
	}
	return "", ErrConflict
}

// Pinned returns what Pin keeps under a name, "" if nothing.
func (s *Store) Pinned(ctx context.Context, name string) (string, error) {
	if value, ok := s.pins.waiting(name); ok {
		return value, nil
	}
	value, _, err := s.get(ctx, metaPrefix+name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	if err == nil && s.auth.key.Load() == nil {
		s.pins.note(name, string(value))
	}
	return string(value), err
}
