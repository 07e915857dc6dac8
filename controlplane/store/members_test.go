package store

import (
	"context"
	"errors"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// lostAnswers is a KV whose first transactions are done and not answered.
type lostAnswers struct {
	clientv3.KV
	left int
}

func (l *lostAnswers) Txn(ctx context.Context) clientv3.Txn { return &lostAnswer{l.KV.Txn(ctx), l} }

type lostAnswer struct {
	clientv3.Txn
	of *lostAnswers
}

func (t *lostAnswer) If(cs ...clientv3.Cmp) clientv3.Txn   { t.Txn = t.Txn.If(cs...); return t }
func (t *lostAnswer) Then(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Then(ops...); return t }
func (t *lostAnswer) Else(ops ...clientv3.Op) clientv3.Txn { t.Txn = t.Txn.Else(ops...); return t }

func (t *lostAnswer) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	if err == nil && t.of.left > 0 {
		t.of.left--
		return nil, context.DeadlineExceeded
	}
	return resp, err
}

// A Join whose answer was lost leaves no member behind: the next one ends it.
func TestJoinUncertain(t *testing.T) {
	s := another(shared)
	s.client.KV = &lostAnswers{s.client.KV, 2}
	var joined []string
	for i := range 3 {
		m := Member{Incarnation: NewIncarnation(), ID: "n", Role: DataMember}
		joined = append(joined, m.Incarnation)
		membership, err := s.Join(t.Context(), m)
		if i < 2 && !errors.Is(err, ErrUncertain) || i == 2 && err != nil {
			t.Fatal(i, err)
		}
		if i == 2 {
			defer membership.Leave(context.Background())
		}
		list, _, err := shared.Members(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for at, incarnation := range joined {
			there := false
			for _, m := range list {
				there = there || m.Incarnation == incarnation
			}
			if there != (at == i) {
				t.Errorf("after Join %d: is %d a member? %v", i, at, there)
			}
		}
	}
}
