package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"time"
)

// verifyChain verifies the chain that the document spells out, leaf, cabundle from its end to its start, to one of the roots, and returns the leaf's key.
// No other chain will do, even to one of the roots: cabundle begins with the root and goes down. Certificates are not revoked: they live for hours.
func verifyChain(p *payload, roots *x509.CertPool, now time.Time) (*ecdsa.PublicKey, error) {
	if roots == nil {
		return nil, refuse("no roots are configured") // x509 would take the system's
	}
	n := len(p.Bundle)
	chain := make([]*x509.Certificate, n+1) // from the leaf to the root
	for i := range chain {
		der := p.Certificate
		if i > 0 {
			der = p.Bundle[n-i]
		}
		c, err := x509.ParseCertificate([]byte(der))
		if err != nil {
			return nil, &Error{Reason: "a certificate cannot be read", Err: err}
		}
		if err := checkCertificate(c, i == 0); err != nil {
			return nil, err
		}
		for _, below := range chain[:i] {
			if bytes.Equal(below.RawSubject, c.RawSubject) {
				// x509 tries every order of certificates of one name: a document could make it verify a hundred signatures.
				return nil, refuse("two of its certificates have the same name")
			}
		}
		chain[i] = c
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, c := range chain[1:n] {
		between.AddCert(c)
	}
	found, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, &Error{Reason: "its certificates do not lead to a configured root", Err: err}
	}
	for _, f := range found {
		if equalChains(f, chain) {
			return leaf.PublicKey.(*ecdsa.PublicKey), nil
		}
	}
	return nil, refuse("its certificates lead to a configured root, but not in the order of cabundle")
}

// checkCertificate is AWS's "Certificates critical extensions", and the one kind of key: x509 checks validity, path lengths and signatures.
func checkCertificate(c *x509.Certificate, leaf bool) error {
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() || c.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return refuse("a certificate is not ECDSA with P-384 and SHA-384")
	}
	switch {
	case leaf && (c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0):
		return refuse("certificate is one of an authority")
	case leaf && c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse("certificate is not for signatures")
	case !leaf && (!c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0):
		return refuse("a certificate of cabundle is not one of an authority")
	}
	return nil
}

func equalChains(a, b []*x509.Certificate) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].Equal(b[i]) {
			return false
		}
	}
	return true
}
