package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planted"
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

// ErrSealed says that a text was not sealed by this Sealer, or not with the same aad.
var ErrSealed = errors.New("store: a sealed text does not open")

// Sealer protects access key secrets at rest, under a key that is not in etcd. Both methods return a new slice; Open fails on anything
// that Seal did not make with the same aad, with an error that wraps ErrSealed. Safe for concurrent use.
type Sealer interface {
	Seal(plaintext, aad []byte) ([]byte, error)
	Open(sealed, aad []byte) ([]byte, error)
}

// unsealed is the error of a Sealer's Open. A text that was not sealed is damage; that the Sealer cannot be asked now says nothing of the record.
func unsealed(err error) error {
	if errors.Is(err, ErrSealed) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fmt.Errorf("store: opening a sealed text: %w", err)
}

const (
	// attemptsMax bounds how often one write is tried; conflictPause is the first pause between two attempts, doubled up to 32 times
	// itself. Writers of this process wait for each other (stripes), so conflicts come from other processes and deletions.
	attemptsMax   = 32
	conflictPause = time.Millisecond

	lockStripes = 256

	// What meta/format says: that values have trailers (auth.go), or none yet.
	formatVersion = "2"
	formatPlain   = "1"
)

// Store is the control plane's state. Methods are safe for concurrent use.
type Store struct {
	client *clientv3.Client
	newest newest
	less   atomic.Uint64 // counts how often a member of etcd was found not to serve (endpoints)
	sealer Sealer
	// Whoever writes an alias, and then whoever writes a key record, waits here for this process's others that do: aliases before keys,
	// so that nobody waits in a circle. It only saves conflicts; correctness is the transactions' revision compares.
	// Counts are those who make or delete a key, last of all. Accounts are those who write principals; they take no other.
	// KeyStores are those who write custom key stores, which take no other either.
	aliases, keys, counts, accounts, keyStores stripes

	auth     *authKV        // what is below client's KV and Watcher
	identity epochOf        // from Authenticate on
	pins     pins           // until then
	closers  []func() error // run in order by Close
	remote   bool           // etcd is a cluster of other processes
	dir      string         // what this process has beside etcd's files; "": nothing
	log      *slog.Logger
	graves   *graves   // from Rebury on, else nil
	reburied []KeyName // when it was opened

	ran atomic.Int64 // what floorNow has found, in nanoseconds

	succeeded atomic.Bool // the membership of the process before is ended
	joining   sync.Mutex
	doubtful  []clientv3.LeaseID // of Joins of unknown outcome
}

func newStore(client *clientv3.Client, sealer Sealer) *Store {
	s := &Store{client: client, sealer: sealer, aliases: newStripes(), keys: newStripes(), counts: newStripes(), accounts: newStripes(), keyStores: newStripes()}
	s.auth = newAuthKV(client.KV)
	client.KV, client.Watcher = &seeing{s.auth, &s.newest}, &authWatcher{client.Watcher, s.auth}
	s.closers = []func() error{client.Close}
	return s
}

// checkFormat claims an empty store for this layout, or refuses one that was written in another. Who may only read claims nothing, and asks for nothing to be written.
func (s *Store) checkFormat(ctx context.Context) error {
	kept, _, err := s.get(ctx, formatKey)
	if errors.Is(err, ErrNotFound) {
		resp, err := s.client.Txn(ctx).If(absent(formatKey)).Then(clientv3.OpPut(formatKey, formatPlain)).Else(clientv3.OpGet(formatKey)).Commit()
		if err != nil {
			return fmt.Errorf("store: claiming the store: %w", err)
		}
		kept = []byte(formatPlain)
		if !resp.Succeeded {
			if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 1 {
				kept = kvs[0].Value
			}
		}
	} else if err != nil {
		return fmt.Errorf("store: reading the format: %w", err)
	}
	switch string(kept) {
	case formatVersion:
		s.auth.sealed.Store(true)
	case formatPlain:
	default:
		return fmt.Errorf("store: the data was written in a format that this version of keyplane does not know")
	}
	return nil
}

// Ready reports whether the store answers a linearizable read.
func (s *Store) Ready(ctx context.Context) error {
	_, err := s.client.Get(ctx, formatKey, clientv3.WithKeysOnly())
	return err
}

// Barrier returns when a write proposed after the call is committed. With etcd in this process, every write that was sent before is committed too then, or never will be,
// because proposals of one member keep their order in the log. With an etcd cluster that holds of writes by way of the same member only: one whose answer was lost and that another
// member has still to propose may come later. A process of a cluster hears of that from Follow, as of everybody's writes.
func (s *Store) Barrier(ctx context.Context) error {
	_, err := s.client.Put(ctx, barrierKey, "")
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

// commit runs one transaction, held to the Authority of ctx: ErrOvertaken. Any other error is ErrUncertain: once sent, a transaction may be committed whatever came back.
func (s *Store) commit(ctx context.Context, when []clientv3.Cmp, then []clientv3.Op) (ok bool, revision int64, err error) {
	if planted.Every(15, planted.WriteLost) {
		then = nil
	}
	authority := authorityOf(ctx)
	resp, err := s.client.Txn(ctx).If(append(slices.Clip(when), authority.compares()...)...).Then(then...).Commit()
	if errors.Is(err, ErrConflict) {
		return false, 0, err // nothing was sent that could be committed
	}
	if err != nil {
		return false, 0, fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	if !resp.Succeeded {
		return false, resp.Header.Revision, s.overtaken(ctx, authority)
	}
	authority.committed(resp.Header.Revision)
	return true, resp.Header.Revision, nil
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
	if value := resp.Kvs[0].Value; len(value) == 1 && value[0] == damagedFormat {
		return nil, 0, fmt.Errorf("%s: %w: %w", key, ErrDamaged, errUnauthenticated)
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
	root        = "/keyplane/1/"
	metaPrefix  = root + "meta/"
	formatKey   = metaPrefix + "format"
	identityKey = metaPrefix + "store"
	barrierKey  = metaPrefix + "barrier"
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
func (n KeyName) tombstoneKey() string { return tombstonePrefix + n.path() }

// Errand is what a worker has to do with a key at a date, and the name of the index of such dates.
type Errand string

const (
	Deletion Errand = "deletion" // at DeletionDate; at AtOnce until a worker has seen that the waiting period began
	Rotating Errand = "rotation" // of an Enabled key: at Rotation.Next; at AtOnce if it was asked for
	Expiry   Errand = "expiry"   // when the first of the imported materials that have not expired does; at AtOnce while one of them is Unseen
	Expired  Errand = "expired"  // of material that has expired by the wall clock and is still there: when the first did

	Replicating Errand = "replication" // at AtOnce, of a primary that has something to tell another Region
)

var errands = [...]Errand{Deletion, Rotating, Expiry, Expired, Replicating}

// AtOnce is the date of what is to be done whatever the wall clock says, which may have been set back since.
var AtOnce = time.Unix(0, 0).UTC()

// Never is later than every date that there can be in an index.
var Never = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)

// due is the date of an errand, zero if there is none.
func (k *Key) due(e Errand) (date time.Time) {
	earliest := func(t time.Time) {
		if !t.IsZero() && (date.IsZero() || t.Before(date)) {
			date = t
		}
	}
	switch e {
	case Deletion:
		earliest(k.DeletionDate)
		if k.State == kmsapi.StatePendingDeletion && k.DeletionSeen == Unseen {
			return AtOnce
		}
	case Rotating:
		if k.IsReplica() {
			break // its primary does it
		}
		if k.State != kmsapi.StateEnabled {
			return time.Time{}
		}
		earliest(k.Rotation.Next)
		if !k.Rotation.OnDemand.IsZero() {
			return AtOnce
		}
	case Replicating:
		if m := k.MultiRegion; k.IsPrimary() && (m.Promoting != "" || m.Former != "" || !m.Synchronized()) {
			return AtOnce
		}
	case Expiry, Expired:
		see := func(f *Import) {
			switch {
			case f == nil || f.Expires.IsZero() || f.Expired != (e == Expired):
			case f.Seen == Unseen:
				earliest(AtOnce)
			default:
				earliest(f.Expires)
			}
		}
		if k.Private != nil {
			see(k.Import)
		}
		for i := range k.Versions {
			if v := &k.Versions[i]; !v.Missing {
				see(v.Import)
			}
		}
	}
	return date
}

// dueKeys are the entries of the key in the indexes, in the order of errands, "" where it has none.
func (k *Key) dueKeys() (keys [len(errands)]string) {
	for i, e := range errands {
		if date := k.due(e); !date.IsZero() {
			keys[i] = k.dueKey(e, date)
		}
	}
	return keys
}

// dueKey sorts by date because the date has a fixed width.
func (n KeyName) dueKey(e Errand, date time.Time) string {
	return duePrefix(e, n.Region) + date.UTC().Format(dueLayout) + "/" + n.Account.String() + "/" + n.ID.String()
}

const dueLayout = "2006-01-02T15:04:05.000Z"

func duePrefix(e Errand, region string) string { return root + string(e) + "/" + region + "/" }

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
