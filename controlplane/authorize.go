package controlplane

import (
	"context"
	"errors"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// authorize decides whether the caller may do the operation. owner is the account of what it is done to; key is the key concerned, nil
// where the operation concerns none or the caller may not learn whether it exists. Every operation asks, on the record that it acts on.
//
// Key policies are stored and not evaluated: a signed caller of the account is its administrator, and nobody else gets in.
func authorize(c *call, owner keyid.Account, key *store.Key) error {
	p := c.caller.Principal()
	if p != nil && p.Account == owner && (key == nil || key.Account == owner) {
		return nil
	}
	user := ""
	if p != nil {
		user = p.ARN
	}
	return kmsapi.New(kmsapi.AccessDenied, "User: "+user+" is not authorized to perform: kms:"+c.op.Name+
		" on this resource because the resource does not exist in this Region, no resource-based policies allow access, or a "+
		"resource-based policy explicitly denies access")
}

// reference parses what a request names a key with. Aliases are allowed only where the operation says so. A reference to another account
// ends here, before anything is read: whether the key exists is not said.
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
		return ref, nil
	}
	if string(ref.Region) != s.region || string(ref.Partition) != s.partition {
		return ref, kmsapi.New(kmsapi.NotFound, "Invalid arn "+string(ref.Region))
	}
	if ref.Account != c.account() {
		return ref, authorize(c, ref.Account, nil)
	}
	return ref, nil
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
		return nil, s.keyError(n, err)
	}
	if err := s.admit(c, k); err != nil {
		k.Wipe()
		return nil, err
	}
	return k, nil
}

// admit is what every operation on a key asks of the key's record before it does anything: authorisation, then the key state.
func (s *Server) admit(c *call, k *store.Key) error {
	if err := authorize(c, k.Account, k); err != nil {
		return err
	}
	return stateError(c.op.Name, k.State, s.keyARN(k.KeyName))
}

// change edits a key in one transaction, with authorisation and key state decided on the very record that is replaced, and publishes it.
func (s *Server) change(ctx context.Context, c *call, n store.KeyName, edit func(*store.Key) error) (*store.Key, error) {
	k, err := s.store.UpdateKey(ctx, n, func(k *store.Key) error {
		if err := s.admit(c, k); err != nil {
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
		return nil, s.keyError(n, err)
	}
	return k, nil
}

// publishKey tells the data plane that a key may have changed.
func (s *Server) publishKey(n store.KeyName, err error) {
	s.publish("key/"+n.Account.String()+"/"+n.ID.String(), err, func() { s.publisher.KeyChanged(n.Account, n.ID) })
}

// keyError words an error of the store about the key n.
func (s *Server) keyError(n store.KeyName, err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrNoTarget) {
		return kmsapi.New(kmsapi.NotFound, "Key '"+s.keyARN(n)+"' does not exist")
	}
	return err
}

func (s *Server) keyARN(n store.KeyName) string {
	return string(keyid.AppendKeyARN(nil, s.partition, s.region, n.Account, n.ID))
}

func (s *Server) aliasARN(a keyid.Account, name string) string {
	return string(keyid.AppendAliasARN(nil, s.partition, s.region, a, []byte(name)))
}
