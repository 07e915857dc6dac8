package hsm_test

import (
	"fmt"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// BenchmarkRun is GenerateDataKey jobs: three blocks, a drawn nonce and 32 bytes of random each. ns/op is per round.
func BenchmarkRun(b *testing.B) {
	for name, token := range map[string]hsm.Token{"soft": softToken(b), "soft-watched": hsmtest.NewFaulty(softToken(b))} {
		for _, n := range []int{1, 8, 32, 256} {
			b.Run(fmt.Sprintf("token=%s/round=%d", name, n), func(b *testing.B) {
				s := newShards(b, hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: n})
				benchmarkRun(b, s, n)
			})
		}
	}
}

func benchmarkRun(b *testing.B, s *hsm.Shards, n int) {
	round := make([]*hsm.Job, n)
	for i := range round {
		round[i] = &hsm.Job{N: 1, Root: s.Primary(), Random: make([]byte, 32)}
		round[i].Derive[0].Draw = true
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Run(0, round)
	}
	if round[0].Err != nil {
		b.Fatal(round[0].Err)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/job")
}
