package ratelimit

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestSampler(t *testing.T) {
	s := Sampler{Limit: Limit{Interval: time.Second, Burst: 2}}
	take := func(at time.Duration, ok bool, skipped uint64) {
		t.Helper()
		if o, n := s.Take(int64(at)); o != ok || n != skipped {
			t.Errorf("at %v: %v %d, want %v %d", at, o, n, ok, skipped)
		}
	}
	take(0, true, 0)
	take(0, true, 0)
	take(0, false, 0)
	take(0, false, 0)
	take(time.Second, true, 2)
	take(time.Second, false, 0)
	s.Return(5)
	take(3*time.Second, true, 6)
	take(3*time.Second, true, 0)
}

// However many come at once, each is let through or counted.
func TestSamplerCounts(t *testing.T) {
	s := Sampler{Limit: Limit{Interval: time.Millisecond, Burst: 10}}
	var through, told atomic.Uint64
	var wg sync.WaitGroup
	const goroutines, each = 8, 1000
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				if ok, n := s.Take(int64(i) * int64(10*time.Microsecond)); ok {
					through.Add(1)
					told.Add(n)
				}
			}
		})
	}
	wg.Wait()
	_, last := s.Take(int64(time.Hour))
	if got := through.Load() + told.Load() + last; got != goroutines*each || through.Load() == goroutines*each {
		t.Errorf("%d of %d, %d let through", got, goroutines*each, through.Load())
	}
}
