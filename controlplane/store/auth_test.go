package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// another is a second process on the same etcd: it has locks of its own and remembers nothing of what s has seen. It is not closed.
func another(s *Store) *Store {
	c := clientv3.NewCtxClient(context.Background())
	c.KV, c.Watcher, c.Lease = s.auth.KV, s.client.Watcher.(*authWatcher).Watcher, s.client.Lease
	o := newStore(c, s.sealer)
	o.log = quiet
	o.auth.sealed.Store(s.auth.sealed.Load())
	o.auth.key.Store(s.auth.key.Load())
	o.identity = s.identity
	return o
}

func withoutSealer(s *Store) *Store {
	o := another(s)
	o.sealer = nil
	return o
}

// raw is what etcd has under a key.
func raw(t testing.TB, s *Store, key string) *mvccpb.KeyValue {
	t.Helper()
	resp, err := s.auth.KV.Get(t.Context(), key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("%s: %v, %v", key, resp, err)
	}
	return resp.Kvs[0]
}

// putRaw is what somebody does who can write to etcd.
func putRaw(t testing.TB, s *Store, key, value string) {
	t.Helper()
	if _, err := s.auth.KV.Put(t.Context(), key, value); err != nil {
		t.Fatal(err)
	}
}

// prefixes are those that doc.go lists.
func prefixes(t *testing.T) (list []string) {
	t.Helper()
	b, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^//\t/keyplane/1/((?:meta/)?\{[a-z,-]+\}|[a-z]+(?:/[a-z-]+)?)`).FindAllStringSubmatch(string(b), -1) {
		head, braces, _ := strings.Cut(m[1], "{")
		if braces == "" {
			list = append(list, m[1])
			continue
		}
		for p := range strings.SplitSeq(strings.TrimSuffix(braces, "}"), ",") {
			list = append(list, head+p)
		}
	}
	return list
}

// Under every prefix that the package knows, what somebody puts who can write to etcd and has seen all that was ever in it is no value, but what was there last.
func TestEveryPrefixIsAuthenticated(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	must(t, s.Authenticate(t.Context(), Trust{}))
	s.auth.key.Load().window = 3
	list := prefixes(t)
	for _, known := range []string{"key", "policy", "grant", "grantee", "granteesize", "grantname", "grantcount", "retiring", "alias", "accesskey", "iam/user", "iam/role", "iam/policy",
		"iam/session", "iam/service", "iam/account", "quota", "keystore", "keystorekey", "elapsed", "tombstone", "rotation", "expired", "meta/root", "meta/audit-key", "audit/checkpoint", "owner"} {
		if !slices.Contains(list, known) {
			t.Errorf("%s is not in the list of doc.go, as it is read: %q", known, list)
		}
	}
	ctx := t.Context()
	for _, prefix := range list {
		key, other := root+prefix, root+prefix+"2"
		if plain(key) {
			if prefix != "meta/format" && prefix != "meta/store" && prefix != "meta/barrier" {
				t.Errorf("%s has no trailer", prefix)
			}
			continue
		}
		if !strings.HasPrefix(prefix, "meta/") {
			key, other = key+"/r/111122223333/a", key+"/r/111122223333/b"
		}
		read := func(key string) string {
			t.Helper()
			value, _, err := s.get(ctx, key)
			if errors.Is(err, ErrDamaged) && errors.Is(err, errUnauthenticated) {
				return "damaged"
			}
			if err != nil {
				t.Fatal(err)
			}
			return string(value)
		}
		refused := func(what, key, value string) {
			t.Helper()
			putRaw(t, s, key, value)
			if got := read(key); got != "damaged" {
				t.Errorf("%s, %s: %q was read", prefix, what, got)
			}
		}
		write := func(key, value string) *mvccpb.KeyValue {
			t.Helper()
			if _, err := s.client.Put(ctx, key, value); err != nil {
				t.Fatal(err)
			}
			if got := read(key); got != value {
				t.Fatalf("%s: %q was read", prefix, got)
			}
			return raw(t, s, key)
		}
		first, firstOther := write(key, "\x01one"), write(other, "\x01other")
		second := write(key, "\x01two")
		refused("the older value", key, string(first.Value))
		write(key, "\x01three")
		refused("the value before", key, string(second.Value))
		write(key, "")
		refused("another key's value", key, string(firstOther.Value))
		write(key, "\x01five")
		refused("a value without a trailer", key, "\x01five")
		refused("no value", key, "")
		now := write(key, "\x01six")
		refused("the same value again", key, string(now.Value)) // it was put once, not twice
		now = write(key, "\x01seven")
		for i := range now.Value {
			b := bytes.Clone(now.Value)
			b[i] ^= 1
			kv := &mvccpb.KeyValue{Key: now.Key, Value: b, Version: now.Version, CreateRevision: now.CreateRevision, ModRevision: now.ModRevision}
			if s.auth.read(kv); !bytes.Equal(kv.Value, []byte{damagedFormat}) {
				t.Errorf("%s: byte %d changed: %q", prefix, i, kv.Value)
			}
		}
		for n := range now.Value {
			kv := &mvccpb.KeyValue{Key: now.Key, Value: bytes.Clone(now.Value[:n]), Version: now.Version, CreateRevision: now.CreateRevision, ModRevision: now.ModRevision}
			if s.auth.read(kv); !bytes.Equal(kv.Value, []byte{damagedFormat}) {
				t.Errorf("%s: cut to %d bytes: %q", prefix, n, kv.Value)
			}
		}
		// In another life of the key neither its first value, the window being over, nor a later one.
		if _, err := s.auth.KV.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		refused("the first value of a key that was deleted", key, string(first.Value))
		refused("its second value", key, string(second.Value))
		if _, err := s.auth.KV.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		if got := write(key, "\x01new"); got.Version != 1 {
			t.Errorf("%s: version %d", prefix, got.Version)
		}
	}
}

// Records that were edited, exchanged, put back or made up are damaged to whoever reads them.
func TestForgedRecords(t *testing.T) {
	s, ctx := shared, t.Context()
	k, o := mustCreate(t, s, "forged"), mustCreate(t, s, "forged")
	g := mustGrant(t, newGrant(k))
	revoked := mustGrant(t, newGrant(k))
	kept := raw(t, s, revoked.Key.grantKey(revoked.ID))
	_, err := s.RemoveGrant(ctx, OldGrant{Key: revoked.Key, ID: revoked.ID, Allow: func(*Key, *Grant) error { return nil }})
	must(t, err)
	must(t, s.CreateAlias(ctx, k.KeyName, "alias/forged", 50, t0, allow))
	must(t, s.CreateAlias(ctx, o.KeyName, "alias/forged2", 50, t0, allow))
	a := newAccount(t, s)
	must(t, s.CreatePrincipal(ctx, newUser(a, "u")))
	owner := Owner{Account: a, User: "u"}
	must(t, s.CreateAccessKey(ctx, owner, newKeyOf("AKIAFORGEDFORGED", a)))
	active := raw(t, s, accessKeyPrefix+"AKIAFORGEDFORGED")
	_, err = s.SetAccessKeyActive(ctx, owner, "AKIAFORGEDFORGED", false)
	must(t, err)
	value := 5.0
	_, err = s.SetQuota(ctx, "forged", k.Account, "Q", &value)
	must(t, err)

	readKey := func() error { _, err := s.Key(ctx, k.KeyName); return err }
	edit := func(key, old, new string) string {
		v := string(raw(t, s, key).Value)
		if !strings.Contains(v, old) {
			t.Fatalf("%s has no %q: %q", key, old, v)
		}
		return strings.Replace(v, old, new, 1)
	}
	for _, c := range []struct {
		what, key, value string
		read             func() error
	}{
		{"a state", k.key(), edit(k.key(), `"Enabled"`, `"Disabled"`), readKey},
		{"another key's record", k.key(), string(raw(t, s, o.key()).Value), readKey},
		{"a policy without a trailer", k.policyKey(), "\x01{}", readKey},
		{"another key's policy", k.policyKey(), string(raw(t, s, o.policyKey()).Value), readKey},
		{"what a grant allows", g.Key.grantKey(g.ID), edit(g.Key.grantKey(g.ID), "Decrypt", "Encrypt"), func() error { _, _, err := s.KeyGrants(ctx, k.KeyName, "", 10); return err }},
		{"what decisions take from a grant", g.granteeKey(), edit(g.granteeKey(), g.ID, revoked.ID), func() error { _, err := s.Grants(ctx, k.Region, k.Account, k.ID, g.Grantee.ID); return err }},
		{"an alias", aliasKey("forged", k.Account, "alias/forged"), edit(aliasKey("forged", k.Account, "alias/forged"), k.ID.String(), o.ID.String()),
			func() error { _, err := s.Alias(ctx, "forged", k.Account, "alias/forged"); return err }},
		{"an access key that is active again", accessKeyPrefix + "AKIAFORGEDFORGED", string(active.Value), func() error { _, err := s.AccessKey(ctx, "AKIAFORGEDFORGED"); return err }},
		{"a user", PrincipalName{User, a, "u"}.key(), edit(PrincipalName{User, a, "u"}.key(), "AIDAAAAA", "AIDABBBB"), func() error { _, err := s.Principal(ctx, PrincipalName{User, a, "u"}); return err }},
		{"a quota", quotaKey("forged", k.Account), edit(quotaKey("forged", k.Account), "5", "9"), func() error {
			return s.Quotas(ctx, "forged", func(keyid.Account, map[string]float64) error { return nil })
		}},
	} {
		was := raw(t, s, c.key)
		if err := c.read(); err != nil {
			t.Errorf("%s: before: %v", c.what, err)
		}
		putRaw(t, s, c.key, c.value)
		if err := c.read(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", c.what, err)
		}
		v, err := s.auth.key.Load().open(was)
		must(t, err)
		_, err = s.client.Put(ctx, c.key, string(v)) // as this system writes it
		must(t, err)
		if err := c.read(); err != nil {
			t.Errorf("%s: after: %v", c.what, err)
		}
	}
	// What was revoked a while ago does not come back.
	for range firstWindow {
		must(t, s.Barrier(ctx))
	}
	putRaw(t, s, string(kept.Key), string(kept.Value))
	if _, _, err := s.KeyGrants(ctx, k.KeyName, "", 10); !errors.Is(err, ErrDamaged) {
		t.Error("a revoked grant is back:", err)
	}
}

// Processes that write the same keys, some of them without comparing anything, leave values that verify, and nobody's condition is taken to have failed that did not.
func TestAuthenticatedWritersMeet(t *testing.T) {
	ctx := t.Context()
	key := func(i int) string { return root + fmt.Sprintf("quota/meet/%012d", i) }
	var wg sync.WaitGroup
	for w := range 4 {
		s := another(shared)
		wg.Go(func() {
			for i := range 60 {
				blind, there, gone := key(i%3), key(3+i%2), key(5)
				resp, err := s.client.Txn(ctx).If(absent(key(7))).Then(clientv3.OpPut(blind, fmt.Sprint("\x01", w, i)), clientv3.OpPut(there, "\x01"), clientv3.OpGet(blind)).Else(clientv3.OpGet(blind)).Commit()
				if err != nil || !resp.Succeeded || len(resp.Responses) != 3 {
					t.Errorf("a condition that holds: %v %v", resp, err)
					return
				}
				if kvs := resp.Responses[2].GetResponseRange().Kvs; len(kvs) != 1 || string(kvs[0].Value) != fmt.Sprint("\x01", w, i) {
					t.Errorf("read in the transaction: %q", kvs)
				}
				resp, err = s.client.Txn(ctx).If(present(key(7))).Then(clientv3.OpPut(gone, "\x01no")).Else(clientv3.OpGet(blind)).Commit()
				if err != nil || resp.Succeeded || len(resp.Responses[0].GetResponseRange().Kvs) != 1 || resp.Responses[0].GetResponseRange().Kvs[0].Value[0] != 1 {
					t.Errorf("a condition that does not hold: %v %v", resp, err)
				}
				if i%10 == 0 {
					if _, err := s.client.Delete(ctx, there); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	must(t, shared.walk(ctx, root+"quota/meet/", func(key string, value []byte, _ int64) error {
		if len(value) == 0 || value[0] != 1 {
			t.Errorf("%s: %q", key, value)
		}
		return nil
	}))
}

// A first value that is created too late is written again at once, and keeps its lease.
func TestLateFirstValue(t *testing.T) {
	ctx := t.Context()
	s := another(shared)
	key := newMACKey(make([]byte, 32))
	key.window = -1 // everything is late
	s.auth.key.Store(key)
	lease, err := s.client.Grant(ctx, 60)
	must(t, err)
	at := root + "quota/late/1"
	ok, _, err := s.commit(ctx, []clientv3.Cmp{absent(at)}, []clientv3.Op{clientv3.OpPut(at, "\x01v", clientv3.WithLease(lease.ID))})
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if value, _, err := s.get(ctx, at); err != nil || string(value) != "\x01v" {
		t.Errorf("%q %v", value, err)
	}
	if kv := raw(t, s, at); kv.Version != 2 || kv.Lease != int64(lease.ID) {
		t.Errorf("%+v", kv)
	}
	_, err = s.client.Delete(ctx, at)
	must(t, err)
}

// What cannot be verified is refused, not let through.
func TestUnauthenticatedRefuses(t *testing.T) {
	ctx, s := t.Context(), another(shared)
	for what, txn := range map[string]clientv3.Txn{
		"a compare of a value": s.client.Txn(ctx).If(clientv3.Compare(clientv3.Value(root+"quota/x"), "=", "")),
		"a put in Else":        s.client.Txn(ctx).Else(clientv3.OpPut(root+"quota/x", "")),
		"a transaction inside": s.client.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut(root+"quota/x", "")}, nil)),
	} {
		if _, err := txn.Commit(); !errors.Is(err, errCompare) {
			t.Errorf("%s: %v", what, err)
		}
	}
	s.auth.key.Store(nil)
	if _, err := s.client.Get(ctx, root+"quota/x"); !errors.Is(err, errNoKey) {
		t.Error("a read without the key:", err)
	}
	if _, err := s.client.Put(ctx, root+"quota/x", ""); !errors.Is(err, errNoKey) {
		t.Error("a write without the key:", err)
	}
	if _, err := s.Key(ctx, newKey("x").KeyName); !errors.Is(err, errNoKey) {
		t.Error("a key without the key:", err)
	}
	if _, err := s.client.Put(ctx, metaPrefix+"x", ""); !errors.Is(err, errNoKey) {
		t.Error("a pin without the key:", err)
	}
}

// A watch gives what verifies, and says of the rest that it is damaged.
func TestWatchIsAuthenticated(t *testing.T) {
	ctx, s := t.Context(), shared
	key := root + "quota/watched/1"
	events := s.client.Watch(ctx, key, clientv3.WithPrevKV())
	if _, err := s.client.Put(ctx, key, "\x01a"); err != nil {
		t.Fatal(err)
	}
	putRaw(t, s, key, "\x01b")
	_, err := s.client.Put(ctx, key, "\x01c")
	must(t, err)
	_, err = s.client.Delete(ctx, key)
	must(t, err)
	var got []string
	for len(got) < 4 {
		select {
		case resp := <-events:
			for _, e := range resp.Events {
				prev := "-"
				if e.PrevKv != nil {
					prev = string(e.PrevKv.Value)
				}
				got = append(got, fmt.Sprintf("%q %q", prev, e.Kv.Value))
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no event after", got)
		}
	}
	if want := []string{`"-" "\x01a"`, `"\x01a" "\xff"`, `"\xff" "\x01c"`, `"\x01c" ""`}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Records from before they were authenticated are taken once, when somebody vouches for them, also if that is interrupted; never again after that.
func TestPlainStore(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := openAt(t, dir)
	var keys []*Key
	for range rewritePage { // some pages
		keys = append(keys, mustCreate(t, s, "plain"))
	}
	_, err := s.Pin(ctx, "account", "a")
	must(t, err)
	must(t, s.PutSession(ctx, newSession("ASIAPLAIN0000001", 1), t0))
	if err := s.Authenticate(ctx, Trust{}); !errors.Is(err, ErrPlain) {
		t.Fatal("nobody vouched:", err)
	}
	if _, err := os.Stat(filepath.Join(dir, floorFile)); err == nil {
		t.Error("there is a floor")
	}
	// Interrupted before each of the first transactions.
	below := s.auth.KV
	for n := range 3 {
		s.auth.KV = &failing{KV: below, after: n}
		if err := s.Authenticate(ctx, Trust{Plain: true}); !errors.Is(err, errStop) {
			t.Fatalf("%d: %v", n, err)
		}
	}
	s.auth.KV = below
	if err := s.Authenticate(ctx, Trust{}); !errors.Is(err, ErrPlain) {
		t.Fatal("nobody vouched for the rest:", err)
	}
	must(t, s.Authenticate(ctx, Trust{Plain: true}))
	check := func() {
		t.Helper()
		for _, k := range keys {
			got, err := s.Key(ctx, k.KeyName)
			if err != nil {
				t.Fatal(err)
			}
			got.Wipe()
		}
		if v, err := s.Pinned(ctx, "account"); v != "a" || err != nil {
			t.Error(v, err)
		}
		if n, err := s.KeyCount(ctx, "plain", keys[0].Account); n != len(keys) || err != nil {
			t.Error(n, err)
		}
		n := 0
		must(t, s.Sessions(ctx, func(*Session) error { n++; return nil }))
		if n != 1 {
			t.Error(n, "sessions")
		}
	}
	check()
	if kv := raw(t, s, sessionKey(1, "ASIAPLAIN0000001")); kv.Lease == 0 {
		t.Error("the session has lost its lease")
	}
	must(t, s.Close())

	s = openAt(t, dir)
	if _, err := s.Key(ctx, keys[0].KeyName); !errors.Is(err, errNoKey) {
		t.Error("read before the key was there:", err)
	}
	must(t, s.Authenticate(ctx, Trust{}))
	check()
	// Somebody makes it look like one from before.
	value := string(raw(t, s, keys[0].key()).Value)
	putRaw(t, s, keys[0].key(), value[:len(value)-trailerLen])
	if _, err := s.Key(ctx, keys[0].KeyName); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	identity := string(raw(t, s, identityKey).Value)
	putRaw(t, s, formatKey, formatPlain)
	must(t, s.Close())
	s = openAt(t, dir)
	if err := s.Authenticate(ctx, Trust{Plain: true}); !errors.Is(err, ErrOlder) && !errors.Is(err, ErrDamaged) {
		t.Error("the format is another:", err)
	}
	if _, err := s.auth.KV.Delete(ctx, identityKey); err != nil {
		t.Fatal(err)
	}
	if err := s.Authenticate(ctx, Trust{Plain: true}); !errors.Is(err, ErrOlder) {
		t.Error("and the identity is gone:", err)
	}
	putRaw(t, s, formatKey, formatVersion)
	if err := s.Authenticate(ctx, Trust{Plain: true}); !errors.Is(err, ErrDamaged) {
		t.Error("only the identity is gone:", err)
	}
	for i := range len(identity) {
		b := []byte(identity)
		b[i] ^= 1
		putRaw(t, s, identityKey, string(b))
		if err := s.Authenticate(ctx, Trust{Plain: true}); err == nil {
			t.Fatalf("byte %d of the identity was changed: %s", i, b)
		}
	}
	putRaw(t, s, identityKey, identity)
	must(t, s.Authenticate(ctx, Trust{}))
	must(t, s.Close())
}

var errStop = errors.New("stopped")

// failing lets some transactions that write pass.
type failing struct {
	clientv3.KV
	after int
}

func (f *failing) Txn(ctx context.Context) clientv3.Txn { return &failingTxn{Txn: f.KV.Txn(ctx), f: f} }

type failingTxn struct {
	clientv3.Txn
	f *failing
}

func (t *failingTxn) If(c ...clientv3.Cmp) clientv3.Txn { t.Txn = t.Txn.If(c...); return t }
func (t *failingTxn) Else(o ...clientv3.Op) clientv3.Txn {
	t.Txn = t.Txn.Else(o...)
	return t
}

func (t *failingTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	if len(ops) > 0 && ops[0].IsPut() {
		t.f.after--
	}
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *failingTxn) Commit() (*clientv3.TxnResponse, error) {
	if t.f.after < 0 {
		return nil, errStop
	}
	return t.Txn.Commit()
}

// A store that is another one, or older than this process has seen it, is refused; whoever says that this is so gets a new epoch, in which nothing of the one before counts.
func TestFloor(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := openAt(t, dir)
	must(t, s.Authenticate(ctx, Trust{}))
	k := mustCreate(t, s, "floor")
	must(t, s.CheckFloor(ctx))
	must(t, s.Close())
	etcd, old, newer := filepath.Join(dir, "etcd"), filepath.Join(t.TempDir(), "etcd"), filepath.Join(t.TempDir(), "etcd")
	copyOver := func(to, from string) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(from))); err != nil {
			t.Fatal(err)
		}
	}
	copyOver(old, etcd)
	s = openAt(t, dir)
	must(t, s.Authenticate(ctx, Trust{}))
	mustCreate(t, s, "floor")
	ran := time.Duration(0)
	for ticker := s.NewTicker("floor", func() time.Duration { return ran }); ran < time.Hour; ran += time.Minute {
		if _, err := ticker.Tick(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.UpdateKey(ctx, k.KeyName, func(k *Key) error { k.State = kmsapi.StateDisabled; return nil }); err != nil {
		t.Fatal(err)
	}
	disabled := raw(t, s, k.key())
	was := s.identity
	must(t, s.Close())
	copyOver(newer, etcd)

	refused := func(what string) {
		t.Helper()
		s := openAt(t, dir)
		if err := s.Authenticate(ctx, Trust{}); !errors.Is(err, ErrOlder) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := s.Key(ctx, k.KeyName); err == nil {
			t.Errorf("%s: and a key was read", what)
		}
		must(t, s.Close())
	}
	copyOver(etcd, old)
	refused("an older copy")
	copyOver(etcd, old)
	s = openAt(t, dir)
	for raw(t, s, formatKey); s.Committed() < 500; { // as etcdutl snapshot restore --bump-revision does
		if _, err := s.client.Put(ctx, "/elsewhere", ""); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s.Close())
	refused("an older copy of a higher revision")
	must(t, os.RemoveAll(etcd))
	refused("an empty one") // it gets an identity of its own only without a floor
	copyOver(etcd, old)
	s = openAt(t, dir)
	must(t, s.Authenticate(ctx, Trust{Older: true}))
	if now := s.identity; now.ID != was.ID || now.Number != was.Number+1 || now.Name == was.Name {
		t.Errorf("%v after %v", now, was)
	}
	got, err := s.Key(ctx, k.KeyName)
	if err != nil || got.State != kmsapi.StateEnabled {
		t.Fatal(got, err)
	}
	putRaw(t, s, k.key(), string(disabled.Value)) // at whatever version
	if _, err := s.Key(ctx, k.KeyName); !errors.Is(err, ErrDamaged) {
		t.Error("a value of the epoch before:", err)
	}
	must(t, s.Close())
	s = openAt(t, dir)
	must(t, s.Authenticate(ctx, Trust{}))
	must(t, s.Close())
	copyOver(etcd, newer)
	refused("the epoch before, though it has more")

	// While it runs.
	s = openAt(t, t.TempDir())
	must(t, s.Authenticate(ctx, Trust{}))
	must(t, s.CheckFloor(ctx))
	identity := string(raw(t, s, identityKey).Value)
	putRaw(t, s, identityKey, strings.Replace(identity, `"number":1`, `"number":2`, 1))
	if err := s.CheckFloor(ctx); !errors.Is(err, ErrOlder) {
		t.Error("another epoch:", err)
	}
	putRaw(t, s, identityKey, identity)
	must(t, s.CheckFloor(ctx))
	s.auth.seen.Add(1000)
	if err := s.CheckFloor(ctx); !errors.Is(err, ErrOlder) {
		t.Error("an older revision:", err)
	}
	s.auth.seen.Add(-1000)
	must(t, s.Close())

	if err := os.WriteFile(filepath.Join(dir, floorFile), []byte("keyplane store-seen 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir)
	if err := s.Authenticate(ctx, Trust{Older: true}); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Error("a damaged file:", err)
	}
	must(t, s.Close())
}

// Pins are had before they can be verified, and are then.
func TestPinsBeforeTheKey(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := openAt(t, dir)
	pin := func(s *Store, name, value, want string) {
		t.Helper()
		if got, err := s.Pin(ctx, name, value); got != want || err != nil {
			t.Errorf("%s is %q, want %q; %v", name, got, want, err)
		}
		if got, err := s.Pinned(ctx, name); got != want || err != nil {
			t.Errorf("%s is %q, want %q; %v", name, got, want, err)
		}
	}
	pin(s, "a", "1", "1")
	other := another(s) // opened before the first one authenticated the store
	must(t, s.Authenticate(ctx, Trust{}))
	pin(other, "a", "2", "1")
	pin(other, "b", "1", "1")
	pin(s, "b", "2", "2") // it came first
	if err := other.Authenticate(ctx, Trust{}); err == nil || !strings.Contains(err.Error(), `another process has made b "2"`) {
		t.Error(err)
	}
	must(t, s.Close())
	s = openAt(t, dir)
	pin(s, "a", "3", "1")
	pin(s, "c", "1", "1")
	must(t, s.Authenticate(ctx, Trust{}))
	pin(s, "c", "2", "1")
	forged := string(raw(t, s, metaPrefix+"b").Value)
	putRaw(t, s, metaPrefix+"a", forged)
	must(t, s.Close())
	s = openAt(t, dir)
	pin(s, "a", "3", "2") // so it seems
	if err := s.Authenticate(ctx, Trust{}); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	must(t, s.Close())
}

func FuzzTrailer(f *testing.F) {
	key := newMACKey(make([]byte, 32))
	f.Add(key.seal("k", at{1, 0}, 7, []byte("v")), int64(1), int64(8))
	f.Add(key.seal("k", at{2, 8}, 0, []byte("v")), int64(2), int64(8))
	f.Fuzz(func(t *testing.T, sealed []byte, version, create int64) {
		kv := &mvccpb.KeyValue{Key: []byte("k"), Value: bytes.Clone(sealed), Version: version, CreateRevision: create}
		value, err := key.open(kv)
		if err != nil {
			return
		}
		_, seen, _, ok := split(sealed)
		if !ok || !bytes.Equal(key.seal("k", at{version, create}, seen, value), sealed) {
			t.Errorf("%q verifies and is not what is written", sealed)
		}
		if version == 1 && (create <= seen || create-seen > firstWindow) {
			t.Error("too late")
		}
	})
}

func FuzzFloor(f *testing.F) {
	f.Add([]byte("keyplane store-seen 1\n00112233445566778899aabbccddeeff 1 0011223344556677 5\n"))
	f.Add([]byte("keyplane store-seen 2\n00112233445566778899aabbccddeeff 1 0011223344556677 5 60000000000\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, floorFile)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		was, err := readFloor(dir)
		if err != nil {
			return
		}
		if err := was.write(dir); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, text) {
			t.Errorf("%q was read as %q", text, b)
		}
	})
}

// BenchmarkAuthenticated compares a store with trailers with one without.
func BenchmarkAuthenticated(b *testing.B) {
	for _, with := range []bool{false, true} {
		s := openAt(b, b.TempDir())
		if with {
			if err := s.Authenticate(b.Context(), Trust{}); err != nil {
				b.Fatal(err)
			}
		}
		name := map[bool]string{false: "plain", true: "authenticated"}[with]
		k := mustCreate(b, s, "bench")
		b.Run("load/"+name, func(b *testing.B) {
			for b.Loop() {
				r, err := s.KeyRecord(b.Context(), k.Region, k.Account, k.ID)
				if err != nil {
					b.Fatal(err)
				}
				r.Wipe()
			}
		})
		b.Run("create/"+name, func(b *testing.B) {
			for b.Loop() {
				mustCreate(b, s, "bench")
			}
		})
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
