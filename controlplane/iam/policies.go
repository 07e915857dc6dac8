package iam

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/policy"
)

func putInline(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, d := c.named(k), store.Document{Name: c.name("PolicyName", 128), Text: c.document("PolicyDocument")}
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		if _, err := compile(d.Text); err != nil {
			return err
		}
		p.PutInline(d)
		return nil
	})
}

func noInline(k store.PrincipalKind, name string) error { return noSuch(word(k)+" policy", name) }

func getInline(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, name := c.named(k), c.name("PolicyName", 128)
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	d, ok := p.InlineNamed(name)
	if !ok {
		return noInline(k, name)
	}
	c.reply.Text(title(k)+"Name", p.Name)
	c.reply.Text("PolicyName", d.Name)
	c.reply.Text("PolicyDocument", string(awsquery.AppendPercent(nil, d.Text)))
	return nil
}

func deleteInline(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, name := c.named(k), c.name("PolicyName", 128)
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		if !p.RemoveInline(name) {
			return noInline(k, name)
		}
		return nil
	})
}

func listInline(ctx context.Context, c *call, k store.PrincipalKind) error {
	n := c.named(k)
	limit, after := c.page()
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	var names []string
	for _, d := range p.Inline {
		names = append(names, d.Name)
	}
	names, more := cut(names, after, limit)
	c.reply.Open("PolicyNames")
	for _, name := range names {
		c.reply.Text("member", name)
		after = name
	}
	c.reply.Close()
	c.pageEnd(more, after)
	return nil
}

// cut is the page of a sorted list behind a name.
func cut(list []string, after string, limit int) (page []string, more bool) {
	i, found := slices.BinarySearch(list, after)
	if found {
		i++
	}
	list = list[i:]
	return list[:min(limit, len(list))], limit < len(list)
}

func (c *call) policyARN() string { return c.text("PolicyArn", 20, 2048) }

func noPolicy(arn string) error {
	return awsquery.NewError("NoSuchEntity", "Policy "+clip(arn)+" does not exist or is not attachable.")
}

// attachable checks that a managed policy exists in the account, or is AWS's.
func (c *call) attachable(ctx context.Context, arn string) error {
	_, err := c.managedText(ctx, c.account(), arn)
	if errors.Is(err, invalid("")) {
		return noPolicy(arn)
	}
	return err
}

func attach(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, arn := c.named(k), c.policyARN()
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		p.Attach(arn)
		return c.attachable(ctx, arn)
	}, authz.ExtraValue{Key: policy.IAMPolicyARN, Value: arn})
}

func detach(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, arn := c.named(k), c.policyARN()
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		if !p.Detach(arn) {
			return awsquery.NewError("NoSuchEntity", "Policy "+clip(arn)+" was not found.")
		}
		return nil
	}, authz.ExtraValue{Key: policy.IAMPolicyARN, Value: arn})
}

// listAttached answers all attached policies at once: there are few.
func listAttached(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, prefix := c.named(k), c.path("PathPrefix")
	c.page()
	if err := c.ready(); err != nil {
		return err
	}
	p, err := c.principal(ctx, n)
	if err != nil {
		return err
	}
	c.reply.Open("AttachedPolicies")
	for _, arn := range p.Attached {
		_, path, _ := strings.Cut(arn, ":policy")
		if !strings.HasPrefix(path, prefix) {
			continue
		}
		c.reply.Open("member")
		c.reply.Text("PolicyName", arn[strings.LastIndexByte(arn, '/')+1:])
		c.reply.Text("PolicyArn", arn)
		c.reply.Close()
	}
	c.reply.Close()
	c.pageEnd(false, "")
	return nil
}

func putBoundary(ctx context.Context, c *call, k store.PrincipalKind) error {
	n, arn := c.named(k), c.text("PermissionsBoundary", 20, 2048)
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		p.Boundary = arn
		return c.attachable(ctx, arn)
	}, authz.ExtraValue{Key: policy.IAMPermissionsBoundary, Value: arn})
}

func deleteBoundary(ctx context.Context, c *call, k store.PrincipalKind) error {
	n := c.named(k)
	if err := c.ready(); err != nil {
		return err
	}
	return c.change(ctx, n, func(p *store.Principal) error {
		if p.Boundary == "" {
			return awsquery.NewError("NoSuchEntity", title(k)+" with name "+p.Name+" does not have a permissions boundary.")
		}
		p.Boundary = ""
		return nil
	})
}

func createPolicy(ctx context.Context, c *call) error {
	m := &store.ManagedPolicy{
		Account: c.account(), Name: c.name("PolicyName", 128), Path: c.path("Path"), ID: newID("ANPA"), Description: c.text("Description", 0, 1000),
		Document: c.document("PolicyDocument"), Created: c.now,
	}
	m.Tags = c.tags()
	slices.SortFunc(m.Tags, func(a, b store.Tag) int { return strings.Compare(strings.ToLower(a.Key), strings.ToLower(b.Key)) })
	if err := c.ready(); err != nil {
		return err
	}
	arn := m.ARN(c.table.partition)
	if err := c.authorize(arn, requestTags(m.Tags)...); err != nil {
		return err
	}
	if _, err := compile(m.Document); err != nil {
		return err
	}
	err := c.store.CreatePolicy(ctx, m)
	if errors.Is(err, store.ErrExists) {
		return awsquery.NewError("EntityAlreadyExists", "A policy called "+m.Name+" already exists. Duplicate names are not allowed.")
	}
	if err := c.table.publishPolicy(ctx, arn, err); err != nil {
		return err
	}
	c.showPolicy("Policy", m)
	return nil
}

// policy reads a managed policy after it asked for permission on it. Whether it exists is told only to who may do the action. AWS's have a record that is made up.
func (c *call) policy(ctx context.Context) (*store.ManagedPolicy, string, error) {
	arn := c.policyARN()
	if err := c.err; err != nil {
		return nil, "", err
	}
	var m *store.ManagedPolicy
	if text := c.table.awsPolicy(arn); text != "" {
		m = awsRecord(arn, text)
	} else {
		var err error
		m, err = c.store.ManagedPolicy(ctx, arn)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, "", err
		}
		if m != nil && (m.Account != c.account() || m.ARN(c.table.partition) != arn) {
			m = nil
		}
	}
	var tags []authz.ExtraValue
	if m != nil {
		tags = resourceTags(m.Tags)
	}
	if err := c.authorize(arn, tags...); err != nil {
		return nil, "", err
	}
	if m == nil {
		return nil, "", awsquery.NewError("NoSuchEntity", "Policy "+clip(arn)+" was not found.")
	}
	return m, arn, nil
}

// awsRecord is an AWS managed policy as if it were an account's.
func awsRecord(arn, text string) *store.ManagedPolicy {
	return &store.ManagedPolicy{Name: arn[strings.LastIndexByte(arn, '/')+1:], ID: "ANPAAWSMANAGEDPOLICY2", Path: "/", Document: text, Created: awsCreated}
}

func getPolicy(ctx context.Context, c *call) error {
	c.policyARN()
	if err := c.ready(); err != nil {
		return err
	}
	m, arn, err := c.policy(ctx)
	if err != nil {
		return err
	}
	c.showPolicyAs("Policy", m, arn)
	return nil
}

// policyVersion is the one that policies have.
const policyVersion = "v1"

func getPolicyVersion(ctx context.Context, c *call) error {
	c.policyARN()
	version := c.text("VersionId", 1, 64)
	if err := c.ready(); err != nil {
		return err
	}
	m, arn, err := c.policy(ctx)
	if err != nil {
		return err
	}
	if version != policyVersion {
		return awsquery.NewError("NoSuchEntity", "Policy "+arn+" version "+clip(version)+" does not exist or is not attachable.")
	}
	c.reply.Open("PolicyVersion")
	c.reply.Text("Document", string(awsquery.AppendPercent(nil, m.Document)))
	c.reply.Text("VersionId", policyVersion)
	c.reply.Bool("IsDefaultVersion", true)
	c.reply.Time("CreateDate", m.Created)
	c.reply.Close()
	return nil
}

func (c *call) showPolicy(element string, m *store.ManagedPolicy) {
	c.showPolicyAs(element, m, m.ARN(c.table.partition))
}

func (c *call) showPolicyAs(element string, m *store.ManagedPolicy, arn string) {
	r := c.reply
	r.Open(element)
	r.Text("PolicyName", m.Name)
	r.Text("PolicyId", m.ID)
	r.Text("Arn", arn)
	r.Text("Path", m.Path)
	r.Text("DefaultVersionId", policyVersion)
	r.Int("AttachmentCount", m.Attachments)
	r.Int("PermissionsBoundaryUsageCount", m.Boundaries)
	r.Bool("IsAttachable", true)
	r.Some("Description", m.Description)
	r.Time("CreateDate", m.Created)
	r.Time("UpdateDate", m.Created)
	if element == "Policy" && len(m.Tags) > 0 {
		c.showTags(m.Tags)
	}
	r.Close()
}

// listPolicies answers AWS's policies with the first page.
func listPolicies(ctx context.Context, c *call) error {
	scope := c.oneOf("Scope", false, "All", "AWS", "Local")
	attached := c.oneOf("OnlyAttached", false, "false", "true") == "true"
	prefix := c.path("PathPrefix")
	limit, after := c.page()
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.authorize(c.arn("policy" + prefix)); err != nil {
		return err
	}
	c.reply.Open("Policies")
	if scope != "Local" && after == "" && !attached && prefix == "/" {
		names := make([]string, 0, len(awsPolicies))
		for name := range awsPolicies {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			arn := "arn:" + c.table.partition + ":iam::aws:policy/" + name
			c.showPolicyAs("member", awsRecord(arn, awsPolicies[name]), arn)
		}
	}
	var list []*store.ManagedPolicy
	var more bool
	if scope != "AWS" {
		var err error
		if list, more, err = c.store.Policies(ctx, c.account(), after, limit); err != nil {
			return err
		}
	}
	for _, m := range list {
		if after = m.Name; strings.HasPrefix(m.Path, prefix) && (!attached || m.Attachments > 0) {
			c.showPolicy("member", m)
		}
	}
	c.reply.Close()
	c.pageEnd(more, after)
	return nil
}

func deletePolicy(ctx context.Context, c *call) error {
	c.policyARN()
	if err := c.ready(); err != nil {
		return err
	}
	m, arn, err := c.policy(ctx)
	if err != nil {
		return err
	}
	if m.Account != c.account() {
		return denied(c.caller, c.action, arn)
	}
	err = c.store.DeletePolicy(ctx, arn, m.ID)
	switch {
	case errors.Is(err, store.ErrInUse):
		return awsquery.NewError("DeleteConflict", "Cannot delete a policy attached to entities.")
	case errors.Is(err, store.ErrNotFound):
		return awsquery.NewError("NoSuchEntity", "Policy "+arn+" was not found.")
	}
	return c.table.publishPolicy(ctx, arn, err)
}
