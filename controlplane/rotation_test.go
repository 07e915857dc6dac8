package controlplane

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/snapshot"
)

type rotationStatus struct {
	KeyRotationEnabled                          bool
	KeyId                                       string
	RotationPeriodInDays                        int
	NextRotationDate, OnDemandRotationStartDate float64
}

func (e *env) status(key string) (out rotationStatus) {
	e.Helper()
	e.ok("GetKeyRotationStatus", obj("KeyId", key), &out)
	return out
}

type rotationEntry struct {
	KeyId, KeyMaterialId, KeyMaterialDescription, ImportState, KeyMaterialState, ExpirationModel, RotationType string

	ValidTo, RotationDate float64
}

type rotationsReply struct {
	Rotations  []rotationEntry
	NextMarker string
	Truncated  bool
}

func (e *env) rotations(key string, more ...any) (out rotationsReply) {
	e.Helper()
	e.ok("ListKeyRotations", obj(append([]any{"KeyId", key}, more...)...), &out)
	return out
}

// seconds is a time as replies have it.
func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func TestKeyRotationSchedule(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-1")
	m := e.create("{}")
	start := e.clock.now()
	if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
		t.Errorf("a new key: %+v", got)
	}
	for _, bad := range []int{0, 89, 2561} {
		e.fails("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", bad), kmsapi.Validation, "*")
	}
	e.ok("EnableKeyRotation", obj("KeyId", m.Arn), nil)
	on := rotationStatus{KeyRotationEnabled: true, KeyId: m.Arn, RotationPeriodInDays: 365, NextRotationDate: seconds(start.Add(365 * day))}
	if got := e.status(m.Arn); got != on {
		t.Errorf("enabled: %+v, want %+v", got, on)
	}
	// Again with the same period: nothing is put off. With another: from now on.
	e.clock.add(100 * day)
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 365), nil)
	if got := e.status(m.Arn); got != on {
		t.Errorf("enabled again: %+v, want %+v", got, on)
	}
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 2560), nil)
	on.RotationPeriodInDays, on.NextRotationDate = 2560, seconds(e.clock.now().Add(2560*day))
	if got := e.status(m.Arn); got != on {
		t.Errorf("another period: %+v, want %+v", got, on)
	}
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
	on.RotationPeriodInDays, on.NextRotationDate = 90, seconds(e.clock.now().Add(90*day))

	// Pending deletion says that there is none, and a cancelled one has it back.
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId), &map[string]any{})
	if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
		t.Errorf("pending deletion: %+v", got)
	}
	e.clock.add(91 * day) // the worker did not run: the key is there
	e.ok("CancelKeyDeletion", obj("KeyId", m.KeyId), &map[string]any{})
	if got := e.status(m.KeyId); got != on {
		t.Errorf("cancelled: %+v, want %+v", got, on)
	}
	// Disabled and overdue: it is not rotated, and is when it is enabled.
	e.work()
	if got := e.rotations(m.KeyId); len(got.Rotations) != 0 {
		t.Errorf("a disabled key was rotated: %+v", got)
	}
	e.fails("EnableKeyRotation", obj("KeyId", m.KeyId), kmsapi.Disabled, m.Arn+" is disabled.")
	e.ok("EnableKey", obj("KeyId", m.KeyId), nil)
	if len(e.hurried) != 1 {
		t.Error("the worker is not told that the key is overdue")
	}
	e.work()
	got := e.rotations(m.KeyId)
	if len(got.Rotations) != 1 || got.Rotations[0].RotationDate != seconds(e.clock.now()) || got.Rotations[0].RotationType != "AUTOMATIC" {
		t.Errorf("enabled again: %+v", got)
	}
	on.NextRotationDate = seconds(start.Add(280 * day)) // still on the grid of 90 days from day 100
	if got := e.status(m.KeyId); got != on {
		t.Errorf("after the rotation: %+v, want %+v", got, on)
	}
	e.ok("DisableKeyRotation", obj("KeyId", m.KeyId), nil)
	if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
		t.Errorf("disabled: %+v", got)
	}
	e.clock.add(5000 * day)
	e.work()
	if got := e.rotations(m.KeyId); len(got.Rotations) != 1 {
		t.Errorf("rotated without a schedule: %+v", got)
	}
}

func TestRotateKeyOnDemand(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-2")
	e.quotas = &fixedQuotas{max: map[string]int{quota.OnDemandRotationsPerKey: 3, quota.KeysPerAccount: 100}}
	m := e.create("{}")
	first := m.CurrentKeyMaterialId
	e.published.take()
	e.trail.take()
	ids := []string{first}
	var dates []float64
	for i := range 3 {
		e.clock.add(time.Hour)
		var out struct{ KeyId string }
		e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &out)
		if out.KeyId != m.Arn || len(e.hurried) != 1 {
			t.Errorf("got %q, worker told %d", out.KeyId, len(e.hurried))
		}
		<-e.hurried
		if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn, OnDemandRotationStartDate: seconds(e.clock.now())}) {
			t.Errorf("while it is pending: %+v", got)
		}
		e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.Conflict, rotationConflict)
		e.trail.take()
		e.published.take()
		e.work()
		if got := e.published.take(); got != "key "+m.KeyId+"\n" {
			t.Errorf("published %q", got)
		}
		if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
			t.Errorf("afterwards: %+v", got)
		}
		id := e.describe(m.KeyId).CurrentKeyMaterialId
		events := e.trail.take()
		details, _ := events[0]["serviceEventDetails"].(map[string]any)
		if want := map[string]any{
			"rotationType": "ON_DEMAND", "keyOrigin": "AWS_KMS", "previousKeyMaterialId": ids[i], "currentKeyMaterialId": id, "keyId": m.Arn,
		}; events[0]["eventName"] != "RotateKey" || fmt.Sprint(details) != fmt.Sprint(want) {
			t.Errorf("event %v, want details %v", events[0], want)
		}
		ids, dates = append(ids, id), append(dates, seconds(e.clock.now()))
	}
	e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.LimitExceeded,
		"The on-demand rotations limit has been reached for the given keyId. No more on-demand rotations can be performed for this key: "+m.Arn)
	// An automatic one is not counted, is not shifted, and keeps those on demand away for 20 minutes.
	e.quotas.(*fixedQuotas).max[quota.OnDemandRotationsPerKey] = 5
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
	e.clock.add(90*day - 20*time.Minute)
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &map[string]any{})
	e.work()
	ids, dates = append(ids, e.describe(m.KeyId).CurrentKeyMaterialId), append(dates, seconds(e.clock.now()))
	e.clock.add(time.Millisecond)
	e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.Conflict, rotationConflict)
	e.clock.add(20*time.Minute - 2*time.Millisecond)
	e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.Conflict, rotationConflict)
	e.work()
	if got := e.describe(m.KeyId).CurrentKeyMaterialId; got != ids[4] {
		t.Error("rotated a millisecond early")
	}
	e.clock.add(time.Millisecond)
	e.work()
	ids, dates = append(ids, e.describe(m.KeyId).CurrentKeyMaterialId), append(dates, seconds(e.clock.now()))
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &map[string]any{})
	// What is asked for before the key is disabled, and a schedule that ends, wait or stay.
	e.ok("DisableKeyRotation", obj("KeyId", m.KeyId), nil)
	e.ok("DisableKey", obj("KeyId", m.KeyId), nil)
	e.work()
	if got := e.status(m.KeyId); got.OnDemandRotationStartDate == 0 {
		t.Error("a disabled key was rotated")
	}
	e.ok("EnableKey", obj("KeyId", m.KeyId), nil)
	e.work()
	ids, dates = append(ids, e.describe(m.KeyId).CurrentKeyMaterialId), append(dates, seconds(e.clock.now()))
	e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.LimitExceeded, "*")

	// The lists, in one and in pages.
	var wantAll, want []rotationEntry
	for i, id := range ids {
		v := rotationEntry{KeyId: m.Arn, KeyMaterialId: id, KeyMaterialState: "NON_CURRENT"}
		if i == len(ids)-1 {
			v.KeyMaterialState = "CURRENT"
		}
		if i > 0 {
			v.RotationDate, v.RotationType = dates[i-1], "ON_DEMAND"
			if i == 5 {
				v.RotationType = "AUTOMATIC"
			}
			want = append(want, v)
		}
		wantAll = append(wantAll, v)
	}
	for include, want := range map[string][]rotationEntry{"": want, "ROTATIONS_ONLY": want, "ALL_KEY_MATERIAL": wantAll} {
		more := []any{}
		if include != "" {
			more = append(more, "IncludeKeyMaterial", include)
		}
		if got := e.rotations(m.KeyId, more...); fmt.Sprint(got.Rotations) != fmt.Sprint(want) || got.Truncated {
			t.Errorf("%s:\n got %+v\nwant %+v", include, got, want)
		}
		var pages []rotationEntry
		marker := []any{"Limit", 2}
		for {
			got := e.rotations(m.KeyId, append(marker, more...)...)
			if pages = append(pages, got.Rotations...); !got.Truncated {
				break
			}
			marker = []any{"Limit", 2, "Marker", got.NextMarker}
			if include == "ALL_KEY_MATERIAL" { // a marker is of one list
				e.fails("ListKeyRotations", obj("KeyId", m.KeyId, "Marker", got.NextMarker), kmsapi.InvalidMarker, "*")
			}
		}
		if fmt.Sprint(pages) != fmt.Sprint(want) {
			t.Errorf("%s in pages:\n got %+v\nwant %+v", include, pages, want)
		}
	}
	e.fails("ListKeyRotations", obj("KeyId", m.KeyId, "IncludeKeyMaterial", "ALL"), kmsapi.Validation, "*")
	e.fails("ListKeyRotations", obj("KeyId", m.KeyId, "Limit", 1001), kmsapi.Validation, "*")
}

// Rotation is for symmetric encryption keys of the default key store, and EXTERNAL ones on demand.
func TestRotationOfOtherKeys(t *testing.T) {
	e := newEnv(t)
	for _, body := range []string{obj("KeySpec", "RSA_2048", "KeyUsage", "SIGN_VERIFY"), obj("KeySpec", "HMAC_256", "KeyUsage", "GENERATE_VERIFY_MAC")} {
		m := e.create(body)
		for _, disabled := range []bool{false, true} {
			if disabled { // the kind of key is looked at before its state
				e.ok("DisableKey", obj("KeyId", m.KeyId), nil)
			}
			for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "ListKeyRotations"} {
				e.fails(op, obj("KeyId", m.KeyId), kmsapi.UnsupportedOperation, "")
			}
			if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
				t.Errorf("%+v", got)
			}
		}
	}
	m := e.create("{}")
	e.edit(m.KeyId, func(k *store.Key) { k.Origin = "EXTERNAL" })
	for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation"} {
		e.fails(op, obj("KeyId", m.KeyId), kmsapi.UnsupportedOperation, m.Arn+" origin is EXTERNAL which is not valid for this operation.")
	}
	if got := e.status(m.KeyId); got != (rotationStatus{KeyId: m.Arn}) {
		t.Errorf("%+v", got)
	}
	e.fails("RotateKeyOnDemand", obj("KeyId", m.KeyId), kmsapi.KMSInvalidState, "No available key material pending rotation for the key: "+m.Arn+".")
	for _, m := range []wire{e.createIn(e.connected(store.CloudHSM)), e.createIn(e.connected(store.ExternalKeyStore))} {
		for _, op := range []string{"EnableKeyRotation", "DisableKeyRotation", "RotateKeyOnDemand", "ListKeyRotations", "GetKeyRotationStatus"} {
			e.fails(op, obj("KeyId", m.KeyId), kmsapi.UnsupportedOperation, m.Arn+" origin is "+m.Origin+" which is not valid for this operation.")
		}
	}
}

// edit changes a key's record behind the server's back.
func (e *env) edit(key string, change func(*store.Key)) {
	e.Helper()
	k, err := e.store.UpdateKey(e.Context(), e.name(key), func(k *store.Key) error {
		change(k)
		return nil
	})
	if err != nil {
		e.Fatal(err)
	}
	k.Wipe()
}

// A rotation on demand of imported material goes to the material that waits, and nowhere if that is gone meanwhile.
func TestRotationOfImportedMaterial(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-3")
	m := e.create("{}")
	expires := e.clock.now().Add(100 * day)
	wait := func() (id string) {
		t.Helper()
		e.edit(m.KeyId, func(k *store.Key) {
			k.Origin = "EXTERNAL"
			k.Versions[0].Import = &store.Import{Imported: e.clock.now(), Description: "first"}
			v := store.Version{Created: e.clock.now(), Import: &store.Import{Imported: e.clock.now(), Expires: expires}}
			v.Number = k.Versions[len(k.Versions)-1].Number + 1
			if err := e.drawVersion(k, &v); err != nil {
				t.Fatal(err)
			}
			k.Versions = append(k.Versions, v)
			id = string(v.MaterialID[:])
		})
		return id
	}
	id := wait()
	all := e.rotations(m.KeyId, "IncludeKeyMaterial", "ALL_KEY_MATERIAL")
	want := []rotationEntry{
		{KeyId: m.Arn, KeyMaterialId: m.CurrentKeyMaterialId, KeyMaterialDescription: "first", ImportState: "IMPORTED", KeyMaterialState: "CURRENT", ExpirationModel: "KEY_MATERIAL_DOES_NOT_EXPIRE"},
		{KeyId: m.Arn, KeyMaterialId: id, ImportState: "IMPORTED", KeyMaterialState: "PENDING_ROTATION", ExpirationModel: "KEY_MATERIAL_EXPIRES", ValidTo: seconds(expires)},
	}
	if fmt.Sprint(all.Rotations) != fmt.Sprint(want) {
		t.Errorf("\n got %+v\nwant %+v", all.Rotations, want)
	}
	if got := e.rotations(m.KeyId); len(got.Rotations) != 0 {
		t.Errorf("%+v", got)
	}
	e.work() // nobody asked
	if got := e.describe(m.KeyId).CurrentKeyMaterialId; got != m.CurrentKeyMaterialId {
		t.Error("rotated unasked")
	}
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &map[string]any{})
	e.work()
	if got := e.describe(m.KeyId).CurrentKeyMaterialId; got != id {
		t.Errorf("rotated to %s, want %s", got, id)
	}
	if got := e.rotations(m.KeyId); len(got.Rotations) != 1 || got.Rotations[0].KeyMaterialId != id || got.Rotations[0].RotationType != "ON_DEMAND" {
		t.Errorf("%+v", got)
	}
	wait()
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &map[string]any{})
	e.edit(m.KeyId, func(k *store.Key) { k.Versions = k.Versions[:2] })
	e.work()
	if got := e.describe(m.KeyId).CurrentKeyMaterialId; got != id {
		t.Errorf("rotated to %s, want %s", got, id)
	}
	if got := e.status(m.KeyId); got.OnDemandRotationStartDate != 0 {
		t.Errorf("the rotation is still pending: %+v", got)
	}
}

// A rotation is recorded first: without a record there is none, and the next turn tries again.
func TestRotationIsRecordedFirst(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-4")
	m := e.create("{}")
	e.ok("EnableKeyRotation", obj("KeyId", m.KeyId), nil)
	e.clock.add(365 * day)
	e.trail.take()
	e.trail.refuse(errSink)
	if err := e.Work(t.Context()); !errors.Is(err, errSink) {
		t.Fatalf("rotating without a record: %v", err)
	}
	e.trail.refuse(nil)
	if got := e.describe(m.KeyId).CurrentKeyMaterialId; got != m.CurrentKeyMaterialId {
		t.Fatal("rotated without a record")
	}
	// Nor without material. Other work goes on.
	due := e.create("{}")
	e.ok("ScheduleKeyDeletion", obj("KeyId", due.KeyId, "PendingWindowInDays", 7), &map[string]any{})
	e.work()
	random := e.random
	e.clock.add(8 * day)
	e.edit(m.KeyId, func(k *store.Key) { k.Rotation.Next = e.clock.now() })
	e.random = func([]byte) error { return errors.New("CKR_DEVICE_ERROR") }
	if err := e.Work(t.Context()); !errors.Is(err, errNoRandom) {
		t.Fatalf("rotating without an HSM: %v", err)
	}
	e.fails("DescribeKey", obj("KeyId", due.KeyId), kmsapi.NotFound, "*")
	e.random = random
	e.work()
	if got := e.rotations(m.KeyId); len(got.Rotations) != 2 {
		t.Errorf("%+v", got)
	}
}

// A multi-Region key for which the HSM makes no key keeps no derived key from its rotation.
func TestRotationWithoutNewKeys(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-6")
	resident := []wire{e.create(obj("MultiRegion", true)), e.create(obj("MultiRegion", true))}
	derived := e.create("{}")
	for _, m := range append(resident, derived) { // the derived one is the last that is due
		e.clock.add(time.Second)
		e.ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), nil)
	}
	e.clock.add(90 * day)
	keys, asked := e.keys, 0
	e.keys = fakeKeys{make: func(keyspec.Spec) (*snapshot.PrivateKey, error) {
		asked++
		return nil, errors.New("CKR_DEVICE_MEMORY")
	}}
	if err := e.Work(t.Context()); !errors.Is(err, errNoKeys) {
		t.Fatalf("rotating without a new key: %v", err)
	}
	if got := e.rotations(derived.KeyId); len(got.Rotations) != 1 {
		t.Errorf("the derived key: %+v", got)
	}
	if asked != 1 {
		t.Errorf("the HSM was asked %d times in one turn", asked)
	}
	e.keys = keys
	e.work()
	for _, m := range resident {
		if got := e.rotations(m.KeyId); len(got.Rotations) != 1 {
			t.Errorf("a multi-Region key when the HSM is well: %+v", got)
		}
	}
}

// Run does at once what is asked for, whoever owns the work.
func TestRotationAtOnce(t *testing.T) {
	e := newEnvIn(t, shared, "eu-rot-5")
	_, release, err := shared.Own(t.Context(), e.region)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	m := e.create("{}")
	e.ok("RotateKeyOnDemand", obj("KeyId", m.KeyId), &map[string]any{})
	deadline := time.Now().Add(30 * time.Second)
	for e.describe(m.KeyId).CurrentKeyMaterialId == m.CurrentKeyMaterialId {
		if time.Now().After(deadline) {
			t.Fatal("the key was not rotated")
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}
