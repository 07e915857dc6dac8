package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/quotas"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/aesgcm"
	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// checkEvery is how old the verdict that /readyz gives may be: anybody can ask, and a check reads the store.
const checkEvery = time.Second

// drainTimeout is how long Close waits for requests in flight.
const drainTimeout = 10 * time.Second

// insistTime is how long a job that others wait for may wait for its round: a start must not fail on a busy machine.
const insistTime = 5 * time.Second

// Node is one running keyplane process.
type Node struct {
	cfg   Config
	log   *slog.Logger
	ln    net.Listener
	data  *dataplane.Server
	undo  []func() // reverse order of Start
	state atomic.Pointer[string]

	checking sync.Mutex // guards the verdict of the last check
	checked  time.Time
	verdict  error

	store    *store.Store
	tokens   []hsm.Token
	audit    *hsm.AuditKey
	records  *audit.Log     // nil: off
	lastUses *lastuse.Index // nil: off
	shards   *hsm.Shards
	batcher  *batch.Batcher[hsm.Job]

	keys       *hsm.KeyRing
	keyBatcher *batch.Batcher[hsm.KeyJob] // nil where no token offers keys

	served chan error // the data plane's end
	once   sync.Once
}

// Start brings a node up and returns when it serves. The configuration has its defaults and is valid.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) {
	n := &Node{cfg: cfg, log: log, served: make(chan error, 1)}
	n.phase("starting")
	if err := n.start(ctx); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// phase says why /readyz is not 200 yet.
func (n *Node) phase(text string) { n.state.Store(&text) }

// ready is the answer of /readyz.
func (n *Node) ready() error {
	if p := n.state.Load(); p != nil {
		return errors.New(*p)
	}
	n.checking.Lock()
	defer n.checking.Unlock()
	if time.Since(n.checked) < checkEvery {
		return n.verdict
	}
	n.verdict = n.check()
	n.checked = time.Now()
	return n.verdict
}

// check asks the parts. What it returns is for everybody to read: it names the part, and the log has the cause.
func (n *Node) check() error {
	if err := n.shards.Healthy(); err != nil {
		n.log.Warn("not ready", "error", err)
		return errors.New("the HSM does not serve")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := n.store.Ready(ctx); err != nil {
		n.log.Warn("not ready", "error", err)
		return errors.New("the store does not answer")
	}
	if n.records != nil {
		if err := n.records.Err(); err != nil {
			n.log.Warn("not ready", "error", err)
			return errors.New("the audit log cannot be written")
		}
	}
	return nil
}

// pin holds a fact about the data directory to what its first start made it.
func (n *Node) pin(ctx context.Context, name, value, refusal string) error {
	kept, err := n.store.Pin(ctx, name, value)
	if err == nil && kept != value {
		err = fmt.Errorf("node: the data directory %s "+refusal, n.cfg.DataDir, kept, value)
	}
	return err
}

// rootPinned checks, before any token is opened or made, that the soft token is not taken for the token this directory's keys are in.
func (n *Node) rootPinned(ctx context.Context) error {
	kept, err := n.store.Pinned(ctx, "root")
	if err != nil || kept == "" || len(n.cfg.HSM) > 0 {
		return err
	}
	if _, err := os.Stat(filepath.Join(softTokenDir(&n.cfg), "token.json")); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("node: the keys of the data directory %s are in another token, with root %s: give its URI with --hsm", n.cfg.DataDir, kept)
	}
	return nil
}

// pinRoot refuses tokens none of which holds the root that the first start found.
func (n *Node) pinRoot(ctx context.Context) error {
	primary := n.shards.Primary()
	kept, err := n.store.Pin(ctx, "root", hex.EncodeToString(primary[:]))
	if err != nil {
		return err
	}
	for _, r := range n.shards.Roots() {
		if hex.EncodeToString(r[:]) == kept {
			return nil
		}
	}
	return fmt.Errorf("node: the keys of the data directory %s are under root %s, and no token given holds it", n.cfg.DataDir, kept)
}

func (n *Node) onClose(f func()) { n.undo = append(n.undo, f) }

func (n *Node) start(ctx context.Context) error {
	cfg := &n.cfg
	account, _ := keyid.ParseAccount([]byte(cfg.Account))
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
	attestationRoots, err := n.readAttestationRoots(cfg.AttestationRoots)
	if err != nil {
		return err
	}
	if n.ln, err = net.Listen("tcp", cfg.Listen); err != nil {
		return errors.Join(err, store.InUse(cfg.DataDir)) // most often another keyplane on the same directory
	}
	if n.data, err = dataplane.New(dataplane.Config{
		Region: cfg.Region, Ready: n.ready, Logger: n.log, TLS: cfg.TLSCert != "", AttestationRoots: attestationRoots,
		KeyCacheBytes: cfg.KeyCacheBytes, ConnsMax: cfg.ConnsMax, ConnsPerIPMax: cfg.ConnsPerIPMax, ReadTimeout: cfg.ReadTimeout,
	}); err != nil {
		return errors.Join(err, n.ln.Close())
	}
	ln := n.ln
	if cfg.TLSCert != "" {
		if ln, err = withTLS(ln, cfg.TLSCert, cfg.TLSKey, handshakes); err != nil {
			n.data.Close()
			return errors.Join(err, n.ln.Close())
		}
	}
	go func() { n.served <- n.data.Serve(ln) }()
	n.onClose(n.drain)

	n.phase("starting: the store is not open")
	seal := &sealer{}
	if n.store, err = store.OpenEmbedded(ctx, store.EmbeddedConfig{Dir: cfg.DataDir, Logger: n.log, Sealer: seal}); err != nil {
		return err
	}
	n.onClose(func() { n.logIf("closing the store", n.store.Close()) })

	if err := n.pin(ctx, "account", cfg.Account, "belongs to account %s, not %s"); err != nil {
		return err
	}
	if err := n.pin(ctx, "region", cfg.Region, "holds the keys of Region %[2]s: start it with --region %[2]s, not %[3]s"); err != nil {
		return err
	}
	if err := n.rootPinned(ctx); err != nil {
		return err
	}
	n.phase("starting: the HSM is not open")
	if n.tokens, err = openTokens(cfg); err != nil {
		return err
	}
	n.onClose(func() { n.logIf("closing the tokens", closeTokens(n.tokens)) })
	if n.shards, err = hsm.NewShards(hsm.ShardsConfig{
		Tokens: n.tokens, SessionsPerToken: sessionsPerToken(cfg, n.tokens), RoundMax: cfg.RoundMax, RoundTimeout: cfg.RoundTimeout, Logger: n.log,
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
	if err := n.openAuditKey(ctx); err != nil {
		return err
	}
	n.phase("starting: the audit log is not open")
	appendRecord, err := n.openAudit(ctx)
	if err != nil {
		return err
	}
	// The queue's own estimate holds requests to QueueTimeMax. Those it let in are served late rather than not at all, unless a call hangs.
	dispatch := &hsm.Dispatch{Shards: n.shards, Do: n.batcher.Do, Full: batch.ErrFull, QueueTimeMax: cfg.QueueTimeMax + cfg.RoundTimeout}
	// What others wait for, the loading of a key or an access key, is not refused by an overload.
	insist := &hsm.Dispatch{Shards: n.shards, Do: n.batcher.Insist, Full: batch.ErrFull, QueueTimeMax: insistTime}
	seal.ready(insist.Run, n.shards.Primary())
	n.phase("starting: the HSM is asked what keys it makes")
	if err := n.openKeys(seal); err != nil {
		return err
	}

	n.phase("starting: credentials are not loaded")
	principals, err := iam.NewTable(iam.TableConfig{Store: n.store, Region: cfg.Region})
	if err != nil {
		return err
	}
	if err := principals.Load(ctx); err != nil {
		return err
	}
	if err := ensureAdmin(ctx, principals, n.store, account, cfg.DataDir); err != nil {
		return err
	}
	n.background("principals", principals.Run)
	n.phase("starting: quotas are not loaded")
	limits, err := quotas.New(quotas.Config{
		Store: n.store, Region: cfg.Region, Profile: quota.Profile(cfg.Quotas), First: account, TLS: cfg.TLSCert != "", Logger: n.log,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(n.store.CountKeys(ctx, cfg.Region), limits.Load(ctx)); err != nil {
		return err
	}
	n.background("quotas", limits.Run)
	// IAM and the global endpoint of STS are signed for us-east-1, wherever they are.
	global := []string{cfg.Region}
	if cfg.Region != "us-east-1" {
		global = append(global, "us-east-1")
	}
	verifier, err := sigv4.New(sigv4.Config{
		Regions: []string{cfg.Region}, Keys: principals, Others: []sigv4.Service{
			{Name: "sts", Regions: global}, {Name: "iam", Regions: global}, {Name: quota.SigningName, Regions: []string{cfg.Region}},
		},
	})
	if err != nil {
		return err
	}
	var control *controlplane.Server // asked only once it is there: requests come after Start
	query, err := iam.NewServer(iam.ServerConfig{Table: principals, First: account, Region: cfg.Region, TLS: cfg.TLSCert != "", Logger: n.log,
		Keys: func(ctx context.Context, ref keyid.Ref) (*iam.Key, error) { return control.Simulated(ctx, ref) },
	})
	if err != nil {
		return err
	}
	var lastUses controlplane.LastUses // none
	if n.lastUses != nil {
		lastUses = n.lastUses
	}
	control, err = controlplane.New(controlplane.Config{
		Region: cfg.Region, Store: n.store, Verifier: verifier, Publisher: publisher{n.data}, Principals: principals, IAM: query, Quotas: limits, Audit: appendRecord, Logger: n.log,
		Random: random(dispatch.Run), Root: func() [8]byte { return n.shards.Primary() }, NewKey: n.newKey, LastUses: lastUses,
	})
	if err != nil {
		return err
	}
	n.background("deletion worker", control.Run)
	if err := n.data.Start(dataplane.Parts{
		Verifier: verifier, Records: n.store, Run: dispatch.Run, Load: insist.Run, Keys: n.keys, Audit: appendRecord, Quota: limits.Charge,
		Control: func(r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (int, []byte) {
			resp := control.Serve(context.Background(), &controlplane.Request{
				Signed: r, RequestID: requestID, SourceIP: sourceIP, SecureTransport: cfg.TLSCert != "", TLS: tls,
			})
			return resp.Status, resp.Body
		},
	}); err != nil {
		return err
	}
	if cfg.StatsSocket != "" {
		if err := n.serveStats(cfg.StatsSocket); err != nil {
			return err
		}
	}
	n.state.Store(nil)
	return nil
}

// random fills slices from the HSM for the control plane. An error wraps the exception that the data plane would answer.
func random(run func(*hsm.Job, time.Time) error) func([]byte) error {
	return func(b []byte) error {
		j := hsm.Job{Random: b}
		if err := run(&j, time.Now()); err != nil {
			return fmt.Errorf("%w: %w", kmsapi.E(dataplane.CodeOf(err)), err)
		}
		return nil
	}
}

// background runs a worker until Close.
func (n *Node) background(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.log.Error(name+" ended", "error", err)
			n.phase(name + " has ended")
		}
	}()
	n.onClose(func() { cancel(); <-ended })
}

// publisher tells the data plane of this process what the control plane changed.
type publisher struct {
	*dataplane.Server
}

func (p publisher) AccessKeyChanged(string) {} // iam.Table has it before it calls

// Addr is the address that clients connect to.
func (n *Node) Addr() string { return n.ln.Addr().String() }

// Tokens describes the tokens in use.
func (n *Node) Tokens() []hsm.TokenInfo {
	var infos []hsm.TokenInfo
	for _, t := range n.tokens {
		infos = append(infos, t.Info())
	}
	return infos
}

// CredentialsPath is where the administrator's credentials are.
func (n *Node) CredentialsPath() string { return filepath.Join(n.cfg.DataDir, CredentialsFile) }

// Wait returns when the listener has failed or the node was closed.
func (n *Node) Wait() error {
	err := <-n.served
	n.served <- err
	return err
}

func (n *Node) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	n.logIf("draining", n.data.Shutdown(ctx))
	_ = n.ln.Close()
	select {
	case err := <-n.served:
		n.served <- err
		n.logIf("serving", err)
	case <-time.After(drainTimeout):
		n.log.Error("the listener does not end; it is left behind")
	}
	n.data.Close()
}

func (n *Node) logIf(what string, err error) {
	if err != nil {
		n.log.Error(what, "error", err)
	}
}

// Close drains: it answers what is in flight, then ends every part. It may be called more than once.
func (n *Node) Close() {
	n.once.Do(func() {
		n.phase("shutting down")
		// The data plane goes first although it was started first: requests in flight need everything else.
		for i := range n.undo {
			if i == 0 {
				n.undo[0]()
			} else {
				n.undo[len(n.undo)-i]()
			}
		}
	})
}

// NewLogger makes the process's logger: text lines on stderr.
func NewLogger(level string) *slog.Logger {
	l, err := logLevel(level)
	if err != nil {
		l = slog.LevelInfo
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
}

func logLevel(s string) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(s)); err != nil {
		return 0, fmt.Errorf("node: %w", err)
	}
	return l, nil
}
