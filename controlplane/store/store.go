package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyplane/keyplane/internal/keyid"
)

var (
	// ErrNotFound says that the named record does not exist.
	ErrNotFound = errors.New("store: no such record")
	// ErrExists says that a record of that name exists already, or once did and left a tombstone.
	ErrExists = errors.New("store: the record exists")
	// ErrDamaged says that a record exists but cannot be trusted.
	ErrDamaged = errors.New("store: the record is damaged")
	// ErrConflict says that other writers won every attempt. Nothing was written.
	ErrConflict = errors.New("store: too many conflicting writes")
	// ErrUncertain says that the transaction was sent and its outcome is not known: it may be committed.
	ErrUncertain = errors.New("store: the outcome of the write is not known")
)

// Sealer protects access key secrets at rest, under a key that is not in etcd. Both methods return a new slice; Open fails on anything
// that Seal did not make with the same aad. Safe for concurrent use.
type Sealer interface {
	Seal(plaintext, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
}

const (
	// attemptsMax bounds how often one write is tried; conflictPause is the first pause between two attempts, doubled up to 32 times
	// itself. Writers of this process wait for each other (stripes), so conflicts come from other processes and deletions.
	attemptsMax   = 32
	conflictPause = time.Millisecond

	lockStripes = 256

	formatVersion = "1"
)

// Store is the control plane's state. Methods are safe for concurrent use.
type Store struct {
	client *clientv3.Client
	sealer Sealer
	// Whoever writes an alias, and then whoever writes a key record, waits here for this process's others that do: aliases before keys,
	// so that nobody waits in a circle. It only saves conflicts; correctness is the transactions' revision compares.
	// Counts are those who make or delete a key, last of all. Accounts are those who write principals; they take no other.
	aliases, keys, counts, accounts stripes
	closers                         []func() error // run in order by Close
}

func newStore(client *clientv3.Client, sealer Sealer) *Store {
	s := &Store{client: client, sealer: sealer, aliases: newStripes(), keys: newStripes(), counts: newStripes(), accounts: newStripes()}
	s.closers = []func() error{client.Close}
	return s
}

// checkFormat claims an empty store for this layout, or refuses one that was written in another.
func (s *Store) checkFormat(ctx context.Context) error {
	resp, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(formatKey), "=", 0)).
		Then(clientv3.OpPut(formatKey, formatVersion)).
		Else(clientv3.OpGet(formatKey)).
		Commit()
	if err != nil {
		return fmt.Errorf("store: reading the format: %w", err)
	}
	if resp.Succeeded {
		return nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) != 1 || string(kvs[0].Value) != formatVersion {
		return fmt.Errorf("store: the data was written in a format that this version of keyplane does not know")
	}
	return nil
}

// Ready reports whether the store answers a linearizable read.
func (s *Store) Ready(ctx context.Context) error {
	_, err := s.client.Get(ctx, formatKey, clientv3.WithKeysOnly())
	return err
}

// Pin keeps a fact about the whole store under a name: the first value given stays. It returns what is kept.
func (s *Store) Pin(ctx context.Context, name, value string) (kept string, err error) {
	key := root + "meta/" + name
	resp, err := s.client.Txn(ctx).If(absent(key)).Then(clientv3.OpPut(key, value)).Else(clientv3.OpGet(key)).Commit()
	switch {
	case err != nil:
		return "", fmt.Errorf("store: %w", err)
	case resp.Succeeded:
		return value, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) != 1 {
		return "", ErrConflict
	}
	return string(kvs[0].Value), nil
}

// Pinned returns what Pin keeps under a name, "" if nothing.
func (s *Store) Pinned(ctx context.Context, name string) (string, error) {
	value, _, err := s.get(ctx, root+"meta/"+name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return string(value), err
}

// Barrier returns when a write proposed after the call is committed: then every write of this process that was sent before is committed too,
// or never will be, because proposals of one member keep their order in the log.
func (s *Store) Barrier(ctx context.Context) error {
	_, err := s.client.Put(ctx, root+"meta/barrier", "")
	return err
}

// Close ends the client and, for an embedded store, etcd. No method may be called afterwards.
func (s *Store) Close() error {
	var errs []error
	for _, f := range s.closers {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	s.closers = nil
	return errors.Join(errs...)
}

// stripes are one-slot semaphores, chosen by the hash of a name.
type stripes struct {
	seed maphash.Seed
	slot [lockStripes]chan struct{}
}

func newStripes() stripes {
	s := stripes{seed: maphash.MakeSeed()}
	for i := range s.slot {
		s.slot[i] = make(chan struct{}, 1)
	}
	return s
}

// lock takes the stripes of the names, etcd keys, in ascending order. The returned function releases them.
func (s *stripes) lock(ctx context.Context, names ...string) (func(), error) {
	want := make([]int, len(names))
	for i, n := range names {
		want[i] = int(maphash.String(s.seed, n) % lockStripes)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	held := 0
	unlock := func() {
		for _, i := range want[:held] {
			<-s.slot[i]
		}
	}
	for _, i := range want {
		select {
		case s.slot[i] <- struct{}{}:
			held++
		case <-ctx.Done():
			unlock()
			return nil, ctx.Err()
		}
	}
	return unlock, nil
}

// retry runs attempt until it reports that it is done. attempt reads, decides and commits once; done false is a lost compare.
func retry(ctx context.Context, attempt func() (done bool, err error)) error {
	pause := conflictPause
	for range attemptsMax {
		done, err := attempt()
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(2*pause, 32*conflictPause)
	}
	return ErrConflict
}

// commit runs one transaction. An error is ErrUncertain: once sent, a transaction may be committed whatever came back.
func (s *Store) commit(ctx context.Context, when []clientv3.Cmp, then []clientv3.Op) (ok bool, revision int64, err error) {
	resp, err := s.client.Txn(ctx).If(when...).Then(then...).Commit()
	if err != nil {
		return false, 0, fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return resp.Succeeded, resp.Header.Revision, nil
}

// get reads one value with its mod revision; ErrNotFound if there is none. The caller may wipe the value.
func (s *Store) get(ctx context.Context, key string) ([]byte, int64, error) {
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return nil, 0, fmt.Errorf("store: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, ErrNotFound
	}
	return resp.Kvs[0].Value, resp.Kvs[0].ModRevision, nil
}

func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

func present(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

// Layout of etcd's key space; see doc.go. Regions and accounts come from configuration and verified identities, key IDs and alias names
// are parsed: none of them can hold a byte that reaches into another prefix.
const (
	root      = "/keyplane/1/"
	formatKey = root + "meta/format"
)

// KeyName names one KMS key in the store.
type KeyName struct {
	Region  string
	Account keyid.Account
	ID      keyid.ID
}

func (n KeyName) path() string         { return n.Region + "/" + n.Account.String() + "/" + n.ID.String() }
func (n KeyName) key() string          { return root + "key/" + n.path() }
func (n KeyName) policyKey() string    { return root + "policy/" + n.path() }
func (n KeyName) tombstoneKey() string { return root + "tombstone/" + n.path() }

// deletionKey sorts by date because the date has a fixed width.
func (n KeyName) deletionKey(date time.Time) string {
	return deletionPrefix(n.Region) + date.UTC().Format(deletionLayout) + "/" + n.Account.String() + "/" + n.ID.String()
}

const deletionLayout = "2006-01-02T15:04:05.000Z"

func deletionPrefix(region string) string { return root + "deletion/" + region + "/" }

func keyPrefix(region string, a keyid.Account) string {
	return root + "key/" + region + "/" + a.String() + "/"
}

func aliasPrefix(region string, a keyid.Account) string {
	return root + "alias/" + region + "/" + a.String() + "/"
}

// Unavailable reports whether an error of the store means that etcd did not answer in time: a later try may succeed.
func Unavailable(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, ErrConflict) {
		return true
	}
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code() == codes.Unavailable || e.Code() == codes.DeadlineExceeded
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.DeadlineExceeded
}
