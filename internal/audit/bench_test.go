package audit

import (
	"fmt"
	"math"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkAppend measures one record, with n goroutines that append one after the other: the time, and the processor time of the whole process, so
// with hashing, checkpoints, rotation and compression.
func BenchmarkAppend(b *testing.B) {
	for _, d := range []Durability{Write, Fsync} {
		for _, n := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("durability=%v/goroutines=%d", d, n), func(b *testing.B) {
				cfg := testConfig(b.TempDir())
				cfg.Durability, cfg.CheckpointEvery = d, 5*time.Second
				l := mustOpen(b, cfg)
				rec := record(1)
				b.SetBytes(int64(len(rec)))
				b.ReportAllocs()
				var wg sync.WaitGroup
				b.ResetTimer()
				cpu := processorTime(b)
				for i := range n {
					wg.Go(func() {
						for range (b.N + n - 1 - i) / n {
							if err := l.Append(rec); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				s := l.Stats()
				await(b, "integration", func() bool { return l.Stats().Integrated == s.Next })
				b.ReportMetric(float64(processorTime(b)-cpu)/float64(b.N), "cpu-ns/op")
				b.ReportMetric(float64(s.Records)/float64(s.Commits), "records/commit")
				mustClose(b, l)
			})
		}
	}
}

func processorTime(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// makeLong is a log of n records of real size, with compressed segments.
func makeLong(t testing.TB, n int) string {
	t.Helper()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes, cfg.CheckpointEvery = 32<<20, 100*time.Millisecond
	l := mustOpen(t, cfg)
	var wg sync.WaitGroup
	const callers = 16
	for c := range callers {
		wg.Go(func() {
			for i := c; i < n; i += callers {
				if err := l.Append(record(i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	await(t, "compression", func() bool { f, err := list(cfg.Dir); return err == nil && len(f.plain) == 1 })
	mustClose(t, l)
	return cfg.Dir
}

func BenchmarkVerify(b *testing.B) {
	const n = 500_000
	dir := makeLong(b, n)
	b.ResetTimer()
	for b.Loop() {
		mustVerify(b, dir, nil)
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Minutes(), "records/min")
}

// TestVerifySpeed: at least a million records a minute. A log of a tenth of that is timed.
func TestVerifySpeed(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a long log")
	}
	dir := makeLong(t, 100_000)
	rate := 0.0
	for range 3 {
		r := mustVerify(t, dir, nil)
		rate = math.Max(rate, float64(r.Records)/r.Took.Minutes())
	}
	t.Logf("%.0f records a minute", rate)
	if rate < 1e6 {
		t.Errorf("%.0f records a minute, want a million", rate)
	}
}
