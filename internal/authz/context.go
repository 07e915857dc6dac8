package authz

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/bytesconv"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// KeyFacts is what conditions can ask about a KMS key. Immutable where it is a part of a snapshot.
type KeyFacts struct {
	Account            keyid.Account
	Spec, Usage        string
	Origin             string
	MultiRegion        bool
	MultiRegionKeyType string // PRIMARY, REPLICA; "" of a single-Region key
	Tags               []Tag
	Aliases            []string // "alias/…"
}

// Context is what a request says of condition keys: a policy.Context. Its owner fills it and resets it between requests; slices are borrowed.
type Context struct {
	Caller          *Caller
	Now             time.Time
	SourceIP        netip.Addr
	SecureTransport bool
	UserAgent       []byte
	Region          string
	SourceArn       []byte // told by a registered service that calls for a resource of its own; nil for none
	SourceAccount   []byte

	Owner keyid.Account // of the resource; Decide sets it
	Key   *KeyFacts     // nil: the request concerns no key

	EncryptionContext   Pairs  // nil: the operation has none
	EncryptionAlgorithm []byte // nil: the operation has none

	// Of operations with keys that are not for symmetric encryption; nil: the operation has none.
	SigningAlgorithm, MacAlgorithm, KeyAgreementAlgorithm, EncapsulationAlgorithm, MessageType, DataKeyPairSpec []byte

	RequestAlias []byte // alias/…, if the request names the key so
	ReEncrypt    bool   // the request is ReEncrypt; SameKey tells whether both keys are one
	SameKey      bool

	// Extra are values that only operations of the control plane have, by key; a multi-valued key has several.
	Extra []ExtraValue

	// Values that are made when they are asked for.
	made struct {
		ip                 [ipLen]byte
		now, epoch, issued [timeLen]byte
		caller, owner      [accountDigits]byte
	}
}

// Lengths of what is made.
const (
	ipLen         = len("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	timeLen       = len("2006-01-02T15:04:05Z")
	accountDigits = 12
)

// ExtraValue is one value of a condition key. Name is for keys that have a name of their own (aws:RequestTag).
type ExtraValue struct {
	Key   policy.Key
	Name  string
	Value string
}

// Reset empties the context.
func (c *Context) Reset() { *c = Context{} }

// resourceAliasesMax is the number of aliases above which kms:ResourceAliases says nothing (AWS KMS Developer Guide, "kms:ResourceAliases").
const resourceAliasesMax = 50

// Value answers what the request says of a condition key; see policy.Context.
func (c *Context) Value(k policy.Key, name string, i int) (policy.Value, bool) {
	switch k {
	case policy.KMSEncryptionContext:
		return c.contextValue(name, i)
	case policy.AWSPrincipalTag:
		return c.principalTag(name, i)
	case policy.AWSResourceTag:
		if c.Key != nil {
			return tag(c.Key.Tags, name, i)
		}
		return c.extra(k, name, i)
	case policy.KMSResourceAliases:
		if c.Key != nil && len(c.Key.Aliases) <= resourceAliasesMax && i < len(c.Key.Aliases) {
			return text(c.Key.Aliases[i]), true
		}
		return policy.Value{}, false
	case policy.KMSEncryptionContextKeys:
		if c.EncryptionContext != nil && i < c.EncryptionContext.Len() {
			key, _ := c.EncryptionContext.Pair(i)
			return policy.Value{Text: key}, true
		}
		return policy.Value{}, false
	}
	if i == 0 {
		if v, ok := c.single(k); ok {
			return v, true
		}
	}
	return c.extra(k, name, i)
}

// First is the first value of a condition key; see policy.Context.
func (c *Context) First(k policy.Key, name string, typed bool, v *policy.Value) (n int) {
	switch {
	case k == policy.KMSEncryptionContext:
		return c.firstOfContext(name, v)
	case typed && k == policy.AWSSourceIP && c.SourceIP.IsValid():
		*v = policy.Value{Addr: c.SourceIP}
		return 1
	case typed && k == policy.AWSCurrentTime:
		*v = policy.Value{Unix: c.Now.Unix(), Dated: true}
		return 1
	}
	var ok bool
	if *v, ok = c.Value(k, name, 0); !ok {
		return 0
	}
	if k.Several() {
		if _, ok = c.Value(k, name, 1); ok {
			return 2
		}
	}
	return 1
}

// single answers the keys that have one value at most and that every plane knows.
func (c *Context) single(k policy.Key) (policy.Value, bool) {
	w := c.Caller
	switch k {
	case policy.AWSPrincipalArn:
		if w.Kind != policy.Service {
			return present(w.PrincipalARN())
		}
	case policy.AWSPrincipalAccount:
		if w.Kind != policy.Service {
			return account(w.Account, &c.made.caller), true
		}
	case policy.AWSPrincipalType:
		switch w.Kind {
		case policy.Root:
			return text("Account"), true
		case policy.User:
			return text("User"), true
		case policy.AssumedRole:
			return text("AssumedRole"), true
		}
	case policy.AWSPrincipalIsAWSService:
		return truth(w.Kind == policy.Service), true
	case policy.AWSPrincipalServiceName:
		if w.Kind == policy.Service {
			return present(w.ARN)
		}
	case policy.AWSUserID:
		return present(w.UserID)
	case policy.AWSUsername:
		return present(w.UserName)
	case policy.AWSSourceIdentity:
		return present(w.Source)
	case policy.AWSSourceIP:
		if c.SourceIP.IsValid() {
			return policy.Value{Text: c.SourceIP.AppendTo(c.made.ip[:0]), Addr: c.SourceIP}, true
		}
	case policy.AWSSourceArn:
		return policy.Value{Text: c.SourceArn}, c.SourceArn != nil
	case policy.AWSSourceAccount:
		return policy.Value{Text: c.SourceAccount}, c.SourceAccount != nil
	case policy.AWSCalledVia, policy.AWSCalledViaFirst, policy.AWSCalledViaLast:
		return present(w.ViaName) // one service at most
	case policy.AWSViaAWSService:
		return truth(w.Via != ""), true
	case policy.AWSSecureTransport:
		return truth(c.SecureTransport), true
	case policy.AWSCurrentTime:
		return date(c.Now, &c.made.now), true
	case policy.AWSEpochTime:
		return policy.Value{Text: strconv.AppendInt(c.made.epoch[:0], c.Now.Unix(), 10)}, true
	case policy.AWSTokenIssueTime:
		if !w.TokenIssued.IsZero() {
			return date(w.TokenIssued, &c.made.issued), true
		}
	case policy.AWSMultiFactorAuthPresent:
		if !w.TokenIssued.IsZero() { // nobody can sign in with a second factor; long-term access keys do not have the key at all
			return truth(false), true
		}
	case policy.AWSRequestedRegion:
		return present(c.Region)
	case policy.AWSUserAgent:
		return policy.Value{Text: c.UserAgent}, c.UserAgent != nil
	case policy.AWSResourceAccount:
		return account(c.Owner, &c.made.owner), true
	case policy.KMSCallerAccount:
		if c.Key != nil && w.Kind != policy.Service {
			return account(w.Account, &c.made.caller), true
		}
	case policy.KMSViaService:
		if c.Key != nil {
			return present(w.Via)
		}
	case policy.KMSKeySpec, policy.KMSCustomerMasterKeySpec:
		if c.Key != nil {
			return present(c.Key.Spec)
		}
	case policy.KMSKeyUsage, policy.KMSCustomerMasterKeyUsage:
		if c.Key != nil {
			return present(c.Key.Usage)
		}
	case policy.KMSKeyOrigin:
		if c.Key != nil {
			return present(c.Key.Origin)
		}
	case policy.KMSMultiRegion:
		if c.Key != nil {
			return truth(c.Key.MultiRegion), true
		}
	case policy.KMSMultiRegionKeyType:
		if c.Key != nil {
			return present(c.Key.MultiRegionKeyType)
		}
	case policy.KMSRequestAlias:
		return policy.Value{Text: c.RequestAlias}, c.RequestAlias != nil
	case policy.KMSEncryptionAlgorithm:
		return policy.Value{Text: c.EncryptionAlgorithm}, c.EncryptionAlgorithm != nil
	case policy.KMSSigningAlgorithm:
		return policy.Value{Text: c.SigningAlgorithm}, c.SigningAlgorithm != nil
	case policy.KMSMessageType:
		return policy.Value{Text: c.MessageType}, c.MessageType != nil
	case policy.KMSMacAlgorithm:
		return policy.Value{Text: c.MacAlgorithm}, c.MacAlgorithm != nil
	case policy.KMSKeyAgreementAlgorithm:
		return policy.Value{Text: c.KeyAgreementAlgorithm}, c.KeyAgreementAlgorithm != nil
	case policy.KMSEncapsulationAlgorithm:
		return policy.Value{Text: c.EncapsulationAlgorithm}, c.EncapsulationAlgorithm != nil
	case policy.KMSDataKeyPairSpec:
		return policy.Value{Text: c.DataKeyPairSpec}, c.DataKeyPairSpec != nil
	case policy.KMSReEncryptOnSameKey:
		if c.ReEncrypt {
			return truth(c.SameKey), true
		}
	}
	return policy.Value{}, false
}

func text(s string) policy.Value { return policy.Value{Text: bytesconv.Bytes(s)} }

// present is the value s, absent where s is empty.
func present(s string) (policy.Value, bool) { return text(s), s != "" }

func truth(b bool) policy.Value {
	if b {
		return text("true")
	}
	return text("false")
}

// account is an account's ID, made in its place in c.made.
func account(a keyid.Account, made *[accountDigits]byte) policy.Value {
	return policy.Value{Text: a.Append(made[:0])}
}

// date is a time in whole seconds, its text made in its place in c.made.
func date(t time.Time, made *[timeLen]byte) policy.Value {
	return policy.Value{Text: t.UTC().AppendFormat(made[:0], time.RFC3339), Unix: t.Unix(), Dated: true}
}

func tag(tags []Tag, name string, i int) (policy.Value, bool) {
	for j := range tags {
		if strings.EqualFold(tags[j].Key, name) {
			if i == 0 {
				return text(tags[j].Value), true
			}
			i--
		}
	}
	return policy.Value{}, false
}

// principalTag is the session's tag, else the principal's.
func (c *Context) principalTag(name string, i int) (policy.Value, bool) {
	if v, ok := tag(c.Caller.Tags, name, 0); ok {
		return v, i == 0
	}
	s := c.Caller.Holder.Subject()
	if s == nil {
		return policy.Value{}, false
	}
	return tag(s.Tags, name, i)
}

// contextValue is the value of the pairs of the encryption context whose key is name without regard to case: usually one.
func (c *Context) contextValue(name string, i int) (policy.Value, bool) {
	if c.EncryptionContext == nil {
		return policy.Value{}, false
	}
	for j := range c.EncryptionContext.Len() {
		key, value := c.EncryptionContext.Pair(j)
		if strings.EqualFold(bytesconv.String(key), name) {
			if i == 0 {
				return policy.Value{Text: value}, true
			}
			i--
		}
	}
	return policy.Value{}, false
}

// firstOfContext is First of kms:EncryptionContext.
func (c *Context) firstOfContext(name string, v *policy.Value) (n int) {
	if c.EncryptionContext == nil {
		return 0
	}
	for j := range c.EncryptionContext.Len() {
		key, value := c.EncryptionContext.Pair(j)
		if !strings.EqualFold(bytesconv.String(key), name) {
			continue
		}
		if n == 1 {
			return 2
		}
		*v, n = policy.Value{Text: value}, 1
	}
	return n
}

func (c *Context) extra(k policy.Key, name string, i int) (policy.Value, bool) {
	for j := range c.Extra {
		e := &c.Extra[j]
		if e.Key == k && (e.Name == name || strings.EqualFold(e.Name, name)) {
			if i == 0 {
				return text(e.Value), true
			}
			i--
		}
	}
	return policy.Value{}, false
}
