package dataplane

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// BenchmarkHandle is a signed request from the client's Write to the end of the reply, over an in-memory listener and keep-alive
// connections, with the soft token. Signing is not part of it. jobs/round says how many requests shared a call into the token.
func BenchmarkHandle(b *testing.B) {
	w := newWorld(b, worldConfig{plain: true})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	const context = `EncryptionContext":{"tenant":"t-1234"}`
	k1, k2 := keyID("k1").String(), keyID("k2").String()
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, map[string]string{"tenant": "t-1234"}, make([]byte, 32)))
	for _, c := range []struct{ op, body string }{
		{"GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256","` + context + `}`},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + k1 + `","KeySpec":"AES_256","` + context + `}`},
		{"Encrypt", `{"KeyId":"` + k1 + `","Plaintext":"` + base64.StdEncoding.EncodeToString(make([]byte, 32)) + `","` + context + `}`},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `","` + context + `}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + blob + `","Source` + context + `,"DestinationKeyId":"` + k2 + `"}`},
		{"GenerateRandom", `{"NumberOfBytes":32}`},
	} {
		raw := w.call(c.op, c.body)
		for _, conns := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/conns=%d", c.op, conns), func(b *testing.B) { benchmarkHandle(b, w, raw, conns) })
		}
	}
}

// BenchmarkHandleLease is GenerateDataKey in a process without and with a lease.
func BenchmarkHandleLease(b *testing.B) {
	lease := new(fence.Lease)
	lease.Extend(fence.Now() + time.Hour)
	for _, c := range []struct {
		name  string
		lease *fence.Lease
	}{{"none", nil}, {"lease", lease}} {
		w := newWorld(b, worldConfig{plain: true, server: Config{Lease: c.lease}})
		w.addKey("k1", kmsapi.StateEnabled, 1)
		raw := w.call("GenerateDataKey", `{"KeyId":"`+keyID("k1").String()+`","KeySpec":"AES_256","EncryptionContext":{"tenant":"t-1234"}}`)
		for _, conns := range []int{1, 16} {
			b.Run(fmt.Sprintf("%s/conns=%d", c.name, conns), func(b *testing.B) { benchmarkHandle(b, w, raw, conns) })
		}
	}
}

func benchmarkHandle(b *testing.B, w *world, raw []byte, conns int) {
	before := w.batcher.Stats()
	var left atomic.Int64
	left.Store(int64(b.N))
	clients := make([]net.Conn, conns)
	sizes := make([]int, conns)
	buf := make([][]byte, conns)
	for i := range clients {
		var err error
		clients[i], err = w.dial()
		w.must(err)
		defer clients[i].Close()
		buf[i] = make([]byte, 16<<10)
		sizes[i] = firstReply(b, clients[i], raw, buf[i])
	}
	b.ReportAllocs()
	used := processor()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := c.Write(raw); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, buf[i][:sizes[i]]); err != nil || !bytes.HasPrefix(buf[i], []byte("HTTP/1.1 200")) {
					b.Errorf("%v, %.40q", err, buf[i])
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(processor()-used)/float64(b.N), "cpu-ns/op") // of client and server; on a busy machine what can be compared
	after := w.batcher.Stats()
	b.ReportMetric(float64(after.Jobs-before.Jobs)/float64(max(1, after.Rounds-before.Rounds)), "jobs/round")
}

// processor is the time that this process has used of processors.
func processor() time.Duration {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r) // it does not fail
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// firstReply sends raw and returns the length of the reply, which is the same for each of the same request: everything that differs
// (date, request ID, random bytes) has a fixed length.
func firstReply(t testing.TB, c net.Conn, raw, buf []byte) int {
	t.Helper()
	if _, err := c.Write(raw); err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += m
		head, _, ok := strings.Cut(string(buf[:n]), "\r\n\r\n")
		if !ok {
			continue
		}
		_, length, _ := strings.Cut(head, "Content-Length: ")
		var body int
		if _, err := fmt.Sscan(length, &body); err != nil {
			t.Fatal(err)
		}
		if n >= len(head)+4+body {
			return len(head) + 4 + body
		}
	}
}
