package dataplane

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

// testStores are the key stores of a world, by Region, account and ID.
type testStores struct {
	mu  sync.Mutex
	all map[string]KeyStore
}

func (s *testStores) Store(region string, a keyid.Account, id string) KeyStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[region+a.String()+id]
}

func (s *testStores) put(k KeyStore, region string, a keyid.Account, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[string]KeyStore{}
	}
	s.all[region+a.String()+id] = k
}

// testStore is what key stores of both kinds have.
type testStore struct {
	id        string
	connected atomic.Bool
	full      atomic.Bool // its rate is used up
	charged   atomic.Int64
}

func (s *testStore) Connected() bool { return s.connected.Load() }

func (s *testStore) Charge(time.Time) bool {
	if s.full.Load() {
		return false
	}
	s.charged.Add(1)
	return true
}

// externalStore is an external key store whose proxy is honest, unless told otherwise. It makes what a proxy makes, with the standard library's AES-GCM.
type externalStore struct {
	testStore
	KeyStore // not one of its methods that it does not have is called

	mu      sync.Mutex
	calls   []xksCall
	fail    error                    // of every call, unless nil
	spoil   func(*xks.Sealed)        // what is done with what was encrypted, unless nil
	returns func([]byte) []byte      // the same with what was decrypted
	hold    func()                   // before a call is answered
	random  func(n int) []byte       // IVs
	ignores struct{ aad, meta bool } // it does not authenticate them
	ivLen   int                      // 12 if 0
	meta    []byte                   // ciphertextMetadata
}

type xksCall struct {
	op, key        string
	m              xks.Metadata
	plaintext, aad []byte
	sealed         xks.Sealed
}

func (s *externalStore) Connected() bool           { return s.testStore.Connected() }
func (s *externalStore) Charge(now time.Time) bool { return s.testStore.Charge(now) }
func (*externalStore) External() bool              { return true }

// externalKey is an external key as the proxy has it.
func externalKey(key string, ivLen int) cipher.AEAD {
	raw := sha256.Sum256([]byte("external key " + key))
	block, err := aes.NewCipher(raw[:])
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCMWithNonceSize(block, ivLen); err == nil {
			return a
		}
	}
	panic(err)
}

// proxyAAD is what the specification of the proxy API recommends.
func proxyAAD(aad, metadata []byte) []byte {
	b := append(binary.BigEndian.AppendUint16(nil, uint16(len(aad))), aad...)
	return append(append(b, byte(len(metadata))), metadata...)
}

func (s *externalStore) bound(aad, metadata []byte) []byte {
	if s.ignores.aad {
		aad = nil
	}
	if s.ignores.meta {
		metadata = nil
	}
	return proxyAAD(aad, metadata)
}

// answer is what the proxy does besides, with a copy of what it is told.
func (s *externalStore) answer(c xksCall) error {
	s.mu.Lock()
	if len(s.calls) < 1000 { // more than a test looks at
		s.calls = append(s.calls, c)
	}
	hold, err := s.hold, s.fail
	s.mu.Unlock()
	if hold != nil {
		hold()
	}
	return err
}

func (s *externalStore) taken() []xksCall {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// set changes how the proxy behaves.
func (s *externalStore) set(change func(s *externalStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *externalStore) Encrypt(key string, m *xks.Metadata, plaintext, aad []byte) (xks.Sealed, error) {
	if err := s.answer(xksCall{op: "Encrypt", key: key, m: *m, plaintext: bytes.Clone(plaintext), aad: bytes.Clone(aad)}); err != nil {
		return xks.Sealed{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := xks.Sealed{IV: make([]byte, 12), Metadata: bytes.Clone(s.meta)}
	if s.ivLen != 0 {
		out.IV = make([]byte, s.ivLen)
	}
	_, _ = rand.Read(out.IV)
	if s.random != nil {
		copy(out.IV, s.random(len(out.IV)))
	}
	sealed := externalKey(key, len(out.IV)).Seal(nil, out.IV, plaintext, s.bound(aad, out.Metadata))
	out.Ciphertext, out.Tag = sealed[:len(plaintext):len(plaintext)], sealed[len(plaintext):]
	if s.spoil != nil {
		s.spoil(&out)
	}
	return out, nil
}

func (s *externalStore) Decrypt(key string, m *xks.Metadata, sealed *xks.Sealed, aad []byte) ([]byte, error) {
	c := xks.Sealed{IV: bytes.Clone(sealed.IV), Ciphertext: bytes.Clone(sealed.Ciphertext), Tag: bytes.Clone(sealed.Tag), Metadata: bytes.Clone(sealed.Metadata)}
	if err := s.answer(xksCall{op: "Decrypt", key: key, m: *m, sealed: c, aad: bytes.Clone(aad)}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	plaintext, err := externalKey(key, len(c.IV)).Open(nil, c.IV, slices.Concat(c.Ciphertext, c.Tag), s.bound(aad, c.Metadata))
	if err != nil {
		return nil, xks.Fail(xks.InvalidCiphertext, xks.AtCrypto, nil)
	}
	if s.returns != nil {
		plaintext = s.returns(plaintext)
	}
	return plaintext, nil
}

// clusterStore is a CloudHSM key store over a cluster of soft tokens with different roots.
type clusterStore struct {
	testStore
	*cluster.Cluster
	members []*hsmtest.Faulty
	fail    func() error // of a job, unless nil or it returns nil
	forgot  atomic.Int64
}

func (s *clusterStore) Connected() bool { return s.testStore.Connected() }
func (*clusterStore) External() bool    { return false }

func (s *clusterStore) Run(j *hsm.KeyJob, copies []hsm.Key, now time.Time) error {
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return err
		}
	}
	return s.Cluster.Run(j, copies, now)
}

func (s *clusterStore) Forget(copies []hsm.Key) {
	s.forgot.Add(1)
	s.Cluster.Forget(copies)
}

func (*clusterStore) Encrypt(string, *xks.Metadata, []byte, []byte) (xks.Sealed, error) {
	panic("a cluster has no proxy")
}

func (*clusterStore) Decrypt(string, *xks.Metadata, *xks.Sealed, []byte) ([]byte, error) {
	panic("a cluster has no proxy")
}

// memberTokens are two soft tokens for clusters, opened once for all tests.
var memberTokens = sync.OnceValues(func() (tokens [2]*softtoken.Token, err error) {
	for i := range tokens {
		dir, err := os.MkdirTemp("", "keyplane-dataplane-member-")
		if err != nil {
			return tokens, err
		}
		tokens[i], err = softtoken.Open(softtoken.Config{Dir: dir, Create: true})
		if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
			return tokens, err
		}
	}
	return tokens, nil
})

// stays is a token that outlives the cluster that closes it.
type stays struct{ hsm.ImportToken }

func (stays) Close() error { return nil }

// addExternalStore makes a connected external key store in our account.
func (w *world) addExternalStore(id string) *externalStore {
	s := &externalStore{testStore: testStore{id: id}}
	s.connected.Store(true)
	w.stores.put(s, testRegion, ours, id)
	return s
}

// addCluster makes a connected CloudHSM key store in our account.
func (w *world) addCluster(id string) *clusterStore {
	w.Helper()
	tokens, err := memberTokens()
	w.must(err)
	s := &clusterStore{testStore: testStore{id: id}}
	cfg := cluster.Config{ID: "cluster-1234567890a", Blocks: snapshot.ResidentBlocks, RetryMin: 10 * time.Millisecond, RetryMax: 50 * time.Millisecond, Ring: memberRing}
	for i, token := range tokens {
		faulty := hsmtest.NewFaulty(stays{token})
		s.members = append(s.members, faulty)
		cfg.Members = append(cfg.Members, cluster.Member{Name: string(rune('a' + i)), Open: func([]byte) (hsm.Token, error) { return faulty, nil },
			Ask: func() (hsm.TokenInfo, error) { return token.Info(), nil }})
	}
	s.Cluster, err = cluster.New(cfg)
	w.must(err)
	w.must(s.Connect(context.Background(), []byte(hsmtest.PIN)))
	w.Cleanup(s.Disconnect)
	s.connected.Store(true)
	w.stores.put(s, testRegion, ours, id)
	return s
}

func memberRing(t hsm.Token) (*hsm.KeyRing, func(), error) {
	var b *batch.Batcher[hsm.KeyJob]
	ring, err := hsm.NewKeyRing(hsm.KeyRingConfig{
		Tokens: []hsm.Token{t}, SessionsPerToken: 2, RoundMax: 16, QueueTimeMax: 5 * time.Second, Full: batch.ErrFull,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (_ func(int, *hsm.KeyJob, time.Time) error, err error) {
			if b, err = batch.New(batch.Config{Shards: shards, RoundMax: 16, QueueMax: 256}, run); err != nil {
				return nil, err
			}
			return b.Do, nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return ring, func() { b.Close(); ring.Close() }, nil
}

// inStore puts a key of the table into an external key store, or into a cluster, where it gets a key of its own.
func (w *world) inStore(k *snapshot.Record, s KeyStore) *snapshot.Record {
	w.Helper()
	w.records.mu.Lock()
	defer w.records.mu.Unlock()
	switch s := s.(type) {
	case *externalStore:
		k.Store = &snapshot.KeyStore{ID: s.id, XksKeyID: "xks-" + k.ID.String()}
		k.Origin = "EXTERNAL_KEY_STORE"
	case *clusterStore:
		k.Store = &snapshot.KeyStore{ID: s.id}
		k.Origin = "AWS_CLOUDHSM"
		copies, images, err := s.NewKey(context.Background())
		w.must(err)
		var all []*snapshot.PrivateKey
		for _, c := range copies {
			p := &snapshot.PrivateKey{Root: c.Root, Wrapped: c.Wrapped}
			p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
			all = append(all, p)
		}
		k.Versions[0] = snapshot.VersionRecord{Number: 1, Resident: all[0], Copies: all[1:], MaterialID: snapshot.ResidentMaterialID(k.Account, k.ID, images)}
	}
	k.Facts.Origin = k.Origin
	w.must(k.Check())
	return k
}

// clusterOf is the cluster that has a resident key of the table, nil if that is in none.
func (w *world) clusterOf(p *snapshot.PrivateKey) *clusterStore {
	w.stores.mu.Lock()
	defer w.stores.mu.Unlock()
	for _, s := range w.stores.all {
		if c, ok := s.(*clusterStore); ok && slices.Contains(c.Roots(), hsm.RootID(p.Root)) {
			return c
		}
	}
	return nil
}

// aesOf is a resident key for a ring.
func aesOf(p *snapshot.PrivateKey) hsm.Key {
	return hsm.Key{ID: p.ID, Spec: keyspec.AES256, Root: hsm.RootID(p.Root), Software: p.Software, Wrapped: p.Wrapped}
}

// outer is what an external key does to ciphertext || tag behind a header (docs/ciphertext.md §7), and what it has done is undone.
func outer(k *snapshot.Record, header []byte, encryptionContext map[string]string) (key cipher.AEAD, aad []byte) {
	sum := sha256.Sum256(canonical(encryptionContext))
	return externalKey(k.Store.XksKeyID, 12), proxyAAD(slices.Concat(header, sum[:]), nil)
}
