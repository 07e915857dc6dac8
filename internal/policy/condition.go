package policy

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/internal/bytesconv"
)

// condition is one line of a Condition: all of a statement's must hold.
type condition struct {
	test
	set      quantifier
	ifExists bool
	slot
	at      uint8 // its slot's place, slotsMax for none
	sieved  bool  // the sieve tries it
	literal bool  // what it compares with is text alone, which is one of texts too
	text    string

	// What the operator compares with; one of them.
	texts   []template // String, Arn
	numbers []float64
	dates   []instant
	truths  []bool // Bool, Null
	ranges  []netip.Prefix
	blobs   [][]byte
}

// test is what an operator does: it compares values of a type. That of a negated operator is fulfilled where the comparison is not.
type test struct {
	typ     valueType
	order   order
	negated bool
}

type valueType uint8

const (
	textExact valueType = iota + 1
	textFold
	textLike
	number
	date
	truth
	binary
	address
	arn
	absence
)

// order is the comparison of numbers and dates.
type order uint8

const (
	equal order = iota
	less
	lessOrEqual
	greater
	greaterOrEqual
)

func (o order) is(compared int) bool {
	switch o {
	case less:
		return compared < 0
	case lessOrEqual:
		return compared <= 0
	case greater:
		return compared > 0
	case greaterOrEqual:
		return compared >= 0
	}
	return compared == 0
}

// any reports whether t compares as wanted with one of dates.
func (o order) any(t instant, dates []instant) bool {
	for _, want := range dates {
		if o.is(t.compare(want)) {
			return true
		}
	}
	return false
}

func contain(ranges []netip.Prefix, a netip.Addr) bool {
	for i := range ranges {
		if ranges[i].Contains(a) {
			return true
		}
	}
	return false
}

// quantifier says of how many of a request's values a test is asked.
type quantifier uint8

const (
	single quantifier = iota
	forAll
	forAny
)

// operators are the condition operators, without ForAllValues:, ForAnyValue: and IfExists.
var operators = map[string]test{
	"StringEquals":              {typ: textExact},
	"StringNotEquals":           {typ: textExact, negated: true},
	"StringEqualsIgnoreCase":    {typ: textFold},
	"StringNotEqualsIgnoreCase": {typ: textFold, negated: true},
	"StringLike":                {typ: textLike},
	"StringNotLike":             {typ: textLike, negated: true},
	"NumericEquals":             {typ: number},
	"NumericNotEquals":          {typ: number, negated: true},
	"NumericLessThan":           {typ: number, order: less},
	"NumericLessThanEquals":     {typ: number, order: lessOrEqual},
	"NumericGreaterThan":        {typ: number, order: greater},
	"NumericGreaterThanEquals":  {typ: number, order: greaterOrEqual},
	"DateEquals":                {typ: date},
	"DateNotEquals":             {typ: date, negated: true},
	"DateLessThan":              {typ: date, order: less},
	"DateLessThanEquals":        {typ: date, order: lessOrEqual},
	"DateGreaterThan":           {typ: date, order: greater},
	"DateGreaterThanEquals":     {typ: date, order: greaterOrEqual},
	"Bool":                      {typ: truth},
	"BinaryEquals":              {typ: binary},
	"IpAddress":                 {typ: address},
	"NotIpAddress":              {typ: address, negated: true},
	"ArnEquals":                 {typ: arn},
	"ArnLike":                   {typ: arn},
	"ArnNotEquals":              {typ: arn, negated: true},
	"ArnNotLike":                {typ: arn, negated: true},
	"Null":                      {typ: absence},
}

// condition compiles a line. Operators are spelled as they are: one that is not known is refused.
func (c *compiler) condition(w *written) condition {
	d := condition{}
	name := w.operator
	if rest, ok := strings.CutPrefix(name, "ForAllValues:"); ok {
		d.set, name = forAll, rest
	} else if rest, ok := strings.CutPrefix(name, "ForAnyValue:"); ok {
		d.set, name = forAny, rest
	}
	name, d.ifExists = strings.CutSuffix(name, "IfExists")
	t, ok := operators[name]
	if !ok || t.typ == absence && (d.ifExists || d.set != single) {
		c.syntax("A statement has a condition operator that does not exist.")
		return d
	}
	d.test = t
	if w.key == "" {
		c.syntax("A statement has a condition key without a name.")
		return d
	}
	d.key, d.name = ParseKey(w.key)
	d.typed = d.typ == date || d.typ == address
	d.at = c.place(&d.slot)
	c.policy.mention(d.key)
	for _, v := range w.values {
		if !c.value(&d, v) {
			c.syntax("A condition's value is not one of its operator's type.")
			return d
		}
	}
	if d.typ == textExact || d.typ == textLike {
		if t := &d.texts[0]; len(d.texts) == 1 && t.parts == nil && t.glob.kind == exact {
			d.literal, d.text = true, t.glob.text
		}
	}
	return d
}

// value compiles one value of a line.
func (c *compiler) value(d *condition, s string) (ok bool) {
	switch d.typ {
	case textExact, textFold:
		d.texts = append(d.texts, c.template(s, false))
		return true
	case textLike:
		d.texts = append(d.texts, c.template(s, true))
		return true
	case arn:
		t := c.template(s, true)
		if t.parts == nil && t.glob.kind != exact {
			t.glob = glob{pattern: t.glob.symbols()}
		}
		d.texts = append(d.texts, t)
		// What variables make of a text is seen when they have values.
		return t.parts != nil || s == "*" || isARN([]byte(s))
	case number:
		v, ok := parseNumber([]byte(s))
		d.numbers = append(d.numbers, v)
		return ok
	case date:
		v, ok := parseDate([]byte(s))
		d.dates = append(d.dates, v)
		return ok
	case truth, absence:
		v, ok := parseBool([]byte(s))
		d.truths = append(d.truths, v)
		return ok
	case address:
		v, ok := parseRange(s)
		d.ranges = append(d.ranges, v)
		return ok
	case binary:
		v, err := base64.StdEncoding.Strict().DecodeString(s)
		d.blobs = append(d.blobs, v)
		return err == nil && !strings.ContainsAny(s, "\r\n")
	}
	return false
}

// place is the place of a condition's slot, slotsMax where there is none left.
func (c *compiler) place(k *slot) uint8 {
	p := c.policy
	i := slices.IndexFunc(p.slots, func(s slot) bool { return s.key == k.key && s.name == k.name })
	if i < 0 && k.key != UnknownKey && len(p.slots) < slotsMax {
		i = len(p.slots)
		p.slots = append(p.slots, *k)
	}
	if i < 0 {
		return slotsMax
	}
	p.slots[i].typed = p.slots[i].typed && k.typed
	return uint8(i)
}

// cost orders the conditions of a statement: what is quickly found out first.
func (c *condition) cost() int {
	for i := range c.texts {
		if c.texts[i].parts != nil {
			return 2
		}
	}
	switch c.typ {
	case date, address, arn, textLike:
		return 1
	}
	return 0
}

// holds reports whether a request fulfils the condition. A value of the request that is not of the operator's type fulfils what denies, and
// nothing else.
func (c *condition) holds(r *Request, deny bool) bool {
	m, bit := r.Scratch, uint32(1)<<c.at
	if c.key == UnknownKey {
		return c.absent()
	}
	if c.at == slotsMax || m.asked&bit == 0 {
		m.ask(r.Context, c.at, &c.slot)
	}
	switch {
	case m.present&bit == 0:
		return c.absent()
	case c.typ == absence:
		return slices.Contains(c.truths, false)
	case m.several&bit != 0 && c.name != "":
		return deny // {"dept":"hr","Dept":"it"}: which one is meant cannot be told, and the caller may have chosen both
	case m.several&bit != 0:
		return c.holdsOfSeveral(r, deny)
	}
	v := &m.values[c.at]
	if c.literal {
		return (string(v.Text) == c.text) != c.negated
	}
	matched, ok := c.matches(r, v)
	if !ok {
		return deny
	}
	return matched != c.negated
}

// absent is what holds says where the request has no value.
func (c *condition) absent() bool {
	switch {
	case c.typ == absence:
		return slices.Contains(c.truths, true)
	case c.ifExists:
		return true
	case c.set == single:
		return c.negated
	}
	return c.set == forAll
}

// holdsOfSeveral is holds where the request has several values.
func (c *condition) holdsOfSeveral(r *Request, deny bool) bool {
	decidedByOne := c.set == forAny || c.set == single && !c.negated // by one that is fulfilled, else by one that is not
	fulfilled := !decidedByOne
	for i := 0; ; i++ {
		v, present := r.Context.Value(c.key, c.name, i)
		if !present {
			return fulfilled
		}
		matched, ok := c.matches(r, &v)
		if !ok {
			return deny
		}
		if (matched != c.negated) == decidedByOne {
			fulfilled = decidedByOne
			if c.typ <= textLike { // every value is a text: none that follows can be malformed
				return fulfilled
			}
		}
	}
}

// matches compares v with the condition's values; ok false: it is not of the operator's type.
func (c *condition) matches(r *Request, v *Value) (matched, ok bool) {
	switch c.typ {
	case textExact, textFold, textLike:
		return c.matchText(r, v.Text), true
	case arn:
		if !isARN(v.Text) {
			return false, false
		}
		return c.matchText(r, v.Text), true
	case number:
		f, ok := parseNumber(v.Text)
		for _, want := range c.numbers {
			matched = matched || c.order.is(compare(f, want))
		}
		return matched, ok
	case date:
		t, ok := v.date()
		return c.order.any(t, c.dates), ok
	case truth:
		b, ok := parseBool(v.Text)
		for _, want := range c.truths {
			matched = matched || b == want
		}
		return matched, ok
	case address:
		a, ok := v.address()
		return contain(c.ranges, a), ok
	case binary:
		for _, want := range c.blobs {
			matched = matched || bytes.Equal(v.Text, want)
		}
		return matched, true
	}
	return false, false
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (c *condition) matchText(r *Request, v []byte) bool {
	for k := range c.texts {
		t := &c.texts[k]
		if t.parts == nil {
			if c.matchGlob(&t.glob, v, r.Scratch) {
				return true
			}
			continue
		}
		if symbols, ok := t.expand(r, len(v)); ok && c.matchSymbols(symbols, v, r.Scratch) {
			return true
		}
	}
	return false
}

func (c *condition) matchGlob(g *glob, v []byte, s *Scratch) bool {
	switch {
	case c.typ == textFold:
		return strings.EqualFold(bytesconv.String(v), g.text)
	case c.typ == arn && g.kind != exact:
		return matchARN(g.pattern, v)
	case g.kind == general:
		return s.match(g.pattern, v)
	}
	return g.match(v)
}

func (c *condition) matchSymbols(p []uint16, v []byte, s *Scratch) bool {
	switch c.typ {
	case textFold:
		s.text = s.text[:0]
		for _, b := range p {
			s.text = append(s.text, byte(b))
		}
		return bytes.EqualFold(v, s.text)
	case arn:
		return matchARN(p, v)
	}
	return s.match(p, v)
}

// match is match with the steps that the evaluation has left. When they are used up the evaluation ends on the safe side (Evaluate).
func (s *Scratch) match(p []uint16, v []byte) bool {
	if s.steps < 0 {
		return false
	}
	return matchWithin(p, v, &s.steps)
}
