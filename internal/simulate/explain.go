package simulate

import (
	"strconv"
	"strings"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// Verdicts, as IAM's simulator calls them.
const (
	Allowed      = "allowed"
	ExplicitDeny = "explicitDeny"
	ImplicitDeny = "implicitDeny"
)

// Named is a policy and what people call it.
type Named struct {
	Policy *policy.Policy
	ID     string // as IAM's SourcePolicyId
	Type   string // as IAM's SourcePolicyType: user, role, user-managed, aws-managed, resource, none
	Words  string // identity policy "x"
}

// Answer is a decision in words.
type Answer struct {
	Decision  string `json:"EvalDecision"` // Allowed, ExplicitDeny or ImplicitDeny
	Reason    string `json:"EvalReason"`   // by statement 2 "AllowUse" of the key policy
	Policy    *Named `json:"-"`            // whose statement decided; nil: none did
	Statement int    `json:",omitempty"`   // in Policy, from 1
	Sid       string `json:",omitempty"`
	Grant     string `json:",omitempty"` // ID of the grant that allows
}

// Find is the action of that name: of KMS, or else one that identity policies alone decide about. ok false: KMS has no such permission.
func Find(name string) (a *authz.Action, ok bool) {
	service, short, _ := strings.Cut(name, ":")
	if !strings.EqualFold(service, "kms") {
		return nil, false
	}
	if a = authz.Actions[short]; a == nil {
		for n, other := range authz.Actions {
			if strings.EqualFold(n, short) {
				a = other
			}
		}
	}
	return a, a != nil
}

// keyless are the permissions that no key gives: identity policies alone decide.
var keyless = map[string]bool{
	"CreateKey": true, "ListKeys": true, "ListAliases": true, "GenerateRandom": true, "ListRetirableGrants": true, "ConnectCustomKeyStore": true,
	"CreateCustomKeyStore": true, "DeleteCustomKeyStore": true, "DescribeCustomKeyStores": true, "DisconnectCustomKeyStore": true, "UpdateCustomKeyStore": true,
}

// Keyless reports whether the permission concerns no KMS key.
func Keyless(a *authz.Action) bool { return keyless[strings.TrimPrefix(a.Name, "kms:")] }

// OnAlias reports whether the permission is asked on an alias as well as on its key.
func OnAlias(a *authz.Action) bool {
	return a.Name == "kms:CreateAlias" || a.Name == "kms:UpdateAlias" || a.Name == "kms:DeleteAlias"
}

// Ask puts the question to authz.Decide. policies are the names of all that it may decide by.
func Ask(q *authz.Question, policies []Named) (Answer, error) {
	d, err := authz.Decide(q)
	if err != nil {
		return Answer{}, err
	}
	a := Answer{Decision: ImplicitDeny, Statement: d.Statement}
	switch {
	case d.Reason.Allowed():
		a.Decision = Allowed
	case d.Policy != nil:
		a.Decision = ExplicitDeny
	}
	if d.Policy != nil {
		a.Policy, a.Sid = &Named{Policy: d.Policy, ID: "unknown", Type: "none", Words: "a policy"}, d.Policy.Sid(d.Statement)
		for i := range policies {
			if policies[i].Policy == d.Policy {
				a.Policy = &policies[i]
			}
		}
	}
	if d.Grant != nil {
		a.Grant = d.Grant.ID
	}
	a.Reason = words(&d, &a, q)
	return a, nil
}

func words(d *authz.Decision, a *Answer, q *authz.Question) string {
	if a.Policy != nil {
		text := "by statement " + strconv.Itoa(a.Statement)
		if a.Sid != "" {
			text += " " + strconv.Quote(a.Sid)
		}
		if text += " of " + a.Policy.Words; a.Decision == ExplicitDeny {
			return "explicitly " + text
		}
		return text
	}
	switch d.Reason {
	case authz.AllowedByGrant:
		return "by grant " + a.Grant
	case authz.AllowedToRoot:
		return "to the account's root user"
	case authz.NoKeyPolicyAllows:
		return "no key policy and no grant allows " + q.Action.Name
	case authz.NoIdentityPolicyAllows:
		return "no identity-based policy allows " + q.Action.Name
	case authz.NoBoundaryAllows:
		return "the permissions boundary does not allow " + q.Action.Name
	case authz.NoSessionPolicyAllows:
		return "a session policy does not allow " + q.Action.Name
	}
	if !q.Action.Abroad {
		return q.Action.Name + " cannot be used on what is another account's"
	}
	return "another account's key: its key policy or a grant, and the caller's own policies, have to allow " + q.Action.Name
}
