package loadtest

import (
	"strconv"
	"testing"
	"time"

	"github.com/valyala/fasthttp"
)

// BenchmarkCeiling is how much the generator can ask: against a server that only echoes a fixed reply, in the same process, on the same
// processors. What a real server reaches in a load test is far enough below this, or the load test measured itself.
func BenchmarkCeiling(b *testing.B) {
	for _, conns := range []int{16, 64, 256} {
		b.Run("conns="+strconv.Itoa(conns), func(b *testing.B) {
			setAWSEnvironment(b)
			body := []byte(`{"Plaintext":"` + base64Of(15) + `"}`)
			url := serve(b, nil, func(ctx *fasthttp.RequestCtx) { ctx.SetBody(body) })
			cfg := testConfig(url)
			cfg.Operation, cfg.Payload, cfg.Concurrency, cfg.Warmup, cfg.Duration = "GenerateRandom", 15, conns, 100*time.Millisecond, time.Second
			var sum, p50, p99 float64
			n := 0
			for b.Loop() {
				p := mustRun(b, cfg)
				if p.Requests.Failed > 0 {
					b.Fatal(p.Errors)
				}
				sum, p50, p99, n = sum+p.Throughput, p50+p.Latency.P50, p99+p.Latency.P99, n+1
			}
			b.ReportMetric(sum/float64(n), "requests/s")
			b.ReportMetric(p50/float64(n), "p50-µs")
			b.ReportMetric(p99/float64(n), "p99-µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkSign is one target's signature: what is done for each key once a minute.
func BenchmarkSign(b *testing.B) {
	s := testSigner(b)
	targets := []*target{{body: []byte(`{"KeyId":"alias/keyplane-loadtest-0","KeySpec":"AES_256"}`)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.signAll(b.Context(), targets); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPace is how late a request starts that is due at a rate: the error an open loop adds to each latency.
func BenchmarkPace(b *testing.B) {
	for _, rate := range []float64{100, 1000, 10_000} {
		measure := func(name string, wait func(s *sleeper, r *run, due time.Duration)) {
			b.Run("sleep="+name+"/rate="+strconv.Itoa(int(rate)), func(b *testing.B) {
				r := &run{base: time.Now(), stopped: make(chan struct{})}
				s := newSleeper()
				defer s.close()
				late := newHistogram()
				for b.Loop() {
					due := r.now() + time.Duration(float64(time.Second)/rate)
					wait(s, r, due)
					record(late, r.now()-due)
				}
				b.ReportMetric(micros(late.ValueAtQuantile(50)), "late-p50-µs")
				b.ReportMetric(micros(late.ValueAtQuantile(99)), "late-p99-µs")
			})
		}
		measure("precise", func(s *sleeper, r *run, due time.Duration) { s.until(r, due) })
		measure("runtime", func(_ *sleeper, r *run, due time.Duration) { time.Sleep(due - r.now()) })
	}
}
