package loadtest

import (
	"sync/atomic"
	"time"
)

// schedule hands out request numbers and says when each is due. All times are offsets from the start of the run.
// It is shared by the workers, which take numbers in turn: nothing queues, so a slow server costs no memory.
type schedule struct {
	period float64 // nanoseconds between two requests; 0 is a closed loop
	next   atomic.Int64
}

func newSchedule(rate float64) *schedule {
	s := &schedule{}
	if rate > 0 {
		s.period = float64(time.Second) / rate
	}
	return s
}

func (s *schedule) open() bool { return s.period > 0 }

// take returns the due time of the next request in line.
func (s *schedule) take() time.Duration { return s.due(s.next.Add(1) - 1) }

func (s *schedule) due(i int64) time.Duration { return time.Duration(float64(i) * s.period) }

// between counts the requests due in [from, to).
func (s *schedule) between(from, to time.Duration) int64 {
	if !s.open() || to <= from {
		return 0
	}
	return s.firstAt(to) - s.firstAt(from)
}

// firstAt is the number of the first request due at or after t.
func (s *schedule) firstAt(t time.Duration) int64 {
	i := max(int64(float64(t)/s.period)-1, 0)
	for s.due(i) < t {
		i++
	}
	return i
}
