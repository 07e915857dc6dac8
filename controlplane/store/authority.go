package store

import (
	"context"
	"errors"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// ErrOvertaken says that who asked for a write, or what they may do, was changed after it was decided on and before it was committed. Nothing was written.
var ErrOvertaken = errors.New("store: whose right a write was decided on has changed meanwhile")

// Authority is whose rights, as a view of the store had them at a revision, a request is decided on. A transaction under it (Under) is committed only if these records
// are still the same: that the process was stopped after the decision, for however long, lets nothing be written by who may not any more. Managed policies
// are not among them, because none changes while somebody has it; keys, their policies and grants are compared by the transactions themselves.
type Authority struct {
	mu       sync.Mutex
	revision int64
	records  []string
}

// NewAuthority is that of an access key of w. revision is up to which all changes were applied to what the request is decided by, read before it is. nil, which
// holds no transaction back, for a caller who is nobody or gone.
func NewAuthority(revision int64, accessKey string, w *authz.Caller) *Authority {
	if w == nil || w.Holder == nil {
		return nil
	}
	subject := w.Holder.Subject()
	if subject == nil {
		return nil
	}
	a := &Authority{revision: revision, records: []string{accessKeyPrefix + accessKey}}
	if !w.TokenIssued.IsZero() {
		a.records[0] = sessionKey(w.Account, accessKey)
	}
	switch w.Kind {
	case policy.User:
		a.records = append(a.records, PrincipalName{User, w.Account, subject.Name}.key())
	case policy.AssumedRole:
		a.records = append(a.records, PrincipalName{Role, w.Account, subject.Name}.key())
	case policy.Service:
		a.records = append(a.records, servicePrefix+w.ARN)
	}
	if w.Via != "" {
		a.records = append(a.records, servicePrefix+w.Via)
	}
	return a
}

type authorityKey struct{}

// Under has all transactions with the context hold to an Authority.
func Under(ctx context.Context, a *Authority) context.Context {
	return context.WithValue(ctx, authorityKey{}, a)
}

func authorityOf(ctx context.Context) *Authority {
	a, _ := ctx.Value(authorityKey{}).(*Authority)
	return a
}

// compares say that the records are there, and were not written since.
func (a *Authority) compares() []clientv3.Cmp {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	when := make([]clientv3.Cmp, 0, 2*len(a.records))
	for _, at := range a.records {
		when = append(when, present(at), clientv3.Compare(clientv3.ModRevision(at), "<", a.revision+1))
	}
	return when
}

// committed takes note of a transaction that was held to it: up to there nobody else has changed the records, and if the transaction has, that was decided.
func (a *Authority) committed(revision int64) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision = max(a.revision, revision)
}

// overtaken tells a transaction that failed because of its Authority from one that lost a compare of its own, which is tried again.
func (s *Store) overtaken(ctx context.Context, a *Authority) error {
	if a == nil {
		return nil
	}
	resp, err := s.client.Txn(ctx).If(a.compares()...).Commit()
	switch {
	case err != nil:
		return nil // the next attempt finds out
	case !resp.Succeeded:
		return ErrOvertaken
	}
	return nil
}
