package authz

import (
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// Action is one permission of KMS.
type Action struct {
	Name   string     // kms:Decrypt
	Grant  Operations // the grant operation that allows it, 0 if none does
	Abroad bool       // it can be used on keys of other accounts
}

// Grants finds the grants of the key in question to a grantee, one of Caller.Grantees. The slice is valid until the decision is made.
type Grants interface {
	Grants(grantee string) ([]Grant, error)
}

// Question is what Decide is asked: may the caller do this?
type Question struct {
	Caller   *Caller
	Action   *Action
	Resource []byte         // ARN of the key or alias; "*" where the action concerns none
	Owner    keyid.Account  // the account of the resource
	Policy   *policy.Policy // key policy; nil: no key policy is asked, identity policies alone decide
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
	Grant     *Grant         // AllowedByGrant
}
