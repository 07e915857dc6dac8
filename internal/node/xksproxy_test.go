package node

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/xks"
)

const (
	xksID     = "AKEYPLANETESTCREDENTIAL"
	xksOther  = "BKEYPLANETESTCREDENTIAL"
	xksSecret = "FYtE5EFA5FT0mCc3DrGUe2sti527BitkQ0Zr9MO9fvE"
	xksARN    = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
)

func xksSecretFile(t *testing.T, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testXKSProxy(t *testing.T) XKSProxyConfig {
	return XKSProxyConfig{Listen: "127.0.0.1:0", Prefixes: []XKSPrefixConfig{{
		Path: "/team-a", Region: "eu-west-1", Credentials: []XKSCredentialConfig{{xksID, xksSecretFile(t, xksSecret)}},
		Keys: []XKSKeyConfig{{ID: "one", Key: xksARN}},
	}}}
}

func TestXKSProxyConfig(t *testing.T) {
	valid := func(change func(c *XKSProxyConfig)) string {
		cfg := Config{Region: "us-east-1", XKSProxy: testXKSProxy(t)}
		change(&cfg.XKSProxy)
		cfg.Defaults()
		if err := cfg.Validate(); err != nil {
			return err.Error()
		}
		return ""
	}
	prefix := func(change func(p *XKSPrefixConfig)) func(c *XKSProxyConfig) {
		return func(c *XKSProxyConfig) { change(&c.Prefixes[0]) }
	}
	key := func(change func(k *XKSKeyConfig)) func(c *XKSProxyConfig) {
		return func(c *XKSProxyConfig) { change(&c.Prefixes[0].Keys[0]) }
	}
	for _, c := range []struct {
		want   string // a part of the error; "" for none
		change func(c *XKSProxyConfig)
	}{
		{"", func(c *XKSProxyConfig) {}},
		{"", func(c *XKSProxyConfig) { *c = XKSProxyConfig{} }},
		{"", func(c *XKSProxyConfig) { c.Listen = "[::1]:0" }},
		{"", func(c *XKSProxyConfig) { c.Listen, c.TLSCert, c.TLSKey = ":443", "a", "b" }},
		{"", func(c *XKSProxyConfig) { c.Prefixes[0].Path, c.Prefixes[0].Keys = "", nil }},
		{"", prefix(func(p *XKSPrefixConfig) {
			p.Keys = append(p.Keys, XKSKeyConfig{ID: "two", Key: xksARN, ReadOnly: true, Principals: []string{"*"}})
		})},
		{"xks_proxy.listen: without it", func(c *XKSProxyConfig) { c.Listen = "" }},
		{`xks_proxy.listen: "x" is not host:port`, func(c *XKSProxyConfig) { c.Listen = "x" }},
		{"both or neither", func(c *XKSProxyConfig) { c.TLSCert = "a" }},
		{"loopback", func(c *XKSProxyConfig) { c.Listen = ":8443" }},
		{"loopback", func(c *XKSProxyConfig) { c.Listen = "192.0.2.1:8443" }},
		{"client_ca", func(c *XKSProxyConfig) { c.ClientCA = "a" }},
		{"client_names", func(c *XKSProxyConfig) { c.ClientNames = []string{"a"} }},
		{"conns_max", func(c *XKSProxyConfig) { c.ConnsMax = -1 }},
		{"prefixes: 1 to", func(c *XKSProxyConfig) { c.Prefixes = nil }},
		{`prefixes[1].path: "/team-a" is listed twice`, func(c *XKSProxyConfig) { c.Prefixes = append(c.Prefixes, c.Prefixes[0]) }},
		{"prefixes[0].path", prefix(func(p *XKSPrefixConfig) { p.Path = "team-a" })},
		{"prefixes[0].path", prefix(func(p *XKSPrefixConfig) { p.Path = "/a.b" })},
		{"prefixes[0].path", prefix(func(p *XKSPrefixConfig) { p.Path = "/" + strings.Repeat("a", 117) })},
		{"prefixes[0].rate: -1 is not 0 to 1000000", prefix(func(p *XKSPrefixConfig) { p.Rate = -1 })},
		{"prefixes[0].rate", prefix(func(p *XKSPrefixConfig) { p.Rate = 1_000_001 })},
		{"", prefix(func(p *XKSPrefixConfig) { p.Rate = 1800 })},
		{"prefixes[0].region", prefix(func(p *XKSPrefixConfig) { p.Region = "" })},
		{"prefixes[0].credentials", prefix(func(p *XKSPrefixConfig) { p.Credentials = nil })},
		{"prefixes[0].credentials", prefix(func(p *XKSPrefixConfig) {
			p.Credentials = append(append(p.Credentials, p.Credentials...), p.Credentials...)
		})},
		{"that of both", prefix(func(p *XKSPrefixConfig) { p.Credentials = append(p.Credentials, p.Credentials...) })},
		{"access_key_id", prefix(func(p *XKSPrefixConfig) { p.Credentials[0].AccessKeyID = "AKIAIOSFODNN7EXAMPL1" })},
		{"secret_file", prefix(func(p *XKSPrefixConfig) { p.Credentials[0].SecretFile = "" })},
		{"keys[0].id", key(func(k *XKSKeyConfig) { k.ID = "a/b" })},
		{"keys[0].key", key(func(k *XKSKeyConfig) { k.Key = "alias/a" })},
		{"not this server's", key(func(k *XKSKeyConfig) { k.Key = strings.Replace(xksARN, "us-east-1", "us-east-2", 1) })},
		{"not this server's", key(func(k *XKSKeyConfig) { k.Key = strings.Replace(xksARN, "aws", "aws-cn", 1) })},
		{"multi-Region", key(func(k *XKSKeyConfig) {
			k.Key = "arn:aws:kms:us-east-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab"
		})},
		{"keys[0].principals", key(func(k *XKSKeyConfig) { k.Principals = []string{""} })},
		{`keys[1].id: "one" is listed twice`, prefix(func(p *XKSPrefixConfig) { p.Keys = append(p.Keys, p.Keys[0]) })},
		{"prefixes[1].keys[0].key: " + xksARN + " is another external key already", func(c *XKSProxyConfig) {
			p := c.Prefixes[0]
			p.Path = "/team-b"
			c.Prefixes = append(c.Prefixes, p)
		}},
		{"", func(c *XKSProxyConfig) {
			p := c.Prefixes[0]
			p.Path, p.Keys = "/team-b", []XKSKeyConfig{{ID: "one", Key: xksARN, ReadOnly: true}}
			c.Prefixes = append(c.Prefixes, p)
		}},
		{"another external key already", prefix(func(p *XKSPrefixConfig) { p.Keys = append(p.Keys, XKSKeyConfig{ID: "two", Key: xksARN}) })},
	} {
		if got := valid(c.change); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("error %q, want %q", got, c.want)
		}
	}
	cfg, err := ParseConfig([]byte("xks_proxy: {listen: '127.0.0.1:0', prefixes: [{path: /a, region: eu-west-1, credentials: [{access_key_id: A, secret_file: f}], " +
		"keys: [{id: one, key: arn, principals: [p], operations: [o], via_services: [v], read_only: true}]}]}"))
	if err != nil || len(cfg.XKSProxy.Prefixes) != 1 || !cfg.XKSProxy.Prefixes[0].Keys[0].ReadOnly || cfg.XKSProxy.Prefixes[0].Keys[0].ViaServices[0] != "v" {
		t.Errorf("%+v %v", cfg.XKSProxy, err)
	}
}

// askXKS sends a health check and returns the status.
func askXKS(t *testing.T, client *http.Client, url, id, secret string) (int, string) {
	t.Helper()
	key, err := sigv4.NewAccessKey(id, []byte(secret), sigv4.Principal{})
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(`{"requestMetadata":{"kmsRequestId":"1","kmsOperation":"KmsHealthCheck"}}`)
	r, err := http.NewRequest("POST", url+"/team-a"+xks.BasePath+"/health", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	date := string(sigv4.AppendDate(nil, time.Now()))
	var scratch sigv4.Scratch
	auth, err := sigv4.AppendAuthorization(nil, key, "eu-west-1", xks.SigningName, &sigv4.Request{Method: []byte("POST"), Path: []byte(r.URL.Path), Body: body,
		Headers: []sigv4.Header{{Name: []byte("host"), Value: []byte(r.URL.Host)}, {Name: []byte("x-amz-date"), Value: []byte(date)}}}, &scratch)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Amz-Date", date)
	r.Header.Set("Authorization", string(auth))
	resp, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// clientCertificate is a certificate of that name, signed by ca.
func clientCertificate(t *testing.T, name string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func newCA(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test roots"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return ca, key, file
}

// certified is a client that trusts roots and shows a certificate.
func certified(roots *x509.CertPool, most uint16, certs ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs, MinVersion: tls.VersionTLS10, MaxVersion: most}}}
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestXKSProxyNames: the names that clients' certificates may have follow the configuration, and a refused one is in the log.
func TestXKSProxyNames(t *testing.T) {
	cfg := testConfig(t)
	cfg.XKSProxy = testXKSProxy(t)
	var roots *x509.CertPool
	cfg.XKSProxy.TLSCert, cfg.XKSProxy.TLSKey, roots = newCertificate(t)
	ca, caKey, caFile := newCA(t)
	cfg.XKSProxy.ClientCA = caFile
	cfg.Defaults()
	log := &lockedBuffer{}
	n, err := Start(t.Context(), cfg, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	const here, there = "cks.kms.eu-west-1.amazonaws.com", "cks.kms.us-east-1.amazonaws.com"
	asks := func(name string, ok bool) {
		t.Helper()
		status, body := askXKS(t, certified(roots, tls.VersionTLS12, clientCertificate(t, name, ca, caKey)), "https://"+n.XKSAddr(), xksID, xksSecret)
		if (status == 200) != ok || !ok && status != 0 {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	reload := func(change func(c *XKSProxyConfig)) {
		t.Helper()
		c := cfg.XKSProxy
		c.Prefixes = slices.Clone(c.Prefixes)
		change(&c)
		if err := n.ReloadXKS(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	asks(here, true)
	asks(there, false)
	if !strings.Contains(log.String(), "common_name="+there) {
		t.Errorf("log: %s", log)
	}
	reload(func(c *XKSProxyConfig) {
		c.Prefixes = append(c.Prefixes, XKSPrefixConfig{Path: "/team-b", Region: "us-east-1", Credentials: c.Prefixes[0].Credentials})
	})
	asks(here, true)
	asks(there, true)
	reload(func(c *XKSProxyConfig) { c.ClientNames = []string{there} })
	asks(here, false)
	asks(there, true)
}

// TestXKSProxyTLS: who shows a certificate of another name, of another root or none does not get as far as a request; TLS 1.1 nobody.
func TestXKSProxyTLS(t *testing.T) {
	cfg := testConfig(t)
	cfg.XKSProxy = testXKSProxy(t)
	var roots *x509.CertPool
	cfg.XKSProxy.TLSCert, cfg.XKSProxy.TLSKey, roots = newCertificate(t)
	ca, caKey, caFile := newCA(t)
	stranger, strangerKey, _ := newCA(t)
	cfg.XKSProxy.ClientCA = caFile
	n := startNode(t, cfg)
	const name = "cks.kms.eu-west-1.amazonaws.com"
	for _, c := range []struct {
		what  string
		certs []tls.Certificate
		most  uint16
		ok    bool
	}{
		{"its certificate", []tls.Certificate{clientCertificate(t, name, ca, caKey)}, 0, true},
		{"its certificate, TLS 1.2", []tls.Certificate{clientCertificate(t, name, ca, caKey)}, tls.VersionTLS12, true},
		{"TLS 1.1", []tls.Certificate{clientCertificate(t, name, ca, caKey)}, tls.VersionTLS11, false},
		{"another Region's", []tls.Certificate{clientCertificate(t, "cks.kms.us-east-1.amazonaws.com", ca, caKey)}, 0, false},
		{"another root's", []tls.Certificate{clientCertificate(t, name, stranger, strangerKey)}, 0, false},
		{"none", nil, 0, false},
	} {
		status, body := askXKS(t, certified(roots, c.most, c.certs...), "https://"+n.XKSAddr(), xksID, xksSecret)
		if (status == 200) != c.ok || !c.ok && status != 0 {
			t.Errorf("%s: %d %s", c.what, status, body)
		}
	}
}

// TestXKSClientCertificate: a key store's proxy that asks for a certificate is shown the one of the configuration. The server is its own proxy.
func TestXKSClientCertificate(t *testing.T) {
	const host, name = "xks.example.com", "cks.kms.eu-west-1.amazonaws.com"
	ca, caKey, caFile := newCA(t)
	files := func() (certFile, keyFile string) {
		t.Helper()
		pair := clientCertificate(t, name, ca, caKey)
		key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
		for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return certFile, keyFile
	}
	certFile, keyFile := files()
	cfg := testConfig(t)
	cfg.XKSProxy = testXKSProxy(t)
	cfg.XKSProxy.TLSCert, cfg.XKSProxy.TLSKey, _ = newCertificate(t)
	cfg.XKSProxy.ClientCA = caFile
	cfg.XKS = XKSConfig{TrustedRoots: cfg.XKSProxy.TLSCert, Hosts: map[string]string{host: "127.0.0.1:0"}, ClientCert: certFile, ClientKey: keyFile}
	n := startNode(t, cfg)
	cfg.XKS.Hosts[host] = n.XKSAddr() // nobody has asked yet
	account, _ := keyid.ParseAccount([]byte(cfg.Account))
	ks := &store.KeyStore{
		KeyStoreName: store.KeyStoreName{Region: "eu-west-1", Account: account, ID: "cks-00000000000000001"}, Type: store.ExternalKeyStore, Endpoint: "https://" + host,
		Path: "/team-a" + xks.BasePath, AccessKeyID: xksID, Secret: secret.New([]byte(xksSecret)),
	}
	// What a busy machine is too slow for is asked again; a certificate that is refused stays so.
	try := func(n *Node) (refused bool, err error) {
		for range 20 {
			err = n.keyStores.Try(t.Context(), ks, "CreateCustomKeyStore", "1")
			fault, _ := errors.AsType[*controlplane.StoreFault](err)
			if refused = fault != nil && fault.Connection == "XKS_PROXY_INVALID_TLS_CONFIGURATION"; err == nil || refused {
				break
			}
		}
		return refused, err
	}
	if _, err := try(n); err != nil {
		t.Error(err)
	}
	without := testConfig(t)
	without.XKS = XKSConfig{TrustedRoots: cfg.XKS.TrustedRoots, Hosts: cfg.XKS.Hosts}
	if refused, err := try(startNode(t, without)); !refused {
		t.Errorf("without a certificate: %v", err)
	}

	_, other := files()
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	openFile := filepath.Join(t.TempDir(), "open.pem")
	if err := os.WriteFile(openFile, key, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ cert, key, want string }{
		{certFile, openFile, "xks.client_cert, xks.client_key: key: "}, {certFile, other, "xks.client_cert, xks.client_key: certificate: "}, {"/nowhere", other, "/nowhere"},
	} {
		if _, err := (&XKSConfig{ClientCert: c.cert, ClientKey: c.key}).certificate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// TestXKSProxyReload: credentials are rotated and keys are added while the proxy runs; a configuration that is wrong changes nothing.
func TestXKSProxyReload(t *testing.T) {
	cfg := testConfig(t)
	cfg.XKSProxy = testXKSProxy(t)
	n := startNode(t, cfg)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	asks := func(id, secret string, want int) {
		t.Helper()
		if status, body := askXKS(t, client, "http://"+n.XKSAddr(), id, secret); status != want {
			t.Errorf("%s: %d %s, want %d", id, status, body, want)
		}
	}
	asks(xksID, xksSecret, 200)
	asks(xksOther, xksSecret+"2", 401)
	ctx := context.Background()
	both := cfg.XKSProxy
	both.Prefixes = append([]XKSPrefixConfig(nil), both.Prefixes...)
	both.Prefixes[0].Credentials = append(both.Prefixes[0].Credentials, XKSCredentialConfig{xksOther, xksSecretFile(t, xksSecret+"2")})
	if err := n.ReloadXKS(ctx, both); err != nil {
		t.Fatal(err)
	}
	asks(xksID, xksSecret, 200)
	asks(xksOther, xksSecret+"2", 200)
	wrong := both
	wrong.Prefixes = append([]XKSPrefixConfig(nil), both.Prefixes...)
	wrong.Prefixes[0].Credentials = []XKSCredentialConfig{{xksOther, xksSecretFile(t, "short")}}
	if err := n.ReloadXKS(ctx, wrong); err == nil || strings.Contains(err.Error(), "short") {
		t.Errorf("a wrong secret: %v", err)
	}
	open := xksSecretFile(t, xksSecret)
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	wrong.Prefixes[0].Credentials[0].SecretFile = open
	if err := n.ReloadXKS(ctx, wrong); err == nil {
		t.Error("a secret that others can read is accepted")
	}
	wrong.Prefixes[0].Path = "team"
	if err := n.ReloadXKS(ctx, wrong); err == nil {
		t.Error("a wrong path is accepted")
	}
	if err := n.ReloadXKS(ctx, XKSProxyConfig{}); err == nil {
		t.Error("a configuration without the proxy is taken: nothing is offered any more")
	}
	asks(xksID, xksSecret, 200)
	one := both
	one.Prefixes = append([]XKSPrefixConfig(nil), both.Prefixes...)
	one.Prefixes[0].Credentials = both.Prefixes[0].Credentials[1:]
	if err := n.ReloadXKS(ctx, one); err != nil {
		t.Fatal(err)
	}
	asks(xksID, xksSecret, 401)
	asks(xksOther, xksSecret+"2", 200)
	if err := startNode(t, testConfig(t)).ReloadXKS(ctx, one); err == nil {
		t.Error("there is no proxy to reload")
	}
	if c, err := net.Dial("tcp", n.XKSAddr()); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	n.Close()
	if c, err := net.Dial("tcp", n.XKSAddr()); err == nil {
		c.Close()
		t.Error("it listens after Close")
	}
}

func startNode(t *testing.T, cfg Config) *Node {
	t.Helper()
	cfg.Defaults()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	n, err := Start(context.Background(), cfg, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}
