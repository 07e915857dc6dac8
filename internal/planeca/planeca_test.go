//go:build cgo

package planeca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/planetls"
)

var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { hsmtest.Main(m) }

// tokens are two tokens, each with a CA key.
func tokens(t testing.TB) (tokens [2]hsm.Token) {
	t.Helper()
	uris := [2]string{hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)}
	for i, uri := range uris {
		if _, err := p11.InitCA(uri); err != nil {
			t.Fatal(err)
		}
		token, err := p11.Open(uri)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { token.Close() })
		tokens[i] = token
	}
	return tokens
}

// newCA makes root certificates of tokens in a file, and opens the CA of the first.
func newCA(t testing.TB, life time.Duration, of ...hsm.Token) (*CA, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	var text []byte
	for _, token := range of {
		root, err := NewRoot(token, life)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, root...)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ca, err := Open(of[:1], file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ca.Close() })
	return ca, file
}

// member issues a certificate into a folder.
func member(t testing.TB, ca *CA, caFile string, m Member) planetls.Files {
	t.Helper()
	dir := t.TempDir()
	f := planetls.Files{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), CA: caFile}
	key, keyPEM, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(&key.PublicKey, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Store(cert, keyPEM); err != nil {
		t.Fatal(err)
	}
	return f
}

func open(t testing.TB, f planetls.Files) *planetls.Source {
	t.Helper()
	s, err := planetls.Open(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func parse(t testing.TB, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIssue(t *testing.T) {
	ca, _ := newCA(t, RootLifeDefault, tokens(t)[0])
	root := ca.Root()
	if !root.IsCA || !root.MaxPathLenZero || root.KeyUsage != x509.KeyUsageCertSign || root.CheckSignatureFrom(root) != nil ||
		root.NotAfter.Before(time.Now().Add(RootLifeDefault-time.Hour)) {
		t.Errorf("root: %+v", root)
	}
	key, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.Issue(&key.PublicKey, Member{Role: "control", Node: "c1", Hosts: []string{"c1.example", "10.0.0.1", "::1"}, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c := parse(t, text)
	role, id, err := planetls.Name(c)
	if err != nil || role != "control" || id != "c1" || c.IsCA || len(c.IPAddresses) != 2 || len(c.DNSNames) != 1 || c.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%s %s %v %+v", role, id, err, c)
	}
	if d := time.Until(c.NotAfter); d > time.Hour || d < time.Hour-time.Minute {
		t.Errorf("valid for %v", d)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := c.Verify(x509.VerifyOptions{Roots: pool, DNSName: "c1.example", KeyUsages: []x509.ExtKeyUsage{u}}); err != nil {
			t.Error(err)
		}
	}
	text, err = ca.Issue(&key.PublicKey, Member{Role: "data", Node: "d1", Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parse(t, text).Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a data plane's certificate is one for servers")
	}

	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := Member{Role: "control", Node: "c1", Hosts: []string{"c1"}, Life: time.Hour}
	for what, change := range map[string]func(*Member){
		"role":      func(m *Member) { m.Role = "root" },
		"node":      func(m *Member) { m.Node = "a/b" },
		"no hosts":  func(m *Member) { m.Hosts = nil },
		"many":      func(m *Member) { m.Hosts = strings.Fields(strings.Repeat("a ", 33)) },
		"wildcard":  func(m *Member) { m.Hosts = []string{"*.example"} },
		"port":      func(m *Member) { m.Hosts = []string{"c1:443"} },
		"no life":   func(m *Member) { m.Life = 0 },
		"long life": func(m *Member) { m.Life = 2 * RootLifeDefault },
	} {
		m := good
		change(&m)
		if _, err := ca.Issue(&key.PublicKey, m); err == nil {
			t.Errorf("%s: issued", what)
		}
	}
	for _, public := range []*ecdsa.PublicKey{nil, &p384.PublicKey, root.PublicKey.(*ecdsa.PublicKey)} {
		if _, err := ca.Issue(public, good); err == nil {
			t.Errorf("issued for %v", public)
		}
	}
}

// A CA finds the certificate of its token's key among several, and none is ErrNoKey. What either issues is valid for who has the file.
func TestSeveralCAs(t *testing.T) {
	two := tokens(t)
	_, both := newCA(t, time.Hour, two[0], two[1])
	_, first := newCA(t, time.Hour, two[0])
	for _, token := range two {
		ca, err := Open([]hsm.Token{token}, both)
		if err != nil {
			t.Fatal(err)
		}
		defer ca.Close()
		open(t, member(t, ca, both, Member{Role: "data", Node: "d1", Life: time.Minute}))
	}
	if _, err := Open(two[1:], first); !errors.Is(err, ErrNoKey) {
		t.Errorf("another CA's file: %v", err)
	}
	if ca, err := Open(two[:], first); err != nil || !ca.key.Public().Equal(ca.root.PublicKey) {
		t.Errorf("the token that has it: %v", err)
	}
	for _, text := range []string{"", "nonsense"} {
		file := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(two[:], file); err == nil {
			t.Errorf("a file with %q was taken", text)
		}
	}
}

// serve is a control plane's listener with the handler.
func serve(t testing.TB, f planetls.Files, h http.Handler) string {
	t.Helper()
	cfg, err := open(t, f).Server(planetls.Roles...)
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(h)
	ts.TLS = cfg
	ts.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return ts.URL
}

func client(t testing.TB, s *planetls.Source) *http.Client {
	t.Helper()
	cfg, err := s.Client("control")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestRenew(t *testing.T) {
	ca, file := newCA(t, time.Hour, tokens(t)[0])
	control := member(t, ca, file, Member{Role: "control", Node: "c1", Hosts: []string{"127.0.0.1"}, Life: 10 * time.Minute})
	var log bytes.Buffer
	url := serve(t, control, RenewHandler(ca, RenewOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))}))
	without := serve(t, control, RenewHandler(nil, RenewOptions{Logger: quiet}))
	dead := "https://127.0.0.1:1"
	s := open(t, member(t, ca, file, Member{Role: "etcd", Node: "e1", Hosts: []string{"e1.example", "10.0.0.9"}, Life: 10 * time.Minute}))
	old := s.Leaf()
	if err := Next(t.Context(), s, Remote{client(t, s), []string{dead, without, url}}); err != nil {
		t.Fatal(err)
	}
	now := s.Leaf()
	role, id, err := planetls.Name(now)
	switch {
	case err != nil || role != "etcd" || id != "e1":
		t.Errorf("%s %q %v", role, id, err)
	case now.SerialNumber.Cmp(old.SerialNumber) == 0 || now.PublicKey.(*ecdsa.PublicKey).Equal(old.PublicKey):
		t.Error("the certificate or its key is the same")
	case len(now.DNSNames) != 1 || now.DNSNames[0] != "e1.example" || len(now.IPAddresses) != 1 || len(now.ExtKeyUsage) != 2:
		t.Errorf("%v %v %v", now.DNSNames, now.IPAddresses, now.ExtKeyUsage)
	case now.NotAfter.Sub(now.NotBefore) != old.NotAfter.Sub(old.NotBefore):
		t.Errorf("valid for %v, was %v", now.NotAfter.Sub(now.NotBefore), old.NotAfter.Sub(old.NotBefore))
	}
	// The files are those of a new start.
	if again := open(t, s.Files()); again.Leaf().SerialNumber.Cmp(now.SerialNumber) != 0 {
		t.Error("the files have another certificate")
	}
	for _, f := range []string{s.Files().Cert, s.Files().Key} {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", f, err)
		}
	}
	if !strings.Contains(log.String(), "certificate renewed") || !strings.Contains(log.String(), "node=e1") {
		t.Errorf("log: %s", &log)
	}
	if err := Next(t.Context(), s, Remote{client(t, s), []string{url}}); err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("a second one at once: %v", err)
	}
	if err := Next(t.Context(), s, Remote{client(t, s), []string{without, without}}); !errors.Is(err, ErrNotHere) {
		t.Errorf("without the CA key: %v", err)
	}
	if s.Leaf() != now {
		t.Error("a failure changed the certificate")
	}
}

// What the handler refuses.
func TestRenewRefused(t *testing.T) {
	ca, file := newCA(t, time.Hour, tokens(t)[0])
	control := member(t, ca, file, Member{Role: "control", Node: "c1", Hosts: []string{"127.0.0.1"}, Life: 10 * time.Minute})
	url := serve(t, control, RenewHandler(ca, RenewOptions{Logger: quiet, Allowed: func(role, id string) error {
		if id == "gone" {
			return errors.New("gone")
		}
		return nil
	}}))
	f := member(t, ca, file, Member{Role: "data", Node: "d1", Life: 10 * time.Minute})
	c := client(t, open(t, f))
	gone := client(t, open(t, member(t, ca, file, Member{Role: "data", Node: "gone", Life: 10 * time.Minute})))
	csr := func(key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example"}}, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	key, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	own, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := csr(key)
	forged[len(forged)-1] ^= 1
	for _, x := range []struct {
		what   string
		c      *http.Client
		method string
		body   []byte
		want   int
	}{
		{"GET", c, "GET", nil, 405},
		{"nothing", c, "POST", nil, 400},
		{"no CSR", c, "POST", []byte("nonsense"), 400},
		{"large", c, "POST", make([]byte, csrMax+1), 400},
		{"a wrong signature", c, "POST", forged, 400},
		{"the same key", c, "POST", csr(own.PrivateKey.(*ecdsa.PrivateKey)), 400},
		{"another curve", c, "POST", csr(p384), 500},
		{"no member any more", gone, "POST", csr(key), 403},
	} {
		status, _ := request(t, x.c, x.method, url, x.body)
		if status != x.want {
			t.Errorf("%s: %d, want %d", x.what, status, x.want)
		}
	}
	h := RenewHandler(ca, RenewOptions{Logger: quiet})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/", bytes.NewReader(csr(key)))) // by plain HTTP
	if w.Code != 403 {
		t.Errorf("without TLS: %d", w.Code)
	}
	// Names in a CSR are nobody's business. It is another handler, which has not counted the one with another curve.
	status, body := request(t, c, "POST", serve(t, control, h), csr(key))
	if status != 200 || len(parse(t, body).DNSNames) != 0 {
		t.Errorf("%d %s", status, body)
	}
}

func request(t *testing.T, c *http.Client, method, url string, body []byte) (int, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

// wrongful answers with certificates that must not be taken.
type wrongful struct{ answer func(*ecdsa.PublicKey) []byte }

func (w wrongful) Renew(_ context.Context, key *ecdsa.PublicKey, _ []byte) ([]byte, error) {
	return w.answer(key), nil
}

func TestNextRefuses(t *testing.T) {
	two := tokens(t)
	ca, file := newCA(t, time.Hour, two[0])
	other, _ := newCA(t, time.Hour, two[1])
	f := member(t, ca, file, Member{Role: "data", Node: "d1", Life: 10 * time.Minute})
	s := open(t, f)
	was := s.Leaf()
	stranger, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *CA, key *ecdsa.PublicKey, role, node string) []byte {
		c, err := ca.Issue(key, Member{Role: role, Node: node, Hosts: []string{"a"}, Life: time.Minute})
		if err != nil {
			t.Error(err)
		}
		return c
	}
	for what, answer := range map[string]func(*ecdsa.PublicKey) []byte{
		"nothing":        func(*ecdsa.PublicKey) []byte { return nil },
		"two":            func(k *ecdsa.PublicKey) []byte { c := issue(ca, k, "data", "d1"); return append(c, c...) },
		"another key":    func(*ecdsa.PublicKey) []byte { return issue(ca, &stranger.PublicKey, "data", "d1") },
		"another role":   func(k *ecdsa.PublicKey) []byte { return issue(ca, k, "control", "d1") },
		"another node":   func(k *ecdsa.PublicKey) []byte { return issue(ca, k, "data", "d2") },
		"an unknown CA":  func(k *ecdsa.PublicKey) []byte { return issue(other, k, "data", "d1") },
		"not PEM at all": func(*ecdsa.PublicKey) []byte { return []byte("x") },
	} {
		if err := Next(t.Context(), s, wrongful{answer}); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if err := s.Reload(); err != nil || s.Leaf().SerialNumber.Cmp(was.SerialNumber) != 0 {
		t.Errorf("the files changed: %v", err)
	}
}

// Keep renews before the end, again and again, while handshakes go on; a control plane does it with its own CA.
func TestKeep(t *testing.T) {
	ca, file := newCA(t, time.Hour, tokens(t)[0])
	s := open(t, member(t, ca, file, Member{Role: "control", Node: "c1", Hosts: []string{"127.0.0.1"}, Life: 3 * time.Second}))
	cfg, err := s.Server("control")
	if err != nil {
		t.Fatal(err)
	}
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	ts.TLS = cfg
	ts.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelError)
	ts.StartTLS()
	defer ts.Close()
	ctx, stop := context.WithCancel(t.Context())
	var keeps sync.WaitGroup
	keeps.Go(func() { Keep(ctx, s, Own{ca, s}, quiet) })
	seen := map[string]bool{}
	for deadline := time.Now().Add(60 * time.Second); len(seen) < 2; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d certificates in a minute", len(seen))
		}
		c := client(t, s)
		resp, err := c.Get(ts.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		seen[resp.TLS.PeerCertificates[0].SerialNumber.String()] = true
		c.CloseIdleConnections()
	}
	stop()
	keeps.Wait()
}

func TestDue(t *testing.T) {
	from := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: from.Add(-skew), NotAfter: from.Add(24 * time.Hour)}
	for _, c := range []struct {
		jitter float64
		failed time.Duration // after from; 0: none
		want   time.Duration
	}{
		{0, 0, 16 * time.Hour},
		{0.5, 0, 16*time.Hour + 36*time.Minute},
		{0, time.Hour, 16 * time.Hour},
		{0, 17 * time.Hour, 17*time.Hour + 48*time.Minute},
	} {
		var failed time.Time
		if c.failed != 0 {
			failed = from.Add(c.failed)
		}
		if got := due(leaf, c.jitter, failed).Sub(from); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// A Store that was interrupted between its two names is finished by the next start.
func TestInterruptedStore(t *testing.T) {
	ca, file := newCA(t, time.Hour, tokens(t)[0])
	m := Member{Role: "data", Node: "d1", Life: 10 * time.Minute}
	f, next := member(t, ca, file, m), member(t, ca, file, m)
	want := open(t, next).Leaf()
	if err := os.Rename(next.Key, f.Key); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next.Cert, f.Cert+".new"); err != nil {
		t.Fatal(err)
	}
	if got := open(t, f).Leaf(); got.SerialNumber.Cmp(want.SerialNumber) != 0 {
		t.Error("another certificate")
	}
}
