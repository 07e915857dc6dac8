package hsm_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
)

func softToken(t testing.TB) hsm.Token {
	t.Helper()
	tok, err := softtoken.Open(softtoken.Config{Dir: t.TempDir() + "/token", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
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
