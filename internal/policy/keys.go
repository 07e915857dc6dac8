package policy

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

	keyCount
)
