package dataplane

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/uuid"
	"github.com/keyplane/keyplane/internal/xks"
)

// XKSConfig is what an XKS listens by. Fleet, Root and Ready are required.
type XKSConfig struct {
	// Prefixes are the external key stores.
	Prefixes []XKSPrefix
	// Fleet are the tokens as GetHealthStatus shows them, 1 to xks.FleetMax.
	Fleet func() []xks.EKM
	// Root is a derivation root that a health check computes with.
	Root func() hsm.RootID
	// Ready returns nil while what a request needs besides the HSM serves: the store, and the audit log.
	Ready func() error
	// Run is Parts.Run for requests that give up sooner than those of the KMS API. nil: Parts.Run.
	Run func(j *hsm.Job, now time.Time) error
	// TimeMax is how long after a request came its last round may start: then it has been given up at the other end. Run's now is when it came. 0: any time.
	TimeMax time.Duration

	Version string // of this program, for GetHealthStatus
	TLS     bool   // connections are encrypted

	ConnsMax      int // open connections; 0 is 20 000
	ConnsPerIPMax int // open connections of one address; 0 is ConnsMax: a load balancer has one address
}

// XKS is the proxy of an external key store of AWS KMS (XKS proxy API, internal/xks): keys of a Server that AWS KMS encrypts with from outside. It has a listener
// of its own and everything else in common with its Server.
type XKS struct {
	s      *Server
	cfg    XKSConfig
	http   *fasthttp.Server
	start  time.Time                             // of the clock of rates
	table  atomic.Pointer[map[string]*xksPrefix] // by path, without xks.BasePath
	health healthCheck
}

// NewXKS makes a proxy on a Server that has started.
func (s *Server) NewXKS(cfg XKSConfig) (*XKS, error) {
	set(&cfg.ConnsMax, 20_000)
	set(&cfg.ConnsPerIPMax, cfg.ConnsMax)
	if cfg.Run == nil {
		cfg.Run = s.parts.Run
	}
	if !s.started.Load() || cfg.Fleet == nil || cfg.Root == nil || cfg.Ready == nil {
		return nil, errors.New("dataplane: an XKS proxy needs a server that has started, and every required field")
	}
	x := &XKS{s: s, cfg: cfg, start: time.Now()}
	if err := x.SetPrefixes(cfg.Prefixes); err != nil {
		return nil, err
	}
	x.http = s.newHTTP(x.handle, x.refuseHTTP, cfg.ConnsMax)
	return x, nil
}

// Serve accepts connections until Shutdown. It returns nil after Shutdown, else the listener's error.
func (x *XKS) Serve(ln net.Listener) error {
	return x.http.Serve(listener{ln, x.s, &addrCount{open: make(map[netip.Addr]int), most: x.cfg.ConnsPerIPMax, allMax: x.cfg.ConnsMax}})
}

// Shutdown stops accepting, answers what is in flight, closes idle connections and returns when all are closed or ctx ends.
func (x *XKS) Shutdown(ctx context.Context) error { return x.http.ShutdownWithContext(ctx) }

// xksRequest is what a request to a proxy has that others do not: a part of a pooled request.
type xksRequest struct {
	prefix  *xksPrefix // nil until routed
	api     xks.API
	id      []byte  // of the external key; borrows
	key     *xksKey // nil until found
	in      xksInput
	arrived time.Time // what deadlines count from, however long what was done since has taken
	reason  string    // what is said of a refusal: never the client's bytes
	status  int       // HTTP status, where it is not that of the failure
	closes  bool      // the connection cannot be trusted to be framed as we read it

	metadata [xksMetadataLen]byte // ciphertextMetadata
	iv       [12]byte
	secret   [len(xksLabel) + 4 + len(hsm.Derivation{}.Out)]byte // what the message key is hashed from
	message  [32]byte                                            // the message key
}

// refuseXKS sets what is said of a refusal.
func (r *request) refuseXKS(f xks.Failure, reason string) xks.Failure {
	r.xks.reason = reason
	return f
}

// handle serves one request: pre-check, route, authenticate, scan, authorise, do, record, answer.
func (x *XKS) handle(ctx *fasthttp.RequestCtx) {
	s := x.s
	if s.serveHealth(ctx) {
		return
	}
	c, _ := ctx.Conn().(*conn)
	if c != nil {
		c.release() // a pipelined request: the reply before was copied and not flushed yet
	}
	r := s.requests.acquire()
	r.now, r.region = ctx.Time(), &s.regions[0]
	r.date, r.xks.arrived = r.now, r.now
	if s.cfg.Now != nil {
		r.date = s.cfg.Now()
	}
	s.ids.Fill(&r.id)
	code := xks.Internal
	defer x.finish(ctx, c, r, &code) // recover, reply, hand the request back: in that order
	code = x.last(r, x.audit(c, r, x.still(r, x.serve(ctx, c, r))))
}

// serve is handle up to the result.
func (x *XKS) serve(ctx *fasthttp.RequestCtx, c *conn, r *request) xks.Failure {
	if r.readHead(ctx) != kmsapi.OK {
		r.xks.closes = true
		return r.refuseXKS(xks.Validation, "The request is not HTTP as this service speaks it.")
	}
	if !x.route(r) {
		return r.refuseXKS(xks.InvalidURIPath, "There is no external key store or no operation at this URI path.")
	}
	if string(r.signed.Method) != "POST" {
		ctx.Response.Header.Set("Allow", "POST")
		r.xks.status = fasthttp.StatusMethodNotAllowed
		return r.refuseXKS(xks.Validation, "The method of every operation is POST.")
	}
	if c != nil {
		r.ip = c.addr
	}
	r.event = r.xks.api.String()
	r.recorded = recordNoise
	if code := x.first(r); code != xks.OK {
		return code
	}
	var code kmsapi.Code
	if r.who, code = r.xks.prefix.verifier.Verify(&r.signed, &r.auth, r.date); code != kmsapi.OK {
		r.xks.closes = closes(code)
		return r.refuseXKS(xks.AuthenticationFailed, "The signature of the request is missing, too old, or not that of a credential of this external key store.")
	}
	r.recorded = recordCall
	return x.run(r)
}

// keysPath and its like are what comes after xks.BasePath.
var (
	keysPath   = []byte("keys/")
	healthPath = []byte("health")
)

// route finds the external key store and the operation that the path names.
func (x *XKS) route(r *request) bool {
	path := r.signed.Path
	at := bytes.LastIndex(path, xksBase)
	if at < 0 {
		return false
	}
	prefix := (*x.table.Load())[string(path[:at])]
	if prefix == nil {
		return false
	}
	rest := path[at+len(xksBase):]
	if bytes.Equal(rest, healthPath) {
		r.xks.prefix, r.xks.api = prefix, xks.GetHealthStatus
		return true
	}
	rest, ok := bytes.CutPrefix(rest, keysPath)
	if !ok {
		return false
	}
	id, operation, _ := bytes.Cut(rest, xksSlash)
	switch string(operation) {
	case "metadata":
		r.xks.api = xks.GetKeyMetadata
	case "encrypt":
		r.xks.api = xks.Encrypt
	case "decrypt":
		r.xks.api = xks.Decrypt
	default:
		return false
	}
	r.xks.prefix, r.xks.id = prefix, id
	return true
}

var (
	xksBase  = []byte(xks.BasePath + "/")
	xksSlash = []byte("/")
)

// run runs the operation.
func (x *XKS) run(r *request) xks.Failure {
	in, api := &r.xks.in, r.xks.api
	if !in.scan(&r.scan, r.signed.Body) {
		return r.refuseXKS(xks.Validation, "The request body is not a JSON object of this API.")
	}
	r.scanned = true
	if code := in.check(r, api); code != xks.OK {
		return code
	}
	if api == xks.GetHealthStatus {
		return x.getHealthStatus(r)
	}
	if !r.xks.prefix.charge(x.start, r.xks.arrived) {
		return r.refuseXKS(xks.Throttling, "More requests than the external key store serves.")
	}
	if code := x.admit(r); code != xks.OK {
		return code
	}
	switch api {
	case xks.GetKeyMetadata:
		return x.getKeyMetadata(r)
	case xks.Encrypt:
		return x.encrypt(r)
	}
	return x.decrypt(r)
}

// finish ends every request, once: it turns a panic into InternalException, writes the reply and lets the request go.
func (x *XKS) finish(ctx *fasthttp.RequestCtx, c *conn, r *request, code *xks.Failure) {
	s := x.s
	if p := recover(); p != nil {
		id := s.abandon(ctx, r)
		s.reply(ctx, id[:], xks.Internal.Status(), contentTypeXKS, appendXKSError(nil, xks.Internal, ""))
		return
	}
	r.releaseKeys()
	status := fasthttp.StatusOK
	if *code != xks.OK {
		if status = r.xks.status; status == 0 {
			status = code.Status()
		}
		r.out = appendXKSError(emptied(r.out), *code, r.xks.reason)
	}
	if r.xks.closes || s.elsewhere(status) || r.now.Sub(ctx.ConnTime()) > s.connAgeMax {
		ctx.SetConnectionClose()
	}
	clear(ctx.Request.Body()) // it may hold plaintext
	s.reply(ctx, r.id[:], status, contentTypeXKS, r.out)
	if c == nil {
		return // not one of our listeners' connections (a test's): leave the request to the garbage collector
	}
	c.pending = r // released when the reply has left (conn.go)
}

var contentTypeXKS = []byte("application/json")

// appendXKSError appends the body of a refusal. reason is ours and needs no escaping; "" is left out.
func appendXKSError(dst []byte, f xks.Failure, reason string) []byte {
	dst = append(append(append(dst, `{"errorName":"`...), f.Name()...), '"')
	if reason != "" {
		dst = append(append(append(dst, `,"errorMessage":"`...), reason...), '"')
	}
	return append(dst, '}')
}

// refuseHTTP answers what fasthttp could not read as a request; the connection is closed afterwards.
func (x *XKS) refuseHTTP(ctx *fasthttp.RequestCtx, err error) {
	code, reason := xks.Validation, "The request is not HTTP as this service speaks it."
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		reason = "The request line and headers are too long."
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		code, reason = xks.UnsupportedOperation, "The request body is too long."
	case errors.As(err, &netErr) && netErr.Timeout():
		code, reason = xks.DependencyTimeout, "The request was not sent in time."
	}
	var id [uuid.Len]byte
	x.s.ids.Fill(&id)
	ctx.Response.Reset()
	x.s.reply(ctx, id[:], code.Status(), contentTypeXKS, appendXKSError(nil, code, reason))
	x.s.cfg.Logger.Debug("request to the XKS proxy refused below HTTP", "code", code.Name())
}

// tlsOf is what records say of the connection; nil where it is not encrypted.
func (x *XKS) tlsOf(c *conn, r *request) *cloudtrail.TLSDetails {
	if !x.cfg.TLS || c == nil {
		return nil
	}
	return c.tlsOf(r)
}
