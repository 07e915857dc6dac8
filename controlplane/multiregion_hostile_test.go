package controlplane

import (
	"encoding/hex"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// A peer that has no related key does not become the primary by saying so, with material of its own, and is not told what the key's policy is.
func TestPeerTakesNoKey(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	key := a.create(obj("MultiRegion", true))
	a.replicateTo(key.KeyId, b.region)
	w.settle()
	n := a.name(key.KeyId)
	if out, err := c.ask(t.Context(), b.region, n, replication.Message{Kind: replication.State}); err != nil || !out.Exists || out.Policy != nil || out.Bound != nil {
		t.Errorf("told %+v, %v", out, err)
	}
	p, err := c.keys.New(keyspec.AES256)
	if err != nil {
		t.Fatal(err)
	}
	images, err := c.keys.Images(keyspec.AES256, p)
	if err != nil {
		t.Fatal(err)
	}
	id := snapshot.ResidentMaterialID(n.Account, n.ID, images)
	take := func(to *env, epoch uint64) {
		t.Helper()
		shared := &replication.Shared{
			Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Primary: c.region, Replicas: []string{to.region}, Epoch: epoch, Revision: 1, Current: 2,
			Versions: []replication.Version{{Number: 1, MaterialID: key.CurrentKeyMaterialId, Created: 1}, {Number: 2, MaterialID: string(id[:]), Created: 1}},
		}
		out, err := c.ask(t.Context(), to.region, n, replication.Message{
			Kind: replication.Sync, Shared: shared, Root: hex.EncodeToString(p.Root[:]), Material: []replication.Material{{ID: string(id[:]), Copied: true, Wrapped: p.Wrapped}},
		})
		if err == nil {
			t.Errorf("%s, epoch %d: answered with %+v", to.region, epoch, out)
		}
		if k := w.key(to, key.KeyId); k.MultiRegion.Primary != a.region || k.Current != 1 {
			t.Errorf("%s, epoch %d: the primary is in %s", to.region, epoch, k.MultiRegion.Primary)
		}
	}
	for epoch := uint64(2); epoch < 5; epoch++ {
		take(b, epoch)
	}
	w.away[a.region] = true
	take(b, 2)
	w.away[a.region] = false
	w.connect(b)

	// Nor while the primary has frozen what is shared for another Region.
	a.ok("UpdatePrimaryRegion", obj("KeyId", key.KeyId, "PrimaryRegion", b.region), nil)
	w.away[b.region] = true
	for range 3 {
		_ = w.turn(a)
		w.connect(a)
	}
	if !w.key(a, key.KeyId).MultiRegion.Frozen {
		t.Fatal("the primary is not frozen")
	}
	a.fails("EnableKeyRotation", obj("KeyId", key.KeyId), kmsapi.KMSInvalidState, "*")
	for epoch := uint64(2); epoch < 5; epoch++ {
		take(a, epoch)
	}
	w.away[b.region] = false
	w.settle()
	if got := w.agree(key.KeyId); got != b {
		t.Errorf("the primary is in %s", got.region)
	}
}

// The Region that is to become the primary has its replica deleted while the old primary is frozen: that one goes on.
func TestPromotedReplicaIsGone(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	w.away[b.region] = true
	for range 3 {
		_ = w.turn(a)
		w.connect(a)
	}
	b.schedule(id, 7)
	for range 2 {
		if err := b.deleteDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.clock.add(7*day + time.Minute)
	}
	if err := b.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.away[b.region] = false
	w.settle()
	if k := w.key(a, id); k.State != kmsapi.StateEnabled || !k.IsPrimary() || k.MultiRegion.Frozen || k.MultiRegion.Promoting != "" || len(k.MultiRegion.Replicas) > 0 {
		t.Errorf("the primary is %s, %+v", k.State, k.MultiRegion)
	}
	a.ok("DisableKey", obj("KeyId", id), nil)
}

// Who may use the key in both Regions, and by conditions in which Region, decides about another primary; who may not changes nothing.
func TestUpdatePrimaryRegionPermissions(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	key := a.create(obj("MultiRegion", true))
	id := key.KeyId
	a.replicateTo(id, b.region)
	w.settle()
	statement := func(effect, condition string) string {
		return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + a.account.String() + `:root"},"Action":"kms:*","Resource":"*"},` +
			`{"Effect":"` + effect + `","Principal":"*","Action":"kms:UpdatePrimaryRegion","Resource":"*"` + condition + `}]}`
	}
	body := obj("KeyId", id, "PrimaryRegion", b.region)
	for _, e := range []*env{a, b} {
		for what, document := range map[string]string{
			"denied":                   statement("Deny", ""),
			"denied for this Region":   statement("Deny", `,"Condition":{"StringEquals":{"kms:PrimaryRegion":"`+b.region+`"}}`),
			"denied for other Regions": statement("Deny", `,"Condition":{"StringNotEquals":{"kms:PrimaryRegion":"`+a.region+`"}}`),
		} {
			e.ok("PutKeyPolicy", obj("KeyId", id, "Policy", document), nil)
			before := w.key(a, id)
			if resp := a.call("UpdatePrimaryRegion", body); resp.Code != kmsapi.AccessDenied {
				t.Errorf("%s in %s: %s", what, e.region, resp.Body)
			}
			if after := w.key(a, id); after.Revision != before.Revision {
				t.Errorf("%s in %s: the record has changed", what, e.region)
			}
		}
		e.ok("PutKeyPolicy", obj("KeyId", id, "Policy", statement("Deny", `,"Condition":{"StringEquals":{"kms:PrimaryRegion":"`+a.region+`"}}`)), nil)
	}
	a.trail.take()
	b.trail.take()
	a.ok("UpdatePrimaryRegion", body, nil)
	w.settle()
	if got := w.agree(id); got != b {
		t.Errorf("the primary is in %s", got.region)
	}
	if got := names(a.trail.take()); got != "UpdatePrimaryRegion" {
		t.Errorf("recorded in the old Region: %s", got)
	}
	records := b.trail.take()
	if len(records) == 0 || records[0]["eventName"] != "UpdatePrimaryRegion" || records[0]["userIdentity"].(map[string]any)["invokedBy"] != "kms.amazonaws.com" {
		t.Errorf("recorded in the new Region: %v", records)
	}
}

// Schedule and cancel the deletion of a replica that is being made: it is Enabled, or Disabled, when its material is there, and can be used then.
func TestCreatingReplicaCancelled(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	b.schedule(id, 7)
	b.ok("CancelKeyDeletion", obj("KeyId", id), new(cancelKeyDeletionOut))
	w.settle()
	b.ok("EnableKey", obj("KeyId", id), nil)
	w.agree(id)
}

// Imported material does not cross, whatever a peer asks for.
func TestNothingElseIsWrapped(t *testing.T) {
	w := fakeWorld(t, 1)
	a := w.regions[0]
	key := a.external(obj("MultiRegion", true), "one")
	k := w.key(a, key.KeyId)
	if list, err := a.wrap(k, "", &replication.Answer{Need: []string{string(k.Versions[0].MaterialID[:])}}); err == nil {
		t.Errorf("wrapped %v", list)
	}
}
