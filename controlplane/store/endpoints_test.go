package store

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/keyplane/keyplane/internal/etcdtest"
)

// versioned is an etcd that says of what version it is, and nothing else.
type versioned struct {
	etcdserverpb.UnimplementedMaintenanceServer
	version string
}

func (v *versioned) Status(context.Context, *etcdserverpb.StatusRequest) (*etcdserverpb.StatusResponse, error) {
	return &etcdserverpb.StatusResponse{Header: &etcdserverpb.ResponseHeader{}, Version: v.version, Leader: 1}, nil
}

// serve serves it at an address until the returned function is called.
func (v *versioned) serve(t *testing.T, address string) (endpoint string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	etcdserverpb.RegisterMaintenanceServer(s, v)
	go func() { _ = s.Serve(l) }()
	return l.Addr().String(), s.Stop
}

// uses waits until a store asks the endpoints.
func uses(t *testing.T, s *Store, want ...string) {
	t.Helper()
	want = slices.Sorted(slices.Values(want))
	var got []string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got = slices.Sorted(slices.Values(s.client.Endpoints()))
		if slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("it uses %v, not %v", got, want)
}

// A cluster is used through the members that serve, from the first on: one that is down, hangs, or is of another version is not asked; once it serves it is.
func TestEndpoints(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	ctx := t.Context()
	c, err := etcdtest.Start(ctx, etcdtest.Config{Members: 3, Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := c.Endpoints()
	cfg := ExternalConfig{Endpoints: e, Logger: quiet, Sealer: xorSealer{}}
	must(t, c.Kill(2))
	s, err := OpenExternal(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	must(t, s.Authenticate(ctx, Trust{}))
	f := follow(t, s)
	changes := 0
	change := func() {
		t.Helper()
		var err error
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			trying, cancel := context.WithTimeout(ctx, time.Second)
			var m *Membership
			if m, err = s.Join(trying, Member{ID: "n", Role: DataMember}); err == nil {
				defer cancel()
				changes++
				f.until(t, m.Joined)
				return
			}
			cancel()
		}
		t.Fatal(err)
	}
	uses(t, s, e[:2]...)
	change()
	must(t, c.Restart(2))
	uses(t, s, e...)
	must(t, c.Kill(0))
	uses(t, s, e[1:]...)
	change()
	must(t, c.Restart(0))
	uses(t, s, e...)
	leader, err := c.Leader(ctx)
	must(t, err)
	must(t, c.Stop(leader))
	for range 6 { // some of them go to the one that hangs
		began := time.Now()
		_, _, err := s.Members(ctx)
		if took := time.Since(began); err != nil || took > 8*time.Second {
			t.Errorf("a read took %v: %v", took, err)
		}
	}
	uses(t, s, slices.Delete(slices.Clone(e), leader, leader+1)...)
	change() // whoever is watched
	must(t, c.Cont(leader))
	uses(t, s, e...)
	// All of them are away, for long enough to be asked ever more rarely, and come back.
	for i := range e {
		must(t, c.Kill(i))
	}
	time.Sleep(2 * time.Second)
	for i := range e {
		must(t, c.Restart(i))
	}
	change()
	joined := 0
	for _, ch := range f.until(t, s.Committed()) {
		if ch.What == MemberChanged && !ch.Gone {
			joined++
		}
	}
	if joined < changes { // those of unknown outcome besides
		t.Errorf("%d of %d changes were followed", joined, changes)
	}

	must(t, c.Kill(0))
	must(t, c.Kill(1))
	trying, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := OpenExternal(trying, cfg); err == nil || !strings.Contains(err.Error(), "of 3 endpoints") {
		t.Errorf("opened through a minority: %v", err)
	}
}

// An endpoint of a version that is not supported fails the start, and is not used when it is found later.
func TestEndpointOfAnotherVersion(t *testing.T) {
	ctx := t.Context()
	good, stopGood := (&versioned{version: "3.7.0"}).serve(t, "127.0.0.1:0")
	defer stopGood()
	old, stopOld := (&versioned{version: "3.6.8"}).serve(t, "127.0.0.1:0")
	if _, err := OpenExternal(ctx, ExternalConfig{Endpoints: []string{good, good, old}, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "3.6.8") {
		t.Errorf("got %v", err)
	}
	stopOld()
	cfg := &ExternalConfig{Endpoints: []string{"http://" + good, "http://localhost:" + good[strings.LastIndex(good, ":")+1:], "http://" + old}, Logger: quiet}
	s, list := openEndpoints(t, cfg)
	uses(t, s, cfg.Endpoints[:2]...)
	_, stopOld = (&versioned{version: "3.6.8"}).serve(t, old)
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if list.found(unsupported) > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the old version is not found out")
		}
	}
	stopOld() // it says nothing, and is still not to be used, whoever else is
	stopGood()
	for end := time.Now().Add(time.Minute); list.found(silent) < 2 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	uses(t, s, cfg.Endpoints[:2]...)
	_, stopNew := (&versioned{version: "3.6.9"}).serve(t, old)
	defer stopNew()
	uses(t, s, cfg.Endpoints[2])
}

// openEndpoints is the part of OpenExternal that chooses endpoints.
func openEndpoints(t *testing.T, cfg *ExternalConfig) (*Store, *endpoints) {
	t.Helper()
	client, err := clientv3.New(cfg.client(t.Context(), cfg.Endpoints[0]))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(client, nil)
	list, err := newEndpoints(t.Context(), cfg, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.first(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(list.close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s, list
}

// found is how many endpoints are in a state.
func (e *endpoints) found(state endpointState) (n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.all {
		if o.state == state {
			n++
		}
	}
	return n
}

// What may write is never sent twice.
func TestOnlyReads(t *testing.T) {
	read := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{}}}
	put := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{}}}
	remove := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{}}}
	inner := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestTxn{RequestTxn: &etcdserverpb.TxnRequest{}}}
	txn := func(then ...*etcdserverpb.RequestOp) any {
		return &etcdserverpb.TxnRequest{Success: append([]*etcdserverpb.RequestOp{read}, then...), Failure: []*etcdserverpb.RequestOp{read}}
	}
	for i, c := range []struct {
		req  any
		want bool
	}{
		{&etcdserverpb.RangeRequest{}, true}, {txn(), true}, {txn(read), true}, {txn(put), false}, {txn(remove), false}, {txn(inner), false},
		{&etcdserverpb.TxnRequest{Failure: []*etcdserverpb.RequestOp{put}}, false}, {&etcdserverpb.PutRequest{}, false},
		{&etcdserverpb.DeleteRangeRequest{}, false}, {&etcdserverpb.LeaseGrantRequest{}, false}, {&etcdserverpb.CompactionRequest{}, false}, {nil, false},
	} {
		if got := onlyReads(c.req); got != c.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}
