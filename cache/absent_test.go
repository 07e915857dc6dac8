package cache

import (
	"fmt"
	"testing"
)

func none() (*int, int64, error) { return nil, 0, nil }

// keepAbsent has the cache learn that name has no value.
func keepAbsent(t testing.TB, c *Cache[int], name string) {
	t.Helper()
	if v, err := load(c, name, none); v != nil || err != nil {
		t.Fatal(v, err)
	}
	c.values.Wait()
	if c.absent != nil {
		c.absent.Wait()
	}
}

func known[V any](c *Cache[V], name string) bool {
	l, ok := c.Get([]byte(name))
	l.Release()
	return ok
}

func TestAbsent(t *testing.T) {
	c := newCache[int](t, 1<<20)
	keepAbsent(t, c, "a")
	if !known(c, "a") || get(c, "a") != nil {
		t.Fatal("that there is no value is not kept")
	}
	if v, err := load(c, "a", func() (*int, int64, error) { n := 1; return &n, 8, nil }); v != nil || err != nil || c.Loads() != 1 {
		t.Errorf("%v, %v after %d loads", v, err, c.Loads())
	}
	c.Invalidate([]byte("a"))
	if known(c, "a") {
		t.Error("it is still known after the Invalidate")
	}
	// From absent to present and back, each replacing the other.
	for i := range 3 {
		keep(t, c, "a", i)
		if v := get(c, "a"); v == nil || *v != i {
			t.Fatalf("got %v, want %d", v, i)
		}
		c.absent.Wait()
		if _, ok := c.absent.Cache.Get(c.hash([]byte("a"))); ok {
			t.Error("the absence that was replaced still takes room")
		}
		c.epoch(c.hash([]byte("a"))).Add(1) // stale, and not taken out
		keepAbsent(t, c, "a")
		if !known(c, "a") || get(c, "a") != nil {
			t.Fatal("a value that is gone is still there")
		}
		c.epoch(c.hash([]byte("a"))).Add(1)
	}
}

// A name that comes into being while it is looked up does not stay absent.
func TestAbsentInvalidatedDuringLoad(t *testing.T) {
	c := newCache[int](t, 1<<20)
	if _, err := load(c, "a", func() (*int, int64, error) { c.Invalidate([]byte("a")); return none() }); err != nil {
		t.Fatal(err)
	}
	if known(c, "a") {
		t.Error("what was absent before the Invalidate is kept")
	}
}

func TestAbsentIsNotKeptWithoutABound(t *testing.T) {
	c, err := New[int](1<<16, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	keepAbsent(t, c, "a")
	if known(c, "a") {
		t.Error("it is kept")
	}
	keep(t, c, "a", 1)
	if get(c, "a") == nil {
		t.Error("a value is not kept")
	}
}

// Guessed names push out each other, and no value.
func TestGuessing(t *testing.T) {
	c := newCache[int](t, 1<<20)
	const values, guesses = 100, 20_000
	for i := range values {
		keep(t, c, fmt.Sprint("value ", i), i)
	}
	for i := range guesses {
		if _, err := load(c, fmt.Sprint("guess ", i), none); err != nil {
			t.Fatal(err)
		}
		if held := c.absent.held.Load(); held > c.absent.max*5/4 {
			t.Fatalf("%d bytes of absent names are held, the bound is %d", held, c.absent.max)
		}
	}
	c.absent.Wait()
	for i := range values {
		if get(c, fmt.Sprint("value ", i)) == nil {
			t.Fatalf("value %d is gone", i)
		}
	}
	left := 0
	for i := range guesses {
		if known(c, fmt.Sprint("guess ", i)) {
			left++
		}
	}
	if most := int(c.absent.max / entryCost); left > most || left < most/2 {
		t.Errorf("%d guesses are kept, about %d fit", left, most)
	}
}
