package authz

import (
	"slices"
	"strings"
)

// GrantSet is the grants of one key to one grantee, found by what they are constrained to. Immutable; nil is the empty set.
//
// Of several grants that allow, the first in order of their IDs is found, of those whose constraints say nothing of the operation; if there is
// none, the first in order of their IDs of the others.
//
// How long a decision takes hardly depends on the number of grants, with two exceptions, at one or two nanoseconds a grant: grants
// with equal constraints that do not have the operation; and grants with an EncryptionContextSubset of which every pair is also many
// others' and in the request. Each grant is kept under that of its pairs which fewest others have.
type GrantSet struct {
	base   *grantIndex
	gone   []uint64    // bits: grants of base that are no more; nil: none
	missed int         // their number
	recent *grantIndex // grants that were added to base; nil: none
}

// recentMax is how many changes a set takes before its whole index is made anew, at about a microsecond a grant.
const recentMax = 256

// NewGrantSet makes the set of a list, which it takes over. No two have the same ID.
func NewGrantSet(list []Grant) *GrantSet {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b Grant) int { return strings.Compare(a.ID, b.ID) })
	return &GrantSet{base: newGrantIndex(list)}
}

// Len is the number of grants.
func (s *GrantSet) Len() int {
	if s == nil {
		return 0
	}
	return len(s.base.grants) - s.missed + s.recent.len()
}

// With is the set with a grant more; the same set if it has one of that ID.
func (s *GrantSet) With(g Grant) *GrantSet {
	if s == nil {
		return NewGrantSet([]Grant{g})
	}
	if i, found := s.base.at(g.ID); found && !s.isGone(i) {
		return s
	}
	at, found := s.recent.at(g.ID)
	if found {
		return s
	}
	var list []Grant
	if s.recent != nil {
		list = s.recent.grants
	}
	return s.changed(s.gone, s.missed, slices.Insert(slices.Clone(list), at, g))
}

// Without is the set without the grant of that ID; the same set if it has none.
func (s *GrantSet) Without(id string) *GrantSet {
	if s == nil {
		return nil
	}
	if i, found := s.recent.at(id); found {
		return s.changed(s.gone, s.missed, slices.Delete(slices.Clone(s.recent.grants), i, i+1))
	}
	i, found := s.base.at(id)
	if !found || s.isGone(i) {
		return s
	}
	gone := make([]uint64, (len(s.base.grants)+63)/64)
	copy(gone, s.gone)
	gone[i/64] |= 1 << (i % 64)
	var list []Grant
	if s.recent != nil {
		list = s.recent.grants
	}
	return s.changed(gone, s.missed+1, list)
}

// changed is the set of s.base without the gone and with recent. It is made anew where that is cheap, or little of s.base would be left as it was.
func (s *GrantSet) changed(gone []uint64, missed int, recent []Grant) *GrantSet {
	if n := missed + len(recent); n <= recentMax && n < len(s.base.grants) {
		next := &GrantSet{base: s.base, gone: gone, missed: missed, recent: s.recent}
		switch {
		case len(recent) == 0:
			next.recent = nil
		case len(recent) != s.recent.len():
			next.recent = newGrantIndex(recent)
		}
		return next
	}
	list := slices.Clone(recent)
	for i := range s.base.grants {
		if gone == nil || gone[i/64]&(1<<(i%64)) == 0 {
			list = append(list, s.base.grants[i])
		}
	}
	return NewGrantSet(list)
}

func (s *GrantSet) isGone(i int) bool { return s.gone != nil && s.gone[i/64]&(1<<(i%64)) != 0 }

// GrantSetMax bounds the grants of one key to one grantee, by the sum of Grant.Size, in bytes: 50 000 grants of 900 bytes each, which is four
// pairs of usual length. GrantSetSlack is how much larger the set can be: recentMax grants that are gone and still take room, of which each
// came in one request (kmsapi.BodyMax), and what belongs to no grant.
const (
	GrantSetMax   = 44 << 20
	GrantSetSlack = 20 << 20
)

// setCost is a GrantSet and the headers of its two indexes, in bytes.
const setCost = 64 + 2*96

// Size is the memory that the set takes, in bytes, rounded up.
func (s *GrantSet) Size() int64 {
	if s == nil {
		return 0
	}
	n := setCost + int64(8*len(s.gone)) + s.base.size()
	if s.recent != nil {
		n += s.recent.size()
	}
	return n
}

// find is a grant that allows the operation, nil if there is none.
func (s *GrantSet) find(op Operations, c *Context) *Grant {
	if s == nil {
		return nil
	}
	f := finder{s: s, op: op, c: c}
	if f.under(freeKey(op)); f.found != nil {
		return f.found
	}
	n, equals := 0, equalsSeed
	if c.EncryptionContext != nil && op&contextFree == 0 {
		n = c.EncryptionContext.Len()
	}
	for i := range n {
		key := pairKey(c.EncryptionContext.Pair(i))
		equals = equalsAnd(equals, key)
		f.have |= pairBit(key)
	}
	if len(c.SourceArn) > 0 {
		f.under(sourceKey(c.SourceArn))
	}
	if op&contextFree != 0 {
		return f.found
	}
	f.under(equals)
	for i := range n {
		f.under(pairKey(c.EncryptionContext.Pair(i)))
	}
	return f.found
}

// finder is one search in a set.
type finder struct {
	s     *GrantSet
	op    Operations
	c     *Context
	have  uint64 // pairBits of the request
	found *Grant // the first so far in order of IDs
}

// under looks at the grants that are kept under a key.
func (f *finder) under(key uint64) {
	f.in(f.s.base, f.s.gone, key)
	if f.s.recent != nil {
		f.in(f.s.recent, nil, key)
	}
}

func (f *finder) in(x *grantIndex, gone []uint64, key uint64) {
	for _, e := range x.run(key) {
		if e.key != key {
			return
		}
		if e.operations&f.op == 0 || e.need&^f.have != 0 || gone != nil && gone[e.grant/64]&(1<<(e.grant%64)) != 0 {
			continue
		}
		if g := &x.grants[e.grant]; g.allows(f.op, f.c) {
			if f.found == nil || g.ID < f.found.ID {
				f.found = g
			}
			return
		}
	}
}
