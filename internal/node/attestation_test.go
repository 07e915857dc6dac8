package node

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/attest"
	"github.com/keyplane/keyplane/internal/attest/attesttest"
)

func TestAttestationRoots(t *testing.T) {
	now := time.Now()
	a, b := attesttest.New(t, now), attesttest.New(t, now)
	certificate := func(der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	p256 := attesttest.New(t, now, func(depth int, c *x509.Certificate) crypto.Signer {
		if depth == 0 {
			c.SignatureAlgorithm = x509.ECDSAWithSHA256
			return attesttest.NewKey(t, elliptic.P256())
		}
		return nil
	})
	expired := attesttest.New(t, now, func(_ int, c *x509.Certificate) crypto.Signer { c.NotAfter = now.Add(-time.Hour); return nil })
	rootA, rootB := certificate(a.Chain[0]), certificate(b.Chain[0])
	for _, c := range []struct {
		name, text string
		want       string // of the error; "" for none
		log        string
	}{
		{"one", rootA, "", "CN=root.test.nitro-enclaves"},
		{"two, with words around", "# roots\n" + rootA + "and\n" + rootB + "\n", "", "sha256="},
		{"an expired one", certificate(expired.Chain[0]), "", "not valid now"},
		{"nothing", "", "has no certificate in PEM", ""},
		{"no PEM", "MIIC", "has no certificate in PEM", ""},
		{"a key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", `is a "PRIVATE KEY"`, ""},
		{"a certificate and a key", rootA + "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", `is a "PRIVATE KEY"`, ""},
		{"a certificate cut off", rootA[:len(rootA)-30], "has no certificate in PEM", ""},
		{"a second one cut off", rootA + rootB[:len(rootB)-30], "has a PEM block that cannot be read", ""},
		{"garbage in PEM", certificate([]byte{0x30, 0}), "x509", ""},
		{"an intermediate", certificate(a.Chain[1]), "not self-signed", ""},
		{"a leaf", certificate(a.Leaf), "not the certificate of an authority", ""},
		{"P-256", certificate(p256.Chain[0]), "not EC P-384", ""},
		{"too large", rootA + strings.Repeat("#", pemMax), "larger than", ""},
	} {
		path := filepath.Join(t.TempDir(), "roots.pem")
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		n := &Node{log: slog.New(slog.NewTextHandler(&log, nil))}
		pool, err := n.readAttestationRoots(path)
		switch {
		case c.want == "" && (err != nil || pool == nil):
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || pool != nil):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		case !strings.Contains(log.String(), c.log):
			t.Errorf("%s: the log does not say %q: %s", c.name, c.log, log.String())
		}
		if c.name == "two, with words around" {
			for _, authority := range []*attesttest.Authority{a, b} {
				doc := authority.Document(t, attesttest.NewRecipient(t).Public(), [][]byte{make([]byte, 48)}, now)
				if _, err := attest.Verify(doc, pool, now); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		}
	}
	n := &Node{log: slog.New(slog.DiscardHandler)}
	if pool, err := n.readAttestationRoots(""); pool != nil || err != nil {
		t.Errorf("without a file: %v, %v", pool, err)
	}
	if _, err := n.readAttestationRoots(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is no error")
	}
}
