package keystores

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

// Config is what a Registry stands on. Of the durations 0 is the default.
type Config struct {
	Clusters []Cluster // of the configuration, each with an ID of its own
	// Proxy makes a client of the proxy of an external key store. It does not connect yet.
	Proxy func(k *store.KeyStore) (Proxy, error)
	// Code is the exception that tells a client of an error of the HSM's: the data plane's CodeOf.
	Code func(error) kmsapi.Code
	// Failed is told of a key store that is not connected again after a start, since its cluster does not take the password, or there is none. nil: nobody is.
	Failed func(n store.KeyStoreName, f *controlplane.StoreFault)
	// Rate is of requests to one key store; the zero Limit is none.
	Rate ratelimit.Limit
	// Now is the clock of dataplane.KeyStore.Charge; nil is time.Now.
	Now func() time.Time

	RetryMin, RetryMax time.Duration // between attempts to connect again after a start; 1 s and 30 s
	HealthEvery        time.Duration // how often a connected proxy is asked for its health; 2 min
	Logger             *slog.Logger  // nil discards
}

// Cluster is a CloudHSM cluster of the configuration.
type Cluster struct {
	ID          string
	TrustAnchor []byte          // the certificate, DER
	Accounts    []keyid.Account // whose key stores can name it; none: all accounts'
	Cluster     *cluster.Cluster
}

// Proxy is the client of the proxy of an external key store. An *xksclient.Client is one. Errors are those that it documents; Close waits for the calls under way,
// and later ones fail as those of a key store that is not connected.
type Proxy interface {
	Health(ctx context.Context, operation, requestID string) (*xks.Health, error)
	KeyMetadata(ctx context.Context, key string, m *xks.Metadata) error
	Encrypt(ctx context.Context, key string, m *xks.Metadata, plaintext, aad []byte) (xks.Sealed, error)
	Decrypt(ctx context.Context, key string, m *xks.Metadata, sealed *xks.Sealed, aad []byte) ([]byte, error)
	Watch(ctx context.Context, every time.Duration)
	Close()
}

// Registry has the connections. It is a controlplane.KeyStores. Safe for concurrent use.
type Registry struct {
	cfg      Config
	clusters map[string]*sharedCluster
	start    time.Time

	fingerprints [sha256.Size]byte // the key of passwords' fingerprints, of no use to whoever reads the memory of another process

	life context.Context // ends with Close
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.RWMutex // guards stores
	stores map[store.KeyStoreName]*Connection
}

// sharedCluster is a cluster of the configuration, which one key store at a time has connected.
type sharedCluster struct {
	Cluster
	hsms *cluster.Cluster // of Cluster
	turn chan struct{}    // has room for one: who connects, or learns the roots

	// Of the turn: the last password that was refused for the roots, and why.
	password [sha256.Size]byte // its fingerprint
	refused  *controlplane.StoreFault
}

// New makes a Registry without key stores.
func New(cfg Config) (*Registry, error) {
	for _, d := range []struct {
		v      *time.Duration
		normal time.Duration
	}{{&cfg.RetryMin, time.Second}, {&cfg.RetryMax, 30 * time.Second}, {&cfg.HealthEvery, 2 * time.Minute}} {
		if *d.v == 0 {
			*d.v = d.normal
		}
	}
	if cfg.Proxy == nil || cfg.Code == nil {
		return nil, errors.New("keystores: Proxy or Code is missing")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, clusters: map[string]*sharedCluster{}, start: cfg.Now(), stores: map[store.KeyStoreName]*Connection{}}
	for _, c := range cfg.Clusters {
		if r.clusters[c.ID] != nil || c.Cluster == nil {
			return nil, fmt.Errorf("keystores: cluster %s is there twice, or not at all", c.ID)
		}
		r.clusters[c.ID] = &sharedCluster{Cluster: c, hsms: c.Cluster, turn: make(chan struct{}, 1)}
	}
	_, _ = rand.Read(r.fingerprints[:]) // it does not fail
	r.life, r.end = context.WithCancel(context.Background())
	return r, nil
}

// Close disconnects everything and ends the goroutines.
func (r *Registry) Close() {
	r.mu.Lock()
	r.end()
	all := slices.Collect(maps.Values(r.stores))
	r.mu.Unlock()
	var closing sync.WaitGroup
	for _, c := range all {
		closing.Go(c.disconnect)
	}
	closing.Wait()
	r.wg.Wait()
}

// Resume is for the key stores that there are at a start: it adds them, and has those connected again that were. It does not wait for that. It wipes the secrets when
// it is done with them.
func (r *Registry) Resume(stores []*store.KeyStore) {
	for _, k := range stores {
		r.Add(k)
		if k.State != store.Connected {
			k.Secret.Wipe()
			continue
		}
		c := r.Connection(k.KeyStoreName)
		log := c.log()
		if k.Type == store.ExternalKeyStore {
			// The proxy need not answer now: it is as one that is away for a while.
			if err := c.use(k); err != nil {
				log.Error("the external key store is not connected again", "error", err)
			}
			k.Secret.Wipe()
			continue
		}
		if a := c.begin(r.life, k.Revision); !r.goes(func() { r.again(c, a, k, r.cfg.Failed) }) {
			a.end()
			k.Secret.Wipe()
		}
	}
}

// again connects a CloudHSM key store until it is, or somebody else decides. failed is told that it never will be; nil: nobody is.
func (r *Registry) again(c *Connection, a *attempt, k *store.KeyStore, failed func(store.KeyStoreName, *controlplane.StoreFault)) {
	defer k.Secret.Wipe()
	defer a.end()
	log := c.log()
	for delay := r.cfg.RetryMin; ; delay = min(2*delay, r.cfg.RetryMax) {
		err := c.connectCluster(a, k)
		if err == nil {
			log.Info("the key store is connected again")
			return
		}
		if a.ctx.Err() != nil {
			return
		}
		fault, _ := errors.AsType[*controlplane.StoreFault](err)
		switch fault.Connection {
		case connCredentials, connLocked, connNoUser, connNoCluster:
			log.Error("the key store is not connected again: its cluster does not take the password, or is not in the configuration", "cluster", k.Cluster, "error", err)
			if failed != nil {
				failed(k.KeyStoreName, fault)
			}
			return
		}
		log.Warn("the key store is not connected again yet", "error", err)
		select {
		case <-time.After(delay):
		case <-a.ctx.Done():
			return
		}
	}
}

// goes runs f on a goroutine that Close waits for; false after Close.
func (r *Registry) goes(f func()) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.life.Err() != nil {
		return false
	}
	r.wg.Go(f)
	return true
}

// Connection is the connection to a key store, nil if there is no such key store.
func (r *Registry) Connection(n store.KeyStoreName) *Connection {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.stores[n]
}

// clusterFor is the cluster of a key store, nil if there is none for its account.
func (r *Registry) clusterFor(k *store.KeyStore) *sharedCluster {
	c := r.clusters[k.Cluster]
	if c == nil || len(c.Accounts) > 0 && !slices.Contains(c.Accounts, k.Account) {
		return nil
	}
	return c
}

// Cluster implements controlplane.KeyStores.
func (r *Registry) Cluster(id string) *controlplane.Cluster {
	c := r.clusters[id]
	if c == nil {
		return nil
	}
	at := &controlplane.Cluster{ID: c.ID, TrustAnchor: c.TrustAnchor, Accounts: c.Accounts}
	for _, root := range c.hsms.Roots() {
		at.Roots = append(at.Roots, root[:]...)
	}
	return at
}

// Add implements controlplane.KeyStores.
func (r *Registry) Add(k *store.KeyStore) {
	r.mu.Lock()
	c := r.stores[k.KeyStoreName]
	if c == nil {
		c = newConnection(r, k)
		r.stores[k.KeyStoreName] = c
	}
	r.mu.Unlock()
	c.renew(k)
}

// Remove implements controlplane.KeyStores.
func (r *Registry) Remove(n store.KeyStoreName) {
	r.mu.Lock()
	c := r.stores[n]
	delete(r.stores, n)
	r.mu.Unlock()
	if c != nil {
		c.disconnect()
	}
}

// Connected implements controlplane.KeyStores.
func (r *Registry) Connected(n store.KeyStoreName) bool {
	c := r.Connection(n)
	return c != nil && c.Connected()
}

// Stats are those of one key store.
type Stats struct {
	ID        string                `json:"id"`
	Region    string                `json:"region"`
	Account   string                `json:"account"`
	Type      string                `json:"type"`
	Connected bool                  `json:"connected"`
	Refused   uint64                `json:"refused"`           // requests above the rate
	Cluster   string                `json:"cluster,omitempty"` // while it is connected
	HSMs      []cluster.MemberStats `json:"hsms,omitempty"`    // of that
	Calls     uint64                `json:"calls"`             // to an external key store's proxy
	Failures  uint64                `json:"failures"`          // of those
}

// Stats are in order of account, Region and ID.
func (r *Registry) Stats() []Stats {
	r.mu.RLock()
	connections := slices.Collect(maps.Values(r.stores))
	r.mu.RUnlock()
	all := make([]Stats, 0, len(connections))
	for _, c := range connections {
		all = append(all, c.stats())
	}
	slices.SortFunc(all, func(a, b Stats) int {
		return cmp.Or(strings.Compare(a.Account, b.Account), strings.Compare(a.Region, b.Region), strings.Compare(a.ID, b.ID))
	})
	return all
}

var _ controlplane.KeyStores = (*Registry)(nil)
