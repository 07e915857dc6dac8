//go:build !race

package p11

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// TestAllocRound counts Go's heap only: what a module does in C is its own.
func TestAllocRound(t *testing.T) {
	token := opener(t, hsmtest.SoftHSM(t))(t)
	defer token.Close()
	s, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	in, out, random := make([]byte, 96), make([]byte, 96), make([]byte, 48)
	run := func(n int) {
		for range n {
			if err := s.Round(in, out, random); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(100)
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(10_000)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > 5 { // ReadMemStats and the runtime's own background work
		t.Errorf("%d allocations in 10 000 rounds", n)
	}
}

// TestAllocUse: no mechanism allocates in Use, whatever it takes: a raw decryption, an ended stream, a derived secret.
func TestAllocUse(t *testing.T) {
	for name, uri := range map[string]func(testing.TB) string{"SoftHSM": hsmtest.SoftHSM, "NSS": hsmtest.NSS} {
		t.Run(name, func(t *testing.T) {
			token := opener(t, uri(t))(t).(*Token)
			defer token.Close()
			// How often, by what one takes: 10 000 MACs are done before 200 decryptions.
			for spec, times := range map[keyspec.Spec]int{keyspec.HMAC256: 10_000, keyspec.AES256: 10_000, keyspec.P256: 500, keyspec.RSA2048: 100} {
				s, k, public := keySession(t, token, spec)
				out := make([]byte, spec.Info().Result)
				for _, m := range mechanismsOf(spec) {
					in, err := speedInput(spec, m, public)
					if err != nil {
						t.Fatal(err)
					}
					use := func() {
						if _, err := s.Use(k, spec, m, in, out); err != nil {
							t.Fatal(err)
						}
					}
					use()
					if n := alloctest.Mallocs(times, use); n != 0 {
						t.Errorf("%v, mechanism %d: %d allocations in %d uses", spec, m, n, times)
					}
					block, image := []byte(hsm.RootIDBlock), make([]byte, 16)
					if n := alloctest.Mallocs(50, func() {
						if err := s.Round(block, image, nil); err != nil {
							t.Fatal(err)
						}
						use()
					}); n != 0 {
						t.Errorf("%v, mechanism %d: %d allocations in 50 uses between rounds", spec, m, n)
					}
				}
				s.Close()
			}
		})
	}
}
