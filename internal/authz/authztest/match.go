package authztest

import (
	"encoding/base64"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Wildcards in a pattern; text has no negative runes.
const (
	anyRun  rune = -1 // *
	anyRune rune = -2 // ?
)

// pattern is the runes of s, with * and ? as wildcards.
func pattern(s string) []rune {
	p := []rune(s)
	for i, r := range p {
		switch r {
		case '*':
			p[i] = anyRun
		case '?':
			p[i] = anyRune
		}
	}
	return p
}

// matches fills the table: row i says which prefixes of text the first i runes of p match.
func matches(p []rune, text string) bool {
	if !slices.Contains(p, anyRun) && !slices.Contains(p, anyRune) {
		return string(p) == text
	}
	t := []rune(text)
	row := make([]bool, len(t)+1)
	row[0] = true
	for _, r := range p {
		next := make([]bool, len(t)+1)
		switch r {
		case anyRun:
			reached := false
			for j := range row {
				reached = reached || row[j]
				next[j] = reached
			}
		default:
			for j := range t {
				next[j+1] = row[j] && (r == anyRune || r == t[j])
			}
		}
		row = next
	}
	return row[len(t)]
}

// expand replaces the variables of a policy's value; ok false: one is absent. wild says whether * and ? outside of variables are wildcards.
func expand(value string, variables, wild bool, r *question) (p []rune, ok bool) {
	literal := func(s string) {
		if wild {
			p = append(p, pattern(s)...)
		} else {
			p = append(p, []rune(s)...)
		}
	}
	for variables {
		before, rest, found := strings.Cut(value, "${")
		if !found {
			break
		}
		inner, after, found := strings.Cut(rest, "}")
		if !found {
			break
		}
		literal(before)
		switch inner {
		case "*", "?", "$":
			p = append(p, []rune(inner)...)
		default:
			name, standard, hasStandard := strings.Cut(inner, ",")
			v, multi := r.values(strings.ToLower(strings.TrimSpace(name)))
			switch {
			case len(v) > 0 && !multi:
				p = append(p, []rune(v[0])...)
			case hasStandard:
				p = append(p, []rune(strings.Trim(strings.TrimSpace(standard), "'"))...)
			default:
				return nil, false
			}
		}
		value = after
	}
	literal(value)
	return p, true
}

// matchAny reports whether one of the patterns with variables matches text.
func matchAny(patterns []string, variables bool, text string, r *question) bool {
	for _, p := range patterns {
		if q, ok := expand(p, variables, true, r); ok && matches(q, text) {
			return true
		}
	}
	return false
}

// holds reports whether the condition is fulfilled for a statement that denies or allows.
func (c *condition) holds(deny, variables bool, r *question) bool {
	values, _ := r.values(c.key)
	if c.op == "Null" {
		for _, v := range c.values {
			if b, _ := parseBool(v); b == (len(values) == 0) {
				return true
			}
		}
		return false
	}
	if len(values) == 0 {
		switch {
		case c.ifExists:
			return true
		case c.set == "forallvalues":
			return true
		case c.set == "foranyvalue":
			return false
		}
		return c.negated
	}
	hits := 0
	for _, v := range values {
		if !parses(c.op, v) {
			return deny // the safe direction
		}
		hit := false
		for _, want := range c.values {
			hit = hit || compare(c.op, v, want, variables, r)
		}
		if hit {
			hits++
		}
	}
	misses := len(values) - hits
	switch {
	case c.set == "forallvalues" && c.negated:
		return hits == 0
	case c.set == "forallvalues":
		return misses == 0
	case c.set == "foranyvalue" && c.negated:
		return misses > 0
	case c.negated:
		return hits == 0
	}
	return hits > 0
}

// parses reports whether a request's value is one of the operator's type.
func parses(op, v string) (ok bool) {
	switch {
	case strings.HasPrefix(op, "Numeric"):
		_, ok = parseNumber(v)
	case strings.HasPrefix(op, "Date"):
		_, ok = parseDate(v)
	case op == "Bool":
		_, ok = parseBool(v)
	case op == "IpAddress":
		a, err := netip.ParseAddr(v)
		ok = err == nil && a.Zone() == ""
	case op == "ArnLike":
		ok = strings.Count(v, ":") >= 5
	default:
		ok = true
	}
	return ok
}

// compare compares a request's value with one of the policy's.
func compare(op, have, want string, variables bool, r *question) bool {
	switch op {
	case "StringEquals":
		p, ok := expand(want, variables, false, r)
		return ok && string(p) == have
	case "StringEqualsIgnoreCase":
		p, ok := expand(want, variables, false, r)
		return ok && strings.EqualFold(string(p), have)
	case "StringLike":
		p, ok := expand(want, variables, true, r)
		return ok && matches(p, have)
	case "ArnLike":
		p, ok := expand(want, variables, true, r)
		if !ok {
			return false
		}
		if len(p) == 1 && p[0] == anyRun {
			return true
		}
		parts := strings.SplitN(have, ":", 6)
		for i, part := range parts {
			end := slices.Index(p, ':')
			if i == 5 {
				end = len(p)
			}
			if end < 0 || !matches(p[:end], part) {
				return false
			}
			if i < 5 {
				p = p[end+1:]
			}
		}
		return true
	case "Bool":
		a, _ := parseBool(have)
		b, _ := parseBool(want)
		return a == b
	case "BinaryEquals":
		b, _ := base64.StdEncoding.DecodeString(want)
		return have == string(b)
	case "IpAddress":
		a, _ := netip.ParseAddr(have)
		p, _ := parseCIDR(want)
		return p.Contains(a)
	}
	var order int
	if strings.HasPrefix(op, "Date") {
		a, _ := parseDate(have)
		b, _ := parseDate(want)
		order = a.Compare(b)
		op = strings.TrimPrefix(op, "Date")
	} else {
		a, _ := parseNumber(have)
		b, _ := parseNumber(want)
		switch {
		case a < b:
			order = -1
		case a > b:
			order = 1
		}
		op = strings.TrimPrefix(op, "Numeric")
	}
	switch op {
	case "Equals":
		return order == 0
	case "LessThan":
		return order < 0
	case "LessThanEquals":
		return order <= 0
	case "GreaterThan":
		return order > 0
	case "GreaterThanEquals":
		return order >= 0
	}
	panic("authztest: operator " + op)
}

var (
	numberForm = regexp.MustCompile(`^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
	epochForm  = regexp.MustCompile(`^-?[0-9]+$`)
)

func parseNumber(s string) (float64, bool) {
	if !numberForm.MatchString(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// dateForms are the forms of ISO 8601; Go reads a fraction of seconds after any of them.
var dateForms = []string{"2006", "2006-01", "2006-01-02", "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05Z07:00"}

func parseDate(s string) (time.Time, bool) {
	for _, form := range dateForms {
		if t, err := time.Parse(form, s); err == nil {
			return t, true
		}
	}
	if !epochForm.MatchString(s) {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return time.Unix(n, 0), err == nil
}

func parseBool(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	return false, false
}
