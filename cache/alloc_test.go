//go:build !race

package cache

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
)

// hitAllocsMax is what hits may allocate in all, however many they are: ristretto's buffers for the credit that the loads before have left,
// and one of each of its pool's processors. A few more are the runtime's own.
const hitAllocsMax = creditMax/usesBuffered + 16

func TestAllocGet(t *testing.T) {
	for _, names := range []int{1, 10_000} {
		t.Run(fmt.Sprint("names=", names), func(t *testing.T) {
			c := newCache[int](t, 16<<20)
			present, absent := make([][]byte, names), make([][]byte, min(names, 100))
			for i := range present {
				present[i] = fmt.Appendf(nil, "%025d", i)
				keep(t, c, string(present[i]), i)
			}
			for i := range absent {
				absent[i] = fmt.Appendf(nil, "absent %d", i)
				keepAbsent(t, c, string(absent[i]))
			}
			unknown := []byte("unknown")
			n := mallocs(100_000, func(i int) {
				l, ok := c.Get(present[i%len(present)])
				if !ok || *l.Value() != i%len(present) {
					t.Fatal("not what was kept")
				}
				l.Release()
				if l, ok = c.Get(absent[i%len(absent)]); !ok || l.Value() != nil {
					t.Fatal("it is not known that there is no value")
				}
				l.Release()
				if _, ok = c.Get(unknown); ok {
					t.Fatal("what was never loaded is known")
				}
			})
			t.Logf("%d allocations in 300 000 calls of Get", n)
			if n > hitAllocsMax {
				t.Errorf("%d allocations, at most %d are allowed", n, hitAllocsMax)
			}
		})
	}
}

// mallocs counts the allocations of the whole process while f is called runs times. Nothing is called beforehand to warm up.
func mallocs(runs int, f func(i int)) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range runs {
		f(i)
	}
	runtime.ReadMemStats(&after)
	return after.Mallocs - before.Mallocs
}

// entryCost is no less than what an entry takes.
func TestEntryCost(t *testing.T) {
	const entries, nameLen = 200_000, 32
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	// Room for all of them and no more, so that the parts whose size follows the bound are in the measure.
	c := newCache[[usualSize]byte](t, entries*(entryCost+nameLen+usualSize)+1<<16)
	for i := range entries {
		if _, err := load(c, fmt.Sprintf("%032d", i), func() (*[usualSize]byte, int64, error) { return new([usualSize]byte), usualSize, nil }); err != nil {
			t.Fatal(err)
		}
	}
	c.values.Wait()
	per := (heap()-before)/entries - usualSize - nameLen
	t.Logf("%d bytes per entry besides its value and its name", per)
	if per > entryCost || per < entryCost/2 {
		t.Errorf("%d bytes per entry, entryCost is %d", per, entryCost)
	}
	runtime.KeepAlive(c)
}
