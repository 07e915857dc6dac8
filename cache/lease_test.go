package cache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyplane/keyplane/internal/invariants"
)

// resource is a value that knows its users.
type resource struct {
	name             string
	users, destroyed atomic.Int32
}

// world makes resources and destroys them.
type world struct {
	testing.TB
	*Cache[resource]
	made, destroyed atomic.Int64
}

func newWorld(t testing.TB, bytesMax int64) *world {
	t.Helper()
	w := &world{TB: t}
	var err error
	w.Cache, err = New(bytesMax, 1<<16, func(r *resource) {
		w.destroyed.Add(1)
		if r.destroyed.Add(1) != 1 {
			t.Errorf("%s is destroyed twice", r.name)
		}
		if n := r.users.Load(); n != 0 {
			t.Errorf("%s is destroyed while %d use it", r.name, n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.Close()
		if made, destroyed := w.made.Load(), w.destroyed.Load(); made != destroyed {
			t.Errorf("%d resources were made and %d destroyed", made, destroyed)
		}
	})
	return w
}

// use checks a lease that was just had, and counts it.
func (w *world) use(l *Lease[resource], name string) {
	r := l.Value()
	if r == nil {
		return
	}
	r.users.Add(1)
	if r.name != name || r.destroyed.Load() != 0 {
		w.Errorf("a lease of %s on %s, destroyed %d times", name, r.name, r.destroyed.Load())
	}
}

// done checks that the resource is still there, and lets it go.
func (w *world) done(l *Lease[resource]) {
	if r := l.Value(); r != nil {
		if r.destroyed.Load() != 0 {
			w.Errorf("%s is destroyed while a lease is held", r.name)
		}
		r.users.Add(-1)
	}
	l.Release()
	l.Release() // does nothing
	if l.Value() != nil {
		w.Error("a released lease has a value")
	}
}

func (w *world) make(name string, size int64) (*resource, int64, error) {
	w.made.Add(1)
	return &resource{name: name}, size, nil
}

// lend loads name and returns the lease.
func (w *world) lend(name string, size int64) *Lease[resource] {
	w.Helper()
	l, err := w.Load([]byte(name), func() (*resource, int64, error) { return w.make(name, size) })
	if err != nil {
		w.Fatal(err)
	}
	w.use(&l, name)
	w.values.Wait()
	return &l
}

func (w *world) wantDestroyed(when string, n int64) {
	w.Helper()
	if got := w.destroyed.Load(); got != n {
		w.Errorf("%s: %d resources are destroyed, want %d", when, got, n)
	}
}

// Whatever makes the cache give a value up, it is destroyed then, or when the last lease ends.
func TestDestroyed(t *testing.T) {
	const size = 1000
	for _, c := range []struct {
		name   string
		size   int64
		giveUp func(w *world)
	}{
		{"invalidated", size, func(w *world) { w.Invalidate([]byte("a")) }},
		{"replaced", size, func(w *world) {
			w.epoch(w.hash([]byte("a"))).Add(1) // by the Invalidate of another name in the slot
			w.done(w.lend("a", size))
		}},
		{"evicted", size, func(w *world) {
			for i := 0; known(w.Cache, "a"); i++ {
				w.done(w.lend(fmt.Sprint("other ", i), size))
				w.done(w.lend(fmt.Sprint("other ", i), size))
			}
		}},
		{"rejected as too large", 1 << 16, func(*world) {}},
		{"closed", size, func(w *world) { w.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 1<<16)
			first := w.lend("a", c.size)
			second, ok := w.Get([]byte("a"))
			w.use(&second, "a")
			if ok != (c.size == size) {
				t.Fatalf("Get found it: %t", ok)
			}
			a := first.Value()
			c.giveUp(w)
			if a.destroyed.Load() != 0 {
				t.Error("destroyed while two leases are held")
			}
			w.done(&second)
			if a.destroyed.Load() != 0 {
				t.Error("destroyed while a lease is held")
			}
			w.done(first)
			if a.destroyed.Load() != 1 {
				t.Error("not destroyed when the last lease was released")
			}
			// The same with nobody who uses it.
			if c.name == "closed" {
				return
			}
			unused := w.lend("a", c.size)
			a = unused.Value()
			w.done(unused)
			c.giveUp(w)
			if a.destroyed.Load() != 1 {
				t.Error("not destroyed when the cache gave it up")
			}
		})
	}
}

// Each who shares a load holds the value, also if the cache could not keep it.
func TestSharersHold(t *testing.T) {
	w := newWorld(t, 1<<16)
	const callers = 50
	leases := make([]Lease[resource], callers)
	loading, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	lend := func(i int) {
		var err error
		leases[i], err = w.Load([]byte("a"), func() (*resource, int64, error) {
			close(loading)
			<-goOn
			return w.make("a", 1<<16)
		})
		if err != nil {
			t.Error(err)
		}
		w.use(&leases[i], "a")
	}
	wg.Go(func() { lend(0) })
	<-loading
	for i := 1; i < callers; i++ {
		wg.Go(func() { lend(i) })
	}
	for { // until all of them wait
		w.mu.Lock()
		n := w.flights["a"].sharers
		w.mu.Unlock()
		if n == callers-1 {
			break
		}
		runtime.Gosched()
	}
	close(goOn)
	wg.Wait()
	for i := range leases {
		w.wantDestroyed(fmt.Sprint("before release ", i), 0)
		w.done(&leases[i])
	}
	w.wantDestroyed("after the last release", 1)
}

// A load that panics takes its caller with it, nobody else, and the name can be loaded again.
func TestLoadPanics(t *testing.T) {
	w := newWorld(t, 1<<16)
	loading, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() {
			if recover() != "load" {
				t.Error("the panic did not reach the caller")
			}
		}()
		_, _ = w.Load([]byte("a"), func() (*resource, int64, error) { close(loading); <-goOn; panic("load") })
	})
	<-loading
	wg.Go(func() {
		l, err := w.Load([]byte("a"), func() (*resource, int64, error) { return w.make("a", 8) })
		w.use(&l, "a")
		if err != nil && !errors.Is(err, errAbandoned) || err == nil && l.Value() == nil {
			t.Errorf("%v, %v", l.Value(), err)
		}
		w.done(&l)
	})
	close(goOn)
	wg.Wait()
	w.done(w.lend("a", 8))
}

// Leases against a model, which is the resources' own counts: random operations, all at once, in a bound so small that most of what is
// loaded is evicted or rejected.
func TestLeasesAtRandom(t *testing.T) {
	const names, workers, steps, heldMax = 200, 8, 15_000, 6
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, closing := range []bool{false, true} {
		w := newWorld(t, 1<<16)
		failed := errors.New("failed")
		var wg sync.WaitGroup
		var hits, absent, running atomic.Int64
		running.Store(workers)
		for n := range workers {
			wg.Go(func() {
				defer running.Add(-1)
				rng := rand.New(rand.NewPCG(seed, uint64(n)))
				var held []Lease[resource]
				for range steps {
					name := fmt.Sprint("name ", min(rng.IntN(names), rng.IntN(names)))
					switch op := rng.IntN(100); {
					case op < 50:
						l, ok := w.Get([]byte(name))
						w.use(&l, name)
						if ok {
							hits.Add(1)
						}
						held = append(held, l)
					case op < 90:
						l, err := w.Load([]byte(name), func() (*resource, int64, error) {
							switch k := rng.IntN(20); {
							case k == 0:
								return nil, 0, failed
							case k < 3:
								return nil, 0, nil
							case k == 3:
								return w.make(name, 1<<17)
							case k < 10:
								runtime.Gosched()
							}
							return w.make(name, int64(rng.IntN(4000)))
						})
						if err != nil && err != failed {
							t.Error(err)
						}
						if err == nil && l.Value() == nil {
							absent.Add(1)
						}
						w.use(&l, name)
						held = append(held, l)
					default:
						w.Invalidate([]byte(name))
					}
					for len(held) > rng.IntN(heldMax) {
						i := rng.IntN(len(held))
						w.done(&held[i])
						held[i] = held[len(held)-1]
						held = held[:len(held)-1]
					}
				}
				for i := range held {
					w.done(&held[i])
				}
			})
		}
		if closing { // while everything goes on
			for w.made.Load() < 1000 && running.Load() > 0 {
				runtime.Gosched()
			}
			w.Close()
		}
		wg.Wait()
		if !closing { // else what was loaded afterwards is gone without a second Close
			w.Close()
		}
		made, destroyed := w.made.Load(), w.destroyed.Load()
		t.Logf("closed midway %t: %d made, %d destroyed, %d hits, %d absences", closing, made, destroyed, hits.Load(), absent.Load())
		if made != destroyed || made < 100 || hits.Load() < 100 || absent.Load() < 100 {
			t.Errorf("%d made, %d destroyed, %d hits, %d absences", made, destroyed, hits.Load(), absent.Load())
		}
	}
}

// However often a dead entry is found, it stays dead.
func TestDeadStaysDead(t *testing.T) {
	e := &entry[int]{cache: newCache[int](t, 1<<16)}
	e.word.Store(1)
	e.release()
	for range 3 {
		if _, ok := e.acquire(); ok {
			t.Fatal("a dead entry is acquired")
		}
		if w := e.word.Load(); w&(users|dead) != dead {
			t.Fatalf("a dead entry has users: %x", w)
		}
	}
}

func TestInvariantsOfLeases(t *testing.T) {
	if !invariants.Enabled {
		t.Log("checked in builds with the tag invariants, and in race builds")
	}
	for name, misuse := range map[string]func(a, b *Lease[int]){
		"released by a copy too": func(a, b *Lease[int]) { a.Release(); b.Release() },
		"used by a copy":         func(a, b *Lease[int]) { a.Release(); _ = b.Value() },
	} {
		c := newCache[int](t, 1<<16)
		l, err := c.Load([]byte("a"), func() (*int, int64, error) { return new(int), 1 << 16, nil }) // too large to be kept
		if err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if p := recover(); (p != nil) != invariants.Enabled {
					t.Errorf("%s: panic %v", name, p)
				}
			}()
			b := l
			misuse(&l, &b)
		}()
	}
}
