package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// Credentials is the table of active access keys that signatures are verified against. It is a sigv4.KeySource: lookups read an immutable
// map and allocate nothing. All methods are safe for concurrent use.
type Credentials struct {
	store     *store.Store
	partition string
	changed   func(id string)
	now       func() time.Time

	mu    sync.Mutex // held from a read of the store to the new table, so that tables follow the store's order
	table atomic.Pointer[map[string]*sigv4.AccessKey]
}

// CredentialsConfig is what Credentials are made of. Store and Region are required.
type CredentialsConfig struct {
	Store   *store.Store
	Region  string           // decides the partition of principals' ARNs
	Changed func(id string)  // called after the table changed, before the change is acknowledged; nil: nobody else to tell
	Now     func() time.Time // nil: time.Now
}

// NewCredentials makes an empty table. Load fills it.
func NewCredentials(cfg CredentialsConfig) (*Credentials, error) {
	if cfg.Store == nil || !validRegion(cfg.Region) {
		return nil, errors.New("controlplane: credentials need a store and a Region")
	}
	c := &Credentials{store: cfg.Store, partition: keyid.Partition(cfg.Region), changed: cfg.Changed, now: cfg.Now}
	if c.changed == nil {
		c.changed = func(string) {}
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.table.Store(&map[string]*sigv4.AccessKey{})
	return c, nil
}

// AccessKey is the active access key with that ID, or nil.
func (c *Credentials) AccessKey(id []byte) *sigv4.AccessKey {
	return (*c.table.Load())[string(id)]
}

// Load reads every access key and replaces the table. On an error the table stays.
func (c *Credentials) Load(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	table := map[string]*sigv4.AccessKey{}
	err := c.store.AccessKeys(ctx, func(record *store.AccessKey) error {
		k, err := accessKey(record)
		if err == nil && k != nil {
			table[record.ID] = k
		}
		return err
	})
	if err != nil {
		for _, k := range table {
			k.Wipe()
		}
		return fmt.Errorf("controlplane: loading access keys: %w", err)
	}
	old := *c.table.Swap(&table)
	for _, k := range old {
		k.Wipe()
	}
	return nil
}

// Reload reads one access key again: what every process does when it hears that the key changed. When it returns, requests that arrive
// later are verified against the key as it is in the store.
func (c *Credentials) Reload(ctx context.Context, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	record, err := c.store.AccessKey(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("controlplane: reloading an access key: %w", err)
	}
	var k *sigv4.AccessKey
	if record != nil {
		if k, err = accessKey(record); err != nil {
			return err
		}
	}
	c.replace(id, k)
	return nil
}

// replace puts k, or nothing if k is nil, in the place of the access key id. mu is held.
func (c *Credentials) replace(id string, k *sigv4.AccessKey) {
	table := maps.Clone(*c.table.Load())
	old := table[id]
	if k == nil {
		delete(table, id)
	} else {
		table[id] = k
	}
	c.table.Store(&table)
	if old != nil {
		old.Wipe()
	}
}

// accessKey makes the verifier's form of a record and wipes the record's secret; nil for one that is not active.
func accessKey(record *store.AccessKey) (*sigv4.AccessKey, error) {
	defer record.Secret.Wipe()
	if !record.Active {
		return nil, nil
	}
	return sigv4.NewAccessKey(record.ID, record.Secret.Expose(), sigv4.Principal{
		Account: record.Account, ARN: record.PrincipalARN, UserName: record.UserName,
	})
}

const (
	administrator = "administrator"
	// adminSecretMin keeps a secret that can be guessed from guarding every key of the account. AWS makes 40 characters.
	adminSecretMin = 16
)

// EnsureAdmin makes id with the secret an active access key of the account's administrator, arn:…:iam::<account>:user/administrator. It
// writes only if that is not so already. An access key of somebody else is never taken over. secretKey stays the caller's to wipe.
func (c *Credentials) EnsureAdmin(ctx context.Context, a keyid.Account, id string, secretKey []byte) error {
	if len(secretKey) < adminSecretMin {
		return fmt.Errorf("controlplane: the administrator's secret access key has fewer than %d bytes", adminSecretMin)
	}
	if a > keyid.AccountMax {
		return errors.New("controlplane: an account ID has 12 digits")
	}
	want := &store.AccessKey{
		ID: id, Account: a, PrincipalARN: "arn:" + c.partition + ":iam::" + a.String() + ":user/" + administrator,
		UserName: administrator, Active: true, Created: c.now().UTC().Truncate(time.Millisecond),
		Secret: secret.New(append([]byte(nil), secretKey...)),
	}
	defer want.Secret.Wipe()
	check, err := sigv4.NewAccessKey(id, secretKey, sigv4.Principal{}) // its rules for IDs and secrets, before anything is stored
	if err != nil {
		return err
	}
	check.Wipe()
	have, err := c.store.AccessKey(ctx, id)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	default:
		defer have.Secret.Wipe()
		if have.Account != want.Account || have.PrincipalARN != want.PrincipalARN {
			return fmt.Errorf("controlplane: access key %s belongs to %s", id, have.PrincipalARN)
		}
		want.Revision, want.Created = have.Revision, have.Created
		if have.Active && have.Secret.Equal(secretKey) {
			return c.Reload(ctx, id)
		}
	}
	if err := c.store.PutAccessKey(ctx, want); err != nil {
		return err
	}
	if err := c.Reload(ctx, id); err != nil {
		return err
	}
	c.changed(id)
	return nil
}
