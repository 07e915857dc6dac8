package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// readAttestationRoots reads the roots of attestation documents; nil for no file. A file that has anything in it that is not such a root is refused: whom
// to trust is not guessed. The log shows the roots, for the operator to compare.
func (n *Node) readAttestationRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	roots, err := parseAttestationRoots(path)
	if err != nil {
		return nil, fmt.Errorf("node: attestation_roots: %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
		fingerprint := sha256.Sum256(c.Raw)
		n.log.Info("attestation documents of this root are trusted", "subject", c.Subject.String(), "sha256", hex.EncodeToString(fingerprint[:]), "until", c.NotAfter)
		if now := time.Now(); now.Before(c.NotBefore) || now.After(c.NotAfter) {
			n.log.Warn("a root of attestation documents is not valid now: none of its documents will be", "subject", c.Subject.String(), "from", c.NotBefore, "until", c.NotAfter)
		}
	}
	return pool, nil
}

func parseAttestationRoots(path string) ([]*x509.Certificate, error) {
	roots, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	for _, c := range roots {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		switch {
		case !ok || key.Curve != elliptic.P384():
			return nil, fmt.Errorf("%s: the key is not EC P-384", c.Subject)
		case !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0:
			return nil, fmt.Errorf("%s is not the certificate of an authority", c.Subject)
		case c.CheckSignatureFrom(c) != nil:
			return nil, fmt.Errorf("%s is not self-signed, and so no root", c.Subject)
		}
	}
	return roots, nil
}

// readCertificates reads a PEM file that has certificates, one at least, and no other blocks.
func readCertificates(path string) (certificates []*x509.Certificate, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, pemMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > pemMax {
		return nil, fmt.Errorf("larger than %d bytes", pemMax)
	}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("a PEM block is a %q, not a CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates, data = append(certificates, c), rest
	}
	switch {
	case len(certificates) == 0:
		return nil, errors.New("has no certificate in PEM")
	case strings.Contains(string(data), "-----BEGIN"):
		return nil, errors.New("has a PEM block that cannot be read")
	}
	return certificates, nil
}
