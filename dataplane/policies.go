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

// policiesMax and sharedMax, in bytes of a document, bound the table to about 60 MB. When it is full it starts anew, so that what is common comes
// back; longer documents are their key's alone.
const (
	policiesMax = 1024
	sharedMax   = 2048
)

// compiledFactor is how many bytes a byte of a document takes when it is compiled, at most: a list of short wildcards.
const compiledFactor = 30

// compile gives the compiled policy of a record, and its size where it is not one that other keys count already. A document that does not parse
// allows nobody anything: the control plane stores none, so it is damaged, or an earlier version stored it.
func (t *policyTable) compile(rec *snapshot.Record, warn func(string, error, ...any)) (p *policy.Policy, size int64) {
	name := policyName(rec)
	t.mu.Lock()
	p = t.byDoc[name]
	t.mu.Unlock()
	if p != nil {
		return p, 0
	}
	p, err := snapshot.CompilePolicy(rec.Policy, rec.Bound)
	if err != nil {
		warn("a key policy does not parse; nobody may use the key", err, "key", rec.ID.String())
		return &policy.Policy{}, 0
	}
	size = compiledFactor * int64(len(rec.Policy))
	if len(rec.Policy) > sharedMax {
		return p, size // rarely another key's
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byDoc == nil || len(t.byDoc) >= policiesMax {
		t.byDoc = map[[sha256.Size]byte]*policy.Policy{}
	}
	t.byDoc[name] = p
	return p, size
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
	if rec.Bound == nil { // stored before policies were evaluated: bound by ARN alone
		part("")
	}
	part(string(rec.Policy))
	for _, arn := range slices.Sorted(maps.Keys(rec.Bound)) {
		part(arn)
		part(rec.Bound[arn])
	}
	return [sha256.Size]byte(h.Sum(nil))
}
