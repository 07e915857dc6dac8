package keystores

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

// Connection is what a process has of one key store, connected or not. It is a dataplane.KeyStore. Safe for concurrent use.
type Connection struct {
	registry *Registry
	name     store.KeyStoreName
	external bool
	session  atomic.Pointer[session] // nil: not connected

	rate                     ratelimit.GCRA
	refused, calls, failures atomic.Uint64

	mu      sync.Mutex      // guards what is below, and changes of session
	attempt *attempt        // to connect; nil: there is none
	seen    int64           // the latest revision of the record that Add was told of
	closing []chan struct{} // former sessions, whose calls are under way still; closed when they are not
}

// session is what a connected key store has: a cluster or a proxy.
type session struct {
	cluster *sharedCluster
	proxy   Proxy
	unwatch context.CancelFunc // of the proxy

	target   [sha256.Size]byte // of a proxy: what was asked for
	revision int64             // of the record that asked for the connection; guarded by the connection's mu
}

// close returns when nothing uses the session's keys any more.
func (s *session) close() {
	if s.proxy != nil {
		s.unwatch()
		s.proxy.Close()
		return
	}
	s.cluster.hsms.Disconnect()
}

// Errors of a key store that is not connected, as the callers of cryptographic operations and of GenerateRandom are told.
var (
	errUnconnected = kmsapi.New(kmsapi.KMSInvalidState, "This KMS key is in a custom key store that is not connected to its AWS CloudHSM cluster. Connect the custom key store and try the request again.")
	errNoRandom    = kmsapi.New(kmsapi.CustomKeyStoreInvalidState, "The custom key store is not connected.")
	// errCrowded is what the key store's rate answers too.
	errCrowded = kmsapi.New(kmsapi.Throttling, kmsapi.Throttling.Text())
)

func newConnection(r *Registry, k *store.KeyStore) *Connection {
	return &Connection{registry: r, name: k.KeyStoreName, external: k.Type == store.ExternalKeyStore}
}

func (c *Connection) log() *slog.Logger {
	return c.registry.cfg.Logger.With("key_store", c.name.ID, "region", c.name.Region, "account", c.name.Account.String())
}

// Connected says whether keys of the store can be used.
func (c *Connection) Connected() bool { return c.session.Load() != nil }

// External says that it is an external key store.
func (c *Connection) External() bool { return c.external }

// Charge takes one request from the rate of the key store, false if it does not fit.
func (c *Connection) Charge(now time.Time) bool {
	l := c.registry.cfg.Rate
	if l.Interval == 0 {
		return true
	}
	ok, _ := c.rate.Take(l, max(int64(now.Sub(c.registry.start)), 0))
	if !ok {
		c.refused.Add(1)
	}
	return ok
}

// Run is hsm.Keys.Run on a member of the cluster that serves.
func (c *Connection) Run(j *hsm.KeyJob, copies []hsm.Key, now time.Time) error {
	s := c.session.Load()
	if s == nil || s.cluster == nil {
		return errUnconnected
	}
	err := s.cluster.hsms.Run(j, copies, now)
	if errors.Is(err, cluster.ErrDisconnected) {
		err = errUnconnected
	}
	return err
}

// Forget unloads keys.
func (c *Connection) Forget(copies []hsm.Key) {
	if s := c.session.Load(); s != nil && s.cluster != nil {
		s.cluster.hsms.Forget(copies)
	}
}

// Random fills b from an HSM of the cluster.
func (c *Connection) Random(b []byte) error {
	s := c.session.Load()
	if s == nil || s.cluster == nil {
		return errNoRandom
	}
	err := s.cluster.hsms.Random(b)
	switch {
	case errors.Is(err, cluster.ErrDisconnected):
		err = errNoRandom
	case errors.Is(err, cluster.ErrFull):
		err = errCrowded
	}
	return err
}

// Encrypt has an external key encrypt.
func (c *Connection) Encrypt(key string, m *xks.Metadata, plaintext, aad []byte) (sealed xks.Sealed, err error) {
	err = c.call(xks.AtCrypto, func(p Proxy) (err error) {
		sealed, err = p.Encrypt(context.Background(), key, m, plaintext, aad)
		return err
	})
	return sealed, err
}

// Decrypt has an external key decrypt.
func (c *Connection) Decrypt(key string, m *xks.Metadata, sealed *xks.Sealed, aad []byte) (plaintext []byte, err error) {
	err = c.call(xks.AtCrypto, func(p Proxy) (err error) {
		plaintext, err = p.Decrypt(context.Background(), key, m, sealed, aad)
		return err
	})
	return plaintext, err
}

// call asks the proxy. One that was closed meanwhile, because the key store has other properties now, is not the caller's business.
func (c *Connection) call(stage xks.Stage, ask func(Proxy) error) error {
	for {
		s := c.session.Load()
		if s == nil || s.proxy == nil {
			return xks.Fail(xks.NotConnected, stage, nil)
		}
		c.calls.Add(1)
		err := ask(s.proxy)
		if err == nil {
			return nil
		}
		if e, ok := errors.AsType[*xks.Error](err); ok && e.Failure == xks.NotConnected && c.session.Load() != s {
			continue
		}
		c.failures.Add(1)
		return err
	}
}

func (c *Connection) stats() Stats {
	st := Stats{
		ID: c.name.ID, Region: c.name.Region, Account: c.name.Account.String(), Type: store.CloudHSM, Refused: c.refused.Load(), Calls: c.calls.Load(), Failures: c.failures.Load(),
	}
	if c.external {
		st.Type = store.ExternalKeyStore
	}
	if s := c.session.Load(); s != nil {
		st.Connected = true
		if s.cluster != nil {
			st.Cluster, st.HSMs = s.cluster.ID, s.cluster.hsms.Stats()
		}
	}
	return st
}
