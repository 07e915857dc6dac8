package authztest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// Product is package authz with the policies and grants of one World.
type Product struct {
	caller    *authz.Caller
	subject   *authz.Subject
	keyPolicy *policy.Policy
	grants    grants
	scratch   policy.Scratch
	context   authz.Context
}

type grants map[string]*authz.GrantSet

func (g grants) Grants(grantee string) (*authz.GrantSet, error) { return g[grantee], nil }

// NewProduct compiles w. An error says that a document is malformed.
func NewProduct(w *World) (*Product, error) {
	c := &w.Caller
	account, ok := keyid.ParseAccount([]byte(c.Account))
	if !ok {
		panic("authztest: account " + c.Account)
	}
	p := &Product{grants: grants{}}
	principal := policy.Principal{Account: account, ARN: c.ARN, RoleARN: c.RoleARN, ID: c.ID}
	p.caller = &authz.Caller{Tags: tags(c.SessionTags), Source: c.Source, Via: c.Via, ViaName: withoutRegion(c.Via)}
	switch c.Kind {
	case Root:
		principal.Kind, p.caller.UserID = policy.Root, c.ID
		p.caller.Grantees = [3]string{"", "", c.Account}
	case User:
		principal.Kind, p.caller.UserID, p.caller.UserName = policy.User, c.ID, c.Name
		p.caller.Grantees = [3]string{c.ID, "", c.Account}
	case AssumedRole:
		principal.Kind, p.caller.UserID = policy.AssumedRole, c.ID+":"+c.Name
		p.caller.Grantees = [3]string{c.ID + ":" + c.Name, c.ID, c.Account}
	case Service:
		principal.Kind = policy.Service
		p.caller.Grantees = [3]string{c.ARN}
	default:
		panic("authztest: kind " + c.Kind)
	}
	p.caller.Principal = principal
	p.caller.TokenIssued, _ = time.Parse(time.RFC3339, c.TokenIssued)

	p.subject = &authz.Subject{Principal: principal, Name: c.Name, Tags: tags(c.Tags)}
	if c.Kind == AssumedRole {
		p.subject.ARN = ""
		_, p.subject.Name, _ = strings.Cut(c.RoleARN, "role/")
	}
	p.caller.Holder = authz.NewHolder(p.subject)
	if c.Deleted {
		p.caller.Holder = authz.NewHolder(nil)
	}

	var err error
	if w.KeyPolicy != nil {
		if p.keyPolicy, err = policy.Parse(w.KeyPolicy, policy.KeyPolicy, w.boundID); err != nil {
			return nil, fmt.Errorf("%s: %w", w.KeyPolicy, err)
		}
	}
	if w.Boundary != nil {
		if p.subject.Boundary, err = policy.Parse(w.Boundary, policy.IdentityPolicy, nil); err != nil {
			return nil, fmt.Errorf("%s: %w", w.Boundary, err)
		}
	}
	for _, raw := range w.Identity {
		d, err := policy.Parse(raw, policy.IdentityPolicy, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", raw, err)
		}
		p.subject.Identity = append(p.subject.Identity, d)
	}
	for _, raw := range w.Session {
		d, err := policy.Parse(raw, policy.IdentityPolicy, nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", raw, err)
		}
		p.caller.Session = append(p.caller.Session, d)
	}
	for i := range w.Grants {
		g := &w.Grants[i]
		name := w.granteeName(g)
		p.grants[name] = p.grants[name].With(authz.Grant{
			ID:         grantID(i),
			Operations: operations(g.Operations),
			Equals:     pairs(g.Equals), HasEquals: g.Equals != nil,
			Subset: pairs(g.Subset), HasSubset: g.Subset != nil,
			SourceARN: g.SourceARN,
		})
	}
	return p, nil
}

// grantID is the ID of a World's grant by its position.
func grantID(i int) string { return fmt.Sprintf("%064x", i+1) }

// granteeName is the name that a grant to its grantee is kept under.
func (w *World) granteeName(g *Grant) string {
	id := g.GranteeID
	if id == "" {
		id = w.presentID(g.Grantee)
	}
	switch {
	case !strings.HasPrefix(g.Grantee, "arn:"):
		return g.Grantee
	case strings.Contains(g.Grantee, ":assumed-role/"):
		return id + ":" + g.Grantee[strings.LastIndexByte(g.Grantee, '/')+1:]
	}
	return id
}

// Decide puts r to package authz. The decision is valid until the next.
func (p *Product) Decide(r *Request) authz.Decision {
	q, _ := p.question(r)
	d, err := authz.Decide(q)
	if err != nil {
		panic(err)
	}
	return d
}

// question is r as package authz is asked it, and as each policy is.
func (p *Product) question(r *Request) (*authz.Question, *policy.Request) {
	owner, ok := keyid.ParseAccount([]byte(r.Owner))
	action := authz.Actions[strings.TrimPrefix(r.Action, "kms:")]
	if !ok || action == nil {
		panic("authztest: owner " + r.Owner + ", action " + r.Action)
	}
	x := &p.context
	x.Reset()
	x.Caller = p.caller
	x.Now, _ = time.Parse(time.RFC3339, r.Now)
	x.SourceIP, _ = netip.ParseAddr(r.SourceIP)
	x.SecureTransport = !r.Plain
	x.UserAgent = text(r.UserAgent)
	x.Region, x.Owner = r.Region, owner
	x.SourceArn, x.SourceAccount = text(r.SourceARN), text(r.SourceAccount)
	if k := r.Key; k != nil {
		x.Key = &authz.KeyFacts{Account: owner, Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, MultiRegion: k.MultiRegion,
			MultiRegionKeyType: k.MultiRegionKeyType, Tags: tags(k.Tags), Aliases: k.Aliases}
	}
	if r.EncryptionContext != nil {
		x.EncryptionContext = pairList(pairs(r.EncryptionContext))
	}
	x.EncryptionAlgorithm = text(r.EncryptionAlgorithm)
	x.RequestAlias = text(r.RequestAlias)
	x.ReEncrypt, x.SameKey = r.ReEncrypt, r.SameKey
	for _, e := range r.Extra {
		k, ok := extraKeys[e.Key]
		name := ""
		if !ok {
			i := strings.LastIndexAny(e.Key, ":/")
			k, name = extraKeys[e.Key[:i+1]], e.Key[i+1:]
		}
		if k == policy.UnknownKey {
			panic("authztest: key " + e.Key)
		}
		x.Extra = append(x.Extra, authz.ExtraValue{Key: k, Name: name, Value: e.Value})
	}
	q := &authz.Question{Caller: p.caller, Action: action, Resource: []byte(r.Resource), Owner: owner, Policy: p.keyPolicy, Alone: p.keyPolicy == nil, Context: x,
		Scratch: &p.scratch}
	if len(p.grants) > 0 {
		q.Grants = p.grants
	}
	return q, &policy.Request{Action: action.Name, Code: action.Code, Resource: q.Resource, Principal: &p.caller.Principal, Context: x, Scratch: &p.scratch}
}

// extraKeys are the condition keys that Extra may have.
var extraKeys = map[string]policy.Key{
	"aws:RequestTag/":                            policy.AWSRequestTag,
	"aws:TagKeys":                                policy.AWSTagKeys,
	"aws:SourceVpc":                              policy.AWSSourceVpc,
	"aws:SourceVpce":                             policy.AWSSourceVpce,
	"kms:BypassPolicyLockoutSafetyCheck":         policy.KMSBypassPolicyLockoutSafetyCheck,
	"kms:KeySpec":                                policy.KMSKeySpec,
	"kms:KeyUsage":                               policy.KMSKeyUsage,
	"kms:KeyOrigin":                              policy.KMSKeyOrigin,
	"kms:SigningAlgorithm":                       policy.KMSSigningAlgorithm,
	"kms:MessageType":                            policy.KMSMessageType,
	"kms:MacAlgorithm":                           policy.KMSMacAlgorithm,
	"kms:KeyAgreementAlgorithm":                  policy.KMSKeyAgreementAlgorithm,
	"kms:EncapsulationAlgorithm":                 policy.KMSEncapsulationAlgorithm,
	"kms:DataKeyPairSpec":                        policy.KMSDataKeyPairSpec,
	"kms:GrantConstraintType":                    policy.KMSGrantConstraintType,
	"kms:GrantConstraintSourceArn":               policy.KMSGrantConstraintSourceArn,
	"kms:GrantOperations":                        policy.KMSGrantOperations,
	"kms:GranteePrincipal":                       policy.KMSGranteePrincipal,
	"kms:RetiringPrincipal":                      policy.KMSRetiringPrincipal,
	"kms:GranteeServicePrincipal":                policy.KMSGranteeServicePrincipal,
	"kms:RetiringServicePrincipal":               policy.KMSRetiringServicePrincipal,
	"kms:GrantIsForAWSResource":                  policy.KMSGrantIsForAWSResource,
	"kms:ExpirationModel":                        policy.KMSExpirationModel,
	"kms:ValidTo":                                policy.KMSValidTo,
	"kms:WrappingAlgorithm":                      policy.KMSWrappingAlgorithm,
	"kms:WrappingKeySpec":                        policy.KMSWrappingKeySpec,
	"kms:RotationPeriodInDays":                   policy.KMSRotationPeriodInDays,
	"kms:ScheduleKeyDeletionPendingWindowInDays": policy.KMSScheduleKeyDeletionPendingWindowInDays,
	"kms:TrailingDaysWithoutKeyUsage":            policy.KMSTrailingDaysWithoutKeyUsage,
	"kms:PrimaryRegion":                          policy.KMSPrimaryRegion,
	"kms:ReplicaRegion":                          policy.KMSReplicaRegion,
	"kms:RecipientAttestation:":                  policy.KMSRecipientAttestation,
}

// pairList is an encryption context.
type pairList []authz.Pair

func (p pairList) Len() int                       { return len(p) }
func (p pairList) Pair(i int) (key, value []byte) { return p[i].Key, p[i].Value }

func pairs(m map[string]string) []authz.Pair {
	var p []authz.Pair
	for _, k := range slices.Sorted(maps.Keys(m)) {
		p = append(p, authz.Pair{Key: []byte(k), Value: []byte(m[k])})
	}
	return p
}

func tags(list []Tag) []authz.Tag {
	var t []authz.Tag
	for _, e := range list {
		t = append(t, authz.Tag(e))
	}
	return t
}

func text(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

func operations(names []string) (o authz.Operations) {
	for _, n := range names {
		o |= authz.ParseOperation(n)
	}
	return o
}

// reasonNames are authz.Reason by name.
var reasonNames = map[authz.Reason]string{
	authz.AllowedByKeyPolicy: "AllowedByKeyPolicy", authz.AllowedByIdentityPolicy: "AllowedByIdentityPolicy",
	authz.AllowedByGrant: "AllowedByGrant", authz.AllowedToRoot: "AllowedToRoot",
	authz.DeniedByKeyPolicy: "DeniedByKeyPolicy", authz.DeniedByIdentityPolicy: "DeniedByIdentityPolicy",
	authz.DeniedByBoundary: "DeniedByBoundary", authz.DeniedBySessionPolicy: "DeniedBySessionPolicy",
	authz.NoKeyPolicyAllows: "NoKeyPolicyAllows", authz.NoIdentityPolicyAllows: "NoIdentityPolicyAllows",
	authz.NoBoundaryAllows: "NoBoundaryAllows", authz.NoSessionPolicyAllows: "NoSessionPolicyAllows", authz.NotAbroad: "NotAbroad",
}

// Reasons are the names of all reasons.
var Reasons = slices.Sorted(maps.Values(reasonNames))

// ReasonName is the name of a reason.
func ReasonName(r authz.Reason) string { return reasonNames[r] }
