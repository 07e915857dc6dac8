//go:build !race

package loadtest

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

// In steady state a request allocates nothing: not its exchange, not the check, not the record; in both loops. The generator's garbage
// would otherwise be the server's latency. The peer here is a bare connection that does not allocate either.
func TestAllocNothing(t *testing.T) {
	// fasthttp keeps buffers of the sizes that were usual in the last 42 000 replies of the whole process, so those of other tests have to be
	// outnumbered first.
	const warm = 50_000
	for _, rate := range []float64{0, 20_000} {
		w := benchWorker(t, rate)
		for range warm {
			w.one(t.Context(), w.mustNext(t))
		}
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		const runs = 10_000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range runs {
			w.one(t.Context(), w.mustNext(t))
		}
		runtime.ReadMemStats(&after)
		// A few are the runtime's own, for example a sudog after a cache ran empty; one per hundred requests would be 100.
		if n := after.Mallocs - before.Mallocs; n > 20 {
			t.Errorf("rate %v: %d allocations in %d requests", rate, n, runs)
		}
		if sum := w.run.recorder.total(); sum.succeeded != runs+warm {
			t.Fatalf("%d of %d requests succeeded: %v", sum.succeeded, runs+warm, sum.examples)
		}
	}
}

func (w *worker) mustNext(t testing.TB) time.Duration {
	t.Helper()
	due, ok := w.next()
	if !ok {
		t.Fatal("the window is closed")
	}
	return due
}

// benchWorker is a worker of GenerateDataKey whose server answers whatever arrives with one fixed, good reply.
func benchWorker(t testing.TB, rate float64) *worker {
	t.Helper()
	body := `{"CiphertextBlob":"` + base64Of(117) + `","KeyId":"arn","Plaintext":"` + base64Of(32) + `"}`
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	cfg := DefaultConfig()
	cfg.Rate = rate
	one := &target{keyARN: "arn", signed: make([]atomic.Pointer[[]byte], 1)}
	request := []byte("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
	one.signed[0].Store(&request)
	answer := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, len(request))
		for n := byte(0); ; n++ {
			if _, err := io.ReadFull(conn, buf); err != nil {
				return
			}
			answer[len(answer)-20] = 'A' + n%8 // inside Plaintext, so that it never repeats the last one
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}()
	to, err := parseEndpoint("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Warmup = 0
	r := newRun(&setup{op: findOperation("GenerateDataKey"), dialers: []*dialer{{to: to, timeout: timeoutMax}}, targets: []*target{one},
		distribution: newDistribution(Uniform, 1)}, &cfg)
	r.base = time.Now()
	r.closes.Store(int64(time.Hour))
	w := newWorker(r, 0)
	t.Cleanup(func() { w.client.close(); w.sleep.close() })
	return w
}
