package controlplane

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
)

type aliasIn struct {
	AliasName   *string
	TargetKeyId *string
}

func (in *aliasIn) check(v *kmsapi.Violations) {
	checkAliasName(v, in.AliasName)
	checkKeyID(v, "targetKeyId", in.TargetKeyId)
}

// checkAlias holds what the model's pattern does not say about an alias name. A name with ':' or nothing behind the prefix can be neither
// made nor found; refuse says which exception that is.
func checkAlias(name string, refuse func() error) error {
	switch {
	case !strings.HasPrefix(name, kmsapi.AliasPrefix):
		return kmsapi.New(kmsapi.Validation, `Alias must start with the prefix "alias/". Please see `+
			"https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html")
	case keyid.ReservedAliasName([]byte(name)):
		return kmsapi.New(kmsapi.NotAuthorized, "The prefix "+kmsapi.AliasReservedPrefix+" is reserved for AWS managed keys.")
	case !keyid.ValidAliasName([]byte(name)):
		return refuse()
	}
	return nil
}

// target resolves the key an alias is to point at, which cannot be named by an alias.
func (s *Server) target(c *call, text string) (store.KeyName, error) {
	if ref, fault := keyid.Parse([]byte(text)); fault == keyid.None && ref.Alias != nil {
		return store.KeyName{}, kmsapi.New(kmsapi.Validation, "Aliases must refer to keys. Not aliases")
	}
	return s.keyName(c, text)
}

func (s *Server) createAlias(ctx context.Context, c *call, in *aliasIn) (none, error) {
	name := *in.AliasName
	if err := checkAlias(name, func() error {
		return kmsapi.New(kmsapi.InvalidAliasName, name+" contains invalid characters for an alias")
	}); err != nil {
		return none{}, err
	}
	n, err := s.target(c, *in.TargetKeyId)
	if err != nil {
		return none{}, err
	}
	if err := s.permitAlias(c, name); err != nil {
		return none{}, err
	}
	limit := s.quotaOf(n.Account, quota.AliasesPerKey)
	err = s.store.CreateAlias(ctx, n, name, limit, c.now, func(k *store.Key) error { return s.admit(ctx, c, k) })
	s.publishKey(n, err) // conditions can ask for its aliases
	s.publishAlias(n.Account, name, err)
	switch {
	case errors.Is(err, store.ErrExists):
		return none{}, kmsapi.New(kmsapi.AlreadyExists, "An alias with the name "+s.aliasARN(n.Account, name)+" already exists")
	case errors.Is(err, store.ErrAliasLimit):
		return none{}, s.aliasLimit(n, limit)
	case err != nil:
		return none{}, s.keyError(c, n, err)
	}
	return none{}, nil
}

// publishAlias tells the data plane that an alias may point elsewhere now. That it exists already, or no more, is told too: the call that made
// it so may not have published yet, and this one's answer tells of it.
func (s *Server) publishAlias(a keyid.Account, name string, err error) {
	if errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	s.publish("alias/"+a.String()+"/"+name, err, func() { s.publisher.AliasChanged(a, name) })
}

func (s *Server) aliasLimit(n store.KeyName, limit int) error {
	return kmsapi.New(kmsapi.LimitExceeded, "The key "+s.keyARN(n)+" has reached the limit of "+strconv.Itoa(limit)+" aliases.")
}

// aliasError words an error of the store about an alias, as keyError does.
func (s *Server) aliasError(c *call, a keyid.Account, name string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		if a != c.account() {
			return c.foreign()
		}
		return s.noAlias(a, name)
	}
	return err
}

func (s *Server) noAlias(a keyid.Account, name string) error {
	return kmsapi.New(kmsapi.NotFound, "Alias "+s.aliasARN(a, name)+" is not found.")
}

// UpdateAlias: the caller needs the operation on the alias's old key and on its new one; the state that counts is the new key's.
func (s *Server) updateAlias(ctx context.Context, c *call, in *aliasIn) (none, error) {
	name := *in.AliasName
	if err := checkAlias(name, func() error { return s.noAlias(c.account(), name) }); err != nil {
		return none{}, err
	}
	n, err := s.target(c, *in.TargetKeyId)
	if err != nil {
		return none{}, err
	}
	if err := s.permitAlias(c, name); err != nil {
		return none{}, err
	}
	from, limit := n, s.quotaOf(n.Account, quota.AliasesPerKey)
	err = s.store.UpdateAlias(ctx, n, name, limit, c.now, func(old, target *store.Key) error {
		if old != nil {
			from = old.KeyName
			if err := s.authorize(ctx, c, old); err != nil {
				return err
			}
		}
		if err := s.admit(ctx, c, target); err != nil {
			return err
		}
		if old != nil && (old.Usage != target.Usage || keyClass(old.Spec) != keyClass(target.Spec)) {
			return kmsapi.New(kmsapi.Validation, "Alias "+s.aliasARN(n.Account, name)+
				" can only be moved to a key of the same type and usage as its current one.")
		}
		return nil
	})
	s.publishKey(n, err)
	if from != n {
		s.publishKey(from, err)
	}
	s.publishAlias(n.Account, name, err)
	switch {
	case errors.Is(err, store.ErrNoTarget):
		return none{}, s.keyError(c, n, err)
	case errors.Is(err, store.ErrAliasLimit):
		return none{}, s.aliasLimit(n, limit)
	case err != nil:
		return none{}, s.aliasError(c, n.Account, name, err)
	}
	return none{}, nil
}

// keyClass is what an alias cannot cross: symmetric encryption keys, HMAC keys, asymmetric keys.
func keyClass(spec string) string {
	switch {
	case spec == kmsapi.SymmetricDefault:
		return "symmetric"
	case strings.HasPrefix(spec, "HMAC_"):
		return "HMAC"
	}
	return "asymmetric"
}

type deleteAliasIn struct{ AliasName *string }

func (in *deleteAliasIn) check(v *kmsapi.Violations) { checkAliasName(v, in.AliasName) }

func (s *Server) deleteAlias(ctx context.Context, c *call, in *deleteAliasIn) (none, error) {
	name := *in.AliasName
	if err := checkAlias(name, func() error { return s.noAlias(c.account(), name) }); err != nil {
		return none{}, err
	}
	if err := s.permitAlias(c, name); err != nil {
		return none{}, err
	}
	var from *store.KeyName
	err := s.store.DeleteAlias(ctx, s.region, c.account(), name, func(k *store.Key) error {
		from = &k.KeyName
		return s.admit(ctx, c, k)
	})
	if from != nil {
		s.publishKey(*from, err)
	}
	s.publishAlias(c.account(), name, err)
	if err != nil {
		return none{}, s.aliasError(c, c.account(), name, err)
	}
	return none{}, nil
}

type listAliasesIn struct {
	KeyId  *string
	Limit  *int32
	Marker *string
}

func (in *listAliasesIn) check(v *kmsapi.Violations) {
	checkLength(v, "keyId", in.KeyId, 1, kmsapi.KeyIDMax)
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitAliasesMax)
}

type aliasListEntry struct {
	AliasName       string
	AliasArn        string
	TargetKeyId     string
	CreationDate    timestamp
	LastUpdatedDate timestamp
}

type listAliasesOut struct {
	Aliases    []aliasListEntry
	NextMarker string `json:",omitempty"`
	Truncated  bool
}

// ListAliases lists the account's aliases, or those of one key, whose policy is not asked.
func (s *Server) listAliases(ctx context.Context, c *call, in *listAliasesIn) (listAliasesOut, error) {
	if err := c.permitAccount(c.action, "*"); err != nil {
		return listAliasesOut{}, err
	}
	p := page{operation: c.op.Name, account: c.account(), region: s.region}
	var key *store.Key
	if in.KeyId != nil {
		n, err := s.keyName(c, *in.KeyId)
		if err != nil {
			return listAliasesOut{}, err
		}
		if key, err = s.store.Key(ctx, n); err != nil {
			return listAliasesOut{}, s.keyError(c, n, err)
		}
		key.Wipe()
		p.filter = n.ID.String()
	}
	position, err := p.position(in.Marker)
	if err != nil {
		return listAliasesOut{}, err
	}
	if position != "" && !keyid.ValidAliasName([]byte(position)) {
		return listAliasesOut{}, kmsapi.E(kmsapi.InvalidMarker)
	}
	limit := pageSize(in.Limit, kmsapi.LimitAliasesDefault)
	var list []*store.Alias
	var more bool
	last := ""
	if key == nil {
		list, more, err = s.store.Aliases(ctx, s.region, c.account(), position, limit)
		if len(list) > 0 {
			last = list[len(list)-1].Name
		}
	} else {
		var names []string
		names, more = cut(key.Aliases, func(name string) string { return name }, position, limit)
		if len(names) > 0 {
			last = names[len(names)-1]
		}
		list, err = s.store.AliasesNamed(ctx, s.region, c.account(), names)
	}
	if err != nil {
		return listAliasesOut{}, err
	}
	out := listAliasesOut{Aliases: []aliasListEntry{}, Truncated: more}
	for _, a := range list {
		if key != nil && a.Target != key.ID {
			continue // moved to another key since the record was read
		}
		out.Aliases = append(out.Aliases, aliasListEntry{
			AliasName: a.Name, AliasArn: s.aliasARN(c.account(), a.Name), TargetKeyId: a.Target.String(),
			CreationDate: timestamp{a.Created}, LastUpdatedDate: timestamp{a.Updated},
		})
	}
	if more {
		out.NextMarker = p.marker(last)
	}
	return out, nil
}
