package iam

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

var stsOperations = map[string]operation{
	"AssumeRole":              assumeRole,
	"GetAccessKeyInfo":        getAccessKeyInfo,
	"GetCallerIdentity":       getCallerIdentity,
	"GetForwardAccessSession": getForwardAccessSession,
}

const (
	sessionMin       = 15 * time.Minute
	sessionDefault   = time.Hour
	sessionMost      = 12 * time.Hour
	chainedMax       = time.Hour
	sessionPolicyMax = 2048 // characters
	policyArnsMax    = 10
	externalIDMax    = 1224
)

// getCallerIdentity needs no permission, not even against an explicit Deny.
func getCallerIdentity(_ context.Context, c *call) error {
	if err := c.ready(); err != nil {
		return err
	}
	c.reply.Text("Arn", c.caller.ARN)
	c.reply.Text("UserId", c.caller.UserID)
	c.reply.Text("Account", c.account().String())
	return nil
}

// getAccessKeyInfo tells the account of an access key that exists. AWS reads it from the ID, whether the key exists or not.
func getAccessKeyInfo(ctx context.Context, c *call) error {
	id := c.text("AccessKeyId", 16, 128)
	if err := c.ready(); err != nil {
		return err
	}
	if err := c.authorize("*"); err != nil {
		return err
	}
	if k := c.table.AccessKey([]byte(id)); k != nil {
		c.reply.Text("Account", k.Principal().Account.String())
		return nil
	}
	k, err := c.store.AccessKey(ctx, id) // an inactive one
	if errors.Is(err, store.ErrNotFound) {
		return invalid("The access key ID " + clip(id) + " does not exist.")
	}
	if err != nil {
		return err
	}
	k.Secret.Wipe()
	c.reply.Text("Account", k.Account.String())
	return nil
}

// assumeRole begins a session of a role. What decides is the role's trust policy, which is to the role what a key policy is to a key: a caller
// of the role's account that it names itself needs nothing else, everybody else an identity policy too.
func assumeRole(ctx context.Context, c *call) error {
	arn := c.text("RoleArn", 20, 2048)
	name := c.name("RoleSessionName", 64)
	document := c.optional("Policy", 1, documentMax)
	arns := c.q.Structs("PolicyArns", "arn")
	seconds := c.number("DurationSeconds", int(sessionMin/time.Second), int(sessionMost/time.Second), int(sessionDefault/time.Second))
	externalID := c.optional("ExternalId", 2, externalIDMax)
	source := c.optionalName("SourceIdentity", 64)
	tags := c.tags()
	if c.err == nil && !validSessionName(name) {
		c.fail(constraint("RoleSessionName", name, "have length greater than or equal to 2"))
	}
	if c.err == nil && source != "" && !validSessionName(source) {
		c.fail(constraint("SourceIdentity", source, "have length greater than or equal to 2"))
	}
	for _, r := range externalID {
		if r > unicodeASCII || !validName(string(r), 1) && r != ':' && r != '/' {
			c.fail(constraint("ExternalId", externalID, "satisfy regular expression pattern: [\\w+=,.@:\\/-]*"))
			break
		}
	}
	if utf8.RuneCountInString(document) > sessionPolicyMax {
		c.fail(constraint("Policy", "", "have length less than or equal to "+strconv.Itoa(sessionPolicyMax)))
	}
	if len(arns) > policyArnsMax {
		c.fail(constraint("PolicyArns", strconv.Itoa(len(arns))+" members", "have length less than or equal to "+strconv.Itoa(policyArnsMax)))
	}
	if err := c.ready(); err != nil {
		return err
	}
	if c.caller.Kind == policy.Root {
		return awsquery.NewError("AccessDenied", "Roles may not be assumed by root accounts.")
	}
	role, session := c.table.find(arn)
	if role == nil || role.Kind != policy.AssumedRole || session != "" {
		return denied(c.caller, c.action, clip(arn))
	}
	// A source identity, once set, stays with all sessions that are begun from the first.
	set, other := source != "", false
	if c.caller.Source != "" {
		other = set && source != c.caller.Source // told after the decision, so as not to tell that the role exists
		source, set = c.caller.Source, true
	}
	extra := []authz.ExtraValue{{Key: policy.STSRoleSessionName, Value: name}}
	if externalID != "" {
		extra = append(extra, authz.ExtraValue{Key: policy.STSExternalID, Value: externalID})
	}
	if set {
		extra = append(extra, authz.ExtraValue{Key: policy.STSSourceIdentity, Value: source})
	}
	extra = append(append(extra, requestTags(tags)...), heldTags(role)...)
	actions := []string{c.action}
	if len(tags) > 0 {
		actions = append(actions, "sts:TagSession")
	}
	if set {
		actions = append(actions, "sts:SetSourceIdentity")
	}
	for _, action := range actions {
		if err := c.authorizeAs(action, arn, role.Account, role.trust, extra); err != nil {
			return err
		}
	}
	if other {
		return denied(c.caller, "sts:SetSourceIdentity", clip(arn))
	}
	duration := time.Duration(seconds) * time.Second
	switch {
	case duration > role.maxSession:
		return invalid("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	case duration > chainedMax && c.caller.Kind == policy.AssumedRole:
		return invalid("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	}
	v := &store.Session{Name: name, Tags: tags, Source: source, Issued: c.now, Expires: c.now.Add(duration)}
	if document != "" {
		v.Policies = append(v.Policies, document)
	}
	for _, a := range arns {
		text, err := c.managedText(ctx, role.Account, a[0])
		if err != nil {
			return err
		}
		v.Policies = append(v.Policies, text)
	}
	for _, text := range v.Policies {
		if _, err := compile(text); err != nil {
			return err
		}
	}
	if size := sessionSize(v); size > sessionSizeMax {
		return awsquery.NewError("PackedPolicyTooLarge", "Packed policy consumes "+strconv.Itoa(100*size/sessionSizeMax)+"% of allotted space, please use smaller policy.")
	}
	made, err := c.table.begin(ctx, role, store.PrincipalName{Kind: store.Role, Account: role.Account, Name: role.name}, v, c.now)
	if err != nil {
		return err
	}
	c.credentials(made)
	c.reply.Open("AssumedRoleUser")
	c.reply.Text("AssumedRoleId", role.ID+":"+name)
	c.reply.Text("Arn", c.table.caller(role, name).ARN)
	c.reply.Close()
	c.reply.Some("SourceIdentity", source)
	if len(v.Policies)+len(tags) > 0 {
		c.reply.Int("PackedPolicySize", packedSize(v))
	}
	return nil
}

const unicodeASCII = 0x7f

// packedSize is how much of a session's room its policy and tags take, in per cent.
func packedSize(v *store.Session) int { return max(1, 100*sessionSize(v)/sessionSizeMax) }

// sessionSizeMax bounds a session's policies and tags, in bytes: ten thousand sessions are 200 MB of records at most.
const sessionSizeMax = 20 << 10

func sessionSize(v *store.Session) int {
	n := 0
	for _, p := range v.Policies {
		n += len(p)
	}
	for _, t := range v.Tags {
		n += len(t.Key) + len(t.Value)
	}
	return n
}

func requestTags(tags []store.Tag) []authz.ExtraValue {
	var extra []authz.ExtraValue
	for _, t := range tags {
		extra = append(extra, authz.ExtraValue{Key: policy.AWSRequestTag, Name: t.Key, Value: t.Value}, authz.ExtraValue{Key: policy.AWSTagKeys, Value: t.Key})
	}
	return extra
}

// managedText is the document of a managed policy of an account, or of AWS's.
func (c *call) managedText(ctx context.Context, a keyid.Account, arn string) (string, error) {
	if text := c.table.awsPolicy(arn); text != "" {
		return text, nil
	}
	m, err := c.store.ManagedPolicy(ctx, arn)
	if errors.Is(err, store.ErrNotFound) || err == nil && (m.Account != a || m.ARN(c.table.partition) != arn) {
		return "", invalid("The policy " + clip(arn) + " does not exist or is not attachable.")
	}
	if err != nil {
		return "", err
	}
	return m.Document, nil
}

func (c *call) credentials(v *credentials) {
	c.reply.Open("Credentials")
	c.reply.Text("AccessKeyId", v.id)
	c.reply.Text("SecretAccessKey", v.secretKey)
	c.reply.Text("SessionToken", v.token)
	c.reply.Time("Expiration", v.expires)
	c.reply.Close()
}

// getForwardAccessSession gives a registered service credentials that act as a user or a role of an account that it may act for, marked as the
// service's. A role's session has the service's name. It is an action of ours: AWS's services have no public one.
func getForwardAccessSession(ctx context.Context, c *call) error {
	arn := c.text("PrincipalArn", 20, 2048)
	seconds := c.number("DurationSeconds", int(sessionMin/time.Second), int(sessionDefault/time.Second), int(sessionDefault/time.Second))
	if err := c.ready(); err != nil {
		return err
	}
	if c.caller.Kind != policy.Service {
		return denied(c.caller, c.action, clip(arn))
	}
	c.table.names.RLock()
	service := c.table.services[c.caller.ARN]
	c.table.names.RUnlock()
	p, session := c.table.find(arn)
	if service == nil || service.holder != c.caller.Holder || p == nil || session != "" || p.Kind != policy.User && p.Kind != policy.AssumedRole ||
		!service.service.ActsFor(p.Account) {
		return denied(c.caller, c.action, clip(arn))
	}
	v := &store.Session{
		Via: c.caller.ARN, ViaID: service.unique, Issued: c.now, Expires: c.now.Add(time.Duration(seconds) * time.Second),
	}
	n := store.PrincipalName{Kind: store.User, Account: p.Account, Name: p.name}
	if p.Kind == policy.AssumedRole {
		n.Kind = store.Role
		v.Name = strings.TrimRight(v.Via[:min(len(v.Via), 64)], ".-")
	}
	made, err := c.table.begin(ctx, p, n, v, c.now)
	if errors.Is(err, errServiceGone) {
		return denied(c.caller, c.action, clip(arn))
	}
	if err != nil {
		return err
	}
	c.credentials(made)
	c.reply.Text("Arn", c.table.caller(p, v.Name).ARN)
	return nil
}
