package authz

import (
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/policy"
)

// Tag is a tag of a principal, a session or a key.
type Tag struct{ Key, Value string }

// Subject is a principal with all that its account says of what it may do: a user, an account's root user, a role, a registered service.
// It is immutable; a change makes a new one.
type Subject struct {
	policy.Principal                  // of a role: Kind AssumedRole, RoleARN its ARN, ARN empty; each session has its own Principal
	Name             string           // UserName or RoleName, without path; "" for others
	Identity         []*policy.Policy // inline and attached policies: one that allows is enough
	Boundary         *policy.Policy   // nil: none
	Tags             []Tag
}

// Holder is where the access keys and sessions of one principal find its Subject, so that a change of its policies binds all of them at
// once. Subject is nil once the principal is deleted.
type Holder struct{ p atomic.Pointer[Subject] }

// NewHolder makes a Holder of s.
func NewHolder(s *Subject) *Holder {
	h := &Holder{}
	h.p.Store(s)
	return h
}

func (h *Holder) Subject() *Subject  { return h.p.Load() }
func (h *Holder) Replace(s *Subject) { h.p.Store(s) }

// Caller is whom an access key speaks for. Immutable, but for what its Holder holds.
type Caller struct {
	policy.Principal // of a session: the session's own, with RoleARN
	Holder           *Holder

	// Grantees are the names that grants to this caller are kept under, the unused ones empty: itself (its ID; ID:session name of a session; its
	// name of a service), its role's ID (the name without Region of a service), its account's 12 digits.
	Grantees [3]string

	UserName    string           // of a user
	UserID      string           // aws:userid: ID of a user, ID:session name of a session, account ID of a root user
	Session     []*policy.Policy // session policies: each must allow
	Tags        []Tag            // session tags; they hide the principal's of the same key
	TokenIssued time.Time        // zero: a long-term access key
	Source      string           // source identity of a session

	// Via is the registered service that makes requests for this caller, s3.us-east-1.amazonaws.com; "" for requests of its own.
	Via string
	// ViaName is Via without Region, s3.amazonaws.com, as aws:CalledVia has it.
	ViaName string
}

// PrincipalARN is the ARN of whom the caller is a session of, or of the caller itself: aws:PrincipalArn, and what proxies of external key stores know callers by.
// Of a service it is the name.
func (c *Caller) PrincipalARN() string {
	if c.Kind == policy.AssumedRole {
		return c.RoleARN
	}
	return c.ARN
}
