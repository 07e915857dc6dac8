package apitest

import (
	"bufio"
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/node"
)

// Region and Account are those of every endpoint made here.
const (
	Region  = "eu-central-1"
	Account = "111122223333"
)

// Option changes a node's configuration before it starts.
type Option func(*node.Config)

// WithHSM has the node use the PKCS#11 token of that URI, whose roots exist. Without it the node uses the soft token.
func WithHSM(uri string) Option { return func(c *node.Config) { c.HSM = []string{uri} } }

// WithSoftwareKeys has the node make keys in software of specs that the token does not offer.
func WithSoftwareKeys(c *node.Config) { c.AllowSoftwareKeys = true }

// Server is a node in this process. It stops with the test.
type Server struct {
	Endpoint
	node *node.Node
	cfg  node.Config
	log  *logTail
}

// Start brings up a node on a free port with a fresh data directory. Its log's end is shown if the test fails.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	s := &Server{
		cfg: node.Config{
			Listen: "127.0.0.1:0", DataDir: filepath.Join(t.TempDir(), "data"), Region: Region, Account: Account, LogLevel: "warn",
			// Generous, so that a busy machine gives no ThrottlingException where a test expects something else.
			QueueTimeMax: 10 * time.Second, RoundTimeout: 10 * time.Second, Audit: node.AuditConfig{Timeout: 10 * time.Second, Durability: "write"},
		},
		log: &logTail{},
	}
	for _, o := range opts {
		o(&s.cfg)
	}
	s.cfg.Defaults()
	if err := s.cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		if t.Failed() {
			t.Logf("the node's log ends:\n%s", s.log)
		}
	})
	s.start(t)
	return s
}

func (s *Server) start(t testing.TB) {
	t.Helper()
	n, err := node.Start(context.Background(), s.cfg, slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		t.Fatal(err)
	}
	s.node = n
	s.Endpoint = newEndpoint(t, n.Addr(), n.CredentialsPath())
	if s.cfg.Clock != nil {
		s.now = s.cfg.Clock.Now
	}
}

// Restart stops the node in good order and starts it again on the same data, at another address. Clients made before do not follow.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Close()
	s.start(t)
}

// Close stops the node: requests in flight are answered.
func (s *Server) Close() {
	if s.node != nil {
		s.node.Close()
	}
}

// Stats reads the node's counters.
func (s *Server) Stats() node.Stats { return s.node.Stats() }

// readCredentials reads an AWS shared-credentials file.
func readCredentials(t testing.TB, path string) (id, secretKey string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch strings.TrimSpace(name) {
		case "aws_access_key_id":
			id = strings.TrimSpace(value)
		case "aws_secret_access_key":
			secretKey = strings.TrimSpace(value)
		}
	}
	if id == "" || secretKey == "" {
		t.Fatalf("%s holds no access key", path)
	}
	return id, secretKey
}

// logTail keeps the end of what is written to it. Safe for concurrent use, also after the test.
type logTail struct {
	mu  sync.Mutex
	buf []byte
}

// logTailMax is how much of a log is worth reading, in bytes.
const logTailMax = 16 << 10

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if len(l.buf) > 2*logTailMax {
		l.buf = append(l.buf[:0], l.buf[len(l.buf)-logTailMax:]...)
	}
	return len(p), nil
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf[max(0, len(l.buf)-logTailMax):])
}
