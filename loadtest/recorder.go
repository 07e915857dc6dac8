package loadtest

import (
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Histograms hold nanoseconds to three significant digits; what is longer than the largest value counts as the largest.
const (
	latencyLowest  = 100                   // ns told apart at the low end
	latencyHighest = int64(48 * time.Hour) // warm-up and window together are no longer
	latencyDigits  = 3
)

const exampleMax = 256 // bytes kept of an error's text

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(latencyLowest, latencyHighest, latencyDigits)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(int64(d), 0), latencyHighest)) // clamped, so it cannot be out of range
}

// result is one finished request.
type result struct {
	kind     kind
	text     []byte        // of an error; copied if kept
	due      time.Duration // the intended start
	latency  time.Duration // from the intended start
	waited   time.Duration // of the time from the intended to the actual start: for a connection, all were busy
	late     time.Duration // the rest of it: the generator's own
	measured bool          // it started in the window
	inWindow bool          // it started and was answered in the window
}

// tally is what is counted; one type serves the shards and their sum.
type tally struct {
	latency   *hdrhistogram.Histogram // successes
	succeeded uint64
	inWindow  uint64                  // successes answered inside the window
	late      *hdrhistogram.Histogram // how late the generator was; of all requests of an open loop, nil in a closed one
	waited    uint64                  // requests that waited for a connection
	waitMax   time.Duration
	lagMax    time.Duration // of waited and late together
	errors    [kindCount]uint64
	examples  map[kind]string // the first text of each kind
}

func newTally(open bool) tally {
	t := tally{latency: newHistogram(), examples: make(map[kind]string)}
	if open {
		t.late = newTimelineHistogram() // two digits will do
	}
	return t
}

func (t *tally) failed() (n uint64) {
	for _, count := range t.errors {
		n += count
	}
	return n
}

// refused are the failures that the server answered with an error of its own.
func (t *tally) refused() (n uint64) {
	for k, count := range t.errors {
		if kind(k).fromServer() {
			n += count
		}
	}
	return n
}

// recorder is shared by the workers. There are more shards than processors, at least one per endpoint, and a worker keeps to its shard, so
// that locks are rarely contended and memory does not grow with the number of workers (a histogram is about 300 KB).
type recorder struct {
	shards    []shard // shard i is of endpoint i modulo endpoints
	endpoints int
	open      bool // the loop is
	timeline  *timeline
}

type shard struct {
	mu sync.Mutex // guards all below; taken before the timeline's
	tally
	lane         lane
	recent       *hdrhistogram.Histogram // successes since progress last asked, warm-up included
	recentErrors uint64
	_            [64]byte // keeps neighbours' locks off one cache line
}

// newRecorder makes an empty one; a live one keeps what progress shows.
func newRecorder(endpoints int, line *timeline, open, live bool) *recorder {
	each := (2*runtime.GOMAXPROCS(0) + endpoints - 1) / endpoints
	r := &recorder{shards: make([]shard, each*endpoints), endpoints: endpoints, open: open, timeline: line}
	for i := range r.shards {
		r.shards[i].tally, r.shards[i].lane = newTally(open), newLane(line)
		if live {
			r.shards[i].recent = newHistogram()
		}
	}
	return r
}

// shard is the one that worker i, of endpoint i modulo their number, keeps to.
func (r *recorder) shard(i int) *shard { return &r.shards[i%len(r.shards)] }

func (s *shard) add(res *result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recent != nil {
		if res.kind == kindOK {
			record(s.recent, res.latency)
		} else {
			s.recentErrors++
		}
	}
	if !res.measured {
		return
	}
	if s.late != nil {
		record(s.late, res.late)
		if res.waited > 0 {
			s.waited++
		}
		s.waitMax, s.lagMax = max(s.waitMax, res.waited), max(s.lagMax, res.waited+res.late)
	}
	s.lane.add(res)
	if res.kind != kindOK {
		s.errors[res.kind]++
		if _, known := s.examples[res.kind]; !known {
			s.examples[res.kind] = example(res.text)
		}
		return
	}
	record(s.latency, res.latency)
	s.succeeded++
	if res.inWindow {
		s.inWindow++
	}
}

// example cuts a text to a printable line.
func example(text []byte) string {
	text = text[:min(len(text), exampleMax)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(text), "?"))
}

// total adds the shards up.
func (r *recorder) total() *tally {
	sum := newTally(r.open)
	for i := range r.shards {
		r.shards[i].addTo(&sum)
	}
	return &sum
}

// endpoint adds the shards of one endpoint up.
func (r *recorder) endpoint(e int) *tally {
	sum := newTally(r.open)
	for i := e; i < len(r.shards); i += r.endpoints {
		r.shards[i].addTo(&sum)
	}
	return &sum
}

func (s *shard) addTo(sum *tally) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum.latency.Merge(s.latency)
	sum.succeeded += s.succeeded
	sum.inWindow += s.inWindow
	if s.late != nil {
		sum.late.Merge(s.late)
	}
	sum.waited += s.waited
	sum.waitMax, sum.lagMax = max(sum.waitMax, s.waitMax), max(sum.lagMax, s.lagMax)
	for k, n := range s.errors {
		sum.errors[k] += n
	}
	for k, text := range s.examples {
		if _, known := sum.examples[k]; !known {
			sum.examples[k] = text
		}
	}
}

// over completes the timeline and returns, interval by interval, the successes that were answered and the failures that were due in it, and
// of these the refused ones.
func (r *recorder) over() (line *timeline, answered, failed, refused []uint64) {
	answered, failed, refused = make([]uint64, r.timeline.n), make([]uint64, r.timeline.n), make([]uint64, r.timeline.n)
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		s.lane.flush()
		for j := range answered {
			answered[j] += s.lane.answered[j]
			failed[j] += s.lane.failed[j]
			refused[j] += s.lane.refused[j]
		}
		s.mu.Unlock()
	}
	return r.timeline, answered, failed, refused
}

// recentInto moves what happened since the last call into h and returns the number of errors; only where the recorder is live.
func (r *recorder) recentInto(h *hdrhistogram.Histogram) (errors uint64) {
	h.Reset()
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		h.Merge(s.recent)
		s.recent.Reset()
		errors += s.recentErrors
		s.recentErrors = 0
		s.mu.Unlock()
	}
	return errors
}
