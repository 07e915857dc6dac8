package controlplane

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/uuid"
	"github.com/keyplane/keyplane/ratelimit"
)

// Publisher tells the data plane what changed. Each method is called after the change is committed (or may be: the outcome of a write can
// be unknown) and before the client has its answer. When it returns, no request that arrives later may use the old view. Methods are
// called concurrently and more often than something changed.
type Publisher interface {
	KeyChanged(keyid.Account, keyid.ID)
	AliasChanged(a keyid.Account, alias string) // "alias/…"
	// The grants on a key to one of authz.Caller.Grantees: all may have changed, or one was made or removed and nothing else. Changes of one
	// key's grants are told in the order in which they were committed, one after the other.
	GrantsChanged(a keyid.Account, id keyid.ID, grantee string)
	GrantMade(a keyid.Account, id keyid.ID, grantee string, g *authz.Grant)
	GrantRemoved(a keyid.Account, id keyid.ID, grantee, grant string)
	AccessKeyChanged(id string)
}

// Principals knows who exists. Safe for concurrent use.
type Principals interface {
	Bind(arn string) (id string, ok bool) // a policy.Binder over all accounts
	IsService(name string) bool           // whether a service is registered under a name in lower case, with its Region or without
}

// Config is what a Server is made of. Every field is required that has no word on what nil or 0 is.
type Config struct {
	Region   string
	Store    *store.Store
	Verifier *sigv4.Verifier
	Random   func([]byte) error // fills the slice from the HSM: salts and key IDs; an error may wrap a *kmsapi.Error
	Root     func() [8]byte     // hsm.RootID that new key versions are made under

	// NewKey makes a private or HMAC key of the spec in the HSM, without an ID. It can take many seconds. What is not offered is a *kmsapi.Error,
	// UnsupportedOperation; other errors may wrap one. nil: no spec but SYMMETRIC_DEFAULT is offered.
	NewKey func(keyspec.Spec) (*snapshot.PrivateKey, error)

	Publisher  Publisher
	Principals Principals
	Now        func() time.Time // nil: time.Now
	Logger     *slog.Logger     // nil: slog.Default
	IAM        IAM              // nil: requests to IAM and STS are refused
	Quotas     Quotas           // nil: nothing is charged, resource quotas are the usual ones, requests to Service Quotas are refused

	LastUses LastUses // nil: GetKeyLastUsage is refused

	// Audit keeps one record, a line of JSON, for good before it returns. It is called concurrently and does not keep the slice. A call whose
	// record it refuses fails. nil: nothing is recorded, which is for tests.
	Audit func(record []byte) error

	DeletionInterval time.Duration // how often Run looks for keys whose deletion is due; 0: one minute
}

// IAM answers requests to IAM and STS, whose signature was verified: *iam.Server.
type IAM interface {
	// record is filled with what the call asked for and what came of it: eventName, readOnly, error, parameters, elements, resources.
	Serve(ctx context.Context, who sigv4.Identity, service string, body []byte, requestID, sourceIP string, userAgent []byte, now time.Time,
		record *cloudtrail.Record) (status int, reply []byte)
}

// Quotas is what accounts may use, and answers requests to Service Quotas, whose signature was verified: *quotas.Quotas.
type Quotas interface {
	Charge(a keyid.Account, p ratelimit.Pool, now time.Time) bool
	Max(a keyid.Account, name string) int // of a resource quota
	Serve(ctx context.Context, who sigv4.Identity, target, body []byte, requestID, sourceIP string, userAgent []byte, now time.Time,
		record *cloudtrail.Record) (status int, reply []byte)
}

const (
	// requestTimeout bounds one operation, so that a lost etcd quorum becomes a DependencyTimeoutException.
	requestTimeout = 5 * time.Second

	deletionIntervalDefault = time.Minute
)

// Server is the control plane. Serve is safe for concurrent use.
type Server struct {
	region, partition string
	store             *store.Store
	verifier          *sigv4.Verifier
	random            func([]byte) error
	root              func() [8]byte
	newKey            func(keyspec.Spec) (*snapshot.PrivateKey, error) // nil: none
	publisher         Publisher
	principals        Principals
	now               func() time.Time
	log               *slog.Logger
	deletionInterval  time.Duration
	iam               IAM
	unsettled         unsettled
	quotas            Quotas

	sink       func(record []byte) error // nil: none
	lastUses   LastUses                  // nil: none
	events     *uuid.Generator           // IDs of records
	strangers  ratelimit.Sampler
	unrecorded atomic.Uint64
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.Store == nil || cfg.Verifier == nil || cfg.Random == nil || cfg.Root == nil || cfg.Publisher == nil || cfg.Principals == nil {
		return nil, errors.New("controlplane: a part of the configuration is missing")
	}
	if !validRegion(cfg.Region) {
		return nil, errors.New("controlplane: the Region is not a name like us-east-1")
	}
	s := &Server{
		region: cfg.Region, partition: keyid.Partition(cfg.Region), store: cfg.Store, verifier: cfg.Verifier, random: cfg.Random,
		root: cfg.Root, newKey: cfg.NewKey, publisher: cfg.Publisher, principals: cfg.Principals, now: cfg.Now, log: cfg.Logger,
		deletionInterval: cfg.DeletionInterval, iam: cfg.IAM, quotas: cfg.Quotas,
	}
	s.lastUses, s.sink, s.events, s.strangers.Limit = cfg.LastUses, cfg.Audit, uuid.New(), strangers
	s.unsettled.again, s.unsettled.arrived = map[string]func(){}, make(chan struct{}, 1)
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.deletionInterval <= 0 {
		s.deletionInterval = deletionIntervalDefault
	}
	return s, nil
}

// validRegion keeps the Region, which is a part of etcd's keys, to what the model allows for one (kms-api, "ReplicaRegion").
func validRegion(r string) bool {
	for _, c := range []byte(r) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-') {
			return false
		}
	}
	return len(r) > 0 && len(r) <= 32
}

// Request is one call: the request as its client signed it, which is verified here again, and where it came from.
type Request struct {
	Signed          *sigv4.Request
	RequestID       string
	SourceIP        string
	SecureTransport bool                   // it came over TLS
	TLS             *cloudtrail.TLSDetails // nil: not known
}

// Response is the answer. Body is JSON, or empty for operations without output; it belongs to the caller.
type Response struct {
	Status int
	Body   []byte
	Code   kmsapi.Code // kmsapi.OK on success
	Date   time.Time   // of the decision, for the Date header
}

// call is one operation on its way through the server.
type call struct {
	op      *kmsapi.Operation // nil until routed
	action  *authz.Action     // the permission that the operation asks for
	caller  sigv4.Identity    // invalid until verified
	now     time.Time         // in milliseconds, as records and replies are
	request *Request
	status  int           // of another service's reply, 0 for KMS's
	context authz.Context // Extra is the operation's to fill
	scratch policy.Scratch

	// For the record.
	record    cloudtrail.Record
	resources []resource
	named     resource // the key that the request names, found or not
	keyARN    string   // of the key that the call is about
	grant     string   // ID of the grant that is retired
}

// form reports whether the request is one to IAM or STS, whose refusals are XML.
func (c *call) form() bool {
	return c.request.Signed != nil && bytes.HasPrefix(header(c.request.Signed, "content-type"), []byte("application/x-www-form-urlencoded"))
}

func (c *call) account() keyid.Account { return c.caller.Principal().Account }

// Serve answers one request. It never panics and always has an answer.
func (s *Server) Serve(ctx context.Context, r *Request) (resp Response) {
	c := &call{request: r, now: s.now().UTC().Truncate(time.Millisecond)}
	var body []byte
	var err error
	defer func() {
		if p := recover(); p != nil {
			body, err = nil, errPanic
		}
		resp = s.finish(c, body, err)
	}()
	body, err = s.serve(ctx, c)
	return resp
}

var errPanic = errors.New("controlplane: a handler panicked")

func (s *Server) serve(ctx context.Context, c *call) ([]byte, error) {
	signed := c.request.Signed
	if len(signed.Body) > kmsapi.BodyMax {
		return nil, kmsapi.E(kmsapi.RequestEntityTooLarge)
	}
	var scratch sigv4.Scratch
	defer scratch.Reset()
	identity, code := s.verifier.Verify(signed, &scratch, c.now)
	if code != kmsapi.OK {
		return nil, kmsapi.New(code, string(scratch.Message()))
	}
	c.caller = identity
	if identity.Service() == quota.SigningName {
		if s.quotas == nil {
			return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
		}
		var body []byte
		c.status, body = s.quotas.Serve(ctx, identity, header(signed, "x-amz-target"), signed.Body, c.request.RequestID, c.request.SourceIP, header(signed, "user-agent"), c.now, &c.record)
		return body, nil
	}
	if service := identity.Service(); service != kmsapi.SigningName {
		if s.iam == nil {
			return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		var body []byte
		c.status, body = s.iam.Serve(ctx, identity, service, signed.Body, c.request.RequestID, c.request.SourceIP, header(signed, "user-agent"), c.now, &c.record)
		return body, nil
	}
	if c.op = kmsapi.Route(header(signed, "x-amz-target")); c.op == nil {
		return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
	}
	if !c.op.Built {
		return nil, kmsapi.New(kmsapi.UnsupportedOperation, kmsapi.NotBuiltText(c.op))
	}
	run := handlers[c.op.Name]
	if run == nil { // a cryptographic operation, which the data plane does not send here
		return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
	}
	if c.action = authz.Actions[c.op.Name]; c.action == nil {
		return nil, errors.New("controlplane: an operation without a permission")
	}
	c.fillContext(s.region)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return run(s, ctx, c, signed.Body)
}

// fillContext says of condition keys what every request does.
func (c *call) fillContext(region string) {
	r := c.request
	c.context = authz.Context{
		Caller: c.principal(), Now: c.now, SecureTransport: r.SecureTransport, UserAgent: header(r.Signed, "user-agent"), Region: region,
	}
	if w := c.principal(); w != nil && w.Kind == policy.Service {
		// Only a registered service can tell for which resource of its own it calls; of anybody else the headers mean nothing.
		c.context.SourceArn, c.context.SourceAccount = header(r.Signed, "x-amz-source-arn"), header(r.Signed, "x-amz-source-account")
	}
	if addr, err := netip.ParseAddr(r.SourceIP); err == nil {
		c.context.SourceIP = addr.Unmap()
	}
}

// header is the value of the first header of that name. Verify refuses a second X-Amz-* header of one name.
func header(r *sigv4.Request, name string) []byte {
	for i := range r.Headers {
		if string(r.Headers[i].Name) == name {
			return r.Headers[i].Value
		}
	}
	return nil
}

// finish is where every call ends, allowed or refused: it turns the error into the exception, leaves the record and keeps what went wrong on
// our side in the log, where no request content goes. A call that cannot be recorded is answered with an internal error, its reply wiped; what
// it changed stays.
func (s *Server) finish(c *call, body []byte, err error) Response {
	resp := Response{Status: http.StatusOK, Body: body, Date: c.now}
	operation, message := "unknown", ""
	if c.op != nil {
		operation = c.op.Name
	}
	if c.status != 0 {
		resp.Status = c.status
	}
	if err != nil {
		e := exception(err)
		message = e.Message
		c.refuseWith(&resp, e)
		if resp.Status >= http.StatusInternalServerError {
			attrs := []any{"operation", operation, "requestId", c.request.RequestID, "error", err.Error()}
			if errors.Is(err, errPanic) {
				attrs = append(attrs, "stack", string(debug.Stack()))
			}
			s.log.Error("operation failed", attrs...)
		}
	}
	if err := s.audit(c, &resp, message); err != nil {
		s.unrecorded.Add(1)
		s.log.Error("an operation could not be recorded and was answered with an internal error", "operation", operation, "requestId", c.request.RequestID,
			"code", resp.Code.String(), "error", err.Error())
		clear(resp.Body)
		c.refuseWith(&resp, kmsapi.E(kmsapi.KMSInternal))
	}
	s.log.Debug("operation", "operation", operation, "requestId", c.request.RequestID, "sourceIp", c.request.SourceIP,
		"accessKeyId", c.caller.AccessKeyID(), "code", resp.Code.String())
	return resp
}

// refuseWith makes resp the refusal e.
func (c *call) refuseWith(resp *Response, e *kmsapi.Error) {
	resp.Code, resp.Status = e.Code, e.Code.Status()
	resp.Body = kmsapi.AppendErrorBody(nil, e.Code, []byte(e.Message))
	if c.form() {
		q := awsquery.FromKMS(e)
		resp.Status, resp.Body = q.Status, awsquery.AppendError(nil, q, c.request.RequestID)
	}
}

// Unrecorded is how many calls and deletions have failed because there was no record of them.
func (s *Server) Unrecorded() uint64 { return s.unrecorded.Load() }

// exception is what the client hears of err: a refusal as it is; a store that did not answer in time; else an internal error without
// detail.
func exception(err error) *kmsapi.Error {
	var e *kmsapi.Error
	switch {
	case errors.As(err, &e):
		return e
	case store.Unavailable(err):
		return kmsapi.E(kmsapi.DependencyTimeout)
	}
	return kmsapi.E(kmsapi.KMSInternal)
}
