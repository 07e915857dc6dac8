package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ErrCheckpoint says that a log's newest checkpoint is another than the writer expected: somebody else writes this log, or it was put back
// to an older state. Nothing was written.
var ErrCheckpoint = errors.New("store: the log's newest checkpoint is another than expected")

const (
	auditLogMax   = 256  // bytes of a log's name
	checkpointMax = 8192 // bytes of a checkpoint with its signatures
)

// checkpointKey refuses names that are not one word of printable ASCII.
func checkpointKey(log string) (string, error) {
	for _, c := range []byte(log) {
		if c <= ' ' || c > '~' {
			return "", fmt.Errorf("store: %q cannot name an audit log", log)
		}
	}
	if log == "" || len(log) > auditLogMax {
		return "", fmt.Errorf("store: the name of an audit log has 1 to %d bytes", auditLogMax)
	}
	return root + "audit/checkpoint/" + log, nil
}

// AuditCheckpoint reads the newest checkpoint of an audit log; nil if there is none. Its signature is the caller's to verify.
func (s *Store) AuditCheckpoint(ctx context.Context, log string) ([]byte, error) {
	key, err := checkpointKey(log)
	if err != nil {
		return nil, err
	}
	value, _, err := s.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return value, err
}

// PutAuditCheckpoint makes newest a log's newest checkpoint if that is still old (nil: there was none). ErrCheckpoint if it is neither old nor
// newest already, ErrUncertain if etcd's answer was lost: the same call may be made again then.
func (s *Store) PutAuditCheckpoint(ctx context.Context, log string, old, newest []byte) error {
	key, err := checkpointKey(log)
	if err != nil {
		return err
	}
	if len(newest) == 0 || len(newest) > checkpointMax {
		return fmt.Errorf("store: a checkpoint has 1 to %d bytes", checkpointMax)
	}
	at := int64(0)
	switch kept, revision, err := s.get(ctx, key); {
	case err == nil && bytes.Equal(kept, newest):
		return nil // an earlier call of which the answer was lost
	case err == nil && bytes.Equal(kept, old):
		at = revision
	case err == nil, errors.Is(err, ErrNotFound) && len(old) > 0:
		return ErrCheckpoint
	case errors.Is(err, ErrDamaged):
		return err
	case !errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	ok, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(key, at)}, []clientv3.Op{clientv3.OpPut(key, string(newest))})
	if err == nil && !ok {
		// Another came between, which may be an earlier call of which the answer was lost.
		if kept, _, err := s.get(ctx, key); err != nil || !bytes.Equal(kept, newest) {
			return errors.Join(ErrCheckpoint, err)
		}
	}
	return err
}
