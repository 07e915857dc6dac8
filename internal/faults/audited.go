package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/cluster"
)

// answered are the requests that were answered with a success.
type answered struct {
	mu sync.Mutex
	of map[string]string // operations by request ID
}

func (a *answered) add(op string, o *outcome) {
	if !o.ok() || o.id == "" {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of == nil {
		a.of = map[string]string{}
	}
	a.of[o.id] = op
}

// checkAudit looks at the audit logs of all nodes, which have ended: each log verifies, and each success has a record that says the same.
func (r *run) checkAudit(ctx context.Context, keyplane string) (records int, err error) {
	recorded := make(map[string]string, len(r.answered.of))
	for _, n := range r.Keyplanes() {
		if n.AuditDir == "" {
			continue
		}
		if err := r.verifyLog(n, keyplane); err != nil {
			r.found(logBroken, "%v", err)
		}
		err := audit.Search(ctx, n.AuditDir, audit.Filter{}, func(record []byte) bool {
			var v struct {
				RequestID string `json:"requestID"`
				EventName string `json:"eventName"`
				ErrorCode string `json:"errorCode"`
			}
			if err := json.Unmarshal(record, &v); err != nil {
				r.found(logBroken, "%s: %v: %s", n.Name, err, record)
				return true
			}
			records++
			if v.ErrorCode == "" {
				recorded[v.RequestID] = v.EventName
			}
			return true
		})
		if err != nil {
			return records, fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	for id, op := range r.answered.of {
		if recorded[id] != op {
			r.found(unrecorded, "%s %s was answered with a success, and its record is %q", op, id, recorded[id])
		}
	}
	return records, nil
}

// verifyLog has `keyplane audit verify` look at a log, with the public key that the node's token tells.
func (r *run) verifyLog(n *cluster.Node, keyplane string) error {
	out, err := n.Command(keyplane, "audit", "public-key", "--data-dir", n.Dir, "--region", cluster.Region, "--account", cluster.Account, "--hsm", n.URI).Output()
	if err != nil {
		return fmt.Errorf("%s: public-key: %w", n.Name, err)
	}
	key, _, _ := strings.Cut(string(out), "\n")
	if out, err := exec.Command(keyplane, "audit", "verify", "--dir", n.AuditDir, "--public-key", key).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: verify: %w: %s", n.Name, err, out)
	}
	return nil
}
