package controlplane

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// fakeWorld is a world of n Regions of one store, whose key material is fakeKeys'.
func fakeWorld(t *testing.T, n int) *world {
	t.Helper()
	return newWorld(t, slices.Repeat([]*store.Store{shared}, n), make([]*softHSM, n))
}

// materials is what ListKeyRotations says of a key's material: state, and of what is not there that it is to be imported.
func (e *env) materials(keyID string) string {
	e.Helper()
	var out struct {
		Rotations []struct {
			KeyId, KeyMaterialId, KeyMaterialDescription, ImportState, KeyMaterialState, ExpirationModel, RotationType string
			ValidTo, RotationDate                                                                                      float64
		}
		Truncated bool
	}
	e.ok("ListKeyRotations", obj("KeyId", keyID, "IncludeKeyMaterial", allKeyMaterial), &out)
	text := ""
	for _, r := range out.Rotations {
		if text += " " + r.KeyMaterialState; r.ImportState != "IMPORTED" {
			text += " " + r.ImportState
		}
	}
	return text
}

// material fails unless ListKeyRotations says this of the key in every Region.
func (w *world) material(keyID, want string) {
	w.Helper()
	for _, e := range w.regions {
		if got := e.materials(keyID); got != want {
			w.Errorf("%s: the material is%s, want%s", e.region, got, want)
		}
	}
}

// rotated has the primary rotate what was asked for, and the others follow.
func (w *world) rotated(primary *env) {
	w.Helper()
	if err := primary.rotateDue(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.settle()
}

const (
	pendingEverywhere = " CURRENT PENDING_MULTI_REGION_IMPORT_AND_ROTATION"
	pendingRotation   = " CURRENT PENDING_ROTATION"
)

// Imported material of related keys: each Region imports the same, new material at the primary first, and only what all have is rotated to.
func TestImportEverywhere(t *testing.T) {
	w := fakeWorld(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	key := a.external(obj("MultiRegion", true))
	id := key.KeyId
	a.fails("ReplicateKey", obj("KeyId", id, "ReplicaRegion", b.region), kmsapi.KMSInvalidState, key.Arn+" is pending import.")
	one := a.put(id, "one")
	for _, e := range []*env{b, c} {
		a.replicateTo(id, e.region)
		w.settle()
		there := e.keyARN(e.name(id))
		e.has(id, "PendingImport current 1, 1 missing")
		e.putFails(id, "other", kmsapi.IncorrectKeyMaterial, otherMaterial)
		e.putFails(id, "one", kmsapi.UnsupportedOperation, there+" is not a multi-region primary key.", "ImportType", newMaterial)
		if got := e.put(id, "one"); got != one {
			t.Errorf("%s: imported %s, want %s", e.region, got, one)
		}
		e.has(id, "Enabled current 1, 1")
	}
	refused := func() {
		t.Helper()
		a.fails("RotateKeyOnDemand", obj("KeyId", id), kmsapi.KMSInvalidState, "No available key material pending rotation for the key: "+key.Arn+".")
	}
	refused()

	two := a.put(id, "two", "ImportType", newMaterial, "KeyMaterialDescription", "2nd")
	if got := a.materials(id); got != pendingEverywhere {
		t.Errorf("before the others know: %s", got)
	}
	refused()
	w.settle()
	a.has(id, "Enabled current 1, 1, 2 2nd")
	b.has(id, "Enabled current 1, 1, 2 missing 2nd")
	c.has(id, "Enabled current 1, 1, 2 missing 2nd")
	if got := b.materials(id); got != pendingEverywhere+" PENDING_IMPORT" {
		t.Errorf("at a replica:%s", got)
	}
	refused()
	b.putFails(id, "three", kmsapi.IncorrectKeyMaterial, otherMaterial)
	b.putFails(id, "three", kmsapi.IncorrectKeyMaterial, otherMaterial, "ImportType", existingMaterial, "KeyMaterialId", two)
	b.putFails(id, "one", kmsapi.IncorrectKeyMaterial, otherMaterial, "KeyMaterialId", two)
	if got := b.put(id, "two"); got != two {
		t.Errorf("imported %s, want %s", got, two)
	}
	b.has(id, "Enabled current 1, 1, 2 2nd")
	if got := a.materials(id); got != pendingEverywhere {
		t.Errorf("while one lacks it:%s", got)
	}
	refused()
	c.put(id, "two", "KeyMaterialDescription", "mine") // a replica has the primary's
	c.has(id, "Enabled current 1, 1, 2 2nd")
	w.material(id, pendingRotation)
	b.fails("RotateKeyOnDemand", obj("KeyId", id), kmsapi.UnsupportedOperation, "*")

	// Whoever does not answer may have lost it.
	w.away[c.region] = true
	if got := a.materials(id); got != pendingEverywhere {
		t.Errorf("while one is away:%s", got)
	}
	refused()
	w.away[c.region] = false
	w.connect(a)
	c.deleteMaterial(id, "KeyMaterialId", two)
	c.has(id, "Enabled current 1, 1, 2 missing 2nd")
	refused()
	c.put(id, "two")

	a.put(id, "two", "KeyMaterialDescription", "second")
	w.settle()
	for _, e := range w.regions {
		e.has(id, "Enabled current 1, 1, 2 second")
	}
	a.ok("RotateKeyOnDemand", obj("KeyId", id), new(rotateKeyOnDemandOut))
	w.settle()
	w.rotated(a)
	w.material(id, " NON_CURRENT CURRENT")
	for _, e := range w.regions {
		e.has(id, "Enabled current 2, 1, 2 second")
	}
	w.agree(id)

	// What waits is the primary's to give up, and gone everywhere then.
	a.put(id, "three", "ImportType", newMaterial)
	w.settle()
	three := b.put(id, "three")
	a.deleteMaterial(id, "KeyMaterialId", three)
	w.settle()
	for _, e := range w.regions {
		e.has(id, "Enabled current 2, 1, 2 second")
	}
	c.putFails(id, "three", kmsapi.IncorrectKeyMaterial, otherMaterial)

	// A replica that loses it after everything was there is pending import when the primary has rotated.
	four := a.put(id, "four", "ImportType", newMaterial)
	w.settle()
	b.put(id, "four")
	c.put(id, "four", c.in(100)...)
	a.ok("RotateKeyOnDemand", obj("KeyId", id), new(rotateKeyOnDemandOut))
	w.settle()
	b.deleteMaterial(id, "KeyMaterialId", four)
	for range 2 {
		c.expires()
		c.clock.add(100 * time.Second)
	}
	c.expires()
	w.rotated(a)
	a.has(id, "Enabled current 3, 1, 2 second, 3")
	for _, e := range []*env{b, c} {
		e.has(id, "PendingImport current 3, 1, 2 second, 3 missing")
		e.put(id, "four")
		e.has(id, "Enabled current 3, 1, 2 second, 3")
	}
	w.agree(id)
}

// A replica that lacks what waits can become the primary. There is nothing to rotate to there until it is imported, or given up.
func TestImportAtNewPrimary(t *testing.T) {
	w := fakeWorld(t, 2)
	a, b := w.regions[0], w.regions[1]
	key := a.external(obj("MultiRegion", true), "one")
	id := key.KeyId
	a.replicateTo(id, b.region)
	w.settle()
	b.put(id, "one")
	two := a.put(id, "two", "ImportType", newMaterial)
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	w.settle()
	b.has(id, "Enabled current 1, 1, 2 missing")
	there := b.keyARN(b.name(id))
	refused := func() {
		t.Helper()
		b.fails("RotateKeyOnDemand", obj("KeyId", id), kmsapi.KMSInvalidState, "No available key material pending rotation for the key: "+there+".")
	}
	refused()
	b.put(id, "two")
	w.material(id, pendingRotation)
	b.deleteMaterial(id, "KeyMaterialId", two)
	w.settle()
	refused()
	for _, e := range w.regions {
		e.has(id, "Enabled current 1, 1")
	}
}

// The one material of other keys is the same in every Region too.
func TestImportPrivateEverywhere(t *testing.T) {
	w := fakeWorld(t, 2)
	a, b := w.regions[0], w.regions[1]
	for spec, usage := range map[string]string{"HMAC_256": "GENERATE_VERIFY_MAC", "ECC_NIST_P256": "SIGN_VERIFY"} {
		key := a.external(obj("MultiRegion", true, "KeySpec", spec, "KeyUsage", usage), "one")
		id := key.KeyId
		a.replicateTo(id, b.region)
		w.settle()
		if d := b.describe(id); d.KeyState != "PendingImport" {
			t.Errorf("%s: the replica is %s", spec, d.KeyState)
		}
		b.putFails(id, "other", kmsapi.IncorrectKeyMaterial, otherMaterial)
		b.put(id, "one")
		// Deleted there it is deleted there alone.
		a.deleteMaterial(id)
		w.settle()
		if got := fmt.Sprint(a.describe(id).KeyState, b.describe(id).KeyState); got != "PendingImportEnabled" {
			t.Errorf("%s: %s", spec, got)
		}
		a.putFails(id, "other", kmsapi.IncorrectKeyMaterial, otherMaterial)
		a.put(id, "one")
		w.settle()
		if got := fmt.Sprint(a.describe(id).KeyState, b.describe(id).KeyState); got != "EnabledEnabled" {
			t.Errorf("%s: %s", spec, got)
		}
	}
}
