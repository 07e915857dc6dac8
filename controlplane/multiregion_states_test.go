package controlplane

import (
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// deleteIn has a Region's key deleted: its waiting period passes.
func (w *world) deleteIn(e *env, id string) {
	w.Helper()
	e.ok("ScheduleKeyDeletion", obj("KeyId", id, "PendingWindowInDays", 7), new(map[string]any))
	for range 3 {
		if err := e.deleteDue(w.Context()); err != nil {
			w.Fatal(err)
		}
		e.clock.add(7*day + day/24)
	}
	if w.key(e, id) != nil {
		w.Fatalf("%s: the key was not deleted", e.region)
	}
}

// TestReplicaGoneWhilePromoted: a Region that is to become the primary loses its replica, before the present one is frozen and after. That one stays the
// primary, and can be disabled and deleted again.
func TestReplicaGoneWhilePromoted(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	for _, frozen := range []bool{false, true} {
		key := a.create(obj("MultiRegion", true))
		a.replicateTo(key.KeyId, b.region)
		w.settle()
		a.ok("UpdatePrimaryRegion", obj("KeyId", key.KeyId, "PrimaryRegion", b.region), nil)
		w.away[b.region] = true
		if frozen {
			_ = w.turn(a)
		}
		if k := w.key(a, key.KeyId); k.State != kmsapi.StateUpdating || k.MultiRegion.Frozen != frozen {
			t.Fatalf("before the deletion: %s %+v", k.State, k.MultiRegion)
		}
		w.deleteIn(b, key.KeyId)
		w.away[b.region] = false
		w.settle()
		k := w.key(a, key.KeyId)
		if m := k.MultiRegion; k.State != kmsapi.StateEnabled || !k.IsPrimary() || len(m.Replicas) > 0 || m.Promoting != "" || m.Frozen || m.Withdrawn || m.Asked != nil {
			t.Errorf("frozen %v: the primary is %s %+v", frozen, k.State, m)
			continue
		}
		w.agree(key.KeyId)
		a.ok("DisableKey", obj("KeyId", key.KeyId), nil)
		a.ok("EnableKey", obj("KeyId", key.KeyId), nil)
		a.replicateTo(key.KeyId, b.region) // as any other
		w.settle()
		w.agree(key.KeyId)
		w.deleteIn(b, key.KeyId)
		w.settle()
		a.ok("ScheduleKeyDeletion", obj("KeyId", key.KeyId), new(map[string]any))
		if k := w.key(a, key.KeyId); k.State != kmsapi.StatePendingDeletion {
			t.Errorf("scheduled for deletion it is %s", k.State)
		}
	}
}

// TestCreatingReplicaKept: a replica whose deletion is scheduled and cancelled before it has its material can be enabled when it has.
func TestCreatingReplicaKept(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	for _, late := range []bool{false, true} { // whether the material comes before the cancellation
		key := a.create(obj("MultiRegion", true))
		a.replicateTo(key.KeyId, b.region)
		b.ok("ScheduleKeyDeletion", obj("KeyId", key.KeyId, "PendingWindowInDays", 7), new(map[string]any))
		if late {
			w.settle()
		}
		b.ok("CancelKeyDeletion", obj("KeyId", key.KeyId), new(map[string]any))
		w.settle()
		if got := b.describe(key.KeyId).KeyState; got != "Disabled" {
			t.Errorf("material before %v: the replica is %s", late, got)
		}
		b.ok("EnableKey", obj("KeyId", key.KeyId), nil)
		w.agree(key.KeyId)
	}
}
