package follower

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/fence"
)

var shared *store.Store

func TestMain(m *testing.M) {
	os.Exit(storetest.Run(m, func(s *store.Store) { shared = s }))
}

// change writes something that is followed, under names of its own, and returns its revision.
func change(t testing.TB) int64 {
	t.Helper()
	m, err := shared.Join(t.Context(), store.Member{ID: "change", Role: store.DataMember})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Leave(context.Background()) })
	return m.Joined
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// process is a Follower that runs, with what it was asked to do.
type process struct {
	*Follower
	lease fence.Lease
	load  func() error // nil: nothing
	apply func([]store.Change) error

	mu      sync.Mutex
	loads   int
	got     []store.Change
	applied []int64
	stop    func() error
}

func start(t testing.TB, p *process) *process {
	t.Helper()
	f, err := New(Config{
		Store: shared, Lease: &p.lease, Member: store.Member{ID: "node", Role: store.DataMember}, Logger: storetest.Quiet,
		Load: func(context.Context) error {
			p.mu.Lock()
			p.loads++
			p.mu.Unlock()
			if p.lease.Valid() {
				t.Error("the lease is valid while everything is loaded")
			}
			if p.load != nil {
				return p.load()
			}
			return nil
		},
		Apply: func(_ context.Context, changes []store.Change) error {
			if p.apply != nil {
				if err := p.apply(changes); err != nil {
					return err
				}
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.got = append(p.got, changes...)
			return nil
		},
		Applied: func(revision int64) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.applied = append(p.applied, revision)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Follower = f
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	p.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = p.stop() })
	return p
}

func member(t testing.TB, incarnation string) bool {
	t.Helper()
	list, _, err := shared.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if m.Incarnation == incarnation {
			return true
		}
	}
	return false
}

// A process that follows is a member, has a lease, applies what comes in order, and leaves when it ends.
func TestFollower(t *testing.T) {
	p := start(t, new(process))
	eventually(t, "a lease", p.lease.Valid)
	incarnation := p.Incarnation()
	if !member(t, incarnation) {
		t.Error("it has a lease and is no member")
	}
	var last int64
	for range 20 {
		last = change(t)
	}
	if err := p.Wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	for i := 1; i < len(p.applied); i++ {
		if p.applied[i] <= p.applied[i-1] {
			t.Errorf("revision %d after %d", p.applied[i], p.applied[i-1])
		}
	}
	changes := 0
	for _, c := range p.got {
		if c.What == store.MemberChanged && !c.Gone && c.Name != incarnation {
			changes++
		}
	}
	p.mu.Unlock()
	if changes < 20 || p.Applied() < last {
		t.Errorf("%d changes up to %d", changes, p.Applied())
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(done, 1<<60); !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: %v", err)
	}
	// It stays valid with nothing to do, for longer than one term.
	for end := time.Now().Add(fence.Term + fence.Renew); time.Now().Before(end); time.Sleep(fence.Renew / 4) {
		if p.lease.Left() == 0 {
			t.Log("the lease ran out: the machine is busy")
			break
		}
	}
	if err := p.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if p.lease.Valid() || member(t, incarnation) {
		t.Error("it is a member, or has a lease, after its end")
	}
}

// What cannot be applied is tried again, nothing is skipped, and the lease runs out meanwhile.
func TestApplyFails(t *testing.T) {
	var fail atomic.Bool
	var tries atomic.Int64
	p := &process{apply: func([]store.Change) error {
		if fail.Load() {
			tries.Add(1)
			return errors.New("not now")
		}
		return nil
	}}
	start(t, p)
	p.applyMost = time.Hour
	eventually(t, "a lease", p.lease.Valid)
	fail.Store(true)
	first := change(t)
	second := change(t)
	eventually(t, "the end of the lease", func() bool { return !p.lease.Valid() && tries.Load() > 2 })
	if p.Applied() >= first {
		t.Error("what failed is applied")
	}
	fail.Store(false)
	eventually(t, "a lease again", p.lease.Valid)
	if p.Applied() < second {
		t.Errorf("a lease without revision %d", second)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found := 0
	for _, c := range p.got {
		if c.Revision == first || c.Revision == second {
			found++
		}
	}
	if found != 2 || p.loads != 1 {
		t.Errorf("%d changes, %d loads", found, p.loads)
	}
}

// What cannot be applied for long is loaded anew, as another incarnation.
func TestLoadAnew(t *testing.T) {
	var fail atomic.Bool
	p := &process{apply: func([]store.Change) error {
		if fail.Load() {
			return errors.New("never")
		}
		return nil
	}}
	p.load = func() error {
		if p.loads == 2 {
			return errors.New("not at once either")
		}
		fail.Store(false)
		return nil
	}
	start(t, p)
	p.applyMost = 50 * time.Millisecond
	eventually(t, "a lease", p.lease.Valid)
	before := p.Incarnation()
	fail.Store(true)
	last := change(t)
	eventually(t, "everything loaded", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.loads >= 3 })
	eventually(t, "a lease again", p.lease.Valid)
	if p.Applied() < last || p.Incarnation() == before || member(t, before) {
		t.Errorf("%d is applied, of %d; incarnation %s, before %s", p.Applied(), last, p.Incarnation(), before)
	}
}

// A membership that is lost is followed by another; meanwhile there is no lease.
func TestLostMembership(t *testing.T) {
	p := start(t, new(process))
	eventually(t, "a lease", p.lease.Valid)
	p.Follower.mu.Lock()
	m := p.membership
	p.Follower.mu.Unlock()
	if err := m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another incarnation", func() bool { i := p.Incarnation(); return i != "" && i != m.Incarnation })
	eventually(t, "a lease again", p.lease.Valid)
	if member(t, m.Incarnation) || !member(t, p.Incarnation()) {
		t.Error("an incarnation came back, or the new one is no member")
	}
}

// Without a renewed membership the lease is not extended, however well the rest goes.
func TestKept(t *testing.T) {
	p := start(t, new(process))
	eventually(t, "a lease", p.lease.Valid)
	ctx := t.Context()
	old := &Follower{cfg: p.cfg, moved: make(chan struct{}), membership: p.membership, kept: fence.Now() - keptMost - time.Second}
	old.cfg.Lease = new(fence.Lease)
	old.applied.Store(1 << 60)
	if err := old.attempt(ctx); err != nil || old.cfg.Lease.Valid() {
		t.Errorf("extended long after the membership was renewed: %v", err)
	}
	old.kept = fence.Now()
	if err := old.attempt(ctx); err != nil || !old.cfg.Lease.Valid() {
		t.Errorf("not extended after the membership was renewed: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty Config is taken")
	}
}
