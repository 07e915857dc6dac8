package batch

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

type job struct {
	in, out int
	rounds  int
	size    int
}

func must[J any](t testing.TB, cfg Config, run Run[J]) *Batcher[J] {
	t.Helper()
	b, err := New(cfg, run)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func double(_ int, round []*job) {
	for _, j := range round {
		j.out = 2 * j.in
		j.rounds++
		j.size = len(round)
	}
}

func ExampleNew() {
	b, err := New(Config{Shards: 1, RoundMax: 64, QueueMax: 128}, func(_ int, round []*job) {
		for _, j := range round {
			j.out = 2 * j.in
		}
	})
	if err != nil {
		panic(err)
	}
	j := job{in: 21}
	fmt.Println(b.Do(0, &j, time.Time{}), j.out)
	// Output: <nil> 42
}

func TestConfigRange(t *testing.T) {
	ok := Config{Shards: 1, RoundMax: 1, QueueMax: 1}
	must(t, ok, double)
	must(t, Config{Shards: 1, RoundMax: 1024, QueueMax: 1}, double)
	for _, bad := range []Config{{0, 1, 1, 0}, {1, 0, 1, 0}, {1, 1025, 1, 0}, {1, 1, 0, 0}, {-1, 1, 1, 0}, {1, 1, 1, -1}} {
		if _, err := New(bad, double); err == nil {
			t.Errorf("New(%+v) accepted", bad)
		}
	}
}

// TestSameOutcomes is metamorphic: whatever the round size and the number of shards, each job gets its own result, once.
func TestSameOutcomes(t *testing.T) {
	for _, roundMax := range []int{1, 3, 64} {
		for _, shards := range []int{1, 8} {
			t.Run(fmt.Sprintf("round=%d/shards=%d", roundMax, shards), func(t *testing.T) {
				var overlap [8]atomic.Int32
				b := must(t, Config{Shards: shards, RoundMax: roundMax, QueueMax: 1000}, func(n int, round []*job) {
					if overlap[n].Add(1) != 1 {
						t.Error("two rounds of one shard at a time")
					}
					if len(round) == 0 || len(round) > roundMax {
						t.Errorf("round of %d", len(round))
					}
					double(n, round)
					overlap[n].Add(-1)
				})
				const callers, each = 32, 300
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						var j job
						for i := range each {
							j = job{in: c*each + i}
							if err := b.Do(j.in%shards, &j, time.Time{}); err != nil {
								t.Error(err)
								return
							}
							if j.out != 2*j.in || j.rounds != 1 {
								t.Errorf("job %d: out %d in %d rounds", j.in, j.out, j.rounds)
								return
							}
						}
					})
				}
				wg.Wait()
				st := b.Stats()
				if st.Jobs != callers*each || st.Queued != 0 || st.Rounds == 0 || st.Rounds > st.Jobs {
					t.Errorf("stats %+v", st)
				}
				var rounds uint64
				for _, n := range st.Sizes {
					rounds += n
				}
				if rounds != st.Rounds {
					t.Errorf("histogram holds %d rounds of %d", rounds, st.Rounds)
				}
			})
		}
	}
}

// gate is a Run that reports each round and waits to be let go.
type gate struct {
	rounds chan []int
	goOn   chan struct{}
}

func newGate() *gate { return &gate{rounds: make(chan []int), goOn: make(chan struct{})} }

func (g *gate) run(_ int, round []*job) {
	var in []int
	for _, j := range round {
		in = append(in, j.in)
		j.rounds++
	}
	g.rounds <- in
	<-g.goOn
}

// waitQueued waits until n jobs are queued behind the running round.
func waitQueued(t *testing.T, b *Batcher[job], n int) {
	t.Helper()
	for range 10000 {
		if b.Stats().Queued == n {
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
	t.Fatalf("never saw %d jobs queued", n)
}

func TestQueuedJobsAreTheNextRound(t *testing.T) {
	g := newGate()
	b := must(t, Config{Shards: 1, RoundMax: 4, QueueMax: 10}, g.run)
	var wg sync.WaitGroup
	do := func(in int) { wg.Go(func() { _ = b.Do(0, &job{in: in}, time.Time{}) }) }
	do(0)
	if got := <-g.rounds; len(got) != 1 {
		t.Fatalf("first round %v", got)
	}
	for i := 1; i <= 6; i++ {
		do(i)
		waitQueued(t, b, i)
	}
	for _, want := range []string{"[1 2 3 4]", "[5 6]"} {
		g.goOn <- struct{}{}
		if got := fmt.Sprint(<-g.rounds); got != want {
			t.Errorf("round %s, want %s: arrival order, at most RoundMax", got, want)
		}
	}
	g.goOn <- struct{}{}
	wg.Wait()
}

func TestFull(t *testing.T) {
	g := newGate()
	b := must(t, Config{Shards: 2, RoundMax: 4, QueueMax: 2}, g.run)
	var wg sync.WaitGroup
	do := func() { wg.Go(func() { _ = b.Do(0, &job{}, time.Time{}) }) }
	do()
	<-g.rounds
	do()
	waitQueued(t, b, 1)
	do()
	waitQueued(t, b, 2)
	var j job
	if err := b.Do(0, &j, time.Time{}); !errors.Is(err, ErrFull) || j.rounds != 0 {
		t.Errorf("third waiting job: %v, ran %d times", err, j.rounds)
	}
	wg.Go(func() { _ = b.Do(1, &job{}, time.Time{}) }) // the other shard is free
	<-g.rounds
	g.goOn <- struct{}{}
	g.goOn <- struct{}{}
	<-g.rounds
	g.goOn <- struct{}{}
	wg.Wait()
	if st := b.Stats(); st.Full != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestDeadline(t *testing.T) {
	g := newGate()
	b := must(t, Config{Shards: 1, RoundMax: 4, QueueMax: 4}, g.run)
	errs := make(chan error, 4)
	var first, late, fine job
	go func() { errs <- b.Do(0, &first, time.Now().Add(-time.Second)) }()
	if err := <-errs; !errors.Is(err, ErrDeadline) || first.rounds != 0 {
		t.Fatalf("a leader past its deadline: %v, ran %d times", err, first.rounds)
	}
	// A started job is waited for past its deadline.
	started := make(chan error, 1)
	go func() { started <- b.Do(0, &first, time.Now().Add(20*time.Millisecond)) }()
	<-g.rounds
	go func() { errs <- b.Do(0, &late, time.Now().Add(10*time.Millisecond)) }()
	waitQueued(t, b, 1)
	go func() { errs <- b.Do(0, &fine, time.Now().Add(time.Hour)) }()
	waitQueued(t, b, 2)
	time.Sleep(40 * time.Millisecond)
	g.goOn <- struct{}{}
	if err := <-started; err != nil || first.rounds != 1 {
		t.Errorf("a started job: %v", err)
	}
	// late leads the next round, without its own job.
	if got := <-g.rounds; len(got) != 1 {
		t.Errorf("round of %d", len(got))
	}
	g.goOn <- struct{}{}
	var gotLate, gotNil int
	for range 2 {
		switch err := <-errs; {
		case errors.Is(err, ErrDeadline):
			gotLate++
		case err == nil:
			gotNil++
		}
	}
	if gotLate != 1 || gotNil != 1 || late.rounds != 0 || fine.rounds != 1 {
		t.Errorf("late %d, fine %d; rounds %d and %d", gotLate, gotNil, late.rounds, fine.rounds)
	}
	if st := b.Stats(); st.Late != 2 {
		t.Errorf("stats %+v", st)
	}
}

// TestLateTakesNoRoom: the jobs behind one whose deadline has passed move up.
func TestLateTakesNoRoom(t *testing.T) {
	g := newGate()
	b := must(t, Config{Shards: 1, RoundMax: 2, QueueMax: 8}, g.run)
	errs := make(chan error, 6)
	do := func(in int, deadline time.Time) { go func() { errs <- b.Do(0, &job{in: in}, deadline) }() }
	do(0, time.Time{})
	<-g.rounds
	past, never := time.Now().Add(-time.Second), time.Time{}
	for i, deadline := range []time.Time{past, never, past, past, never} { // the first leads
		do(i+1, deadline)
		waitQueued(t, b, i+1)
	}
	g.goOn <- struct{}{}
	if got := fmt.Sprint(<-g.rounds); got != "[2 5]" {
		t.Errorf("round %s, want [2 5]", got)
	}
	g.goOn <- struct{}{}
	var late int
	for range 6 {
		if err := <-errs; errors.Is(err, ErrDeadline) {
			late++
		} else if err != nil {
			t.Error(err)
		}
	}
	if st := b.Stats(); late != 3 || st.Late != 3 || st.Jobs != 3 || st.Rounds != 2 {
		t.Errorf("%d late, stats %+v", late, st)
	}
}

func TestRoom(t *testing.T) {
	c := Config{RoundMax: 10, QueueMax: 1000, WaitMax: 50 * time.Millisecond}
	for _, x := range []struct {
		pace time.Duration
		want int
	}{
		{0, 1000}, {time.Nanosecond, 1000}, {500 * time.Microsecond, 1000}, {time.Millisecond, 500}, {20 * time.Millisecond, 25},
		{50 * time.Millisecond, 10}, {time.Second, 10}, // the next round can always be filled
	} {
		if got := c.room(x.pace); got != x.want {
			t.Errorf("rounds of %v: room for %d, want %d", x.pace, got, x.want)
		}
	}
	c.QueueMax = 5
	if got := c.room(time.Second); got != 5 {
		t.Errorf("room for %d, QueueMax is 5", got)
	}
	c.WaitMax = 0
	if got := c.room(time.Hour); got != 5 {
		t.Errorf("without WaitMax room for %d", got)
	}
}

// TestWaitMax: a shard whose rounds have become slow refuses at once what it could not serve in time, and takes it again when they are fast.
func TestWaitMax(t *testing.T) {
	g := newGate()
	slow := true
	b := must(t, Config{Shards: 1, RoundMax: 2, QueueMax: 100, WaitMax: time.Millisecond}, func(n int, round []*job) {
		if slow {
			g.run(n, round)
		}
	})
	var wg sync.WaitGroup
	do := func() {
		wg.Go(func() {
			if err := b.Do(0, &job{}, time.Time{}); err != nil {
				t.Error(err)
			}
		})
	}
	do()
	<-g.rounds
	for range 2 {
		do()
		waitQueued(t, b, 1)
		time.Sleep(20 * time.Millisecond)
		g.goOn <- struct{}{}
		<-g.rounds
	}
	do()
	waitQueued(t, b, 1)
	do()
	waitQueued(t, b, 2)
	refused := make(chan error, 1)
	go func() { refused <- b.Do(0, &job{}, time.Time{}) }()
	select {
	case err := <-refused:
		if !errors.Is(err, ErrFull) {
			t.Errorf("a third job behind slow rounds: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a third job waits behind slow rounds")
	}
	wg.Go(func() {
		if err := b.Insist(0, &job{}, time.Time{}); err != nil {
			t.Error("a job that insists:", err)
		}
	})
	waitQueued(t, b, 3)
	g.goOn <- struct{}{}
	<-g.rounds
	slow = false
	g.goOn <- struct{}{}
	wg.Wait()
	room := func() int {
		b.shards[0].mu.Lock()
		defer b.shards[0].mu.Unlock()
		return b.shards[0].room
	}
	for range 1_000_000 {
		if err := b.Do(0, &job{}, time.Time{}); err != nil {
			t.Fatal(err)
		}
		if room() > 2 {
			return
		}
	}
	t.Errorf("room for %d after a million fast rounds", room())
}

func TestCloseRunsWhatIsQueued(t *testing.T) {
	g := newGate()
	b := must(t, Config{Shards: 1, RoundMax: 8, QueueMax: 8}, g.run)
	errs := make(chan error, 3)
	for i := range 3 {
		go func() { errs <- b.Do(0, &job{in: i}, time.Time{}) }()
		if i == 0 {
			<-g.rounds
		} else {
			waitQueued(t, b, i)
		}
	}
	closed := make(chan struct{})
	go func() { b.Close(); close(closed) }()
	for shut := false; !shut; time.Sleep(time.Millisecond) {
		b.shards[0].mu.Lock()
		shut = b.shards[0].closed
		b.shards[0].mu.Unlock()
	}
	if err := b.Do(0, &job{}, time.Time{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
	select {
	case <-closed:
		t.Fatal("Close returned before the queued jobs ran")
	default:
	}
	g.goOn <- struct{}{}
	<-g.rounds
	g.goOn <- struct{}{}
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	<-closed
}

// TestPanicLeavesNobodyWaiting: the leader's panic is the leader's; everyone else in its round learns that there is no outcome, and the
// shard goes on.
func TestPanicLeavesNobodyWaiting(t *testing.T) {
	enter, goOn := make(chan int), make(chan bool)
	b := must(t, Config{Shards: 1, RoundMax: 8, QueueMax: 8}, func(_ int, round []*job) {
		enter <- len(round)
		if <-goOn {
			panic("module lost its mind")
		}
	})
	results := make(chan any, 3)
	do := func() {
		go func() {
			defer func() {
				if p := recover(); p != nil {
					results <- p
				}
			}()
			results <- b.Do(0, &job{}, time.Time{})
		}()
	}
	do()
	<-enter
	do()
	waitQueued(t, b, 1)
	do()
	waitQueued(t, b, 2)
	goOn <- false
	if r := <-results; r != nil {
		t.Fatal(r)
	}
	<-enter
	goOn <- true
	var panics, broken int
	for range 2 {
		switch r := (<-results).(type) {
		case error:
			if errors.Is(r, ErrPanic) {
				broken++
			}
		case string:
			panics++
		}
	}
	if panics != 1 || broken != 1 {
		t.Errorf("%d panics, %d ErrPanic", panics, broken)
	}
	do()
	<-enter
	goOn <- false
	if r := <-results; r != nil {
		t.Errorf("after the panic: %v", r)
	}
}

func TestSizeClass(t *testing.T) {
	for n, want := range map[int]int{1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 1024: 10} {
		if got := sizeClass(n); got != want {
			t.Errorf("sizeClass(%d) = %d, want %d", n, got, want)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			bt := must(b, Config{Shards: 1, RoundMax: 256, QueueMax: 1024}, double)
			b.ReportAllocs()
			b.SetParallelism(callers)
			b.RunParallel(func(pb *testing.PB) {
				var j job
				for pb.Next() {
					if err := bt.Do(0, &j, time.Time{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
			st := bt.Stats()
			b.ReportMetric(float64(st.Jobs)/float64(st.Rounds), "jobs/round")
		})
	}
}
