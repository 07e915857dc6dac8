package controlplane

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// claims is what a peer says that is not the key's primary, and would be: a version of its own that encrypts.
func (w *world) claims(by *env, key *store.Key, epoch uint64, replicas ...string) replication.Message {
	w.Helper()
	p, err := by.keys.New(keyspec.AES256)
	if err != nil {
		w.Fatal(err)
	}
	images, err := by.keys.Images(keyspec.AES256, p)
	if err != nil {
		w.Fatal(err)
	}
	id := snapshot.ResidentMaterialID(key.Account, key.ID, images)
	return replication.Message{
		Kind: replication.Sync, Root: hex.EncodeToString(p.Root[:]), Material: []replication.Material{{ID: string(id[:]), Copied: true, Wrapped: p.Wrapped}},
		Shared: &replication.Shared{
			Spec: key.Spec, Usage: key.Usage, Origin: key.Origin, Primary: by.region, Replicas: replicas, Epoch: epoch, Revision: 1, Current: 2,
			Versions: []replication.Version{{Number: 1, MaterialID: string(key.Versions[0].MaterialID[:]), Created: 1}, {Number: 2, MaterialID: string(id[:]), Created: 1}},
		},
	}
}

// TestPeerTakesNoPrimary: a peer with a good signature becomes the primary of no key that was not handed over to it, whatever epoch it names, whether it has
// a replica, and while the primary changes.
func TestPeerTakesNoPrimary(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	key := w.key(a, id)
	refused := func(what string, m replication.Message, by, to *env) {
		t.Helper()
		before := summary(w.key(to, id))
		if answer, err := by.Server.ask(t.Context(), to.region, key.KeyName, m); refusal(err) == nil {
			t.Errorf("%s: %+v %v", what, answer, err)
		}
		if after := summary(w.key(to, id)); after != before {
			t.Errorf("%s: %s became %s", what, before, after)
		}
	}
	for _, epoch := range []uint64{1, 2, 3, 1 << 63} {
		refused("without a replica", w.claims(c, key, epoch, b.region), c, b)
		refused("of the primary", w.claims(c, key, epoch, a.region), c, a)
		refused("with a replica", w.claims(b, key, epoch, a.region), b, a)
	}
	own, err := c.Server.endpoint.Handover(key.Account.String(), key.ID.String(), replication.Step{To: c.region, Epoch: 1, Revision: 1})
	if err != nil {
		t.Fatal(err)
	}
	m := w.claims(c, key, 2, b.region)
	m.Shared.Handovers = [][]byte{own}
	refused("with a proof of its own", m, c, b)

	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	w.away[b.region] = true
	for range 3 {
		_ = w.turn(a)
		w.connect(a)
	}
	if !w.key(a, id).MultiRegion.Frozen {
		t.Fatal("the primary is not frozen")
	}
	for _, epoch := range []uint64{2, 3} {
		refused("of a frozen primary", w.claims(c, key, epoch, a.region), c, a)
	}
	w.away[b.region] = false
	w.settle()
	if p := w.agree(id); p != b {
		t.Errorf("the primary is %s", p.region)
	}
}

// TestPrimaryTakenBack: the proof of a change that was taken back proves nothing.
func TestPrimaryTakenBack(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	a.replicateTo(id, c.region)
	w.settle()
	key := w.key(a, id)
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	b.ok("DisableKey", obj("KeyId", id), nil)
	b.ok("ScheduleKeyDeletion", obj("KeyId", id, "PendingWindowInDays", 7), new(map[string]any)) // it refuses
	w.settle()
	if p := w.agree(id); p != a || w.key(c, id).MultiRegion.Void == 0 {
		t.Fatalf("primary %s, %+v", p.region, w.key(c, id).MultiRegion)
	}
	at := store.Moment{Epoch: 1, Revision: w.key(c, id).MultiRegion.Void}
	proof, err := a.Server.endpoint.Handover(key.Account.String(), key.ID.String(), replication.Step{To: b.region, Epoch: at.Epoch, Revision: at.Revision})
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []*env{a, c} {
		m := w.claims(b, key, 2, withRegion([]string{a.region}, c.region)...)
		m.Shared.Handovers = [][]byte{proof}
		if answer, err := b.Server.ask(t.Context(), to.region, key.KeyName, m); refusal(err) == nil {
			t.Errorf("%s: %+v %v", to.region, answer, err)
		}
	}
}

// TestHandoverChain: a replica that was away while the primary changed twice believes the last one, which it does not know of.
func TestHandoverChain(t *testing.T) {
	w := oneToken(t, 4)
	a, b, c, d := w.regions[0], w.regions[1], w.regions[2], w.regions[3]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	a.replicateTo(id, c.region)
	w.settle()
	work := func() {
		for range 6 {
			for _, e := range []*env{a, b, d} {
				w.connect(e)
				_ = w.turn(e)
			}
		}
	}
	w.away[c.region] = true
	a.replicateTo(id, d.region)
	work()
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	work()
	b.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", d.region), nil)
	work()
	w.away[c.region] = false
	w.settle()
	if p := w.agree(id); p != d {
		t.Errorf("the primary is %s", p.region)
	}
	if k := w.key(c, id); k.MultiRegion.Epoch != 3 {
		t.Errorf("the replica is at %+v", k.MultiRegion)
	}
}

// TestPrimaryRestored: a Region that is put back to before it handed the primary over becomes a replica again.
func TestPrimaryRestored(t *testing.T) {
	w := twoTokens(t)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	restore := func(to *store.Key) {
		t.Helper()
		if _, err := a.store.UpdateKey(t.Context(), a.name(id), func(k *store.Key) error {
			r := *to.MultiRegion
			k.MultiRegion, k.State, k.Resume = &r, to.State, to.Resume
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	backup := w.key(a, id)
	a.ok("UpdatePrimaryRegion", obj("KeyId", id, "PrimaryRegion", b.region), nil)
	w.settle()
	restore(backup)
	// Both take themselves for the primary now. What the restored one has to tell lets the other one tell it.
	if _, err := a.store.UpdateKey(t.Context(), a.name(id), func(k *store.Key) error {
		k.Rotation = store.Rotation{Enabled: true, Period: 90, Next: a.clock.now().AddDate(0, 0, 90)}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if p := w.agree(id); p != b {
		t.Errorf("the primary is %s", p.region)
	}
}

// TestPrimaryForgets: a primary that is put back to an earlier revision of its own epoch counts on from what its replicas have.
func TestPrimaryForgets(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	schedule := func(days int32) {
		t.Helper()
		if _, err := a.store.UpdateKey(t.Context(), a.name(id), func(k *store.Key) error {
			k.Rotation = store.Rotation{Enabled: true, Period: days, Next: a.clock.now().AddDate(0, 0, int(days))}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	backup := w.key(a, id)
	schedule(90)
	schedule(91)
	w.settle()
	if _, err := a.store.UpdateKey(t.Context(), a.name(id), func(k *store.Key) error {
		k.MultiRegion, k.Rotation = backup.MultiRegion, backup.Rotation
		r := *backup.MultiRegion
		k.MultiRegion = &r
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	schedule(100)
	w.settle()
	if p := w.agree(id); p != a || w.key(b, id).Rotation.Period != 100 {
		t.Errorf("primary %s, rotation %+v", p.region, w.key(b, id).Rotation)
	}
}

// TestWrapOnlyWhatIsReplicated: no answer of a peer has imported material exported, or a private key under another name.
func TestWrapOnlyWhatIsReplicated(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	k := w.key(a, id)
	material := string(k.Versions[0].MaterialID[:])
	answer := func(k *store.Key, id string) *replication.Answer {
		root := b.Server.root()
		proof, err := b.Server.sealer.Seal(root[:], b.Server.rootBinding(k.KeyName, b.region, k.MultiRegion.At()))
		if err != nil {
			t.Fatal(err)
		}
		return &replication.Answer{Need: []string{id}, Token: proof}
	}
	if list, err := a.Server.wrap(k, b.region, answer(k, material)); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	k.Origin = "EXTERNAL" // imported material is kept the same way
	if list, err := a.Server.wrap(k, b.region, answer(k, material)); err == nil {
		t.Errorf("imported material goes over: %d", len(list))
	}
	private := w.key(a, a.create(obj("MultiRegion", true, "KeySpec", "ECC_NIST_P256", "KeyUsage", "SIGN_VERIFY")).KeyId)
	if list, err := a.Server.wrap(private, b.region, answer(private, "")); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if list, err := a.Server.wrap(private, b.region, answer(private, material)); err == nil {
		t.Errorf("a private key goes over by another name: %d", len(list))
	}
}

// TestCopyNeedsRoot: wrapped keys go to no Region that asks for copies without a proof that it has their root: its own, for this key, at this moment.
func TestCopyNeedsRoot(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	k := w.key(a, id)
	root, at := a.Server.root(), k.MultiRegion.At()
	proof := func(by store.Sealer, root []byte, region string, at store.Moment) []byte {
		b, err := by.Seal(root, a.Server.rootBinding(k.KeyName, region, at))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := b.Server.sealer
	for what, token := range map[string][]byte{
		"none":            nil,
		"of another root": proof(storetest.NewSealer(), root[:], b.region, at),
		"by another name": proof(good, make([]byte, 8), b.region, at),
		"of another peer": proof(good, root[:], c.region, at),
		"of another time": proof(good, root[:], b.region, store.Moment{Epoch: at.Epoch, Revision: at.Revision + 1}),
		"of another sort": func() []byte { b, _ := good.Seal(root[:], b.Server.tokenBinding(k.KeyName)); return b }(),
	} {
		if list, err := a.Server.wrap(k, b.region, &replication.Answer{Need: []string{string(k.Versions[0].MaterialID[:])}, Token: token}); err == nil {
			t.Errorf("%s: %d keys go over", what, len(list))
		}
	}
}

// TestStateForStrangers: a peer that has no replica of a key hears that there is one, and nothing else; a replica's Region no more than what is shared.
func TestStateForStrangers(t *testing.T) {
	w := oneToken(t, 3)
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	id := a.create(obj("MultiRegion", true)).KeyId
	a.replicateTo(id, b.region)
	w.settle()
	n := a.name(id)
	for _, at := range []*env{a, b} {
		answer, err := c.Server.ask(t.Context(), at.region, n, replication.Message{Kind: replication.State})
		if err != nil || !answer.Exists || answer.State != "" || answer.Primary != "" || answer.Epoch != 0 || answer.Policy != nil || answer.Bound != nil {
			t.Errorf("%s: %+v %v", at.region, answer, err)
		}
	}
	answer, err := b.Server.ask(t.Context(), a.region, n, replication.Message{Kind: replication.State})
	if err != nil || answer.Primary != a.region || answer.Policy != nil || answer.Bound != nil {
		t.Errorf("to the replica: %+v %v", answer, err)
	}
	if answer, err = a.Server.ask(t.Context(), b.region, n, replication.Message{Kind: replication.State}); err != nil || len(answer.Policy) == 0 {
		t.Errorf("to the primary: %+v %v", answer, err)
	}
}

// TestReplicaOfNobody: a peer makes no replicas in accounts that are not here, and none with longer texts than a client could give them.
func TestReplicaOfNobody(t *testing.T) {
	w := oneToken(t, 2)
	a, b := w.regions[0], w.regions[1]
	ask := func(n store.KeyName, description string, caller *replication.Caller) error {
		_, err := a.Server.ask(t.Context(), b.region, n, replication.Message{
			Kind: replication.Create, Caller: caller,
			Shared: &replication.Shared{
				Spec: kmsapi.SymmetricDefault, Usage: "ENCRYPT_DECRYPT", Origin: originKMS, Primary: a.region, Replicas: []string{b.region}, Epoch: 1, Revision: 1,
			},
			Creation: &replication.Creation{Epoch: 1, Revision: 1, Description: description, Policy: []byte(defaultPolicy(a.partition, n.Account))},
		})
		return err
	}
	n := store.KeyName{Region: b.region, Account: a.account, ID: keyid.NewID([16]byte{9, 9}, true)}
	stranger := n
	stranger.Account = 987654321098
	if e := refusal(ask(stranger, "", nil)); e == nil || e.Code != kmsapi.NotFound {
		t.Errorf("in an account that is not here: %v", e)
	}
	if e := refusal(ask(n, strings.Repeat("x", kmsapi.DescriptionMax+1), nil)); e == nil || e.Code != kmsapi.Validation {
		t.Errorf("with a long description: %v", e)
	}
	if e := refusal(ask(n, "", &replication.Caller{ARN: strings.Repeat("x", callerPartMax+1)})); e == nil || e.Code != kmsapi.Validation {
		t.Errorf("of a caller with a long name: %v", e)
	}
	if err := ask(n, "", nil); err != nil {
		t.Errorf("a good one: %v", err)
	}
}
