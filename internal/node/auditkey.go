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
	pin, log := "audit-key", "the audit log of "+n.stateAt()
	if n.split != nil { // each process has a log of its own, and a token
		pin, log = pin+"/"+n.auditLog(), "the audit log of "+n.auditLog()
	}
	kept, err := n.store.Pinned(ctx, pin)
	if err != nil {
		return err
	}
	var want *ecdsa.PublicKey
	if kept != "" {
		if _, want, err = auditkey.ParseVerifierKey(kept); err != nil {
			return fmt.Errorf("node: the key that the store keeps for %s: %w", log, err)
		}
	}
	key, err := hsm.OpenAuditKey(n.tokens, want, auditTimeout)
	if errors.Is(err, hsm.ErrNoAuditKey) && want != nil {
		return fmt.Errorf("node: %s is signed with the key %s, and no token given holds it", log, kept)
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
	if kept, err = n.store.Pin(ctx, pin, text); err == nil && kept != text {
		err = fmt.Errorf("node: %s is signed with the key %s, not %s", log, kept, text)
	}
	return err
}
