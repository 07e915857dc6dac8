package quotas

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// ownPrefix is what X-Amz-Target starts with for the operations that AWS does not have.
const ownPrefix = "KeyplaneQuotas."

// requestTimeout bounds one operation.
const requestTimeout = 5 * time.Second

// refused is an exception of Service Quotas.
type refused struct {
	status    int
	typ, text string
}

func (e *refused) Error() string { return e.typ + ": " + e.text }

func refuse(typ, message string) error { return &refused{http.StatusBadRequest, typ, message} }

// call is one operation on its way through the server.
type call struct {
	*Quotas
	action  string // without servicequotas:
	caller  *authz.Caller
	context authz.Context
	now     time.Time
}

// operation has a row for everything that can be asked. action is the permission that it takes.
type operation struct {
	action string
	run    func(c *call, ctx context.Context, body []byte) (any, error)
}

var operations = map[string]operation{
	quota.TargetPrefix + "GetServiceQuota":             {"GetServiceQuota", handle((*call).getServiceQuota)},
	quota.TargetPrefix + "GetAWSDefaultServiceQuota":   {"GetAWSDefaultServiceQuota", handle((*call).getDefault)},
	quota.TargetPrefix + "ListServiceQuotas":           {"ListServiceQuotas", handle((*call).listServiceQuotas)},
	quota.TargetPrefix + "ListAWSDefaultServiceQuotas": {"ListAWSDefaultServiceQuotas", handle((*call).listDefaults)},
	quota.TargetPrefix + "RequestServiceQuotaIncrease": {"RequestServiceQuotaIncrease", handle((*call).requestIncrease)},
	ownPrefix + "SetQuota":                             {"RequestServiceQuotaIncrease", handle((*call).setQuota)},
	ownPrefix + "ResetQuota":                           {"RequestServiceQuotaIncrease", handle((*call).resetQuota)},
	ownPrefix + "ShowQuotas":                           {"ListServiceQuotas", handle((*call).showQuotas)},
}

// handle makes the run of an operation. Members that it does not know are ignored, as AWS does.
func handle[In any](run func(*call, context.Context, *In) (any, error)) func(*call, context.Context, []byte) (any, error) {
	return func(c *call, ctx context.Context, body []byte) (any, error) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, refuse("SerializationException", "The request is not JSON of this operation.")
		}
		return run(c, ctx, &in)
	}
}

var errPanic = errors.New("quotas: an operation panicked")

// Serve answers one request whose signature was verified. It never panics and always has an answer. target is X-Amz-Target; userAgent is nil
// for none. secure says that it came over TLS. It fills what the audit record says of the call itself.
func (q *Quotas) Serve(
	ctx context.Context, identity sigv4.Identity, target, body []byte, requestID, sourceIP string, secure bool, userAgent []byte, now time.Time,
	record *cloudtrail.Record,
) (status int, reply []byte) {
	var out any
	var err error
	op, known := operations[string(target)]
	if known {
		_, record.Name, _ = strings.Cut(string(target), ".")
		record.ReadOnly = op.action != "RequestServiceQuotaIncrease"
		record.RequestParameters = parameters(body)
	}
	defer func() {
		if p := recover(); p != nil {
			err = errPanic
		}
		status, reply = q.finish(string(target), requestID, out, err, record)
	}()
	p := identity.Principal()
	switch {
	case !known:
		err = refuse("UnknownOperationException", "The requested operation is not recognized by the service.")
	case p == nil || p.Caller == nil || p.Caller.Holder.Subject() == nil:
		err = refuse("UnrecognizedClientException", "The security token included in the request is invalid.")
	case p.Caller.Via != "": // credentials that were given to a service are for its work with keys
		err = refuse("AccessDeniedException", "User: "+p.Caller.ARN+" is not authorized to perform: servicequotas:"+op.action+" with a forward access session")
	}
	if err != nil {
		return 0, nil
	}
	c := &call{Quotas: q, action: op.action, caller: p.Caller, now: now.UTC().Truncate(time.Millisecond)}
	c.context = authz.Context{Caller: c.caller, Now: now, Region: q.cfg.Region, SecureTransport: secure, UserAgent: userAgent}
	if addr, err := netip.ParseAddr(sourceIP); err == nil {
		c.context.SourceIP = addr.Unmap()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	out, err = op.run(c, ctx, body)
	return 0, nil
}

// finish is where every call ends: an answer, an exception, or for what is our fault an internal error without detail.
func (q *Quotas) finish(target, requestID string, out any, err error, record *cloudtrail.Record) (int, []byte) {
	status := http.StatusOK
	if err != nil {
		var e *refused
		var full *store.Quota
		switch {
		case errors.As(err, &e):
		case errors.As(err, &full):
			e = &refused{http.StatusBadRequest, "QuotaExceededException", "The account has the maximum of quotas that are set."}
		case store.Unavailable(err), errors.Is(err, store.ErrUncertain):
			e = &refused{http.StatusServiceUnavailable, "ServiceException", "The store did not answer in time. You can retry the request."}
		default:
			e = &refused{http.StatusInternalServerError, "ServiceException", "An internal error occurred."}
		}
		if e.status >= http.StatusInternalServerError {
			attrs := []any{"operation", target, "requestId", requestID, "error", err.Error()}
			if errors.Is(err, errPanic) {
				attrs = append(attrs, "stack", string(debug.Stack()))
			}
			q.cfg.Logger.Error("operation failed", attrs...)
		}
		record.ErrorCode, record.ErrorMessage = e.typ, []byte(e.text)
		status, out = e.status, struct {
			Type    string `json:"__type"`
			Message string
		}{e.typ, e.text}
	}
	body, err := json.Marshal(out)
	if err != nil {
		q.cfg.Logger.Error("an answer could not be written", "operation", target, "requestId", requestID, "error", err.Error())
		return http.StatusInternalServerError, []byte(`{"__type":"ServiceException"}`)
	}
	return status, body
}

// parameters is what the record shows of a request, nil for nothing or what cannot be read.
func parameters(body []byte) []byte {
	var in struct {
		ServiceCode, QuotaCode, Quota, AccountId string
		DesiredValue, Value                      *float64
		Unlimited                                bool
	}
	if json.Unmarshal(body, &in) != nil {
		return nil
	}
	b := []byte{'{'}
	for _, m := range [...][2]string{{"serviceCode", in.ServiceCode}, {"quotaCode", in.QuotaCode}, {"quota", in.Quota}, {"accountId", in.AccountId}} {
		if m[1] != "" {
			b = cloudtrail.AppendMember(b, m[0], []byte(m[1]))
		}
	}
	for name, v := range map[string]*float64{"desiredValue": in.DesiredValue, "value": in.Value} { // one of them at most
		if v != nil {
			b = strconv.AppendFloat(cloudtrail.AppendName(b, name), *v, 'f', -1, 64)
		}
	}
	if in.Unlimited {
		b = cloudtrail.AppendMemberBool(b, "unlimited", true)
	}
	if len(b) == 1 {
		return nil
	}
	return append(b, '}')
}

// permit decides about the operation on quotas of an account: identity policies of the caller's account allow it. Only principals of the first
// account may change quotas, or ask about another account's.
func (c *call) permit(resource string, a keyid.Account, change bool) error {
	q := &authz.Question{
		Caller: c.caller, Action: &authz.Action{Name: "servicequotas:" + c.action}, Resource: []byte(resource), Owner: c.caller.Account, Alone: true,
		Context: &c.context, Scratch: &policy.Scratch{},
	}
	d, err := authz.Decide(q)
	switch {
	case err != nil:
		return err
	case !d.Reason.Allowed():
		return refuse("AccessDeniedException", string(d.AppendDenied(nil, q)))
	case c.caller.Account != c.cfg.First && change:
		return refuse("AccessDeniedException", "User: "+c.caller.ARN+" is not authorized to perform: servicequotas:"+c.action+
			": quotas are changed by the account that runs the service")
	case c.caller.Account != c.cfg.First && a != c.caller.Account:
		return refuse("AccessDeniedException", "User: "+c.caller.ARN+" is not authorized to perform: servicequotas:"+c.action+" for another account")
	}
	return nil
}

// quotaARN is the ARN of a quota of an account; of one that there is not, nil, that of them all.
func (c *call) quotaARN(a keyid.Account, e *quota.Quota) string {
	code := "*"
	if e != nil {
		code = e.Code
	}
	return strings.Join([]string{"arn", keyid.Partition(c.cfg.Region), "servicequotas", c.cfg.Region, a.String(), quota.ServiceCode + "/" + code}, ":")
}
