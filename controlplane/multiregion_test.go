package controlplane

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

func specOf(k *store.Key) keyspec.Spec {
	if s := keyspec.Of(k.Spec); s != keyspec.None {
		return s
	}
	return keyspec.AES256
}

// secondHSM is another token than theHSM, with roots of its own.
var secondHSM = sync.OnceValues(newSoftHSM)

// oneToken is a world of n Regions of one process: one store, one token.
func oneToken(t *testing.T, n int) *world {
	t.Helper()
	h := (&env{TB: t, Server: &Server{}}).useHSM()
	return newWorld(t, slices.Repeat([]*store.Store{shared}, n), slices.Repeat([]*softHSM{h}, n))
}

// twoTokens is a world of two Regions with nothing in common.
func twoTokens(t *testing.T) *world {
	t.Helper()
	h := (&env{TB: t, Server: &Server{}}).useHSM()
	second, err := secondHSM()
	if err != nil {
		t.Fatal(err)
	}
	other, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: t.TempDir(), Logger: quiet, Sealer: storetest.NewSealer()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	return newWorld(t, []*store.Store{shared, other}, []*softHSM{h, second})
}

type replicateReply struct {
	ReplicaKeyMetadata wire
	ReplicaPolicy      string
	ReplicaTags        []tag
}

func (e *env) replicateTo(id, region string, more ...any) replicateReply {
	e.Helper()
	var out replicateReply
	e.ok("ReplicateKey", obj(append([]any{"KeyId", id, "ReplicaRegion", region}, more...)...), &out)
	return out
}

// TestReplicateKey: what the client sees of it, from CreateKey to an enabled replica.
func TestReplicateKey(t *testing.T) {
	w := oneToken(t, 3)
	a, b := w.regions[0], w.regions[1]
	key := a.create(obj("MultiRegion", true, "Description", "of a", "Tags", tags("k", "a")))
	if !strings.HasPrefix(key.KeyId, "mrk-") || !key.MultiRegion || key.CurrentKeyMaterialId == "" {
		t.Fatalf("created %+v", key)
	}
	want := relatedKeys{"PRIMARY", relatedKey{key.Arn, a.region}, []relatedKey{}}
	if fmt.Sprint(*key.MultiRegionConfiguration) != fmt.Sprint(want) {
		t.Errorf("created with %+v", key.MultiRegionConfiguration)
	}
	a.trail.take()
	b.trail.take()
	out := a.replicateTo(key.KeyId, b.region, "Description", "of b", "Tags", tags("k", "b"))
	there := strings.Replace(key.Arn, a.region, b.region, 1)
	want.ReplicaKeys = []relatedKey{{there, b.region}}
	asReplica := want
	asReplica.MultiRegionKeyType = "REPLICA"
	m := out.ReplicaKeyMetadata
	if m.Arn != there || m.KeyId != key.KeyId || m.KeyState != "Creating" || m.Description != "of b" || fmt.Sprint(*m.MultiRegionConfiguration) != fmt.Sprint(asReplica) ||
		fmt.Sprint(out.ReplicaTags) != "[{k b}]" || out.ReplicaPolicy != defaultPolicy(a.partition, a.account) {
		t.Errorf("replied %+v", out)
	}
	if got := names(a.trail.take()); got != "ReplicateKey" {
		t.Errorf("recorded in the primary's Region: %s", got)
	}
	records := b.trail.take()
	if got := names(records); got != "CreateKey" {
		t.Errorf("recorded in the replica's Region: %s", got)
	} else if by := records[0]["userIdentity"].(map[string]any); by["invokedBy"] != "kms.amazonaws.com" || !strings.HasSuffix(by["arn"].(string), ":user/administrator") {
		t.Errorf("recorded by %v", by)
	}
	if d := b.describe(key.KeyId); d.KeyState != "Creating" || d.CurrentKeyMaterialId != "" {
		t.Errorf("before the material: %+v", d)
	}
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", b.region), kmsapi.AlreadyExists, "A related key "+there+" already exists")
	w.settle()
	if got := names(a.trail.take()); !strings.Contains(got, "SynchronizeMultiRegionKey") {
		t.Errorf("recorded of the synchronization: %s", got)
	}
	d := b.describe(key.KeyId)
	if d.KeyState != "Enabled" || d.CurrentKeyMaterialId != key.CurrentKeyMaterialId || d.Description != "of b" || fmt.Sprint(*d.MultiRegionConfiguration) != fmt.Sprint(asReplica) {
		t.Errorf("the replica is %+v", d)
	}
	if d := a.describe(key.KeyId); fmt.Sprint(*d.MultiRegionConfiguration) != fmt.Sprint(want) {
		t.Errorf("the primary is %+v", d)
	}
	if p := w.agree(key.KeyId); p != a {
		t.Errorf("the primary is in %s", p.region)
	}

	b.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", w.regions[2].region), kmsapi.UnsupportedOperation, there+" is not a multi-region primary key.")
	single := a.create("{}")
	a.fails("ReplicateKey", obj("KeyId", single.KeyId, "ReplicaRegion", b.region), kmsapi.UnsupportedOperation, single.Arn+" is not a multi-region primary key.")
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", "us-moon-1"), kmsapi.UnsupportedOperation, "Region us-moon-1 is not one that this service replicates to.")
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", a.region), kmsapi.AlreadyExists, "*")
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", "moon"), kmsapi.Validation, "*")
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", w.regions[2].region, "Policy", "{}"), kmsapi.MalformedPolicyDocument, "*")
	w.away[w.regions[2].region] = true
	a.fails("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", w.regions[2].region), kmsapi.DependencyTimeout, "*")
	if k := w.key(a, key.KeyId); len(k.MultiRegion.Intents) > 0 {
		t.Error("a Region that is away left an intent behind")
	}
}

func names(records []map[string]any) string {
	var list []string
	for _, r := range records {
		list = append(list, r["eventName"].(string))
	}
	return strings.Join(list, " ")
}

// TestReplicateEverySpec: two Regions that have neither store nor token in common come to have the same material, of every spec that a token exports.
func TestReplicateEverySpec(t *testing.T) {
	w := twoTokens(t)
	a, b := w.regions[0], w.regions[1]
	for _, c := range []string{
		"SYMMETRIC_DEFAULT ENCRYPT_DECRYPT", "RSA_2048 SIGN_VERIFY", "ECC_NIST_P256 SIGN_VERIFY", "ECC_NIST_P521 KEY_AGREEMENT", "ECC_SECG_P256K1 SIGN_VERIFY",
		"ECC_NIST_EDWARDS25519 SIGN_VERIFY", "HMAC_224 GENERATE_VERIFY_MAC", "HMAC_512 GENERATE_VERIFY_MAC",
	} {
		spec, usage, _ := strings.Cut(c, " ")
		key := a.create(obj("MultiRegion", true, "KeySpec", spec, "KeyUsage", usage))
		a.replicateTo(key.KeyId, b.region)
		w.settle()
		if d := b.describe(key.KeyId); d.KeyState != "Enabled" {
			t.Errorf("%s: the replica is %s", c, d.KeyState)
			continue
		}
		w.agree(key.KeyId)
		ka, kb := w.key(a, key.KeyId), w.key(b, key.KeyId)
		if ka.Private == nil {
			continue
		}
		if ka.Private.Root == kb.Private.Root || bytes.Equal(ka.Private.Wrapped, kb.Private.Wrapped) {
			t.Errorf("%s: both have the same wrapped key", c)
		}
		if keyspec.Of(spec).Info().Family == keyspec.HMAC {
			x, err := a.keys.Images(keyspec.Of(spec), ka.Private)
			y, err2 := b.keys.Images(keyspec.Of(spec), kb.Private)
			if err != nil || err2 != nil || *x != *y {
				t.Errorf("%s: other keys: %v %v", c, err, err2)
			}
		}
	}
}

// TestMaterialOnTheWire: key material that the test knows is in nothing that goes from Region to Region.
func TestMaterialOnTheWire(t *testing.T) {
	w := twoTokens(t)
	a, b := w.regions[0], w.regions[1]
	key := a.create(obj("MultiRegion", true))
	known := bytes.Repeat([]byte("0123456789abcdef"), 2)
	wrapping, err := a.keys.New(keyspec.RSA3072)
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.keys.Import(keyspec.AES256, keyspec.RSA3072, wrapping, keyspec.WrapOAEP256, oaep(t, wrapping.Public, known))
	if err != nil {
		t.Fatal(err)
	}
	images, err := a.keys.Images(keyspec.AES256, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.store.UpdateKey(t.Context(), a.name(key.KeyId), func(k *store.Key) error {
		v := &k.Versions[0]
		v.Resident, v.Root, v.MaterialID = named(k, p), p.Root, snapshot.ResidentMaterialID(k.Account, k.ID, images)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	a.replicateTo(key.KeyId, b.region)
	w.settle()
	w.agree(key.KeyId)
	if len(w.bodies) < 8 {
		t.Fatalf("%d messages", len(w.bodies))
	}
	wrapped := false
	for _, body := range w.bodies {
		wrapped = wrapped || bytes.Contains(body, []byte(`"wrapping":"RSA_AES_KEY_WRAP`))
		for _, in := range appearances(body) {
			if bytes.Contains(in, known) || bytes.Contains(in, known[:16]) || bytes.Contains(in, []byte(hex.EncodeToString(known))) {
				t.Errorf("the key material is in a message: %.200q", body)
			}
		}
	}
	if !wrapped {
		t.Error("no message has wrapped material: the test looked at the wrong thing")
	}
}

// appearances is a message as it is, and every text in it decoded as base64.
func appearances(body []byte) [][]byte {
	list := [][]byte{body}
	for _, s := range bytes.Split(body, []byte{'"'}) {
		if b, err := base64.StdEncoding.DecodeString(string(s)); err == nil {
			list = append(list, b)
		}
	}
	return list
}

// rotate changes something that related keys share, as a rotation does: a version, and then that it encrypts.
func (w *world) rotate(e *env, id string) error {
	p, err := e.keys.New(keyspec.AES256)
	if err != nil {
		w.Fatal(err)
	}
	images, err := e.keys.Images(keyspec.AES256, p)
	if err != nil {
		w.Fatal(err)
	}
	_, err = e.store.UpdateKey(w.Context(), e.name(id), func(k *store.Key) error {
		if !k.IsPrimary() {
			return errMoved
		}
		v := store.Version{Created: e.clock.now()}
		v.Number = k.Versions[len(k.Versions)-1].Number + 1
		v.Resident, v.Root, v.MaterialID = named(k, p), p.Root, snapshot.ResidentMaterialID(k.Account, k.ID, images)
		k.Versions = append(k.Versions, v)
		k.Current, k.Versions[len(k.Versions)-1].Rotated = v.Number, e.clock.now()
		k.Rotation = store.Rotation{Enabled: true, Period: 90, Next: e.clock.now().Add(time.Duration(v.Number) * 24 * time.Hour)}
		return nil
	})
	return err
}

var faultStride = flag.Int("fault-stride", 4, "TestReplicationFaults tries each fault with every message whose number is a multiple of this away from the first; 1: with all")

// TestReplicationFaults runs one life of a key, over and over, each time with another fault of another message: replicas in two Regions, a new version, another
// primary, a new version there, a replica deleted. Whatever happened, the Regions agree in the end on one primary, and nothing that a client was told is lost.
func TestReplicationFaults(t *testing.T) {
	w := oneToken(t, 3)
	stride := *faultStride
	if testing.Short() {
		stride *= 5
	}
	for i, f := range []fault{lost, answerLost, twice, crashedBefore, crashedAfter, stale} {
		for at := i % stride; ; at += stride {
			before := w.sent
			w.clean(f, at)
			if w.life(t, f, at); w.sent-before <= at {
				break
			}
			if t.Failed() {
				t.Fatalf("with message %d %s", at, f)
			}
		}
	}
}

func (w *world) clean(f fault, at int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.sent
	w.old, w.oldTo, w.bodies = nil, nil, nil
	w.fault = func(n int) fault {
		if n-first == at {
			return f
		}
		return delivered
	}
}

func (w *world) life(t *testing.T, f fault, at int) {
	t.Helper()
	a, b, c := w.regions[0], w.regions[1], w.regions[2]
	key := a.create(obj("MultiRegion", true))
	promised := map[*env]bool{a: true}
	fault := w.fault
	for _, e := range []*env{b, c} {
		if resp := a.call("ReplicateKey", obj("KeyId", key.KeyId, "ReplicaRegion", e.region)); resp.Code == kmsapi.OK {
			promised[e] = true
		}
	}
	turns := func() {
		for range 3 {
			for _, e := range w.regions {
				_ = w.turn(e)
			}
		}
	}
	turns()
	rotations := 0
	if err := w.rotate(a, key.KeyId); err == nil {
		rotations++
	}
	turns()
	promoted := a.call("UpdatePrimaryRegion", obj("KeyId", key.KeyId, "PrimaryRegion", b.region)).Code == kmsapi.OK
	turns()
	for _, e := range []*env{a, b} {
		if err := w.rotate(e, key.KeyId); err == nil {
			rotations++
		}
	}
	turns()
	w.settle()
	primary := w.agree(key.KeyId)
	if promoted && primary != b {
		t.Errorf("the primary is in %s although another was promised", primary.region)
	}
	for e := range promised {
		if w.key(e, key.KeyId) == nil {
			t.Errorf("no key in %s, where one was promised", e.region)
		}
	}
	if got := w.key(primary, key.KeyId).Current; int(got) != 1+rotations {
		t.Errorf("the current version is %d after %d rotations", got, rotations)
	}
	w.fault = fault
	if w.key(c, key.KeyId) != nil {
		c.ok("ScheduleKeyDeletion", obj("KeyId", key.KeyId, "PendingWindowInDays", 7), new(map[string]any))
		for range 2 {
			if err := c.deleteDue(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.clock.add(7*24*time.Hour + time.Minute)
		}
		if err := c.deleteDue(t.Context()); err != nil {
			t.Fatal(err)
		}
		turns()
		w.settle()
		w.agree(key.KeyId)
		if w.key(c, key.KeyId) != nil {
			t.Error("the replica was not deleted")
		}
	}
}

// oaep encrypts for an RSA public key with SHA-256.
func oaep(t *testing.T, public, plaintext []byte) []byte {
	t.Helper()
	k, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, k.(*rsa.PublicKey), plaintext, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
