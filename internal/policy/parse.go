package policy

import (
	"slices"
	"strings"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Limits of a document. AWS limits its size alone; the others are out of reach of documents that people write, and bound what a decision costs.
const (
	documentMax   = kmsapi.PolicyMax // bytes
	statementsMax = 512
	valuesMax     = 4096 // in one list
	valueMax      = 8192 // bytes of a condition's value, the Id or a Sid
	patternMax    = 2048 // bytes of a Resource, of a principal, of a condition key
	actionMax     = 256  // bytes of an Action
)

// Versions of the policy language. A document without one is of the older, which has no variables.
const (
	versionPlain     = "2008-10-17"
	versionVariables = "2012-10-17"
)

// document is a policy as it is written.
type document struct {
	version    string
	statements []element
}

// element is a statement as it is written. A list is nil where the element is missing, else it has a value.
type element struct {
	sid, effect             string
	principal, notPrincipal []named
	action, notAction       []string
	resource, notResource   []string
	conditions              []written
}

// named is one principal: {"AWS": "111122223333"} is of type AWS.
type named struct{ typ, value string }

// written is one line of a Condition: operator, condition key, values.
type written struct {
	operator, key string
	values        []string
}

// Parse checks and compiles a document. bind is asked about every principal that it names; nil binds by ARN alone, and every principal
// exists. Every refusal is an *Error.
func Parse(doc []byte, kind Kind, bind Binder) (*Policy, error) {
	if kind < KeyPolicy || kind > TrustPolicy {
		panic("policy: no such kind")
	}
	r := newReader(doc, kind)
	if len(doc) > documentMax {
		r.syntax("The key policy is larger than 32768 bytes.")
	}
	d := r.document()
	c := compiler{reader: r, bind: bind, variables: d.version == versionVariables, policy: &Policy{kind: kind}}
	c.compile(&d)
	if r.err != nil {
		return nil, r.err
	}
	return c.policy, nil
}

func (r *reader) document() (d document) {
	if !r.object("document") {
		return d
	}
	for name, ok := r.next(); ok; name, ok = r.next() {
		switch name {
		case "Version":
			d.version = r.text("Version", valueMax)
			if d.version != versionPlain && d.version != versionVariables {
				r.syntax("The key policy's Version is neither 2012-10-17 nor 2008-10-17.")
			}
		case "Id":
			r.text("Id", valueMax)
		case "Statement":
			d.statements = r.statements()
		default:
			r.syntax("The key policy has an element that does not exist.")
		}
	}
	r.end()
	if len(d.statements) == 0 {
		r.syntax("The key policy has no Statement.")
	}
	return d
}

func (r *reader) statements() (all []element) {
	if r.peek() != '[' {
		return []element{r.statement()}
	}
	r.token()
	for r.err == nil && r.peek() != ']' {
		if len(all) == statementsMax {
			r.syntax("The key policy has too many statements.")
			return nil
		}
		all = append(all, r.statement())
	}
	r.token()
	return all
}

func (r *reader) statement() (e element) {
	if !r.object("Statement") {
		return e
	}
	for name, ok := r.next(); ok; name, ok = r.next() {
		switch name {
		case "Sid":
			e.sid = r.text("Sid", valueMax)
		case "Effect":
			e.effect = r.text("Effect", valueMax)
		case "Principal":
			e.principal = r.principals()
		case "NotPrincipal":
			e.notPrincipal = r.principals()
		case "Action":
			e.action = r.list(name, actionMax, r.text)
		case "NotAction":
			e.notAction = r.list(name, actionMax, r.text)
		case "Resource":
			e.resource = r.list(name, patternMax, r.text)
		case "NotResource":
			e.notResource = r.list(name, patternMax, r.text)
		case "Condition":
			e.conditions = r.conditions()
		default:
			r.syntax("A statement of the key policy has an element that does not exist.")
		}
	}
	if e.effect != "Allow" && e.effect != "Deny" {
		r.syntax("A statement's Effect is neither Allow nor Deny.")
	}
	return e
}

// principals reads "*" or an object of types with one or more names each.
func (r *reader) principals() (all []named) {
	if r.peek() == '"' {
		if r.text("Principal", patternMax) != "*" {
			r.fail(invalidPrincipals)
		}
		return []named{{"AWS", "*"}}
	}
	if !r.object("Principal") {
		return nil
	}
	for typ, ok := r.next(); ok; typ, ok = r.next() {
		for _, v := range r.list("Principal", patternMax, r.text) {
			all = append(all, named{typ, v})
		}
	}
	if len(all) == 0 {
		r.fail(invalidPrincipals)
	}
	return all
}

func (r *reader) conditions() (all []written) {
	if !r.object("Condition") {
		return nil
	}
	for operator, ok := r.next(); ok; operator, ok = r.next() {
		if !r.object("Condition") {
			return nil
		}
		before := len(all)
		for key, ok := r.next(); ok; key, ok = r.next() {
			all = append(all, written{operator, r.bounded("condition key", key, patternMax), r.list("Condition", valueMax, r.scalar)})
		}
		if len(all) == before {
			r.syntax("A condition operator has no condition key.")
		}
	}
	return all
}

// compiler makes a Policy of a document.
type compiler struct {
	*reader
	bind      Binder
	variables bool
	policy    *Policy
}

func (c *compiler) compile(d *document) {
	sids := map[string]bool{}
	for i := range d.statements {
		e := &d.statements[i]
		if c.err != nil {
			return
		}
		if e.sid != "" && sids[e.sid] {
			c.fail("Statement IDs (SID) in a single policy must be unique.")
		}
		sids[e.sid] = true
		c.elements(e)
		if c.err == nil {
			c.policy.statements = append(c.policy.statements, c.statement(e))
		}
	}
	slices.Sort(c.policy.principals)
	c.policy.principals = slices.Compact(c.policy.principals)
	if c.err == nil {
		c.policy.sieve()
	}
}

// elements refuses a statement for what it has and what it lacks.
func (c *compiler) elements(e *element) {
	principals := e.principal != nil || e.notPrincipal != nil
	resources := e.resource != nil || e.notResource != nil
	switch {
	case c.kind != KeyPolicy && !alphanumeric(e.sid):
		c.fail("Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*")
	case e.principal != nil && e.notPrincipal != nil:
		c.syntax("A statement has both Principal and NotPrincipal.")
	case e.action != nil && e.notAction != nil:
		c.syntax("A statement has both Action and NotAction.")
	case e.resource != nil && e.notResource != nil:
		c.syntax("A statement has both Resource and NotResource.")
	case c.kind == IdentityPolicy && principals:
		c.fail("Policy document should not specify a principal.")
	case c.kind != IdentityPolicy && !principals:
		c.fail("Missing required field Principal")
	case c.kind != KeyPolicy && e.action == nil && e.notAction == nil:
		c.fail("Policy statement must contain actions.")
	case c.kind == IdentityPolicy && !resources:
		c.fail("Policy statement must contain resources.")
	case c.kind == TrustPolicy && resources:
		c.fail("Has prohibited field Resource")
	}
}

func alphanumeric(s string) bool {
	for _, c := range []byte(s) {
		if !letterOrDigit(c) {
			return false
		}
	}
	return true
}

func letterOrDigit(c byte) bool { return c-'0' < 10 || c-'A' < 26 || c-'a' < 26 }

func (c *compiler) statement(e *element) statement {
	s := statement{
		sid:          e.sid,
		deny:         e.effect == "Deny",
		notPrincipal: e.notPrincipal != nil,
		notAction:    e.notAction != nil,
		notResource:  e.notResource != nil,
	}
	for _, n := range append(e.principal, e.notPrincipal...) {
		c.principal(&s.who, n)
	}
	for _, a := range append(e.action, e.notAction...) {
		s.actions = append(s.actions, c.action(a))
	}
	for _, v := range append(e.resource, e.notResource...) {
		s.resources = append(s.resources, c.resource(v))
	}
	// A key policy's statement without actions or resources is accepted and does nothing.
	s.inert = s.actions == nil || s.resources == nil && c.kind != TrustPolicy
	if !s.inert {
		for code, name := range actionNames[1:] {
			if s.hasAction(name) {
				s.codes |= 1 << (code + 1)
			}
		}
	}
	s.everything = c.kind == TrustPolicy || !s.notResource && slices.ContainsFunc(s.resources, func(t template) bool {
		return t.parts == nil && t.glob.kind == prefix && t.glob.text == ""
	})
	for i := range e.conditions {
		s.conditions = append(s.conditions, c.condition(&e.conditions[i]))
	}
	slices.SortStableFunc(s.conditions, func(a, b condition) int { return a.cost() - b.cost() })
	return s
}

// action compiles * or vendor:pattern, both matched in lower case.
func (c *compiler) action(s string) glob {
	if s == "*" && c.kind != TrustPolicy {
		return newGlob(s)
	}
	vendor, name, ok := strings.Cut(s, ":")
	switch {
	case !ok:
		c.fail("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
	case !spelled(vendor, "-"):
		c.fail("Vendor is not valid")
	case strings.Contains(name, ":"):
		c.fail("Actions/Condition can contain only one colon.")
	case !spelled(name, "*?-_"):
		c.syntax("A statement's Action is not the name of an action.")
	case c.kind == TrustPolicy && lower(vendor) != "sts":
		c.fail("AssumeRole policy may only specify STS AssumeRole actions.")
	}
	return newGlob(lower(s))
}

// spelled reports whether s is one or more letters, digits and bytes of others.
func spelled(s, others string) bool {
	for _, c := range []byte(s) {
		if !letterOrDigit(c) && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return s != ""
}

func (c *compiler) resource(s string) template {
	if c.kind == IdentityPolicy && s != "*" && !strings.HasPrefix(s, "arn:") {
		c.fail(`Resource must be in ARN format or "*".`)
	}
	return c.template(s, true)
}
