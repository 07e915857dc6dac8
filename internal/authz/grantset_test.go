package authz

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

type pairList []Pair

func (p pairList) Len() int                       { return len(p) }
func (p pairList) Pair(i int) (key, value []byte) { return p[i].Key, p[i].Value }

// naive is GrantSet's rule, said again: the first that allows of those whose constraints say nothing of the operation, else the first that allows.
func naive(list []Grant, op Operations, c *Context) string {
	found := ""
	for i := range list {
		g := &list[i]
		if !g.allows(op, c) || found != "" && found < g.ID {
			continue
		}
		found = g.ID
	}
	free := ""
	for i := range list {
		g := &list[i]
		constrained := !(op == OpRetireGrant) && g.SourceARN != "" || op&contextFree == 0 && (g.HasEquals || len(g.Subset) > 0)
		if g.Operations&op != 0 && !constrained && (free == "" || g.ID < free) {
			free = g.ID
		}
	}
	if free != "" {
		return free
	}
	return found
}

// somePairs are pairs of a small world, in ascending order of their keys.
func somePairs(r *rand.Rand, most int) []Pair {
	var list []Pair
	for k := range 5 {
		if len(list) < most && r.IntN(3) == 0 {
			list = append(list, Pair{Key: []byte{'a' + byte(k)}, Value: []byte{'0' + byte(r.IntN(3))}})
		}
	}
	return list
}

func someGrant(r *rand.Rand) Grant {
	g := Grant{ID: fmt.Sprintf("%064x", r.Uint64()), Operations: Operations(1 << r.IntN(len(operationNames)))}
	for r.IntN(3) > 0 {
		g.Operations |= 1 << r.IntN(len(operationNames))
	}
	switch r.IntN(12) {
	case 0: // without constraints
	case 1:
		g.HasEquals, g.Equals, g.HasSubset, g.Subset = true, somePairs(r, 5), true, somePairs(r, 5)
	case 2, 3, 4, 5, 6:
		g.HasEquals, g.Equals = true, somePairs(r, 5)
	default:
		g.HasSubset, g.Subset = true, somePairs(r, 5)
	}
	if r.IntN(4) == 0 {
		g.SourceARN = fmt.Sprintf("arn:aws:s3:::b%d", r.IntN(3))
	}
	return g
}

// A set finds what looking at every grant finds, whatever was added and removed.
func TestGrantSet(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for _, size := range []int{0, 1, 2, 5, 40, 1000} {
		var list []Grant
		for range size {
			list = append(list, someGrant(r))
		}
		set := NewGrantSet(slices.Clone(list))
		for step := range 3 * recentMax {
			for range 8 {
				c := &Context{}
				if p := somePairs(r, 5); len(p) > 0 || r.IntN(2) == 0 {
					c.EncryptionContext = pairList(p)
				}
				if r.IntN(2) == 0 {
					c.SourceArn = fmt.Appendf(nil, "arn:aws:s3:::b%d", r.IntN(4))
				}
				op := Operations(1 << r.IntN(len(operationNames)))
				got := ""
				if g := set.find(op, c); g != nil {
					got = g.ID
				}
				if want := naive(list, op, c); got != want {
					t.Fatalf("seed %d, size %d, step %d, %v of %d grants: found %q, want %q", seed, size, step, op.Names(), len(list), got, want)
				}
			}
			switch {
			case len(list) > 0 && r.IntN(2) == 0:
				i := r.IntN(len(list))
				before := set
				set = set.Without(list[i].ID)
				if set.Without(list[i].ID) != set {
					t.Fatal("a grant is removed twice")
				}
				if before.Len() != len(list) {
					t.Fatal("a set changed")
				}
				list = slices.Delete(list, i, i+1)
			default:
				g := someGrant(r)
				list, set = append(list, g), set.With(g)
				if set.With(g) != set {
					t.Fatal("a grant is added twice")
				}
			}
			if set.Len() != len(list) {
				t.Fatalf("seed %d, size %d, step %d: %d grants, want %d", seed, size, step, set.Len(), len(list))
			}
		}
	}
}

// A grant that was removed can be added again: what is told twice must end as it was told last.
func TestGrantSetAgain(t *testing.T) {
	var list []Grant
	for i := range 400 {
		list = append(list, Grant{ID: fmt.Sprintf("%064x", i), Operations: OpDecrypt})
	}
	set := NewGrantSet(slices.Clone(list)).Without(list[0].ID)
	if g := set.find(OpDecrypt, &Context{}); g == nil || g.ID != list[1].ID {
		t.Errorf("%+v", g)
	}
	set = set.With(list[0])
	if g := set.find(OpDecrypt, &Context{}); g == nil || g.ID != list[0].ID || set.Len() != 400 {
		t.Errorf("%+v of %d", g, set.Len())
	}
	if set = set.Without(list[0].ID); set.Len() != 399 || set.find(OpDecrypt, &Context{}).ID != list[1].ID {
		t.Errorf("%d", set.Len())
	}
	var none *GrantSet
	if none.Len() != 0 || none.Without("x") != nil || none.find(OpDecrypt, &Context{}) != nil || none.Size() != 0 || NewGrantSet(nil) != nil {
		t.Error("nil is not the empty set")
	}
	if one := none.With(list[0]); one.Len() != 1 || one.Without(list[0].ID) != nil {
		t.Error("the last grant stays")
	}
}

// manyGrants are n grants that are each constrained to another encryption context.
func manyGrants(n int, subset bool) []Grant {
	list := make([]Grant, n)
	for i := range list {
		g := &list[i]
		*g = Grant{ID: strings.Clone(fmt.Sprintf("%064x", i)), Operations: OpDecrypt | OpGenerateDataKey | OpDescribeKey}
		context := []Pair{{Key: []byte("purpose"), Value: []byte("backup")}, {Key: []byte("tenant"), Value: fmt.Appendf(nil, "t-%08d", i)}}
		if subset {
			g.HasSubset, g.Subset = true, context
		} else {
			g.HasEquals, g.Equals = true, context
		}
	}
	return list
}

// A set is no larger than its grants say and GrantSetSlack, however it was made: from the store, or by changes.
func TestGrantSizeBoundsTheSet(t *testing.T) {
	every := Operations(0)
	for _, name := range operationNames {
		every |= ParseOperation(name)
	}
	lists := map[string][]Grant{"equals": manyGrants(3000, false), "subset": manyGrants(3000, true), "free": manyGrants(3000, false), "sourced": manyGrants(3000, true)}
	for i := range lists["free"] {
		g, sourced := &lists["free"][i], &lists["sourced"][i]
		g.HasEquals, g.Equals, g.Operations = false, nil, every
		sourced.SourceARN, sourced.Operations = fmt.Sprintf("arn:aws:s3:::bucket-%d", i), every
	}
	for name, list := range lists {
		sum := func(list []Grant) (n int64) {
			for i := range list {
				n += list[i].Size()
			}
			return n
		}
		const fixed = 64 << 10 // what belongs to no grant
		if got, most := NewGrantSet(slices.Clone(list)).Size(), sum(list)+fixed; got > most {
			t.Errorf("%s: %d bytes, want at most %d", name, got, most)
		}
		var set *GrantSet
		for i, g := range list {
			set = set.With(g)
			if got, most := set.Size(), sum(list[:i+1])+fixed; i%97 == 0 && got > most {
				t.Errorf("%s: %d bytes with %d grants, want at most %d", name, got, i+1, most)
			}
		}
		largest := list[0].Size()
		for i, g := range list[:2*recentMax] { // those that are gone take room until the set is made anew
			set = set.Without(g.ID)
			if got, most := set.Size(), sum(list[i+1:])+recentMax*largest+fixed; got > most {
				t.Errorf("%s: %d bytes without %d grants, want at most %d", name, got, i+1, most)
			}
		}
	}
	if slack := int64(recentMax*(kmsapi.BodyMax+(3<<10)) + 1<<20); slack > GrantSetSlack {
		t.Errorf("the slack is %d, less than %d", GrantSetSlack, slack)
	}
}

// How many grants are looked at does not depend on how many there are. A pair that all have leads nowhere.
func TestGrantSetLooksAtFew(t *testing.T) {
	for _, subset := range []bool{false, true} {
		set := NewGrantSet(manyGrants(5000, subset))
		longest, n := 0, 0
		for i, e := range set.base.entries {
			if e.operations&contextFree != 0 {
				continue
			}
			if i > 0 && e.key != set.base.entries[i-1].key {
				n = 0
			}
			n++
			longest = max(longest, n)
		}
		if longest != 1 {
			t.Errorf("subset %v: %d grants under one key", subset, longest)
		}
	}
	// Every pair is common: they are spread evenly over the pairs. Four values of six keys, all combinations: 4096 grants under 24 pairs.
	var list []Grant
	for i := range 4096 {
		g := Grant{ID: fmt.Sprintf("%064x", i), Operations: OpDecrypt, HasSubset: true}
		for k := range 6 {
			g.Subset = append(g.Subset, Pair{Key: []byte{'a' + byte(k)}, Value: []byte{'0' + byte(i>>(2*k)&3)}})
		}
		list = append(list, g)
	}
	counts := map[uint64]int{}
	for _, e := range NewGrantSet(list).base.entries {
		counts[e.key]++
	}
	for key, n := range counts {
		if n > 2*4096/24 {
			t.Errorf("%d grants under %x", n, key)
		}
	}
	// The bits of need are drawn evenly enough to leave out most of those.
	sum := 0
	for _, e := range NewGrantSet(list).base.entries {
		sum += bits.OnesCount64(e.need)
	}
	if sum < 5*4096 {
		t.Errorf("%d bits of %d grants", sum, 4096)
	}
}

func TestGrantSetAllocations(t *testing.T) {
	c := &Context{EncryptionContext: pairList{{Key: []byte("purpose"), Value: []byte("backup")}, {Key: []byte("tenant"), Value: []byte("t-00000999")}}, SourceArn: []byte("arn:aws:s3:::b")}
	for _, subset := range []bool{false, true} {
		list := manyGrants(1001, subset)
		set := NewGrantSet(list[:1000]).With(list[1000]).Without(list[0].ID)
		if n := alloctest.Mallocs(1000, func() {
			if g := set.find(OpDecrypt, c); g == nil || !bytes.HasSuffix([]byte(g.ID), []byte("3e7")) {
				panic("not found")
			}
		}); n != 0 {
			t.Errorf("subset %v: %d allocations in 1000 searches", subset, n)
		}
	}
}

// Size counts what the set keeps alive.
func TestGrantSetSize(t *testing.T) {
	const n = 20_000
	for _, subset := range []bool{false, true} {
		heap := func() int64 {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		before := heap()
		set := NewGrantSet(manyGrants(n, subset))
		used := heap() - before
		if size := set.Size(); size < used || size > used*3/2 {
			t.Errorf("subset %v: %d bytes are counted, %d used", subset, size, used)
		}
		t.Logf("subset %v: %d bytes a grant, counted %d", subset, used/n, set.Size()/n)
		runtime.KeepAlive(set)
	}
}
