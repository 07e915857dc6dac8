package hsm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// fixed is a job with one derivation whose result is always the same under one root.
func fixed(root hsm.RootID) *hsm.Job {
	j := &hsm.Job{N: 1, Root: root, Random: make([]byte, 32)}
	j.Derive[0].Offset = [16]byte{1}
	j.Derive[0].Nonce = [24]byte{2}
	return j
}

// rig is shards over faulty tokens that all hold the same root, and the right answer to the fixed job.
type rig struct {
	*hsm.Shards
	tokens []*hsmtest.Faulty
	want   [48]byte
	log    *alarms
}

// newRig is for faults that answer: no call of a busy machine is taken for one that hangs.
func newRig(t testing.TB, tokens, sessions int) *rig {
	t.Helper()
	return newHangRig(t, tokens, sessions, 20*time.Second)
}

// newHangRig gives calls up after timeout.
func newHangRig(t testing.TB, tokens, sessions int, timeout time.Duration) *rig {
	t.Helper()
	r := &rig{log: &alarms{}}
	cfg := hsm.ShardsConfig{SessionsPerToken: sessions, RoundMax: 8, RoundTimeout: timeout, Logger: slog.New(r.log)}
	for range tokens {
		f := hsmtest.NewFaulty(softToken(t))
		r.tokens = append(r.tokens, f)
		cfg.Tokens = append(cfg.Tokens, f)
	}
	r.Shards = newShards(t, cfg)
	j := fixed(r.Primary())
	r.Run(0, []*hsm.Job{j})
	if j.Err != nil {
		t.Fatal(j.Err)
	}
	r.want = j.Derive[0].Out
	return r
}

// run runs the fixed job on a shard. It checks that a result is right or not there at all.
func (r *rig) run(t testing.TB, shard int, attempt uint8) error {
	t.Helper()
	j := fixed(r.Primary())
	j.Attempt = attempt
	r.Run(shard, []*hsm.Job{j})
	got, random := j.Derive[0].Out, j.Random
	if j.Err == nil && (got != r.want || bytes.Equal(random, make([]byte, 32))) {
		t.Fatal("no error and a wrong result")
	}
	if j.Err != nil && (got != [48]byte{} || !bytes.Equal(random, make([]byte, 32))) {
		t.Fatal("an error and a result")
	}
	return j.Err
}

// heals waits until every token and every shard serves again.
func (r *rig) heals(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := r.Healthy()
		for shard := 0; err == nil && shard < r.Len(); shard++ {
			err = r.run(t, shard, 0)
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// alarms is a log handler that counts errors.
type alarms struct {
	n    atomic.Int32
	mu   sync.Mutex
	text strings.Builder
}

func (a *alarms) Enabled(context.Context, slog.Level) bool { return true }
func (a *alarms) WithAttrs([]slog.Attr) slog.Handler       { return a }
func (a *alarms) WithGroup(string) slog.Handler            { return a }
func (a *alarms) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelError {
		a.n.Add(1)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Fprintln(&a.text, r.Message)
	return nil
}

// TestHiddenFaults: faults of a session, once, are repaired within the round.
func TestHiddenFaults(t *testing.T) {
	for _, code := range []hsm.CKR{
		hsm.CKR_SESSION_HANDLE_INVALID, hsm.CKR_SESSION_CLOSED, hsm.CKR_KEY_HANDLE_INVALID, hsm.CKR_OBJECT_HANDLE_INVALID,
		hsm.CKR_OPERATION_ACTIVE, hsm.CKR_OPERATION_NOT_INITIALIZED, hsm.CKR_GENERAL_ERROR, hsm.CKR_FUNCTION_FAILED,
		hsm.CKR_DEVICE_ERROR, hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_DEVICE_MEMORY, 0x80000001,
	} {
		t.Run(code.String(), func(t *testing.T) {
			r := newRig(t, 1, 2)
			r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: code})
			if err := r.run(t, 1, 0); err != nil {
				t.Fatal(err)
			}
			st := r.Stats()
			if st.Shards[1].Replaced != 1 || st.Shards[1].Failures != 1 || st.Shards[1].Retries != 1 || st.Shards[0].Replaced != 0 {
				t.Errorf("stats: %+v", st.Shards)
			}
			if want := code == hsm.CKR_USER_NOT_LOGGED_IN; (st.Slots[0].Resets == 1) != want {
				t.Errorf("%d resets", st.Slots[0].Resets)
			}
			if err := r.Healthy(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRetryOnce: a second failure of the same round is final, whatever the code would allow.
func TestRetryOnce(t *testing.T) {
	r := newRig(t, 1, 1)
	// The replaced session's self-test is a Round too and passes.
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_SESSION_HANDLE_INVALID},
		hsmtest.Fault{Op: hsmtest.Round, Skip: 1, CKR: hsm.CKR_SESSION_HANDLE_INVALID})
	err := r.run(t, 0, 0)
	if e, ok := errors.AsType[*hsm.Error](err); !ok || e.CKR != hsm.CKR_SESSION_HANDLE_INVALID || e.Function != "C_Encrypt" {
		t.Fatalf("error %v", err)
	}
	if hsm.Retryable(err) || hsm.Outcome(err) != hsm.Internal {
		t.Errorf("outcome %d", hsm.Outcome(err))
	}
	if err := r.run(t, 0, 0); err != nil {
		t.Errorf("the session was not replaced after the second failure: %v", err)
	}
}

// TestSecondAttemptIsTheLast: a job that comes from another shard is not tried a third time; its neighbour in the round is.
func TestSecondAttemptIsTheLast(t *testing.T) {
	r := newRig(t, 1, 1)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_SESSION_CLOSED})
	first, second := fixed(r.Primary()), fixed(r.Primary())
	second.Attempt = 1
	r.Run(0, []*hsm.Job{first, second})
	if first.Err != nil || first.Derive[0].Out != r.want {
		t.Errorf("first attempt: %v", first.Err)
	}
	if second.Err == nil || hsm.Retryable(second.Err) || second.Derive[0].Out != [48]byte{} {
		t.Errorf("second attempt: %v", second.Err)
	}
}

// TestElsewhere: a device fault sends jobs to the other slot, and the faulty one keeps serving if its canary is good.
func TestElsewhere(t *testing.T) {
	for _, code := range []hsm.CKR{hsm.CKR_DEVICE_ERROR, hsm.CKR_DEVICE_MEMORY} {
		r := newRig(t, 2, 2)
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: code})
		err := r.run(t, 0, 0)
		if !hsm.Retryable(err) || hsm.Outcome(err) != hsm.Retry {
			t.Fatalf("%v is not retryable", err)
		}
		other, err := r.PickOther(r.Primary(), 0, 0)
		if err != nil || other%2 != 1 {
			t.Fatalf("other shard %d, %v", other, err)
		}
		if err := r.run(t, other, 1); err != nil {
			t.Fatal(err)
		}
		if err := r.run(t, 0, 0); err != nil {
			t.Errorf("the slot with a good canary: %v", err)
		}
	}
}

// TestQuarantine: a slot whose canary fails is left out, probed, and comes back after three good canaries.
func TestQuarantine(t *testing.T) {
	for _, code := range []hsm.CKR{hsm.CKR_DEVICE_ERROR, hsm.CKR_GENERAL_ERROR, hsm.CKR_TOKEN_NOT_PRESENT, hsm.CKR_DEVICE_REMOVED,
		hsm.CKR_CRYPTOKI_NOT_INITIALIZED, hsm.CKR_USER_TOO_MANY_TYPES} {
		t.Run(code.String(), func(t *testing.T) {
			r := newRig(t, 2, 2)
			r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, CKR: code})
			err := r.run(t, 0, 0)
			if !hsm.Retryable(err) {
				t.Fatalf("%v is not retryable", err)
			}
			for hint := range uint64(8) {
				if n, err := r.Pick(r.Primary(), hint); err != nil || n%2 == 0 {
					t.Fatalf("hint %d: shard %d, %v", hint, n, err)
				}
			}
			if err := r.Healthy(); err == nil || !strings.Contains(err.Error(), "quarantined") || !strings.Contains(err.Error(), code.String()) {
				t.Errorf("health: %v", err)
			}
			if err := r.Serves(); err != nil {
				t.Errorf("another token holds the root and serves: %v", err)
			}
			rounds := r.Stats().Shards[2].Rounds
			if err := r.run(t, 2, 0); !errors.Is(err, hsm.ErrUnavailable) || !hsm.Retryable(err) {
				t.Errorf("a shard of the slot: %v", err)
			}
			if r.Stats().Shards[2].Rounds != rounds {
				t.Error("the module was called while in quarantine")
			}
			if r.log.n.Load() == 0 {
				t.Error("no alarm")
			}
			good := r.Stats().Slots[0].Canaries
			r.tokens[0].Clear()
			r.heals(t)
			if n := r.Stats().Slots[0].Canaries - good; n < 3 {
				t.Errorf("back after %d canaries", n)
			}
			if st := r.Stats().Slots[0]; st.Quarantines != 1 || st.Serving != 2 || st.State.String() != "serving" {
				t.Errorf("slot: %+v", st)
			}
		})
	}
}

// TestOnlyTokenGone: with no other slot, jobs are told that the key is unavailable, and Pick says so.
func TestOnlyTokenGone(t *testing.T) {
	r := newRig(t, 1, 2)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, CKR: hsm.CKR_TOKEN_NOT_PRESENT})
	err := r.run(t, 0, 1)
	if hsm.Outcome(err) != hsm.Unavailable {
		t.Errorf("%v: outcome %d", err, hsm.Outcome(err))
	}
	if _, err := r.Pick(r.Primary(), 0); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("Pick: %v", err)
	}
	if _, err := r.PickOther(r.Primary(), 0, 0); !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("PickOther: %v", err)
	}
	if _, err := r.Pick(hsm.RootID{1}, 0); !errors.Is(err, hsm.ErrNoRoot) {
		t.Errorf("Pick of a foreign root: %v", err)
	}
	if r.Serves() == nil {
		t.Error("it serves, it says")
	}
	r.tokens[0].Clear()
	r.heals(t)
}

// TestDoubtfulErrorsAddUp: three GENERAL_ERRORs in ten seconds are too many, however good the canaries.
func TestDoubtfulErrorsAddUp(t *testing.T) {
	r := newRig(t, 1, 1)
	for i := range 3 {
		if err := r.Healthy(); err != nil {
			t.Fatalf("quarantined after %d: %v", i, err)
		}
		// A good canary is a good self-test, and so is the replaced session's.
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_GENERAL_ERROR})
		_ = r.run(t, 0, 0)
	}
	if err := r.Healthy(); err == nil {
		t.Error("still serving after the third")
	}
	r.heals(t)
}

// TestLoginLost: every shard notices, one of them logs in again.
func TestLoginLost(t *testing.T) {
	r := newRig(t, 1, 4)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, LogOut: true})
	var wg sync.WaitGroup
	for shard := range r.Len() {
		wg.Go(func() {
			if err := r.run(t, shard, 0); err != nil {
				t.Errorf("shard %d: %v", shard, err)
			}
		})
	}
	wg.Wait()
	if n := r.tokens[0].Calls(hsmtest.Reset); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestGenerationLost: a Reset by somebody else kills all sessions; each shard replaces its own before it fails a round.
func TestGenerationLost(t *testing.T) {
	r := newRig(t, 1, 2)
	if err := r.tokens[0].Reset(); err != nil {
		t.Fatal(err)
	}
	for shard := range r.Len() {
		if err := r.run(t, shard, 0); err != nil {
			t.Errorf("shard %d: %v", shard, err)
		}
	}
	// And when it happens in the middle of a round.
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, LoseGeneration: true})
	for shard := range r.Len() {
		if err := r.run(t, shard, 0); err != nil {
			t.Errorf("shard %d: %v", shard, err)
		}
	}
}

// TestPINRefused: after the token has refused the PIN nobody tries again.
func TestPINRefused(t *testing.T) {
	r := newRig(t, 2, 2)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, LogOut: true},
		hsmtest.Fault{Op: hsmtest.Reset, CKR: hsm.CKR_PIN_INCORRECT, Function: "C_Login"})
	if err := r.run(t, 0, 0); !hsm.Retryable(err) {
		t.Fatalf("%v is not retryable", err)
	}
	time.Sleep(400 * time.Millisecond) // long enough for a probe, were there one
	_ = r.run(t, 2, 0)
	if n := r.tokens[0].Calls(hsmtest.Reset); n != 1 {
		t.Errorf("%d login attempts", n)
	}
	if st := r.Stats().Slots[0]; st.State.String() != "stopped" {
		t.Errorf("slot is %s", st.State)
	}
	if err := r.Healthy(); err == nil || !strings.Contains(err.Error(), "CKR_PIN_INCORRECT") {
		t.Errorf("health: %v", err)
	}
	if err := r.run(t, 1, 0); err != nil {
		t.Errorf("the other token: %v", err)
	}
}

// TestWrongResults: success with a wrong result stops the slot at once, and nothing of it reaches the job.
func TestWrongResults(t *testing.T) {
	for name, fault := range map[string]hsmtest.Fault{
		"bytes":            {Op: hsmtest.Round, Wrong: true},
		"length":           {Op: hsmtest.Round, Short: true},
		"repeating random": {Op: hsmtest.Round, Repeat: true},
		"module says so":   {Op: hsmtest.Round, Err: hsm.ErrWrong},
		"no generator":     {Op: hsmtest.Round, CKR: hsm.CKR_RANDOM_NO_RNG, Function: "C_GenerateRandom"},
		"FIPS self-test":   {Op: hsmtest.Round, CKR: hsm.CKR_FIPS_SELF_TEST_FAILED},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 2, 1)
			r.tokens[0].Add(fault)
			err := r.run(t, 0, 0)
			if !hsm.Retryable(err) || hsm.Final(err) != hsm.Internal {
				t.Fatalf("%v: %d", err, hsm.Final(err))
			}
			if st := r.Stats().Slots[0]; st.State.String() != "stopped" {
				t.Errorf("slot is %s", st.State)
			}
			if err := r.run(t, 1, 1); err != nil {
				t.Error(err)
			}
			if err := r.run(t, 0, 1); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("the stopped slot: %v", err)
			}
		})
	}
}

// TestSelfTestAtTheStart: a token that is wrong from the beginning is not served at all.
func TestSelfTestAtTheStart(t *testing.T) {
	for name, fault := range map[string]hsmtest.Fault{
		"sessions disagree": {Op: hsmtest.Round, Skip: 1, Wrong: true},
		"not its root":      {Op: hsmtest.Round, Wrong: true},
		"random repeats":    {Op: hsmtest.Round, Skip: 2, Repeat: true}, // the second draws none
		"images differ":     {Op: hsmtest.Round, Skip: 3, Wrong: true},
		"no session":        {Op: hsmtest.Open, CKR: hsm.CKR_DEVICE_ERROR, Times: hsmtest.Forever},
		"hangs":             {Op: hsmtest.Round, Delay: 2 * time.Second},
	} {
		f := hsmtest.NewFaulty(softToken(t))
		f.Add(fault)
		s, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{f}, SessionsPerToken: 2, RoundMax: 8, RoundTimeout: time.Second})
		if err == nil {
			s.Close()
			t.Errorf("%s: served", name)
		} else if !strings.Contains(err.Error(), f.Info().Serial) {
			t.Errorf("%s: the error does not name the token: %v", name, err)
		}
	}
}

// spy keeps the buffers of the last round, to look at them after it was given up.
type spy struct {
	hsm.Token
	out, random atomic.Pointer[[]byte]
}

type spySession struct {
	hsm.Session
	spy *spy
}

func (s *spy) OpenSession() (hsm.Session, error) {
	inner, err := s.Token.OpenSession()
	return spySession{inner, s}, err
}

func (s spySession) Round(in, out, random []byte) error {
	s.spy.out.Store(&out)
	s.spy.random.Store(&random)
	return s.Session.Round(in, out, random)
}

// TestHang: a round that does not come back is given up in time; what it yields later reaches nobody and is wiped.
func TestHang(t *testing.T) {
	watch := &spy{Token: softToken(t)}
	f := hsmtest.NewFaulty(watch)
	const timeout = time.Second
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{f, hsmtest.NewFaulty(softToken(t))}, SessionsPerToken: 1, RoundMax: 8, RoundTimeout: timeout})
	release := make(chan struct{})
	f.Add(hsmtest.Fault{Op: hsmtest.Round, Hang: release})
	j := fixed(s.Primary())
	start := time.Now()
	s.Run(0, []*hsm.Job{j})
	if d := time.Since(start); d < timeout { // that it is given up at all: the call hangs until release is closed
		t.Errorf("given up after %v", d)
	}
	if !errors.Is(j.Err, hsm.ErrTimeout) || !hsm.Retryable(j.Err) || hsm.Final(j.Err) != hsm.Timeout {
		t.Fatalf("error %v", j.Err)
	}
	if st := s.Stats().Slots[0]; st.Stuck != 1 || st.Hangs != 1 {
		t.Errorf("slot %+v", st)
	}
	j.Err, j.Attempt = nil, 1
	s.Run(1, []*hsm.Job{j})
	if j.Err != nil {
		t.Fatal(j.Err)
	}
	out, random := *watch.out.Load(), *watch.random.Load()
	close(release)
	for deadline := time.Now().Add(10 * time.Second); s.Stats().Slots[0].Stuck != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the call is still counted as stuck")
		}
	}
	if !bytes.Equal(out, make([]byte, len(out))) || !bytes.Equal(random, make([]byte, len(random))) {
		t.Error("the late result was not wiped")
	}
	for deadline := time.Now().Add(10 * time.Second); s.Healthy() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.Healthy())
		}
	}
}

// TestHangsAddUp: two hangs in ten seconds quarantine the slot; a module that hangs in everything gets no more than eight threads.
func TestHangsAddUp(t *testing.T) {
	r := newHangRig(t, 1, 2, 500*time.Millisecond)
	release := make(chan struct{})
	for _, op := range []hsmtest.Op{hsmtest.Round, hsmtest.Open, hsmtest.Reset} {
		r.tokens[0].Add(hsmtest.Fault{Op: op, Hang: release, Times: hsmtest.Forever})
	}
	for shard := range r.Len() {
		if err := r.run(t, shard, 1); !errors.Is(err, hsm.ErrTimeout) && !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("shard %d: %v", shard, err)
		}
	}
	if err := r.Healthy(); err == nil || r.Stats().Slots[0].Quarantines != 1 {
		t.Errorf("not in quarantine: %v", err)
	}
	time.Sleep(2 * time.Second)
	if n := r.Stats().Slots[0].Stuck; n < 2 || n > 8 {
		t.Errorf("%d stuck calls", n)
	}
	r.tokens[0].Clear()
	close(release)
	r.heals(t)
	if n := r.Stats().Slots[0].Stuck; n != 0 {
		t.Errorf("%d stuck calls after the release", n)
	}
}

// TestSlow: below the timeout nothing happens.
func TestSlow(t *testing.T) {
	r := newRig(t, 1, 1)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, Delay: 20 * time.Millisecond})
	if err := r.run(t, 0, 0); err != nil || r.Stats().Shards[0].Failures != 0 {
		t.Error(err)
	}
}

// TestNoRetry: these codes say nothing that a second attempt could change.
func TestNoRetry(t *testing.T) {
	for _, code := range []hsm.CKR{hsm.CKR_HOST_MEMORY, hsm.CKR_BUFFER_TOO_SMALL, hsm.CKR_MECHANISM_INVALID, hsm.CKR_KEY_TYPE_INCONSISTENT,
		hsm.CKR_DATA_LEN_RANGE, hsm.CKR_ARGUMENTS_BAD} {
		r := newRig(t, 2, 1)
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: code})
		err := r.run(t, 0, 0)
		if hsm.Outcome(err) != hsm.Internal || r.Stats().Shards[0].Retries != 0 {
			t.Errorf("%s: %v", code, err)
		}
		if r.log.n.Load() == 0 {
			t.Errorf("%s: no alarm", code)
		}
		if err := r.run(t, 0, 0); err != nil {
			t.Errorf("%s: the session was not replaced: %v", code, err)
		}
	}
}

// TestSessionCount: a token with too few sessions serves with those it has, and gets the rest when there is room.
func TestSessionCount(t *testing.T) {
	f := hsmtest.NewFaulty(softToken(t))
	full := hsmtest.Fault{Op: hsmtest.Open, CKR: hsm.CKR_SESSION_COUNT, Function: "C_OpenSession", Times: hsmtest.Forever}
	start := full
	start.Skip = 3 // the canary and two shards
	f.Add(start)
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{f}, SessionsPerToken: 4, RoundMax: 8})
	if s.Len() != 2 {
		t.Fatalf("%d shards", s.Len())
	}
	f.Clear()
	f.Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_SESSION_CLOSED}, full)
	j := fixed(s.Primary())
	s.Run(0, []*hsm.Job{j})
	if j.Err == nil {
		t.Fatal("a session out of nowhere")
	}
	if n, err := s.Pick(s.Primary(), 0); err != nil || n != 1 {
		t.Errorf("Pick: %d, %v", n, err)
	}
	if err := s.Healthy(); err != nil {
		t.Errorf("one shard serves: %v", err)
	}
	f.Clear()
	for deadline := time.Now().Add(10 * time.Second); !s.Stats().Shards[0].Serving; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the shard did not come back")
		}
	}
}

// TestRootGone: the root was there and is not found again: the replica is out, with an alarm.
func TestRootGone(t *testing.T) {
	r := newRig(t, 2, 1)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_KEY_HANDLE_INVALID},
		hsmtest.Fault{Op: hsmtest.Open, Err: hsm.ErrNoRoots, Times: hsmtest.Forever})
	err := r.run(t, 0, 0)
	if !hsm.Retryable(err) || hsm.Final(err) != hsm.Unavailable {
		t.Errorf("%v", err)
	}
	if st := r.Stats().Slots[0]; st.Quarantines != 1 || r.log.n.Load() == 0 {
		t.Errorf("slot %+v", st)
	}
	if err := r.run(t, 1, 1); err != nil {
		t.Error(err)
	}
}

// TestRetryBudget: a token that fails everything does not double the load for long. The budget is 1024 jobs and a tenth of the traffic.
func TestRetryBudget(t *testing.T) {
	r := newRig(t, 2, 1)
	granted, jobs := 0, 0
	for range 400 {
		r.tokens[0].Clear()
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_DEVICE_MEMORY})
		round := make([]*hsm.Job, 8)
		for i := range round {
			round[i] = fixed(r.Primary())
		}
		r.Run(0, round)
		for _, j := range round {
			jobs++
			switch hsm.Outcome(j.Err) {
			case hsm.Retry:
				granted++
			case hsm.Throttled:
			default:
				t.Fatal(j.Err)
			}
		}
	}
	if most := 1024 + jobs/10; granted > most || granted < most-100 {
		t.Errorf("%d retries granted for %d jobs, want about %d", granted, jobs, most)
	}
}

// TestCanaryRate: however many rounds fail at once, canaries are shared and few.
func TestCanaryRate(t *testing.T) {
	r := newRig(t, 1, 8)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_DEVICE_ERROR, Times: 8})
	start := time.Now()
	var wg sync.WaitGroup
	for shard := range r.Len() {
		wg.Go(func() { _ = r.run(t, shard, 0) })
	}
	wg.Wait()
	r.tokens[0].Clear()
	r.heals(t)
	if n, most := r.Stats().Slots[0].Canaries, 2+5*time.Since(start).Seconds(); float64(n) > most {
		t.Errorf("%d canaries in %v", n, time.Since(start))
	}
}

// TestAlarmsAreFew: what is left out of the log is counted.
func TestAlarmsAreFew(t *testing.T) {
	r := newRig(t, 1, 1)
	start := time.Now()
	for range 50 {
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Round, CKR: hsm.CKR_HOST_MEMORY})
		_ = r.run(t, 0, 0)
	}
	if n, most := r.log.n.Load(), 2+time.Since(start).Seconds(); float64(n) > most || n == 0 {
		t.Errorf("%d lines", n)
	}
	if n := r.Stats().Slots[0].Alarms; n != 50 {
		t.Errorf("%d alarms counted", n)
	}
}

// TestStress runs rounds under random faults: a job has the right result or an error, never anything else. The seed is printed on failure.
func TestStress(t *testing.T) {
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	r := newHangRig(t, 2, 2, 300*time.Millisecond)
	codes := []hsm.CKR{hsm.CKR_SESSION_CLOSED, hsm.CKR_DEVICE_ERROR, hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_GENERAL_ERROR, hsm.CKR_DEVICE_MEMORY}
	stop := make(chan struct{})
	var wg, monkey sync.WaitGroup
	monkey.Go(func() {
		g := rand.New(rand.NewPCG(seed, 1))
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			f := hsmtest.Fault{Op: hsmtest.Op(g.IntN(2)), Skip: g.IntN(3), CKR: codes[g.IntN(len(codes))]}
			switch g.IntN(8) {
			case 0:
				f.CKR, f.Delay = 0, 350*time.Millisecond
			case 1:
				f.CKR, f.LogOut = 0, true
			case 2:
				f.CKR, f.LoseGeneration = 0, true
			}
			r.tokens[g.IntN(2)].Add(f)
		}
	})
	var good, bad atomic.Int64
	for shard := range r.Len() {
		wg.Go(func() {
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
				err := r.run(t, shard, 0)
				if err == nil {
					good.Add(1)
					continue
				}
				bad.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	close(stop)
	monkey.Wait()
	if good.Load() == 0 || bad.Load() == 0 {
		t.Errorf("%d good, %d bad: nothing was tested", good.Load(), bad.Load())
	}
	for _, f := range r.tokens {
		f.Clear()
	}
	r.heals(t)
}

func TestOSRandomFails(t *testing.T) {
	s := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 1, RoundMax: 1, OS: io.LimitReader(zeros{}, 24)})
	for i, want := range []hsm.Result{hsm.Done, hsm.Unavailable} {
		j := &hsm.Job{N: 1, Root: s.Primary()}
		j.Derive[0].Draw = true
		s.Run(0, []*hsm.Job{j})
		if hsm.Outcome(j.Err) != want {
			t.Errorf("round %d: %v", i, j.Err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
