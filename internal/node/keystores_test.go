//go:build cgo

package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

// certificates writes a PEM file with n certificates.
func certificates(t *testing.T, n int) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for i := range n {
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	path := filepath.Join(t.TempDir(), "certificates.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeyStores: a node connects the key store that was connected when the last one ended, and says in its record where the password is wrong.
func TestKeyStores(t *testing.T) {
	cfg := testConfig(t)
	cluster := ClusterConfig{ID: "cluster-234567abcde", TrustAnchor: certificates(t, 1)}
	for range 2 {
		uri := hsmtest.SoftHSM(t)
		if _, err := p11.InitRoots(uri); err != nil {
			t.Fatal(err)
		}
		at := strings.Index(uri, "&pin-source=")
		cluster.HSMs = append(cluster.HSMs, uri[:at])
	}
	cfg.Clusters = []ClusterConfig{cluster}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	start := func() *Node {
		t.Helper()
		n, err := Start(t.Context(), cfg, quiet)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(n.Close)
		return n
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("never: %s", what)
			}
		}
	}
	account, _ := keyid.ParseAccount([]byte(cfg.Account))
	name := store.KeyStoreName{Region: cfg.Region, Account: account, ID: "cks-00000000000000001"}

	n := start()
	if (dataKeyStores{n.keyStores}).Store(name.Region, name.Account, name.ID) != nil {
		t.Error("the data plane has a key store that there is not")
	}
	if err := n.store.CreateKeyStore(t.Context(), &store.KeyStore{
		KeyStoreName: name, CustomName: "hsms", Type: store.CloudHSM, Created: time.Now(), State: store.Connected, Cluster: cluster.ID, TrustAnchor: "anchor", Secret: secret.New([]byte(hsmtest.PIN)),
	}, 10, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	n.Close()

	n = start()
	at := (dataKeyStores{n.keyStores}).Store(name.Region, name.Account, name.ID)
	if at == nil || at.External() {
		t.Fatalf("the data plane's key store: %v", at)
	}
	eventually("the key store is connected", at.Connected)
	copies, _, err := n.keyStores.NewKey(t.Context(), name)
	if err != nil || len(copies) != 2 {
		t.Fatalf("%d copies, %v", len(copies), err)
	}
	st := n.Stats().KeyStores
	if len(st) != 1 || !st[0].Connected || len(st[0].HSMs) != 2 || st[0].HSMs[0].Name == st[0].HSMs[1].Name || strings.Contains(st[0].HSMs[0].Name, ":") {
		t.Errorf("stats: %+v", st)
	}
	if _, err := n.store.UpdateKeyStore(t.Context(), name, func(k *store.KeyStore) error { k.Secret = secret.New([]byte("another password")); return nil }, nil); err != nil {
		t.Fatal(err)
	}
	n.Close()

	n = start()
	eventually("the record says what is wrong", func() bool {
		k, err := n.store.KeyStore(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return k.State == store.Failed && k.Error == "INVALID_CREDENTIALS"
	})
	if n.keyStores.Connected(name) {
		t.Error("connected with a wrong password")
	}
}

// TestKeyStoreFiles: certificates that cannot be read refuse the start.
func TestKeyStoreFiles(t *testing.T) {
	uris := []string{"pkcs11:token=a?module-path=/m", "pkcs11:token=b?module-path=/m"}
	for _, c := range []struct {
		set  func(*Config)
		want string // "" for a start
	}{
		{func(c *Config) {
			c.Clusters = []ClusterConfig{{ID: "cluster-234567abcde", HSMs: uris, TrustAnchor: certificates(t, 1)}}
		}, ""},
		{func(c *Config) {
			c.Clusters = []ClusterConfig{{ID: "cluster-234567abcde", HSMs: uris, TrustAnchor: "/nowhere"}}
		}, "trust_anchor: /nowhere"},
		{func(c *Config) {
			c.Clusters = []ClusterConfig{{ID: "cluster-234567abcde", HSMs: uris, TrustAnchor: certificates(t, 2)}}
		}, "has 2 certificates"},
		{func(c *Config) { c.XKS.TrustedRoots = certificates(t, 2) }, ""},
		{func(c *Config) { c.XKS = XKSConfig{TrustedRoots: certificates(t, 1), SystemRoots: true} }, ""},
		{func(c *Config) { c.XKS.TrustedRoots = "/nowhere" }, "xks.trusted_roots: /nowhere"},
		{func(c *Config) { c.XKS.TrustedRoots = certificates(t, 0) }, "has no certificate in PEM"},
	} {
		cfg := testConfig(t)
		c.set(&cfg)
		n, err := Start(t.Context(), cfg, quiet)
		if err == nil {
			n.Close()
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
}

// TestCloseTimeout: of several processes none waits so long for an HSM that hangs that its lease runs out.
func TestCloseTimeout(t *testing.T) {
	if d := (&Node{split: &splitPart{}}).closeTimeout(); d <= 0 || d > fence.Term/3 {
		t.Error(d)
	}
	if d := new(Node).closeTimeout(); d != 0 {
		t.Error(d)
	}
}
