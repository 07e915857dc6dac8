package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/ratelimit"
)

// newCertificate writes a self-signed certificate for 127.0.0.1 and xks.example.com, and its key.
func newCertificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keyplane test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"xks.example.com"}, BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, text := range map[string][]byte{certFile: certPEM, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots = x509.NewCertPool()
	if !roots.AppendCertsFromPEM(certPEM) {
		t.Fatal("no certificate")
	}
	return certFile, keyFile, roots
}

func TestTLS(t *testing.T) {
	cfg := testConfig(t)
	var roots *x509.CertPool
	cfg.TLSCert, cfg.TLSKey, roots = newCertificate(t)
	cfg.ReadTimeout = 300 * time.Millisecond
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://" + n.Addr() + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.TLS.Version != tls.VersionTLS13 || resp.TLS.CurveID != tls.X25519MLKEM768 {
		t.Errorf("status %d, TLS %x, key exchange %v", resp.StatusCode, resp.TLS.Version, resp.TLS.CurveID)
	}
	for what, c := range map[string]*tls.Config{
		"TLS 1.1": {RootCAs: roots, MaxVersion: tls.VersionTLS11},
		"CBC":     {RootCAs: roots, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}},
	} {
		if _, err := tls.Dial("tcp", n.Addr(), c); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}

	// A client that speaks no TLS, and one that says nothing, are cut off; the service goes on.
	for _, hello := range []string{"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n", ""} {
		c, err := net.Dial("tcp", n.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, hello); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil && os.IsTimeout(err) || strings.Contains(string(b), "ready") {
			t.Errorf("after %q: %q, %v", hello, b, err)
		}
	}
	if resp, err = client.Get("https://" + n.Addr() + "/healthz"); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// Certificate and key are read anew while the process runs, and connections from before go on; a pair that does not fit changes nothing.
func TestTLSReload(t *testing.T) {
	cfg := testConfig(t)
	var first *x509.CertPool
	cfg.TLSCert, cfg.TLSKey, first = newCertificate(t)
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	kept, err := tls.Dial("tcp", n.Addr(), &tls.Config{RootCAs: first})
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	replace := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	cert, key, second := newCertificate(t)
	dial := func(roots *x509.CertPool) error {
		c, err := tls.Dial("tcp", n.Addr(), &tls.Config{RootCAs: roots})
		if err == nil {
			err = c.Close()
		}
		return err
	}
	replace(cert, cfg.TLSCert)
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // it is looked at once in that
		if err := dial(first); err != nil {
			t.Fatalf("with the new certificate and the old key on disk: %v", err)
		}
	}
	replace(key, cfg.TLSKey)
	for deadline := time.Now().Add(30 * time.Second); dial(second) != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the new pair is not used")
		}
	}
	if _, err := io.WriteString(kept, "GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(kept); err != nil || !strings.Contains(string(b), "200 OK") {
		t.Errorf("the connection from before: %q, %v", b, err)
	}
}

// A connection that says nothing keeps nobody out, also when it came while all places were taken, and does not hold up the end.
func TestTLSSilentPeer(t *testing.T) {
	cfg := testConfig(t)
	var roots *x509.CertPool
	cfg.TLSCert, cfg.TLSKey, roots = newCertificate(t)
	cfg.ConnsMax = 1
	n, err := Start(t.Context(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	dial := func() error {
		c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", n.Addr(), &tls.Config{RootCAs: roots})
		if err == nil {
			err = c.Close()
		}
		return err
	}
	first, err := tls.Dial("tcp", n.Addr(), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Dial("tcp", n.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if err := dial(); err == nil {
		t.Error("a second connection was served")
	}
	first.Close()
	for deadline := time.Now().Add(30 * time.Second); dial() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody is served any more")
		}
	}
	ended := make(chan struct{})
	go func() { n.Close(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(3 * drainTimeout):
		t.Fatal("Close does not return")
	}
}

// Of connections that come faster than the limit as many as its burst are served.
func TestHandshakeLimit(t *testing.T) {
	cert, key, roots := newCertificate(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const burst = 3
	ln, err := withTLS(tcp, cert, key, ratelimit.Limit{Interval: time.Hour, Burst: burst}, quiet)
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
			served.Go(func() { _ = c.(*tls.Conn).Handshake() })
		}
	})
	for i := range burst + 2 {
		c, err := tls.Dial("tcp", tcp.Addr().String(), &tls.Config{RootCAs: roots})
		if (err == nil) != (i < burst) {
			t.Errorf("connection %d: %v", i+1, err)
		}
		if err == nil {
			defer c.Close()
		}
	}
	ln.Close()
	served.Wait()
}

func TestTLSRefused(t *testing.T) {
	cert, key, _ := newCertificate(t)
	_, otherKey, _ := newCertificate(t)
	open := filepath.Join(t.TempDir(), "key.pem")
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(open, text, 0o644); err != nil {
		t.Fatal(err)
	}
	large := filepath.Join(t.TempDir(), "large.pem")
	if err := os.WriteFile(large, make([]byte, pemMax), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ cert, key, want string }{
		{cert, open, "permissions 0644"},
		{cert, otherKey, "private key does not match"},
		{key, key, "TLS: planetls: certificate"},
		{cert, key + "x", "no such file"},
		{cert + "x", key, "no such file"},
		{cert, large, "larger than"},
	} {
		cfg := testConfig(t)
		cfg.TLSCert, cfg.TLSKey = c.cert, c.key
		n, err := Start(t.Context(), cfg, quiet)
		if err == nil {
			n.Close()
			t.Errorf("%+v was accepted", c)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q: %v", c.want, err)
		}
	}
}
