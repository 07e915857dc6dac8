package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/snapshot"
)

func keyStoreName(region string) KeyStoreName {
	var random [9]byte
	rand.Read(random[:])
	return KeyStoreName{Region: region, Account: 111122223333, ID: NewKeyStoreID(random)}
}

// newCluster is the record of a CloudHSM key store, not stored yet.
func newCluster(region, cluster string) *KeyStore {
	n := keyStoreName(region)
	return &KeyStore{
		KeyStoreName: n, CustomName: "of " + n.ID, Type: CloudHSM, Created: t0, State: Disconnected, Cluster: cluster, TrustAnchor: "-----BEGIN…", Secret: secret.New([]byte("hunter2")),
	}
}

// newProxy is the record of an external key store, not stored yet.
func newProxy(region, endpoint, path string) *KeyStore {
	n := keyStoreName(region)
	return &KeyStore{
		KeyStoreName: n, CustomName: "of " + n.ID, Type: ExternalKeyStore, Created: t0, State: Disconnected, Connectivity: PublicEndpoint,
		Endpoint: "https://" + endpoint, Path: path + "/kms/xks/v1", AccessKeyID: "ABCDEFGHIJKLMNOPQRST", Secret: secret.New([]byte("correct horse battery staple")),
	}
}

func unrelated(string) bool { return false }

func mustKeyStore(t *testing.T, k *KeyStore) *KeyStore {
	t.Helper()
	if err := shared.CreateKeyStore(t.Context(), k, 100, unrelated); err != nil {
		t.Fatal(err)
	}
	return k
}

func setState(t *testing.T, n KeyStoreName, state string) {
	t.Helper()
	if _, err := shared.UpdateKeyStore(t.Context(), n, func(k *KeyStore) error { k.State = state; return nil }, nil); err != nil {
		t.Fatal(err)
	}
}

// Records are read as they were written, in their Region alone and in order, and only the store's Sealer opens them.
func TestKeyStoreRecords(t *testing.T) {
	const region = "ks-records-1"
	made := []*KeyStore{newCluster(region, "cluster-aaaaaaaaaaa"), newProxy(region, "proxy.example", "/a"), newProxy(region, "proxy.example", "/b"), newProxy(region, "vpc.example", "")}
	made[3].Connectivity, made[3].VpcService, made[3].VpcServiceOwner = VpcEndpointService, "com.amazonaws.vpce.us-east-1.vpce-svc-1", "111122223333"
	made[2].Account++
	made[0].Roots = []byte("one rootthe next")
	for _, k := range made {
		mustKeyStore(t, k)
	}
	mustKeyStore(t, newProxy(region+"2", "proxy.example", "/a"))
	list, err := shared.KeyStores(t.Context(), region)
	if err != nil || len(list) != len(made) {
		t.Fatalf("%d key stores, %v", len(list), err)
	}
	for i, k := range list {
		if i > 0 && k.path() <= list[i-1].path() {
			t.Errorf("%s comes after %s", k.path(), list[i-1].path())
		}
		if one, err := shared.KeyStore(t.Context(), k.KeyStoreName); err != nil || !reflect.DeepEqual(one, k) || k.Secret.Len() > 0 {
			t.Errorf("%v: %+v, in the list %+v; or a secret is there", err, one, k)
		}
		one, err := shared.OpenKeyStore(t.Context(), k.KeyStoreName)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(made, func(m *KeyStore) bool { return reflect.DeepEqual(m, one) }) {
			t.Errorf("read %+v", one)
		}
		value, _, err := shared.get(t.Context(), k.key())
		if err != nil || bytes.Contains(value, one.Secret.Expose()) || !bytes.Contains(value, []byte(k.CustomName)) {
			t.Errorf("%v: the secret is in clear, or the record is not there: %s", err, value)
		}
	}
	if list, _, err = shared.AccountKeyStores(t.Context(), region, 111122223333); err != nil || len(list) != 3 || list[0].Secret.Len() > 0 {
		t.Errorf("the account has %d, %v; or the secret is in the list", len(list), err)
	}
	if n, err := shared.KeyStoreCount(t.Context(), region, 111122223333); err != nil || n != 3 {
		t.Errorf("%d are counted, %v", n, err)
	}
	for _, id := range []string{"", "cks-", "cks-0123456789abcdef", "cks-0123456789abcdefg", "cks-../../../../abcde", "0123456789abcdef01234"} {
		if _, err := shared.KeyStore(t.Context(), KeyStoreName{region, 111122223333, id}); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := withoutSealer(shared).OpenKeyStore(t.Context(), made[0].KeyStoreName); !errors.Is(err, ErrNoSealer) {
		t.Errorf("without a sealer: %v", err)
	}
}

// Whoever writes etcd's records but has not the Sealer's key cannot have a secret shown to another cluster or proxy, nor move it to another key store.
func TestKeyStoreSecretsAreBound(t *testing.T) {
	const region = "ks-bound-1"
	k, other := mustKeyStore(t, newProxy(region, "proxy.example", "/a")), mustKeyStore(t, newProxy(region, "proxy.example", "/b"))
	value, _, err := shared.get(t.Context(), k.key())
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string][2]string{
		"endpoint": {"https://proxy.example", "https://enemy.example"}, "path": {"/a/kms", "/b/kms"}, "access key": {"ABCDEFGHIJKLMNOPQRST", "TBCDEFGHIJKLMNOPQRST"},
		"format": {"\x01", "\x02"}, "state": {"DISCONNECTED", "ELSEWHERE"}, "unknown member": {`"name"`, `"x":1,"name"`}, "roots": {`"name"`, `"roots":"6f6e6520726f6f74","name"`}, "type": {ExternalKeyStore, CloudHSM},
		"ID": {k.ID, other.ID}, "Region": {region, region + "2"},
	} {
		bad := strings.ReplaceAll(string(value), edit[0], edit[1])
		if _, err := shared.openKeyStore(k.KeyStoreName, []byte(bad), 1, true); bad == string(value) || !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := shared.client.Put(t.Context(), other.key(), strings.ReplaceAll(string(value), k.ID, other.ID)); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.OpenKeyStore(t.Context(), other.KeyStoreName); !errors.Is(err, ErrDamaged) {
		t.Errorf("with a secret of another key store: %v", err)
	}
}

// A record that is damaged keeps nobody from the others.
func TestDamagedKeyStores(t *testing.T) {
	const region = "ks-damaged-1"
	made := []*KeyStore{mustKeyStore(t, newProxy(region, "proxy.example", "/a")), mustKeyStore(t, newProxy(region, "proxy.example", "/b")), mustKeyStore(t, newProxy(region, "proxy.example", "/c"))}
	nobody := keyStoresPrefix(region) + "nobody/" + made[0].ID
	for _, key := range []string{made[1].key(), nobody} {
		if _, err := shared.client.Put(t.Context(), key, "{}"); err != nil {
			t.Fatal(err)
		}
	}
	list, err := shared.KeyStores(t.Context(), region)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), made[1].ID) || !strings.Contains(err.Error(), nobody) || strings.Contains(err.Error(), made[2].ID) {
		t.Errorf("with two damaged: %v", err)
	}
	if len(list) != 2 || list[0].ID == made[1].ID || list[1].ID == made[1].ID {
		t.Errorf("the others: %v", list)
	}
	list, damaged, err := shared.AccountKeyStores(t.Context(), region, made[0].Account)
	if err != nil || len(list) != 2 || !slices.Equal(damaged, []string{made[1].ID}) {
		t.Errorf("of the account: %d, %v, %v", len(list), damaged, err)
	}
	// It counts, and its ID is taken; the others are made and changed as if it were not there.
	another := newProxy(region, "proxy.example", "/d")
	if err := shared.CreateKeyStore(t.Context(), another, 3, nil); !errors.Is(err, ErrKeyStoreLimit) {
		t.Errorf("one more than there may be: %v", err)
	}
	if err := shared.CheckKeyStore(t.Context(), another, 4, nil); err != nil {
		t.Error(err)
	}
	if err := shared.CreateKeyStore(t.Context(), another, 4, nil); err != nil {
		t.Error(err)
	}
	again := newProxy(region, "proxy.example", "/e")
	again.KeyStoreName = made[1].KeyStoreName
	if err := shared.CreateKeyStore(t.Context(), again, 9, nil); !errors.Is(err, ErrExists) {
		t.Errorf("in its place: %v", err)
	}
	if k, err := shared.UpdateKeyStore(t.Context(), made[0].KeyStoreName, func(k *KeyStore) error { k.CustomName = "renamed"; return nil }, nil); err != nil || k.CustomName != "renamed" {
		t.Errorf("a change: %v", err)
	}
	if _, err := shared.UpdateKeyStore(t.Context(), made[1].KeyStoreName, func(*KeyStore) error { return nil }, nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("a change of it: %v", err)
	}
}

// What key stores cannot share, in creation and in update alike.
func TestKeyStoreUniqueness(t *testing.T) {
	const region = "ks-unique-1"
	vpc := func(endpoint, service string) *KeyStore {
		k := newProxy(region, endpoint, "")
		k.Connectivity, k.VpcService, k.VpcServiceOwner = VpcEndpointService, service, "111122223333"
		return k
	}
	cluster := mustKeyStore(t, newCluster(region, "cluster-uuuuuuuuuuu"))
	public := mustKeyStore(t, newProxy(region, "public.example", "/a"))
	private := mustKeyStore(t, vpc("private.example", "svc-1"))
	for name, c := range map[string]struct {
		k    *KeyStore
		want error
	}{
		"name":                               {func() *KeyStore { k := newProxy(region, "x.example", ""); k.CustomName = cluster.CustomName; return k }(), ErrKeyStoreName},
		"cluster":                            {newCluster(region, cluster.Cluster), ErrClusterInUse},
		"cluster of another account":         {func() *KeyStore { k := newCluster(region, cluster.Cluster); k.Account++; return k }(), ErrClusterInUse},
		"cluster of another Region":          {newCluster("ks-unique-2", cluster.Cluster), ErrClusterInUse},
		"cluster with the same keys":         {newCluster(region, "cluster-relatedrel"), ErrClusterInUse},
		"endpoint and path":                  {newProxy(region, "public.example", "/a"), ErrXksURI},
		"endpoint, other path":               {newProxy(region, "public.example", "/b"), nil},
		"endpoint of a public one":           {vpc("public.example", "svc-2"), ErrXksEndpoint},
		"endpoint of a private one":          {newProxy(region, "private.example", "/a"), ErrXksEndpoint},
		"endpoint and path of a private one": {newProxy(region, "private.example", ""), ErrXksURI},
		"VPC service":                        {vpc("other.example", "svc-1"), ErrXksVpcService},
		"nothing":                            {vpc("third.example", "svc-3"), nil},
		"another account's everything": {func() *KeyStore {
			k := vpc("private.example", "svc-1")
			k.Account, k.CustomName = k.Account+1, cluster.CustomName
			return k
		}(), nil},
	} {
		related := func(c string) bool { return c == cluster.Cluster && name == "cluster with the same keys" }
		if err := shared.CreateKeyStore(t.Context(), c.k, 100, related); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.want != nil {
			if _, err := shared.KeyStore(t.Context(), c.k.KeyStoreName); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: it was made: %v", name, err)
			}
		}
	}

	mine := mustKeyStore(t, newProxy(region, "mine.example", ""))
	second := mustKeyStore(t, newCluster(region, "cluster-sssssssssss"))
	for name, c := range map[string]struct {
		n    KeyStoreName
		edit func(*KeyStore)
		want error
	}{
		"name":     {mine.KeyStoreName, func(k *KeyStore) { k.CustomName = public.CustomName }, ErrKeyStoreName},
		"URI":      {mine.KeyStoreName, func(k *KeyStore) { k.Endpoint, k.Path = public.Endpoint, public.Path }, ErrXksURI},
		"endpoint": {mine.KeyStoreName, func(k *KeyStore) { k.Endpoint, k.Path = private.Endpoint, "/z/kms/xks/v1" }, ErrXksEndpoint},
		"service": {mine.KeyStoreName, func(k *KeyStore) {
			k.Connectivity, k.VpcService, k.VpcServiceOwner = VpcEndpointService, private.VpcService, "111122223333"
		}, ErrXksVpcService},
		"cluster": {second.KeyStoreName, func(k *KeyStore) { k.Cluster = cluster.Cluster }, ErrClusterInUse},
	} {
		_, err := shared.UpdateKeyStore(t.Context(), c.n, func(k *KeyStore) error { c.edit(k); return nil }, nil)
		if !errors.Is(err, c.want) {
			t.Errorf("update, %s: %v", name, err)
		}
	}

	// A cluster that is left is free, and so is that of a key store that is deleted.
	moved, err := shared.UpdateKeyStore(t.Context(), second.KeyStoreName, func(k *KeyStore) error { k.Cluster = "cluster-ttttttttttt"; return nil }, nil)
	if err != nil || moved.Secret.Len() > 0 || moved.Revision == second.Revision {
		t.Fatalf("%v: %+v", err, moved)
	}
	if again, err := shared.OpenKeyStore(t.Context(), second.KeyStoreName); err != nil || !again.Secret.Equal(second.Secret.Expose()) {
		t.Errorf("%v: it has another secret", err)
	}
	third := mustKeyStore(t, newCluster(region, second.Cluster))
	if _, err := shared.DeleteKeyStore(t.Context(), third.KeyStoreName, func(*KeyStore) error { return nil }); err != nil {
		t.Fatal(err)
	}
	mustKeyStore(t, newCluster(region, second.Cluster))
	if err := shared.CreateKeyStore(t.Context(), newCluster(region, moved.Cluster), 100, unrelated); !errors.Is(err, ErrClusterInUse) {
		t.Errorf("the cluster that it went to: %v", err)
	}
	// A new name is no matter of clusters, whatever is known of them since.
	if _, err := shared.UpdateKeyStore(t.Context(), moved.KeyStoreName, func(k *KeyStore) error { k.CustomName = "new"; return nil },
		func(*KeyStore, string) bool { return true }); err != nil {
		t.Errorf("a new name: %v", err)
	}
}

// Several control planes make key stores at once, all that conflict: one of each is made, and no more than the limit.
func TestKeyStoresAtOnce(t *testing.T) {
	const region, limit = "ks-race-1", 4
	var made, limited, clash atomic.Int32
	var wg sync.WaitGroup
	for plane := range 3 {
		s := another(shared)
		for i := range 10 {
			k := newProxy(region, "race.example", fmt.Sprintf("/%d", i))
			if i >= 8 {
				k = newCluster(region, "cluster-racerace23"[:17]+string(rune('0'+i)))
			}
			wg.Go(func() {
				var err error
				for {
					if err = s.CreateKeyStore(context.Background(), k, limit, unrelated); !errors.Is(err, ErrConflict) {
						break
					}
				}
				switch {
				case err == nil:
					made.Add(1)
				case errors.Is(err, ErrKeyStoreLimit):
					limited.Add(1)
				case errors.Is(err, ErrXksURI), errors.Is(err, ErrClusterInUse):
					clash.Add(1)
				default:
					t.Errorf("plane %d: %v", plane, err)
				}
			})
		}
	}
	wg.Wait()
	list, _, err := shared.AccountKeyStores(t.Context(), region, 111122223333)
	if err != nil || len(list) != limit || made.Load() != limit || limited.Load() == 0 || clash.Load() == 0 {
		t.Errorf("%v: there are %d; %d made, %d over the limit, %d clashes", err, len(list), made.Load(), limited.Load(), clash.Load())
	}
	seen := map[string]bool{}
	for _, k := range list {
		if at := k.Endpoint + k.Path + k.Cluster; seen[at] {
			t.Errorf("%s is twice", at)
		} else {
			seen[at] = true
		}
	}
}

// newStoreKey is a key in the custom key store, not stored yet.
func newStoreKey(n KeyStoreName, xksKeyID string) *Key {
	k := newKey(n.Region)
	k.Store = &snapshot.KeyStore{ID: n.ID, XksKeyID: xksKeyID}
	if xksKeyID != "" {
		k.Origin = snapshot.OriginExternalKeyStore
		return k
	}
	k.Origin = snapshot.OriginCloudHSM
	v := &k.Versions[0]
	v.Salt = [32]byte{}
	for i := range byte(3) {
		p := &snapshot.PrivateKey{Root: [8]byte{7, i}, Wrapped: make([]byte, 40)}
		rand.Read(p.Wrapped)
		p.ID = snapshot.PrivateKeyID(k.Account, k.ID, k.Spec, k.Usage, p)
		if i == 0 {
			v.Resident, v.Root = p, p.Root
		} else {
			v.Copies = append(v.Copies, p)
		}
	}
	v.MaterialID = snapshot.ResidentMaterialID(k.Account, k.ID, &[32]byte{1})
	return k
}

func TestKeysInKeyStores(t *testing.T) {
	const region = "ks-keys-1"
	cluster, proxy := mustKeyStore(t, newCluster(region, "cluster-kkkkkkkkkkk")), mustKeyStore(t, newProxy(region, "keys.example", ""))
	create := func(k *Key) error { return shared.CreateKey(t.Context(), k, 1000) }
	if err := create(newStoreKey(cluster.KeyStoreName, "")); !errors.Is(err, ErrUnconnected) {
		t.Errorf("into one that is not connected: %v", err)
	}
	setState(t, cluster.KeyStoreName, Connected)
	setState(t, proxy.KeyStoreName, Connected)
	if err := create(newStoreKey(keyStoreName(region), "")); !errors.Is(err, ErrNoKeyStore) {
		t.Errorf("into one that does not exist: %v", err)
	}
	k := newStoreKey(proxy.KeyStoreName, "key-1")
	k.Store = &snapshot.KeyStore{ID: "../" + proxy.ID, XksKeyID: "key-1"}
	if err := create(k); !errors.Is(err, ErrNoKeyStore) {
		t.Errorf("into what is no ID: %v", err)
	}

	want := []*Key{newStoreKey(cluster.KeyStoreName, ""), newStoreKey(cluster.KeyStoreName, ""), newStoreKey(proxy.KeyStoreName, "key-1"), newStoreKey(proxy.KeyStoreName, "..")}
	for _, k := range want {
		if err := create(k); err != nil {
			t.Fatal(err)
		}
		got, err := shared.Key(t.Context(), k.KeyName)
		if err != nil || !reflect.DeepEqual(got, k) {
			t.Errorf("%v: got  %+v\nwant %+v", err, got, k)
		}
		r, err := shared.KeyRecord(t.Context(), k.Region, k.Account, k.ID)
		if err != nil || !reflect.DeepEqual(r.Store, k.Store) || !reflect.DeepEqual(r.Versions[0].Copies, k.Versions[0].Copies) {
			t.Errorf("%v: record %+v", err, r)
		}
	}
	if err := create(newStoreKey(proxy.KeyStoreName, "key-1")); !errors.Is(err, ErrXksKey) {
		t.Errorf("the same external key: %v", err)
	}
	if taken, err := shared.XksKeyTaken(t.Context(), proxy.KeyStoreName, "key-1"); err != nil || !taken {
		t.Errorf("taken %v, %v", taken, err)
	}
	if taken, err := shared.XksKeyTaken(t.Context(), proxy.KeyStoreName, "key-"); err != nil || taken {
		t.Errorf("taken %v, %v", taken, err)
	}
	var pages []keyid.ID
	for more, after := true, (*keyid.ID)(nil); more; {
		var ids []keyid.ID
		var err error
		if ids, more, err = shared.KeysOf(t.Context(), cluster.KeyStoreName, after, 1); err != nil || len(ids) != 1 {
			t.Fatalf("%d keys, %v", len(ids), err)
		}
		pages, after = append(pages, ids...), &ids[0]
	}
	if len(pages) != 2 || pages[0].String() >= pages[1].String() {
		t.Errorf("the key store has %v", pages)
	}

	// It cannot be deleted before its keys are, whose external keys are free then.
	anyway := func(*KeyStore) error { return nil }
	if _, err := shared.DeleteKeyStore(t.Context(), proxy.KeyStoreName, anyway); !errors.Is(err, ErrKeyStoreKeys) {
		t.Errorf("deleting one with keys: %v", err)
	}
	for _, k := range want[2:] {
		if _, was, err := shared.buryAgain(t.Context(), k.KeyName, lives{unknown: true}); err != nil || !was {
			t.Fatal(was, err)
		}
	}
	if taken, err := shared.XksKeyTaken(t.Context(), proxy.KeyStoreName, "key-1"); err != nil || taken {
		t.Errorf("after the key's deletion: taken %v, %v", taken, err)
	}
	refusal := errors.New("no")
	if _, err := shared.DeleteKeyStore(t.Context(), proxy.KeyStoreName, func(*KeyStore) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("refused: %v", err)
	}
	if _, err := shared.DeleteKeyStore(t.Context(), proxy.KeyStoreName, anyway); err != nil {
		t.Error(err)
	}
	if _, err := shared.DeleteKeyStore(t.Context(), proxy.KeyStoreName, anyway); !errors.Is(err, ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	resp, err := shared.client.Get(t.Context(), root, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Key), proxy.ID) {
			t.Errorf("left: %s", kv.Key)
		}
	}
}

// A key comes into a key store, or the key store is deleted; never both.
func TestKeyAgainstDeletion(t *testing.T) {
	const region = "ks-deletion-1"
	kept, gone := 0, 0
	for i := range 30 {
		n := mustKeyStore(t, newProxy(region, "race.example", fmt.Sprintf("/%d", i))).KeyStoreName
		setState(t, n, Connected)
		k := newStoreKey(n, "key")
		var made, deleted error
		var wg sync.WaitGroup
		wg.Go(func() { made = shared.CreateKey(context.Background(), k, 1000) })
		wg.Go(func() {
			_, deleted = shared.DeleteKeyStore(context.Background(), n, func(*KeyStore) error { return nil })
		})
		wg.Wait()
		switch {
		case made == nil && errors.Is(deleted, ErrKeyStoreKeys):
			kept++
		case errors.Is(made, ErrNoKeyStore) && deleted == nil:
			gone++
		default:
			t.Fatalf("the key: %v; the deletion: %v", made, deleted)
		}
	}
	t.Logf("%d key stores were kept by a key, %d were deleted first", kept, gone)
}

// Records that do not go together are neither written nor read.
func TestDamagedKeysInKeyStores(t *testing.T) {
	n := keyStoreName("ks-damaged-1")
	other := newStoreKey(n, "")
	for name, spoil := range map[string]func(*Key){
		"no key store":                   func(k *Key) { k.Store = nil },
		"an external key":                func(k *Key) { k.Store = &snapshot.KeyStore{ID: n.ID, XksKeyID: "x"} },
		"another origin":                 func(k *Key) { k.Origin = "AWS_KMS" },
		"no ID":                          func(k *Key) { k.Store = &snapshot.KeyStore{} },
		"a derived version":              func(k *Key) { k.Versions = nil; addVersion(k, 1) },
		"two versions":                   func(k *Key) { k.Versions = append(k.Versions, k.Versions[0]); k.Versions[1].Number = 2 },
		"a copy of another key":          func(k *Key) { k.Versions[0].Copies = other.Versions[0].Copies },
		"a copy twice":                   func(k *Key) { v := &k.Versions[0]; v.Copies = append(v.Copies[:1:1], v.Copies[0]) },
		"a copy of the first one's root": func(k *Key) { v := &k.Versions[0]; v.Copies = append(v.Copies[:1:1], v.Resident) },
		"a copy with another root": func(k *Key) {
			v := &k.Versions[0]
			c := *v.Copies[1]
			c.Root[5]++
			v.Copies = append(v.Copies[:1:1], &c)
		},
		"a copy without a key":     func(k *Key) { v := &k.Versions[0]; v.Copies = append(v.Copies[:1:1], nil) },
		"material that is missing": func(k *Key) { k.Versions[0].Missing, k.Versions[0].Resident = true, nil },
		"external: resident": func(k *Key) {
			k.Origin, k.Store = snapshot.OriginExternalKeyStore, &snapshot.KeyStore{ID: n.ID, XksKeyID: "x"}
		},
		"asymmetric": func(k *Key) {
			*k = *newPrivate("ks-damaged-1", "RSA_2048", "SIGN_VERIFY", []byte("public"))
			k.Store = other.Store
		},
		"no material, pending import": func(k *Key) { k.Versions, k.Current, k.State = nil, 0, kmsapi.StatePendingImport },
		"copies of a key in no key store": func(k *Key) {
			k.Store, k.Origin = nil, "EXTERNAL"
		},
	} {
		k := newStoreKey(n, "")
		value, err := encodeKey(k)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := decodeKey(k.KeyName, value, 0); err != nil || !reflect.DeepEqual(got.Versions, k.Versions) || *got.Store != *k.Store {
			t.Fatalf("%v: %+v", err, got)
		}
		spoil(k)
		if err := shared.CreateKey(t.Context(), k, 1000); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
