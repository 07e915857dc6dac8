package loadtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// The bracket closes in on any capacity, in a bounded number of probes.
func TestBracket(t *testing.T) {
	for _, start := range []float64{1, 500, 0.5, 33.3, rateMax} {
		for _, capacity := range []float64{0.2, 1, 2, 3, 47, 499, 500, 501, 12_345, 777_777, rateMax - 1, rateMax} {
			b := bracket{start: start}
			probes := 0
			for rate, more := b.next(); more; rate, more = b.next() {
				if probes++; probes > 60 {
					t.Fatalf("from %v to %v: no end, bracket %+v", start, capacity, b)
				}
				if rate <= 0 || rate > rateMax {
					t.Fatalf("from %v to %v: probe at %v", start, capacity, rate)
				}
				b.learn(rate, rate <= capacity)
			}
			switch {
			case capacity < 1 && b.holds != 0 && b.holds != start:
				t.Errorf("from %v: %v holds with a capacity of %v", start, b.holds, capacity)
			case capacity >= 1 && (b.holds > capacity || b.holds == 0):
				t.Errorf("from %v to %v: %+v", start, capacity, b)
			case b.holds == rateMax && b.fails != 0, b.holds > 0 && b.holds < rateMax && (b.fails <= capacity || b.fails > max(searchTolerance*b.holds, b.holds+1)):
				t.Errorf("from %v to %v: %+v", start, capacity, b)
			}
		}
	}
}

// bottleneck serves requests one after the other at a constant rate, as one busy machine would: what comes faster waits its turn.
// Turns are reckoned, not slept through one by one, so that the capacity is exact whatever the timers are.
type bottleneck struct {
	mu    sync.Mutex
	free  time.Time // when the next turn begins
	every time.Duration
}

func (b *bottleneck) wait() {
	b.mu.Lock()
	now := time.Now()
	if b.free.Before(now) {
		b.free = now
	}
	turn := b.free
	b.free = turn.Add(b.every)
	b.mu.Unlock()
	if d := turn.Sub(now); d > time.Millisecond { // less than that is the timers' own error
		time.Sleep(d)
	}
}

// A search finds the capacity of a server within 15 %. The machine may be busy with something else, so it has three attempts.
func TestSearchFindsCapacity(t *testing.T) {
	const capacity = 800.0
	b := &bottleneck{every: time.Second / capacity}
	url := serve(t, nil, func(ctx *fasthttp.RequestCtx) {
		b.wait()
		ctx.SetBodyString(`{"Plaintext":"AAA="}`)
	})
	cfg := randomConfig(t, url)
	cfg.Rate, cfg.Concurrency, cfg.Warmup, cfg.Duration = 600, 128, 50*ms, 350*ms
	var f *SearchReport
	for range 3 {
		var seen []Probe
		var err error
		f, err = Search(t.Context(), cfg, 20*ms, func(p Probe) { seen = append(seen, p) })
		if err != nil {
			t.Fatal(err)
		}
		checkSearch(t, f, seen)
		if f.Rate > 0.85*capacity && f.Rate < 1.15*capacity {
			return
		}
		for _, p := range seen {
			t.Log(p)
		}
	}
	t.Errorf("found %v/s, the server does %v/s", f.Rate, capacity)
}

// checkSearch holds a report against the probes that were announced: consistent, each failure repeated once, the best one the result.
func checkSearch(t *testing.T, f *SearchReport, seen []Probe) {
	t.Helper()
	if f.Interrupted || f.RateFailed <= f.Rate || f.Best == nil || f.Best.Rate != f.Rate || len(f.Probes) != len(seen) {
		t.Fatalf("report %+v", f)
	}
	for i, p := range f.Probes {
		if p.Held != (p.P99 != nil && *p.P99 <= f.Bound) || p.Held && p.Rate > f.Rate || p.Rate == f.RateFailed && p.Held {
			t.Errorf("probe %d of %+v: %+v", i, f.Probes, p)
		}
		if !p.Held {
			before := i > 0 && f.Probes[i-1].Rate == p.Rate && !f.Probes[i-1].Held
			after := i+1 < len(f.Probes) && f.Probes[i+1].Rate == p.Rate
			if before == after {
				t.Errorf("probe %d failed at %v/s and was repeated before: %v, after: %v", i, p.Rate, before, after)
			}
		}
	}
}

// Refused requests are slower than any bound: a server that throttles fast does not hold a rate.
func TestSearchCountsRefusals(t *testing.T) {
	var refuseFrom sync.Map // one key: the hundredth of requests that is refused
	refuseFrom.Store(0, int64(50))
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		every, _ := refuseFrom.Load(0)
		if n%every.(int64) != 0 {
			return false
		}
		ctx.SetStatusCode(400)
		ctx.SetBodyString(`{"__type":"ThrottlingException"}`)
		return true
	}
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Duration = 1, 150*ms
	var lines []string
	f, err := Search(t.Context(), cfg, time.Minute, func(p Probe) { lines = append(lines, p.String()) })
	if err != nil {
		t.Fatal(err)
	}
	if f.Best == nil || f.RateFailed == 0 {
		t.Fatalf("report %+v", f)
	}
	failed := f.Probes[len(f.Probes)-1]
	for _, p := range f.Probes {
		if !p.Held {
			failed = p
		}
	}
	if failed.P99 != nil || failed.Failed == 0 || !strings.Contains(strings.Join(lines, "\n"), "p99 out of reach") {
		t.Errorf("a refused probe: %+v, lines %q", failed, lines)
	}
}

// Where no rate holds the search says so, in both forms and by its exit status; where keys were made they are removed once.
func TestSearchFindsNothing(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool { time.Sleep(5 * ms); return false }
	args := []string{"--endpoint", k.url, "--search-p99", "1ms", "--rate", "40", "--duration", "60ms", "--warmup", "0s", "--cleanup", "--keys", "2"}
	var stdout, stderr bytes.Buffer
	if status := Main(args, &stdout, &stderr); status != exitFailed || stderr.Len() > 0 {
		t.Fatalf("status %d, stderr %q", status, stderr.String())
	}
	out := stdout.String()
	if !strings.HasPrefix(out, "probe 40/s: p99 ") || !strings.Contains(out, "no rate that was tried holds p99 within 1000.0 µs\n2 keys scheduled for deletion\n") {
		t.Errorf("%s", out)
	}
	if n := k.count(k.targets, "ScheduleKeyDeletion"); n != 2 {
		t.Errorf("%d keys removed", n)
	}
}

// With --json, stdout is one document and the probes go to stderr.
func TestSearchMainJSON(t *testing.T) {
	k := newFakeKMS(t, nil)
	b := &bottleneck{every: time.Second / 200}
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool { b.wait(); return false }
	var stdout, stderr bytes.Buffer
	status := Main([]string{"--endpoint", k.url, "--search-p99", "60ms", "--rate", "100", "--duration", "200ms", "--warmup", "0s", "--json"}, &stdout, &stderr)
	var f SearchReport
	decoder := json.NewDecoder(bytes.NewReader(stdout.Bytes()))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		t.Fatalf("status %d, %v: %s %s", status, err, stdout.String(), stderr.String())
	}
	if status != exitOK || f.Schema != SearchSchema || f.Bound != 60_000 || f.Seconds != 0.2 || f.Best == nil || f.Best.Schema != ReportSchema {
		t.Errorf("status %d, report %+v", status, f)
	}
	if n := strings.Count(stderr.String(), "probe "); n != len(f.Probes) || n < 3 {
		t.Errorf("%d probes announced of %d", n, len(f.Probes))
	}
	var again, text bytes.Buffer
	if err := f.WriteJSON(&again); err != nil || again.String() != stdout.String() {
		t.Errorf("%v: the document does not read back as itself", err)
	}
	if err := f.WriteText(&text); err != nil || !strings.Contains(text.String(), fmt.Sprintf("p99 within 60000.0 µs: %s requests/s hold, %s fail\n", grouped(f.Rate), grouped(f.RateFailed))) ||
		!strings.Contains(text.String(), "at that rate: GenerateDataKey at ") {
		t.Errorf("%v: %s", err, text.String())
	}
}

// A search that is interrupted reports what it found so far.
func TestSearchInterrupted(t *testing.T) {
	k := newFakeKMS(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Duration, cfg.Cleanup = 50, 100*ms, true
	f, err := Search(ctx, cfg, time.Minute, func(p Probe) {
		if p.Rate == 100 {
			cancel()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !f.Interrupted || f.Rate != 100 || f.Best == nil || len(f.Probes) != 2 || f.KeysRemoved != 1 {
		t.Errorf("report %+v", f)
	}
	var text bytes.Buffer
	if err := f.WriteText(&text); err != nil || !strings.Contains(text.String(), "interrupted") {
		t.Errorf("%v: %s", err, text.String())
	}
}

func TestSearchUsage(t *testing.T) {
	setAWSEnvironment(t)
	for _, c := range []struct{ args, want string }{
		{"--search-p99 -1ms", "bound of p99 must be"},
		{"--search-p99 5m1s", "bound of p99 must be"},
		{"--search-p99 1ms --profile ramp --rate 1 --rate-to 2", "a search needs the profile constant"},
		{"--search-p99 1ms --keys 0", "keys must be"},
		{"--search-p99 5m --endpoint http://127.0.0.1:1 --op GenerateRandom", "cannot connect"},
		{"--html /nowhere/at/all.html", "/nowhere/at/all.html"},
	} {
		var stdout, stderr bytes.Buffer
		if status := Main(strings.Fields(c.args), &stdout, &stderr); status == exitOK || !strings.Contains(stderr.String(), c.want) || stdout.Len() > 0 {
			t.Errorf("%s: status %d, stderr %q", c.args, status, stderr.String())
		}
	}
	for _, c := range []struct {
		args             string
		duration, warmup time.Duration
	}{{"", 10 * time.Second, 2 * time.Second}, {"--search-p99 1ms", probeDuration, probeWarmup}, {"--search-p99 1ms --duration 5s --warmup 1s", 5 * time.Second, time.Second}} {
		cfg, _, err := parseFlags(strings.Fields(c.args), &bytes.Buffer{})
		if err != nil || cfg.Duration != c.duration || cfg.Warmup != c.warmup {
			t.Errorf("%q: %v after %v, %v", c.args, cfg.Duration, cfg.Warmup, err)
		}
	}
}
