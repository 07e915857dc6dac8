package loadtest

import (
	"math"
	"slices"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestSchedule(t *testing.T) {
	s := newSchedule(&Config{Rate: 4})
	for i, want := range []time.Duration{0, 250, 500, 750, 1000} {
		if got := s.take(); got != want*ms {
			t.Errorf("request %d is due at %v, want %v ms", i, got, want)
		}
	}
	for _, c := range []struct {
		from, to time.Duration
		want     int64
	}{{0, time.Second, 4}, {0, time.Second + 1, 5}, {1, time.Second, 3}, {time.Second, time.Second, 0}, {2 * time.Second, time.Second, 0}, {0, time.Hour, 4 * 3600}} {
		if got := s.between(c.from, c.to); got != c.want {
			t.Errorf("between(%v, %v) = %d, want %d", c.from, c.to, got, c.want)
		}
	}
	for _, rate := range []float64{3, 7, 999, 33_333.3} { // periods that are no whole number of nanoseconds do not drift
		s := newSchedule(&Config{Rate: rate})
		if got, want := s.between(0, 1000*time.Second), int64(rate*1000); got < want || got > want+1 {
			t.Errorf("rate %v: %d requests in 1000 s", rate, got)
		}
	}
	if closed := newSchedule(&Config{}); closed.open() || closed.between(0, time.Hour) != 0 {
		t.Error("a closed loop has no due times")
	}
}

// A ramp from 2/s to 6/s over 4 s: after t seconds 2t + t²/2 requests were due, so request n is due at t = √(4+2n) - 2.
func TestRampSchedule(t *testing.T) {
	s := newSchedule(&Config{Profile: Ramp, Rate: 2, RateTo: 6, Duration: 4 * time.Second})
	for n := range 16 {
		want := (math.Sqrt(4+2*float64(n)) - 2) * 1e9
		if got := s.take(); math.Abs(float64(got)-want) > 1 {
			t.Errorf("request %d is due at %v, want %v", n, got, time.Duration(want))
		}
	}
	if got := s.between(0, 4*time.Second); got != 16 {
		t.Errorf("%d requests in the ramp, want (2+6)/2·4", got)
	}
	if got := s.due(16+6) - s.due(16); got != time.Second {
		t.Errorf("after the ramp 6 requests take %v", got)
	}
	// At half the time, a quarter of the rise is done: 2·2 + 2²/2 requests.
	if a, b := s.between(0, 2*time.Second), s.between(2*time.Second, 4*time.Second); a != 6 || b != 10 {
		t.Errorf("halves of the ramp have %d and %d requests, want 6 and 10", a, b)
	}
}

// Down is as exact as up, and the warm-up has the rate the ramp begins with.
func TestRampDownAfterWarmup(t *testing.T) {
	s := newSchedule(&Config{Profile: Ramp, Rate: 1000, RateTo: 200, Warmup: 500 * ms, Duration: 10 * time.Second})
	if got := s.between(0, 500*ms); got != 500 {
		t.Errorf("%d requests in the warm-up", got)
	}
	if got := s.due(100); got != 100*ms {
		t.Errorf("request 100 of the warm-up is due at %v", got)
	}
	if got := s.between(500*ms, 10500*ms); got != 6000 {
		t.Errorf("%d requests in the ramp, want (1000+200)/2·10", got)
	}
	last := time.Duration(-1)
	for i := range int64(8000) {
		due := s.due(i)
		if due <= last {
			t.Fatalf("request %d is due at %v, the one before it at %v", i, due, last)
		}
		last = due
	}
	level := newSchedule(&Config{Profile: Ramp, Rate: 50, RateTo: 50, Duration: time.Second})
	if got := level.due(25); got != 500*ms {
		t.Errorf("a ramp without rise: request 25 is due at %v", got)
	}
}

// Five steps of 200 ms from 10/s to 50/s: 2, 4, 6, 8, 10 requests, evenly within each.
func TestStepSchedule(t *testing.T) {
	cfg := &Config{Profile: Step, Rate: 10, RateTo: 50, Steps: 5, Warmup: 300 * ms, Duration: time.Second}
	s := newSchedule(cfg)
	var got []time.Duration
	for range 3 + 2 + 4 + 6 + 8 + 10 {
		got = append(got, s.take())
	}
	want := []time.Duration{0, 100 * ms, 200 * ms}
	for i := range 5 {
		for k := range 2 * (i + 1) {
			want = append(want, time.Duration(300+200*i)*ms+time.Duration(k)*100*ms/time.Duration(i+1))
		}
	}
	for i := range want {
		if d := got[i] - want[i]; d < -1 || d > 1 {
			t.Errorf("request %d is due at %v, want %v", i, got[i], want[i])
		}
	}
	for i := range 5 {
		from := time.Duration(300+200*i) * ms
		if n := s.between(from, from+200*ms); n != int64(2*(i+1)) {
			t.Errorf("step %d has %d requests, want %d", i, n, 2*(i+1))
		}
	}
	if slices.IsSorted(got) == false {
		t.Error("due times are not in order")
	}
}

// A step that ends between two requests carries the fraction over: no request is lost or doubled over many steps.
func TestStepFractions(t *testing.T) {
	cfg := &Config{Profile: Step, Rate: 3, RateTo: 4, Steps: 7, Duration: 100 * time.Second}
	s := newSchedule(cfg)
	if got := s.between(0, cfg.Duration); got != 350 {
		t.Errorf("%d requests, want 3.5·100", got)
	}
	sum := int64(0)
	for i := range 7 {
		sum += s.between(cfg.Duration*time.Duration(i)/7, cfg.Duration*time.Duration(i+1)/7)
	}
	if sum != 350 {
		t.Errorf("the steps together have %d requests", sum)
	}
	for i := int64(1); i < 350; i++ {
		if gap := s.due(i) - s.due(i-1); gap < 250*ms-1 || gap > 334*ms {
			t.Fatalf("requests %d and %d are %v apart", i-1, i, gap)
		}
	}
}
