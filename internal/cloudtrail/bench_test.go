package cloudtrail

import (
	"testing"

	"github.com/keyplane/keyplane/internal/authz"
)

// BenchmarkGenerateDataKey fills and writes one record, its objects included.
func BenchmarkGenerateDataKey(b *testing.B) {
	for name, c := range map[string]*authz.Caller{"user": user(), "session": session()} {
		b.Run("caller="+name, func(b *testing.B) {
			var r Record
			context := testContext()
			objects, out := make([]byte, 0, 4<<10), make([]byte, 0, 8<<10)
			b.ReportAllocs()
			for b.Loop() {
				objects = dataKey(&r, objects[:0], context, c)
				out = r.Append(out[:0])
			}
			b.ReportMetric(float64(len(out)), "B/record")
		})
	}
}
