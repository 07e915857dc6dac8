package loadtest

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// twoNodes is a fake KMS behind two addresses; its fault sees which of them a request came to as ctx.LocalAddr.
func twoNodes(t *testing.T) (k *fakeKMS, urls []string) {
	k = newFakeKMS(t, nil)
	return k, []string{k.url, serve(t, nil, k.handle)}
}

// Connections go to the endpoints in turn, each endpoint gets requests signed for it, and the report has each endpoint's part.
func TestEndpoints(t *testing.T) {
	k, urls := twoNodes(t)
	second := strings.TrimPrefix(urls[1], "http://")
	var firsts, seconds atomic.Int64 // requests by endpoint
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, _ int64) bool {
		if ctx.LocalAddr().String() != second {
			firsts.Add(1)
			return false
		}
		if seconds.Add(1)%2 == 0 {
			return false
		}
		refuse(ctx, kmsapi.Throttling, "second")
		return true
	}
	for _, rate := range []float64{0, 1000} {
		cfg := testConfig("")
		cfg.Endpoints, cfg.Concurrency, cfg.Rate, cfg.Keys = urls, 5, rate, 3
		firsts.Store(0)
		seconds.Store(0)
		p := k.runUntil(cfg, func(int64) bool { return firsts.Load() >= 10 && seconds.Load() >= 10 })
		if k.unsigned.Load() != 0 {
			t.Fatalf("%d requests did not verify", k.unsigned.Load())
		}
		if len(p.Endpoints) != 2 || p.Endpoints[0].URL != urls[0] || p.Endpoints[1].URL != urls[1] {
			t.Fatalf("endpoints %+v", p.Endpoints)
		}
		a, b := p.Endpoints[0], p.Endpoints[1]
		if a.Workers != 3 || b.Workers != 2 {
			t.Errorf("connections %d and %d, want 3 and 2", a.Workers, b.Workers)
		}
		if a.Requests.Succeeded == 0 || a.Requests.Failed != 0 || len(a.Errors) != 0 || a.Throughput <= 0 || a.Latency.P50 <= 0 {
			t.Errorf("first endpoint %+v", a)
		}
		if b.Requests.Succeeded == 0 || b.Requests.Failed == 0 || len(b.Errors) != 1 || b.Errors[0].Example != "second" {
			t.Errorf("second endpoint %+v", b)
		}
		q, r := a.Requests, b.Requests
		if sum := (Requests{q.Sent + r.Sent, q.Succeeded + r.Succeeded, q.Failed + r.Failed, q.Refused + r.Refused, 0}); sum != p.Requests || r.Refused != r.Failed {
			t.Errorf("endpoints together %+v, report %+v", sum, p.Requests)
		}
		var text bytes.Buffer
		if err := p.WriteText(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{" at " + urls[0] + ", " + urls[1] + " (", "endpoint    " + urls[1] + ": ", " over 2 connections, p50 "} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("no %q in\n%s", want, text.String())
			}
		}
	}
}

// One endpoint that is down does not stop the run: it is said at once and its requests are counted as refused. All down is an error.
func TestEndpointDown(t *testing.T) {
	k := newFakeKMS(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "http://" + listener.Addr().String()
	listener.Close()
	cfg := testConfig("")
	cfg.Endpoints = []string{k.url, down}
	enough := time.Now().Add(300 * ms) // time for the connections to the one that is down to be tried
	p := k.runUntil(cfg, func(n int64) bool { return n >= 20 && time.Now().After(enough) })
	a, b := p.Endpoints[0].Requests, p.Endpoints[1].Requests
	if a.Succeeded == 0 || a.Failed != 0 || b.Succeeded != 0 || b.Failed == 0 || p.count(kindConnectionRefused) != b.Failed {
		t.Errorf("requests %+v and %+v, errors %+v", a, b, p.Errors)
	}
	if !strings.Contains(strings.Join(p.Notes, "\n"), "cannot connect to "+down) {
		t.Errorf("notes %q", p.Notes)
	}

	cfg.Endpoints = []string{down, k.url} // set-up goes where it can
	if p := k.runUntil(cfg, func(n int64) bool { return n >= 20 }); p.Endpoints[1].Requests.Failed != 0 || p.Endpoints[1].Requests.Succeeded == 0 {
		t.Errorf("first endpoint down: %+v", p.Endpoints)
	}

	cfg.Endpoints = []string{down, strings.Replace(down, "127.0.0.1", "127.0.0.2", 1)}
	if _, err := Run(t.Context(), cfg); err == nil || strings.Count(err.Error(), "cannot connect to ") != 2 {
		t.Errorf("all endpoints down: %v", err)
	}
}

func TestEndpointLimits(t *testing.T) {
	urls := func(n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("http://node-%d", i))
		}
		return all
	}
	for _, c := range []struct {
		endpoints   []string
		concurrency int
		want        string // part of the error; "" is none
	}{
		{nil, 1, ""},
		{urls(endpointsMax), endpointsMax, ""},
		{urls(endpointsMax), endpointsMax - 1, "concurrency must be at least"},
		{urls(endpointsMax + 1), 1000, "endpoints must be at most 64"},
		{[]string{"http://a", "http://b", "http://a/"}, 64, "http://a is named twice"},
		{[]string{"http://a", "https://a"}, 64, ""},
		{[]string{"http://a", ""}, 64, "endpoint must be a URL"},
	} {
		cfg := DefaultConfig()
		cfg.Endpoints, cfg.Concurrency = c.endpoints, c.concurrency
		if err := cfg.validate(); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%d endpoints, concurrency %d: %v, want %q", len(c.endpoints), c.concurrency, err, c.want)
		}
	}
	cfg := DefaultConfig()
	cfg.Keys = keysMax
	if err := cfg.validate(); err != nil {
		t.Error(err)
	}
	cfg.Endpoints = urls(4) // each endpoint's requests take memory
	if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), "endpoints") {
		t.Errorf("100 000 keys at four endpoints: %v", err)
	}
}
