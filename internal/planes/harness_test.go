package planes

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planetls/planetlstest"
	"github.com/keyplane/keyplane/ratelimit"
)

var quiet = slog.New(slog.DiscardHandler)

// world is the control planes of a test and what they were told.
type world struct {
	t     testing.TB
	ca    *planetlstest.CA
	owner chan struct{} // has one element while nobody owns the leases
	rate  ratelimit.Rate

	revoked *planetls.Revoked // of servers and clients, not of their handshakes

	mu      sync.Mutex
	nodes   []string
	applied map[string]map[string]int64 // by control plane and incarnation
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, ca: planetlstest.New(t), owner: make(chan struct{}, 1), rate: 1000, revoked: new(planetls.Revoked), applied: map[string]map[string]int64{}}
	w.owner <- struct{}{}
	return w
}

// source is the certificate of a part.
func (w *world) source(role, id string) *planetls.Source {
	w.t.Helper()
	s, err := planetls.Open(w.ca.Files(w.t, role, id), quiet)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// control is one control plane.
type control struct {
	w      *world
	id     string
	addr   string
	leaf   *x509.Certificate
	server *Server
	leases *Leases
	uses   *LastUses
	ready  atomic.Pointer[string] // why it is not

	asked   atomic.Int64 // requests that came
	settled atomic.Int64 // the revision that was asked for last
	answer  func(ctx context.Context, node string, r *Request) (int, []byte)
	stop    func()
}

// control starts a control plane; addr is "" for a free port. It is stopped with the test, or by stop.
func (w *world) control(id, addr string) *control {
	w.t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	c := &control{w: w, id: id, answer: func(_ context.Context, node string, r *Request) (int, []byte) {
		return 200, []byte(id + " " + node + " " + string(r.Signed.Body))
	}}
	var err error
	if c.leases, err = NewLeases(LeasesConfig{
		Own: func(ctx context.Context) (context.Context, func(), error) {
			select {
			case <-w.owner:
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
			return ctx, func() { w.owner <- struct{}{} }, nil
		},
		Nodes: func(context.Context) ([]string, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.nodes, nil
		},
		Rate: func(region string, _ keyid.Account, _ ratelimit.Pool) (ratelimit.Rate, bool) {
			return w.rate, region == "eu-central-1"
		},
		Logger: quiet,
	}); err != nil {
		w.t.Fatal(err)
	}
	if c.uses, err = OpenLastUses(w.t.TempDir() + "/uses"); err != nil {
		w.t.Fatal(err)
	}
	source := w.source(planetls.RoleControl, id)
	c.leaf = source.Leaf()
	tlsConfig, err := source.Server(planetls.Roles...)
	if err != nil {
		w.t.Fatal(err)
	}
	if c.server, err = NewServer(ServerConfig{
		TLS: tlsConfig, Revoked: w.revoked, Logger: quiet, Settle: func(_ context.Context, revision int64) { c.settled.Store(revision) }, Leases: c.leases, Uses: c.uses.Take,
		Ready: func() error {
			if why := c.ready.Load(); why != nil {
				return errors.New(*why)
			}
			return nil
		},
		Takes: func() bool { return c.ready.Load() == nil },
		Request: func(ctx context.Context, node string, r *Request) (int, []byte) {
			c.asked.Add(1)
			return c.answer(ctx, node, r)
		},
		Managed: func(_ context.Context, _ string, r *Request, alias string) error { return managedAnswer(alias) },
		Member: func(_ context.Context, role, node, incarnation string) error {
			if !strings.HasPrefix(incarnation, "of "+role+" "+node) {
				return errors.New("no such member")
			}
			return nil
		},
		Applied: func(incarnation string, revision int64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.applied[id] == nil {
				w.applied[id] = map[string]int64{}
			}
			w.applied[id][incarnation] = revision
		},
	}); err != nil {
		w.t.Fatal(err)
	}
	c.server.Start()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		w.t.Fatal(err)
	}
	c.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = c.leases.Run(ctx) })
	all.Go(func() {
		if err := c.server.Serve(ln); err != nil {
			w.t.Error(err)
		}
	})
	c.stop = sync.OnceFunc(func() {
		cancel()
		ctx, done := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer done()
		_ = c.server.Shutdown(ctx)
		all.Wait()
	})
	w.t.Cleanup(c.stop)
	return c
}

func (w *world) appliedAt(control, incarnation string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.applied[control][incarnation]
}

// client is a member's, for the addresses of control planes.
func (w *world) client(role, id string, addrs ...string) *Client {
	w.t.Helper()
	cfg, err := w.source(role, id).Client(planetls.RoleControl, "127.0.0.1")
	if err != nil {
		w.t.Fatal(err)
	}
	var urls []string
	for _, a := range addrs {
		urls = append(urls, "https://"+a)
	}
	c, err := NewClient(ClientConfig{URLs: urls, TLS: cfg, Revoked: w.revoked, Logger: quiet})
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(c.Run)
	w.t.Cleanup(c.Close)
	return c
}

// run runs a worker until the test ends.
func (w *world) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = f(ctx) }()
	w.t.Cleanup(func() { cancel(); <-ended })
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it never came that", what)
		}
	}
}

// freezable forwards connections to an address, until it is frozen: then it takes them and says nothing.
type freezable struct {
	addr   string
	frozen atomic.Bool
}

func (w *world) freezable(to string) *freezable {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	f := &freezable{addr: ln.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	w.t.Cleanup(func() { cancel(); _ = ln.Close(); all.Wait() })
	copyTo := func(dst io.Writer, src io.Reader) {
		b := make([]byte, 32<<10)
		for {
			n, err := src.Read(b)
			for f.frozen.Load() && ctx.Err() == nil {
				time.Sleep(time.Millisecond)
			}
			if _, failed := dst.Write(b[:n]); err != nil || failed != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				out, err := net.Dial("tcp", to)
				if err != nil {
					_ = in.Close()
					return
				}
				shut := sync.OnceFunc(func() { _, _ = in.Close(), out.Close() })
				defer context.AfterFunc(ctx, shut)()
				var both sync.WaitGroup
				both.Go(func() { defer shut(); copyTo(out, in) })
				both.Go(func() { defer shut(); copyTo(in, out) })
				both.Wait()
			})
		}
	})
	return f
}
