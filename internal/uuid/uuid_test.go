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

func TestParse(t *testing.T) {
	g := New()
	for range 1000 {
		var text [Len]byte
		var id [16]byte
		g.Fill(&text)
		if !Parse(&id, text[:]) || string(Append(nil, &id)) != string(text[:]) {
			t.Fatalf("%s comes back as %s", text, Append(nil, &id))
		}
	}
	const good = "0123abcd-4567-89ef-0123-456789abcdef"
	for i := range len(good) {
		for _, c := range []byte("-gG/:@`\x00") {
			bad := good[:i] + string(c) + good[i+1:]
			if bad != good && Parse(new([16]byte), []byte(bad)) {
				t.Errorf("%q is no UUID", bad)
			}
		}
	}
	for _, bad := range []string{"", good[1:], good + "0"} {
		if Parse(new([16]byte), []byte(bad)) {
			t.Errorf("%q is no UUID", bad)
		}
	}
}
