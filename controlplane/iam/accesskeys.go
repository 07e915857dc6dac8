package iam

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"errors"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/secret"
)

// owner reads whose access keys an operation is about: UserName, or else the caller's own, or ServiceName, which is ours: a registered service.
// It asks for permission, and returns the principal as the table has it.
func (c *call) owner(ctx context.Context) (store.Owner, *principal, error) {
	name, service := c.optionalName("UserName", 64), c.optional("ServiceName", 3, 128)
	if name != "" && service != "" {
		c.fail("Either UserName or ServiceName can be given.")
	}
	if err := c.ready(); err != nil {
		return store.Owner{}, nil, err
	}
	o := store.Owner{Account: c.account(), User: name, Service: service}
	if service != "" {
		return c.ownerService(o)
	}
	if name == "" && c.caller.Kind == policy.Root {
		if err := c.authorize(c.caller.ARN); err != nil {
			return o, nil, err
		}
		c.table.names.RLock()
		defer c.table.names.RUnlock()
		return o, c.table.accounts[o.Account], nil
	}
	if name == "" {
		if c.caller.Kind != policy.User {
			return o, nil, invalid("Must specify userName when calling with non-User credentials")
		}
		o.User = c.caller.UserName
	}
	n := store.PrincipalName{Kind: store.User, Account: c.account(), Name: o.User}
	asked, err := c.principal(ctx, n)
	if err != nil {
		return o, nil, err
	}
	o.ID = asked.ID
	c.table.names.RLock()
	defer c.table.names.RUnlock()
	if p := c.table.principals[n]; p != nil && p.unique == o.ID {
		return o, p, nil
	}
	return o, nil, noSuch("user", n.Name)
}

func (c *call) ownerService(o store.Owner) (store.Owner, *principal, error) {
	if err := c.administrate(c.action, o.Service); err != nil {
		return o, nil, err
	}
	c.table.names.RLock()
	defer c.table.names.RUnlock()
	p := c.table.services[o.Service]
	if p == nil {
		return o, nil, noSuch("service", o.Service)
	}
	o.Account, o.ID = p.Account, p.unique
	return o, p, nil
}

// newAccessKey draws an access key for a principal. Its secret is the caller's to wipe.
func (c *call) newAccessKey(a keyid.Account, p *principal) *store.AccessKey {
	var b [10 + 30]byte
	_, _ = rand.Read(b[:])
	defer clear(b[:])
	k := &store.AccessKey{
		ID: "AKIA" + base32.StdEncoding.EncodeToString(b[:10]), Account: a, PrincipalARN: p.ARN, PrincipalID: p.unique, Active: true, Created: c.now,
		Secret: secret.New(base64.StdEncoding.AppendEncode(nil, b[10:])),
	}
	if p.Kind == policy.User {
		k.UserName = p.name
	}
	return k
}

// showAccessKey writes an access key with its secret, which is never shown again.
func (c *call) showAccessKey(k *store.AccessKey) {
	c.reply.Open("AccessKey")
	c.reply.Some("UserName", k.UserName)
	c.reply.Text("AccessKeyId", k.ID)
	c.reply.Text("Status", "Active")
	c.reply.Text("SecretAccessKey", string(k.Secret.Expose()))
	c.reply.Time("CreateDate", k.Created)
	c.reply.Close()
}

func createAccessKey(ctx context.Context, c *call) error {
	o, p, err := c.owner(ctx)
	if err != nil {
		return err
	}
	k := c.newAccessKey(o.Account, p)
	defer k.Secret.Wipe()
	err = c.store.CreateAccessKey(ctx, o, k)
	if errors.Is(err, store.ErrNotFound) {
		return noSuch("user", o.User)
	}
	if err := c.table.publishAccessKey(ctx, k.ID, err); err != nil {
		return err
	}
	c.showAccessKey(k)
	return nil
}

func (c *call) accessKeyID() string { return c.name("AccessKeyId", 128) }

func noAccessKey(id string) error {
	return awsquery.NewError("NoSuchEntity", "The Access Key with id "+clip(id)+" cannot be found.")
}

func deleteAccessKey(ctx context.Context, c *call) error {
	id := c.accessKeyID()
	o, _, err := c.owner(ctx)
	if err != nil {
		return err
	}
	err = c.table.publishAccessKey(ctx, id, c.store.RemoveAccessKey(ctx, o, id))
	if errors.Is(err, store.ErrNotFound) {
		return noAccessKey(id)
	}
	return err
}

func updateAccessKey(ctx context.Context, c *call) error {
	id, status := c.accessKeyID(), c.oneOf("Status", true, "Active", "Inactive")
	o, _, err := c.owner(ctx)
	if err != nil {
		return err
	}
	k, err := c.store.SetAccessKeyActive(ctx, o, id, status == "Active")
	if k != nil {
		k.Secret.Wipe()
	}
	if err = c.table.publishAccessKey(ctx, id, err); errors.Is(err, store.ErrNotFound) {
		return noAccessKey(id)
	}
	return err
}

func listAccessKeys(ctx context.Context, c *call) error {
	c.page()
	o, _, err := c.owner(ctx)
	if err != nil {
		return err
	}
	ids, err := c.store.AccessKeyIDs(ctx, o)
	if errors.Is(err, store.ErrNotFound) {
		return noSuch("user", o.User)
	}
	if err != nil {
		return err
	}
	c.reply.Open("AccessKeyMetadata")
	for _, id := range ids {
		k, err := c.store.AccessKey(ctx, id)
		if errors.Is(err, store.ErrNotFound) {
			continue // deleted since
		}
		if err != nil {
			return err
		}
		k.Secret.Wipe()
		c.reply.Open("member")
		c.reply.Some("UserName", k.UserName)
		c.reply.Text("AccessKeyId", k.ID)
		if k.Active {
			c.reply.Text("Status", "Active")
		} else {
			c.reply.Text("Status", "Inactive")
		}
		c.reply.Time("CreateDate", k.Created)
		c.reply.Close()
	}
	c.reply.Close()
	c.pageEnd(false, "")
	return nil
}
