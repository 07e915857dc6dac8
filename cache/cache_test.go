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
	c, err := New[V](bytesMax, 1<<16, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// keep loads value under name and waits until ristretto has it.
func keep[V any](t testing.TB, c *Cache[V], name string, value V) {
	t.Helper()
	if _, err := load(c, name, func() (*V, int64, error) { return &value, 8, nil }); err != nil {
		t.Fatal(err)
	}
	c.values.Wait()
}

// get is Get for values that nothing destroys: nil if nothing is known.
func get[V any](c *Cache[V], name string) *V {
	l, _ := c.Get([]byte(name))
	defer l.Release()
	return l.Value()
}

// load is Load for values that nothing destroys.
func load[V any](c *Cache[V], name string, f func() (*V, int64, error)) (*V, error) {
	l, err := c.Load([]byte(name), f)
	defer l.Release()
	return l.Value(), err
}

func TestGetLoad(t *testing.T) {
	c := newCache[int](t, 1<<20)
	if v := get(c, "a"); v != nil {
		t.Fatalf("an empty cache has %d", *v)
	}
	keep(t, c, "a", 7)
	if v := get(c, "a"); v == nil || *v != 7 {
		t.Fatalf("got %v", v)
	}
	if v := get(c, "b"); v != nil {
		t.Errorf("another name has %d", *v)
	}
	// Somebody may have loaded it since the Get.
	v, err := load(c, "a", func() (*int, int64, error) { n := 8; return &n, 8, nil })
	if err != nil || *v != 7 || c.Loads() != 1 {
		t.Errorf("%v, %v after %d loads", v, err, c.Loads())
	}
}

// The cache keeps its own copy of the name.
func TestLoadCopiesTheName(t *testing.T) {
	c := newCache[int](t, 1<<20)
	name := []byte("name")
	n := 1
	l, err := c.Load(name, func() (*int, int64, error) { copy(name, "XXXX"); return &n, 8, nil })
	if err != nil {
		t.Fatal(err)
	}
	l.Release()
	c.values.Wait()
	if get(c, "name") == nil || get(c, "XXXX") != nil {
		t.Error("the value is kept under a name that changed")
	}
}

func TestNewBounds(t *testing.T) {
	for _, bad := range [][2]int64{{1<<16 - 1, 0}, {0, 0}, {1 << 16, 1<<16 - 1}} {
		if _, err := New[int](bad[0], bad[1], nil); err == nil {
			t.Errorf("bounds %d are accepted", bad)
		}
	}
	for _, absentMax := range []int64{0, 1 << 16} {
		c, err := New[int](1<<16, absentMax, nil)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

func TestErrorsAreNotKept(t *testing.T) {
	c := newCache[int](t, 1<<20)
	failed := errors.New("store away")
	calls := 0
	for range 3 {
		if v, err := load(c, "a", func() (*int, int64, error) { calls++; return nil, 8, failed }); err != failed || v != nil {
			t.Fatalf("%v, %v", v, err)
		}
		c.values.Wait()
		if get(c, "a") != nil {
			t.Fatal("a failed load is kept")
		}
	}
	if calls != 3 {
		t.Errorf("%d calls of load, want 3", calls)
	}
	keep(t, c, "a", 1)
	if get(c, "a") == nil {
		t.Error("a load after failed ones is not kept")
	}
}

func TestInvalidate(t *testing.T) {
	c := newCache[int](t, 1<<20)
	keep(t, c, "a", 1)
	c.Invalidate([]byte("a"))
	if get(c, "a") != nil {
		t.Fatal("an invalid value is returned")
	}
	keep(t, c, "a", 2)
	if v := get(c, "a"); v == nil || *v != 2 {
		t.Fatalf("got %v after loading again", v)
	}
}

// A load that was under way when its name became invalid stores a value that is dead on arrival, and nobody who comes later joins it.
func TestInvalidateDuringLoad(t *testing.T) {
	c := newCache[int](t, 1<<20)
	const name = "a"
	loading, goOn := make(chan struct{}), make(chan struct{})
	first := make(chan int, 1)
	go func() {
		v, _ := load(c, name, func() (*int, int64, error) { close(loading); <-goOn; n := 1; return &n, 8, nil })
		first <- *v
	}()
	<-loading
	c.Invalidate([]byte(name))
	v, err := load(c, name, func() (*int, int64, error) { n := 2; return &n, 8, nil })
	if err != nil || *v != 2 {
		t.Fatalf("%v, %v: joined a load from before the Invalidate", v, err)
	}
	close(goOn)
	if got := <-first; got != 1 {
		t.Errorf("the first caller got %d", got)
	}
	c.values.Wait()
	if v := get(c, name); v == nil || *v != 2 {
		t.Errorf("%v came back, not what was loaded last", v)
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
			v, err := load(c, "a", func() (*int, int64, error) {
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
	const one = "name 0"
	two := ""
	for i := 1; two == ""; i++ {
		if name := fmt.Sprintf("name %d", i); c.hash([]byte(name))%slots == c.hash([]byte(one))%slots {
			two = name
		}
	}
	keep(t, c, one, 1)
	keep(t, c, two, 2)
	if a, b := get(c, one), get(c, two); a == nil || b == nil || *a != 1 || *b != 2 {
		t.Fatalf("%v, %v", a, b)
	}
	c.Invalidate([]byte(one))
	if get(c, one) != nil || get(c, two) != nil {
		t.Error("a value of the slot is still returned")
	}
	keep(t, c, two, 3)
	if b := get(c, two); b == nil || *b != 3 {
		t.Errorf("%v after loading again", b)
	}
}

// Nobody sees a version older than the last Invalidate that was complete before his read began, whatever else is under way.
func TestInvalidateIsLinearizable(t *testing.T) {
	const names, writers, readers, wantHits, wantLoads = 8, 2, 6, 100_000, 2_000
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
			for i := 0; hits.Load() < wantHits || c.Loads() < wantLoads; i++ {
				n := (i + r) % names
				floor := invalidated[n].Load()
				l, ok := c.Get(key[n])
				if ok {
					hits.Add(1)
				} else {
					var err error
					l, err = c.Load(key[n], func() (*uint64, int64, error) {
						version := committed[n].Load()
						runtime.Gosched() // an Invalidate may come between the read and the return
						return &version, 16, nil
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
				v := *l.Value()
				l.Release()
				if v < floor {
					t.Errorf("version %d although %d was invalidated before the read", v, floor)
					return
				}
			}
		})
	}
	reading.Wait()
	close(stop)
	writing.Wait()
	t.Logf("%d hits, %d loads", hits.Load(), c.Loads())
}

// 100 000 entries in a bound that has room for a hundredth of them.
func TestBoundInBytes(t *testing.T) {
	const entries, size = 100_000, 300
	const cost = size + entryCost + int64(len("name 000000"))
	const bytesMax = 1_000 * cost
	type value struct {
		n int
		_ [size]byte
	}
	c := newCache[value](t, bytesMax)
	for i := range entries {
		_, err := load(c, fmt.Sprintf("name %06d", i), func() (*value, int64, error) { return &value{n: i}, size, nil })
		if err != nil {
			t.Fatal(err)
		}
		if held := c.values.held.Load(); held > bytesMax+bytesMax/4 {
			t.Fatalf("%d bytes are held, the bound is %d", held, bytesMax)
		}
	}
	c.values.Wait()
	held := 0
	for i := range entries {
		if v := get(c, fmt.Sprintf("name %06d", i)); v != nil {
			if held++; v.n != i {
				t.Fatalf("name %d has the value of %d", i, v.n)
			}
		}
	}
	t.Logf("%d of %d entries are held, %d fit", held, entries, bytesMax/cost)
	if most := int(bytesMax / cost); held > most || held < most/2 {
		t.Errorf("%d entries are held", held)
	}
}

// A value that is larger than the bound is given to its caller and not kept.
func TestLargerThanTheBound(t *testing.T) {
	c := newCache[int](t, 1<<16)
	n := 1
	v, err := load(c, "a", func() (*int, int64, error) { return &n, 1 << 16, nil })
	if err != nil || *v != 1 {
		t.Fatalf("%v, %v", v, err)
	}
	c.values.Wait()
	if get(c, "a") != nil {
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
		c, err := New[int](1<<20, 1<<16, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 100 {
			_, _ = load(c, fmt.Sprint(i), func() (*int, int64, error) { return &i, 8, nil })
		}
		c.Close()
	}
	if after := settled(before); after > before {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}
