package dataplane

import (
	"context"
	"regexp"
	"sync"
	"testing"
)

var contextDeadline = context.DeadlineExceeded

// A request ID is a version 4 UUID in form (RFC 9562 §5.4).
var requestIDForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestRequestIDs(t *testing.T) {
	const goroutines, each = 8, 20_000
	var g requestIDs
	g.init()
	var mu sync.Mutex
	seen := make(map[[requestIDLen]byte]bool, goroutines*each)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			ids := make([][requestIDLen]byte, each)
			for i := range ids {
				g.fill(&ids[i])
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
		t.Errorf("%d different request IDs of %d", len(seen), goroutines*each)
	}
	for id := range seen {
		if !requestIDForm.Match(id[:]) {
			t.Fatalf("request ID %s", id)
		}
	}
	var other requestIDs
	other.init()
	if other.prefix == g.prefix {
		t.Error("two processes have the same prefix")
	}
}

// The counter starts anywhere below 2^48, so that it cannot reach the bits that fill overwrites.
func TestRequestIDCounterStart(t *testing.T) {
	for range 100 {
		var g requestIDs
		if g.init(); g.next.Load() >= 1<<48 {
			t.Fatalf("the counter starts at %#x", g.next.Load())
		}
	}
}
