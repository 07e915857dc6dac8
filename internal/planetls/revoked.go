package planetls

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
)

// Revoked are the serial numbers of certificates that are not taken any more. All methods are safe for concurrent use; a nil one has none.
type Revoked struct {
	mu      sync.RWMutex
	serials map[string]bool // hexadecimal
}

// Add revokes a certificate for good, and says whether that is new. serial is as Serial has it.
func (r *Revoked) Add(serial string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.serials[serial] {
		return false
	}
	if r.serials == nil {
		r.serials = map[string]bool{}
	}
	r.serials[serial] = true
	return true
}

// Serial is the serial number of a certificate, in hexadecimal without zeros in front.
func Serial(cert *x509.Certificate) string { return fmt.Sprintf("%x", cert.SerialNumber) }

// Has says whether a certificate is revoked.
func (r *Revoked) Has(cert *x509.Certificate) bool {
	if r == nil || cert == nil {
		return false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.serials) > 0 && r.serials[Serial(cert)]
}

// Check is ErrRevoked if the peer's certificate is. Connections outlive handshakes: it is asked at every request, as Peer is.
func (r *Revoked) Check(cs *tls.ConnectionState) error {
	if r != nil && cs != nil && len(cs.PeerCertificates) > 0 && r.Has(cs.PeerCertificates[0]) {
		return ErrRevoked
	}
	return nil
}
