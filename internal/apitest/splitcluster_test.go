package apitest

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/etcdtest"
	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planetls/planetlstest"
)

// Split is a cluster in this process: etcd, which is a process of its own, control planes and data nodes. All have soft tokens with the same root. It stops with the test.
type Split struct {
	Etcd     *etcdtest.Cluster
	Controls []*Part
	Datas    []*Part

	ca  *planetlstest.CA
	log *logTail
	// AccessKeyID and SecretAccessKey are the administrator's, once there is a control plane.
	AccessKeyID, SecretAccessKey string
}

// Part is a control plane or a data node. A data node's Endpoint is where clients go.
type Part struct {
	Endpoint
	Node *node.Node
	cfg  node.Config
	s    *Split
	role string
}

// StartSplit brings up a cluster.
func StartSplit(t testing.TB, controls, datas int, opts ...Option) *Split {
	t.Helper()
	s := &Split{ca: planetlstest.New(t), log: &logTail{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the nodes' log ends:\n%s", s.log)
		}
	})
	var err error
	if s.Etcd, err = etcdtest.Start(t.Context(), etcdtest.Config{Dir: t.TempDir(), NoSync: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Etcd.Close(); err != nil {
			t.Error(err)
		}
	})
	var urls []string
	for range controls {
		urls = append(urls, "https://"+freeAddr(t))
	}
	for i := range controls {
		s.Controls = append(s.Controls, s.part(t, planetls.RoleControl, "control-"+strconv.Itoa(i), urls, urls[i], opts))
	}
	for i := range datas {
		s.Datas = append(s.Datas, s.part(t, planetls.RoleData, "data-"+strconv.Itoa(i), urls, "", opts))
	}
	for _, p := range append(s.Controls, s.Datas...) {
		p.Start(t)
	}
	return s
}

// freeAddr is an address to listen at that stays free: its port is below those that systems take for connections.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 12_000+rand.Intn(18_000)))
		if err == nil {
			ln.Close()
			return ln.Addr().String()
		}
	}
	t.Fatal("no port is free")
	return ""
}

func (s *Split) part(t testing.TB, role, id string, urls []string, listen string, opts []Option) *Part {
	t.Helper()
	files := s.ca.Files(t, role, id)
	p := &Part{s: s, role: role, cfg: node.Config{
		Listen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), id), Region: Region, Account: Account, LogLevel: "warn",
		QueueTimeMax: 10 * time.Second, RoundTimeout: 10 * time.Second, Audit: node.AuditConfig{Timeout: 10 * time.Second, Durability: "write"},
		Etcd: node.EtcdConfig{Endpoints: s.Etcd.Endpoints()}, Planes: node.PlanesConfig{Control: urls, Cert: files.Cert, Key: files.Key, CA: files.CA},
	}}
	if listen != "" {
		p.cfg.Planes.Listen = listen[len("https://"):]
	}
	for _, o := range opts {
		o(&p.cfg)
	}
	p.cfg.Defaults()
	return p
}

// Start starts the part, or starts it again after Close: a data node at another address.
func (p *Part) Start(t testing.TB) {
	t.Helper()
	if first := p.s.Controls[0]; p != first && len(p.cfg.HSM) == 0 {
		if err := copyToken(first.cfg.DataDir, p.cfg.DataDir); err != nil {
			t.Fatal(err)
		}
	}
	validate, start := p.cfg.ValidateData, node.StartData
	if p.role == planetls.RoleControl {
		validate, start = p.cfg.ValidateControl, node.StartControl
	}
	if err := validate(); err != nil {
		t.Fatal(err)
	}
	n, err := start(context.Background(), p.cfg, slog.New(slog.NewTextHandler(p.s.log, &slog.HandlerOptions{Level: slog.LevelWarn})).With("part", p.name()))
	if err != nil {
		t.Fatalf("%s: %v", p.cfg.DataDir, err)
	}
	t.Cleanup(n.Close)
	p.Node = n
	if p.s.AccessKeyID == "" {
		p.s.AccessKeyID, p.s.SecretAccessKey = readCredentials(t, n.CredentialsPath())
	}
	p.Endpoint = Endpoint{Addr: n.Addr(), AccessKeyID: p.s.AccessKeyID, SecretAccessKey: p.s.SecretAccessKey}
}

func (p *Part) name() string { return filepath.Base(p.cfg.DataDir) }

// Close stops the part in good order.
func (p *Part) Close() { p.Node.Close() }

// copyToken copies the soft token of one data directory to another.
func copyToken(from, to string) error {
	files, err := os.ReadDir(filepath.Join(from, "softtoken"))
	if err != nil {
		return err
	}
	dir := filepath.Join(to, "softtoken")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(from, "softtoken", f.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, f.Name()), b, 0o600); err != nil {
			return fmt.Errorf("%s: %w", f.Name(), err)
		}
	}
	return nil
}
