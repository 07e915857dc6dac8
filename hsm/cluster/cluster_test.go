package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

func TestConfigRefused(t *testing.T) {
	m := &testMember{}
	good := Config{Members: []Member{{"a", m.open, m.ask}, {"b", m.open, m.ask}}, Ring: testRing, Blocks: testBlocks}
	for name, change := range map[string]func(*Config){
		"no members":        func(c *Config) { c.Members = nil },
		"too many members":  func(c *Config) { c.Members = make([]Member, membersMax+1) },
		"one name twice":    func(c *Config) { c.Members = []Member{good.Members[0], good.Members[0]} },
		"no name":           func(c *Config) { c.Members = []Member{{"", m.open, m.ask}} },
		"nobody opens":      func(c *Config) { c.Members = []Member{{"a", nil, m.ask}} },
		"nobody asks":       func(c *Config) { c.Members = []Member{{"a", m.open, nil}} },
		"no ring":           func(c *Config) { c.Ring = nil },
		"one block":         func(c *Config) { c.Blocks = testBlocks[:16] },
		"negative":          func(c *Config) { c.OpenTimeout = -1 },
		"retries backwards": func(c *Config) { c.RetryMin = time.Hour },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}

// TestConnectFaults: why a cluster does not come up, and that no PIN that was refused is tried again.
func TestConnectFaults(t *testing.T) {
	pin := func(code hsm.CKR) error {
		return fmt.Errorf("p11: %w: %w", hsm.ErrPIN, &hsm.Error{CKR: code, Function: "C_Login"})
	}
	answer := func(code hsm.CKR) error {
		return fmt.Errorf("p11: %w", &hsm.Error{CKR: code, Function: "C_OpenSession"})
	}
	for name, c := range map[string]struct {
		first, second error
		want          error // nil: it comes up
	}{
		"both":                {nil, nil, nil},
		"one away":            {nil, answer(hsm.CKR_DEVICE_REMOVED), nil},
		"one broken":          {nil, errors.New("no module"), nil},
		"one wrong PIN":       {nil, pin(hsm.CKR_PIN_INCORRECT), ErrPIN},
		"wrong PIN":           {pin(hsm.CKR_PIN_INCORRECT), pin(hsm.CKR_PIN_INCORRECT), ErrPIN},
		"PIN of a wrong size": {pin(hsm.CKR_PIN_LEN_RANGE), pin(hsm.CKR_PIN_LEN_RANGE), ErrPIN},
		"a bare refusal":      {hsm.ErrPIN, hsm.ErrPIN, ErrPIN},
		"locked":              {pin(hsm.CKR_PIN_LOCKED), answer(hsm.CKR_DEVICE_REMOVED), ErrPINLocked},
		"no user":             {pin(hsm.CKR_USER_PIN_NOT_INITIALIZED), pin(hsm.CKR_USER_PIN_NOT_INITIALIZED), ErrNoUser},
		"no roots":            {hsm.ErrNoRoots, answer(hsm.CKR_DEVICE_REMOVED), ErrNoRoots},
		"away":                {answer(hsm.CKR_TOKEN_NOT_PRESENT), answer(hsm.CKR_DEVICE_REMOVED), ErrAway},
		"no answer":           {hsm.ErrTimeout, answer(hsm.CKR_TOKEN_NOT_PRESENT), ErrAway},
		"absent":              {answer(hsm.CKR_TOKEN_NOT_PRESENT), answer(hsm.CKR_TOKEN_NOT_PRESENT), ErrAbsent},
		"broken":              {errors.New("no module"), answer(hsm.CKR_TOKEN_NOT_PRESENT), ErrUnusable},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 0, 1)
			r.members[0].fail(c.first)
			r.members[1].fail(c.second)
			err := r.Connect(context.Background(), []byte(hsmtest.PIN))
			if !errors.Is(err, c.want) || (err == nil) != r.Connected() {
				t.Fatalf("%v, connected %v", err, r.Connected())
			}
			if f, ok := errors.AsType[*Fault](err); c.want != nil && (!ok || len(f.Members) == 0 || bytes.Contains([]byte(err.Error()), []byte(hsmtest.PIN))) {
				t.Errorf("%v", err)
			}
			if err == nil {
				if err := r.Connect(context.Background(), nil); err != ErrConnected {
					t.Errorf("connecting twice: %v", err)
				}
				return
			}
			if _, _, err := r.NewKey(context.Background()); err != ErrDisconnected || r.Active() != 0 {
				t.Errorf("%v, %d active", err, r.Active())
			}
			for i, m := range r.members {
				opened, closed := m.opens.Load(), m.closes.Load()
				if good := m.openErr == nil; opened != 1 || good != (closed == 1) {
					t.Errorf("hsm-%d: opened %d times, closed %d times", i, opened, closed)
				}
			}
		})
	}
}

// TestWrongPINLater: a member that comes back with another PIN is asked once.
func TestWrongPINLater(t *testing.T) {
	r := newRig(t, 0, 0, 0)
	r.members[1].fail(removed)
	r.members[2].fail(removed)
	r.connect(t)
	before := r.members[1].opens.Load()
	eventually(t, "a member that is away is tried again", func() bool { return r.members[1].opens.Load() > before })
	r.members[1].fail(fmt.Errorf("%w: %w", hsm.ErrPIN, &hsm.Error{CKR: hsm.CKR_PIN_INCORRECT, Function: "C_Login"}))
	s := r.conn.Load().seats[1]
	eventually(t, "it refuses the PIN", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.refused != nil
	})
	before, other := r.members[1].opens.Load(), r.members[2].opens.Load()
	if n := r.Active(); n != 1 {
		t.Errorf("%d active", n)
	}
	eventually(t, "the third is tried three times more", func() bool { return r.members[2].opens.Load() >= other+3 })
	if n := r.members[1].opens.Load(); n != before {
		t.Errorf("tried %d times more", n-before)
	}
}

// TestRedirect: what the device is at fault for, callers do not see, and the member serves again when it is back.
func TestRedirect(t *testing.T) {
	for name, roots := range map[string][]int{"same roots": {0, 0}, "different roots": {0, 1}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, roots...)
			r.connect(t)
			copies := newKey(t, r.Cluster)
			want := images(t, r.Cluster, copies)
			load := under(t, r.Cluster, copies, want)
			for range 3 {
				for i, m := range r.members {
					lost := r.conn.Load().seats[i].link.Load()
					m.down()
					load.goesOn(t)
					eventually(t, "its loss is noticed", func() bool { return r.conn.Load().seats[i].link.Load() != lost })
					var b [16]byte
					if err := r.Random(b[:]); err != nil {
						t.Errorf("random: %v", err)
					}
					if n := r.Active(); n != 1 {
						t.Errorf("%d active", n)
					}
					m.up()
					before := r.Stats()[i].Jobs
					eventually(t, "the member serves again", func() bool { return r.Stats()[i].Jobs > before+10 && r.Active() == len(roots) })
				}
			}
			if n := load.end(); n != 0 {
				t.Errorf("%d calls failed", n)
			}
		})
	}
}

// TestAwayAtConnect: a member that is opened later serves.
func TestAwayAtConnect(t *testing.T) {
	r := newRig(t, 0, 0)
	r.members[1].fail(removed)
	r.connect(t)
	if _, _, err := r.NewKey(context.Background()); !errors.Is(err, ErrTooFew) {
		t.Fatalf("a key on one member: %v", err)
	}
	r.members[1].fail(nil)
	var copies []hsm.Key
	eventually(t, "it is tried again", func() (ok bool) {
		var err error
		copies, _, err = r.NewKey(context.Background())
		return err == nil
	})
	named(copies)
	load := under(t, r.Cluster, copies, images(t, r.Cluster, copies))
	eventually(t, "it serves", func() bool { return r.Stats()[1].Jobs > 10 })
	if n := load.end(); n != 0 {
		t.Errorf("%d calls failed", n)
	}
}

// load is callers that use a key all the time.
type load struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	done   atomic.Int64
	failed atomic.Int64
}

const callers = 16

func under(t testing.TB, c *Cluster, copies []hsm.Key, want []byte) *load {
	l := &load{stop: make(chan struct{})}
	for range callers {
		l.wg.Go(func() {
			for j := blocks(); ; {
				select {
				case <-l.stop:
					return
				default:
				}
				clear(j.Out)
				switch err := c.Run(j, copies, time.Now()); {
				case err != nil:
					if l.failed.Add(1) == 1 {
						t.Logf("a call failed: %v", err)
					}
				case !bytes.Equal(j.Out[:j.N], want):
					t.Error("a wrong result")
				default:
					l.done.Add(1)
				}
			}
		})
	}
	return l
}

// goesOn waits for calls that began after it was called.
func (l *load) goesOn(t testing.TB) {
	before := l.done.Load()
	eventually(t, "calls succeed", func() bool { return l.done.Load() > before+4*callers })
}

// end is how many calls failed.
func (l *load) end() int64 {
	close(l.stop)
	l.wg.Wait()
	return l.failed.Load()
}

// TestWrongAnswers: members whose answers are wrong are left out, till the cluster is connected anew.
func TestWrongAnswers(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	want := images(t, r.Cluster, copies)
	k1 := subkey(t, r.Cluster, copies)
	for i := range 2 { // one after the other, as two for one job would be the job's fault
		r.members[i].token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, Wrong: true})
		for range 50 {
			j := blocks()
			j.K1 = k1
			if err := r.Run(j, copies, time.Now()); err != nil || !bytes.Equal(j.Out[:j.N], want) {
				t.Fatalf("%v, %x", err, j.Out[:j.N])
			}
		}
		if n := r.Active(); n != 2-i {
			t.Errorf("%d active", n)
		}
	}
	if _, _, err := r.NewKey(context.Background()); !errors.Is(err, ErrTooFew) {
		t.Errorf("a key on one member that is trusted: %v", err)
	}
	before := r.Stats()
	r.members[0].up()
	load := under(t, r.Cluster, copies, want)
	load.goesOn(t)
	if n, after := load.end(), r.Stats(); n != 0 || after[0].Jobs+after[0].Failed != before[0].Jobs+before[0].Failed {
		t.Errorf("%d calls failed, %+v", n, after)
	}
	r.Disconnect()
	r.members[1].up()
	r.connect(t)
	if n := r.Active(); n != 3 {
		t.Errorf("%d active after another Connect", n)
	}

	// What two members find wrong is what they are asked, and costs no third.
	j := blocks()
	j.K1 = [16]byte{1}
	if err := r.Run(j, copies, time.Now()); !errors.Is(err, hsm.ErrWrong) || j.N != 0 {
		t.Errorf("a wrong subkey: %v", err)
	}
	if n := r.Active(); n != 1 {
		t.Errorf("%d active", n)
	}
	if got := images(t, r.Cluster, copies); !bytes.Equal(got, want) {
		t.Error("another result")
	}
}

// TestFinal: what is the job's own fault is told by the first member.
func TestFinal(t *testing.T) {
	r := newRig(t, 0, 0)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	j := blocks()
	j.In = j.In[:15]
	if err := r.Run(j, copies, time.Now()); err != hsm.ErrJob {
		t.Errorf("half a block: %v", err)
	}
	if st := r.Stats(); st[0].Failed+st[1].Failed != 1 {
		t.Errorf("%+v", st)
	}
	other := slices.Clone(copies)
	other[0].Root[0] ^= 1
	if err := r.Run(blocks(), other, time.Now()); err != hsm.ErrUnavailable {
		t.Errorf("a key of another cluster: %v", err)
	}
	for i, m := range r.members {
		m.token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_MEMORY})
		defer m.up()
		before := r.Stats()[i].Failed
		err := r.Run(blocks(), copies, time.Now())
		if i == 0 && err != nil || i == 1 && (hsm.Final(err) != hsm.Throttled || r.Stats()[i].Failed != before+1) {
			t.Errorf("%d members have no room: %v", i+1, err)
		}
	}
}

// TestForget: a key is unloaded from all members.
func TestForget(t *testing.T) {
	r := newRig(t, 0, 1)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	for range 20 {
		images(t, r.Cluster, copies)
	}
	loaded := func() int { return r.members[0].token().Loaded() + r.members[1].token().Loaded() }
	if n := loaded(); n != 2 {
		t.Errorf("%d loaded", n)
	}
	r.Forget(copies)
	eventually(t, "unloaded", func() bool { return loaded() == 0 })
}

// TestDisconnect: when it returns, nothing uses a key any more, and callers have a result or an error.
func TestDisconnect(t *testing.T) {
	r := newRig(t, 0, 1)
	for range 5 {
		r.connect(t)
		copies := newKey(t, r.Cluster)
		want := images(t, r.Cluster, copies)
		var over atomic.Bool
		var wg sync.WaitGroup
		var ran atomic.Int32
		for range callers {
			wg.Go(func() {
				for j := blocks(); ; {
					after := over.Load()
					switch err := r.Run(j, copies, time.Now()); {
					case err == nil && (after || !bytes.Equal(j.Out[:j.N], want)):
						t.Error("a result after Disconnect, or a wrong one")
						return
					case err == nil:
						ran.Add(1)
					case err != ErrDisconnected:
						t.Errorf("%v", err)
						return
					default:
						return
					}
				}
			})
		}
		wg.Go(func() {
			for {
				if _, _, err := r.NewKey(context.Background()); err != nil {
					if !errors.Is(err, ErrDisconnected) {
						t.Errorf("NewKey: %v", err)
					}
					return
				}
			}
		})
		eventually(t, "jobs run", func() bool { return ran.Load() > 100 })
		r.Disconnect()
		uses := r.members[0].token().Calls(hsmtest.Use) + r.members[1].token().Calls(hsmtest.Use)
		over.Store(true)
		wg.Wait()
		if n := r.members[0].token().Calls(hsmtest.Use) + r.members[1].token().Calls(hsmtest.Use); n != uses {
			t.Errorf("%d uses after Disconnect", n-uses)
		}
		if r.Connected() || r.Active() != 0 || r.Random(make([]byte, 8)) != ErrDisconnected {
			t.Error("connected after Disconnect")
		}
		r.Forget(copies)
	}
	for i, m := range r.members {
		if o, c := m.opens.Load(), m.closes.Load(); o != c || o != 5 {
			t.Errorf("hsm-%d: opened %d times, closed %d times", i, o, c)
		}
	}
}

// TestDisconnectWhileConnecting: the Connect that is under way ends, and what it opened is closed.
func TestDisconnectWhileConnecting(t *testing.T) {
	r := newRig(t, 0, 1)
	hang := make(chan struct{})
	inner := r.Cluster.members[1].Open
	r.Cluster.members[1].Open = func(pin []byte) (hsm.Token, error) {
		<-hang
		return inner(pin)
	}
	failed := make(chan error)
	go func() { failed <- r.Connect(context.Background(), []byte(hsmtest.PIN)) }()
	eventually(t, "the first is open", func() bool { return r.members[0].opens.Load() == 1 })
	r.cfg.CloseTimeout = time.Millisecond // the call hangs for longer than anybody waits
	r.Disconnect()
	if err := <-failed; err != ErrDisconnected {
		t.Errorf("%v", err)
	}
	close(hang)
	eventually(t, "closed", func() bool { return r.members[0].closes.Load() == 1 && r.members[1].closes.Load() == 1 })
	r.connect(t)
}

// TestDisconnectHangs: a module that hangs keeps nobody, and what it gives later is nobody's.
func TestDisconnectHangs(t *testing.T) {
	r := newRig(t, 0, 0)
	r.cfg.CloseTimeout = 50 * time.Millisecond
	r.connect(t)
	copies := newKey(t, r.Cluster)
	hang := make(chan struct{})
	for _, m := range r.members {
		m.token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, Hang: hang})
	}
	uses := func() int { return r.members[0].token().Calls(hsmtest.Use) + r.members[1].token().Calls(hsmtest.Use) }
	const n = 3
	before := uses()
	results := make(chan error, n)
	for range n {
		go func() {
			j := blocks()
			err := r.Run(j, copies, time.Now())
			if !bytes.Equal(j.Out, make([]byte, len(j.Out))) {
				t.Error("a result after Disconnect")
			}
			results <- err
		}()
	}
	eventually(t, "jobs hang", func() bool { return uses() == before+n })
	r.Disconnect()
	close(hang)
	for range n {
		if err := <-results; err != ErrDisconnected {
			t.Errorf("%v", err)
		}
	}
}

// TestHangs: a member that hangs costs a job as long as an operation may take, and the next member serves it.
func TestHangs(t *testing.T) {
	const timeout = 300 * time.Millisecond
	r := newRigWith(t, func(t hsm.Token) (*hsm.KeyRing, func(), error) { return ringWith(t, timeout, 1024) }, 0, 1)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	want := images(t, r.Cluster, copies)
	hang := make(chan struct{})
	defer close(hang)
	m := r.members[0]
	m.token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, Hang: hang})
	for before := m.token().Calls(hsmtest.Use); m.token().Calls(hsmtest.Use) == before; {
		if got := images(t, r.Cluster, copies); !bytes.Equal(got, want) {
			t.Fatal("another result")
		}
	}
	if st := r.Stats(); st[0].Failed == 0 {
		t.Errorf("%+v", st)
	}
}

// TestHangsAll: where members hang a job waits for two of them and no more.
func TestHangsAll(t *testing.T) {
	r := newRigWith(t, func(t hsm.Token) (*hsm.KeyRing, func(), error) { return ringWith(t, 300*time.Millisecond, 1024) }, 0, 0, 0)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	hang := make(chan struct{})
	defer close(hang)
	for _, m := range r.members {
		m.token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, Hang: hang})
	}
	if err := r.Run(blocks(), copies, time.Now()); !errors.Is(err, hsm.ErrTimeout) {
		t.Errorf("%v", err)
	}
	asked := 0
	for _, st := range r.Stats() {
		asked += int(st.Failed)
	}
	if asked != timeoutsMax {
		t.Errorf("%d members were asked", asked)
	}
}

// TestGate: nobody is let in when it is shut, and it says when the last one is out.
func TestGate(t *testing.T) {
	g := gate{empty: make(chan struct{})}
	for range 2 {
		if !g.enter() {
			t.Fatal("not let in")
		}
	}
	g.leave()
	g.shut()
	for range 3 {
		if g.enter() {
			t.Error("let in")
		}
	}
	select {
	case <-g.empty:
		t.Error("empty with somebody inside")
	default:
	}
	g.leave()
	select {
	case <-g.empty:
	case <-time.After(time.Second):
		t.Fatal("never empty")
	}
	if g.enter() {
		t.Error("let in")
	}
}

// TestFull: a member whose queue is full leaves the job to the next; where all are, the caller is told.
func TestFull(t *testing.T) {
	r := newRigWith(t, func(t hsm.Token) (*hsm.KeyRing, func(), error) { return ringWith(t, 20*time.Second, 1) }, 0, 1)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	hang := make(chan struct{})
	for _, m := range r.members {
		m.token().Add(hsmtest.Fault{Op: hsmtest.Use, Times: hsmtest.Forever, Hang: hang})
	}
	results := make(chan error)
	const most = 64 // more than run and queue
	for range most {
		go func() { results <- r.Run(blocks(), copies, time.Now()) }()
	}
	// Those that found no room are told while the others hang.
	if err := <-results; !errors.Is(err, batch.ErrFull) {
		t.Errorf("%v", err)
	}
	close(hang)
	served := 0
	for range most - 1 {
		switch err := <-results; {
		case err == nil:
			served++
		case !errors.Is(err, batch.ErrFull):
			t.Errorf("%v", err)
		}
	}
	if st := r.Stats(); served < 4 || st[0].Jobs == 0 || st[1].Jobs == 0 {
		t.Errorf("%d served: %+v", served, st)
	}
}

// TestRandomFull: who asks for random bytes of members that hang waits with so many others at most, and so long.
func TestRandomFull(t *testing.T) {
	r := newRig(t, 0, 1)
	r.connect(t)
	hang := make(chan struct{})
	for _, m := range r.members {
		m.token().Add(hsmtest.Fault{Op: hsmtest.Round, Times: hsmtest.Forever, Hang: hang})
	}
	seats := r.conn.Load().seats
	have := func() (n int) {
		for _, s := range seats {
			if l := s.link.Load(); l != nil {
				n += int(l.draws.Load())
			}
		}
		return n
	}
	began := time.Now()
	const most = 2*drawsMax + 10
	results := make(chan error, most)
	for range most {
		go func() { results <- r.Random(make([]byte, 8)) }()
	}
	for range most - len(seats) { // but those for whom the members hang
		if err := <-results; err != ErrFull {
			t.Errorf("%v", err)
		}
	}
	if took := time.Since(began); took > drawWaitMax+10*time.Second {
		t.Errorf("they wait %s", took)
	}
	close(hang)
	for range seats {
		<-results
	}
	eventually(t, "there are random bytes again", func() bool { return r.Random(make([]byte, 8)) == nil })
	if n := have(); n != 0 {
		t.Errorf("%d are left", n)
	}
}

// TestDrawsMax: beyond those who may wait for a member nobody waits.
func TestDrawsMax(t *testing.T) {
	l := &link{drawing: make(chan struct{}, 1)}
	l.drawing <- struct{}{}
	l.draws.Store(drawsMax)
	if err := l.queue(make([]byte, 8), time.Now().Add(time.Hour)); err != ErrFull {
		t.Errorf("%v", err)
	}
	if n := l.draws.Load(); n != drawsMax {
		t.Errorf("%d wait", n)
	}
}

// TestSpread: members share the load.
func TestSpread(t *testing.T) {
	r := newRig(t, 0, 1)
	r.connect(t)
	copies := newKey(t, r.Cluster)
	const jobs = 200
	for range jobs {
		images(t, r.Cluster, copies)
	}
	if st := r.Stats(); st[0].Jobs < jobs/4 || st[1].Jobs < jobs/4 {
		t.Errorf("%d and %d jobs", st[0].Jobs, st[1].Jobs)
	}
}
