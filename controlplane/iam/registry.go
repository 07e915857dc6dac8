package iam

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyid"
)

// awsCreated is when AWS's AdministratorAccess was made.
var awsCreated = time.Date(2015, 2, 6, 18, 39, 46, 0, time.UTC)

// administrate asks for permission to administer the server: an action of ours, for principals of the first account only.
func (c *call) administrate(action, resource string) error {
	_, name, _ := strings.Cut(action, ":")
	action = "keyplane:" + name
	if c.account() != c.first {
		return denied(c.caller, action, resource)
	}
	return c.authorizeAs(action, resource, c.account(), nil, nil)
}

func createAccount(ctx context.Context, c *call) error {
	text := c.optional("AccountId", 12, 12)
	id, ok := keyid.ParseAccount([]byte(text))
	if text != "" && !ok {
		c.fail("An account ID has 12 digits.")
	}
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.administrate(c.action, "*"); err != nil {
		return err
	}
	if text == "" {
		var b [8]byte
		_, _ = rand.Read(b[:])
		id = keyid.Account(100_000_000_000 + binary.BigEndian.Uint64(b[:])%900_000_000_000)
	}
	a := &store.Account{ID: id, Created: c.now}
	k := c.newAccessKey(id, c.table.rootUser(id))
	defer k.Secret.Wipe()
	err := c.store.CreateAccount(ctx, a, k)
	if errors.Is(err, store.ErrExists) {
		return awsquery.NewError("EntityAlreadyExists", "Account "+id.String()+" already exists.")
	}
	if err := c.table.publishAccount(ctx, id, err); err != nil {
		return err
	}
	if err := c.table.publishAccessKey(ctx, k.ID, nil); err != nil {
		return err
	}
	c.showAccount("Account", a)
	c.showAccessKey(k)
	return nil
}

func (c *call) showAccount(element string, a *store.Account) {
	c.reply.Open(element)
	c.reply.Text("AccountId", a.ID.String())
	c.reply.Text("Arn", "arn:"+c.table.partition+":iam::"+a.ID.String()+":root")
	c.reply.Time("CreateDate", a.Created)
	c.reply.Int("Users", a.Users)
	c.reply.Int("Roles", a.Roles)
	c.reply.Int("Policies", a.Policies)
	c.reply.Close()
}

func listAccounts(ctx context.Context, c *call) error {
	limit, after := c.page()
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.administrate(c.action, "*"); err != nil {
		return err
	}
	list, more, err := c.store.Accounts(ctx, after, limit)
	if err != nil {
		return err
	}
	c.reply.Open("Accounts")
	for _, a := range list {
		c.showAccount("member", a)
		after = a.ID.String()
	}
	c.reply.Close()
	c.pageEnd(more, after)
	return nil
}

// registerService makes a service with its first access key. Accounts are those it may act for; without any it is registered for itself, and
// AllAccounts is for every one. Of services that would have one AWS managed key there is one: s3.amazonaws.com and s3.<Region>.amazonaws.com are the same.
func registerService(ctx context.Context, c *call) error {
	v := &store.Service{Name: c.text("ServiceName", 3, 128), ID: newID("ASVC"), Account: c.account(), Created: c.now}
	if c.err == nil && !store.ValidServiceName(v.Name) {
		c.fail("A service's name is a domain name in lower case, like s3.us-east-1.amazonaws.com")
	}
	v.Every = c.oneOf("AllAccounts", false, "false", "true") == "true"
	texts := c.q.List("Accounts")
	if len(texts) > store.ServiceAccountsMax || v.Every && len(texts) > 0 {
		c.fail("Accounts are too many, or are given beside AllAccounts.")
	}
	for _, text := range texts {
		a, ok := keyid.ParseAccount([]byte(text))
		if !ok {
			c.fail("An account ID has 12 digits.")
		}
		v.Accounts = append(v.Accounts, a)
	}
	slices.Sort(v.Accounts)
	v.Accounts = slices.Compact(v.Accounts)
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.administrate(c.action, v.Name); err != nil {
		return err
	}
	k := c.newAccessKey(v.Account, registered(v))
	defer k.Secret.Wipe()
	err := c.store.RegisterService(ctx, v, k)
	if errors.Is(err, store.ErrExists) {
		return awsquery.NewError("EntityAlreadyExists", "Service "+v.Name+" already exists.")
	}
	if o, ok := errors.AsType[*store.Overlap](err); ok {
		return awsquery.NewError("EntityAlreadyExists", "Service "+v.Name+" would have the same AWS managed key as service "+o.Service+", which exists and acts for an account that it would act for.")
	}
	if err := c.table.publishService(ctx, v.Name, err); err != nil {
		return err
	}
	if err := c.table.publishAccessKey(ctx, k.ID, nil); err != nil {
		return err
	}
	c.showService("Service", v)
	c.showAccessKey(k)
	return nil
}

func (c *call) showService(element string, v *store.Service) {
	c.reply.Open(element)
	c.reply.Text("ServiceName", v.Name)
	c.reply.Bool("AllAccounts", v.Every)
	c.reply.Open("Accounts")
	for _, a := range v.Accounts {
		c.reply.Text("member", a.String())
	}
	c.reply.Close()
	c.reply.Time("CreateDate", v.Created)
	c.reply.Close()
}

// deregisterService ends the service's access keys and all sessions that it was given.
func deregisterService(ctx context.Context, c *call) error {
	name := c.text("ServiceName", 3, 128)
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.administrate(c.action, clip(name)); err != nil {
		return err
	}
	keys, err := c.store.DeregisterService(ctx, name)
	published := c.table.publishService(ctx, name, err)
	if errors.Is(published, store.ErrNotFound) {
		return noSuch("service", name)
	}
	for _, id := range keys {
		published = errors.Join(published, c.table.publishAccessKey(ctx, id, err))
	}
	return published
}

func listServices(ctx context.Context, c *call) error {
	limit, after := c.page()
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.administrate(c.action, "*"); err != nil {
		return err
	}
	list, more, err := c.store.Services(ctx, after, limit)
	if err != nil {
		return err
	}
	c.reply.Open("Services")
	for _, v := range list {
		c.showService("member", v)
		after = v.Name
	}
	c.reply.Close()
	c.pageEnd(more, after)
	return nil
}
