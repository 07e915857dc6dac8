package policy

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// sieve rules out, of up to sieveMax statements, those that a request cannot fulfil: a bit for each statement, all at once for each condition key.
// It knows the conditions that are quickly tried. What it leaves is looked at one by one.
type sieve struct {
	about [64]uint64 // by action code: the statements that are about it
	deny  uint64
	asks  []asked // what most statements ask about first
}

const sieveMax = 64

// asked is what the statements ask about one condition key, one condition of each statement. Those that do not hold for a value fail.
type asked struct {
	slot
	at         uint8 // its place in Policy.slots
	statements uint64
	absent     uint64 // fail where the key is absent
	present    uint64 // Null: fail where it is not
	texts      uint64 // fail where the value is none of theirs: String operators that are not negated
	exact      []expected
	prefixes   []expected
	bools      uint64    // Bool
	truths     [2]uint64 // of those, fail where the value is false, and true
	ranges     []within
	dates      []dated
}

// expected is a text, or its beginning, that the statements of yes want and those of no refuse. mark is a part of it that tells most texts apart
// without a look at them, which would cost a line of the cache each: the last eight bytes of a text, the first eight of a beginning.
type expected struct {
	mark    uint64
	text    string
	yes, no uint64
}

// firstOf and lastOf are up to eight bytes of a text, the first of them in the lowest bits.
func firstOf[T string | []byte](text T) (mark uint64) {
	if len(text) >= 8 {
		return uint64(text[0]) | uint64(text[1])<<8 | uint64(text[2])<<16 | uint64(text[3])<<24 | uint64(text[4])<<32 | uint64(text[5])<<40 |
			uint64(text[6])<<48 | uint64(text[7])<<56
	}
	for i := range len(text) {
		mark |= uint64(text[i]) << (8 * i)
	}
	return mark
}

func lastOf[T string | []byte](text T) uint64 { return firstOf(text[max(0, len(text)-8):]) }

// begins reports whether a text with these first bytes can begin with the expected one.
func (e *expected) begins(first uint64) bool {
	if len(e.text) >= 8 {
		return e.mark == first
	}
	return (e.mark^first)<<(64-8*len(e.text)) == 0
}

// within is a list of networks; statements fail where an address is in one of them, or in none.
type within struct {
	ranges          []netip.Prefix
	inside, outside uint64
}

// dated is a comparison with dates; statements fail where it is fulfilled, or is not.
type dated struct {
	order             order
	dates             []instant
	fulfilled, failed uint64
}

// sieve makes the policy's sieves.
func (p *Policy) sieve() {
	for from := 0; from < len(p.statements); from += sieveMax {
		v := sieve{}
		var asks [slotsMax]asked
		for i := range p.statements[from:min(from+sieveMax, len(p.statements))] {
			s, bit := &p.statements[from+i], uint64(1)<<i
			if s.inert {
				continue
			}
			for code := range v.about {
				if s.codes.has(ActionCode(code)) {
					v.about[code] |= bit
				}
			}
			if s.deny {
				v.deny |= bit
			}
			for j := range s.conditions {
				c := &s.conditions[j]
				if c.at == slotsMax {
					continue
				}
				c.typed = p.slots[c.at].typed
				if a := &asks[c.at]; !c.key.multivalued() && a.statements&bit == 0 {
					c.sieved = a.add(c, bit)
				}
			}
		}
		for at := range asks {
			if a := &asks[at]; a.statements != 0 {
				a.slot, a.at = p.slots[at], uint8(at)
				a.exact, a.prefixes = merged(a.exact), merged(a.prefixes)
				v.asks = append(v.asks, *a)
			}
		}
		slices.SortStableFunc(v.asks, func(a, b asked) int { return bits.OnesCount64(b.statements) - bits.OnesCount64(a.statements) })
		p.sieves = append(p.sieves, v)
	}
}

// add takes a condition of the statement of a bit, if it is one that the sieve knows.
func (a *asked) add(c *condition, bit uint64) bool {
	switch c.typ {
	case textExact, textLike:
		if slices.ContainsFunc(c.texts, func(t template) bool { return t.parts != nil || t.glob.kind == general }) {
			return false
		}
		for i := range c.texts {
			list := &a.exact
			if c.texts[i].glob.kind == prefix {
				list = &a.prefixes
			}
			e := expected{text: c.texts[i].glob.text, yes: bit}
			if e.mark = lastOf(e.text); c.texts[i].glob.kind == prefix {
				e.mark = firstOf(e.text)
			}
			if c.negated {
				e.yes, e.no = 0, bit
			}
			*list = append(*list, e)
		}
		if !c.negated {
			a.texts |= bit
		}
	case truth:
		a.bools |= bit
		for value := range a.truths {
			if !slices.Contains(c.truths, value == 1) {
				a.truths[value] |= bit
			}
		}
	case absence:
		if !slices.Contains(c.truths, false) {
			a.present |= bit
		}
	case address:
		w := one(&a.ranges, within{ranges: c.ranges}, func(w *within) bool { return slices.Equal(w.ranges, c.ranges) })
		if c.negated {
			w.inside |= bit
		} else {
			w.outside |= bit
		}
	case date:
		d := one(&a.dates, dated{order: c.order, dates: c.dates}, func(d *dated) bool { return d.order == c.order && slices.Equal(d.dates, c.dates) })
		if c.negated {
			d.fulfilled |= bit
		} else {
			d.failed |= bit
		}
	default:
		return false
	}
	a.statements |= bit
	if !c.absent() {
		a.absent |= bit
	}
	return true
}

// merged is a list in ascending order, each text once.
func merged(list []expected) []expected {
	slices.SortFunc(list, func(a, b expected) int { return cmp.Compare(a.text, b.text) })
	n := 0
	for _, e := range list {
		if n > 0 && list[n-1].text == e.text {
			list[n-1].yes |= e.yes
			list[n-1].no |= e.no
			continue
		}
		list[n] = e
		n++
	}
	return slices.Clip(list[:n])
}

// one finds the element of a list that is the one looked for, or adds it.
func one[T any](list *[]T, add T, is func(*T) bool) *T {
	for i := range *list {
		if is(&(*list)[i]) {
			return &(*list)[i]
		}
	}
	*list = append(*list, add)
	return &(*list)[len(*list)-1]
}

// sift leaves of statements those that the conditions of the sieve do not rule out.
func (v *sieve) sift(r *Request, statements uint64) uint64 {
	m := r.Scratch
	m.sifted = 0
	for i := range v.asks {
		a := &v.asks[i]
		if statements&a.statements == 0 {
			continue
		}
		bit := uint32(1) << a.at
		if m.asked&bit == 0 {
			m.ask(r.Context, a.at, &a.slot)
		}
		switch {
		case m.several&bit != 0:
			continue // which of them is meant is for condition.holds to say
		case m.present&bit == 0:
			statements &^= a.absent
		default:
			statements &^= a.fails(&m.values[a.at], v.deny)
		}
		m.sifted |= bit
		if statements == 0 {
			break
		}
	}
	return statements
}

// fails are the statements whose condition does not hold for a value. One that is not of the operator's type fails those that allow.
func (a *asked) fails(v *Value, deny uint64) uint64 {
	failed := a.present
	if a.exact != nil || a.prefixes != nil {
		failed |= a.textFails(v)
	}
	if a.bools != 0 {
		switch b, ok := parseBool(v.Text); {
		case !ok:
			failed |= a.bools &^ deny
		case b:
			failed |= a.truths[1]
		default:
			failed |= a.truths[0]
		}
	}
	if a.ranges != nil {
		addr, ok := v.address()
		for i := range a.ranges {
			switch w := &a.ranges[i]; {
			case !ok:
				failed |= (w.inside | w.outside) &^ deny
			case contain(w.ranges, addr):
				failed |= w.inside
			default:
				failed |= w.outside
			}
		}
	}
	if a.dates != nil {
		t, ok := v.date()
		for i := range a.dates {
			switch d := &a.dates[i]; {
			case !ok:
				failed |= (d.fulfilled | d.failed) &^ deny
			case d.order.any(t, d.dates):
				failed |= d.fulfilled
			default:
				failed |= d.failed
			}
		}
	}
	return failed
}

// fewTexts is how many texts are compared one after the other.
const fewTexts = 16

func (a *asked) textFails(v *Value) uint64 {
	yes, no := uint64(0), uint64(0)
	if len(a.exact) <= fewTexts {
		last := lastOf(v.Text)
		for i := range a.exact {
			if e := &a.exact[i]; e.mark == last && string(v.Text) == e.text {
				yes, no = e.yes, e.no
				break
			}
		}
	} else if i, found := slices.BinarySearchFunc(a.exact, v.Text, func(e expected, text []byte) int {
		return strings.Compare(e.text, string(text))
	}); found {
		yes, no = a.exact[i].yes, a.exact[i].no
	}
	if len(a.prefixes) == 0 {
		return a.texts&^yes | no
	}
	first := firstOf(v.Text)
	for i := range a.prefixes {
		if e := &a.prefixes[i]; e.begins(first) && len(v.Text) >= len(e.text) && string(v.Text[:len(e.text)]) == e.text {
			yes |= e.yes
			no |= e.no
		}
	}
	return a.texts&^yes | no
}
