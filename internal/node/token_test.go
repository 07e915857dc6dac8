package node

import (
	"path/filepath"
	"testing"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/fence"
)

type infoToken struct {
	hsm.Token
	info hsm.TokenInfo
}

func (t infoToken) Info() hsm.TokenInfo { return t.info }

func TestSessionsPerToken(t *testing.T) {
	software, device := infoToken{info: hsm.TokenInfo{Software: true}}, infoToken{}
	for _, c := range []struct {
		set    int
		tokens []hsm.Token
		want   int
	}{
		{0, []hsm.Token{software, software}, 2},
		{0, []hsm.Token{software, device}, 4},
		{0, []hsm.Token{device}, 4},
		{7, []hsm.Token{software}, 7},
	} {
		if got := sessionsPerToken(&Config{SessionsPerToken: c.set}, c.tokens); got != c.want {
			t.Errorf("set to %d, %d tokens: %d sessions, want %d", c.set, len(c.tokens), got, c.want)
		}
	}
}

// TestReadyWithOneOfTwo: a node of a cluster is ready while one of two tokens with the same root serves, and not while none does.
func TestReadyWithOneOfTwo(t *testing.T) {
	root, err := softtoken.Open(softtoken.Config{Dir: filepath.Join(t.TempDir(), "token"), Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	tokens := []*hsmtest.Faulty{hsmtest.NewFaulty(root), hsmtest.NewFaulty(root)}
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{tokens[0], tokens[1]}, SessionsPerToken: 1, RoundMax: 1, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shards.Close)
	n := &Node{shards: shards, split: &splitPart{lease: new(fence.Lease)}, log: quiet}
	for lost, token := range append(tokens, nil) {
		n.split.lease.Extend(fence.Now())
		if err := n.check(); (err == nil) != (lost < 2) {
			t.Errorf("%d tokens lost: %v", lost, err)
		}
		if token == nil {
			break
		}
		token.Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_REMOVED})
		j := hsm.Job{Random: make([]byte, 16)}
		shards.Run(lost, []*hsm.Job{&j})
		if j.Err == nil {
			t.Fatal("a lost token serves")
		}
	}
}
