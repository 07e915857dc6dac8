package hsm_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// forgetful is a token that cannot tell what it offers as long as bad holds, for keys of the spec, or of all specs where that is 0.
type forgetful struct {
	*hsmtest.Faulty
	spec keyspec.Spec
	bad  atomic.Bool
}

func (f *forgetful) Keys(s keyspec.Spec) hsm.Mechanisms {
	if f.bad.Load() && (f.spec == 0 || s == f.spec) {
		return 0
	}
	return f.Faulty.Keys(s)
}

// TestOffersAskedAgain: an error at the start makes no HSM spec a software spec, and no HSM key one that is not offered.
func TestOffersAskedAgain(t *testing.T) {
	f := &forgetful{Faulty: hsmtest.NewFaulty(softToken(t)), spec: keyspec.P256}
	start := func() *keyRig {
		return newKeyRig(t, 0, func(c *hsm.KeyRingConfig) {
			c.Tokens, c.Software, c.Root = []hsm.Token{f}, sealedKeys(), hsm.RootID{5}
		})
	}
	k := start().key(t, keyspec.P256)
	t.Run("generate", func(t *testing.T) {
		f.bad.Store(true)
		r := start()
		f.bad.Store(false)
		if k, _, err := r.Generate(keyspec.P256); err != nil || k.Software {
			t.Errorf("%+v, %v", k, err)
		}
		if err := r.use(t, k, hsm.SignECDSA); err != nil {
			t.Error(err)
		}
	})
	t.Run("run", func(t *testing.T) {
		f.bad.Store(true)
		r := start()
		if err := r.use(t, k, hsm.SignECDSA); hsm.Outcome(err) != hsm.Unavailable || errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("a stored key: %v", err)
		}
		f.bad.Store(false)
		eventually(t, "the token is asked again", func() bool { return r.use(t, k, hsm.SignECDSA) == nil })
	})
	t.Run("offers", func(t *testing.T) {
		f.bad.Store(true)
		r := start()
		f.bad.Store(false)
		eventually(t, "the token is asked again", func() bool { _, software := r.Offers(keyspec.P256); return !software })
	})
	t.Run("no sessions", func(t *testing.T) {
		f.spec = 0
		f.bad.Store(true)
		r := start()
		f.bad.Store(false)
		if k, _, err := r.Generate(keyspec.P256); !errors.Is(err, hsm.ErrUnavailable) {
			t.Errorf("%+v, %v", k, err)
		}
		if err := r.use(t, k, hsm.SignECDSA); hsm.Outcome(err) != hsm.Unavailable || errors.Is(err, hsm.ErrNotOffered) {
			t.Errorf("a stored key: %v", err)
		}
	})
}

// TestGenerateHangs: a token in which the making of keys hangs does not keep the others from making them.
func TestGenerateHangs(t *testing.T) {
	r := newKeyRig(t, 2, func(c *hsm.KeyRingConfig) { c.GenerateTimeout = 2 * time.Second })
	hang := make(chan struct{})
	defer close(hang)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Generate, Hang: hang, Times: 2})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, _, err := r.Generate(keyspec.P256); !errors.Is(err, hsm.ErrTimeout) {
				t.Errorf("hangs: %v", err)
			}
		})
	}
	eventually(t, "both hang", func() bool { return r.tokens[0].Calls(hsmtest.Generate) == 2 })
	if _, _, err := r.Generate(keyspec.P256); err != nil || r.tokens[1].Calls(hsmtest.Generate) != 1 {
		t.Errorf("while they hang: %v", err)
	}
	wg.Wait()
	if st := r.Stats().Slots[0]; st.Quarantines != 1 || st.Hangs != 2 {
		t.Errorf("%+v", st)
	}
	if _, _, err := r.Generate(keyspec.P256); err != nil || r.tokens[1].Calls(hsmtest.Generate) != 2 {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRefusedKeyGoesToTheNextReplica(t *testing.T) {
	for name, f := range map[string]hsmtest.Fault{"wrapped key": {CKR: hsm.CKR_WRAPPED_KEY_INVALID}, "refused": {Err: hsm.ErrKeyRefused}} {
		t.Run(name, func(t *testing.T) {
			r := newKeyRig(t, 2, nil)
			k := r.key(t, keyspec.P256)
			f.Op, f.Times = hsmtest.Load, hsmtest.Forever
			r.tokens[0].Add(f)
			for range 8 {
				if err := r.use(t, k, hsm.SignECDSA); err != nil {
					t.Fatal(err)
				}
			}
			if st := r.Stats().Slots[0]; r.tokens[0].Calls(hsmtest.Load) == 0 || st.Alarms == 0 || st.Canaries == 0 {
				t.Errorf("%+v", st)
			}
			r.Forget(k.ID)
			r.tokens[1].Add(f)
			if err := r.use(t, k, hsm.SignECDSA); hsm.Outcome(err) != hsm.Unavailable {
				t.Errorf("both: %v", err)
			}
		})
	}
}

// TestHangingLoadCountsOnce, however many wait for it.
func TestHangingLoadCountsOnce(t *testing.T) {
	r := newKeyRig(t, 1, func(c *hsm.KeyRingConfig) { c.Timeout, c.SessionsPerToken = 2*time.Second, 4 })
	k := r.key(t, keyspec.P256)
	hang := make(chan struct{})
	defer close(hang)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Load, Hang: hang, Times: 1})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { _ = r.use(t, k, hsm.SignECDSA) })
	}
	wg.Wait()
	if st := r.Stats().Slots[0]; st.Hangs != 1 || st.Quarantines != 0 {
		t.Errorf("%+v", st)
	}
}

// TestCanaryWithoutRoom: one bad ciphertext does not cost a token that has no session left for the canary.
func TestCanaryWithoutRoom(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	k := r.key(t, keyspec.P256)
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_GENERAL_ERROR, Times: 1}, hsmtest.Fault{Op: hsmtest.Open, CKR: hsm.CKR_SESSION_COUNT, Times: 1})
	if err := r.use(t, k, hsm.DeriveECDH); hsm.Outcome(err) != hsm.DataError {
		t.Error(err)
	}
	if st := r.Stats().Slots[0]; st.Quarantines != 0 || st.Canaries != 1 {
		t.Errorf("%+v", st)
	}
}

// TestForgetDoesNotWait for a token that does not answer.
func TestForgetDoesNotWait(t *testing.T) {
	r := newKeyRig(t, 1, nil)
	var keys []*testKey
	for range 3 {
		k := r.key(t, keyspec.P256)
		if err := r.use(t, k, hsm.SignECDSA); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	hang := make(chan struct{})
	r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Unload, Hang: hang, Times: 1})
	for _, k := range keys {
		r.Forget(k.ID) // would wait for hang, which closes afterwards
	}
	if n := r.tokens[0].Loaded(); n != 3 {
		t.Errorf("%d are loaded", n)
	}
	close(hang)
	eventually(t, "they are unloaded", func() bool { return r.tokens[0].Loaded() == 0 })
}

func TestKeyRingWithoutFull(t *testing.T) {
	_, err := hsm.NewKeyRing(hsm.KeyRingConfig{Tokens: []hsm.Token{softToken(t)}, SessionsPerToken: 1, RoundMax: 1, Batch: batched(8)})
	if err == nil {
		t.Error("accepted")
	}
}

// TestHandleOfAnotherObject: only a function that takes the key's handle says that the key is lost.
func TestHandleOfAnotherObject(t *testing.T) {
	for function, lost := range map[string]uint64{"C_GetAttributeValue": 0, "C_DeriveKey": 1, "C_SignInit": 1} {
		r := newKeyRig(t, 1, nil)
		k := r.key(t, keyspec.P256)
		r.tokens[0].Add(hsmtest.Fault{Op: hsmtest.Use, CKR: hsm.CKR_OBJECT_HANDLE_INVALID, Function: function, Times: 1})
		if err := r.use(t, k, hsm.DeriveECDH); err != nil {
			t.Errorf("%s: %v", function, err)
		}
		if n := r.Stats().Handles[0].Lost; n != lost {
			t.Errorf("%s: %d keys lost, want %d", function, n, lost)
		}
	}
}

// slowLoad are software keys of which some wait to be unsealed.
type slowLoad struct {
	hsm.SoftwareKeys
	wait    chan struct{}
	waiting *atomic.Int32
}

func (s slowLoad) LoadKey(spec keyspec.Spec, sealed []byte) (hsm.LoadedKey, error) {
	if sealed[0] == 0xee {
		s.waiting.Add(1)
		<-s.wait
		return hsm.LoadedKey{}, hsm.ErrTimeout
	}
	return s.SoftwareKeys.LoadKey(spec, sealed)
}

// TestUnsealingTakesNoSeat from keys that are loaded, and only so many wait for it.
func TestUnsealingTakesNoSeat(t *testing.T) {
	const most, over = 1024, 8
	slow := slowLoad{sealedKeys(), make(chan struct{}), new(atomic.Int32)}
	full := errors.New("full")
	r := newKeyRig(t, 0, func(c *hsm.KeyRingConfig) {
		c.Tokens, c.Software, c.Full = []hsm.Token{noKeys{softToken(t)}}, slow, full
	})
	hot := r.key(t, keyspec.P256)
	if err := r.use(t, hot, hsm.SignECDSA); err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int32
	var wg sync.WaitGroup
	for i := range most + over {
		cold := *hot.Key
		cold.ID = [32]byte{1, byte(i), byte(i >> 8), 1}
		cold.Wrapped = append([]byte{0xee}, cold.Wrapped...)
		wg.Go(func() {
			err := r.Run(&hsm.KeyJob{Key: &cold, Mechanism: hsm.SignECDSA, In: make([]byte, 32), Out: make([]byte, 64)}, time.Now())
			if errors.Is(err, full) {
				refused.Add(1)
			}
		})
	}
	eventually(t, "all wait or are refused", func() bool { return slow.waiting.Load() == most && refused.Load() == over })
	if err := r.use(t, hot, hsm.SignECDSA); err != nil {
		t.Errorf("a key that is loaded: %v", err)
	}
	close(slow.wait)
	wg.Wait()
}
