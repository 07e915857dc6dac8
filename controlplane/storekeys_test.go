package controlplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
)

// A key in a store of each type: what is made for it, and what is shown of it while the key store is connected, and while it is not.
func TestKeysInCustomKeyStores(t *testing.T) {
	e := newEnv(t)
	cluster, proxy := e.connected(store.CloudHSM), e.connected(store.ExternalKeyStore)
	e.stores.copies = 3
	e.stores.heard()
	hsm := e.createIn(cluster)
	if got := e.stores.heard(); got != "new key "+cluster+"\nrepair 3" {
		t.Errorf("asked %q", got)
	}
	external := e.create(obj("Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", proxy, "XksKeyId", "My.external_key-1"))
	if got := e.stores.heard(); got != "external key "+proxy+" My.external_key-1 arn:aws:iam::"+e.account.String()+":user/administrator CreateKey test" {
		t.Errorf("asked %q", got)
	}
	// Of a session the proxy hears the role.
	session := e.session("maker", "s1", statement("Allow", "kms:CreateKey", `"Resource":"*"`))
	session.create(obj("Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", proxy, "XksKeyId", "of-a-session"))
	if got := e.stores.heard(); got != "external key "+proxy+" of-a-session "+session.who.RoleARN+" CreateKey test" {
		t.Errorf("asked %q", got)
	}
	for _, made := range []wire{hsm, external} {
		got := e.describe(made.KeyId)
		if xks := made.XksKeyConfiguration; xks != nil {
			if *got.XksKeyConfiguration != *xks || xks.Id != "My.external_key-1" {
				t.Errorf("external key %+v", xks)
			}
			made.XksKeyConfiguration, got.XksKeyConfiguration = nil, nil
		}
		if fmt.Sprint(got) != fmt.Sprint(made) || !got.Enabled || got.KeyState != "Enabled" || got.CurrentKeyMaterialId != "" || got.KeySpec != "SYMMETRIC_DEFAULT" || got.MultiRegion {
			t.Errorf("made %+v, described %+v", made, got)
		}
	}
	if hsm.Origin != "AWS_CLOUDHSM" || hsm.CustomKeyStoreId != cluster || hsm.CloudHsmClusterId != e.theKeyStore(cluster).CloudHsmClusterId || hsm.XksKeyConfiguration != nil {
		t.Errorf("%+v", hsm)
	}
	if external.Origin != "EXTERNAL_KEY_STORE" || external.CustomKeyStoreId != proxy || external.CloudHsmClusterId != "" {
		t.Errorf("%+v", external)
	}
	k, err := shared.Key(t.Context(), e.name(hsm.KeyId))
	if err != nil || len(k.Versions) != 1 || k.Versions[0].Resident == nil || len(k.Versions[0].Copies) != 2 || k.Versions[0].Salt != [32]byte{} {
		t.Errorf("%v: %+v", err, k)
	}
	k, err = shared.Key(t.Context(), e.name(external.KeyId))
	if err != nil || len(k.Versions) != 1 || k.Versions[0].Resident != nil || k.Versions[0].Salt == [32]byte{} {
		t.Errorf("%v: %+v", err, k)
	}

	shows := func(key, state string) {
		t.Helper()
		if got := e.describe(key); got.KeyState != state || got.Enabled != (state == "Enabled") {
			t.Errorf("the key is %s, want %s", got.KeyState, state)
		}
	}
	for id, key := range map[string]string{cluster: hsm.KeyId, proxy: external.KeyId} {
		on := obj("KeyId", key)
		e.stores.set(id, false) // the connection is lost
		shows(key, "Unavailable")
		e.ok("DisableKey", on, nil)
		shows(key, "Unavailable")
		e.stores.set(id, true)
		shows(key, "Disabled")
		e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
		shows(key, "Unavailable")
		e.ok("EnableKey", on, nil)
		e.ok("ScheduleKeyDeletion", on, new(map[string]any))
		shows(key, "PendingDeletion")
		e.ok("CancelKeyDeletion", on, &cancelKeyDeletionOut{})
		shows(key, "Unavailable")
		e.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
		e.turns()
		shows(key, "Disabled")
		e.fails("DeleteCustomKeyStore", obj("CustomKeyStoreId", id), kmsapi.CustomKeyStoreInvalidState, "*")
	}
	e.keyStores = nil
	shows(hsm.KeyId, "Unavailable")
}

func TestCreateKeyInCustomKeyStoreRefusals(t *testing.T) {
	e := newEnv(t)
	cluster, proxy, idle := e.connected(store.CloudHSM), e.connected(store.ExternalKeyStore), e.keyStore(clusterBody())
	in := func(id string, more ...any) string {
		return obj(append([]any{"Origin", "AWS_CLOUDHSM", "CustomKeyStoreId", id}, more...)...)
	}
	behind := func(id, key string, more ...any) string {
		return obj(append([]any{"Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", id, "XksKeyId", key}, more...)...)
	}
	e.create(behind(proxy, "taken"))
	e.stores.heard()
	for body, want := range map[string]struct {
		code kmsapi.Code
		text string
	}{
		obj("CustomKeyStoreId", cluster):                                      {kmsapi.Validation, "CustomKeyStoreId is valid only with Origin AWS_CLOUDHSM or EXTERNAL_KEY_STORE."},
		obj("CustomKeyStoreId", cluster, "Origin", "EXTERNAL"):                {kmsapi.Validation, "CustomKeyStoreId is valid only with Origin AWS_CLOUDHSM or EXTERNAL_KEY_STORE."},
		obj("XksKeyId", "k"):                                                  {kmsapi.Validation, "XksKeyId is valid only with Origin EXTERNAL_KEY_STORE."},
		obj("Origin", "AWS_CLOUDHSM"):                                         {kmsapi.Validation, "CustomKeyStoreId is required for Origin AWS_CLOUDHSM."},
		obj("Origin", "EXTERNAL_KEY_STORE", "XksKeyId", "k"):                  {kmsapi.Validation, "CustomKeyStoreId is required for Origin EXTERNAL_KEY_STORE."},
		obj("Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", "k"):          {kmsapi.Validation, "XksKeyId is required for Origin EXTERNAL_KEY_STORE."},
		in(cluster, "XksKeyId", "k"):                                          {kmsapi.Validation, "XksKeyId is valid only with Origin EXTERNAL_KEY_STORE."},
		behind(proxy, ".."):                                                   {kmsapi.Validation, "The XksKeyId is not valid."},
		behind(proxy, "a/b"):                                                  {kmsapi.Validation, "*"},
		in(strings.Repeat("c", 65)):                                           {kmsapi.Validation, "*"},
		in(cluster, "KeySpec", "RSA_2048", "KeyUsage", "SIGN_VERIFY"):         {kmsapi.UnsupportedOperation, "KeySpec RSA_2048 is not valid for KMS keys in custom key stores."},
		in(cluster, "KeySpec", "HMAC_256", "KeyUsage", "GENERATE_VERIFY_MAC"): {kmsapi.UnsupportedOperation, "KeySpec HMAC_256 is not valid for KMS keys in custom key stores."},
		in(cluster, "MultiRegion", true):                                      {kmsapi.UnsupportedOperation, "MultiRegion is not valid for KMS keys in custom key stores."},
		in(proxy):                                                             {kmsapi.UnsupportedOperation, "Origin AWS_CLOUDHSM is not valid for KMS keys in a custom key store of type EXTERNAL_KEY_STORE."},
		behind(cluster, "k"):                                                  {kmsapi.UnsupportedOperation, "Origin EXTERNAL_KEY_STORE is not valid for KMS keys in a custom key store of type AWS_CLOUDHSM."},
		in("cks-00000000000000000"):                                           {kmsapi.CustomKeyStoreNotFound, keyStoreNotFound},
		in("../../" + cluster):                                                {kmsapi.CustomKeyStoreNotFound, keyStoreNotFound},
		in(idle):                                                              {kmsapi.CustomKeyStoreInvalidState, notConnected},
		behind(proxy, "taken"):                                                {kmsapi.XksKeyAlreadyInUse, xksKeyInUse},
		in(cluster, "Policy", "[]"):                                           {kmsapi.MalformedPolicyDocument, "*"},
	} {
		e.fails("CreateKey", body, want.code, want.text)
	}
	if got := e.stores.heard(); got != "" {
		t.Errorf("refused requests asked %q", got)
	}
	// Another account's key store, or one whose connection is lost, is none.
	e.elsewhere().fails("CreateKey", in(cluster), kmsapi.CustomKeyStoreNotFound, keyStoreNotFound)
	e.stores.set(cluster, false)
	e.fails("CreateKey", in(cluster), kmsapi.CustomKeyStoreInvalidState, notConnected)
	e.stores.set(cluster, true)

	// What the cluster and the proxy are refused for.
	e.stores.err = &StoreFault{"INSUFFICIENT_CLOUDHSM_HSMS", kmsapi.CloudHsmClusterInvalidConfiguration, "why"}
	e.fails("CreateKey", in(cluster), kmsapi.CloudHsmClusterInvalidConfiguration, "why")
	for _, code := range []kmsapi.Code{kmsapi.XksKeyNotFound, kmsapi.XksKeyInvalidConfiguration, kmsapi.CustomKeyStoreInvalidState, kmsapi.KMSInvalidState, kmsapi.XksProxyInvalidResponse} {
		e.stores.err = fmt.Errorf("asking: %w", kmsapi.New(code, "why"))
		e.fails("CreateKey", behind(proxy, "k"), code, "why")
	}
	e.stores.err = errors.New("CKR_DEVICE_ERROR")
	e.fails("CreateKey", in(cluster), kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	e.stores.err = nil
	e.stores.heard()
	e.quotas = &fixedQuotas{max: map[string]int{quota.KeysPerAccount: 1}}
	for _, body := range []string{in(cluster), behind(proxy, "k")} {
		e.fails("CreateKey", body, kmsapi.LimitExceeded, "*")
	}
	if got := e.stores.heard(); got != "" {
		t.Errorf("without room, asked %q", got)
	}
	var list listKeysOut
	if e.ok("ListKeys", "{}", &list); len(list.Keys) != 1 {
		t.Errorf("refused requests left %d keys", len(list.Keys))
	}
}

// Keys of stores are deleted as others are; of what is behind a proxy only the name is given back.
func TestDeletionFromCustomKeyStores(t *testing.T) {
	e := newEnvIn(t, shared, "eu-store-1")
	cluster, proxy := e.connected(store.CloudHSM), e.connected(store.ExternalKeyStore)
	body := obj("Origin", "EXTERNAL_KEY_STORE", "CustomKeyStoreId", proxy, "XksKeyId", "again")
	e.trail.take()
	keys := []wire{e.createIn(cluster), e.create(body)}
	name := e.theKeyStore(cluster).CloudHsmClusterId
	k, err := shared.Key(t.Context(), e.name(keys[0].KeyId))
	if err != nil {
		t.Fatal(err)
	}
	backing := `{"backingKeyId":"` + string(k.Versions[0].MaterialID[:]) + `"`
	records := func(event string) (found []any) {
		for _, r := range e.trail.take() {
			if r["eventName"] == event {
				found = append(found, r["additionalEventData"])
			}
		}
		return found
	}
	inProxy := map[string]any{"customKeyStoreId": proxy, "xksKeyId": "again"}
	if got, want := fmt.Sprint(records("CreateKey")), fmt.Sprint([]any{map[string]any{"customKeyStoreId": cluster, "clusterId": name, "backingKey": backing + "}"}, inProxy}); got != want {
		t.Errorf("records of CreateKey have\n%s, want\n%s", got, want)
	}
	for _, m := range keys {
		e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), new(map[string]any))
	}
	if got, want := fmt.Sprint(records("ScheduleKeyDeletion")), fmt.Sprint([]any{map[string]any{"customKeyStoreId": cluster, "clusterId": name, "backingKeys": "[" + backing + "}]"}, inProxy}); got != want {
		t.Errorf("records of ScheduleKeyDeletion have\n%s, want\n%s", got, want)
	}
	e.fails("CreateKey", body, kmsapi.XksKeyAlreadyInUse, xksKeyInUse)
	e.work()
	e.clock.add(8 * day)
	e.stores.heard()
	e.stores.err = errors.New("nobody is to be asked") // but of copies
	e.trail.take()
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.stores.err = nil
	if got := e.stores.heard(); got != "" {
		t.Errorf("the deletion asked %q", got)
	}
	got := records("DeleteKey")
	want := []any{map[string]any{"customKeyStoreId": cluster, "clusterId": name, "backingKeys": "[" + backing + "}]", "backingKeysDeletionStatus": "[" + backing + `,"deletionStatus":"SUCCESS"}]`}, inProxy}
	slices.SortFunc(got, func(a, b any) int { return strings.Compare(fmt.Sprint(b), fmt.Sprint(a)) })
	slices.SortFunc(want, func(a, b any) int { return strings.Compare(fmt.Sprint(b), fmt.Sprint(a)) })
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("records of DeleteKey have\n%s, want\n%s", got, want)
	}
	e.create(body)
	e.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", cluster), &noMembers{})
	e.ok("DeleteCustomKeyStore", obj("CustomKeyStoreId", cluster), &noMembers{})
}

// A member that was away gets the keys that it lacks, of every connected key store, once.
func TestRepair(t *testing.T) {
	e := newEnvIn(t, shared, "eu-store-2")
	full, away := e.connected(store.CloudHSM), e.connected(store.CloudHSM)
	var keys []string
	for range repairPage + 3 {
		keys = append(keys, e.createIn(full).KeyId)
	}
	lost := e.createIn(away).KeyId
	copies := func(key string) int {
		t.Helper()
		k, err := shared.Key(t.Context(), e.name(key))
		if err != nil {
			t.Fatal(err)
		}
		return len(k.Versions[0].Copies)
	}
	repaired := func() (n int) {
		for _, key := range keys {
			n += copies(key) - 1
		}
		return n
	}
	e.work()
	if n := repaired(); n != 0 {
		t.Errorf("%d keys were repaired that lack nothing", n)
	}
	e.stores.members = [][8]byte{{'m', 1}, {'m', 7}} // the first is there
	n := store.KeyStoreName{Region: e.region, Account: e.account, ID: full}
	next, err := e.repairSome(t.Context(), n, nil)
	if err != nil || next == nil || repaired() != repairPage {
		t.Errorf("%d keys were repaired, next %v, %v", repaired(), next, err)
	}
	e.stores.set(away, false)
	e.published.take()
	e.work()
	if n, published := repaired(), strings.Count(e.published.take(), "key "); n != len(keys) || published != 3 || copies(lost) != 1 {
		t.Errorf("%d keys were repaired, %d published", n, published)
	}
	e.stores.set(away, true)
	e.work()
	e.work()
	if n := repaired(); n != len(keys) || copies(lost) != 2 {
		t.Errorf("%d keys were repaired, the other key store's has %d copies", n, copies(lost))
	}

	// What one member took is kept where another one fails.
	e.stores.members = append(e.stores.members, [8]byte{'m', 8})
	e.stores.fault = errors.New("a member did not take it")
	if err := e.Work(t.Context()); err == nil || !strings.Contains(err.Error(), full) || !strings.Contains(err.Error(), away) {
		t.Errorf("the work ends with %v", err)
	}
	if copies(lost) != 3 {
		t.Errorf("%d copies", copies(lost))
	}
	// A member that takes none keeps another one from none.
	e.stores.members = append(e.stores.members, [8]byte{'m', 9})
	if next, err := e.repairSome(t.Context(), n, nil); err == nil || strings.Count(err.Error(), "take it") != 1 || next == nil || repaired() < 3*repairPage {
		t.Errorf("%d copies were made, next %v, %v", repaired(), next, err)
	}
	// Nobody is asked for the same in vain for ever: a page of a key store that fails is left for the next turn.
	e.stores.fault, e.stores.err = nil, errors.New("why")
	if err := e.Work(t.Context()); err == nil { // the end of the page that the last turn was at
		t.Error("the work ends without an error")
	}
	e.stores.heard()
	if err := e.Work(t.Context()); err == nil {
		t.Error("the work ends without an error")
	}
	if asked := strings.Count(e.stores.heard(), "repair"); asked != 4+1 {
		t.Errorf("asked %d times", asked)
	}
}
