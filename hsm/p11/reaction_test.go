package p11

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// reaction is what a return value of some phases has to lead to on the only token there is, so that nothing can be retried elsewhere.
type reaction struct {
	code  hsm.CKR
	once  hsm.Result // where one call is answered so; Done: nobody notices
	ever  hsm.Result // where all calls of the function are
	state string     // of the slot after the latter
	fresh bool       // once has taken the slot out too
}

// What the rows have in common.
var (
	hidden  = func(c hsm.CKR, ever hsm.Result) reaction { return reaction{c, hsm.Done, ever, "serving", false} }
	doubted = func(c hsm.CKR) reaction { return reaction{c, hsm.Done, hsm.Internal, "quarantined", false} }
	gone    = func(c hsm.CKR, r hsm.Result) reaction { return reaction{c, r, r, "quarantined", true} }
	ours    = func(c hsm.CKR) reaction { return reaction{c, hsm.Internal, hsm.Internal, "serving", false} }
)

// everywhere is the part of the table that is the same in each phase that works on our own bytes: round init, round data, random, sign init and data.
var everywhere = []reaction{
	hidden(hsm.CKR_SESSION_HANDLE_INVALID, hsm.Internal), hidden(hsm.CKR_SESSION_CLOSED, hsm.Internal),
	hidden(hsm.CKR_KEY_HANDLE_INVALID, hsm.Unavailable), hidden(hsm.CKR_OBJECT_HANDLE_INVALID, hsm.Unavailable),
	hidden(hsm.CKR_USER_NOT_LOGGED_IN, hsm.Internal),
	hidden(hsm.CKR_OPERATION_ACTIVE, hsm.Internal), hidden(hsm.CKR_OPERATION_NOT_INITIALIZED, hsm.Internal),
	hidden(hsm.CKR_DEVICE_MEMORY, hsm.Throttled),
	doubted(hsm.CKR_GENERAL_ERROR), doubted(hsm.CKR_FUNCTION_FAILED), doubted(hsm.CKR_DEVICE_ERROR), doubted(0x80000123), doubted(0x7777),
	gone(hsm.CKR_DEVICE_REMOVED, hsm.Unavailable), gone(hsm.CKR_TOKEN_NOT_PRESENT, hsm.Unavailable), gone(hsm.CKR_TOKEN_NOT_RECOGNIZED, hsm.Unavailable),
	gone(hsm.CKR_SLOT_ID_INVALID, hsm.Unavailable), gone(hsm.CKR_CRYPTOKI_NOT_INITIALIZED, hsm.Internal),
	gone(hsm.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, hsm.Internal), gone(hsm.CKR_USER_TOO_MANY_TYPES, hsm.Internal),
	ours(hsm.CKR_HOST_MEMORY), ours(hsm.CKR_BUFFER_TOO_SMALL), ours(hsm.CKR_MECHANISM_INVALID), ours(hsm.CKR_MECHANISM_PARAM_INVALID),
	ours(hsm.CKR_FUNCTION_NOT_SUPPORTED), ours(hsm.CKR_CURVE_NOT_SUPPORTED), ours(hsm.CKR_ARGUMENTS_BAD), ours(hsm.CKR_KEY_SIZE_RANGE),
	ours(hsm.CKR_KEY_TYPE_INCONSISTENT), ours(hsm.CKR_KEY_FUNCTION_NOT_PERMITTED), ours(hsm.CKR_ACTION_PROHIBITED), ours(hsm.CKR_TEMPLATE_INCOMPLETE),
	ours(hsm.CKR_ATTRIBUTE_VALUE_INVALID), ours(hsm.CKR_KEY_UNEXTRACTABLE), ours(hsm.CKR_INFORMATION_SENSITIVE), ours(hsm.CKR_TOKEN_WRITE_PROTECTED),
	ours(hsm.CKR_FUNCTION_CANCELED), ours(hsm.CKR_FUNCTION_REJECTED), ours(hsm.CKR_CANCEL), ours(hsm.CKR_SESSION_READ_ONLY),
	ours(hsm.CKR_DATA_INVALID), ours(hsm.CKR_DATA_LEN_RANGE), ours(hsm.CKR_ENCRYPTED_DATA_INVALID), ours(hsm.CKR_SIGNATURE_INVALID),
}

// reactor is one token behind the slow module, and what is tried on it.
type reactor struct {
	*testing.T
	slow       *slowhsm.HSM
	token      *Token
	signs      *hsm.Key
	opens      *hsm.Key
	ciphertext []byte
}

func newReactor(t *testing.T) *reactor {
	t.Helper()
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	r := &reactor{T: t, slow: slow, token: opener(t, slow.URI())(t).(*Token)}
	t.Cleanup(func() { r.token.Close() })
	r.token.streaming.Store(streamsNo) // each round is C_GenerateRandom, C_EncryptInit, C_Encrypt
	return r
}

// shards are new for each row: what earlier ones have counted does not add up.
func (r *reactor) shards(t *testing.T) *hsm.Shards {
	t.Helper()
	s, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{r.token}, SessionsPerToken: 2, RoundMax: 8, RoundTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keys makes the keys that ring's jobs are for.
func (r *reactor) keys(t *testing.T) {
	t.Helper()
	roots, err := r.token.Roots()
	if err != nil {
		t.Fatal(err)
	}
	made := func(s keyspec.Spec, id byte) (*hsm.Key, []byte) {
		wrapped, public, err := r.token.GenerateKey(s)
		if err != nil {
			t.Fatal(err)
		}
		return &hsm.Key{ID: [32]byte{id}, Spec: s, Root: roots.ID, Wrapped: wrapped}, public
	}
	r.signs, _ = made(keyspec.P256, 1)
	var public []byte
	r.opens, public = made(keyspec.RSA2048, 2)
	p, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if r.ciphertext, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, p.(*rsa.PublicKey), []byte("x"), nil); err != nil {
		t.Fatal(err)
	}
}

func (r *reactor) ring(t *testing.T) *hsm.KeyRing {
	t.Helper()
	ring, err := hsm.NewKeyRing(hsm.KeyRingConfig{
		Tokens: []hsm.Token{r.token}, SessionsPerToken: 2, RoundMax: 8, Timeout: 20 * time.Second, QueueTimeMax: 20 * time.Second, Full: batch.ErrFull,
		Batch: func(shards int, run func(int, []*hsm.KeyJob)) (func(int, *hsm.KeyJob, time.Time) error, error) {
			b, err := batch.New(batch.Config{Shards: shards, RoundMax: 8, QueueMax: 64}, run)
			if err != nil {
				return nil, err
			}
			return b.Do, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

func use(ring *hsm.KeyRing, k *hsm.Key, m hsm.Mechanism, in []byte) error {
	j := &hsm.KeyJob{Key: k, Mechanism: m, In: in, Out: make([]byte, 512)}
	return ring.Run(j, time.Now())
}

// served is what rows are tried on.
type served struct {
	do    func() error
	slot  func() hsm.SlotStats
	shard func() (replaced uint64)
	close func()
}

func (r *reactor) rounds(t *testing.T) served {
	s := r.shards(t)
	return served{
		do:    func() error { _, err := derive(t, s, 0); return err },
		slot:  func() hsm.SlotStats { return s.Stats().Slots[0] },
		shard: func() uint64 { return s.Stats().Shards[0].Replaced },
		close: s.Close,
	}
}

func (r *reactor) jobs(t *testing.T, do func(*hsm.KeyRing) error) served {
	ring := r.ring(t)
	return served{
		do:    func() error { return do(ring) },
		slot:  func() hsm.SlotStats { return ring.Stats().Slots[0] },
		shard: func() (n uint64) { st := ring.Stats(); return st.Shards[0].Replaced + st.Shards[1].Replaced },
		close: ring.Close,
	}
}

// backWithin is how long service may take to come back after a fault of any length. A busy machine gets one more chance.
const backWithin = 5 * time.Second

// comesBack waits until the slot serves and the operation works.
func comesBack(t *testing.T, s *served) time.Duration {
	t.Helper()
	from := time.Now()
	for {
		err := s.do()
		if st := s.slot(); err == nil && st.State.String() == "serving" && st.Serving == 2 {
			return time.Since(from)
		}
		if time.Since(from) > 60*time.Second {
			t.Fatalf("does not come back: %v, %+v", err, s.slot())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// answered tries one row: the code once, and then for every call of the function until the fault ends.
func (r *reactor) answered(t *testing.T, start func(*testing.T) served, before []slowhsm.Fault, function string, c reaction, logins bool) {
	t.Run(fmt.Sprintf("%s/%s", function, c.code), func(t *testing.T) {
		strike := func(f slowhsm.Fault) (served, error) {
			s := start(t)
			if err := s.do(); err != nil { // what is loaded or opened at the first use is there
				t.Fatal(err)
			}
			setSlow(t, r.slow, slowhsm.Settings{Faults: append(before[:len(before):len(before)], f)})
			return s, s.do()
		}
		s, err := strike(slowhsm.Fault{Function: function, Nth: 1, CKR: c.code})
		// Where the slot is out, a second attempt finds none that serves.
		if got := hsm.Final(err); err == nil && c.once != hsm.Done || err != nil && got != c.once && !(c.fresh && errors.Is(err, hsm.ErrUnavailable)) {
			t.Errorf("once: %v is %d, want %d", err, got, c.once)
		}
		if r.faults(t) == 0 {
			t.Error("no fault struck")
		}
		if st := s.slot(); (st.Quarantines != 0) != c.fresh || logins && st.Resets > 1 {
			t.Errorf("once: %+v", st)
		}
		dataError := c.once == hsm.DataError
		if !c.fresh && (s.shard() > 0) == dataError {
			t.Errorf("once: %d sessions replaced", s.shard())
		}
		setSlow(t, r.slow, slowhsm.Settings{})
		s.close()

		s, err = strike(slowhsm.Fault{Function: function, Nth: 1, Onwards: true, CKR: c.code})
		defer s.close()
		if got := hsm.Final(err); err == nil || got != c.ever && !(c.state == "quarantined" && errors.Is(err, hsm.ErrUnavailable)) {
			t.Errorf("ever: %v is %d, want %d", err, got, c.ever)
		}
		for range 3 { // where the canary is well, three such answers are what it takes
			if c.state == "quarantined" && s.slot().State.String() == "serving" {
				_ = s.do()
			}
		}
		if st := s.slot(); st.State.String() != c.state {
			t.Errorf("ever: %+v, want %s", st, c.state)
		}
		setSlow(t, r.slow, slowhsm.Settings{})
		if took := comesBack(t, &s); took > backWithin {
			t.Errorf("back after %v", took)
		}
	})
}

func (r *reactor) faults(t *testing.T) uint64 {
	t.Helper()
	c, err := r.slow.Report()
	if err != nil {
		t.Fatal(err)
	}
	return c.Faults
}

// each tries all rows of the table, each at one of the functions in turn.
func (r *reactor) each(t *testing.T, start func(*testing.T) served, rows []reaction, functions ...string) {
	for i, c := range rows {
		r.answered(t, start, nil, functions[i%len(functions)], c, false)
	}
}

// TestReactionsRound: rounds of AES blocks.
func TestReactionsRound(t *testing.T) {
	r := newReactor(t)
	r.each(t, r.rounds, everywhere, "C_Encrypt", "C_EncryptInit", "C_GenerateRandom")
}

// TestReactionsKeys: signing, and decryption, where codes that blame the data are the client's.
func TestReactionsKeys(t *testing.T) {
	r := newReactor(t)
	r.keys(t)
	sign := func(t *testing.T) served {
		return r.jobs(t, func(ring *hsm.KeyRing) error { return use(ring, r.signs, hsm.SignECDSA, make([]byte, 32)) })
	}
	r.each(t, sign, everywhere, "C_Sign", "C_SignInit")
	open := func(t *testing.T) served {
		return r.jobs(t, func(ring *hsm.KeyRing) error { return use(ring, r.opens, hsm.DecryptOAEP256, r.ciphertext) })
	}
	data := func(c hsm.CKR) reaction { return reaction{c, hsm.DataError, hsm.DataError, "serving", false} }
	r.each(t, open, []reaction{
		data(hsm.CKR_ENCRYPTED_DATA_INVALID), data(hsm.CKR_ENCRYPTED_DATA_LEN_RANGE), data(hsm.CKR_DATA_INVALID), data(hsm.CKR_DATA_LEN_RANGE),
		data(hsm.CKR_GENERAL_ERROR), data(hsm.CKR_FUNCTION_FAILED), // the canary is well
		doubted(hsm.CKR_DEVICE_ERROR), gone(hsm.CKR_DEVICE_REMOVED, hsm.Unavailable), hidden(hsm.CKR_SESSION_CLOSED, hsm.Internal),
		hidden(hsm.CKR_USER_NOT_LOGGED_IN, hsm.Internal), ours(hsm.CKR_BUFFER_TOO_SMALL), hidden(hsm.CKR_DEVICE_MEMORY, hsm.Throttled),
	}, "C_Decrypt")
	r.each(t, open, []reaction{ours(hsm.CKR_ENCRYPTED_DATA_INVALID), doubted(hsm.CKR_GENERAL_ERROR), hidden(hsm.CKR_KEY_HANDLE_INVALID, hsm.Unavailable)}, "C_DecryptInit")
}

// TestReactionsLoad: the ways of a key into the token, out of it and to its first use.
func TestReactionsLoad(t *testing.T) {
	r := newReactor(t)
	r.keys(t)
	load := func(t *testing.T) served {
		return r.jobs(t, func(ring *hsm.KeyRing) error {
			ring.Forget(r.signs.ID)
			return use(ring, r.signs, hsm.SignECDSA, make([]byte, 32))
		})
	}
	// A stored key that does not unwrap is nobody's data: an alarm, and the next replica, of which there is none.
	damaged := func(c hsm.CKR) reaction { return reaction{c, hsm.Unavailable, hsm.Unavailable, "serving", false} }
	for _, c := range []reaction{damaged(hsm.CKR_WRAPPED_KEY_INVALID), damaged(hsm.CKR_WRAPPED_KEY_LEN_RANGE), damaged(hsm.CKR_GENERAL_ERROR), damaged(hsm.CKR_FUNCTION_FAILED)} {
		t.Run("C_UnwrapKey/"+c.code.String(), func(t *testing.T) {
			s := load(t)
			defer s.close()
			if err := s.do(); err != nil {
				t.Fatal(err)
			}
			alarms := s.slot().Alarms
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_UnwrapKey", Nth: 1, Onwards: true, CKR: c.code}}})
			if err := s.do(); hsm.Final(err) != c.ever {
				t.Errorf("%v is %d, want %d", err, hsm.Final(err), c.ever)
			}
			if st := s.slot(); st.Quarantines != 0 || st.Alarms == alarms || st.Canaries == 0 {
				t.Errorf("%+v", st)
			}
			setSlow(t, r.slow, slowhsm.Settings{})
			if took := comesBack(t, &s); took > backWithin {
				t.Errorf("back after %v", took)
			}
		})
	}
	r.each(t, load, []reaction{
		hidden(hsm.CKR_SESSION_HANDLE_INVALID, hsm.Internal), hidden(hsm.CKR_USER_NOT_LOGGED_IN, hsm.Internal), doubted(hsm.CKR_DEVICE_ERROR),
		hidden(hsm.CKR_UNWRAPPING_KEY_HANDLE_INVALID, hsm.Unavailable), gone(hsm.CKR_TOKEN_NOT_PRESENT, hsm.Unavailable),
		hidden(hsm.CKR_DEVICE_MEMORY, hsm.Throttled), ours(hsm.CKR_TEMPLATE_INCONSISTENT), ours(hsm.CKR_HOST_MEMORY),
	}, "C_UnwrapKey")
	// The unloading of a key that nobody needs any more is not the business of whoever comes next.
	t.Run("C_DestroyObject", func(t *testing.T) {
		s := load(t)
		defer s.close()
		for _, code := range []hsm.CKR{hsm.CKR_DEVICE_ERROR, hsm.CKR_OBJECT_HANDLE_INVALID, hsm.CKR_GENERAL_ERROR} {
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_DestroyObject", Nth: 1, Onwards: true, CKR: code}}})
			if err := s.do(); err != nil {
				t.Errorf("%v: %v", code, err)
			}
		}
		setSlow(t, r.slow, slowhsm.Settings{})
	})
}

// TestReactionsCreate: a key that is being made. It is never made again blindly: what the token has made is gone with the call's session objects, so that
// a second attempt leaves no two, and the caller gets the error.
func TestReactionsCreate(t *testing.T) {
	r := newReactor(t)
	r.keys(t)
	ring := r.ring(t)
	defer ring.Close()
	generate := func() error { _, _, err := ring.Generate(keyspec.P256); return err }
	if err := generate(); err != nil {
		t.Fatal(err)
	}
	for _, function := range []string{"C_GenerateKeyPair", "C_WrapKey", "C_UnwrapKey"} {
		for code, want := range map[hsm.CKR]hsm.Result{
			hsm.CKR_DEVICE_MEMORY: hsm.Throttled, hsm.CKR_HOST_MEMORY: hsm.Internal, hsm.CKR_DEVICE_ERROR: hsm.Internal, 0x80000007: hsm.Internal,
			hsm.CKR_GENERAL_ERROR: hsm.Internal, hsm.CKR_ATTRIBUTE_VALUE_INVALID: hsm.Internal,
		} {
			before := sessionObjects(t, r.token)
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: function, Nth: 1, Onwards: true, CKR: code}}})
			err := generate()
			setSlow(t, r.slow, slowhsm.Settings{})
			if got := hsm.Final(err); err == nil || got != want && got != hsm.Unavailable {
				t.Errorf("%s, %v: %v is %d, want %d", function, code, err, hsm.Final(err), want)
			}
			from := time.Now()
			for err := generate(); err != nil; err = generate() {
				if time.Since(from) > backWithin {
					t.Fatalf("%s, %v: %v", function, code, err)
				}
			}
			if after := sessionObjects(t, r.token); after > before {
				t.Errorf("%s, %v: %d objects are left", function, code, after-before)
			}
		}
	}
}

// TestReactionsOpen: a session that was killed and cannot be opened anew, at each of the functions that it takes. Its neighbour goes on where the code is
// not the token's end, and the session is back when the fault is over.
func TestReactionsOpen(t *testing.T) {
	r := newReactor(t)
	for _, function := range []string{"C_OpenSession", "C_GetSessionInfo", "C_FindObjectsInit", "C_FindObjects", "C_CopyObject"} {
		for _, c := range []struct {
			code hsm.CKR
			ends bool // the slot is taken out at once
		}{
			{hsm.CKR_SESSION_COUNT, false}, {hsm.CKR_HOST_MEMORY, false}, {hsm.CKR_SESSION_READ_WRITE_SO_EXISTS, false}, {hsm.CKR_GENERAL_ERROR, false},
			{hsm.CKR_DEVICE_ERROR, false}, {0x80000123, false}, {hsm.CKR_DEVICE_REMOVED, true}, {hsm.CKR_SLOT_ID_INVALID, true},
		} {
			t.Run(function+"/"+c.code.String(), func(t *testing.T) {
				shards := r.shards(t)
				defer shards.Close()
				setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{
					{Function: "C_EncryptInit", Nth: 1, Act: slowhsm.Kill}, {Function: function, Nth: 1, Onwards: true, CKR: c.code},
				}})
				_, err := derive(t, shards, 0)
				if function == "C_CopyObject" { // without a copy the root itself serves
					if err != nil {
						t.Error(err)
					}
				} else {
					if hsm.Final(err) != hsm.Internal || !hsm.Retryable(err) {
						t.Errorf("%v", err)
					}
					if st := shards.Stats().Slots[0]; (st.State.String() == "quarantined") != c.ends {
						t.Errorf("%+v", st)
					}
					if _, err := derive(t, shards, 1); (err != nil) != c.ends && shards.Stats().Slots[0].Quarantines == 0 {
						t.Errorf("its neighbour: %v", err)
					}
				}
				setSlow(t, r.slow, slowhsm.Settings{})
				s := served{do: func() error { _, err := derive(t, shards, 0); return err }, slot: func() hsm.SlotStats { return shards.Stats().Slots[0] }}
				if took := comesBack(t, &s); took > backWithin {
					t.Errorf("back after %v", took)
				}
			})
		}
	}
}

// TestReactionsLogin: everybody notices at once that the login is lost, one of them logs in, and after an answer about the PIN nobody does ever again.
func TestReactionsLogin(t *testing.T) {
	for _, c := range []struct {
		code  hsm.CKR
		state string
	}{
		{hsm.CKR_OK, "serving"}, {hsm.CKR_USER_ALREADY_LOGGED_IN, "serving"}, {hsm.CKR_GENERAL_ERROR, "quarantined"}, {hsm.CKR_DEVICE_ERROR, "quarantined"},
		{hsm.CKR_USER_ANOTHER_ALREADY_LOGGED_IN, "quarantined"}, {hsm.CKR_PIN_INCORRECT, "stopped"}, {hsm.CKR_PIN_LOCKED, "stopped"},
		{hsm.CKR_PIN_EXPIRED, "stopped"}, {hsm.CKR_PIN_INVALID, "stopped"}, {hsm.CKR_PIN_LEN_RANGE, "stopped"}, {hsm.CKR_USER_PIN_NOT_INITIALIZED, "stopped"},
	} {
		t.Run(c.code.String(), func(t *testing.T) {
			r := newReactor(t)
			shards := r.shards(t)
			defer shards.Close()
			faults := []slowhsm.Fault{{Function: "C_EncryptInit", Nth: 1, Act: slowhsm.LogOut}}
			if c.code != hsm.CKR_OK {
				faults = append(faults, slowhsm.Fault{Function: "C_Login", Nth: 1, Onwards: true, CKR: c.code})
			}
			before := r.logins(t)
			setSlow(t, r.slow, slowhsm.Settings{Faults: faults})
			done := make(chan error, 2)
			for shard := range 2 {
				go func() { _, err := derive(t, shards, shard); done <- err }()
			}
			for range 2 {
				if err := <-done; err != nil && c.code == hsm.CKR_OK {
					t.Error(err)
				}
			}
			if c.code == hsm.CKR_USER_ALREADY_LOGGED_IN { // which was a lie: the token is asked again until it is true
				setSlow(t, r.slow, slowhsm.Settings{})
			}
			for deadline := time.Now().Add(10 * time.Second); shards.Stats().Slots[0].State.String() != c.state; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) { // the supervisor's attempts count too
					t.Fatalf("%+v, want %s", shards.Stats().Slots[0], c.state)
				}
			}
			if n := r.logins(t) - before; (c.state == "serving" || c.state == "stopped") && c.code != hsm.CKR_USER_ALREADY_LOGGED_IN && n != 1 {
				t.Errorf("%d logins", n)
			}
			if c.state == "stopped" {
				setSlow(t, r.slow, slowhsm.Settings{})
				n := r.logins(t)
				for range 20 { // rounds, and the supervisor's time
					if _, err := derive(t, shards, 1); err == nil {
						t.Fatal("it serves again")
					}
					time.Sleep(10 * time.Millisecond)
				}
				if r.logins(t) != n {
					t.Errorf("%d logins after the PIN was refused", r.logins(t)-n)
				}
				return
			}
			setSlow(t, r.slow, slowhsm.Settings{})
			s := served{do: func() error { _, err := derive(t, shards, 0); return err }, slot: func() hsm.SlotStats { return shards.Stats().Slots[0] }}
			if took := comesBack(t, &s); took > backWithin {
				t.Errorf("back after %v", took)
			}
		})
	}
}

func (r *reactor) logins(t *testing.T) uint64 {
	t.Helper()
	c, err := r.slow.Report()
	if err != nil {
		t.Fatal(err)
	}
	return c.Calls["C_Login"]
}

// TestReactionsWrong: success with a wrong result stops the slot for good, and so does a token that says of itself that it is broken. Nothing of the result
// reaches anybody.
func TestReactionsWrong(t *testing.T) {
	for name, f := range map[string]slowhsm.Fault{
		"flipped":         {Function: "C_Encrypt", Act: slowhsm.Flip},
		"too short":       {Function: "C_Encrypt", Act: slowhsm.Short},
		"too long":        {Function: "C_Encrypt", Act: slowhsm.Long},
		"repeated random": {Function: "C_GenerateRandom", Act: slowhsm.Repeat},
		"no generator":    {Function: "C_GenerateRandom", CKR: hsm.CKR_RANDOM_NO_RNG},
		"self-test":       {Function: "C_EncryptInit", CKR: hsm.CKR_FIPS_SELF_TEST_FAILED},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReactor(t)
			shards := r.shards(t)
			defer shards.Close()
			f.Nth, f.Onwards = 1, true
			setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{f}})
			out, err := derive(t, shards, 0)
			if f.Act == slowhsm.Repeat && err == nil { // the first is the one that is repeated
				out, err = derive(t, shards, 0)
			}
			if err == nil || hsm.Final(err) != hsm.Internal || out != [48]byte{} {
				t.Errorf("%v, %x", err, out)
			}
			if st := shards.Stats().Slots[0]; st.State.String() != "stopped" || st.Alarms == 0 {
				t.Errorf("%+v", st)
			}
			setSlow(t, r.slow, slowhsm.Settings{})
			if _, err := derive(t, shards, 1); !errors.Is(err, hsm.ErrUnavailable) {
				t.Errorf("the other shard: %v", err)
			}
		})
	}
}

// TestReactionsMoved: a token that is gone and comes back in another slot is found by its serial, with new handles and sessions.
func TestReactionsMoved(t *testing.T) {
	r := newReactor(t)
	shards := r.shards(t)
	defer shards.Close()
	want, err := derive(t, shards, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint(3) {
		setSlow(t, r.slow, slowhsm.Settings{Gone: true, Moved: 10 * i})
		if _, err := derive(t, shards, 0); hsm.Final(err) != hsm.Unavailable {
			t.Errorf("while it is gone: %v", err)
		}
		setSlow(t, r.slow, slowhsm.Settings{Moved: 10 * (i + 1)})
		s := served{do: func() error { _, err := derive(t, shards, 0); return err }, slot: func() hsm.SlotStats { return shards.Stats().Slots[0] }}
		if took := comesBack(t, &s); took > backWithin {
			t.Errorf("back after %v", took)
		}
		if got, err := derive(t, shards, 1); err != nil || got != want {
			t.Errorf("another result: %v", err)
		}
	}
	// And one whose sessions end all at once, where it is.
	setSlow(t, r.slow, slowhsm.Settings{Moved: 30, Faults: []slowhsm.Fault{{Function: "C_EncryptInit", Nth: 1, Act: slowhsm.KillAll}}})
	for shard := range 2 {
		if got, err := derive(t, shards, shard); err != nil || got != want {
			t.Errorf("shard %d after all sessions were killed: %v", shard, err)
		}
	}
}

// TestReactionsAllHang: a module in which every call hangs has no more than eight threads of a slot, the callers have their answers, and when it lets go
// the slot serves again. It is not initialised anew meanwhile: PKCS#11 has no way to end calls, and C_Finalize while there are any crashes modules.
func TestReactionsAllHang(t *testing.T) {
	r := newReactor(t)
	shards, err := hsm.NewShards(hsm.ShardsConfig{Tokens: []hsm.Token{r.token}, SessionsPerToken: 2, RoundMax: 8, RoundTimeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer shards.Close()
	setSlow(t, r.slow, slowhsm.Settings{Faults: []slowhsm.Fault{{Function: slowhsm.Any, Nth: 1, Onwards: true, Act: slowhsm.Stall}}})
	for range 10 {
		for shard := range 2 {
			if _, err := derive(t, shards, shard); hsm.Final(err) != hsm.Timeout && hsm.Final(err) != hsm.Unavailable {
				t.Errorf("shard %d: %v", shard, err)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	if st := shards.Stats().Slots[0]; st.Quarantines == 0 || st.Stuck < 2 || st.Stuck > 8 {
		t.Errorf("%+v", st)
	}
	setSlow(t, r.slow, slowhsm.Settings{})
	s := served{do: func() error { _, err := derive(t, shards, 0); return err }, slot: func() hsm.SlotStats { return shards.Stats().Slots[0] }}
	if took := comesBack(t, &s); took > backWithin {
		t.Errorf("back after %v", took)
	}
	if st := shards.Stats().Slots[0]; st.Stuck != 0 {
		t.Errorf("%+v", st)
	}
}
