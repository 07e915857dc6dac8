//go:build cgo

package planeca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/keyplane/keyplane/internal/etcdtest"
	"github.com/keyplane/keyplane/internal/planetls"
)

// A real etcd with a certificate of role etcd: it knows its clients by their roles, takes a new certificate without a restart, and a server that is no etcd is not taken for one.
func TestEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("starts etcd")
	}
	ca, file := newCA(t, time.Hour, tokens(t)[0])
	member := func(role, node string) planetls.Files {
		return member(t, ca, file, Member{Role: role, Node: node, Hosts: []string{"127.0.0.1"}, Life: 30 * time.Minute})
	}
	server := member("etcd", "e1")
	etcdSource, control, data := open(t, server), open(t, member("control", "c1")), open(t, member("data", "d1"))
	config := func(s *planetls.Source) *tls.Config {
		cfg, err := s.Client(planetls.RoleEtcd, "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	cluster, err := etcdtest.Start(t.Context(), etcdtest.Config{Dir: t.TempDir(), NoSync: true, TLS: config(control), Files: func(int) (string, string, string) {
		return server.Cert, server.Key, server.CA
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	dial := func(cfg *tls.Config) *clientv3.Client {
		c, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), TLS: cfg, Logger: zap.NewNop()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	root := dial(config(control))
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, role := range []string{"root", "control", "data"} {
		must(root.RoleAdd(ctx, role))
		must(root.UserAddWithOptions(ctx, role, "", &clientv3.UserAddOptions{NoPassword: true}))
		must(root.UserGrantRole(ctx, role, role))
	}
	must(root.RoleGrantPermission(ctx, "control", "/keyplane/1/", "/keyplane/10", clientv3.PermissionType(clientv3.PermReadWrite)))
	must(root.RoleGrantPermission(ctx, "data", "/keyplane/1/", "/keyplane/10", clientv3.PermissionType(clientv3.PermRead)))
	must(root.AuthEnable(ctx))

	c, d := dial(config(control)), dial(config(data))
	must(c.Put(ctx, "/keyplane/1/x", "1"))
	if r, err := d.Get(ctx, "/keyplane/1/x"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("a data plane reads: %v", err)
	}
	if _, err := d.Put(ctx, "/keyplane/1/x", "2"); err == nil {
		t.Error("a data plane wrote")
	}
	if _, err := c.Put(ctx, "/other", "2"); err == nil {
		t.Error("a control plane wrote elsewhere")
	}
	if _, err := dial(config(open(t, member("client", "m1")))).Get(ctx, "/keyplane/1/x"); err == nil {
		t.Error("a certificate without a user was served")
	}

	// The next certificate, from the next handshake on.
	old := etcdSource.Leaf()
	if err := Next(ctx, etcdSource, Own{ca, etcdSource}); err != nil {
		t.Fatal(err)
	}
	seen := config(control)
	verify := seen.VerifyConnection
	serial := make(chan *x509.Certificate, 1)
	seen.VerifyConnection = func(cs tls.ConnectionState) error {
		select {
		case serial <- cs.PeerCertificates[0]:
		default:
		}
		return verify(cs)
	}
	must(dial(seen).Get(ctx, "/keyplane/1/x"))
	if got := <-serial; got.SerialNumber.Cmp(old.SerialNumber) == 0 || got.SerialNumber.Cmp(etcdSource.Leaf().SerialNumber) != 0 {
		t.Error("etcd shows the old certificate")
	}
	must(c.Get(ctx, "/keyplane/1/x")) // by the connection from before

	wrong, err := control.Client(planetls.RoleControl, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	short, end := context.WithTimeout(ctx, 2*time.Second)
	defer end()
	if _, err := dial(wrong).Get(short, "/keyplane/1/x"); err == nil {
		t.Error("an etcd was taken for a control plane")
	}
}
