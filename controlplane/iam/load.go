package iam

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// awsPolicies are the AWS managed policies that exist here, by what follows arn:<partition>:iam::aws:policy/
var awsPolicies = map[string]string{"AdministratorAccess": administratorAccess}

// administratorAccess is AWS's text.
const administratorAccess = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

// awsPolicy is the document of an AWS managed policy, "" if there is none of that ARN.
func (t *Table) awsPolicy(arn string) string {
	prefix := "arn:" + t.partition + ":iam::aws:policy/"
	if len(arn) < len(prefix) || arn[:len(prefix)] != prefix {
		return ""
	}
	return awsPolicies[arn[len(prefix):]]
}

// fill reads everything into an empty table. What does not compile or open is an error, to serve without a part of it would hide that; or it is left out (Spare), with
// all rights of whom it is of.
func (t *Table) fill(ctx context.Context) error {
	var damaged []func(error)
	without := func(err error) error { return err }
	if t.spare {
		tell := func(err error) {
			t.log.Error("a record of a principal cannot be used; whoever it is of has no rights until it is put right", "error", err.Error())
		}
		damaged = append(damaged, tell)
		without = func(err error) error {
			if !untrusted(err) {
				return err
			}
			tell(err)
			return nil
		}
	}
	if err := t.store.AllAccounts(ctx, func(a *store.Account) error {
		t.accounts[a.ID] = heir(t.loaded.accounts[a.ID], t.rootUser(a.ID))
		return nil
	}, damaged...); err != nil {
		return err
	}
	if err := t.store.AllPolicies(ctx, func(m *store.ManagedPolicy) error {
		p, err := compile(m.Document)
		if err != nil {
			return without(err)
		}
		t.policies[m.ARN(t.partition)] = managed{m.ID, p}
		return nil
	}, damaged...); err != nil {
		return err
	}
	if err := t.store.AllPrincipals(ctx, func(r *store.Principal) error {
		p, err := t.principal(ctx, r)
		if err != nil {
			return without(err)
		}
		t.principals[r.PrincipalName] = heir(t.loaded.principals[r.PrincipalName], p)
		return nil
	}, damaged...); err != nil {
		return err
	}
	for after := ""; ; {
		list, more, err := t.store.Services(ctx, after, store.ServicesMax, damaged...)
		if err != nil {
			return err
		}
		for _, v := range list {
			t.services[v.Name], after = heir(t.loaded.services[v.Name], registered(v)), v.Name
		}
		if !more || len(list) == 0 {
			break
		}
	}
	keys := *t.keys.Load()
	if err := t.store.AccessKeys(ctx, func(r *store.AccessKey) error {
		k, err := t.accessKey(r)
		if err != nil {
			return without(err)
		}
		if k != nil {
			keys[r.ID] = k
		}
		return nil
	}, damaged...); err != nil {
		return err
	}
	now := t.now()
	return t.store.Sessions(ctx, func(v *store.Session) error {
		defer v.Secret.Wipe()
		if now.After(v.Expires.Add(store.SessionGrace)) {
			return nil
		}
		p := t.sessionOwner(v)
		if p == nil {
			return nil
		}
		k, err := t.temporaryKey(p, v)
		if err != nil {
			return without(err)
		}
		t.sessions.put(k, v.Policies)
		return nil
	}, damaged...)
}

func (t *Table) rootUser(a keyid.Account) *principal {
	p := &principal{Principal: policy.Principal{
		Kind: policy.Root, Account: a, ARN: "arn:" + t.partition + ":iam::" + a.String() + ":root", ID: a.String(),
	}}
	p.unique = p.ID
	p.holder = authz.NewHolder(&authz.Subject{Principal: p.Principal})
	return p
}

func registered(v *store.Service) *principal {
	p := &principal{Principal: policy.Principal{Kind: policy.Service, Account: v.Account, ARN: v.Name}, unique: v.ID, service: v}
	p.holder = authz.NewHolder(&authz.Subject{Principal: p.Principal})
	return p
}

// principal compiles a user or a role. Its Holder is new.
func (t *Table) principal(ctx context.Context, r *store.Principal) (*principal, error) {
	p := &principal{Principal: policy.Principal{Kind: policy.User, Account: r.Account, ID: r.ID, ARN: r.ARN(t.partition)}, name: r.Name, unique: r.ID}
	if r.Kind == store.Role {
		p.Kind, p.ARN, p.RoleARN, p.maxSession = policy.AssumedRole, "", r.ARN(t.partition), r.MaxSession
		bound := make(map[string]string, len(r.TrustBound))
		for _, b := range r.TrustBound {
			bound[b.ARN] = b.ID
		}
		var err error
		p.trust, err = policy.Parse([]byte(r.Trust), policy.TrustPolicy, snapshot.Bound(bound))
		if err != nil {
			return nil, fmt.Errorf("%s: trust policy: %w", p.RoleARN, err)
		}
	}
	s := &authz.Subject{Principal: p.Principal, Name: r.Name}
	for _, d := range r.Inline {
		c, err := compile(d.Text)
		if err != nil {
			return nil, fmt.Errorf("%s: policy %s: %w", r.ARN(t.partition), d.Name, err)
		}
		s.Identity = append(s.Identity, c)
	}
	for _, arn := range r.Attached {
		c, err := t.managed(ctx, arn)
		if err != nil {
			return nil, fmt.Errorf("%s: policy %s: %w", r.ARN(t.partition), arn, err)
		}
		s.Identity = append(s.Identity, c)
	}
	if r.Boundary != "" {
		var err error
		if s.Boundary, err = t.managed(ctx, r.Boundary); err != nil {
			return nil, fmt.Errorf("%s: boundary: %w", r.ARN(t.partition), err)
		}
	}
	for _, tag := range r.Tags {
		s.Tags = append(s.Tags, authz.Tag(tag))
	}
	p.holder = authz.NewHolder(s)
	return p, nil
}

// managed is a compiled managed policy, AWS's or an account's.
func (t *Table) managed(ctx context.Context, arn string) (*policy.Policy, error) {
	if text := t.awsPolicy(arn); text != "" {
		return compile(text)
	}
	m, err := t.store.ManagedPolicy(ctx, arn)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", errNoPolicy, err)
	}
	if err != nil {
		return nil, err
	}
	t.names.RLock()
	c := t.policies[arn]
	t.names.RUnlock()
	if c.id == m.ID {
		return c.policy, nil
	}
	return compile(m.Document) // it was made again under its name, and is not published yet
}

// managed is a managed policy that was compiled. One that is made again under its name has another ID.
type managed struct {
	id     string
	policy *policy.Policy
}

// caller is whom p's credentials speak for. session is the name of a role session.
func (t *Table) caller(p *principal, session string) *authz.Caller {
	c := &authz.Caller{Principal: p.Principal, Holder: p.holder, UserID: p.ID}
	account := p.Account.String()
	switch p.Kind {
	case policy.Root:
		c.Grantees = [3]string{account}
	case policy.User:
		c.Grantees, c.UserName = [3]string{p.ID, "", account}, p.name
	case policy.AssumedRole:
		c.ARN = "arn:" + t.partition + ":sts::" + account + ":assumed-role/" + p.name + "/" + session
		c.UserID = p.ID + ":" + session
		c.Grantees = [3]string{c.UserID, p.ID, account}
	case policy.Service:
		c.Grantees, c.UserID = [3]string{p.ARN}, p.ARN
		if short := withoutRegion(p.ARN); short != p.ARN {
			c.Grantees[1] = short
		}
	}
	return c
}

// signer is the verifier's form of a caller.
func signer(c *authz.Caller) sigv4.Principal {
	return sigv4.Principal{Account: c.Account, ARN: c.ARN, UserName: c.UserName, Root: c.Kind == policy.Root, Caller: c}
}

// accessKey makes the verifier's form of a record and wipes the record's secret; nil for one that is not active or whose principal is gone.
func (t *Table) accessKey(r *store.AccessKey) (*sigv4.AccessKey, error) {
	defer r.Secret.Wipe()
	p := t.ownerOf(r)
	if !r.Active || p == nil {
		return nil, nil
	}
	k, err := sigv4.NewAccessKey(r.ID, r.Secret.Expose(), signer(t.caller(p, "")))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadKey, err)
	}
	return k, nil
}

// ownerOf is the principal that an access key belongs to, nil if it is gone: one of the same name that was made later is another.
func (t *Table) ownerOf(r *store.AccessKey) *principal {
	t.names.RLock()
	defer t.names.RUnlock()
	var p *principal
	switch {
	case r.UserName != "":
		p = t.principals[store.PrincipalName{Kind: store.User, Account: r.Account, Name: r.UserName}]
	case store.ValidServiceName(r.PrincipalARN):
		p = t.services[r.PrincipalARN]
	default:
		p = t.accounts[r.Account]
	}
	if p == nil || p.ARN != r.PrincipalARN || r.PrincipalID != "" && r.PrincipalID != p.unique || r.PrincipalID == "" && p.Kind != policy.User {
		return nil
	}
	return p
}

// Reload reads one access key again, with its principal if that is not in the table. When it returns, requests that arrive later are verified
// against the key as it is in the store.
func (t *Table) Reload(ctx context.Context, id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reload(ctx, id)
}

func (t *Table) reload(ctx context.Context, id string) error {
	r, err := t.store.AccessKey(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("iam: reloading an access key: %w", err)
	}
	var k *sigv4.AccessKey
	if r != nil {
		if r.UserName != "" && t.ownerOf(r) == nil {
			if err := t.reloadPrincipal(ctx, store.PrincipalName{Kind: store.User, Account: r.Account, Name: r.UserName}); err != nil {
				r.Secret.Wipe()
				return err
			}
		}
		if k, err = t.accessKey(r); err != nil {
			return err
		}
	}
	t.replace(id, k)
	t.changed(id)
	return nil
}

// policyReads is how often a principal is read before a policy of its that is not there is taken for missing. One that was detached and deleted since the principal
// was read is not there either, and each such time was another change.
const policyReads = 10

// reloadPrincipal reads a user or role again. mu is held.
func (t *Table) reloadPrincipal(ctx context.Context, n store.PrincipalName) error {
	for tries := policyReads; ; tries-- {
		r, err := t.store.Principal(ctx, n)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("iam: reloading a principal: %w", err)
		}
		var p *principal
		if r != nil {
			p, err = t.principal(ctx, r)
			if errors.Is(err, errNoPolicy) && tries > 0 {
				continue
			}
			if err != nil {
				return fmt.Errorf("iam: reloading a principal: %w", err)
			}
		}
		t.setPrincipal(n, p)
		return nil
	}
}

// setPrincipal puts a user or role in its place, nil for one that is gone. mu is held.
func (t *Table) setPrincipal(n store.PrincipalName, p *principal) {
	t.names.Lock()
	old := t.principals[n]
	next := renew(old, p)
	t.principals[n] = next
	if p == nil {
		delete(t.principals, n)
	}
	t.names.Unlock()
	if old != nil && (next == nil || next.holder != old.holder) { // nobody can use them any more, and they count
		t.end(func(c *authz.Caller) bool { return c.Holder == old.holder })
	}
}

// renew hands the Holder of a principal on to its new form, or ends it if the principal is gone or another's now.
func renew(old, p *principal) *principal {
	if old == nil {
		return p
	}
	if p == nil || p.unique != old.unique {
		old.holder.Replace(nil)
		return p
	}
	old.holder.Replace(p.holder.Subject())
	p.holder = old.holder
	return p
}

// reloadAccount reads an account again. mu is held.
func (t *Table) reloadAccount(ctx context.Context, a keyid.Account) error {
	if _, err := t.store.Account(ctx, a); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil // accounts are not deleted
		}
		return fmt.Errorf("iam: reloading an account: %w", err)
	}
	t.names.Lock()
	defer t.names.Unlock()
	if t.accounts[a] == nil {
		t.accounts[a] = t.rootUser(a)
	}
	return nil
}

// reloadService reads a registered service again. mu is held.
func (t *Table) reloadService(ctx context.Context, name string) error {
	v, err := t.store.Service(ctx, name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("iam: reloading a service: %w", err)
	}
	var p *principal
	if v != nil {
		p = registered(v)
	}
	t.setService(name, p)
	return nil
}

// setService puts a registered service in its place, nil for one that is gone. mu is held.
func (t *Table) setService(name string, p *principal) {
	t.names.Lock()
	old := t.services[name]
	t.services[name] = renew(old, p)
	if p == nil {
		delete(t.services, name)
	}
	t.names.Unlock()
	another := p == nil || old == nil || old.unique != p.unique
	t.end(func(c *authz.Caller) bool { return c.Via == name && (another || !p.service.ActsFor(c.Account)) })
}

// actsFor reports whether a service is still the registered one of that ID and may act for an account.
func (t *Table) actsFor(name, id string, a keyid.Account) bool {
	t.names.RLock()
	defer t.names.RUnlock()
	p := t.services[name]
	return p != nil && p.unique == id && p.service.ActsFor(a)
}

// reloadPolicy reads a managed policy again. mu is held. Users of a policy need no reload: it does not change while it is in use.
func (t *Table) reloadPolicy(ctx context.Context, arn string) error {
	m, err := t.store.ManagedPolicy(ctx, arn)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("iam: reloading a policy: %w", err)
	}
	if m == nil {
		t.names.Lock()
		defer t.names.Unlock()
		delete(t.policies, arn)
		return nil
	}
	c, err := compile(m.Document)
	if err != nil {
		return fmt.Errorf("iam: reloading a policy: %w", err)
	}
	t.names.Lock()
	defer t.names.Unlock()
	t.policies[arn] = managed{m.ID, c}
	return nil
}
