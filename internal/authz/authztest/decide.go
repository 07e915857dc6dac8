package authztest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Ways in which a statement of a key policy names the caller, weakest first.
const (
	notNamed = iota
	byAnyone
	byAccount
	byRole
	byItself
	ways
)

// Opinion is what one document says of one request: statements counted from 1.
type Opinion struct {
	Deny  []int       // statements that deny
	Allow [ways][]int // statements that allow, under each way in which they name the caller; in identity policies under byAnyone
}

func (o *Opinion) allows(way int) bool { return len(o.Allow[way]) > 0 }

// Reference is the naive evaluator of one World.
type Reference struct {
	w         *World
	keyPolicy *document
	identity  []*document
	boundary  *document
	session   []*document
}

// NewReference reads the documents of w. An error says that one is malformed.
func NewReference(w *World) (*Reference, error) {
	ref := &Reference{w: w}
	read := func(raw Document, kind int) (*document, error) {
		d, err := parseDocument(raw, kind, w.boundID)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", raw, err)
		}
		return d, nil
	}
	var err error
	if w.KeyPolicy != nil {
		if ref.keyPolicy, err = read(w.KeyPolicy, keyPolicy); err != nil {
			return nil, err
		}
	}
	if w.Boundary != nil {
		if ref.boundary, err = read(w.Boundary, identityPolicy); err != nil {
			return nil, err
		}
	}
	for _, raw := range w.Identity {
		d, err := read(raw, identityPolicy)
		if err != nil {
			return nil, err
		}
		ref.identity = append(ref.identity, d)
	}
	for _, raw := range w.Session {
		d, err := read(raw, identityPolicy)
		if err != nil {
			return nil, err
		}
		ref.session = append(ref.session, d)
	}
	return ref, nil
}

// Verdict is the answer: what each policy says, and the decision with every reason that would be a true one, by the names of authz.Reason.
type Verdict struct {
	Allow   bool
	Reasons []string
	Grant   int // position in World.Grants of the one that allows, where one does

	KeyPolicy Opinion
	Identity  []Opinion
	Boundary  Opinion
	Session   []Opinion
}

// abroad are the actions that can be used on keys of other accounts.
var abroad = strings.Fields(`CreateGrant Decapsulate Decrypt DeriveSharedSecret DescribeKey Encapsulate Encrypt GenerateDataKey
	GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext GenerateMac GetKeyRotationStatus GetPublicKey
	ListGrants ReEncryptFrom ReEncryptTo RetireGrant RevokeGrant Sign Verify VerifyMac`)

// Decide answers r.
func (ref *Reference) Decide(r *Request) Verdict {
	w, c := ref.w, &ref.w.Caller
	q := &question{w, r}
	var v Verdict
	if c.Deleted {
		v.Reasons = []string{"NoKeyPolicyAllows", "NoIdentityPolicyAllows", "NotAbroad"}
		return v
	}

	// What each policy says.
	if ref.keyPolicy != nil {
		v.KeyPolicy = ref.keyPolicy.evaluate(q)
	}
	identity, boundary, session := c.Kind == Root, true, true
	deniedByIdentity, deniedBySession := false, false
	for _, d := range ref.identity {
		o := d.evaluate(q)
		identity = identity || o.allows(byAnyone)
		deniedByIdentity = deniedByIdentity || len(o.Deny) > 0
		v.Identity = append(v.Identity, o)
	}
	if ref.boundary != nil {
		v.Boundary = ref.boundary.evaluate(q)
		boundary = v.Boundary.allows(byAnyone)
	}
	for _, d := range ref.session {
		o := d.evaluate(q)
		session = session && o.allows(byAnyone)
		deniedBySession = deniedBySession || len(o.Deny) > 0
		v.Session = append(v.Session, o)
	}
	limits := boundary && session
	own := identity && limits
	foreign := c.Account != r.Owner

	// An explicit Deny anywhere.
	denied := map[string]bool{
		"DeniedByKeyPolicy":      len(v.KeyPolicy.Deny) > 0,
		"DeniedByIdentityPolicy": deniedByIdentity,
		"DeniedByBoundary":       len(v.Boundary.Deny) > 0,
		"DeniedBySessionPolicy":  deniedBySession,
	}
	for _, reason := range slices.Sorted(maps.Keys(denied)) {
		if denied[reason] {
			v.Reasons = append(v.Reasons, reason)
		}
	}
	if v.Reasons != nil {
		if foreign {
			v.Reasons = append(v.Reasons, "NotAbroad")
		}
		return v
	}

	// Who allows.
	kp := &v.KeyPolicy
	// Of several grants: one to the caller itself, to its role, to its account; one without constraints on the operation; the first.
	grant, rank := [ways]bool{}, 0
	for i := range w.Grants {
		way := q.grantee(&w.Grants[i])
		if way == notNamed || !q.grantAllows(&w.Grants[i]) {
			continue
		}
		grant[way] = true
		n := 2 * way
		if q.unconstrained(&w.Grants[i]) {
			n++
		}
		if n > rank {
			rank, v.Grant = n, i
		}
	}
	may := map[string]bool{}
	usable := !foreign || slices.Contains(abroad, strings.TrimPrefix(r.Action, "kms:"))
	switch {
	case ref.keyPolicy == nil && c.Kind == Service:
	case ref.keyPolicy == nil:
		may["AllowedByIdentityPolicy"] = own
	case !usable:
	case c.Kind == Service:
		may["AllowedByKeyPolicy"] = kp.allows(byItself) || kp.allows(byAnyone)
		may["AllowedByGrant"] = grant[byItself]
	case !foreign:
		may["AllowedByKeyPolicy"] = kp.allows(byItself) || (kp.allows(byRole) || kp.allows(byAnyone)) && limits
		may["AllowedByIdentityPolicy"] = kp.allows(byAccount) && own
		may["AllowedByGrant"] = grant[byItself] || grant[byRole] && limits || grant[byAccount] && own
	default:
		may["AllowedByIdentityPolicy"] = (kp.allows(byItself) || kp.allows(byRole) || kp.allows(byAnyone) || kp.allows(byAccount)) && own
		may["AllowedByKeyPolicy"] = may["AllowedByIdentityPolicy"]
		may["AllowedByGrant"] = (grant[byItself] || grant[byRole]) && limits || grant[byAccount] && own
	}
	for _, reason := range slices.Sorted(maps.Keys(may)) {
		if may[reason] {
			v.Allow = true
			v.Reasons = append(v.Reasons, reason)
		}
	}
	if v.Allow {
		if c.Kind == Root {
			v.Reasons = append(v.Reasons, "AllowedToRoot")
		}
		return v
	}

	// Nobody does. Each side that lacks something is a true reason.
	if ref.keyPolicy != nil {
		v.Reasons = append(v.Reasons, "NoKeyPolicyAllows")
	}
	if c.Kind == Service {
		v.Reasons = append(v.Reasons, "NoIdentityPolicyAllows", "NotAbroad")
		return v
	}
	if foreign {
		v.Reasons = append(v.Reasons, "NotAbroad")
	}
	if !identity {
		v.Reasons = append(v.Reasons, "NoIdentityPolicyAllows")
	}
	if !boundary {
		v.Reasons = append(v.Reasons, "NoBoundaryAllows")
	}
	if !session {
		v.Reasons = append(v.Reasons, "NoSessionPolicyAllows")
	}
	return v
}

// evaluate asks every statement.
func (d *document) evaluate(q *question) Opinion {
	var o Opinion
	for i := range d.statements {
		s := &d.statements[i]
		if s.noEffect || !s.concerns(q, d.variables) {
			continue
		}
		named := s.names(&q.w.Caller)
		fulfilled := true
		for j := range s.condition {
			fulfilled = fulfilled && s.condition[j].holds(s.deny, d.variables, q)
		}
		if !fulfilled {
			continue
		}
		denies := false
		for way, is := range named {
			if is && s.deny {
				denies = true
			} else if is {
				o.Allow[way] = append(o.Allow[way], i+1)
			}
		}
		if denies {
			o.Deny = append(o.Deny, i+1)
		}
	}
	return o
}

// concerns reports whether the statement is about the request's action and resource.
func (s *statement) concerns(q *question, variables bool) bool {
	action := false
	for _, a := range s.actions {
		action = action || matches(pattern(a), strings.ToLower(q.r.Action))
	}
	return action != s.notAction && matchAny(s.resources, variables, q.r.Resource, q) != s.notResource
}

// names says in which ways the statement names the caller.
func (s *statement) names(c *Caller) (named [ways]bool) {
	if s.attached {
		named[byAnyone] = true
		return named
	}
	named[byAnyone] = s.anyone
	for i, p := range s.principals {
		switch {
		case c.Kind == Service:
		case strings.HasSuffix(p, ":root"):
			if strings.Split(p, ":")[4] == c.Account {
				if c.Kind == Root {
					named[byItself] = true
				} else {
					named[byAccount] = true
				}
			}
		case s.ids[i] != c.ID:
		case p == c.ARN:
			named[byItself] = true
		case p == c.RoleARN:
			named[byRole] = true
		}
	}
	for _, name := range s.services {
		if c.Kind == Service && (strings.EqualFold(name, c.ARN) || strings.EqualFold(name, withoutRegion(c.ARN))) {
			named[byItself] = true
		}
	}
	if s.notPrincipal {
		exempt := slices.Contains(named[:], true)
		if s.deny { // the account is listed beside who is meant, and the role beside a session
			session := slices.ContainsFunc(s.principals, func(p string) bool { return strings.Contains(p, ":assumed-role/") })
			exempt = named[byItself] || named[byAnyone] || named[byRole] && !session
		}
		named = [ways]bool{}
		named[byAnyone] = !exempt
	}
	return named
}

// grantee says in which way a grant's grantee is the caller.
func (q *question) grantee(g *Grant) int {
	c := &q.w.Caller
	id := g.GranteeID
	if id == "" {
		id = q.w.presentID(g.Grantee)
	}
	switch {
	case c.Kind == Service:
		if g.Grantee == c.ARN {
			return byItself
		}
	case strings.HasSuffix(g.Grantee, ":root"):
		if strings.Split(g.Grantee, ":")[4] == c.Account {
			return byAccount // the root user has an identity policy that allows everything
		}
	case id != c.ID:
	case g.Grantee == c.ARN:
		return byItself
	case g.Grantee == c.RoleARN:
		return byRole
	}
	return notNamed
}

// unconstrained reports whether no constraint of a grant has to do with the operation.
func (q *question) unconstrained(g *Grant) bool {
	switch strings.TrimPrefix(q.r.Action, "kms:") {
	case "RetireGrant":
		return true
	case "DescribeKey", "CreateGrant":
		return g.SourceARN == ""
	}
	return g.SourceARN == "" && g.Equals == nil && len(g.Subset) == 0
}

// grantAllows looks at the operations and constraints of a grant.
func (q *question) grantAllows(g *Grant) bool {
	r := q.r
	operation := strings.TrimPrefix(r.Action, "kms:")
	if !slices.Contains(g.Operations, operation) {
		return false
	}
	if g.SourceARN != "" && operation != "RetireGrant" && r.SourceARN != g.SourceARN {
		return false
	}
	if operation == "DescribeKey" || operation == "RetireGrant" || operation == "CreateGrant" {
		return true
	}
	if (g.Equals != nil || g.Subset != nil) && r.EncryptionContext == nil {
		return false
	}
	if g.Equals != nil && !maps.Equal(g.Equals, r.EncryptionContext) {
		return false
	}
	for k, v := range g.Subset {
		if have, ok := r.EncryptionContext[k]; !ok || have != v {
			return false
		}
	}
	return true
}
