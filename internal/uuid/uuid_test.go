package uuid

import (
	"regexp"
	"sync"
	"testing"
)

var form = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestUnique(t *testing.T) {
	const goroutines, each = 8, 20_000
	g := New()
	var mu sync.Mutex
	seen := make(map[[Len]byte]bool, goroutines*each)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			ids := make([][Len]byte, each)
			for i := range ids {
				g.Fill(&ids[i])
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				seen[id] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != goroutines*each {
		t.Errorf("%d different UUIDs of %d", len(seen), goroutines*each)
	}
	for id := range seen {
		if !form.Match(id[:]) {
			t.Fatalf("UUID %s", id)
		}
	}
	if New().prefix == g.prefix {
		t.Error("two generators have the same prefix")
	}
}

// The counter starts anywhere below 2^48, so that it cannot reach the bits that Fill overwrites.
func TestCounterStart(t *testing.T) {
	for range 100 {
		if g := New(); g.next.Load() >= 1<<48 {
			t.Fatalf("the counter starts at %#x", g.next.Load())
		}
	}
}
