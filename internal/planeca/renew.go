package planeca

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/planetls"
)

const (
	// RenewPath is where a control plane has its RenewHandler.
	RenewPath = "/planes/1/renew"
	// csrMax bounds a request, and certMax an answer.
	csrMax, certMax = 4 << 10, 16 << 10
	// renewInterval is how often one member gets a certificate: each costs the token a signature.
	renewInterval = 10 * time.Second
	namesMax      = 10000 // members remembered for that
)

// RenewOptions are what a RenewHandler may be told; all may be zero.
type RenewOptions struct {
	// Allowed says whether a member is still one; nil: whoever has a valid certificate is.
	Allowed func(role, id string) error
	// Revoked are certificates that renew nothing; nil: none is.
	Revoked *planetls.Revoked
	Logger  *slog.Logger
}

// RenewHandler answers POST with a CSR (PKCS #10, DER) by a certificate in PEM for the same role, node ID and hosts as those of the certificate that the peer has shown, and
// valid as long. It is for a server with a planetls config, and takes nothing of the CSR but the key, which has to be a new one and to have signed it. Without ca the
// answer is 501: this control plane's tokens do not hold the key.
func RenewHandler(ca *CA, o RenewOptions) http.Handler {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &renewer{ca: ca, o: o, last: map[string]time.Time{}, now: time.Now}
}

type renewer struct {
	ca  *CA
	o   RenewOptions
	now func() time.Time

	mu   sync.Mutex
	last map[string]time.Time // guarded by mu: when a member got its last one
}

func (h *renewer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	role, id, err := planetls.Peer(r.TLS)
	if err == nil {
		err = h.o.Revoked.Check(r.TLS)
	}
	switch {
	case err != nil:
		w.Header().Set("Connection", "close") // by a new handshake it may be another certificate
		http.Error(w, "no valid certificate", http.StatusForbidden)
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "POST only", http.StatusMethodNotAllowed)
		return
	case h.ca == nil:
		http.Error(w, "no token of this control plane holds the CA key", http.StatusNotImplemented)
		return
	}
	log := h.o.Logger.With("role", role, "node", id, "peer", r.RemoteAddr)
	if h.o.Allowed != nil {
		if err := h.o.Allowed(role, id); err != nil {
			log.Warn("no certificate for who is no member any more", "error", err)
			http.Error(w, "not a member", http.StatusForbidden)
			return
		}
	}
	old := r.TLS.VerifiedChains[0][0]
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, csrMax))
	if err != nil {
		http.Error(w, "request too large, or broken off", http.StatusBadRequest)
		return
	}
	public, err := keyOf(body, old)
	if err != nil {
		log.Warn("a request for a certificate was refused", "error", err)
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !h.take(role + "/" + id) {
		w.Header().Set("Retry-After", "10")
		http.Error(w, "one certificate in ten seconds", http.StatusTooManyRequests)
		return
	}
	cert, err := h.ca.Renew(public, old)
	if err != nil {
		log.Error("a certificate could not be renewed", "error", err)
		http.Error(w, "the certificate could not be made", http.StatusInternalServerError)
		return
	}
	log.Info("certificate renewed", "key", x509Key(public), "before", planetls.Serial(old), "serial", serialIn(cert))
	w.Header().Set("Content-Type", "application/pem-certificate-chain")
	_, _ = w.Write(cert)
}

// take counts a certificate of a member, if it is time for one.
func (h *renewer) take(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if last, ok := h.last[name]; ok && now.Sub(last) < renewInterval {
		return false
	}
	if len(h.last) >= namesMax {
		clear(h.last)
	}
	h.last[name] = now
	return true
}

// x509Key names a key in logs.
func x509Key(public *ecdsa.PublicKey) string { return hexID(keyID(public)) }

// serialIn is the serial number of a certificate in PEM, for logs.
func serialIn(text []byte) string {
	if block, _ := pem.Decode(text); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			return planetls.Serial(cert)
		}
	}
	return ""
}

// keyOf is the key of a CSR that has signed it, and is not that of the certificate before.
func keyOf(der []byte, old *x509.Certificate) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("not a certificate request in DER")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, errors.New("the certificate request is not signed by its key")
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok:
		return nil, errors.New("the key is not EC P-256")
	case public.Equal(old.PublicKey):
		return nil, errors.New("the key is that of the certificate before: make a new one")
	}
	return public, nil
}

// Renew makes the certificate after old, which has been verified: for another key, with the same names, uses and life.
func (ca *CA) Renew(public *ecdsa.PublicKey, old *x509.Certificate) ([]byte, error) {
	if _, _, err := planetls.Name(old); err != nil {
		return nil, err
	}
	return ca.issue(public, &x509.Certificate{
		Subject: old.Subject, URIs: old.URIs, DNSNames: old.DNSNames, IPAddresses: old.IPAddresses, ExtKeyUsage: old.ExtKeyUsage,
	}, old.NotAfter.Sub(old.NotBefore)-skew)
}
