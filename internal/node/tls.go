package node

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/ratelimit"
)

// handshakes bounds new TLS connections: a handshake costs a signature and a key exchange before anybody has shown a credential.
var handshakes = ratelimit.Limit{Interval: time.Second / 2000, Burst: 2000}

// pemMax bounds the file of a key.
const pemMax = 64 << 10

// withTLS has ln speak TLS 1.2 or 1.3 with the certificate chain and key of two PEM files, which are read anew when they have changed; connections that exist go
// on. The handshake runs in the connection's own goroutine, within its read timeout. Key exchange is what crypto/tls prefers: X25519MLKEM768 first. Connections
// beyond limit are closed unserved.
func withTLS(ln net.Listener, certFile, keyFile string, limit ratelimit.Limit, log *slog.Logger) (net.Listener, error) {
	cfg, err := tlsConfig(certFile, keyFile, log)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(&handshakeLimit{Listener: ln, limit: limit}, cfg), nil
}

// tlsConfig is that of withTLS.
func tlsConfig(certFile, keyFile string, log *slog.Logger) (*tls.Config, error) {
	source, err := planetls.Open(planetls.Files{Cert: certFile, Key: keyFile}, log)
	if err != nil {
		return nil, fmt.Errorf("node: TLS: %w", err)
	}
	return &tls.Config{
		GetCertificate: source.Certificate,
		MinVersion:     tls.VersionTLS12,
		CipherSuites: []uint16{ // of TLS 1.2: forward secret and AEAD only
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}, nil
}

// keyPair reads the PEM files of a certificate chain and of its key, which nobody else can read.
func keyPair(certFile, keyFile string) (tls.Certificate, error) {
	chain, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	key, err := readPrivate(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("key: %w", err)
	}
	defer clear(key)
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate: %w", err)
	}
	return pair, nil
}

// readPrivate reads a file that nobody but its owner, this user or root, can read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := hsm.CheckPrivate(f); err != nil {
		return nil, err
	}
	buf := make([]byte, pemMax)
	n, err := io.ReadFull(f, buf)
	if err == nil {
		clear(buf)
		return nil, fmt.Errorf("%s is larger than %d bytes", path, pemMax-1)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		clear(buf)
		return nil, err
	}
	return buf[:n], nil
}

// handshakeLimit accepts no more connections than its limit allows; the others are closed.
type handshakeLimit struct {
	net.Listener
	limit ratelimit.Limit
	taken ratelimit.GCRA
}

func (l *handshakeLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if ok, _ := l.taken.Take(l.limit, time.Now().UnixNano()); ok {
			return c, nil
		}
		_ = c.Close()
	}
}
