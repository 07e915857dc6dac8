package loadtest

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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
				cfg.Operation, cfg.Keys, cfg.Payload = op, 3, payload
				p := k.runUntil(cfg, atLeast(100))
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

// What the warm-up sends is not counted, errors neither.
func TestWarmupIsNotCounted(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Warmup, cfg.Duration, cfg.grace = time.Second, time.Hour, timeoutMax
	s, err := prepare(t.Context(), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r := newRun(s, &cfg)
	var refused, after atomic.Int64
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, _ int64) bool {
		time.Sleep(time.Millisecond)
		if r.now() < cfg.Warmup/2 { // so it was due before that, too
			refused.Add(1)
			refuse(ctx, kmsapi.Throttling, "")
			return true
		}
		if r.now() > cfg.Warmup && after.Add(1) == 20 {
			stop()
		}
		return false
	}
	p, err := r.measure(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if refused.Load() == 0 || p.Requests.Failed != 0 || p.Requests.Succeeded < 10 || p.Requests.Sent+uint64(refused.Load()) > uint64(k.calls.Load()) {
		t.Fatalf("%+v of %d requests, %d refused before; errors %+v", p.Requests, k.calls.Load(), refused.Load(), p.Errors)
	}
}

// At a constant rate the number of requests is rate × time, whatever the answers take. The schedule is exact; that nearly all of it was
// sent may take more than one attempt on a machine that is busy with something else.
func TestRate(t *testing.T) {
	k := newFakeKMS(t, nil)
	for _, rate := range []float64{150, 1500} {
		var sent, served float64
		for range 20 {
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
			if sent >= 0.95*rate && served >= 0.95*1.2*rate {
				break
			}
		}
		if sent < 0.95*rate || served < 0.95*1.2*rate {
			t.Errorf("rate %v: %v requests in 1 s, %v in 1.2 s", rate, sent, served)
		}
	}
}

// stallOnce makes faults by which the whole server stands still for d when request n arrives.
func stallOnce(n int64, d time.Duration) func() func(*fasthttp.RequestCtx, string, int64) bool {
	return func() func(*fasthttp.RequestCtx, string, int64) bool {
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
}

// A server that stands still for 200 ms of 1 s delays a fifth of an open loop's requests, half of those by more than 100 ms.
// A closed loop of two connections has just two slow requests; that difference is why open loops exist.
func TestOpenLoopCountsFromIntendedStart(t *testing.T) {
	k := newFakeKMS(t, nil)
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Concurrency, cfg.Duration = 500, 2, time.Second
	p := allSent(t, k, stallOnce(100, 200*time.Millisecond), cfg)
	if p.Requests.Failed > 0 {
		t.Fatalf("requests %+v, schedule %+v, errors %+v", p.Requests, p.Schedule, p.Errors)
	}
	// The stall is the server's: requests wait for a connection, which the generator does not count as its own delay.
	if lag := p.Schedule; p.Latency.P90 < 60_000 || p.Latency.Max < 180_000 || lag.LagMax < 150_000 || lag.WaitMax < 150_000 || lag.Waited < 50 {
		t.Errorf("the stall is hidden: latency %+v, schedule %+v", p.Latency, lag)
	}

	var closed *Report
	for range 10 { // a busy machine may slow down one in ten without a stall
		k.calls.Store(0)
		k.fault = stallOnce(100, 200*time.Millisecond)()
		cfg.Rate = 0
		if closed = k.runUntil(cfg, atLeast(1000)); closed.Latency.Max < 180_000 {
			t.Fatalf("closed loop: latency %+v", closed.Latency)
		}
		if closed.Latency.P90 <= p.Latency.P90/2 {
			return
		}
	}
	t.Errorf("closed loop: latency %+v, open loop %+v", closed.Latency, p.Latency)
}

// Overload, more offered than served, with connections to spare: all that is offered is sent, at its time, and the refusals are counted apart
// from what is served.
func TestOverload(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		if n%5 == 0 { // a server that does a fifth
			return false
		}
		refuse(ctx, kmsapi.Throttling, "too much")
		return true
	}
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Concurrency, cfg.Warmup, cfg.Duration = 400, 200, 100*ms, time.Second
	var p *Report
	for range 20 { // a machine that stands still for long keeps all connections busy
		if p = mustRun(t, cfg); p.Schedule.Missed == 0 {
			break
		}
	}
	served, refused := p.Requests.Succeeded, p.Requests.Refused
	if p.Offered != 400 || p.SendRate != 400 || p.Requests.Sent != 400 || served+refused != 400 || p.Requests.Failed != refused || refused < 4*79 || refused > 4*81 {
		t.Errorf("%v/s offered, %v/s sent, requests %+v, errors %+v", p.Offered, p.SendRate, p.Requests, p.Errors)
	}
	if p.RefusalRate != float64(refused) || p.count(kind(kmsapi.Throttling)) != refused || p.Throughput > float64(served) || p.Throughput == 0 {
		t.Errorf("%v/s served, %v/s refused, errors %+v", p.Throughput, p.RefusalRate, p.Errors)
	}
	if late := p.Schedule.Late; late.P50 <= 0 || late.P99 < late.P50 || late.Max < late.P99 {
		t.Errorf("generator late by %+v", late)
	}
	var text bytes.Buffer
	if err := p.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"per second  400 offered, 400 sent, ", fmt.Sprintf(" served, %d refused\n", refused), fmt.Sprintf("%d failed (%d refused), 0 unfinished", refused, refused),
		"schedule    0 never sent, ", "generator   late itself by µs: p50 ", fmt.Sprintf("error       %d × ThrottlingException: too much", refused)} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// What a warm-up could not send does not take the window's time: its first requests are the ones due first in it.
func TestWarmupLeavesNoBacklog(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(*fasthttp.RequestCtx, string, int64) bool { time.Sleep(20 * ms); return false }
	cfg := testConfig(k.url)
	cfg.Rate, cfg.Concurrency, cfg.Warmup, cfg.Duration = 2000, 2, 500*ms, time.Second
	p := mustRun(t, cfg) // the backlog, about 950 requests, would take nine seconds
	if p.Requests.Sent == 0 || p.Requests.Sent+uint64(p.Schedule.Missed) != 2000 || p.Latency.Min > 1e6 {
		t.Errorf("requests %+v, schedule %+v, latency %+v", p.Requests, p.Schedule, p.Latency)
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
	p, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	// The three others may be on their way when the hundredth comes, and are answered unless the machine stands still for the grace period.
	if !p.Interrupted || p.Requests.Succeeded < 96 || p.Requests.Succeeded > 99 || p.Requests.Failed != 0 {
		t.Errorf("interrupted %v, requests %+v, errors %+v", p.Interrupted, p.Requests, p.Errors)
	}
	if p.Requests.Unfinished < 1 || p.Requests.Unfinished > 4 || p.Requests.Sent != p.Requests.Succeeded+p.Requests.Unfinished || p.Requests.Sent < 100 {
		t.Errorf("requests %+v", p.Requests)
	}
	if p.Seconds <= 0 || p.Seconds > 600 {
		t.Errorf("measured %v s", p.Seconds)
	}
	wantNothingLeft(t) // while the server still hangs
}

// wantNothingLeft looks for goroutines of the load test by the functions they are in. Those that it waits for are gone at once, the SDK's
// connections a moment later.
func wantNothingLeft(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(timeoutMax); ; time.Sleep(10 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		for _, own := range []string{"/loadtest.(*run).", "/loadtest.(*worker).", "/loadtest.(*client).", "/loadtest.(*sleeper).", "/loadtest.parallel"} {
			if strings.Contains(stacks, own) {
				t.Fatalf("%s is running still:\n%s", own, stacks)
			}
		}
		if !strings.Contains(stacks, "net/http.(*persistConn)") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("connections of the SDK are open still:\n%s", stacks)
		}
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
	cfg.Rate, cfg.Duration, cfg.grace = 0.01, time.Hour, timeoutMax
	start := time.Now()
	p, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if p.Requests.Succeeded != 1 || p.Schedule.Missed != 0 || time.Since(start) > timeoutMax {
		t.Fatalf("requests %+v, schedule %+v after %v", p.Requests, p.Schedule, time.Since(start))
	}
}

// Run leaves no goroutine behind.
func TestNoGoroutineLeft(t *testing.T) {
	k := newFakeKMS(t, nil)
	for _, rate := range []float64{0, 1000} {
		cfg := testConfig(k.url)
		cfg.Rate, cfg.Duration = rate, 50*time.Millisecond
		mustRun(t, cfg)
		wantNothingLeft(t)
	}
}
