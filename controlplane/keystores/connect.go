package keystores

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
)

// ConnectionErrorCode of CloudHSM key stores, and of both kinds. Those of external ones are the xks package's.
const (
	connNoCluster     = "CLUSTER_NOT_FOUND"
	connTooFew        = "INSUFFICIENT_CLOUDHSM_HSMS"
	connCredentials   = "INVALID_CREDENTIALS"
	connLocked        = "USER_LOCKED_OUT"
	connNoUser        = "USER_NOT_FOUND"
	connNetwork       = "NETWORK_ERRORS"
	connInternal      = "INTERNAL_ERROR"
	connConfiguration = "XKS_PROXY_INVALID_CONFIGURATION"
)

// Texts are of the exceptions' documentation in the service model, where there are any.
var (
	faultNoCluster = &controlplane.StoreFault{Connection: connNoCluster, Code: kmsapi.CloudHsmClusterNotFound,
		Text: "AWS KMS cannot find the AWS CloudHSM cluster with the specified cluster ID."}
	faultNotActive = &controlplane.StoreFault{Connection: connTooFew, Code: kmsapi.CloudHsmClusterNotActive,
		Text: "The AWS CloudHSM cluster associated with the custom key store is not active. Initialize and activate the cluster and try the command again."}
	faultTooFew = &controlplane.StoreFault{Connection: connTooFew, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "The AWS CloudHSM cluster must contain at least two active HSMs."}
	faultNetwork = &controlplane.StoreFault{Connection: connNetwork, Code: kmsapi.CloudHsmClusterNotActive,
		Text: "No HSM of the AWS CloudHSM cluster answers."}
	faultTwice = &controlplane.StoreFault{Connection: connInternal, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "Two HSMs of the AWS CloudHSM cluster are the same one, or one is in another cluster too."}
	faultRoots = &controlplane.StoreFault{Connection: connInternal, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "An HSM of the AWS CloudHSM cluster is not prepared for keyplane."}
	faultCredentials = &controlplane.StoreFault{Connection: connCredentials, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "AWS KMS cannot log in to the AWS CloudHSM cluster with the password of the key store."}
	faultLocked = &controlplane.StoreFault{Connection: connLocked, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "The kmsuser account of the AWS CloudHSM cluster is locked."}
	faultNoUser = &controlplane.StoreFault{Connection: connNoUser, Code: kmsapi.CloudHsmClusterInvalidConfiguration,
		Text: "The AWS CloudHSM cluster has no kmsuser account."}
	faultInternal = &controlplane.StoreFault{Connection: connInternal, Code: kmsapi.KMSInternal, Text: "The key store could not be connected."}
	faultProxy    = &controlplane.StoreFault{Connection: connConfiguration, Code: kmsapi.XksProxyInvalidConfiguration,
		Text: "The external key store proxy is not configured correctly."}
)

// faultOf is why a cluster does not come up.
func faultOf(err error) *controlplane.StoreFault {
	switch {
	case errors.Is(err, cluster.ErrPIN):
		return faultCredentials
	case errors.Is(err, cluster.ErrPINLocked):
		return faultLocked
	case errors.Is(err, cluster.ErrNoUser):
		return faultNoUser
	case errors.Is(err, cluster.ErrTwice):
		return faultTwice
	case errors.Is(err, cluster.ErrNoRoots), errors.Is(err, cluster.ErrUnusable):
		return faultRoots
	case errors.Is(err, cluster.ErrAway):
		return faultNetwork
	case errors.Is(err, cluster.ErrAbsent):
		return faultNotActive
	}
	return faultInternal
}

// faultOfProxy is why an external key store does not come up.
func faultOfProxy(err error) *controlplane.StoreFault {
	e, ok := errors.AsType[*xks.Error](err)
	if !ok {
		return faultInternal
	}
	return &controlplane.StoreFault{Connection: e.Failure.Connection(), Code: e.Refusal.Code, Text: e.Refusal.Message}
}

// attempt is one to connect a key store. Its context ends when the next one begins, or the key store is disconnected.
type attempt struct {
	ctx      context.Context
	end      context.CancelFunc
	revision int64 // of the record that asks for it
}

func (c *Connection) begin(ctx context.Context, revision int64) *attempt {
	a := &attempt{revision: revision}
	a.ctx, a.end = context.WithCancel(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.attempt != nil {
		c.attempt.end()
	}
	c.attempt = a
	return a
}

// Connect implements controlplane.KeyStores.
func (r *Registry) Connect(ctx context.Context, k *store.KeyStore, requestID string) error {
	c := r.Connection(k.KeyStoreName)
	if c == nil || r.life.Err() != nil {
		return faultInternal // it was deleted meanwhile
	}
	if c.connectedFor(k.Revision) {
		return nil
	}
	a := c.begin(ctx, k.Revision)
	defer a.end()
	if c.external {
		return c.connectProxy(a, k, requestID)
	}
	return c.connectCluster(a, k)
}

// connectedFor says whether the key store is connected, which is what a revision of the record asks for.
func (c *Connection) connectedFor(revision int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.session.Load()
	if s != nil {
		s.revision = max(s.revision, revision)
	}
	return s != nil
}

// connectProxy connects an external key store whose proxy is well.
func (c *Connection) connectProxy(a *attempt, k *store.KeyStore, requestID string) error {
	s, err := c.open(k)
	if err != nil {
		return err
	}
	if _, err := s.proxy.Health(a.ctx, "ConnectCustomKeyStore", requestID); err != nil {
		s.close()
		c.log().Warn("the external key store does not come up", "error", err)
		return faultOfProxy(err)
	}
	return c.settle(a, s)
}

// open makes the session of an external key store. The error is a *StoreFault.
func (c *Connection) open(k *store.KeyStore) (*session, error) {
	p, err := c.registry.cfg.Proxy(k)
	if err != nil {
		c.log().Error("no client of the external key store's proxy", "error", err)
		return nil, faultProxy
	}
	s := &session{proxy: p, target: c.registry.targetOf(k)}
	var watch context.Context
	watch, s.unwatch = context.WithCancel(c.registry.life)
	if !c.registry.goes(func() { p.Watch(watch, c.registry.cfg.HealthEvery) }) {
		s.close()
		return nil, faultInternal
	}
	return s, nil
}

// settle makes a session that of the key store, unless somebody has decided otherwise since the attempt began.
func (c *Connection) settle(a *attempt, s *session) error {
	c.mu.Lock()
	mine := c.attempt == a && a.ctx.Err() == nil
	if mine {
		s.revision = a.revision
		c.session.Store(s)
	}
	c.mu.Unlock()
	if !mine {
		s.close()
		return faultInternal
	}
	return nil
}

// connectCluster connects a CloudHSM key store, of whose members one answers at least.
func (c *Connection) connectCluster(a *attempt, k *store.KeyStore) error {
	at := c.registry.clusterFor(k)
	if at == nil {
		return faultNoCluster
	}
	if !at.take(a.ctx) {
		return faultInternal
	}
	defer at.leave()
	if !c.left(a.ctx) { // what ends the former connection would end this one
		return faultInternal
	}
	if c.Connected() { // by whoever had the turn before
		return nil
	}
	if err := at.hsms.Connect(a.ctx, k.Secret.Expose()); err != nil {
		c.log().Warn("the key store does not come up", "error", err)
		return faultOf(err)
	}
	return c.settle(a, &session{cluster: at})
}

// take waits for the turn, false if ctx ends before.
func (c *sharedCluster) take(ctx context.Context) bool {
	select {
	case c.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *sharedCluster) leave() { <-c.turn }

// use connects an external key store without asking its proxy.
func (c *Connection) use(k *store.KeyStore) error {
	s, err := c.open(k)
	if err != nil {
		return err
	}
	a := c.begin(c.registry.life, k.Revision)
	defer a.end()
	return c.settle(a, s)
}

// renew gives a connected external key store the properties of a record. Requests that are under way end as they began.
func (c *Connection) renew(k *store.KeyStore) {
	c.mu.Lock()
	older := k.Revision < c.seen // two have read the record, and this one was slower
	c.seen = max(c.seen, k.Revision)
	old := c.session.Load()
	c.mu.Unlock()
	if older || old == nil || !c.external || old.target == c.registry.targetOf(k) {
		return
	}
	s, err := c.open(k)
	if err != nil {
		c.log().Error("the external key store keeps its former properties", "error", err)
		return
	}
	c.mu.Lock()
	old = c.session.Load()
	if old != nil && k.Revision >= c.seen {
		s.revision = old.revision
		c.session.Store(s)
	} else { // disconnected meanwhile, or renewed by a later record
		old = s
	}
	closed := make(chan struct{})
	c.closing = append(slices.DeleteFunc(c.closing, isClosed), closed)
	c.mu.Unlock()
	end := func() { defer close(closed); old.close() }
	if !c.registry.goes(end) {
		end()
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Disconnect implements controlplane.KeyStores.
func (r *Registry) Disconnect(n store.KeyStoreName) {
	if c := r.Connection(n); c != nil {
		c.disconnect()
	}
}

// disconnect ends the session, or an attempt. When it returns nothing uses the store's keys any more.
func (c *Connection) disconnect() {
	c.mu.Lock()
	if c.attempt != nil {
		c.attempt.end()
		c.attempt = nil
	}
	s := c.session.Swap(nil)
	closing := slices.Clone(c.closing)
	c.mu.Unlock()
	end(s, closing)
}

// end returns when nothing uses the keys of a session any more, nil for none, and of those that it took the place of.
func end(s *session, closing []chan struct{}) {
	if s != nil {
		s.close()
	}
	for _, closed := range closing {
		<-closed
	}
}

// Try implements controlplane.KeyStores.
func (r *Registry) Try(ctx context.Context, k *store.KeyStore, operation, requestID string) error {
	if k.Type == store.ExternalKeyStore {
		return r.tryProxy(ctx, k, operation, requestID)
	}
	return r.tryCluster(ctx, k, operation)
}

func (r *Registry) tryProxy(ctx context.Context, k *store.KeyStore, operation, requestID string) error {
	p, err := r.cfg.Proxy(k)
	if err != nil {
		r.cfg.Logger.Warn("no client of an external key store's proxy", "error", err)
		return faultProxy
	}
	defer p.Close()
	if _, err := p.Health(ctx, operation, requestID); err != nil {
		return faultOfProxy(err)
	}
	return nil
}

// tryMax is how long a cluster is tried, within the time that an operation has. HSMs that have not answered by then do not count.
const tryMax = 3 * time.Second

// tryCluster counts the HSMs that answer. That takes no login: a password that nobody has tried yet may be wrong, and each HSM counts. It is Connect that tells of
// that. The exception is a cluster that takes the place of another one, whose roots only a login shows.
func (r *Registry) tryCluster(ctx context.Context, k *store.KeyStore, operation string) error {
	at := r.clusterFor(k)
	if at == nil {
		return faultNoCluster
	}
	ctx, cancel := context.WithTimeout(ctx, tryMax)
	defer cancel()
	active, err := at.hsms.Ask(ctx, cluster.MembersMin)
	if active < cluster.MembersMin {
		r.cfg.Logger.Warn("a cluster is not active", "cluster", k.Cluster, "error", err)
		if active > 0 {
			return faultTooFew
		}
		return faultOf(err)
	}
	if operation != "UpdateCustomKeyStore" || at.hsms.Roots() != nil {
		return nil
	}
	return r.learn(ctx, at, k.Secret.Expose())
}

// learn has HSMs opened once for the cluster's roots to be known. A password that was refused is not tried again.
func (r *Registry) learn(ctx context.Context, at *sharedCluster, pin []byte) error {
	if !at.take(ctx) {
		return faultInternal
	}
	mac := hmac.New(sha256.New, r.fingerprints[:])
	mac.Write(pin)
	password := [sha256.Size]byte(mac.Sum(nil))
	if at.refused != nil && at.password == password {
		defer at.leave()
		return at.refused
	}
	closed, err := at.hsms.Learn(ctx, pin, math.MaxInt) // as many roots as can be known in the time: one may be in common
	if err != nil {
		r.cfg.Logger.Warn("the roots of a cluster cannot be read", "cluster", at.ID, "error", err)
	}
	fault := faultOf(err)
	if fault == faultCredentials || fault == faultLocked || fault == faultNoUser {
		at.refused, at.password = fault, password
	}
	if closed == nil || !r.goes(func() { defer at.leave(); <-closed }) {
		at.leave()
	}
	if err != nil {
		return fault
	}
	return nil
}
