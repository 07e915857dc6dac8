package node

import (
	"context"
	"errors"
	"net"
	"os"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// shape says which planes a process has.
type shape uint8

const (
	whole   shape = iota // both, and the store
	control              // a control plane of a cluster
	data                 // a data node of a cluster
)

// start brings up both planes over a store in this process.
func (n *Node) start(ctx context.Context) error {
	if err := n.prepare(); err != nil {
		return err
	}
	if err := n.listenForClients(nil); err != nil {
		return err
	}
	n.phase("starting: the store is not open")
	var err error
	if n.store, err = store.OpenEmbedded(ctx, store.EmbeddedConfig{Dir: n.cfg.DataDir, Logger: n.log, Sealer: n.seal}); err != nil {
		return err
	}
	n.onClose(func() { n.logIf("closing the store", n.store.Close()) })
	if err := n.openHSM(ctx); err != nil {
		return err
	}
	if err := n.store.Rebury(ctx); err != nil {
		return err
	}
	if err := n.openKeyRing(); err != nil {
		return err
	}
	if err := n.openPrincipals(ctx, nil); err != nil {
		return err
	}
	if err := ensureAdmin(ctx, n.principals, n.store, n.account, n.cfg.DataDir); err != nil {
		return err
	}
	n.background("principals", n.principals.Run)
	n.phase("starting: custom key stores are not loaded")
	if err := n.openKeyStores(ctx, n.clock.Now); err != nil {
		return err
	}
	n.phase("starting: quotas are not loaded")
	if err := n.openRegions(ctx, nil, nil); err != nil {
		return err
	}
	var lastUses controlplane.LastUses // none
	if n.lastUses != nil {
		lastUses = n.lastUses
	}
	if err := n.openControl(ctx, lastUses, func(region string) controlplane.Publisher { return publisher{n.data, region} }); err != nil {
		return err
	}
	if err := n.serveReplication(); err != nil {
		return err
	}
	for _, at := range n.regions {
		n.background("the worker of "+at.name, at.control.Run)
	}
	if err := n.startData(n.serveControl, n.makeManaged); err != nil {
		return err
	}
	if err := n.serveXKS(ctx); err != nil {
		return err
	}
	if err := n.serveStats(n.cfg.StatsSocket); err != nil {
		return err
	}
	n.state.Store(nil)
	n.background("asking what the HSM imports", n.tellImportsLater)
	return nil
}

// prepare is what comes before anything is opened.
func (n *Node) prepare() error {
	cfg := &n.cfg
	n.account, _ = keyid.ParseAccount([]byte(cfg.Account))
	if cfg.Clock != nil {
		n.clock = *cfg.Clock
	}
	if err := aesgcm.Configure(aesgcm.Options{Portable: cfg.PortableCrypto}); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	// It was there before, then. No refusal: volumes of container hosts are often so.
	if info, err := os.Stat(cfg.DataDir); err == nil && info.Mode()&0o022 != 0 {
		n.log.Warn("others can write the data directory, and so put files of theirs in place of what is in it", "dir", cfg.DataDir, "mode", info.Mode().Perm().String())
	}
	var err error
	if n.shape != data {
		n.replicationTLS, err = cfg.Replication.readTLS(n.log)
	}
	return err
}

// listenForClients makes the data plane, which answers probes only until startData. lease is nil where there is one process.
func (n *Node) listenForClients(lease *fence.Lease) error {
	cfg := &n.cfg
	attestationRoots, err := n.readAttestationRoots(cfg.AttestationRoots)
	if err != nil {
		return err
	}
	if n.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return errors.Join(err, store.InUse(cfg.DataDir)) // most often another keyplane on the same directory
	}
	if n.data, err = dataplane.New(dataplane.Config{
		Regions: cfg.AllRegions(), Ready: n.ready, Logger: n.log, TLS: cfg.TLSCert != "", AttestationRoots: attestationRoots, Lease: lease,
		KeyCacheBytes: cfg.KeyCacheBytes, ConnsMax: cfg.ConnsMax, ConnsPerIPMax: cfg.ConnsPerIPMax, ReadTimeout: cfg.ReadTimeout, Now: n.clock.Now,
	}); err != nil {
		return errors.Join(err, n.ln.Close())
	}
	ln := n.ln
	if cfg.TLSCert != "" {
		if ln, err = withTLS(ln, cfg.TLSCert, cfg.TLSKey, handshakes, n.log); err != nil {
			n.data.Close()
			return errors.Join(err, n.ln.Close())
		}
	}
	go func() { n.served <- n.data.Serve(ln) }()
	n.onClose(n.drain)
	return nil
}

// openHSM opens the tokens and the audit log, whose key is in one of them; n.seal works from then on. The store is open.
func (n *Node) openHSM(ctx context.Context) error {
	cfg := &n.cfg
	if err := n.pin(ctx, "account", cfg.Account, "belongs to account %s, not %s"); err != nil {
		return err
	}
	if err := n.pinRegions(ctx); err != nil {
		return err
	}
	if err := n.rootPinned(ctx); err != nil {
		return err
	}
	n.phase("starting: the HSM is not open")
	var err error
	if n.tokens, err = openTokens(cfg); err != nil {
		return err
	}
	n.onClose(func() { n.logIf("closing the tokens", closeTokens(n.tokens)) })
	if n.shards, err = hsm.NewShards(hsm.ShardsConfig{
		Tokens: n.tokens, SessionsPerToken: sessionsPerToken(cfg, n.tokens), RoundMax: cfg.RoundMax, RoundTimeout: cfg.RoundTimeout, VerifyEvery: cfg.VerifyRounds, Logger: n.log,
	}); err != nil {
		return err
	}
	n.onClose(n.shards.Close)
	if n.batcher, err = batch.New(batch.Config{
		Shards: n.shards.Len(), RoundMax: cfg.RoundMax, QueueMax: cfg.QueueMax, WaitMax: cfg.QueueTimeMax,
	}, n.shards.Run); err != nil {
		return err
	}
	n.onClose(n.batcher.Close)
	if err := n.pinRoot(ctx); err != nil {
		return err
	}
	n.dispatch = &hsm.Dispatch{Shards: n.shards, Do: n.batcher.Do, Full: batch.ErrFull, QueueTimeMax: cfg.QueueTimeMax + cfg.RoundTimeout}
	n.insist = &hsm.Dispatch{Shards: n.shards, Do: n.batcher.Insist, Full: batch.ErrFull, QueueTimeMax: insistTime}
	n.seal.ready(n.insist.Run, n.shards.Primary())
	n.phase("starting: the store is not authenticated")
	if err := n.authenticate(ctx); err != nil {
		return err
	}
	if err := n.openAuditKey(ctx); err != nil {
		return err
	}
	n.phase("starting: the audit log is not open")
	n.appendTo, err = n.openAudit(ctx)
	return err
}

func (n *Node) openKeyRing() error {
	n.phase("starting: the HSM is asked what keys it makes")
	return n.openKeys(n.seal)
}

// openPrincipals makes the table of who may sign, and loads it. spread is nil where there is one process.
func (n *Node) openPrincipals(ctx context.Context, spread func()) error {
	n.phase("starting: credentials are not loaded")
	var err error
	if n.principals, err = iam.NewTable(iam.TableConfig{Store: n.store, Region: n.cfg.Region, Spread: spread, Spare: n.split != nil, Now: n.clock.Now, Logger: n.log}); err != nil {
		return err
	}
	if err := n.principals.Load(ctx); err != nil {
		return err
	}
	n.verifier, err = newVerifier(n.cfg.AllRegions(), n.principals)
	return err
}

// told is what the data plane reads the store by.
func (n *Node) told() dataplane.Records {
	if n.split == nil {
		return n.store
	}
	return settledRecords{n.store, n.split.settler}
}

// startData has the data plane serve.
func (n *Node) startData(control controlCall, managed managedCall) error {
	return n.data.Start(dataplane.Parts{
		Verifier: n.verifier, Records: n.told(), Run: n.dispatch.Run, Again: n.dispatch.Again, Load: n.insist.Run, Keys: n.keys, KeyStores: dataKeyStores{n.keyStores}, Audit: n.appendTo, Quota: n.charge, Control: control,
		Managed: managed,
	})
}

// What the data plane asks of the control plane: dataplane.Parts.Control and Managed.
type (
	controlCall func(region int, r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (status int, body []byte)
	managedCall func(region int, r *sigv4.Request, requestID string, w *authz.Caller, alias string) error
)

// openControl makes the control plane of each Region.
func (n *Node) openControl(ctx context.Context, lastUses controlplane.LastUses, publisher func(region string) controlplane.Publisher) error {
	query, err := iam.NewServer(iam.ServerConfig{
		Table: n.principals, First: n.account, Regions: n.cfg.AllRegions(), Logger: n.log, Keys: n.simulated,
	})
	if err != nil {
		return err
	}
	replications, err := n.openReplication(ctx)
	if err != nil {
		return err
	}
	var lease *fence.Lease // for ever
	var applied func() int64
	var spreadAt func(context.Context, int64)
	if n.split != nil {
		spreadAt = func(ctx context.Context, revision int64) { n.barrier.Wait(ctx, revision) } // nor is n.barrier
		lease, applied = n.split.lease, func() int64 { return n.split.follower.Applied() }     // no request comes before it is there
	}
	wrapping := new(controlplane.WrappingSeats)
	for _, at := range n.regions {
		if at.control, err = controlplane.New(controlplane.Config{
			Region: at.name, Store: n.store, Verifier: n.verifier, Publisher: publisher(at.name), Principals: n.principals, Lease: lease, Applied: applied, SpreadAt: spreadAt, IAM: query, Quotas: at.limits, Audit: n.appendTo, Logger: n.log,
			Random: random(n.dispatch.Run), Root: func() [8]byte { return n.shards.Primary() }, Keys: n.ring(), KeyStores: n.keyStores, Sealer: n.seal, Wrapping: wrapping, LastUses: lastUses,
			Replication: replications[at.name], Now: n.clock.Now, Running: n.clock.Running, WorkInterval: n.clock.Work,
		}); err != nil {
			return err
		}
	}
	return nil
}
