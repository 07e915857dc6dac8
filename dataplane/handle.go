package dataplane

import (
	"errors"
	"net"
	"runtime/debug"
	"strconv"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/uuid"
)

// handle serves one request: pre-check, authenticate, route, charge, run the operation, answer. It is the main path of the service, and with
// serveHealth and refuseHTTP the only code that sees *fasthttp.RequestCtx.
func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	if s.serveHealth(ctx) {
		return
	}
	c, _ := ctx.Conn().(*conn)
	if c != nil {
		c.release() // a pipelined request: the reply before was copied and not flushed yet
	}
	r := s.requests.acquire()
	r.now, r.region = ctx.Time(), &s.regions[0]
	r.date = r.now
	if s.cfg.Now != nil {
		r.date = s.cfg.Now()
	}
	s.ids.Fill(&r.id)
	code := kmsapi.KMSInternal
	defer s.finish(ctx, c, r, &code) // recover, reply, hand the request back: in that order
	code = s.last(r, s.audit(c, r, s.still(r, s.serve(ctx, c, r))))
}

// serve is handle up to the result.
func (s *Server) serve(ctx *fasthttp.RequestCtx, c *conn, r *request) (code kmsapi.Code) {
	if code = s.precheck(ctx, r); code != kmsapi.OK {
		return r.refuse(code)
	}
	if !s.started.Load() {
		return r.refuse(kmsapi.ServiceUnavailable)
	}
	if c != nil {
		r.ip = c.addr
	}
	if code = s.first(r); code != kmsapi.OK {
		return code
	}
	r.recorded = recordNoise
	if r.who, code = s.parts.Verifier.Verify(&r.signed, &r.auth, r.date); code != kmsapi.OK {
		r.msg = append(r.msg[:0], r.auth.Message()...)
		return code
	}
	r.recorded = recordCall
	at := s.region(r.who.Region())
	if at != nil {
		r.region = at
	}
	switch {
	case r.who.Service() != kmsapi.SigningName:
		return s.forward(ctx, c, r) // IAM, STS, Service Quotas
	case at == nil:
		return r.refuse(kmsapi.KMSInternal) // the verifier's Regions are not this server's: a fault of who made them
	}
	op := kmsapi.Route(r.header.target)
	switch {
	case op == nil:
		return r.refuseText(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
	case op.Plane == kmsapi.ControlPlane:
		return s.forward(ctx, c, r)
	}
	r.event = op.Name
	return s.run(r, op)
}

// run runs an operation of this plane.
func (s *Server) run(r *request, op *kmsapi.Operation) kmsapi.Code {
	if r.op = operationOf(op); r.op == nil {
		r.msg = append(append(r.msg[:0], op.Name...), kmsapi.NotBuiltSuffix...)
		return kmsapi.UnsupportedOperation
	}
	if code := r.in.scan(r, r.signed.Body); code != kmsapi.OK {
		return code
	}
	r.scanned = true
	if code := r.in.check(r); code != kmsapi.OK {
		return code
	}
	if !r.op.pools.byKey {
		if code := s.enter(r, keyspec.Of(r.in.keyPairSpec)); code != kmsapi.OK {
			return code
		}
	}
	return r.op.run(s, r)
}

// precheck reads the header block and refuses what is not a request to this service. The connection is closed after such a refusal.
func (s *Server) precheck(ctx *fasthttp.RequestCtx, r *request) kmsapi.Code {
	if code := r.readHead(ctx); code != kmsapi.OK {
		return code
	}
	if string(r.signed.Method) != "POST" || string(r.signed.Path) != "/" {
		return kmsapi.BadRequest // absolute request targets too
	}
	return kmsapi.OK
}

// readHead reads request line and header block, whatever the method and the path.
func (r *request) readHead(ctx *fasthttp.RequestCtx) kmsapi.Code {
	h := &ctx.Request.Header
	if code := r.header.parse(h.RawHeaders()); code != kmsapi.OK {
		return code
	}
	r.signed = sigv4.Request{Method: h.Method(), Path: h.RequestURI(), Headers: r.header.lines[:r.header.n], Body: ctx.Request.Body()}
	if i := indexQuery(r.signed.Path); i >= 0 {
		r.signed.Path, r.signed.Query = r.signed.Path[:i], r.signed.Path[i+1:]
	}
	if !isHTTP1(h.Protocol()) {
		return kmsapi.BadRequest
	}
	return kmsapi.OK
}

// isHTTP1 is asked because fasthttp takes any version of HTTP for one it speaks.
func isHTTP1(protocol []byte) bool {
	return string(protocol) == "HTTP/1.1" || string(protocol) == "HTTP/1.0"
}

func indexQuery(uri []byte) int {
	for i, c := range uri {
		if c == '?' {
			return i
		}
	}
	return -1
}

// forward hands the original signed request to the control plane and copies its answer.
func (s *Server) forward(ctx *fasthttp.RequestCtx, c *conn, r *request) kmsapi.Code {
	ip := ""
	if a, ok := ctx.RemoteAddr().(*net.TCPAddr); ok {
		ip = a.IP.String()
	}
	r.recorded = recordElsewhere
	status, body := s.parts.Control(r.region.index, &r.signed, string(r.id[:]), ip, s.tlsOf(c, r))
	if status == 0 { // so the call has no record, unless its control plane left one and then was lost
		r.recorded, r.unanswered = recordCall, true
		return r.refuse(kmsapi.DependencyTimeout)
	}
	ctx.SetStatusCode(status)
	r.out = append(r.out[:0], body...)
	clear(body) // it may hold a secret access key
	r.xml = r.who.Service() != kmsapi.SigningName && r.who.Service() != quota.SigningName
	return kmsapi.OK
}

// finish ends every request, once: it turns a panic into KMSInternalException, writes the reply and lets the request go.
func (s *Server) finish(ctx *fasthttp.RequestCtx, c *conn, r *request, code *kmsapi.Code) {
	if p := recover(); p != nil {
		id := s.abandon(ctx, r)
		body := kmsapi.AppendErrorBody(nil, kmsapi.KMSInternal, []byte(kmsapi.KMSInternal.Text()))
		s.reply(ctx, id[:], kmsapi.KMSInternal.Status(), contentType, body)
		return
	}
	r.releaseKeys()
	status := fasthttp.StatusOK
	switch {
	case *code != kmsapi.OK && r.header.form:
		e := awsquery.FromKMS(kmsapi.New(*code, string(r.msg)))
		status, r.xml = e.Status, true
		r.out = awsquery.AppendError(r.out[:0], e, string(r.id[:]))
		if closes(*code) || s.elsewhere(code.Status()) {
			ctx.SetConnectionClose()
		}
	case *code != kmsapi.OK:
		status = code.Status()
		r.out = kmsapi.AppendErrorBody(r.out[:0], *code, r.msg)
		if closes(*code) || s.elsewhere(code.Status()) {
			ctx.SetConnectionClose()
		}
	case r.op == nil:
		status = ctx.Response.StatusCode() // the control plane's
	}
	if r.now.Sub(ctx.ConnTime()) > s.connAgeMax {
		ctx.SetConnectionClose()
	}
	clear(ctx.Request.Body()) // it may hold plaintext
	typ := contentType
	if r.xml {
		typ = contentTypeXML
	}
	s.reply(ctx, r.id[:], status, typ, r.out)
	if c == nil {
		return // not one of our listeners' connections (a test's): leave the request to the garbage collector
	}
	c.pending = r // released when the reply has left (conn.go)
}

// abandon ends a request that panicked, up to its reply, which is the connection's last; it returns the request's ID. The request may be in any state, so it is
// not used again. What was recovered may hold request bytes: only the stack is logged.
func (s *Server) abandon(ctx *fasthttp.RequestCtx, r *request) (id [uuid.Len]byte) {
	s.panics.Add(1)
	s.cfg.Logger.Error("a request ended in a panic: this is a bug", "request", string(r.id[:]), "stack", string(debug.Stack()))
	clear(ctx.Request.Body())
	id = r.id
	s.auditAbandoned(r)
	wipeAbandoned(r)
	ctx.Response.Reset()
	ctx.SetConnectionClose()
	return id
}

// wipeAbandoned clears what it can of a request that panicked; a second panic changes nothing.
func wipeAbandoned(r *request) {
	defer func() { _ = recover() }()
	r.reset()
}

// closes says that the connection cannot be trusted to be framed as we read it.
func closes(c kmsapi.Code) bool {
	return c == kmsapi.BadRequest || c == kmsapi.RequestHeaderTooLarge || c == kmsapi.RequestEntityTooLarge || c == kmsapi.RequestTimeout
}

// elsewhere says that the client may find another process of the cluster that serves it, if it connects anew: what this one cannot do, for want of its lease or its HSM,
// it could not on this connection again.
func (s *Server) elsewhere(status int) bool { return s.cfg.Lease != nil && status >= 500 }

var (
	headerRequestID = []byte("x-amzn-RequestId")
	contentType     = []byte(kmsapi.ContentType)
	contentTypeXML  = []byte("text/xml")
)

// reply sets the response. body is not copied: it stays unchanged until the reply has left.
func (s *Server) reply(ctx *fasthttp.RequestCtx, id []byte, status int, typ, body []byte) {
	ctx.Response.SetStatusCode(status)
	ctx.Response.Header.SetContentTypeBytes(typ)
	ctx.Response.Header.SetCanonical(headerRequestID, id)
	ctx.Response.SetBodyRaw(body)
}

// refuseHTTP answers what fasthttp could not read as a request; the connection is closed afterwards.
func (s *Server) refuseHTTP(ctx *fasthttp.RequestCtx, err error) {
	code := kmsapi.BadRequest
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		code = kmsapi.RequestHeaderTooLarge
	case errors.Is(err, fasthttp.ErrBodyTooLarge):
		code = kmsapi.RequestEntityTooLarge
	case errors.As(err, &netErr) && netErr.Timeout():
		code = kmsapi.RequestTimeout
	}
	var id [uuid.Len]byte
	s.ids.Fill(&id)
	ctx.Response.Reset()
	s.reply(ctx, id[:], code.Status(), contentType, kmsapi.AppendErrorBody(nil, code, []byte(code.Text())))
	s.cfg.Logger.Debug("request refused below HTTP", "code", code.Type(), "status", strconv.Itoa(code.Status()))
}
