package cache

import (
	"fmt"
	"testing"
)

func TestMark(t *testing.T) {
	c := newCache[int](t, 1<<20)
	if !(Mark{}).Current() || !(&Lease[int]{}).Mark().Current() {
		t.Error("the mark of nothing is not current")
	}
	keep(t, c, "a", 1)
	l, ok := c.Get([]byte("a"))
	if !ok {
		t.Fatal("not kept")
	}
	m := l.Mark()
	l.Release()
	if !m.Current() {
		t.Error("not current although nothing changed")
	}
	c.Invalidate([]byte("a"))
	if m.Current() {
		t.Error("current after Invalidate")
	}
	keep(t, c, "a", 2)
	if m.Current() {
		t.Error("current again")
	}
	l, _ = c.Get([]byte("a"))
	m = l.Mark()
	l.Release()
	c.Change([]byte("a"), func(*int) (*int, int64, error) { n := 3; return &n, 8, nil })
	if m.Current() {
		t.Error("current after Change")
	}
}

func TestInvalidateAll(t *testing.T) {
	var destroyed int
	c, err := New(1<<20, 1<<16, func(*int) { destroyed++ })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const names = 100
	for i := range names {
		keep(t, c, fmt.Sprint(i), i)
	}
	if _, err := load(c, "absent", func() (*int, int64, error) { return nil, 0, nil }); err != nil {
		t.Fatal(err)
	}
	held, _ := c.Get([]byte("7"))
	c.InvalidateAll()
	for i := range names {
		if v := get(c, fmt.Sprint(i)); v != nil {
			t.Fatalf("%d is still lent", *v)
		}
	}
	if _, ok := c.Get([]byte("absent")); ok {
		t.Error("that a name has no value is still known")
	}
	if destroyed != names-1 || *held.Value() != 7 {
		t.Errorf("%d values are destroyed", destroyed)
	}
	held.Release()
	if destroyed != names {
		t.Errorf("%d values are destroyed", destroyed)
	}
	// A load that was under way is not kept, and what is loaded afterwards is.
	if _, err := load(c, "a", func() (*int, int64, error) { c.InvalidateAll(); n := 1; return &n, 8, nil }); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Get([]byte("a")); ok {
		t.Error("what was loaded before is lent")
	}
	keep(t, c, "a", 2)
	if v := get(c, "a"); v == nil || *v != 2 {
		t.Error("what was loaded since is not")
	}
}
