package controlplane

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

var (
	yearsKeys = flag.Int("years.keys", 60, "keys that TestFiveYears rotates, and a third as many that it deletes")
	jumpSteps = flag.Int("jumps.steps", 150, "steps of TestClockJumps")
)

// again is a server as one that is started anew has it: with the same configuration, over the same store, and nothing in memory.
func (e *env) again() *Server {
	e.Helper()
	began := e.clock.running()
	s, err := New(Config{
		Region: e.region, Store: e.store, Verifier: e.verifier, Publisher: e.published, Audit: e.sink, LastUses: e.lastUses, Principals: e.cast, Now: e.clock.now,
		Running: func() time.Duration { return e.clock.running() - began }, Logger: quiet, Random: e.random, Root: e.Server.root, Keys: e.keys,
	})
	if err != nil {
		e.Fatal(err)
	}
	return s
}

// done takes the service events since the last time, as "RotateKey <key ARN>", in order.
func (e *env) done() (list []string) {
	for _, r := range e.trail.take() {
		if r["eventType"] == "AwsServiceEvent" {
			resource := r["resources"].([]any)[0].(map[string]any)
			list = append(list, fmt.Sprint(r["eventName"], " ", resource["ARN"]))
		}
	}
	slices.Sort(list)
	return list
}

// Five years of keys with different periods, and of deletions: each rotation and each deletion on its date to the millisecond, none before, none twice.
func TestFiveYears(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-1")
	began := time.Now()
	r := rand.New(rand.NewPCG(5, 0))
	start := e.clock.now()
	end := start.Add(5 * 365 * day)
	what := map[time.Time][]string{} // what has to happen when
	var dates []time.Time
	at := func(date time.Time, event string) {
		if what[date] == nil {
			dates = append(dates, date)
		}
		what[date] = append(what[date], event)
	}
	rotations, deletions := map[string][]float64{}, 0
	n, keys := 0, *yearsKeys
	if testing.Short() {
		keys = max(keys/5, 8)
	}
	for i := range keys {
		m, period := e.create("{}"), 90+r.IntN(2560-90+1)
		if i == 0 {
			period = 90
		}
		e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", period), nil)
		rotations[m.KeyId] = []float64{}
		for date := e.clock.now().Add(time.Duration(period) * day); !date.After(end); date = date.Add(time.Duration(period) * day) {
			at(date, "RotateKey "+m.Arn)
			rotations[m.KeyId] = append(rotations[m.KeyId], seconds(date))
			n++
		}
		e.clock.add(time.Duration(r.IntN(100_000)) * time.Millisecond)
	}
	e.trail.take()
	e.work()
	// Keys are scheduled for deletion all along.
	for range *yearsKeys / 3 {
		at(e.clock.now().Add(time.Duration(r.Int64N(int64(end.Sub(e.clock.now())-31*day)))).Truncate(time.Millisecond), "schedule")
	}
	for len(dates) > 0 {
		slices.SortFunc(dates, time.Time.Compare)
		date := dates[0]
		dates = dates[1:]
		e.clock.set(date.Add(-time.Millisecond))
		e.work()
		if got := e.done(); len(got) != 0 {
			t.Fatalf("a millisecond before %s: %v", date, got)
		}
		e.clock.set(date)
		want := []string{}
		for _, event := range what[date] {
			if event != "schedule" {
				want = append(want, event)
				continue
			}
			m, days := e.create("{}"), 7+r.IntN(24)
			e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", days), &map[string]any{})
			at(date.Add(time.Duration(days)*day), "DeleteKey "+m.Arn)
			deletions++
		}
		slices.Sort(want)
		e.trail.take()
		e.work()
		if got := e.done(); !slices.Equal(got, want) {
			t.Fatalf("at %s:\n got %v\nwant %v", date, got, want)
		}
	}
	e.clock.set(end)
	e.work()
	for id, want := range rotations {
		var got []float64
		for _, v := range e.rotations(id, "Limit", 1000).Rotations {
			got = append(got, v.RotationDate)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s was rotated at\n %v, want\n %v", id, got, want)
		}
	}
	t.Logf("5 years of %d keys: %d rotations and %d deletions, each on its date, in %.1f s", keys, n, deletions, time.Since(began).Seconds())
	if n == 0 || deletions != *yearsKeys/3 {
		t.Error("the years were empty")
	}
}

// After a time in which nothing ran a key is rotated once, however many dates were missed, and its schedule goes on with the date that comes next.
func TestRotationCatchesUp(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-2")
	m := e.create("{}")
	start := e.clock.now()
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 100), nil)
	for _, step := range []struct{ at, rotations, next int }{{99, 0, 100}, {100, 1, 200}, {199, 1, 200}, {777, 2, 800}, {800, 3, 900}, {1500, 4, 1600}} {
		e.clock.set(start.Add(time.Duration(step.at) * day))
		for range 2 {
			if err := e.again().Work(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		next := seconds(start.Add(time.Duration(step.next) * day))
		if got := e.rotations(m.KeyId); len(got.Rotations) != step.rotations || e.status(m.KeyId).NextRotationDate != next {
			t.Errorf("on day %d: %d rotations, want %d; next %v, want %v", step.at, len(got.Rotations), step.rotations, e.status(m.KeyId).NextRotationDate, next)
		}
	}
}

// The clock of the wall can be wrong by any amount. Nothing is rotated twice for one date, no date is further than a period away, and nothing is destroyed before its
// waiting period has really passed, whoever works and however often he is started anew.
func TestClockJumps(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-3")
	began := time.Now()
	seed := uint64(began.UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	jumps := []time.Duration{time.Second, time.Minute, time.Hour, day, 30 * day, 365 * day, 3650 * day}
	type life struct {
		wire
		versions  int
		period    int            // of the schedule, 0 for none
		next      time.Time      // its next date when it was made or last moved on
		made      time.Duration  // running time then
		latest    time.Time      // of the clock of the wall since then, when there was work
		served    map[int64]bool // dates that were rotated for
		scheduled time.Duration  // running time, while it is pending deletion
		days      int
	}
	var keys []*life
	servers := []*Server{e.again(), e.again()}
	rotated, automatics, deleted, jumped, restarts := 0, 0, 0, 0, 0
	for step := range *jumpSteps {
		for len(keys) < 10 {
			keys = append(keys, &life{wire: e.create("{}"), versions: 1, served: map[int64]bool{}})
		}
		k := keys[r.IntN(len(keys))]
		switch r.IntN(8) {
		case 0, 1:
			period := 90 + r.IntN(100)
			if e.call("EnableKeyRotation", obj("KeyId", k.KeyId, "RotationPeriodInDays", period)).Code == kmsapi.OK && period != k.period {
				k.period, k.made, k.latest = period, e.clock.running(), e.clock.now()
				k.next = k.latest.Add(time.Duration(period) * day)
			}
		case 2:
			e.call("DisableKey", obj("KeyId", k.KeyId))
		case 3, 4:
			e.call("EnableKey", obj("KeyId", k.KeyId))
		case 5:
			e.call("RotateKeyOnDemand", obj("KeyId", k.KeyId))
		case 6:
			days := 7 + r.IntN(24)
			if e.call("ScheduleKeyDeletion", obj("KeyId", k.KeyId, "PendingWindowInDays", days)).Code == kmsapi.OK {
				k.scheduled, k.days = e.clock.running(), days
			}
		case 7:
			if r.IntN(3) == 0 && e.call("CancelKeyDeletion", obj("KeyId", k.KeyId)).Code == kmsapi.OK {
				k.days = 0
			}
		}
		// Time passes, so that a clock that is set forth and back does not show the same millisecond again.
		e.clock.add(time.Duration(1+r.Int64N(1000_000)) * time.Millisecond)
		switch r.IntN(4) {
		case 0:
			d := jumps[r.IntN(len(jumps))]
			if r.IntN(2) == 0 {
				d = -d
			}
			if now := e.clock.now().Add(d); now.Year() > 2000 && now.Year() < 2080 { // else etcd's index and SigV4 are at an end
				e.clock.jump(d)
				jumped++
			}
		case 1:
			e.clock.add(time.Duration(r.Int64N(int64(12 * day))).Truncate(time.Millisecond))
		}
		if r.IntN(4) == 0 {
			servers[r.IntN(2)] = e.again()
			restarts++
		}

		// What is due is read from the records, as they are before the work.
		before := map[string]store.Rotation{}
		for _, k := range keys {
			was := e.keyRecord(k.wire)
			before[k.KeyId] = was.Rotation
		}
		e.trail.take()
		var wg sync.WaitGroup
		for _, s := range servers[:1+r.IntN(2)] {
			wg.Go(func() {
				if err := s.Work(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		events, rotatedFor := map[string]int{}, map[string]string{}
		for _, record := range e.trail.take() {
			if record["eventType"] != "AwsServiceEvent" {
				continue
			}
			arn := record["resources"].([]any)[0].(map[string]any)["ARN"].(string)
			events[fmt.Sprint(record["eventName"], " ", arn)]++
			if details, ok := record["serviceEventDetails"].(map[string]any); ok && details["rotationType"] == automatic {
				rotatedFor[arn] = automatic
			}
		}
		now := e.clock.now()
		keys = slices.DeleteFunc(keys, func(k *life) bool {
			is := e.keyRecord(k.wire)
			if is == nil {
				if passed := e.clock.running() - k.scheduled; k.days == 0 || passed < time.Duration(k.days)*day || events["DeleteKey "+k.Arn] != 1 {
					t.Errorf("seed %d, step %d: %s was deleted after %s of %d days, events %v", seed, step, k.KeyId, passed, k.days, events)
				}
				deleted++
				return true
			}
			was := before[k.KeyId]
			least, most := 0, 0
			if was.Enabled && was.Held.IsZero() && !was.Next.After(now) {
				least, most = 1, 1
			} else if !was.Held.IsZero() { // which of the two dates it is has its own rule, below
				most = 1
			}
			if !was.OnDemand.IsZero() {
				least, most = least+1, most+1
			}
			n := len(is.Versions) - k.versions
			if is.State != kmsapi.StateEnabled {
				least, most = 0, 0
			}
			if n < least || n > most || events["RotateKey "+k.Arn] != n {
				t.Errorf("seed %d, step %d: %s was rotated %d times with %d events, want %d to %d: it was %+v at %s", seed, step, k.KeyId, n, events["RotateKey "+k.Arn], least, most, was, now)
			}
			// Never early: the clock of the wall has been at the date, or the period has really passed.
			if now.After(k.latest) {
				k.latest = now
			}
			if rotatedFor[k.Arn] == automatic {
				if passed := e.clock.running() - k.made; k.latest.Before(k.next) && passed < time.Duration(k.period)*day {
					t.Errorf("seed %d, step %d: %s was rotated early, %s after its schedule of %d days was made or moved on: it was %+v at %s, and was to be %s", seed, step, k.KeyId, passed, k.period,
						was, now, k.next)
				}
				k.next, k.made, k.latest = is.Rotation.Next, e.clock.running(), now
				automatics++
			}
			if n > 0 && was.Enabled && was.Held.IsZero() && !was.Next.After(now) {
				if k.served[was.Next.UnixMilli()] {
					t.Errorf("seed %d, step %d: %s was rotated for %s twice", seed, step, k.KeyId, was.Next)
				}
				k.served[was.Next.UnixMilli()] = true
			}
			rotated += n
			k.versions = len(is.Versions)
			if is.Rotation.Enabled && is.State == kmsapi.StateEnabled {
				if ahead := is.Rotation.Next.Sub(now); ahead <= 0 || ahead > time.Duration(is.Rotation.Period)*day+healSlack {
					t.Errorf("seed %d, step %d: the next rotation of %s is in %s, its period is %d days", seed, step, k.KeyId, ahead, is.Rotation.Period)
				}
			}
			return false
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	// Whatever the clock was when a deletion was scheduled, it comes, once the clock is left alone.
	for range 2*kmsapi.PendingWindowMax + 2 {
		e.clock.add(day)
		if err := servers[0].Work(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range keys {
		if k.days == 0 {
			continue
		}
		if is := e.keyRecord(k.wire); is != nil {
			t.Errorf("seed %d: the deletion of %s does not come, its date is %s at %s", seed, k.KeyId, is.DeletionDate, e.clock.now())
		}
		deleted++
	}
	t.Logf("%d steps: %d clock jumps, %d restarts, %d rotations, %d of them automatic, %d deletions in %.1f s", *jumpSteps, jumped, restarts, rotated, automatics, deleted, time.Since(began).Seconds())
}

// A clock that is behind for a while, and right again at once or in two steps, rotates nothing early, and leaves the schedule as it was; one that stays behind, or was ahead
// when the schedule was made, has the rotation when the period has passed. An attempt that fails is made again with the next turn.
func TestScheduleOfAnotherClock(t *testing.T) {
	for i, tt := range []struct {
		what   string
		before time.Duration // how far ahead the clock is when the schedule is made
		jumps  []time.Duration
		next   int // days from the beginning to the next rotation
	}{
		{"behind, and right again", 0, []time.Duration{-3650 * day, 3650 * day}, 365},
		{"behind by less than the period", 0, []time.Duration{-200 * day, 200 * day}, 365},
		{"right in two steps", 0, []time.Duration{-3650 * day, 1000 * day, 2650 * day}, 365},
		{"behind twice", 0, []time.Duration{-3650 * day, 3650 * day, -30 * day, 30 * day}, 365},
		{"it stays behind", 0, []time.Duration{-3650 * day}, 365 - 3650},
		{"it was ahead", 3650 * day, []time.Duration{-3650 * day}, 365},
		{"it was ahead by less than the period", 100 * day, []time.Duration{-100 * day}, 365},
	} {
		e := newEnvIn(t, shared, fmt.Sprintf("eu-other-%d", i+1))
		start := e.clock.now()
		e.clock.jump(tt.before)
		m := e.create("{}")
		e.work()
		e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 365), nil)
		for _, d := range tt.jumps {
			e.clock.jump(d)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if err := e.heal(ended); err == nil {
				t.Errorf("%s: no error", tt.what)
			}
			e.work()
			if got := len(e.rotations(m.KeyId).Rotations); got != 0 {
				t.Fatalf("%s: %d rotations after the clock was set by %s", tt.what, got, d)
			}
		}
		next := start.Add(time.Duration(tt.next) * day)
		if got := e.status(m.KeyId).NextRotationDate; got != seconds(next) {
			t.Errorf("%s: the next rotation is at %f, want %f", tt.what, got, seconds(next))
		}
		for range 364 { // the worker sees the time pass
			e.clock.add(day)
			if _, err := e.ticker.Tick(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		e.clock.add(day - time.Millisecond)
		e.work()
		if got := len(e.rotations(m.KeyId).Rotations); got != 0 {
			t.Errorf("%s: rotated early", tt.what)
		}
		e.clock.add(time.Millisecond)
		e.work()
		if got := len(e.rotations(m.KeyId).Rotations); got != 1 {
			t.Errorf("%s: %d rotations on the date", tt.what, got)
		}
	}
}

// keyRecord is a key's record without its salts, nil if the key is gone.
func (e *env) keyRecord(m wire) *store.Key {
	e.Helper()
	k, err := e.store.Key(e.Context(), e.name(m.KeyId))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		e.Fatal(err)
	}
	k.Wipe()
	return k
}

// A process that ends between the record of a rotation and its commit, or right after the commit, leaves a key that the next one rotates once.
func TestRotationCutShort(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-4")
	m := e.create("{}")
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
	e.clock.add(90 * day)
	e.trail.take()
	s := e.again()
	record := s.sink
	s.sink = func(b []byte) error {
		_ = record(b)
		panic("killed")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Fatal("the work was not cut short")
			}
		}()
		_ = s.Work(t.Context())
	}()
	s.sink = record
	if got := e.done(); len(got) != 1 {
		t.Fatalf("%v", got)
	}
	if err := e.again().Work(t.Context()); err != nil {
		t.Fatal(err)
	}
	events := e.trail.take()
	got := e.rotations(m.KeyId).Rotations
	if len(got) != 1 || len(events) != 1 || events[0]["serviceEventDetails"].(map[string]any)["currentKeyMaterialId"] != got[0].KeyMaterialId {
		t.Errorf("%+v, events %v", got, events)
	}
	if err := errors.Join(e.again().Work(t.Context()), s.Work(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := e.rotations(m.KeyId).Rotations; len(got) != 1 || len(e.done()) != 0 {
		t.Errorf("%+v", got)
	}
}

// Many keys are due at once: two control planes that work at the same time rotate and delete each of them once.
func TestTwoWorkers(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-5")
	const n = rotationsPerTurn + 30
	want := []string{}
	for i := range n {
		m := e.create("{}")
		if i%4 == 0 {
			e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 30), &map[string]any{})
			want = append(want, "DeleteKey "+m.Arn)
			continue
		}
		e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
		want = append(want, "RotateKey "+m.Arn)
	}
	e.work()
	e.clock.add(90 * day)
	if _, err := e.ticker.Tick(t.Context()); err != nil { // the others' clocks have not seen the time pass
		t.Fatal(err)
	}
	e.trail.take()
	var wg sync.WaitGroup
	for range 3 {
		s := e.again()
		wg.Go(func() {
			if err := s.Work(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(want)
	if got := e.done(); !slices.Equal(got, want) {
		t.Errorf("%d events, want %d, each once:\n got %v\nwant %v", len(got), len(want), got, want)
	}
}

// Two control planes run, one of them works, and the other takes over when that ends.
func TestTakeOver(t *testing.T) {
	e := newEnvIn(t, shared, "eu-years-6")
	m := e.create("{}")
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
	var worked [2]atomic.Int32
	run := func(i int) (stop func()) {
		s := e.again()
		s.workInterval = time.Millisecond
		record := s.sink
		s.sink = func(b []byte) error {
			worked[i].Add(1)
			return record(b)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = s.Run(ctx)
		}()
		return func() { cancel(); <-ended }
	}
	turn := func(n int) {
		t.Helper()
		e.clock.add(90 * day)
		deadline := time.Now().Add(30 * time.Second)
		for len(e.rotations(m.KeyId).Rotations) < n {
			if time.Now().After(deadline) {
				t.Fatalf("rotation %d is not done", n)
			}
			time.Sleep(time.Millisecond)
		}
	}
	stopFirst := run(0)
	turn(1)
	stopSecond := run(1)
	defer stopSecond()
	turn(2)
	turn(3)
	if a, b := worked[0].Load(), worked[1].Load(); a != 3 || b != 0 {
		t.Errorf("the owner did %d rotations, and who stands by %d", a, b)
	}
	stopFirst()
	turn(4)
	if a, b := worked[0].Load(), worked[1].Load(); a != 3 || b != 1 {
		t.Errorf("afterwards: %d and %d", a, b)
	}
}
