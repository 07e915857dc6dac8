package hsm_test

import (
	"bytes"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/softtoken"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/pubkey"
)

// batched is how a process joins callers.
func batched(queueMax int) func(int, func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
	return func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
		b, err := batch.New(batch.Config{Shards: shards, RoundMax: 8, QueueMax: queueMax}, run)
		if err != nil {
			return nil, err
		}
		return b.Do, nil
	}
}

// keyRig is a key ring over faulty tokens that hold the same roots.
type keyRig struct {
	*hsm.KeyRing
	tokens []*hsmtest.Faulty
	log    *alarms
	ids    byte
}

// newKeyRig changes the usual configuration, in which no call of a busy machine is taken for one that hangs.
func newKeyRig(t testing.TB, tokens int, change func(*hsm.KeyRingConfig)) *keyRig {
	t.Helper()
	r := &keyRig{log: &alarms{}}
	cfg := hsm.KeyRingConfig{
		SessionsPerToken: 2, RoundMax: 8, Timeout: 20 * time.Second, QueueTimeMax: 20 * time.Second,
		Batch: batched(64), Full: batch.ErrFull, Logger: slog.New(r.log),
	}
	for range tokens {
		f := hsmtest.NewFaulty(softToken(t))
		r.tokens = append(r.tokens, f)
		cfg.Tokens = append(cfg.Tokens, f)
	}
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.KeyRing, err = hsm.NewKeyRing(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// testKey is a key of a ring and its public half.
type testKey struct {
	*hsm.Key
	public *pubkey.Key
}

func (r *keyRig) key(t testing.TB, s keyspec.Spec) *testKey {
	t.Helper()
	k, public, err := r.Generate(s)
	if err != nil {
		t.Fatal(err)
	}
	r.ids++
	k.ID = [32]byte{r.ids}
	p := &testKey{Key: k}
	if public != nil {
		if p.public, err = pubkey.Parse(s, public); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// use runs one operation with the key and holds the result to the public half. It checks that an error leaves no result.
func (r *keyRig) use(t testing.TB, k *testKey, m hsm.Mechanism) error {
	t.Helper()
	j := &hsm.KeyJob{Key: k.Key, Mechanism: m}
	return hsmtest.CheckKey(k.Spec, m, k.public, func(in, out []byte) (int, error) {
		j.In, j.Out = in, out
		err := r.Run(j, time.Now())
		if err != nil && (j.N != 0 || !bytes.Equal(out, make([]byte, len(out)))) {
			t.Error("an error and a result")
		}
		if err != j.Err {
			t.Errorf("the job's error is %v, that of Run %v", j.Err, err)
		}
		return j.N, err
	})
}

// heals waits until every token serves again, and every session.
func (r *keyRig) heals(t testing.TB) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := r.Healthy()
		for _, sh := range r.Stats().Shards {
			if err == nil && !sh.Serving {
				err = errors.New("a session is down")
			}
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// eventually waits for what another goroutine does.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func TestKeyRingRuns(t *testing.T) {
	for _, s := range []keyspec.Spec{keyspec.RSA2048, keyspec.P256, keyspec.P521, keyspec.Secp256k1, keyspec.Ed25519, keyspec.HMAC384, keyspec.MLDSA87, keyspec.MLKEM512, keyspec.AES256} {
		t.Run(s.String(), func(t *testing.T) {
			r := newKeyRig(t, 1, nil)
			k := r.key(t, s)
			offers, software := r.Offers(s)
			if offers != hsm.MechanismsOf(s) || software || k.Software || k.Root == (hsm.RootID{}) {
				t.Errorf("offers %b, software %t, key %+v", offers, software, k.Key)
			}
			for m := hsm.NoMechanism; m < 32; m++ {
				if offers.Has(m) {
					if err := r.use(t, k, m); err != nil {
						t.Error(err)
					}
				} else if err := r.Run(&hsm.KeyJob{Key: k.Key, Mechanism: m, Out: make([]byte, 5000)}, time.Now()); !errors.Is(err, hsm.ErrJob) {
					t.Errorf("mechanism %d: %v", m, err)
				}
			}
			if st := r.Stats(); st.Handles[0].Loads != 1 || st.Handles[0].Loaded != 1 || st.Generated != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestKeyJobLimits(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	k := r.key(t, keyspec.HMAC256)
	other := *k.Key
	other.Root = hsm.RootID{1}
	software := *k.Key
	software.Software = true
	for name, c := range map[string]struct {
		job  *hsm.KeyJob
		want error
	}{
		"no key":    {&hsm.KeyJob{Mechanism: hsm.MAC, Out: make([]byte, 32)}, hsm.ErrJob},
		"no spec":   {&hsm.KeyJob{Key: &hsm.Key{}, Mechanism: hsm.MAC, Out: make([]byte, 32)}, hsm.ErrJob},
		"no room":   {&hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, Out: make([]byte, 31)}, hsm.ErrJob},
		"too long":  {&hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, Out: make([]byte, 32), In: make([]byte, hsm.KeyInMax+1)}, hsm.ErrJob},
		"root":      {&hsm.KeyJob{Key: &other, Mechanism: hsm.MAC, Out: make([]byte, 32)}, hsm.ErrNoRoot},
		"software":  {&hsm.KeyJob{Key: &software, Mechanism: hsm.MAC, Out: make([]byte, 32)}, hsm.ErrUnavailable},
		"longest":   {&hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, Out: make([]byte, 32), In: make([]byte, hsm.KeyInMax)}, nil},
		"empty":     {&hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, Out: make([]byte, 32)}, nil},
		"more room": {&hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, Out: make([]byte, 64)}, nil},
	} {
		if err := r.Run(c.job, time.Now()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := hsm.NewKeyRing(hsm.KeyRingConfig{SessionsPerToken: 1, RoundMax: 65, Batch: batched(1)}); err == nil {
		t.Error("a round of 65")
	}
}

// TestKeyHiddenFaults: faults of a session or a handle, once, are repaired within the round.
func TestKeyHiddenFaults(t *testing.T) {
	for _, code := range []hsm.CKR{
		hsm.CKR_SESSION_HANDLE_INVALID, hsm.CKR_SESSION_CLOSED, hsm.CKR_KEY_HANDLE_INVALID, hsm.CKR_OBJECT_HANDLE_INVALID,
		hsm.CKR_OPERATION_ACTIVE, hsm.CKR_OPERATION_NOT_INITIALIZED, hsm.CKR_GENERAL_ERROR, hsm.CKR_FUNCTION_FAILED,
		hsm.CKR_DEVICE_ERROR, hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_DEVICE_MEMORY, 0x80000001,
	} {
		t.Run(code.String(), func(t *testing.T) {
			r := newKeyRig(t, 1, nil)
			k := r.key(t, keyspec.Ed25519)
			if err := r.use(t, k, hsm.SignEd25519); err != nil {
				t.Fatal(err)
			}
			r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, CKR: code})
			if err := r.use(t, k, hsm.SignEd25519); err != nil {
				t.Fatal(err)
			}
			st := r.Stats()
			if a, b := st.Shards[0], st.Shards[1]; a.Replaced+b.Replaced != 1 || a.Failures+b.Failures != 1 || a.Retries+b.Retries != 1 {
				t.Errorf("stats: %+v", st.Shards)
			}
			login, handle := code == hsm.CKR_USER_NOT_LOGGED_IN, code == hsm.CKR_KEY_HANDLE_INVALID || code == hsm.CKR_OBJECT_HANDLE_INVALID
			if got := st.Slots[0].Resets == 1; got != login {
				t.Errorf("%d resets", st.Slots[0].Resets)
			}
			if got := st.Handles[0].Loads == 2; got != (login || handle) || (st.Handles[0].Lost == 1) != handle {
				t.Errorf("handles: %+v", st.Handles[0])
			}
			eventually(t, "one key is loaded", func() bool { return r.tokens[0].Loaded() == 1 })
			if err := r.Healthy(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKeyTable: every return value, from a function that works on our bytes and from one that opens a client's, for good. What the client sees is
// the table's result; a client's fault is only what a module can say of the client's bytes.
func TestKeyTable(t *testing.T) {
	data := map[hsm.CKR]bool{
		hsm.CKR_ENCRYPTED_DATA_INVALID: true, hsm.CKR_ENCRYPTED_DATA_LEN_RANGE: true, hsm.CKR_DATA_INVALID: true, hsm.CKR_DATA_LEN_RANGE: true,
		hsm.CKR_PUBLIC_KEY_INVALID: true, hsm.CKR_DOMAIN_PARAMS_INVALID: true, hsm.CKR_GENERAL_ERROR: true, hsm.CKR_FUNCTION_FAILED: true,
	}
	for _, code := range []hsm.CKR{
		hsm.CKR_ENCRYPTED_DATA_INVALID, hsm.CKR_ENCRYPTED_DATA_LEN_RANGE, hsm.CKR_DATA_INVALID, hsm.CKR_DATA_LEN_RANGE, hsm.CKR_PUBLIC_KEY_INVALID,
		hsm.CKR_DOMAIN_PARAMS_INVALID, hsm.CKR_GENERAL_ERROR, hsm.CKR_FUNCTION_FAILED, hsm.CKR_DEVICE_ERROR, hsm.CKR_DEVICE_MEMORY,
		hsm.CKR_HOST_MEMORY, hsm.CKR_DEVICE_REMOVED, hsm.CKR_KEY_HANDLE_INVALID, hsm.CKR_KEY_TYPE_INCONSISTENT, hsm.CKR_KEY_FUNCTION_NOT_PERMITTED,
		hsm.CKR_MECHANISM_INVALID, hsm.CKR_BUFFER_TOO_SMALL, hsm.CKR_SESSION_HANDLE_INVALID, hsm.CKR_PIN_LOCKED, hsm.CKR_CRYPTOKI_NOT_INITIALIZED,
	} {
		for _, m := range []hsm.Mechanism{hsm.SignECDSA, hsm.DeriveECDH} {
			t.Run(code.String()+" "+m.Function(), func(t *testing.T) {
				t.Parallel()
				r := newKeyRig(t, 1, nil)
				k := r.key(t, keyspec.P256)
				r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, CKR: code})
				err := r.use(t, k, m)
				want := hsm.Classify(code, m.Function()).Result
				if got := hsm.Final(err); got != want && got != hsm.Unavailable || (got == hsm.DataError) != (data[code] && m == hsm.DeriveECDH) {
					t.Errorf("%v: %d, want %d", err, got, want)
				}
				if hsm.Retryable(err) {
					t.Error("the caller is asked to run the job again")
				}
				calls, failed := r.tokens[0].Calls(hsmtest.Use), r.Stats()
				if calls > 4 {
					t.Errorf("%d calls for one job", calls)
				}
				if hsm.Final(err) == hsm.DataError && (failed.Shards[0].Replaced+failed.Shards[1].Replaced != 0 || failed.Slots[0].Alarms != 0) {
					t.Errorf("bad data cost a session, or raised an alarm: %+v", failed)
				}
				r.tokens[0].Clear()
				if hsm.Classify(code, m.Function()).Result != hsm.DataError && code == hsm.CKR_PIN_LOCKED {
					return // stopped for good
				}
				r.heals(t)
				if err := r.use(t, k, m); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestBadDataDoesNotCostTheToken: a module that says GENERAL_ERROR to bad ciphertexts goes on serving, however many there are.
func TestBadDataDoesNotCostTheToken(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	k := r.key(t, keyspec.P256)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Times: 20, CKR: hsm.CKR_GENERAL_ERROR})
	for range 20 {
		if err := r.use(t, k, hsm.DeriveECDH); hsm.Final(err) != hsm.DataError {
			t.Fatal(err)
		}
	}
	if st := r.Stats().Slots[0]; st.State.String() != "serving" || st.Quarantines != 0 || st.Canaries == 0 || st.Canaries > 20 {
		t.Errorf("%+v", st)
	}
	// With a canary that fails too, it is the token.
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, CKR: hsm.CKR_GENERAL_ERROR},
		hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, CKR: hsm.CKR_GENERAL_ERROR})
	eventually(t, "the token is in quarantine", func() bool {
		return hsm.Final(r.use(t, k, hsm.DeriveECDH)) == hsm.Unavailable && r.Stats().Slots[0].Quarantines > 0
	})
	r.tokens[0].Clear()
	r.heals(t)
	if err := r.use(t, k, hsm.DeriveECDH); err != nil {
		t.Error(err)
	}
}

// TestStoredKeyDamaged: what a token says of a wrapped key is never the client's fault.
func TestStoredKeyDamaged(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	k := r.key(t, keyspec.P256)
	damaged := &testKey{Key: &hsm.Key{ID: [32]byte{99}, Spec: k.Spec, Root: k.Root, Wrapped: bytes.Clone(k.Wrapped)}, public: k.public}
	damaged.Wrapped[9] ^= 1
	check := func(name string, k *testKey) {
		t.Helper()
		before := r.Stats().Slots[0].Alarms
		for _, m := range []hsm.Mechanism{hsm.SignECDSA, hsm.DeriveECDH} {
			if err := r.use(t, k, m); hsm.Outcome(err) != hsm.Unavailable || !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if st := r.Stats(); st.Slots[0].Alarms == before || st.Slots[0].Quarantines != 0 {
			t.Errorf("%s: %+v", name, st.Slots[0])
		}
	}
	check("damaged", damaged)
	for _, f := range []hsmtest.Fault{
		{CKR: hsm.CKR_WRAPPED_KEY_INVALID}, {CKR: hsm.CKR_WRAPPED_KEY_LEN_RANGE}, {CKR: hsm.CKR_GENERAL_ERROR}, {CKR: hsm.CKR_FUNCTION_FAILED},
		{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID}, {Err: hsm.ErrKeyRefused},
	} {
		f.Op, f.Times = hsmtest.Load, 2
		r.tokens[0].Add(f)
		check(f.CKR.String(), k)
		if err := r.use(t, k, hsm.SignECDSA); err != nil { // an error of a load is not kept
			t.Error(err)
		}
		r.Forget(k.ID)
	}
	// Faults of the token, once, are repaired as they are in a round.
	for _, code := range []hsm.CKR{hsm.CKR_USER_NOT_LOGGED_IN, hsm.CKR_SESSION_HANDLE_INVALID, hsm.CKR_UNWRAPPING_KEY_HANDLE_INVALID, hsm.CKR_DEVICE_ERROR} {
		r.Forget(k.ID)
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Load, CKR: code})
		if err := r.use(t, k, hsm.SignECDSA); err != nil {
			t.Errorf("%v: %v", code, err)
		}
	}
}

// TestHandlesAreBounded: no more keys than HandlesMax are in the token, those out of use go, and all are unloaded or still there at the end.
func TestHandlesAreBounded(t *testing.T) {
	const limit, keys = 4, 12
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.HandlesMax, c.SessionsPerToken = limit, 3 })
	var all []*testKey
	for range keys {
		all = append(all, r.key(t, keyspec.HMAC256))
	}
	var most atomic.Int64
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			for i := range 60 {
				if err := r.use(t, all[(i*(g+1)+g)%keys], hsm.MAC); err != nil {
					t.Error(err)
				}
				if g == 5 {
					r.Forget(all[i%keys].ID)
				}
				most.Store(int64(max(int(most.Load()), r.Stats().Handles[0].Loaded)))
			}
		})
	}
	wg.Wait()
	st := r.Stats().Handles[0]
	if most.Load() > limit || st.Loaded > limit || st.Evicted == 0 || st.Failed != 0 || st.Lost != 0 {
		t.Errorf("at most %d loaded; %+v", most.Load(), st)
	}
	eventually(t, "the token has the keys that are known", func() bool { return r.tokens[0].Loaded() == st.Loaded })
	for _, k := range all {
		r.Forget(k.ID)
	}
	if n := r.Stats().Handles[0].Loaded; n != 0 {
		t.Errorf("%d keys after all are forgotten", n)
	}
	eventually(t, "all are unloaded", func() bool { return r.tokens[0].Loaded() == 0 })
	// The hot one stays.
	loads := r.Stats().Handles[0].Loads
	for i := range 3 * limit {
		for _, k := range []*testKey{all[0], all[1+i%(keys-1)]} {
			if err := r.use(t, k, hsm.MAC); err != nil {
				t.Error(err)
			}
		}
	}
	if got := r.Stats().Handles[0].Loads - loads; got != 1+3*limit {
		t.Errorf("%d loads", got)
	}
}

// TestOneLoadForAll: who wants a key while it is loaded waits for it.
func TestOneLoadForAll(t *testing.T) {
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.SessionsPerToken = 4 })
	k := r.key(t, keyspec.HMAC256)
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Load, Hang: hang})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := r.use(t, k, hsm.MAC); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "the load", func() bool { return r.tokens[0].Calls(hsmtest.Load) == 1 })
	time.Sleep(20 * time.Millisecond) // a second load, if there were one, would come now
	close(hang)
	wg.Wait()
	if n := r.tokens[0].Calls(hsmtest.Load); n != 1 {
		t.Errorf("%d loads", n)
	}
	// An error is everybody's, and the next one loads again.
	r.Forget(k.ID)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Load, CKR: hsm.CKR_WRAPPED_KEY_INVALID})
	if err := r.use(t, k, hsm.MAC); hsm.Outcome(err) != hsm.Unavailable {
		t.Error(err)
	}
	if err := r.use(t, k, hsm.MAC); err != nil {
		t.Error(err)
	}
}

// TestForgottenInUse: a key that is forgotten, or evicted, while it works is unloaded when it is done.
func TestForgottenInUse(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	k := r.key(t, keyspec.Ed25519)
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Hang: hang})
	done := make(chan error)
	go func() { done <- r.use(t, k, hsm.SignEd25519) }()
	eventually(t, "the use", func() bool { return r.tokens[0].Calls(hsmtest.Use) == 1 })
	r.Forget(k.ID)
	if n := r.tokens[0].Calls(hsmtest.Unload); n != 0 {
		t.Error("unloaded while in use")
	}
	close(hang)
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the unloading", func() bool { return r.tokens[0].Loaded() == 0 })
}

// TestHotKeyUsesAllSessions: the jobs of one key run side by side, on all sessions of all its tokens; when all queues are full, the next is
// refused.
func TestHotKeyUsesAllSessions(t *testing.T) {
	const sessions = 3
	r := newKeyRig(t, 2, func(c *hsm.KeyRingConfig) { c.SessionsPerToken, c.Batch = sessions, batched(1) })
	k := r.key(t, keyspec.Ed25519)
	hang := make(chan struct{})
	for _, f := range r.tokens {
		f.Add(hsmtest.Fault{Op: hsmtest.Use, Hang: hang, Times: hsmtest.Forever})
	}
	calls := func() int { return r.tokens[0].Calls(hsmtest.Use) + r.tokens[1].Calls(hsmtest.Use) }
	var wg sync.WaitGroup
	run := func() {
		wg.Go(func() {
			if err := r.use(t, k, hsm.SignEd25519); err != nil && err != batch.ErrFull {
				t.Error(err)
			}
		})
	}
	for i := range 2 * sessions {
		run()
		eventually(t, "another session", func() bool { return calls() == i+1 })
	}
	for range 2 * sessions { // they wait, one at each session
		run()
	}
	eventually(t, "all queues are full", func() bool {
		j := &hsm.KeyJob{Key: k.Key, Mechanism: hsm.SignEd25519, Out: make([]byte, 64)}
		ended := make(chan error, 1)
		wg.Go(func() { ended <- r.Run(j, time.Now()) })
		select {
		case err := <-ended:
			return err == batch.ErrFull
		case <-time.After(50 * time.Millisecond): // it found room, and waits like the others
			return false
		}
	})
	close(hang)
	wg.Wait()
}

// TestHangingSign: a call that does not come back costs its caller the time-out at most, its session, and after two the token for a while; rounds
// of AES blocks do not notice. What the call comes back with, nobody gets, and its key is there as long as it runs.
func TestHangingSign(t *testing.T) {
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.Timeout = 300 * time.Millisecond })
	blocks := newShards(t, hsm.ShardsConfig{Tokens: []hsm.Token{r.tokens[0]}, SessionsPerToken: 1, RoundMax: 8, RoundTimeout: 20 * time.Second})
	k := r.key(t, keyspec.P256)
	if err := r.use(t, k, hsm.SignECDSA); err != nil {
		t.Fatal(err)
	}
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, Hang: hang, Times: hsmtest.Forever})
	if err := r.use(t, k, hsm.SignECDSA); hsm.Final(err) != hsm.Timeout && hsm.Final(err) != hsm.Unavailable {
		t.Errorf("%v", err)
	}
	for i := range 4 {
		j := fixed(blocks.Primary())
		blocks.Run(0, []*hsm.Job{j})
		if j.Err != nil {
			t.Errorf("round of AES blocks %d: %v", i, j.Err)
		}
	}
	r.Forget(k.ID)
	if n := r.tokens[0].Calls(hsmtest.Unload); n != 0 {
		t.Error("a key was unloaded under a call that hangs")
	}
	r.tokens[0].Clear()
	close(hang)
	r.heals(t)
	eventually(t, "the hanging calls' key is unloaded", func() bool { return r.tokens[0].Loaded() == 0 })
	if err := r.use(t, k, hsm.SignECDSA); err != nil {
		t.Error(err)
	}
	if st := r.Stats().Slots[0]; st.Hangs == 0 || st.Stuck != 0 {
		t.Errorf("%+v", st)
	}
}

// TestHangingLoad: the same of a load; a key that comes too late does not stay in the token.
func TestHangingLoad(t *testing.T) {
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.Timeout = 300 * time.Millisecond })
	k := r.key(t, keyspec.P256)
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Load, Hang: hang, Times: hsmtest.Forever})
	if err := r.use(t, k, hsm.SignECDSA); hsm.Final(err) != hsm.Timeout && hsm.Final(err) != hsm.Unavailable {
		t.Errorf("%v", err)
	}
	r.tokens[0].Clear()
	close(hang)
	r.heals(t)
	eventually(t, "nothing is loaded", func() bool { return r.tokens[0].Loaded() == 0 && r.Stats().Slots[0].Stuck == 0 })
	if err := r.use(t, k, hsm.SignECDSA); err != nil {
		t.Error(err)
	}
}

// TestKeyLostSlot: a token that goes in the middle: its twin takes over without an error, and it comes back by itself with keys loaded anew.
func TestKeyLostSlot(t *testing.T) {
	r := newKeyRig(t, 2, nil)
	k := r.key(t, keyspec.Ed25519)
	for range 8 { // loaded in both
		if err := r.use(t, k, hsm.SignEd25519); err != nil {
			t.Fatal(err)
		}
	}
	gone := []hsmtest.Fault{
		{Op: hsmtest.Use, CKR: hsm.CKR_DEVICE_REMOVED, Times: hsmtest.Forever}, {Op: hsmtest.Open, CKR: hsm.CKR_TOKEN_NOT_PRESENT, Times: hsmtest.Forever},
		{Op: hsmtest.Round, CKR: hsm.CKR_DEVICE_REMOVED, Times: hsmtest.Forever}, {Op: hsmtest.Load, CKR: hsm.CKR_DEVICE_REMOVED, Times: hsmtest.Forever},
	}
	r.tokens[0].Add(gone...)
	for range 20 {
		if err := r.use(t, k, hsm.SignEd25519); err != nil {
			t.Fatal(err)
		}
	}
	if st := r.Stats().Slots; st[0].Serving != 0 || st[1].Serving != 2 || r.Healthy() == nil {
		t.Errorf("%+v", st)
	}
	r.tokens[1].Add(gone...)
	if err := r.use(t, k, hsm.SignEd25519); hsm.Final(err) != hsm.Unavailable {
		t.Error(err)
	}
	if err := r.use(t, k, hsm.SignEd25519); !errors.Is(err, hsm.ErrUnavailable) {
		t.Error(err)
	}
	for _, f := range r.tokens {
		f.Clear()
	}
	r.heals(t)
	for range 8 {
		if err := r.use(t, k, hsm.SignEd25519); err != nil {
			t.Error(err)
		}
	}
}

// TestKeyRelogin: a lost login, and a generation lost behind our back, cost no job; keys are loaded anew.
func TestKeyRelogin(t *testing.T) {
	for name, f := range map[string]hsmtest.Fault{
		"logged out": {Op: hsmtest.Use, LogOut: true}, "generation": {Op: hsmtest.Use, LoseGeneration: true},
		"logged out at the load": {Op: hsmtest.Load, LogOut: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newKeyRig(t, 1, nil)
			keys := []*testKey{r.key(t, keyspec.Ed25519), r.key(t, keyspec.Ed25519)}
			if err := r.use(t, keys[0], hsm.SignEd25519); err != nil {
				t.Fatal(err)
			}
			r.tokens[0].Add(f)
			for range 4 {
				for _, k := range keys {
					if err := r.use(t, k, hsm.SignEd25519); err != nil {
						t.Error(err)
					}
				}
			}
			eventually(t, "both keys are loaded once", func() bool { return r.tokens[0].Loaded() == 2 })
		})
	}
}

// TestKeyRoundPanics: a round that panicked leaves nothing for the next one, no lock and no use of a handle.
func TestKeyRoundPanics(t *testing.T) {
	token := &panicKeys{KeyToken: softToken(t).(hsm.KeyToken)}
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens, c.SessionsPerToken = []hsm.Token{token}, 1 })
	secret, k := r.key(t, keyspec.HMAC512), r.key(t, keyspec.HMAC256)
	for _, when := range []func(){func() { token.use.Store(true) }, func() { token.load.Store(true) }} {
		r.Forget(secret.ID)
		when()
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_ = r.use(t, secret, hsm.MAC)
		}()
		eventually(t, "the session is back", func() bool { return r.use(t, k, hsm.MAC) == nil })
		if err := r.use(t, secret, hsm.MAC); err != nil {
			t.Error(err)
		}
	}
	for _, seen := range token.seen {
		if !bytes.Equal(seen[:cap(seen)], make([]byte, cap(seen))) {
			t.Error("memory of a session's round was not wiped")
		}
	}
}

// panicKeys is an in-process token whose next use, or load, panics. It remembers the memory that its sessions were given.
type panicKeys struct {
	hsm.KeyToken
	use, load atomic.Bool
	seen      [][]byte
}

func (p *panicKeys) LoadKey(s keyspec.Spec, wrapped []byte) (hsm.LoadedKey, error) {
	if p.load.Swap(false) {
		panic("a bug")
	}
	return p.KeyToken.LoadKey(s, wrapped)
}

func (p *panicKeys) OpenSession() (hsm.Session, error) {
	s, err := p.KeyToken.OpenSession()
	if err != nil {
		return nil, err
	}
	return &panicKeySession{s.(hsm.KeySession), p}, nil
}

type panicKeySession struct {
	hsm.KeySession
	p *panicKeys
}

func (s *panicKeySession) Use(k hsm.LoadedKey, spec keyspec.Spec, m hsm.Mechanism, in, out []byte) (int, error) {
	s.p.seen = append(s.p.seen, in, out)
	n, err := s.KeySession.Use(k, spec, m, in, out)
	if s.p.use.Swap(false) {
		panic("a bug")
	}
	return n, err
}

// TestSessionNeverSeesJobMemory: what a call that hangs may still read and write is not a job's.
func TestSessionNeverSeesJobMemory(t *testing.T) {
	token := &panicKeys{KeyToken: softToken(t).(hsm.KeyToken)}
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens, c.SessionsPerToken = []hsm.Token{token}, 1 })
	k := r.key(t, keyspec.HMAC256)
	j := &hsm.KeyJob{Key: k.Key, Mechanism: hsm.MAC, In: []byte("message"), Out: make([]byte, 32)}
	if err := r.Run(j, time.Now()); err != nil {
		t.Fatal(err)
	}
	if in, out := token.seen[0], token.seen[1]; &in[:1][0] == &j.In[0] || &out[:1][0] == &j.Out[0] || string(j.In) != "message" {
		t.Error("a session was given a job's memory")
	}
}

// slowMaker makes no key before it may.
type slowMaker struct {
	hsm.KeyToken
	now, most atomic.Int32
	may       chan struct{}
}

func (s *slowMaker) GenerateKey(spec keyspec.Spec) ([]byte, []byte, error) {
	n := s.now.Add(1)
	defer s.now.Add(-1)
	for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
	}
	<-s.may
	return s.KeyToken.GenerateKey(spec)
}

func TestGenerateTwoAtATime(t *testing.T) {
	token := &slowMaker{KeyToken: softToken(t).(hsm.KeyToken), may: make(chan struct{})}
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{token} })
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, _, err := r.Generate(keyspec.HMAC256); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "two are made", func() bool { return token.now.Load() == 2 })
	for range 6 {
		token.may <- struct{}{}
	}
	wg.Wait()
	if n := token.most.Load(); n != 2 {
		t.Errorf("%d at a time", n)
	}

	slow := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens, c.GenerateTimeout = []hsm.Token{token}, 50*time.Millisecond })
	for i := range 3 { // the third does not even get its turn, and is refused while the slot is in quarantine
		if _, _, err := slow.Generate(keyspec.HMAC256); hsm.Final(err) != hsm.Timeout && (i < 2 || hsm.Final(err) != hsm.Unavailable) {
			t.Errorf("hanging: %v", err)
		}
	}
	if st := slow.Stats(); st.Failed != 3 || st.Generated != 0 {
		t.Errorf("%+v", st)
	}
	close(token.may)
}

func TestGenerateFaults(t *testing.T) {
	r := newKeyRig(t, 2, nil)
	gen := func() error {
		_, _, err := r.Generate(keyspec.P256)
		return err
	}
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Generate, CKR: hsm.CKR_USER_NOT_LOGGED_IN}) // logged in again
	if err := gen(); err != nil || r.tokens[1].Calls(hsmtest.Generate) != 0 {
		t.Errorf("logged out: %v", err)
	}
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Generate, CKR: hsm.CKR_DEVICE_ERROR}) // made by the other
	if err := gen(); err != nil || r.tokens[1].Calls(hsmtest.Generate) != 1 {
		t.Errorf("device error: %v", err)
	}
	for _, f := range []hsmtest.Fault{{Err: hsm.ErrKeyRefused}, {CKR: hsm.CKR_TEMPLATE_INCONSISTENT}, {CKR: hsm.CKR_WRAPPED_KEY_INVALID, Function: "C_UnwrapKey"}} {
		f.Op = hsmtest.Generate
		for _, token := range r.tokens {
			token.Add(f)
		}
		if err := gen(); err == nil || hsm.Final(err) == hsm.DataError {
			t.Errorf("%v: %v", f.CKR, err)
		}
		for _, token := range r.tokens {
			token.Clear()
		}
	}
	for _, token := range r.tokens {
		token.Add(hsmtest.Fault{Op: hsmtest.Generate, CKR: hsm.CKR_DEVICE_REMOVED})
	}
	if err := gen(); hsm.Final(err) != hsm.Unavailable {
		t.Errorf("removed: %v", err)
	}
	r.heals(t)
	if err := gen(); err != nil {
		t.Error(err)
	}
}

// fewKeys is a token that offers HMAC only.
type fewKeys struct{ hsm.KeyToken }

func (f fewKeys) Keys(s keyspec.Spec) hsm.Mechanisms {
	if s.Info().Family != keyspec.HMAC {
		return 0
	}
	return f.KeyToken.Keys(s)
}

// noKeys is a token from before there were keys.
type noKeys struct{ hsm.Token }

// sealedKeys are software keys as a process has them, with a seal that hides nothing.
func sealedKeys() softtoken.Keys {
	const sealed = 1 // in front; what begins otherwise is damaged
	turn := func(b []byte) []byte {
		b = bytes.Clone(b)
		for i := range b {
			b[i] ^= 0x5a
		}
		return b
	}
	return softtoken.Keys{
		Seal: func(_ keyspec.Spec, b []byte) ([]byte, error) { return append([]byte{sealed}, turn(b)...), nil },
		Open: func(_ keyspec.Spec, b []byte) ([]byte, error) {
			if len(b) == 0 || b[0] != sealed {
				return nil, softtoken.ErrSealed
			}
			return turn(b[1:]), nil
		},
	}
}

func TestSoftwareKeys(t *testing.T) {
	root := hsm.RootID{5}
	for name, token := range map[string]hsm.Token{"few": fewKeys{softToken(t).(hsm.KeyToken)}, "none": noKeys{softToken(t)}} {
		t.Run(name, func(t *testing.T) {
			r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) { c.Tokens = []hsm.Token{token} })
			if _, _, err := r.Generate(keyspec.P256); !errors.Is(err, hsm.ErrNotOffered) {
				t.Errorf("not allowed: %v", err)
			}
			if m, software := r.Offers(keyspec.P256); m != 0 || software {
				t.Errorf("not allowed: offers %b, %t", m, software)
			}

			soft := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) {
				c.Tokens, c.Software, c.Root, c.HandlesMax = []hsm.Token{token}, sealedKeys(), root, 2
			})
			m, software := soft.Offers(keyspec.HMAC256)
			if m == 0 || software != (name == "none") {
				t.Errorf("HMAC: offers %b, %t", m, software)
			}
			for _, s := range []keyspec.Spec{keyspec.P256, keyspec.Ed25519, keyspec.MLKEM768, keyspec.HMAC256} {
				k := soft.key(t, s)
				if _, software := soft.Offers(s); k.Software != software || software && k.Root != root {
					t.Errorf("%v: %+v", s, k.Key)
				}
				for m := hsm.NoMechanism; m < 32; m++ {
					if hsm.MechanismsOf(s).Has(m) {
						if err := soft.use(t, k, m); err != nil {
							t.Error(err)
						}
					}
				}
				if k.Software {
					if err := r.use(t, k, hsmtest.FirstOf(hsm.MechanismsOf(s))); hsm.Outcome(err) != hsm.Unavailable {
						t.Errorf("not allowed any more: %v", err)
					}
				}
			}
			if st := soft.Stats(); st.Software.Loaded > 2 || st.Software.Evicted == 0 || st.Offers["ECC_NIST_P256"] != "software" {
				t.Errorf("%+v", st)
			}
			k := soft.key(t, keyspec.P256)
			point := append([]byte{4}, make([]byte, 64)...) // not on the curve
			j := &hsm.KeyJob{Key: k.Key, Mechanism: hsm.DeriveECDH, In: point, Out: make([]byte, 64)}
			if err := soft.Run(j, time.Now()); hsm.Outcome(err) != hsm.DataError {
				t.Errorf("bad data: %v", err)
			}
			k.Wrapped[0], k.ID[1] = 0xff, 1
			if err := soft.use(t, k, hsm.SignECDSA); hsm.Outcome(err) != hsm.Unavailable {
				t.Errorf("damaged: %v", err)
			}
			soft.Forget(k.ID)
		})
	}
}
