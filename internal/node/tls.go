package node

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"

	"github.com/keyplane/keyplane/hsm"
)

// withTLS has ln speak TLS 1.2 or 1.3 with the certificate chain and key of two PEM files. The handshake runs in the connection's own goroutine,
// within its read timeout. Key exchange is what crypto/tls prefers: X25519MLKEM768 first.
func withTLS(ln net.Listener, certFile, keyFile string) (net.Listener, error) {
	f, err := os.Open(keyFile)
	if err != nil {
		return nil, fmt.Errorf("node: TLS key: %w", err)
	}
	defer f.Close()
	if err := hsm.CheckPrivate(f); err != nil {
		return nil, fmt.Errorf("node: TLS key: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("node: TLS certificate: %w", err)
	}
	return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}), nil
}
