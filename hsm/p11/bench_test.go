package p11

import (
	"fmt"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// BenchmarkRun is GenerateDataKey jobs through the shards on a module: three blocks, a drawn nonce and 32 bytes of random each.
func BenchmarkRun(b *testing.B) {
	for name, uri := range map[string]func(testing.TB) string{"softhsm": hsmtest.SoftHSM, "nss": hsmtest.NSS} {
		token := opener(b, uri(b))(b)
		for _, n := range []int{1, 8, 32, 256} {
			b.Run(fmt.Sprintf("token=%s/round=%d", name, n), func(b *testing.B) {
				s, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: n, VerifyEvery: 256})
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

// BenchmarkKeys is the module's own rate of operations with keys, in a plain loop on one and two sessions: what SpeedOf measures in a second.
func BenchmarkKeys(b *testing.B) {
	for name, uri := range map[string]func(testing.TB) string{"softhsm": hsmtest.SoftHSM, "nss": hsmtest.NSS} {
		for _, c := range []struct {
			name string
			spec keyspec.Spec
			m    hsm.Mechanism
		}{
			{"ecdsa-p256", keyspec.P256, hsm.SignECDSA}, {"rsa2048-pss", keyspec.RSA2048, hsm.SignPSS256}, {"ed25519", keyspec.Ed25519, hsm.SignEd25519},
			{"hmac256", keyspec.HMAC256, hsm.MAC}, {"rsa2048-oaep256", keyspec.RSA2048, hsm.DecryptOAEP256}, {"ecdh-p256", keyspec.P256, hsm.DeriveECDH},
		} {
			for _, sessions := range []int{1, 2} {
				b.Run(fmt.Sprintf("token=%s/operation=%s/sessions=%d", name, c.name, sessions), func(b *testing.B) {
					if name == "nss" && c.spec == keyspec.Ed25519 {
						b.Skip("the module does not have it")
					}
					fresh := uri(b)
					for b.Loop() {
						perSecond, err := SpeedOf(fresh, c.spec, c.m, sessions, time.Second)
						if err != nil {
							b.Fatal(err)
						}
						b.ReportMetric(perSecond, "op/s")
					}
				})
			}
		}
	}
}

// BenchmarkUse is an operation with a key through the session: the crossing and what is around it.
func BenchmarkUse(b *testing.B) {
	for name, uri := range map[string]func(testing.TB) string{"softhsm": hsmtest.SoftHSM, "nss": hsmtest.NSS} {
		token := opener(b, uri(b))(b).(*Token)
		s, k, _ := keySession(b, token, keyspec.HMAC256)
		b.Run("token="+name+"/operation=hmac256", func(b *testing.B) {
			in, out := make([]byte, 32), make([]byte, 32)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Use(k, keyspec.HMAC256, hsm.MAC, in, out); err != nil {
					b.Fatal(err)
				}
			}
		})
		s.Close()
		token.Close()
	}
}
