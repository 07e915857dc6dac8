package keystores

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	region    = "eu-central-1"
	clusterID = "cluster-234567abcde"
	password  = "the password"
	waitMax   = time.Minute
)

// proxy is a Proxy of a test.
type proxy struct {
	of     *store.KeyStore
	health func(ctx context.Context) error // nil: it is well
	asked  chan struct{}                   // told of each Encrypt
	answer chan struct{}                   // what Encrypt waits for; nil: nothing

	watched, unwatched atomic.Bool
	mu                 sync.RWMutex
	closed             bool
}

func (p *proxy) Health(ctx context.Context, operation, requestID string) (*xks.Health, error) {
	if operation == "" || requestID == "" {
		return nil, errors.New("no operation, or no request ID")
	}
	if p.health != nil {
		if err := p.health(ctx); err != nil {
			return nil, err
		}
	}
	return new(xks.Health), nil
}

func (p *proxy) KeyMetadata(_ context.Context, key string, _ *xks.Metadata) error {
	if key != "there" {
		return xks.Fail(xks.KeyNotFound, xks.AtKey, nil)
	}
	return nil
}

// Encrypt answers with the properties that the client was made with.
func (p *proxy) Encrypt(context.Context, string, *xks.Metadata, []byte, []byte) (xks.Sealed, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return xks.Sealed{}, xks.Fail(xks.NotConnected, xks.AtCrypto, nil)
	}
	if p.answer != nil {
		p.asked <- struct{}{}
		<-p.answer
	}
	return xks.Sealed{Ciphertext: []byte(p.of.Path)}, nil
}

func (p *proxy) Decrypt(context.Context, string, *xks.Metadata, *xks.Sealed, []byte) ([]byte, error) {
	return nil, xks.Fail(xks.TimedOut, xks.AtCrypto, nil)
}

func (p *proxy) Watch(ctx context.Context, every time.Duration) {
	p.watched.Store(every > 0)
	<-ctx.Done()
	p.unwatched.Store(true)
}

func (p *proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

func (p *proxy) isClosed() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.closed
}

// hsmOf is a member of the test's cluster.
type hsmOf struct {
	token hsm.Token
	opens atomic.Int32
	err   atomic.Pointer[error] // of Open; nil: it opens with the password
	last  atomic.Pointer[hsmtest.Faulty]
}

func (m *hsmOf) open(pin []byte) (hsm.Token, error) {
	m.opens.Add(1)
	if err := m.err.Load(); err != nil {
		return nil, *err
	}
	if string(pin) != password {
		return nil, fmt.Errorf("%w: %w", hsm.ErrPIN, &hsm.Error{CKR: hsm.CKR_PIN_INCORRECT, Function: "C_Login"})
	}
	faulty := hsmtest.NewFaulty(kept{m.token.(hsm.ImportToken)})
	m.last.Store(faulty)
	return faulty, nil
}

func (m *hsmOf) ask() (hsm.TokenInfo, error) {
	if err := m.err.Load(); err != nil && !errors.Is(*err, hsm.ErrPIN) && !errors.Is(*err, hsm.ErrNoRoots) { // those only a login shows
		return hsm.TokenInfo{}, *err
	}
	return m.token.Info(), nil
}

func (m *hsmOf) fail(err error) { m.err.Store(&err) }

// kept is a token that is opened again after it was closed.
type kept struct{ hsm.ImportToken }

func (kept) Close() error { return nil }

// softTokens have different roots and are opened once, which takes as long as a PIN is to be guessed.
var softTokens = sync.OnceValues(func() (all []hsm.Token, err error) {
	for range 2 {
		dir, err := os.MkdirTemp("", "keyplane-keystores-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		t, err := softtoken.Open(softtoken.Config{Dir: dir, Create: true})
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
})

// rig is a Registry with a cluster of two HSMs.
type rig struct {
	*Registry
	hsms    []*hsmOf
	cluster *cluster.Cluster
	failed  chan *controlplane.StoreFault

	mu      sync.Mutex
	proxies []*proxy
	next    func(*proxy) // changes the next proxies
}

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	tokens, err := softTokens()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{failed: make(chan *controlplane.StoreFault, 10)}
	cfg := cluster.Config{ID: clusterID, Blocks: snapshot.ResidentBlocks, Ring: ring, RetryMin: 10 * time.Millisecond, RetryMax: 20 * time.Millisecond}
	for i, token := range tokens {
		m := &hsmOf{token: token}
		r.hsms = append(r.hsms, m)
		cfg.Members = append(cfg.Members, cluster.Member{Name: fmt.Sprint("hsm-", i), Open: m.open, Ask: m.ask})
	}
	if r.cluster, err = cluster.New(cfg); err != nil {
		t.Fatal(err)
	}
	config := Config{
		Clusters: []Cluster{{ID: clusterID, TrustAnchor: []byte("anchor"), Cluster: r.cluster}},
		Code:     func(error) kmsapi.Code { return kmsapi.KMSInternal },
		Failed:   func(_ store.KeyStoreName, f *controlplane.StoreFault) { r.failed <- f },
		Proxy: func(k *store.KeyStore) (Proxy, error) {
			if k.Endpoint == "" {
				return nil, errors.New("no endpoint")
			}
			p := &proxy{of: k}
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.next != nil {
				r.next(p)
			}
			r.proxies = append(r.proxies, p)
			return p, nil
		},
		RetryMin: 10 * time.Millisecond, RetryMax: 20 * time.Millisecond,
	}
	for _, f := range change {
		f(&config)
	}
	if r.Registry, err = New(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func (r *rig) proxy(i int) *proxy {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.proxies[i]
}

func (r *rig) nextProxy(f func(*proxy)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = f
}

func ring(t hsm.Token) (*hsm.KeyRing, func(), error) {
	var b *batch.Batcher[hsm.KeyJob]
	ring, err := hsm.NewKeyRing(hsm.KeyRingConfig{
		Tokens: []hsm.Token{t}, SessionsPerToken: 2, RoundMax: 64, Timeout: 20 * time.Second, QueueTimeMax: 20 * time.Second, Full: batch.ErrFull,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			var err error
			b, err = batch.NewJoining(batch.Config{Shards: shards, RoundMax: 8, QueueMax: 1024}, 64, (*hsm.KeyJob).SameCall, run)
			if err != nil {
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

func external() *store.KeyStore {
	return &store.KeyStore{
		KeyStoreName: store.KeyStoreName{Region: region, Account: 111122223333, ID: "cks-00000000000000001"}, Type: store.ExternalKeyStore, State: store.Disconnected,
		Endpoint: "https://xks.example.com", Path: "/a/kms/xks/v1",
	}
}

func ofCluster() *store.KeyStore {
	return &store.KeyStore{
		KeyStoreName: store.KeyStoreName{Region: region, Account: 111122223333, ID: "cks-00000000000000002"}, Type: store.CloudHSM, State: store.Disconnected,
		Cluster: clusterID, Secret: secret.New([]byte(password)),
	}
}

func faultIs(t *testing.T, what string, err error, connection string, code kmsapi.Code) {
	t.Helper()
	var f *controlplane.StoreFault
	if !errors.As(err, &f) || f.Connection != connection || f.Code != code || f.Text == "" {
		t.Errorf("%s: %v (%+v), want %s and %v", what, err, f, connection, code)
	}
}

func codeIs(t *testing.T, what string, err error, code kmsapi.Code) {
	t.Helper()
	var e *kmsapi.Error
	if !errors.As(err, &e) || e.Code != code || e.Message == "" {
		t.Errorf("%s: %v, want %v", what, err, code)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(waitMax); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestExternal(t *testing.T) {
	r := newRig(t)
	k := external()
	if r.Connection(k.KeyStoreName) != nil || r.Connected(k.KeyStoreName) {
		t.Error("a key store that there is not")
	}
	codeIs(t, "its key", r.XksKey(t.Context(), k.KeyStoreName, "there", new(xks.Metadata)), kmsapi.CustomKeyStoreInvalidState)
	r.Add(k)
	c := r.Connection(k.KeyStoreName)
	if c == nil || !c.External() || c.Connected() {
		t.Fatalf("after Add: %+v", c)
	}
	_, err := c.Encrypt("there", new(xks.Metadata), []byte("p"), nil)
	codeIs(t, "Encrypt before Connect", err, kmsapi.KMSInvalidState)
	if err := r.Connect(t.Context(), k, "id"); err != nil {
		t.Fatal(err)
	}
	if err := r.Connect(t.Context(), k, "id"); err != nil || len(r.proxies) != 1 {
		t.Errorf("Connect again: %v, %d clients", err, len(r.proxies))
	}
	if !c.Connected() || r.Connection(k.KeyStoreName) != c {
		t.Error("not connected, or another connection")
	}
	eventually(t, "the proxy is watched", r.proxy(0).watched.Load)
	if err := r.XksKey(t.Context(), k.KeyStoreName, "there", new(xks.Metadata)); err != nil {
		t.Error(err)
	}
	codeIs(t, "another key", r.XksKey(t.Context(), k.KeyStoreName, "other", new(xks.Metadata)), kmsapi.XksKeyNotFound)
	if s, err := c.Encrypt("there", new(xks.Metadata), []byte("p"), nil); err != nil || string(s.Ciphertext) != k.Path {
		t.Errorf("Encrypt: %q, %v", s.Ciphertext, err)
	}
	_, err = c.Decrypt("there", new(xks.Metadata), new(xks.Sealed), nil)
	if e, ok := errors.AsType[*xks.Error](err); !ok || e.Failure != xks.TimedOut {
		t.Errorf("Decrypt: %v", err)
	}
	if st := r.Stats(); len(st) != 1 || st[0].ID != k.ID || !st[0].Connected || st[0].Calls != 4 || st[0].Failures != 2 || st[0].Type != store.ExternalKeyStore {
		t.Errorf("stats: %+v", st)
	}
	codeIs(t, "Random", c.Random(make([]byte, 1)), kmsapi.CustomKeyStoreInvalidState)
	_, _, err = r.NewKey(t.Context(), k.KeyStoreName)
	codeIs(t, "NewKey", err, kmsapi.CustomKeyStoreInvalidState)

	r.Disconnect(k.KeyStoreName)
	r.Disconnect(k.KeyStoreName)
	if c.Connected() || !r.proxy(0).isClosed() {
		t.Error("after Disconnect")
	}
	eventually(t, "the proxy is not watched", r.proxy(0).unwatched.Load)
	_, err = c.Encrypt("there", new(xks.Metadata), []byte("p"), nil)
	codeIs(t, "Encrypt after Disconnect", err, kmsapi.KMSInvalidState)
	r.Remove(k.KeyStoreName)
	if r.Connection(k.KeyStoreName) != nil {
		t.Error("after Remove")
	}
	faultIs(t, "Connect after Remove", r.Connect(t.Context(), k, "id"), "INTERNAL_ERROR", kmsapi.KMSInternal)
}

// TestExternalFaults: each failure of a proxy has its connection error, and nothing is left of the attempt.
func TestExternalFaults(t *testing.T) {
	r := newRig(t)
	k := external()
	r.Add(k)
	for i, c := range []struct {
		failure    xks.Failure
		connection string
		code       kmsapi.Code
	}{
		{xks.AuthenticationFailed, "INVALID_CREDENTIALS", kmsapi.XksProxyIncorrectAuthenticationCredential},
		{xks.InvalidURIPath, "XKS_PROXY_INVALID_CONFIGURATION", kmsapi.XksProxyInvalidConfiguration},
		{xks.TLS, "XKS_PROXY_INVALID_TLS_CONFIGURATION", kmsapi.XksProxyUriUnreachable},
		{xks.TimedOut, "XKS_PROXY_TIMED_OUT", kmsapi.XksProxyUriUnreachable},
		{xks.Malformed, "XKS_PROXY_INVALID_RESPONSE", kmsapi.XksProxyInvalidResponse},
	} {
		r.nextProxy(func(p *proxy) {
			p.health = func(context.Context) error { return xks.Fail(c.failure, xks.AtStore, nil) }
		})
		faultIs(t, c.failure.String(), r.Connect(t.Context(), k, "id"), c.connection, c.code)
		faultIs(t, c.failure.String(), r.Try(t.Context(), k, "CreateCustomKeyStore", "id"), c.connection, c.code)
		if r.Connected(k.KeyStoreName) || !r.proxy(2*i).isClosed() || !r.proxy(2*i+1).isClosed() {
			t.Errorf("%v: something is left", c.failure)
		}
	}
	r.nextProxy(nil)
	if err := r.Try(t.Context(), k, "CreateCustomKeyStore", "id"); err != nil || r.Connected(k.KeyStoreName) {
		t.Errorf("Try: %v", err)
	}
	k.Endpoint = ""
	faultIs(t, "no client", r.Connect(t.Context(), k, "id"), "XKS_PROXY_INVALID_CONFIGURATION", kmsapi.XksProxyInvalidConfiguration)
	faultIs(t, "no client", r.Try(t.Context(), k, "UpdateCustomKeyStore", "id"), "XKS_PROXY_INVALID_CONFIGURATION", kmsapi.XksProxyInvalidConfiguration)
}

// TestExternalRenewed: a connected key store gets another path; a request that is under way ends as it began, those that come later have the new one, and none
// fails.
func TestExternalRenewed(t *testing.T) {
	r := newRig(t)
	k := external()
	r.Add(k)
	r.nextProxy(func(p *proxy) { p.asked, p.answer = make(chan struct{}), make(chan struct{}) })
	if err := r.Connect(t.Context(), k, "id"); err != nil {
		t.Fatal(err)
	}
	r.nextProxy(nil)
	c, first := r.Connection(k.KeyStoreName), r.proxy(0)
	before := make(chan string)
	encrypt := func() string {
		s, err := c.Encrypt("there", new(xks.Metadata), []byte("p"), nil)
		if err != nil {
			return err.Error()
		}
		return string(s.Ciphertext)
	}
	renamed, present := external(), c.session.Load()
	renamed.CustomName = "renamed"
	if r.Add(renamed); c.session.Load() != present {
		t.Error("another name made another client")
	}
	go func() { before <- encrypt() }()
	<-first.asked
	changed := external()
	changed.Path = "/b/kms/xks/v1"
	r.Add(changed)
	if got := encrypt(); got != changed.Path {
		t.Errorf("after the change: %s", got)
	}
	close(first.answer)
	if got := <-before; got != k.Path {
		t.Errorf("before the change: %s", got)
	}
	eventually(t, "the old client is closed", first.isClosed)
	// A request that has loaded the old session when it is closed goes to the new one.
	second := c.session.Swap(&session{proxy: first, unwatch: func() {}})
	asked := 0
	if err := c.call(xks.AtCrypto, func(p Proxy) error {
		asked++
		c.session.Store(second)
		_, err := p.Encrypt(t.Context(), "there", new(xks.Metadata), []byte("p"), nil)
		return err
	}); err != nil || asked != 2 {
		t.Errorf("%v after %d", err, asked)
	}
	changed.Endpoint = ""
	r.Add(changed)
	if !c.Connected() {
		t.Error("a record that no client can be made of has ended the connection")
	}
}

// TestDisconnectWins: a connection that is being made when the key store is disconnected is not there afterwards.
func TestDisconnectWins(t *testing.T) {
	r := newRig(t)
	k := external()
	r.Add(k)
	asked := make(chan struct{})
	r.nextProxy(func(p *proxy) {
		p.health = func(ctx context.Context) error {
			close(asked)
			<-ctx.Done()
			return nil // it answered at the last moment
		}
	})
	done := make(chan error)
	go func() { done <- r.Connect(t.Context(), k, "id") }()
	<-asked
	r.Disconnect(k.KeyStoreName)
	if err := <-done; err == nil || r.Connected(k.KeyStoreName) {
		t.Errorf("connected: %v", err)
	}
	if !r.proxy(0).isClosed() {
		t.Error("the client is not closed")
	}
}

func TestCharge(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := newRig(t, func(c *Config) {
		c.Now = func() time.Time { return start }
		c.Rate = ratelimit.Limit{Interval: time.Second / 1800, Burst: 180}
	})
	k := external()
	r.Add(k)
	c := r.Connection(k.KeyStoreName)
	fit := 0
	for ms := range 1000 {
		for range 10 {
			if c.Charge(start.Add(time.Duration(ms) * time.Millisecond)) {
				fit++
			}
		}
	}
	if fit < 1800 || fit > 1980 {
		t.Errorf("%d requests fit a second of 1800", fit)
	}
	if st := r.Stats(); st[0].Refused != uint64(10_000-fit) {
		t.Errorf("%d are counted as refused of %d", st[0].Refused, 10_000-fit)
	}
	unlimited := newRig(t)
	unlimited.Add(k)
	for range 10_000 {
		if !unlimited.Connection(k.KeyStoreName).Charge(start) {
			t.Fatal("refused without a rate")
		}
	}
}

func TestCluster(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	if r.Cluster("cluster-other") != nil {
		t.Error("a cluster that is not configured")
	}
	if c := r.Cluster(clusterID); c == nil || c.ID != clusterID || string(c.TrustAnchor) != "anchor" || c.Roots != nil {
		t.Errorf("the cluster: %+v", c)
	}
	r.Add(k)
	r.clusters[clusterID].Accounts = []keyid.Account{k.Account + 1}
	faultIs(t, "Try of another account's", r.Try(t.Context(), k, "CreateCustomKeyStore", "id"), "CLUSTER_NOT_FOUND", kmsapi.CloudHsmClusterNotFound)
	faultIs(t, "Connect of another account's", r.Connect(t.Context(), k, "id"), "CLUSTER_NOT_FOUND", kmsapi.CloudHsmClusterNotFound)
	r.clusters[clusterID].Accounts = append(r.clusters[clusterID].Accounts, k.Account)
	c := r.Connection(k.KeyStoreName)
	job := func(copies []hsm.Key) error {
		return c.Run(&hsm.KeyJob{Mechanism: hsm.EncryptBlocks, In: make([]byte, 16), Out: make([]byte, keyspec.AES256.Info().Result)}, copies, time.Now())
	}
	codeIs(t, "Run before Connect", job(nil), kmsapi.KMSInvalidState)
	codeIs(t, "Random before Connect", c.Random(make([]byte, 8)), kmsapi.CustomKeyStoreInvalidState)
	if err := r.Try(t.Context(), k, "CreateCustomKeyStore", "id"); err != nil || r.Connected(k.KeyStoreName) || r.cluster.Connected() {
		t.Errorf("Try: %v", err)
	}
	if err := r.Connect(t.Context(), k, "id"); err != nil || !c.Connected() || c.External() {
		t.Fatal(err)
	}
	opens := r.hsms[0].opens.Load()
	if err := r.Try(t.Context(), k, "UpdateCustomKeyStore", "id"); err != nil || !c.Connected() || r.hsms[0].opens.Load() != opens {
		t.Errorf("Try of a connected cluster: %v", err)
	}
	if roots := r.Cluster(clusterID).Roots; len(roots) != 16 {
		t.Errorf("roots %x", roots)
	}
	copies, images, err := r.NewKey(t.Context(), k.KeyStoreName)
	if err != nil || len(copies) != 2 || copies[0].Root == copies[1].Root {
		t.Fatalf("%d copies, %v", len(copies), err)
	}
	same := func(p *snapshot.PrivateKey) {
		t.Helper()
		j := &hsm.KeyJob{Mechanism: hsm.EncryptBlocks, In: []byte(snapshot.ResidentBlocks), Out: make([]byte, keyspec.AES256.Info().Result)}
		one := asKeys([]*snapshot.PrivateKey{p})
		copy(one[0].ID[:], p.Wrapped)
		if err := c.Run(j, one, time.Now()); err != nil || !bytes.Equal(j.Out[:j.N], images[:]) {
			t.Errorf("a copy is another key: %v", err)
		}
	}
	same(copies[0])
	same(copies[1])
	all, added, err := r.Repair(t.Context(), k.KeyStoreName, copies)
	if err != nil || added || len(all) != 2 {
		t.Errorf("Repair of what is whole: %v, %v, %d copies", err, added, len(all))
	}
	all, added, err = r.Repair(t.Context(), k.KeyStoreName, copies[1:])
	if err != nil || !added || len(all) != 2 || all[0] != copies[1] || all[1].Root != copies[0].Root {
		t.Fatalf("Repair: %v, %v, %d copies", err, added, len(all))
	}
	same(all[1])
	keys := asKeys(copies)
	for i := range keys {
		keys[i].ID[0] = byte(i + 1)
	}
	if err := job(keys); err != nil {
		t.Errorf("Run: %v", err)
	}
	c.Forget(keys)
	b := make([]byte, 32)
	if err := c.Random(b); err != nil || bytes.Equal(b, make([]byte, 32)) {
		t.Errorf("Random: %x, %v", b, err)
	}
	if st := r.Stats(); len(st) != 1 || st[0].Cluster != clusterID || len(st[0].HSMs) != 2 || !st[0].HSMs[0].Up {
		t.Errorf("stats: %+v", st)
	}
	_, err = c.Encrypt("there", new(xks.Metadata), []byte("p"), nil)
	codeIs(t, "Encrypt", err, kmsapi.KMSInvalidState)

	// One request for random bytes in each HSM, which hangs, and one more.
	hang := make(chan struct{})
	for _, m := range r.hsms {
		m.last.Load().Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, Hang: hang})
	}
	crowded := make(chan error, 3)
	for range 3 {
		go func() { crowded <- c.Random(make([]byte, 8)) }()
	}
	codeIs(t, "Random of HSMs that hang", <-crowded, kmsapi.Throttling)
	for _, m := range r.hsms {
		m.last.Load().Clear()
	}
	close(hang)
	for range r.hsms {
		<-crowded
	}

	r.Disconnect(k.KeyStoreName)
	codeIs(t, "Run after Disconnect", job(keys), kmsapi.KMSInvalidState)
	codeIs(t, "Random after Disconnect", c.Random(b), kmsapi.CustomKeyStoreInvalidState)
	_, _, err = r.NewKey(t.Context(), k.KeyStoreName)
	codeIs(t, "NewKey after Disconnect", err, kmsapi.CustomKeyStoreInvalidState)
	if r.cluster.Connected() {
		t.Error("the cluster is still connected")
	}
}

func TestClusterFaults(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	r.Add(k)
	absent := &hsm.Error{CKR: hsm.CKR_TOKEN_NOT_PRESENT, Function: "C_GetSlotList"}
	removed := &hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"}
	for _, c := range []struct {
		name       string
		first, all error
		connection string // of Connect, "" for none
		code       kmsapi.Code
		try        kmsapi.Code // OK: Try has no fault
	}{
		{"one is away", removed, nil, "", 0, kmsapi.CloudHsmClusterInvalidConfiguration},
		{"all are away", removed, removed, "NETWORK_ERRORS", kmsapi.CloudHsmClusterNotActive, kmsapi.CloudHsmClusterNotActive},
		{"none is there", absent, absent, "INSUFFICIENT_CLOUDHSM_HSMS", kmsapi.CloudHsmClusterNotActive, kmsapi.CloudHsmClusterNotActive},
		{"no roots", hsm.ErrNoRoots, hsm.ErrNoRoots, "INTERNAL_ERROR", kmsapi.CloudHsmClusterInvalidConfiguration, kmsapi.OK},
		{"locked", pinError(hsm.CKR_PIN_LOCKED), pinError(hsm.CKR_PIN_LOCKED), "USER_LOCKED_OUT", kmsapi.CloudHsmClusterInvalidConfiguration, kmsapi.OK},
		{"no user", pinError(hsm.CKR_USER_PIN_NOT_INITIALIZED), pinError(hsm.CKR_USER_PIN_NOT_INITIALIZED), "USER_NOT_FOUND", kmsapi.CloudHsmClusterInvalidConfiguration, kmsapi.OK},
		{"wrong password", pinError(hsm.CKR_PIN_INCORRECT), pinError(hsm.CKR_PIN_INCORRECT), "INVALID_CREDENTIALS", kmsapi.CloudHsmClusterInvalidConfiguration, kmsapi.OK},
	} {
		r.hsms[0].fail(c.first)
		if c.all != nil {
			r.hsms[1].fail(c.all)
		} else {
			r.hsms[1].err.Store(nil)
		}
		err := r.Connect(t.Context(), k, "id")
		if c.connection == "" && err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.connection != "" {
			faultIs(t, c.name, err, c.connection, c.code)
		}
		if r.Connected(k.KeyStoreName) != (c.connection == "") {
			t.Errorf("%s: connected is %v", c.name, r.Connected(k.KeyStoreName))
		}
		if c.connection == "" {
			_, _, err := r.NewKey(t.Context(), k.KeyStoreName)
			codeIs(t, c.name+": NewKey", err, kmsapi.CloudHsmClusterInvalidConfiguration)
			r.Disconnect(k.KeyStoreName)
		}
		err = r.Try(t.Context(), k, "CreateCustomKeyStore", "id")
		var f *controlplane.StoreFault
		if errors.As(err, &f); c.try == kmsapi.OK && err != nil || c.try != kmsapi.OK && (f == nil || f.Code != c.try) {
			t.Errorf("%s: Try: %v (%+v)", c.name, err, f)
		}
	}
	other := ofCluster()
	other.ID, other.Cluster = "cks-00000000000000003", "cluster-77777777777"
	r.Add(other)
	faultIs(t, "an unknown cluster", r.Connect(t.Context(), other, "id"), "CLUSTER_NOT_FOUND", kmsapi.CloudHsmClusterNotFound)
	faultIs(t, "an unknown cluster", r.Try(t.Context(), other, "CreateCustomKeyStore", "id"), "CLUSTER_NOT_FOUND", kmsapi.CloudHsmClusterNotFound)
}

// TestTryWithoutLogin: what a key store is created with is not tried at the HSMs, where a wrong password counts.
func TestTryWithoutLogin(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	for _, text := range []string{password, "wrong password"} {
		k.Secret = secret.New([]byte(text))
		if err := r.Try(t.Context(), k, "CreateCustomKeyStore", "id"); err != nil {
			t.Errorf("%v", err)
		}
	}
	for i, m := range r.hsms {
		if n := m.opens.Load(); n != 0 {
			t.Errorf("HSM %d was opened %d times", i, n)
		}
	}
	if roots := r.Cluster(clusterID).Roots; roots != nil {
		t.Errorf("roots %x", roots)
	}
}

// TestTryLearns: where a cluster takes the place of another one its roots are learnt, with one login at each HSM, and none with a password that was refused.
func TestTryLearns(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	k.Secret = secret.New([]byte("wrong password"))
	opened := func(want int32) {
		t.Helper()
		for i, m := range r.hsms {
			if n := m.opens.Load(); n != want {
				t.Errorf("HSM %d was opened %d times, not %d", i, n, want)
			}
		}
	}
	for range 3 {
		faultIs(t, "a wrong password", r.Try(t.Context(), k, "UpdateCustomKeyStore", "id"), "INVALID_CREDENTIALS", kmsapi.CloudHsmClusterInvalidConfiguration)
		opened(1)
	}
	for range 3 {
		k.Secret = secret.New([]byte(password))
		if err := r.Try(t.Context(), k, "UpdateCustomKeyStore", "id"); err != nil || len(r.Cluster(clusterID).Roots) != 16 {
			t.Errorf("%v, roots %x", err, r.Cluster(clusterID).Roots)
		}
		opened(2)
	}
	r.Add(k)
	if err := r.Connect(t.Context(), k, "id"); err != nil { // when the trial is over
		t.Error(err)
	}
}

// TestTryHangs: an HSM that hangs does not keep two others from being counted, nor their roots from being learnt.
func TestTryHangs(t *testing.T) {
	r := newRig(t)
	hang := make(chan struct{})
	cfg := cluster.Config{ID: clusterID, Blocks: snapshot.ResidentBlocks, Ring: ring, CloseTimeout: 10 * time.Millisecond, OpenTimeout: time.Hour}
	for i, m := range r.hsms {
		cfg.Members = append(cfg.Members, cluster.Member{Name: fmt.Sprint(i), Open: m.open, Ask: m.ask})
	}
	cfg.Members = append(cfg.Members, cluster.Member{Name: "hangs",
		Open: func([]byte) (hsm.Token, error) { <-hang; return nil, hsm.ErrTimeout }, Ask: func() (hsm.TokenInfo, error) { <-hang; return hsm.TokenInfo{}, hsm.ErrTimeout },
	})
	c, err := cluster.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer close(hang)
	at := r.clusters[clusterID]
	at.hsms = c
	k := ofCluster()
	for _, operation := range []string{"CreateCustomKeyStore", "UpdateCustomKeyStore"} {
		eventually(t, "it is tried", func() bool { return r.Try(t.Context(), k, operation, "id") == nil })
	}
	if r.Cluster(clusterID).Roots == nil {
		t.Error("no roots")
	}
	if !at.take(t.Context()) { // that is when the trial is over
		t.Error("no turn")
	}
	at.leave()
	r.hsms[1].fail(&hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"})
	faultIs(t, "two are away", r.Try(t.Context(), k, "CreateCustomKeyStore", "id"), "INSUFFICIENT_CLOUDHSM_HSMS", kmsapi.CloudHsmClusterInvalidConfiguration)
}

func pinError(code hsm.CKR) error {
	return fmt.Errorf("%w: %w", hsm.ErrPIN, &hsm.Error{CKR: code, Function: "C_Login"})
}

// TestResume: after a start what was connected is connected again, when its HSMs are there; what was not is not.
func TestResume(t *testing.T) {
	r := newRig(t)
	ext, clu, off := external(), ofCluster(), external()
	off.ID = "cks-00000000000000009"
	ext.State, clu.State = store.Connected, store.Connected
	removed := error(&hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"})
	for _, m := range r.hsms {
		m.fail(removed)
	}
	r.nextProxy(func(p *proxy) {
		p.health = func(context.Context) error { return xks.Fail(xks.Unreachable, xks.AtStore, nil) }
	})
	r.Resume([]*store.KeyStore{ext, clu, off})
	if !r.Connected(ext.KeyStoreName) {
		t.Error("an external key store waits for its proxy")
	}
	eventually(t, "the HSMs are tried again", func() bool { return r.hsms[0].opens.Load() > 2 })
	if r.Connected(clu.KeyStoreName) || r.Connection(clu.KeyStoreName) == nil {
		t.Error("connected without an HSM, or no connection")
	}
	r.hsms[1].err.Store(nil)
	eventually(t, "the cluster is connected", func() bool { return r.Connected(clu.KeyStoreName) })
	if r.Connection(off.KeyStoreName) == nil || r.Connected(off.KeyStoreName) {
		t.Error("a key store that was not connected")
	}
	if len(r.failed) > 0 {
		t.Errorf("failed: %v", <-r.failed)
	}
}

// TestResumeRefused: a wrong password is tried once, and said, as is that there is no such cluster any more; a key store that is disconnected meanwhile is left alone.
func TestResumeRefused(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	k.State, k.Secret = store.Connected, secret.New([]byte("wrong password"))
	r.Resume([]*store.KeyStore{k})
	eventually(t, "it is said", func() bool { return len(r.failed) > 0 })
	faultIs(t, "the start", <-r.failed, "INVALID_CREDENTIALS", kmsapi.CloudHsmClusterInvalidConfiguration)
	r.Close()
	for i, m := range r.hsms {
		if n := m.opens.Load(); n != 1 {
			t.Errorf("HSM %d was asked %d times", i, n)
		}
	}

	r = newRig(t)
	k.Cluster = "cluster-77777777777"
	r.Resume([]*store.KeyStore{k})
	faultIs(t, "without the cluster", <-r.failed, "CLUSTER_NOT_FOUND", kmsapi.CloudHsmClusterNotFound)
	r.Close()
	k.Cluster = clusterID

	r = newRig(t)
	for _, m := range r.hsms {
		m.fail(&hsm.Error{CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"})
	}
	if k.Secret.Len() > 0 {
		t.Error("the password is not wiped")
	}
	k.Secret = secret.New([]byte(password))
	r.Resume([]*store.KeyStore{k})
	eventually(t, "the HSMs are tried again", func() bool { return r.hsms[0].opens.Load() > 1 })
	r.Disconnect(k.KeyStoreName)
	for _, m := range r.hsms {
		m.err.Store(nil)
	}
	r.Close() // waits for whoever still tries
	if r.Connected(k.KeyStoreName) || r.cluster.Connected() {
		t.Error("connected after it was disconnected")
	}
}

// TestTurns: one cluster is tried and connected by one at a time, and whoever waits can be told to stop.
func TestTurns(t *testing.T) {
	r := newRig(t)
	k := ofCluster()
	r.Add(k)
	at := r.clusters[clusterID]
	if !at.take(t.Context()) {
		t.Fatal("no turn")
	}
	done := make(chan error)
	go func() { done <- r.Connect(t.Context(), k, "id") }()
	eventually(t, "an attempt waits", func() bool {
		c := r.Connection(k.KeyStoreName)
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.attempt != nil
	})
	r.Disconnect(k.KeyStoreName)
	if err := <-done; err == nil {
		t.Error("connected out of turn")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	faultIs(t, "its roots are learnt out of turn", r.learn(ctx, at, []byte(password)), "INTERNAL_ERROR", kmsapi.KMSInternal)
	at.leave()
	if err := r.Connect(t.Context(), k, "id"); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := func() Config {
		return Config{Proxy: func(*store.KeyStore) (Proxy, error) { return nil, nil }, Code: func(error) kmsapi.Code { return kmsapi.KMSInternal }}
	}
	one, err := cluster.New(cluster.Config{ID: clusterID, Members: []cluster.Member{{Name: "a", Open: (&hsmOf{}).open, Ask: (&hsmOf{}).ask}}, Ring: ring, Blocks: snapshot.ResidentBlocks})
	if err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(*Config){
		func(c *Config) { c.Proxy = nil },
		func(c *Config) { c.Code = nil },
		func(c *Config) { c.Clusters = []Cluster{{ID: clusterID}} },
		func(c *Config) { c.Clusters = slices.Repeat([]Cluster{{ID: clusterID, Cluster: one}}, 2) },
	} {
		cfg := good()
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("config %d was taken", i)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}
