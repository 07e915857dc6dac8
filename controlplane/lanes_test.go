package controlplane

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// eventually waits for what workers do.
func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("it does not happen: %s", what)
		}
	}
}

// run has a Region work until the test ends, or stop is called.
func (w *world) run(e *env) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx)
	}()
	stop = func() { cancel(); <-ended }
	w.Cleanup(stop)
	return stop
}

// A Region that hangs, with the first of many keys, delays no other; it is told when it answers, of all of them. Another that is no peer any more keeps nothing either.
func TestHangingPeer(t *testing.T) {
	w := oneToken(t, 4)
	a, b, c, d := w.regions[0], w.regions[1], w.regions[2], w.regions[3]
	const n = 5
	var ids []string
	for range n {
		id := a.create(obj("MultiRegion", true)).KeyId
		for _, e := range []*env{b, c, d} {
			a.replicateTo(id, e.region)
		}
		ids = append(ids, id)
	}
	w.settle()
	stop := w.run(a)
	hang := make(chan struct{})
	w.mu.Lock()
	w.hangs[b.region] = hang
	w.away[d.region] = true
	w.mu.Unlock()
	for i, id := range ids {
		a.ok("EnableKeyRotation", obj("KeyId", id, "RotationPeriodInDays", 100+i), nil)
	}
	period := func(e *env, i int) int { return int(w.key(e, ids[i]).Rotation.Period) }
	w.eventually("the Region that answers has all of them", func() bool {
		for i := range ids {
			if period(c, i) != 100+i {
				return false
			}
		}
		return true
	})
	w.eventually("a request waits", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.hung[b.region] > 0
	})
	for i := range ids {
		if period(b, i) != 0 || period(d, i) != 0 {
			t.Fatalf("Regions that do not answer have periods of %d and %d days", period(b, i), period(d, i))
		}
	}
	// A new key goes to the Region that answers, whatever hangs.
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, c.region)
	w.eventually("a new replica", func() bool { k := w.key(c, id); return k != nil && k.State == kmsapi.StateEnabled })
	w.mu.Lock()
	w.hangs[b.region], w.away[d.region] = nil, false
	w.mu.Unlock()
	close(hang)
	a.clock.add(2 * awayMax) // what did not answer is left alone by this clock
	a.Server.kick()
	w.eventually("all have all", func() bool { return w.quiet() })
	stop()
	for _, id := range ids {
		w.agree(id)
	}
}

// What hangs when the server ends does not keep it from that.
func TestHangingPeerEnds(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	w.mu.Lock()
	w.hangs[b.region] = make(chan struct{})
	w.mu.Unlock()
	a.ok("EnableKeyRotation", obj("KeyId", id), nil)
	stop := w.run(a)
	w.eventually("a request waits", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.hung[b.region] > 0
	})
	stop()
}

// A key with which something is wrong in another Region is tried less and less often, and the others go on; a Region that does not answer is left alone with all.
func TestLaneBacksOff(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	bad, good := a.create(obj("MultiRegion", true)).KeyId, a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(bad, b.region)
	a.replicateTo(good, b.region)
	w.settle()
	w.ahead(b, bad)
	l := &lane{region: b.region, keys: map[store.KeyName]absence{}}
	change := 100
	// turn changes the good key and has the lane tell what there is: with which key it fails, and how long that is left alone.
	turn := func() (failures int, wait time.Duration) {
		t.Helper()
		change++
		a.ok("EnableKeyRotation", obj("KeyId", good, "RotationPeriodInDays", change), nil)
		wait, failures, err := a.tell(t.Context(), l)
		if (err != nil) != (failures > 0) {
			t.Fatalf("%d failures, %v", failures, err)
		}
		return failures, wait
	}
	told := func() bool { return int(w.key(b, good).Rotation.Period) == change }
	a.ok("EnableKeyRotation", obj("KeyId", bad), nil)
	for i, pause := range []int{1, 2, 4, 8, 16, 32, 60, 60} {
		pause := time.Duration(pause) * time.Second
		if failures, wait := turn(); failures != 1 || wait != pause || !told() {
			t.Fatalf("attempt %d: %d failures, next in %s, want %s; the good one is told: %t", i, failures, wait, pause, told())
		}
		a.clock.add(pause - time.Millisecond)
		if failures, wait := turn(); failures != 0 || wait != time.Millisecond || !told() {
			t.Fatalf("a millisecond before attempt %d: %d failures, next in %s; the good one is told: %t", i+1, failures, wait, told())
		}
		a.clock.add(time.Millisecond)
	}

	// The Region itself: not a key is tried before its time.
	w.away[b.region] = true
	sent := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.sent
	}
	for i, pause := range []int{1, 2, 4} {
		pause := time.Duration(pause) * time.Second
		before := sent()
		if failures, wait := turn(); failures != 1 || wait != pause || sent() != before+1 {
			t.Fatalf("attempt %d: %d failures, next in %s, want %s; %d messages", i, failures, wait, pause, sent()-before)
		}
		before = sent()
		a.clock.add(pause - time.Millisecond)
		if failures, wait := turn(); failures != 0 || wait != time.Millisecond || sent() != before {
			t.Fatalf("a millisecond before attempt %d: %d failures, next in %s, %d messages", i+1, failures, wait, sent()-before)
		}
		a.clock.add(time.Millisecond)
	}
	w.away[b.region] = false
	a.clock.add(time.Minute)
	if turn(); !told() {
		t.Error("the Region answers, and is not told")
	}
}

// A former primary whose Region is lost while several keys wait to tell it so keeps none of them Updating: the first finds out that it does not answer, and the others, which are
// not tried then, end their change all the same.
func TestFormerPrimaryIsLost(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	var ids []string
	for range 3 {
		id := a.create(obj("MultiRegion", true)).KeyId
		a.replicateTo(id, b.region)
		ids = append(ids, id)
	}
	w.settle()
	for _, id := range ids {
		a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
		for range 20 { // until b has become its primary
			if w.key(b, id).MultiRegion.Former != "" {
				break
			}
			if err := a.push(t.Context(), a.name(id), anyRegion); err != nil {
				t.Fatal(err)
			}
		}
		if k := w.key(b, id); k.State != kmsapi.StateUpdating || k.MultiRegion.Former != a.region || !k.IsPrimary() {
			t.Fatalf("the new primary is %s, the former is in %q", k.State, k.MultiRegion.Former)
		}
	}
	w.mu.Lock()
	w.away[a.region] = true
	w.mu.Unlock()
	w.run(b)
	b.Server.kick()
	for i, id := range ids {
		w.eventually(fmt.Sprintf("key %d is Enabled", i), func() bool {
			k := w.key(b, id)
			return k.State == kmsapi.StateEnabled && k.MultiRegion.Former == ""
		})
		b.ok("UpdateKeyDescription", obj("KeyId", id, "Description", "managed again"), nil)
	}
}

// ahead gives a Region's replica a later epoch than its primary has, which no message of the primary's changes.
func (w *world) ahead(e *env, id string) {
	w.Helper()
	if _, err := e.store.UpdateKey(w.Context(), e.name(id), func(k *store.Key) error {
		m := *k.MultiRegion
		m.Epoch += 5
		k.MultiRegion = &m
		return nil
	}); err != nil {
		w.Fatal(fmt.Errorf("%s: %w", e.region, err))
	}
}
