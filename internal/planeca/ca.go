package planeca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"regexp"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/planetls"
)

const (
	// LifeDefault is how long a certificate is valid unless somebody asks for another time. It ends by itself, or is revoked before (keyplane ca revoke).
	LifeDefault = 24 * time.Hour
	// RootLifeDefault is that of a root certificate.
	RootLifeDefault = 10 * 365 * 24 * time.Hour
	// skew is how far clocks of members may be apart: a certificate is valid from that long ago.
	skew = 5 * time.Minute
	// hostsMax bounds the names and addresses in a certificate.
	hostsMax = 32
	// signTimeout is how long a token may take to sign, a new session and login included.
	signTimeout = 10 * time.Second
)

// ErrNoKey is that no token given holds the key of a CA in the file.
var ErrNoKey = errors.New("planeca: no token holds the key of a certificate in the CA file")

// CA issues certificates. It is safe for concurrent use.
type CA struct {
	key  *hsm.AuditKey
	root *x509.Certificate
}

// Open finds the token with the key of one of the certificates in a file of CAs. The tokens outlive the CA. ErrNoKey if there is none.
func Open(tokens []hsm.Token, caFile string) (*CA, error) {
	roots, err := readRoots(caFile)
	if err != nil {
		return nil, err
	}
	for _, t := range tokens {
		key, err := hsm.OpenCAKey([]hsm.Token{t}, nil, signTimeout)
		if errors.Is(err, hsm.ErrNoCAKey) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, root := range roots {
			if key.Public().Equal(root.PublicKey) {
				return &CA{key, root}, nil
			}
		}
		if err := key.Close(); err != nil {
			return nil, err
		}
	}
	return nil, ErrNoKey
}

func readRoots(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("planeca: %w", err)
	}
	roots, err := planetls.ParseCA(text)
	if err != nil {
		return nil, fmt.Errorf("planeca: %s: %w", file, err)
	}
	return roots, nil
}

// Root is the certificate under which it issues.
func (ca *CA) Root() *x509.Certificate { return ca.root }

// Close ends the session with the key.
func (ca *CA) Close() error { return ca.key.Close() }

// signer is the key as crypto/x509 wants it.
type signer struct{ key *hsm.AuditKey }

func (s signer) Public() crypto.PublicKey { return s.key.Public() }

func (s signer) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	if o.HashFunc() != crypto.SHA256 {
		return nil, errors.New("planeca: the CA signs SHA-256 only")
	}
	return s.key.Sign(digest)
}

// NewRoot makes the root certificate of a token's CA key, in PEM. Another one of the same key can stand in for it: what was issued under the first is valid under
// both.
func NewRoot(token hsm.Token, life time.Duration) ([]byte, error) {
	key, err := hsm.OpenCAKey([]hsm.Token{token}, nil, signTimeout)
	if err != nil {
		return nil, err
	}
	defer key.Close()
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	id := keyID(key.Public())
	now := time.Now().UTC().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "keyplane CA " + hex.EncodeToString(id[:8])}, SubjectKeyId: id,
		NotBefore: now.Add(-skew), NotAfter: now.Add(life),
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), signer{key})
	if err != nil {
		return nil, fmt.Errorf("planeca: %w", err)
	}
	return certPEM(der), nil
}

// keyID is SHA-256 of the public key, cut to 20 bytes (RFC 7093 §2, method 1).
func keyID(public *ecdsa.PublicKey) []byte {
	b, err := public.Bytes()
	if err != nil {
		panic(err) // it was on its curve before
	}
	sum := sha256.Sum256(b)
	return sum[:20]
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// newSerial draws a serial number, which nobody has to remember: 159 bits, positive.
func newSerial() (*big.Int, error) {
	var b [20]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	b[0] &= 0x7f
	b[19] |= 1
	return new(big.Int).SetBytes(b[:]), nil
}

// Member is whom a certificate is for.
type Member struct {
	Role, Node string
	Hosts      []string // DNS names and IP addresses at which it is reached; none for who only dials
	Life       time.Duration
}

// hostName is a DNS name of RFC 1123, in small letters. No wildcards: a member has names of its own.
var hostName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (m *Member) template() (*x509.Certificate, error) {
	name, err := planetls.URI(m.Role, m.Node)
	if err != nil {
		return nil, err
	}
	// etcd takes the common name for the user: there is one for each role, and what roles may do there can be granted.
	t := &x509.Certificate{Subject: pkix.Name{CommonName: m.Role, OrganizationalUnit: []string{m.Node}}, URIs: []*url.URL{name}}
	if len(m.Hosts) > hostsMax {
		return nil, fmt.Errorf("planeca: more than %d hosts", hostsMax)
	}
	for _, h := range m.Hosts {
		ip := net.ParseIP(h)
		switch {
		case ip != nil:
			t.IPAddresses = append(t.IPAddresses, ip)
		case len(h) <= 253 && hostName.MatchString(h):
			t.DNSNames = append(t.DNSNames, h)
		default:
			return nil, fmt.Errorf("planeca: host %q is neither a DNS name in small letters nor an IP address", h)
		}
	}
	// A control plane and an etcd member are servers and clients of each other; the others only dial.
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if m.Role == planetls.RoleControl || m.Role == planetls.RoleEtcd {
		if len(m.Hosts) == 0 {
			return nil, fmt.Errorf("planeca: a certificate for role %s needs the hosts at which it is reached", m.Role)
		}
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	return t, nil
}

// Issue makes the certificate of a member's public key, in PEM.
func (ca *CA) Issue(public *ecdsa.PublicKey, m Member) ([]byte, error) {
	t, err := m.template()
	if err != nil {
		return nil, err
	}
	return ca.issue(public, t, m.Life)
}

// issue signs the names in a template.
func (ca *CA) issue(public *ecdsa.PublicKey, t *x509.Certificate, life time.Duration) ([]byte, error) {
	if public == nil || public.Curve != elliptic.P256() {
		return nil, errors.New("planeca: the key of a certificate is EC P-256")
	}
	if public.Equal(ca.root.PublicKey) {
		return nil, errors.New("planeca: that is the key of the CA")
	}
	if life <= 0 {
		return nil, errors.New("planeca: a certificate is valid for some time")
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	t.SerialNumber, t.NotBefore, t.NotAfter = serial, now.Add(-skew), now.Add(life)
	if t.NotAfter.After(ca.root.NotAfter) {
		return nil, fmt.Errorf("planeca: the root certificate is valid until %s only: keyplane ca init --renew makes the next one of the same key", ca.root.NotAfter.Format(time.RFC3339))
	}
	t.BasicConstraintsValid, t.KeyUsage, t.SubjectKeyId = true, x509.KeyUsageDigitalSignature, keyID(public)
	der, err := x509.CreateCertificate(rand.Reader, t, ca.root, public, signer{ca.key})
	if err != nil {
		return nil, fmt.Errorf("planeca: %w", err)
	}
	return certPEM(der), nil
}

// NewKey makes the key of a member, and its PEM.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	defer clear(der)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
