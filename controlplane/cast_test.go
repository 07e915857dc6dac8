package controlplane

import (
	"strings"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// cast is the principals of a test beside the table's administrators: a sigv4.KeySource and Principals.
type cast struct {
	table *iam.Table

	mu   sync.Mutex
	keys map[string]*sigv4.AccessKey
	ids  map[string]string // unique IDs by ARN

	services map[string]bool // by name
}

func (c *cast) IsService(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.services[name] || c.table.IsService(name)
}

func (c *cast) Service(label, region string, a keyid.Account) string {
	return c.table.Service(label, region, a)
}

func (c *cast) AccessKey(id []byte) *sigv4.AccessKey {
	c.mu.Lock()
	k := c.keys[string(id)]
	c.mu.Unlock()
	if k != nil {
		return k
	}
	return c.table.AccessKey(id)
}

func (c *cast) Bind(arn string) (string, bool) {
	c.mu.Lock()
	id, ok := c.ids[arn]
	c.mu.Unlock()
	if ok {
		return id, true
	}
	return c.table.Bind(arn)
}

// as is e with the access key of a caller of its own.
func (e *env) as(w *authz.Caller) *env {
	e.Helper()
	id := "ASIA" + strings.Map(func(r rune) rune {
		if isWord(r) {
			return r
		}
		return '_'
	}, w.Via+w.ARN)
	if len(id) > 100 {
		id = id[len(id)-100:]
	}
	k, err := sigv4.NewAccessKey(id, []byte(e.secret), sigv4.Principal{Account: w.Account, ARN: w.ARN, UserName: w.UserName, Caller: w})
	if err != nil {
		e.Fatal(err)
	}
	e.cast.mu.Lock()
	e.cast.keys[id] = k
	e.cast.mu.Unlock()
	in := *e
	in.keyID, in.account, in.who = id, w.Account, w
	return &in
}

func identity(e *env, documents []string) (list []*policy.Policy) {
	e.Helper()
	for _, d := range documents {
		p, err := policy.Parse([]byte(d), policy.IdentityPolicy, nil)
		if err != nil {
			e.Fatal(err, d)
		}
		list = append(list, p)
	}
	return list
}

func (e *env) exists(arn, id string) {
	e.cast.mu.Lock()
	defer e.cast.mu.Unlock()
	e.cast.ids[arn] = id
}

// elsewhere is e's server seen from the root user of an account that nobody else has.
func (e *env) elsewhere() *env {
	e.Helper()
	envMu.Lock()
	envs++
	a := keyid.Account(500_000_000_000 + envs)
	envMu.Unlock()
	return e.root(a)
}

func (e *env) root(a keyid.Account) *env {
	e.Helper()
	p := policy.Principal{Kind: policy.Root, Account: a, ARN: "arn:aws:iam::" + a.String() + ":root", ID: a.String()}
	e.exists(p.ARN, p.ID)
	return e.as(&authz.Caller{Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p}), Grantees: [3]string{p.ID}, UserID: p.ID})
}

// user is e's account's user with these identity policies.
func (e *env) user(name string, documents ...string) *env {
	e.Helper()
	p := policy.Principal{Kind: policy.User, Account: e.account, ARN: "arn:aws:iam::" + e.account.String() + ":user/" + name, ID: "AIDA" + strings.ToUpper(name) + e.account.String()}
	e.exists(p.ARN, p.ID)
	return e.as(&authz.Caller{
		Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p, Name: name, Identity: identity(e, documents)}),
		Grantees: [3]string{p.ID, "", e.account.String()}, UserName: name, UserID: p.ID,
	})
}

// session is a session of a role of e's account.
func (e *env) session(role, name string, documents ...string) *env {
	e.Helper()
	a := e.account.String()
	p := policy.Principal{
		Kind: policy.AssumedRole, Account: e.account, ARN: "arn:aws:sts::" + a + ":assumed-role/" + role + "/" + name,
		RoleARN: "arn:aws:iam::" + a + ":role/" + role, ID: "AROA" + strings.ToUpper(role) + a,
	}
	e.exists(p.ARN, p.ID)
	e.exists(p.RoleARN, p.ID)
	subject := &authz.Subject{Principal: p, Name: role, Identity: identity(e, documents)}
	return e.as(&authz.Caller{
		Principal: p, Holder: authz.NewHolder(subject), Grantees: [3]string{p.ID + ":" + name, p.ID, a}, UserID: p.ID + ":" + name,
		TokenIssued: time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC),
	})
}

func (e *env) registered(names ...string) {
	e.cast.mu.Lock()
	defer e.cast.mu.Unlock()
	for _, name := range names {
		e.cast.services[name] = true
	}
}

// service is a service that e's account registered.
func (e *env) service(name string) *env {
	e.Helper()
	e.registered(name)
	p := policy.Principal{Kind: policy.Service, Account: e.account, ARN: name}
	return e.as(&authz.Caller{Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p}), Grantees: [3]string{name}, UserID: name})
}

// via is e's caller with a service making the requests.
func (e *env) via(service string) *env {
	e.Helper()
	w := *e.who
	w.Via, w.ViaName = service, strings.Replace(service, ".us-east-1.", ".", 1)
	return e.as(&w)
}

// statement is a policy of one statement: Allow or Deny, an action, and what else it says, as members of JSON.
func statement(effect, action string, more ...string) string {
	s := `{"Version":"2012-10-17","Statement":[{"Effect":"` + effect + `","Action":` + strings.ReplaceAll(`["`+action+`"]`, ",", `","`)
	for _, m := range more {
		s += "," + m
	}
	return s + `}]}`
}

const (
	anyResource = `"Resource":"*"`
	anyone      = `"Principal":"*"`
)

// keyPolicyOf leaves the key to the account and adds statements of more.
func keyPolicyOf(e *env, more ...string) string {
	s := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + e.account.String() + `"},"Action":"kms:*","Resource":"*"}`
	for _, m := range more {
		s += "," + m
	}
	return s + "]}"
}
