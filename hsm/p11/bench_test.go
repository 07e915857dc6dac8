package p11

import (
	"fmt"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// BenchmarkRun is GenerateDataKey jobs through the shards on a module: three blocks, a drawn nonce and 32 bytes of random each.
func BenchmarkRun(b *testing.B) {
	for name, uri := range map[string]func(testing.TB) string{"softhsm": hsmtest.SoftHSM, "nss": hsmtest.NSS} {
		token := opener(b, uri(b))(b)
		for _, n := range []int{1, 8, 32, 256} {
			b.Run(fmt.Sprintf("token=%s/round=%d", name, n), func(b *testing.B) {
				s, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: n})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
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
			})
		}
		token.Close()
	}
}

// BenchmarkRound is the crossing alone, one job's blocks and random: with a session's working copy of the root, and with the root.
func BenchmarkRound(b *testing.B) {
	for name, uri := range map[string]func(testing.TB) string{"softhsm": hsmtest.SoftHSM, "nss": hsmtest.NSS} {
		token := opener(b, uri(b))(b).(*Token)
		for _, working := range []bool{true, false} {
			b.Run(fmt.Sprintf("token=%s/copy=%v", name, working), func(b *testing.B) {
				token.info.Software = working
				s, err := token.OpenSession()
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				in, out, random := make([]byte, 48), make([]byte, 48), make([]byte, 48)
				b.ReportAllocs()
				for b.Loop() {
					if err := s.Round(in, out, random); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		token.Close()
	}
}
