package iam

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	administrator       = "administrator"
	administratorPolicy = "AdministratorAccess"
	// adminSecretMin keeps a secret that can be guessed from guarding every key of the account. AWS makes 40 characters.
	adminSecretMin = 16
)

// newID makes a unique ID: a prefix of four letters and 17 base32 digits.
func newID(prefix string) string {
	var b [11]byte
	_, _ = rand.Read(b[:])
	return prefix + base32.StdEncoding.EncodeToString(b[:])[:17]
}

// EnsureAdministrator sees to it that the account exists and has a user administrator, who may do everything when the user is made. Access
// keys of administrators that older versions made without a user's record become the user's, the newest store.OwnedKeysMax of them; others end.
func (t *Table) EnsureAdministrator(ctx context.Context, a keyid.Account) error {
	if a > keyid.AccountMax {
		return errors.New("iam: an account ID has 12 digits")
	}
	now := t.now().UTC().Truncate(time.Millisecond)
	if _, err := t.store.Account(ctx, a); errors.Is(err, store.ErrNotFound) {
		if err := t.store.CreateAccount(ctx, &store.Account{ID: a, Created: now}, nil); err != nil && !errors.Is(err, store.ErrExists) {
			return err
		}
	} else if err != nil {
		return err
	}
	n := store.PrincipalName{Kind: store.User, Account: a, Name: administrator}
	if _, err := t.store.Principal(ctx, n); errors.Is(err, store.ErrNotFound) {
		user := &store.Principal{PrincipalName: n, ID: newID("AIDA"), Path: "/", Created: now}
		user.PutInline(store.Document{Name: administratorPolicy, Text: administratorAccess})
		var old []*store.AccessKey
		if err := t.store.AccessKeys(ctx, func(k *store.AccessKey) error {
			k.Secret.Wipe()
			if k.Account == a && k.PrincipalARN == user.ARN(t.partition) && k.PrincipalID == "" {
				old = append(old, k)
			}
			return nil
		}); err != nil {
			return err
		}
		slices.SortStableFunc(old, func(a, b *store.AccessKey) int { return a.Created.Compare(b.Created) })
		for beyond := len(old) - store.OwnedKeysMax; beyond > 0; beyond-- {
			if err := t.publishAccessKey(ctx, old[0].ID, t.store.DeleteUnownedKey(ctx, old[0])); err != nil {
				return err
			}
			old = old[1:]
		}
		for _, k := range old {
			user.AccessKeys = append(user.AccessKeys, k.ID)
		}
		if err := t.store.CreatePrincipal(ctx, user); err != nil && !errors.Is(err, store.ErrExists) {
			return err
		}
	} else if err != nil {
		return err
	}
	return errors.Join(t.publishAccount(ctx, a, nil), t.publishPrincipal(ctx, n, nil))
}

// EnsureAdmin makes id with the secret an active access key of the account's administrator, arn:…:iam::<account>:user/administrator, who is
// made if need be. It writes only if that is not so already. An access key of somebody else is never taken over. secretKey stays the
// caller's to wipe.
func (t *Table) EnsureAdmin(ctx context.Context, a keyid.Account, id string, secretKey []byte) error {
	return t.ensureAdmin(ctx, a, id, secretKey, false)
}

// ReplaceAdmin is EnsureAdmin, and takes every other access key of the administrator away. They are dead when it returns.
func (t *Table) ReplaceAdmin(ctx context.Context, a keyid.Account, id string, secretKey []byte) error {
	return t.ensureAdmin(ctx, a, id, secretKey, true)
}

func (t *Table) ensureAdmin(ctx context.Context, a keyid.Account, id string, secretKey []byte, only bool) error {
	if len(secretKey) < adminSecretMin {
		return fmt.Errorf("iam: the administrator's secret access key has fewer than %d bytes", adminSecretMin)
	}
	check, err := sigv4.NewAccessKey(id, secretKey, sigv4.Principal{}) // its rules for IDs and secrets, before anything is stored
	if err != nil {
		return err
	}
	check.Wipe()
	if err := t.EnsureAdministrator(ctx, a); err != nil {
		return err
	}
	user, err := t.store.Principal(ctx, store.PrincipalName{Kind: store.User, Account: a, Name: administrator})
	if errors.Is(err, store.ErrNotFound) { // EnsureAdministrator could not make it: names differ by more than case
		return fmt.Errorf("iam: account %s has another user whose name differs from %q in case only: %w", a, administrator, err)
	}
	if err != nil {
		return err
	}
	want := &store.AccessKey{
		ID: id, Account: a, PrincipalARN: user.ARN(t.partition), PrincipalID: user.ID, UserName: user.Name, Active: true,
		Created: t.now().UTC().Truncate(time.Millisecond), Secret: secret.New(slices.Clone(secretKey)),
	}
	defer want.Secret.Wipe()
	owner := store.Owner{Account: a, User: user.Name, ID: user.ID}
	have, err := t.store.AccessKey(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		defer have.Secret.Wipe()
		if have.Account != want.Account || have.PrincipalARN != want.PrincipalARN || !slices.Contains(user.AccessKeys, id) {
			return fmt.Errorf("iam: access key %s belongs to %s", id, have.PrincipalARN)
		}
		want.Revision, want.Created = have.Revision, have.Created
		if have.Active && have.Secret.Equal(secretKey) && have.PrincipalID == user.ID && (!only || len(user.AccessKeys) == 1) {
			return t.publishAccessKey(ctx, id, nil)
		}
	}
	var gone []string
	switch {
	case only:
		gone, err = t.store.ReplaceAccessKeys(ctx, owner, want)
	case have != nil:
		err = t.store.PutAccessKey(ctx, want)
	default:
		err = t.store.CreateAccessKey(ctx, owner, want)
	}
	published := t.publishAccessKey(ctx, id, err)
	for _, k := range gone {
		published = errors.Join(published, t.publishAccessKey(ctx, k, err))
	}
	return published
}
