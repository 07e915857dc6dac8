package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/keyplane/keyplane/controlplane/replication"
)

const (
	// replicationConns bounds the connections to the listener, and replicationAnswers the messages that are answered at a time. More wait.
	replicationConns, replicationAnswers = 64, 16
	// replicationHeaderTimeout bounds the time in which a connection has to show a request's header, and replicationBodyTimeout that for the whole request.
	replicationHeaderTimeout, replicationBodyTimeout = 5 * time.Second, 15 * time.Second
)

// replicationTLS is what the files of the configuration say of TLS with other processes, read before anything else is started. nil fields: none, the system's.
type replicationTLS struct {
	own *tls.Config // of the listener
	ca  *x509.CertPool
}

func (c *ReplicationConfig) readTLS(log *slog.Logger) (t replicationTLS, err error) {
	if c.TLSCert != "" {
		if t.own, err = tlsConfig(c.TLSCert, c.TLSKey, log); err != nil {
			return t, fmt.Errorf("replication: %w", err)
		}
	}
	if c.CA != "" {
		pem, err := os.ReadFile(c.CA)
		if err != nil {
			return t, fmt.Errorf("node: replication.ca: %w", err)
		}
		if t.ca = x509.NewCertPool(); !t.ca.AppendCertsFromPEM(pem) {
			return t, fmt.Errorf("node: replication.ca: %s has no certificate in PEM", c.CA)
		}
	}
	return t, nil
}

// client is that of messages to other processes. It goes there itself: a proxy that the environment names is for others.
func (t *replicationTLS) client() *http.Client {
	return &http.Client{
		Timeout:       peerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:     (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSClientConfig: &tls.Config{RootCAs: t.ca, MinVersion: tls.VersionTLS12}, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 8 << 10,
		},
	}
}

// serveReplication listens for other processes' Regions until Close, which waits for the answers that are being made.
func (n *Node) serveReplication() error {
	cfg := &n.cfg.Replication
	if cfg.Listen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return err
	}
	n.replicationAddr = ln.Addr().String()
	ln = netutil.LimitListener(ln, replicationConns)
	if n.replicationTLS.own != nil {
		ln = tls.NewListener(ln, n.replicationTLS.own)
	}
	l := newReplicationListener(n.answerReplication, replicationHeaderTimeout, replicationBodyTimeout)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the listener for replication ended", "error", err)
		}
	}()
	n.onClose(func() { n.logIf("closing the listener for replication", l.close(drainTimeout)); <-ended })
	return nil
}

// answerReplication has the Region answer that an envelope is for. A stranger learns nothing but that its message was refused.
func (n *Node) answerReplication(ctx context.Context, from string, envelope []byte) ([]byte, error) {
	to := replication.To(envelope)
	for _, at := range n.regions {
		if at.name == to {
			answer, err := at.control.Replicate(ctx, envelope)
			if err != nil {
				n.log.Warn("a replication message was refused", "from", from, "region", to, "error", err)
			}
			return answer, err
		}
	}
	return nil, errors.New("it is for no Region of this server")
}

// replicationListener is the HTTP server of envelopes.
type replicationListener struct {
	server *http.Server
	open   sync.RWMutex // read by each request while it is answered; locked for good when it is closed
	end    context.CancelFunc
}

// newReplicationListener makes one that answers with a function; its error is all that a stranger does not get to know.
func newReplicationListener(answer func(ctx context.Context, from string, envelope []byte) ([]byte, error), headerTimeout, bodyTimeout time.Duration) *replicationListener {
	answers := make(chan struct{}, replicationAnswers)
	l := new(replicationListener)
	ctx, cancel := context.WithCancel(context.Background())
	l.end = cancel
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+replicationPath, func(w http.ResponseWriter, r *http.Request) {
		envelope, err := io.ReadAll(http.MaxBytesReader(w, r.Body, replication.EnvelopeMax))
		if err != nil {
			http.Error(w, "the message is not read", http.StatusBadRequest)
			return
		}
		select {
		case answers <- struct{}{}:
			defer func() { <-answers }()
		case <-r.Context().Done():
			return
		}
		b, err := answer(r.Context(), r.RemoteAddr, envelope)
		if err != nil {
			http.Error(w, "the message is refused", http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(b)
	})
	l.server = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !l.open.TryRLock() {
				http.Error(w, "the server is shutting down", http.StatusServiceUnavailable)
				return
			}
			defer l.open.RUnlock()
			mux.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, WriteTimeout: peerTimeout + bodyTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
	}
	return l
}

// close takes no more requests and waits for those that are being answered: after patience they are cancelled, and waited for all the same, since what they use ends next.
func (l *replicationListener) close(patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := l.server.Shutdown(ctx)
	l.end()
	if err != nil {
		err = errors.Join(err, l.server.Close())
	}
	l.open.Lock()
	return err
}

// ReplicationAddr is the address that other processes' Regions connect to, "" for none.
func (n *Node) ReplicationAddr() string { return n.replicationAddr }
