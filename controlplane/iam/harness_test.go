package iam

import (
	"os"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/keyid"
)

// shared is one embedded etcd for the whole package; tests keep apart by account.
var shared *store.Store

func TestMain(m *testing.M) {
	os.Exit(storetest.Run(m, func(s *store.Store) { shared = s }))
}

var quiet = storetest.Quiet

// clock is a settable time.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// env is a table with an account that no other test uses, its administrator's access key and a settable clock.
type env struct {
	testing.TB
	table   *Table
	account keyid.Account
	clock   *clock
	keyID   string
	secret  string
}

var (
	envMu sync.Mutex
	envs  uint64
)

func newAccount() keyid.Account {
	envMu.Lock()
	defer envMu.Unlock()
	envs++
	return keyid.Account(500_000_000_000 + envs)
}

func newEnv(t testing.TB) *env { return newEnvIn(t, shared) }

func newEnvIn(t testing.TB, st *store.Store) *env {
	t.Helper()
	account := newAccount()
	e := &env{
		TB: t, account: account, clock: &clock{t: time.Date(2026, 11, 23, 12, 0, 0, 123_000_000, time.UTC)},
		keyID: "AKIA" + account.String(), secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
	}
	var err error
	if e.table, err = NewTable(TableConfig{Store: st, Region: "us-east-1", Now: e.clock.now}); err != nil {
		t.Fatal(err)
	}
	if err := e.table.EnsureAdmin(t.Context(), account, e.keyID, []byte(e.secret)); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *env) arn(rest string) string { return "arn:aws:iam::" + e.account.String() + ":" + rest }

func (e *env) name(kind store.PrincipalKind, name string) store.PrincipalName {
	return store.PrincipalName{Kind: kind, Account: e.account, Name: name}
}

// made writes a principal and publishes it.
func (e *env) made(p *store.Principal) *store.Principal {
	e.Helper()
	if err := e.table.publishPrincipal(e.Context(), p.PrincipalName, e.table.store.CreatePrincipal(e.Context(), p)); err != nil {
		e.Fatal(err)
	}
	return p
}

func (e *env) user(name string) *store.Principal {
	e.Helper()
	return e.made(&store.Principal{PrincipalName: e.name(store.User, name), ID: newID("AIDA"), Path: "/", Created: e.clock.now()})
}

// role makes a role that trusts one principal.
func (e *env) role(name, trusted string) *store.Principal {
	e.Helper()
	return e.made(&store.Principal{
		PrincipalName: e.name(store.Role, name), ID: newID("AROA"), Path: "/", Created: e.clock.now(), MaxSession: time.Hour,
		Trust:      `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + trusted + `"},"Action":"sts:AssumeRole"}}`,
		TrustBound: []store.Bound{{ARN: trusted, ID: trusted[len("arn:aws:iam::"):][:12]}},
	})
}

func trustAccount(a keyid.Account) string { return "arn:aws:iam::" + a.String() + ":root" }

// begin begins a session of an hour.
func (e *env) begin(role *store.Principal, name string, edit ...func(*store.Session)) *credentials {
	e.Helper()
	p := e.table.principals[role.PrincipalName]
	if p == nil {
		e.Fatalf("%s is not in the table", role.Name)
	}
	now := e.clock.now()
	v := &store.Session{Name: name, Issued: now, Expires: now.Add(time.Hour)}
	for _, f := range edit {
		f(v)
	}
	c, err := e.table.begin(e.Context(), p, role.PrincipalName, v, now)
	if err != nil {
		e.Fatal(err)
	}
	return c
}

// accessKey makes an access key of a user.
func (e *env) accessKey(user *store.Principal) string {
	e.Helper()
	id := newID("AKIA")
	k := userKey(id, user)
	defer k.Secret.Wipe()
	err := e.table.store.CreateAccessKey(e.Context(), store.Owner{Account: e.account, User: user.Name}, k)
	if err := e.table.publishAccessKey(e.Context(), id, err); err != nil {
		e.Fatal(err)
	}
	return id
}
