package controlplane

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

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
	e.clock.add(7*24*time.Hour + time.Hour)
	// Due, and cancelled before the worker came: the client wins.
	due, err := shared.DueDeletions(t.Context(), e.region, e.clock.now(), 10)
	if err != nil || len(due) != 1 || due[0].ID.String() != late.KeyId {
		t.Fatalf("due: %v %v", due, err)
	}
	if resp := e.call("CancelKeyDeletion", obj("KeyId", late.KeyId)); resp.Code != kmsapi.OK {
		t.Fatalf("%s", resp.Body)
	}
	if _, _, done, err := shared.DeleteKey(t.Context(), due[0], e.clock.now(), func() error { return nil }); done || err != nil {
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
	e.deletionInterval = time.Millisecond
	m := e.create("{}")
	if resp := e.call("ScheduleKeyDeletion", obj("KeyId", m.KeyId)); resp.Code != kmsapi.OK {
		t.Fatalf("%s", resp.Body)
	}
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
