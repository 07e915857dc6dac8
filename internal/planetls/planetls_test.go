package planetls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/internal/planetls/planetlstest"
)

var quiet = slog.New(slog.DiscardHandler)

func open(t testing.TB, f planetls.Files) *planetls.Source {
	t.Helper()
	s, err := planetls.Open(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve listens with a config, and answers each connection with the name of its peer.
func serve(t testing.TB, cfg *tls.Config) (addr string) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				if c.(*tls.Conn).Handshake() != nil {
					return
				}
				cs := c.(*tls.Conn).ConnectionState()
				role, id, err := planetls.Peer(&cs)
				fmt.Fprintf(c, "%s %s %v", role, id, err)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); served.Wait() })
	return ln.Addr().String()
}

// dial is what the server says of the client, and how the connection is.
func dial(addr string, cfg *tls.Config) (said string, cs tls.ConnectionState, err error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return "", cs, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(c) // in TLS 1.3 the server's refusal comes after the client's handshake
	return string(b), c.ConnectionState(), err
}

func serverOf(t testing.TB, f planetls.Files, roles ...string) *tls.Config {
	t.Helper()
	cfg, err := open(t, f).Server(roles...)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func clientOf(t testing.TB, f planetls.Files, role string, names ...string) *tls.Config {
	t.Helper()
	cfg, err := open(t, f).Client(role, names...)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestHandshake(t *testing.T) {
	ca := planetlstest.New(t)
	addr := serve(t, serverOf(t, ca.Files(t, "control", "c1"), "data", "control"))
	for range 2 { // the second would resume the first, if sessions were kept
		said, cs, err := dial(addr, clientOf(t, ca.Files(t, "data", "d-1.example"), "control"))
		if err != nil || said != "data d-1.example <nil>" {
			t.Fatalf("the server says %q, %v", said, err)
		}
		if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 || cs.DidResume {
			t.Errorf("version %x, key exchange %v, resumed %v", cs.Version, cs.CurveID, cs.DidResume)
		}
		if cs.CipherSuite != tls.TLS_AES_128_GCM_SHA256 && cs.CipherSuite != tls.TLS_AES_256_GCM_SHA384 {
			t.Errorf("cipher suite %s", tls.CipherSuiteName(cs.CipherSuite))
		}
	}
}

// What the listener refuses of clients, each of which would be served but for one thing.
func TestServerRefuses(t *testing.T) {
	ca, other := planetlstest.New(t), planetlstest.New(t)
	addr := serve(t, serverOf(t, ca.Files(t, "control", "c1"), "data"))
	pair := func(ca *planetlstest.CA, role string, change func(*x509.Certificate)) []tls.Certificate {
		cert, key := ca.Issue(t, role, "d1", change)
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{c}
	}
	uri := func(texts ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			for _, text := range texts {
				u, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	for _, c := range []struct {
		what    string
		cfg     *tls.Config
		refused bool
	}{
		{"nothing wrong", &tls.Config{Certificates: pair(ca, "data", nil)}, false},
		{"no certificate", &tls.Config{}, true},
		{"another role", &tls.Config{Certificates: pair(ca, "client", nil)}, true},
		{"another CA", &tls.Config{Certificates: pair(other, "data", nil)}, true},
		{"expired", &tls.Config{Certificates: pair(ca, "data", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, true},
		{"not yet valid", &tls.Config{Certificates: pair(ca, "data", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })}, true},
		{"for servers only", &tls.Config{Certificates: pair(ca, "data", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, true},
		{"no name", &tls.Config{Certificates: pair(ca, "", nil)}, true},
		{"unknown role", &tls.Config{Certificates: pair(ca, "", uri("keyplane://root/d1"))}, true},
		{"another scheme", &tls.Config{Certificates: pair(ca, "", uri("spiffe://data/d1"))}, true},
		{"a query", &tls.Config{Certificates: pair(ca, "", uri("keyplane://data/d1?role=control"))}, true},
		{"a path", &tls.Config{Certificates: pair(ca, "", uri("keyplane://data/d1/x"))}, true},
		{"a port", &tls.Config{Certificates: pair(ca, "", uri("keyplane://data:1/d1"))}, true},
		{"two names", &tls.Config{Certificates: pair(ca, "", uri("keyplane://data/d1", "keyplane://control/c1"))}, true},
		{"TLS 1.2", &tls.Config{Certificates: pair(ca, "data", nil), MaxVersion: tls.VersionTLS12}, true},
		{"X25519 only", &tls.Config{Certificates: pair(ca, "data", nil), CurvePreferences: []tls.CurveID{tls.X25519}}, true},
		{"P-256 only", &tls.Config{Certificates: pair(ca, "data", nil), CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP384}}, true},
		{"P-256 with ML-KEM", &tls.Config{Certificates: pair(ca, "data", nil), CurvePreferences: []tls.CurveID{tls.SecP256r1MLKEM768}}, false},
	} {
		c.cfg.InsecureSkipVerify = true
		if said, _, err := dial(addr, c.cfg); (err != nil) != c.refused {
			t.Errorf("%s: %q, %v", c.what, said, err)
		}
	}
}

// What a client refuses of servers.
func TestClientRefuses(t *testing.T) {
	ca, other := planetlstest.New(t), planetlstest.New(t)
	client := ca.Files(t, "data", "d1")
	listen := func(ca *planetlstest.CA, role string, change func(*x509.Certificate), cfg *tls.Config, hosts ...string) (addr string) {
		cert, key := ca.Issue(t, role, "c1", change, hosts...)
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Certificates = []tls.Certificate{pair}
		return serve(t, cfg)
	}
	local := func(addr string) string { return strings.Replace(addr, "127.0.0.1", "localhost", 1) }
	for _, c := range []struct {
		what, addr string
		role       string
		names      []string
		want       string // "": no error
	}{
		{"nothing wrong", listen(ca, "control", nil, &tls.Config{}), "control", nil, ""},
		{"by name", local(listen(ca, "control", nil, &tls.Config{})), "control", nil, ""},
		{"one of the names", listen(ca, "control", nil, &tls.Config{}), "control", []string{"c9.example", "127.0.0.1"}, ""},
		{"another role", listen(ca, "data", nil, &tls.Config{}), "control", nil, "role is not accepted"},
		{"no role", listen(ca, "", nil, &tls.Config{}), "control", nil, "0 URIs"},
		{"another CA", listen(other, "control", nil, &tls.Config{}), "control", nil, "unknown authority"},
		{"expired", listen(ca, "control", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, &tls.Config{}), "control", nil, "expired"},
		{"for clients only", listen(ca, "control", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, &tls.Config{}), "control", nil, "key usage"},
		{"another name", local(listen(ca, "control", nil, &tls.Config{}, "c1.example")), "control", nil, "not localhost"},
		{"none of the names", listen(ca, "control", nil, &tls.Config{}), "control", []string{"10.0.0.1"}, "not 10.0.0.1"},
		{"TLS 1.2", listen(ca, "control", nil, &tls.Config{MaxVersion: tls.VersionTLS12}), "control", nil, "protocol version"},
		{"X25519 only", listen(ca, "control", nil, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}), "control", nil, "handshake failure"},
		{"etcd, X25519 only", listen(ca, "etcd", nil, &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519}}), "etcd", nil, ""},
		{"somebody's etcd", local(listen(ca, "", nil, &tls.Config{})), "", nil, ""},
		{"somebody's etcd at an address", listen(ca, "", nil, &tls.Config{}), "", []string{"127.0.0.1"}, ""},
		{"somebody's etcd, who knows whose", listen(ca, "", nil, &tls.Config{}), "", nil, "not known which one"},
		{"somebody's etcd with another name", local(listen(ca, "", nil, &tls.Config{}, "e1.example")), "", nil, "not localhost"},
	} {
		_, _, err := dial(c.addr, clientOf(t, client, c.role, c.names...))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q: %v", c.what, c.want, err)
		}
	}
	cfg := clientOf(t, client, "control")
	if _, _, err := dial(listen(ca, "client", nil, &tls.Config{}), cfg); !errors.Is(err, planetls.ErrRole) {
		t.Errorf("another role: %v", err)
	}
}

// Handshakes go on, on both sides, while certificates, keys and CAs are replaced all the time, also in the moments when the files do not fit together.
func TestReloadUnderLoad(t *testing.T) {
	ca, next := planetlstest.New(t), planetlstest.New(t)
	both := append(ca.PEM(), next.PEM()...)
	sf, cf := ca.Files(t, "control", "c1"), ca.Files(t, "data", "d1")
	server, client := open(t, sf), open(t, cf)
	scfg, err := server.Server("data")
	if err != nil {
		t.Fatal(err)
	}
	ccfg, err := client.Client("control")
	if err != nil {
		t.Fatal(err)
	}
	addr := serve(t, scfg)
	// A connection from before goes on.
	kept, err := tls.Dial("tcp", addr, ccfg)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()

	ctx, stop := context.WithCancel(t.Context())
	var dialled [4]atomic.Int64
	var loads sync.WaitGroup
	for i := range dialled {
		loads.Go(func() {
			for ctx.Err() == nil {
				if said, _, err := dial(addr, ccfg); err != nil || said != "data d1 <nil>" {
					t.Errorf("%q, %v", said, err)
					return
				}
				dialled[i].Add(1)
			}
		})
	}
	// settled waits until no handshake is under way that began before.
	settled := func() {
		for i := range dialled {
			for was := dialled[i].Load(); dialled[i].Load() < was+2 && !t.Failed(); time.Sleep(time.Millisecond) {
			}
		}
	}
	replace := func(f planetls.Files, s *planetls.Source, role, id string, of *planetlstest.CA) {
		cert, key := of.Issue(t, role, id, nil)
		planetlstest.Write(t, f.Cert, cert)
		if err := s.Reload(); err == nil {
			t.Error("a certificate was taken without its key")
		}
		planetlstest.Write(t, f.Key, key)
		if err := s.Reload(); err != nil {
			t.Error(err)
		}
	}
	for i := range 10 {
		of := ca
		if i == 5 { // a new CA: known everywhere first, and to handshakes that were under way, then used
			for f, s := range map[planetls.Files]*planetls.Source{sf: server, cf: client} {
				planetlstest.Write(t, f.CA, both)
				if err := s.Reload(); err != nil {
					t.Error(err)
				}
			}
			settled()
		}
		if i >= 5 {
			of = next
		}
		replace(sf, server, "control", "c1", of)
		replace(cf, client, "data", "d1", of)
		settled()
	}
	// The old CA is given up: who has a certificate of it is refused, with the configs that were made when it was the only one.
	for f, s := range map[planetls.Files]*planetls.Source{sf: server, cf: client} {
		planetlstest.Write(t, f.CA, next.PEM())
		if err := s.Reload(); err != nil {
			t.Error(err)
		}
	}
	settled()
	stop()
	loads.Wait()
	if _, _, err := dial(addr, clientOf(t, ca.Files(t, "data", "d2"), "control")); err == nil {
		t.Error("a client of the old CA was accepted")
	}
	if _, _, err := dial(serve(t, serverOf(t, ca.Files(t, "control", "c2"), "data")), ccfg); err == nil {
		t.Error("a server of the old CA was accepted")
	}
	if b, err := io.ReadAll(kept); err != nil || string(b) != "data d1 <nil>" {
		t.Errorf("the connection from before: %q, %v", b, err)
	}
}

// Files that are replaced are found without anybody saying so.
func TestReloadByItself(t *testing.T) {
	ca := planetlstest.New(t)
	f := ca.Files(t, "control", "c1")
	s := open(t, f)
	cert, key := ca.Issue(t, "control", "c1", nil)
	planetlstest.Write(t, f.Cert, cert)
	planetlstest.Write(t, f.Key, key)
	was := s.Leaf().SerialNumber
	for deadline := time.Now().Add(30 * time.Second); s.Leaf().SerialNumber.Cmp(was) == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the files are not read again")
		}
	}
}

// A set that does not fit keeps the one before, and is logged once.
func TestReloadRefused(t *testing.T) {
	ca, other := planetlstest.New(t), planetlstest.New(t)
	for _, c := range []struct {
		what, want string
		change     func(t *testing.T, f planetls.Files)
	}{
		{"no PEM", "certificate", func(t *testing.T, f planetls.Files) { planetlstest.Write(t, f.Cert, []byte("half a fi")) }},
		{"missing", "no such file", func(t *testing.T, f planetls.Files) { os.Remove(f.Key) }},
		{"open to others", "permissions 0644", func(t *testing.T, f planetls.Files) { _ = os.Chmod(f.Key, 0o644) }},
		{"another key", "does not match", func(t *testing.T, f planetls.Files) {
			_, k := ca.Issue(t, "control", "c1", nil)
			planetlstest.Write(t, f.Key, k)
		}},
		{"another CA", "not of the CA", func(t *testing.T, f planetls.Files) { planetlstest.Write(t, f.CA, other.PEM()) }},
		{"no CA", "no certificate", func(t *testing.T, f planetls.Files) { planetlstest.Write(t, f.CA, nil) }},
		{"key among CAs", "among the certificates", func(t *testing.T, f planetls.Files) {
			_, k := ca.Issue(t, "control", "c1", nil)
			planetlstest.Write(t, f.CA, append(ca.PEM(), k...))
		}},
		{"leaf as CA", "not that of a CA", func(t *testing.T, f planetls.Files) {
			c, _ := ca.Issue(t, "control", "c1", nil)
			planetlstest.Write(t, f.CA, c)
		}},
		{"large", "larger than", func(t *testing.T, f planetls.Files) { planetlstest.Write(t, f.CA, make([]byte, 64<<10)) }},
		{"another node", "that of control \"c2\"", func(t *testing.T, f planetls.Files) { pair(t, f, ca, "control", "c2", nil) }},
		{"another role", "that of data \"c1\"", func(t *testing.T, f planetls.Files) { pair(t, f, ca, "data", "c1", nil) }},
		{"no name", "and this process is", func(t *testing.T, f planetls.Files) { pair(t, f, ca, "", "c1", nil) }},
		{"expired", "expired", func(t *testing.T, f planetls.Files) {
			pair(t, f, ca, "control", "c1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}},
	} {
		t.Run(c.what, func(t *testing.T) {
			f := ca.Files(t, "control", "c1")
			var log bytes.Buffer
			s, err := planetls.Open(f, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			was := s.Leaf()
			c.change(t, f)
			for range 3 {
				if err := s.Reload(); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("want %q: %v", c.want, err)
				}
			}
			if s.Leaf() != was {
				t.Error("the old certificate is gone")
			}
			if n := strings.Count(log.String(), "not taken"); n != 1 || strings.Contains(log.String(), "BEGIN") {
				t.Errorf("logged %d times: %s", n, log.String())
			}
			pair(t, f, ca, "control", "c1", nil)
			planetlstest.Write(t, f.CA, ca.PEM())
			if err := s.Reload(); err != nil || s.Leaf() == was {
				t.Errorf("a good set after it: %v", err)
			}
		})
	}
}

func pair(t *testing.T, f planetls.Files, ca *planetlstest.CA, role, id string, change func(*x509.Certificate)) {
	t.Helper()
	cert, key := ca.Issue(t, role, id, change)
	planetlstest.Write(t, f.Cert, cert)
	planetlstest.Write(t, f.Key, key)
}

func TestConfigRefused(t *testing.T) {
	ca := planetlstest.New(t)
	f, nobody := ca.Files(t, "control", "c1"), ca.Files(t, "", "x")
	for _, c := range []struct {
		what string
		err  error
	}{
		{"no roles", second(planetls.Server(f))},
		{"unknown role", second(planetls.Server(f, "data", "root"))},
		{"a server without a name", second(planetls.Server(nobody, "data"))},
		{"a server without CA", second(planetls.Server(planetls.Files{Cert: f.Cert, Key: f.Key}, "data"))},
		{"a server without certificate", second(planetls.Server(planetls.Files{CA: f.CA}, "data"))},
		{"a client without a name", second(planetls.Client(nobody, "control"))},
		{"a client without CA", second(planetls.Client(planetls.Files{Cert: f.Cert, Key: f.Key}, "control"))},
		{"a client of an unknown role", second(planetls.Client(f, "root"))},
		{"no key", second(planetls.Client(planetls.Files{Cert: f.Cert, CA: f.CA}, "control"))},
	} {
		if c.err == nil {
			t.Errorf("%s: no error", c.what)
		}
	}
	for _, cfg := range []planetls.Files{nobody, {CA: f.CA}} {
		if _, err := planetls.Client(cfg, ""); err != nil {
			t.Errorf("etcd of others: %v", err)
		}
	}
	for _, id := range []string{"", ".", "-a", "a/b", "a b", "ä", strings.Repeat("a", 65)} {
		if _, err := planetls.URI("data", id); err == nil {
			t.Errorf("node ID %q was accepted", id)
		}
	}
}

// Of its own certificate a part wants that it is valid now, and a listener for clients, who have their own roots, shows what it is given.
func TestOpenExpired(t *testing.T) {
	ca := planetlstest.New(t)
	f := ca.Files(t, "control", "c1")
	pair(t, f, ca, "control", "c1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	if _, err := planetls.Open(f, quiet); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("a part: %v", err)
	}
	f.CA = ""
	if s := open(t, f); s.Leaf() == nil {
		t.Error("a listener for clients has no certificate")
	}
}

func second(_ *tls.Config, err error) error { return err }

// net/http speaks HTTP/2 with both configs, and a handler learns that a peer's certificate has ended while its connection lives.
func TestHTTP(t *testing.T) {
	ca := planetlstest.New(t)
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		role, id, err := planetls.Peer(r.TLS)
		if err != nil {
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusMisdirectedRequest)
		}
		fmt.Fprintf(w, "%s %s %s %v", r.Proto, role, id, errors.Is(err, planetls.ErrExpired))
	}))
	ts.TLS = serverOf(t, ca.Files(t, "control", "c1"), "data")
	ts.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)
	ts.StartTLS()
	defer ts.Close()
	f := ca.Files(t, "data", "d1")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: clientOf(t, f, "control"), ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	get := func() string {
		t.Helper()
		resp, err := client.Get(ts.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if got := get(); got != "HTTP/2.0 data d1 false" {
		t.Errorf("%q", got)
	}

	pair(t, f, ca, "data", "d1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(3 * time.Second) })
	short := clientOf(t, f, "control")
	client.CloseIdleConnections()
	client.Transport = &http.Transport{TLSClientConfig: short, ForceAttemptHTTP2: true}
	if got := get(); got != "HTTP/2.0 data d1 false" {
		t.Errorf("%q", got)
	}
	pair(t, f, ca, "data", "d1", nil)
	ended := false
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline) && !ended; time.Sleep(50 * time.Millisecond) {
		ended = get() == "HTTP/2.0   true"
	}
	if got := get(); !ended || got != "HTTP/2.0 data d1 false" {
		t.Errorf("ended %v, then %q", ended, got)
	}
}
