package controlplane

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

type scheduledReply struct {
	KeyId, KeyState     string
	DeletionDate        float64
	PendingWindowInDays int
}

func (e *env) schedule(keyID string, days int) scheduledReply {
	e.Helper()
	var out scheduledReply
	e.ok("ScheduleKeyDeletion", obj("KeyId", keyID, "PendingWindowInDays", days), &out)
	return out
}

// days lets days pass in which all Regions work, in steps that end at their last moment and at midnight.
func (w *world) days(n int) {
	w.Helper()
	work := func() {
		for _, e := range w.regions {
			if err := e.deleteDue(w.Context()); err != nil {
				w.Fatal(err)
			}
			w.connect(e)
			_ = w.turn(e)
		}
	}
	work()
	for end := w.regions[0].clock.now().Add(time.Duration(n) * day); w.regions[0].clock.now().Before(end); {
		clock := w.regions[0].clock
		clock.set(clock.now().Add(min(day, end.Sub(clock.now()))))
		work()
	}
}

// The primary of replicas waits until the last of them is really gone, whatever becomes of the messages that say so; its own waiting period begins then.
func TestPendingReplicaDeletion(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	key := a.create(obj("MultiRegion", true))
	id := key.KeyId
	for _, e := range []*env{b, c} {
		a.replicateTo(id, e.region)
		w.settle()
	}
	waits := func(days, replicas int) {
		t.Helper()
		d := a.describe(id)
		if d.KeyState != "PendingReplicaDeletion" || d.Enabled || d.DeletionDate != 0 || d.PendingDeletionWindowInDays != days {
			t.Errorf("the primary is %s until %v, then for %d days", d.KeyState, d.DeletionDate, d.PendingDeletionWindowInDays)
		}
		if got := len(d.MultiRegionConfiguration.ReplicaKeys); got != replicas {
			t.Errorf("the primary knows of %d replicas, want %d", got, replicas)
		}
	}
	if got, want := a.schedule(id, 9), (scheduledReply{key.Arn, "PendingReplicaDeletion", 0, 9}); got != want {
		t.Errorf("replied %+v, want %+v", got, want)
	}
	waits(9, 2)
	pending := key.Arn + " is pending replica deletion."
	a.fails("ScheduleKeyDeletion", obj("KeyId", id), kmsapi.KMSInvalidState, pending)
	a.fails("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), kmsapi.KMSInvalidState, pending)
	a.fails("EnableKey", obj("KeyId", id), kmsapi.KMSInvalidState, pending)
	w.days(12)
	waits(9, 2)
	if d := b.describe(id); d.KeyState != "Enabled" {
		t.Errorf("a replica is %s", d.KeyState)
	}
	a.ok("CancelKeyDeletion", obj("KeyId", id), new(cancelKeyDeletionOut))
	if d := a.describe(id); d.KeyState != "Disabled" || d.PendingDeletionWindowInDays != 0 || d.DeletionDate != 0 {
		t.Errorf("cancelled: %+v", d)
	}
	a.schedule(id, 8)

	// A replica that says that it is gone, and is not: the primary asks it.
	if _, err := b.ask(t.Context(), a.region, b.name(id), replication.Message{Kind: replication.Gone}); err != nil {
		t.Fatal(err)
	}
	waits(8, 2)

	// One after the other, each by its own waiting period.
	w.days(1)
	start := a.clock.now()
	for e, days := range map[*env]int{b: 7, c: 12} {
		there := e.keyARN(e.name(id))
		if got, want := e.schedule(id, days), (scheduledReply{there, "PendingDeletion", seconds(start.Add(time.Duration(days) * day)), days}); got != want {
			t.Errorf("replied %+v, want %+v", got, want)
		}
	}
	w.days(6)
	waits(8, 2)
	gone := func(e *env) {
		t.Helper()
		e.fails("DescribeKey", obj("KeyId", id), kmsapi.NotFound, "*")
	}
	w.fault = func(int) fault { return lost }
	w.days(2)
	gone(b)
	waits(8, 2) // it does not know yet
	w.fault = func(int) fault { return answerLost }
	w.days(1)
	waits(8, 2) // nor can it ask
	w.fault = nil
	w.days(1)
	waits(8, 1)
	if len(farewells(w, b)) > 0 {
		t.Error("the replica's Region has still something to tell")
	}
	w.away[a.region] = true
	w.days(4)
	gone(c)
	waits(8, 1)
	w.away[a.region] = false
	w.settle()
	heard := a.clock.now()
	if d := a.describe(id); d.KeyState != "PendingDeletion" || d.PendingDeletionWindowInDays != 0 || len(d.MultiRegionConfiguration.ReplicaKeys) > 0 ||
		d.DeletionDate < seconds(heard.Add(8*day-time.Second)) || d.DeletionDate > seconds(heard.Add(8*day)) {
		t.Errorf("after the last replica the primary is %+v at %v", d, seconds(heard))
	}
	date := w.key(a, id).DeletionDate
	w.days(7)
	a.clock.set(date.Add(-time.Millisecond))
	if err := a.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := a.describe(id); d.KeyState != "PendingDeletion" || d.DeletionDate != seconds(date) {
		t.Errorf("a millisecond before its date the primary is %+v", d)
	}
	a.clock.add(time.Second)
	if err := a.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone(a)
	if !w.quiet() {
		t.Error("something is left to tell")
	}
}

func farewells(w *world, e *env) []store.Farewell {
	w.Helper()
	list, err := e.store.Farewells(w.Context(), e.region, nil, 10)
	if err != nil {
		w.Fatal(err)
	}
	return list
}

// A replica that was asked for, and of which nobody knows whether it is there, is waited for too.
func TestPendingReplicaDeletionOfIntent(t *testing.T) {
	for _, f := range []fault{lost, answerLost} {
		w := oneToken(t, 2)
		a, b := w.regions[0], w.regions[1]
		id := a.create(obj("MultiRegion", true)).KeyId
		w.clean(f, 1) // the first message asks what is there
		a.fails("ReplicateKey", obj("KeyId", id, "ReplicaRegion", b.region), kmsapi.DependencyTimeout, "*")
		if got := a.schedule(id, 7); got.KeyState != "PendingReplicaDeletion" || got.DeletionDate != 0 {
			t.Errorf("%s: replied %+v", f, got)
		}
		w.settle()
		w.agree(id)
		if d := a.describe(id); d.KeyState != "PendingReplicaDeletion" || len(d.MultiRegionConfiguration.ReplicaKeys) != 1 {
			t.Errorf("%s: the primary is %+v", f, d)
		}
		b.schedule(id, 7)
		w.days(8)
		w.settle()
		if d := a.describe(id); d.KeyState != "PendingDeletion" {
			t.Errorf("%s: the primary is %s", f, d.KeyState)
		}
		w.days(8)
		for _, e := range w.regions {
			e.fails("DescribeKey", obj("KeyId", id), kmsapi.NotFound, "*")
		}
	}
}
