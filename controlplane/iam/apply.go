package iam

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/policy"
)

// sessionReaders is how many sessions Apply reads at a time: of a burst of AssumeRole each is one change, and nobody's revocation is to wait behind them.
const sessionReaders = 16

// Apply brings the table up to date with changes in the store, whoever made them. When it returns, requests that arrive later are verified and decided by what
// the store had when it was called, or later: an access key that was made inactive and the sessions of a role that was deleted are dead. Each thing that is named is
// read anew, under the lock that publish takes, so that it does not matter in which order this process hears of its own changes and of others'. What a record
// that cannot be trusted was the rights of is as if it were gone: nobody else's requests are to suffer for it. An error is the store's, which could not be read.
func (t *Table) Apply(ctx context.Context, changes []store.Change) error {
	// What is spoken for by something else comes behind it.
	for _, kind := range [...]store.What{store.AccountChanged, store.PolicyChanged, store.ServiceChanged, store.RoleChanged, store.UserChanged, store.AccessKeyChanged} {
		for i := range changes {
			if changes[i].What != kind {
				continue
			}
			if err := t.applyOne(ctx, &changes[i]); err != nil {
				return err
			}
		}
	}
	return t.applySessions(ctx, changes)
}

func (t *Table) applyOne(ctx context.Context, c *store.Change) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	switch c.What {
	case store.AccountChanged:
		err = t.reloadAccount(ctx, c.Account)
	case store.PolicyChanged:
		err = t.reloadNamedPolicy(ctx, c)
	case store.ServiceChanged:
		if err = t.reloadService(ctx, c.Name); untrusted(err) {
			t.setService(c.Name, nil)
		}
	case store.RoleChanged, store.UserChanged:
		for _, n := range t.namesOf(c) {
			if err = t.reloadPrincipal(ctx, n); untrusted(err) {
				t.log.Error("a record of a principal cannot be used; whoever it is of has no rights until it is put right", "account", c.Account.String(), "name", n.Name, "error", err.Error())
				err = nil
				for _, other := range t.alike(n) {
					t.setPrincipal(other, nil)
				}
			} else if err != nil {
				return err
			}
		}
	case store.AccessKeyChanged:
		if err = t.reload(ctx, c.Name); untrusted(err) {
			t.replace(c.Name, nil)
			t.changed(c.Name)
		}
	}
	if untrusted(err) {
		t.log.Error("a record of a principal cannot be used; whoever it is of has no rights until it is put right", "account", c.Account.String(), "name", c.Name, "error", err.Error())
		return nil
	}
	return err
}

// untrusted says that a record was read and is not to be trusted, or not understood.
func untrusted(err error) bool {
	_, bad := errors.AsType[*policy.Error](err)
	return bad || errors.Is(err, store.ErrDamaged) || errors.Is(err, errNoPolicy) || errors.Is(err, errBadKey)
}

var (
	errNoPolicy = errors.New("iam: a policy that is attached does not exist")
	errBadKey   = errors.New("iam: an access key cannot be used")
)

// namesOf is whom a change of a user or a role is about. Of one that is gone it may have the name in lower case only, as it is unique.
func (t *Table) namesOf(c *store.Change) []store.PrincipalName {
	n := store.PrincipalName{Kind: store.User, Account: c.Account, Name: c.Name}
	if c.What == store.RoleChanged {
		n.Kind = store.Role
	}
	if !c.Gone || c.Name != strings.ToLower(c.Name) {
		return []store.PrincipalName{n}
	}
	return t.alike(n)
}

// alike is a name and those in the table that differ from it in their case only: a record that cannot be read has the name in lower case.
func (t *Table) alike(n store.PrincipalName) []store.PrincipalName {
	names := []store.PrincipalName{n}
	t.names.RLock()
	defer t.names.RUnlock()
	for other := range t.principals {
		if other.Kind == n.Kind && other.Account == n.Account && other != n && strings.EqualFold(other.Name, n.Name) {
			names = append(names, other)
		}
	}
	return names
}

// reloadNamedPolicy is reloadPolicy for a policy by its name, as it is unique. Policies of that name in the table that are others are gone.
func (t *Table) reloadNamedPolicy(ctx context.Context, c *store.Change) error {
	m, err := t.store.PolicyNamed(ctx, c.Account, c.Name)
	if err != nil && !errors.Is(err, store.ErrNotFound) && !untrusted(err) {
		return err
	}
	var arns []string
	if err == nil {
		arns = append(arns, m.ARN(t.partition))
	}
	prefix := "arn:" + t.partition + ":iam::" + c.Account.String() + ":policy/"
	t.names.Lock()
	for arn := range t.policies {
		rest, ok := strings.CutPrefix(arn, prefix)
		if ok && strings.EqualFold(rest[strings.LastIndexByte(rest, '/')+1:], c.Name) && !slices.Contains(arns, arn) {
			delete(t.policies, arn)
		}
	}
	t.names.Unlock()
	if untrusted(err) {
		return err
	}
	for _, arn := range arns {
		if err := t.reloadPolicy(ctx, arn); err != nil {
			return err
		}
	}
	return nil
}

// applySessions ends the sessions that are gone, and then adds those that other processes began.
func (t *Table) applySessions(ctx context.Context, changes []store.Change) error {
	var begun []store.SessionName
	for i := range changes {
		c := &changes[i]
		switch {
		case c.What != store.SessionChanged:
		case c.Gone:
			t.sessions.dropID(c.Name)
		case t.sessions.get([]byte(c.Name)) == nil: // a record is never changed
			begun = append(begun, store.SessionName{Account: c.Account, ID: c.Name})
		}
	}
	var mu sync.Mutex
	var failed error
	var readers sync.WaitGroup
	next := make(chan store.SessionName)
	for range min(sessionReaders, len(begun)) {
		readers.Go(func() {
			for n := range next {
				if err := t.addSession(ctx, n); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, n := range begun {
		next <- n
	}
	close(next)
	readers.Wait()
	return failed
}

// addSession adds temporary credentials from their record, unless whose they are is gone.
func (t *Table) addSession(ctx context.Context, n store.SessionName) error {
	v, err := t.store.Session(ctx, n)
	switch {
	case errors.Is(err, store.ErrNotFound): // ended since: that is a change too
		return nil
	case untrusted(err):
		t.log.Error("the record of temporary credentials cannot be used", "account", n.Account.String(), "name", n.ID, "error", err.Error())
		return nil
	case err != nil:
		return err
	}
	defer v.Secret.Wipe()
	// With mu nobody who was found here goes before the session is there to be ended with them.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now().After(v.Expires.Add(store.SessionGrace)) {
		return nil
	}
	p := t.sessionOwner(v)
	if p == nil {
		return nil
	}
	k, err := t.temporaryKey(p, v)
	if err != nil {
		t.log.Error("the record of temporary credentials cannot be used", "account", n.Account.String(), "name", n.ID, "error", err.Error())
		return nil
	}
	t.sessions.put(k, v.Policies)
	return nil
}

// sessionOwner is the principal whose a session is, nil if it was deleted since, or the service that has the credentials was deregistered.
func (t *Table) sessionOwner(v *store.Session) *principal {
	t.names.RLock()
	p := t.principals[v.Principal]
	t.names.RUnlock()
	if p == nil || p.ID != v.PrincipalID || v.Via != "" && !t.actsFor(v.Via, v.ViaID, v.Principal.Account) {
		return nil
	}
	return p
}
