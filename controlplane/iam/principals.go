package iam

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/policy"
)

var iamOperations = map[string]operation{
	"CreateUser": createUser,
	"GetUser":    getUser,
	"ListUsers":  func(ctx context.Context, c *call) error { return listPrincipals(ctx, c, store.User) },
	"DeleteUser": func(ctx context.Context, c *call) error { return deletePrincipal(ctx, c, store.User) },

	"CreateRole":             createRole,
	"GetRole":                getRole,
	"ListRoles":              func(ctx context.Context, c *call) error { return listPrincipals(ctx, c, store.Role) },
	"DeleteRole":             func(ctx context.Context, c *call) error { return deletePrincipal(ctx, c, store.Role) },
	"UpdateAssumeRolePolicy": updateAssumeRolePolicy,

	"CreateAccessKey": createAccessKey,
	"DeleteAccessKey": deleteAccessKey,
	"ListAccessKeys":  listAccessKeys,
	"UpdateAccessKey": updateAccessKey,

	"PutUserPolicy":    func(ctx context.Context, c *call) error { return putInline(ctx, c, store.User) },
	"GetUserPolicy":    func(ctx context.Context, c *call) error { return getInline(ctx, c, store.User) },
	"DeleteUserPolicy": func(ctx context.Context, c *call) error { return deleteInline(ctx, c, store.User) },
	"ListUserPolicies": func(ctx context.Context, c *call) error { return listInline(ctx, c, store.User) },
	"PutRolePolicy":    func(ctx context.Context, c *call) error { return putInline(ctx, c, store.Role) },
	"GetRolePolicy":    func(ctx context.Context, c *call) error { return getInline(ctx, c, store.Role) },
	"DeleteRolePolicy": func(ctx context.Context, c *call) error { return deleteInline(ctx, c, store.Role) },
	"ListRolePolicies": func(ctx context.Context, c *call) error { return listInline(ctx, c, store.Role) },

	"AttachUserPolicy":         func(ctx context.Context, c *call) error { return attach(ctx, c, store.User) },
	"DetachUserPolicy":         func(ctx context.Context, c *call) error { return detach(ctx, c, store.User) },
	"ListAttachedUserPolicies": func(ctx context.Context, c *call) error { return listAttached(ctx, c, store.User) },
	"AttachRolePolicy":         func(ctx context.Context, c *call) error { return attach(ctx, c, store.Role) },
	"DetachRolePolicy":         func(ctx context.Context, c *call) error { return detach(ctx, c, store.Role) },
	"ListAttachedRolePolicies": func(ctx context.Context, c *call) error { return listAttached(ctx, c, store.Role) },

	"PutUserPermissionsBoundary":    func(ctx context.Context, c *call) error { return putBoundary(ctx, c, store.User) },
	"DeleteUserPermissionsBoundary": func(ctx context.Context, c *call) error { return deleteBoundary(ctx, c, store.User) },
	"PutRolePermissionsBoundary":    func(ctx context.Context, c *call) error { return putBoundary(ctx, c, store.Role) },
	"DeleteRolePermissionsBoundary": func(ctx context.Context, c *call) error { return deleteBoundary(ctx, c, store.Role) },

	"TagUser":      func(ctx context.Context, c *call) error { return tag(ctx, c, store.User) },
	"UntagUser":    func(ctx context.Context, c *call) error { return untag(ctx, c, store.User) },
	"ListUserTags": func(ctx context.Context, c *call) error { return listTags(ctx, c, store.User) },
	"TagRole":      func(ctx context.Context, c *call) error { return tag(ctx, c, store.Role) },
	"UntagRole":    func(ctx context.Context, c *call) error { return untag(ctx, c, store.Role) },
	"ListRoleTags": func(ctx context.Context, c *call) error { return listTags(ctx, c, store.Role) },

	"CreatePolicy":     createPolicy,
	"GetPolicy":        getPolicy,
	"GetPolicyVersion": getPolicyVersion,
	"ListPolicies":     listPolicies,
	"DeletePolicy":     deletePolicy,

	"SimulatePrincipalPolicy": simulatePrincipalPolicy,

	"CreateAccount":     createAccount,
	"ListAccounts":      listAccounts,
	"RegisterService":   registerService,
	"DeregisterService": deregisterService,
	"ListServices":      listServices,
}

// Words of messages.
func word(k store.PrincipalKind) string {
	if k == store.Role {
		return "role"
	}
	return "user"
}

func title(k store.PrincipalKind) string {
	if k == store.Role {
		return "Role"
	}
	return "User"
}

func noSuch(what, name string) error {
	return awsquery.NewError("NoSuchEntity", "The "+what+" with name "+clip(name)+" cannot be found.")
}

// named reads the parameter UserName or RoleName.
func (c *call) named(k store.PrincipalKind) store.PrincipalName {
	return store.PrincipalName{Kind: k, Account: c.account(), Name: c.name(title(k)+"Name", 64)}
}

// principal reads a user or role after it asked for permission on its ARN. Whether it exists is told only to who may do the action.
func (c *call) principal(ctx context.Context, n store.PrincipalName, extra ...authz.ExtraValue) (*store.Principal, error) {
	p, err := c.store.Principal(ctx, n)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	resource := c.arn(word(n.Kind) + "/" + n.Name)
	if p != nil {
		resource = p.ARN(c.table.partition)
		extra = append(resourceTags(p.Tags), extra...)
		if p.Boundary != "" && !slices.ContainsFunc(extra, func(v authz.ExtraValue) bool { return v.Key == policy.IAMPermissionsBoundary }) {
			extra = append(extra, authz.ExtraValue{Key: policy.IAMPermissionsBoundary, Value: p.Boundary})
		}
	}
	if err := c.authorize(resource, extra...); err != nil {
		return nil, err
	}
	if p == nil {
		return nil, c.published(ctx, n, store.ErrNotFound)
	}
	return p, nil
}

// resourceTags are the tags of what the operation is about, as conditions name them.
func resourceTags(tags []store.Tag) []authz.ExtraValue {
	var values []authz.ExtraValue
	for _, t := range tags {
		values = append(values, authz.ExtraValue{Key: policy.AWSResourceTag, Name: t.Key, Value: t.Value}, authz.ExtraValue{Key: policy.IAMResourceTag, Name: t.Key, Value: t.Value})
	}
	return values
}

// heldTags are the resourceTags of a principal as the table has it.
func heldTags(p *principal) []authz.ExtraValue {
	s := p.holder.Subject()
	if s == nil {
		return nil
	}
	tags := make([]store.Tag, len(s.Tags))
	for i, t := range s.Tags {
		tags[i] = store.Tag(t)
	}
	return resourceTags(tags)
}

// change asks for permission and edits a user or role, whose name it reads as principal does.
func (c *call) change(ctx context.Context, n store.PrincipalName, edit func(*store.Principal) error, extra ...authz.ExtraValue) error {
	asked, err := c.principal(ctx, n, extra...)
	if err != nil {
		return err
	}
	_, err = c.store.UpdatePrincipal(ctx, n, func(p *store.Principal) error {
		if p.ID != asked.ID {
			return store.ErrNotFound // another one of that name
		}
		return edit(p)
	})
	return c.published(ctx, n, c.unattachable(err))
}

// published publishes a write to a user or role, and words that there is none.
func (c *call) published(ctx context.Context, n store.PrincipalName, err error) error {
	if err = c.table.publishPrincipal(ctx, n, err); errors.Is(err, store.ErrNotFound) {
		return noSuch(word(n.Kind), n.Name)
	}
	return err
}

// unattachable words ErrNoPolicy.
func (c *call) unattachable(err error) error {
	if errors.Is(err, store.ErrNoPolicy) {
		return awsquery.NewError("NoSuchEntity", "Policy does not exist or is not attachable.")
	}
	return err
}

// create writes a new user or role and shows it.
func (c *call) create(ctx context.Context, p *store.Principal) error {
	extra := requestTags(p.Tags)
	if p.Boundary != "" {
		extra = append(extra, authz.ExtraValue{Key: policy.IAMPermissionsBoundary, Value: p.Boundary})
	}
	if err := c.authorize(p.ARN(c.table.partition), extra...); err != nil {
		return err
	}
	if p.Boundary != "" {
		if err := c.attachable(ctx, p.Boundary); err != nil {
			return err
		}
	}
	err := c.store.CreatePrincipal(ctx, p)
	if errors.Is(err, store.ErrExists) {
		return awsquery.NewError("EntityAlreadyExists", title(p.Kind)+" with name "+p.Name+" already exists.")
	}
	if err := c.table.publishPrincipal(ctx, p.PrincipalName, c.unattachable(err)); err != nil {
		return err
	}
	c.show(p, true)
	return nil
}

func createUser(ctx context.Context, c *call) error {
	p := &store.Principal{PrincipalName: c.named(store.User), Path: c.path("Path"), ID: newID("AIDA"), Created: c.now, Boundary: c.boundary()}
	for _, t := range c.tags() {
		p.SetTag(t)
	}
	if err := c.ready(); err != nil {
		return err
	}
	return c.create(ctx, p)
}

func createRole(ctx context.Context, c *call) error {
	p := &store.Principal{
		PrincipalName: c.named(store.Role), Path: c.path("Path"), ID: newID("AROA"), Created: c.now, Boundary: c.boundary(),
		Trust: c.document("AssumeRolePolicyDocument"), Description: c.text("Description", 0, 1000),
		MaxSession: time.Duration(c.number("MaxSessionDuration", 3600, 43_200, 3600)) * time.Second,
	}
	for _, t := range c.tags() {
		p.SetTag(t)
	}
	if err := c.ready(); err != nil {
		return err
	}
	var err error
	if p.TrustBound, err = c.table.bindTrust(p.Trust); err != nil {
		return err
	}
	return c.create(ctx, p)
}

// bindTrust checks a trust policy and finds out whom it names.
func (t *Table) bindTrust(document string) ([]store.Bound, error) {
	var bound []store.Bound
	seen := map[string]bool{}
	p, err := policy.Parse([]byte(document), policy.TrustPolicy, func(arn string) (string, bool) {
		id, ok := t.Bind(policy.PrincipalARN(arn, t.partition))
		if ok && !seen[arn] {
			seen[arn], bound = true, append(bound, store.Bound{ARN: arn, ID: id})
		}
		return id, ok
	})
	if err == nil {
		err = p.Within(t.partition)
	}
	return bound, err
}

func updateAssumeRolePolicy(ctx context.Context, c *call) error {
	n, document := c.named(store.Role), c.document("PolicyDocument")
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		bound, err := c.table.bindTrust(document)
		p.Trust, p.TrustBound = document, bound
		return err
	})
}

// getUser without a name is about the caller, who may be a root user.
func getUser(ctx context.Context, c *call) error {
	name := c.optionalName("UserName", 64)
	if err := c.ready(); err != nil {
		return err
	}
	if name == "" {
		if c.caller.Kind == policy.Root {
			return c.showRoot(ctx)
		}
		if c.caller.Kind != policy.User {
			return invalid("Must specify userName when calling with non-User credentials")
		}
		name = c.caller.UserName
	}
	p, err := c.principal(ctx, store.PrincipalName{Kind: store.User, Account: c.account(), Name: name})
	if err != nil {
		return err
	}
	c.show(p, true)
	return nil
}

func (c *call) showRoot(ctx context.Context) error {
	if err := c.authorize(c.caller.ARN); err != nil {
		return err
	}
	a, err := c.store.Account(ctx, c.account())
	if err != nil {
		return err
	}
	c.reply.Open("User")
	c.reply.Text("UserId", a.ID.String())
	c.reply.Text("Arn", c.caller.ARN)
	c.reply.Time("CreateDate", a.Created)
	c.reply.Close()
	return nil
}

func getRole(ctx context.Context, c *call) error {
	n := c.named(store.Role)
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	c.show(p, true)
	return nil
}

// show writes a user or role; lists leave boundary and tags out, as IAM's do.
func (c *call) show(p *store.Principal, all bool) {
	r := c.reply
	element := title(p.Kind)
	if !all {
		element = "member"
	}
	r.Open(element)
	r.Text("Path", p.Path)
	r.Text(title(p.Kind)+"Name", p.Name)
	r.Text(title(p.Kind)+"Id", p.ID)
	r.Text("Arn", p.ARN(c.table.partition))
	r.Time("CreateDate", p.Created)
	if p.Kind == store.Role {
		r.Text("AssumeRolePolicyDocument", string(awsquery.AppendPercent(nil, p.Trust)))
		r.Some("Description", p.Description)
		r.Int("MaxSessionDuration", int(p.MaxSession/time.Second))
	}
	if all && p.Boundary != "" {
		r.Open("PermissionsBoundary")
		r.Text("PermissionsBoundaryType", "Policy")
		r.Text("PermissionsBoundaryArn", p.Boundary)
		r.Close()
	}
	if all && len(p.Tags) > 0 {
		c.showTags(p.Tags)
	}
	r.Close()
}

func (c *call) showTags(tags []store.Tag) {
	c.reply.Open("Tags")
	for _, t := range tags {
		c.reply.Open("member")
		c.reply.Text("Key", t.Key)
		c.reply.Text("Value", t.Value)
		c.reply.Close()
	}
	c.reply.Close()
}

// listPrincipals may answer fewer than asked for, or none, and more to come: what the path prefix leaves out.
func listPrincipals(ctx context.Context, c *call, k store.PrincipalKind) error {
	prefix := c.path("PathPrefix")
	limit, after := c.page()
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.authorize(c.arn(word(k) + prefix)); err != nil {
		return err
	}
	list, more, err := c.store.Principals(ctx, k, c.account(), after, limit)
	if err != nil {
		return err
	}
	last := ""
	c.reply.Open(title(k) + "s")
	for _, p := range list {
		if last = p.Name; strings.HasPrefix(p.Path, prefix) {
			c.show(p, false)
		}
	}
	c.reply.Close()
	c.pageEnd(more, last)
	return nil
}

func deletePrincipal(ctx context.Context, c *call, k store.PrincipalKind) error {
	n := c.named(k)
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	err = c.store.DeletePrincipal(ctx, n, p.ID)
	if errors.Is(err, store.ErrInUse) {
		what := "delete policies"
		if len(p.AccessKeys) > 0 {
			what = "delete access keys"
		} else if len(p.Attached) > 0 {
			what = "detach all policies"
		}
		return awsquery.NewError("DeleteConflict", "Cannot delete entity, must "+what+" first.")
	}
	return c.published(ctx, n, err)
}

func tag(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, tags := c.named(k), c.tags()
	if c.err == nil && len(tags) == 0 {
		c.fail(constraint("Tags", "", "not be null"))
	}
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		for _, t := range tags {
			p.SetTag(t)
		}
		return nil
	}, requestTags(tags)...)
}

func untag(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, keys := c.named(k), c.tagKeys()
	if err := c.ready(); err != nil {
		return err
	}
	var extra []authz.ExtraValue
	for _, key := range keys {
		extra = append(extra, authz.ExtraValue{Key: policy.AWSTagKeys, Value: key})
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		for _, key := range keys {
			p.RemoveTag(key)
		}
		return nil
	}, extra...)
}

// listTags answers all tags at once: there are 50 at most.
func listTags(ctx context.Context, c *call, k store.PrincipalKind) error {
	n := c.named(k)
	c.page()
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	c.showTags(p.Tags)
	c.pageEnd(false, "")
	return nil
}
