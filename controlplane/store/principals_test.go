package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
)

var (
	accountMu sync.Mutex
	accounts  keyid.Account = 600_000_000_000
)

// newAccount makes an account that no other test uses.
func newAccount(t testing.TB, s *Store) keyid.Account {
	t.Helper()
	accountMu.Lock()
	accounts++
	a := accounts
	accountMu.Unlock()
	if err := s.CreateAccount(t.Context(), &Account{ID: a, Created: t0}, nil); err != nil {
		t.Fatal(err)
	}
	return a
}

func newUser(a keyid.Account, name string) *Principal {
	return &Principal{PrincipalName: PrincipalName{Kind: User, Account: a, Name: name}, ID: "AIDAAAAAAAAAAAAAAAAAA", Path: "/", Created: t0}
}

func newRole(a keyid.Account, name string) *Principal {
	return &Principal{
		PrincipalName: PrincipalName{Kind: Role, Account: a, Name: name}, ID: "AROAAAAAAAAAAAAAAAAAA", Path: "/", Created: t0, Trust: "{}", MaxSession: time.Hour,
	}
}

func newPolicy(a keyid.Account, name string) *ManagedPolicy {
	return &ManagedPolicy{Account: a, Name: name, ID: "ANPAAAAAAAAAAAAAAAAAA", Path: "/p/", Document: "{}", Created: t0}
}

func newKeyOf(id string, a keyid.Account) *AccessKey {
	return &AccessKey{ID: id, Account: a, PrincipalARN: "arn", PrincipalID: "id", UserName: "u", Active: true, Created: t0, Secret: secret.New([]byte("the secret"))}
}

// counts are users, roles, policies of an account.
func counts(t *testing.T, s *Store, id keyid.Account) [3]int {
	t.Helper()
	a, err := s.Account(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return [3]int{a.Users, a.Roles, a.Policies}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestPrincipals(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	u := newUser(a, "Alice")
	u.Path = "/team/"
	u.PutInline(Document{"b", "{2}"})
	u.PutInline(Document{"a", "{1}"})
	u.SetTag(Tag{"k", "v"})
	r := newRole(a, "alice") // users and roles have names of their own
	r.Description, r.TrustBound = "d", []Bound{{"arn", "id"}}
	must(t, s.CreatePrincipal(ctx, u))
	must(t, s.CreatePrincipal(ctx, r))
	for _, want := range []*Principal{u, r} {
		got, err := s.Principal(ctx, want.PrincipalName)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
		}
	}
	if arn := u.ARN("aws-cn"); arn != "arn:aws-cn:iam::"+a.String()+":user/team/Alice" {
		t.Error(arn)
	}
	if err := s.CreatePrincipal(ctx, newUser(a, "aLICE")); !errors.Is(err, ErrExists) {
		t.Errorf("a name that differs in case: %v", err)
	}
	if _, err := s.Principal(ctx, PrincipalName{User, a, "alice"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("found in another case: %v", err)
	}
	if err := s.CreatePrincipal(ctx, newUser(999_999_999_999, "x")); !errors.Is(err, ErrNotFound) {
		t.Errorf("a user of no account: %v", err)
	}
	if c := counts(t, s, a); c != [3]int{1, 1, 0} {
		t.Errorf("counts %v", c)
	}
	for name, bad := range map[string]func(*Principal){
		"name": func(p *Principal) { p.Name = "a/b" }, "no name": func(p *Principal) { p.Name = "" }, "long name": func(p *Principal) { p.Name = strings.Repeat("n", 65) },
		"path": func(p *Principal) { p.Path = "/x" }, "no path": func(p *Principal) { p.Path = "" }, "ID": func(p *Principal) { p.ID = "AROAAAAAAAAAAAAAAAAAA" },
		"short ID": func(p *Principal) { p.ID = "AIDAAAAAAAAAAAAAAAA" }, "created": func(p *Principal) { p.Created = time.Time{} }, "trust": func(p *Principal) { p.Trust = "{}" },
		"access key": func(p *Principal) { p.AccessKeys = []string{"../x"} }, "policy's name": func(p *Principal) { p.Inline = []Document{{"a b", ""}} },
		"policies in disorder": func(p *Principal) { p.Inline = []Document{{"b", ""}, {"a", ""}} }, "one policy twice": func(p *Principal) { p.Inline = []Document{{"a", ""}, {"a", ""}} },
	} {
		p := newUser(a, "bad")
		bad(p)
		if err := s.CreatePrincipal(ctx, p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, bad := range map[string]func(*Principal){
		"no trust": func(p *Principal) { p.Trust = "" }, "no session": func(p *Principal) { p.MaxSession = 0 }, "access key": func(p *Principal) { p.AccessKeys = []string{"A"} },
	} {
		p := newRole(a, "bad")
		bad(p)
		if err := s.CreatePrincipal(ctx, p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	stop := errors.New("stop")
	if _, err := s.UpdatePrincipal(ctx, u.PrincipalName, func(*Principal) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
	same, err := s.UpdatePrincipal(ctx, u.PrincipalName, func(*Principal) error { return nil })
	if err != nil || same.Revision != u.Revision {
		t.Errorf("a change of nothing was written: %v", err)
	}
	if err := s.DeletePrincipal(ctx, u.PrincipalName, u.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("deleted with policies: %v", err)
	}
	changed, err := s.UpdatePrincipal(ctx, u.PrincipalName, func(p *Principal) error { p.Inline = nil; return nil })
	if err != nil || changed.Revision == u.Revision {
		t.Errorf("%v", err)
	}
	must(t, s.DeletePrincipal(ctx, u.PrincipalName, u.ID))
	if err := s.DeletePrincipal(ctx, u.PrincipalName, u.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if c := counts(t, s, a); c != [3]int{0, 1, 0} {
		t.Errorf("counts %v", c)
	}
	// Another record in its place is damage.
	value, _, err := s.get(ctx, r.key())
	must(t, err)
	if _, err := s.client.Put(ctx, (PrincipalName{Role, a, "bob"}).key(), string(value)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Principal(ctx, PrincipalName{Role, a, "bob"}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record in another's place: %v", err)
	}
	if _, err := s.client.Delete(ctx, (PrincipalName{Role, a, "bob"}).key()); err != nil {
		t.Fatal(err)
	}
}

// Quotas at their limit and beyond.
func TestQuotas(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	set := func(f func(*Account)) {
		t.Helper()
		record, err := s.Account(ctx, a)
		must(t, err)
		f(record)
		_, then, err := record.put()
		must(t, err)
		if _, _, err := s.commit(ctx, nil, then); err != nil {
			t.Fatal(err)
		}
	}
	set(func(r *Account) { r.Users, r.Roles, r.Policies = UsersMax-1, RolesMax-1, PoliciesMax-1 })
	for name, create := range map[string]func(string) error{
		"UsersPerAccount":    func(n string) error { return s.CreatePrincipal(ctx, newUser(a, n)) },
		"RolesPerAccount":    func(n string) error { return s.CreatePrincipal(ctx, newRole(a, n)) },
		"PoliciesPerAccount": func(n string) error { return s.CreatePolicy(ctx, newPolicy(a, n)) },
	} {
		if err := create("last"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		err := create("beyond")
		if q, ok := errors.AsType[*Quota](err); !ok || q.Name != name || !errors.Is(err, ErrQuota) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c := counts(t, s, a); c != [3]int{UsersMax, RolesMax, PoliciesMax} {
		t.Errorf("counts %v", c)
	}
	big := strings.Repeat(" ", documentsBytesMax)
	for _, c := range []struct {
		name string
		edit func(*Principal, int) // by how much beyond
	}{
		{"InlinePolicySize", func(p *Principal, n int) { p.PutInline(Document{"a", strings.Repeat("x", InlinePolicyMax+n)}) }},
		{"ACLSizePerRole", func(p *Principal, n int) { p.Inline, p.Trust = nil, strings.Repeat("x", TrustPolicyMax+n) }},
		{"PolicyBytes", func(p *Principal, n int) {
			p.Inline, p.Trust = nil, big[:documentsBytesMax+min(n, 0)]+strings.Repeat(" ", max(n, 0))
		}},
		{"Tags", func(p *Principal, n int) {
			p.Tags, p.Trust = nil, "{}"
			for i := range PrincipalTagsMax + n {
				p.SetTag(Tag{fmt.Sprint(i), ""})
			}
		}},
		{"AttachedPolicies", func(p *Principal, n int) {
			p.Attached = nil
			for i := range AttachedMax + n {
				p.Attach(fmt.Sprintf("arn:aws:iam::aws:policy/P%d", i))
			}
		}},
	} {
		for n, want := range []bool{true, false} {
			_, err := s.UpdatePrincipal(ctx, PrincipalName{Role, a, "last"}, func(p *Principal) error { c.edit(p, n); return nil })
			if q, _ := errors.AsType[*Quota](err); (err == nil) != want || err != nil && (q == nil || q.Name != c.name) {
				t.Errorf("%s, %d beyond: %v", c.name, n, err)
			}
		}
	}
	for n, want := range []bool{true, false} {
		must(t, dropPolicy(t, "arn:aws:iam::"+a.String()+":policy/p/last"))
		p := newPolicy(a, "last")
		p.Document = strings.Repeat("x", ManagedPolicyMax+n) + " "
		if err := s.CreatePolicy(ctx, p); (err == nil) != want {
			t.Errorf("a policy of %d: %v", len(p.Document), err)
		}
	}
}

// dropPolicy deletes whichever policy has the ARN.
func dropPolicy(t testing.TB, arn string) error {
	m, err := shared.ManagedPolicy(t.Context(), arn)
	if err != nil {
		return err
	}
	return shared.DeletePolicy(t.Context(), arn, m.ID)
}

// Who was made again under a name is not hit by what was decided about the one before.
func TestMadeAgain(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	const formerUser, formerPolicy, formerService = "AIDABBBBBBBBBBBBBBBBB", "ANPABBBBBBBBBBBBBBBBB", "ASVCAAAAAAAAAAAAAAAAA"
	u, m := newUser(a, "u"), newPolicy(a, "m")
	must(t, s.CreatePrincipal(ctx, u))
	must(t, s.CreatePolicy(ctx, m))
	name := fmt.Sprintf("s%s.example.com", a)
	must(t, s.RegisterService(ctx, &Service{Name: name, ID: "ASVCBBBBBBBBBBBBBBBBB", Account: a, Created: t0}, anyKey(a)))
	for _, o := range []Owner{{Account: a, User: "u", ID: formerUser}, {Account: a, Service: name, ID: formerService}} {
		present := o
		present.ID = ""
		before, err := s.AccessKeyIDs(ctx, present)
		must(t, err)
		if len(before) == 0 {
			must(t, s.CreateAccessKey(ctx, present, anyKey(a)))
			before, err = s.AccessKeyIDs(ctx, present)
			must(t, err)
		}
		_, active := s.SetAccessKeyActive(ctx, o, before[0], false)
		_, replaced := s.ReplaceAccessKeys(ctx, o, anyKey(a))
		_, listed := s.AccessKeyIDs(ctx, o)
		for what, err := range map[string]error{
			"created": s.CreateAccessKey(ctx, o, anyKey(a)), "removed": s.RemoveAccessKey(ctx, o, before[0]), "made inactive": active, "replaced": replaced, "listed": listed,
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%+v: %s: %v", o, what, err)
			}
		}
		if after, err := s.AccessKeyIDs(ctx, present); err != nil || !slices.Equal(before, after) {
			t.Errorf("%v, then %v %v", before, after, err)
		}
	}
	o := Owner{Account: a, User: "u", ID: u.ID}
	ids, err := s.AccessKeyIDs(ctx, o)
	must(t, err)
	must(t, s.RemoveAccessKey(ctx, o, ids[0]))
	if err := s.DeletePrincipal(ctx, u.PrincipalName, formerUser); !errors.Is(err, ErrNotFound) {
		t.Errorf("a user who was made again is deleted: %v", err)
	}
	if err := s.DeletePolicy(ctx, m.ARN("aws"), formerPolicy); !errors.Is(err, ErrNotFound) {
		t.Errorf("a policy that was made again is deleted: %v", err)
	}
	must(t, s.DeletePrincipal(ctx, u.PrincipalName, u.ID))
	must(t, s.DeletePolicy(ctx, m.ARN("aws"), m.ID))
}

// anyKey is an access key of an ID that no other has.
func anyKey(a keyid.Account) *AccessKey { return newKeyOf("AKIA"+newGrantID()[:16], a) }

// An owner with more access keys than one transaction can remove, which older versions left, gets one that replaces them.
func TestReplaceManyAccessKeys(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	u := newUser(a, "u")
	for range 2*removeMax + 7 {
		k := anyKey(a)
		must(t, s.PutAccessKey(ctx, k))
		u.AccessKeys = append(u.AccessKeys, k.ID)
	}
	must(t, s.CreatePrincipal(ctx, u))
	o := Owner{Account: a, User: "u", ID: u.ID}
	k := anyKey(a)
	gone, err := s.ReplaceAccessKeys(ctx, o, k)
	if err != nil || len(gone) != len(u.AccessKeys) {
		t.Errorf("%d are gone, %v", len(gone), err)
	}
	if ids, err := s.AccessKeyIDs(ctx, o); err != nil || len(ids) != 1 || ids[0] != k.ID {
		t.Errorf("%v %v", ids, err)
	}
	for _, id := range u.AccessKeys {
		if _, err := s.AccessKey(ctx, id); !errors.Is(err, ErrNotFound) {
			t.Fatalf("%s: %v", id, err)
		}
	}
}

// Managed policies know how often they are in use.
func TestManagedPolicies(t *testing.T) {
	s, ctx := shared, t.Context()
	a, other := newAccount(t, s), newAccount(t, s)
	for _, name := range []string{"One", "Two"} {
		must(t, s.CreatePolicy(ctx, newPolicy(a, name)))
	}
	must(t, s.CreatePolicy(ctx, newPolicy(other, "Theirs")))
	one, two := "arn:aws:iam::"+a.String()+":policy/p/One", "arn:aws:iam::"+a.String()+":policy/p/Two"
	uses := func(arn string) [2]int {
		t.Helper()
		m, err := s.ManagedPolicy(ctx, arn)
		must(t, err)
		return [2]int{m.Attachments, m.Boundaries}
	}
	u := newUser(a, "u")
	u.Boundary = one
	must(t, s.CreatePrincipal(ctx, u))
	must(t, s.CreatePrincipal(ctx, newRole(a, "r")))
	change := func(k PrincipalKind, name string, f func(*Principal)) error {
		_, err := s.UpdatePrincipal(ctx, PrincipalName{k, a, name}, func(p *Principal) error { f(p); return nil })
		return err
	}
	must(t, change(User, "u", func(p *Principal) {
		p.Attach(one)
		p.Attach(two)
		p.Attach("arn:aws:iam::aws:policy/AdministratorAccess")
	}))
	must(t, change(Role, "r", func(p *Principal) { p.Attach(two); p.Boundary = two }))
	if uses(one) != [2]int{1, 1} || uses(two) != [2]int{2, 1} {
		t.Errorf("in use: %v, %v", uses(one), uses(two))
	}
	must(t, change(User, "u", func(p *Principal) { p.Attach(one); p.SetTag(Tag{"k", "v"}) })) // no change of uses
	must(t, change(User, "u", func(p *Principal) { p.Detach(two); p.Boundary = two }))
	if uses(one) != [2]int{1, 0} || uses(two) != [2]int{1, 2} {
		t.Errorf("in use: %v, %v", uses(one), uses(two))
	}
	for _, arn := range []string{one, two} {
		if err := dropPolicy(t, arn); !errors.Is(err, ErrInUse) {
			t.Errorf("deleted in use: %v", err)
		}
	}
	for _, arn := range []string{
		"arn:aws:iam::" + a.String() + ":policy/p/Three", "arn:aws:iam::" + a.String() + ":policy/One", "arn:aws:iam::" + a.String() + ":policy/p/one",
		"arn:aws:iam::" + other.String() + ":policy/p/Theirs", "One", "arn:aws:iam::" + a.String() + ":policy/", "arn:aws:iam::1:policy/x", "",
	} {
		if err := change(Role, "r", func(p *Principal) { p.Attach(arn) }); !errors.Is(err, ErrNoPolicy) {
			t.Errorf("%q was attached: %v", arn, err)
		}
	}
	// Deleting a user gives its boundary up.
	must(t, change(User, "u", func(p *Principal) { p.Attached = nil }))
	must(t, s.DeletePrincipal(ctx, u.PrincipalName, u.ID))
	if uses(one) != [2]int{} || uses(two) != [2]int{1, 1} {
		t.Errorf("in use: %v, %v", uses(one), uses(two))
	}
	must(t, dropPolicy(t, one))
	if _, err := s.ManagedPolicy(ctx, one); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if list, more, err := s.Policies(ctx, a, "", 10); err != nil || more || len(list) != 1 || list[0].Name != "Two" || counts(t, s, a)[2] != 1 {
		t.Errorf("%v %v %v", list, more, err)
	}
}

// Attaching and deleting meet: nobody is left with a policy that is gone.
func TestAttachWhileDeleting(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	must(t, s.CreatePrincipal(ctx, newUser(a, "u")))
	arn := "arn:aws:iam::" + a.String() + ":policy/p/P"
	for range 20 {
		must(t, s.CreatePolicy(ctx, newPolicy(a, "P")))
		var wg sync.WaitGroup
		var attached, deleted error
		wg.Go(func() {
			_, attached = s.UpdatePrincipal(ctx, PrincipalName{User, a, "u"}, func(p *Principal) error { p.Attach(arn); return nil })
		})
		wg.Go(func() { deleted = dropPolicy(t, arn) })
		wg.Wait()
		if (attached == nil) == (deleted == nil) {
			t.Fatalf("attached %v, deleted %v", attached, deleted)
		}
		if attached == nil {
			if _, err := s.UpdatePrincipal(ctx, PrincipalName{User, a, "u"}, func(p *Principal) error { p.Attached = nil; return nil }); err != nil {
				t.Fatal(err)
			}
			must(t, dropPolicy(t, arn))
		}
	}
}

func TestAccessKeysOfOwners(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	u := newUser(a, "u")
	must(t, s.CreatePrincipal(ctx, u))
	service := &Service{Name: "s" + a.String() + ".example.com", ID: "ASVCAAAAAAAAAAAAAAAAA", Account: a, Created: t0, Accounts: []keyid.Account{a}}
	must(t, s.RegisterService(ctx, service, newKeyOf("AKIASVC"+a.String(), a)))
	for i, o := range []Owner{{Account: a, User: "u"}, {Account: a}, {Account: a, Service: service.Name}} {
		id := func(n int) string { return fmt.Sprintf("AKIA%s%d%d", a, i, n) }
		ids, err := s.AccessKeyIDs(ctx, o)
		must(t, err)
		for n := len(ids); n < AccessKeysMax; n++ {
			must(t, s.CreateAccessKey(ctx, o, newKeyOf(id(n), a)))
		}
		if err := s.CreateAccessKey(ctx, o, newKeyOf(id(9), a)); !errors.Is(err, ErrQuota) {
			t.Errorf("%+v: a third key: %v", o, err)
		}
		if _, err := s.AccessKey(ctx, id(9)); !errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: the third key was written: %v", o, err)
		}
		last := id(AccessKeysMax - 1)
		if k, err := s.SetAccessKeyActive(ctx, o, last, false); err != nil || k.Active {
			t.Errorf("%+v: %v", o, err)
		}
		if k, err := s.AccessKey(ctx, last); err != nil || k.Active || !k.Secret.Equal([]byte("the secret")) || k.PrincipalID != "id" {
			t.Errorf("%+v: %+v %v", o, k, err)
		}
		if _, err := s.SetAccessKeyActive(ctx, o, "AKIAOTHERS", false); !errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: %v", o, err)
		}
		if err := s.RemoveAccessKey(ctx, o, "AKIAOTHERS"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: %v", o, err)
		}
		must(t, s.RemoveAccessKey(ctx, o, last))
		if _, err := s.AccessKey(ctx, last); !errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: removed, and %v", o, err)
		}
		left, err := s.AccessKeyIDs(ctx, o)
		if err != nil || len(left) != 1 {
			t.Errorf("%+v: %v %v", o, left, err)
		}
		if err := s.CreateAccessKey(ctx, o, newKeyOf(left[0], a)); !errors.Is(err, ErrExists) {
			t.Errorf("%+v: one ID twice: %v", o, err)
		}
	}
	if err := s.DeletePrincipal(ctx, u.PrincipalName, u.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("a user with access keys was deleted: %v", err)
	}
	// One of another owner is never taken over.
	o := Owner{Account: a, User: "u"}
	if _, err := s.ReplaceAccessKeys(ctx, o, newKeyOf("AKIASVC"+a.String(), a)); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	gone, err := s.ReplaceAccessKeys(ctx, o, newKeyOf("AKIANEW"+a.String(), a))
	if err != nil || len(gone) != 1 {
		t.Errorf("%v %v", gone, err)
	}
	if ids, err := s.AccessKeyIDs(ctx, o); err != nil || len(ids) != 1 || ids[0] != "AKIANEW"+a.String() {
		t.Errorf("%v %v", ids, err)
	}
	for _, o := range []Owner{{Account: a, User: "none"}, {Account: 999_999_999_998}, {Account: a, Service: "none.example.com"}, {Account: a + 1_000_000, Service: service.Name}} {
		if err := s.CreateAccessKey(ctx, o, newKeyOf("AKIANONE", a)); !errors.Is(err, ErrNotFound) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	keys, err := s.DeregisterService(ctx, service.Name)
	if err != nil || len(keys) != 1 {
		t.Errorf("%v %v", keys, err)
	}
	if _, err := s.AccessKey(ctx, keys[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// Two who make the last access key: one of them does.
func TestAccessKeysRace(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	must(t, s.CreatePrincipal(ctx, newUser(a, "u")))
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.CreateAccessKey(ctx, Owner{Account: a, User: "u"}, newKeyOf(fmt.Sprintf("AKIA%s%d", a, i), a))
		})
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, ErrQuota) {
			t.Error(err)
		}
	}
	if made != AccessKeysMax {
		t.Errorf("%d were made", made)
	}
}

// The sealed secret is bound to every field that says what it authenticates.
func TestAccessKeyBound(t *testing.T) {
	s, ctx := shared, t.Context()
	k := newKeyOf("AKIABOUND", 1)
	must(t, s.PutAccessKey(ctx, k))
	value, _, err := s.get(ctx, accessKeyPrefix+k.ID)
	must(t, err)
	for old, other := range map[string]string{
		`"principalId":"id",`: ``, `"principalId":"id"`: `"principalId":"ie"`, `"principalArn":"arn"`: `"principalArn":"arm"`, `"userName":"u"`: `"userName":"v"`,
		`"active":true`: `"active":false`, `"account":"000000000001"`: `"account":"000000000002"`,
	} {
		edited := bytes.Replace(value, []byte(old), []byte(other), 1)
		if bytes.Equal(edited, value) {
			t.Errorf("%s is not in %s", old, value)
		}
		if _, err := s.openAccessKey(k.ID, edited, 1); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s became %s: %v", old, other, err)
		}
	}
}

func newSession(id string, a keyid.Account) *Session {
	return &Session{
		ID: id, Principal: PrincipalName{Role, a, "r"}, PrincipalID: "AROAAAAAAAAAAAAAAAAAA", Name: "session", Policies: []string{"{}"}, Tags: []Tag{{"k", "v"}},
		Source: "me", Via: "s.example.com", ViaID: "ASVCAAAAAAAAAAAAAAAAA", Issued: t0, Expires: t0.Add(time.Hour), Token: sha256.Sum256([]byte("token")), Secret: secret.New([]byte("the secret")),
	}
}

func TestSessions(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	want := newSession("ASIA1", 7)
	must(t, s.PutSession(ctx, want, t0))
	if err := s.PutSession(ctx, want, t0); !errors.Is(err, ErrExists) {
		t.Errorf("one ID twice: %v", err)
	}
	user := newSession("ASIA2", 8)
	user.Principal.Kind, user.PrincipalID, user.Name = User, "AIDAAAAAAAAAAAAAAAAAA", ""
	must(t, s.PutSession(ctx, user, t0))
	var got []*Session
	must(t, s.Sessions(ctx, func(v *Session) error { got = append(got, v); return nil }))
	if len(got) != 2 {
		t.Fatalf("%d sessions", len(got))
	}
	for i, want := range []*Session{want, user} {
		if !got[i].Secret.Equal([]byte("the secret")) {
			t.Error("another secret")
		}
		got[i].Secret = want.Secret
		if !reflect.DeepEqual(got[i], want) {
			t.Errorf("\n got %+v\nwant %+v", got[i], want)
		}
	}
	// It vanishes by its lease, some time after it expired.
	key := sessionKey(7, "ASIA1")
	resp, err := s.client.Get(ctx, key)
	must(t, err)
	ttl, err := s.client.TimeToLive(ctx, clientv3.LeaseID(resp.Kvs[0].Lease))
	if err != nil || time.Duration(ttl.GrantedTTL)*time.Second < time.Hour+SessionGrace || time.Duration(ttl.GrantedTTL)*time.Second > time.Hour+SessionGrace+2*time.Second {
		t.Errorf("a lease of %d s, %v", ttl.GrantedTTL, err)
	}
	// Every member is bound.
	value := resp.Kvs[0].Value
	for old, other := range map[string]string{
		`"id":"ASIA1"`: `"id":"ASIA3"`, `"account":"000000000007"`: `"account":"000000000008"`, `"kind":"role"`: `"kind":"user"`, `"principal":"r"`: `"principal":"q"`,
		`"principalId":"AROAA`: `"principalId":"AROAB`, `"name":"session"`: `"name":"sessioN"`, `"policies":["{}"],`: ``, `"tags":[{"key":"k","value":"v"}],`: ``,
		`"source":"me"`: `"source":"you"`, `"via":"s.example.com","viaId":"ASVCAAAAAAAAAAAAAAAAA",`: ``, `"expires":1`: `"expires":2`, `"issued":1`: `"issued":0`, `"token":"P`: `"token":"Q`,
		`"viaId":"ASVCA`: `"viaId":"ASVCB`,
	} {
		edited := strings.Replace(string(value), old, other, 1)
		if edited == string(value) {
			t.Errorf("%s is not in %s", old, value)
		}
		at := key
		if strings.Contains(old, "ASIA1") {
			at = sessionKey(7, "ASIA3")
		} else if strings.Contains(old, "account") {
			at = sessionKey(8, "ASIA1")
		}
		if _, err := s.openSession(at, []byte(edited)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s became %s: %v", old, other, err)
		}
	}
	if _, err := s.openSession(sessionKey(7, "ASIA9"), value); !errors.Is(err, ErrDamaged) {
		t.Errorf("in another's place: %v", err)
	}
	if bytes.Contains(value, []byte("the secret")) {
		t.Error("the secret is readable")
	}
	for name, bad := range map[string]func(*Session){
		"ID": func(v *Session) { v.ID = "a/b" }, "no secret": func(v *Session) { v.Secret = secret.Bytes{} }, "a user with a session name": func(v *Session) { v.Principal.Kind, v.PrincipalID = User, "AIDAAAAAAAAAAAAAAAAAA" },
		"a role without": func(v *Session) { v.Name = "" }, "expired at once": func(v *Session) { v.Expires = v.Issued }, "13 policies": func(v *Session) { v.Policies = make([]string, 13) },
		"51 tags": func(v *Session) { v.Tags = make([]Tag, 51) }, "via without ID": func(v *Session) { v.ViaID = "" }, "principal's ID": func(v *Session) { v.PrincipalID = "AIDAAAAAAAAAAAAAAAAAA" },
	} {
		v := newSession("ASIA4", 7)
		bad(v)
		if err := s.PutSession(ctx, v, t0); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A session's record goes with its lease.
func TestSessionVanishes(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	v := newSession("ASIA1", 7)
	v.Issued, v.Expires = t0.Add(-SessionGrace), t0.Add(-SessionGrace).Add(time.Second)
	must(t, s.PutSession(t.Context(), v, t0)) // 2 s are left
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		n := 0
		must(t, s.Sessions(t.Context(), func(*Session) error { n++; return nil }))
		if n == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it is still there")
		}
	}
}

func TestServices(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	v := &Service{Name: "a" + a.String() + ".us-east-1.example.com", ID: "ASVCAAAAAAAAAAAAAAAAA", Account: a, Created: t0, Accounts: []keyid.Account{1, 3}}
	must(t, s.RegisterService(ctx, v, newKeyOf("AKIAA"+a.String(), a)))
	if got, err := s.Service(ctx, v.Name); err != nil || !reflect.DeepEqual(got, v) || !got.ActsFor(1) || got.ActsFor(2) || !got.ActsFor(3) {
		t.Errorf("%+v %v", got, err)
	}
	if err := s.RegisterService(ctx, v, newKeyOf("AKIAB"+a.String(), a)); !errors.Is(err, ErrExists) {
		t.Errorf("registered twice: %v", err)
	}
	every := &Service{Name: "b" + a.String() + ".example.com", ID: v.ID, Account: a, Created: t0, Every: true}
	must(t, s.RegisterService(ctx, every, newKeyOf("AKIAC"+a.String(), a)))
	if !every.ActsFor(99) {
		t.Error("every account but 99")
	}
	list, _, err := s.Services(ctx, "a"+a.String(), 1)
	if err != nil || len(list) != 1 || list[0].Name != v.Name {
		t.Errorf("%v %v", list, err)
	}
	for name, ok := range map[string]bool{
		"s3.amazonaws.com": true, "a.b": true, "a-1.b": true, "a": false, "": false, "A.b": false, "a..b": false, ".a": false, "a.": false, "a/b.c": false, "a_b.c": false,
		strings.Repeat("a", 126) + ".b": true, strings.Repeat("a", 127) + ".b": false,
	} {
		if ValidServiceName(name) != ok {
			t.Errorf("%q: %v", name, !ok)
		}
	}
	many := &Service{Name: "c.d", ID: v.ID, Account: a, Created: t0}
	for i := range ServiceAccountsMax + 1 {
		many.Accounts = append(many.Accounts, keyid.Account(i))
	}
	if err := s.RegisterService(ctx, many, newKeyOf("AKIAD"+a.String(), a)); err == nil {
		t.Error("accepted with too many accounts")
	}
	both := &Service{Name: "c.d", ID: v.ID, Account: a, Created: t0, Every: true, Accounts: []keyid.Account{1}}
	if err := s.RegisterService(ctx, both, newKeyOf("AKIAD"+a.String(), a)); err == nil {
		t.Error("accepted for every account and one")
	}
}

// Two services that would have one AWS managed key of an account are not registered, also if both ask at the same moment. With its Region and without, a service
// is one.
func TestServicesOverlap(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	label, keys := "o"+a.String(), 0
	service := func(rest string, accounts ...keyid.Account) *Service {
		v := &Service{Name: label + rest, ID: "ASVCAAAAAAAAAAAAAAAAA", Account: a, Created: t0, Accounts: accounts}
		if len(accounts) == 1 && accounts[0] == 0 {
			v.Every, v.Accounts = true, nil
		}
		return v
	}
	register := func(v *Service) error {
		keys++
		return s.RegisterService(ctx, v, newKeyOf(fmt.Sprintf("AKIA%d%s", keys, a), a))
	}
	must(t, register(service(".us-east-1.example.com", 1, 2)))
	for _, v := range []*Service{
		service(".example.com", 0), service(".us-west-2.example.com", 0), // the same one
		service(".us-west-1.example.org"),       // it acts for nobody
		service(".eu-central-1.example.net.eu"), // nor this
		{Name: label + "x.us-east-1.example.org", ID: "ASVCAAAAAAAAAAAAAAAAA", Account: a, Created: t0, Every: true}, // another label
	} {
		if err := register(v); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	for _, rest := range []string{".example.com", ".us-west-2.example.com"} {
		if _, err := s.DeregisterService(ctx, label+rest); err != nil {
			t.Fatal(err)
		}
	}
	must(t, register(service(".us-east-1.example.net", 3))) // for another account
	must(t, register(service(".eu-west-1.example.net", 1))) // in another Region
	for _, v := range []*Service{service(".us-east-1.example.org", 2), service(".example.org", 3), service(".us-east-1.example.org", 0), service(".example.org", 1)} {
		overlap, ok := errors.AsType[*Overlap](register(v))
		if !ok || !strings.HasPrefix(overlap.Service, label+".") {
			t.Errorf("%s for %v: %v", v.Name, v.Accounts, overlap)
		}
	}
	const n = 8
	errs := make(chan error, n)
	for i := range n {
		k := newKeyOf(fmt.Sprintf("AKIAX%d%s", i, a), a)
		go func() { errs <- s.RegisterService(ctx, service(fmt.Sprintf(".many%d.example", i), 4), k) }()
	}
	registered := 0
	for range n {
		err := <-errs
		if _, ok := errors.AsType[*Overlap](err); err == nil {
			registered++
		} else if !ok {
			t.Error(err)
		}
	}
	if registered != 1 {
		t.Errorf("%d of them are registered", registered)
	}
}

func TestServiceParts(t *testing.T) {
	for name, want := range map[string][3]string{
		"s3.us-east-1.amazonaws.com": {"s3", "us-east-1", "amazonaws.com"}, "s3.amazonaws.com": {"s3", "", "amazonaws.com"}, "s3.us-gov-west-1.a.b": {"s3", "us-gov-west-1", "a.b"},
		"s3.us-east-1": {"s3", "", "us-east-1"}, "s3.us-east.amazonaws.com": {"s3", "", "us-east.amazonaws.com"}, "s3.us--1.a": {"s3", "", "us--1.a"}, "s3": {"s3", "", ""},
	} {
		label, region, domain := ServiceParts(name)
		if got := [3]string{label, region, domain}; got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestAccounts(t *testing.T) {
	s, ctx := shared, t.Context()
	a := newAccount(t, s)
	if err := s.CreateAccount(ctx, &Account{ID: a, Created: t0}, newKeyOf("AKIA"+a.String(), a)); !errors.Is(err, ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := s.AccessKey(ctx, "AKIA"+a.String()); !errors.Is(err, ErrNotFound) {
		t.Errorf("the access key of a refused account: %v", err)
	}
	if err := s.CreateAccount(ctx, &Account{ID: keyid.AccountMax + 1, Created: t0}, nil); err == nil {
		t.Error("an account of 13 digits")
	}
	list, _, err := s.Accounts(ctx, (a - 1).String(), 1)
	if err != nil || len(list) != 1 || list[0].ID != a {
		t.Errorf("%v %v", list, err)
	}
	n := 0
	must(t, s.AllAccounts(ctx, func(*Account) error { n++; return nil }))
	if n == 0 {
		t.Error("none")
	}
	var names []string
	must(t, s.CreatePrincipal(ctx, newUser(a, "b")))
	must(t, s.CreatePrincipal(ctx, newUser(a, "A")))
	must(t, s.CreatePrincipal(ctx, newRole(a, "c")))
	must(t, s.AllPrincipals(ctx, func(p *Principal) error {
		if p.Account == a {
			names = append(names, p.Name)
		}
		return nil
	}))
	if fmt.Sprint(names) != "[A b c]" {
		t.Error(names)
	}
	page, more, err := s.Principals(ctx, User, a, "", 1)
	if err != nil || !more || len(page) != 1 || page[0].Name != "A" {
		t.Errorf("%v %v %v", page, more, err)
	}
	page, more, err = s.Principals(ctx, User, a, "A", 1)
	if err != nil || more || len(page) != 1 || page[0].Name != "b" {
		t.Errorf("%v %v %v", page, more, err)
	}
}
