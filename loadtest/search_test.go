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

// A search finds the capacity of a server to its tolerance, even if one probe in two fails without a reason, and then says what it saw.
func TestSearch(t *testing.T) {
	for _, capacity := range []float64{3, 800, 12_345, rateMax} {
		for _, disturbed := range []bool{false, true} {
			f, n := &SearchReport{Bound: 1000}, 0
			var seen []Probe
			err := f.search(500, func(p Probe) { seen = append(seen, p) }, func(rate float64) (Probe, *Report, error) {
				n++
				p99 := 500.0
				if rate > capacity || disturbed && n%2 == 1 {
					p99 = 1500
				}
				return Probe{Rate: rate, P99: &p99, Held: p99 <= 1000}, &Report{Rate: rate}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if capacity == rateMax {
				if f.Rate != rateMax || f.RateFailed != 0 || len(f.Notes) != 1 {
					t.Errorf("no limit: %+v", f)
				}
				continue
			}
			checkSearch(t, f, seen)
			if f.Rate > capacity || f.RateFailed <= capacity || f.RateFailed > max(searchTolerance*f.Rate, f.Rate+1) {
				t.Errorf("capacity %v, disturbed %v: found %v to %v", capacity, disturbed, f.Rate, f.RateFailed)
			}
		}
	}
}

// A rate that failed while the generator was late itself is remarked on: it may not be the server's limit.
func TestSearchGeneratorLate(t *testing.T) {
	for _, late := range []float64{400, 600} {
		f := &SearchReport{Bound: 1000}
		err := f.search(500, nil, func(rate float64) (Probe, *Report, error) {
			p99 := rate
			return Probe{Rate: rate, P99: &p99, Late: late, Held: p99 <= 1000}, &Report{}, nil
		})
		if noted := strings.Contains(strings.Join(f.Notes, ""), "the generator itself was late"); err != nil || noted != (late > 500) {
			t.Errorf("late by %v: %v, notes %q", late, err, f.Notes)
		}
	}
}

// Against a real server the search never finds much more than its capacity, on any machine: of requests offered faster for half a second, more
// than one in a hundred are answered later than the bound of 100 ms, 1.21 being (0.5+0.1)/0.5/0.99. That it finds no less takes a machine
// that answers in time when it is not overloaded; there are some attempts.
func TestSearchFindsCapacity(t *testing.T) {
	const capacity = 400.0
	b := &bottleneck{every: time.Second / capacity}
	url := serve(t, nil, func(ctx *fasthttp.RequestCtx) {
		b.wait()
		ctx.SetBodyString(`{"Plaintext":"AAA="}`)
	})
	cfg := randomConfig(t, url)
	cfg.Rate, cfg.Concurrency, cfg.Warmup, cfg.Duration = 300, 128, 0, 500*ms
	var f *SearchReport
	for range 6 {
		var seen []Probe
		var err error
		f, err = Search(t.Context(), cfg, 100*ms, func(p Probe) { seen = append(seen, p) })
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range seen {
			t.Log(p)
		}
		if f.Best == nil {
			continue
		}
		checkSearch(t, f, seen)
		if f.Rate > 1.25*capacity {
			t.Fatalf("found %v/s, the server does %v/s", f.Rate, capacity)
		}
		if f.Rate > 0.85*capacity {
			return
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
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		if n%50 != 0 {
			return false
		}
		ctx.SetStatusCode(400)
		ctx.SetBodyString(`{"__type":"ThrottlingException"}`)
		return true
	}
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Duration = 400, 500*ms // 200 requests: four of them are refused
	var f *SearchReport
	var lines []string
	for range 20 { // a machine that stands still does not send them all
		var err error
		if f, err = Search(t.Context(), cfg, time.Minute, func(p Probe) { lines = append(lines, p.String()) }); err != nil {
			t.Fatal(err)
		}
		if f.Probes[0].Missed+f.Probes[1].Missed == 0 {
			break
		}
	}
	for _, p := range f.Probes[:2] {
		if p.Rate != 400 || p.Held || p.P99 != nil || p.Failed < 3 || p.Failed > 5 {
			t.Errorf("a probe with refusals: %+v", p)
		}
	}
	if f.RateFailed == 0 || f.RateFailed > 400 || !strings.Contains(strings.Join(lines, "\n"), "p99 out of reach") {
		t.Errorf("report %+v, lines %q", f, lines)
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
	status := Main([]string{"--endpoint", k.url, "--search-p99", "300ms", "--rate", "100", "--duration", "200ms", "--warmup", "0s", "--json"}, &stdout, &stderr)
	var f SearchReport
	decoder := json.NewDecoder(bytes.NewReader(stdout.Bytes()))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		t.Fatalf("status %d, %v: %s %s", status, err, stdout.String(), stderr.String())
	}
	if status != exitOK || f.Schema != SearchSchema || f.Bound != 300_000 || f.Seconds != 0.2 || f.Best == nil || f.Best.Schema != ReportSchema {
		t.Errorf("status %d, report %+v", status, f)
	}
	if n := strings.Count(stderr.String(), "probe "); n != len(f.Probes) || n < 3 {
		t.Errorf("%d probes announced of %d", n, len(f.Probes))
	}
	var again, text bytes.Buffer
	if err := f.WriteJSON(&again); err != nil || again.String() != stdout.String() {
		t.Errorf("%v: the document does not read back as itself", err)
	}
	if err := f.WriteText(&text); err != nil || !strings.Contains(text.String(), fmt.Sprintf("p99 within 300000.0 µs: %s requests/s hold, %s fail\n", grouped(f.Rate), grouped(f.RateFailed))) ||
		!strings.Contains(text.String(), "at that rate: GenerateDataKey at ") {
		t.Errorf("%v: %s", err, text.String())
	}
}

// A search that is interrupted reports what it found so far.
func TestSearchInterrupted(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Duration, cfg.Cleanup = 50, 200*ms, true
	var f *SearchReport
	for range 20 { // a machine that stands still does not hold the first rate
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var err error
		f, err = Search(ctx, cfg, time.Minute, func(p Probe) {
			if p.Rate != 50 {
				cancel()
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if f.Rate == 100 {
			break
		}
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
		{"--search-p99 0s", "bound of p99 must be"},
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
		cfg, opt, err := parseFlags(strings.Fields(c.args), &bytes.Buffer{})
		if err != nil || cfg.Duration != c.duration || cfg.Warmup != c.warmup || opt.searching != (c.args != "") {
			t.Errorf("%q: %v after %v, %v", c.args, cfg.Duration, cfg.Warmup, err)
		}
	}
}
