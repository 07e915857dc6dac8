package iam

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// ServerConfig is what a Server is made of. Table and Regions are required.
type ServerConfig struct {
	Table   *Table
	First   keyid.Account // the account whose principals may make accounts and register services
	Regions []string      // those that keys can be of, the home Region first
	Logger  *slog.Logger  // nil: slog.Default
	Keys    Keys          // nil: decisions about KMS keys are not simulated
}

// Keys finds the KMS key that an ARN of one of the Regions names, by alias or by its ID, with all that decides about it. An ARN of nothing is a
// *awsquery.Error.
type Keys func(context.Context, keyid.Ref) (*Key, error)

// Key is what decides about a KMS key.
type Key struct {
	ARN    string
	Facts  authz.KeyFacts
	Policy *policy.Policy
	Grants authz.Grants
}

// Server answers the query APIs of STS and IAM. Serve is safe for concurrent use.
type Server struct {
	table   *Table
	store   *store.Store
	first   keyid.Account
	regions []string
	log     *slog.Logger
	keys    Keys
}

// NewServer makes a Server.
func NewServer(cfg ServerConfig) (*Server, error) {
	if cfg.Table == nil || len(cfg.Regions) == 0 {
		return nil, errors.New("iam: a server needs a table and a Region")
	}
	s := &Server{table: cfg.Table, store: cfg.Table.store, first: cfg.First, regions: cfg.Regions, log: cfg.Logger, keys: cfg.Keys}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s, nil
}

const (
	stsVersion   = "2011-06-15"
	iamVersion   = "2010-05-08"
	stsNamespace = "https://sts.amazonaws.com/doc/" + stsVersion + "/"
	iamNamespace = "https://iam.amazonaws.com/doc/" + iamVersion + "/"
)

// call is one operation on its way through the server.
type call struct {
	*Server
	*input
	caller  *authz.Caller
	now     time.Time // in milliseconds, as records are
	action  string    // iam:CreateUser
	context authz.Context
	reply   *awsquery.Reply
}

// account is the caller's.
func (c *call) account() keyid.Account { return c.caller.Account }

// operation is one action of a query API. It reads its input, asks for permission, acts, and writes its reply.
type operation func(context.Context, *call) error

// Serve answers one request whose signature was verified. It never panics and always has an answer. secure says that it came over TLS; userAgent is nil for none. It fills what the
// audit record says of the call itself.
func (s *Server) Serve(
	ctx context.Context, identity sigv4.Identity, service string, body []byte, requestID, sourceIP string, secure bool, userAgent []byte, now time.Time,
	record *cloudtrail.Record,
) (status int, reply []byte) {
	action := "unknown"
	var err error
	var c *call
	var q *awsquery.Query
	known := "" // the operation's name, if there is such an operation
	defer func() {
		if p := recover(); p != nil {
			err = errPanic
		}
		if err == nil {
			status, reply = http.StatusOK, c.reply.Finish(requestID)
			describe(record, service, known, q, reply, nil)
			return
		}
		e := refusal(err)
		if e.Status >= http.StatusInternalServerError {
			attrs := []any{"operation", action, "requestId", requestID, "error", err.Error()}
			if errors.Is(err, errPanic) {
				attrs = append(attrs, "stack", string(debug.Stack()))
			}
			s.log.Error("operation failed", attrs...)
		}
		status, reply = e.Status, awsquery.AppendError(nil, e, requestID)
		describe(record, service, known, q, nil, e)
	}()
	q, err = awsquery.Parse(body)
	if err != nil {
		err = awsquery.NewError("MalformedQueryString", "The query string contains a syntax error")
		return 0, nil
	}
	name, _ := q.Get("Action")
	version, _ := q.Get("Version")
	operations, namespace, want := iamOperations, iamNamespace, iamVersion
	if service == "sts" {
		operations, namespace, want = stsOperations, stsNamespace, stsVersion
	}
	run := operations[name]
	if run != nil {
		known = name
	}
	switch {
	case name == "":
		err = awsquery.NewError("MissingAction", "The request is missing an action or a required parameter.")
	case run == nil || version != want:
		err = awsquery.NewError("InvalidAction", "Could not find operation "+clip(name)+" for version "+clip(version))
	case identity.Principal() == nil || identity.Principal().Caller == nil || identity.Principal().Caller.Holder.Subject() == nil:
		err = awsquery.NewError("InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	if err != nil {
		return 0, nil
	}
	action = service + ":" + name
	c = &call{
		Server: s, input: &input{q: q}, caller: identity.Principal().Caller, now: now.UTC().Truncate(time.Millisecond), action: action,
		reply: awsquery.NewReply(name, namespace),
	}
	c.context = authz.Context{Caller: c.caller, Now: now, Region: identity.Region(), SecureTransport: secure, UserAgent: userAgent}
	if addr, err := netip.ParseAddr(sourceIP); err == nil {
		c.context.SourceIP = addr.Unmap()
	}
	// Credentials that were given to a service are for its work with keys.
	if c.caller.Via != "" && action != "sts:GetCallerIdentity" {
		err = awsquery.NewError("AccessDenied", "User: "+c.caller.ARN+" is not authorized to perform: "+action+" with a forward access session")
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err = run(ctx, c)
	return 0, nil
}

// requestTimeout bounds one operation.
const requestTimeout = 5 * time.Second

var errPanic = errors.New("iam: an operation panicked")

// refusal is what the client hears of err: a refusal as it is, a store that did not answer in time, else an internal error without detail.
func refusal(err error) *awsquery.Error {
	var refused *awsquery.Error
	var quota *store.Quota
	var malformed *policy.Error
	switch {
	case errors.As(err, &refused):
		return refused
	case errors.As(err, &malformed):
		return awsquery.NewError("MalformedPolicyDocument", malformed.Message)
	case errors.As(err, &quota):
		return awsquery.NewError("LimitExceeded", "Cannot exceed quota for "+quota.Name+": "+strconv.Itoa(quota.Max))
	case errors.Is(err, ErrSessions):
		return awsquery.NewError("LimitExceeded", "Cannot exceed quota for SessionsPerAccount: "+strconv.Itoa(SessionsMax))
	case errors.Is(err, ErrSessionDocuments):
		return awsquery.NewError("LimitExceeded", "Cannot exceed quota for SessionPolicyBytesPerAccount: "+strconv.Itoa(SessionDocumentsMax))
	case errors.Is(err, store.ErrConflict):
		return awsquery.NewError("ConcurrentModification", "The request was rejected because multiple requests to change this object were submitted simultaneously.")
	case store.Unavailable(err), errors.Is(err, store.ErrUncertain), errors.Is(err, store.ErrOvertaken):
		return awsquery.NewError("ServiceUnavailable", "The request has failed due to a temporary failure of the server.")
	}
	return awsquery.NewError("InternalFailure", "The request processing has failed because of an unknown error, exception or failure.")
}

// ready ends the reading of the input: it refuses what is wrong with it, and parameters that the operation did not ask for.
func (c *call) ready() error {
	if c.err == nil {
		if name := c.q.Unread(); name != "" {
			return awsquery.NewError("ValidationError", "The parameter "+clip(name)+" is not supported for "+c.action)
		}
	}
	return c.err
}

// authorize asks whether the caller may do the action to a resource of its account.
func (c *call) authorize(resource string, extra ...authz.ExtraValue) error {
	return c.authorizeAs(c.action, resource, c.account(), nil, extra)
}

func (c *call) authorizeAs(action, resource string, owner keyid.Account, trust *policy.Policy, extra []authz.ExtraValue) error {
	c.context.Extra = extra
	q := &authz.Question{
		Caller: c.caller, Action: &authz.Action{Name: action, Abroad: trust != nil}, Resource: []byte(resource), Owner: owner, Policy: trust, Alone: trust == nil,
		Context: &c.context, Scratch: &policy.Scratch{},
	}
	d, err := authz.Decide(q)
	if err != nil {
		return err
	}
	if d.Reason.Allowed() {
		return nil
	}
	if trust != nil || d.Reason == authz.NotAbroad {
		return denied(c.caller, action, clip(resource))
	}
	return awsquery.NewError("AccessDenied", string(d.AppendDenied(nil, q)))
}

// denied is the refusal that says nothing of why, nor whether the resource exists.
func denied(w *authz.Caller, action, resource string) error {
	return awsquery.NewError("AccessDenied", "User: "+w.ARN+" is not authorized to perform: "+action+" on resource: "+resource)
}

// arn is an ARN of IAM in the caller's account.
func (c *call) arn(rest string) string {
	return "arn:" + c.table.partition + ":iam::" + c.account().String() + ":" + rest
}

// clip bounds what a message repeats of a request.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most]
	}
	return s
}
