package loadtest

import (
	"math"
	"sync/atomic"
	"time"
)

const second = float64(time.Second) // in the unit of a leg's times

// schedule hands out request numbers and says when each is due. All times are offsets from the start of the run.
// It is shared by the workers, which take numbers in turn: nothing queues, so a slow server costs no memory.
type schedule struct {
	legs []leg // in order of time, the first from 0, the last without end; none in a closed loop
	next atomic.Int64
}

// leg is a stretch of time in which the rate changes evenly or not at all.
type leg struct {
	from   float64 // nanoseconds; with them, not seconds, due times at whole rates are exact
	number float64 // requests due before it; a fraction where the leg before it ends between two requests
	rate   float64 // requests per second at its beginning, > 0
	slope  float64 // change of the rate in one second
}

// newSchedule lays the profile of a validated configuration over the measured window. The warm-up has the rate the window begins with.
func newSchedule(c *Config) *schedule {
	s := &schedule{}
	if c.Rate == 0 {
		return s
	}
	s.add(0, c.Rate, 0)
	warmup, window := float64(c.Warmup), float64(c.Duration)
	switch c.Profile {
	case Ramp:
		s.add(warmup, c.Rate, (c.RateTo-c.Rate)/c.Duration.Seconds())
		s.add(warmup+window, c.RateTo, 0)
	case Step:
		for i := range c.Steps {
			s.add(warmup+window*float64(i)/float64(c.Steps), stepRate(c, i), 0)
		}
	}
	return s
}

// stepRate is the rate of step i of a step profile: from Rate in the first to RateTo in the last in equal rises.
func stepRate(c *Config, i int) float64 {
	return c.Rate + (c.RateTo-c.Rate)*float64(i)/float64(c.Steps-1)
}

// add appends a leg; one that begins where the last one does replaces it.
func (s *schedule) add(from, rate, slope float64) {
	l := leg{from: from, rate: rate, slope: slope}
	if n := len(s.legs); n > 0 {
		last := &s.legs[n-1]
		l.number = last.numberAt(from)
		if last.from == from {
			*last = l
			return
		}
	}
	s.legs = append(s.legs, l)
}

// numberAt is how many requests are due before t, with the fraction that a moment between two requests gives.
func (l *leg) numberAt(t float64) float64 {
	t -= l.from
	return l.number + t*(l.rate+l.slope*t/(2*second))/second
}

// due is the inverse of numberAt: the solution of rate·t + slope·t²/2 = i - number, in the form that loses no digits where slope is small.
func (l *leg) due(i float64) float64 {
	i -= l.number
	if l.slope == 0 {
		return l.from + i*second/l.rate
	}
	return l.from + 2*i*second/(l.rate+math.Sqrt(max(l.rate*l.rate+2*l.slope*i, 0)))
}

func (s *schedule) open() bool { return len(s.legs) > 0 }

// take returns the due time of the next request in line.
func (s *schedule) take() time.Duration { return s.due(s.next.Add(1) - 1) }

// skip gives up the requests before number first and returns the due time of the next one.
func (s *schedule) skip(first int64) time.Duration {
	for {
		next := s.next.Load()
		taken := max(next, first)
		if s.next.CompareAndSwap(next, taken+1) {
			return s.due(taken)
		}
	}
}

func (s *schedule) due(i int64) time.Duration {
	n := len(s.legs) - 1
	for n > 0 && s.legs[n].number > float64(i) {
		n--
	}
	return time.Duration(s.legs[n].due(float64(i)))
}

// between counts the requests due in [from, to).
func (s *schedule) between(from, to time.Duration) int64 {
	if !s.open() || to <= from {
		return 0
	}
	return s.firstAt(to) - s.firstAt(from)
}

// firstAt is the number of the first request due at or after t.
func (s *schedule) firstAt(t time.Duration) int64 {
	n := len(s.legs) - 1
	for n > 0 && s.legs[n].from > float64(t) {
		n--
	}
	i := max(int64(s.legs[n].numberAt(float64(t)))-2, 0) // two below, because of rounding
	for s.due(i) < t {
		i++
	}
	return i
}
