package cache

import (
	"fmt"
	"sync/atomic"

	"github.com/dgraph-io/ristretto/v2"
)

// entryCost is what an entry costs besides its value and its name, in bytes: the entry, its bucket, and ristretto's two maps and counters
// (TestEntryCost). usualSize is what a value is taken to have where a number of entries has to be guessed.
const (
	entryCost = 320
	usualSize = 80
)

// Ristretto decides what stays; it finds nothing. It hears of every load and of every hitSample-th hit of an entry, out of a credit that loads
// fill, because it allocates a buffer for every usesBuffered uses it hears of: hits alone, without loads, allocate nothing. That is when
// nothing is evicted, so it misses nothing.
const (
	hitSample    = 64
	usesBuffered = 128
	creditOfLoad = 64
	creditMax    = 1024
)

// bounded is ristretto, by the hash of the name alone: values with equal hashes replace each other, and the table tells names apart. So every
// value that goes in comes out through OnExit: ristretto loses one silently only where its second hash differs, and it has none here.
type bounded[V any] struct {
	*ristretto.Cache[uint64, *entry[V]]
	max  int64
	held atomic.Int64 // cost of what is kept: what ristretto holds and what waits in its buffer
}

func newBounded[V any](bytesMax, usual int64, exit func(*entry[V])) (*bounded[V], error) {
	if bytesMax < 1<<16 {
		return nil, fmt.Errorf("%d is less than 65536", bytesMax)
	}
	r, err := ristretto.NewCache(&ristretto.Config[uint64, *entry[V]]{
		NumCounters: max(1000, bytesMax/(entryCost+usual)*10), // its advice: ten for every entry that fits; half a byte each
		MaxCost:     bytesMax,
		BufferItems: usesBuffered,
		KeyToHash:   func(hash uint64) (uint64, uint64) { return hash, 0 },
		OnExit:      exit,
		// Our costs count the overhead already.
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, err
	}
	return &bounded[V]{Cache: r, max: bytesMax}, nil
}

// keep makes the cache a user of e and offers it to ristretto. It keeps nothing that is invalid by now.
func (c *Cache[V]) keep(e *entry[V]) {
	if e.in == nil || e.cost > e.in.max {
		return
	}
	c.open.RLock()
	defer c.open.RUnlock()
	// Ristretto evicts when it takes an entry out of its buffer. So that the buffer does not undo the bound, whoever finds much in it waits.
	if e.in.held.Load() > e.in.max+e.in.max/8 {
		e.in.Wait()
	}
	c.mu.Lock()
	if e.epoch != c.epoch(e.hash).Load() {
		c.mu.Unlock()
		return
	}
	old := c.table.find(e.hash, []byte(e.name))
	replaced := c.unkeep(old)
	e.word.Add(1)
	e.kept = true
	e.in.held.Add(e.cost)
	c.table.link(e)
	c.mu.Unlock()

	if replaced {
		if old.in != e.in {
			old.in.Del(old.hash)
		}
		old.release()
	}
	c.credit.Store(min(c.credit.Load()+creditOfLoad, creditMax))
	e.in.Get(e.hash) // the load is a use
	// An Invalidate in between leaves a dead entry with ristretto, counted until it is evicted or replaced.
	if !e.in.Set(e.hash, e, e.cost) { // its buffer is full, or it is closed
		c.drop(e)
	}
}

// unkeep takes e out of the table and reports whether it was in; then the caller releases the cache's use. It needs mu.
func (c *Cache[V]) unkeep(e *entry[V]) bool {
	if e == nil || !e.kept {
		return false
	}
	e.kept = false
	e.in.held.Add(-e.cost)
	c.table.unlink(e)
	return true
}

// drop gives up e: ristretto has evicted, rejected, replaced or deleted it. It may be told so of what was never there, or twice.
func (c *Cache[V]) drop(e *entry[V]) {
	c.mu.Lock()
	kept := c.unkeep(e)
	c.mu.Unlock()
	if kept {
		e.release()
	}
}

// forget has ristretto give back the room of e.
func (c *Cache[V]) forget(e *entry[V]) {
	c.open.RLock()
	defer c.open.RUnlock()
	e.in.Del(e.hash)
}

// used tells ristretto of a hit.
func (c *Cache[V]) used(e *entry[V]) {
	if c.credit.Load() <= 0 || !c.open.TryRLock() {
		return
	}
	defer c.open.RUnlock()
	c.credit.Add(-1)
	e.in.Get(e.hash)
}
