package p11

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

// TestModuleHangs: while one module hangs in C_Initialize, tokens of another are opened, logged in to again and closed.
func TestModuleHangs(t *testing.T) {
	token := mustOpen(t, hsmtest.SoftHSM(t))
	other := hsmtest.SoftHSM(t)
	slow := slowhsm.Over(t, hsmtest.NSS(t), slowhsm.Settings{Faults: []slowhsm.Fault{{Function: "C_Initialize", Nth: 1, Hang: 8 * time.Second}}})
	opened := make(chan error, 1)
	go func() {
		s, err := open(slow.URI())
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if r, err := slow.Report(); err == nil && r.Calls["C_Initialize"] == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("never initialised")
		}
	}
	if err := token.Reset(); err != nil {
		t.Error(err)
	}
	if second, err := open(other); err != nil {
		t.Error(err)
	} else if err := second.Close(); err != nil {
		t.Error(err)
	}
	if token.mod.refuses("a token") {
		t.Error("refused")
	}
	select {
	case err := <-opened:
		t.Fatalf("they have waited for the module that hangs: %v", err)
	default:
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// TestAsk: a token is asked without a login.
func TestAsk(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.NSS(t), slowhsm.Settings{})
	token := mustOpen(t, slow.URI())
	want := token.Info()
	if err := token.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := slow.Report()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if info, err := Ask(slow.URI()); err != nil || info != want {
			t.Errorf("%+v, %v, want %+v", info, err, want)
		}
	}
	after, err := slow.Report()
	if err != nil {
		t.Fatal(err)
	}
	for _, function := range []string{"C_Login", "C_OpenSession"} {
		if n := after.Calls[function] - before.Calls[function]; before.Calls[function] == 0 || n != 0 {
			t.Errorf("%s was called %d times", function, n)
		}
	}
	if a, b := after.Calls["C_Initialize"]-before.Calls["C_Initialize"], after.Calls["C_Finalize"]-before.Calls["C_Finalize"]; a != 2 || b != 2 {
		t.Errorf("initialised %d times, finalised %d times", a, b)
	}
	setSlow(t, slow, slowhsm.Settings{Down: true})
	if _, err := Ask(slow.URI()); err == nil {
		t.Error("a device that does not answer has answered")
	}
	if _, err := Ask("pkcs11:token=a"); err == nil {
		t.Error("a URI without a module")
	}
}
