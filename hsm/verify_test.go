package hsm_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// liar is a token that gives wrong results and says CKR_OK, of the second block of a round, but not of a known block: then that round is right.
type liar struct {
	hsm.Token
	lies   atomic.Int32 // rounds still to come with one wrong block; < 0: of all
	always atomic.Bool  // the same wrong result for the same block, on every session
	told   atomic.Int32 // lies that were told
	rounds atomic.Int32

	mu   sync.Mutex
	swap bool   // guarded by mu: each round gets the answer of the one before, if they are as long
	kept []byte // guarded by mu
}

func (l *liar) OpenSession() (hsm.Session, error) {
	s, err := l.Token.OpenSession()
	return liarSession{s, l}, err
}

type liarSession struct {
	hsm.Session
	liar *liar
}

func (s liarSession) Round(in, out, random []byte) error {
	l := s.liar
	if err := s.Session.Round(in, out, random); err != nil || len(in) == 0 {
		return err
	}
	l.rounds.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.swap && len(in) > 16 {
		mine := append([]byte(nil), out...)
		if len(l.kept) == len(out) {
			copy(out, l.kept)
			l.told.Add(1)
		}
		l.kept = mine
		return nil
	}
	n := l.lies.Load()
	if n == 0 && !l.always.Load() {
		return nil
	}
	for i := 0; i < len(in); i += 16 {
		if strings.HasPrefix(string(in[i:]), "keyplane ") {
			continue
		}
		if l.always.Load() {
			if in[i+1]&1 == 0 { // of three blocks of a message key the second one at least
				out[i+5] ^= 1
				l.told.Add(1)
			}
			continue
		}
		if i == 16 {
			out[i] ^= 1
			l.told.Add(1)
			l.lies.Add(-1)
		}
	}
	return nil
}

// newLiars is shards over tokens that hold one root. The rounds of sessions that were just opened, all of which are verified, are over.
func newLiars(t testing.TB, tokens, sessions, every int) (*rig, []*liar) {
	t.Helper()
	r := &rig{log: &alarms{}}
	cfg := hsm.ShardsConfig{SessionsPerToken: sessions, RoundMax: 8, RoundTimeout: 20 * time.Second, VerifyEvery: every}
	var liars []*liar
	for range tokens {
		l := &liar{Token: softToken(t)}
		liars = append(liars, l)
		cfg.Tokens = append(cfg.Tokens, l)
	}
	r.Shards = newShards(t, cfg)
	for shard := range r.Len() {
		for range 20 {
			j := fixed(r.Primary())
			if r.Run(shard, []*hsm.Job{j}); j.Err != nil {
				t.Fatal(j.Err)
			}
			r.want = j.Derive[0].Out
		}
	}
	return r, liars
}

// TestSwappedResults: a round that gets the answer of another one, of its own session or of another one, is noticed at once.
func TestSwappedResults(t *testing.T) {
	for _, every := range []int{0, 256} {
		r, liars := newLiars(t, 1, 2, every)
		liars[0].mu.Lock()
		liars[0].swap = true
		liars[0].mu.Unlock()
		_ = r.run(t, 0, 0) // it is the one whose answer is kept
		if err := r.run(t, 1, 0); !errors.Is(err, hsm.ErrWrong) {
			t.Errorf("verified each %d: %v", every, err)
		}
		if st := r.Stats().Slots[0]; st.State.String() != "stopped" {
			t.Errorf("verified each %d: %+v", every, st)
		}
	}
}

// TestVerifyEvery: of a token that damages one block of a round, never the known one, nothing leaves where every round is verified, and where each n-th is it is out of
// service after n rounds of a session.
func TestVerifyEvery(t *testing.T) {
	for _, every := range []int{1, 2, 7} {
		r, liars := newLiars(t, 1, 2, every)
		liars[0].lies.Store(-1)
		served := 0
		for r.Stats().Slots[0].State.String() == "serving" {
			j := fixed(r.Primary())
			told := liars[0].told.Load()
			if r.Run(0, []*hsm.Job{j}); j.Err == nil {
				if liars[0].told.Load() > told {
					served++
				}
			} else if j.Derive[0].Out != [48]byte{} {
				t.Error("an error and a result")
			}
			if served >= every {
				break
			}
		}
		if served >= every {
			t.Errorf("each %d-th is verified: %d wrong ones were not noticed", every, served)
		}
		if st := r.Stats().Slots[0]; st.State.String() != "stopped" || st.Lies != 1 {
			t.Errorf("each %d-th is verified: %+v", every, st)
		}
	}
}

// TestVerifiedAlways: raw blocks, which key versions' offsets are made of, jobs that ask for it, and the first rounds of a session are verified whatever the sampling says.
func TestVerifiedAlways(t *testing.T) {
	raw := &hsm.Job{Raw: true}
	asks := fixed(hsm.RootID{})
	asks.Verify = true
	for name, j := range map[string]*hsm.Job{"raw": raw, "asks for it": asks} {
		r, liars := newLiars(t, 1, 1, 1<<16)
		j.Root = r.Primary()
		liars[0].lies.Store(1)
		if r.Run(0, []*hsm.Job{j}); !errors.Is(j.Err, hsm.ErrWrong) || j.RawOut != [32]byte{} || j.Derive[0].Out != [48]byte{} {
			t.Errorf("%s: %v", name, j.Err)
		}
	}
	l := &liar{Token: softToken(t)}
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{l}, SessionsPerToken: 1, RoundMax: 8, VerifyEvery: 1 << 16})
	l.lies.Store(1)
	j := fixed(s.Primary())
	if s.Run(0, []*hsm.Job{j}); !errors.Is(j.Err, hsm.ErrWrong) {
		t.Errorf("the first round of a session: %v", j.Err)
	}
}

// TestDispute: of two tokens with one root the one that contradicts itself is out of service, and the other one serves. Where each stands by its answer nobody gets one.
func TestDispute(t *testing.T) {
	t.Run("the shard's", func(t *testing.T) {
		r, liars := newLiars(t, 2, 1, 1)
		liars[0].lies.Store(1)
		err := r.run(t, 0, 0)
		for liars[0].told.Load() == 0 {
			err = r.run(t, 0, 0)
		}
		if !hsm.Retryable(err) {
			t.Errorf("%v", err)
		}
		if err := r.run(t, 1, 1); err != nil {
			t.Errorf("on the other token: %v", err)
		}
		if st := r.Stats().Slots; st[0].State.String() != "stopped" || st[1].State.String() != "serving" {
			t.Errorf("%+v", st)
		}
	})
	t.Run("the witness's", func(t *testing.T) {
		r, liars := newLiars(t, 2, 1, 1)
		liars[1].lies.Store(1)
		if err := r.run(t, 0, 0); err != nil {
			t.Errorf("%v", err)
		}
		if st := r.Stats().Slots; st[0].State.String() != "serving" || st[1].State.String() != "stopped" {
			t.Errorf("%+v", st)
		}
		if err := r.run(t, 0, 0); err != nil {
			t.Errorf("alone: %v", err)
		}
	})
	t.Run("neither's", func(t *testing.T) {
		r, liars := newLiars(t, 2, 1, 1000)
		liars[0].always.Store(true)
		denied := 0
		for n := range 1000 {
			j := &hsm.Job{N: 1, Root: r.Primary()}
			j.Derive[0].Nonce = [24]byte{byte(n), byte(n >> 8)} // an even first byte of one of its blocks is what is needed
			j.Derive[0].Offset = [16]byte{byte(n)}
			if r.Run(0, []*hsm.Job{j}); errors.Is(j.Err, hsm.ErrDisputed) {
				denied++
				if j.Derive[0].Out != [48]byte{} || hsm.Retryable(j.Err) || hsm.Final(j.Err) != hsm.Internal {
					t.Errorf("%v", j.Err)
				}
			}
		}
		if denied == 0 || liars[0].told.Load() == 0 {
			t.Errorf("%d rounds denied, %d lies", denied, liars[0].told.Load())
		}
		if st := r.Stats().Slots; st[0].State.String() != "serving" || st[1].State.String() != "serving" {
			t.Errorf("%+v", st)
		}
		liars[0].always.Store(false)
		if err := r.run(t, 0, 0); err != nil {
			t.Errorf("after it: %v", err)
		}
	})
}

// TestWitnessFails: a session for verifying that is lost costs sampled rounds nothing, and is opened anew; what must be verified is refused meanwhile.
func TestWitnessFails(t *testing.T) {
	f := hsmtest.NewFaulty(softToken(t))
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{f}, SessionsPerToken: 1, RoundMax: 8, RoundTimeout: 20 * time.Second, VerifyEvery: 2})
	f.Add(hsmtest.Fault{Op: hsmtest.Round, Skip: 1, CKR: hsm.CKR_SESSION_HANDLE_INVALID})
	j := fixed(s.Primary())
	if s.Run(0, []*hsm.Job{j}); j.Err != nil {
		t.Errorf("a young session's: %v", j.Err)
	}
	if st := s.Stats().Slots[0]; st.Unverified != 1 || st.State.String() != "serving" {
		t.Errorf("%+v", st)
	}
	j = fixed(s.Primary())
	if j.Verify = true; true {
		s.Run(0, []*hsm.Job{j})
	}
	if j.Err != nil {
		t.Errorf("after the witness's loss: %v", j.Err)
	}
	f.Add(hsmtest.Fault{Op: hsmtest.Round, Skip: 1, CKR: hsm.CKR_SESSION_HANDLE_INVALID})
	j = fixed(s.Primary())
	j.Verify = true
	if s.Run(0, []*hsm.Job{j}); !hsm.Retryable(j.Err) || hsm.Final(j.Err) != hsm.Unavailable {
		t.Errorf("one that must be verified: %v", j.Err)
	}
}

// TestAgain: the results of a job that are doubted are made again elsewhere. Where they differ the token of the first ones is out of service.
func TestAgain(t *testing.T) {
	for tokens := 1; tokens <= 2; tokens++ {
		r, liars := newLiars(t, tokens, 2, 1<<16)
		d := &hsm.Dispatch{Shards: r.Shards, QueueTimeMax: time.Minute, Do: func(shard int, j *hsm.Job, _ time.Time) error {
			r.Run(shard, []*hsm.Job{j})
			return nil
		}}
		j := fixed(r.Primary())
		if err := d.Run(j, time.Now()); err != nil || j.Derive[0].Out != r.want {
			t.Fatal(err)
		}
		if differs, err := d.Again(j, time.Now()); err != nil || differs || j.Derive[0].Out != r.want {
			t.Errorf("the same again: %v, %v", differs, err)
		}
		liars[0].lies.Store(1)
		for {
			j = fixed(r.Primary())
			if err := d.Run(j, time.Now()); err != nil {
				t.Fatal(err)
			}
			if j.Derive[0].Out != r.want {
				break
			}
		}
		if differs, err := d.Again(j, time.Now()); err != nil || !differs || j.Derive[0].Out != r.want {
			t.Errorf("another one: %v, %v", differs, err)
		}
		for i, st := range r.Stats().Slots {
			if want := []string{"stopped", "serving"}[i]; st.State.String() != want {
				t.Errorf("token %d of %d is %s", i, tokens, st.State)
			}
		}
	}
}
