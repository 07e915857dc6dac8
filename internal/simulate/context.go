package simulate

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// Entry is the values of one condition key.
type Entry struct {
	Key    string
	Values []string
}

// pairs are an encryption context: authz.Pairs.
type pairs []authz.Pair

func (p pairs) Len() int                       { return len(p) }
func (p pairs) Pair(i int) (key, value []byte) { return p[i].Key, p[i].Value }

// Fill makes c, whose Caller and Key are set, answer the entries. caller is c.Caller, a copy that nobody else uses; facts is c.Key where it
// is made up, nil where the key is a real one or there is none. It refuses an entry that no request has a value for, and one that the principal or
// the key answers otherwise: a decision on it would be of no use. What requests for the action always say, and no entry does, is as if its
// parameters were left out.
func Fill(c *authz.Context, caller *authz.Caller, facts *authz.KeyFacts, action string, entries []Entry) error {
	var context pairs
	seen := map[string]bool{}
	for _, e := range entries {
		k, name := policy.ParseKey(e.Key)
		low := k.String() + strings.ToLower(name)
		if k == policy.KMSEncryptionContext {
			low = k.String() + name // its keys differ by case
		}
		switch {
		case k == policy.UnknownKey || strings.HasSuffix(k.String(), "/") && name == "" || strings.HasSuffix(k.String(), ":") && name == "":
			return errors.New("no request has a value for the condition key " + e.Key)
		case seen[low]:
			return errors.New("the condition key " + e.Key + " is given twice")
		case len(e.Values) == 0:
			return errors.New("the condition key " + e.Key + " has no value")
		case len(e.Values) > 1 && !multivalued(k):
			return errors.New("the condition key " + e.Key + " has one value")
		}
		seen[low] = true
		if k == policy.KMSEncryptionContext {
			context = append(context, authz.Pair{Key: []byte(name), Value: []byte(e.Values[0])})
			continue
		}
		if !set(c, caller, facts, k, name, e.Values) {
			return errors.New("the condition key " + e.Key + " cannot be " + strings.Join(e.Values, ", "))
		}
	}
	defaults(c, action, seen)
	if context != nil {
		slices.SortFunc(context, func(a, b authz.Pair) int { return bytes.Compare(a.Key, b.Key) })
		c.EncryptionContext = context
	}
	if caller.Via != "" && forResource[action] && !seen[policy.KMSGrantIsForAWSResource.String()] {
		extra(c, policy.KMSGrantIsForAWSResource, "", []string{"true"})
	}
	for _, e := range entries {
		if k, name := policy.ParseKey(e.Key); !answers(c, k, name, e.Values) {
			return errors.New("the condition key " + e.Key + " is not " + strings.Join(e.Values, ", ") + " with this principal, key and encryption context")
		}
	}
	return nil
}

// forResource are the permissions that a service asks for on behalf of its user's grants.
var forResource = map[string]bool{"kms:CreateGrant": true, "kms:ListGrants": true, "kms:RevokeGrant": true}

// defaults are what an operation says of itself even if its request says nothing.
func defaults(c *authz.Context, action string, seen map[string]bool) {
	switch action {
	case "kms:Sign", "kms:Verify":
		if c.MessageType == nil {
			c.MessageType = []byte("RAW")
		}
	case "kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext",
		"kms:GenerateDataKeyPair", "kms:GenerateDataKeyPairWithoutPlaintext":
		if c.EncryptionAlgorithm == nil {
			c.EncryptionAlgorithm = []byte(kmsapi.SymmetricDefault)
		}
		c.ReEncrypt = c.ReEncrypt || strings.HasPrefix(action, "kms:ReEncrypt")
	case "kms:CreateKey", "kms:PutKeyPolicy":
		if !seen[policy.KMSBypassPolicyLockoutSafetyCheck.String()] {
			extra(c, policy.KMSBypassPolicyLockoutSafetyCheck, "", []string{"false"})
		}
	}
}

func multivalued(k policy.Key) bool {
	switch k {
	case policy.AWSTagKeys, policy.KMSResourceAliases, policy.KMSEncryptionContextKeys, policy.KMSGrantOperations:
		return true
	}
	return false
}

// set makes c answer a key, if that is not the principal's or the key's to answer; ok false: it cannot have that value.
func set(c *authz.Context, w *authz.Caller, f *authz.KeyFacts, k policy.Key, name string, values []string) (ok bool) {
	v, ok := values[0], true
	switch k {
	case policy.AWSSourceIP:
		var err error
		c.SourceIP, err = netip.ParseAddr(v)
		return err == nil
	case policy.AWSCurrentTime:
		t, err := time.Parse(time.RFC3339, v)
		c.Now = t
		return err == nil
	case policy.AWSEpochTime:
		n, err := strconv.ParseInt(v, 10, 64)
		c.Now = time.Unix(n, 0)
		return err == nil
	case policy.AWSTokenIssueTime:
		t, err := time.Parse(time.RFC3339, v)
		w.TokenIssued = t
		return err == nil
	case policy.AWSSecureTransport:
		c.SecureTransport, ok = boolean(v)
	case policy.AWSRequestedRegion:
		c.Region = v
	case policy.AWSUserAgent:
		c.UserAgent = []byte(v)
	case policy.AWSSourceArn: // only a registered service tells it
		ok = w.Kind == policy.Service
		c.SourceArn = []byte(v)
	case policy.AWSSourceAccount:
		ok = w.Kind == policy.Service
		c.SourceAccount = []byte(v)
	case policy.AWSSourceIdentity:
		w.Source = v
	case policy.AWSPrincipalTag:
		w.Tags = append(w.Tags, authz.Tag{Key: name, Value: v})
	case policy.KMSViaService:
		w.Via, w.ViaName = v, withoutRegion(v)
	case policy.KMSRequestAlias:
		c.RequestAlias = []byte(v)
	case policy.KMSEncryptionAlgorithm:
		c.EncryptionAlgorithm = []byte(v)
	case policy.KMSSigningAlgorithm:
		c.SigningAlgorithm = []byte(v)
	case policy.KMSMessageType:
		c.MessageType = []byte(v)
	case policy.KMSMacAlgorithm:
		c.MacAlgorithm = []byte(v)
	case policy.KMSKeyAgreementAlgorithm:
		c.KeyAgreementAlgorithm = []byte(v)
	case policy.KMSEncapsulationAlgorithm:
		c.EncapsulationAlgorithm = []byte(v)
	case policy.KMSDataKeyPairSpec:
		c.DataKeyPairSpec = []byte(v)
	case policy.KMSReEncryptOnSameKey:
		c.ReEncrypt = true
		c.SameKey, ok = boolean(v)
	case policy.AWSResourceTag, policy.KMSKeySpec, policy.KMSCustomerMasterKeySpec, policy.KMSKeyUsage, policy.KMSCustomerMasterKeyUsage,
		policy.KMSKeyOrigin, policy.KMSMultiRegion, policy.KMSMultiRegionKeyType, policy.KMSResourceAliases:
		if f != nil {
			return setFact(f, k, name, values)
		}
		if c.Key == nil { // CreateKey says what its key is to be
			extra(c, k, name, values)
		}
	default:
		extra(c, k, name, values)
	}
	return ok
}

func setFact(f *authz.KeyFacts, k policy.Key, name string, values []string) (ok bool) {
	v, ok := values[0], true
	switch k {
	case policy.AWSResourceTag:
		f.Tags = append(f.Tags, authz.Tag{Key: name, Value: v})
	case policy.KMSKeySpec, policy.KMSCustomerMasterKeySpec:
		f.Spec = v
	case policy.KMSKeyUsage, policy.KMSCustomerMasterKeyUsage:
		f.Usage = v
	case policy.KMSKeyOrigin:
		f.Origin = v
	case policy.KMSMultiRegion:
		f.MultiRegion, ok = boolean(v)
	case policy.KMSMultiRegionKeyType:
		f.MultiRegionKeyType = v
	case policy.KMSResourceAliases:
		f.Aliases = values
	}
	return ok
}

func extra(c *authz.Context, k policy.Key, name string, values []string) {
	for _, v := range values {
		c.Extra = append(c.Extra, authz.ExtraValue{Key: k, Name: name, Value: v})
	}
}

func boolean(v string) (b, ok bool) { return v == "true", v == "true" || v == "false" }

// answers reports whether c has just these values of a key. An instant may have been written in another form than c's.
func answers(c *authz.Context, k policy.Key, name string, values []string) bool {
	switch k {
	case policy.AWSCurrentTime, policy.AWSTokenIssueTime, policy.KMSEncryptionContext: // another pair's key may differ by case only
		return true
	}
	for i := range values {
		v, ok := c.Value(k, name, i)
		if !ok {
			return false
		}
		if k == policy.AWSSourceIP {
			continue
		}
		if text := string(v.Text); !slices.Contains(values, text) || k != policy.KMSEncryptionContextKeys && text != values[i] {
			return false
		}
	}
	_, more := c.Value(k, name, len(values))
	return !more
}

// withoutRegion is a service's name without the Region that is its second label of four: s3.us-east-1.amazonaws.com is s3.amazonaws.com.
func withoutRegion(service string) string {
	labels := strings.Split(service, ".")
	if len(labels) < 4 || strings.Count(labels[1], "-") < 2 {
		return service
	}
	return strings.Join(slices.Delete(labels, 1, 2), ".")
}
