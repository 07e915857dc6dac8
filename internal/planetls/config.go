package planetls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// hybrid are the key exchanges of our own parts, and with classic those of etcd, which others may have built. Go chooses in an order of its own, X25519MLKEM768 first.
var (
	hybrid  = []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024}
	classic = append(slices.Clone(hybrid), tls.X25519, tls.CurveP256, tls.CurveP384)
)

// Server makes the config of a listener that serves parts of some roles: Open and Source.Server in one.
func Server(files Files, roles ...string) (*tls.Config, error) {
	s, err := Open(files, nil)
	if err != nil {
		return nil, err
	}
	return s.Server(roles...)
}

// Client makes the config of connections to parts of a role: Open and Source.Client in one.
func Client(files Files, role string, names ...string) (*tls.Config, error) {
	s, err := Open(files, nil)
	if err != nil {
		return nil, err
	}
	return s.Client(role, names...)
}

// Server makes the config of a listener that serves parts of some roles, and nobody else: at a handshake a certificate of the CA is required. HTTP/2 is offered.
// Handlers ask Peer who it is.
func (s *Source) Server(roles ...string) (*tls.Config, error) {
	switch m := s.current.Load(); {
	case m.cert.Leaf == nil || m.pool == nil:
		return nil, errors.New("planetls: a listener needs a certificate, its key and the CA of its peers")
	case m.role == "":
		return nil, errors.New("planetls: the certificate does not name a role and a node")
	}
	if err := checkRoles(roles); err != nil {
		return nil, err
	}
	roles = slices.Clone(roles)
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: hybrid, SessionTicketsDisabled: true, NextProtos: []string{"h2", "http/1.1"},
		ClientAuth: tls.RequireAndVerifyClientCert, GetCertificate: s.Certificate,
		VerifyConnection: func(cs tls.ConnectionState) error {
			role, _, err := Peer(&cs)
			if err == nil && !slices.Contains(roles, role) {
				err = fmt.Errorf("%w: %s", ErrRole, role)
			}
			if err == nil {
				err = s.Revoked().Check(&cs)
			}
			return err
		},
	}
	// The CA of a handshake is that of the files now. What this config says of it is for who forgets the function.
	cfg.ClientCAs = s.current.Load().pool
	of := cfg.Clone()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.now()
		c := of.Clone()
		c.ClientCAs = m.pool
		return c, nil
	}
	return cfg, nil
}

func checkRoles(roles []string) error {
	if len(roles) == 0 {
		return errors.New("planetls: no role")
	}
	for _, role := range roles {
		if _, err := URI(role, "x"); err != nil {
			return err
		}
	}
	return nil
}

// Client makes the config of connections to parts of a role. The server has to have a certificate of the CA with that role, and for the DNS name that was dialled.
// crypto/tls does not tell which IP address was dialled: the certificate then has to be for one of names, DNS names and IP addresses, if there are any.
// Without a role, for an etcd with certificates of another CA, whose name is all it has, it has to be for the dialled name or one of names.
func (s *Source) Client(role string, names ...string) (*tls.Config, error) {
	m := s.current.Load()
	if m.pool == nil {
		return nil, errors.New("planetls: the CA of the servers is missing")
	}
	if role != "" {
		if err := checkRoles([]string{role}); err != nil {
			return nil, err
		}
	}
	if role == RoleControl || role == RoleData {
		if m.role == "" {
			return nil, errors.New("planetls: a certificate that names a role and a node is missing")
		}
	}
	names = slices.Clone(names)
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, CurvePreferences: hybrid, SessionTicketsDisabled: true,
		// RootCAs cannot change under a config. VerifyConnection does all that is skipped, with the CA of now; it is called at every handshake.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return s.verifyServer(cs, role, names) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.now().cert, nil // empty: none
		},
	}
	if role == RoleEtcd || role == "" {
		cfg.CurvePreferences = classic
	}
	return cfg, nil
}

func (s *Source) verifyServer(cs tls.ConnectionState, role string, names []string) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("planetls: the server has shown no certificate")
	}
	leaf := cs.PeerCertificates[0]
	o := x509.VerifyOptions{Roots: s.now().pool, Intermediates: x509.NewCertPool(), DNSName: cs.ServerName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range cs.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(o); err != nil {
		return err
	}
	if err := s.Revoked().Check(&cs); err != nil {
		return err
	}
	if cs.ServerName == "" {
		if err := isOneOf(leaf, names, role != ""); err != nil {
			return err
		}
	}
	if role == "" {
		return nil
	}
	switch got, _, err := Name(leaf); {
	case err != nil:
		return err
	case got != role:
		return fmt.Errorf("%w: %s, not %s", ErrRole, got, role)
	}
	return nil
}

// isOneOf wants a certificate for one of the names; without any, what none says.
func isOneOf(leaf *x509.Certificate, names []string, none bool) error {
	if len(names) == 0 && none {
		return nil
	}
	err := errors.New("planetls: the server was dialled by its IP address, and it is not known which one")
	for _, name := range names {
		if err = leaf.VerifyHostname(name); err == nil {
			return nil
		}
	}
	return err
}
