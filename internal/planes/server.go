package planes

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/planetls"
)

// Paths of the listener.
const (
	prefix      = "/planes/1/"
	pathRequest = prefix + "request"
	pathManaged = prefix + "managed"
	pathApplied = prefix + "applied"
	pathLease   = prefix + "lease"
	pathUses    = prefix + "uses"
	pathSettled = prefix + "settled"
	pathRenew   = prefix + "renew"
)

// headerRefused is on an answer that says that nothing was done: the request can go to another control plane. Its value is the reason.
const headerRefused = "Keyplane-Refused"

// headerInstance is on the answer to a probe: it changes with the process.
const headerInstance = "Keyplane-Instance"

// Reasons.
const (
	notReady = "not ready"
	notOwner = "not the owner"
)

const (
	headerTimeout = 5 * time.Second
	bodyTimeout   = 10 * time.Second
	// answerTimeout bounds an operation: some have an HSM make RSA keys.
	answerTimeout = 60 * time.Second

	// certEvery is how often a stream looks whether its certificate is still one.
	certEvery = 500 * time.Millisecond

	connsMax       = 4096
	incarnationMax = 64
	streamsMax     = 1000 // of a connection
)

// ServerConfig is what a control plane's listener answers with. All but Revoked, Renew and Logger are required.
type ServerConfig struct {
	TLS *tls.Config // planetls.Source.Server of all roles

	// Ready returns nil while the control plane serves, else the reason for /readyz. Takes is asked for every request, and quick: else it goes to another.
	Ready func() error
	Takes func() bool
	// Request answers a client's request, which came through the data node with that ID. It verifies the signature. The body is wiped when it was sent.
	Request func(ctx context.Context, node string, r *Request) (status int, body []byte)
	// Managed makes the AWS managed key of the alias, which the request names. Its error may be a *kmsapi.Error.
	Managed func(ctx context.Context, node string, r *Request, alias string) error
	// Member says whether the certificate's owner is the member that it says it is, once for each stream.
	Member func(ctx context.Context, role, node, incarnation string) error
	// Applied is told which revision a member has applied.
	Applied func(incarnation string, revision int64)
	// Settle returns when no process answers any more from before a revision.
	Settle func(ctx context.Context, revision int64)
	// Leases are parts of quotas.
	Leases *Leases
	// Uses takes last uses of keys that a data node tells.
	Uses func(node string, u *Uses) error
	// Revoked are certificates whose connections are not answered; nil: none is.
	Revoked *planetls.Revoked
	// Renew answers requests for certificates: planeca.RenewHandler. nil: none is made.
	Renew  http.Handler
	Logger *slog.Logger // nil: slog.Default
}

// Server is the listener of a control plane.
type Server struct {
	cfg      ServerConfig
	log      *slog.Logger
	http     *http.Server
	instance string      // that changes with the process
	started  atomic.Bool // until then it answers probes only
	drain    context.Context
	draining context.CancelFunc
}

// NewServer checks the configuration.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.TLS == nil || cfg.Ready == nil || cfg.Takes == nil || cfg.Request == nil || cfg.Managed == nil || cfg.Member == nil || cfg.Applied == nil || cfg.Settle == nil || cfg.Leases == nil || cfg.Uses == nil {
		return nil, errors.New("planes: a part of the configuration is missing")
	}
	s := &Server{cfg: cfg, log: cfg.Logger, instance: strconv.FormatUint(newEpoch(), 36)}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.drain, s.draining = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", s.readyz)
	for path, e := range map[string]endpoint{
		pathRequest: {s.request, requestMax, []string{planetls.RoleData}, true},
		pathManaged: {s.managed, requestMax, []string{planetls.RoleData}, true},
		pathLease:   {s.lease, leaseMax, []string{planetls.RoleData, planetls.RoleControl}, false},
		pathUses:    {s.uses, usesMax, []string{planetls.RoleData}, false},
		pathSettled: {s.settled, revisionLen, []string{planetls.RoleData}, true},
	} {
		mux.HandleFunc("POST "+path, s.message(e))
	}
	mux.HandleFunc("POST "+pathApplied, s.applied)
	if cfg.Renew != nil {
		mux.Handle("POST "+pathRenew, cfg.Renew)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetHTTP1(true) // for probes
	s.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if p := recover(); p != nil {
					if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
						panic(p)
					}
					s.log.Error("a message of another plane ended in a panic: this is a bug", "stack", string(debug.Stack()))
					panic(http.ErrAbortHandler) // its outcome is not known
				}
			}()
			mux.ServeHTTP(w, r)
		}),
		Protocols: protocols, TLSConfig: cfg.TLS,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 8 << 10,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: streamsMax, SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		ErrorLog: log.New(handshakeLog{s.log}, "", 0),
	}
	return s, nil
}

// handshakeLog keeps of net/http's log what it says of handshakes: who tries without the right certificate. The rest may hold what was sent.
type handshakeLog struct{ log *slog.Logger }

func (l handshakeLog) Write(p []byte) (int, error) {
	if text := strings.TrimSpace(string(p)); strings.HasPrefix(text, "http: TLS handshake error") && !strings.HasSuffix(text, "EOF") {
		l.log.Warn("a TLS connection of another plane was refused", "error", text)
	}
	return len(p), nil
}

// Serve accepts connections until Shutdown, and returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.ServeTLS(netutil.LimitListener(ln, connsMax), "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Start has it answer more than probes.
func (s *Server) Start() { s.started.Store(true) }

// Drain has new requests go to another control plane, and ends the streams. Those that are being answered are.
func (s *Server) Drain() { s.draining() }

// Shutdown drains, and returns when all is answered or ctx ends; then the connections are cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.Drain()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	return err
}

func (s *Server) ready() error {
	if s.drain.Err() != nil {
		return errors.New("shutting down")
	}
	return s.cfg.Ready()
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set(headerInstance, s.instance)
	if err := s.ready(); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, err.Error()+"\n")
		return
	}
	_, _ = io.WriteString(w, "ready\n")
}

// endpoint answers one kind of messages, of at most max bytes, from some roles.
type endpoint struct {
	answer func(ctx context.Context, role, node string, frame []byte) (*answer, error)
	max    int
	roles  []string
	ready  bool // only while the control plane is ready; others while it is not draining
}

// answer is what a message is answered with. Its body is wiped when it was sent.
type answer struct{ body []byte }

// refused is a refusal that says that nothing was done, and that another control plane may do it.
type refused string

func (e refused) Error() string { return "planes: " + string(e) }

// peer says who has sent r, or answers it.
func (s *Server) peer(w http.ResponseWriter, r *http.Request, roles []string) (role, node string, ok bool) {
	role, node, err := planetls.Peer(r.TLS)
	if err == nil {
		err = s.cfg.Revoked.Check(r.TLS)
	}
	if errors.Is(err, planetls.ErrExpired) || errors.Is(err, planetls.ErrRevoked) {
		why := refused("the certificate has expired")
		if errors.Is(err, planetls.ErrRevoked) {
			why = "the certificate was revoked"
		}
		w.Header().Set("Connection", "close") // the next comes with a handshake
		refuse(w, why)
		return "", "", false
	}
	if err == nil {
		for _, accepted := range roles {
			if role == accepted {
				return role, node, true
			}
		}
	}
	http.Error(w, "not for this role", http.StatusForbidden)
	return "", "", false
}

func refuse(w http.ResponseWriter, why refused) {
	w.Header().Set(headerRefused, string(why))
	http.Error(w, string(why), http.StatusServiceUnavailable)
}

// message is the handler of an endpoint.
func (s *Server) message(e endpoint) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		role, node, ok := s.peer(w, r, e.roles)
		if !ok {
			return
		}
		if !s.started.Load() || s.drain.Err() != nil || e.ready && !s.cfg.Takes() {
			refuse(w, notReady)
			return
		}
		if r.ContentLength < 0 || r.ContentLength > int64(e.max) {
			http.Error(w, "too long", http.StatusRequestEntityTooLarge)
			return
		}
		c := http.NewResponseController(w)
		_ = c.SetReadDeadline(time.Now().Add(bodyTimeout))
		frame := make([]byte, r.ContentLength)
		defer clear(frame)
		if _, err := io.ReadFull(r.Body, frame); err != nil {
			http.Error(w, "not read", http.StatusBadRequest)
			return
		}
		if n, err := r.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			http.Error(w, "not read", http.StatusBadRequest)
			return
		}
		_ = c.SetReadDeadline(time.Time{})
		// What was begun is done also if the node does not wait for it: its client may have gone, but half of an operation is nobody's wish.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), answerTimeout)
		defer cancel()
		a, err := e.answer(ctx, role, node, frame)
		if err != nil {
			var why refused
			switch {
			case errors.As(err, &why):
				refuse(w, why)
			case errors.Is(err, errFrame):
				s.log.Warn("a message of another plane is not of its form", "node", node, "path", r.URL.Path)
				http.Error(w, "not of its form", http.StatusBadRequest)
			default:
				s.log.Error("a message of another plane failed", "node", node, "path", r.URL.Path, "error", err)
				http.Error(w, "failed", http.StatusInternalServerError)
			}
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
		_ = c.SetWriteDeadline(time.Now().Add(bodyTimeout))
		_, _ = w.Write(a.body)
		clear(a.body)
	}
}

func (s *Server) request(ctx context.Context, _, node string, frame []byte) (*answer, error) {
	r, err := parseRequest(frame)
	if err != nil {
		return nil, err
	}
	status, body := s.cfg.Request(ctx, node, r)
	a := &answer{append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(body)), uint16(status)), body...)}
	clear(body)
	return a, nil
}

// managed answers with the type of an exception and its message, both empty where there is none.
func (s *Server) managed(ctx context.Context, _, node string, frame []byte) (*answer, error) {
	r, alias, err := parseManaged(frame)
	if err != nil {
		return nil, err
	}
	err = s.cfg.Managed(ctx, node, r, alias)
	var typ, message string
	var e *kmsapi.Error
	switch {
	case errors.As(err, &e):
		typ, message = e.Code.Type(), e.Message
	case err != nil:
		return nil, err
	}
	return &answer{appendBytes(appendBytes(nil, typ), message)}, nil
}

func (s *Server) lease(ctx context.Context, role, node string, frame []byte) (*answer, error) {
	m, err := parseLeaseMessage(frame)
	if err != nil {
		return nil, err
	}
	a, err := s.cfg.Leases.answer(ctx, role+"/"+node, m)
	if err != nil {
		return nil, err
	}
	return &answer{appendLeaseAnswer(nil, a)}, nil
}

// uses answers with the instance of the process, so that a node knows when it has to tell all again.
func (s *Server) uses(_ context.Context, _, node string, frame []byte) (*answer, error) {
	u, err := parseUses(frame)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Uses(node, u); err != nil {
		return nil, err
	}
	return &answer{[]byte(s.instance)}, nil
}

func (s *Server) settled(ctx context.Context, _, _ string, frame []byte) (*answer, error) {
	in := &reader{b: frame}
	revision := int64(in.u64())
	if !in.end() || revision <= 0 {
		return nil, errFrame
	}
	s.cfg.Settle(ctx, revision)
	return &answer{}, nil
}

// applied reads a member's stream until it ends.
func (s *Server) applied(w http.ResponseWriter, r *http.Request) {
	role, node, ok := s.peer(w, r, []string{planetls.RoleControl, planetls.RoleData})
	if !ok {
		return
	}
	if !s.started.Load() || s.drain.Err() != nil {
		refuse(w, notReady)
		return
	}
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyTimeout))
	in := bufio.NewReader(r.Body)
	incarnation, err := readIncarnation(in)
	if err != nil {
		http.Error(w, "not of its form", http.StatusBadRequest)
		return
	}
	if err := s.cfg.Member(r.Context(), role, node, incarnation); err != nil {
		refuse(w, "not a member")
		return
	}
	_ = c.SetReadDeadline(time.Time{}) // it lasts; a peer that is gone does not answer pings
	w.WriteHeader(http.StatusOK)
	if c.Flush() != nil {
		return
	}
	cut := make(chan struct{})
	ended, end := context.WithCancel(s.drain)
	defer end()
	go func() {
		defer close(cut)
		if s.outlived(ended, r.TLS) {
			_ = c.SetReadDeadline(time.Now())
		}
	}()
	defer func() {
		end()
		<-cut // w is not to be used after the return
	}()
	for last := int64(0); ; {
		var b [8]byte
		if _, err := io.ReadFull(in, b[:]); err != nil {
			return
		}
		revision := binary.BigEndian.Uint64(b[:])
		if revision > math.MaxInt64 || int64(revision) < last {
			s.log.Warn("a member tells of revisions that go back", "node", node)
			return
		}
		last = int64(revision)
		s.cfg.Applied(incarnation, last)
	}
}

// outlived returns when a stream has to end, and so when ctx does: the peer's certificate has, or was revoked, or the server drains.
func (s *Server) outlived(ctx context.Context, cs *tls.ConnectionState) bool {
	for {
		if _, _, err := planetls.Peer(cs); err != nil || s.cfg.Revoked.Check(cs) != nil {
			return true
		}
		select {
		case <-ctx.Done():
			return s.drain.Err() != nil
		case <-time.After(certEvery):
		}
	}
}

func readIncarnation(in *bufio.Reader) (string, error) {
	n, err := in.ReadByte()
	if err != nil || n == 0 || n > incarnationMax {
		return "", errFrame
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return string(b), err
}
