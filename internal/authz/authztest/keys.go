package authztest

import (
	"fmt"
	"strings"
)

// keyCases: what each condition key says of a request. Each is asked for the value that it has, for another, in other case, and for absence.
func keyCases() (cases []Case) {
	session := func(c *Case) { c.Caller = callerNamed(adminS1) }
	extra := func(key, value string) func(c *Case) {
		return func(c *Case) { c.Extra = append(c.Extra, Extra{key, value}) }
	}
	for _, v := range []struct {
		key, value string // "": absent
		prepare    func(c *Case)
	}{
		{"aws:PrincipalArn", alice, nil},
		{"aws:PrincipalArn", admin, session},
		{"aws:PrincipalArn", rootA, func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:PrincipalAccount", accountA, nil},
		{"aws:PrincipalAccount", accountA, session},
		{"aws:PrincipalType", "User", nil},
		{"aws:PrincipalType", "AssumedRole", session},
		{"aws:PrincipalType", "Account", func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:PrincipalOrgID", "", nil},
		{"aws:PrincipalIsAWSService", "false", nil},
		{"aws:PrincipalTag/team", "red", func(c *Case) { c.Caller.Tags = []Tag{{"team", "red"}} }},
		{"aws:PrincipalTag/team", "red", func(c *Case) { c.Caller.Tags = []Tag{{"TEAM", "red"}} }},
		{"aws:PrincipalTag/team", "", nil},
		{"aws:PrincipalTag/team", "blue", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"team", "blue"}}
		}},
		{"aws:PrincipalTag/team", "blue", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"Team", "blue"}}
		}},
		{"aws:PrincipalTag/team", "red", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"cost", "5"}}
		}},
		{"aws:userid", "AIDAALICE", nil},
		{"aws:userid", "AROAADMIN:s1", session},
		{"aws:userid", accountA, func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:username", "alice", nil},
		{"aws:username", "", session},
		{"aws:username", "", func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:SourceIdentity", "zoe", func(c *Case) { session(c); c.Caller.Source = "zoe" }},
		{"aws:SourceIdentity", "", session},
		{"aws:TokenIssueTime", "2026-01-01T11:30:00Z", func(c *Case) { session(c); c.Caller.TokenIssued = "2026-01-01T11:30:00Z" }},
		{"aws:TokenIssueTime", "", nil},
		{"aws:SourceIp", "10.0.0.7", func(c *Case) { c.SourceIP = "10.0.0.7" }},
		{"aws:SourceIp", "2001:db8::1", func(c *Case) { c.SourceIP = "2001:db8::1" }},
		{"aws:SourceIp", "", nil},
		{"aws:SourceVpc", "", nil},
		{"aws:SourceVpce", "vpce-1", extra("aws:SourceVpce", "vpce-1")},
		{"aws:SourceArn", "arn:aws:s3:::logs", func(c *Case) { c.SourceARN = "arn:aws:s3:::logs" }},
		{"aws:SourceArn", "", nil},
		{"aws:SourceAccount", accountA, func(c *Case) { c.SourceAccount = accountA }},
		{"aws:SourceAccount", "", nil},
		{"aws:CalledVia", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledVia", "", nil},
		{"aws:CalledViaFirst", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledViaLast", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledViaFirst", "", nil},
		{"aws:ViaAWSService", "true", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:ViaAWSService", "false", nil},
		{"aws:SecureTransport", "true", nil},
		{"aws:SecureTransport", "false", func(c *Case) { c.Plain = true }},
		{"aws:CurrentTime", "2026-01-01T12:00:00Z", nil},
		{"aws:EpochTime", "1767268800", nil},
		{"aws:RequestedRegion", "us-east-1", nil},
		{"aws:UserAgent", "aws-cli/2.1", func(c *Case) { c.UserAgent = "aws-cli/2.1" }},
		{"aws:UserAgent", "", nil},
		{"aws:ResourceAccount", accountA, nil},
		{"aws:ResourceTag/env", "prod", func(c *Case) { c.Key.Tags = []Tag{{"env", "prod"}} }},
		{"aws:ResourceTag/env", "prod", func(c *Case) { c.Key.Tags = []Tag{{"x", "y"}, {"Env", "prod"}} }},
		{"aws:ResourceTag/env", "", nil},
		{"aws:RequestTag/env", "prod", extra("aws:RequestTag/env", "prod")},
		{"aws:RequestTag/env", "", nil},
		{"aws:TagKeys", "env", extra("aws:TagKeys", "env")},
		{"aws:TagKeys", "", nil},
		{"aws:Referer", "", nil},
		{"kms:BypassPolicyLockoutSafetyCheck", "true", extra("kms:BypassPolicyLockoutSafetyCheck", "true")},
		{"kms:CallerAccount", accountA, nil},
		{"kms:CallerAccount", accountA, session},
		{"kms:ViaService", "s3.us-east-1.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"kms:ViaService", "", nil},
		{"kms:KeySpec", "SYMMETRIC_DEFAULT", nil},
		{"kms:KeySpec", "RSA_2048", func(c *Case) { c.Key.Spec = "RSA_2048" }},
		{"kms:CustomerMasterKeySpec", "SYMMETRIC_DEFAULT", nil},
		{"kms:KeyUsage", "ENCRYPT_DECRYPT", nil},
		{"kms:KeyUsage", "SIGN_VERIFY", func(c *Case) { c.Key.Usage = "SIGN_VERIFY" }},
		{"kms:CustomerMasterKeyUsage", "ENCRYPT_DECRYPT", nil},
		{"kms:KeyOrigin", "AWS_KMS", nil},
		{"kms:KeyOrigin", "EXTERNAL", func(c *Case) { c.Key.Origin = "EXTERNAL" }},
		{"kms:MultiRegion", "false", nil},
		{"kms:MultiRegion", "true", func(c *Case) { c.Key.MultiRegion, c.Key.MultiRegionKeyType = true, "PRIMARY" }},
		{"kms:MultiRegionKeyType", "REPLICA", func(c *Case) { c.Key.MultiRegion, c.Key.MultiRegionKeyType = true, "REPLICA" }},
		{"kms:MultiRegionKeyType", "", nil},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = list("alias/app") }},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = list("alias/a", "alias/app", "alias/z") }},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = manyAliases[:50] }},
		{"kms:ResourceAliases", "", func(c *Case) { c.Key.Aliases = manyAliases[:51] }},
		{"kms:ResourceAliases", "", nil},
		{"kms:RequestAlias", "alias/app", func(c *Case) { c.RequestAlias = "alias/app" }},
		{"kms:RequestAlias", "", func(c *Case) { c.Key.Aliases = list("alias/app") }},
		{"kms:EncryptionContext:dept", "red", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red", "id": "7"} }},
		{"kms:EncryptionContext:dept", "red", func(c *Case) { c.EncryptionContext = map[string]string{"DEPT": "red"} }},
		{"kms:EncryptionContext:aws:s3:arn", "arn:aws:s3:::logs", func(c *Case) { c.EncryptionContext = map[string]string{"aws:s3:arn": "arn:aws:s3:::logs"} }},
		{"kms:EncryptionContext:dept", "", func(c *Case) { c.EncryptionContext = map[string]string{"id": "7"} }},
		{"kms:EncryptionContext:dept", "", nil},
		{"kms:EncryptionContext", "", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red"} }},
		{"kms:EncryptionContextKeys", "dept", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red"} }},
		{"kms:EncryptionContextKeys", "", func(c *Case) { c.EncryptionContext = map[string]string{} }},
		{"kms:EncryptionContextKeys", "", nil},
		{"kms:EncryptionAlgorithm", "SYMMETRIC_DEFAULT", func(c *Case) { c.EncryptionAlgorithm = "SYMMETRIC_DEFAULT" }},
		{"kms:EncryptionAlgorithm", "", nil},
		{"kms:SigningAlgorithm", "ECDSA_SHA_256", extra("kms:SigningAlgorithm", "ECDSA_SHA_256")},
		{"kms:MessageType", "DIGEST", extra("kms:MessageType", "DIGEST")},
		{"kms:MacAlgorithm", "HMAC_SHA_256", extra("kms:MacAlgorithm", "HMAC_SHA_256")},
		{"kms:KeyAgreementAlgorithm", "ECDH", extra("kms:KeyAgreementAlgorithm", "ECDH")},
		{"kms:EncapsulationAlgorithm", "ML_KEM", extra("kms:EncapsulationAlgorithm", "ML_KEM")},
		{"kms:DataKeyPairSpec", "RSA_2048", extra("kms:DataKeyPairSpec", "RSA_2048")},
		{"kms:ReEncryptOnSameKey", "true", func(c *Case) { c.Action, c.ReEncrypt, c.SameKey = "kms:ReEncryptTo", true, true }},
		{"kms:ReEncryptOnSameKey", "false", func(c *Case) { c.Action, c.ReEncrypt = "kms:ReEncryptFrom", true }},
		{"kms:ReEncryptOnSameKey", "", nil},
		{"kms:GrantConstraintType", "EncryptionContextEquals", extra("kms:GrantConstraintType", "EncryptionContextEquals")},
		{"kms:GrantConstraintSourceArn", "arn:aws:s3:::logs", extra("kms:GrantConstraintSourceArn", "arn:aws:s3:::logs")},
		{"kms:GrantOperations", "Decrypt", extra("kms:GrantOperations", "Decrypt")},
		{"kms:GranteePrincipal", admin, extra("kms:GranteePrincipal", admin)},
		{"kms:RetiringPrincipal", admin, extra("kms:RetiringPrincipal", admin)},
		{"kms:GranteeServicePrincipal", "s3.amazonaws.com", extra("kms:GranteeServicePrincipal", "s3.amazonaws.com")},
		{"kms:RetiringServicePrincipal", "s3.amazonaws.com", extra("kms:RetiringServicePrincipal", "s3.amazonaws.com")},
		{"kms:GrantIsForAWSResource", "true", extra("kms:GrantIsForAWSResource", "true")},
		{"kms:ExpirationModel", "KEY_MATERIAL_EXPIRES", extra("kms:ExpirationModel", "KEY_MATERIAL_EXPIRES")},
		{"kms:ValidTo", "1767225600", extra("kms:ValidTo", "1767225600")},
		{"kms:WrappingAlgorithm", "RSAES_OAEP_SHA_256", extra("kms:WrappingAlgorithm", "RSAES_OAEP_SHA_256")},
		{"kms:WrappingKeySpec", "RSA_4096", extra("kms:WrappingKeySpec", "RSA_4096")},
		{"kms:RotationPeriodInDays", "365", extra("kms:RotationPeriodInDays", "365")},
		{"kms:ScheduleKeyDeletionPendingWindowInDays", "7", extra("kms:ScheduleKeyDeletionPendingWindowInDays", "7")},
		{"kms:TrailingDaysWithoutKeyUsage", "90", extra("kms:TrailingDaysWithoutKeyUsage", "90")},
		{"kms:PrimaryRegion", "eu-west-1", extra("kms:PrimaryRegion", "eu-west-1")},
		{"kms:ReplicaRegion", "eu-west-1", extra("kms:ReplicaRegion", "eu-west-1")},
		{"kms:RecipientAttestation:ImageSha384", "9fedcba8", extra("kms:RecipientAttestation:ImageSha384", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "9fedcba8", extra("kms:RecipientAttestation:PCR0", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "", extra("kms:RecipientAttestation:PCR1", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "", nil},
		{"kms:RecipientAttestation:PCR31", "9fedcba8", extra("kms:RecipientAttestation:PCR31", "9fedcba8")},
		{"kms:RecipientAttestation:PCR3", "", extra("kms:RecipientAttestation:PCR31", "9fedcba8")},
		{"kms:RecipientAttestation:NitroTPMPCR4", "9fedcba8", extra("kms:RecipientAttestation:NitroTPMPCR4", "9fedcba8")},
		{"kms:RecipientAttestation:NitroTPMPCR4", "", extra("kms:RecipientAttestation:PCR4", "9fedcba8")},
		{"kms:RecipientAttestation:PCR4", "", extra("kms:RecipientAttestation:NitroTPMPCR4", "9fedcba8")},
	} {
		add := func(what, operator, key, value string, match bool) {
			condition := conditionOf(operator, key, list(value))
			for i, c := range conditionCases(fmt.Sprintf("%s/%q/%s/%d", v.key, v.value, what, len(cases)/2), condition, match, func(c *Case) {
				if v.prepare != nil {
					v.prepare(c)
				}
			}) {
				// The principal may be anybody: the condition decides.
				c.KeyPolicy = Document(strings.ReplaceAll(string(c.KeyPolicy), `{"AWS":"`+alice+`"}`, `"*"`))
				if i == 1 && what != "its value" {
					continue
				}
				cases = append(cases, c)
			}
		}
		add("present", "Null", v.key, "false", v.value != "")
		if v.value == "" {
			add("absent", "StringLike", v.key, "*", false)
			continue
		}
		add("its value", "StringEquals", v.key, v.value, true)
		add("another value", "StringEquals", v.key, v.value+"x", false)
		add("upper case key", "StringEquals", strings.ToUpper(v.key), v.value, true)
		add("lower case key", "StringEquals", strings.ToLower(v.key), v.value, true)
		add("a key with more behind", "StringEquals", v.key+"x", v.value, false)
	}
	return cases
}
