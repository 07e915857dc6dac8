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
	position atomic.Uint64 // records seen
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

// Observe takes the next audit record. One that it took before may come again, as long as those after it do too.
func (x *Index) Observe(record []byte) {
	var e event
	if scan(record, &e) {
		for _, n := range e.keys[:e.n] {
			x.put(n, e.use)
		}
	}
	x.position.Add(1)
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

// Position is how many records the index has seen: the number, from 0, of the one it wants next.
func (x *Index) Position() uint64 { return x.position.Load() }

// Missed says that the records up to position, the last of them from before at, are not there any more. Start moves up to at.
func (x *Index) Missed(position uint64, at time.Time) {
	x.start.Store(max(x.start.Load(), at.Unix()))
	x.position.Store(position)
}

// Restart empties an index whose records are not those of the log, which is complete since start. The next record is the log's first.
func (x *Index) Restart(start time.Time) { x.reset(start) }
