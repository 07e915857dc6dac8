package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/planted"
)

// AuditConfig is the audit log of a process.
type AuditConfig struct {
	// Dir is where the log is. Default <data_dir>/audit. Not a place where something else writes.
	Dir string `yaml:"dir"`
	// Durability is what a record survives when the reply to its call leaves: fsync, a power cut; write, the end of the process but not of the
	// machine; off, nothing, because there are no records: for measurements. Default fsync.
	Durability string `yaml:"durability"`
	// Timeout is how long a record may take to be written before its call fails. A disk whose syncs take longer, now and then, makes calls fail.
	// Default 250ms.
	Timeout time.Duration `yaml:"timeout"`
	// SegmentBytes and SegmentAge say when a file of the log is sealed and compressed. Defaults 268435456 and 24h.
	SegmentBytes int64         `yaml:"segment_bytes"`
	SegmentAge   time.Duration `yaml:"segment_age"`
	// RetainBytes and RetainAge bound what is kept, oldest files first; hashes stay, so that the rest can be verified. Defaults 0: all is kept.
	RetainBytes int64         `yaml:"retain_bytes"`
	RetainAge   time.Duration `yaml:"retain_age"`
	// AcceptRollback starts with a log that is older than the newest checkpoint in the store, which is refused otherwise, and records that. For one
	// start: left in a file it accepts every later one. Default false.
	AcceptRollback bool `yaml:"accept_rollback"`
}

// auditOff is the durability of no records.
const auditOff = "off"

var durabilities = map[string]audit.Durability{"fsync": audit.Fsync, "write": audit.Write}

// auditLog is the name of this process's log in the store.
func (n *Node) auditLog() string {
	if n.split != nil {
		return n.split.role + "/" + n.split.id
	}
	return "serve"
}

// lastUsesEvery is how often the last uses of keys are saved. What comes after that is read from the audit log at the next start.
const lastUsesEvery = time.Minute

// openAudit opens the log and returns what appends to it.
func (n *Node) openAudit(ctx context.Context) (func([]byte) error, error) {
	cfg := &n.cfg.Audit
	if cfg.Durability == auditOff {
		n.log.Warn("calls leave no audit records: audit.durability is off")
		return nil, nil
	}
	name := AuditKeyName(&n.cfg)
	signer, err := auditkey.NewSigner(name, n.audit)
	if err != nil {
		return nil, err
	}
	verifier, err := auditkey.NewVerifier(name, n.audit.Public())
	if err != nil {
		return nil, err
	}
	var observe func(uint64, []byte) // of a control plane: none, since it uses no keys
	var from uint64
	if n.shape != control {
		now := time.Now
		if n.cfg.Clock != nil {
			now = n.cfg.Clock.Now
		}
		// A damaged file costs a look at the whole log.
		n.lastUses, err = lastuse.Open(filepath.Join(n.cfg.DataDir, "lastuse"), now())
		if err != nil {
			n.log.Warn("the last uses of keys are read from the audit log again", "error", err)
		}
		observe, from = n.lastUses.Observe, n.lastUses.Position()
	}
	auditLog := n.auditLog()
	n.records, err = audit.Open(ctx, audit.Config{
		Dir: cfg.Dir, Durability: durabilities[cfg.Durability], Timeout: cfg.Timeout, Origin: name + "/" + auditLog, Signer: signer, Verifier: verifier,
		Newest: func(ctx context.Context) ([]byte, error) { return n.store.AuditCheckpoint(ctx, auditLog) },
		Publish: func(ctx context.Context, old, newest []byte) error {
			return n.store.PutAuditCheckpoint(ctx, auditLog, old, newest)
		},
		SegmentBytes: cfg.SegmentBytes, SegmentAge: cfg.SegmentAge, RetainBytes: cfg.RetainBytes, RetainAge: cfg.RetainAge,
		AcceptRollback: cfg.AcceptRollback, Logger: n.log, Observe: observe, ObserveFrom: &from,
	})
	if errors.Is(err, audit.ErrRolledBack) {
		return nil, fmt.Errorf("node: the audit log in %s: %w. If that is meant, start once with --audit-accept-rollback", cfg.Dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("node: the audit log in %s: %w", cfg.Dir, err)
	}
	n.onClose(func() { n.logIf("closing the audit log", n.records.Close()) })
	if n.lastUses != nil {
		n.saveLastUses(n.lastUses)
	}
	return withBugs(func(record []byte) error { return n.records.Append(bytes.TrimSuffix(record, []byte{'\n'})) }), nil
}

// withBugs is what appends records, without the bugs that are planted in it unless it is a build with them.
func withBugs(add func([]byte) error) func([]byte) error {
	switch {
	case planted.Is(planted.AuditAfterReply):
		return func(record []byte) error {
			record = bytes.Clone(record)
			time.AfterFunc(100*time.Millisecond, func() { _ = add(record) })
			return nil
		}
	case planted.Is(planted.AuditLost):
		return func(record []byte) error {
			if planted.Every(100, planted.AuditLost) {
				return nil
			}
			return add(record)
		}
	}
	return add
}

// saveLastUses saves an index now and then, and when the node is closed.
func (n *Node) saveLastUses(x *lastuse.Index) {
	n.background("last uses", func(ctx context.Context) error {
		return x.Run(ctx, lastUsesEvery, func(err error) {
			n.log.Error("saving the last uses of keys failed; it is tried again", "error", err)
		})
	})
}

func (c *AuditConfig) defaults(dataDir string) {
	dflt(&c.Dir, filepath.Join(dataDir, "audit"))
	dflt(&c.Durability, audit.Fsync.String())
	dflt(&c.Timeout, 250*time.Millisecond)
	dflt(&c.SegmentBytes, 256<<20)
	dflt(&c.SegmentAge, 24*time.Hour)
}

func (c *AuditConfig) validate(bad func(format string, args ...any)) {
	if _, ok := durabilities[c.Durability]; !ok && c.Durability != auditOff {
		bad("audit.durability: %q is not fsync, write or off", c.Durability)
	}
	if c.Timeout < 10*time.Millisecond || c.Timeout > time.Minute {
		bad("audit.timeout: %v is not 10ms to 1m", c.Timeout)
	}
	if c.SegmentBytes < 1<<20 || c.SegmentAge < time.Minute {
		bad("audit.segment_bytes and audit.segment_age: at least 1048576 and 1m")
	}
	if c.RetainBytes < 0 || c.RetainAge < 0 {
		bad("audit.retain_bytes and audit.retain_age: 0 or more")
	}
}
