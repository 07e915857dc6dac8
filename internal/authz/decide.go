package authz

import (
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// Action is one permission of KMS.
type Action struct {
	Name   string            // kms:Decrypt
	Code   policy.ActionCode // of Name
	Grant  Operations        // the grant operation that allows it, 0 if none does
	Abroad bool              // it can be used on keys of other accounts
}

// Grants finds the grants of the key in question to a grantee, one of Caller.Grantees. The set is valid until the decision is made.
type Grants interface {
	Grants(grantee string) (*GrantSet, error)
}

// Question is what Decide is asked: may the caller do this?
type Question struct {
	Caller   *Caller
	Action   *Action
	Resource []byte         // ARN of the key or alias; "*" where the action concerns none
	Owner    keyid.Account  // the account of the resource
	Policy   *policy.Policy // key policy; one that is missing allows nobody anything
	Alone    bool           // no key is concerned: identity policies of the caller's account alone decide
	Context  *Context
	Grants   Grants // nil: no grants
	Scratch  *policy.Scratch
}

// Reason is why a request is allowed or refused.
type Reason uint8

const (
	AllowedByKeyPolicy      Reason = iota + 1 // the key policy names the caller
	AllowedByIdentityPolicy                   // the key policy names the account, or there is no key policy; an identity policy allows
	AllowedByGrant
	AllowedToRoot // the account's root user, what is left to identity policies

	DeniedByKeyPolicy // explicitly
	DeniedByIdentityPolicy
	DeniedByBoundary
	DeniedBySessionPolicy

	NoKeyPolicyAllows // nothing allows
	NoIdentityPolicyAllows
	NoBoundaryAllows
	NoSessionPolicyAllows
	NotAbroad // the resource is another account's: the text says no more
)

// Allowed reports whether the reason is one of those that allow.
func (r Reason) Allowed() bool { return r >= AllowedByKeyPolicy && r <= AllowedToRoot }

// Decision is the answer.
type Decision struct {
	Reason    Reason
	Policy    *policy.Policy // whose statement decided; nil: none did
	Statement int            // in Policy, from 1
	Grant     *Grant         // AllowedByGrant; valid as long as what Grants returned
}

// side is what the caller's own account says: the policies that are attached to the principal and those that limit it.
type side struct {
	denied Decision // an explicit Deny, if its Reason is set

	allowed   Decision // by an identity policy, or because the caller is a root user, if its Reason is set
	unbounded bool     // there is no boundary, or it allows
	inSession bool     // every session policy allows
}

// limited reports whether the boundary and the session policies let through what something else allows.
func (s *side) limited() bool { return s.unbounded && s.inSession }

// Decide answers the question. An error is one of Grants; nothing is allowed then.
//
// An explicit Deny of any policy comes first. Then the key's side: what the key policy, and if it does not suffice a grant, allows the caller
// by name or leaves to its account. Where that does not suffice either, or the key is another account's, the caller's own side has to allow.
func Decide(q *Question) (Decision, error) {
	w := q.Caller
	q.Context.Owner = q.Owner
	subject := w.Holder.Subject()
	if subject == nil {
		return Decision{Reason: refusal(q, NoIdentityPolicyAllows)}, nil
	}
	r := policy.Request{Action: q.Action.Name, Code: q.Action.Code, Resource: q.Resource, Principal: &w.Principal, Context: q.Context, Scratch: q.Scratch}
	var key policy.Result
	if q.Policy != nil {
		if key = q.Policy.Evaluate(&r); key.Deny != 0 {
			return Decision{Reason: refusal(q, DeniedByKeyPolicy), Policy: q.Policy, Statement: key.Deny}, nil
		}
	}
	own := callersSide(subject, w, &r)
	if own.denied.Reason != 0 {
		own.denied.Reason = refusal(q, own.denied.Reason)
		return own.denied, nil
	}
	switch {
	case q.Alone:
		return withoutKey(q, &own), nil
	case w.Kind == policy.Service:
		return service(q, &key)
	case w.Account == q.Owner:
		return atHome(q, &key, &own)
	}
	return abroad(q, &key, &own)
}

// callersSide evaluates every policy of the caller's own account.
func callersSide(subject *Subject, w *Caller, r *policy.Request) side {
	s := side{unbounded: true, inSession: true}
	if w.Kind == policy.Root {
		s.allowed.Reason = AllowedToRoot
	}
	for _, p := range subject.Identity {
		res := p.Evaluate(r)
		if res.Deny != 0 {
			s.denied = Decision{Reason: DeniedByIdentityPolicy, Policy: p, Statement: res.Deny}
			return s
		}
		if n := res.Allow[policy.Attached]; n != 0 && s.allowed.Reason == 0 {
			s.allowed = Decision{Reason: AllowedByIdentityPolicy, Policy: p, Statement: n}
		}
	}
	if p := subject.Boundary; p != nil {
		res := p.Evaluate(r)
		if res.Deny != 0 {
			s.denied = Decision{Reason: DeniedByBoundary, Policy: p, Statement: res.Deny}
			return s
		}
		s.unbounded = res.Allow[policy.Attached] != 0
	}
	for _, p := range w.Session {
		res := p.Evaluate(r)
		if res.Deny != 0 {
			s.denied = Decision{Reason: DeniedBySessionPolicy, Policy: p, Statement: res.Deny}
			return s
		}
		s.inSession = s.inSession && res.Allow[policy.Attached] != 0
	}
	return s
}

// withoutKey decides what concerns no key, or is asked of the caller's account alone.
func withoutKey(q *Question, own *side) Decision {
	switch {
	case q.Caller.Kind == policy.Service || q.Caller.Account != q.Owner:
		return Decision{Reason: NotAbroad}
	case own.allowed.Reason == 0:
		return Decision{Reason: NoIdentityPolicyAllows}
	case own.limited():
		return own.allowed
	}
	return Decision{Reason: limit(own)}
}

// limit is which limit refuses what is allowed otherwise.
func limit(own *side) Reason {
	if !own.unbounded {
		return NoBoundaryAllows
	}
	return NoSessionPolicyAllows
}

func byKeyPolicy(q *Question, statement int) Decision {
	return Decision{Reason: AllowedByKeyPolicy, Policy: q.Policy, Statement: statement}
}

// service decides for a registered service that calls for itself: it belongs to no account, so that the key's side alone decides.
func service(q *Question, key *policy.Result) (Decision, error) {
	if !q.Action.Abroad && q.Caller.Account != q.Owner {
		return Decision{Reason: NotAbroad}, nil
	}
	for _, m := range [...]policy.Match{policy.Itself, policy.Anyone} {
		if n := key.Allow[m]; n != 0 {
			return byKeyPolicy(q, n), nil
		}
	}
	g, _, err := granted(q, granteeAccount) // its name, and its name without Region
	if g != nil {
		return Decision{Reason: AllowedByGrant, Grant: g}, err
	}
	return Decision{Reason: refusal(q, NoKeyPolicyAllows)}, err
}

// Whom a grant names: positions in Caller.Grantees.
const (
	granteeItself = iota
	granteeRole
	granteeAccount
)

// atHome decides about a key of the caller's own account.
func atHome(q *Question, key *policy.Result, own *side) (Decision, error) {
	if n := key.Allow[policy.Itself]; n != 0 {
		return byKeyPolicy(q, n), nil
	}
	named := key.Allow[policy.Role]
	if named == 0 {
		named = key.Allow[policy.Anyone]
	}
	left := key.Allow[policy.Account] != 0
	switch {
	case named != 0 && own.limited():
		return byKeyPolicy(q, named), nil
	case left && own.allowed.Reason != 0 && own.limited():
		return own.allowed, nil
	}
	g, whom, err := granted(q, len(q.Caller.Grantees))
	if err != nil {
		return Decision{Reason: NoKeyPolicyAllows}, err
	}
	if g != nil {
		if whom == granteeItself || own.limited() && (whom == granteeRole || own.allowed.Reason != 0) {
			return Decision{Reason: AllowedByGrant, Grant: g}, nil
		}
	}
	switch {
	case named != 0, left && own.allowed.Reason != 0:
		return Decision{Reason: limit(own)}, nil
	case left:
		return Decision{Reason: NoIdentityPolicyAllows}, nil
	}
	return Decision{Reason: NoKeyPolicyAllows}, nil
}

// abroad decides about a key of another account: both sides have to allow. A grant that names the caller needs no identity policy, but what limits
// the caller in its own account holds. A refusal is always the same.
func abroad(q *Question, key *policy.Result, own *side) (Decision, error) {
	if !q.Action.Abroad {
		return Decision{Reason: NotAbroad}, nil
	}
	trusted := own.allowed.Reason != 0 && own.limited()
	if trusted {
		for _, m := range [...]policy.Match{policy.Itself, policy.Role, policy.Anyone, policy.Account} {
			if n := key.Allow[m]; n != 0 {
				return byKeyPolicy(q, n), nil
			}
		}
	}
	g, whom, err := granted(q, len(q.Caller.Grantees))
	if g != nil && (trusted || own.limited() && (whom == granteeItself && q.Caller.Kind != policy.Root || whom == granteeRole)) {
		return Decision{Reason: AllowedByGrant, Grant: g}, err
	}
	return Decision{Reason: NotAbroad}, err
}

// granted finds a grant that allows the action, to the caller itself before one to its role before one to its account, and says to whom. Which of
// several to the same one it is: GrantSet.
func granted(q *Question, grantees int) (*Grant, int, error) {
	if q.Grants == nil || q.Action.Grant == 0 {
		return nil, 0, nil
	}
	for whom, name := range q.Caller.Grantees[:grantees] {
		if name == "" {
			continue
		}
		set, err := q.Grants.Grants(name)
		if err != nil {
			return nil, 0, err
		}
		if g := set.find(q.Action.Grant, q.Context); g != nil {
			return g, whom, nil
		}
	}
	return nil, 0, nil
}

// refusal keeps what is said about another account's resource from the caller.
func refusal(q *Question, r Reason) Reason {
	if q.Caller.Account != q.Owner {
		return NotAbroad
	}
	return r
}

// AppendDenied appends AWS's text of AccessDeniedException for a decision that does not allow.
func (d *Decision) AppendDenied(dst []byte, q *Question) []byte {
	dst = append(dst, "User: "...)
	dst = append(dst, q.Caller.ARN...)
	dst = append(dst, " is not authorized to perform: "...)
	dst = append(dst, q.Action.Name...)
	if d.Reason == NotAbroad {
		return append(dst, " on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access"...)
	}
	dst = append(dst, " on resource: "...)
	dst = append(dst, q.Resource...)
	if name := deniedIn[d.Reason]; name != "" {
		dst = append(dst, " with an explicit deny in a"...)
		if name[0] == 'i' {
			dst = append(dst, 'n')
		}
		return append(append(dst, ' '), name...)
	}
	dst = append(dst, " because no "...)
	dst = append(dst, missing[d.Reason]...)
	dst = append(dst, " allows the "...)
	dst = append(dst, q.Action.Name...)
	return append(dst, " action"...)
}

var deniedIn = [...]string{
	DeniedByKeyPolicy: "resource-based policy", DeniedByIdentityPolicy: "identity-based policy", DeniedByBoundary: "permissions boundary",
	DeniedBySessionPolicy: "session policy", NotAbroad: "",
}

var missing = [...]string{
	NoKeyPolicyAllows: "resource-based policy", NoIdentityPolicyAllows: "identity-based policy", NoBoundaryAllows: "permissions boundary",
	NoSessionPolicyAllows: "session policy", NotAbroad: "",
}
