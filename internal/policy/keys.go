package policy

import "strings"

// Key is a condition key that requests have values for. Other keys are accepted in policies and always absent.
type Key uint8

// Condition keys. Those marked * take a name.
const (
	UnknownKey Key = iota

	AWSPrincipalArn
	AWSPrincipalAccount
	AWSPrincipalTag // *
	AWSPrincipalType
	AWSPrincipalOrgID
	AWSPrincipalIsAWSService
	AWSPrincipalServiceName
	AWSUserID
	AWSUsername
	AWSSourceIP
	AWSVpcSourceIP
	AWSSourceVpc
	AWSSourceVpce
	AWSSourceArn
	AWSSourceAccount
	AWSSourceIdentity
	AWSCalledVia
	AWSCalledViaFirst
	AWSCalledViaLast
	AWSViaAWSService
	AWSSecureTransport
	AWSCurrentTime
	AWSEpochTime
	AWSTokenIssueTime
	AWSMultiFactorAuthPresent
	AWSMultiFactorAuthAge
	AWSRequestedRegion
	AWSRequestTag  // *
	AWSResourceTag // *
	AWSTagKeys
	AWSResourceAccount
	AWSUserAgent
	AWSReferer

	KMSBypassPolicyLockoutSafetyCheck
	KMSCallerAccount
	KMSViaService
	KMSKeySpec
	KMSKeyUsage
	KMSKeyOrigin
	KMSMultiRegion
	KMSMultiRegionKeyType
	KMSCustomerMasterKeySpec
	KMSCustomerMasterKeyUsage
	KMSResourceAliases
	KMSRequestAlias
	KMSEncryptionContext // *
	KMSEncryptionContextKeys
	KMSEncryptionAlgorithm
	KMSSigningAlgorithm
	KMSMessageType
	KMSMacAlgorithm
	KMSKeyAgreementAlgorithm
	KMSEncapsulationAlgorithm
	KMSDataKeyPairSpec
	KMSReEncryptOnSameKey
	KMSGrantConstraintType
	KMSGrantConstraintSourceArn
	KMSGrantOperations
	KMSGranteePrincipal
	KMSRetiringPrincipal
	KMSGranteeServicePrincipal
	KMSRetiringServicePrincipal
	KMSGrantIsForAWSResource
	KMSExpirationModel
	KMSValidTo
	KMSWrappingAlgorithm
	KMSWrappingKeySpec
	KMSRotationPeriodInDays
	KMSScheduleKeyDeletionPendingWindowInDays
	KMSTrailingDaysWithoutKeyUsage
	KMSPrimaryRegion
	KMSReplicaRegion
	KMSRecipientAttestation // * ImageSha384, PCR0 …

	STSExternalID
	STSRoleSessionName
	STSSourceIdentity

	IAMPolicyARN
	IAMPermissionsBoundary
	IAMResourceTag // *

	keyCount
)

// keyNames are the names, of keys that take one with the separator.
var keyNames = [keyCount]string{
	AWSPrincipalArn:           "aws:PrincipalArn",
	AWSPrincipalAccount:       "aws:PrincipalAccount",
	AWSPrincipalTag:           "aws:PrincipalTag/",
	AWSPrincipalType:          "aws:PrincipalType",
	AWSPrincipalOrgID:         "aws:PrincipalOrgID",
	AWSPrincipalIsAWSService:  "aws:PrincipalIsAWSService",
	AWSPrincipalServiceName:   "aws:PrincipalServiceName",
	AWSUserID:                 "aws:userid",
	AWSUsername:               "aws:username",
	AWSSourceIP:               "aws:SourceIp",
	AWSVpcSourceIP:            "aws:VpcSourceIp",
	AWSSourceVpc:              "aws:SourceVpc",
	AWSSourceVpce:             "aws:SourceVpce",
	AWSSourceArn:              "aws:SourceArn",
	AWSSourceAccount:          "aws:SourceAccount",
	AWSSourceIdentity:         "aws:SourceIdentity",
	AWSCalledVia:              "aws:CalledVia",
	AWSCalledViaFirst:         "aws:CalledViaFirst",
	AWSCalledViaLast:          "aws:CalledViaLast",
	AWSViaAWSService:          "aws:ViaAWSService",
	AWSSecureTransport:        "aws:SecureTransport",
	AWSCurrentTime:            "aws:CurrentTime",
	AWSEpochTime:              "aws:EpochTime",
	AWSTokenIssueTime:         "aws:TokenIssueTime",
	AWSMultiFactorAuthPresent: "aws:MultiFactorAuthPresent",
	AWSMultiFactorAuthAge:     "aws:MultiFactorAuthAge",
	AWSRequestedRegion:        "aws:RequestedRegion",
	AWSRequestTag:             "aws:RequestTag/",
	AWSResourceTag:            "aws:ResourceTag/",
	AWSTagKeys:                "aws:TagKeys",
	AWSResourceAccount:        "aws:ResourceAccount",
	AWSUserAgent:              "aws:UserAgent",
	AWSReferer:                "aws:Referer",

	KMSBypassPolicyLockoutSafetyCheck:         "kms:BypassPolicyLockoutSafetyCheck",
	KMSCallerAccount:                          "kms:CallerAccount",
	KMSViaService:                             "kms:ViaService",
	KMSKeySpec:                                "kms:KeySpec",
	KMSKeyUsage:                               "kms:KeyUsage",
	KMSKeyOrigin:                              "kms:KeyOrigin",
	KMSMultiRegion:                            "kms:MultiRegion",
	KMSMultiRegionKeyType:                     "kms:MultiRegionKeyType",
	KMSCustomerMasterKeySpec:                  "kms:CustomerMasterKeySpec",
	KMSCustomerMasterKeyUsage:                 "kms:CustomerMasterKeyUsage",
	KMSResourceAliases:                        "kms:ResourceAliases",
	KMSRequestAlias:                           "kms:RequestAlias",
	KMSEncryptionContext:                      "kms:EncryptionContext:",
	KMSEncryptionContextKeys:                  "kms:EncryptionContextKeys",
	KMSEncryptionAlgorithm:                    "kms:EncryptionAlgorithm",
	KMSSigningAlgorithm:                       "kms:SigningAlgorithm",
	KMSMessageType:                            "kms:MessageType",
	KMSMacAlgorithm:                           "kms:MacAlgorithm",
	KMSKeyAgreementAlgorithm:                  "kms:KeyAgreementAlgorithm",
	KMSEncapsulationAlgorithm:                 "kms:EncapsulationAlgorithm",
	KMSDataKeyPairSpec:                        "kms:DataKeyPairSpec",
	KMSReEncryptOnSameKey:                     "kms:ReEncryptOnSameKey",
	KMSGrantConstraintType:                    "kms:GrantConstraintType",
	KMSGrantConstraintSourceArn:               "kms:GrantConstraintSourceArn",
	KMSGrantOperations:                        "kms:GrantOperations",
	KMSGranteePrincipal:                       "kms:GranteePrincipal",
	KMSRetiringPrincipal:                      "kms:RetiringPrincipal",
	KMSGranteeServicePrincipal:                "kms:GranteeServicePrincipal",
	KMSRetiringServicePrincipal:               "kms:RetiringServicePrincipal",
	KMSGrantIsForAWSResource:                  "kms:GrantIsForAWSResource",
	KMSExpirationModel:                        "kms:ExpirationModel",
	KMSValidTo:                                "kms:ValidTo",
	KMSWrappingAlgorithm:                      "kms:WrappingAlgorithm",
	KMSWrappingKeySpec:                        "kms:WrappingKeySpec",
	KMSRotationPeriodInDays:                   "kms:RotationPeriodInDays",
	KMSScheduleKeyDeletionPendingWindowInDays: "kms:ScheduleKeyDeletionPendingWindowInDays",
	KMSTrailingDaysWithoutKeyUsage:            "kms:TrailingDaysWithoutKeyUsage",
	KMSPrimaryRegion:                          "kms:PrimaryRegion",
	KMSReplicaRegion:                          "kms:ReplicaRegion",
	KMSRecipientAttestation:                   "kms:RecipientAttestation:",

	STSExternalID:      "sts:ExternalId",
	STSRoleSessionName: "sts:RoleSessionName",
	STSSourceIdentity:  "sts:SourceIdentity",

	IAMPolicyARN:           "iam:PolicyARN",
	IAMPermissionsBoundary: "iam:PermissionsBoundary",
	IAMResourceTag:         "iam:ResourceTag/",
}

// keysByName finds a key by its name in lower case.
var keysByName = func() map[string]Key {
	m := make(map[string]Key, keyCount)
	for k := UnknownKey + 1; k < keyCount; k++ {
		m[lower(keyNames[k])] = k
	}
	return m
}()

// ParseKey is the condition key that a policy names, in any case, and the name that it takes, in the case it is written in: kms:ViaService,
// aws:PrincipalTag/team. UnknownKey is what requests have no value for.
func ParseKey(s string) (k Key, name string) {
	low := lower(s)
	vendor := strings.IndexByte(low, ':') + 1
	if i := strings.IndexAny(low[vendor:], "/:") + 1; i > 0 {
		return keysByName[low[:vendor+i]], s[vendor+i:]
	}
	return keysByName[low], ""
}

// String is the key's name, of keys that take one with the separator.
func (k Key) String() string { return keyNames[k] }

// mayHaveSeveral has the keys that are asked for a second value: multivalued ones; those that take a name, of which a request may have
// one in several cases; and kms:GrantConstraintType of a grant with both constraints.
var mayHaveSeveral = func() (t [keyCount]bool) {
	for k := range t {
		t[k] = Key(k).multivalued() || Key(k) == KMSGrantConstraintType || strings.HasSuffix(keyNames[k], ":") || strings.HasSuffix(keyNames[k], "/")
	}
	return t
}()

// Several reports whether requests may have more than one value of k.
func (k Key) Several() bool { return mayHaveSeveral[k] }

// multivalued reports whether requests may have several values of k.
func (k Key) multivalued() bool {
	switch k {
	case AWSCalledVia, AWSTagKeys, KMSResourceAliases, KMSEncryptionContextKeys, KMSGrantOperations:
		return true
	}
	return false
}
