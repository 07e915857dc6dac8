package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
)

// fakeKeyStores stand for connections: of clusters whose keys are bytes that are none, and proxies that are not there. What is configured of clusters is
// whatever is asked for, but for the names in it.
type fakeKeyStores struct {
	mu       sync.Mutex
	clusters map[string]*Cluster // instead of what is made up; nil: there is none
	shown    map[string][]byte   // Roots that a cluster has once it was tried
	added    map[string]*store.KeyStore
	up       map[string]bool
	err      error                       // of everything that asks a cluster or a proxy
	connect  func(context.Context) error // what Connect does before it succeeds; nil: nothing
	asked    []string                    // what was asked of proxies and clusters
	copies   int                         // how many of a key NewKey makes
	members  [][8]byte                   // what Repair adds
	fault    error                       // what Repair says besides
}

func newFakeKeyStores() *fakeKeyStores {
	return &fakeKeyStores{clusters: map[string]*Cluster{}, added: map[string]*store.KeyStore{}, up: map[string]bool{}, copies: 2}
}

var trustAnchor = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("a certificate")}))

func (f *fakeKeyStores) Cluster(id string) *Cluster {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c, ok := f.clusters[id]; ok {
		return c
	}
	return &Cluster{ID: id, TrustAnchor: []byte("a certificate"), Roots: rootOf(id)}
}

// rootOf is the root that a cluster has which is made up.
func rootOf(id string) []byte {
	sum := sha256.Sum256([]byte(id))
	return sum[:rootLen]
}

func (f *fakeKeyStores) Add(k *store.KeyStore) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := *k
	kept.Secret = secret.New(bytes.Clone(k.Secret.Expose()))
	f.added[k.ID] = &kept
}

func (f *fakeKeyStores) ask(what ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, strings.TrimSpace(fmt.Sprintln(what...)))
	return f.err
}

func (f *fakeKeyStores) Try(_ context.Context, k *store.KeyStore, operation, requestID string) error {
	if roots := f.shown[k.Cluster]; roots != nil {
		f.clusters[k.Cluster].Roots = roots
	}
	return f.ask("try", k.Endpoint+k.Path+k.Cluster, string(k.Secret.Expose()), operation, requestID)
}

func (f *fakeKeyStores) Connect(ctx context.Context, k *store.KeyStore, requestID string) error {
	if f.connect != nil {
		if err := f.connect(ctx); err != nil {
			return err
		}
	}
	if err := f.ask("connect", string(k.Secret.Expose()), requestID); err != nil {
		return err
	}
	f.set(k.ID, true)
	return nil
}

func (f *fakeKeyStores) set(id string, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.up[id] = up
}

func (f *fakeKeyStores) Disconnect(n store.KeyStoreName) { f.set(n.ID, false) }

func (f *fakeKeyStores) Remove(n store.KeyStoreName) { f.forget(n.ID) }

func (f *fakeKeyStores) forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.added, id)
	delete(f.up, id)
}

func (f *fakeKeyStores) Connected(n store.KeyStoreName) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.up[n.ID]
}

func (f *fakeKeyStores) NewKey(_ context.Context, n store.KeyStoreName) (keys []*snapshot.PrivateKey, images *[32]byte, err error) {
	if err := f.ask("new key", n.ID); err != nil {
		return nil, nil, err
	}
	for i := range f.copies {
		keys = append(keys, wrappedUnder([8]byte{'m', byte(i)}))
	}
	images = (*[32]byte)(keys[0].Wrapped)
	return keys, images, nil
}

func wrappedUnder(root [8]byte) *snapshot.PrivateKey {
	k := &snapshot.PrivateKey{Root: root, Wrapped: make([]byte, 40)}
	rand.Read(k.Wrapped)
	return k
}

func (f *fakeKeyStores) Repair(_ context.Context, _ store.KeyStoreName, copies []*snapshot.PrivateKey) ([]*snapshot.PrivateKey, bool, error) {
	if err := f.ask("repair", len(copies)); err != nil {
		return nil, false, err
	}
	all := copies
	for _, root := range f.members {
		there := false
		for _, k := range copies {
			there = there || k.Root == root
		}
		if !there {
			all = append(all, wrappedUnder(root))
		}
	}
	return all, len(all) > len(copies), f.fault
}

func (f *fakeKeyStores) XksKey(_ context.Context, n store.KeyStoreName, key string, m *xks.Metadata) error {
	return f.ask("external key", n.ID, key, m.Principal, m.Operation, m.RequestID)
}

// heard takes what was asked.
func (f *fakeKeyStores) heard() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.asked, "\n")
	f.asked = nil
	return s
}

// clusterBody asks for a key store with a cluster of its own.
func clusterBody(more ...any) string {
	var random [8]byte
	rand.Read(random[:])
	name := strings.Map(func(r rune) rune { return 'a' + r%26 }, fmt.Sprintf("%x", random))
	return obj(merge(more, "CustomKeyStoreName", "cluster "+name, "CloudHsmClusterId", "cluster-"+name, "KeyStorePassword", "kmsPassword", "TrustAnchorCertificate", trustAnchor)...)
}

const proxySecret = "bm90IGEgc2VjcmV0LCBidXQgbG9uZyBlbm91Z2ggdG8gYmUgb25l"

// proxyBody asks for a key store behind a proxy of its own.
func proxyBody(more ...any) string {
	var random [8]byte
	rand.Read(random[:])
	name := fmt.Sprintf("p%x", random)
	return obj(merge(more, "CustomKeyStoreName", "proxy "+name, "CustomKeyStoreType", "EXTERNAL_KEY_STORE", "XksProxyConnectivity", "PUBLIC_ENDPOINT", "XksProxyUriEndpoint", "https://"+name+".example.com",
		"XksProxyUriPath", "/kms/xks/v1", "XksProxyAuthenticationCredential", credential("ABCDEFGHIJKLMNOPQRST", proxySecret))...)
}

func credential(id, secret string) raw {
	return raw(obj("AccessKeyId", id, "RawSecretAccessKey", secret))
}

// merge puts pairs into others, instead of those of the same name; a nil value takes one away.
func merge(more []any, pairs ...any) (all []any) {
	given := map[string]bool{}
	for i := 0; i < len(more); i += 2 {
		if given[more[i].(string)] = true; more[i+1] != nil {
			all = append(all, more[i], more[i+1])
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if !given[pairs[i].(string)] {
			all = append(all, pairs[i], pairs[i+1])
		}
	}
	return all
}

// keyStore makes a custom key store.
func (e *env) keyStore(body string) (id string) {
	e.Helper()
	var out createCustomKeyStoreOut
	e.ok("CreateCustomKeyStore", body, &out)
	return out.CustomKeyStoreId
}

// turns does what is under way of key stores, and waits for it.
func (e *env) turns() {
	e.Helper()
	var turns sync.WaitGroup
	if err := e.takeTurns(e.Context(), &turns); err != nil {
		e.Fatal(err)
	}
	turns.Wait()
}

// oneKeyStore is a connected key store with a cluster, the same each time.
func (e *env) oneKeyStore() string {
	e.Helper()
	if e.shelf == "" {
		e.shelf = e.connected(store.CloudHSM)
	}
	return e.shelf
}

// connected makes a key store and connects it.
func (e *env) connected(kind string) (id string) {
	e.Helper()
	if kind == store.CloudHSM {
		id = e.keyStore(clusterBody())
	} else {
		id = e.keyStore(proxyBody())
	}
	e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	e.turns()
	return id
}

// createIn makes a key in a key store; of an external one, that of a new external key.
func (e *env) createIn(id string) wire {
	e.Helper()
	k := e.theKeyStore(id)
	if k.CustomKeyStoreType == store.CloudHSM {
		return e.create(obj("Origin", "AWS_CLOUDHSM", "CustomKeyStoreId", id))
	}
	var random [8]byte
	rand.Read(random[:])
	return e.create(obj("Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", id, "XksKeyId", fmt.Sprintf("key-%x", random)))
}

// keyStoreWire is an entry of DescribeCustomKeyStores as a client reads it.
type keyStoreWire struct {
	CustomKeyStoreId, CustomKeyStoreName, CloudHsmClusterId, TrustAnchorCertificate, ConnectionState, ConnectionErrorCode, CustomKeyStoreType string

	CreationDate          float64
	XksProxyConfiguration *xksProxyConfiguration
}

type keyStoresWire struct {
	CustomKeyStores []keyStoreWire
	NextMarker      string
	Truncated       bool
}

func (e *env) theKeyStore(id string) keyStoreWire {
	e.Helper()
	var out keyStoresWire
	e.ok("DescribeCustomKeyStores", obj("CustomKeyStoreId", id), &out)
	if len(out.CustomKeyStores) != 1 || out.Truncated {
		e.Fatalf("described %+v", out)
	}
	return out.CustomKeyStores[0]
}

func (e *env) storeState(id, want, code string) {
	e.Helper()
	if k := e.theKeyStore(id); k.ConnectionState != want || k.ConnectionErrorCode != code {
		e.Errorf("the key store is %s %s, want %s %s", k.ConnectionState, k.ConnectionErrorCode, want, code)
	}
}

// forceStore puts a key store into a state.
func (e *env) forceStore(id, state string) {
	e.Helper()
	if _, err := e.store.UpdateKeyStore(e.Context(), store.KeyStoreName{Region: e.region, Account: e.account, ID: id}, func(k *store.KeyStore) error {
		k.State, k.Error = state, ""
		if state == store.Failed {
			k.Error = "INTERNAL_ERROR"
		}
		return nil
	}, nil); err != nil {
		e.Fatal(err)
	}
}
