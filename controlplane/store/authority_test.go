package store

import (
	"errors"
	"testing"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// A write is committed only while its caller's access key, and whose it is, are in the store as they were when it was decided. What the write changes of them itself does
// not count, and a lost compare of its own is another attempt.
func TestAuthority(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "authority")
	alice := newUser(newAccount(t, shared), "Alice")
	n := alice.PrincipalName
	if err := shared.CreatePrincipal(ctx, alice); err != nil {
		t.Fatal(err)
	}
	key := anyKey(n.Account)
	key.PrincipalARN, key.UserName, key.PrincipalID = alice.ARN("aws"), n.Name, alice.ID
	if err := shared.CreateAccessKey(ctx, Owner{Account: n.Account, User: n.Name}, key); err != nil {
		t.Fatal(err)
	}
	p := policy.Principal{Kind: policy.User, Account: n.Account, ARN: alice.ARN("aws"), ID: alice.ID}
	w := &authz.Caller{Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p, Name: n.Name})}
	now := func() *Authority { return NewAuthority(shared.Committed(), key.ID, w) }
	write := func(a *Authority, description string, meanwhile func()) error {
		_, err := shared.UpdateKey(Under(ctx, a), k.KeyName, func(k *Key) error {
			k.Description = description
			if meanwhile != nil {
				meanwhile()
				meanwhile = nil
			}
			return nil
		})
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	change := func(change func(*Principal) error) {
		t.Helper()
		_, err := shared.UpdatePrincipal(ctx, n, change)
		must(err)
	}
	overtaken := func(err error) {
		t.Helper()
		if !errors.Is(err, ErrOvertaken) || Unavailable(err) || errors.Is(err, ErrUncertain) {
			t.Error(err)
		}
	}
	must(write(now(), "one", nil))
	must(write(now(), "two", func() {
		value, _, err := shared.get(ctx, k.key())
		must(err)
		_, err = shared.client.Put(ctx, k.key(), string(value)) // as another process would, which has locks of its own
		must(err)
	}))
	// Its own change of the caller is none of another's, and what comes after it is.
	a := now()
	_, err := shared.UpdatePrincipal(Under(ctx, a), n, func(p *Principal) error { p.Tags = []Tag{{Key: "a", Value: "b"}}; return nil })
	must(err)
	must(write(a, "three", nil))
	overtaken(write(a, "four", func() { change(func(p *Principal) error { p.Tags = nil; return nil }) }))
	// The key is made inactive, comes back, and is deleted.
	a = now()
	active := func(active bool) {
		t.Helper()
		_, err := shared.SetAccessKeyActive(ctx, Owner{Account: n.Account, User: n.Name}, key.ID, active)
		must(err)
	}
	overtaken(write(a, "five", func() { active(false) }))
	active(true)
	overtaken(write(a, "six", nil))
	must(write(now(), "seven", nil))
	a = now()
	must(shared.RemoveAccessKey(ctx, Owner{Account: n.Account, User: n.Name}, key.ID))
	overtaken(write(a, "eight", nil))
	overtaken(write(now(), "nine", nil))
	if got, err := shared.Key(ctx, k.KeyName); err != nil || got.Description != "seven" {
		t.Errorf("%v %v", got.Description, err)
	}
	// Temporary credentials have a record of their own kind, and nobody has none.
	w.TokenIssued = t0
	if got := NewAuthority(1, "ASIA1", w).records[0]; got != sessionKey(n.Account, "ASIA1") {
		t.Error(got)
	}
	w.Holder.Replace(nil)
	if a := NewAuthority(1, key.ID, w); a != nil {
		t.Error(a)
	}
	must(write(nil, "ten", nil))
}
