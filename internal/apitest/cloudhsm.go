package apitest

import (
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

	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/node"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
)

// ClusterID is the CloudHsmClusterId of every cluster made here, and ClusterPassword the PIN of its HSMs.
const (
	ClusterID       = "cluster-234567abcde"
	ClusterPassword = hsmtest.PIN
)

// HSMCluster is a CloudHSM cluster of SoftHSM tokens with roots of their own.
type HSMCluster struct {
	Config node.ClusterConfig
	Anchor string         // its certificate, PEM
	Slow   []*slowhsm.HSM // the HSMs that can be slow, and taken away
}

// NewHSMCluster makes a cluster of direct tokens, which always answer, and of slow ones behind slow HSMs, each a module of its own. With slow ones the environment of the
// process is changed, and the test is not parallel.
func NewHSMCluster(t testing.TB, direct, slow int) *HSMCluster {
	t.Helper()
	c := &HSMCluster{Config: node.ClusterConfig{ID: ClusterID, TrustAnchor: filepath.Join(t.TempDir(), "customerCA.crt")}}
	c.Anchor = string(authority(t))
	if err := os.WriteFile(c.Config.TrustAnchor, []byte(c.Anchor), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range direct + slow {
		uri := hsmtest.SoftHSM(t)
		if i >= direct {
			// A module is initialised once in a process, so that each slow one has another copy of it.
			h := slowhsm.Over(t, withCopy(t, uri), slowhsm.Settings{})
			c.Slow, uri = append(c.Slow, h), h.URI()
		}
		if _, err := p11.InitRoots(uri); err != nil {
			t.Fatal(err)
		}
		c.Config.HSMs = append(c.Config.HSMs, withoutPIN(t, uri))
	}
	return c
}

// Configured is an option for a server that has the cluster.
func (c *HSMCluster) Configured(cfg *node.Config) { cfg.Clusters = append(cfg.Clusters, c.Config) }

// withoutPIN is the URI of a token whose PIN is given in another way.
func withoutPIN(t testing.TB, uri string) string {
	t.Helper()
	return edited(t, uri, func(u *pkcs11uri.URI) {
		u.Query = slices.DeleteFunc(u.Query, func(a pkcs11uri.Attr) bool { return a.Name == "pin-source" })
	})
}

// withCopy is the URI of a token through a copy of its module.
func withCopy(t testing.TB, uri string) string {
	t.Helper()
	return edited(t, uri, func(u *pkcs11uri.URI) {
		for i, a := range u.Query {
			if a.Name != "module-path" {
				continue
			}
			b, err := os.ReadFile(a.Value)
			if err != nil {
				t.Fatal(err)
			}
			u.Query[i].Value = filepath.Join(t.TempDir(), filepath.Base(a.Value))
			if err := os.WriteFile(u.Query[i].Value, b, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func edited(t testing.TB, uri string, edit func(*pkcs11uri.URI)) string {
	t.Helper()
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	edit(u)
	return u.String()
}

// authority makes the certificate of an authority, PEM.
func authority(t testing.TB) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's cluster"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
