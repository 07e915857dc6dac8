package policy

import (
	"strings"
)

// template is a text of a policy that requests are compared with: a pattern, or one with variables in it.
type template struct {
	glob  glob
	parts []part // nil: glob has all of it
	wild  int    // wildcards in parts
}

// part is some of a template: symbols, or the value of a condition key.
type part struct {
	symbols    []uint16
	variable   bool
	key        Key
	name       string
	defaults   string // the variable's text where the key is absent
	hasDefault bool
}

// template compiles s, with wildcards if wild. Variables are those of the policy's Version.
func (c *compiler) template(s string, wild bool) template {
	literal := appendLiteral[string]
	if wild {
		literal = appendPattern
	}
	if !c.variables || !strings.Contains(s, "${") {
		if wild {
			return template{glob: newGlob(s)}
		}
		return template{glob: glob{kind: exact, text: s}}
	}
	var t template
	var symbols []uint16
	flush := func() {
		if symbols != nil {
			t.parts = append(t.parts, part{symbols: symbols})
			symbols = nil
		}
	}
	fixed := true
	for s != "" {
		before, rest, found := strings.Cut(s, "${")
		symbols = literal(symbols, before)
		if !found {
			break
		}
		if rest != "" && strings.IndexByte("*?$", rest[0]) >= 0 && strings.HasPrefix(rest[1:], "}") {
			symbols = append(symbols, uint16(rest[0]))
			s = rest[2:]
			continue
		}
		v, behind, ok := parseVariable(rest)
		if !ok {
			c.syntax("A policy variable is malformed.")
			return template{}
		}
		fixed = false
		flush()
		c.policy.mention(v.key)
		t.parts = append(t.parts, v)
		s = behind
	}
	if fixed {
		return template{glob: globOf(symbols)}
	}
	flush()
	for _, p := range t.parts {
		for _, s := range p.symbols {
			if s >= anyRun {
				t.wild++
			}
		}
	}
	return t
}

// parseVariable reads what is behind ${: a condition key, a default in single quotation marks perhaps, and }.
func parseVariable(s string) (v part, behind string, ok bool) {
	end := strings.IndexAny(s, ",}")
	if end < 0 {
		return v, "", false
	}
	key := strings.TrimSpace(s[:end])
	if key == "" || strings.Contains(key, "${") {
		return v, "", false
	}
	v.variable = true
	v.key, v.name = ParseKey(key)
	if s[end] == '}' {
		return v, s[end+1:], true
	}
	quoted, ok := strings.CutPrefix(strings.TrimLeft(s[end+1:], " "), "'")
	if !ok {
		return v, "", false
	}
	v.defaults, quoted, ok = strings.Cut(quoted, "'")
	if !ok {
		return v, "", false
	}
	v.hasDefault = true
	behind, ok = strings.CutPrefix(strings.TrimLeft(quoted, " "), "}")
	return v, behind, ok
}

// expand puts the values of variables in. ok false: there is a variable without value, or the text is longer than anything that n bytes could
// equal, also without regard to case (a character has at most three bytes more in one case than in another). Wildcards in a value stand for
// themselves. What it returns is valid until the next call.
func (t *template) expand(r *Request, n int) (symbols []uint16, ok bool) {
	s := r.Scratch
	s.symbols = s.symbols[:0]
	for i := range t.parts {
		p := &t.parts[i]
		switch v, present := p.value(r.Context); {
		case !p.variable:
			s.symbols = append(s.symbols, p.symbols...)
		case present:
			if len(v.Text) > 4*n {
				return nil, false
			}
			s.symbols = appendLiteral(s.symbols, v.Text)
		case p.hasDefault:
			s.symbols = appendLiteral(s.symbols, p.defaults)
		default:
			return nil, false
		}
		if len(s.symbols) > 4*n+t.wild {
			return nil, false
		}
	}
	return s.symbols, true
}

// value is the one value of a variable's key: keys with several have none.
func (p *part) value(c Context) (Value, bool) {
	if !p.variable || p.key == UnknownKey || p.key.multivalued() {
		return Value{}, false
	}
	if _, several := c.Value(p.key, p.name, 1); several {
		return Value{}, false
	}
	return c.Value(p.key, p.name, 0)
}
