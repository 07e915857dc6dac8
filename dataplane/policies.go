package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"

	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// policyTable shares compiled key policies between the keys that have the same one: most have their account's default policy.
type policyTable struct {
	mu    sync.Mutex
	byDoc map[[sha256.Size]byte]*policy.Policy
}

// policiesMax bounds the table. Beyond it a policy is its key's alone; the table starts anew, so that what is common comes back.
const policiesMax = 4096

// compile gives the compiled policy of a record. A document that does not parse allows nobody anything: the control plane stores none, so it
// is damaged.
func (t *policyTable) compile(rec *snapshot.Record, warn func(string, error, ...any)) *policy.Policy {
	name := policyName(rec)
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byDoc[name]; p != nil {
		return p
	}
	p, err := snapshot.CompilePolicy(rec.Policy, rec.Bound, rec.Account)
	if err != nil {
		warn("a key policy does not parse; nobody may use the key", err, "key", rec.ID.String())
		return &policy.Policy{}
	}
	if t.byDoc == nil || len(t.byDoc) >= policiesMax {
		t.byDoc = map[[sha256.Size]byte]*policy.Policy{}
	}
	t.byDoc[name] = p
	return p
}

// policyName is a hash of a document and of whom its principals are.
func policyName(rec *snapshot.Record) [sha256.Size]byte {
	h := sha256.New()
	part := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	if rec.Bound == nil { // stored before policies were evaluated: what it means depends on the account
		part(rec.Account.String())
	}
	part(string(rec.Policy))
	for _, arn := range slices.Sorted(maps.Keys(rec.Bound)) {
		part(arn)
		part(rec.Bound[arn])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
