package node

import (
	"testing"

	"github.com/keyplane/keyplane/hsm"
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
