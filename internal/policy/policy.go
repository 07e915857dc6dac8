package policy

import (
	"net/netip"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Kind says where a policy is attached, which decides what elements it may have.
type Kind uint8

const (
	KeyPolicy      Kind = iota + 1 // of a KMS key: every statement has a Principal or NotPrincipal; at most 32 768 bytes
	IdentityPolicy                 // of a user or role, a permissions boundary, a session policy: no Principal
	TrustPolicy                    // of a role: who may assume it; Principal, no Resource
)

// Binder says which principal an ARN in a policy means now: its unique ID (AIDA… of a user, AROA… of a role or of a role's session, the
// account's 12 digits of an account); "" binds by ARN alone. ok false: there is no such principal, and the policy is refused. It is asked for users, roles, role
// sessions and accounts (by ARN or 12 digits, as the policy writes them), not for services.
type Binder func(arn string) (id string, ok bool)

// Error is a refusal of a document, with AWS's text.
type Error struct{ Message string }

func (e *Error) Error() string { return "policy: " + e.Message }

// PrincipalKind is the kind of a caller.
type PrincipalKind uint8

const (
	Root        PrincipalKind = iota + 1 // an account's root user
	User                                 // an IAM user
	AssumedRole                          // a session of a role
	Service                              // a registered service, itself
)

// Principal is who makes a request, as policies name it.
type Principal struct {
	Kind    PrincipalKind
	Account keyid.Account // of a Service: the account that it was registered by
	ARN     string        // Root arn:aws:iam::<account>:root, User arn:aws:iam::<account>:user/…, AssumedRole arn:aws:sts::<account>:assumed-role/<role>/<session>; Service: its name, s3.amazonaws.com
	RoleARN string        // AssumedRole: arn:aws:iam::<account>:role/…
	ID      string        // unique ID: User AIDA…, AssumedRole AROA… of the role, Root the account's 12 digits
}

// Value is one value of a condition key.
type Value struct {
	Text  []byte     // as a policy would write it
	Addr  netip.Addr // of IP addresses: Text parsed; invalid for other values
	Unix  int64      // of dates in whole seconds: Text parsed, in seconds since 1970
	Dated bool       // Unix is set
}

// address is the value as an IP address.
func (v *Value) address() (netip.Addr, bool) {
	if v.Addr.IsValid() {
		return v.Addr.Unmap().WithZone(""), true
	}
	return parseAddr(v.Text)
}

// date is the value as a date.
func (v *Value) date() (instant, bool) {
	if v.Dated {
		return instant{sec: v.Unix}, true
	}
	return parseDate(v.Text)
}

// Context answers what a request says of condition keys. Value is value i, from 0, of a key; ok false where the key has no such value, at 0:
// where it is absent. name is what stands behind the key's '/' or ':' for keys that have a name of their own (kms:EncryptionContext:name,
// aws:PrincipalTag/name), as the policy writes it; it is matched without regard to case. Calls must not allocate. What they return stays
// valid and the same until the evaluation ends. Only multivalued keys, those with a name of their own and kms:GrantConstraintType have more than
// one value.
//
// First puts the first value in v, of which it sets every field, and says whether there are more: n is 0, 1 or, for several, 2. Where typed, values
// that have Addr or Unix may come without Text.
type Context interface {
	Value(k Key, name string, i int) (v Value, ok bool)
	First(k Key, name string, typed bool, v *Value) (n int)
}

// Request is what a policy is evaluated on.
type Request struct {
	Action    string     // kms:Decrypt
	Code      ActionCode // CodeOf(Action), or 0, which finds the same more slowly
	Resource  []byte     // ARN; "*" for what concerns no resource
	Principal *Principal
	Context   Context
	Scratch   *Scratch // working memory, of one goroutine at a time
}

// Match says how a statement's Principal names the caller.
type Match uint8

const (
	Attached Match = iota // the policy has no principals: identity policies
	Anyone                // "*", or a NotPrincipal that does not name the caller
	Account               // the caller's account, and the caller is not its root user
	Role                  // the role of the caller's session
	Itself                // the user, the session, the service; the account, and the caller is its root user
	matches
)

// Result is what one policy says of one request. Statements are counted from 1, 0 is none: the first that denies, and for each way of
// naming the caller the first that allows.
type Result struct {
	Deny  int
	Allow [matches]int
}
