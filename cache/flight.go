package cache

import "errors"

// errAbandoned is what those get who share a load that panicked.
var errAbandoned = errors.New("cache: the load function did not return")

// flight is one call of a load function.
type flight[V any] struct {
	name    string
	hash    uint64
	epoch   uint64
	sharers int // guarded by Cache.mu: callers who wait besides the one who loads

	landed chan struct{} // closed when entry and err are set
	entry  *entry[V]     // held once by each of them; nil with an error
	err    error
}

// fly loads, and has the result kept if it is still good.
func (c *Cache[V]) fly(f *flight[V], load func() (*V, int64, error)) {
	defer c.land(f)
	c.loads.Add(1)
	f.err = errAbandoned
	value, size, err := load()
	if f.err = err; err != nil {
		return
	}
	e := &entry[V]{
		cache: c, in: c.values, hash: f.hash, epoch: f.epoch, name: f.name, value: value, cost: size + int64(len(f.name)) + entryCost,
	}
	if value == nil {
		e.in = c.absent
	}
	// The first user is the caller. Hits begin anywhere, so that not every entry's first is the sampled one.
	e.word.Store(f.hash%hitSample*oneHit + 1)
	f.entry = e
	c.keep(e)
}

// land gives every sharer a use of the entry. Nobody joins afterwards.
func (c *Cache[V]) land(f *flight[V]) {
	c.mu.Lock()
	if c.flights[f.name] == f { // else a flight of a later epoch
		delete(c.flights, f.name)
	}
	if f.entry != nil {
		f.entry.word.Add(uint64(f.sharers))
	}
	c.mu.Unlock()
	close(f.landed)
}
