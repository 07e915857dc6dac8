package hsm_test

import (
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
)

// panicToken is an in-process token one of whose rounds panics.
type panicToken struct {
	hsm.Token
	at    int // the round that panics, counted over all sessions
	count int
}

type panicSession struct {
	hsm.Session
	t *panicToken
}

func (t *panicToken) OpenSession() (hsm.Session, error) {
	s, err := t.Token.OpenSession()
	return &panicSession{s, t}, err
}

func (s *panicSession) Round(in, out, random []byte) error {
	if s.t.count++; s.t.count == s.t.at {
		panic("a bug")
	}
	return s.Session.Round(in, out, random)
}

// TestPanicLeavesNothingForTheNextRound: a round that panicked, which the HTTP layer survives, must not give the next job its message key.
func TestPanicLeavesNothingForTheNextRound(t *testing.T) {
	token := &panicToken{Token: softToken(t)}
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 1, RoundMax: 4})
	derive := func(nonce byte) *hsm.Job {
		j := &hsm.Job{N: 1, Root: s.Primary()}
		j.Derive[0].Nonce = [24]byte{nonce}
		return j
	}
	want := derive(2)
	s.Run(0, []*hsm.Job{want})
	if want.Err != nil {
		t.Fatal(want.Err)
	}
	token.at = token.count + 1
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		s.Run(0, []*hsm.Job{derive(1)})
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		j := derive(2)
		s.Run(0, []*hsm.Job{j})
		if j.Err == nil {
			if j.Derive[0].Out != want.Derive[0].Out {
				t.Fatal("the job after the panic got another message key than its own")
			}
			return
		}
		if !errors.Is(j.Err, hsm.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatalf("after the panic: %v", j.Err)
		}
	}
}
