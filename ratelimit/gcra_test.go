package ratelimit

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func ExampleGCRA() {
	var g GCRA
	l := Limit{Interval: 100 * time.Millisecond, Burst: 2}
	for _, ms := range []int64{0, 0, 0, 50, 100, 1000, 1000, 1000} {
		ok, wait := g.Take(l, ms*int64(time.Millisecond))
		fmt.Println(ms, ok, wait)
	}
	// Output:
	// 0 true 0s
	// 0 true 0s
	// 0 false 100ms
	// 50 false 50ms
	// 100 true 0s
	// 1000 true 0s
	// 1000 true 0s
	// 1000 false 100ms
}

// TestRate: whatever the arrivals, no window of n intervals takes more than n + Burst events, and arrivals at the rate all fit.
func TestRate(t *testing.T) {
	l := Limit{Interval: 10, Burst: 3}
	var g GCRA
	var taken []int64
	for now := int64(1000); now < 3000; now++ {
		if ok, _ := g.Take(l, now); ok {
			taken = append(taken, now)
		}
	}
	if want := 200 + 2; len(taken) != want {
		t.Errorf("took %d events of a greedy caller in 200 intervals, want %d", len(taken), want)
	}
	for i := range taken {
		for j := i; j < len(taken); j++ {
			if n, window := j-i+1, (taken[j]-taken[i])/10; int64(n) > window+int64(l.Burst) {
				t.Fatalf("%d events from %d to %d", n, taken[i], taken[j])
			}
		}
	}
	var steady GCRA
	for now := int64(0); now < 1000; now += 10 {
		if ok, wait := steady.Take(l, now); !ok {
			t.Fatalf("an event at the rate was refused at %d, wait %v", now, wait)
		}
	}
}

// TestRefusedIsNotCharged: asking too early, however often, does not put the next event off.
func TestRefusedIsNotCharged(t *testing.T) {
	l := Limit{Interval: 100, Burst: 1}
	var g GCRA
	g.Take(l, 0)
	for now := int64(1); now < 100; now++ {
		if ok, wait := g.Take(l, now); ok || wait != time.Duration(100-now) {
			t.Fatalf("at %d: %v, wait %v", now, ok, wait)
		}
	}
	if ok, _ := g.Take(l, 100); !ok {
		t.Error("refused when its time had come")
	}
}

func TestConcurrentTakesNeverExceedBurst(t *testing.T) {
	l := Limit{Interval: time.Hour, Burst: 50}
	var g GCRA
	var fit atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if ok, _ := g.Take(l, 1); ok {
					fit.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if fit.Load() != 50 {
		t.Errorf("%d events fit a burst of 50", fit.Load())
	}
}

func TestLimitOutOfRangePanics(t *testing.T) {
	for _, l := range []Limit{{0, 1}, {-1, 1}, {1, 0}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v was taken", l)
				}
			}()
			new(GCRA).Take(l, 0)
		}()
	}
}

func BenchmarkTake(b *testing.B) {
	var g GCRA
	l := Limit{Interval: 1, Burst: 1}
	b.ReportAllocs()
	for now := int64(0); b.Loop(); now++ {
		g.Take(l, now)
	}
}
