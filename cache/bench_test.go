package cache

import (
	"fmt"
	"testing"
)

// BenchmarkGet is a hit, with names as long as the data plane's.
func BenchmarkGet(b *testing.B) {
	for _, keys := range []int{1, 100_000} {
		c := newCache[int](b, 256<<20)
		names := make([][]byte, keys)
		for i := range names {
			names[i] = fmt.Appendf(nil, "%025d", i)
			keep(b, c, string(names[i]), i)
		}
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				l, ok := c.Get(names[uint(i)*2654435761%uint(keys)])
				if !ok {
					b.Fatal("not kept")
				}
				l.Release()
			}
		})
		b.Run(fmt.Sprintf("keys=%d/parallel", keys), func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					l, ok := c.Get(names[uint(i)*2654435761%uint(keys)])
					if !ok {
						b.Fatal("not kept")
					}
					l.Release()
				}
			})
		})
	}
}
