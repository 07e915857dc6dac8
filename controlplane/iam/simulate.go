package iam

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/awsquery"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/simulate"
)

// Bounds of one simulation.
const (
	simulatedMax      = 1000 // questions: actions times resources
	contextEntriesMax = 256
)

func unusable(message string) error { return awsquery.NewError("InvalidInput", message) }

// simulation is what SimulatePrincipalPolicy asks.
type simulation struct {
	source, callerARN  string
	actions, resources []string
	entries            []simulate.Entry
	inputs, boundaries []string
	resourcePolicy     string

	who      *authz.Caller
	policies []simulate.Named
	key      *policy.Policy // ResourcePolicy
}

// simulatePrincipalPolicy answers what authz decides for a user or role of the caller's account about keys of that account, without doing it.
func simulatePrincipalPolicy(ctx context.Context, c *call) error {
	v := &simulation{
		source: c.text("PolicySourceArn", 20, 2048), callerARN: c.optional("CallerArn", 1, 2048), actions: c.q.List("ActionNames"), resources: c.q.List("ResourceArns"),
		inputs: c.q.List("PolicyInputList"), boundaries: c.q.List("PermissionsBoundaryPolicyInputList"), resourcePolicy: c.optional("ResourcePolicy", 1, documentMax),
	}
	for i, e := range c.q.Structs("ContextEntries", "ContextKeyName", "ContextKeyType") {
		v.entries = append(v.entries, simulate.Entry{Key: e[0], Values: c.q.List("ContextEntries.member." + strconv.Itoa(i+1) + ".ContextKeyValues")})
	}
	c.page() // everything is one page
	if len(v.resources) == 0 {
		v.resources = []string{"*"}
	}
	switch {
	case c.err != nil:
	case len(v.actions) == 0:
		c.fail(constraint("ActionNames", "", "not be null"))
	case len(v.actions)*len(v.resources) > simulatedMax:
		c.fail("At most " + strconv.Itoa(simulatedMax) + " combinations of an action and a resource are simulated at once.")
	case len(v.entries) > contextEntriesMax:
		c.fail("At most " + strconv.Itoa(contextEntriesMax) + " context entries are accepted.")
	case len(v.boundaries) > 1:
		c.fail(constraint("PermissionsBoundaryPolicyInputList", strconv.Itoa(len(v.boundaries))+" members", "have length less than or equal to 1"))
	}
	if err := c.ready(); err != nil {
		return err
	}
	var tags []authz.ExtraValue
	if p, session := c.table.find(v.source); p != nil && p.Account == c.account() && session == "" {
		tags = heldTags(p)
	}
	if err := c.authorize(v.source, tags...); err != nil {
		return err
	}
	if err := c.simulated(ctx, v); err != nil {
		return err
	}
	c.reply.Open("EvaluationResults")
	for _, action := range v.actions {
		for _, resource := range v.resources {
			a, err := c.simulate(ctx, v, action, resource)
			if err != nil {
				return err
			}
			c.showAnswer(action, resource, &a)
		}
	}
	c.reply.Close()
	c.pageEnd(false, "")
	return nil
}

// simulated finds the principal and its policies, as they are in the store.
func (c *call) simulated(ctx context.Context, v *simulation) error {
	p, session := c.table.find(v.source)
	if p == nil || p.Account != c.account() || session != "" || p.Kind == policy.Service {
		return awsquery.NewError("NoSuchEntity", "The policy source "+clip(v.source)+" cannot be found.")
	}
	kind := store.User
	if p.Kind == policy.AssumedRole {
		kind = store.Role
	}
	var record *store.Principal
	if p.Kind != policy.Root {
		var err error
		record, err = c.store.Principal(ctx, store.PrincipalName{Kind: kind, Account: p.Account, Name: p.name})
		if errors.Is(err, store.ErrNotFound) {
			return noSuch(word(kind), p.name)
		}
		if err != nil {
			return err
		}
		if p, err = c.table.principal(ctx, record); err != nil {
			return err
		}
	}
	if p.Kind == policy.AssumedRole {
		session = "simulated"
	}
	if v.callerARN != "" && v.callerARN != v.source {
		prefix := "arn:" + c.table.partition + ":sts::" + p.Account.String() + ":assumed-role/" + p.name + "/"
		name, ok := strings.CutPrefix(v.callerARN, prefix)
		if p.Kind != policy.AssumedRole || !ok || !validSessionName(name) {
			return unusable("CallerArn is the PolicySourceArn or a session of the role that it names.")
		}
		session = name
	}
	subject := *p.holder.Subject()
	subject.Identity = append([]*policy.Policy(nil), subject.Identity...)
	name := func(compiled *policy.Policy, id, typ, words string) {
		v.policies = append(v.policies, simulate.Named{Policy: compiled, ID: id, Type: typ, Words: words})
	}
	if record != nil {
		for i, d := range record.Inline {
			name(subject.Identity[i], d.Name, word(kind), "identity policy "+strconv.Quote(d.Name))
		}
		for i, arn := range record.Attached {
			name(subject.Identity[len(record.Inline)+i], arn, c.sourceType(arn), "identity policy "+strconv.Quote(arn))
		}
		if record.Boundary != "" {
			name(subject.Boundary, record.Boundary, c.sourceType(record.Boundary), "the permissions boundary "+strconv.Quote(record.Boundary))
		}
	}
	for i, text := range v.inputs {
		compiled, err := compile(text)
		if err != nil {
			return err
		}
		subject.Identity = append(subject.Identity, compiled)
		id := "PolicyInputList." + strconv.Itoa(i+1)
		name(compiled, id, "none", "identity policy "+strconv.Quote(id))
	}
	for _, text := range v.boundaries {
		compiled, err := compile(text)
		if err != nil {
			return err
		}
		subject.Boundary = compiled
		name(compiled, "PermissionsBoundaryPolicyInputList.1", "none", "the permissions boundary that was given")
	}
	if v.resourcePolicy != "" {
		compiled, err := policy.Parse([]byte(v.resourcePolicy), policy.KeyPolicy, func(arn string) (string, bool) {
			return c.table.Bind(policy.PrincipalARN(arn, c.table.partition))
		})
		if err != nil {
			return err
		}
		v.key = compiled
	}
	v.who = c.table.caller(p, session)
	if p.Kind == policy.AssumedRole {
		v.who.TokenIssued = c.now
	}
	v.who.Holder = authz.NewHolder(&subject)
	return nil
}

func (c *call) sourceType(arn string) string {
	if c.table.awsPolicy(arn) != "" {
		return "aws-managed"
	}
	return "user-managed"
}

// simulate asks one question.
func (c *call) simulate(ctx context.Context, v *simulation, name, resource string) (a simulate.Answer, err error) {
	who := *v.who
	who.Tags = append([]authz.Tag(nil), who.Tags...)
	context := authz.Context{Caller: &who, Now: c.now, Region: c.regions[0], SecureTransport: c.context.SecureTransport}
	q := &authz.Question{Caller: &who, Owner: who.Account, Resource: []byte(resource), Alone: true, Context: &context, Scratch: &policy.Scratch{}}
	policies := v.policies
	action, ok := simulate.Find(name)
	switch {
	case ok:
		q.Action = action
		key, err := c.keyOf(ctx, action, resource, &context)
		if err != nil {
			return a, err
		}
		if key != nil {
			document := key.Policy
			if v.key != nil {
				document = v.key
			}
			context.Key, q.Resource, q.Policy, q.Grants, q.Alone = &key.Facts, []byte(key.ARN), document, key.Grants, false
			policies = append(policies[:len(policies):len(policies)], simulate.Named{Policy: document, ID: "default", Type: "resource", Words: "the key policy"})
		}
	case strings.HasPrefix(name, "iam:") && len(name) > len("iam:"):
		q.Action = &authz.Action{Name: name}
	default:
		return a, unusable("The action " + clip(name) + " cannot be simulated: only those of kms and iam can.")
	}
	if err := simulate.Fill(&context, &who, nil, q.Action.Name, v.entries); err != nil {
		return a, unusable(err.Error())
	}
	return simulate.Ask(q, policies)
}

// keyOf is the key that the resource names, nil where the action concerns none or is asked on an alias. A key of another account is none: what
// its policies say is not the caller's to learn.
func (c *call) keyOf(ctx context.Context, action *authz.Action, resource string, context *authz.Context) (*Key, error) {
	if simulate.Keyless(action) {
		return nil, nil
	}
	ref, fault := keyid.Parse([]byte(resource))
	switch {
	case resource == "*" || fault != keyid.None || ref.Kind != keyid.KeyARN && ref.Kind != keyid.AliasARN:
		return nil, unusable(action.Name + " concerns a KMS key: ResourceArns has to name one by the ARN of the key or an alias, not " + clip(resource))
	case !slices.Contains(c.regions, string(ref.Region)) || string(ref.Partition) != c.table.partition || ref.Account != c.account():
		return nil, unusable("Only keys of this account, in Regions of this server, can be simulated, not " + clip(resource))
	case ref.Kind == keyid.AliasARN && simulate.OnAlias(action):
		return nil, nil
	case c.keys == nil:
		return nil, unusable("Decisions about keys are not simulated here.")
	}
	context.Region = string(ref.Region) // requests about the key are for it
	if ref.Kind == keyid.AliasARN {
		context.RequestAlias = ref.Alias
	}
	return c.keys(ctx, ref)
}

// showAnswer writes an EvaluationResult. EvalReason, and Statement, Sid and GrantId of a match, are members of ours.
func (c *call) showAnswer(action, resource string, a *simulate.Answer) {
	r := c.reply
	r.Open("member")
	r.Text("EvalActionName", action)
	r.Text("EvalResourceName", resource)
	r.Text("EvalDecision", a.Decision)
	r.Text("EvalReason", a.Reason)
	r.Open("MatchedStatements")
	if a.Policy != nil {
		r.Open("member")
		r.Text("SourcePolicyId", a.Policy.ID)
		r.Text("SourcePolicyType", a.Policy.Type)
		r.Int("Statement", a.Statement)
		r.Some("Sid", a.Sid)
		r.Close()
	}
	r.Close()
	r.Some("GrantId", a.Grant)
	r.Open("MissingContextValues")
	r.Close()
	r.Close()
}

// Actions are the names of all actions of a service, iam or sts, in no order.
func Actions(service string) (names []string) {
	operations := iamOperations
	if service == "sts" {
		operations = stsOperations
	}
	for name := range operations {
		names = append(names, name)
	}
	return names
}
