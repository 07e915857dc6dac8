package apitest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/xks"
)

// What an XKSProxy is to the KMS that calls it. Its certificate is for the host of the endpoint.
const (
	XKSEndpoint    = "https://xks-proxy.keyplane.example"
	XKSHost        = "xks-proxy.keyplane.example"
	XKSPath        = "/team-a" + xks.BasePath
	XKSAccessKeyID = "AKEYPLANETESTCREDENTIAL"
	XKSSecret      = "FYtE5EFA5FT0mCc3DrGUe2sti527BitkQ0Zr9MO9fvE"
)

// XKSProxy is a server whose KMS keys are external keys for another KMS, or for itself. It stops with the test.
type XKSProxy struct {
	*Server
	Addr   string // host:port of the proxy: what XKSHost is, in XKSConfig.Hosts
	CAFile string // PEM of the root of its certificate: XKSConfig.TrustedRoots
	cfg    node.XKSProxyConfig
}

// StartXKSProxy is Start with a proxy that offers no keys yet.
func StartXKSProxy(t testing.TB, opts ...Option) *XKSProxy {
	t.Helper()
	p := &XKSProxy{}
	dir := t.TempDir()
	certFile, keyFile := xksCertificate(t, dir)
	secretFile := filepath.Join(dir, "secret")
	if err := os.WriteFile(secretFile, []byte(XKSSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.CAFile = certFile
	p.cfg = node.XKSProxyConfig{Listen: "127.0.0.1:0", TLSCert: certFile, TLSKey: keyFile, Prefixes: []node.XKSPrefixConfig{{
		Path: "/team-a", Region: Region, Credentials: []node.XKSCredentialConfig{{AccessKeyID: XKSAccessKeyID, SecretFile: secretFile}},
	}}}
	p.Server = Start(t, append([]Option{func(c *node.Config) { c.XKSProxy = p.cfg }}, opts...)...)
	p.Addr = p.node.XKSAddr()
	return p
}

// Reached is an option for the server that calls this proxy.
func (p *XKSProxy) Reached(c *node.Config) {
	c.XKS = node.XKSConfig{TrustedRoots: p.CAFile, Hosts: map[string]string{XKSHost: p.Addr}}
}

// Offer makes a KMS key and offers it as the external key of that ID. It returns the key's ARN. edit changes the external key's access control.
func (p *XKSProxy) Offer(t testing.TB, id string, edit ...func(*node.XKSKeyConfig)) string {
	t.Helper()
	out, err := p.KMS(t).CreateKey(context.Background(), &kms.CreateKeyInput{})
	if err != nil {
		t.Fatal(err)
	}
	k := node.XKSKeyConfig{ID: id, Key: *out.KeyMetadata.Arn}
	for _, e := range edit {
		e(&k)
	}
	prefix := p.cfg.Prefixes[0]
	prefix.Keys = append(slices.Clone(prefix.Keys), k)
	p.cfg.Prefixes = []node.XKSPrefixConfig{prefix}
	if err := p.node.ReloadXKS(context.Background(), p.cfg); err != nil {
		t.Fatal(err)
	}
	return k.Key
}

// xksCertificate makes a certificate for XKSHost that is its own root.
func xksCertificate(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keyplane test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{XKSHost}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER)
}
