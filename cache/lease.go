package cache

import (
	"sync/atomic"

	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/planted"
)

// Lease is one use of a value, from Get or Load until Release. The zero Lease is one of nothing. A lease belongs to one goroutine at a time
// and is not copied while it is held.
type Lease[V any] struct{ entry *entry[V] }

// Value is the value, nil for a name that has none and after Release. It must not be used after Release.
func (l *Lease[V]) Value() *V {
	if l.entry == nil {
		return nil
	}
	invariants.Check(!invariants.Enabled || l.entry.word.Load()&dead == 0, "a lease is used after its release")
	return l.entry.value
}

// Mark tells afterwards whether what was lent is still what Get would lend: it is as small as it looks, holds nothing, and can be kept beyond Release.
type Mark struct {
	counter *atomic.Uint64
	epoch   uint64
}

// Mark is that of what is lent. That of nothing is always current.
func (l *Lease[V]) Mark() Mark {
	if l.entry == nil {
		return Mark{}
	}
	return Mark{l.entry.cache.epoch(l.entry.hash), l.entry.epoch}
}

// Current reports whether nothing was invalidated of the name since it was lent, or of another one in its slot.
func (m Mark) Current() bool {
	return m.counter == nil || m.counter.Load() == m.epoch || planted.Is(planted.EpochIgnored)
}

// Release ends the use. A second call does nothing.
func (l *Lease[V]) Release() {
	if e := l.entry; e != nil {
		l.entry = nil
		e.release()
	}
}

// entry is what is known of one name. Everything but next, word and kept is constant while anybody holds it.
type entry[V any] struct {
	next  atomic.Pointer[entry[V]] // in its bucket
	word  atomic.Uint64            // users, dead, hits: below
	cache *Cache[V]
	in    *bounded[V] // whose bound it counts against; nil if it cannot be kept
	hash  uint64
	epoch uint64
	cost  int64
	name  string
	value *V   // nil: the name has none
	kept  bool // guarded by Cache.mu: in the table, and the cache is one of the users
}

// An entry's word. An entry dies when its users are down to none, by one compare-and-swap, whose winner destroys the value. Until then it
// may be acquired, even at zero: then it is the new user who tries to end it. Hits overflow out of the word.
const (
	users  = 1<<31 - 1 // mask
	dead   = 1 << 31
	oneHit = 1 << 32
)

// acquire adds a user and returns how often that was done; false for an entry that is dead.
func (e *entry[V]) acquire() (hits uint32, ok bool) {
	w := e.word.Add(oneHit + 1)
	if w&dead != 0 {
		e.word.Add(^uint64(0))
		return 0, false
	}
	return uint32(w / oneHit), true
}

// release takes a user away.
func (e *entry[V]) release() {
	w := e.word.Add(^uint64(0))
	invariants.Check((w+1)&users != 0 && w&dead == 0, "an entry has more releases than users")
	if w&users != 0 || !e.word.CompareAndSwap(w, w|dead) {
		return
	}
	value := e.value
	e.value = nil // ristretto may still point at the entry
	if value != nil && e.cache.destroy != nil {
		e.cache.destroy(value)
	}
}
