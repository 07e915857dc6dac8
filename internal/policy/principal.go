package policy

import (
	"strings"

	"github.com/keyplane/keyplane/internal/keyid"
)

const invalidPrincipals = "Policy contains a statement with one or more invalid principals."

// principals are whom a statement's Principal or NotPrincipal names, by kind.
type principals struct {
	anyone   bool
	accounts []keyid.Account
	users    []identity
	roles    []identity
	sessions []identity
	services []string // in lower case
}

// identity is a principal: what it was bound to, its ARN where it was not.
type identity struct{ arn, id string }

// is compares with a caller's ARN and unique ID.
func (n *identity) is(arn, id string) bool {
	if n.id != "" {
		return n.id == id
	}
	return n.arn == arn
}

// ways are the ways in which a statement names a caller, a bit of a Match each.
type ways uint8

func (w ways) has(m Match) bool { return w&(1<<m) != 0 }

func (n *principals) name(p *Principal) (w ways) {
	if n.anyone {
		w |= 1 << Anyone
	}
	if p.Kind != Service {
		for _, a := range n.accounts {
			if a == p.Account {
				if p.Kind == Root {
					w |= 1 << Itself
				} else {
					w |= 1 << Account
				}
				break
			}
		}
	}
	switch p.Kind {
	case User:
		for i := range n.users {
			if n.users[i].is(p.ARN, p.ID) {
				w |= 1 << Itself
				break
			}
		}
	case AssumedRole:
		for i := range n.roles {
			if n.roles[i].is(p.RoleARN, p.ID) {
				w |= 1 << Role
				break
			}
		}
		for i := range n.sessions {
			// A session is bound to its role's ID: it has none of its own.
			if s := &n.sessions[i]; s.arn == p.ARN && (s.id == "" || s.id == p.ID) {
				w |= 1 << Itself
				break
			}
		}
	case Service:
		for _, s := range n.services {
			if serviceIs(p.ARN, s) {
				w |= 1 << Itself
				break
			}
		}
	}
	return w
}

// serviceIs reports whether a service is the one that low, in lower case, names: with its Region, or without.
func serviceIs(name, low string) bool {
	if sameFold(name, low) {
		return true
	}
	first := strings.IndexByte(name, '.')
	if first < 0 {
		return false
	}
	rest := name[first+1:]
	second := strings.IndexByte(rest, '.')
	return second >= 0 && isRegion(rest[:second]) && len(low) > first &&
		sameFold(name[:first], low[:first]) && sameFold(rest[second:], low[first:])
}

// isRegion reports whether s is a Region's name: us-east-1, us-gov-west-1.
func isRegion(s string) bool {
	last := strings.LastIndexByte(s, '-')
	if last < 0 || digits([]byte(s), last+1) != len(s) || last+1 == len(s) {
		return false
	}
	dashes, word := 0, 0
	for _, c := range []byte(s[:last]) {
		switch {
		case c|0x20-'a' < 26:
			word++
		case c == '-' && word > 0:
			dashes, word = dashes+1, 0
		default:
			return false
		}
	}
	return dashes > 0 && word > 0
}

// principal adds what a policy writes of one principal.
func (c *compiler) principal(to *principals, n named) {
	if c.err != nil {
		return
	}
	ok := false
	switch n.typ {
	case "AWS":
		ok = c.awsPrincipal(to, n.value)
	case "Service":
		if ok = isServiceName(n.value); ok {
			to.services = append(to.services, lower(n.value))
		}
	case "Federated":
		ok = n.value != "" && !strings.ContainsAny(n.value, "*?") // nobody signs in through an identity provider
	}
	if !ok {
		c.invalid(n)
	}
}

// invalid refuses a principal. IAM says which it is, where that can be repeated.
func (c *compiler) invalid(n named) {
	text := invalidPrincipals
	if c.kind == TrustPolicy && len(n.value) <= repeatMax && visible(n.value) && spelled(n.typ, "") && len(n.typ) <= repeatMax {
		text = `Invalid principal in policy: "` + n.typ + `":"` + n.value + `"`
	}
	c.fail(text)
}

// repeatMax is the number of bytes of a document that a refusal repeats.
const repeatMax = 256

// visible reports whether s is visible ASCII without quotation marks.
func visible(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x21 || c > 0x7e || c == '"' {
			return false
		}
	}
	return true
}

func (c *compiler) awsPrincipal(to *principals, s string) bool {
	if s == "*" {
		to.anyone = true
		return true
	}
	if isUniqueID(s) { // of a principal that was deleted
		if strings.HasPrefix(s, "AIDA") {
			to.users = append(to.users, identity{id: s})
		} else {
			to.roles = append(to.roles, identity{id: s})
		}
		return true
	}
	if a, ok := keyid.ParseAccount([]byte(s)); ok {
		return c.account(to, a, s)
	}
	p := strings.SplitN(s, ":", 6)
	if len(p) != 6 || p[0] != "arn" || !isPartition(p[1]) || p[3] != "" || strings.Contains(p[5], ":") {
		return false
	}
	account, ok := keyid.ParseAccount([]byte(p[4]))
	if !ok {
		return false
	}
	typ, name, _ := strings.Cut(p[5], "/")
	switch service := p[2]; {
	case service == "iam" && p[5] == "root":
		return c.account(to, account, s)
	case service == "iam" && typ == "user" && isPathAndName(name):
		return c.identity(&to.users, s)
	case service == "iam" && typ == "role" && isPathAndName(name):
		return c.identity(&to.roles, s)
	case service == "sts" && typ == "assumed-role":
		role, session, _ := strings.Cut(name, "/")
		return isName(role) && isName(session) && c.identity(&to.sessions, s)
	case service == "sts" && typ == "federated-user":
		if !isName(name) {
			return false
		}
		c.policy.principals = append(c.policy.principals, s)
		return true // nobody is one
	}
	return false
}

func (c *compiler) account(to *principals, a keyid.Account, arn string) bool {
	if c.bind != nil {
		if _, ok := c.bind(arn); !ok {
			return false
		}
	}
	to.accounts = append(to.accounts, a)
	c.policy.principals = append(c.policy.principals, arn)
	return true
}

func (c *compiler) identity(to *[]identity, arn string) bool {
	n := identity{arn: arn}
	if c.bind != nil {
		id, ok := c.bind(arn)
		if !ok {
			return false
		}
		n.id = id
	}
	*to = append(*to, n)
	c.policy.principals = append(c.policy.principals, arn)
	return true
}

// isUniqueID reports whether s is the unique ID of a user or a role.
func isUniqueID(s string) bool {
	if len(s) < 16 || len(s) > 128 || !strings.HasPrefix(s, "AIDA") && !strings.HasPrefix(s, "AROA") {
		return false
	}
	for _, c := range []byte(s) {
		if c-'A' >= 26 && c-'0' >= 10 {
			return false
		}
	}
	return true
}

func isPartition(s string) bool {
	rest, ok := strings.CutPrefix(s, "aws")
	return ok && (rest == "" || len(s) <= 32 && rest[0] == '-' && spelled(rest[1:], "-"))
}

const (
	nameMax = 64
	pathMax = 512
)

// isName reports whether s is the name of a user, a role or a session.
func isName(s string) bool { return len(s) <= nameMax && spelled(s, "_+=,.@-") }

// isPathAndName reads the name behind a path, which may be any visible characters; wildcards and variables are no part of a principal.
func isPathAndName(s string) bool {
	i := strings.LastIndexByte(s, '/') + 1
	return i <= pathMax && visible(s[:i]) && !strings.ContainsAny(s, "*?") && !strings.Contains(s, "${") && isName(s[i:])
}

// isServiceName reports whether s is the name of a service: labels with dots between them.
func isServiceName(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if !spelled(l, "-") {
			return false
		}
	}
	return len(labels) > 1
}
