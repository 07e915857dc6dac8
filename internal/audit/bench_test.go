package audit

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// BenchmarkAppend measures one record, hashing, checkpoints and rotation included, with n goroutines that append one after the other.
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
				b.ReportMetric(float64(s.Records)/float64(s.Commits), "records/commit")
				mustClose(b, l)
			})
		}
	}
}
