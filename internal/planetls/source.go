package planetls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

const (
	fileMax = 64 << 10    // bytes of each file
	poll    = time.Second // between two looks at the files
)

// Files are PEM files: a certificate chain, leaf first, its key, which nobody else can read, and the certificates of CAs; each of these is trusted, so that
// a new one can be made known before the first certificate of it is used.
type Files struct{ Cert, Key, CA string }

// Source is what is in the files. All methods are safe for concurrent use.
type Source struct {
	files   Files
	log     *slog.Logger
	current atomic.Pointer[material]
	looked  atomic.Int64 // when the files were last looked at, in nanoseconds since began
	revoked atomic.Pointer[Revoked]

	mu      sync.Mutex // held by the one who looks
	refused [sha256.Size]byte
}

// material is one set of files. It does not change.
type material struct {
	sum      [sha256.Size]byte // of all three
	cert     tls.Certificate
	pool     *x509.CertPool // nil without a CA file
	role, id string         // "" without a CA file, or where the certificate is of another CA's making
}

var began = time.Now()

// errExpired is of this process's own certificate.
var errExpired = errors.New("the certificate expired")

// Open reads the files. Without files.CA the certificate may be anybody's, as that of a listener for clients is: then one that has expired is shown all the same,
// since it is the clients who decide. Without files.Cert nobody is told who this is.
func Open(files Files, log *slog.Logger) (*Source, error) {
	if log == nil {
		log = slog.Default()
	}
	s := &Source{files: files, log: log}
	if files.Cert != "" {
		files.settle()
	}
	m, err := files.load()
	if err == nil {
		err = m.fits(time.Now())
	}
	if errors.Is(err, errExpired) && files.CA == "" {
		log.Warn("TLS: "+err.Error(), "cert", files.Cert)
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("planetls: %w", err)
	}
	s.current.Store(m)
	s.looked.Store(int64(time.Since(began)))
	return s, nil
}

// Reload looks at the files now. On an error what was read before stays.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.look()
}

// now is what the files hold, as of a second ago at most. Nobody waits for the reading of files: while one handshake looks, the others go on with what there is.
func (s *Source) now() *material {
	if int64(time.Since(began))-s.looked.Load() >= int64(poll) && s.mu.TryLock() {
		_ = s.look() // it has logged why
		s.mu.Unlock()
	}
	return s.current.Load()
}

// look reads the files and takes what is new in them, if it fits. It needs s.mu.
func (s *Source) look() error {
	defer func() { s.looked.Store(int64(time.Since(began))) }()
	old := s.current.Load()
	m, err := s.files.load()
	switch {
	case err == nil && m.sum == old.sum:
		s.refused = old.sum
		return nil
	case err == nil:
		if err = m.fits(time.Now()); err == nil && (m.role != old.role || m.id != old.id) {
			err = fmt.Errorf("the certificate is that of %s %q, and this process is %s %q", m.role, m.id, old.role, old.id)
		}
	}
	if err != nil {
		// Once for each fault: the files may stay so for long, and are looked at every second.
		var what [sha256.Size]byte
		if m != nil {
			what = m.sum
		}
		if what = sha256.Sum256(append(what[:], err.Error()...)); what != s.refused {
			s.refused = what
			s.log.Error("the TLS files are not taken; those read before stay in use", "cert", s.files.Cert, "key", s.files.Key, "ca", s.files.CA,
				"until", old.notAfter(), "error", err)
		}
		return fmt.Errorf("planetls: %w", err)
	}
	s.current.Store(m)
	s.log.Info("TLS files were read anew", "cert", s.files.Cert, "ca", s.files.CA, "until", m.notAfter())
	return nil
}

// Certificate is this process's own, for a tls.Config of somebody else's making: the function is a GetCertificate.
func (s *Source) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &s.now().cert, nil
}

// Refuse has all configs of the source refuse what is revoked, at every handshake.
func (s *Source) Refuse(r *Revoked) { s.revoked.Store(r) }

// Revoked are the certificates that Refuse has named; nil, which has none, until then.
func (s *Source) Revoked() *Revoked { return s.revoked.Load() }

// Leaf is this process's own certificate, parsed; nil without one.
func (s *Source) Leaf() *x509.Certificate { return s.now().cert.Leaf }

// Files are those that it reads.
func (s *Source) Files() Files { return s.files }

// Name is who this process is by its certificate; "" if that is of another CA's making.
func (s *Source) Name() (role, id string) {
	m := s.now()
	return m.role, m.id
}

func (m *material) notAfter() time.Time {
	if m.cert.Leaf == nil {
		return time.Time{}
	}
	return m.cert.Leaf.NotAfter
}

// fits refuses what no peer would take, or what would be taken for somebody else.
func (m *material) fits(now time.Time) error {
	leaf := m.cert.Leaf
	switch {
	case leaf == nil:
		return nil
	case now.After(leaf.NotAfter):
		return fmt.Errorf("%w at %s", errExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	case m.role == "":
		return nil
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.pool, Intermediates: intermediates(m.cert.Certificate), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("the certificate is not of the CA given: %w", err)
	}
	return nil
}

func intermediates(chain [][]byte) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, der := range chain[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			pool.AddCert(c)
		}
	}
	return pool
}

// load reads and parses the files.
func (f Files) load() (*material, error) {
	m := new(material)
	sum := sha256.New()
	add := func(b []byte) {
		_ = binary.Write(sum, binary.BigEndian, uint64(len(b))) // a hash does not fail
		sum.Write(b)
	}
	if f.Cert != "" || f.Key != "" {
		chain, err := readFile(f.Cert, false)
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		key, err := readFile(f.Key, true)
		if err != nil {
			return nil, fmt.Errorf("key: %w", err)
		}
		defer clear(key)
		add(chain)
		add(key)
		if m.cert, err = tls.X509KeyPair(chain, key); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
	}
	if f.CA != "" {
		text, err := readFile(f.CA, false)
		if err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
		add(text)
		if m.pool, err = parseCA(text); err != nil {
			return nil, fmt.Errorf("CA %s: %w", f.CA, err)
		}
		if leaf := m.cert.Leaf; leaf != nil && slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.Scheme == scheme }) {
			if m.role, m.id, err = Name(leaf); err != nil {
				return nil, err
			}
		}
	}
	sum.Sum(m.sum[:0])
	return m, nil
}

// parseCA makes a pool of ParseCA's certificates.
func parseCA(text []byte) (*x509.CertPool, error) {
	certs, err := ParseCA(text)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// ParseCA reads the certificates of CAs, one at least, and wants nothing else.
func ParseCA(text []byte) (certs []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(text)
		switch {
		case block == nil && len(certs) > 0 && len(bytes.TrimSpace(text)) == 0:
			return certs, nil
		case block == nil:
			return nil, errors.New("no certificate in PEM, or something after it")
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("a %s among the certificates", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not that of a CA", c.Subject)
		}
		certs = append(certs, c)
		text = rest
	}
}

// readFile reads a file, private ones only if nobody but its owner, this user or root, can read it.
func readFile(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if private {
		if err := hsm.CheckPrivate(f); err != nil {
			return nil, err
		}
	}
	buf := make([]byte, fileMax)
	n, err := io.ReadFull(f, buf)
	if err == nil {
		clear(buf)
		return nil, fmt.Errorf("%s is larger than %d bytes", path, fileMax-1)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		clear(buf)
		return nil, err
	}
	return buf[:n], nil
}
