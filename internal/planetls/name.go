package planetls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The roles of a part.
const (
	RoleControl = "control"
	RoleData    = "data"
	RoleEtcd    = "etcd"
	RoleClient  = "client" // monitoring and tools
)

// Roles are all there are.
var Roles = []string{RoleControl, RoleData, RoleEtcd, RoleClient}

const (
	scheme = "keyplane"
	idMax  = 64 // bytes
)

var (
	// ErrRole is a peer that is who it says, and not whom this connection is for.
	ErrRole = errors.New("planetls: the peer's role is not accepted here")
	// ErrExpired is a peer whose certificate has ended since the handshake. A handler answers with Connection: close, so that the next request comes by
	// a handshake of its own.
	ErrExpired = errors.New("planetls: the peer's certificate has expired")
	// ErrRevoked is a peer whose certificate is not taken any more, or the process's own. It is answered as ErrExpired is.
	ErrRevoked = errors.New("planetls: the certificate was revoked")
)

// URI is the name of a part in its certificate.
func URI(role, id string) (*url.URL, error) {
	if !slices.Contains(Roles, role) {
		return nil, fmt.Errorf("planetls: there is no role %q: one of %s", role, strings.Join(Roles, ", "))
	}
	if !validID(id) {
		return nil, fmt.Errorf("planetls: %q is no node ID: 1 to %d of a-z, A-Z, 0-9, -, _ and ., not at the start a . or -", id, idMax)
	}
	return &url.URL{Scheme: scheme, Host: role, Path: "/" + id}, nil
}

func validID(id string) bool {
	if id == "" || len(id) > idMax || id[0] == '.' || id[0] == '-' {
		return false
	}
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// Name is the role and node ID of a certificate, which has one URI and that in the one form that URI makes. Whose certificate it is has to have been verified.
func Name(cert *x509.Certificate) (role, id string, err error) {
	if len(cert.URIs) != 1 {
		return "", "", fmt.Errorf("planetls: the certificate has %d URIs, not one that names a role and a node", len(cert.URIs))
	}
	u := cert.URIs[0]
	role, id = u.Host, strings.TrimPrefix(u.Path, "/")
	want, err := URI(role, id)
	if err != nil {
		return "", "", err
	}
	if u.String() != want.String() {
		return "", "", fmt.Errorf("planetls: the certificate's URI %q is not %q", u, want)
	}
	return role, id, nil
}

// Peer is who is at the other end of a connection that a Server config has accepted. Connections outlive handshakes: it is asked at every request, and
// says ErrExpired when the peer's certificate has ended since.
func Peer(cs *tls.ConnectionState) (role, id string, err error) {
	if cs == nil || len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return "", "", errors.New("planetls: the peer has shown no certificate that was verified")
	}
	leaf := cs.VerifiedChains[0][0]
	if time.Now().After(leaf.NotAfter) {
		return "", "", ErrExpired
	}
	return Name(leaf)
}
