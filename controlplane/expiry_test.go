package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// elapse lets time pass by the clock that nobody can set alone.
func (e *env) elapse(d time.Duration) {
	e.clock.add(d)
	e.clock.jump(-d)
}

func (e *env) expires() {
	e.Helper()
	if err := e.expireDue(e.Context()); err != nil {
		e.Fatal(err)
	}
}

// events are the names and details of the service's events since the last time.
func (e *env) events() string {
	e.Helper()
	var list []string
	for _, r := range e.trail.take() {
		if r["eventType"] == "AwsServiceEvent" {
			list = append(list, fmt.Sprint(r["eventName"], " ", r["serviceEventDetails"]))
		}
	}
	return strings.Join(list, "; ")
}

// in is a ValidTo so many seconds from now.
func (e *env) in(seconds float64) []any {
	return []any{"ValidTo", float64(e.clock.now().UnixMilli())/1000 + seconds}
}

// At ValidTo the key is pending import, and its material is destroyed.
func TestExpiry(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-1")
	m := e.external("{}")
	id := e.put(m.KeyId, "one", e.in(100)...)
	e.expires()
	e.clock.add(100*time.Second - time.Millisecond)
	e.trail.take()
	e.published.take()
	e.expires()
	e.has(m.KeyId, "Enabled current 1, 1")
	if got := e.events(); got != "" {
		t.Errorf("too early: %s", got)
	}
	e.clock.add(time.Millisecond)
	e.expires()
	if got, want := e.events(), "DeleteExpiredKeyMaterial map[keyId:"+m.Arn+" keyMaterialId:"+id+"]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := e.published.take(); !strings.Contains(got, "key "+m.KeyId+"\n") {
		t.Errorf("published %q", got)
	}
	// Both clocks agree, so that it is destroyed in the same turn.
	e.has(m.KeyId, "PendingImport current 1, 1 missing")
	if d := e.describe(m.KeyId); d.KeyState != "PendingImport" || d.ExpirationModel != "" || d.ValidTo != 0 || d.CurrentKeyMaterialId != id {
		t.Errorf("%+v", d)
	}
	e.expires()
	if got := e.events(); got != "" {
		t.Errorf("once more: %s", got)
	}
	e.put(m.KeyId, "one", e.in(50)...)
	e.has(m.KeyId, "Enabled current 1, 1")
	e.put(m.KeyId, "one") // before it expires: it does not any more
	e.clock.add(time.Hour)
	e.expires()
	e.has(m.KeyId, "Enabled current 1, 1")
}

// A wall clock that runs ahead takes a key out of use and destroys nothing; set back, it gives the key back as it was.
func TestExpiryDestroysNothingEarly(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-2")
	start := e.clock.now()
	for _, c := range []struct{ body, was string }{
		{"{}", "Enabled"}, {"{}", "Disabled"}, {obj("KeySpec", "HMAC_256", "KeyUsage", "GENERATE_VERIFY_MAC"), "Enabled"},
	} {
		m := e.external(c.body)
		e.put(m.KeyId, "one", e.in(3600)...)
		if c.was == "Disabled" {
			e.ok("DisableKey", obj("KeyId", m.KeyId), nil)
		}
		e.clock.add(time.Minute)
		e.expires()
		for _, jump := range []time.Duration{3540 * time.Second, 24 * time.Hour, 3650 * 24 * time.Hour} {
			now := e.clock.now()
			e.clock.jump(jump)
			e.expires()
			d := e.describe(m.KeyId)
			if d.KeyState != "PendingImport" || d.Enabled {
				t.Errorf("%v ahead: %+v", jump, d)
			}
			if got := e.events(); !strings.HasPrefix(got, "DeleteExpiredKeyMaterial ") {
				t.Errorf("%v ahead: %q", jump, got)
			}
			for range 3 {
				e.elapse(10 * time.Minute)
				e.expires()
			}
			e.clock.jump(now.Sub(e.clock.now()))
			e.expires()
			if d := e.describe(m.KeyId); d.KeyState != c.was || d.ExpirationModel != materialExpires {
				t.Errorf("%v and back: %+v", jump, d)
			}
			if got := e.events(); got != "" {
				t.Errorf("set back: %s", got)
			}
			e.clock.jump(start.Add(2 * time.Minute).Sub(e.clock.now()))
			if _, err := e.store.UpdateKey(t.Context(), e.name(m.KeyId), func(k *store.Key) error { // as if none of this time had been seen
				for i := range k.Versions {
					f := *k.Versions[i].Import
					f.Seen += 30 * time.Minute
					k.Versions[i].Import = &f
				}
				if k.Import != nil {
					f := *k.Import
					f.Seen += 30 * time.Minute
					k.Import = &f
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		// Imported again while the clock is ahead, it has a new date and is in use.
		e.clock.jump(48 * time.Hour)
		e.expires()
		if d := e.describe(m.KeyId); d.KeyState != "PendingImport" {
			t.Errorf("%+v", d)
		}
		e.put(m.KeyId, "one", e.in(60)...)
		if d := e.describe(m.KeyId); d.KeyState != "Enabled" {
			t.Errorf("%+v", d)
		}
		e.clock.jump(time.Minute)
		e.expires()
		k, err := e.store.Key(t.Context(), e.name(m.KeyId))
		if err != nil {
			t.Fatal(err)
		}
		if k.State != kmsapi.StatePendingImport || k.Private == nil && (len(k.Versions) == 0 || k.Versions[0].Missing) {
			t.Errorf("destroyed at once: %+v", k)
		}
		e.elapse(time.Minute)
		e.expires()
		if k, err = e.store.Key(t.Context(), e.name(m.KeyId)); err != nil || k.Private != nil || len(k.Versions) > 0 && !k.Versions[0].Missing {
			t.Errorf("not destroyed: %+v %v", k, err)
		}
		e.clock.jump(start.Sub(e.clock.now()))
	}
}

// Material that came in while a turn was under way is seen from when it was there, not from when the turn began.
func TestExpiryIsSeenLate(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-7")
	m := e.external("{}")
	began, err := e.ticker.Tick(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e.elapse(time.Hour)
	e.put(m.KeyId, "one", e.in(600)...)
	if _, err := e.store.UpdateKey(t.Context(), e.name(m.KeyId), func(k *store.Key) error { // imported by a control plane that does not work
		f := *k.Versions[0].Import
		f.Seen = store.Unseen
		k.Versions[0].Import = &f
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	e.clock.jump(600 * time.Second)
	if _, err := e.expire(t.Context(), e.name(m.KeyId), began); err != nil {
		t.Fatal(err)
	}
	e.elapse(600*time.Second - time.Millisecond)
	e.expires()
	e.has(m.KeyId, "PendingImport current 1, 1 expired")
	e.elapse(time.Millisecond)
	e.expires()
	e.has(m.KeyId, "PendingImport current 1, 1 missing")
}

// Material that waits for its rotation expires without the key, and a key that is pending deletion stays so.
func TestExpiryElsewhere(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-3")
	m := e.external("{}", "one")
	e.put(m.KeyId, "two", append(e.in(60), "ImportType", newMaterial)...)
	e.expires()
	e.clock.jump(time.Minute)
	e.expires()
	e.has(m.KeyId, "Enabled current 1, 1, 2 expired")
	e.elapse(time.Minute)
	e.expires()
	e.has(m.KeyId, "Enabled current 1, 1")

	e.put(m.KeyId, "one", e.in(60)...)
	e.expires()
	var scheduled map[string]any
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId), &scheduled)
	e.clock.jump(time.Minute)
	e.expires()
	e.has(m.KeyId, "PendingDeletion current 1, 1 expired")
	e.ok("CancelKeyDeletion", obj("KeyId", m.KeyId), &cancelKeyDeletionOut{})
	e.has(m.KeyId, "PendingImport current 1, 1 expired")
	e.clock.jump(-time.Minute)
	e.expires()
	e.has(m.KeyId, "Disabled current 1, 1")

	// DeleteImportedKeyMaterial does not wait.
	e.clock.jump(time.Minute)
	e.expires()
	e.deleteMaterial(m.KeyId)
	e.has(m.KeyId, "PendingImport current 1, 1 missing")
	e.clock.jump(-time.Minute)
	e.expires()
	e.has(m.KeyId, "PendingImport current 1, 1 missing")

	// A deleted key is no work.
	if revision, err := e.expire(t.Context(), store.KeyName{Region: e.region, Account: e.account}, 0); revision != 0 || err != nil {
		t.Errorf("a key that is not there: %d, %v", revision, err)
	}
}

// Without a record nothing expires, and others do: the worker comes back to it.
func TestExpiryIsRecorded(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-4")
	m := e.external("{}")
	e.put(m.KeyId, "one", e.in(60)...)
	e.expires()
	e.clock.add(time.Minute)
	e.trail.refuse(errors.New("disk full"))
	if err := e.expireDue(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be recorded") {
		t.Errorf("%v", err)
	}
	e.trail.refuse(nil)
	e.has(m.KeyId, "Enabled current 1, 1")
	e.expires()
	e.has(m.KeyId, "PendingImport current 1, 1 missing")
	if got := e.events(); strings.Count(got, "DeleteExpiredKeyMaterial") != 1 {
		t.Errorf("events %q", got)
	}
}

// More keys than the worker takes in a turn.
func TestManyExpiries(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-5")
	var ids []string
	for range expiriesPerTurn + 20 {
		m := e.external("{}")
		ids = append(ids, m.KeyId)
		e.put(m.KeyId, "one", e.in(60)...)
	}
	e.expires()
	e.clock.add(time.Minute)
	e.expires()
	for _, id := range ids {
		e.has(id, "PendingImport current 1, 1 missing")
	}
}

// The data plane is told when the first of the materials expires that the key needs.
func TestExpiryIsPublished(t *testing.T) {
	e := newEnvIn(t, shared, "eu-expiry-6")
	m := e.external("{}")
	expires := func(want time.Time) {
		t.Helper()
		n := e.name(m.KeyId)
		r, err := e.store.KeyRecord(t.Context(), e.region, n.Account, n.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Wipe()
		if !r.Expires.Equal(want) {
			t.Errorf("%v, want %v", r.Expires, want)
		}
	}
	now := e.clock.now()
	expires(time.Time{})
	e.put(m.KeyId, "one")
	expires(time.Time{})
	e.put(m.KeyId, "one", e.in(100)...)
	expires(now.Add(100 * time.Second))
	two := e.put(m.KeyId, "two", append(e.in(50), "ImportType", newMaterial)...)
	expires(now.Add(100 * time.Second)) // it waits
	e.rotate(m.KeyId)
	expires(now.Add(50 * time.Second))
	e.deleteMaterial(m.KeyId, "KeyMaterialId", two)
	expires(now.Add(100 * time.Second))

	m = e.external(obj("KeySpec", "ECC_NIST_P256", "KeyUsage", "SIGN_VERIFY"))
	e.put(m.KeyId, "one", e.in(100)...)
	expires(now.Add(100 * time.Second))
}

// A peer that does not answer delays nothing that is due here.
func TestWorkWithoutPeers(t *testing.T) {
	w := newWorld(t, []*store.Store{shared, shared}, make([]*softHSM, 2))
	a, b := w.regions[0], w.regions[1]
	m := a.external("{}")
	a.put(m.KeyId, "one", a.in(60)...)
	key := a.create(obj("MultiRegion", true))
	a.replicateTo(key.KeyId, b.region)
	if err := a.Server.workHere(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	w.mu.Lock()
	w.fault = func(int) fault {
		select {
		case asked <- struct{}{}:
		default:
		}
		w.mu.Unlock()
		<-answer
		w.mu.Lock()
		return lost
	}
	w.mu.Unlock()
	a.Server.workInterval = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	<-asked
	a.clock.jump(time.Minute)
	for deadline := time.Now().Add(30 * time.Second); a.describe(m.KeyId).KeyState != "PendingImport"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("expired material is in use while a peer does not answer")
			break
		}
	}
	close(answer)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}
