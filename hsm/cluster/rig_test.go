package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/kdf"
	"github.com/keyplane/keyplane/internal/keyspec"
)

func TestMain(m *testing.M) { hsmtest.Main(m) }

// testBlocks are two blocks.
const testBlocks = "blocks of a test" + "and another one."

// softTokens are soft tokens with different roots, each opened once: that takes as long as a PIN is to be guessed.
var softTokens struct {
	mu  sync.Mutex
	all []*softtoken.Token
	rsa map[hsm.Token]*rsaKey
}

type rsaKey struct {
	once            sync.Once
	wrapped, public []byte
	err             error
}

// rsaOf is an RSA key of a soft token, made once: that takes a second.
func rsaOf(t hsm.KeyToken) *rsaKey {
	s := &softTokens
	s.mu.Lock()
	if s.rsa == nil {
		s.rsa = map[hsm.Token]*rsaKey{}
	}
	k := s.rsa[t]
	if k == nil {
		k = &rsaKey{}
		s.rsa[t] = k
	}
	s.mu.Unlock()
	k.once.Do(func() { k.wrapped, k.public, k.err = t.GenerateKey(keyspec.RSA3072) })
	return k
}

func softToken(t testing.TB, root int) hsm.Token {
	t.Helper()
	s := &softTokens
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.all) <= root {
		dir, err := os.MkdirTemp("", "keyplane-cluster-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		token, err := softtoken.Open(softtoken.Config{Dir: dir, Create: true})
		if err != nil {
			t.Fatal(err)
		}
		s.all = append(s.all, token)
	}
	return s.all[root]
}

// testMember is a member that can be taken away and brought back.
type testMember struct {
	soft   hsm.Token
	serial string // its own, though the soft token may be another's too

	mu      sync.Mutex
	openErr error           // of the next calls of Open
	faulty  *hsmtest.Faulty // of the last call

	opens, closes, asks atomic.Int32
}

// closing counts the calls of Close, which the soft token underneath does not see: it is opened again. It makes one RSA key.
type closing struct {
	hsm.ImportToken
	m *testMember
}

func (c closing) Info() hsm.TokenInfo {
	info := c.ImportToken.Info()
	info.Serial = c.m.serial
	return info
}

func (c closing) Close() error {
	c.m.closes.Add(1)
	return nil
}

func (c closing) GenerateKey(s keyspec.Spec) (wrapped, public []byte, err error) {
	if s != keyspec.RSA3072 {
		return c.ImportToken.GenerateKey(s)
	}
	k := rsaOf(c.ImportToken)
	return bytes.Clone(k.wrapped), bytes.Clone(k.public), k.err
}

func (m *testMember) open([]byte) (hsm.Token, error) {
	m.opens.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.openErr != nil {
		return nil, m.openErr
	}
	m.faulty = hsmtest.NewFaulty(closing{m.soft.(hsm.ImportToken), m})
	return m.faulty, nil
}

func (m *testMember) ask() (hsm.TokenInfo, error) {
	m.asks.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	return closing{m.soft.(hsm.ImportToken), m}.Info(), m.openErr
}

var removed = &hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"}

// down takes the device away, up brings it back.
func (m *testMember) down() {
	m.fail(removed)
	for _, op := range []hsmtest.Op{hsmtest.Round, hsmtest.Open, hsmtest.Reset, hsmtest.Use, hsmtest.Load, hsmtest.Generate, hsmtest.Import, hsmtest.Export} {
		m.token().Add(hsmtest.Fault{Op: op, Times: hsmtest.Forever, CKR: removed.CKR})
	}
}

// vanish has the device not come back when it is lost next.
func (m *testMember) vanish() {
	m.fail(removed)
	m.token().Add(hsmtest.Fault{Op: hsmtest.Reset, Times: hsmtest.Forever, CKR: removed.CKR})
}

func (m *testMember) up() {
	m.fail(nil)
	m.token().Clear()
}

// token is what was opened last.
func (m *testMember) token() *hsmtest.Faulty {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faulty
}

// fail has Open fail.
func (m *testMember) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.openErr = err
}

// testRing is how a process makes a member's key ring. No call of a busy machine is taken for one that hangs.
func testRing(t hsm.Token) (*hsm.KeyRing, func(), error) { return ringWith(t, 20*time.Second, 1024) }

func ringWith(t hsm.Token, timeout time.Duration, queueMax int) (*hsm.KeyRing, func(), error) {
	var b *batch.Batcher[hsm.KeyJob]
	ring, err := hsm.NewKeyRing(hsm.KeyRingConfig{
		Tokens: []hsm.Token{t}, SessionsPerToken: 2, RoundMax: 64, Timeout: timeout, QueueTimeMax: 20 * time.Second, Full: batch.ErrFull,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			var err error
			b, err = batch.NewJoining(batch.Config{Shards: shards, RoundMax: 8, QueueMax: queueMax}, 64, (*hsm.KeyJob).SameCall, run)
			if err != nil {
				return nil, err
			}
			return b.Do, nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	return ring, func() {
		if b != nil {
			b.Close()
		}
		ring.Close()
	}, nil
}

// rig is a cluster of soft tokens.
type rig struct {
	*Cluster
	members []*testMember
}

// newRig makes a member for each of the roots, which are numbers of soft tokens.
func newRig(t testing.TB, roots ...int) *rig {
	t.Helper()
	return newRigWith(t, testRing, roots...)
}

func newRigWith(t testing.TB, ring func(hsm.Token) (*hsm.KeyRing, func(), error), roots ...int) *rig {
	t.Helper()
	r := &rig{}
	cfg := Config{ID: "cluster-test", Ring: ring, Blocks: testBlocks, RetryMin: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, CallTimeout: 20 * time.Second}
	for i, root := range roots {
		m := &testMember{soft: softToken(t, root), serial: fmt.Sprint(i)}
		r.members = append(r.members, m)
		cfg.Members = append(cfg.Members, Member{Name: fmt.Sprintf("hsm-%d", i), Open: m.open, Ask: m.ask})
	}
	var err error
	if r.Cluster, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Disconnect)
	return r
}

func (r *rig) connect(t testing.TB) {
	t.Helper()
	if err := r.Connect(context.Background(), []byte(hsmtest.PIN)); err != nil {
		t.Fatal(err)
	}
	r.idle(t)
}

// idle waits till nobody is inside a member any more: those who make them ready count as jobs do.
func (r *rig) idle(t testing.TB) {
	t.Helper()
	eventually(t, "the members are ready", func() bool {
		for _, s := range r.conn.Load().seats {
			if l := s.link.Load(); l != nil && l.n.Load() > 0 {
				return false
			}
		}
		return true
	})
}

// newKey makes a key and names its copies.
func newKey(t testing.TB, c *Cluster) []hsm.Key {
	t.Helper()
	copies, _, err := c.NewKey(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	named(copies)
	return copies
}

// named gives each copy an ID.
func named(copies []hsm.Key) {
	for i := range copies {
		copy(copies[i].ID[:], copies[i].Wrapped)
	}
}

// blocks is a job of two blocks.
func blocks() *hsm.KeyJob {
	return &hsm.KeyJob{Mechanism: hsm.EncryptBlocks, In: []byte(testBlocks), Out: make([]byte, keyspec.AES256.Info().Result)}
}

// everyMember says that each member of those that are up gives want for the key, as nobody but it does.
func everyMember(t testing.TB, c *Cluster, copies []hsm.Key, want []byte) {
	t.Helper()
	n := c.conn.Load()
	for _, s := range n.seats {
		l := s.link.Load()
		if l == nil {
			continue
		}
		k := copyOf(copies, l.root)
		if k == nil {
			t.Errorf("%s has no copy", s.Name)
			continue
		}
		j := blocks()
		j.Key = k
		if err := l.ring.Run(j, time.Now()); err != nil || !bytes.Equal(j.Out[:j.N], want) {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
}

// images are those of testBlocks under the key.
func images(t testing.TB, c *Cluster, copies []hsm.Key) []byte {
	t.Helper()
	j := blocks()
	if err := c.Run(j, copies, time.Now()); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(j.Out[:j.N])
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// subkey is K1 of the key.
func subkey(t testing.TB, c *Cluster, copies []hsm.Key) (k1 [16]byte) {
	t.Helper()
	j := blocks()
	j.In = make([]byte, 16)
	if err := c.Run(j, copies, time.Now()); err != nil {
		t.Fatal(err)
	}
	kdf.SubkeyK1(&k1, (*[16]byte)(j.Out))
	return k1
}
