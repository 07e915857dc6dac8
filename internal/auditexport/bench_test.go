package auditexport

import (
	"fmt"
	"iter"
	"runtime"
	"testing"
	"time"
)

// BenchmarkExport is a record of 1.2 KB of one of 20 accounts, 200 a second.
func BenchmarkExport(b *testing.B) {
	var accounts [20]string
	for i := range accounts {
		accounts[i] = fmt.Sprintf("1111222233%02d", i)
	}
	cfg := config(b.TempDir(), nil)
	cfg.Records = func(uint64) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			for i := range b.N {
				if !yield(call(i, t0.Add(time.Duration(i)*5*time.Millisecond), east, accounts[i%20], accounts[i%20]), nil) {
					return
				}
			}
		}
	}
	b.ResetTimer()
	mustExport(b, cfg)
	b.StopTimer()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-of-memory")
	if b.N > 1 {
		start := time.Now()
		mustValidate(b, cfg.Dir)
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/float64(b.N), "ns-to-validate/op")
	}
}
