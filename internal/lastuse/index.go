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
	shards   [shardCount]shard
}

type shard struct {
	mu sync.RWMutex
	m  map[name]Use
}

func newIndex(path string, start time.Time) *Index {
	x := &Index{path: path, max: Max}
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
		for _, n := range e.keys[:e.n] {
			x.put(n, e.use)
		}
	}
	x.position.Store(index + 1)
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
func (x *Index) Last(a keyid.Account, id keyid.ID) (Use, bool) {
	n := name{a, id}
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
