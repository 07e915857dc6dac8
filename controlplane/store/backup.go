package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	// ErrNotEmpty says that there are records where there must be none.
	ErrNotEmpty = errors.New("store: it is not empty")
	// ErrRestoring says that a backup was not restored to its end.
	ErrRestoring = errors.New("store: a backup was being restored into it, and was not to the end: restore it again")
)

// Exported says what Export gave.
type Exported struct {
	Store      string
	Epoch      uint64
	EpochName  string
	Revision   int64
	Tombstones int64
	Damaged    []string // keys of values that were left out
}

// exported says whether a key belongs into a backup: what hangs on leases is of processes and sessions that are gone when it is restored.
func exported(key string) bool {
	return !plain(key) && !strings.HasPrefix(key, ownerPrefix) && !strings.HasPrefix(key, memberPrefix)
}

// Export calls use for every value of the store at one revision, in the order of their keys, but for what is on a lease: owners, members and temporary credentials. A value that is
// damaged is left out. An error of use ends it.
func (s *Store) Export(ctx context.Context, use func(key string, value []byte) error) (e Exported, err error) {
	if s.auth.key.Load() == nil {
		return e, errNoKey
	}
	e = Exported{Store: s.identity.ID, Epoch: s.identity.Number, EpochName: s.identity.Name}
	from, end := root, clientv3.GetPrefixRangeEnd(root)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(rewritePage)}
		if e.Revision > 0 {
			opts = append(opts, clientv3.WithRev(e.Revision))
		}
		resp, err := s.client.Get(ctx, from, opts...)
		if err != nil {
			return e, fmt.Errorf("store: reading at revision %d: %w", e.Revision, err)
		}
		if e.Revision == 0 {
			e.Revision = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			key := string(kv.Key)
			if kv.Lease != 0 || !exported(key) {
				continue
			}
			if len(kv.Value) == 1 && kv.Value[0] == damagedFormat {
				e.Damaged = append(e.Damaged, key)
				continue
			}
			if strings.HasPrefix(key, tombstonePrefix) {
				e.Tombstones++
			}
			err := use(key, kv.Value)
			clear(kv.Value)
			if err != nil {
				return e, err
			}
		}
		if !resp.More {
			break
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
	return e, s.CheckFloor(ctx) // nobody else has begun a new epoch meanwhile
}

// Restored says what a backup is of, and how it is to be restored.
type Restored struct {
	Exported
	Older       bool     // also if this process has seen the store when it was newer
	DeletedKeys []string // further files of deleted keys
}

// CheckRestore is the error with which Restore would refuse before it does anything: ErrNotEmpty, ErrOlder.
func (s *Store) CheckRestore(ctx context.Context, from Restored) error {
	_, err := s.mayRestore(ctx, from)
	return err
}

func (s *Store) mayRestore(ctx context.Context, from Restored) (*floor, error) {
	if s.sealer == nil {
		return nil, ErrNoSealer
	}
	if s.dir == "" {
		return nil, errors.New("store: there is no directory for what this process has seen and deleted")
	}
	floor, err := readFloor(s.dir)
	if err != nil {
		return nil, err
	}
	if floor != nil && floor.ID != from.Store {
		return nil, fmt.Errorf("%w: the backup is of %s, and this data directory of %s", ErrOlder, from.Store, floor.ID)
	}
	if err := floor.check(epochOf{from.Store, from.Epoch, from.EpochName}, from.Revision, math.MaxInt64); err != nil && !from.Older {
		return nil, err
	}
	st, err := s.readIdentity(ctx)
	if err != nil {
		return nil, err
	}
	if st.Restoring {
		return floor, nil
	}
	resp, err := s.client.Get(ctx, root, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if resp.Count != 1 { // the format
		return nil, ErrNotEmpty
	}
	return floor, nil
}

// readIdentity gives an empty one if there is none.
func (s *Store) readIdentity(ctx context.Context) (st storedIdentity, err error) {
	value, _, err := s.get(ctx, identityKey)
	if errors.Is(err, ErrNotFound) {
		return st, nil
	}
	if err == nil {
		err = decode(value, &st)
	}
	return st, err
}

// Restore writes a backup into an empty store, in place of Authenticate: values calls put for each of its values. The store has the ID that it had and a new epoch. Until it is done nobody
// else takes it, and what is left by a Restore that was cut short is removed by the next. A key that is deleted by what the backup, this process's file of deleted keys or one of
// DeletedKeys says is not brought back: Reburied has those that the backup did not know to be deleted.
func (s *Store) Restore(ctx context.Context, from Restored, values func(put func(key string, value []byte) error) error) error {
	floor, err := s.mayRestore(ctx, from)
	if err != nil {
		return err
	}
	if _, err := s.client.Delete(ctx, root, clientv3.WithPrefix()); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	number := from.Epoch + 1
	if floor != nil {
		number = max(number, floor.Number+1)
	}
	next, err := s.newEpoch(from.Store, number)
	if err != nil {
		return err
	}
	key, err := s.openEpoch(from.Store, next)
	if err != nil {
		return err
	}
	value, err := encode(&storedIdentity{ID: from.Store, Restoring: true})
	if err != nil {
		return err
	}
	ok, revision, err := s.commit(ctx, []clientv3.Cmp{absent(formatKey), absent(identityKey)},
		[]clientv3.Op{clientv3.OpPut(formatKey, formatPlain), clientv3.OpPut(identityKey, string(value))})
	if err != nil || !ok {
		return errors.Join(ErrConflict, err)
	}
	s.auth.key.Store(key)
	if err := s.restoreValues(ctx, values); err != nil {
		return err
	}
	for _, path := range from.DeletedKeys {
		named, err := readGraves(path, s.sealer)
		if err == nil {
			err = s.buryNamed(ctx, named)
		}
		if err != nil {
			return err
		}
	}
	if err := s.Rebury(ctx); err != nil {
		return err
	}
	if value, err = encode(&storedIdentity{ID: from.Store, Epoch: *next}); err != nil {
		return err
	}
	ok, _, err = s.commit(ctx, []clientv3.Cmp{unchanged(identityKey, revision), unchanged(formatKey, revision)},
		[]clientv3.Op{clientv3.OpPut(identityKey, string(value)), clientv3.OpPut(formatKey, formatVersion)})
	if err != nil || !ok {
		return errors.Join(ErrConflict, err)
	}
	s.identity = epochOf{from.Store, next.Number, next.Name}
	s.auth.sealed.Store(true)
	return s.keepFloor(ctx, floor)
}

func (s *Store) restoreValues(ctx context.Context, values func(put func(key string, value []byte) error) error) error {
	var when []clientv3.Cmp
	var then []clientv3.Op
	size := 0
	flush := func() error {
		if len(then) == 0 {
			return nil
		}
		ok, _, err := s.commit(ctx, when, then)
		if err == nil && !ok {
			err = ErrConflict
		}
		when, then, size = nil, nil, 0
		return err
	}
	err := values(func(key string, value []byte) error {
		if !strings.HasPrefix(key, root) || !exported(key) {
			return fmt.Errorf("store: %q is nothing that is restored", key)
		}
		when, then = append(when, absent(key)), append(then, clientv3.OpPut(key, string(value)))
		if size += len(value); len(then) < rewritePage && size < rewriteBytes {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// readGraves reads a file of deleted keys that is another process's, or a copy.
func readGraves(path string, sealer Sealer) (map[string]lives, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("store: %s is empty", path)
	}
	g := &graves{}
	return g.read(path, b[:strings.LastIndexByte(string(b), '\n')+1], sealer)
}

// buryNamed deletes what there is of lives that are over.
func (s *Store) buryNamed(ctx context.Context, named map[string]lives) error {
	var last int64
	for path, over := range named {
		n, _ := parsePath(path)
		revision, was, err := s.buryAgain(ctx, n, over)
		if err != nil {
			return fmt.Errorf("deleting %s again: %w", path, err)
		}
		if last = max(last, revision); was {
			s.reburied = append(s.reburied, n)
			s.log.Warn("a KMS key that was deleted had come back with an older copy of the store; it is deleted again", "region", n.Region, "account", n.Account.String(),
				"key", n.ID.String())
		}
	}
	if last > 0 {
		return s.Compact(ctx, last)
	}
	return nil
}
