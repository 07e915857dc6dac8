package controlplane

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

type grantConstraintsIn struct {
	EncryptionContextSubset map[string]*string
	EncryptionContextEquals map[string]*string
	SourceArn               *string
}

type createGrantIn struct {
	KeyId                    *string
	GranteePrincipal         *string
	RetiringPrincipal        *string
	Operations               []*string
	Constraints              *grantConstraintsIn
	GrantTokens              []*string
	Name                     *string
	DryRun                   *bool
	GranteeServicePrincipal  *string
	RetiringServicePrincipal *string
}

// grantOperations is the enum GrantOperation, as in the service model.
var grantOperations = ^authz.Operations(0)

func (in *createGrantIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkPrincipal(v, "granteePrincipal", in.GranteePrincipal)
	checkPrincipal(v, "retiringPrincipal", in.RetiringPrincipal)
	if in.Operations == nil {
		v.Null("operations")
	}
	for i, op := range in.Operations {
		path := "operations." + strconv.Itoa(i+1) + ".member"
		if op == nil {
			v.Null(path)
		}
		checkEnum(v, path, op, grantOperations.Names())
	}
	if k := in.Constraints; k != nil {
		checkContext(v, "constraints.encryptionContextSubset", k.EncryptionContextSubset)
		checkContext(v, "constraints.encryptionContextEquals", k.EncryptionContextEquals)
		checkLength(v, "constraints.sourceArn", k.SourceArn, kmsapi.SourceArnMin, kmsapi.SourceArnMax)
		if k.SourceArn != nil && !isSourceARN(*k.SourceArn) {
			v.Pattern("constraints.sourceArn", []byte(*k.SourceArn), "^arn:aws[a-z0-9-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]{12}:.+$")
		}
	}
	checkGrantTokens(v, in.GrantTokens)
	checkLength(v, "name", in.Name, 1, kmsapi.GrantNameMax)
	checkPattern(v, "name", in.Name, "^[a-zA-Z0-9:/_-]+$", func(r rune) bool { return isWord(r) || strings.ContainsRune(":/-", r) })
	checkServicePrincipal(v, "granteeServicePrincipal", in.GranteeServicePrincipal)
	checkServicePrincipal(v, "retiringServicePrincipal", in.RetiringServicePrincipal)
}

func checkPrincipal(v *kmsapi.Violations, path string, s *string) {
	checkLength(v, path, s, 1, kmsapi.PrincipalMax)
	checkPattern(v, path, s, `^[\w+=,.@:/-]+$`, func(r rune) bool { return isWord(r) || strings.ContainsRune("+=,.@:/-", r) })
}

func checkServicePrincipal(v *kmsapi.Violations, path string, s *string) {
	checkLength(v, path, s, 1, kmsapi.ServicePrincipalMax)
	if s != nil && !isServicePrincipal(*s) {
		v.Pattern(path, []byte(*s), `^([A-Za-z0-9\-]+)\.([A-Za-z0-9\-]+)(\.[A-Za-z0-9\-]+)+$`)
	}
}

// isServicePrincipal is for names such as s3.amazonaws.com: three labels or more.
func isServicePrincipal(s string) bool {
	labels := strings.Split(s, ".")
	for _, l := range labels {
		if l == "" || strings.ContainsFunc(l, func(r rune) bool { return !isWord(r) && r != '-' || r == '_' }) {
			return false
		}
	}
	return len(labels) >= 3
}

func isSourceARN(s string) bool {
	parts := strings.SplitN(s, ":", 6)
	lower := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' }
	not := func(s string, ok func(rune) bool) bool {
		return strings.ContainsFunc(s, func(r rune) bool { return !ok(r) })
	}
	if len(parts) != 6 || parts[0] != "arn" {
		return false
	}
	partition, aws := strings.CutPrefix(parts[1], "aws")
	digit := func(r rune) bool { return r >= '0' && r <= '9' }
	return aws && !not(partition, lower) && parts[2] != "" && !not(parts[2], lower) && !not(parts[3], lower) && len(parts[4]) == 12 &&
		!not(parts[4], digit) && parts[5] != "" && !strings.ContainsAny(parts[5], "\n\r\u0085\u2028\u2029")
}

func checkContext(v *kmsapi.Violations, path string, m map[string]*string) {
	for key, value := range m {
		if value == nil {
			v.Null(path + "." + key + ".member")
		}
	}
}

// whole holds the rules between members, which the service model does not have.
func (in *createGrantIn) whole() error {
	refuse := func(text string) error { return kmsapi.New(kmsapi.Validation, text) }
	k := in.Constraints
	if k == nil {
		k = &grantConstraintsIn{}
	}
	switch {
	case (in.GranteePrincipal == nil) == (in.GranteeServicePrincipal == nil):
		return refuse("You must specify either GranteePrincipal or GranteeServicePrincipal.")
	case in.RetiringPrincipal != nil && in.RetiringServicePrincipal != nil:
		return refuse("You cannot specify RetiringPrincipal and RetiringServicePrincipal in the same request.")
	case in.GranteeServicePrincipal != nil && k.SourceArn == nil:
		return refuse("A grant to a service principal must have the grant constraint SourceArn.")
	case in.GranteeServicePrincipal != nil && in.RetiringPrincipal == nil && in.RetiringServicePrincipal == nil:
		return refuse("A grant to a service principal must have a RetiringPrincipal or RetiringServicePrincipal.")
	case len(in.Operations) == 0:
		return refuse("A grant must have at least one operation.")
	}
	for _, m := range []map[string]*string{k.EncryptionContextEquals, k.EncryptionContextSubset} {
		if len(m) > kmsapi.GrantPairsMax {
			return refuse("A grant constraint can have at most " + strconv.Itoa(kmsapi.GrantPairsMax) + " encryption context pairs.")
		}
		for _, value := range m {
			if utf8.RuneCountInString(*value) > kmsapi.GrantValueMax {
				return refuse("An encryption context value in a grant constraint can have at most " + strconv.Itoa(kmsapi.GrantValueMax) + " characters.")
			}
		}
	}
	return nil
}

// terms are what the grant would allow.
func (in *createGrantIn) terms() (g authz.Grant) {
	for _, op := range in.Operations {
		g.Operations |= authz.ParseOperation(*op)
	}
	if k := in.Constraints; k != nil {
		g.Equals, g.HasEquals = pairsOf(k.EncryptionContextEquals), k.EncryptionContextEquals != nil
		g.Subset, g.HasSubset = pairsOf(k.EncryptionContextSubset), k.EncryptionContextSubset != nil
		g.SourceARN = deref(k.SourceArn)
	}
	return g
}

func pairsOf(m map[string]*string) (list []authz.Pair) {
	for key, value := range m {
		list = append(list, authz.Pair{Key: []byte(key), Value: []byte(*value)})
	}
	slices.SortFunc(list, func(a, b authz.Pair) int { return bytes.Compare(a.Key, b.Key) })
	return list
}

// pairs is a list as an encryption context.
type pairs []authz.Pair

func (p pairs) Len() int                     { return len(p) }
func (p pairs) Pair(i int) (key, val []byte) { return p[i].Key, p[i].Value }

// constrained is the encryption context that conditions on CreateGrant and RetireGrant see: that of the grant's constraints, nil where there is
// none.
func constrained(g *authz.Grant) authz.Pairs {
	if !g.HasEquals && !g.HasSubset {
		return nil
	}
	list := slices.Clone(g.Equals)
	for _, p := range g.Subset {
		if !slices.ContainsFunc(list, func(q authz.Pair) bool { return bytes.Equal(p.Key, q.Key) }) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b authz.Pair) int { return bytes.Compare(a.Key, b.Key) })
	return pairs(list)
}

// covers reports whether child allows nothing that parent does not: no more operations, and constraints at least as strict.
func covers(parent, child *authz.Grant) bool {
	switch {
	case child.Operations&^parent.Operations != 0:
		return false
	case parent.SourceARN != "" && child.SourceARN != parent.SourceARN:
		return false
	case parent.HasEquals && !(child.HasEquals && slices.EqualFunc(child.Equals, parent.Equals, samePair)):
		return false
	case !parent.HasSubset:
		return true
	}
	// Every context that the child accepts has the parent's pairs if the child asks for them in either of its constraints.
	for _, p := range parent.Subset {
		in := func(list []authz.Pair) bool {
			return slices.ContainsFunc(list, func(q authz.Pair) bool { return samePair(p, q) })
		}
		if !(child.HasEquals && in(child.Equals)) && !(child.HasSubset && in(child.Subset)) {
			return false
		}
	}
	return child.HasEquals || child.HasSubset
}

func samePair(a, b authz.Pair) bool {
	return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.Value, b.Value)
}

// usageOperations are the grant operations that keys of a usage have, besides those of every key.
var usageOperations = map[string]authz.Operations{
	kmsapi.EncryptDecrypt:     authz.OpEncrypt | authz.OpDecrypt | authz.OpReEncryptFrom | authz.OpReEncryptTo,
	"SIGN_VERIFY":             authz.OpSign | authz.OpVerify,
	"GENERATE_VERIFY_MAC":     authz.OpGenerateMac | authz.OpVerifyMac,
	"KEY_AGREEMENT":           authz.OpDeriveSharedSecret,
	"ENCAPSULATE_DECAPSULATE": authz.OpEncapsulate | authz.OpDecapsulate,
}

// suits refuses a grant that a key of that spec and usage cannot have.
func suits(g *authz.Grant, spec, usage string) error {
	ok := usageOperations[usage] | authz.OpDescribeKey | authz.OpCreateGrant | authz.OpRetireGrant
	switch keyClass(spec) {
	case "symmetric":
		ok |= authz.OpGenerateDataKey | authz.OpGenerateDataKeyWithoutPlaintext | authz.OpGenerateDataKeyPair | authz.OpGenerateDataKeyPairWithoutPlaintext
	case "asymmetric":
		ok |= authz.OpGetPublicKey
	}
	if not := g.Operations &^ ok; not != 0 {
		return kmsapi.New(kmsapi.Validation, "Grant operation "+not.Names()[0]+" is not valid for a KMS key with KeySpec "+spec+" and KeyUsage "+usage+".")
	}
	if (g.HasEquals || g.HasSubset) && spec != kmsapi.SymmetricDefault {
		return kmsapi.New(kmsapi.Validation, "EncryptionContext is supported only when creating a grant for a symmetric encryption KMS key.")
	}
	return nil
}
