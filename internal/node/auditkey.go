package node

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
)

// auditTimeout is how long a token may take to sign a checkpoint, a new session and login included.
const auditTimeout = 5 * time.Second

// AuditKeyName names the key that signs the audit log's checkpoints: in their signature lines and in the verifier key.
func AuditKeyName(c *Config) string { return "keyplane/" + c.Region + "/" + c.Account }

// openAuditKey finds the token that signs the audit log. The log keeps the key that its first start took: of several tokens, the one that has it.
func (n *Node) openAuditKey(ctx context.Context) error {
	name := AuditKeyName(&n.cfg)
	kept, err := n.store.Pinned(ctx, "audit-key")
	if err != nil {
		return err
	}
	var want *ecdsa.PublicKey
	if kept != "" {
		if _, want, err = auditkey.ParseVerifierKey(kept); err != nil {
			return fmt.Errorf("node: the key that the data directory %s keeps for its audit log: %w", n.cfg.DataDir, err)
		}
	}
	key, err := hsm.OpenAuditKey(n.tokens, want, auditTimeout)
	if errors.Is(err, hsm.ErrNoAuditKey) && want != nil {
		return fmt.Errorf("node: the audit log of the data directory %s is signed with the key %s, and no token given holds it", n.cfg.DataDir, kept)
	}
	if errors.Is(err, hsm.ErrNoAuditKey) {
		return fmt.Errorf("node: no token can sign the audit log. Run keyplane hsm init again: it makes the missing key, or says why it cannot, and then "+
			"another token has to be given with --hsm: %w", err)
	}
	if err != nil {
		return err
	}
	n.audit = key
	n.onClose(func() { n.logIf("closing the audit key", key.Close()) })
	text, err := auditkey.VerifierKey(name, key.Public())
	if err != nil {
		return err
	}
	return n.pin(ctx, "audit-key", text, "has an audit log signed with the key %s, not %s")
}
