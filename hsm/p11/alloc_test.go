//go:build !race

package p11

import (
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/keyplane/keyplane/hsm/hsmtest"
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
