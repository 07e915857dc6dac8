package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
)

// followed is what one Follow has told.
type followed struct {
	mu       sync.Mutex
	revision int64
	changes  []Change
	faults   []string
}

func (f *followed) apply(revision int64, changes []Change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if revision <= f.revision {
		f.faults = append(f.faults, fmt.Sprintf("revision %d after %d", revision, f.revision))
	}
	for i := range changes {
		if r := changes[i].Revision; r <= f.revision || r > revision || i > 0 && r < changes[i-1].Revision {
			f.faults = append(f.faults, fmt.Sprintf("a change of revision %d from %d to %d", r, f.revision, revision))
		}
	}
	f.revision, f.changes = revision, append(f.changes, changes...)
	return nil
}

// until waits for a revision and gives all changes up to it.
func (f *followed) until(t testing.TB, revision int64) []Change {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		f.mu.Lock()
		done, changes, faults := f.revision >= revision, slices.Clone(f.changes), f.faults
		f.mu.Unlock()
		if done {
			for _, fault := range faults {
				t.Error(fault)
			}
			return changes
		}
	}
	t.Fatalf("revision %d is not followed", revision)
	return nil
}

// follow follows a store from now on until the test ends.
func follow(t testing.TB, s *Store) *followed {
	t.Helper()
	at, err := s.Latest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return followFrom(t, s, at)
}

func followFrom(t testing.TB, s *Store, at int64) *followed {
	f := &followed{revision: at}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Follow(ctx, at, f.apply) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow ended with %v", err)
		}
	})
	return f
}

// Every kind of record is told of when it is written and when it is deleted, once, with what names it.
func TestFollow(t *testing.T) {
	const region = "follow"
	ctx := t.Context()
	// Two of them: what one makes of an answer does not reach the other.
	one, two := follow(t, shared), follow(t, shared)
	var want []Change
	expect := func(err error, changes ...Change) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, changes...)
	}
	k := newKey(region)
	of := func(c Change) Change {
		c.Region, c.Account, c.ID = region, k.Account, k.ID
		return c
	}
	expect(shared.CreateKey(ctx, k, 1_000_000), of(Change{What: KeyChanged}))
	expect(shared.CreateAlias(ctx, k.KeyName, "alias/a/b", 10, t0, allow), of(Change{What: KeyChanged}), Change{What: AliasChanged, Region: region, Account: k.Account, Name: "alias/a/b"})
	g := mustGrant(t, newGrant(k))
	grant := g.Grant
	expect(nil, of(Change{What: GrantsChanged, Name: g.Grantee.ID, GrantID: g.ID, Grant: &grant}))
	_, err := shared.RemoveGrant(ctx, OldGrant{Key: k.KeyName, ID: g.ID, Allow: func(*Key, *Grant) error { return nil }})
	expect(err, of(Change{What: GrantsChanged, Name: g.Grantee.ID, GrantID: g.ID, Gone: true}))
	a := newAccount(t, shared)
	expect(nil, Change{What: AccountChanged, Account: a})
	account := Change{What: AccountChanged, Account: a}
	user, role, policy := newUser(a, "Anna"), newRole(a, "Rolf"), newPolicy(a, "Polly")
	expect(shared.CreatePrincipal(ctx, user), account, Change{What: UserChanged, Account: a, Name: "Anna"})
	expect(shared.CreatePrincipal(ctx, role), account, Change{What: RoleChanged, Account: a, Name: "Rolf"})
	expect(shared.CreatePolicy(ctx, policy), account, Change{What: PolicyChanged, Account: a, Name: "polly"})
	session := newSession("ASIAFOLLOW", a)
	expect(shared.PutSession(ctx, session, session.Issued), Change{What: SessionChanged, Account: a, Name: session.ID})
	expect(shared.DeleteSessions(ctx, []SessionName{{Account: a, ID: session.ID}}), Change{What: SessionChanged, Account: a, Name: session.ID, Gone: true})
	expect(shared.DeletePrincipal(ctx, user.PrincipalName, user.ID), account, Change{What: UserChanged, Account: a, Name: "Anna", Gone: true})
	expect(shared.DeletePrincipal(ctx, role.PrincipalName, role.ID), account, Change{What: RoleChanged, Account: a, Name: "Rolf", Gone: true})
	expect(shared.DeletePolicy(ctx, policy.ARN("aws"), policy.ID), account, Change{What: PolicyChanged, Account: a, Name: "polly", Gone: true})
	value := 7.0
	_, err = shared.SetQuota(ctx, region, k.Account, "q", &value)
	expect(err, Change{What: QuotaChanged, Region: region, Account: k.Account})
	m, err := shared.Join(ctx, Member{ID: "n", Role: DataMember})
	expect(err, Change{What: MemberChanged, Name: m.Incarnation})
	expect(m.Leave(ctx), Change{What: MemberChanged, Name: m.Incarnation, Gone: true})
	store := newCluster(region, "cluster-follow")
	expect(shared.CreateKeyStore(ctx, store, 10, unrelated), Change{What: KeyStoreChanged, Region: region, Account: store.Account, Name: store.ID})
	latest, err := shared.Latest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*followed{one, two} {
		var got []Change
		for _, c := range f.until(t, latest) {
			if c.Revision = 0; c.Region == region || c.Account == a || c.What == MemberChanged {
				got = append(got, c)
			}
		}
		byText := func(a, b Change) int {
			text := func(c Change) string { return fmt.Sprint(c.What, c.Name, c.GrantID, c.Gone) }
			return strings.Compare(text(a), text(b))
		}
		// Inside of a revision the order is etcd's.
		for _, list := range [][]Change{got, want} {
			slices.SortStableFunc(list, byText)
		}
		if len(got) != len(want) {
			t.Errorf("%d changes, want %d", len(got), len(want))
		}
		for i := range min(len(got), len(want)) {
			if !reflect.DeepEqual(got[i], want[i]) {
				t.Errorf("got %+v\nwant %+v", got[i], want[i])
			}
		}
	}
}

// A key that is deleted with its grants tells of each, and whoever begins after a revision gets what came after it.
func TestFollowDeletedKey(t *testing.T) {
	k := mustCreate(t, shared, "followdeleted")
	for range 3 {
		mustGrant(t, newGrant(k))
	}
	f := follow(t, shared)
	deleteNow(t, k)
	latest, err := shared.Latest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	grants, gone := 0, 0
	var last int64
	for _, c := range f.until(t, latest) {
		switch {
		case c.ID != k.ID:
		case c.What == GrantsChanged && c.Gone && (c.Name == "AIDAGRANTEE" || c.Name == ""):
			grants++
		case c.What == KeyChanged && c.Gone:
			gone++
			last = c.Revision
		case c.What != KeyChanged:
			t.Errorf("%+v", c)
		}
	}
	if grants != 3 || gone != 1 {
		t.Errorf("%d grants and %d keys are gone", grants, gone)
	}
	for _, c := range followFrom(t, shared, last-1).until(t, latest) {
		if c.Revision < last {
			t.Errorf("%+v is from before %d", c, last)
		}
	}
}

// What is written beside the store moves the revision that is followed, though it is no change.
func TestFollowProgress(t *testing.T) {
	f := follow(t, shared)
	resp, err := shared.client.Put(t.Context(), "/elsewhere", "x")
	if err != nil {
		t.Fatal(err)
	}
	f.until(t, resp.Header.Revision)
	if shared.Committed() < resp.Header.Revision {
		t.Error("a revision was seen, and then it was not")
	}
}

// Follow ends with what apply fails with, and says when history is gone.
func TestFollowEnds(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	before, err := s.Latest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	k := mustCreate(t, s, "r")
	failed := errors.New("failed")
	calls := 0
	if err := s.Follow(ctx, before, func(int64, []Change) error { calls++; return failed }); !errors.Is(err, failed) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := s.UpdateKey(ctx, k.KeyName, func(k *Key) error { k.Description = "e"; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(ctx, s.Committed()); err != nil {
		t.Fatal(err)
	}
	if err := s.Follow(ctx, before, func(int64, []Change) error { return nil }); !errors.Is(err, ErrHistory) {
		t.Errorf("got %v", err)
	}
}

// A store that goes back is found out.
func TestLatestGoesBack(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	s.newest.saw(1 << 40)
	if _, err := s.Latest(t.Context()); !errors.Is(err, ErrBack) {
		t.Errorf("got %v", err)
	}
}

// Members come, renew, and go; who is gone stays so.
func TestMembers(t *testing.T) {
	ctx := t.Context()
	listed := func(incarnation string) *Member {
		list, revision, err := shared.Members(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			if list[i].Incarnation == incarnation && list[i].Joined <= revision {
				return &list[i]
			}
		}
		return nil
	}
	m, err := shared.Join(ctx, Member{ID: "node 1", Role: ControlMember})
	if err != nil {
		t.Fatal(err)
	}
	if got := listed(m.Incarnation); got == nil || *got != m.Member {
		t.Errorf("got %+v, want %+v", got, m.Member)
	}
	if err := m.Renew(ctx); err != nil {
		t.Error(err)
	}
	if _, err := shared.Join(ctx, m.Member); !errors.Is(err, ErrExists) {
		t.Errorf("an incarnation joined twice: %v", err)
	}
	if err := errors.Join(m.Leave(ctx), m.Leave(ctx)); err != nil {
		t.Error(err)
	}
	if err := m.Renew(ctx); !errors.Is(err, ErrLeft) || listed(m.Incarnation) != nil {
		t.Errorf("a member that left: %v", err)
	}
	for _, bad := range []Member{{}, {ID: "n"}, {ID: "n", Role: "client"}, {Role: DataMember}, {ID: "n", Role: DataMember, Incarnation: "../x"}} {
		if _, err := shared.Join(ctx, bad); err == nil {
			t.Errorf("%+v joined", bad)
		}
	}
}

// changeSeeds are names in etcd, and what a change under them is.
var changeSeeds = []struct {
	name string
	want What
}{
	{"/keyplane/1/key/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab", KeyChanged},
	{"/keyplane/1/policy/r/111122223333/mrk-1234abcd12ab34cd56ef1234567890ab", KeyChanged},
	{"/keyplane/1/key/r/111122223333/x", DamagedChanged},
	{"/keyplane/1/key/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab/x", DamagedChanged},
	{"/keyplane/1/key//111122223333/1234abcd-12ab-34cd-56ef-1234567890ab", DamagedChanged},
	{"/keyplane/1/key/", DamagedChanged},
	{"/keyplane/1/key", 0},
	{"/keyplane/1/alias/r/111122223333/a/b", AliasChanged},
	{"/keyplane/1/alias/r/111122223333/", DamagedChanged},
	{"/keyplane/1/alias/r", DamagedChanged},
	{"/keyplane/1/grantee/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab/" + strings.Repeat("a", 64) + "/" + strings.Repeat("b", 64), GrantsChanged},
	{"/keyplane/1/grantee/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab/" + strings.Repeat("a", 64), DamagedChanged},
	{"/keyplane/1/grant/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab/" + strings.Repeat("b", 64), 0},
	{"/keyplane/1/accesskey/AKIA", AccessKeyChanged},
	{"/keyplane/1/accesskey/a/b", DamagedChanged},
	{"/keyplane/1/iam", 0},
	{"/keyplane/1/iam/account", DamagedChanged},
	{"/keyplane/1/iam/account/111122223333", AccountChanged},
	{"/keyplane/1/iam/account/1", DamagedChanged},
	{"/keyplane/1/iam/user/111122223333/anna", UserChanged},
	{"/keyplane/1/iam/role/111122223333/rolf", RoleChanged},
	{"/keyplane/1/iam/role/111122223333/r/f", DamagedChanged},
	{"/keyplane/1/iam/policy/111122223333/polly", PolicyChanged},
	{"/keyplane/1/iam/service/s3.amazonaws.com", ServiceChanged},
	{"/keyplane/1/iam/service/s3", DamagedChanged},
	{"/keyplane/1/iam/session/111122223333/ASIA", SessionChanged},
	{"/keyplane/1/iam/novel/x", 0},
	{"/keyplane/1/quota/r/111122223333", QuotaChanged},
	{"/keyplane/1/quota/r/", DamagedChanged},
	{"/keyplane/1/keystore/r/111122223333/cks-1234567890abcdef0", KeyStoreChanged},
	{"/keyplane/1/keystore/r/111122223333/cks-1", DamagedChanged},
	{"/keyplane/1/member/" + strings.Repeat("0", 32), MemberChanged},
	{"/keyplane/1/member/me", DamagedChanged},
	{"/keyplane/1/revoked/7f01", CertificateRevoked},
	{"/keyplane/1/revoked/07f01", DamagedChanged},
	{"/keyplane/1/meta/barrier", 0},
	{"/keyplane/2/key/x", 0},
	{"/elsewhere", 0},
	{"", 0},
}

// Whatever there is under whatever name: what nobody follows is skipped, what cannot be is said to be damaged, and a value that is damaged takes nothing from a change but detail.
func TestDecodeChange(t *testing.T) {
	for _, c := range changeSeeds {
		for _, gone := range []bool{false, true} {
			for _, before := range []*mvccpb.KeyValue{nil, {Value: []byte("x")}} {
				got, ok := decodeChange(&mvccpb.KeyValue{Key: []byte(c.name), Value: []byte("\x01{}"), ModRevision: 7}, before, gone)
				if ok != (c.want != 0) || got.What != c.want || ok && got.Revision != 7 {
					t.Errorf("%q: %+v, %v; want %d", c.name, got, ok, c.want)
				}
				if wantGone := gone && !strings.HasPrefix(c.name, "/keyplane/1/policy"); ok && got.Gone != wantGone {
					t.Errorf("%q: gone is %v", c.name, got.Gone)
				}
				if ok && got.What == GrantsChanged && (got.Name != "" || got.Grant != nil) {
					t.Errorf("%q: %+v of a damaged value", c.name, got)
				}
			}
		}
	}
}

// Events of one revision are never divided, and what was applied is not told again.
func TestDecodeEvents(t *testing.T) {
	id := "/r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab"
	event := func(name string, revision int64, kind mvccpb.Event_EventType) *clientv3.Event {
		return &clientv3.Event{Type: kind, Kv: &mvccpb.KeyValue{Key: []byte(root + name), ModRevision: revision}}
	}
	changes, revision := decodeEvents([]*clientv3.Event{
		event("accesskey/old", 5, mvccpb.PUT),
		event("key"+id, 6, mvccpb.PUT), event("policy"+id, 6, mvccpb.PUT), event("accesskey/new", 6, mvccpb.PUT),
		event("key"+id, 7, mvccpb.DELETE), event("policy"+id, 7, mvccpb.DELETE), event("meta/barrier", 8, mvccpb.PUT), {},
	}, 5)
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprintf("%v %s %v %d", c.What == KeyChanged, c.Name, c.Gone, c.Revision))
	}
	if want := []string{"true  false 6", "false new false 6", "true  true 7"}; revision != 8 || !slices.Equal(got, want) {
		t.Errorf("%q up to %d", got, revision)
	}
}

// The grant that an index entry holds is the change's, if the entry is where it belongs.
func TestGrantChange(t *testing.T) {
	k := newKey("r")
	g := newGrant(k)
	value, err := encode(g.granteeEntry())
	if err != nil {
		t.Fatal(err)
	}
	c, ok := decodeChange(&mvccpb.KeyValue{Key: []byte(g.granteeKey()), Value: value}, nil, false)
	if !ok || c.Name != g.Grantee.ID || c.GrantID != g.ID || c.Grant == nil || c.Grant.Operations != g.Operations {
		t.Errorf("%+v", c)
	}
	other := *g
	other.Grantee.ID = "AIDAOTHER"
	if c, _ = decodeChange(&mvccpb.KeyValue{Key: []byte(other.granteeKey()), Value: value}, nil, false); c.Name != "" || c.Grant != nil || c.GrantID != "" {
		t.Errorf("an entry of another grantee: %+v", c)
	}
}

func FuzzChange(f *testing.F) {
	for _, c := range changeSeeds {
		f.Add([]byte(c.name), []byte("\x01{}"), []byte{}, false)
		f.Add([]byte(c.name), []byte{}, []byte("\x01{\"operations\":[\"Decrypt\"],\"key\":\"r/111122223333/1234abcd-12ab-34cd-56ef-1234567890ab\"}"), true)
	}
	f.Fuzz(func(t *testing.T, name, value, before []byte, gone bool) {
		c, ok := decodeChange(&mvccpb.KeyValue{Key: name, Value: value}, &mvccpb.KeyValue{Value: before}, gone)
		switch {
		case !ok:
			if !reflect.DeepEqual(c, Change{}) {
				t.Fatalf("%+v of nothing", c)
			}
		case !strings.HasPrefix(string(name), root) || c.What == 0 || c.What > DamagedChanged:
			t.Fatalf("%q: %+v", name, c)
		case c.What == DamagedChanged && c.Name != string(name):
			t.Fatalf("%q: %+v", name, c)
		case c.Grant != nil && (gone || c.GrantID != c.Grant.ID || c.Name == "" || c.Grant.Operations == authz.Operations(0)):
			t.Fatalf("%q: %+v", name, c)
		case c.What == KeyChanged:
			n := KeyName{Region: c.Region, Account: c.Account, ID: c.ID}
			if s := string(name); s != n.key() && s != n.policyKey() {
				t.Fatalf("%q is of %q", name, n.key())
			}
		case c.Account > keyid.AccountMax:
			t.Fatalf("%q: %+v", name, c)
		}
	})
}
