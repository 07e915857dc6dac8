package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/fence"
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
	// Spread returns when every process has what this one has read and written of the store: what is answered may be another's change, or one that no other method
	// here is for. Where there is one process it has nothing to do.
	Spread()
}

// Principals knows who exists. Safe for concurrent use.
type Principals interface {
	Bind(arn string) (id string, ok bool) // a policy.Binder over all accounts
	IsService(name string) bool           // whether a service is registered under a name in lower case, with its Region or without
	// Service is the name, without Region, of the service registered for the account whose first label is the one given, in the Region or without one; "" if
	// there is none.
	Service(label, region string, a keyid.Account) string
}

// Config is what a Server is made of. Every field is required that has no word on what nil or 0 is.
type Config struct {
	Region   string // requests to KMS and Service Quotas are for it; other Regions have Servers of their own, also over the same Store
	Store    *store.Store
	Verifier *sigv4.Verifier
	Random   func([]byte) error // fills the slice from the HSM: salts and key IDs; an error may wrap a *kmsapi.Error
	Root     func() [8]byte     // hsm.RootID that new key versions are made under

	Keys Keys // nil: no spec but SYMMETRIC_DEFAULT is offered, of origin AWS_KMS and in one Region
	// KeyStores are the connections to custom key stores. nil: there can be none.
	KeyStores KeyStores
	// Sealer protects what is given away and comes back, the import tokens, under the derivation root. nil: there are none.
	Sealer store.Sealer
	// Wrapping has the requests for wrapping keys take turns, those of all Servers that have it. nil: this one's alone.
	Wrapping *WrappingSeats

	Publisher  Publisher
	Principals Principals
	// Lease is until when this process may answer from what it knows of principals and their rights: while it has run out every request is refused. nil: for ever,
	// it has the only view there is.
	Lease *fence.Lease
	// Applied is the revision of the store up to which all changes are in what the Verifier and Principals go by: a request writes only if its caller is the same in the
	// store still (store.Authority). nil: nobody but this process changes them.
	Applied func() int64
	// SpreadAt returns when no process answers any more from before a revision of the store: what a read tells of is in force everywhere. nil: nobody else answers.
	SpreadAt func(ctx context.Context, revision int64)
	Now      func() time.Time // nil: time.Now
	// Replication is how keys come to other Regions. nil: they come to none.
	Replication *Replication
	// Running is the time since some moment, by a clock that nobody can set. nil: that of this process since New.
	Running func() time.Duration
	Logger  *slog.Logger // nil: slog.Default
	IAM     IAM          // nil: requests to IAM and STS are refused
	Quotas  Quotas       // nil: nothing is charged, resource quotas are the usual ones, requests to Service Quotas are refused

	LastUses LastUses // nil: GetKeyLastUsage is refused

	// Audit keeps one record, a line of JSON, for good before it returns. It is called concurrently and does not keep the slice. A call whose
	// record it refuses fails. nil: nothing is recorded, which is for tests.
	Audit func(record []byte) error

	WorkInterval time.Duration // how often Run looks for what is due (Work); 0: one minute
}

// Keys makes, moves and compares private, HMAC and resident AES keys in the HSM. Keys have no ID yet when they come out of it. What is not offered is a
// *kmsapi.Error, UnsupportedOperation; other errors may wrap one. Methods can take many seconds. Safe for concurrent use.
// A keyring.Ring is one.
type Keys interface {
	// New makes a key of the spec, which may be keyspec.AES256.
	New(keyspec.Spec) (*snapshot.PrivateKey, error)
	// Imports says whether keys of the spec come in with the wrapping algorithm. The error wraps an exception: it cannot be told now.
	Imports(keyspec.Spec, keyspec.Wrapping) (bool, error)
	// Import brings in a key of the spec whose material was wrapped for an RSA key that New made. hsm.ErrMaterial for whatever is wrong with the material.
	Import(s, wrapping keyspec.Spec, k *snapshot.PrivateKey, w keyspec.Wrapping, material []byte) (*snapshot.PrivateKey, error)
	// Export wraps a key of the spec for the RSA public key of another HSM, DER SubjectPublicKeyInfo.
	Export(s keyspec.Spec, k *snapshot.PrivateKey, w keyspec.Wrapping, public []byte) (material []byte, err error)
	// Images are those of snapshot.ResidentBlocks under an AES256 key, and of an HMAC key 32 bytes of a MAC of them: equal for equal key material, and no secret.
	Images(keyspec.Spec, *snapshot.PrivateKey) (*[32]byte, error)
}

// IAM answers requests to IAM and STS, whose signature was verified: *iam.Server.
type IAM interface {
	// record is filled with what the call asked for and what came of it: eventName, readOnly, error, parameters, elements, resources.
	Serve(ctx context.Context, who sigv4.Identity, service string, body []byte, requestID, sourceIP string, secure bool, userAgent []byte, now time.Time,
		record *cloudtrail.Record) (status int, reply []byte)
	// Event is the eventName and readOnly of a request that Serve was not asked to answer: "" unless it names an operation of the service.
	Event(service string, body []byte) (name string, readOnly bool)
}

// Quotas is what accounts may use, and answers requests to Service Quotas, whose signature was verified: *quotas.Quotas.
type Quotas interface {
	Charge(a keyid.Account, p ratelimit.Pool, now time.Time) bool
	Max(a keyid.Account, name string) int // of a resource quota
	Serve(ctx context.Context, who sigv4.Identity, target, body []byte, requestID, sourceIP string, secure bool, userAgent []byte, now time.Time,
		record *cloudtrail.Record) (status int, reply []byte)
}

const (
	// requestTimeout bounds one operation, so that a lost etcd quorum becomes a DependencyTimeoutException.
	requestTimeout = 5 * time.Second

	workIntervalDefault = time.Minute
)

// Server is the control plane. Serve is safe for concurrent use.
type Server struct {
	region, partition string
	store             *store.Store
	verifier          *sigv4.Verifier
	random            func([]byte) error
	root              func() [8]byte
	keys              Keys         // nil: none
	keyStores         KeyStores    // nil: none
	sealer            store.Sealer // nil: none
	running           func() time.Duration
	publisher         Publisher
	lease             *fence.Lease
	applied           func() int64 // nil: callers are not compared
	spreadAt          func(context.Context, int64)
	principals        Principals
	now               func() time.Time
	log               *slog.Logger
	workInterval      time.Duration
	ticker            *store.Ticker
	hurried           chan struct{} // capacity 1: there is a rotation to do at once
	iam               IAM
	unsettled         unsettled
	wrapping          *WrappingSeats
	quotas            Quotas

	endpoint *replication.Endpoint // nil: there are no other Regions
	kicked   chan struct{}         // capacity 1: there is something to replicate
	away     away

	sink       func(record []byte) error // nil: none
	lastUses   LastUses                  // nil: none
	events     *uuid.Generator           // IDs of records
	strangers  ratelimit.Sampler
	unrecorded atomic.Uint64

	reburying sync.Mutex
	reburied  []store.KeyName // whose second deletion is to be recorded

	connections connections
	repairing   sync.Mutex
	repaired    map[store.KeyStoreName]*keyid.ID // the last key that the worker looked at in each connected cluster; nil: it has come to the end

	healing  sync.Mutex
	latest   time.Time  // wall clock at the last heal
	healed   time.Time  // when it last looked at all schedules
	unhealed []unhealed // with which keys it failed then
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
		root: cfg.Root, keys: cfg.Keys, keyStores: cfg.KeyStores, sealer: cfg.Sealer, running: cfg.Running, publisher: cfg.Publisher, lease: cfg.Lease, applied: cfg.Applied, spreadAt: cfg.SpreadAt, principals: cfg.Principals, now: cfg.Now, log: cfg.Logger,
		workInterval: cfg.WorkInterval, iam: cfg.IAM, quotas: cfg.Quotas,
	}
	s.lastUses, s.sink, s.events, s.strangers.Limit = cfg.LastUses, cfg.Audit, uuid.New(), strangers
	if s.wrapping = cfg.Wrapping; s.wrapping == nil {
		s.wrapping = new(WrappingSeats)
	}
	s.unsettled.again, s.unsettled.arrived = map[string]func(){}, make(chan struct{}, 1)
	if s.now == nil {
		s.now = time.Now
	}
	if s.running == nil {
		start := time.Now()
		s.running = func() time.Duration { return time.Since(start) }
	}
	s.ticker, s.hurried, s.reburied = s.store.NewTicker(s.region, s.running), make(chan struct{}, 1), s.store.Reburied()
	if s.log == nil {
		s.log = slog.Default()
	}
	s.connections.init()
	s.kicked = make(chan struct{}, 1)
	if r := cfg.Replication; r != nil {
		var err error
		if s.endpoint, err = replication.New(replication.Config{Region: s.region, Sign: r.Sign, Public: r.Public, Peers: r.Peers, Now: s.now, Since: s.running}); err != nil {
			return nil, err
		}
		for _, region := range s.endpoint.Regions() {
			if !validRegion(region) || keyid.Partition(region) != s.partition {
				return nil, errors.New("controlplane: keys are not replicated to Region " + region + ": it is in another partition")
			}
		}
	}
	if s.workInterval <= 0 {
		s.workInterval = workIntervalDefault
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
	// revision is the latest at which the key, its policy and the alias were written that a read tells of; 0: it read none.
	revision int64

	// For the record.
	record    cloudtrail.Record
	resources []resource
	named     resource // the key that the request names, found or not
	keyARN    string   // of the key that the call is about
	grant     string   // ID of the grant that is retired
	details   []byte   // additionalEventData of what concerns a custom key store, without its end; nil: none
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

// errFenced refuses a request that this process must not answer: it may not know what others were told (internal/fence). The lease is asked before anything is
// looked up: the view is then as new as the lease says, and only gets newer, so that whatever was in force when the client sent the request is in the decision. It
// is asked again before what was read leaves, so that what was decided before a process was stopped for a while is not told after.
//
// What was written is told all the same. It was decided by a view that was good when the request came, and it is done: another answer would make the client do it
// twice. The answer waits for all who have to know (Publisher), whose wait does not hang on this process's lease.
var errFenced = fmt.Errorf("controlplane: the process may not answer now: %w", kmsapi.E(kmsapi.KMSInternal))

func (s *Server) serve(ctx context.Context, c *call) ([]byte, error) {
	signed := c.request.Signed
	if len(signed.Body) > kmsapi.BodyMax {
		return nil, kmsapi.E(kmsapi.RequestEntityTooLarge)
	}
	if !s.lease.Valid() {
		return nil, errFenced
	}
	applied := s.appliedNow() // before anything is looked up
	var scratch sigv4.Scratch
	defer scratch.Reset()
	identity, code := s.verifier.Verify(signed, &scratch, c.now)
	if code != kmsapi.OK {
		return nil, kmsapi.New(code, string(scratch.Message()))
	}
	if service := identity.Service(); identity.Region() != s.region && (service == kmsapi.SigningName || service == quota.SigningName) {
		return nil, kmsapi.New(kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not '"+identity.Region()+"'.")
	}
	c.caller = identity
	ctx = s.under(ctx, applied, identity)
	if identity.Service() == quota.SigningName {
		if s.quotas == nil {
			return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
		}
		var body []byte
		c.status, body = s.quotas.Serve(ctx, identity, header(signed, "x-amz-target"), signed.Body, c.request.RequestID, c.request.SourceIP, c.request.SecureTransport, header(signed, "user-agent"), c.now, &c.record)
		return body, nil
	}
	if service := identity.Service(); service != kmsapi.SigningName {
		if s.iam == nil {
			return nil, kmsapi.New(kmsapi.UnknownOperation, kmsapi.UnknownOperationText)
		}
		ctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		var body []byte
		c.status, body = s.iam.Serve(ctx, identity, service, signed.Body, c.request.RequestID, c.request.SourceIP, c.request.SecureTransport, header(signed, "user-agent"), c.now, &c.record)
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
	body, err := run(s, ctx, c, signed.Body)
	s.spreadRefusal(c, err)
	s.settleRead(ctx, c, err)
	return body, err
}

// appliedNow is a revision that callers are compared from, 0 if they are not.
func (s *Server) appliedNow() int64 {
	if s.applied == nil {
		return 0
	}
	return s.applied()
}

// under has what a request writes hold to its caller's being in the store as at a revision.
func (s *Server) under(ctx context.Context, applied int64, who sigv4.Identity) context.Context {
	if p := who.Principal(); s.applied != nil && p != nil {
		return store.Under(ctx, store.NewAuthority(applied, who.AccessKeyID(), p.Caller))
	}
	return ctx
}

// spreadRefusal sees to it that a write that is refused because of how things are promises no more than holds: the change that made them so may be another process's,
// which has not answered it yet.
func (s *Server) spreadRefusal(c *call, err error) {
	e, refused := errors.AsType[*kmsapi.Error](err)
	if !refused || !c.op.Write {
		return
	}
	switch e.Code {
	case kmsapi.AccessDenied, kmsapi.Validation, kmsapi.Throttling, kmsapi.DryRunOperation: // they say nothing of what there is
	default:
		s.publisher.Spread()
	}
}

// told takes note of the revision at which something was written that a read tells of.
func (c *call) told(revision int64) { c.revision = max(c.revision, revision) }

// settleRead has a read tell nothing that another process may still answer otherwise: whoever has seen a change, acknowledged or not, does not see what was before it
// later and elsewhere. What is told of more than one key and its policy, or of none, is of the store as it is.
func (s *Server) settleRead(ctx context.Context, c *call, err error) {
	if s.spreadAt == nil || c.op.Write {
		return
	}
	if c.revision == 0 {
		if e, refused := errors.AsType[*kmsapi.Error](err); refused && e.Code != kmsapi.NotFound {
			return // it says nothing of what there is
		}
		c.revision = s.store.Committed()
	}
	s.spreadAt(ctx, c.revision)
}

// reads says that a call that succeeded has changed nothing.
func (c *call) reads() bool {
	if c.op != nil {
		return !c.op.Write
	}
	return c.record.ReadOnly
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
	if err == nil && c.reads() && !s.lease.Valid() {
		clear(resp.Body)
		err = errFenced
	}
	if err != nil {
		e := exception(err)
		message = e.Message
		c.refuseWith(&resp, e)
		if resp.Status >= http.StatusInternalServerError && !errors.Is(err, errFenced) { // of which who follows the store has told
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
	if err == nil && c.reads() && !s.lease.Valid() { // while it was recorded: there is the record of the success that was not told
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
	case errors.Is(err, store.ErrFrozen):
		return kmsapi.New(kmsapi.KMSInvalidState, "The primary Region of the key is updating.")
	case store.Unavailable(err):
		return kmsapi.E(kmsapi.DependencyTimeout)
	}
	return kmsapi.E(kmsapi.KMSInternal)
}
