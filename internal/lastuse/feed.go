package lastuse

import (
	"slices"
	"sync"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Entry is the last use of one key.
type Entry struct {
	Region  string
	Account keyid.Account
	ID      keyid.ID
	Use
}

// Feed tells of keys that were used, each once however often it was. Safe for concurrent use.
type Feed struct {
	x  *Index
	mu sync.Mutex
	m  map[name]struct{} // used since they were told of
}

// Feed makes one, which tells of all keys first.
func (x *Index) Feed() *Feed {
	f := &Feed{x: x, m: map[name]struct{}{}}
	for {
		old := x.feeds.Load()
		more := append(slices.Clone(*old), f)
		if x.feeds.CompareAndSwap(old, &more) {
			break
		}
	}
	f.All()
	return f
}

func (f *Feed) add(n name) {
	f.mu.Lock()
	f.m[n] = struct{}{}
	f.mu.Unlock()
}

// All has the feed tell of all keys again.
func (f *Feed) All() {
	for i := range f.x.shards {
		s := &f.x.shards[i]
		s.mu.RLock()
		f.mu.Lock()
		for n := range s.m {
			f.m[n] = struct{}{}
		}
		f.mu.Unlock()
		s.mu.RUnlock()
	}
}

// Pending reports whether there is something to tell.
func (f *Feed) Pending() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.m) > 0
}

// Next returns the last uses of at most most keys, and what puts them back where nobody could be told.
func (f *Feed) Next(most int) (entries []Entry, back func()) {
	var names []name
	f.mu.Lock()
	for n := range f.m {
		if len(names) == most {
			break
		}
		names = append(names, n)
		delete(f.m, n)
	}
	f.mu.Unlock()
	regions := *f.x.regions.Load()
	for _, n := range names {
		s := f.x.shard(&n)
		s.mu.RLock()
		u, ok := s.m[n]
		s.mu.RUnlock()
		if ok && int(n.region) < len(regions) {
			entries = append(entries, Entry{regions[n.region], n.account, n.id, u})
		}
	}
	return entries, func() {
		for _, n := range names {
			f.add(n)
		}
	}
}

// Merge takes what another index tells, where it is newer. An index is filled by Merge or by Observe.
func (x *Index) Merge(entries []Entry) {
	x.merging.Lock()
	defer x.merging.Unlock()
	for i := range entries {
		e := &entries[i]
		region, ok := x.regionOf([]byte(e.Region))
		if !ok || !e.Operation.Valid() {
			continue
		}
		n := name{e.Account, e.ID, region}
		s := x.shard(&n)
		s.mu.RLock()
		old, known := s.m[n]
		s.mu.RUnlock()
		if known && old.Seconds > e.Seconds || known && old == e.Use {
			continue
		}
		x.put(n, e.Use)
		x.position.Add(1) // that there is something to save
	}
}
