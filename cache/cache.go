// Package cache keeps values by name, bounded by bytes, and lends them out; a value may own something that has to be destroyed. It knows
// nothing of what it stores.
//
//	cache.go    the cache: Get, Load, Invalidate, Change, InvalidateAll
//	lease.go    entries and who holds them; when a value is destroyed
//	table.go    where Get looks, without a lock
//	keep.go     what stays: ristretto's admission and eviction, the bound
//	flight.go   loads that callers share
//
// Leases. Get and Load lend a value until Release. The cache itself holds each value it keeps as one more user, and gives it up when the
// value is evicted, rejected, replaced, invalidated or the cache is closed. Whoever lets go last destroys the value: never while it is in
// use, never twice.
//
// Epochs make it safe to use for rights that can be taken away: a fixed table of counters, one per xxhash slot of the name. A value
// remembers its slot's counter as it was before the value was loaded; Invalidate adds one; Get returns a value only while the two agree. So
// once Invalidate has returned, no later Get returns what was loaded before, in whatever order ristretto's buffers are drained, and a load
// that was under way is not kept. Two names that share a slot cost each other a reload, nothing else.
//
// That a name has no value can be kept too, in the same epochs and within a bound of its own, so that guessed names push no value out.
//
// Loads of one name in one epoch are shared (single flight). A caller that comes after an Invalidate never joins a load from before it.
// The package starts ristretto's goroutines; Close ends them.
package cache

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/keyplane/keyplane/internal/planted"
)

// slots is the size of the epoch table, a power of two: 512 KiB of counters.
const slots = 1 << 16

// Cache maps names to values of type *V. Methods are safe for concurrent use.
type Cache[V any] struct {
	seed    uint64 // of the hash: names are chosen by clients, who must not be able to aim at a slot or a bucket
	epochs  [slots]atomic.Uint64
	destroy func(*V)
	loads   atomic.Uint64

	values *bounded[V]
	absent *bounded[V] // names without a value; nil if those are not kept
	credit atomic.Int64

	// open is held for reading around calls into ristretto, and for writing while it is closed. It is taken before mu.
	open sync.RWMutex
	// mu is never held while values are loaded or destroyed, nor during a call into ristretto, which calls back.
	mu      sync.Mutex
	table   table[V] // written under mu, read without
	flights map[string]*flight[V]
}

// New makes a cache that holds at most about bytesMax bytes of values, counted as the sum of the sizes given by load functions plus an
// overhead per entry, and absentMax bytes of names that have none, 0 for none.
//
// destroy, unless nil, is called once for each value that a load function returned, when nobody uses it any more, by whoever let go
// last, which may be a goroutine of the cache's. It must not call the cache.
func New[V any](bytesMax, absentMax int64, destroy func(*V)) (*Cache[V], error) {
	c := &Cache[V]{destroy: destroy, flights: map[string]*flight[V]{}}
	var seed [8]byte
	_, _ = rand.Read(seed[:])
	c.seed = binary.LittleEndian.Uint64(seed[:])
	var err error
	if c.values, err = newBounded[V](bytesMax, usualSize, c.drop); err != nil {
		return nil, fmt.Errorf("cache: bytesMax: %w", err)
	}
	if absentMax != 0 {
		if c.absent, err = newBounded[V](absentMax, 0, c.drop); err != nil {
			c.values.Close()
			return nil, fmt.Errorf("cache: absentMax: %w", err)
		}
	}
	c.table.init(bytesMax/(entryCost+usualSize) + absentMax/entryCost)
	return c, nil
}

func (c *Cache[V]) hash(name []byte) uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(c.seed)
	_, _ = d.Write(name) // it cannot fail
	return d.Sum64()
}

func (c *Cache[V]) epoch(hash uint64) *atomic.Uint64 { return &c.epochs[hash%slots] }

// Get lends what is known of name in the present epoch; false if nothing is. It allocates nothing.
func (c *Cache[V]) Get(name []byte) (Lease[V], bool) {
	hash := c.hash(name)
	e := c.table.find(hash, name)
	if e == nil || e.epoch != c.epoch(hash).Load() && !planted.Is(planted.EpochIgnored) {
		return Lease[V]{}, false
	}
	hits, ok := e.acquire()
	if !ok {
		return Lease[V]{}, false
	}
	if hits%hitSample == 0 {
		c.used(e)
	}
	return Lease[V]{e}, true
}

// Load is Get that calls load where nothing is known; callers who ask at the same time share one call. load returns the value and its size
// in bytes, counted against the bound, or nil for a name that has no value. Errors are not kept. The lease is good also where the value
// could not be kept. It may already be invalid when Load returns; it was valid at some time after Load was called.
func (c *Cache[V]) Load(name []byte, load func() (*V, int64, error)) (Lease[V], error) {
	hash := c.hash(name)
	c.mu.Lock()
	epoch := c.epoch(hash).Load()
	if e := c.table.find(hash, name); e != nil && e.epoch == epoch {
		if _, ok := e.acquire(); ok {
			c.mu.Unlock()
			return Lease[V]{e}, nil
		}
	}
	f := c.flights[string(name)]
	if f != nil && f.epoch == epoch {
		f.sharers++
		c.mu.Unlock()
		<-f.landed
		return Lease[V]{f.entry}, f.err
	}
	f = &flight[V]{name: string(name), hash: hash, epoch: epoch, landed: make(chan struct{})}
	c.flights[f.name] = f
	c.mu.Unlock()
	c.fly(f, load)
	return Lease[V]{f.entry}, f.err
}

// Invalidate makes everything known of name until now unreachable: when it returns, no later Get or Load yields it.
func (c *Cache[V]) Invalidate(name []byte) {
	hash := c.hash(name)
	c.epoch(hash).Add(1)
	c.mu.Lock()
	e := c.table.find(hash, name)
	kept := c.unkeep(e)
	c.mu.Unlock()
	if kept {
		c.forget(e)
		e.release()
	}
}

// InvalidateAll is Invalidate of every name: when it returns, no later Get or Load yields what was known until now.
func (c *Cache[V]) InvalidateAll() {
	for i := range c.epochs {
		c.epochs[i].Add(1)
	}
	for _, e := range c.table.all() {
		c.mu.Lock()
		kept := e.epoch != c.epoch(e.hash).Load() && c.unkeep(e)
		c.mu.Unlock()
		if kept {
			c.forget(e)
			e.release()
		}
	}
}

// Change is Invalidate by somebody who can tell what name has from what it had: change makes the one of the other, nil for none, and returns what
// load functions do. It is called where something is known of name or is being loaded; whoever loads name meanwhile waits for it. What is
// being loaded may have the change already, so making it twice must be making it once. Changes of one name are made one after the other,
// in the order in which they happened.
func (c *Cache[V]) Change(name []byte, change func(old *V) (*V, int64, error)) {
	hash := c.hash(name)
	c.mu.Lock()
	epoch := c.epoch(hash).Add(1)
	e, before := c.table.find(hash, name), c.flights[string(name)]
	known := false
	if e != nil && e.epoch == epoch-1 {
		_, known = e.acquire()
	}
	loading := !known && before != nil && before.epoch == epoch-1
	if loading {
		before.sharers++
	}
	var f *flight[V]
	if known || loading {
		f = &flight[V]{name: string(name), hash: hash, epoch: epoch, landed: make(chan struct{})}
		c.flights[f.name] = f
	}
	kept := c.unkeep(e)
	c.mu.Unlock()
	if kept {
		c.forget(e)
		e.release()
	}
	if f == nil {
		return
	}
	c.fly(f, func() (*V, int64, error) {
		old := Lease[V]{e}
		if loading {
			<-before.landed
			if before.err != nil {
				return nil, 0, before.err
			}
			old = Lease[V]{before.entry}
		}
		defer old.Release()
		return change(old.Value())
	})
	if f.entry != nil {
		f.entry.release()
	}
}

// Loads counts calls of load functions since New.
func (c *Cache[V]) Loads() uint64 { return c.loads.Load() }

// Close gives up every value and ends the cache's goroutines. Leases stay good until they are released. A closed cache keeps nothing, and
// Load still loads.
func (c *Cache[V]) Close() {
	c.open.Lock()
	defer c.open.Unlock()
	c.values.Close()
	if c.absent != nil {
		c.absent.Close()
	}
	// Ristretto has given everything back. This is for what it may have lost.
	for _, e := range c.table.all() {
		c.drop(e)
	}
}
