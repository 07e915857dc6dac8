package authz

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/internal/bytesconv"
)

// grantIndex finds grants by keys, hashes of what a request must have for them to allow. It is a hint: whether a grant allows is asked of the
// grant. Immutable.
type grantIndex struct {
	grants  []Grant      // ascending by ID
	entries []grantEntry // ascending by key, then by grant
	heads   []uint32     // hash table with open addressing: positions in entries of the first of each key, from 1
}

// grantEntry is one grant under one key.
type grantEntry struct {
	key        uint64
	need       uint64     // pairBits that a request must have
	operations Operations // for which the grant is kept under the key
	grant      uint32     // position in grants
}

// Keys are hashed under a seed of this process, so that nobody can choose constraints that collide.
var (
	grantSeed  = maphash.MakeSeed()
	equalsSeed = maphash.String(grantSeed, "equals")
)

const mixer = 0x9e3779b97f4a7c15

// pairKey is the key of grants with a pair in a constraint.
func pairKey(key, value []byte) uint64 {
	return (bits.RotateLeft64(maphash.Bytes(grantSeed, key), 32) ^ maphash.Bytes(grantSeed, value)) * mixer
}

// equalsAnd adds a pair to the key of grants that are constrained to exactly its pairs. It begins as equalsSeed.
func equalsAnd(equals, pair uint64) uint64 { return (bits.RotateLeft64(equals, 7) ^ pair) * mixer }

// pairBit is a pair's bit in grantEntry.need.
func pairBit(pair uint64) uint64 { return 1 << (pair >> 58) }

// freeKey is the key of grants that have an operation without a constraint that concerns it.
func freeKey(op Operations) uint64 { return equalsSeed ^ uint64(op)*mixer }

// sourceKey is the key of grants with a source ARN.
func sourceKey(arn []byte) uint64 { return maphash.Bytes(grantSeed, arn) ^ equalsSeed }

func newGrantIndex(grants []Grant) *grantIndex {
	x := &grantIndex{grants: grants, entries: make([]grantEntry, 0, len(grants))}
	// How many grants could be kept under a key, and how many are.
	type load struct{ could, are uint32 }
	loads := make(map[uint64]load, len(grants))
	var keys []uint64
	for i := range grants {
		for _, key := range grants[i].keys(keys[:0]) {
			l := loads[key]
			l.could++
			loads[key] = l
		}
	}
	for i := range grants {
		g := &grants[i]
		x.free(uint32(i))
		if g.Operations&^contextFree == 0 {
			continue
		}
		if keys = g.keys(keys[:0]); len(keys) == 0 {
			continue
		}
		best := keys[0]
		for _, key := range keys[1:] {
			a, b := loads[key], loads[best]
			if a.could < b.could || a.could == b.could && a.are < b.are {
				best = key
			}
		}
		l := loads[best]
		l.are++
		loads[best] = l
		x.entries = append(x.entries, grantEntry{key: best, need: g.need(), operations: g.Operations &^ contextFree, grant: uint32(i)})
	}
	x.entries = slices.Clip(x.entries)
	slices.SortFunc(x.entries, func(a, b grantEntry) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.grant, b.grant)) })
	x.link()
	return x
}

// free adds the entries of what a grant allows whatever the encryption context, and whatever the source ARN if it has none.
func (x *grantIndex) free(i uint32) {
	g := &x.grants[i]
	ops := g.Operations
	if g.onContext() {
		ops &= contextFree
	}
	sourced := Operations(0)
	if g.SourceARN != "" {
		sourced, ops = ops&^OpRetireGrant, ops&OpRetireGrant
	}
	for ; ops != 0; ops &= ops - 1 {
		op := ops & -ops
		x.entries = append(x.entries, grantEntry{key: freeKey(op), operations: op, grant: i})
	}
	if sourced != 0 {
		x.entries = append(x.entries, grantEntry{key: sourceKey(bytesconv.Bytes(g.SourceARN)), operations: sourced, grant: i})
	}
}

// onContext reports whether the grant is constrained to encryption contexts. An empty Subset is no constraint.
func (g *Grant) onContext() bool { return g.HasEquals || len(g.Subset) > 0 }

// keys appends the keys that the grant could be kept under for operations that its constraints on the encryption context concern: none if it has none.
func (g *Grant) keys(dst []uint64) []uint64 {
	switch {
	case g.HasEquals:
		equals := equalsSeed
		for i := range g.Equals {
			equals = equalsAnd(equals, pairKey(g.Equals[i].Key, g.Equals[i].Value))
		}
		dst = append(dst, equals)
	case len(g.Subset) == 0:
		return dst
	}
	for i := range g.Subset {
		dst = append(dst, pairKey(g.Subset[i].Key, g.Subset[i].Value))
	}
	if g.SourceARN != "" {
		dst = append(dst, sourceKey(bytesconv.Bytes(g.SourceARN)))
	}
	return dst
}

func (g *Grant) need() (need uint64) {
	for _, pairs := range [...][]Pair{g.Equals, g.Subset} {
		for i := range pairs {
			need |= pairBit(pairKey(pairs[i].Key, pairs[i].Value))
		}
	}
	return need
}

// link fills heads.
func (x *grantIndex) link() {
	runs := 0
	for i := range x.entries {
		if i == 0 || x.entries[i].key != x.entries[i-1].key {
			runs++
		}
	}
	x.heads = make([]uint32, 1<<bits.Len(uint(2*runs)))
	for i := range x.entries {
		if i > 0 && x.entries[i].key == x.entries[i-1].key {
			continue
		}
		at := x.slot(x.entries[i].key)
		for x.heads[at] != 0 {
			at = (at + 1) & (len(x.heads) - 1)
		}
		x.heads[at] = uint32(i + 1)
	}
}

func (x *grantIndex) slot(key uint64) int { return int(key & uint64(len(x.heads)-1)) }

// run is the entries from the first of a key on, empty if there is none.
func (x *grantIndex) run(key uint64) []grantEntry {
	for at := x.slot(key); ; at = (at + 1) & (len(x.heads) - 1) {
		i := x.heads[at]
		if i == 0 {
			return nil
		}
		if x.entries[i-1].key == key {
			return x.entries[i-1:]
		}
	}
}

// at is where the grant of an ID is, or would be.
func (x *grantIndex) at(id string) (int, bool) {
	if x == nil {
		return 0, false
	}
	return slices.BinarySearchFunc(x.grants, id, func(g Grant, id string) int { return strings.Compare(g.ID, id) })
}

func (x *grantIndex) len() int {
	if x == nil {
		return 0
	}
	return len(x.grants)
}

// What there is in bytes, with the rounding of the allocator: a Grant with its ID, a pair with the headers of its halves, an entry.
const (
	grantCost = 96 + 64
	pairCost  = 48 + 2*16
	entryCost = 24
)

func (x *grantIndex) size() int64 {
	n := cap(x.grants)*grantCost + cap(x.entries)*entryCost + 4*len(x.heads)
	for i := range x.grants {
		n += x.grants[i].constraintBytes()
	}
	return int64(n)
}

func (g *Grant) constraintBytes() int {
	n := len(g.SourceARN)
	for _, pairs := range [...][]Pair{g.Equals, g.Subset} {
		for i := range pairs {
			n += pairCost + len(pairs[i].Key) + len(pairs[i].Value)
		}
	}
	return n
}

// Size is the most that the grant adds to the Size of a GrantSet, in bytes: with the quarter more room that append leaves, an entry for each
// operation and one besides, and four heads for each of them. The store keeps sums of it: another rule needs another name there.
func (g *Grant) Size() int64 {
	entries := bits.OnesCount64(uint64(g.Operations)) + 1
	return int64(grantCost*5/4 + entries*(entryCost+4*4) + g.constraintBytes())
}
