package hsmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
)

// TestToken holds a token to the contracts of hsm.Token and hsm.Session. open opens the token under test, the same one every time, with
// its roots and audit key made; the suite closes what it opens.
func TestToken(t *testing.T, open func(t testing.TB) hsm.Token) {
	t.Run("Round", func(t *testing.T) { withSession(t, open, testRound) })
	t.Run("RoundSizes", func(t *testing.T) { withSession(t, open, testSizes) })
	t.Run("RandomOnly", func(t *testing.T) { withSession(t, open, testRandom) })
	t.Run("Roots", func(t *testing.T) { testRoots(t, open) })
	t.Run("Agreement", func(t *testing.T) { testAgreement(t, open) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, open) })
	t.Run("Reset", func(t *testing.T) { testReset(t, open) })
	t.Run("Closed", func(t *testing.T) { testClosed(t, open) })
	t.Run("Reopen", func(t *testing.T) { testReopen(t, open) })
	t.Run("Audit", func(t *testing.T) { testAudit(t, open) })
}

func withSession(t *testing.T, open func(t testing.TB) hsm.Token, f func(*testing.T, hsm.Session)) {
	token := open(t)
	defer mustClose(t, token)
	s := mustSession(t, token)
	f(t, s)
	mustClose(t, s)
}

func mustSession(t testing.TB, token hsm.Token) hsm.Session {
	t.Helper()
	s, err := token.OpenSession()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustClose(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

func mustRound(t testing.TB, s hsm.Session, in []byte, randomLen int) (out, random []byte) {
	t.Helper()
	out, random = make([]byte, len(in)), make([]byte, randomLen)
	if err := s.Round(in, out, random); err != nil {
		t.Fatal(err)
	}
	return out, random
}

// pattern is n distinct blocks.
func pattern(n int) []byte {
	var b []byte
	for i := range n {
		b = binary.BigEndian.AppendUint64(b, 0x6b65_7970_6c61_6e65)
		b = binary.BigEndian.AppendUint64(b, uint64(i))
	}
	return b
}

// testRound checks that the blocks go through one block cipher, each on its own, and that random comes along.
func testRound(t *testing.T, s hsm.Session) {
	in := append(pattern(3), pattern(1)...)
	before := bytes.Clone(in)
	out, random := mustRound(t, s, in, 64)
	if !bytes.Equal(in, before) {
		t.Error("the input was changed")
	}
	if !bytes.Equal(out[:16], out[48:]) {
		t.Error("equal blocks have different images: not ECB")
	}
	if bytes.Equal(out[:16], out[16:32]) || bytes.Equal(out[:16], in[:16]) {
		t.Error("different blocks have equal images")
	}
	if bytes.Equal(random[:32], random[32:]) || bytes.Equal(random, make([]byte, 64)) {
		t.Error("random is not random")
	}
}

func testSizes(t *testing.T, s hsm.Session) {
	images := map[string]int{}
	var long []byte
	for _, n := range []int{1, 2, 64, 1024, 6145} { // 6145 is 1024 jobs of six blocks and the canary's
		out, _ := mustRound(t, s, pattern(n), 0)
		if !bytes.HasPrefix(out, long) {
			t.Fatalf("%d blocks: the images of the first ones depend on how many follow", n)
		}
		long = out
	}
	for i := 0; i < len(long); i += 16 {
		if prev, ok := images[string(long[i:i+16])]; ok {
			t.Fatalf("blocks %d and %d have the same image", prev, i/16)
		}
		images[string(long[i:i+16])] = i / 16
	}
	if err := s.Round(nil, nil, nil); err != nil {
		t.Errorf("empty round: %v", err)
	}
}

func testRandom(t *testing.T, s hsm.Session) {
	seen := map[string]bool{}
	for range 32 {
		_, random := mustRound(t, s, nil, 1024)
		for i := 0; i < len(random); i += 16 {
			if seen[string(random[i:i+16])] {
				t.Fatal("random repeats")
			}
			seen[string(random[i:i+16])] = true
		}
	}
	_, odd := mustRound(t, s, nil, 1)
	if len(odd) != 1 {
		t.Error("one byte of random")
	}
}

func testRoots(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	defer mustClose(t, token)
	roots, err := token.Roots()
	if err != nil {
		t.Fatal(err)
	}
	s := mustSession(t, token)
	out, _ := mustRound(t, s, []byte(hsm.RootIDBlock), 0)
	if hsm.RootID(out[:8]) != roots.ID || roots.ID == (hsm.RootID{}) {
		t.Errorf("root ID %x, image %x", roots.ID, out)
	}
	mustClose(t, s)
	if info := token.Info(); info.Label == "" || info.Serial == "" || info.Module == "" {
		t.Errorf("incomplete info: %+v", info)
	}
}

func testAgreement(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	defer mustClose(t, token)
	a, b := mustSession(t, token), mustSession(t, token)
	outA, randomA := mustRound(t, a, pattern(9), 32)
	outB, randomB := mustRound(t, b, pattern(9), 32)
	if !bytes.Equal(outA, outB) {
		t.Error("two sessions give different images")
	}
	if bytes.Equal(randomA, randomB) {
		t.Error("two sessions give equal random")
	}
	mustClose(t, a)
	if out, _ := mustRound(t, b, pattern(9), 0); !bytes.Equal(out, outB) {
		t.Error("closing one session changed the other")
	}
	mustClose(t, b)
	// The anchor must have kept the login when the last working session was closed.
	c := mustSession(t, token)
	if out, _ := mustRound(t, c, pattern(9), 0); !bytes.Equal(out, outB) {
		t.Error("a later session gives another image")
	}
	mustClose(t, c)
}

func testConcurrent(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	defer mustClose(t, token)
	first := mustSession(t, token)
	want, _ := mustRound(t, first, pattern(40), 0)
	var wg sync.WaitGroup
	faults := make(chan error, 8)
	for range 4 {
		s := mustSession(t, token)
		wg.Go(func() {
			in, out, random := pattern(40), make([]byte, 640), make([]byte, 48)
			for range 50 {
				if err := s.Round(in, out, random); err != nil {
					faults <- err
					return
				}
				if !bytes.Equal(out, want) {
					faults <- errors.New("wrong image")
					return
				}
			}
			if err := s.Close(); err != nil {
				faults <- err
			}
		})
	}
	wg.Wait()
	close(faults)
	for err := range faults {
		t.Error(err)
	}
	mustClose(t, first)
}

func testReset(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	defer mustClose(t, token)
	old := mustSession(t, token)
	want, _ := mustRound(t, old, pattern(2), 0)
	generation := token.Generation()
	if err := token.Reset(); err != nil {
		t.Fatal(err)
	}
	if token.Generation() == generation {
		t.Error("Reset did not begin a new generation")
	}
	out, random := bytes.Repeat([]byte{0xaa}, 32), bytes.Repeat([]byte{0xaa}, 32)
	err := old.Round(pattern(2), out, random)
	var e *hsm.Error
	if !errors.As(err, &e) || e.CKR != hsm.CKR_SESSION_HANDLE_INVALID {
		t.Errorf("session of an old generation: %v", err)
	}
	wiped(t, out, random)
	_ = old.Close() // a dead session may or may not be closable
	s := mustSession(t, token)
	if out, _ := mustRound(t, s, pattern(2), 0); !bytes.Equal(out, want) {
		t.Error("another image after Reset")
	}
	mustClose(t, s)
}

func testClosed(t *testing.T, open func(t testing.TB) hsm.Token) {
	token := open(t)
	s := mustSession(t, token)
	mustClose(t, s)
	mustClose(t, s) // twice is once
	out, random := bytes.Repeat([]byte{0xaa}, 32), bytes.Repeat([]byte{0xaa}, 32)
	if err := s.Round(pattern(2), out, random); !errors.Is(err, hsm.ErrSessionClosed) {
		t.Errorf("round on a closed session: %v", err)
	}
	wiped(t, out, random)
	mustClose(t, token)
	mustClose(t, token)
	if s, err := token.OpenSession(); err == nil {
		t.Errorf("session %v on a closed token", s)
	}
}

func testReopen(t *testing.T, open func(t testing.TB) hsm.Token) {
	var images []string
	for range 2 {
		token := open(t)
		s := mustSession(t, token)
		out, _ := mustRound(t, s, pattern(1), 0)
		images = append(images, fmt.Sprintf("%x", out))
		mustClose(t, s)
		mustClose(t, token)
	}
	if images[0] != images[1] {
		t.Errorf("images before and after reopening: %v", images)
	}
}

// wiped checks that a failed round left nothing in the outputs.
func wiped(t testing.TB, bufs ...[]byte) {
	t.Helper()
	for _, b := range bufs {
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Error("outputs not wiped after an error")
		}
	}
}
