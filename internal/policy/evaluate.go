package policy

// Policy is a compiled policy document: immutable and safe for concurrent use.
type Policy struct {
	kind       Kind
	statements []statement
	principals []string
	mentioned  [keyCount]bool
}

// statement is one statement, its NotPrincipal, NotAction and NotResource in the place of what they negate.
type statement struct {
	sid                                  string
	deny                                 bool
	inert                                bool // has no effect
	notPrincipal, notAction, notResource bool
	who                                  principals
	actions                              []glob // of lower case
	resources                            []template
	conditions                           []condition
}

// Scratch is working memory for Evaluate. The zero value is ready; it belongs to one goroutine at a time. It grows to what the longest value of
// a variable takes, and stays so.
type Scratch struct {
	symbols []uint16
	text    []byte
	action  []byte
}

// Reset wipes what evaluations left behind and keeps the memory.
func (s *Scratch) Reset() {
	clear(s.symbols[:cap(s.symbols)])
	clear(s.text[:cap(s.text)])
	clear(s.action[:cap(s.action)])
}

// actionBuffer is long enough for the actions there are.
const actionBuffer = 64

// Evaluate says what the policy's statements say of r. It allocates nothing.
func (p *Policy) Evaluate(r *Request) (result Result) {
	var buffer [actionBuffer]byte
	var action []byte
	if len(r.Action) <= len(buffer) {
		action = buffer[:len(r.Action)]
		for i := range action {
			action[i] = lowerByte(r.Action[i])
		}
	} else {
		r.Scratch.action = appendLower(r.Scratch.action[:0], r.Action)
		action = r.Scratch.action
	}
	allowed := ways(0)
	for i := range p.statements {
		s := &p.statements[i]
		if s.inert || s.deny && result.Deny != 0 {
			continue
		}
		// What costs least first: most statements are about somebody else, or another action.
		w := s.names(p.kind, r.Principal)
		if !s.deny {
			w &^= allowed
		}
		if w == 0 || !s.hasAction(action) || p.kind != TrustPolicy && !s.hasResource(r) || !s.holds(r) {
			continue
		}
		if s.deny {
			result.Deny = i + 1
			continue
		}
		allowed |= w
		for m := range result.Allow {
			if w.has(Match(m)) {
				result.Allow[m] = i + 1
			}
		}
	}
	return result
}

func (s *statement) hasAction(action []byte) bool {
	for i := range s.actions {
		if s.actions[i].match(action) {
			return !s.notAction
		}
	}
	return s.notAction
}

// names are the ways in which the statement is about the caller.
func (s *statement) names(kind Kind, caller *Principal) ways {
	if kind == IdentityPolicy {
		return 1 << Attached
	}
	w := s.who.name(caller)
	if !s.notPrincipal {
		return w
	}
	if w == 0 {
		return 1 << Anyone
	}
	return 0
}

func (s *statement) hasResource(r *Request) bool {
	for i := range s.resources {
		t := &s.resources[i]
		if t.parts == nil {
			if t.glob.match(r.Resource) {
				return !s.notResource
			}
			continue
		}
		if symbols, ok := t.expand(r, len(r.Resource)); ok && match(symbols, r.Resource) {
			return !s.notResource
		}
	}
	return s.notResource
}

func (s *statement) holds(r *Request) bool {
	for i := range s.conditions {
		if !s.conditions[i].holds(r, s.deny) {
			return false
		}
	}
	return true
}

// Len is the number of statements.
func (p *Policy) Len() int { return len(p.statements) }

// Sid is the Sid of statement n, counted from 1; "" where it has none.
func (p *Policy) Sid(n int) string { return p.statements[n-1].sid }

// Principals are the ARNs of the users, roles, role sessions and accounts that the document names, in ascending order, each once.
func (p *Policy) Principals() []string { return p.principals }

// Mentions reports whether a condition or a variable asks about k, whatever the name of a key that takes one.
func (p *Policy) Mentions(k Key) bool { return p.mentioned[k] }

func (p *Policy) mention(k Key) { p.mentioned[k] = true }
