package store

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/go-json-experiment/json"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Policy is a key policy as it was put.
type Policy struct {
	Document []byte
	// Bound is the unique ID of each principal that the document names, by ARN, as it was then. nil: the policy was put before these were
	// kept, and names its principals by ARN alone.
	Bound    map[string]string
	Revision int64 // etcd mod revision; not part of the record
}

// policyFormat is the first byte of a policy with bindings: then come the bindings' length, four bytes, the bindings as JSON, and the
// document's bytes, so that what GetKeyPolicy shows is what was put. recordFormat is the older form: the document alone.
const policyFormat = 2

func encodePolicy(p *Policy) (string, error) {
	if p.Bound == nil {
		return string(append([]byte{recordFormat}, p.Document...)), nil
	}
	bound, err := json.Marshal(p.Bound, json.Deterministic(true))
	if err != nil {
		return "", fmt.Errorf("store: encoding a policy's principals: %w", err)
	}
	b := binary.BigEndian.AppendUint32([]byte{policyFormat}, uint32(len(bound)))
	return string(append(append(b, bound...), p.Document...)), nil
}

func decodePolicy(value []byte, revision int64) (Policy, error) {
	p := Policy{Revision: revision}
	switch {
	case len(value) == 0:
		return Policy{}, ErrDamaged
	case value[0] == recordFormat:
		p.Document = value[1:]
		return p, nil
	case value[0] != policyFormat || len(value) < 5:
		return Policy{}, ErrDamaged
	}
	n, rest := binary.BigEndian.Uint32(value[1:]), value[5:]
	if uint64(n) > uint64(len(rest)) || json.Unmarshal(rest[:n], &p.Bound) != nil || p.Bound == nil {
		return Policy{}, ErrDamaged
	}
	p.Document = rest[n:]
	return p, nil
}

// PutPolicy replaces a key's policy by the one that decide gives for the key as it is. decide's error ends it and comes back as it is.
func (s *Store) PutPolicy(ctx context.Context, n KeyName, decide func(*Key) (Policy, error)) error {
	unlock, err := s.keys.lock(ctx, n.key())
	if err != nil {
		return err
	}
	defer unlock()
	return retry(ctx, func() (bool, error) {
		k, err := s.Key(ctx, n)
		if err != nil {
			return false, err
		}
		defer k.Wipe()
		p, err := decide(k)
		if err != nil {
			return false, err
		}
		value, err := encodePolicy(&p)
		if err != nil {
			return false, err
		}
		ok, _, err := s.commit(ctx, k.asRead(), []clientv3.Op{clientv3.OpPut(n.policyKey(), value)})
		return ok, err
	})
}
