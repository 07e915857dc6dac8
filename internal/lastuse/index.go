package lastuse

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Max is how many keys an Index keeps: about 100 MB.
const Max = 1_000_000

const shardCount = 64

// Use is the last use of a key.
type Use struct {
	Seconds            int64 // since 1970
	Operation          Operation
	EventID, RequestID [16]byte // of the audit record, UUIDs
}

// Index is the last use of each key. Observe is for one goroutine; Last, Save and the rest for any.
type Index struct {
	path     string
	max      int
	position atomic.Uint64 // of the next record in the log
	saved    atomic.Uint64 // position of the file
	start    atomic.Int64  // seconds since 1970
	size     atomic.Int64  // keys
	saving   sync.Mutex
	regions  atomic.Pointer[[]string] // that keys are of; more come, at the end, by Observe alone
	shards   [shardCount]shard

	merging sync.Mutex              // of Merge
	feeds   atomic.Pointer[[]*Feed] // who is told of uses
}

// regionsMax bounds the Regions that a log has keys of: names have one byte for them.
const regionsMax = 255

// name is a key. Multi-Region keys have their ID in every Region, and are used in each.
type name struct {
	account keyid.Account
	id      keyid.ID
	region  uint8 // in Index.regions
}

type shard struct {
	mu sync.RWMutex
	m  map[name]Use
}

func newIndex(path string, start time.Time) *Index {
	x := &Index{path: path, max: Max}
	x.feeds.Store(new([]*Feed))
	x.reset(start)
	return x
}

func (x *Index) reset(start time.Time) {
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		s.m = map[name]Use{}
		s.mu.Unlock()
	}
	x.regions.Store(new([]string))
	x.position.Store(0)
	x.size.Store(0)
	x.start.Store(start.Unix())
}

func (x *Index) shard(n *name) *shard { return &x.shards[n.id.UUID[15]%shardCount] }

// Observe takes an audit record and its index in the log (audit.Config.Observe). One that it took before may come again, as long as those after
// it do too. Where records between are missing, because the log has removed them, Start moves up.
func (x *Index) Observe(index uint64, record []byte) {
	if next := x.position.Load(); next == 0 || index > next {
		x.begin(record, next == 0)
	}
	var e event
	if scan(record, &e) {
		for i := range e.keys[:e.n] {
			if region, ok := x.regionOf(e.keys[i].Region); ok {
				x.put(name{e.keys[i].Account, e.keys[i].ID, region}, e.use)
			}
		}
	}
	x.position.Store(index + 1)
}

// regionOf is where a Region is in x.regions, put there unless it is; false where there is no more room.
func (x *Index) regionOf(region []byte) (uint8, bool) {
	regions := *x.regions.Load()
	for i := range regions {
		if regions[i] == string(region) {
			return uint8(i), true
		}
	}
	if len(regions) >= regionsMax {
		return 0, false
	}
	more := append(slices.Clone(regions), string(region))
	x.regions.Store(&more)
	return uint8(len(regions)), true
}

// begin says that every use is known from a record on; first: it is the first of all.
func (x *Index) begin(record []byte, first bool) {
	at, _, ok := timeOf(record)
	switch {
	case !ok: // a record of another kind
		x.start.Store(max(x.start.Load(), time.Now().Unix()))
	case first:
		x.start.Store(at)
	default:
		x.start.Store(max(x.start.Load(), at))
	}
}

func (x *Index) put(n name, u Use) {
	s := x.shard(&n)
	s.mu.Lock()
	before := len(s.m)
	s.m[n] = u
	grown := len(s.m) > before
	s.mu.Unlock()
	for _, f := range *x.feeds.Load() {
		f.add(n)
	}
	if grown && x.size.Add(1) > int64(x.max) {
		x.forget()
	}
}

// forget makes room: the tenth that was not used for the longest time goes.
func (x *Index) forget() {
	var all []int64
	for i := range x.shards {
		for _, u := range x.shards[i].m { // this goroutine alone writes
			all = append(all, u.Seconds)
		}
	}
	slices.Sort(all)
	newest := all[len(all)/10]
	x.start.Store(max(x.start.Load(), newest+1))
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		for n, u := range s.m {
			if u.Seconds <= newest {
				delete(s.m, n)
				x.size.Add(-1)
			}
		}
		s.mu.Unlock()
	}
}

// Last is the last use of a key, false if there was none since Start.
func (x *Index) Last(region string, a keyid.Account, id keyid.ID) (Use, bool) {
	i := slices.Index(*x.regions.Load(), region)
	if i < 0 {
		return Use{}, false
	}
	n := name{a, id, uint8(i)}
	s := x.shard(&n)
	s.mu.RLock()
	defer s.mu.RUnlock()
	u, ok := s.m[n]
	return u, ok
}

// Start is since when every use is known.
func (x *Index) Start() time.Time { return time.Unix(x.start.Load(), 0).UTC() }

// Position is the index in the log of the record that it wants next (audit.Config.ObserveFrom).
func (x *Index) Position() uint64 { return x.position.Load() }
