package loadtest

import (
	"math"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestTimelineDivision(t *testing.T) {
	for _, c := range []struct {
		cfg  Config
		want int
	}{
		{Config{Duration: time.Millisecond}, 1},
		{Config{Duration: time.Second}, 1},
		{Config{Duration: time.Second + 1}, 2},
		{Config{Duration: 600 * time.Second}, 600},
		{Config{Duration: 600*time.Second + 1}, 301}, // intervals of at most two seconds
		{Config{Duration: durationMax}, 600},
		{Config{Duration: 10 * time.Second, Profile: Step, Rate: 1, Steps: 4}, 12}, // of 2.5 s each: three intervals
		{Config{Duration: time.Second, Profile: Step, Rate: 1, Steps: stepsMax}, stepsMax},
		{Config{Duration: durationMax, Profile: Step, Rate: 1, Steps: stepsMax}, stepsMax},
		{Config{Duration: 599 * time.Second, Profile: Step, Rate: 1, Steps: 598}, 2 * 598},
	} {
		c.cfg.Warmup = 3 * time.Second
		l := newTimeline(&c.cfg)
		if l.n != c.want {
			t.Errorf("%v in %d steps: %d intervals, want %d", c.cfg.Duration, c.cfg.Steps, l.n, c.want)
		}
		if l.begin(0) != c.cfg.Warmup || l.begin(l.n) != c.cfg.Warmup+c.cfg.Duration {
			t.Errorf("%v: intervals from %v to %v", c.cfg.Duration, l.begin(0), l.begin(l.n))
		}
		for i := range l.n { // an interval is where its own begin is, and the last nanosecond before it is not
			if l.at(l.begin(i)) != i || l.at(l.begin(i)-1) != max(i-1, 0) {
				t.Fatalf("%v: interval %d begins at %v, which is in %d; before it is %d", c.cfg.Duration, i, l.begin(i), l.at(l.begin(i)), l.at(l.begin(i)-1))
			}
		}
		if l.at(0) != 0 || l.at(2*durationMax+timeoutMax) != l.n-1 {
			t.Errorf("%v: outside times are in %d and %d", c.cfg.Duration, l.at(0), l.at(2*durationMax+timeoutMax))
		}
	}
}

// Latencies are filed under the intended start, in whatever order the answers come; answers under their own time.
func TestLane(t *testing.T) {
	cfg := &Config{Duration: 4 * time.Second, Rate: 1, Profile: Constant}
	r := newRecorder(1, newTimeline(cfg), true, false)
	for _, c := range []struct {
		shard        int
		due, latency time.Duration
		kind         kind
	}{
		{0, 100 * ms, 10 * ms, kindOK},
		{1, 200 * ms, 20 * ms, kindOK},
		{0, 1100 * ms, 30 * ms, kindOK},
		{0, 900 * ms, 2000 * ms, kindOK}, // a straggler: two seconds late, due in the first interval
		{1, 3100 * ms, 40 * ms, kindOK},
		{1, 2500 * ms, 0, kindTimeout},
		{1, 1500 * ms, 0, kind(kmsapi.Throttling)},
		{0, 3900 * ms, 500 * ms, kindOK}, // answered after the window
	} {
		r.shard(c.shard).add(&result{due: c.due, latency: c.latency, kind: c.kind, measured: true, inWindow: c.kind == kindOK && c.due+c.latency <= cfg.Duration})
	}
	line, answered, failed, refused := r.over()
	for i, want := range []struct {
		n      int64
		max    time.Duration
		answer uint64
		failed uint64
		refuse uint64
	}{{3, 2000 * ms, 2, 0, 0}, {1, 30 * ms, 1, 1, 1}, {0, 0, 1, 1, 0}, {2, 500 * ms, 1, 0, 0}} {
		if answered[i] != want.answer || failed[i] != want.failed || refused[i] != want.refuse {
			t.Errorf("interval %d: %d answered, %d failed, %d refused", i, answered[i], failed[i], refused[i])
		}
		if h := line.latency[i]; h == nil {
			if want.n != 0 {
				t.Errorf("interval %d is empty", i)
			}
		} else if off := float64(h.Max()) / float64(want.max); h.TotalCount() != want.n || off < 0.99 || off > 1.01 {
			t.Errorf("interval %d: %d latencies up to %v", i, h.TotalCount(), time.Duration(h.Max()))
		}
	}
}

// allSent repeats a run until the machine had the time to send everything. Each begins with request 1 and with the fault that make returns.
func allSent(t *testing.T, k *fakeKMS, make func() func(*fasthttp.RequestCtx, string, int64) bool, cfg Config) (p *Report) {
	t.Helper()
	for range 20 {
		if k != nil {
			k.calls.Store(0)
			k.fault = make()
		}
		if p = mustRun(t, cfg); p.Schedule.Missed == 0 {
			break
		}
	}
	return p
}

// A server that stands still from the middle of one interval to the middle of the next shows in both, although all its answers came in the
// second: a timeline by the time of the answer would show a first interval without a blemish.
func TestTimelineShowsStallWhereItBegan(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Profile, cfg.Steps, cfg.Rate, cfg.RateTo = Step, 3, 200, 200 // intervals of half a second
	cfg.Duration = 1500 * ms
	p := allSent(t, k, stallOnce(70, 500*ms), cfg)
	if len(p.Timeline) != 3 || len(p.Steps) != 3 {
		t.Fatalf("timeline %+v, steps %+v", p.Timeline, p.Steps)
	}
	first, second := p.Timeline[0], p.Timeline[1]
	if first.Latency.P99 < 400_000 || first.Latency.P90 < 300_000 || first.Throughput > 0.9*200 {
		t.Errorf("the interval in which the stall began: %+v", first)
	}
	if second.Latency.Max < 250_000 {
		t.Errorf("the interval in which it ended: %+v", second)
	}
	for i, v := range p.Timeline {
		if v.Rate != 200 || v.Seconds != 0.5 || v.At != 0.5*float64(i) {
			t.Errorf("interval %d: %+v", i, v)
		}
	}
}

// A step profile is sent as planned and reported step by step.
func TestStepRun(t *testing.T) {
	url := serve(t, nil, func(ctx *fasthttp.RequestCtx) { ctx.SetBodyString(`{"Plaintext":"AAA="}`) })
	cfg := randomConfig(t, url)
	cfg.Profile, cfg.Rate, cfg.RateTo, cfg.Steps, cfg.Duration = Step, 100, 400, 4, 800*ms
	p := allSent(t, nil, nil, cfg)
	if got := p.Requests.Sent + uint64(p.Schedule.Missed); got != 200 { // (100+200+300+400)·0.2
		t.Errorf("%d requests", got)
	}
	if p.Profile != Step || p.Rate != 100 || p.RateTo != 400 || len(p.Steps) != 4 {
		t.Fatalf("%s from %v to %v, steps %+v", p.Profile, p.Rate, p.RateTo, p.Steps)
	}
	answered := 0.0
	for i, s := range p.Steps {
		if s.Rate != float64(100*(i+1)) || s.Seconds != 0.2 || math.Abs(s.At-0.2*float64(i)) > 1e-9 || s.Latency.P50 <= 0 {
			t.Errorf("step %d: %+v", i, s)
		}
		answered += s.Throughput * s.Seconds
	}
	if want := p.Throughput * p.Seconds; answered < want-0.5 || answered > want+0.5 {
		t.Errorf("the steps have %v answers, the window %v", answered, want)
	}
}
