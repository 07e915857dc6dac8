package iam

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

var _ sigv4.KeySource = (*Table)(nil)

var _ policy.Binder = (*Table)(nil).Bind

// accountsStore has a store of its own: these tests look at all access keys there are.
func accountsStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: t.TempDir(), Logger: quiet, Sealer: storetest.NewSealer()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

func TestEnsureAdmin(t *testing.T) {
	st := accountsStore(t)
	var changed []string
	now := time.Date(2026, 1, 2, 3, 4, 5, 6_789_000, time.UTC)
	table, err := NewTable(TableConfig{
		Store: st, Region: "cn-north-1", Changed: func(id string) { changed = append(changed, id) }, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	const account, id = keyid.Account(111122223333), "AKIAADMIN00000000001"
	first, second := []byte("the first secret access key"), []byte("the second secret access key")
	if err := table.EnsureAdmin(t.Context(), account, id, first); err != nil {
		t.Fatal(err)
	}
	if got := table.AccessKey([]byte(id)); got == nil || got.Principal().ARN != "arn:aws-cn:iam::111122223333:user/administrator" ||
		got.Principal().Account != account || got.Principal().UserName != "administrator" || len(got.Principal().Caller.Holder.Subject().Identity) != 1 {
		t.Fatalf("access key %v", got)
	}
	record, err := st.AccessKey(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !record.Active || !record.Secret.Equal(first) || !record.Created.Equal(now.Truncate(time.Millisecond)) {
		t.Errorf("record %+v", record)
	}
	// Again: nothing is written.
	if err := table.EnsureAdmin(t.Context(), account, id, first); err != nil {
		t.Fatal(err)
	}
	if again, err := st.AccessKey(t.Context(), id); err != nil || again.Revision != record.Revision {
		t.Errorf("revision %d became %d, %v", record.Revision, again.Revision, err)
	}
	if fmt.Sprint(slices.Compact(changed)) != fmt.Sprint([]string{id}) {
		t.Errorf("changed %v", changed)
	}
	// Another secret replaces the first and keeps the creation date; the old one is dead at once.
	old := table.AccessKey([]byte(id))
	now = now.Add(time.Hour)
	if err := table.EnsureAdmin(t.Context(), account, id, second); err != nil {
		t.Fatal(err)
	}
	if table.AccessKey([]byte(id)) == old {
		t.Error("the old secret is still in use")
	}
	replaced, err := st.AccessKey(t.Context(), id)
	if err != nil || !replaced.Secret.Equal(second) || !replaced.Created.Equal(record.Created) {
		t.Errorf("record %+v %v", replaced, err)
	}
	// An access key that was made inactive comes back.
	replaced.Active = false
	if err := st.PutAccessKey(t.Context(), replaced); err != nil {
		t.Fatal(err)
	}
	if err := table.Reload(t.Context(), id); err != nil || table.AccessKey([]byte(id)) != nil {
		t.Errorf("an inactive access key is in use: %v", err)
	}
	if err := table.EnsureAdmin(t.Context(), account, id, second); err != nil || table.AccessKey([]byte(id)) == nil {
		t.Errorf("EnsureAdmin left it inactive: %v", err)
	}

	for name, f := range map[string]func() error{
		"short secret":    func() error { return table.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, adminSecretMin-1)) },
		"long secret":     func() error { return table.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, 129)) },
		"no ID":           func() error { return table.EnsureAdmin(t.Context(), account, "", first) },
		"ID with slash":   func() error { return table.EnsureAdmin(t.Context(), account, "a/b", first) },
		"long ID":         func() error { return table.EnsureAdmin(t.Context(), account, strings.Repeat("A", 129), first) },
		"account":         func() error { return table.EnsureAdmin(t.Context(), keyid.AccountMax+1, "AKIA2", first) },
		"another account": func() error { return table.EnsureAdmin(t.Context(), account+1, id, first) },
	} {
		if err := f(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if record, err := st.AccessKey(t.Context(), id); err != nil || record.Account != account || !record.Secret.Equal(second) {
		t.Errorf("record %+v %v", record, err)
	}
	if err := table.EnsureAdmin(t.Context(), account, "AKIA2", make([]byte, adminSecretMin)); err != nil {
		t.Errorf("secret of the least length: %v", err)
	}
	if err := table.EnsureAdmin(t.Context(), account, "AKIA3", make([]byte, adminSecretMin)); !errors.Is(err, store.ErrQuota) {
		t.Errorf("a third access key: %v", err)
	}
	if err := table.ReplaceAdmin(t.Context(), account, strings.Repeat("A", 128), bytes.Repeat([]byte("s"), 128)); err != nil {
		t.Errorf("longest ID and secret: %v", err)
	}
	if table.AccessKey([]byte(id)) != nil || table.AccessKey([]byte("AKIA2")) != nil || table.AccessKey([]byte(strings.Repeat("A", 128))) == nil {
		t.Error("ReplaceAdmin left others")
	}
}

// A secret sealed for another principal, or under another key, does not load, and the table stays as it was.
func TestTableDoNotOpen(t *testing.T) {
	dir := t.TempDir()
	open := func(sealer store.Sealer) *store.Store {
		st, err := store.OpenEmbedded(t.Context(), store.EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: sealer})
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := open(storetest.NewSealer())
	table, err := NewTable(TableConfig{Store: st, Region: "us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.EnsureAdmin(t.Context(), 111122223333, "AKIA1", []byte("secret of some length")); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	for _, sealer := range []store.Sealer{storetest.NewSealer(), nil} {
		st = open(sealer)
		table, err = NewTable(TableConfig{Store: st, Region: "us-east-1"})
		if err != nil {
			t.Fatal(err)
		}
		want := store.ErrDamaged
		if sealer == nil {
			want = store.ErrNoSealer
		}
		if err := table.Load(t.Context()); !errors.Is(err, want) {
			t.Errorf("Load: %v", err)
		}
		if err := table.Reload(t.Context(), "AKIA1"); !errors.Is(err, want) {
			t.Errorf("Reload: %v", err)
		}
		if err := table.EnsureAdmin(t.Context(), 111122223333, "AKIA1", []byte("secret of some length")); !errors.Is(err, want) {
			t.Errorf("EnsureAdmin: %v", err)
		}
		if table.AccessKey([]byte("AKIA1")) != nil {
			t.Error("an access key that does not open is in use")
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Lookups go on while keys and sessions change; a key that stays is always found.
func TestTableConcurrent(t *testing.T) {
	e := newEnv(t)
	role := e.role("role", trustAccount(e.account))
	session := e.begin(role, "stays")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if e.table.AccessKey([]byte(e.keyID)) == nil || e.table.AccessKey([]byte(session.id)) == nil {
					t.Error("a key that stays is not found")
					return
				}
				if id, ok := e.table.Bind(e.arn("role/role")); !ok || id != role.ID {
					t.Error("a role that stays is not found")
					return
				}
			}
		})
	}
	for i := range 50 {
		if err := e.table.EnsureAdmin(t.Context(), e.account, e.keyID+"X", fmt.Appendf(nil, "secret access key number %d", i)); err != nil {
			t.Error(err)
		}
		e.begin(role, fmt.Sprintf("session%d", i))
		e.table.sessions.sweep(e.clock.now())
	}
	close(stop)
	wg.Wait()
}

// All that is in the store is in the table of the next start, and nothing of what is inactive, deleted or expired.
func TestTableLoad(t *testing.T) {
	st := accountsStore(t)
	e := newEnvIn(t, st)
	user, gone, role := e.user("alice"), e.user("bob"), e.role("role", trustAccount(e.account))
	active, inactive := e.accessKey(user), e.accessKey(user)
	record, err := st.AccessKey(t.Context(), inactive)
	if err != nil {
		t.Fatal(err)
	}
	record.Active = false
	if err := e.table.publishAccessKey(t.Context(), inactive, st.PutAccessKey(t.Context(), record)); err != nil {
		t.Fatal(err)
	}
	session := e.begin(role, "session")
	other := e.role("other", trustAccount(e.account))
	orphan := e.begin(other, "session")
	if err := st.DeletePrincipal(t.Context(), other.PrincipalName, other.ID); err != nil {
		t.Fatal(err)
	}
	if err := st.DeletePrincipal(t.Context(), gone.PrincipalName, gone.ID); err != nil {
		t.Fatal(err)
	}
	if err := st.RegisterService(t.Context(), &store.Service{Name: "s3.us-east-1.amazonaws.com", ID: newID("ASVC"), Account: e.account, Created: e.clock.now(), Every: true},
		&store.AccessKey{ID: "AKIASERVICE", Account: e.account, PrincipalARN: "s3.us-east-1.amazonaws.com", PrincipalID: "x", Active: true, Created: e.clock.now(), Secret: secret.New([]byte("secret"))}); err != nil {
		t.Fatal(err)
	}
	next, err := NewTable(TableConfig{Store: st, Region: "us-east-1", Now: e.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	if next.AccessKey([]byte(active)) != nil {
		t.Error("a key before Load")
	}
	for range 2 {
		if err := next.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{active, e.keyID, session.id} {
			if next.AccessKey([]byte(id)) == nil {
				t.Errorf("%s is not there", id)
			}
		}
		for _, id := range []string{inactive, orphan.id, "AKIASERVICE"} { // the service's key was made for another registration of that name
			if next.AccessKey([]byte(id)) != nil {
				t.Errorf("%s is there", id)
			}
		}
		if k := next.AccessKey([]byte(session.id)); k.Principal().Caller.Holder != next.principals[role.PrincipalName].holder || !k.Expires().Equal(session.expires) {
			t.Error("the session has not its role's Holder")
		}
		if _, ok := next.Bind(e.arn("user/bob")); ok {
			t.Error("bob is there")
		}
		if next.Subject("s3.us-east-1.amazonaws.com") == nil {
			t.Error("the service is not there")
		}
		if n := next.sessions.counts[e.account]; n != 1 {
			t.Errorf("%d sessions", n)
		}
	}
	e.clock.add(time.Hour + store.SessionGrace + time.Millisecond)
	if err := next.Load(t.Context()); err != nil || next.AccessKey([]byte(session.id)) != nil {
		t.Errorf("the session outlived its grace: %v", err)
	}
	if err := next.Reload(t.Context(), "not an ID"); err != nil {
		t.Error(err)
	}
	for _, cfg := range []TableConfig{{Region: "us-east-1"}, {Store: st}, {Store: st, Region: "Region"}} {
		if _, err := NewTable(cfg); err == nil {
			t.Errorf("accepted %+v", cfg)
		}
	}
}

// Callers are what package authz documents.
func TestCallers(t *testing.T) {
	e := newEnv(t)
	account := e.account.String()
	user := e.made(&store.Principal{PrincipalName: e.name(store.User, "Alice"), ID: newID("AIDA"), Path: "/team/", Created: e.clock.now(), Tags: []store.Tag{{Key: "k", Value: "v"}}})
	role := e.role("role", trustAccount(e.account))
	svc := &store.Service{Name: "s3.us-east-" + account + ".amazonaws.com", ID: newID("ASVC"), Account: e.account, Created: e.clock.now(), Every: true}
	key := &store.AccessKey{ID: newID("AKIA"), Account: e.account, PrincipalARN: svc.Name, PrincipalID: svc.ID, Active: true, Created: e.clock.now(), Secret: secret.New([]byte("secret"))}
	if err := e.table.publishService(t.Context(), svc.Name, e.table.store.RegisterService(t.Context(), svc, key)); err != nil {
		t.Fatal(err)
	}
	if err := e.table.publishAccessKey(t.Context(), key.ID, nil); err != nil {
		t.Fatal(err)
	}
	rootKey := &store.AccessKey{ID: newID("AKIA"), Account: e.account, PrincipalARN: e.arn("root"), PrincipalID: account, Active: true, Created: e.clock.now(), Secret: secret.New([]byte("secret"))}
	if err := e.table.publishAccessKey(t.Context(), rootKey.ID, e.table.store.CreateAccessKey(t.Context(), store.Owner{Account: e.account}, rootKey)); err != nil {
		t.Fatal(err)
	}
	session := e.begin(role, "me@work", func(v *store.Session) {
		v.Tags, v.Source, v.Policies = []store.Tag{{Key: "team", Value: "red"}}, "alice", []string{administratorAccess}
	})
	via := e.begin(role, "s3.amazonaws.com", func(v *store.Session) { v.Via, v.ViaID = svc.Name, svc.ID })
	sessionARN := "arn:aws:sts::" + account + ":assumed-role/role/me@work"
	for _, c := range []struct {
		id, arn  string
		kind     policy.PrincipalKind
		uid      string // unique ID
		userID   string
		userName string
		grantees [3]string
	}{
		{e.accessKey(user), e.arn("user/team/Alice"), policy.User, user.ID, user.ID, "Alice", [3]string{user.ID, "", account}},
		{rootKey.ID, e.arn("root"), policy.Root, account, account, "", [3]string{account}},
		{session.id, sessionARN, policy.AssumedRole, role.ID, role.ID + ":me@work", "", [3]string{role.ID + ":me@work", role.ID, account}},
		{key.ID, svc.Name, policy.Service, "", svc.Name, "", [3]string{svc.Name, "s3.amazonaws.com"}},
	} {
		k := e.table.AccessKey([]byte(c.id))
		if k == nil {
			t.Errorf("%s: no access key", c.arn)
			continue
		}
		w := k.Principal().Caller
		if w.ARN != c.arn || k.Principal().ARN != c.arn || w.Kind != c.kind || w.Account != e.account || w.ID != c.uid || w.UserID != c.userID ||
			w.UserName != c.userName || w.Grantees != c.grantees || k.Principal().Root != (c.kind == policy.Root) || w.Via != "" {
			t.Errorf("%s: %+v", c.arn, w)
		}
		if s := e.table.Subject(c.arn); s == nil || s != w.Holder.Subject() || s.ID != c.uid {
			t.Errorf("%s: subject %+v", c.arn, s)
		}
		if other := e.table.Caller(c.arn); other == nil || other.Holder != w.Holder || other.Grantees != w.Grantees {
			t.Errorf("%s: caller %+v", c.arn, other)
		}
		if id, ok := e.table.Bind(c.arn); ok != (c.kind != policy.Service) || id != c.uid {
			t.Errorf("%s is bound to %q, %v", c.arn, id, ok)
		}
	}
	w := e.table.AccessKey([]byte(session.id)).Principal().Caller
	if w.RoleARN != e.arn("role/role") || len(w.Session) != 1 || w.Source != "alice" || len(w.Tags) != 1 || w.Tags[0] != (authz.Tag{Key: "team", Value: "red"}) ||
		!w.TokenIssued.Equal(e.clock.now()) {
		t.Errorf("session %+v", w)
	}
	if s := w.Holder.Subject(); s.ARN != "" || s.RoleARN != w.RoleARN || s.Name != "role" || s.Kind != policy.AssumedRole {
		t.Errorf("role %+v", s)
	}
	if w := e.table.AccessKey([]byte(via.id)).Principal().Caller; w.Via != svc.Name || w.ViaName != "s3.amazonaws.com" {
		t.Errorf("forward access session %+v", w)
	}
	if s := e.table.Subject(e.arn("user/team/Alice")); len(s.Tags) != 1 || len(s.Identity) != 0 {
		t.Errorf("user %+v", s)
	}
	if id, ok := e.table.Bind(e.arn("role/role")); !ok || id != role.ID || e.table.Caller(e.arn("role/role")) != nil {
		t.Errorf("role: %q %v", id, ok)
	}
	for name, want := range map[string]bool{svc.Name: true, "s3.amazonaws.com": true, "s3.us-west-1.amazonaws.com": false, "S3.amazonaws.com": false, "s4.amazonaws.com": false, "": false} {
		if got := e.table.IsService(name); got != want {
			t.Errorf("%q is a service: %v", name, got)
		}
	}
	for _, arn := range []string{
		"", "alice", e.arn("user/Alice"), e.arn("user/team/alice"), e.arn("user/team/Alice/"), e.arn("role/Alice"), e.arn("user/"), e.arn("user"), e.arn("group/Alice"),
		e.arn("root/"), "arn:aws:iam::999999999999:root", "arn:aws-cn:iam::" + account + ":root", "arn:aws:iam:us-east-1:" + account + ":root", "arn:aws:sts::" + account + ":root",
		"arn:aws:sts::" + account + ":assumed-role/role", "arn:aws:sts::" + account + ":assumed-role/role/a", "arn:aws:sts::" + account + ":assumed-role/role/a/b",
		"arn:aws:sts::" + account + ":assumed-role/nobody/ab", "arn:aws:iam::" + account + ":assumed-role/role/ab", svc.Name,
	} {
		if id, ok := e.table.Bind(arn); ok {
			t.Errorf("%s is bound to %s", arn, id)
		}
	}
}

// A change of a principal binds all its access keys and sessions at once; a principal made again is another one.
func TestHolders(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	role := e.role("role", trustAccount(e.account))
	session := e.begin(role, "session")
	w := e.table.AccessKey([]byte(session.id)).Principal().Caller
	change := func(p *store.Principal, f func(*store.Principal)) {
		t.Helper()
		_, err := e.table.store.UpdatePrincipal(ctx, p.PrincipalName, func(p *store.Principal) error { f(p); return nil })
		if err := e.table.publishPrincipal(ctx, p.PrincipalName, err); err != nil {
			t.Fatal(err)
		}
	}
	change(role, func(p *store.Principal) { p.PutInline(store.Document{Name: "p", Text: administratorAccess}) })
	if n := len(w.Holder.Subject().Identity); n != 1 {
		t.Errorf("%d identity policies", n)
	}
	change(role, func(p *store.Principal) {
		p.Boundary, p.Attached = "arn:aws:iam::aws:policy/AdministratorAccess", []string{"arn:aws:iam::aws:policy/AdministratorAccess"}
	})
	if s := w.Holder.Subject(); len(s.Identity) != 2 || s.Boundary == nil {
		t.Errorf("%+v", s)
	}
	change(role, func(p *store.Principal) { p.Inline, p.Attached, p.Boundary = nil, nil, "" })
	if s := w.Holder.Subject(); len(s.Identity) != 0 || s.Boundary != nil {
		t.Errorf("%+v", s)
	}
	if err := e.table.publishPrincipal(ctx, role.PrincipalName, e.table.store.DeletePrincipal(ctx, role.PrincipalName, role.ID)); err != nil {
		t.Fatal(err)
	}
	if w.Holder.Subject() != nil {
		t.Error("the session of a deleted role has a subject")
	}
	if e.table.Subject(e.arn("role/role")) != nil {
		t.Error("the role is found")
	}
	again := e.role("role", trustAccount(e.account))
	if w.Holder.Subject() != nil {
		t.Error("the session of a deleted role speaks for the new one")
	}
	if id, _ := e.table.Bind(e.arn("role/role")); id != again.ID || id == role.ID {
		t.Errorf("bound to %s", id)
	}
}

// A write whose outcome is unknown, or that could not be read back, is read again until it is.
func TestPublishAgain(t *testing.T) {
	e := newEnv(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.table.Run(ctx) }()
	again := make(chan struct{}, 8)
	calls := 0
	reload := func(context.Context) error {
		if calls++; calls < 3 {
			return errors.New("not now")
		}
		again <- struct{}{}
		return nil
	}
	if err := e.table.publish(ctx, "x", store.ErrUncertain, reload); !errors.Is(err, store.ErrUncertain) {
		t.Errorf("%v", err)
	}
	<-again
	if err := e.table.publish(ctx, "x", nil, func(context.Context) error { again <- struct{}{}; return errors.New("failed") }); err == nil {
		t.Error("a change that the table does not have was acknowledged")
	}
	<-again
	<-again // by Run
	refused := errors.New("refused")
	if err := e.table.publish(ctx, "x", refused, func(context.Context) error { t.Error("nothing was written"); return nil }); err != refused {
		t.Errorf("%v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestSessions(t *testing.T) {
	e := newEnv(t)
	role := e.role("role", trustAccount(e.account))
	c := e.begin(role, "one")
	if len(c.id) != 20 || c.id[:4] != "ASIA" || len(c.secretKey) != 40 || len(c.token) != 128 {
		t.Errorf("%s, %d, %d", c.id, len(c.secretKey), len(c.token))
	}
	e.clock.add(2 * time.Hour)
	e.table.sessions.sweep(e.clock.now().Add(-2 * time.Hour))
	if e.table.AccessKey([]byte(c.id)) == nil {
		t.Error("swept before its time")
	}
	e.table.sessions.sweep(e.clock.now())
	if e.table.AccessKey([]byte(c.id)) != nil || len(e.table.sessions.counts) != 0 {
		t.Error("not swept")
	}
	// At the maximum, those that expired make room; live ones do not.
	e.begin(role, "two")
	e.table.sessions.counts[e.account] = SessionsMax
	p, now := e.table.principals[role.PrincipalName], e.clock.now()
	begin := func() error {
		_, err := e.table.begin(t.Context(), p, role.PrincipalName, &store.Session{Name: "three", Issued: now, Expires: now.Add(time.Hour)}, now)
		return err
	}
	if err := begin(); !errors.Is(err, ErrSessions) {
		t.Errorf("beyond the maximum: %v", err)
	}
	now = now.Add(2 * time.Hour)
	if err := begin(); err != nil {
		t.Errorf("an expired session has a place: %v", err)
	}
	if n := e.table.sessions.counts[e.account]; n != SessionsMax {
		t.Errorf("%d sessions", n)
	}
	// What is not written is not counted.
	if _, err := e.table.begin(t.Context(), p, role.PrincipalName, &store.Session{Name: "x", Issued: now, Expires: now.Add(time.Hour)}, now); err == nil {
		t.Error("a session name of one letter")
	}
}

// However many access keys older versions left, a start works, and all that are kept are listed.
func TestManyOldAccessKeys(t *testing.T) {
	e := newEnv(t)
	for _, n := range []int{3, 65, store.OwnedKeysMax + 2} {
		account := newAccount()
		id := func(i int) string { return fmt.Sprintf("AKIA%sOLD%04d", account, i) }
		for i := range n {
			k := &store.AccessKey{
				ID: id(i), Account: account, PrincipalARN: "arn:aws:iam::" + account.String() + ":user/administrator", UserName: administrator,
				Active: true, Created: time.UnixMilli(int64(1 + i)), Secret: secret.New([]byte("a secret of an older version")),
			}
			if err := e.table.store.PutAccessKey(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			k.Secret.Wipe()
		}
		if err := e.table.EnsureAdministrator(t.Context(), account); err != nil {
			t.Fatalf("%d old access keys: %v", n, err)
		}
		ids, err := e.table.store.AccessKeyIDs(t.Context(), store.Owner{Account: account, User: administrator})
		kept := min(n, store.OwnedKeysMax)
		if err != nil || len(ids) != kept || ids[0] != id(n-kept) || ids[kept-1] != id(n-1) {
			t.Errorf("%d old access keys: %d are listed, %v", n, len(ids), err)
		}
		if _, err := e.table.store.AccessKey(t.Context(), id(0)); (err == nil) != (kept == n) {
			t.Errorf("%d old access keys: the oldest: %v", n, err)
		}
		if err := e.table.Load(t.Context()); err != nil || e.table.AccessKey([]byte(id(n-1))) == nil {
			t.Errorf("%d old access keys: %v", n, err)
		}
		// The environment names another one, which takes their place.
		admin := "AKIA" + account.String() + "NEW"
		if err := e.table.ReplaceAdmin(t.Context(), account, admin, []byte(e.secret)); err != nil {
			t.Errorf("%d old access keys: %v", n, err)
		}
		if e.table.AccessKey([]byte(id(n-1))) != nil || e.table.AccessKey([]byte(admin)) == nil {
			t.Errorf("%d old access keys: they are not replaced", n)
		}
	}
}

// An access key that an older version made without a user's record signs in, and belongs to the administrator who is made for it.
func TestOldAccessKeys(t *testing.T) {
	e := newEnv(t)
	account := newAccount()
	old := &store.AccessKey{
		ID: newID("AKIA"), Account: account, PrincipalARN: "arn:aws:iam::" + account.String() + ":user/administrator", UserName: administrator,
		Active: true, Created: time.UnixMilli(1), Secret: secret.New([]byte("a secret of an older version")),
	}
	if err := e.table.store.PutAccessKey(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := e.table.Reload(t.Context(), old.ID); err != nil || e.table.AccessKey([]byte(old.ID)) != nil {
		t.Errorf("it speaks for nobody yet: %v", err)
	}
	if err := e.table.EnsureAdministrator(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	if err := e.table.Reload(t.Context(), old.ID); err != nil || e.table.AccessKey([]byte(old.ID)) == nil {
		t.Errorf("not found: %v", err)
	}
	if ids, err := e.table.store.AccessKeyIDs(t.Context(), store.Owner{Account: account, User: administrator}); err != nil || len(ids) != 1 || ids[0] != old.ID {
		t.Errorf("%v %v", ids, err)
	}
	// A record without a principal's ID is a user's, never a root user's.
	root := &store.AccessKey{ID: newID("AKIA"), Account: account, PrincipalARN: "arn:aws:iam::" + account.String() + ":root", Active: true, Created: time.UnixMilli(1), Secret: secret.New([]byte("secret"))}
	if err := e.table.store.PutAccessKey(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if err := e.table.Reload(t.Context(), root.ID); err != nil || e.table.AccessKey([]byte(root.ID)) != nil {
		t.Errorf("an access key without a principal's ID speaks for a root user: %v", err)
	}
}

func userKey(id string, user *store.Principal) *store.AccessKey {
	return &store.AccessKey{
		ID: id, Account: user.Account, PrincipalARN: user.ARN("aws"), PrincipalID: user.ID, UserName: user.Name, Active: true, Created: time.UnixMilli(1),
		Secret: secret.New([]byte("secret of some length")),
	}
}
