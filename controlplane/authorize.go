package controlplane

import (
	"context"
	"errors"
	"slices"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// authorize decides whether the caller may do the operation to the key, as its record is. Every operation asks, on the record that it acts on.
func (s *Server) authorize(ctx context.Context, c *call, k *store.Key) error {
	_, err := s.permit(ctx, c, c.action, k, nil)
	return err
}

// permit decides about one permission on a key. fits says which grants count; nil: all.
func (s *Server) permit(ctx context.Context, c *call, action *authz.Action, k *store.Key, fits func(*authz.Grant) bool) (authz.Decision, error) {
	facts := k.Facts()
	c.context.Key = &facts
	arn := s.keyARN(k.KeyName)
	c.touchKey(arn, k.Account)
	return c.decide(&authz.Question{
		Action: action, Resource: []byte(arn), Owner: k.Account, Policy: s.keyPolicy(k),
		Grants: &keyGrants{ctx: ctx, store: s.store, key: k.KeyName, fits: fits},
	})
}

// permitAccount decides about a permission that is no key's to give: identity policies of the caller's account alone allow it.
func (c *call) permitAccount(action *authz.Action, resource string) error {
	c.context.Key = nil
	_, err := c.decide(&authz.Question{Action: action, Resource: []byte(resource), Owner: c.account(), Alone: true})
	return err
}

// permitAlias decides about the operation on an alias of the caller's account; the keys concerned are asked on their own.
func (s *Server) permitAlias(c *call, name string) error {
	arn := s.aliasARN(c.account(), name)
	c.touch(arn, c.account())
	return c.permitAccount(c.action, arn)
}

// decide asks authz and words a refusal.
func (c *call) decide(q *authz.Question) (authz.Decision, error) {
	q.Caller, q.Context, q.Scratch = c.principal(), &c.context, &c.scratch
	if q.Caller == nil {
		return authz.Decision{}, c.refuse(q, &authz.Decision{Reason: authz.NotAbroad})
	}
	d, err := authz.Decide(q)
	if err != nil {
		return authz.Decision{}, err
	}
	if !d.Reason.Allowed() {
		return d, c.refuse(q, &d)
	}
	return d, nil
}

func (c *call) refuse(q *authz.Question, d *authz.Decision) error {
	if q.Caller == nil {
		q.Caller = &authz.Caller{}
	}
	return kmsapi.New(kmsapi.AccessDenied, string(d.AppendDenied(nil, q)))
}

// foreign is the refusal of what is another account's, whether it exists or not.
func (c *call) foreign() error {
	return c.refuse(&authz.Question{Caller: c.principal(), Action: c.action}, &authz.Decision{Reason: authz.NotAbroad})
}

// principal is the caller as decisions name it, nil for an access key that speaks for nobody.
func (c *call) principal() *authz.Caller {
	if p := c.caller.Principal(); p != nil {
		return p.Caller
	}
	return nil
}

// keyGrants are the grants of one key, read when they are asked for.
type keyGrants struct {
	ctx   context.Context
	store *store.Store
	key   store.KeyName
	fits  func(*authz.Grant) bool
}

func (g *keyGrants) Grants(grantee string) (*authz.GrantSet, error) {
	list, err := g.store.Grants(g.ctx, g.key.Region, g.key.Account, g.key.ID, grantee)
	if err != nil {
		return nil, err
	}
	if g.fits != nil {
		list = slices.DeleteFunc(list, func(grant authz.Grant) bool { return !g.fits(&grant) })
	}
	return authz.NewGrantSet(list), nil
}

// keyPolicy compiles a key's policy, with its principals as they were when it was put. One that this version does not read allows nothing.
func (s *Server) keyPolicy(k *store.Key) *policy.Policy {
	p, err := snapshot.CompilePolicy(k.Policy.Document, k.Policy.Bound)
	if err != nil {
		s.log.Error("a key policy cannot be read; it allows nothing", "key", s.keyARN(k.KeyName), "error", err.Error())
		return new(policy.Policy)
	}
	return p
}

// reference parses what a request names a key with. Aliases are allowed only where the operation says so. A reference to another account
// ends here, before anything is read, unless the operation can be used across accounts: whether the key exists is not said.
func (s *Server) reference(c *call, text string, aliases bool) (keyid.Ref, error) {
	ref, fault := keyid.Parse([]byte(text))
	isAlias := ref.Kind == keyid.AliasName || ref.Kind == keyid.AliasARN
	switch {
	case fault == keyid.BadAlias && !aliases, isAlias && !aliases && ref.Kind == keyid.AliasName:
		fault = keyid.BadKeyID
	case isAlias && !aliases:
		fault = keyid.BadARN
	}
	if fault != keyid.None {
		return ref, kmsapi.New(s.faultCode(c, fault), string(fault.AppendMessage(nil, []byte(text))))
	}
	if ref.Kind == keyid.KeyID || ref.Kind == keyid.AliasName {
		ref.Account = c.account()
		s.name(c, &ref)
		return ref, nil
	}
	s.name(c, &ref)
	if string(ref.Region) != s.region || string(ref.Partition) != s.partition {
		return ref, kmsapi.New(kmsapi.NotFound, "Invalid arn "+string(ref.Region))
	}
	if ref.Account != c.account() && !c.action.Abroad {
		return ref, c.foreign()
	}
	return ref, nil
}

// name notes the resource that a request names, for the record of a call that does not get to it.
func (s *Server) name(c *call, ref *keyid.Ref) {
	if ref.Alias != nil {
		c.named = resource{s.aliasARN(ref.Account, string(ref.Alias)), ref.Account}
		return
	}
	c.named = resource{s.keyARN(store.KeyName{Account: ref.Account, ID: ref.ID}), ref.Account}
}

// faultCode is the exception for a malformed reference: two operations do not model InvalidArnException and answer NotFoundException.
func (s *Server) faultCode(c *call, f keyid.Fault) kmsapi.Code {
	if code := f.Code(); code != kmsapi.InvalidArn || c.op.Name != "CreateAlias" && c.op.Name != "UpdateAlias" {
		return code
	}
	return kmsapi.NotFound
}

// keyName resolves a reference that names a key by its ID or ARN.
func (s *Server) keyName(c *call, text string) (store.KeyName, error) {
	ref, err := s.reference(c, text, false)
	if err != nil {
		return store.KeyName{}, err
	}
	return store.KeyName{Region: s.region, Account: ref.Account, ID: ref.ID}, nil
}

// view reads a key for an operation that changes nothing: authorized and allowed in its state. The caller wipes it.
func (s *Server) view(ctx context.Context, c *call, n store.KeyName) (*store.Key, error) {
	k, err := s.store.Key(ctx, n)
	if err != nil {
		return nil, s.keyError(c, n, err)
	}
	c.told(max(k.Revision, k.Policy.Revision))
	if err := s.admit(ctx, c, k); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// admit is what every operation on a key asks of the key's record before it does anything: authorisation, then the kind of key, then the key state.
func (s *Server) admit(ctx context.Context, c *call, k *store.Key) error {
	if err := s.authorize(ctx, c, k); err != nil {
		return err
	}
	if err := s.unfit(c.op.Name, k); err != nil {
		return err
	}
	return stateError(c.op.Name, s.state(k), s.keyARN(k.KeyName))
}

// change edits a key in one transaction, with authorisation and key state decided on the very record that is replaced, and publishes it.
func (s *Server) change(ctx context.Context, c *call, n store.KeyName, edit func(*store.Key) error) (*store.Key, error) {
	k, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		if err := s.admit(ctx, c, k); err != nil {
			return err
		}
		return edit(k)
	})
	// Also when nothing was left to change, or the state refused it: the call that did change it may not have published yet, and this one's
	// answer must not promise more than holds.
	published := err
	if _, refused := errors.AsType[*kmsapi.Error](err); refused {
		published = nil
	}
	s.publishKey(n, published)
	if err != nil {
		return nil, s.keyError(c, n, err)
	}
	s.kickFor(k)
	return k, nil
}

// publishKey tells the data plane that a key may have changed.
func (s *Server) publishKey(n store.KeyName, err error) {
	s.publish("key/"+n.Account.String()+"/"+n.ID.String(), err, func() { s.publisher.KeyChanged(n.Account, n.ID) })
}

// keyError words an error of the store about the key n. That another account's key does not exist is not said.
func (s *Server) keyError(c *call, n store.KeyName, err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrNoTarget) {
		if n.Account != c.account() {
			return c.foreign()
		}
		return kmsapi.New(kmsapi.NotFound, "Key '"+s.keyARN(n)+"' does not exist")
	}
	return err
}

func (s *Server) keyARN(n store.KeyName) string {
	return string(keyid.AppendKeyARN(nil, s.partition, s.region, n.Account, n.ID))
}

// anyKeyARN stands for a key of the account that has no ID yet: what matches every key of the account matches it.
func (s *Server) anyKeyARN(a keyid.Account) string {
	return "arn:" + s.partition + ":kms:" + s.region + ":" + a.String() + ":key/*"
}

func (s *Server) aliasARN(a keyid.Account, name string) string {
	return string(keyid.AppendAliasARN(nil, s.partition, s.region, a, []byte(name)))
}
