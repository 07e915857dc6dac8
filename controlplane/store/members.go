package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	memberPrefix = root + "member/"

	// memberTerm is how long a member that does not renew is one still. It is longer than anybody may answer without having renewed (fence.Term), by far: whoever
	// is no member any more has long stopped to answer.
	memberTerm = 10 * time.Second

	incarnationBytes = 16
)

// Roles of members.
const (
	ControlMember = "control"
	DataMember    = "data"
)

// ErrLeft says that a membership has ended. It cannot be renewed: the process joins again, as another incarnation.
var ErrLeft = errors.New("store: the membership has ended")

// Member is a process that answers from what it knows of the store (docs/planes.md). An incarnation is one membership, and never comes back.
type Member struct {
	Incarnation string // 32 hexadecimal digits, of NewIncarnation
	ID          string // of the node, for people
	Role        string // ControlMember or DataMember
	Joined      int64  // the revision at which it became a member; not part of the record
}

type storedMember struct {
	ID   string `json:"id"`
	Role string `json:"role"`
}

// NewIncarnation draws the name of an incarnation.
func NewIncarnation() string {
	var random [incarnationBytes]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

func validIncarnation(name string) bool {
	for _, c := range []byte(name) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return len(name) == 2*incarnationBytes
}

// Membership is a Member that this process is.
type Membership struct {
	Member
	store *Store
	lease clientv3.LeaseID
}

// memberFile has, in the directory of a process, the name of its membership. One that was killed is a member until its etcd lease ends, and each change waits for it as long
// as it may. The process that has the directory next ends that membership: it has the directory's lock, so that the one before has ended.
const memberFile = "member"

// succeed ends the membership of the process that had the directory before, once. What it cannot end, ends by itself.
func (s *Store) succeed(ctx context.Context) error {
	if s.dir == "" || s.succeeded.Swap(true) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.dir, memberFile))
	if former := string(b); err == nil && validIncarnation(former) {
		if _, err := s.client.Delete(ctx, memberPrefix+former); err != nil {
			s.succeeded.Store(false)
			return fmt.Errorf("store: %w", err)
		}
	}
	return nil
}

// Join makes the process a member. Without an incarnation it draws one. It answers nobody before it has applied what Latest says after Join.
func (s *Store) Join(ctx context.Context, m Member) (*Membership, error) {
	if m.Incarnation == "" {
		m.Incarnation = NewIncarnation()
	}
	if !validIncarnation(m.Incarnation) || m.ID == "" || m.Role != ControlMember && m.Role != DataMember {
		return nil, errors.New("store: not a valid member")
	}
	value, err := encode(&storedMember{ID: m.ID, Role: m.Role})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(s.succeed(ctx), s.giveUp(ctx)); err != nil {
		return nil, err
	}
	if s.dir != "" {
		if err := os.WriteFile(filepath.Join(s.dir, memberFile), []byte(m.Incarnation), 0o600); err != nil {
			return nil, fmt.Errorf("store: %w", err)
		}
	}
	granted, err := s.client.Grant(ctx, int64(memberTerm/time.Second))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	key := memberPrefix + m.Incarnation
	ok, revision, err := s.commit(ctx, []clientv3.Cmp{absent(key)}, []clientv3.Op{clientv3.OpPut(key, string(value), clientv3.WithLease(granted.ID))})
	switch {
	case err != nil:
		// It may be a member all the same, or come to be one yet, for which each change would wait: the next Join ends it.
		s.joining.Lock()
		s.doubtful = append(s.doubtful, granted.ID)
		s.joining.Unlock()
		return nil, err
	case !ok:
		return nil, ErrExists
	}
	m.Joined = revision
	return &Membership{m, s, granted.ID}, nil
}

// giveUp ends the leases of which nobody knows whether a membership hangs on them: Joins of unknown outcome. One that is committed only now finds no lease, and fails.
func (s *Store) giveUp(ctx context.Context) error {
	s.joining.Lock()
	defer s.joining.Unlock()
	for len(s.doubtful) > 0 {
		if _, err := s.client.Revoke(ctx, s.doubtful[0]); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return fmt.Errorf("store: %w", err)
		}
		s.doubtful = s.doubtful[1:]
	}
	return nil
}

// Renew keeps the membership for memberTerm. ErrLeft.
func (m *Membership) Renew(ctx context.Context) error {
	_, err := m.store.client.KeepAliveOnce(ctx, m.lease)
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		return ErrLeft
	case err != nil:
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Leave ends the membership: nobody waits for the process any more, which must not answer from the moment before.
func (m *Membership) Leave(ctx context.Context) error {
	_, err := m.store.client.Revoke(ctx, m.lease)
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// Members lists the members at the revision that it returns. One whose record is damaged is a member: it has neither ID nor Role.
func (s *Store) Members(ctx context.Context) ([]Member, int64, error) {
	resp, err := s.client.Get(ctx, memberPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("store: %w", err)
	}
	list := make([]Member, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		var st storedMember
		_ = decode(kv.Value, &st)
		list = append(list, Member{Incarnation: string(kv.Key[len(memberPrefix):]), ID: st.ID, Role: st.Role, Joined: kv.CreateRevision})
	}
	return list, resp.Header.Revision, nil
}
