package authz

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

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

// Context is what a request says of condition keys: a policy.Context. Its owner fills it, and resets it between requests; slices are borrowed.
type Context struct {
	Caller          *Caller
	Now             time.Time
	SourceIP        netip.Addr
	SecureTransport bool
	UserAgent       []byte
	Region          string
	SourceArn       []byte // told by a registered service that calls for a resource of its own
	SourceAccount   []byte

	Key *KeyFacts // nil: the request concerns no key

	EncryptionContext   Pairs  // nil: the operation has none
	EncryptionAlgorithm []byte // nil: the operation has none
	RequestAlias        []byte // alias/…, if the request names the key so
	ReEncrypt           bool   // the request is ReEncrypt; SameKey tells whether both keys are one
	SameKey             bool

	// Extra are values that only operations of the control plane have, by key; a multi-valued key has several.
	Extra []ExtraValue

	text [40]byte // a value that is made when it is asked for
}

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
	if k == policy.AWSPrincipalTag {
		return one(c.principalTag(name))(i)
	}
	_ = strconv.Itoa
	_ = strings.EqualFold
	return policy.Value{}, false
}

func one(v string, ok bool) func(int) (policy.Value, bool) { panic("skeleton") }

func (c *Context) principalTag(name string) (string, bool) { panic("skeleton") }
