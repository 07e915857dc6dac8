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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/barrier"
	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/controlplane/keystores"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/lastuse"
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
	shape shape
	log   *slog.Logger
	ln    net.Listener      // for clients; of a control plane for members of the cluster
	data  *dataplane.Server // nil without a data plane
	undo  []func()          // reverse order of Start
	state atomic.Pointer[string]

	checking sync.Mutex // guards the verdict of the last check
	checked  time.Time
	verdict  error

	store         *store.Store
	tokens        []hsm.Token
	clusterTokens cluster.Tokens
	audit         *hsm.AuditKey
	records       *audit.Log     // nil: off
	lastUses      *lastuse.Index // nil: off
	shards        *hsm.Shards
	batcher       *batch.Batcher[hsm.Job]

	replicationAddr string // "": no listener
	replicationTLS  replicationTLS
	xks             xksProxy

	keys       *hsm.KeyRing
	keyBatcher *batch.Batcher[hsm.KeyJob] // nil where no token offers keys

	keyStores *keystores.Registry

	barrier    *barrier.Barrier // of a control plane of a cluster; else nil
	clock      Clock            // nil functions: this machine's
	account    keyid.Account
	seal       *sealer
	dispatch   *hsm.Dispatch             // The queue's own estimate holds requests to QueueTimeMax. Those it let in are served late rather than not at all, unless a call hangs.
	insist     *hsm.Dispatch             // What others wait for, the loading of a key or an access key, is not refused by an overload.
	appendTo   func(record []byte) error // the audit log; nil: off
	principals *iam.Table
	verifier   *sigv4.Verifier

	regions []*region // the home Region first

	split *splitPart // nil: this is the only process

	served chan error // the data plane's end
	once   sync.Once
}

// Start brings a node up and returns when it serves. The configuration has its defaults and is valid.
func Start(ctx context.Context, cfg Config, log *slog.Logger) (*Node, error) {
	return start(ctx, cfg, whole, log, (*Node).start)
}

func start(ctx context.Context, cfg Config, s shape, log *slog.Logger, steps func(*Node, context.Context) error) (*Node, error) {
	n := &Node{cfg: cfg, shape: s, log: log, served: make(chan error, 1), seal: &sealer{}}
	n.phase("starting")
	if err := steps(n, ctx); err != nil {
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
	if err := n.shards.Serves(); err != nil {
		n.log.Warn("not ready", "error", err)
		return errors.New("the HSM does not serve")
	}
	return n.checkState()
}

// checkState is check but for the HSM.
func (n *Node) checkState() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if n.split != nil {
		if !n.split.lease.Valid() {
			return errors.New("this process does not know what the others do")
		}
	} else if err := n.store.Ready(ctx); err != nil {
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

// stateAt is what has the state: the data directory, or the store of all processes.
func (n *Node) stateAt() string {
	if n.shape == whole {
		return "the data directory " + n.cfg.DataDir
	}
	return "the store at " + strings.Join(n.cfg.Etcd.Endpoints, ", ")
}

// pin holds a fact about all that is in the store to what the first start made it.
func (n *Node) pin(ctx context.Context, name, value, refusal string) error {
	kept, err := n.store.Pin(ctx, name, value)
	if err == nil && kept != value {
		err = fmt.Errorf("node: %s "+refusal, n.stateAt(), kept, value)
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
		if n.shape != whole {
			return fmt.Errorf("node: the keys of %s are in another token, with root %s: give the URI of one with that root with --hsm, or copy the soft token that has it to %s", n.stateAt(), kept, softTokenDir(&n.cfg))
		}
		return fmt.Errorf("node: the keys of %s are in another token, with root %s: give its URI with --hsm", n.stateAt(), kept)
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
	return fmt.Errorf("node: the keys of %s are under root %s, and no token given holds it", n.stateAt(), kept)
}

// authenticate opens the key by which the store's values are verified, and says what to do where the store is not taken.
func (n *Node) authenticate(ctx context.Context) error {
	trust := store.Trust{Plain: n.cfg.AcceptPlainStore, Older: n.cfg.AcceptOlderStore}
	err := n.store.Authenticate(ctx, trust)
	switch {
	case errors.Is(err, store.ErrPlain):
		return fmt.Errorf("node: %w: if nobody else can have written to %s since, start once with --accept-plain-store", err, n.stateAt())
	case errors.Is(err, store.ErrOlder) && !trust.Older:
		return fmt.Errorf("node: %w: docs/backup.md says what to do", err)
	}
	return err
}

func (n *Node) onClose(f func()) { n.undo = append(n.undo, f) }

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

// Work does at once what is due by the clock, which the workers do within a minute.
func (n *Node) Work(ctx context.Context) error {
	var errs []error
	for _, at := range n.regions {
		errs = append(errs, at.control.Work(ctx))
	}
	return errors.Join(errs...)
}

// Addr is the address that clients connect to; of a control plane, members of the cluster.
func (n *Node) Addr() string { return n.ln.Addr().String() }

// ID is the name of this process in its cluster, "" without one.
func (n *Node) ID() string {
	if n.split == nil {
		return ""
	}
	return n.split.id
}

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
