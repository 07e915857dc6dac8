package controlplane

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// deletionEnv has a Region of its own, so that workers of other tests do not see its keys.
func deletionEnv(t *testing.T, region string) *env { return newEnvIn(t, shared, region) }

func TestScheduleKeyDeletion(t *testing.T) {
	e := newEnv(t)
	type reply struct {
		KeyId, KeyState     string
		DeletionDate        float64
		PendingWindowInDays int
	}
	for _, days := range []int{0, 7, 8, 29, 30} {
		m := e.create("{}")
		e.published.take()
		body, window := obj("KeyId", m.Arn, "PendingWindowInDays", days), days
		if days == 0 {
			body, window = obj("KeyId", m.Arn), 30
		}
		var out reply
		e.ok("ScheduleKeyDeletion", body, &out)
		want := reply{m.Arn, "PendingDeletion", 1795435200.123 + float64(window)*86400, window}
		if out != want {
			t.Errorf("got %+v, want %+v", out, want)
		}
		if got := e.published.take(); got != "key "+m.KeyId+"\n" {
			t.Errorf("published %q", got)
		}
		if d := e.describe(m.KeyId); d.KeyState != "PendingDeletion" || d.Enabled || d.DeletionDate != want.DeletionDate {
			t.Errorf("described as %+v", d)
		}
		e.fails("ScheduleKeyDeletion", body, kmsapi.KMSInvalidState, m.Arn+" is pending deletion.")
		// The call that scheduled it might not have published yet, and this one tells that it is.
		if got := e.published.take(); got != "key "+m.KeyId+"\n" {
			t.Errorf("a second time: published %q", got)
		}
		var cancelled struct{ KeyId string }
		e.ok("CancelKeyDeletion", obj("KeyId", m.KeyId), &cancelled)
		if cancelled.KeyId != m.Arn {
			t.Errorf("cancelled %q", cancelled.KeyId)
		}
		if d := e.describe(m.KeyId); d.KeyState != "Disabled" || d.DeletionDate != 0 {
			t.Errorf("described as %+v", d)
		}
		e.fails("CancelKeyDeletion", obj("KeyId", m.KeyId), kmsapi.KMSInvalidState, m.Arn+" is not pending deletion.")
	}
	m := e.create("{}")
	for days, message := range map[int]string{
		6: "PendingWindowInDays must be between 7 and 30", 31: "PendingWindowInDays must be between 7 and 30",
		1: "PendingWindowInDays must be between 7 and 30", 365: "PendingWindowInDays must be between 7 and 30",
		0:   "1 validation error detected: Value '0' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value greater than or equal to 1",
		366: "1 validation error detected: Value '366' at 'pendingWindowInDays' failed to satisfy constraint: Member must have value less than or equal to 365",
	} {
		e.fails("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", days), kmsapi.Validation, message)
	}
}

func TestDeletionWorker(t *testing.T) {
	e := deletionEnv(t, "eu-test-1")
	start := e.clock.now()
	kept, m := e.create("{}"), e.create(obj("Tags", tags("a", "b")))
	for i := range kmsapi.AliasesPerKeyMax { // the largest transaction that a deletion can be
		e.ok("CreateAlias", aliasBody(fmt.Sprintf("alias/d/%02d", i), m.KeyId), nil)
	}
	e.ok("CreateAlias", aliasBody("alias/kept", kept.KeyId), nil)
	var out struct {
		KeyId, KeyState     string
		DeletionDate        float64
		PendingWindowInDays int
	}
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), &out)
	e.work()

	// Not a millisecond early.
	for _, at := range []time.Duration{0, 24 * time.Hour, 7*24*time.Hour - time.Millisecond} {
		e.clock.set(start.Add(at))
		e.published.take()
		if err := e.deleteDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := e.describe(m.KeyId); got.KeyState != "PendingDeletion" {
			t.Fatalf("after %s: %v", at, got)
		}
		if got := e.published.take(); got != "" {
			t.Errorf("after %s published %q", at, got)
		}
	}

	e.clock.set(start.Add(7 * 24 * time.Hour))
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	published := "key " + m.KeyId + "\n"
	for i := range kmsapi.AliasesPerKeyMax {
		published += fmt.Sprintf("alias alias/d/%02d\n", i)
	}
	if got := e.published.take(); got != published {
		t.Errorf("published %q", got)
	}
	gone := "Key '" + m.Arn + "' does not exist"
	for _, op := range []string{"DescribeKey", "CancelKeyDeletion", "GetKeyPolicy", "ListResourceTags", "EnableKey"} {
		e.fails(op, obj("KeyId", m.KeyId), kmsapi.NotFound, gone)
	}
	e.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", "{}"), kmsapi.NotFound, gone)
	if got := e.aliases("{}"); len(got.Aliases) != 1 || got.Aliases[0].AliasName != "alias/kept" {
		t.Errorf("aliases left: %v", got)
	}
	n := e.name(m.KeyId)
	if _, err := shared.KeyRecord(t.Context(), n.Region, n.Account, n.ID); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("KeyRecord: %v", err)
	}
	if e.describe(kept.KeyId).KeyState != "Enabled" {
		t.Error("another key was touched")
	}

	// The ID never comes back.
	e.random = func(b []byte) error {
		clear(b)
		copy(b, n.ID.UUID[:])
		return nil
	}
	e.fails("CreateKey", "{}", kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	e.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.NotFound, gone)
}

// A deletion that was cancelled, or scheduled anew, is not carried out at the old date.
func TestDeletionCancelledAndMoved(t *testing.T) {
	e := deletionEnv(t, "eu-test-2")
	cancelled, moved, late := e.create("{}"), e.create("{}"), e.create("{}")
	for _, m := range []wire{cancelled, moved, late} {
		if resp := e.call("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7)); resp.Code != kmsapi.OK {
			t.Fatalf("%s", resp.Body)
		}
	}
	for _, m := range []wire{cancelled, moved} {
		if resp := e.call("CancelKeyDeletion", obj("KeyId", m.KeyId)); resp.Code != kmsapi.OK {
			t.Fatalf("%s", resp.Body)
		}
	}
	if resp := e.call("ScheduleKeyDeletion", obj("KeyId", moved.KeyId, "PendingWindowInDays", 8)); resp.Code != kmsapi.OK {
		t.Fatalf("%s", resp.Body)
	}
	e.work()
	e.clock.add(7*24*time.Hour + time.Hour)
	// Due, and cancelled before the worker came: the client wins.
	due, err := shared.Due(t.Context(), store.Deletion, e.region, e.clock.now(), nil, 10)
	if err != nil || len(due) != 1 || due[0].ID.String() != late.KeyId {
		t.Fatalf("due: %v %v", due, err)
	}
	if resp := e.call("CancelKeyDeletion", obj("KeyId", late.KeyId)); resp.Code != kmsapi.OK {
		t.Fatalf("%s", resp.Body)
	}
	if _, _, done, err := shared.DeleteKey(t.Context(), due[0], e.clock.now(), 100*day, func(*store.Key) error { return nil }); done || err != nil {
		t.Errorf("deleted a key that was cancelled: %v %v", done, err)
	}
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	for m, state := range map[string]string{cancelled.KeyId: "Disabled", late.KeyId: "Disabled", moved.KeyId: "PendingDeletion"} {
		if got := e.describe(m); got.KeyState != state {
			t.Errorf("%s is %s, want %s", m, got.KeyState, state)
		}
	}
	e.clock.add(24 * time.Hour)
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.fails("DescribeKey", obj("KeyId", moved.KeyId), kmsapi.NotFound, "*")
}

// More keys than one turn takes are deleted in one go, and two workers share them without error.
func TestDeletionManyKeysTwoWorkers(t *testing.T) {
	e := deletionEnv(t, "eu-test-3")
	const n = deletionsPerTurn + 20
	for range n {
		m := e.create("{}")
		if resp := e.call("ScheduleKeyDeletion", obj("KeyId", m.KeyId)); resp.Code != kmsapi.OK {
			t.Fatalf("%s", resp.Body)
		}
	}
	e.work()
	e.clock.add(30 * 24 * time.Hour)
	errs := make(chan error, 2)
	for range 2 {
		go func() { errs <- e.deleteDue(t.Context()) }()
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := e.deleteDue(t.Context()); err != nil { // what either left to the other
		t.Error(err)
	}
	var out struct {
		Keys       []keyListEntry
		NextMarker string
		Truncated  bool
	}
	e.ok("ListKeys", "{}", &out)
	if len(out.Keys) != 0 {
		t.Errorf("%d keys left", len(out.Keys))
	}
}

func TestRun(t *testing.T) {
	e := deletionEnv(t, "eu-test-4")
	e.workInterval = time.Millisecond
	m := e.create("{}")
	if resp := e.call("ScheduleKeyDeletion", obj("KeyId", m.KeyId)); resp.Code != kmsapi.OK {
		t.Fatalf("%s", resp.Body)
	}
	e.work()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	e.clock.add(30 * 24 * time.Hour)
	deadline := time.Now().Add(30 * time.Second)
	for e.call("DescribeKey", obj("KeyId", m.KeyId)).Code != kmsapi.NotFound {
		if time.Now().After(deadline) {
			t.Fatal("the key was not deleted")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

// A key that came back with an older copy of the store, and was deleted again when that was opened, has one record of it, also if the first attempt is refused.
func TestReburiedIsRecorded(t *testing.T) {
	e := deletionEnv(t, "eu-test-5")
	m := e.create("{}")
	e.trail.take()
	e.reburied = []store.KeyName{e.name(m.KeyId)}
	e.trail.refuse(errSink)
	if err := e.Work(t.Context()); !errors.Is(err, errSink) {
		t.Errorf("%v", err)
	}
	e.trail.refuse(nil)
	e.work()
	e.work()
	if got := e.done(); len(got) != 1 || got[0] != "DeleteKey "+m.Arn {
		t.Errorf("%v", got)
	}
}

// A key whose deletion was scheduled by a clock that was ahead is deleted all the same: when its waiting period has passed it is given one that the clock knows. A clock
// that is behind for a while only never has it deleted early, whenever it is set right.
func TestDeletionOfAnotherClock(t *testing.T) {
	const window = 7
	for i, tt := range []struct {
		what   string
		before time.Duration // how far ahead the clock is when the deletion is scheduled
		jumps  map[int]time.Duration
		old    bool // a record of a version before there was Elapsed
		gone   int  // the day on which the key is deleted
	}{
		{"right", 0, nil, false, window},
		{"ahead", 3650 * day, map[int]time.Duration{0: -3650 * day}, false, 2 * window},
		{"ahead by little", day, map[int]time.Duration{0: -day}, false, window + 1},
		{"ahead for long", 3650 * day, map[int]time.Duration{10: -3650 * day}, false, window},
		{"it stays behind", 0, map[int]time.Duration{0: -3650 * day}, false, 2 * window},
		{"behind, and right in time", 0, map[int]time.Duration{0: -3650 * day, window - 1: 3650 * day}, false, window},
		{"behind, and right too late", 0, map[int]time.Duration{0: -3650 * day, window + 3: 3650 * day}, false, 2 * window},
		{"ahead again", 3650 * day, map[int]time.Duration{0: -3650 * day, window + 1: 3650 * day}, false, 2 * window},
		{"an older record", 0, nil, true, kmsapi.PendingWindowMax + 1}, // a day until it is looked at
		{"an older record, ahead", 3650 * day, map[int]time.Duration{0: -3650 * day}, true, 2 * kmsapi.PendingWindowMax},
	} {
		e := deletionEnv(t, fmt.Sprintf("eu-deletion-%d", i+1))
		e.clock.jump(tt.before)
		m, cancelled := e.create("{}"), e.create("{}")
		e.work()
		for _, k := range []wire{m, cancelled} {
			e.ok("ScheduleKeyDeletion", obj("KeyId", k.KeyId, "PendingWindowInDays", window), &map[string]any{})
			if !tt.old {
				continue
			}
			if _, err := e.store.UpdateKey(t.Context(), e.name(k.KeyId), func(k *store.Key) error {
				k.DeletionDays, k.DeletionSeen = 0, 0
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		there := func() bool { return e.call("DescribeKey", obj("KeyId", m.KeyId)).Code == kmsapi.OK }
		for today := range tt.gone + 1 {
			if today > 0 {
				e.clock.add(day - time.Millisecond)
				e.work()
				if !there() {
					t.Fatalf("%s: deleted before day %d", tt.what, today)
				}
				e.clock.add(time.Millisecond)
			}
			e.clock.jump(tt.jumps[today])
			if today == tt.gone {
				e.ok("CancelKeyDeletion", obj("KeyId", cancelled.KeyId), &map[string]any{})
			}
			e.work()
			if there() == (today == tt.gone) {
				t.Fatalf("%s: the key is there on day %d: %t", tt.what, today, there())
			}
		}
		if got := e.describe(cancelled.KeyId); got.KeyState != "Disabled" || got.DeletionDate != 0 {
			t.Errorf("%s: cancelled at the last moment, it is %+v", tt.what, got)
		}
	}
}

// overdue makes two keys whose waiting period has passed, though not by the clock that was ahead when it began: the first comes before the second in the index.
func (e *env) overdue() (first, second store.KeyName) {
	e.Helper()
	e.clock.jump(3650 * day)
	var names [2]store.KeyName
	for i := range names {
		m := e.create("{}")
		e.clock.add(time.Second)
		e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), &map[string]any{})
		names[i] = e.name(m.KeyId)
	}
	e.work()
	e.clock.jump(-3650 * day)
	for range 8 {
		e.clock.add(day)
		if _, err := e.ticker.Tick(e.Context()); err != nil {
			e.Fatal(err)
		}
	}
	return names[0], names[1]
}

func (e *env) deletionOf(n store.KeyName) *store.Key {
	e.Helper()
	k, err := e.store.Key(e.Context(), n)
	if err != nil {
		e.Fatal(err)
	}
	return k
}

// The second waiting period counts from when it is written, however long the keys before this one took.
func TestSecondPeriodBeginsWhenItIsWritten(t *testing.T) {
	e := deletionEnv(t, "eu-deletion-late")
	n, _ := e.overdue()
	now, elapsed := e.clock.now().UTC().Truncate(time.Millisecond), 8*day+2*time.Second
	const late = 3 * time.Hour
	e.clock.add(late)
	before := e.deletionOf(n)
	if err := e.healDeletion(t.Context(), n, now, elapsed); err != nil {
		t.Fatal(err)
	}
	seen, err := e.ticker.Tick(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k := e.deletionOf(n)
	if want := now.Add(late + 7*day); !k.DeletionDate.Equal(want) || k.DeletionSeen != seen || !before.DeletionDate.After(want) {
		t.Errorf("the date was %s and is %s, want %s; the period was seen to begin at %s, want %s", before.DeletionDate, k.DeletionDate, want, k.DeletionSeen, seen)
	}

	// A clock that is right again meanwhile leaves the date as it was.
	_, err = e.store.UpdateKey(t.Context(), n, func(k *store.Key) error {
		k.DeletionDate, k.DeletionSeen = before.DeletionDate, before.DeletionSeen
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	e.clock.jump(3650 * day)
	if err := e.healDeletion(t.Context(), n, now, elapsed); err != nil {
		t.Fatal(err)
	}
	if k := e.deletionOf(n); !k.DeletionDate.Equal(before.DeletionDate) {
		t.Errorf("the date is %s, want %s", k.DeletionDate, before.DeletionDate)
	}
}

// A key that cannot be healed is tried again with the next turn, and it alone.
func TestUnhealedKeyAlone(t *testing.T) {
	e := deletionEnv(t, "eu-deletion-unhealed")
	good, bad := e.overdue()
	far := e.deletionOf(good)
	e.healed = time.Time{}

	// Somebody has the bad one when its turn comes, until the worker's time is over.
	has, release, released := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		_, err := e.store.UpdateKey(t.Context(), bad, func(*store.Key) error { close(has); <-release; return nil })
		released <- err
	}()
	<-has
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error)
	go func() { failed <- e.heal(ctx) }()
	moved := func(n store.KeyName) bool {
		return e.deletionOf(n).DeletionDate.Before(far.DeletionDate.Add(-365 * day))
	}
	for deadline := time.Now().Add(15 * time.Second); !moved(good); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the good key is not healed")
		}
	}
	cancel()
	if err := <-failed; err == nil {
		t.Error("no error")
	}
	close(release)
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	if moved(bad) {
		t.Fatal("the bad key is healed already")
	}

	// What the good one would show if all were looked at again.
	if _, err := e.store.UpdateKey(t.Context(), good, func(k *store.Key) error {
		k.DeletionDate, k.DeletionSeen = far.DeletionDate, far.DeletionSeen
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e.clock.add(time.Minute)
		if err := e.heal(t.Context()); err != nil {
			t.Fatal(err)
		}
		if moved(good) || !moved(bad) {
			t.Fatalf("in the next turn: the good one is looked at again: %t; the bad one is healed: %t", moved(good), moved(bad))
		}
	}
	e.clock.add(healInterval)
	if err := e.heal(t.Context()); err != nil || !moved(good) {
		t.Errorf("a day later: %v, all are looked at: %t", err, moved(good))
	}
}
