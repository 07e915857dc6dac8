package cache

import (
	"math/bits"
	"sync/atomic"
)

// table finds the entries that are kept, by name. It is a hash table with chains and as many buckets as there are entries when the cache is full, so
// that it never grows. Readers take no lock: one that stands on an entry while it is unlinked walks on from there.
type table[V any] struct {
	buckets []atomic.Pointer[entry[V]]
	shift   uint // to a bucket's number; the low bits of a hash choose the epoch's slot
}

func (t *table[V]) init(entries int64) {
	width := bits.Len64(uint64(max(entries, 256) - 1))
	t.buckets = make([]atomic.Pointer[entry[V]], 1<<width)
	t.shift = uint(64 - width)
}

func (t *table[V]) bucket(hash uint64) *atomic.Pointer[entry[V]] { return &t.buckets[hash>>t.shift] }

func (t *table[V]) find(hash uint64, name []byte) *entry[V] {
	for e := t.bucket(hash).Load(); e != nil; e = e.next.Load() {
		if e.hash == hash && e.name == string(name) {
			return e
		}
	}
	return nil
}

func (t *table[V]) link(e *entry[V]) {
	b := t.bucket(e.hash)
	e.next.Store(b.Load())
	b.Store(e)
}

func (t *table[V]) unlink(e *entry[V]) {
	for p := t.bucket(e.hash); ; {
		x := p.Load()
		switch x {
		case nil:
			return
		case e:
			p.Store(e.next.Load())
			return
		}
		p = &x.next
	}
}

func (t *table[V]) all() (list []*entry[V]) {
	for i := range t.buckets {
		for e := t.buckets[i].Load(); e != nil; e = e.next.Load() {
			list = append(list, e)
		}
	}
	return list
}
