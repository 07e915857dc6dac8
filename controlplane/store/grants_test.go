package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

const manyGrants = 50_000

func newGrantID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// newGrant is a grant that holds every invariant, not stored yet.
func newGrant(k *Key) *Grant {
	return &Grant{
		Grant:   authz.Grant{ID: newGrantID(), Operations: authz.OpDecrypt | authz.OpRetireGrant},
		Key:     k.KeyName,
		Grantee: Party{ID: "AIDAGRANTEE", Shown: "arn:aws:iam::111122223333:user/grantee"},
		Issuer:  111122223333, Created: t0,
	}
}

func grantOf(g *Grant) NewGrant {
	return NewGrant{Key: g.Key, Limit: manyGrants, Decide: func(*Key) (*Grant, string, error) { c := *g; return &c, "", nil }}
}

func mustGrant(t testing.TB, g *Grant) *Grant {
	t.Helper()
	got, err := shared.CreateGrant(t.Context(), grantOf(g))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// left lists what etcd holds under names with the text.
func left(t testing.TB, text string) []string {
	t.Helper()
	resp, err := shared.client.Get(t.Context(), root, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Key), text) {
			names = append(names, string(kv.Key))
		}
	}
	return names
}

func TestGrantRoundTrip(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant")
	plain := newGrant(k)
	full := newGrant(k)
	full.Name, full.SourceARN = "n", "arn:aws:s3:::b"
	full.Grantee = Party{ID: "s3.amazonaws.com", Shown: "S3.amazonaws.com", Service: true}
	full.Retiring = Party{ID: "AROA1:session", Shown: "arn:aws:sts::111122223333:assumed-role/r/session"}
	full.HasEquals, full.Equals = true, []authz.Pair{{Key: []byte(""), Value: []byte("ü\x00")}, {Key: []byte("b"), Value: []byte("")}}
	full.HasSubset, full.Subset = true, []authz.Pair{{Key: []byte("c"), Value: []byte("d")}}
	empty := newGrant(k)
	empty.HasEquals = true
	for _, want := range []*Grant{plain, full, empty} {
		made := mustGrant(t, want)
		want.Revision = made.Revision
		got, err := shared.Grant(ctx, k.KeyName, want.ID)
		if err != nil || !reflect.DeepEqual(got, want) || !reflect.DeepEqual(made, want) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
		}
		list, err := shared.Grants(ctx, k.Region, k.Account, k.KeyName.ID, want.Grantee.ID)
		if i := slices.IndexFunc(list, func(g authz.Grant) bool { return g.ID == want.ID }); err != nil || i < 0 || !reflect.DeepEqual(list[i], want.Grant) {
			t.Errorf("%v: %+v does not hold %+v", err, list, want.Grant)
		}
	}
	if list, err := shared.Grants(ctx, k.Region, k.Account, k.KeyName.ID, "AIDAGRANTEE"); err != nil || len(list) != 2 {
		t.Errorf("%v %v", list, err)
	}
	for _, other := range []string{"", "AIDAGRANTEE2", "AIDAGRANTE", "aidagrantee", "/", "AROA1:session"} {
		if list, err := shared.Grants(ctx, k.Region, k.Account, k.KeyName.ID, other); err != nil || len(list) != 0 {
			t.Errorf("%q: %v %v", other, list, err)
		}
	}
	for _, id := range []string{"", "x", newGrantID(), strings.ToUpper(full.ID), full.ID + "0", "../" + full.ID} {
		if _, err := shared.Grant(ctx, k.KeyName, id); !errors.Is(err, ErrNoGrant) {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestGrantsAreNotWritten(t *testing.T) {
	k := mustCreate(t, shared, "grant-invalid")
	for name, spoil := range map[string]func(*Grant){
		"ID":                 func(g *Grant) { g.ID = "x" },
		"operations":         func(g *Grant) { g.Operations = 0 },
		"unknown operation":  func(g *Grant) { g.Operations = 1 << 31 },
		"grantee":            func(g *Grant) { g.Grantee = Party{} },
		"retiring principal": func(g *Grant) { g.Retiring.ID = "AIDA1" },
		"order":              func(g *Grant) { g.HasEquals, g.Equals = true, []authz.Pair{{Key: []byte("b")}, {Key: []byte("a")}} },
		"twice":              func(g *Grant) { g.HasSubset, g.Subset = true, []authz.Pair{{Key: []byte("b")}, {Key: []byte("b")}} },
	} {
		g := newGrant(k)
		spoil(g)
		if _, err := shared.CreateGrant(t.Context(), grantOf(g)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, _, err := shared.KeyGrants(t.Context(), k.KeyName, "", 10); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

// Every byte of a stored grant that changes makes it damaged or another valid grant of the same key and ID, never one of more operations than
// its text says.
func TestDamagedGrants(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant-damage")
	g := newGrant(k)
	g.Retiring = Party{ID: "AIDADAMAGE", Shown: "arn"}
	g = mustGrant(t, g)
	good, _, err := shared.get(ctx, k.grantKey(g.ID))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		got, err := decodeGrant(k.KeyName, g.ID, bad, 1)
		if err == nil && (got.Operations != g.Operations || got.ID != g.ID || got.Key != g.Key) || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("byte %d: %+v %v", i, got, err)
		}
	}
	text := string(good[1:])
	for _, value := range []string{"", "\x02" + text, "\x01", "\x01" + text + "{}", "\x01" + strings.Replace(text, `"Decrypt"`, `"Nothing"`, 1),
		"\x01" + strings.Replace(text, `"Decrypt",`, ``, 1) + " ", "\x01" + strings.Replace(text, "{", `{"x":1,`, 1), "\x01" + strings.Replace(text, "AIDADAMAGE", "AIDADAMAGF", 1)} {
		if _, err := shared.client.Put(ctx, k.grantKey(g.ID), value); err != nil {
			t.Fatal(err)
		}
		_, err := shared.Grant(ctx, k.KeyName, g.ID)
		_, _, listErr := shared.KeyGrants(ctx, k.KeyName, "", 10)
		_, _, _, _, retirableErr := shared.RetirableGrants(ctx, k.Region, "AIDADAMAGE", "", 10)
		valid := strings.Contains(value, `"RetireGrant"`) && strings.HasSuffix(value, " ") || strings.Contains(value, "AIDADAMAGF")
		if !valid && (!errors.Is(err, ErrDamaged) || !errors.Is(listErr, ErrDamaged) || !errors.Is(retirableErr, ErrDamaged)) {
			t.Errorf("%q: %v, %v, %v", value, err, listErr, retirableErr)
		}
		if strings.Contains(value, "AIDADAMAGF") && !errors.Is(retirableErr, ErrDamaged) {
			t.Errorf("a grant of another retiring principal: %v", retirableErr)
		}
	}
	entry, _, err := shared.get(ctx, g.granteeKey())
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"", "\x01{}", strings.Replace(string(entry), g.ID, newGrantID(), 1), strings.Replace(string(entry), "AIDAGRANTEE", "AIDAGRANTEF", 1),
		strings.Replace(string(entry), "grant-damage", "grant-other", 1), strings.Replace(string(entry), `"Decrypt"`, `"All"`, 1)} {
		if _, err := shared.client.Put(ctx, g.granteeKey(), value); err != nil {
			t.Fatal(err)
		}
		if list, err := shared.Grants(ctx, k.Region, k.Account, k.KeyName.ID, g.Grantee.ID); !errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%q: %v %v", value, list, err)
		}
	}
}

func TestCreateGrantDecides(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant-decide")
	refusal := errors.New("no")
	if _, err := shared.CreateGrant(ctx, NewGrant{Key: k.KeyName, Limit: 1, Decide: func(*Key) (*Grant, string, error) { return nil, "", refusal }}); err != refusal {
		t.Errorf("%v", err)
	}
	missing := grantOf(newGrant(newKey("grant-decide")))
	if _, err := shared.CreateGrant(ctx, missing); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	dry := grantOf(newGrant(k))
	dry.Dry = true
	if _, err := shared.CreateGrant(ctx, dry); err != nil {
		t.Errorf("%v", err)
	}
	if names := left(t, "/grant"); slices.ContainsFunc(names, func(n string) bool {
		return strings.Contains(n, k.KeyName.ID.String()) && strings.Contains(n, "/grantee/")
	}) {
		t.Errorf("a dry run left %v", names)
	}
	// A grant that rests on another is not made once that one is gone, nor under a policy that it was not decided on.
	parent := mustGrant(t, newGrant(k))
	child := newGrant(k)
	runs := 0
	_, err := shared.CreateGrant(ctx, NewGrant{Key: k.KeyName, Limit: 10, Decide: func(k *Key) (*Grant, string, error) {
		if runs++; runs == 1 {
			if _, err := shared.client.Delete(ctx, k.grantKey(parent.ID)); err != nil {
				return nil, "", err
			}
			return child, parent.ID, nil
		}
		return nil, "", refusal
	}})
	if err != refusal || runs != 2 {
		t.Errorf("%d runs: %v", runs, err)
	}
	runs = 0
	if _, err := shared.CreateGrant(ctx, NewGrant{Key: k.KeyName, Limit: 10, Decide: func(k *Key) (*Grant, string, error) {
		if runs++; runs == 1 {
			if _, err := shared.client.Put(ctx, k.policyKey(), "\x01{ }"); err != nil {
				return nil, "", err
			}
		} else if string(k.Policy.Document) != "{ }" {
			t.Errorf("policy %s", k.Policy.Document)
		}
		return child, "", nil
	}}); err != nil || runs != 2 {
		t.Errorf("%d runs: %v", runs, err)
	}
}

// Parallel calls make exactly as many grants as the limit allows, and one of each name.
func TestGrantLimitAndNames(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant-limit")
	const limit = 7
	var group sync.WaitGroup
	results := make([]error, 4*limit)
	for i := range results {
		group.Go(func() {
			in := grantOf(newGrant(k))
			in.Limit = limit
			_, results[i] = shared.CreateGrant(ctx, in)
		})
	}
	group.Wait()
	made := 0
	for _, err := range results {
		if err == nil {
			made++
		} else if !errors.Is(err, ErrGrantLimit) {
			t.Error(err)
		}
	}
	list, more, err := shared.KeyGrants(ctx, k.KeyName, "", manyGrants)
	if made != limit || len(list) != limit || more || err != nil {
		t.Errorf("%d made, %d there, %v", made, len(list), err)
	}
	dry := grantOf(newGrant(k))
	dry.Limit, dry.Dry = limit, true
	if _, err := shared.CreateGrant(ctx, dry); !errors.Is(err, ErrGrantLimit) {
		t.Errorf("a dry run at the limit: %v", err)
	}
	if _, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: list[0].ID, Allow: func(*Key, *Grant) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	named := func() NewGrant {
		g := newGrant(k)
		g.Name = "once"
		in := grantOf(g)
		in.Limit = limit
		return in
	}
	ids := make([]string, 20)
	for i := range ids {
		group.Go(func() {
			g, err := shared.CreateGrant(ctx, named())
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = g.ID
		})
	}
	group.Wait()
	if slices.Sort(ids); ids[0] != ids[len(ids)-1] || ids[0] == "" {
		t.Errorf("one name, several grants: %v", slices.Compact(ids))
	}
	// The limit itself, as the counter has it.
	for count, want := range map[int]error{manyGrants - 1: nil, manyGrants: ErrGrantLimit} {
		if _, err := shared.client.Put(ctx, k.grantCountKey(), fmt.Sprintf("\x01{\"grants\":%d}", count)); err != nil {
			t.Fatal(err)
		}
		if _, err := shared.CreateGrant(ctx, grantOf(newGrant(k))); !errors.Is(err, want) {
			t.Errorf("with %d: %v", count, err)
		}
	}
}

// The grants of a key to one grantee are bounded by their size together.
func TestGranteeLimit(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grantee-limit")
	first := mustGrant(t, newGrant(k))
	at, one := k.granteeSizeKey(first.Grantee.ID), first.Size()
	sum := func(want int64) {
		t.Helper()
		value, _, err := shared.get(ctx, at)
		if want == 0 {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s %v", value, err)
			}
			return
		}
		if err != nil || string(value) != fmt.Sprintf("\x01{\"bytes\":%d}", want) {
			t.Errorf("%q %v, want %d", value, err, want)
		}
	}
	put := func(size int64) {
		t.Helper()
		if _, err := shared.client.Put(ctx, at, fmt.Sprintf("\x01{\"bytes\":%d}", size)); err != nil {
			t.Fatal(err)
		}
	}
	sum(one)
	put(authz.GrantSetMax - one)
	second := mustGrant(t, newGrant(k))
	sum(authz.GrantSetMax)
	for _, dry := range []bool{false, true} {
		in := grantOf(newGrant(k))
		in.Dry = dry
		if _, err := shared.CreateGrant(ctx, in); !errors.Is(err, ErrGranteeLimit) {
			t.Errorf("dry %v: %v", dry, err)
		}
	}
	other := newGrant(k)
	other.Grantee.ID = "AIDAOTHER"
	mustGrant(t, other)
	remove := func(g *Grant) {
		t.Helper()
		if _, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: g.ID, Allow: func(*Key, *Grant) error { return nil }}); err != nil {
			t.Fatal(err)
		}
	}
	remove(second)
	sum(authz.GrantSetMax - one)
	second = mustGrant(t, newGrant(k))
	// Grants that were made before there were sums count.
	if _, err := shared.client.Delete(ctx, at); err != nil {
		t.Fatal(err)
	}
	large := newGrant(k)
	large.SourceARN = "arn:aws:s3:::b"
	large = mustGrant(t, large)
	sum(2*one + large.Size())
	remove(large)
	sum(2 * one)
	// A sum that is damaged keeps nobody from removing a grant, and is made again.
	put(-1)
	remove(first)
	sum(0)
	first = mustGrant(t, newGrant(k))
	sum(2 * one)
	for _, damaged := range []string{"x", "\x01{\"bytes\":-1}"} {
		if _, err := shared.client.Put(ctx, at, damaged); err != nil {
			t.Fatal(err)
		}
		if _, err := shared.CreateGrant(ctx, grantOf(newGrant(k))); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", damaged, err)
		}
	}
	remove(first)
	remove(second)
	sum(0)
}

// Two grants are the same only if everything is the same.
func TestGrantNames(t *testing.T) {
	k := mustCreate(t, shared, "grant-name")
	base := func() *Grant {
		g := newGrant(k)
		g.Name, g.HasSubset, g.Subset = "n", true, []authz.Pair{{Key: []byte("a"), Value: []byte("b")}}
		g.Retiring = Party{ID: "AIDARETIRING", Shown: "arn:r"}
		return g
	}
	first := mustGrant(t, base())
	seen := map[string]string{first.ID: "itself"}
	again := base()
	again.Created = t0.Add(time.Hour)
	if g := mustGrant(t, again); g.ID != first.ID || !g.Created.Equal(t0) {
		t.Errorf("the same again: %+v", g)
	}
	for name, change := range map[string]func(*Grant){
		"name":         func(g *Grant) { g.Name = "m" },
		"no name":      func(g *Grant) { g.Name = "" },
		"operations":   func(g *Grant) { g.Operations |= authz.OpEncrypt },
		"grantee":      func(g *Grant) { g.Grantee.ID = "AIDA2" },
		"grantee ARN":  func(g *Grant) { g.Grantee.Shown = "arn:2" },
		"retiring":     func(g *Grant) { g.Retiring.ID = "AIDA2" },
		"not retiring": func(g *Grant) { g.Retiring = Party{} },
		"issuer":       func(g *Grant) { g.Issuer++ },
		"equals":       func(g *Grant) { g.HasEquals, g.Equals, g.HasSubset, g.Subset = true, g.Subset, false, nil },
		"empty subset": func(g *Grant) { g.Subset = nil },
		"no subset":    func(g *Grant) { g.HasSubset, g.Subset = false, nil },
		"pair":         func(g *Grant) { g.Subset = []authz.Pair{{Key: []byte("ab")}} },
		"source":       func(g *Grant) { g.SourceARN = "arn:s" },
	} {
		g := base()
		change(g)
		made := mustGrant(t, g)
		if other, same := seen[made.ID]; same {
			t.Errorf("%s is the same as %s", name, other)
		}
		seen[made.ID] = name
	}
	// Once it is gone, its name makes another.
	if _, err := shared.RemoveGrant(t.Context(), OldGrant{Key: k.KeyName, ID: first.ID, Allow: func(*Key, *Grant) error { return nil }}); err != nil {
		t.Fatal(err)
	}
	if g := mustGrant(t, base()); g.ID == first.ID {
		t.Error("a removed grant came back")
	}
}

func TestRemoveGrant(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant-remove")
	g := newGrant(k)
	g.Name, g.Retiring = "n", Party{ID: "AIDA2", Shown: "arn:2"}
	g = mustGrant(t, g)
	agree := func(k *Key, got *Grant) error {
		if got != nil && !reflect.DeepEqual(got, g) {
			t.Errorf("allow got %+v", got)
		}
		return nil
	}
	refusal := errors.New("no")
	if _, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: g.ID, Allow: func(*Key, *Grant) error { return refusal }}); err != refusal {
		t.Errorf("%v", err)
	}
	if got, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: g.ID, Dry: true, Allow: agree}); err != nil || got.ID != g.ID {
		t.Errorf("dry: %v %v", got, err)
	}
	if _, err := shared.RemoveGrant(ctx, OldGrant{Key: newKey("grant-remove").KeyName, ID: g.ID, Allow: agree}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no key: %v", err)
	}
	if names := left(t, g.ID); len(names) != 3 {
		t.Errorf("%v", names)
	}
	if got, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: g.ID, Allow: agree}); err != nil || !reflect.DeepEqual(got, g) {
		t.Errorf("%+v %v", got, err)
	}
	if names := left(t, g.ID); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
	asked := false
	for _, id := range []string{g.ID, "x"} {
		if _, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: id, Allow: func(_ *Key, g *Grant) error { asked = g == nil; return nil }}); !errors.Is(err, ErrNoGrant) {
			t.Errorf("%s: %v", id, err)
		}
	}
	if !asked {
		t.Error("whether there is such a grant was said without asking")
	}
	value, _, err := shared.get(ctx, k.grantCountKey())
	if err != nil || string(value) != "\x01{\"grants\":0}" {
		t.Errorf("count %q %v", value, err)
	}
}

func TestGrantPages(t *testing.T) {
	ctx := t.Context()
	var ids []string
	accounts := []*Key{newKey("grant-pages"), newKey("grant-pages")}
	accounts[1].Account++
	accounts[1].Versions = nil
	addVersion(accounts[1], 1)
	for _, k := range accounts {
		if err := shared.CreateKey(ctx, k, 1000); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			g := newGrant(k)
			g.Retiring = Party{ID: "AROA1:s", Shown: "arn"}
			ids = append(ids, mustGrant(t, g).ID)
		}
		mustGrant(t, newGrant(k)) // without one
	}
	var got []string
	for after, more := "", true; more; {
		list, m, err := shared.KeyGrants(ctx, accounts[0].KeyName, after, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range list {
			got, after = append(got, g.ID), g.ID
		}
		more = m
	}
	if len(got) != 6 || !slices.IsSorted(got) {
		t.Errorf("%d grants of one key: %v", len(got), got)
	}
	pages := func() (found []string) {
		t.Helper()
		for after, more := "", true; more; {
			list, next, _, m, err := shared.RetirableGrants(ctx, "grant-pages", "AROA1:s", after, 3)
			if err != nil || len(list) > 3 || m && !ValidRetirable(next) {
				t.Fatalf("%d of %s: %v", len(list), next, err)
			}
			for _, g := range list {
				found = append(found, g.ID)
			}
			after, more = next, m
		}
		return found
	}
	found := pages()
	slices.Sort(found)
	slices.Sort(ids)
	if !slices.Equal(found, ids) {
		t.Errorf("found %v, want %v", found, ids)
	}
	if list, _, _, _, err := shared.RetirableGrants(ctx, "elsewhere", "AROA1:s", "", 3); err != nil || len(list) != 0 {
		t.Errorf("in another Region: %v %v", list, err)
	}
	// A deleted key's grants vanish from the list, and their entries with the first look at them.
	deleteNow(t, accounts[0])
	if names := left(t, "retiring/grant-pages"); len(names) != 10 {
		t.Errorf("%d entries", len(names))
	}
	if found := pages(); len(found) != 5 {
		t.Errorf("%d grants are left", len(found))
	}
	if names := left(t, "retiring/grant-pages"); len(names) != 5 {
		t.Errorf("%d entries are left", len(names))
	}
	for _, bad := range []string{"", "x", "1/2/3", "111122223333/" + accounts[0].KeyName.ID.String() + "/x", "/" + accounts[0].KeyName.ID.String() + "/" + ids[0]} {
		if ValidRetirable(bad) {
			t.Errorf("%q is a position", bad)
		}
	}
}

func deleteNow(t testing.TB, k *Key) {
	t.Helper()
	ctx := t.Context()
	if _, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error {
		k.State, k.DeletionDate, k.DeletionDays = kmsapi.StatePendingDeletion, t0, 1
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	due, err := shared.Due(ctx, Deletion, k.Region, t0, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range due {
		if d.KeyName == k.KeyName {
			if _, _, done, err := shared.DeleteKey(ctx, d, t0, 24*time.Hour, func(*Key) error { return nil }); !done || err != nil {
				t.Fatalf("%v %v", done, err)
			}
			return
		}
	}
	t.Fatal("the key is not due")
}

// A deleted key takes its grants with it, all of them in one transaction, also those that are made meanwhile.
func TestDeleteKeyWithGrants(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "grant-delete")
	for i := range 300 {
		g := newGrant(k)
		g.Name = fmt.Sprintf("n%d", i)
		g.Grantee.ID = fmt.Sprintf("AIDA%d", i%7)
		mustGrant(t, g)
	}
	stop, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for stop.Err() == nil {
				if _, err := shared.CreateGrant(ctx, grantOf(newGrant(k))); errors.Is(err, ErrNotFound) {
					return
				} else if err != nil && !errors.Is(err, ErrConflict) {
					t.Error(err)
				}
			}
			t.Error("the key stayed")
		})
	}
	deleteNow(t, k)
	time.AfterFunc(10*time.Second, cancel)
	group.Wait()
	cancel()
	if names := left(t, k.KeyName.ID.String()); len(names) != 1 || names[0] != k.tombstoneKey() {
		t.Errorf("%d names are left: %v", len(names), names[:min(len(names), 10)])
	}
	if list, err := shared.Grants(ctx, k.Region, k.Account, k.KeyName.ID, "AIDAGRANTEE"); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}
