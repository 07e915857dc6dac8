package loadtest

import (
	"context"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Every operation works against a server that verifies signatures, and the report's counts are the server's.
func TestClosedLoop(t *testing.T) {
	for _, op := range Operations() {
		for _, payload := range []int{32, 7} {
			t.Run(op, func(t *testing.T) {
				k := newFakeKMS(t, nil)
				cfg := testConfig(k.url)
				cfg.Operation, cfg.Keys, cfg.Payload, cfg.Duration = op, 3, payload, 100*time.Millisecond
				p := mustRun(t, cfg)
				if p.Requests.Failed != 0 || p.Requests.Succeeded == 0 || k.unsigned.Load() != 0 {
					t.Fatalf("requests %+v, %d not verified, errors %+v", p.Requests, k.unsigned.Load(), p.Errors)
				}
				if got, want := p.Requests.Sent, uint64(k.calls.Load()); got != want {
					t.Errorf("reported %d requests, the server saw %d", got, want)
				}
				l := p.Latency
				if l.Min <= 0 || l.P50 < l.Min || l.P90 < l.P50 || l.P99 < l.P90 || l.P999 < l.P99 || l.Max < l.P999 {
					t.Errorf("latency is not ordered: %+v", l)
				}
				if p.Loop != ClosedLoop || p.Throughput <= 0 || p.Bytes.Sent == 0 || p.Bytes.Received == 0 || p.Connections.Opened != 4 {
					t.Errorf("report %+v", p)
				}
				if !strings.HasPrefix(strings.Join(p.Notes, "\n"), "closed loop") {
					t.Errorf("no closed-loop note in %q", p.Notes)
				}
				if op != "GenerateRandom" && (len(k.byKey) != 3 || p.Keys != 3) {
					t.Errorf("keys asked: %v, reported %d", k.byKey, p.Keys)
				}
			})
		}
	}
}

func TestWarmupIsNotCounted(t *testing.T) {
	k := newFakeKMS(t, nil)
	warm := time.Now().Add(150 * time.Millisecond)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, _ int64) bool {
		time.Sleep(time.Millisecond)
		if time.Now().Before(warm) {
			refuse(ctx, kmsapi.Throttling, "")
			return true
		}
		return false
	}
	cfg := testConfig(k.url)
	cfg.Warmup, cfg.Duration = 400*time.Millisecond, 200*time.Millisecond
	p := mustRun(t, cfg)
	if p.Requests.Failed != 0 || p.Requests.Succeeded == 0 || p.Requests.Sent >= uint64(k.calls.Load()) {
		t.Fatalf("%+v of %d requests; errors %+v", p.Requests, k.calls.Load(), p.Errors)
	}
}

// At a constant rate the number of requests is rate × time, whatever the answers take. The schedule is exact; that nearly all of it was
// sent may take more than one attempt on a machine that is busy with something else.
func TestRate(t *testing.T) {
	k := newFakeKMS(t, nil)
	for _, rate := range []float64{150, 1500} {
		var sent, served float64
		for range 3 {
			cfg := testConfig(k.url)
			cfg.Rate, cfg.Concurrency, cfg.Warmup, cfg.Duration = rate, 16, 200*time.Millisecond, time.Second
			before := k.calls.Load()
			p := mustRun(t, cfg)
			if got := float64(p.Requests.Sent) + float64(p.Schedule.Missed); got != rate {
				t.Errorf("rate %v: %v requests sent or missed in 1 s", rate, got)
			}
			if p.Loop != OpenLoop || strings.Contains(strings.Join(p.Notes, "\n"), "closed loop") {
				t.Errorf("an open loop is reported as %s, notes %q", p.Loop, p.Notes)
			}
			sent, served = float64(p.Requests.Sent), float64(k.calls.Load()-before)
			if served > 1.2*rate {
				t.Errorf("rate %v: the server saw %v requests in 1.2 s", rate, served)
			}
			if sent >= 0.95*rate {
				break
			}
		}
		if sent < 0.95*rate || served < 0.95*1.2*rate {
			t.Errorf("rate %v: %v requests in 1 s, %v in 1.2 s", rate, sent, served)
		}
	}
}

// stallOnce makes the whole server stand still for d when request n arrives.
func stallOnce(n int64, d time.Duration) func(*fasthttp.RequestCtx, string, int64) bool {
	var gate sync.RWMutex
	return func(_ *fasthttp.RequestCtx, _ string, i int64) bool {
		if i == n {
			gate.Lock()
			time.Sleep(d)
			gate.Unlock()
		}
		gate.RLock()
		defer gate.RUnlock()
		return false
	}
}

// A server that stands still for 200 ms of 1 s delays a fifth of an open loop's requests, half of those by more than 100 ms.
// A closed loop of two connections has just two slow requests; that difference is why open loops exist.
func TestOpenLoopCountsFromIntendedStart(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = stallOnce(200, 200*time.Millisecond)
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Concurrency, cfg.Duration = 500, 2, time.Second
	p := mustRun(t, cfg)
	if p.Requests.Failed > 0 {
		t.Fatalf("requests %+v, schedule %+v, errors %+v", p.Requests, p.Schedule, p.Errors)
	}
	if p.Latency.P90 < 60_000 || p.Latency.Max < 180_000 || p.Schedule.LagMax < 150_000 {
		t.Errorf("the stall is hidden: latency %+v, lag %v", p.Latency, p.Schedule.LagMax)
	}

	k.calls.Store(0)
	k.fault = stallOnce(200, 200*time.Millisecond)
	cfg.Rate = 0
	if closed := mustRun(t, cfg); closed.Latency.P90 > p.Latency.P90/2 || closed.Latency.Max < 180_000 {
		t.Errorf("closed loop: latency %+v, open loop %+v", closed.Latency, p.Latency)
	}
}

// What could not be sent in time is neither sent late nor forgotten.
func TestMissedRequests(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool { time.Sleep(20 * time.Millisecond); return false }
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Concurrency, cfg.Duration = 1000, 2, 500*time.Millisecond
	p := mustRun(t, cfg)
	if p.Requests.Sent > 60 || p.Schedule.Missed != 500-int64(p.Requests.Sent) {
		t.Fatalf("requests %+v, schedule %+v", p.Requests, p.Schedule)
	}
	if !strings.Contains(strings.Join(p.Notes, "\n"), "due but never sent") {
		t.Errorf("notes %q", p.Notes)
	}
}

// A stopped run reports what it has, and gives up requests that do not end within the grace period.
func TestStop(t *testing.T) {
	k := newFakeKMS(t, nil)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.fault = func(_ *fasthttp.RequestCtx, _ string, n int64) bool {
		if n == 100 {
			cancel()
		}
		if n >= 100 {
			<-release
		}
		return false
	}
	cfg := testConfig(k.url)
	cfg.Duration = time.Hour
	before := runtime.NumGoroutine()
	p, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Interrupted || p.Requests.Succeeded != 99 || p.Requests.Failed != 0 {
		t.Errorf("interrupted %v, requests %+v, errors %+v", p.Interrupted, p.Requests, p.Errors)
	}
	if p.Requests.Unfinished < 1 || p.Requests.Unfinished > 4 || p.Requests.Sent != p.Requests.Succeeded+p.Requests.Unfinished {
		t.Errorf("requests %+v", p.Requests)
	}
	if p.Seconds <= 0 || p.Seconds > 60 {
		t.Errorf("measured %v s", p.Seconds)
	}
	// The server's four hanging handlers and their keep-alive helpers remain, the load test's own goroutines do not.
	if after := runtime.NumGoroutine(); after > before+8 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

// A worker that waits for a distant due time wakes up when the run is stopped.
func TestStopWhileWaiting(t *testing.T) {
	k := newFakeKMS(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool {
		time.AfterFunc(20*time.Millisecond, cancel)
		return false
	}
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Duration = 0.01, time.Hour
	start := time.Now()
	p, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p.Requests.Succeeded != 1 || p.Schedule.Missed != 0 || time.Since(start) > 10*time.Second {
		t.Fatalf("requests %+v, schedule %+v after %v", p.Requests, p.Schedule, time.Since(start))
	}
}

// Run leaves no goroutine behind.
func TestNoGoroutineLeft(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Duration = 50 * time.Millisecond
	mustRun(t, cfg)
	before := runtime.NumGoroutine()
	for range 5 {
		mustRun(t, cfg)
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+2 { // the server's connections close a moment later
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}
