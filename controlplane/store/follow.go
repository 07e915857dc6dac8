package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planted"
)

// What is the kind of record that a Change is of.
type What uint8

const (
	KeyChanged         What = iota + 1 // a KMS key's record or its key policy
	AliasChanged                       // Name is "alias/…"
	GrantsChanged                      // of a key, to one grantee: Name is the grantee, one of authz.Caller.Grantees
	AccessKeyChanged                   // Name is the access key ID
	AccountChanged                     // an account of iam
	UserChanged                        // Name as store.PrincipalName has it
	RoleChanged                        // likewise
	PolicyChanged                      // a managed policy: Name as in its etcd key
	ServiceChanged                     // a registered service: Name
	SessionChanged                     // temporary credentials: Name is the access key ID
	QuotaChanged                       // what an account has instead of the usual quotas in a Region
	KeyStoreChanged                    // a custom key store: Name is its ID
	MemberChanged                      // a process has joined or left (Members): Name is its incarnation
	CertificateRevoked                 // of a member (Revoke): Name is its serial number. Gone says nothing: what was revoked stays so
	DamagedChanged                     // something under a name that no record of a known kind can have: Name is the name in etcd
)

// Change is one record that was written or deleted. What is not of its kind is zero.
//
// Of a deleted grant, user or role only the name in etcd is certain, which has the grantee hashed and the principal's name in lower case; the rest is in the
// record as it was before, which etcd still has unless it was compacted away since. Then, and if it was damaged, Name is "" of GrantsChanged, which means every
// grantee of the key, and as in etcd of the others.
type Change struct {
	What     What
	Region   string
	Account  keyid.Account
	ID       keyid.ID
	Name     string
	Gone     bool         // the record was deleted
	Grant    *authz.Grant // of GrantsChanged where one grant was made and nothing else changed
	GrantID  string       // of GrantsChanged where one grant was made or removed and nothing else changed
	Revision int64
}

var (
	// ErrHistory says that what was changed since a revision is not known any more: all has to be read again.
	ErrHistory = errors.New("store: the changes since that revision are compacted")
	// ErrBack says that the store's revision is lower than it was: it is another store, or was put back to an earlier state.
	ErrBack = errors.New("store: the revision went back")
)

const (
	// progressPause is how often Follow looks whether it is behind a revision that is known to be there, and asks etcd how far its watch is. The newest revision
	// may be of something that is not ours, of which the watch says nothing by itself.
	progressPause = 20 * time.Millisecond
	// stalledAfter is for how long a watch may say nothing while it is behind before another is begun, on another member if there is one.
	stalledAfter = time.Second
	// rewatchPause is between two watches.
	rewatchPause = 50 * time.Millisecond
)

// followers makes every watch one of a gRPC stream of its own: the client puts those of equal metadata on one, where a hung one would be joined again.
var followers atomic.Uint64

// newest is the highest revision that any answer of etcd to this Store had.
type newest struct{ revision atomic.Int64 }

func (n *newest) saw(revision int64) {
	for {
		old := n.revision.Load()
		if old >= revision || n.revision.CompareAndSwap(old, revision) {
			return
		}
	}
}

// seeing is a clientv3.KV that takes note of the revision of every answer.
type seeing struct {
	clientv3.KV
	newest *newest
}

func (v *seeing) Put(ctx context.Context, key, value string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	resp, err := v.KV.Put(ctx, key, value, opts...)
	if err == nil {
		v.newest.saw(resp.Header.Revision)
	}
	return resp, err
}

func (v *seeing) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	resp, err := v.KV.Get(ctx, key, opts...)
	if err == nil {
		v.newest.saw(resp.Header.Revision)
	}
	return resp, err
}

func (v *seeing) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	resp, err := v.KV.Delete(ctx, key, opts...)
	if err == nil {
		v.newest.saw(resp.Header.Revision)
	}
	return resp, err
}

func (v *seeing) Txn(ctx context.Context) clientv3.Txn {
	return &seeingTxn{v.KV.Txn(ctx), v.newest}
}

type seeingTxn struct {
	clientv3.Txn
	newest *newest
}

func (t *seeingTxn) If(cs ...clientv3.Cmp) clientv3.Txn {
	t.Txn = t.Txn.If(cs...)
	return t
}

func (t *seeingTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *seeingTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Else(ops...)
	return t
}

func (t *seeingTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	if err == nil {
		t.newest.saw(resp.Header.Revision)
	}
	return resp, err
}

// Committed is the highest revision that an answer of etcd to this Store had, of reads too: whatever a caller was told by this Store, that a change it asks for
// was made before by somebody else included, is in the store at that revision.
func (s *Store) Committed() int64 { return s.newest.revision.Load() }

// Latest reads the store's revision, linearizably: everything that was committed before the call is at or before it. ErrBack.
func (s *Store) Latest(ctx context.Context) (int64, error) {
	seen := s.newest.revision.Load()
	options := []clientv3.OpOption{clientv3.WithCountOnly()}
	if planted.Is(planted.StaleLatest) {
		options = append(options, clientv3.WithSerializable())
	}
	resp, err := s.client.Get(ctx, formatKey, options...)
	switch {
	case err != nil:
		return 0, fmt.Errorf("store: %w", err)
	case resp.Header.Revision < seen:
		return 0, fmt.Errorf("%w: from %d to %d", ErrBack, seen, resp.Header.Revision)
	}
	return resp.Header.Revision, nil
}

// Follow calls apply with every change after a revision, in order, until ctx ends or apply fails, whose error it returns as it is. Each call has all changes of one
// or more whole revisions, and the last of these revisions; or no changes, and a revision up to which there are none. A member of etcd that restarts, loses its
// leader or does not answer makes Follow ask another from where it is. ErrHistory: changes were compacted that apply has not had.
func (s *Store) Follow(ctx context.Context, after int64, apply func(revision int64, changes []Change) error) error {
	f := &following{store: s, at: after, apply: apply}
	for {
		err := f.watch(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rewatchPause):
		}
	}
}

// following is one Follow: all changes up to at were applied.
type following struct {
	store *Store
	at    int64
	apply func(int64, []Change) error
}

// watcher is for one watch. end takes away all that it has begun: RequestProgress, when the watch's stream has just ended, begins another, which the client would keep until it is closed itself.
// Streams within this process do not end by themselves.
func (s *Store) watcher() (w clientv3.Watcher, end func()) {
	if !s.remote {
		return s.client.Watcher, func() {}
	}
	own := clientv3.NewWatcher(s.client)
	return &authWatcher{own, s.auth}, func() { _ = own.Close() }
}

// watch runs one watch until it ends. A nil error means that another should be begun.
//
// It asks for no fragments: etcd never divides a revision between two answers then.
func (f *following) watch(ctx context.Context) error {
	watcher, end := f.store.watcher()
	defer end()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(clientv3.WithRequireLeader(ctx), "keyplane-follow", strconv.FormatUint(followers.Add(1), 10)))
	defer cancel()
	answers := watcher.Watch(ctx, root, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(f.at+1))
	tick := time.NewTicker(progressPause)
	defer tick.Stop()
	var behind time.Time // since when the watch is behind and has said nothing
	less := f.store.less.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case answer, ok := <-answers:
			behind = time.Time{}
			switch err := answer.Err(); {
			case answer.CompactRevision != 0 || errors.Is(err, rpctypes.ErrCompacted):
				return ErrHistory
			case !ok, err != nil:
				return nil
			}
			if err := f.take(&answer); err != nil {
				return err
			}
		case now := <-tick.C:
			switch {
			case f.store.less.Load() != less:
				return nil // a member does not serve: it may be the one that is watched, which would be silent when there is something to say
			case f.at >= f.store.Committed():
				behind = time.Time{}
			case behind.IsZero():
				behind = now
			case now.Sub(behind) > stalledAfter:
				return nil
			default:
				// It does not wait for the answer, but may for a stream: not longer than for the next look.
				asking, done := context.WithTimeout(ctx, progressPause)
				_ = watcher.RequestProgress(asking)
				done()
			}
		}
	}
}

// take applies an answer of etcd's. An answer with events says nothing of later revisions than theirs, whatever its header has.
func (f *following) take(answer *clientv3.WatchResponse) error {
	revision := f.at
	var changes []Change
	switch {
	case answer.IsProgressNotify():
		revision = answer.Header.Revision
	case len(answer.Events) > 0:
		changes, revision = decodeEvents(answer.Events, f.at)
	}
	if revision <= f.at {
		return nil
	}
	if err := f.apply(revision, changes); err != nil {
		return err
	}
	f.at = revision
	f.store.newest.saw(revision)
	return nil
}

// decodeEvents gives the changes of events after a revision, and the last event's revision. A key's record and its policy, or one record that a transaction
// touches twice, are one change.
func decodeEvents(events []*clientv3.Event, after int64) (changes []Change, revision int64) {
	revision = after
	first := 0 // of the changes of the revision
	for _, ev := range events {
		if ev.Kv == nil || ev.Kv.ModRevision <= after {
			continue
		}
		if ev.Kv.ModRevision > revision {
			revision, first = ev.Kv.ModRevision, len(changes)
		}
		c, ok := decodeChange(ev.Kv, ev.PrevKv, ev.Type == mvccpb.DELETE)
		if !ok {
			continue
		}
		if c.What == KeyChanged {
			if i := first + sameKey(changes[first:], &c); i >= first {
				changes[i].Gone = changes[i].Gone || c.Gone
				continue
			}
		}
		changes = append(changes, c)
	}
	return changes, revision
}

// sameKey finds a change of the same key's record, or gives -1 below the first.
func sameKey(changes []Change, c *Change) int {
	for i := range changes {
		if o := &changes[i]; o.What == KeyChanged && o.ID == c.ID && o.Account == c.Account && o.Region == c.Region {
			return i
		}
	}
	return -1
}

// decodeChange reads what an event in etcd says; ok is false for what is no record that anybody follows. It is the one place where values of a watch are decoded.
func decodeChange(kv, before *mvccpb.KeyValue, gone bool) (c Change, ok bool) {
	name := string(kv.Key)
	damaged := Change{What: DamagedChanged, Name: name, Gone: gone, Revision: kv.ModRevision}
	value := kv.Value // of the record, as it is or was
	if gone {
		value = nil
		if before != nil {
			value = before.Value
		}
	}
	rest, below := strings.CutPrefix(name, root)
	kind, rest, more := strings.Cut(rest, "/")
	if !below || !more {
		return c, false
	}
	if kind == "iam" {
		var of string
		of, rest, more = strings.Cut(rest, "/")
		if !more {
			return damaged, true
		}
		kind += "/" + of
	}
	c = Change{Gone: gone, Revision: kv.ModRevision}
	switch kind {
	case "key", "policy":
		n, valid := parsePath(rest)
		if !valid {
			return damaged, true
		}
		c.What, c.Region, c.Account, c.ID = KeyChanged, n.Region, n.Account, n.ID
		c.Gone = gone && kind == "key" // without its policy a key is damaged, which a reader sees
	case "grantee":
		parts := strings.Split(rest, "/")
		if len(parts) != 5 || !validGrantID(parts[3]) || !validGrantID(parts[4]) { // a hash has the form of an ID
			return damaged, true
		}
		n, valid := parsePath(strings.Join(parts[:3], "/"))
		if !valid {
			return damaged, true
		}
		c.What, c.Region, c.Account, c.ID = GrantsChanged, n.Region, n.Account, n.ID
		var st storedGrantee
		if decode(value, &st) != nil || hashed("grantee", st.Grantee) != parts[3] {
			break
		}
		g, err := decodeGrantee(n, st.Grantee, parts[4], value)
		if err != nil {
			break
		}
		c.Name, c.GrantID = st.Grantee, parts[4]
		if !gone {
			c.Grant = &g
		}
	case "alias":
		region, a, alias, valid := cutAccount(rest)
		if !valid || alias == "" {
			return damaged, true
		}
		c.What, c.Region, c.Account, c.Name = AliasChanged, region, a, kmsapi.AliasPrefix+alias
	case "keystore":
		region, a, id, valid := cutAccount(rest)
		n := KeyStoreName{Region: region, Account: a, ID: id}
		if !valid || !n.valid() {
			return damaged, true
		}
		c.What, c.Region, c.Account, c.Name = KeyStoreChanged, region, a, id
	case "quota":
		region, account, _ := strings.Cut(rest, "/")
		a, valid := keyid.ParseAccount([]byte(account))
		if !valid || region == "" {
			return damaged, true
		}
		c.What, c.Region, c.Account = QuotaChanged, region, a
	case "accesskey":
		if !validAccessKeyID(rest) {
			return damaged, true
		}
		c.What, c.Name = AccessKeyChanged, rest
	case "iam/account":
		a, valid := keyid.ParseAccount([]byte(rest))
		if !valid {
			return damaged, true
		}
		c.What, c.Account = AccountChanged, a
	case "iam/user", "iam/role", "iam/policy", "iam/session":
		account, named, _ := strings.Cut(rest, "/")
		a, valid := keyid.ParseAccount([]byte(account))
		if !valid {
			return damaged, true
		}
		c.Account, c.Name = a, named
		switch kind {
		case "iam/user":
			c.What, valid = UserChanged, validName(named, nameMax)
			if p, err := decodePrincipal(User, name, value, 0); err == nil {
				c.Name = p.Name
			}
		case "iam/role":
			c.What, valid = RoleChanged, validName(named, nameMax)
			if p, err := decodePrincipal(Role, name, value, 0); err == nil {
				c.Name = p.Name
			}
		case "iam/policy":
			c.What, valid = PolicyChanged, validName(named, policyNameMax)
		default:
			c.What, valid = SessionChanged, validAccessKeyID(named)
		}
		if !valid {
			return damaged, true
		}
	case "iam/service":
		if !ValidServiceName(rest) {
			return damaged, true
		}
		c.What, c.Name = ServiceChanged, rest
	case "member":
		if !validIncarnation(rest) {
			return damaged, true
		}
		c.What, c.Name = MemberChanged, rest
	case "revoked":
		if !validSerial(rest) {
			return damaged, true
		}
		c.What, c.Name = CertificateRevoked, rest
	default:
		return Change{}, false
	}
	return c, true
}

// cutAccount takes <region>/<account>/<the rest> apart.
func cutAccount(path string) (region string, a keyid.Account, rest string, ok bool) {
	region, path, _ = strings.Cut(path, "/")
	account, rest, _ := strings.Cut(path, "/")
	a, ok = keyid.ParseAccount([]byte(account))
	return region, a, rest, ok && region != ""
}
