package iam

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
)

// pair is the tables of two processes over one store: changes are made through the first.
type pair struct {
	*env
	other *Table
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{env: newEnvIn(t, accountsStore(t))}
	var err error
	if p.other, err = NewTable(TableConfig{Store: p.table.store, Region: "us-east-1", Now: p.clock.now, Logger: quiet}); err != nil {
		t.Fatal(err)
	}
	if err := p.other.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) apply(changes ...store.Change) {
	p.Helper()
	if err := p.other.Apply(p.Context(), changes); err != nil {
		p.Fatal(err)
	}
}

func (p *pair) has(id string) bool { return p.other.AccessKey([]byte(id)) != nil }

func (p *pair) change(what store.What, name string) store.Change {
	return store.Change{What: what, Account: p.account, Name: name}
}

// What one process changes is in force in the other once the change is applied there, and not before.
func TestApply(t *testing.T) {
	p := newPair(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	policies := func(arn string) int {
		t.Helper()
		s := p.other.Subject(arn)
		if s == nil {
			t.Fatal("no", arn)
		}
		return len(s.Identity)
	}
	// A user with an access key: the key alone brings the user with it.
	u := p.user("Bob")
	key := p.accessKey(u)
	if p.has(key) {
		t.Fatal("the other process knows it already: this test shows nothing")
	}
	p.apply(p.change(store.AccessKeyChanged, key))
	if !p.has(key) {
		t.Fatal("a new access key is not known")
	}
	holder := p.other.AccessKey([]byte(key)).Principal().Caller.Holder

	// A policy, for who has the key already.
	arn := p.arn("user/Bob")
	_, err := p.table.store.UpdatePrincipal(t.Context(), u.PrincipalName, func(u *store.Principal) error {
		u.PutInline(store.Document{Name: "p", Text: administratorAccess})
		return nil
	})
	must(p.table.publishPrincipal(t.Context(), u.PrincipalName, err))
	p.apply(p.change(store.UserChanged, "Bob"))
	if policies(arn) != 1 || holder.Subject() == nil || len(holder.Subject().Identity) != 1 {
		t.Error("a policy that was put is not in force")
	}
	_, err = p.table.store.UpdatePrincipal(t.Context(), u.PrincipalName, func(u *store.Principal) error { u.RemoveInline("p"); return nil })
	must(p.table.publishPrincipal(t.Context(), u.PrincipalName, err))
	p.apply(p.change(store.UserChanged, "Bob"))
	if policies(arn) != 0 || len(holder.Subject().Identity) != 0 {
		t.Error("a policy that was removed is in force still")
	}

	// An access key that is made inactive, and active again.
	for _, active := range []bool{false, true} {
		_, err = p.table.store.SetAccessKeyActive(t.Context(), store.Owner{Account: p.account, User: "Bob"}, key, active)
		must(p.table.publishAccessKey(t.Context(), key, err))
		p.apply(p.change(store.AccessKeyChanged, key))
		if p.has(key) != active {
			t.Errorf("active %v: the key is known: %v", active, p.has(key))
		}
	}

	// A managed policy that is made again under its name is another one.
	m := &store.ManagedPolicy{Account: p.account, Name: "Rights", Path: "/a/", ID: newID("ANPA"), Document: administratorAccess, Created: p.clock.now()}
	must(p.table.publishPolicy(t.Context(), m.ARN("aws"), p.table.store.CreatePolicy(t.Context(), m)))
	p.apply(p.change(store.PolicyChanged, "rights"))
	if p.other.policies[m.ARN("aws")].id != m.ID {
		t.Error("a managed policy is not known")
	}
	must(p.table.publishPolicy(t.Context(), m.ARN("aws"), p.table.store.DeletePolicy(t.Context(), m.ARN("aws"), m.ID)))
	gone := p.change(store.PolicyChanged, "rights")
	gone.Gone = true
	p.apply(gone)
	if p.other.policies[m.ARN("aws")].id != "" {
		t.Error("a managed policy that was deleted is known")
	}

	// A role with a session, both of the first process, and their ends.
	r := p.role("Worker", trustAccount(p.account))
	first, second := p.begin(r, "s1"), p.begin(r, "s2")
	p.apply(p.change(store.SessionChanged, first.id), p.change(store.SessionChanged, second.id), p.change(store.RoleChanged, "Worker"))
	if !p.has(first.id) || !p.has(second.id) {
		t.Fatal("sessions are not known")
	}
	if p.other.sessions.counts[p.account] != 2 {
		t.Errorf("%d sessions are counted", p.other.sessions.counts[p.account])
	}
	must(p.table.store.DeleteSessions(t.Context(), []store.SessionName{{Account: p.account, ID: first.id}}))
	ended := p.change(store.SessionChanged, first.id)
	ended.Gone = true
	p.apply(ended)
	if p.has(first.id) || !p.has(second.id) {
		t.Error("a session that was deleted is alive, or another is not")
	}
	caller := p.other.AccessKey([]byte(second.id)).Principal().Caller
	must(p.table.publishPrincipal(t.Context(), r.PrincipalName, p.table.store.DeletePrincipal(t.Context(), r.PrincipalName, r.ID)))
	lost := p.change(store.RoleChanged, "worker") // its name as in etcd: the record is not known any more
	lost.Gone = true
	p.apply(lost)
	if p.has(second.id) || caller.Holder.Subject() != nil || p.other.Subject(p.arn("role/Worker")) != nil {
		t.Error("a role that was deleted has sessions or rights")
	}
	if p.other.sessions.counts[p.account] != 0 {
		t.Errorf("%d sessions are counted", p.other.sessions.counts[p.account])
	}

	// A deleted user who is made again is another.
	must(p.table.store.RemoveAccessKey(t.Context(), store.Owner{Account: p.account, User: "Bob"}, key))
	must(p.table.publishAccessKey(t.Context(), key, nil))
	must(p.table.publishPrincipal(t.Context(), u.PrincipalName, p.table.store.DeletePrincipal(t.Context(), u.PrincipalName, u.ID)))
	p.user("Bob")
	p.apply(p.change(store.UserChanged, "Bob"), p.change(store.AccessKeyChanged, key))
	if p.has(key) || holder.Subject() != nil || p.other.Subject(arn) == nil {
		t.Error("who was deleted has rights, or who was made has not")
	}

	// An account, and a service that acts for it and is deregistered.
	a := newAccount()
	must(p.table.publishAccount(t.Context(), a, p.table.store.CreateAccount(t.Context(), &store.Account{ID: a, Created: p.clock.now()}, nil)))
	p.apply(store.Change{What: store.AccountChanged, Account: a})
	if p.other.Subject(trustAccount(a)) == nil {
		t.Error("an account is not known")
	}
	v := &store.Service{Name: "s3.us-east-1.amazonaws.com", ID: newID("ASVC"), Account: p.account, Created: p.clock.now(), Every: true}
	k := &store.AccessKey{ID: newID("AKIA"), Account: p.account, PrincipalARN: v.Name, PrincipalID: v.ID, Active: true, Created: p.clock.now(), Secret: userKey("x", u).Secret}
	must(p.table.publishService(t.Context(), v.Name, p.table.store.RegisterService(t.Context(), v, k)))
	p.apply(store.Change{What: store.AccessKeyChanged, Name: k.ID}, store.Change{What: store.ServiceChanged, Name: v.Name})
	if !p.other.IsService(v.Name) || !p.has(k.ID) {
		t.Error("a service is not known, or its key")
	}
	_, err = p.table.store.DeregisterService(t.Context(), v.Name)
	must(p.table.publishService(t.Context(), v.Name, err))
	p.apply(store.Change{What: store.ServiceChanged, Name: v.Name, Gone: true}, store.Change{What: store.AccessKeyChanged, Name: k.ID, Gone: true})
	if p.other.IsService(v.Name) || p.has(k.ID) {
		t.Error("a service that was deregistered is known, or its key")
	}
}

// Whoever begins a session hears of it as of anybody's change too, before or after it is in the table: it is there once and counted once.
func TestApplyOwnSession(t *testing.T) {
	p := newPair(t)
	r := p.role("r", trustAccount(p.account))
	p.apply(p.change(store.RoleChanged, "r"))
	c := p.begin(r, "s1")
	before := p.table.AccessKey([]byte(c.id))
	for range 2 {
		if err := p.table.Apply(t.Context(), []store.Change{p.change(store.SessionChanged, c.id)}); err != nil {
			t.Fatal(err)
		}
	}
	if p.table.AccessKey([]byte(c.id)) != before || p.table.sessions.counts[p.account] != 1 {
		t.Errorf("the session was added again, %d are counted", p.table.sessions.counts[p.account])
	}
	// The other way round, with the first process's session as if it were its own.
	if err := p.other.Apply(t.Context(), []store.Change{p.change(store.SessionChanged, c.id)}); err != nil {
		t.Fatal(err)
	}
	there := p.other.AccessKey([]byte(c.id))
	v, err := p.table.store.Session(t.Context(), store.SessionName{Account: p.account, ID: c.id})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Secret.Wipe()
	p.other.sessions.reserve(p.account, p.clock.now())
	own, err := p.other.temporaryKey(p.other.principals[r.PrincipalName], v)
	if err != nil {
		t.Fatal(err)
	}
	if p.other.sessions.add(own, nil) != there || p.other.AccessKey([]byte(c.id)) != there || p.other.sessions.counts[p.account] != 1 {
		t.Errorf("the session is there twice, or another one: %d are counted", p.other.sessions.counts[p.account])
	}
}

// A Load while the table serves keeps the Holders of who is still there, ends who is gone, and loses no session that is begun meanwhile.
func TestLoadWhileServing(t *testing.T) {
	p := newPair(t)
	stays, goes := p.user("stays"), p.user("goes")
	keeps, loses := p.accessKey(stays), p.accessKey(goes)
	r := p.role("r", trustAccount(p.account))
	old := p.begin(r, "s1")
	if err := p.other.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	holders := map[string]*authz.Holder{}
	for _, id := range []string{keeps, loses, old.id} {
		if !p.has(id) {
			t.Fatal(id, "is not known")
		}
		holders[id] = p.other.AccessKey([]byte(id)).Principal().Caller.Holder
	}
	for _, err := range []error{
		p.table.store.RemoveAccessKey(t.Context(), store.Owner{Account: p.account, User: "goes"}, loses),
		p.table.store.DeletePrincipal(t.Context(), goes.PrincipalName, goes.ID),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.table.store.UpdatePrincipal(t.Context(), stays.PrincipalName, func(u *store.Principal) error {
		u.PutInline(store.Document{Name: "p", Text: administratorAccess})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var begun []*credentials
	ctx, stop := context.WithCancel(t.Context())
	wg.Go(func() {
		role := p.other.principals[r.PrincipalName]
		for ctx.Err() == nil && len(begun) < 200 {
			now := p.clock.now()
			c, err := p.other.begin(t.Context(), role, r.PrincipalName, &store.Session{Name: "s2", Issued: now, Expires: now.Add(time.Hour), Policies: []string{administratorAccess}}, now)
			if err != nil {
				t.Error(err)
				return
			}
			begun = append(begun, c)
		}
	})
	for range 20 {
		if err := p.other.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	wg.Wait()
	if s := holders[keeps].Subject(); s == nil || len(s.Identity) != 1 || !p.has(keeps) || p.other.AccessKey([]byte(keeps)).Principal().Caller.Holder != holders[keeps] {
		t.Error("who is still there is not decided by what was loaded")
	}
	if holders[loses].Subject() != nil || p.has(loses) {
		t.Error("who is gone has rights")
	}
	if holders[old.id].Subject() == nil || !p.has(old.id) {
		t.Error("a session is lost")
	}
	if len(begun) == 0 {
		t.Error("no session was begun meanwhile: this test shows nothing")
	}
	for _, c := range begun {
		if !p.has(c.id) {
			t.Fatal("a session that was begun during a Load is lost")
		}
	}
	if n := p.other.sessions.counts[p.account]; n != len(begun)+1 {
		t.Errorf("%d sessions are counted of %d", n, len(begun)+1)
	}
	p.other.sessions.drop(func(*authz.Caller) bool { return true })
	if s := &p.other.sessions; len(s.counts) != 0 || len(s.documents) != 0 {
		t.Errorf("without sessions there are %v and %v", s.counts, s.documents)
	}
}

// A record that is not to be trusted takes the rights of whom it is of, and nobody else's; a store that does not answer takes nobody's.
func TestApplyDamaged(t *testing.T) {
	p := newPair(t)
	bob, eve := p.user("bob"), p.user("eve")
	bobs, eves := p.accessKey(bob), p.accessKey(eve)
	p.apply(p.change(store.AccessKeyChanged, bobs), p.change(store.AccessKeyChanged, eves))
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.other.Apply(canceled, []store.Change{p.change(store.AccessKeyChanged, bobs), p.change(store.UserChanged, "bob")}); !errors.Is(err, context.Canceled) {
		t.Errorf("a store that does not answer: %v", err)
	}
	if !p.has(bobs) {
		t.Fatal("it took an access key")
	}
	if _, err := p.table.store.UpdatePrincipal(t.Context(), bob.PrincipalName, func(u *store.Principal) error {
		u.PutInline(store.Document{Name: "p", Text: `{"Version":"2012-10-17","Statement":{}}`}) // the store takes it, and nobody compiles it
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	holder := p.other.AccessKey([]byte(bobs)).Principal().Caller.Holder
	p.apply(p.change(store.UserChanged, "bob"), p.change(store.UserChanged, "eve"))
	if holder.Subject() != nil {
		t.Error("a user whose policy does not compile has rights")
	}
	if s := p.other.Subject(p.arn("user/eve")); s == nil || !p.has(eves) {
		t.Error("another one has none")
	}
	// Nor does whoever loads everything.
	if err := p.other.Load(t.Context()); err == nil {
		t.Error("a table that has to have all loads without a part")
	}
	p.other.spare = true
	if err := p.other.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.has(bobs) || p.other.Subject(p.arn("user/bob")) != nil || !p.has(eves) {
		t.Error("after all was loaded it is not the same")
	}
	// The change of a record that cannot be read has the name in lower case.
	ann := p.user("Ann")
	p.apply(p.change(store.UserChanged, "Ann"))
	if _, err := p.table.store.UpdatePrincipal(t.Context(), ann.PrincipalName, func(u *store.Principal) error {
		u.PutInline(store.Document{Name: "p", Text: `{"Version":"2012-10-17","Statement":{}}`})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n := ann.PrincipalName
	n.Name = "ann"
	if names := p.other.alike(n); len(names) != 2 || names[1] != ann.PrincipalName {
		t.Errorf("names %v", names)
	}
}

// A change is acknowledged only when every process has it, and so are the credentials of a session.
func TestSpread(t *testing.T) {
	e := newEnvIn(t, accountsStore(t))
	spread := 0
	e.table.spread = func() { spread++ }
	u := e.user("u")
	key := e.accessKey(u)
	if spread != 2 {
		t.Errorf("%d times after a user and an access key", spread)
	}
	_ = e.table.publishPrincipal(t.Context(), u.PrincipalName, store.ErrNotFound)
	if spread != 3 {
		t.Errorf("%d times after one that was gone", spread)
	}
	e.begin(e.role("r", trustAccount(e.account)), "s1")
	if spread != 5 {
		t.Errorf("%d times after a role and its session", spread)
	}
	_ = e.table.publishAccessKey(t.Context(), key, errors.New("refused"))
	if spread != 5 {
		t.Errorf("%d times after a refusal", spread)
	}
}
