package controlplane

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// fenced gives a server a lease.
func (e *env) fenced() *fence.Lease {
	l := new(fence.Lease)
	e.lease = l
	extend(l)
	return l
}

func extend(l *fence.Lease) { l.Extend(fence.Now() + time.Hour) }

// ending is a KeySource that ends a lease: after it was asked for the first time, and before anything is decided.
type ending struct {
	sigv4.KeySource
	lease *fence.Lease
}

func (k ending) AccessKey(id []byte) *sigv4.AccessKey {
	k.lease.End()
	return k.KeySource.AccessKey(id)
}

// Without a lease nothing is answered. What was read does not leave when it runs out meanwhile; what was written is told.
func TestFenced(t *testing.T) {
	e := newEnv(t)
	lease := e.fenced()
	describe := obj("KeyId", e.create("{}").KeyId)
	count := func() int {
		t.Helper()
		var list map[string]any
		e.ok("ListKeys", "{}", &list)
		return len(list["Keys"].([]any))
	}
	e.trail.take()
	lease.End()
	for op, body := range map[string]string{"CreateKey": "{}", "DescribeKey": describe, "DisableKey": describe, "ListKeys": "{}", "NoSuchOperation": "{}"} {
		resp := e.call(op, body)
		if resp.Code != kmsapi.KMSInternal || resp.Status != 500 {
			t.Errorf("%s: %s %s", op, resp.Code, resp.Body)
		}
	}
	for _, r := range e.trail.take() {
		if r["errorCode"] != "KMSInternalException" {
			t.Errorf("recorded as %v", r)
		}
	}
	extend(lease)
	if n := count(); n != 1 {
		t.Errorf("%d keys: one was made without a lease", n)
	}

	// It runs out before the decision.
	whole := e.verifier
	verifier, err := sigv4.New(sigv4.Config{Regions: []string{e.region}, Keys: ending{e.cast, lease}})
	if err != nil {
		t.Fatal(err)
	}
	for op, want := range map[string]kmsapi.Code{"DescribeKey": kmsapi.KMSInternal, "DisableKey": kmsapi.OK} {
		extend(lease)
		e.verifier = verifier
		e.trail.take()
		resp := e.call(op, describe)
		e.verifier = whole
		if resp.Code != want {
			t.Errorf("%s: %s %s", op, resp.Code, resp.Body)
		}
		code, refused := e.trail.take()[0]["errorCode"]
		if refused != (want != kmsapi.OK) || refused && code != "KMSInternalException" {
			t.Errorf("%s is recorded with %v", op, code)
		}
	}

	// It runs out while the record is written.
	for op, want := range map[string]kmsapi.Code{"DescribeKey": kmsapi.KMSInternal, "EnableKey": kmsapi.OK} {
		extend(lease)
		e.sink = func(line []byte) error { lease.End(); return e.trail.append(line) }
		resp := e.call(op, describe)
		e.sink = e.trail.append
		if resp.Code != want {
			t.Errorf("%s: %s %s", op, resp.Code, resp.Body)
		}
	}
	extend(lease)
	if n := count(); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// spreading is a Publisher that says when it is waited for.
type spreading struct {
	*recorder
	spread func()
}

func (p spreading) Spread() { p.spread() }

// A write that is refused because of how things are waits for whoever made them so, and one that is refused otherwise does not.
func TestSpreadRefusal(t *testing.T) {
	e := newEnv(t)
	n := 0
	e.publisher = spreading{e.published, func() { n++ }}
	key := e.create("{}").KeyId
	for _, c := range []struct {
		op, body string
		code     kmsapi.Code
		spread   int
	}{
		{"RevokeGrant", obj("KeyId", key, "GrantId", "1234567890123456789012345678901234567890123456789012345678901234"), kmsapi.NotFound, 1},
		{"DeleteAlias", obj("AliasName", "alias/none"), kmsapi.NotFound, 1},
		{"CancelKeyDeletion", obj("KeyId", key), kmsapi.KMSInvalidState, 1},
		{"CreateAlias", obj("AliasName", "none", "TargetKeyId", key), kmsapi.Validation, 0},
		{"DescribeKey", obj("KeyId", "12345678-1234-1234-1234-123456789012"), kmsapi.NotFound, 0},
	} {
		n = 0
		if resp := e.call(c.op, c.body); resp.Code != c.code || n != c.spread {
			t.Errorf("%s: %s, waited %d times", c.op, resp.Code, n)
		}
	}
}

// A read waits until what it tells of is what every process knows: of the key, its policy and the alias when they were last written, of lists and of what is not there
// of the store as it is. A write has waited already.
func TestSettledReads(t *testing.T) {
	e := newEnv(t)
	var waited []int64
	e.spreadAt = func(_ context.Context, revision int64) { waited = append(waited, revision) }
	key := e.create("{}").KeyId
	e.ok("CreateAlias", obj("AliasName", "alias/a", "TargetKeyId", key), nil)
	id, _ := keyid.ParseID([]byte(key))
	read := func() (*store.Key, *store.Alias) {
		t.Helper()
		k, err := e.store.Key(t.Context(), store.KeyName{Region: e.region, Account: e.account, ID: id})
		if err != nil {
			t.Fatal(err)
		}
		a, err := e.store.Alias(t.Context(), e.region, e.account, "alias/a")
		if err != nil {
			t.Fatal(err)
		}
		return k, a
	}
	k, a := read()
	e.create("{}") // the store goes on
	for _, c := range []struct {
		op, body string
		code     kmsapi.Code
		want     int64 // 0: no wait
	}{
		{"DescribeKey", obj("KeyId", key), kmsapi.OK, k.Revision},
		{"DescribeKey", obj("KeyId", "alias/a"), kmsapi.OK, max(k.Revision, a.Revision)},
		{"GetKeyPolicy", obj("KeyId", key), kmsapi.OK, max(k.Revision, k.Policy.Revision)},
		{"ListKeys", "{}", kmsapi.OK, e.store.Committed()},
		{"DescribeKey", obj("KeyId", "12345678-1234-1234-1234-123456789012"), kmsapi.NotFound, e.store.Committed()},
		{"DescribeKey", obj("KeyId", ""), kmsapi.Validation, 0},
		{"DisableKey", obj("KeyId", key), kmsapi.OK, 0},
	} {
		waited = nil
		resp := e.call(c.op, c.body)
		var got int64
		if len(waited) == 1 {
			got = waited[0]
		}
		if resp.Code != c.code || got != c.want || len(waited) > 1 {
			t.Errorf("%s %s: %s, waited for %v, not %d", c.op, c.body, resp.Code, waited, c.want)
		}
	}
}

// Of two control planes the one that was asked connects a key store. What it leaves, the owner of the Region's work goes on with; nobody else does.
func TestTwoControlPlanes(t *testing.T) {
	first := newEnv(t)
	second := newEnvOf(t, shared, "eu-south-9", first.account, first.clock)
	first = newEnvOf(t, shared, "eu-south-9", first.account, first.clock)
	first.fenced()
	second.fenced()
	id := first.keyStore(proxyBody())
	n := store.KeyStoreName{Region: "eu-south-9", Account: first.account, ID: id}
	turns := func(e *env) {
		t.Helper()
		var wg sync.WaitGroup
		if err := e.takeTurns(t.Context(), &wg); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
	// Asked for, and not done: the second does nothing, also as the owner, until it has waited for long.
	first.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	turns(second)
	second.connections.own(true)
	turns(second)
	first.storeState(id, store.Connecting, "")
	second.connections.mu.Lock()
	seen := second.connections.others[n]
	seen.at = time.Now().Add(-adoptAfter)
	second.connections.others[n] = seen
	second.connections.mu.Unlock()
	turns(second)
	first.storeState(id, store.Connected, "")
	turns(second)
	if len(second.connections.others) != 0 {
		t.Errorf("it remembers %v", second.connections.others)
	}

	// Disconnected by the first: between DISCONNECTING and DISCONNECTED it waits for all.
	var at []string
	first.publisher = spreading{first.published, func() {
		k, err := shared.KeyStore(context.Background(), n)
		if err != nil {
			t.Error(err)
			return
		}
		at = append(at, k.State)
	}}
	first.ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	first.storeState(id, store.Disconnected, "")
	if len(at) != 1 || at[0] != store.Disconnecting {
		t.Errorf("it waited in %v", at)
	}

	// The one that was asked does it at once.
	first.ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", id), &noMembers{})
	turns(first)
	first.storeState(id, store.Connected, "")
	if len(first.connections.mine) != 0 {
		t.Errorf("it has %v to do still", first.connections.mine)
	}

	// To disconnect is for the owner at once, and for nobody else.
	if _, err := shared.UpdateKeyStore(t.Context(), n, func(k *store.KeyStore) error { k.State = store.Disconnecting; return nil }, nil); err != nil {
		t.Fatal(err)
	}
	turns(first)
	first.storeState(id, store.Disconnecting, "")
	turns(second)
	first.storeState(id, store.Disconnected, "")
}

// meanwhile is a KeySource that does something after it was asked for the first time, and before anything is decided.
type meanwhile struct {
	sigv4.KeySource
	once *sync.Once
	do   func()
}

func (m meanwhile) AccessKey(id []byte) *sigv4.AccessKey {
	k := m.KeySource.AccessKey(id)
	m.once.Do(m.do)
	return k
}

// Another process makes the caller's access key inactive, and has answered, when this one goes on with a request that it has verified before: nothing is written.
func TestOvertaken(t *testing.T) {
	e := newEnv(t)
	key := e.create("{}").KeyId
	e.applied = shared.Committed
	e.published.take()
	bodies := map[string]string{
		"CreateGrant":  obj("KeyId", key, "GranteePrincipal", "arn:aws:iam::"+e.account.String()+":root", "Operations", []string{"Decrypt"}),
		"DisableKey":   obj("KeyId", key),
		"CreateKey":    "{}",
		"PutKeyPolicy": obj("KeyId", key, "Policy", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*"}]}`, "BypassPolicyLockoutSafetyCheck", true),
		"CreateAlias":  obj("AliasName", "alias/overtaken", "TargetKeyId", key),
	}
	set := func(active bool) {
		t.Helper()
		k, err := shared.AccessKey(context.Background(), e.keyID)
		if err != nil {
			t.Error(err)
			return
		}
		defer k.Secret.Wipe()
		k.Active = active
		if err := shared.PutAccessKey(context.Background(), k); err != nil {
			t.Error(err)
		}
	}
	for op, body := range bodies {
		whole := e.verifier
		verifier, err := sigv4.New(sigv4.Config{Regions: []string{e.region}, Keys: meanwhile{e.cast, new(sync.Once), func() { set(false) }}})
		if err != nil {
			t.Fatal(err)
		}
		e.verifier = verifier
		before := shared.Committed()
		resp := e.call(op, body)
		if resp.Code != kmsapi.KMSInternal || shared.Committed() != before+1 {
			t.Errorf("%s: %s, and %d changes", op, resp.Code, shared.Committed()-before)
		}
		set(true)
		e.verifier = whole
	}
	for op, body := range bodies {
		if resp := e.call(op, body); resp.Code != kmsapi.OK {
			t.Errorf("%s: %s %s", op, resp.Code, resp.Body)
		}
		e.call("EnableKey", obj("KeyId", key)) // in whatever order they come
	}
}
