package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// TestStuckProbe: a member of which one call never returned comes back when it was lost and is there again.
func TestStuckProbe(t *testing.T) {
	r := newRigWith(t, testRing, 0, 1)
	r.cfg.CallTimeout = 200 * time.Millisecond
	r.connect(t)
	copies := newKeyEventually(t, r.Cluster)
	hang := make(chan struct{})
	defer close(hang)
	m, s := r.members[0], r.conn.Load().seats[0]
	lost := s.link.Load()
	m.token().Add(hsmtest.Fault{Op: hsmtest.Open, Times: 1, Hang: hang})
	eventually(t, "a probe hangs", func() bool {
		_, err := s.look(t.Context())
		return errors.Is(err, hsm.ErrTimeout) && lost.stuck.Load() > 0
	})
	m.down()
	eventually(t, "its loss is noticed", func() bool {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { _ = r.Run(blocks(), copies, time.Now()) })
		}
		wg.Wait()
		return s.link.Load() != lost
	})
	m.up()
	eventually(t, "it is back", func() bool {
		l := s.link.Load()
		return l != nil && l != lost && r.Active() == 2
	})
	if lost.stuck.Load() == 0 {
		t.Error("no call hung")
	}
}

// newKeyEventually is newKey where calls have little time.
func newKeyEventually(t *testing.T, c *Cluster) (copies []hsm.Key) {
	t.Helper()
	eventually(t, "a key is made", func() (ok bool) {
		var err error
		copies, _, err = c.NewKey(t.Context())
		return err == nil
	})
	named(copies)
	return copies
}

// slowMember is a member that is away; from slow on it takes until fail to say so.
type slowMember struct {
	slow  atomic.Bool
	opens atomic.Int32 // those that wait, or have waited
	wait  chan struct{}
}

func (r *rig) slowMember(i int) *slowMember {
	m := &slowMember{wait: make(chan struct{})}
	r.Cluster.members[i].Open = func([]byte) (hsm.Token, error) {
		if m.slow.Load() {
			m.opens.Add(1)
			<-m.wait
		}
		return nil, removed
	}
	return m
}

// TestSlowMember: who makes keys waits for a member that takes long to fail as long as AwayTimeout, and who repairs them not at all; but where too few are up, as
// long as he wants.
func TestSlowMember(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.cfg.AwayTimeout = 50 * time.Millisecond
	slow := r.slowMember(2)
	r.connect(t)
	slow.slow.Store(true)
	eventually(t, "somebody waits for it", func() bool { return slow.opens.Load() == 1 })
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			copies, _, err := r.NewKey(t.Context())
			if err != nil || len(copies) != 2 {
				t.Errorf("%d copies, %v", len(copies), err)
				return
			}
			named(copies)
			if all, added, err := r.Repair(t.Context(), copies[1:]); err != nil || !added || len(all) != 2 {
				t.Errorf("repaired: %d copies, %v, %v", len(all), added, err)
			}
		})
	}
	wg.Wait()
	r.members[1].down()
	ctx, cancel := context.WithCancel(t.Context())
	none := make(chan error)
	go func() {
		_, _, err := r.NewKey(ctx)
		none <- err
	}()
	select {
	case err := <-none:
		t.Errorf("not waited for: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	cancel()
	if err := <-none; err != context.Canceled {
		t.Errorf("%v", err)
	}
	if n := slow.opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
	close(slow.wait)
	before := r.members[0].token().Calls(hsmtest.Generate)
	if _, _, err := r.NewKey(ctx); err != context.Canceled || r.members[0].token().Calls(hsmtest.Generate) != before {
		t.Errorf("a key for nobody: %v", err)
	}
}

// TestAwayRemembered: a member that could not be opened is not opened again at once, whoever looks.
func TestAwayRemembered(t *testing.T) {
	r := newRig(t, 0, 1)
	r.cfg.RetryMin, r.cfg.RetryMax = time.Hour, time.Hour
	r.members[1].fail(removed)
	r.connect(t)
	for range 10 {
		if n := r.Active(); n != 1 {
			t.Errorf("%d active", n)
		}
	}
	if n := r.members[1].opens.Load(); n != 1 {
		t.Errorf("opened %d times", n)
	}
}

// TestOneHSMTwice: two members that are one HSM are no cluster; one that turns out to be another member later is left out.
func TestOneHSMTwice(t *testing.T) {
	r := newRig(t, 0, 0, 1)
	r.members[1].serial = r.members[0].serial
	err := r.Connect(t.Context(), []byte(hsmtest.PIN))
	if !errors.Is(err, ErrTwice) || r.Connected() {
		t.Errorf("%v", err)
	}
	for i, m := range r.members {
		if o, c := m.opens.Load(), m.closes.Load(); o != 1 || c != 1 {
			t.Errorf("hsm-%d: opened %d times, closed %d times", i, o, c)
		}
	}
	r.members[1].fail(removed)
	r.connect(t)
	r.members[1].fail(nil)
	s := r.conn.Load().seats[1]
	eventually(t, "it is opened", func() bool {
		_, err := s.look(t.Context())
		return errors.Is(err, ErrTwice)
	})
	if n := r.Active(); n != 2 || r.members[1].opens.Load() < 2 || r.members[1].closes.Load() != 2 {
		t.Errorf("%d active, opened %d times, closed %d times", n, r.members[1].opens.Load(), r.members[1].closes.Load())
	}
	r.Disconnect()
	r.members[1].serial = "its own"
	r.connect(t)
	if n := r.Active(); n != 3 {
		t.Errorf("%d active with serial numbers of their own", n)
	}
}

// TestAsk: members are counted without a login, each HSM once, and none that hangs is waited for longer than has to be.
func TestAsk(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	hang := make(chan struct{})
	r.Cluster.members[2].Ask = func() (hsm.TokenInfo, error) { <-hang; return hsm.TokenInfo{Serial: "2"}, nil }
	if n, err := r.Ask(t.Context(), 2); n != 2 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan error)
	go func() {
		n, err := r.Ask(ctx, 3)
		if n > 2 {
			t.Errorf("%d", n)
		}
		asked <- err
	}()
	before := r.members[0].asks.Load()
	eventually(t, "others are asked", func() bool { return r.members[0].asks.Load() > before || before >= 2 })
	cancel()
	if err := <-asked; !errors.Is(err, ErrAway) {
		t.Errorf("one hangs: %v", err)
	}
	close(hang)
	if n, err := r.Ask(t.Context(), 3); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	r.members[1].serial = r.members[0].serial
	if n, err := r.Ask(t.Context(), 3); n != 2 || !errors.Is(err, ErrTwice) {
		t.Errorf("one HSM twice: %d, %v", n, err)
	}
	r.members[0].fail(removed)
	r.members[1].fail(&hsm.Error{CKR: hsm.CKR_TOKEN_NOT_PRESENT, Function: "C_GetSlotList"})
	if n, err := r.Ask(t.Context(), 2); n != 1 || !errors.Is(err, ErrAway) {
		t.Errorf("two are away: %d, %v", n, err)
	}
	for i, m := range r.members {
		if n := m.opens.Load(); n != 0 {
			t.Errorf("hsm-%d was opened %d times", i, n)
		}
	}
}

// TestLearn: the roots are known when enough members have come up, one that hangs or not, and nothing is left of it.
func TestLearn(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	wait := make(chan struct{})
	inner := r.Cluster.members[2].Open
	r.Cluster.members[2].Open = func(pin []byte) (hsm.Token, error) { <-wait; return inner(pin) }
	r.cfg.CloseTimeout = time.Millisecond
	pin := []byte(hsmtest.PIN)
	closed, err := r.Learn(t.Context(), pin, 2)
	if err != nil || len(r.Roots()) != 2 || r.Connected() {
		t.Errorf("%v, %d roots", err, len(r.Roots()))
	}
	<-closed
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		eventually(t, "two are up", func() bool {
			return r.members[0].opens.Load() == 2 && r.members[1].opens.Load() == 2 && upOf(r.Cluster) > 0
		})
		cancel()
	}()
	if closed, err = r.Learn(ctx, pin, 3); err != nil {
		t.Errorf("the time is over: %v", err)
	}
	<-closed
	close(wait)
	eventually(t, "what hung is closed", func() bool { return r.members[2].closes.Load() == 2 })
	refusal := fmt.Errorf("%w: %w", hsm.ErrPIN, &hsm.Error{CKR: hsm.CKR_PIN_INCORRECT, Function: "C_Login"})
	for _, m := range r.members {
		m.fail(refusal)
	}
	if closed, err = r.Learn(t.Context(), pin, 2); !errors.Is(err, ErrPIN) {
		t.Errorf("a wrong PIN: %v", err)
	}
	<-closed
	for _, m := range r.members {
		m.fail(nil)
	}
	r.cfg.CloseTimeout = time.Minute
	r.connect(t)
	if closed, err := r.Learn(t.Context(), pin, 1); err != ErrConnected || closed != nil {
		t.Errorf("connected: %v", err)
	}
	r.Disconnect()
	for i, m := range r.members {
		eventually(t, "closed", func() bool { return m.opens.Load()-1 == m.closes.Load() }) // one was refused
		if n := m.opens.Load(); n != 4 {
			t.Errorf("hsm-%d was opened %d times", i, n)
		}
	}
}

// upOf is how many members of the connection that is being made are open.
func upOf(c *Cluster) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending != nil {
		for _, s := range c.pending.seats {
			if s.link.Load() != nil {
				n++
			}
		}
	}
	return n
}

// TestOneHSMInTwoClusters: a token that one cluster has opened is no other one's, by whatever module it is reached; not even when it is not connected any more.
func TestOneHSMInTwoClusters(t *testing.T) {
	var tokens Tokens
	one, two, three := newRig(t, 0, 1), newRig(t, 0, 1), newRig(t, 0, 1)
	for i, r := range []*rig{one, two, three} {
		r.cfg.ID, r.cfg.Tokens = fmt.Sprintf("cluster-%d", i), &tokens
		for k, m := range r.members {
			m.serial = fmt.Sprintf("%d%d", i+1, k+1)
		}
	}
	two.members[1].serial = one.members[0].serial
	if n, err := two.Ask(t.Context(), 2); n != 2 || err != nil { // it is not known yet
		t.Errorf("%d, %v", n, err)
	}
	one.connect(t)
	if n, err := two.Ask(t.Context(), 2); n != 1 || !errors.Is(err, ErrTwice) {
		t.Errorf("asked: %d, %v", n, err)
	}
	for range 2 {
		if err := two.Connect(t.Context(), []byte(hsmtest.PIN)); !errors.Is(err, ErrTwice) || two.Connected() {
			t.Errorf("connected: %v", err)
		}
		one.Disconnect()
	}
	one.connect(t)
	three.connect(t)
	if err := tokens.Claim("the server", closing{one.members[0].soft.(hsm.ImportToken), one.members[0]}.Info()); err == nil {
		t.Errorf("the server has an HSM of a cluster")
	}
	for _, serial := range []string{"", "0000"} {
		if a, b := tokens.Claim("a", hsm.TokenInfo{Serial: serial}), tokens.Claim("b", hsm.TokenInfo{Serial: serial}); a != nil || b != nil {
			t.Errorf("without a serial number: %v, %v", a, b)
		}
	}
}
