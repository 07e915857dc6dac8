package authztest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// statement is one statement of a document, its elements as lists.
type statement struct {
	deny     bool
	attached bool // it has no principals: identity policies

	anyone       bool     // Principal "*" or AWS "*"
	principals   []string // AWS, accounts as arn:…:root
	ids          []string // of principals
	services     []string // Service
	notPrincipal bool     // the four above are NotPrincipal's

	actions     []string // lower case
	notAction   bool
	resources   []string
	notResource bool

	noEffect  bool // it lacks an element, but is accepted
	condition []condition
}

// condition is one key of one operator.
type condition struct {
	set      string // "forallvalues", "foranyvalue" or ""
	op       string // StringEquals …, the positive one
	negated  bool
	ifExists bool
	key      string // lower case
	values   []string
}

// document is a policy.
type document struct {
	variables  bool // of Version 2012-10-17
	statements []statement
}

const (
	keyPolicy = iota
	identityPolicy
)

// parseDocument reads a policy. bind is for key policies.
func parseDocument(raw []byte, kind int, bind func(string) (string, bool)) (*document, error) {
	var top map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&top); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("text after the document")
	}
	doc := &document{}
	for name, v := range top {
		switch name {
		case "Version":
			switch v {
			case "2012-10-17":
				doc.variables = true
			case "2008-10-17":
			default:
				return nil, fmt.Errorf("element Version %v", v)
			}
		case "Id":
			if _, ok := v.(string); !ok {
				return nil, fmt.Errorf("element Id %v", v)
			}
		case "Statement":
		default:
			return nil, fmt.Errorf("element %q", name)
		}
	}
	var list []any
	switch s := top["Statement"].(type) {
	case []any:
		list = s
	case map[string]any:
		list = []any{s}
	default:
		return nil, fmt.Errorf("element Statement %v", s)
	}
	for _, e := range list {
		m, ok := e.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("statement %v", e)
		}
		s, err := parseStatement(m, kind, bind, doc.variables)
		if err != nil {
			return nil, err
		}
		doc.statements = append(doc.statements, s)
	}
	return doc, nil
}

func parseStatement(m map[string]any, kind int, bind func(string) (string, bool), variables bool) (statement, error) {
	var s statement
	for name := range m {
		switch name {
		case "Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition":
		default:
			return s, fmt.Errorf("element %q", name)
		}
	}
	for _, name := range []string{"Principal", "Action", "Resource"} {
		if m[name] != nil && m["Not"+name] != nil {
			return s, fmt.Errorf("both %s and Not%s", name, name)
		}
	}
	switch m["Effect"] {
	case "Allow":
	case "Deny":
		s.deny = true
	default:
		return s, fmt.Errorf("element Effect %v", m["Effect"])
	}

	s.attached = kind == identityPolicy
	principal := m["Principal"]
	if p, ok := m["NotPrincipal"]; ok {
		principal, s.notPrincipal = p, true
	}
	if (principal != nil) != (kind == keyPolicy) {
		return s, fmt.Errorf("element Principal %v", principal)
	}
	if principal != nil {
		if err := s.parsePrincipal(principal, bind); err != nil {
			return s, err
		}
	}

	var err error
	element := func(name string) (values []string, not, ok bool) {
		v, ok := m[name]
		if !ok {
			v, ok = m["Not"+name]
			not = ok
		}
		if ok && err == nil {
			values, err = texts(v, false)
		}
		return values, not, ok
	}
	var hasAction, hasResource bool
	s.actions, s.notAction, hasAction = element("Action")
	s.resources, s.notResource, hasResource = element("Resource")
	if err != nil {
		return s, err
	}
	for _, r := range s.resources {
		if kind == identityPolicy && r != "*" && !strings.HasPrefix(r, "arn:") {
			return s, fmt.Errorf("resource %q", r)
		}
	}
	for i, a := range s.actions {
		s.actions[i] = strings.ToLower(a)
	}
	if !hasAction || !hasResource {
		if kind == identityPolicy {
			return s, fmt.Errorf("statement without Action or Resource")
		}
		s.noEffect = true
	}
	if c, ok := m["Condition"]; ok {
		operators, ok := c.(map[string]any)
		if !ok {
			return s, fmt.Errorf("element Condition %v", c)
		}
		for name, v := range operators {
			keys, ok := v.(map[string]any)
			if !ok {
				return s, fmt.Errorf("element Condition %s: %v", name, v)
			}
			for key, v := range keys {
				c, err := parseCondition(name, key, v, variables)
				if err != nil {
					return s, err
				}
				s.condition = append(s.condition, c)
			}
		}
	}
	return s, nil
}

func (s *statement) parsePrincipal(v any, bind func(string) (string, bool)) error {
	if v == "*" {
		s.anyone = true
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 {
		return fmt.Errorf("element Principal %v", v)
	}
	for kind, v := range m {
		values, err := texts(v, false)
		if err != nil {
			return err
		}
		for _, p := range values {
			switch kind {
			case "AWS":
				if p == "*" {
					s.anyone = true
					continue
				}
				if isAccount(p) {
					p = "arn:aws:iam::" + p + ":root"
				}
				parts := strings.SplitN(p, ":", 6)
				if len(parts) != 6 || parts[0] != "arn" || !isAccount(parts[4]) || strings.ContainsAny(p, "*?") {
					return fmt.Errorf("principal %q", p)
				}
				id, ok := bind(p)
				if !ok {
					return fmt.Errorf("principal %q does not exist", p)
				}
				s.principals, s.ids = append(s.principals, p), append(s.ids, id)
			case "Service":
				s.services = append(s.services, p)
			case "Federated": // names nobody
			default:
				return fmt.Errorf("principal %s", kind)
			}
		}
	}
	return nil
}

func isAccount(s string) bool {
	return len(s) == 12 && strings.Trim(s, "0123456789") == ""
}

// operators are the positive operators, and their negations without "Not".
var operators = map[string]struct {
	positive string
	negated  bool
}{
	"StringEquals": {"StringEquals", false}, "StringNotEquals": {"StringEquals", true},
	"StringEqualsIgnoreCase": {"StringEqualsIgnoreCase", false}, "StringNotEqualsIgnoreCase": {"StringEqualsIgnoreCase", true},
	"StringLike": {"StringLike", false}, "StringNotLike": {"StringLike", true},
	"NumericEquals": {"NumericEquals", false}, "NumericNotEquals": {"NumericEquals", true},
	"NumericLessThan": {"NumericLessThan", false}, "NumericLessThanEquals": {"NumericLessThanEquals", false},
	"NumericGreaterThan": {"NumericGreaterThan", false}, "NumericGreaterThanEquals": {"NumericGreaterThanEquals", false},
	"DateEquals": {"DateEquals", false}, "DateNotEquals": {"DateEquals", true},
	"DateLessThan": {"DateLessThan", false}, "DateLessThanEquals": {"DateLessThanEquals", false},
	"DateGreaterThan": {"DateGreaterThan", false}, "DateGreaterThanEquals": {"DateGreaterThanEquals", false},
	"Bool": {"Bool", false}, "BinaryEquals": {"BinaryEquals", false},
	"IpAddress": {"IpAddress", false}, "NotIpAddress": {"IpAddress", true},
	"ArnEquals": {"ArnLike", false}, "ArnLike": {"ArnLike", false}, "ArnNotEquals": {"ArnLike", true}, "ArnNotLike": {"ArnLike", true},
	"Null": {"Null", false},
}

func parseCondition(operator, key string, v any, variables bool) (condition, error) {
	c := condition{key: strings.ToLower(key)}
	name := operator
	if set, rest, ok := strings.Cut(name, ":"); ok {
		if set != "ForAllValues" && set != "ForAnyValue" {
			return c, fmt.Errorf("operator %q", operator)
		}
		c.set, name = strings.ToLower(set), rest
	}
	if rest, ok := strings.CutSuffix(name, "IfExists"); ok {
		c.ifExists, name = true, rest
	}
	o, ok := operators[name]
	if !ok || o.positive == "Null" && c.ifExists {
		return c, fmt.Errorf("operator %q", operator)
	}
	c.op, c.negated = o.positive, o.negated
	values, err := texts(v, true)
	if err != nil {
		return c, err
	}
	c.values = values
	for _, v := range values {
		ok := true
		switch {
		case strings.HasPrefix(c.op, "Numeric"):
			_, ok = parseNumber(v)
		case strings.HasPrefix(c.op, "Date"):
			_, ok = parseDate(v)
		case c.op == "Bool", c.op == "Null":
			_, ok = parseBool(v)
		case c.op == "IpAddress":
			_, ok = parseCIDR(v)
		case c.op == "BinaryEquals":
			_, err := base64.StdEncoding.DecodeString(v)
			ok = err == nil
		case c.op == "ArnLike":
			ok = v == "*" || variables && strings.Contains(v, "${") || strings.Count(v, ":") >= 5
		}
		if !ok {
			return c, fmt.Errorf("%s: value %q", operator, v)
		}
	}
	return c, nil
}

// texts is an element that is a value or a list of values; scalars allows values that are no strings.
func texts(v any, scalars bool) ([]string, error) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	var out []string
	for _, e := range list {
		s, isString := e.(string)
		if !isString && !scalars {
			return nil, fmt.Errorf("value %v", e)
		}
		switch e := e.(type) {
		case string:
		case json.Number:
			s = e.String()
		case bool:
			s = strconv.FormatBool(e)
		default:
			return nil, fmt.Errorf("value %v", e)
		}
		out = append(out, s)
	}
	return out, nil
}

// duplicates refuses a document with an object that has a member twice, which encoding/json takes.
func duplicates(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	var value func() error
	value = func() error {
		t, err := d.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'):
			var names []string
			for d.More() {
				name, err := d.Token()
				if err != nil {
					return err
				}
				if slices.Contains(names, name.(string)) {
					return fmt.Errorf("member %q twice", name)
				}
				names = append(names, name.(string))
				if err := value(); err != nil {
					return err
				}
			}
			_, err = d.Token()
		case json.Delim('['):
			for d.More() {
				if err := value(); err != nil {
					return err
				}
			}
			_, err = d.Token()
		}
		return err
	}
	return value()
}

func parseCIDR(s string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), true
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}
