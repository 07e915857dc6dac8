package policy

import "math/bits"

// Policy is a compiled policy document: immutable and safe for concurrent use.
type Policy struct {
	kind       Kind
	statements []statement
	principals []string
	mentioned  [keyCount]bool
	slots      []slot // condition keys whose values an evaluation keeps
	sieves     []sieve
}

// slot is a condition key, with the name that it takes.
type slot struct {
	key   Key
	name  string
	typed bool // conditions take the value as a date or an address: nobody looks at its text
}

// slotsMax bounds what an evaluation keeps. Values of more keys are asked for whenever they are needed.
const slotsMax = 16

// statement is one statement, its NotPrincipal, NotAction and NotResource in the place of what they negate.
type statement struct {
	codes                                actionSet // of those of KMS, the actions that it is about
	deny                                 bool
	inert                                bool // has no effect
	notPrincipal, notAction, notResource bool
	everything                           bool // about every resource
	conditions                           []condition
	who                                  principals
	actions                              []glob // of lower case
	resources                            []template
	sid                                  string
}

// Scratch is working memory for Evaluate. The zero value is ready; it belongs to one goroutine at a time. It grows to what the longest value of
// a variable takes, and stays so.
type Scratch struct {
	symbols []uint16
	text    []byte
	action  []byte

	// First values of a policy's slots, and what is known of them, a bit each: they are of one evaluation. The last is for keys without slot.
	asked, present, several uint32
	sifted                  uint32 // slots whose sieved conditions hold for every statement that is left
	values                  [slotsMax + 1]Value
	used                    int // values that evaluations may have filled
	steps                   int // that wildcards of conditions have left in this evaluation
}

// stepsMax bounds what the wildcards of one policy's conditions may cost: about a millisecond. A policy and the values of a request can be made so
// that they would cost some hundred. What needs more than this is a value that does not parse: no Allow of the policy matches any more,
// and every Deny that is about the action and the caller does, unless the sieve has ruled it out.
const stepsMax = 1 << 19

// Reset wipes what evaluations left behind and keeps the memory.
func (s *Scratch) Reset() {
	clear(s.symbols[:cap(s.symbols)])
	clear(s.text[:cap(s.text)])
	clear(s.action[:cap(s.action)])
	s.symbols, s.text, s.action = s.symbols[:0], s.text[:0], s.action[:0]
	s.asked, s.present, s.several = 0, 0, 0
	clear(s.values[:s.used])
	s.values[slotsMax] = Value{}
	s.used, s.steps, s.sifted = 0, 0, 0
}

// ask finds the first value of a condition key out, and whether there are more. at is slotsMax for a key that has no slot.
func (s *Scratch) ask(c Context, at uint8, k *slot) {
	bit := uint32(1) << at
	s.asked |= bit
	s.present &^= bit
	s.several &^= bit
	switch c.First(k.key, k.name, k.typed, &s.values[at]) {
	case 0:
	case 1:
		s.present |= bit
	default:
		s.present |= bit
		s.several |= bit
	}
}

// Evaluate says what the policy's statements say of r. It allocates nothing.
func (p *Policy) Evaluate(r *Request) (result Result) {
	m := r.Scratch
	if r.Code == 0 {
		m.action = appendLower(m.action[:0], r.Action)
	}
	m.asked, m.used, m.steps = 0, max(m.used, len(p.slots)), stepsMax
	allowed := ways(0)
	for i := range p.sieves {
		v := &p.sieves[i]
		left := v.about[r.Code]
		if r.Code == 0 {
			left = p.about(i*sieveMax, m.action)
		}
		if left != 0 {
			left = v.sift(r, left)
		}
		for ; left != 0; left &= left - 1 {
			n := i*sieveMax + bits.TrailingZeros64(left)
			p.statements[n].evaluate(r, p.kind, n+1, &result, &allowed)
		}
	}
	return result
}

// about are the statements of the sieve that begins at from which are about an action that has no code.
func (p *Policy) about(from int, action []byte) (all uint64) {
	for i := range p.statements[from:min(from+sieveMax, len(p.statements))] {
		if s := &p.statements[from+i]; !s.inert && s.hasAction(action) {
			all |= 1 << i
		}
	}
	return all
}

// evaluate adds to the result what a statement that is about the action says: the n-th.
func (s *statement) evaluate(r *Request, kind Kind, n int, result *Result, allowed *ways) {
	m := r.Scratch
	if s.deny && result.Deny != 0 {
		return
	}
	// What costs least first: most statements are about somebody else.
	w := s.names(kind, r.Principal)
	if !s.deny {
		w &^= *allowed
	}
	if w == 0 || !s.everything && !s.hasResource(r) {
		return
	}
	if holds := s.holds(r); m.steps < 0 && !s.deny || m.steps >= 0 && !holds {
		return
	}
	if s.deny {
		result.Deny = n
		return
	}
	*allowed |= w
	for m := range result.Allow {
		if w.has(Match(m)) {
			result.Allow[m] = n
		}
	}
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
	if w == 0 || s.deny && !s.exempts(w) {
		return 1 << Anyone
	}
	return 0
}

// exempts reports whether a Deny with NotPrincipal leaves out a caller whom it names in these ways. Its account does not do: AWS wants that
// listed beside the user or session that is meant, and it exempts the root user alone. Nor does the role of a session where sessions are listed.
func (s *statement) exempts(w ways) bool {
	return w&(1<<Itself|1<<Anyone) != 0 || w&(1<<Role) != 0 && len(s.who.sessions) == 0
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
		c := &s.conditions[i]
		if c.sieved && r.Scratch.sifted>>c.at&1 != 0 {
			continue
		}
		if !c.holds(r, s.deny) {
			return false
		}
	}
	return true
}

// Len is the number of statements.
func (p *Policy) Len() int { return len(p.statements) }

// Sid is the Sid of statement n, counted from 1; "" where it has none.
func (p *Policy) Sid(n int) string { return p.statements[n-1].sid }

// Principals are the ARNs of the users, roles, role sessions, federated users and accounts that the document names, of accounts the 12 digits
// where it writes these, in ascending order, each once.
func (p *Policy) Principals() []string { return p.principals }

// Mentions reports whether a condition or a variable asks about k, whatever the name of a key that takes one.
func (p *Policy) Mentions(k Key) bool { return p.mentioned[k] }

func (p *Policy) mention(k Key) { p.mentioned[k] = true }
