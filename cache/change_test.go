package cache

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// list is an immutable list, of which nil is the empty one, as a change of it is published.
type list []int

func (l *list) with(n int) *list {
	if l == nil {
		return &list{n}
	}
	if slices.Contains(*l, n) {
		return l
	}
	next := append(slices.Clone(*l), n)
	return &next
}

func with(c *Cache[list], name string, n int) {
	c.Change([]byte(name), func(old *list) (*list, int64, error) { return old.with(n), 8, nil })
}

func TestChange(t *testing.T) {
	c := newCache[list](t, 1<<20)
	with(c, "a", 1)
	if v := get(c, "a"); v != nil || c.Loads() != 0 {
		t.Errorf("a change of what is not known is known: %v", v)
	}
	// Of a name that has no value.
	if _, err := load(c, "a", func() (*list, int64, error) { return nil, 0, nil }); err != nil {
		t.Fatal(err)
	}
	with(c, "a", 1)
	with(c, "a", 2)
	with(c, "a", 2)
	fails := func() (*list, int64, error) { return nil, 0, errors.New("loaded") }
	if v, err := load(c, "a", fails); err != nil || v == nil || !slices.Equal(*v, []int{1, 2}) {
		t.Errorf("%v %v", v, err)
	}
	// To no value.
	c.Change([]byte("a"), func(*list) (*list, int64, error) { return nil, 0, nil })
	if l, ok := c.Get([]byte("a")); !ok || l.Value() != nil {
		t.Error("that a name has no value any more is not known")
	}
	// What was invalidated is not changed, but forgotten.
	c.Invalidate([]byte("a"))
	with(c, "a", 1)
	if v := get(c, "a"); v != nil {
		t.Errorf("%v", *v)
	}
	keep(t, c, "a", list{1})
	c.Change([]byte("a"), func(*list) (*list, int64, error) { return nil, 0, errors.New("no") })
	if l, ok := c.Get([]byte("a")); ok {
		t.Errorf("after a change that failed there is %v", l.Value())
	}
}

// A change that comes while a name is loaded is in what later callers get, whether the load saw it or not, and nothing is loaded twice.
func TestChangeWhileLoading(t *testing.T) {
	for _, seen := range []bool{false, true} {
		c := newCache[list](t, 1<<20)
		started, goOn, changed := make(chan struct{}), make(chan struct{}), make(chan struct{})
		var loaded sync.WaitGroup
		loaded.Go(func() {
			_, err := load(c, "a", func() (*list, int64, error) {
				close(started)
				<-goOn
				if seen {
					return &list{1, 2}, 8, nil
				}
				return &list{1}, 8, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-started
		go func() {
			defer close(changed)
			with(c, "a", 2)
		}()
		// The change is on its way when the load of before is not joined any more.
		for c.loads.Load() < 2 {
			if l, ok := c.Get([]byte("a")); ok {
				t.Fatalf("%v", l.Value())
			}
		}
		var later sync.WaitGroup
		later.Go(func() {
			if v, err := load(c, "a", func() (*list, int64, error) { return nil, 0, errors.New("loaded") }); err != nil || !slices.Equal(*v, []int{1, 2}) {
				t.Errorf("seen %v: %v %v", seen, v, err)
			}
		})
		close(goOn)
		<-changed
		if v := get(c, "a"); v == nil || !slices.Equal(*v, []int{1, 2}) {
			t.Errorf("seen %v: %v", seen, v)
		}
		loaded.Wait()
		later.Wait()
	}
}

// Whoever asks after a change has it, whatever loads, changes and invalidations are under way. truth is the store's.
func TestChangeRaces(t *testing.T) {
	c := newCache[list](t, 1<<20)
	var truth atomic.Int64
	names := []string{"a", "b"}
	var done atomic.Bool
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for i := 0; !done.Load(); i++ {
				at := truth.Load() // what was published before we ask
				v, err := load(c, names[0], func() (*list, int64, error) {
					var l *list
					for n := range truth.Load() + 1 { // it may see what is not published yet
						l = l.with(int(n))
					}
					return l, 8, nil
				})
				if err != nil || v == nil || len(*v) < int(at) {
					t.Errorf("after %d changes: %v, %v", at, v, err)
					return
				}
				if i%7 == 0 {
					c.Invalidate([]byte(names[1]))
				}
			}
		})
	}
	for n := range 300 {
		with(c, names[0], n)
		truth.Store(int64(n + 1))
		if n%50 == 49 {
			c.Invalidate([]byte(names[0]))
		}
	}
	done.Store(true)
	readers.Wait()
}

// Every value that a change replaces is destroyed once, when nobody uses it any more.
func TestChangeDestroys(t *testing.T) {
	w := newWorld(t, 1<<20)
	l := w.lend("a", 8)
	w.Change([]byte("a"), func(old *resource) (*resource, int64, error) { return w.make("a", 8) })
	if l.Value().destroyed.Load() != 0 {
		t.Error("a value is destroyed while it is lent")
	}
	old := l.Value()
	w.done(l)
	w.values.Wait()
	if old.destroyed.Load() != 1 {
		t.Errorf("destroyed %d times", old.destroyed.Load())
	}
}
