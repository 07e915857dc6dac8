package loadtest

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A timeline has an interval per second, longer ones where a run would have more than intervalsMax, and at least one per step.
const (
	intervalsMax   = 600
	timelineDigits = 2    // significant; an interval's histogram is then 33 KB, a tenth of the run's
	timelineLowest = 1000 // ns told apart at the low end
)

func newTimelineHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(timelineLowest, latencyHighest, timelineDigits)
}

// timeline keeps latencies by the time of the intended start. It divides the measured window evenly; a step's end is an interval's end.
type timeline struct {
	from, window time.Duration
	n            int // intervals

	mu      sync.Mutex                // guards latency
	latency []*hdrhistogram.Histogram // of successes; nil where there are none
}

// newTimeline divides the window of a validated configuration.
func newTimeline(c *Config) *timeline {
	l := &timeline{from: c.Warmup, window: c.Duration}
	stretches := 1
	if c.Profile == Step && c.Rate > 0 {
		stretches = c.Steps
	}
	seconds := time.Second * ((c.Duration + intervalsMax*time.Second - 1) / (intervalsMax * time.Second)) // of an interval
	whole := time.Duration(stretches) * seconds
	l.n = stretches * int((c.Duration+whole-1)/whole)
	l.latency = make([]*hdrhistogram.Histogram, l.n)
	return l
}

// at is the interval that t, since the start of the run, falls into; the first and the last one take what is before and after them.
// The product has room for any time a bounded run can reach: two durations and a timeout, times 1600 intervals.
func (l *timeline) at(t time.Duration) int {
	t = min(max(t-l.from, 0), l.window) // before the product, which could overflow
	return int(min(t*time.Duration(l.n)/l.window, time.Duration(l.n)-1))
}

// begin is when interval i begins, since the start of the run.
func (l *timeline) begin(i int) time.Duration {
	n := time.Duration(l.n)
	return l.from + (l.window*time.Duration(i)+n-1)/n
}

// interval returns the histogram of interval i for the caller to change; mu must be held.
func (l *timeline) interval(i int) *hdrhistogram.Histogram {
	if l.latency[i] == nil {
		l.latency[i] = newTimelineHistogram()
	}
	return l.latency[i]
}

// lane is one shard's part of a timeline, guarded by the shard's lock. The workers of a shard mostly move through time together, so that
// one histogram will do: it is added to the timeline when they enter the next interval. Stragglers go to the timeline at once.
type lane struct {
	line     *timeline
	now      int // the interval that current is of
	current  *hdrhistogram.Histogram
	answered []uint64 // successes by the interval of the answer, not of the start
	failed   []uint64 // by the interval of the intended start
	refused  []uint64 // of failed
}

func newLane(l *timeline) lane {
	return lane{line: l, current: newTimelineHistogram(), answered: make([]uint64, l.n), failed: make([]uint64, l.n), refused: make([]uint64, l.n)}
}

// add takes a measured request.
func (l *lane) add(res *result) {
	i := l.line.at(res.due)
	if res.kind != kindOK {
		l.failed[i]++
		if res.kind.fromServer() {
			l.refused[i]++
		}
		return
	}
	if res.inWindow {
		l.answered[l.line.at(res.due+res.latency)]++
	}
	if i > l.now {
		l.flush()
		l.now = i
	}
	if i == l.now {
		record(l.current, res.latency)
		return
	}
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	record(l.line.interval(i), res.latency)
}

// flush adds what is in hand to the timeline.
func (l *lane) flush() {
	if l.current.TotalCount() == 0 {
		return
	}
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	l.line.interval(l.now).Merge(l.current)
	l.current.Reset()
}
