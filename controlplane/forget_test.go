package controlplane

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// lose forgets a Region in another, and returns the keys that were changed with their states.
func (w *world) lose(in, lost *env) (changed []string, err error) {
	w.Helper()
	err = ForgetRegion(w.Context(), in.store, []string{in.region}, lost.region, in.clock.now(), func(n store.KeyName, state kmsapi.KeyState) {
		changed = append(changed, fmt.Sprint(n.ID, " ", state))
	})
	slices.Sort(changed)
	return changed, err
}

// Whatever a Region that is lost had to do with a key, the primary goes on without it; what it does not have to do with stays.
func TestForgetRegion(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	related := func() string {
		t.Helper()
		id := a.create(obj("MultiRegion", true)).KeyId
		a.replicateTo(id, b.region)
		a.replicateTo(id, c.region)
		return id
	}
	single, alone, kept, pending, promoting, former, intended, farewell := a.create("{}").KeyId, a.create(obj("MultiRegion", true)).KeyId, related(), related(), related(), related(),
		a.create(obj("MultiRegion", true)).KeyId, related()
	elsewhere := c.create(obj("MultiRegion", true)).KeyId
	c.replicateTo(elsewhere, a.region)
	c.replicateTo(elsewhere, b.region)
	w.settle()
	// farewell: its primary is b, and the replica in a is deleted.
	a.ok("UpdatePrimaryRegion", obj("KeyId", farewell, "PrimaryRegion", b.region), nil)
	// former: the primary was b, and it is told that it is not any more when that is lost.
	a.ok("UpdatePrimaryRegion", obj("KeyId", former, "PrimaryRegion", b.region), nil)
	w.settle()
	a.schedule(pending, 7)
	c.schedule(pending, 7)
	a.schedule(farewell, 7)
	w.away[b.region] = true
	w.days(8)
	if got := a.describe(pending); got.KeyState != "PendingReplicaDeletion" || len(got.MultiRegionConfiguration.ReplicaKeys) != 1 {
		t.Fatalf("before: %+v", got)
	}
	if len(farewells(w, a)) != 1 {
		t.Fatalf("farewells %v", farewells(w, a))
	}
	w.away[b.region] = false
	w.clean(lost, 1) // the first message asks what is there
	a.fails("ReplicateKey", obj("KeyId", intended, "ReplicaRegion", b.region), kmsapi.DependencyTimeout, "*")
	w.fault = nil
	b.ok("UpdatePrimaryRegion", obj("KeyId", former, "PrimaryRegion", a.region), nil)
	for k := w.key(a, former); k.MultiRegion.Former == ""; k = w.key(a, former) {
		if err := w.turn(b); err != nil {
			t.Fatal(err)
		}
	}
	a.ok("UpdatePrimaryRegion", obj("KeyId", promoting, "PrimaryRegion", b.region), nil)
	w.away[b.region] = true
	w.connect(a)
	_ = a.push(t.Context(), a.name(promoting), anyRegion)
	if !w.key(a, promoting).MultiRegion.Frozen {
		t.Fatal("the primary is not frozen")
	}

	before := map[string]int64{}
	untouched := []string{single, alone, elsewhere}
	for _, id := range untouched {
		before[id] = w.key(a, id).Revision
	}
	if changed, err := w.lose(a, a); err == nil || changed != nil {
		t.Errorf("its own Region: %v, %v", changed, err)
	}
	changed, err := w.lose(a, b)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{kept + " Enabled", pending + " PendingDeletion", promoting + " Enabled", former + " Enabled", intended + " Enabled"}
	slices.Sort(want)
	if !slices.Equal(changed, want) {
		t.Errorf("changed\n%v, want\n%v", changed, want)
	}
	if changed, err := w.lose(a, b); err != nil || changed != nil {
		t.Errorf("a second time: %v, %v", changed, err)
	}
	for _, id := range untouched {
		if w.key(a, id).Revision != before[id] {
			t.Errorf("%s was changed", id)
		}
	}
	if list := farewells(w, a); len(list) != 0 {
		t.Errorf("farewells %v", list)
	}
	// The others hear of it, and the primary goes on.
	w.regions = []*env{a, c}
	w.settle()
	for _, id := range []string{kept, promoting, former} {
		if p := w.agree(id); p != a {
			t.Errorf("%s: the primary is %s", id, p.region)
		}
		a.rotate(id)
		w.settle()
		w.agree(id)
	}
	if k := w.key(a, promoting); k.MultiRegion.Void == 0 || k.MultiRegion.Frozen || k.MultiRegion.Promoting != "" {
		t.Errorf("%+v", k.MultiRegion)
	}
	w.days(6)
	if got := a.describe(pending); got.KeyState != "PendingDeletion" {
		t.Errorf("the primary that waited is %+v", got)
	}
	w.days(2)
	if k := w.key(a, pending); k != nil {
		t.Errorf("the primary that waited is %s, to be deleted at %s", k.State, k.DeletionDate)
	}
}

// While the primary is changing to a Region that is not lost, the key is left for later.
func TestForgetRegionWhileChanging(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	id, other := a.create(obj("MultiRegion", true)).KeyId, a.create(obj("MultiRegion", true)).KeyId
	for _, id := range []string{id, other} {
		a.replicateTo(id, b.region)
		a.replicateTo(id, c.region)
	}
	w.settle()
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", c.region), nil)
	w.away[b.region], w.away[c.region] = true, true
	w.connect(a)
	_ = a.push(t.Context(), a.name(id), anyRegion)
	changed, err := w.lose(a, b)
	if !errors.Is(err, store.ErrFrozen) || !slices.Equal(changed, []string{other + " Enabled"}) {
		t.Errorf("changed %v, %v", changed, err)
	}
	w.away[c.region] = false
	for range 3 {
		w.connect(a)
		w.connect(c)
		_, _ = w.turn(a), w.turn(c)
	}
	if changed, err := w.lose(a, b); err != nil || changed != nil {
		t.Errorf("of a key whose primary is elsewhere now: %v, %v", changed, err)
	}
	if changed, err := w.lose(c, b); err != nil || !slices.Equal(changed, []string{id + " Enabled"}) {
		t.Errorf("at the new primary: %v, %v", changed, err)
	}
	w.regions = []*env{a, c}
	w.settle()
	if p := w.agree(id); p != c {
		t.Errorf("the primary is %s", p.region)
	}
}

// A replica whose primary was lost and forgotten is deleted later: the command that is run again ends what is to be told of it.
func TestForgetRegionAgain(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	w.away[a.region] = true
	for range 2 {
		if _, err := w.lose(b, a); err != nil {
			t.Fatal(err)
		}
		if !w.quiet() {
			t.Fatal("something is to be told")
		}
		if w.key(b, id) == nil {
			break
		}
		b.schedule(id, 7)
		w.days(8)
		if w.key(b, id) != nil || len(farewells(w, b)) != 1 {
			t.Fatalf("the replica is there: %t, %d farewells", w.key(b, id) != nil, len(farewells(w, b)))
		}
	}
}
