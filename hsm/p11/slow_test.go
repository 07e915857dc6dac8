package p11

import (
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

// TestSlowBesideSoftHSM: a module that is left initialised, as one is in which a call hangs, does not keep others of this process from SoftHSM.
func TestSlowBesideSoftHSM(t *testing.T) {
	for _, uri := range []string{slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{}).URI(), hsmtest.SoftHSM(t)} {
		if _, err := InitRoots(uri); err != nil {
			t.Fatal(err)
		}
		token, err := Open(uri)
		if err != nil {
			t.Fatal(err)
		}
		defer token.Close()
	}
}

// TestConformanceSlow: through the slow module a token is still a token, and the calls break no rule of PKCS#11 (slowhsm.Over asserts).
func TestConformanceSlow(t *testing.T) {
	for name, c := range map[string]struct {
		uri     func(testing.TB) string
		latency time.Duration
	}{
		"SoftHSM": {hsmtest.SoftHSM, 0}, "SoftHSM/200µs": {hsmtest.SoftHSM, 200 * time.Microsecond}, "NSS": {hsmtest.NSS, 0},
	} {
		t.Run(name, func(t *testing.T) {
			slow := slowhsm.Over(t, c.uri(t), slowhsm.Settings{Latency: c.latency})
			hsmtest.TestToken(t, opener(t, slow.URI()))
			r, err := slow.Report()
			if err != nil {
				t.Fatal(err)
			}
			if r.Calls["C_EncryptUpdate"] < 200 || r.Calls["C_Initialize"] == 0 || r.Calls["C_Initialize"] != r.Calls["C_Finalize"] ||
				r.Calls["C_OpenSession"] == 0 || r.Faults != 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// TestSlowRounds: a round costs two round trips, one for the random bytes and one for the blocks, and sessions do not wait for each other.
func TestSlowRounds(t *testing.T) {
	const latency, sessions = 20 * time.Millisecond, 4
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t)
	defer token.Close()
	var open [sessions]hsm.Session
	for i := range open {
		var err error
		if open[i], err = token.OpenSession(); err != nil {
			t.Fatal(err)
		}
		defer open[i].Close()
	}
	setSlow(t, slow, slowhsm.Settings{Latency: latency})
	round := func(s hsm.Session, in, random int) (took time.Duration) {
		start := time.Now()
		if err := s.Round(make([]byte, in), make([]byte, in), make([]byte, random)); err != nil {
			t.Error(err)
		}
		return time.Since(start)
	}
	if took := round(open[0], 0, 16); took < latency {
		t.Errorf("random took %v, latency is %v", took, latency)
	}
	if took := round(open[0], 96, 16); took < 2*latency {
		t.Errorf("a round took %v, latency is %v", took, latency)
	}
	together := func() time.Duration {
		var wg sync.WaitGroup
		start := time.Now()
		for _, s := range open {
			wg.Go(func() { round(s, 96, 16) })
		}
		wg.Wait()
		return time.Since(start)
	}
	best := together()
	for n := 0; n < 200 && best >= 3*latency; n++ { // the machine may be busy
		best = min(best, together())
	}
	// One after the other they take 8 latencies.
	if best < 2*latency || best >= 3*latency {
		t.Errorf("%d sessions took %v together, latency is %v", sessions, best, latency)
	}
	if r, err := slow.Report(); err != nil || r.Peak < 2 {
		t.Errorf("calls did not overlap: %+v, %v", r, err)
	}
}

func setSlow(t *testing.T, slow *slowhsm.HSM, s slowhsm.Settings) {
	t.Helper()
	if err := slow.Set(s); err != nil {
		t.Fatal(err)
	}
}

// slowRig is two shards on one slow token.
type slowRig struct {
	*hsm.Shards
	slow *slowhsm.HSM
	want [48]byte
}

// slowTimeout is long enough for a round without a fault on a busy machine.
const slowTimeout = 2 * time.Second

// newSlowRig has its rounds encrypt by C_Encrypt, or by an operation that is begun anew for each.
func newSlowRig(t *testing.T, streams bool) slowRig {
	t.Helper()
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	token := opener(t, slow.URI())(t).(*Token)
	if token.streamAge = 0; !streams {
		token.streaming.Store(streamsNo)
	}
	t.Cleanup(func() { token.Close() })
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{token}, SessionsPerToken: 2, RoundMax: 8, RoundTimeout: slowTimeout})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(shards.Close)
	want, err := derive(t, shards, 0)
	if err != nil {
		t.Fatal(err)
	}
	return slowRig{shards, slow, want}
}

// heals waits until all shards serve and nothing hangs any more.
func (r slowRig) heals(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st := r.Stats().Slots[0]
		if r.Healthy() == nil && st.Serving == r.Len() && st.Stuck == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v, %+v", r.Healthy(), st)
		}
	}
	for shard := range r.Len() {
		if got, err := derive(t, r.Shards, shard); err != nil || got != r.want {
			t.Errorf("shard %d after healing: %v", shard, err)
		}
	}
}

// eachWay runs a test of a fault for each way in which rounds encrypt.
func eachWay(t *testing.T, name string, f *slowhsm.Fault, test func(*testing.T, bool, slowhsm.Fault)) {
	if f.Function != "C_EncryptFinal" {
		t.Run(name+"/C_Encrypt", func(t *testing.T) { test(t, false, *f) })
	}
	part := *f
	if part.Function == "C_Encrypt" {
		part.Function = "C_EncryptUpdate"
	}
	t.Run(name+"/C_EncryptUpdate", func(t *testing.T) { test(t, true, part) })
}

// TestSlowFaultsHidden: what the table of return values can repair on the only token, callers do not see; it strikes at the call it is for.
func TestSlowFaultsHidden(t *testing.T) {
	for name, f := range map[string]slowhsm.Fault{
		"device error":   {Function: "C_Encrypt", Nth: 3, CKR: hsm.CKR_DEVICE_ERROR},
		"session lost":   {Function: "C_GenerateRandom", Nth: 3, CKR: hsm.CKR_SESSION_HANDLE_INVALID},
		"handle lost":    {Function: "C_EncryptInit", Nth: 3, CKR: hsm.CKR_KEY_HANDLE_INVALID},
		"logged out":     {Function: "C_EncryptInit", Nth: 3, CKR: hsm.CKR_USER_NOT_LOGGED_IN},
		"late, not lost": {Function: "C_Encrypt", Nth: 3, Hang: slowTimeout / 5},
		"unknown code":   {Function: "C_Encrypt", Nth: 3, CKR: hsm.CKR_VENDOR_DEFINED + 7},
		"part lost":      {Function: "C_EncryptFinal", Nth: 3, CKR: hsm.CKR_OPERATION_NOT_INITIALIZED},
	} {
		eachWay(t, name, &f, func(t *testing.T, streams bool, f slowhsm.Fault) {
			r := newSlowRig(t, streams)
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{f}})
			for i := 1; i <= 4; i++ {
				before := r.Stats().Shards[0]
				got, err := derive(t, r.Shards, 0)
				if err != nil || got != r.want {
					t.Fatalf("round %d: %v", i, err)
				}
				failed := r.Stats().Shards[0].Failures > before.Failures
				if should := i == f.Nth && f.Hang == 0; failed != should {
					t.Errorf("round %d failed inside: %v, should: %v", i, failed, should)
				}
			}
			st := r.Stats()
			if relogin := f.CKR == hsm.CKR_USER_NOT_LOGGED_IN; (st.Slots[0].Resets > 0) != relogin {
				t.Errorf("%d resets", st.Slots[0].Resets)
			}
			if st.Slots[0].Quarantines != 0 {
				t.Error("quarantined")
			}
			if c, err := r.slow.Report(); err != nil || c.Faults != 1 {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// TestSlowFaultsReported: what it cannot repair is the outcome that the table has for it, and other rounds go on.
func TestSlowFaultsReported(t *testing.T) {
	for name, c := range map[string]struct {
		fault slowhsm.Fault
		want  hsm.Result
		final bool // no second chance elsewhere
	}{
		"our data refused": {slowhsm.Fault{Function: "C_Encrypt", Nth: 1, CKR: hsm.CKR_DATA_LEN_RANGE}, hsm.Internal, true},
		"no room":          {slowhsm.Fault{Function: "C_Encrypt", Nth: 1, Onwards: true, CKR: hsm.CKR_DEVICE_MEMORY}, hsm.Throttled, false},
		"no answer":        {slowhsm.Fault{Function: "C_Encrypt", Nth: 1, Hang: 2 * slowTimeout}, hsm.Timeout, false},
	} {
		eachWay(t, name, &c.fault, func(t *testing.T, streams bool, f slowhsm.Fault) {
			r := newSlowRig(t, streams)
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{f}})
			_, err := derive(t, r.Shards, 0)
			if hsm.Final(err) != c.want || hsm.Retryable(err) == c.final {
				t.Errorf("%v: outcome %d, retryable %v", err, hsm.Final(err), hsm.Retryable(err))
			}
			if c.want == hsm.Timeout { // shard 0 is stuck in the module, its sibling is not
				if got, err := derive(t, r.Shards, 1); err != nil || got != r.want {
					t.Errorf("the other shard: %v", err)
				}
			}
			setSlow(t, r.slow, slowhsm.Settings{})
			r.heals(t)
		})
	}
}

// TestSlowDown: a device that is away is reported as unavailable, and serves again by itself when it is back.
func TestSlowDown(t *testing.T) {
	r := newSlowRig(t, true)
	setSlow(t, r.slow, slowhsm.Settings{Down: true})
	for shard := range r.Len() {
		if _, err := derive(t, r.Shards, shard); hsm.Final(err) != hsm.Unavailable {
			t.Errorf("shard %d: %v", shard, err)
		}
	}
	if r.Healthy() == nil {
		t.Error("healthy while the device is down")
	}
	setSlow(t, r.slow, slowhsm.Settings{})
	r.heals(t)
	if st := r.Stats().Slots[0]; st.Quarantines != 1 {
		t.Errorf("%+v", st)
	}
}

// BenchmarkSlowRound is BenchmarkRound's crossing, without the module in between and through it: at latency 0, what forwarding costs.
func BenchmarkSlowRound(b *testing.B) {
	run := func(name, uri string) {
		token := opener(b, uri)(b)
		defer token.Close()
		b.Run(name, func(b *testing.B) {
			s, err := token.OpenSession()
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			in, out, random := make([]byte, 48), make([]byte, 48), make([]byte, 48)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.Round(in, out, random); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("slow=none", hsmtest.SoftHSM(b))
	for _, latency := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond} {
		run("slow="+latency.String(), slowhsm.Over(b, hsmtest.SoftHSM(b), slowhsm.Settings{Latency: latency}).URI())
	}
}
