package cache

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newCache[V any](t testing.TB, bytesMax int64) *Cache[V] {
	t.Helper()
	c, err := New[V](bytesMax)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// keep loads value under name and waits until ristretto has it.
func keep[V any](t testing.TB, c *Cache[V], name string, value V) {
	t.Helper()
	if _, err := c.Load([]byte(name), func() (*V, int64, error) { return &value, 8, nil }); err != nil {
		t.Fatal(err)
	}
	c.store.Wait()
}

func TestGetLoad(t *testing.T) {
	c := newCache[int](t, 1<<20)
	if v := c.Get([]byte("a")); v != nil {
		t.Fatalf("an empty cache has %d", *v)
	}
	keep(t, c, "a", 7)
	if v := c.Get([]byte("a")); v == nil || *v != 7 {
		t.Fatalf("got %v", v)
	}
	if v := c.Get([]byte("b")); v != nil {
		t.Errorf("another name has %d", *v)
	}
	// Load does not look: its caller has just done so.
	v, err := c.Load([]byte("a"), func() (*int, int64, error) { n := 8; return &n, 8, nil })
	if err != nil || *v != 8 || c.Loads() != 2 {
		t.Errorf("%v, %v after %d loads", v, err, c.Loads())
	}
}

// The cache keeps its own copy of the name.
func TestLoadCopiesTheName(t *testing.T) {
	c := newCache[int](t, 1<<20)
	name := []byte("name")
	n := 1
	if _, err := c.Load(name, func() (*int, int64, error) { copy(name, "XXXX"); return &n, 8, nil }); err != nil {
		t.Fatal(err)
	}
	c.store.Wait()
	if c.Get([]byte("name")) == nil || c.Get([]byte("XXXX")) != nil {
		t.Error("the value is kept under a name that changed")
	}
}

func TestNewBounds(t *testing.T) {
	if _, err := New[int](1<<16 - 1); err == nil {
		t.Error("65535 bytes are accepted")
	}
	c, err := New[int](1 << 16)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestErrorsAreNotKept(t *testing.T) {
	c := newCache[int](t, 1<<20)
	failed := errors.New("store away")
	calls := 0
	for range 3 {
		if v, err := c.Load([]byte("a"), func() (*int, int64, error) { calls++; return nil, 8, failed }); err != failed || v != nil {
			t.Fatalf("%v, %v", v, err)
		}
		c.store.Wait()
		if c.Get([]byte("a")) != nil {
			t.Fatal("a failed load is kept")
		}
	}
	if calls != 3 {
		t.Errorf("%d calls of load, want 3", calls)
	}
	keep(t, c, "a", 1)
	if c.Get([]byte("a")) == nil {
		t.Error("a load after failed ones is not kept")
	}
}

func TestInvalidate(t *testing.T) {
	c := newCache[int](t, 1<<20)
	keep(t, c, "a", 1)
	c.Invalidate([]byte("a"))
	if c.Get([]byte("a")) != nil {
		t.Fatal("an invalid value is returned")
	}
	keep(t, c, "a", 2)
	if v := c.Get([]byte("a")); v == nil || *v != 2 {
		t.Fatalf("got %v after loading again", v)
	}
}

// A load that was under way when its name became invalid stores a value that is dead on arrival, and nobody who comes later joins it.
func TestInvalidateDuringLoad(t *testing.T) {
	c := newCache[int](t, 1<<20)
	name := []byte("a")
	loading, goOn := make(chan struct{}), make(chan struct{})
	first := make(chan int, 1)
	go func() {
		v, _ := c.Load(name, func() (*int, int64, error) { close(loading); <-goOn; n := 1; return &n, 8, nil })
		first <- *v
	}()
	<-loading
	c.Invalidate(name)
	v, err := c.Load(name, func() (*int, int64, error) { n := 2; return &n, 8, nil })
	if err != nil || *v != 2 {
		t.Fatalf("%v, %v: joined a load from before the Invalidate", v, err)
	}
	close(goOn)
	if got := <-first; got != 1 {
		t.Errorf("the first caller got %d", got)
	}
	c.store.Wait()
	if v := c.Get(name); v != nil && *v != 2 {
		t.Errorf("%d came back from before the Invalidate", *v)
	}
}

func TestSingleFlight(t *testing.T) {
	c := newCache[int](t, 1<<20)
	const callers = 50
	var calls atomic.Int32
	var arrived sync.WaitGroup
	arrived.Add(callers)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			arrived.Done()
			v, err := c.Load([]byte("a"), func() (*int, int64, error) {
				calls.Add(1)
				arrived.Wait()
				time.Sleep(50 * time.Millisecond) // for those who have arrived and not called yet
				n := 1
				return &n, 8, nil
			})
			if err != nil || *v != 1 {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
	wg.Wait()
	if n := calls.Load(); n != 1 || c.Loads() != 1 {
		t.Errorf("%d calls of load, %d counted", n, c.Loads())
	}
}

// Two names of one slot cost each other a reload and are never mixed up.
func TestSlotCollision(t *testing.T) {
	c := newCache[int](t, 1<<20)
	one := []byte("name 0")
	var two []byte
	for i := 1; two == nil; i++ {
		if name := fmt.Appendf(nil, "name %d", i); c.epoch(name) == c.epoch(one) {
			two = name
		}
	}
	keep(t, c, string(one), 1)
	keep(t, c, string(two), 2)
	if a, b := c.Get(one), c.Get(two); a == nil || b == nil || *a != 1 || *b != 2 {
		t.Fatalf("%v, %v", a, b)
	}
	c.Invalidate(one)
	if c.Get(one) != nil || c.Get(two) != nil {
		t.Error("a value of the slot is still returned")
	}
}

// Nobody sees a version older than the last Invalidate that was complete before his read began, whatever else is under way.
func TestInvalidateIsLinearizable(t *testing.T) {
	const names, writers, readers, checks = 8, 2, 6, 40_000
	c := newCache[uint64](t, 1<<16) // so small that entries are evicted as well
	var committed, invalidated [names]atomic.Uint64
	key := make([][]byte, names)
	for i := range key {
		key[i] = fmt.Appendf(nil, "name %d", i)
	}
	stop := make(chan struct{})
	var writing, reading sync.WaitGroup
	for range writers {
		writing.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				n := i % names
				version := committed[n].Add(1) // what a store does
				c.Invalidate(key[n])
				for {
					old := invalidated[n].Load()
					if old >= version || invalidated[n].CompareAndSwap(old, version) {
						break
					}
				}
				if i%16 == 0 {
					time.Sleep(10 * time.Microsecond)
				}
			}
		})
	}
	var hits atomic.Uint64
	for r := range readers {
		reading.Go(func() {
			for i := range checks {
				n := (i + r) % names
				floor := invalidated[n].Load()
				v := c.Get(key[n])
				if v != nil {
					hits.Add(1)
				} else {
					var err error
					v, err = c.Load(key[n], func() (*uint64, int64, error) {
						version := committed[n].Load()
						runtime.Gosched() // an Invalidate may come between the read and the return
						return &version, 16, nil
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
				if *v < floor {
					t.Errorf("version %d although %d was invalidated before the read", *v, floor)
					return
				}
			}
		})
	}
	reading.Wait()
	close(stop)
	writing.Wait()
	total := uint64(readers * checks)
	t.Logf("%d checks, %d hits, %d loads", total, hits.Load(), c.Loads())
	if hits.Load() < total/100 || c.Loads() < total/1000 {
		t.Errorf("of %d checks %d were hits and %d loads: one side was hardly tested", total, hits.Load(), c.Loads())
	}
}

// 100 000 entries in a bound that has room for a hundredth of them.
func TestBoundInBytes(t *testing.T) {
	const entries, size = 100_000, 300
	const bytesMax = 1_000 * (size + entryCost)
	type value struct {
		n int
		_ [size]byte
	}
	c := newCache[value](t, bytesMax)
	for i := range entries {
		_, err := c.Load(fmt.Appendf(nil, "name %d", i), func() (*value, int64, error) { return &value{n: i}, size, nil })
		if err != nil {
			t.Fatal(err)
		}
		if i%10_000 == 0 {
			c.store.Wait()
		}
	}
	c.store.Wait()
	held := 0
	for i := range entries {
		if v := c.Get(fmt.Appendf(nil, "name %d", i)); v != nil {
			if held++; v.n != i {
				t.Fatalf("name %d has the value of %d", i, v.n)
			}
		}
	}
	t.Logf("%d of %d entries are held, %d fit", held, entries, bytesMax/(size+entryCost))
	if held > bytesMax/(size+entryCost) || held < bytesMax/(size+entryCost)/2 {
		t.Errorf("%d entries are held", held)
	}
}

// A value that is larger than the bound is given to its caller and not kept.
func TestLargerThanTheBound(t *testing.T) {
	c := newCache[int](t, 1<<16)
	n := 1
	v, err := c.Load([]byte("a"), func() (*int, int64, error) { return &n, 1 << 16, nil })
	if err != nil || *v != 1 {
		t.Fatalf("%v, %v", v, err)
	}
	c.store.Wait()
	if c.Get([]byte("a")) != nil {
		t.Error("it is kept")
	}
}

func TestCloseEndsTheGoroutines(t *testing.T) {
	settled := func(most int) (n int) {
		for range 200 {
			if n = runtime.NumGoroutine(); n <= most {
				return n
			}
			time.Sleep(5 * time.Millisecond)
		}
		return n
	}
	before := settled(2)
	for range 20 {
		c, err := New[int](1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			_, _ = c.Load(fmt.Appendf(nil, "%d", i), func() (*int, int64, error) { return &i, 8, nil })
		}
		c.Close()
	}
	if after := settled(before); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}
