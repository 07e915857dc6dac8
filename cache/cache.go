// Package cache keeps immutable values by name, bounded by bytes, over ristretto v2. It knows nothing of what it stores.
//
// What makes it safe to use for rights that can be taken away is not ristretto but the epochs beside it: a fixed table of counters, one
// per xxhash slot of the name. A value remembers its slot's counter as it was before the value was loaded; Invalidate adds one; Get
// returns a value only while the two agree. So once Invalidate has returned, no later Get returns what was loaded before, in whatever
// order ristretto's buffers are drained, and a load that was under way stores a value that is dead on arrival. Two names that share a
// slot cost each other a reload, nothing else.
//
// Loads of one name in one epoch are shared (single flight). A caller that comes after an Invalidate never joins a load from before it.
// The package starts ristretto's goroutines; Close ends them.
package cache

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"strconv"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/dgraph-io/ristretto/v2"
	"golang.org/x/sync/singleflight"
)

// slots is the size of the epoch table, a power of two: 512 KiB of counters.
const slots = 1 << 16

// entryCost is what an entry costs besides its value, in bytes: ristretto's item, the entry struct and the hash tables' share.
const entryCost = 160

// hits is how many reads ristretto collects before it counts them: it allocates a buffer of that many words each time. Its own advice, 64,
// is an allocation for every 64th read; the price of more is that its idea of what is popular lags by so many reads on each processor.
const hits = 1024

// Cache maps names to values of type *V. Methods are safe for concurrent use.
type Cache[V any] struct {
	store   *ristretto.Cache[[]byte, entry[V]]
	seed    uint64 // of the hash that chooses slots: names are chosen by clients, who must not be able to aim at a slot
	epochs  [slots]atomic.Uint64
	flights singleflight.Group
	loads   atomic.Uint64
}

type entry[V any] struct {
	epoch uint64
	value *V
}

// New makes a cache that holds at most bytesMax bytes, counted as the sum of the costs given to Load plus a fixed overhead per entry.
func New[V any](bytesMax int64) (*Cache[V], error) {
	if bytesMax < 1<<16 {
		return nil, fmt.Errorf("cache: bytesMax is %d, at least 65536 is needed", bytesMax)
	}
	// Ristretto advises ten counters for every entry that fits; half a byte each.
	counters := max(1000, bytesMax/(entryCost+240)*10)
	store, err := ristretto.NewCache(&ristretto.Config[[]byte, entry[V]]{
		NumCounters: counters,
		MaxCost:     bytesMax,
		BufferItems: hits,
		// Our costs count the overhead already.
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	return &Cache[V]{store: store, seed: newSeed()}, nil
}

func newSeed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (c *Cache[V]) epoch(name []byte) *atomic.Uint64 {
	var d xxhash.Digest
	d.ResetWithSeed(c.seed)
	_, _ = d.Write(name) // it cannot fail
	return &c.epochs[d.Sum64()%slots]
}

// Get returns the value stored under name in the present epoch, or nil. The caller compares the value's own identity with what it asked
// for: names are told apart by a 128-bit hash.
func (c *Cache[V]) Get(name []byte) *V {
	e, ok := c.store.Get(name)
	if !ok || e.epoch != c.epoch(name).Load() {
		return nil
	}
	return e.value
}

// Load calls load for the value of name and keeps it; callers who ask at the same time share one call. Errors are not kept. load returns
// the value's size in bytes, counted against the bound. The value may already be invalid when Load returns; it was valid at some time
// after Load was called.
func (c *Cache[V]) Load(name []byte, load func() (*V, int64, error)) (*V, error) {
	epoch := c.epoch(name).Load()
	flight := strconv.FormatUint(epoch, 16) + " " + string(name)
	v, err, _ := c.flights.Do(flight, func() (any, error) {
		c.loads.Add(1)
		value, size, err := load()
		if err != nil {
			return nil, err
		}
		c.store.Set([]byte(flight[len(flight)-len(name):]), entry[V]{epoch, value}, size+entryCost)
		return value, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*V), nil
}

// Invalidate makes every value of name that was loaded until now unreachable: when it returns, no later Get or Load yields one.
func (c *Cache[V]) Invalidate(name []byte) {
	c.epoch(name).Add(1)
	c.store.Del(name)
}

// Loads counts calls of load functions since New.
func (c *Cache[V]) Loads() uint64 { return c.loads.Load() }

// Close ends the cache's goroutines. No method may be called after it.
func (c *Cache[V]) Close() { c.store.Close() }
