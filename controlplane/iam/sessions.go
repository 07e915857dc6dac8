package iam

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// SessionsMax bounds the temporary credentials of one account that have not expired.
const SessionsMax = 10_000

// ErrSessions says that an account has as many temporary credentials as it can have.
var ErrSessions = errors.New("iam: the account has the maximum of temporary credentials")

// ErrSessionDocuments says that the temporary credentials of an account have as many different session policies as they can have.
var ErrSessionDocuments = errors.New("iam: the account has the maximum of session policies")

var errServiceGone = errors.New("iam: the service is not registered any more")

const sessionShards = 64

// sessions are the live temporary credentials. Adding one costs the same however many there are.
type sessions struct {
	shards [sessionShards]struct {
		mu sync.RWMutex
		m  map[string]*sigv4.AccessKey
	}
	mu     sync.Mutex
	counts map[keyid.Account]int // with those that are being made
	swept  time.Time             // of the last sweep for room

	documents map[keyid.Account]*held // session policies, with those of sessions that are being made

	making  sync.RWMutex // held for reading while a session is made, from its reservation on: what is counted of it is not lost with take
	loading bool         // a Load reads the store
	begun   []begun      // since then: it may not have read them
}

// begun is a session with the texts of its session policies.
type begun struct {
	key      *sigv4.AccessKey
	policies []string
}

func (s *sessions) init() {
	s.counts, s.documents = map[keyid.Account]int{}, map[keyid.Account]*held{}
	for i := range s.shards {
		s.shards[i].m = map[string]*sigv4.AccessKey{}
	}
}

// shardOf is FNV-1a; which shard an ID is in is no secret.
func shardOf[T string | []byte](id T) uint32 {
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return h % sessionShards
}

func (s *sessions) get(id []byte) *sigv4.AccessKey {
	shard := &s.shards[shardOf(id)]
	shard.mu.RLock()
	k := shard.m[string(id)]
	shard.mu.RUnlock()
	return k
}

// sweepEvery is the least time between two sweeps for room.
const sweepEvery = time.Second

// reserve counts a session that is to be made, false if the account has its maximum.
func (s *sessions) reserve(a keyid.Account, now time.Time) bool {
	for range 2 {
		s.mu.Lock()
		if s.counts[a] < SessionsMax {
			s.counts[a]++
			s.mu.Unlock()
			return true
		}
		// Those that expired wait there to be told so. A sweep walks all sessions of all accounts: a refused caller does not get one each time.
		since := now.Sub(s.swept)
		again := since < 0 || since >= sweepEvery
		if again {
			s.swept = now
		}
		s.mu.Unlock()
		if !again {
			return false
		}
		s.sweep(now)
	}
	return false
}

// release uncounts a session with its policies, nil for none that were counted.
func (s *sessions) release(a keyid.Account, policies []*policy.Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(policies) > 0 {
		s.unhold(a, policies)
	}
	if s.counts[a]--; s.counts[a] <= 0 {
		delete(s.counts, a)
	}
}

// add puts a key for which reserve made room, and returns the one that is there then. Whoever begins a session may hear of it as of anybody else's change before
// it adds it: the first one stays, and the other is not counted.
func (s *sessions) add(k *sigv4.AccessKey, texts []string) *sigv4.AccessKey {
	shard := &s.shards[shardOf(k.ID())]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if other := shard.m[k.ID()]; other != nil {
		k.Wipe()
		s.release(k.Principal().Account, k.Principal().Caller.Session)
		return other
	}
	shard.m[k.ID()] = k
	s.mu.Lock()
	if s.loading {
		s.begun = append(s.begun, begun{k, texts})
	}
	s.mu.Unlock()
	return k
}

// put adds a key whatever the maximum. texts are its session policies.
func (s *sessions) put(k *sigv4.AccessKey, texts []string) {
	s.hold(k.Principal().Caller, texts, true)
	s.mu.Lock()
	s.counts[k.Principal().Account]++
	s.mu.Unlock()
	s.add(k, texts)
}

// dropID removes one session, if it is there.
func (s *sessions) dropID(id string) {
	shard := &s.shards[shardOf(id)]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if k := shard.m[id]; k != nil {
		delete(shard.m, id)
		k.Wipe()
		s.release(k.Principal().Account, k.Principal().Caller.Session)
	}
}

// sweep removes what expired before the instant.
func (s *sessions) sweep(before time.Time) {
	s.remove(func(k *sigv4.AccessKey) bool { return k.Expires().Before(before) })
}

// drop removes the sessions of some callers and says which those were.
func (s *sessions) drop(of func(*authz.Caller) bool) []store.SessionName {
	return s.remove(func(k *sigv4.AccessKey) bool { return of(k.Principal().Caller) })
}

func (s *sessions) remove(which func(*sigv4.AccessKey) bool) (gone []store.SessionName) {
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		for id, k := range shard.m {
			if which(k) {
				delete(shard.m, id)
				k.Wipe()
				s.release(k.Principal().Account, k.Principal().Caller.Session)
				gone = append(gone, store.SessionName{Account: k.Principal().Account, ID: id})
			}
		}
		shard.mu.Unlock()
	}
	return gone
}

// end drops the sessions of some callers, who are gone, and has Run delete their records: nobody waits for that, because sessions of who is
// gone are dead whether they have a record or not, and records end with their leases.
func (t *Table) end(of func(*authz.Caller) bool) {
	gone := t.sessions.drop(of)
	if len(gone) == 0 {
		return
	}
	t.ended.mu.Lock()
	t.ended.names = append(t.ended.names, gone...)
	t.ended.mu.Unlock()
	select {
	case t.ended.arrived <- struct{}{}:
	default:
	}
}

// ended are sessions whose records are to be deleted: as many as there were at most.
type ended struct {
	mu      sync.Mutex
	names   []store.SessionName
	arrived chan struct{} // capacity 1
}

// deleteEnded deletes the records of sessions that were ended. What cannot be deleted ends with its lease.
func (t *Table) deleteEnded(ctx context.Context) {
	t.ended.mu.Lock()
	names := t.ended.names
	t.ended.names = nil
	t.ended.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	_ = t.store.DeleteSessions(ctx, names)
}

// deleteTimeout bounds the deletion of ended sessions' records: ten thousand are a hundred transactions.
const deleteTimeout = time.Minute

// load says that take will come: sessions that are begun until then are not lost.
func (s *sessions) load() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loading, s.begun = true, nil
}

// loaded is called if take does not come.
func (s *sessions) loaded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loading, s.begun = false, nil
}

// take replaces all sessions by those of o, nil for none, which nobody else uses, and those that were begun since load. It waits for those that are being made.
func (s *sessions) take(o *sessions) {
	s.making.Lock()
	defer s.making.Unlock()
	for i := range s.shards {
		shard := &s.shards[i]
		shard.mu.Lock()
		old := shard.m
		if shard.m = map[string]*sigv4.AccessKey{}; o != nil {
			shard.m = o.shards[i].m
			s.keepBegun(uint32(i), old, o)
		}
		for id, k := range old {
			if shard.m[id] != k {
				k.Wipe()
			}
		}
		shard.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loading, s.begun = false, nil
	s.counts, s.documents = map[keyid.Account]int{}, map[keyid.Account]*held{}
	if o != nil {
		s.counts, s.documents = o.counts, o.documents
	}
}

// keepBegun adds to a shard of o what was begun since load and is in the old one still. The shard's lock is held.
func (s *sessions) keepBegun(shard uint32, old map[string]*sigv4.AccessKey, o *sessions) {
	s.mu.Lock()
	begun := s.begun
	s.mu.Unlock()
	for _, b := range begun {
		w, id := b.key.Principal().Caller, b.key.ID()
		if shardOf(id) != shard || old[id] != b.key || w.Holder.Subject() == nil || o.shards[shard].m[id] != nil {
			continue
		}
		o.hold(w, b.policies, true)
		o.counts[w.Account]++
		o.shards[shard].m[id] = b.key
	}
}

// temporaryKey makes the verifier's form of a session of p.
func (t *Table) temporaryKey(p *principal, v *store.Session) (*sigv4.AccessKey, error) {
	c := t.caller(p, v.Name)
	c.TokenIssued, c.Source, c.Via, c.ViaName = v.Issued, v.Source, v.Via, withoutRegion(v.Via)
	for _, text := range v.Policies {
		compiled, err := compile(text)
		if err != nil {
			return nil, err
		}
		c.Session = append(c.Session, compiled)
	}
	for _, tag := range v.Tags {
		c.Tags = append(c.Tags, authz.Tag(tag))
	}
	return sigv4.NewTemporaryKey(v.ID, v.Secret.Expose(), v.Token, v.Expires, signer(c))
}

// credentials are temporary credentials as their owner gets them.
type credentials struct {
	id, secretKey, token string
	expires              time.Time
}

// begin makes temporary credentials of p. v has all but ID, Principal, token, secret. The Holder is the one that the decision to begin was made
// on: if p is deleted meanwhile, the session is dead.
func (t *Table) begin(ctx context.Context, p *principal, n store.PrincipalName, v *store.Session, now time.Time) (*credentials, error) {
	c, err := t.make(ctx, p, n, v, now)
	if err == nil {
		t.spread() // its owner uses it at once, wherever
	}
	return c, err
}

func (t *Table) make(ctx context.Context, p *principal, n store.PrincipalName, v *store.Session, now time.Time) (*credentials, error) {
	t.sessions.making.RLock()
	defer t.sessions.making.RUnlock()
	var b [10 + 30 + 96]byte
	_, _ = rand.Read(b[:])
	defer clear(b[:])
	c := &credentials{
		id: "ASIA" + base32.StdEncoding.EncodeToString(b[:10]), secretKey: base64.StdEncoding.EncodeToString(b[10:40]),
		token: base64.StdEncoding.EncodeToString(b[40:]), expires: v.Expires,
	}
	v.ID, v.Principal, v.PrincipalID, v.Token = c.id, n, p.ID, sha256.Sum256([]byte(c.token))
	v.Secret = secret.New([]byte(c.secretKey))
	defer v.Secret.Wipe()
	if !t.sessions.reserve(p.Account, now) {
		return nil, ErrSessions
	}
	k, err := t.temporaryKey(p, v)
	if err != nil {
		t.sessions.release(p.Account, nil)
		return nil, err
	}
	w := k.Principal().Caller
	counted := w.Session
	if !t.sessions.hold(w, v.Policies, false) {
		counted, err = nil, ErrSessionDocuments
	} else {
		err = t.store.PutSession(ctx, v, now)
	}
	if err != nil {
		k.Wipe()
		t.sessions.release(p.Account, counted)
		return nil, err
	}
	k = t.sessions.add(k, v.Policies)
	if v.Via != "" && !t.actsFor(v.Via, v.ViaID, n.Account) { // deregistered meanwhile, maybe before add
		t.end(func(w *authz.Caller) bool { return w == k.Principal().Caller })
		return nil, errServiceGone
	}
	return c, nil
}

// validSessionName is RoleSessionName's form: 2 to 64 letters, digits or characters of +=,.@_-
func validSessionName(name string) bool { return len(name) >= 2 && validName(name, 64) }
