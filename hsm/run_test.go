package hsm_test

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
)

// soft tokens cost a slow key derivation each, so the tests share two, which have different roots. Nothing closes or resets them but
// through a wrapper of its own.
var softTokens = sync.OnceValues(func() (tokens [2]hsm.Token, err error) {
	for i := range tokens {
		dir, err := os.MkdirTemp("", "keyplane-soft-")
		if err != nil {
			return tokens, err
		}
		defer os.RemoveAll(dir)
		if tokens[i], err = softtoken.Open(softtoken.Config{Dir: dir, Create: true}); err != nil {
			return tokens, err
		}
	}
	return tokens, nil
})

func softToken(t testing.TB) hsm.Token { return softTokenN(t, 0) }

func softTokenN(t testing.TB, n int) hsm.Token {
	t.Helper()
	tokens, err := softTokens()
	if err != nil {
		t.Fatal(err)
	}
	return tokens[n]
}

func newShards(t testing.TB, cfg hsm.ShardsConfig) *hsm.Shards {
	t.Helper()
	s, err := hsm.NewShards(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// kdfInput is the KDF input of docs/ciphertext.md §3 written out once more, against which internal/kdf is checked through the whole round.
func kdfInput(offset [16]byte, nonce [24]byte, i byte) (b [16]byte) {
	m := append([]byte{0, i, 'X', 0}, nonce[:12]...)
	for k := range b {
		b[k] = m[k] ^ offset[k]
	}
	return b
}

// encrypt encrypts blocks on the shards as Raw jobs, so that derivations can be checked against the token's own bare AES.
func encrypt(t testing.TB, s *hsm.Shards, root hsm.RootID, blocks ...[16]byte) []byte {
	t.Helper()
	var out []byte
	for _, b := range blocks {
		j := &hsm.Job{Raw: true, Root: root}
		copy(j.RawIn[:], b[:])
		copy(j.RawIn[16:], b[:])
		n, err := s.Pick(root, 0)
		if err != nil {
			t.Fatal(err)
		}
		s.Run(n, []*hsm.Job{j})
		if j.Err != nil {
			t.Fatal(j.Err)
		}
		if !bytes.Equal(j.RawOut[:16], j.RawOut[16:]) {
			t.Fatal("equal blocks have different images")
		}
		out = append(out, j.RawOut[:16]...)
	}
	return out
}

func TestRunMixedRound(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 2, RoundMax: 16})
	root := s.Primary()

	gen := &hsm.Job{N: 1, Root: root, Random: make([]byte, 32)}
	gen.Derive[0].Offset = [16]byte{1, 2, 3}
	gen.Derive[0].Draw = true
	re := &hsm.Job{N: 2, Root: root}
	re.Derive[0] = hsm.Derivation{Offset: [16]byte{4}, Nonce: [24]byte{5, 6}}
	re.Derive[1] = hsm.Derivation{Offset: [16]byte{7}, Draw: true}
	random := &hsm.Job{Random: make([]byte, 1024)}
	raw := &hsm.Job{Raw: true, Root: root}
	copy(raw.RawIn[:], hsm.RootIDBlock)
	foreign := &hsm.Job{N: 1, Root: hsm.RootID{9}}
	tooLong := &hsm.Job{Random: make([]byte, 1025)}
	empty := &hsm.Job{}

	s.Run(1, []*hsm.Job{gen, foreign, re, random, tooLong, raw, empty})

	for i, j := range []*hsm.Job{gen, re, random, raw, empty} {
		if j.Err != nil {
			t.Fatalf("job %d: %v", i, j.Err)
		}
	}
	if !errors.Is(foreign.Err, hsm.ErrNoRoot) || !errors.Is(tooLong.Err, hsm.ErrJob) {
		t.Fatalf("foreign %v, too long %v", foreign.Err, tooLong.Err)
	}
	if re.Derive[0].Nonce != ([24]byte{5, 6}) {
		t.Error("a given nonce was changed")
	}
	if gen.Derive[0].Nonce == re.Derive[1].Nonce || gen.Derive[0].Nonce == ([24]byte{}) {
		t.Error("nonces not drawn")
	}
	if bytes.Equal(gen.Random, make([]byte, 32)) || bytes.Equal(random.Random[:512], random.Random[512:]) {
		t.Error("random not drawn")
	}
	if hsm.RootID(raw.RawOut[:8]) != root {
		t.Error("the root block's image does not begin with the root's ID")
	}
	for _, d := range []hsm.Derivation{gen.Derive[0], re.Derive[0], re.Derive[1]} {
		want := encrypt(t, s, root, kdfInput(d.Offset, d.Nonce, 1), kdfInput(d.Offset, d.Nonce, 2), kdfInput(d.Offset, d.Nonce, 3))
		if !bytes.Equal(d.Out[:], want) {
			t.Errorf("derivation: %x, want %x", d.Out, want)
		}
	}
}

func TestRoundMax(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 1, RoundMax: 4})
	var round []*hsm.Job
	for range 5 {
		j := &hsm.Job{N: 2, Root: s.Primary(), Random: make([]byte, hsm.RandomMax)}
		j.Derive[0].Draw, j.Derive[1].Draw = true, true
		round = append(round, j)
	}
	seen := map[[24]byte]bool{}
	for range 50 {
		s.Run(0, round)
		for i, j := range round[:4] {
			if j.Err != nil {
				t.Fatalf("job %d of a full round: %v", i, j.Err)
			}
			for _, d := range j.Derive {
				if seen[d.Nonce] {
					t.Fatal("a nonce came twice")
				}
				seen[d.Nonce] = true
			}
		}
		if !errors.Is(round[4].Err, hsm.ErrJob) {
			t.Fatalf("one job too many: %v", round[4].Err)
		}
	}
}

func TestJobLimits(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 1, RoundMax: 4})
	for name, j := range map[string]*hsm.Job{
		"three derivations": {N: 3, Root: s.Primary()},
		"minus one":         {N: -1, Root: s.Primary()},
		"raw and derive":    {N: 1, Raw: true, Root: s.Primary()},
		"random":            {Random: make([]byte, hsm.RandomMax+1)},
	} {
		s.Run(0, []*hsm.Job{j})
		if !errors.Is(j.Err, hsm.ErrJob) || hsm.Retryable(j.Err) {
			t.Errorf("%s: %v", name, j.Err)
		}
	}
	s.Run(0, nil)
}

// counter is a token whose random is a counter, so that what is made of it can be told.
type counter struct{ hsm.Token }

type counterSession struct {
	hsm.Session
	n *byte
}

func (c counter) OpenSession() (hsm.Session, error) {
	s, err := c.Token.OpenSession()
	return counterSession{s, new(byte)}, err
}

func (c counterSession) Round(in, out, random []byte) error {
	err := c.Session.Round(in, out, nil)
	for i := range random {
		random[i] = *c.n
		*c.n++
	}
	return err
}

type ones struct{}

func (ones) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0xff
	}
	return len(p), nil
}

// TestNonceIsXOR: a nonce is the two generators' bytes added, and the token's were drawn by an earlier crossing.
func TestNonceIsXOR(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{counter{softToken(t)}}, SessionsPerToken: 1, RoundMax: 1, OS: ones{}})
	// The session drew its two nonces, 0..47, and the block for the health test, 48..63, when it was opened.
	// A round draws 64 bytes: 16 of data key, the 24 it spent, 8 up to whole blocks, and a block for the test.
	for i, first := range []byte{0, 80, 144} {
		j := &hsm.Job{N: 1, Root: s.Primary(), Random: make([]byte, 16)}
		j.Derive[0].Draw = true
		s.Run(0, []*hsm.Job{j})
		if j.Err != nil {
			t.Fatal(j.Err)
		}
		for k, b := range j.Derive[0].Nonce {
			if b != 0xff^(first+byte(k)) {
				t.Fatalf("round %d: nonce %x does not come from %d", i, j.Derive[0].Nonce, first)
			}
		}
	}
}

func TestRootsAndPick(t *testing.T) {
	a, b := softTokenN(t, 0), softTokenN(t, 1)
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{a, b, a}, SessionsPerToken: 2, RoundMax: 4})
	roots := s.Roots()
	if len(roots) != 2 || roots[0] == roots[1] || s.Primary() != roots[0] || s.Len() != 6 {
		t.Fatalf("roots %x, primary %x, %d shards", roots, s.Primary(), s.Len())
	}
	used := map[int]bool{}
	for hint := range uint64(64) {
		n, err := s.Pick(roots[1], hint)
		if err != nil || s.Stats().Shards[n].Slot != 1 {
			t.Fatalf("hint %d: shard %d, %v", hint, n, err)
		}
		if again, _ := s.Pick(roots[1], hint); again != n {
			t.Fatal("equal hints, different shards")
		}
		n, err = s.Pick(hsm.RootID{}, hint)
		if err != nil {
			t.Fatal(err)
		}
		used[n] = true
		// The same root on another slot; failing that, another session of the same.
		if other, err := s.PickOther(roots[0], 0, hint); err != nil || s.Stats().Shards[other].Slot != 2 {
			t.Fatalf("other than 0: %d, %v", other, err)
		}
		if other, err := s.PickOther(roots[1], 1, hint); err != nil || other != 4 {
			t.Fatalf("other than 1: %d, %v", other, err)
		}
	}
	if len(used) != 6 {
		t.Errorf("hints reach %d shards of 6", len(used))
	}
	if _, err := s.Pick(hsm.RootID{1}, 0); !errors.Is(err, hsm.ErrNoRoot) {
		t.Errorf("unknown root: %v", err)
	}
	single := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{a}, SessionsPerToken: 1, RoundMax: 4})
	if n, err := single.PickOther(single.Primary(), 0, 5); err != nil || n != 0 {
		t.Errorf("the only shard: %d, %v", n, err)
	}
}

func TestConfig(t *testing.T) {
	tokens := []hsm.Token{softToken(t)}
	for name, test := range map[string]struct {
		cfg hsm.ShardsConfig
		ok  bool
	}{
		"smallest":      {hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 1}, true},
		"largest":       {hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 1024}, true},
		"too large":     {hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 1025}, false},
		"no round":      {hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1}, false},
		"no sessions":   {hsm.ShardsConfig{Tokens: tokens, RoundMax: 1}, false},
		"no tokens":     {hsm.ShardsConfig{SessionsPerToken: 1, RoundMax: 1}, false},
		"negative time": {hsm.ShardsConfig{Tokens: tokens, SessionsPerToken: 1, RoundMax: 1, RoundTimeout: -1}, false},
	} {
		s, err := hsm.NewShards(test.cfg)
		if (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			s.Close()
		}
	}
}

func TestClose(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 2, RoundMax: 4})
	s.Close()
	s.Close()
	j := &hsm.Job{Random: make([]byte, 16)}
	s.Run(0, []*hsm.Job{j})
	if !errors.Is(j.Err, hsm.ErrUnavailable) || hsm.Retryable(j.Err) {
		t.Errorf("after Close: %v", j.Err)
	}
	if _, err := s.Pick(hsm.RootID{}, 0); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("Pick after Close: %v", err)
	}
	if s.Healthy() == nil {
		t.Error("healthy after Close")
	}
}

func TestJobWipe(t *testing.T) {
	random := bytes.Repeat([]byte{1}, 32)
	j := &hsm.Job{N: 2, Random: random, Root: hsm.RootID{1}, Err: errors.New("x")}
	j.Derive[1].Out[47] = 1
	j.Wipe()
	if !bytes.Equal(random, make([]byte, 32)) || j.N != 0 || j.Random != nil || j.Derive[1].Out[47] != 0 || j.Err != nil {
		t.Errorf("left over: %+v", j)
	}
}
