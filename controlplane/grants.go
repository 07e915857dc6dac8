package controlplane

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/granttoken"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
)

type createGrantOut struct {
	GrantToken string
	GrantId    string
}

// CreateGrant. Whom a grant allowed to make grants makes such as hold no more than it: that is which grants count in the decision.
func (s *Server) createGrant(ctx context.Context, c *call, in *createGrantIn) (createGrantOut, error) {
	if err := in.whole(); err != nil {
		return createGrantOut{}, err
	}
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return createGrantOut{}, err
	}
	terms := in.terms()
	terms.ID = newGrantID()
	c.context.Extra, c.context.EncryptionContext = append(in.conditions(), c.forResource()...), constrained(&terms)
	made, err := s.store.CreateGrant(ctx, store.NewGrant{
		Key: n, Limit: s.quotaOf(n.Account, quota.GrantsPerKey), Dry: isTrue(in.DryRun), Done: s.publishMade,
		Decide: func(k *store.Key) (*store.Grant, string, error) {
			d, err := s.permit(ctx, c, c.action, k, func(g *authz.Grant) bool { return covers(g, &terms) })
			if err != nil {
				return nil, "", err
			}
			parent := ""
			if d.Reason == authz.AllowedByGrant {
				parent = d.Grant.ID
			}
			if err := checkTokens(in.GrantTokens); err != nil {
				return nil, "", err
			}
			if err := stateError(c.op.Name, s.state(k), s.keyARN(n)); err != nil {
				return nil, "", err
			}
			g := &store.Grant{Grant: terms, Name: deref(in.Name), Issuer: c.account(), Created: c.now}
			if err := suits(&terms, k.Spec, k.Usage); err != nil {
				return nil, "", err
			}
			if g.Grantee, err = s.party(in.GranteePrincipal, in.GranteeServicePrincipal); err != nil {
				return nil, "", err
			}
			if g.Retiring, err = s.party(in.RetiringPrincipal, in.RetiringServicePrincipal); err != nil {
				return nil, "", err
			}
			return g, parent, nil
		},
	})
	switch {
	case errors.Is(err, store.ErrGrantLimit):
		return createGrantOut{}, kmsapi.New(kmsapi.LimitExceeded, "The key "+s.keyARN(n)+" has reached the limit of grants.")
	case errors.Is(err, store.ErrGranteeLimit):
		return createGrantOut{}, kmsapi.New(kmsapi.LimitExceeded, "The grants on the key "+s.keyARN(n)+" to this grantee would be too large together.")
	case err != nil:
		return createGrantOut{}, s.keyError(c, n, err)
	case isTrue(in.DryRun):
		return createGrantOut{}, kmsapi.E(kmsapi.DryRunOperation)
	}
	return createGrantOut{GrantToken: newToken(made), GrantId: made.ID}, nil
}

func newGrantID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func newToken(g *store.Grant) string {
	t := granttoken.Token{Account: g.Key.Account, Key: g.Key.ID}
	hex.Decode(t.Grant[:], []byte(g.ID)) // the store keeps no other form
	var salt [16]byte
	rand.Read(salt[:])
	return string(granttoken.Append(nil, &t, salt))
}

// checkTokens refuses what is no grant token. What one says is not looked at: every grant counts as soon as it is made, with or without its
// token, and those of other keys and principals are ignored.
func checkTokens(tokens []*string) error {
	for _, t := range tokens {
		if _, ok := granttoken.Parse([]byte(*t)); !ok {
			return kmsapi.E(kmsapi.InvalidGrantToken)
		}
	}
	return nil
}

// publishMade tells the data plane of a grant that was made, or was there already.
func (s *Server) publishMade(g *store.Grant, err error) {
	if err != nil {
		s.publishGrants(g, err)
		return
	}
	s.publisher.GrantMade(g.Key.Account, g.Key.ID, g.Grantee.ID, &g.Grant)
}

// publishRemoved tells the data plane of a grant that was removed.
func (s *Server) publishRemoved(g *store.Grant, err error) {
	if err != nil {
		s.publishGrants(g, err)
		return
	}
	s.publisher.GrantRemoved(g.Key.Account, g.Key.ID, g.Grantee.ID, g.ID)
}

// publishGrants tells the data plane that the grants to somebody may have changed.
func (s *Server) publishGrants(g *store.Grant, err error) {
	n, grantee := g.Key, g.Grantee.ID
	s.publish(unsettledGrants(n)+grantee, err, func() { s.publisher.GrantsChanged(n.Account, n.ID, grantee) })
}

// unsettledGrants is what the names of changes of a key's grants begin with; the grantee follows.
func unsettledGrants(n store.KeyName) string {
	return "grant/" + n.Account.String() + "/" + n.ID.String() + "/"
}

// party resolves whom a grant names: a principal by its ARN, who has to exist, or a service by its name, which has to be registered; nobody if neither is given.
func (s *Server) party(arn, service *string) (store.Party, error) {
	switch {
	case service != nil:
		id := strings.ToLower(*service)
		if !s.principals.IsService(id) {
			return store.Party{}, noPrincipal(*service)
		}
		return store.Party{ID: id, Shown: *service, Service: true}, nil
	case arn == nil:
		return store.Party{}, nil
	}
	id, ok := s.principals.Bind(*arn)
	if !ok {
		return store.Party{}, noPrincipal(*arn)
	}
	if strings.HasPrefix(*arn, "arn:"+s.partition+":sts:") { // a role's session: Bind gives its role
		id += ":" + (*arn)[strings.LastIndexByte(*arn, '/')+1:]
	}
	return store.Party{ID: id, Shown: *arn}, nil
}

func noPrincipal(arn string) error {
	return kmsapi.New(kmsapi.InvalidArn, "ARN does not refer to a valid principal: "+arn)
}

type listGrantsIn struct {
	Limit                   *int32
	Marker                  *string
	KeyId                   *string
	GrantId                 *string
	GranteePrincipal        *string
	GranteeServicePrincipal *string
}

func (in *listGrantsIn) check(v *kmsapi.Violations) {
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitGrantsMax)
	checkKeyID(v, "keyId", in.KeyId)
	checkLength(v, "grantId", in.GrantId, 1, kmsapi.GrantIDMax)
	checkPrincipal(v, "granteePrincipal", in.GranteePrincipal)
	checkServicePrincipal(v, "granteeServicePrincipal", in.GranteeServicePrincipal)
}

type grantConstraintsOut struct {
	EncryptionContextSubset map[string]string `json:",omitzero"`
	EncryptionContextEquals map[string]string `json:",omitzero"`
	SourceArn               string            `json:",omitempty"`
}

type grantListEntry struct {
	KeyId                    string
	GrantId                  string
	Name                     string
	CreationDate             timestamp
	GranteePrincipal         string `json:",omitempty"`
	RetiringPrincipal        string `json:",omitempty"`
	IssuingAccount           string
	Operations               []string
	Constraints              *grantConstraintsOut `json:",omitzero"`
	GranteeServicePrincipal  string               `json:",omitempty"`
	RetiringServicePrincipal string               `json:",omitempty"`
}

type listGrantsOut struct {
	Grants     []grantListEntry
	NextMarker string `json:",omitempty"`
	Truncated  bool
}

func (s *Server) grantEntry(g *store.Grant) grantListEntry {
	e := grantListEntry{
		KeyId: s.keyARN(g.Key), GrantId: g.ID, Name: g.Name, CreationDate: timestamp{g.Created},
		IssuingAccount: "arn:" + s.partition + ":iam::" + g.Issuer.String() + ":root", Operations: g.Operations.Names(),
	}
	if g.Grantee.Service {
		e.GranteeServicePrincipal = g.Grantee.Shown
	} else {
		e.GranteePrincipal = g.Grantee.Shown
	}
	if g.Retiring.Service {
		e.RetiringServicePrincipal = g.Retiring.Shown
	} else {
		e.RetiringPrincipal = g.Retiring.Shown
	}
	if g.HasEquals || g.HasSubset || g.SourceARN != "" {
		e.Constraints = &grantConstraintsOut{SourceArn: g.SourceARN}
		if g.HasEquals {
			e.Constraints.EncryptionContextEquals = pairMap(g.Equals)
		}
		if g.HasSubset {
			e.Constraints.EncryptionContextSubset = pairMap(g.Subset)
		}
	}
	return e
}

func pairMap(pairs []authz.Pair) map[string]string {
	m := make(map[string]string, len(pairs))
	for _, p := range pairs {
		m[string(p.Key)] = string(p.Value)
	}
	return m
}

const (
	// grantsChunk is how many grants are read at a time where a filter may leave few of them, grantsScan how many at most in one request; a page
	// can then be short, and say that there are more.
	grantsChunk = 1000
	grantsScan  = 10_000
)

// ListGrants lists a key's grants in the order of their IDs.
func (s *Server) listGrants(ctx context.Context, c *call, in *listGrantsIn) (listGrantsOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return listGrantsOut{}, err
	}
	c.context.Extra = c.forResource()
	k, err := s.view(ctx, c, n)
	if err != nil {
		return listGrantsOut{}, err
	}
	k.Wipe()
	if in.GranteeServicePrincipal != nil && c.principal().Kind != policy.Service {
		return listGrantsOut{}, kmsapi.New(kmsapi.Validation, "GranteeServicePrincipal can be used by service principals only.")
	}
	if in.GrantId != nil && !store.ValidGrantID(*in.GrantId) {
		return listGrantsOut{}, noGrantID(*in.GrantId)
	}
	p := page{operation: c.op.Name, account: n.Account, region: s.region, filter: strings.Join(
		[]string{n.ID.String(), deref(in.GrantId), deref(in.GranteePrincipal), deref(in.GranteeServicePrincipal)}, " ")}
	position, err := p.position(in.Marker)
	if err != nil {
		return listGrantsOut{}, err
	}
	if position != "" && !store.ValidGrantID(position) {
		return listGrantsOut{}, kmsapi.E(kmsapi.InvalidMarker)
	}
	out := listGrantsOut{Grants: []grantListEntry{}}
	matches := func(g *store.Grant) bool {
		return (in.GranteePrincipal == nil || !g.Grantee.Service && g.Grantee.Shown == *in.GranteePrincipal) &&
			(in.GranteeServicePrincipal == nil || g.Grantee.Service && strings.EqualFold(g.Grantee.Shown, *in.GranteeServicePrincipal))
	}
	if in.GrantId != nil {
		g, err := s.store.Grant(ctx, n, *in.GrantId)
		if err != nil && !errors.Is(err, store.ErrNoGrant) {
			return listGrantsOut{}, err
		}
		if err == nil && matches(g) && g.ID > position {
			out.Grants = append(out.Grants, s.grantEntry(g))
		}
		return out, nil
	}
	limit, filtered := pageSize(in.Limit, kmsapi.LimitGrantsDefault), in.GranteePrincipal != nil || in.GranteeServicePrincipal != nil
	more := true
	for scanned := 0; more && len(out.Grants) < limit && scanned < grantsScan; {
		chunk := limit - len(out.Grants)
		if filtered {
			chunk = grantsChunk
		}
		var list []*store.Grant
		if list, more, err = s.store.KeyGrants(ctx, n, position, chunk); err != nil {
			return listGrantsOut{}, err
		}
		scanned += len(list)
		for i, g := range list {
			position = g.ID
			if !matches(g) {
				continue
			}
			if out.Grants = append(out.Grants, s.grantEntry(g)); len(out.Grants) == limit {
				more = more || i+1 < len(list)
				break
			}
		}
	}
	if out.Truncated = more; more {
		out.NextMarker = p.marker(position)
	}
	return out, nil
}

type listRetirableGrantsIn struct {
	Limit                    *int32
	Marker                   *string
	RetiringPrincipal        *string
	RetiringServicePrincipal *string
}

func (in *listRetirableGrantsIn) check(v *kmsapi.Violations) {
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitGrantsMax)
	checkPrincipal(v, "retiringPrincipal", in.RetiringPrincipal)
	checkServicePrincipal(v, "retiringServicePrincipal", in.RetiringServicePrincipal)
}

// ListRetirableGrants lists the grants that a principal of the caller's account may retire, on keys of any account. The permission is one on
// the principal; no key is asked.
func (s *Server) listRetirableGrants(ctx context.Context, c *call, in *listRetirableGrantsIn) (listGrantsOut, error) {
	if (in.RetiringPrincipal == nil) == (in.RetiringServicePrincipal == nil) {
		return listGrantsOut{}, kmsapi.New(kmsapi.Validation, "You must specify either RetiringPrincipal or RetiringServicePrincipal.")
	}
	if in.RetiringServicePrincipal != nil { // is no principal of an account
		return listGrantsOut{}, c.foreign()
	}
	account, ok := accountOf(*in.RetiringPrincipal)
	if !ok {
		return listGrantsOut{}, noPrincipal(*in.RetiringPrincipal)
	}
	if account != c.account() {
		return listGrantsOut{}, c.foreign()
	}
	if err := c.permitAccount(c.action, *in.RetiringPrincipal); err != nil {
		return listGrantsOut{}, err
	}
	retiring, err := s.party(in.RetiringPrincipal, nil)
	if err != nil {
		return listGrantsOut{}, err
	}
	p := page{operation: c.op.Name, account: c.account(), region: s.region, filter: retiring.ID}
	position, err := p.position(in.Marker)
	if err != nil {
		return listGrantsOut{}, err
	}
	if position != "" && !store.ValidRetirable(position) {
		return listGrantsOut{}, kmsapi.E(kmsapi.InvalidMarker)
	}
	out := listGrantsOut{Grants: []grantListEntry{}}
	limit, more := pageSize(in.Limit, kmsapi.LimitGrantsDefault), true
	for scanned := 0; more && len(out.Grants) < limit && scanned < grantsScan; { // entries of keys that were deleted make a part short
		var list []*store.Grant
		var looked int
		list, position, looked, more, err = s.store.RetirableGrants(ctx, s.region, retiring.ID, position, limit-len(out.Grants))
		if err != nil {
			return listGrantsOut{}, err
		}
		scanned += looked
		for _, g := range list {
			out.Grants = append(out.Grants, s.grantEntry(g))
		}
	}
	if out.Truncated = more; more {
		out.NextMarker = p.marker(position)
	}
	return out, nil
}

// accountOf is the account in a principal's ARN.
func accountOf(arn string) (keyid.Account, bool) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" {
		return 0, false
	}
	return keyid.ParseAccount([]byte(parts[4]))
}

type retireGrantIn struct {
	GrantToken *string
	KeyId      *string
	GrantId    *string
	DryRun     *bool
}

func (in *retireGrantIn) check(v *kmsapi.Violations) {
	checkLength(v, "grantToken", in.GrantToken, 1, kmsapi.GrantTokenMax)
	checkLength(v, "keyId", in.KeyId, 1, kmsapi.KeyIDMax)
	checkLength(v, "grantId", in.GrantId, 1, kmsapi.GrantIDMax)
}

// named finds which grant is meant.
func (in *retireGrantIn) named(s *Server, c *call) (store.KeyName, string, error) {
	switch {
	case in.GrantToken != nil && in.KeyId == nil && in.GrantId == nil:
		t, ok := granttoken.Parse([]byte(*in.GrantToken))
		if !ok {
			return store.KeyName{}, "", kmsapi.E(kmsapi.InvalidGrantToken)
		}
		return store.KeyName{Region: s.region, Account: t.Account, ID: t.Key}, t.GrantID(), nil
	case in.GrantToken != nil || in.KeyId == nil || in.GrantId == nil:
		return store.KeyName{}, "", kmsapi.New(kmsapi.Validation, "You must specify either GrantToken, or KeyId and GrantId.")
	}
	ref, err := s.reference(c, *in.KeyId, false)
	if err != nil {
		return store.KeyName{}, "", err
	}
	if ref.Kind != keyid.KeyARN {
		return store.KeyName{}, "", kmsapi.New(kmsapi.InvalidArn, string(keyid.BadARN.AppendMessage(nil, []byte(*in.KeyId))))
	}
	if !store.ValidGrantID(*in.GrantId) {
		return store.KeyName{}, "", noGrantID(*in.GrantId)
	}
	return store.KeyName{Region: s.region, Account: ref.Account, ID: ref.ID}, *in.GrantId, nil
}

// RetireGrant: the grant itself says who may.
func (s *Server) retireGrant(ctx context.Context, c *call, in *retireGrantIn) (none, error) {
	n, id, err := in.named(s, c)
	if err != nil {
		return none{}, err
	}
	c.grant, c.named = id, resource{s.keyARN(n), n.Account}
	return none{}, s.removeGrant(ctx, c, n, id, in.DryRun, func(k *store.Key, g *store.Grant) error {
		if g == nil {
			if n.Account != c.account() {
				return c.foreign()
			}
			return nil
		}
		return s.permitRetiring(c, k, g)
	})
}

// permitRetiring decides about RetireGrant: it is the retiring principal's, the grantee's if the grant has the operation, and the issuing
// account's, which leaves it to its identity policies. No policy can give it, and every policy can deny it.
func (s *Server) permitRetiring(c *call, k *store.Key, g *store.Grant) error {
	facts := k.Facts()
	c.touchKey(s.keyARN(k.KeyName), k.Account)
	c.context.Key, c.context.Owner, c.context.EncryptionContext = &facts, k.Account, constrained(&g.Grant)
	q := &authz.Question{
		Caller: c.principal(), Action: c.action, Resource: []byte(s.keyARN(k.KeyName)), Owner: k.Account, Policy: new(policy.Policy),
		Grants: retirers{g},
	}
	if q.Caller != nil {
		r := s.keyPolicy(k).Evaluate(&policy.Request{
			Action: c.action.Name, Code: c.action.Code, Resource: q.Resource, Principal: &q.Caller.Principal, Context: &c.context, Scratch: &c.scratch,
		})
		switch {
		case r.Deny != 0 && q.Caller.Account != k.Account:
			return c.foreign()
		case r.Deny != 0:
			return c.refuse(q, &authz.Decision{Reason: authz.DeniedByKeyPolicy})
		}
	}
	_, err := c.decide(q)
	return err
}

// retirers are those who may retire a grant, as if each had a grant to do it.
type retirers struct{ g *store.Grant }

func (r retirers) Grants(name string) (*authz.GrantSet, error) {
	g := r.g
	if name == g.Retiring.ID || name == g.Issuer.String() || name == g.Grantee.ID && g.Operations&authz.OpRetireGrant != 0 {
		return authz.NewGrantSet([]authz.Grant{{ID: g.ID, Operations: authz.OpRetireGrant}}), nil
	}
	return nil, nil
}

type revokeGrantIn struct {
	KeyId   *string
	GrantId *string
	DryRun  *bool
}

func (in *revokeGrantIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	if in.GrantId == nil {
		v.Null("grantId")
	}
	checkLength(v, "grantId", in.GrantId, 1, kmsapi.GrantIDMax)
}

// RevokeGrant is for those whom the key's policy lets.
func (s *Server) revokeGrant(ctx context.Context, c *call, in *revokeGrantIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	if !store.ValidGrantID(*in.GrantId) {
		return none{}, noGrantID(*in.GrantId)
	}
	c.context.Extra = c.forResource()
	return none{}, s.removeGrant(ctx, c, n, *in.GrantId, in.DryRun, func(k *store.Key, _ *store.Grant) error { return s.authorize(ctx, c, k) })
}

// removeGrant is what RetireGrant and RevokeGrant have in common: all but who may.
func (s *Server) removeGrant(ctx context.Context, c *call, n store.KeyName, id string, dry *bool, may func(*store.Key, *store.Grant) error) error {
	_, err := s.store.RemoveGrant(ctx, store.OldGrant{Key: n, ID: id, Dry: isTrue(dry), Done: s.publishRemoved,
		Allow: func(k *store.Key, g *store.Grant) error {
			if err := may(k, g); err != nil {
				return err
			}
			return stateError(c.op.Name, s.state(k), s.keyARN(n))
		},
	})
	switch {
	case errors.Is(err, store.ErrNoGrant):
		// It may be the retry of a request whose outcome was not known: the removal was applied since, and the data plane may have read the grant
		// in between. Who is told that there is no grant has to find that nobody uses it.
		s.publishUnsettled(unsettledGrants(n))
		return kmsapi.New(kmsapi.NotFound, "Grant ID "+id+" is not found.")
	case err != nil:
		return s.keyError(c, n, err)
	case isTrue(dry):
		return kmsapi.E(kmsapi.DryRunOperation)
	}
	return nil
}

func noGrantID(id string) error {
	return kmsapi.New(kmsapi.InvalidGrantID, "Invalid grant ID "+id)
}

func isTrue(b *bool) bool { return b != nil && *b }
