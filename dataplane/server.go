package dataplane

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/uuid"
	"github.com/keyplane/keyplane/ratelimit"
)

// Records reads what the control plane has written, always its latest state. The errors are snapshot.ErrNotFound, snapshot.ErrDamaged or
// those of the store. The caller wipes the record.
type Records interface {
	KeyRecord(ctx context.Context, region string, a keyid.Account, id keyid.ID) (*snapshot.Record, error)
	AliasTarget(ctx context.Context, region string, a keyid.Account, alias string) (keyid.ID, error)
	// Grants are the grants of a key to one grantee, a name of authz.Caller.Grantees; none is no error.
	Grants(ctx context.Context, region string, a keyid.Account, id keyid.ID, grantee string) ([]authz.Grant, error)
}

// Config is what a Server listens by. Regions, Ready and Logger are required.
type Config struct {
	Regions []string // at most regionsMax, the home Region first: that of records of requests that nobody signed
	// Ready returns nil while every part of the process serves, else the reason for /readyz.
	Ready  func() error
	Logger *slog.Logger

	// KeyCacheBytes bounds the snapshot cache, 0 is 256 MiB, AliasCacheBytes the alias cache, 0 is 32 MiB. Names that do not exist have
	// a sixteenth of each besides.
	KeyCacheBytes, AliasCacheBytes int64

	TLS bool // connections are encrypted: aws:SecureTransport

	// Now is the date that requests are decided and recorded by. nil: when they arrive. What waits, for the HSM or a client, waits by real time.
	Now func() time.Time

	// Lease is until when this process may answer from what it knows: while it has run out every request is refused. nil: for ever, it has the only view there is.
	Lease *fence.Lease

	// AttestationRoots are whom attestation documents have to come from: Recipient. nil: requests with one are refused.
	AttestationRoots *x509.CertPool

	ConnsMax      int           // open connections; 0 is 20 000
	ConnsPerIPMax int           // open connections of one address; 0 is 1 000
	ReadTimeout   time.Duration // for one request, header and body; 0 is 5 s
}

// Parts is what a Server serves with. All fields but Audit, Quota, Managed, KeyStores, Again and Keys are required.
type Parts struct {
	Verifier *sigv4.Verifier
	Records  Records
	// Run runs a job in a round on the HSM: hsm.Dispatch.Run.
	Run func(j *hsm.Job, now time.Time) error
	// Again runs a job that was run once more, where the first results cannot have come from, and says whether they differ: hsm.Dispatch.Again. nil: a ciphertext
	// that does not open is refused at once.
	Again func(j *hsm.Job, now time.Time) (differs bool, err error)
	// Load is Run for the few jobs of loading a key, which all who ask for the key share: an overload does not refuse them.
	Load func(j *hsm.Job, now time.Time) error
	// Keys uses the private halves of asymmetric keys, and HMAC keys. nil: operations that need them are refused.
	Keys hsm.Keys
	// KeyStores are the custom key stores. nil: there are none.
	KeyStores KeyStores
	// Control serves the operations that are not ours. It verifies the signature of the original request again and keeps nothing of it. The body
	// it returns is cleared when it is copied. With the status 0 nobody has answered: the request is refused here, and recorded. region is the place in
	// Config.Regions of the Region that the request is for; of one to another service than KMS that was signed for none of them, 0.
	Control func(region int, r *sigv4.Request, requestID, sourceIP string, tls *cloudtrail.TLSDetails) (status int, body []byte)
	// Managed makes the AWS managed key of an alias, "alias/aws/…" of the caller's account in the Region at that place of Config.Regions, if the caller calls
	// through the service whose it is. r is the request, which names the alias, and of which it keeps nothing. nil: nobody does.
	Managed func(region int, r *sigv4.Request, requestID string, w *authz.Caller, alias string) error
	// Audit makes a record durable: one line of JSON. It keeps nothing of it. A call whose record fails is refused. nil: no records.
	Audit func(record []byte) error
	// Quota takes one request out of a pool of the account that calls, in the Region at that place of Config.Regions, and reports whether it fits.
	// nil: every request fits.
	Quota func(region int, a keyid.Account, p ratelimit.Pool, now time.Time) bool
}

func (c *Config) defaults() {
	set(&c.KeyCacheBytes, 256<<20)
	set(&c.AliasCacheBytes, 32<<20)
	set(&c.ConnsMax, 20_000)
	set(&c.ConnsPerIPMax, 1_000)
	set(&c.ReadTimeout, 5*time.Second)
}

func set[T int | int64 | time.Duration](v *T, dflt T) {
	if *v == 0 {
		*v = dflt
	}
}

// grantCacheBytes bounds the cache of grants, and as much again that of who has none: most callers of most keys. Every set that the control
// plane lets be made fits: one that did not would be read from the store for each request.
const grantCacheBytes = authz.GrantSetMax + authz.GrantSetSlack // 64 MiB

// readBufferSize is of fasthttp's buffer for a connection, and the bound on request line and headers.
const readBufferSize = kmsapi.HeadersMax

// writeTimeout is how long a client may take to read one reply.
const writeTimeout = 5 * time.Second

// Server is the data plane.
type Server struct {
	cfg      Config
	parts    Parts       // set by Start, before started
	started  atomic.Bool // until then only /healthz and /readyz answer
	regions  []region    // the home Region first; not changed
	http     *fasthttp.Server
	keys     *cache.Cache[keyView]
	aliases  *cache.Cache[keyid.ID]
	grants   *cache.Cache[authz.GrantSet]
	policies policyTable
	offsets  hsm.Offsets
	requests requestPool
	ids      *uuid.Generator // of requests
	panics   atomic.Uint64

	signatures  atomic.Uint64 // of keys that are not RSA: one in provedEvery is verified
	provedEvery uint64        // tests that count allocations set 0: none is, of RSA keys neither
	warnings    ratelimit.GCRA
	secondLooks secondLooks
	verifying   chan struct{}  // one element for each attestation document that is being verified
	refusals    ratelimit.GCRA // of attestation documents, in the log
	strangers   ratelimit.Sampler
	unlogged    atomic.Uint64 // warnings left out since the last one
	draining    atomic.Bool
	closing     atomic.Bool
	pairs       chan struct{} // as many as key pairs of RSA may be made at the same time

	connAgeMax time.Duration // after which a connection is closed with its next reply
}

// New makes a server that answers /healthz and /readyz; Start has it serve.
func New(cfg Config) (*Server, error) {
	cfg.defaults()
	if cfg.Ready == nil || cfg.Logger == nil {
		return nil, errors.New("dataplane: a required field of Config is missing")
	}
	regions, err := newRegions(cfg.Regions)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, regions: regions, ids: uuid.New(), connAgeMax: time.Hour, strangers: ratelimit.Sampler{Limit: strangers}, provedEvery: provedEvery,
		verifying: make(chan struct{}, max(1, runtime.NumCPU()/2)), pairs: make(chan struct{}, max(1, runtime.NumCPU()/2))}
	if s.keys, err = cache.New(cfg.KeyCacheBytes, absentBytes(cfg.KeyCacheBytes), s.destroy); err != nil {
		return nil, err
	}
	if s.aliases, err = cache.New[keyid.ID](cfg.AliasCacheBytes, absentBytes(cfg.AliasCacheBytes), nil); err != nil {
		s.keys.Close()
		return nil, err
	}
	if s.grants, err = cache.New[authz.GrantSet](grantCacheBytes, grantCacheBytes, nil); err != nil {
		s.keys.Close()
		s.aliases.Close()
		return nil, err
	}
	s.http = s.newHTTP(s.handle, s.refuseHTTP, cfg.ConnsMax)
	return s, nil
}

// newHTTP makes a fasthttp server with the limits of this service, for one listener.
func (s *Server) newHTTP(handle fasthttp.RequestHandler, refuse func(*fasthttp.RequestCtx, error), connsMax int) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:      handle,
		ErrorHandler: refuse,

		ReadTimeout:        s.cfg.ReadTimeout,
		WriteTimeout:       writeTimeout,
		IdleTimeout:        60 * time.Second,
		MaxRequestsPerConn: 100_000,
		Concurrency:        2 * connsMax, // never reached: the listener counts
		ConnState:          connState,
		ReadBufferSize:     readBufferSize,
		WriteBufferSize:    16 << 10,
		MaxRequestBodySize: kmsapi.BodyMax,

		DisablePreParseMultipartForm:  true,
		DisableHeaderNamesNormalizing: true, // we read the raw block ourselves (precheck.go)
		NoDefaultServerHeader:         true,
		NoDefaultContentType:          true,
		CloseOnShutdown:               true,
		SecureErrorLogMessage:         true,
		LogAllErrors:                  false,
		Logger:                        silent{}, // its messages hold request bytes
	}
}

// absentBytes is the bound for names that do not exist beside one for those that do.
func absentBytes(present int64) int64 { return max(present/16, 1<<16) }

// Start gives the server its parts, once. Requests that come before are answered with ServiceUnavailableException.
func (s *Server) Start(p Parts) error {
	if p.Verifier == nil || p.Records == nil || p.Run == nil || p.Load == nil || p.Control == nil {
		return errors.New("dataplane: a part is missing")
	}
	s.parts = p
	s.offsets.Run = p.Load
	s.started.Store(true)
	return nil
}

// silent drops fasthttp's own log lines: some of them print what a client sent. Faults are counted and logged by refuseHTTP and finish.
type silent struct{}

func (silent) Printf(string, ...any) {}

// Serve accepts connections until Shutdown. It returns nil after Shutdown, else the listener's error.
func (s *Server) Serve(ln net.Listener) error {
	return s.http.Serve(listener{ln, s, &addrCount{open: make(map[netip.Addr]int), most: s.cfg.ConnsPerIPMax, allMax: s.cfg.ConnsMax}})
}

// Shutdown stops accepting, answers what is in flight, closes idle connections and returns when all are closed or ctx ends.
// /readyz answers 503 from its first moment on.
func (s *Server) Shutdown(ctx context.Context) error {
	s.draining.Store(true)
	return s.http.ShutdownWithContext(ctx)
}

// Close releases the caches. Call it after Serve has returned.
func (s *Server) Close() {
	s.closing.Store(true)
	s.keys.Close()
	s.aliases.Close()
	s.grants.Close()
}

// Panics counts requests that ended in a recovered panic; it stays 0 unless there is a bug.
func (s *Server) Panics() uint64 { return s.panics.Load() }

// serveHealth answers GET /healthz and /readyz. It reports whether the request was one of them.
func (s *Server) serveHealth(ctx *fasthttp.RequestCtx) bool {
	if !ctx.IsGet() {
		return false
	}
	switch string(ctx.Request.Header.RequestURI()) {
	case "/healthz":
		ctx.SetContentType("text/plain; charset=utf-8")
		ctx.SetBodyString("ok\n")
		return true
	case "/readyz":
		ctx.SetContentType("text/plain; charset=utf-8")
		err := s.cfg.Ready()
		if err == nil && !s.cfg.Lease.Valid() {
			err = errors.New("this process does not know what the others do")
		}
		if err == nil && s.draining.Load() {
			err = errors.New("shutting down")
		}
		if err != nil {
			ctx.SetStatusCode(fasthttp.StatusServiceUnavailable)
			ctx.SetBodyString(err.Error() + "\n")
		} else {
			ctx.SetBodyString("ready\n")
		}
		return true
	}
	return false
}
