package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/cluster"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/ratelimit"
)

// uses are the operations of keys in custom key stores; the blob of Decrypt and ReEncrypt is the key's own.
func uses(w *world, k *snapshot.Record, blob []byte) map[string]string {
	return map[string]string{
		"Encrypt": fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID), "Decrypt": fmt.Sprintf(`{"CiphertextBlob":%q}`, b64(blob)),
		"GenerateDataKey": fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"}`, k.ID), "GenerateDataKeyWithoutPlaintext": fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256"}`, k.ID),
		"ReEncrypt": fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(blob), k.ID),
	}
}

// What keys in a CloudHSM key store make opens with the cluster's key, by other code; every member does it. The server's own HSM has no part in the key.
func TestCloudOperations(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.useErr = func() error { t.Error("the server's own HSM is asked"); return hsm.ErrUnavailable }
	store := w.addCluster(cloudID)
	k := w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), store)
	if len(k.Versions[0].Copies) != 1 {
		t.Fatalf("%d copies for two roots", len(k.Versions[0].Copies))
	}
	id, material := k.ID.String(), string(k.Versions[0].MaterialID[:])
	for i := range 12 { // more often than there are members
		if i == 10 {
			w.KeyChanged(ours, k.ID)
		}
		out := w.ask("GenerateDataKey", "CiphertextBlob Plaintext KeyId KeyMaterialId", `{"KeyId":%q,"NumberOfBytes":65,"EncryptionContext":{"a":"1"}}`, id)
		if _, version, got, ok := w.open(out.CiphertextBlob, map[string]string{"a": "1"}); !ok || version != 1 || !bytes.Equal(got, out.Plaintext) || out.CiphertextBlob[1] != 2 || out.KeyMaterialId != material {
			t.Errorf("%+v", out)
		}
		back := w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q,"EncryptionContext":{"a":"1"}}`, b64(w.blob("cloud", 1, map[string]string{"a": "1"}, []byte("hello"))))
		if string(back.Plaintext) != "hello" || back.KeyMaterialId != material || back.KeyId != keyARN("cloud") {
			t.Errorf("%+v", back)
		}
	}
	for _, m := range store.Stats() {
		if m.Jobs == 0 {
			t.Errorf("member %s has done nothing", m.Name)
		}
	}
	if store.forgot.Load() == 0 {
		t.Error("the old view's keys stay in the HSMs")
	}
	blob := w.blob("cloud", 1, nil, []byte("hello"))
	for i := range blob {
		bad := bytes.Clone(blob)
		if bad[i] ^= 1; i >= 2 && i < 25 {
			continue // another account, or another key
		}
		w.refused("InvalidCiphertextException", "Decrypt", `{"CiphertextBlob":%q}`, b64(bad))
	}
	for op, body := range uses(w, k, blob) {
		w.refused("DryRunOperationException", op, "%s", strings.TrimSuffix(body, "}")+`,"DryRun":true}`)
	}
}

// One member may go, and come back. Requests do not notice.
func TestCloudMembers(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addCluster(cloudID)
	k := w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), store)
	blob := w.blob("cloud", 1, nil, []byte("hello"))
	all := func(want string) {
		t.Helper()
		for op, body := range uses(w, k, blob) {
			for range 4 {
				if r := w.do(w.call(op, body)); r.exception() != want {
					t.Errorf("%s: %d %s, want %q", op, r.status, r.body, want)
				}
			}
		}
	}
	gone := []hsmtest.Op{hsmtest.Round, hsmtest.Open, hsmtest.Reset, hsmtest.Use, hsmtest.Load}
	all("")
	for i, member := range store.members {
		for _, op := range gone {
			member.Add(hsmtest.Fault{Op: op, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_REMOVED})
		}
		all("")
		if i == 0 {
			member.Clear()
			for deadline := time.Now().Add(15 * time.Second); !store.Stats()[0].Up || store.Active() < 2; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the member does not come back")
				}
			}
		}
	}
	for _, op := range gone {
		store.members[0].Add(hsmtest.Fault{Op: op, Times: hsmtest.Forever, CKR: hsm.CKR_DEVICE_REMOVED})
	}
	r := w.do(w.call("GenerateDataKey", uses(w, k, blob)["GenerateDataKey"]))
	if e := r.exception(); e != "KeyUnavailableException" && e != "KMSInternalException" && e != "DependencyTimeoutException" {
		t.Errorf("without members: %d %s", r.status, r.body)
	}
}

// timedStore notes when jobs begin by what they are told, and when they end.
type timedStore struct {
	*clusterStore
	began, ended []time.Time
}

func (s *timedStore) Run(j *hsm.KeyJob, copies []hsm.Key, now time.Time) error {
	s.began = append(s.began, now)
	defer func() { s.ended = append(s.ended, time.Now()) }()
	return s.clusterStore.Run(j, copies, now)
}

// The time that the first of two keys took, on members that hung perhaps, is not taken off that of the second.
func TestTimeOfTheSecondKey(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := &timedStore{clusterStore: w.addCluster(cloudID)}
	w.inStore(w.addKey("source", kmsapi.StateEnabled, 1), store.clusterStore)
	dest := w.inStore(w.addKey("dest", kmsapi.StateEnabled, 1), store.clusterStore)
	body := fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(w.blob("source", 1, nil, []byte("hello"))), dest.ID)
	w.stores.put(store, testRegion, ours, cloudID)
	for range 2 { // cold keys, and warm ones
		store.began, store.ended = nil, nil
		if r := w.do(w.call("ReEncrypt", body)); r.exception() != "" {
			t.Fatalf("%d %s", r.status, r.body)
		}
		n := len(store.began)
		if n < 2 {
			t.Fatalf("%d jobs", n)
		}
		if began, ended := store.began[n-1], store.ended[n-2]; began.Before(ended) {
			t.Errorf("the second key's job is told that it began %s before the first one's end", ended.Sub(began))
		}
	}
}

// What a key store answers is answered to the client; that the key in the cluster is another one is noticed, wherever it came from.
func TestCloudErrors(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := w.addCluster(cloudID)
	k := w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), store)
	other := w.inStore(w.addKey("other", kmsapi.StateEnabled, 1), store)
	blob := w.blob("cloud", 1, nil, []byte("hello"))
	var failing error
	store.fail = func() error { return failing }
	for range 2 { // a cold key, and a warm one
		for _, c := range []struct {
			err        error
			want, text string
		}{
			{&hsm.Error{CKR: hsm.CKR_ENCRYPTED_DATA_INVALID, Function: "C_Encrypt"}, "KMSInternal", kmsapi.KMSInternal.Text()},
			{hsm.ErrTimeout, "DependencyTimeout", kmsapi.DependencyTimeout.Text()}, {hsm.ErrUnavailable, "KeyUnavailable", kmsapi.KeyUnavailable.Text()},
			{fmt.Errorf("wrapped: %w", kmsapi.New(kmsapi.KMSInvalidState, "what the documentation says")), "KMSInvalidState", "what the documentation says"},
			{hsm.ErrNotOffered, "UnsupportedOperation", " with keys of this custom key store is not offered by its HSMs."},
		} {
			failing = c.err
			for op, body := range uses(w, k, blob) {
				if r := w.do(w.call(op, body)); r.exception() != c.want+"Exception" || !strings.Contains(string(r.body), c.text) {
					t.Errorf("%v: %s: %d %s", c.err, op, r.status, r.body)
				}
			}
		}
		failing = nil
		w.ask("Decrypt", "EncryptionAlgorithm KeyId KeyMaterialId Plaintext", `{"CiphertextBlob":%q}`, b64(blob))
	}
	// The end of the connection while a request is under way.
	store.fail = func() error { store.connected.Store(false); return cluster.ErrDisconnected }
	r := w.do(w.call("Decrypt", uses(w, k, blob)["Decrypt"]))
	if string(r.body) != `{"__type":"KMSInvalidStateException","message":"`+keyARN("cloud")+` is unavailable."}` {
		t.Errorf("%d %s", r.status, r.body)
	}
	store.fail = nil
	store.connected.Store(true)

	swapped := *k
	swapped.Versions = []snapshot.VersionRecord{k.Versions[0]}
	v := &swapped.Versions[0]
	v.Copies = nil
	p := &snapshot.PrivateKey{Root: other.Versions[0].Resident.Root, Wrapped: other.Versions[0].Resident.Wrapped}
	p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
	v.Resident = p
	w.must(swapped.Check())
	w.records.mu.Lock()
	w.records.keys[k.ID] = &swapped
	w.records.mu.Unlock()
	w.KeyChanged(ours, k.ID)
	w.refused("KMSInternalException", "Decrypt", `{"CiphertextBlob":%q}`, b64(blob))
}

// A key is what its record and the connection of its key store say, from one moment to the next, without its record's being read again.
func TestStatesInStores(t *testing.T) {
	w := newWorld(t, worldConfig{})
	external, cloud := w.addExternalStore(externalID), w.addCluster(cloudID)
	for _, state := range kmsapi.KeyStates {
		for kind, store := range map[string]KeyStore{"ext": external, "cloud": cloud} {
			name := kind + state.String()
			k := w.inStore(w.addKey(name, kmsapi.StateEnabled, 1), store)
			k.State = state
			w.must(k.Check())
			blob := w.blob(name, 1, nil, []byte("hello"))
			set := func(connected bool) {
				external.connected.Store(connected)
				cloud.connected.Store(connected)
			}
			own, ownText := usable(state)
			lost, lostText := own, ownText
			if state == kmsapi.StateEnabled || state == kmsapi.StateDisabled || state == kmsapi.StateUpdating {
				lost, lostText = kmsapi.KMSInvalidState, " is unavailable."
			}
			calls := func(code kmsapi.Code, text string) {
				t.Helper()
				want := ""
				if code != kmsapi.OK {
					want = string(kmsapi.AppendErrorBody(nil, code, []byte(keyARN(name)+text)))
				}
				for op, body := range uses(w, k, blob) {
					if r := w.do(w.call(op, body)); want != "" && string(r.body) != want || (r.status == 200) != (want == "") {
						t.Errorf("%s: %s: %d %s, want %s", name, op, r.status, r.body, want)
					}
				}
			}
			calls(own, ownText)
			reads := w.records.reads
			set(false)
			external.taken()
			calls(lost, lostText)
			if n := len(external.taken()); n != 0 {
				t.Errorf("%s: the proxy was asked %d times", name, n)
			}
			set(true)
			calls(own, ownText)
			if w.records.reads != reads {
				t.Errorf("%s: the record was read again", name)
			}
		}
	}
}

// A key whose store is not known here is unavailable, until it is; so is one whose record and store do not fit, and any where there are no key stores.
func TestUnknownStore(t *testing.T) {
	w := newWorld(t, worldConfig{})
	store := &externalStore{testStore: testStore{id: externalID}}
	store.connected.Store(true)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), store)
	const body = `{"KeyId":%q,"KeySpec":"AES_256"}`
	stores := w.parts.KeyStores
	w.refused("KMSInvalidStateException", "GenerateDataKey", body, k.ID)
	w.parts.KeyStores = nil
	w.refused("KMSInvalidStateException", "GenerateDataKey", body, k.ID)
	w.refused("CustomKeyStoreNotFoundException", "GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":%q}`, externalID)
	w.parts.KeyStores = stores
	w.stores.put(store, awayRegion, ours, externalID)
	w.stores.put(store, testRegion, others, externalID)
	w.refused("KMSInvalidStateException", "GenerateDataKey", body, k.ID)
	w.stores.put(store, testRegion, ours, externalID)
	w.ask("GenerateDataKey", "CiphertextBlob Plaintext KeyId KeyMaterialId", body, k.ID)
	cloud := w.addCluster(externalID) // it takes the place
	w.KeyChanged(ours, k.ID)
	w.refused("KMSInvalidStateException", "GenerateDataKey", body, k.ID)
	if cloud.charged.Load() == 0 {
		t.Error("the store was not asked")
	}
}

// No data key pairs, connected or not, before anything is asked of the store; whoever may not use the key does not learn of it.
func TestPairsInStores(t *testing.T) {
	w := newWorld(t, worldConfig{})
	external, cloud := w.addExternalStore(externalID), w.addCluster(cloudID)
	for name, origin := range map[string]string{"ext": "EXTERNAL_KEY_STORE", "cloud": "AWS_CLOUDHSM"} {
		store := map[string]KeyStore{"ext": external, "cloud": cloud}[name]
		k := w.inStore(w.addKey(name, kmsapi.StateEnabled, 1), store)
		for _, connected := range []bool{true, false} {
			external.connected.Store(connected)
			cloud.connected.Store(connected)
			for _, op := range []string{"GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"} {
				r := w.do(w.call(op, fmt.Sprintf(`{"KeyId":%q,"KeyPairSpec":"ECC_NIST_P256"}`, k.ID)))
				if string(r.body) != `{"__type":"UnsupportedOperationException","message":"`+keyARN(name)+` origin is `+origin+` which is not valid for this operation."}` {
					t.Errorf("%s: %d %s", op, r.status, r.body)
				}
				if r := w.do(w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+op, []byte(`{"KeyId":"`+keyARN(name)+`","KeyPairSpec":"ECC_NIST_P256"}`))); r.exception() != "AccessDeniedException" {
					t.Errorf("%s: %d %s", op, r.status, r.body)
				}
			}
		}
	}
	if len(external.taken()) != 0 || external.charged.Load() != 0 || cloud.charged.Load() != 0 {
		t.Error("the key store was asked")
	}
}

// Each request is counted once in the rate of each key store that it uses, when it is known that it may: before state and parameters, after the account's pool.
func TestStoreRates(t *testing.T) {
	var spent atomic.Bool
	w := newWorld(t, worldConfig{quota: func(keyid.Account, ratelimit.Pool, time.Time) bool { return !spent.Load() }})
	external, cloud := w.addExternalStore(externalID), w.addCluster(cloudID)
	ext, ext2 := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), external), w.inStore(w.addKey("ext2", kmsapi.StateEnabled, 1), external)
	k := w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), cloud)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	extBlob, ourBlob := b64(w.blob("ext", 1, nil, []byte("hello"))), b64(w.blob("k1", 1, nil, []byte("hello")))
	for _, c := range []struct {
		op, body    string
		ext, cloud  int64
		want, throw string // what is answered, and with the rates used up
	}{
		{"Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, ext.ID), 1, 0, "", "Throttling"},
		{"Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID), 0, 1, "", "Throttling"},
		{"Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, keyID("k1")), 0, 0, "", ""},
		{"Decrypt", `{"CiphertextBlob":"` + extBlob + `"}`, 1, 0, "", "Throttling"},
		{"Decrypt", `{"CiphertextBlob":"` + extBlob + `","EncryptionContext":{"a":"1"}}`, 1, 0, "KMSInvalidState", "Throttling"},
		{"GenerateDataKey", fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256","DryRun":true}`, ext.ID), 1, 0, "DryRunOperation", "Throttling"},
		{"GenerateDataKey", fmt.Sprintf(`{"KeyId":%q}`, ext.ID), 1, 0, "Validation", "Throttling"},
		{"GenerateDataKey", fmt.Sprintf(`{"KeyId":%q,"KeySpec":"AES_256","GrantTokens":["x"]}`, ext.ID), 0, 0, "InvalidGrantToken", "InvalidGrantToken"},
		{"GenerateDataKey", `{"KeyId":"` + strings.Replace(keyARN("ext"), ours.String(), others.String(), 1) + `","KeySpec":"AES_256"}`, 0, 0, "AccessDenied", "AccessDenied"},
		{"ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, extBlob, ext.ID), 1, 0, "", "Throttling"},
		{"ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, extBlob, ext2.ID), 1, 0, "", "Throttling"},
		{"ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, extBlob, k.ID), 1, 1, "", "Throttling"},
		{"ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, ourBlob, k.ID), 0, 1, "", "Throttling"},
		{"ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, extBlob, keyID("k1")), 1, 0, "", "Throttling"},
		{"GenerateRandom", `{"NumberOfBytes":1}`, 0, 0, "", ""},
		{"GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":"` + cloudID + `"}`, 0, 1, "", "Throttling"},
		{"GenerateRandom", `{"CustomKeyStoreId":"` + cloudID + `"}`, 0, 1, "Validation", "Throttling"},
		{"GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":"` + externalID + `"}`, 1, 0, "UnsupportedOperation", "Throttling"},
		{"GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":"cks-0"}`, 0, 0, "CustomKeyStoreNotFound", "CustomKeyStoreNotFound"},
	} {
		answers := func(want string) {
			t.Helper()
			r := w.do(w.call(c.op, c.body))
			if strings.TrimSuffix(r.exception(), "Exception") != want {
				t.Errorf("%s %s: %d %s, want %q", c.op, c.body, r.status, r.body, want)
			}
			if want == "Throttling" && string(r.body) != string(kmsapi.AppendErrorBody(nil, kmsapi.Throttling, []byte(kmsapi.Throttling.Text()))) {
				t.Errorf("%s", r.body)
			}
		}
		external.charged.Store(0)
		cloud.charged.Store(0)
		answers(c.want)
		if external.charged.Load() != c.ext || cloud.charged.Load() != c.cloud {
			t.Errorf("%s %s: charged %d and %d, want %d and %d", c.op, c.body, external.charged.Load(), cloud.charged.Load(), c.ext, c.cloud)
		}
		external.full.Store(true)
		cloud.full.Store(true)
		answers(c.throw)
		external.full.Store(false)
		cloud.full.Store(false)
		spent.Store(true)
		answers("Throttling")
		spent.Store(false)
	}
	// One more than fits is refused whatever the state of the key.
	external.full.Store(true)
	external.connected.Store(false)
	w.refused("ThrottlingException", "Encrypt", `{"KeyId":%q,"Plaintext":"aGVsbG8="}`, ext.ID)
}

// GenerateRandom asks the HSMs of the key store, and says of it what there is to say.
func TestRandomOfStore(t *testing.T) {
	w := newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})
	store := w.addCluster(cloudID)
	w.addExternalStore(externalID)
	w.stores.put(store, testRegion, others, "cks-foreign")
	w.instead = func() error { t.Error("the server's own HSM is asked"); return hsm.ErrUnavailable }
	seen := map[string]bool{}
	for _, n := range []int{1024, 1024, 32} {
		out := w.ask("GenerateRandom", "Plaintext", `{"NumberOfBytes":%d,"CustomKeyStoreId":%q}`, n, cloudID)
		if len(out.Plaintext) != n || seen[string(out.Plaintext[:32])] || bytes.Equal(out.Plaintext[:32], make([]byte, 32)) {
			t.Errorf("%x", out.Plaintext)
		}
		seen[string(out.Plaintext[:32])] = true
	}
	w.ask("GenerateRandom", "CiphertextForRecipient", `{"NumberOfBytes":32,"CustomKeyStoreId":%q,"Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":%q}}`,
		cloudID, b64(document(t, 0, 0)))
	w.refused("CustomKeyStoreNotFoundException", "GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":"cks-foreign"}`)
	w.refused("UnsupportedOperationException", "GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":%q}`, externalID)
	w.refused("ValidationException", "GenerateRandom", `{"CustomKeyStoreId":%q}`, cloudID)
	store.connected.Store(false)
	w.refused("CustomKeyStoreInvalidStateException", "GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":%q}`, cloudID)
	store.connected.Store(true)
	store.Disconnect() // as one that comes after the state was looked at
	w.refused("KMSInternalException", "GenerateRandom", `{"NumberOfBytes":1,"CustomKeyStoreId":%q}`, cloudID)
}

// Records name key store and external key, of successes and refusals, but to nobody who may not use another account's key.
func TestRecordsOfStores(t *testing.T) {
	w := newWorld(t, worldConfig{})
	external, cloud := w.addExternalStore(externalID), w.addCluster(cloudID)
	ext, k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), external), w.inStore(w.addKey("cloud", kmsapi.StateEnabled, 1), cloud)
	w.addKey("k1", kmsapi.StateEnabled, 1)
	material := func(name string) string {
		m := w.records.keys[keyID(name)].Versions[0].MaterialID
		return string(m[:])
	}
	type object = map[string]any
	xksKey := ext.Store.XksKeyID
	blob := b64(w.blob("ext", 1, nil, []byte("hello")))
	fails := func(err error) func() {
		return func() { external.set(func(s *externalStore) { s.fail = err }) }
	}
	for _, c := range []struct {
		name, op, body string
		before         func()
		code           string
		want           object
	}{
		{"encrypt", "Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, ext.ID), nil, "",
			object{"customKeyStoreId": externalID, "xksKeyId": xksKey, "keyMaterialId": material("ext")}},
		{"encrypt in a cluster", "Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, k.ID), nil, "", object{"customKeyStoreId": cloudID, "keyMaterialId": material("cloud")}},
		{"in none", "Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, keyID("k1")), nil, "", object{"keyMaterialId": material("k1")}},
		{"decrypt", "Decrypt", `{"CiphertextBlob":"` + blob + `"}`, nil, "", object{"customKeyStoreId": externalID, "xksKeyId": xksKey, "keyMaterialId": material("ext")}},
		{"re-encrypt", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, blob, k.ID), nil, "",
			object{"sourceCustomKeyStoreId": externalID, "sourceXksKeyId": xksKey, "destinationCustomKeyStoreId": cloudID, "sourceKeyMaterialId": material("ext"), "destinationKeyMaterialId": material("cloud")}},
		{"re-encrypt to an external key", "ReEncrypt", fmt.Sprintf(`{"CiphertextBlob":%q,"DestinationKeyId":%q}`, b64(w.blob("k1", 1, nil, []byte("x"))), ext.ID), nil, "",
			object{"destinationCustomKeyStoreId": externalID, "destinationXksKeyId": xksKey, "sourceKeyMaterialId": material("k1"), "destinationKeyMaterialId": material("ext")}},
		{"the proxy refuses", "Decrypt", `{"CiphertextBlob":"` + blob + `"}`, fails(kmsapi.New(kmsapi.KMSInvalidState, "no")), "KMSInvalidStateException", object{"customKeyStoreId": externalID, "xksKeyId": xksKey}},
		{"disconnected", "Decrypt", `{"CiphertextBlob":"` + blob + `"}`, func() { external.connected.Store(false) }, "KMSInvalidStateException", object{"customKeyStoreId": externalID, "xksKeyId": xksKey}},
	} {
		w.audit.taken()
		if c.before != nil {
			c.before()
		}
		r := w.do(w.call(c.op, c.body))
		lines := w.audit.taken()
		if r.exception() != c.code || len(lines) != 1 {
			t.Fatalf("%s: %s, %d records", c.name, r.body, len(lines))
		}
		var got object
		if err := json.Unmarshal([]byte(lines[0]), &got); err != nil || !reflect.DeepEqual(got["additionalEventData"], nullable(c.want)) {
			t.Errorf("%s: %v, %v, want %v", c.name, err, got["additionalEventData"], c.want)
		}
		fails(nil)()
		external.connected.Store(true)
	}
	w.audit.taken()
	w.do(w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+"Encrypt", []byte(`{"KeyId":"`+keyARN("ext")+`","Plaintext":"aGVsbG8="}`)))
	if lines := w.audit.taken(); len(lines) != 1 || strings.Contains(lines[0], externalID) || strings.Contains(lines[0], xksKey) {
		t.Errorf("%s", lines)
	}
	// The proxy is told the request's ID, which the record has too.
	external.taken()
	r := w.do(w.call("Encrypt", fmt.Sprintf(`{"KeyId":%q,"Plaintext":"aGVsbG8="}`, ext.ID)))
	if lines, calls := w.audit.taken(), external.taken(); len(lines) != 1 || len(calls) != 1 || !strings.Contains(lines[0], `"requestID":"`+calls[0].m.RequestID+`"`) || calls[0].m.RequestID != r.header.Get("x-amzn-RequestId") {
		t.Errorf("%+v, %s", calls, lines)
	}
	// A call whose record fails has no result, whatever the proxy did.
	w.audit.fail(errors.New("the disk is full"))
	for op, body := range uses(w, ext, w.blob("ext", 1, nil, []byte("hello"))) {
		w.refused("KMSInternalException", op, "%s", body)
	}
	w.audit.fail(nil)
}

// Another account may use a key of a custom key store where the key's policy and its own let it; the key store's rate is all accounts' together.
func TestStoreOfAnotherAccount(t *testing.T) {
	w := newWorld(t, worldConfig{})
	external := w.addExternalStore(externalID)
	k := w.inStore(w.addKey("ext", kmsapi.StateEnabled, 1), external)
	k.Policy = []byte(`{"Statement":{"Effect":"Allow","Principal":{"AWS":"` + others.String() + `"},"Action":"kms:*","Resource":"*"}}`)
	asOther := func() reply {
		return w.do(w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+"GenerateDataKey", []byte(`{"KeyId":"`+keyARN("ext")+`","KeySpec":"AES_256"}`)))
	}
	if r := asOther(); r.status != 200 || external.charged.Load() != 1 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if calls := external.taken(); len(calls) != 1 || calls[0].m.Principal != userARN(others, "administrator") {
		t.Errorf("%+v", calls)
	}
	external.full.Store(true)
	if r := asOther(); r.exception() != "ThrottlingException" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// Replies for an enclave are no different with keys in custom key stores.
func TestRecipientInStores(t *testing.T) {
	w := newWorld(t, worldConfig{server: Config{AttestationRoots: authority(t).Roots(t)}})
	stores := map[string]KeyStore{"ext": w.addExternalStore(externalID), "cloud": w.addCluster(cloudID)}
	for name, store := range stores {
		k := w.inStore(w.addKey(name, kmsapi.StateEnabled, 1), store)
		recipient := `"Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"` + b64(document(t, 0, 0)) + `"}`
		w.ask("GenerateDataKey", "CiphertextBlob CiphertextForRecipient KeyId", `{"KeyId":%q,"KeySpec":"AES_256",%s}`, k.ID, recipient)
		w.ask("Decrypt", "EncryptionAlgorithm KeyId CiphertextForRecipient", `{"CiphertextBlob":%q,%s}`, b64(w.blob(name, 1, nil, []byte("hello"))), recipient)
	}
}
