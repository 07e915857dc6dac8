package controlplane

import (
	"strconv"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// What operations say of condition keys that the key itself and the request as such do not answer. A function that sees unchecked input leaves
// out what is absent.

func bypassing(b *bool) authz.ExtraValue {
	return authz.ExtraValue{Key: policy.KMSBypassPolicyLockoutSafetyCheck, Value: strconv.FormatBool(b != nil && *b)}
}

// tagging is aws:RequestTag and aws:TagKeys.
func tagging(tags []*tagIn) (list []authz.ExtraValue) {
	for _, t := range tags {
		list = append(list,
			authz.ExtraValue{Key: policy.AWSRequestTag, Name: *t.TagKey, Value: *t.TagValue},
			authz.ExtraValue{Key: policy.AWSTagKeys, Value: *t.TagKey})
	}
	return list
}

// conditions describe the key that is to be made: there is none yet that could answer.
func (in *createKeyIn) conditions() []authz.ExtraValue {
	spec, usage, origin, multi := kmsapi.SymmetricDefault, deref(in.KeyUsage), originKMS, in.MultiRegion != nil && *in.MultiRegion
	switch {
	case in.KeySpec != nil:
		spec = *in.KeySpec
	case in.CustomerMasterKeySpec != nil:
		spec = *in.CustomerMasterKeySpec
	}
	if usage == "" && spec == kmsapi.SymmetricDefault {
		usage = kmsapi.EncryptDecrypt
	}
	if in.Origin != nil {
		origin = *in.Origin
	}
	list := []authz.ExtraValue{
		{Key: policy.KMSKeySpec, Value: spec}, {Key: policy.KMSCustomerMasterKeySpec, Value: spec}, {Key: policy.KMSKeyOrigin, Value: origin},
		{Key: policy.KMSMultiRegion, Value: strconv.FormatBool(multi)}, bypassing(in.BypassPolicyLockoutSafetyCheck),
	}
	if usage != "" {
		list = append(list,
			authz.ExtraValue{Key: policy.KMSKeyUsage, Value: usage}, authz.ExtraValue{Key: policy.KMSCustomerMasterKeyUsage, Value: usage})
	}
	if multi {
		list = append(list, authz.ExtraValue{Key: policy.KMSMultiRegionKeyType, Value: "PRIMARY"})
	}
	return append(list, tagging(in.Tags)...)
}

// forResource is kms:GrantIsForAWSResource: present, and true, where a service calls for its user.
func (c *call) forResource() (list []authz.ExtraValue) {
	if w := c.principal(); w != nil && w.Via != "" {
		list = append(list, authz.ExtraValue{Key: policy.KMSGrantIsForAWSResource, Value: "true"})
	}
	return list
}

// conditions of CreateGrant are all that the grant would say, and the encryption context of its constraints (pairs).
func (in *createGrantIn) conditions() (list []authz.ExtraValue) {
	add := func(k policy.Key, s *string) {
		if s != nil {
			list = append(list, authz.ExtraValue{Key: k, Value: *s})
		}
	}
	add(policy.KMSGranteePrincipal, in.GranteePrincipal)
	add(policy.KMSRetiringPrincipal, in.RetiringPrincipal)
	add(policy.KMSGranteeServicePrincipal, in.GranteeServicePrincipal)
	add(policy.KMSRetiringServicePrincipal, in.RetiringServicePrincipal)
	for _, op := range in.Operations {
		add(policy.KMSGrantOperations, op)
	}
	if k := in.Constraints; k != nil {
		for _, c := range []struct {
			name string
			is   bool
		}{{"EncryptionContextEquals", k.EncryptionContextEquals != nil}, {"EncryptionContextSubset", k.EncryptionContextSubset != nil}} {
			if c.is {
				add(policy.KMSGrantConstraintType, &c.name)
			}
		}
		add(policy.KMSGrantConstraintSourceArn, k.SourceArn)
	}
	return list
}
