package hsm_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// keyless is a token without an audit key.
type keyless struct{ hsm.Token }

func (keyless) OpenAuditSession() (hsm.AuditSession, error) { return nil, hsm.ErrNoAuditKey }

// swapped is a token whose audit key is another's once swap is set.
type swapped struct {
	hsm.Token
	other hsm.Token
	swap  bool
}

func (s *swapped) OpenAuditSession() (hsm.AuditSession, error) {
	if s.swap {
		return s.other.OpenAuditSession()
	}
	return s.Token.OpenAuditSession()
}

func auditKey(t testing.TB, timeout time.Duration, tokens ...hsm.Token) *hsm.AuditKey {
	t.Helper()
	k, err := hsm.OpenAuditKey(tokens, nil, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// signs checks that the key signs.
func signs(t testing.TB, k *hsm.AuditKey) {
	t.Helper()
	digest := sha256.Sum256([]byte("text"))
	der, err := k.Sign(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(k.Public(), digest[:], der) {
		t.Fatal("the signature does not verify")
	}
}

func TestAuditKeyOfWhichToken(t *testing.T) {
	good := softToken(t)
	if _, err := hsm.OpenAuditKey([]hsm.Token{keyless{good}}, nil, time.Minute); !errors.Is(err, hsm.ErrNoAuditKey) {
		t.Errorf("no token has a key: %v", err)
	}
	if _, err := hsm.OpenAuditKey(nil, nil, time.Minute); !errors.Is(err, hsm.ErrNoAuditKey) {
		t.Errorf("no token: %v", err)
	}
	signs(t, auditKey(t, time.Minute, keyless{good}, good))
	// A token that is not well is not passed over: the log would get another key.
	bad := hsmtest.NewFaulty(good)
	bad.Add(hsmtest.Fault{Op: hsmtest.OpenAudit, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_REMOVED, Function: "C_OpenSession"})
	var e *hsm.Error
	if _, err := hsm.OpenAuditKey([]hsm.Token{bad, good}, nil, time.Minute); !errors.As(err, &e) || e.CKR != hsm.CKR_DEVICE_REMOVED {
		t.Errorf("a token that is gone: %v", err)
	}
	// Of several keys the one that is wanted.
	second := softTokenN(t, 1)
	want := auditKey(t, time.Minute, second).Public()
	k, err := hsm.OpenAuditKey([]hsm.Token{good, keyless{good}, second}, want, time.Minute)
	if err != nil || !k.Public().Equal(want) {
		t.Fatalf("the second token's key: %v", err)
	}
	signs(t, k)
	if _, err := hsm.OpenAuditKey([]hsm.Token{good}, want, time.Minute); !errors.Is(err, hsm.ErrNoAuditKey) {
		t.Errorf("a key that no token has: %v", err)
	}
	for _, n := range []int{0, 31, 33, 64} {
		if _, err := auditKey(t, time.Minute, good).Sign(make([]byte, n)); err == nil {
			t.Errorf("a digest of %d bytes", n)
		}
	}
}

// One fault is hidden, unless it says that the token gives wrong results or refuses the PIN; two are an error once, and the next signature is
// good again.
func TestAuditKeyFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults []hsmtest.Fault
		want   error  // nil: hidden
		resets uint64 // of the token
	}{
		{"session lost", []hsmtest.Fault{{Op: hsmtest.Sign, CKR: hsm.CKR_SESSION_HANDLE_INVALID, Function: "C_SignInit"}}, nil, 0},
		{"generation lost", []hsmtest.Fault{{Op: hsmtest.Sign, LoseGeneration: true}}, nil, 0},
		{"key handle lost", []hsmtest.Fault{{Op: hsmtest.Sign, CKR: hsm.CKR_KEY_HANDLE_INVALID, Function: "C_SignInit"}}, nil, 0},
		{"login lost", []hsmtest.Fault{{Op: hsmtest.Sign, LogOut: true}}, nil, 1},
		{"device error", []hsmtest.Fault{{Op: hsmtest.Sign, CKR: hsm.CKR_DEVICE_ERROR, Function: "C_Sign"}}, nil, 0},
		{"device error twice", []hsmtest.Fault{{Op: hsmtest.Sign, Times: 2, CKR: hsm.CKR_DEVICE_ERROR, Function: "C_Sign"}}, &hsm.Error{}, 0},
		{"mechanism gone", []hsmtest.Fault{{Op: hsmtest.Sign, Times: 2, CKR: hsm.CKR_MECHANISM_INVALID, Function: "C_SignInit"}}, &hsm.Error{}, 0},
		{"login lost twice", []hsmtest.Fault{{Op: hsmtest.Sign, LogOut: true}, {Op: hsmtest.Sign, LogOut: true}}, &hsm.Error{}, 1},
		{"wrong signature", []hsmtest.Fault{{Op: hsmtest.Sign, Wrong: true}}, hsm.ErrWrong, 0},
		{"no PIN", []hsmtest.Fault{{Op: hsmtest.Sign, LogOut: true}, {Op: hsmtest.Reset, Err: hsm.ErrPIN}}, hsm.ErrPIN, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := hsmtest.NewFaulty(softToken(t))
			k := auditKey(t, time.Minute, f)
			f.Add(c.faults...)
			digest := sha256.Sum256([]byte("text"))
			der, err := k.Sign(digest[:])
			var e *hsm.Error
			switch {
			case c.want == nil && (err != nil || !ecdsa.VerifyASN1(k.Public(), digest[:], der)):
				t.Errorf("%v", err)
			case c.want != nil && (len(der) > 0 || !errors.Is(err, c.want) && !(errors.As(c.want, &e) && errors.As(err, &e))):
				t.Errorf("%x, %v, want %v", der, err, c.want)
			}
			if got := uint64(f.Calls(hsmtest.Reset)); got != c.resets {
				t.Errorf("%d resets, want %d", got, c.resets)
			}
			signs(t, k)
		})
	}
}

// A key that changes while the log goes on is not used.
func TestAuditKeyChanged(t *testing.T) {
	s := &swapped{Token: hsmtest.NewFaulty(softToken(t)), other: softTokenN(t, 1)}
	k := auditKey(t, time.Minute, s)
	s.swap = true
	signs(t, k) // the session that is open is the old key's
	if err := s.Reset(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sign(make([]byte, 32)); !errors.Is(err, hsm.ErrWrong) {
		t.Errorf("another key: %v", err)
	}
	s.swap = false
	signs(t, k)
}

// A call that hangs costs its caller and the others the time limit, and one goroutine in all; when it ends, the key signs again.
func TestAuditKeyHangs(t *testing.T) {
	f := hsmtest.NewFaulty(softToken(t))
	k := auditKey(t, 100*time.Millisecond, f)
	for range 50 { // a busy machine may need more than the limit for a good one
		if _, err := k.Sign(make([]byte, 32)); err == nil {
			break
		}
	}
	hang := make(chan struct{})
	f.Add(hsmtest.Fault{Op: hsmtest.Sign, Hang: hang})
	before := f.Calls(hsmtest.Sign)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			start := time.Now()
			if der, err := k.Sign(make([]byte, 32)); !errors.Is(err, hsm.ErrTimeout) || len(der) > 0 {
				t.Errorf("%x, %v", der, err)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	wg.Wait()
	if err := k.Close(); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("close: %v", err)
	}
	if got := f.Calls(hsmtest.Sign) - before; got != 1 {
		t.Errorf("%d calls while one hangs", got)
	}
	close(hang)
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := k.Sign(make([]byte, 32))
		if err == nil {
			break
		}
		if !errors.Is(err, hsm.ErrTimeout) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
