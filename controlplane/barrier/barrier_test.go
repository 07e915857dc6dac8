package barrier

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/follower"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/fence"
)

var shared *store.Store

func TestMain(m *testing.M) {
	os.Exit(storetest.Run(m, func(s *store.Store) { shared = s }))
}

// alone is a Barrier whose process is the only member there is.
func alone(t testing.TB) *Barrier {
	t.Helper()
	own, err := follower.New(follower.Config{
		Store: shared, Lease: new(fence.Lease), Member: store.Member{ID: "own", Role: store.ControlMember},
		Load: func(context.Context) error { return nil }, Apply: func(context.Context, []store.Change) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return New(shared, own, storetest.Quiet)
}

// waiting is a Wait that runs.
func waiting(b *Barrier, revision int64) chan time.Duration {
	done := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		b.Wait(context.Background(), revision)
		done <- time.Since(began)
	}()
	return done
}

func inTime(t testing.TB, what string, done chan time.Duration) {
	t.Helper()
	if took := <-done; took >= fence.Wait {
		t.Errorf("%s: it waited for %v", what, took)
	}
}

func waits(t testing.TB, what string, done chan time.Duration) {
	t.Helper()
	select {
	case <-done:
		t.Fatalf("%s: it did not wait", what)
	case <-time.After(20 * time.Millisecond):
	}
}

// A Wait is over when this process and all members have what it waits for.
func TestWait(t *testing.T) {
	b := alone(t)
	done := waiting(b, 10)
	waits(t, "this process has nothing", done)
	b.moved(9)
	waits(t, "this process lacks one", done)
	b.moved(10)
	inTime(t, "alone", done)
	inTime(t, "what has been", waiting(b, 3))

	b.Joined("a", 11)
	b.moved(12)
	inTime(t, "a member has what there was when it joined", waiting(b, 11))
	done = waiting(b, 12)
	waits(t, "a member has told nothing", done)
	b.Tell("a", 11)
	waits(t, "a member has told less", done)
	b.Tell("b", 12) // no member yet
	waits(t, "somebody else told", done)
	b.Tell("a", 12)
	inTime(t, "told", done)

	b.Joined("b", 11) // had told already
	inTime(t, "told before it was known", waiting(b, 12))
	b.moved(20)
	done = waiting(b, 20)
	b.Tell("a", 30)
	waits(t, "one of two", done)
	b.Left("b")
	inTime(t, "the other left", done)
	b.Tell("b", 40) // a stream that is late
	b.Tell("a", 25) // nothing is taken back
	b.moved(30)
	inTime(t, "told once", waiting(b, 30))
}

// Whoever never tells makes it last as long as it can, and not longer; that ctx ends does not make it shorter.
func TestWaitEnds(t *testing.T) {
	b := alone(t)
	b.moved(10)
	b.Joined("a", 5)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	began := time.Now()
	b.Wait(ctx, 6)
	if took := time.Since(began); took < fence.Wait || took > fence.Wait+10*time.Second {
		t.Errorf("it waited for %v", took)
	}
	if len(b.waiters) != 0 {
		t.Error("it is still waited for")
	}
}

// Load takes the place of what was known, but for what was told.
func TestLoad(t *testing.T) {
	b := alone(t)
	m, err := shared.Join(t.Context(), store.Member{ID: "n", Role: store.DataMember})
	if err != nil {
		t.Fatal(err)
	}
	b.Joined("gone", 1)
	b.Tell(m.Incarnation, m.Joined+7)
	if err := b.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(b.members) != 1 || b.members[m.Incarnation] != m.Joined+7 {
		t.Errorf("members %v", b.members)
	}
	if err := m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Apply([]store.Change{{What: store.KeyChanged}, {What: store.MemberChanged, Name: "x", Revision: 3}, {What: store.MemberChanged, Name: m.Incarnation, Gone: true}})
	if len(b.members) != 1 || b.members["x"] != 3 {
		t.Errorf("members %v", b.members)
	}
}

// Many that tell without being members are forgotten.
func TestEarly(t *testing.T) {
	b := alone(t)
	for range 3 * earlyMost {
		b.Tell(store.NewIncarnation(), 1)
	}
	if len(b.early) > earlyMost {
		t.Errorf("%d are remembered", len(b.early))
	}
}

// Thousands wait together.
func TestManyWait(t *testing.T) {
	const many = 5000
	b := alone(t)
	b.Joined("a", 0)
	var all sync.WaitGroup
	late := make(chan time.Duration, many)
	began := time.Now()
	for i := range many {
		all.Go(func() { late <- <-waiting(b, int64(1+i%100)) })
	}
	for r := range 100 {
		b.moved(int64(1 + r))
		b.Tell("a", int64(1+r))
	}
	told := time.Since(began)
	all.Wait()
	close(late)
	slow := 0
	for took := range late {
		if took >= fence.Wait {
			slow++
		}
	}
	if told > fence.Wait/2 {
		t.Logf("it took %v to tell them: the machine is busy, and those who waited to the end had to", told)
		slow = 0
	}
	if slow > 0 || len(b.waiters) != 0 {
		t.Errorf("%d waited to the end, %d still do", slow, len(b.waiters))
	}
}

func BenchmarkWait(b *testing.B) {
	barrier := alone(b)
	for i := range 100 {
		barrier.Joined(string(rune('a'+i)), 1<<60)
	}
	barrier.Joined("a", 0)
	var revision int64
	for b.Loop() {
		revision++
		barrier.moved(revision)
		barrier.Tell("a", revision)
		barrier.Wait(context.Background(), revision)
	}
}
