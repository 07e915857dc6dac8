package authz

import "github.com/keyplane/keyplane/internal/policy"

// Actions are the permissions of KMS by name without "kms:": the operations, with ReEncrypt as its two halves, and the reserved ones that no
// operation of its own has. Read only.
var Actions = func() map[string]*Action {
	m := map[string]*Action{}
	add := func(abroad, granted bool, names ...string) {
		for _, n := range names {
			a := &Action{Name: "kms:" + n, Code: policy.CodeOf("kms:" + n), Abroad: abroad}
			if granted {
				a.Grant = ParseOperation(n)
			}
			m[n] = a
		}
	}
	add(true, true,
		"CreateGrant", "Decapsulate", "Decrypt", "DeriveSharedSecret", "DescribeKey", "Encapsulate", "Encrypt", "GenerateDataKey",
		"GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateMac", "GetPublicKey",
		"ReEncryptFrom", "ReEncryptTo", "RetireGrant", "Sign", "Verify", "VerifyMac")
	add(true, false, "GetKeyRotationStatus", "ListGrants", "RevokeGrant")
	add(false, false,
		"CancelKeyDeletion", "ConnectCustomKeyStore", "CreateAlias", "CreateCustomKeyStore", "CreateKey", "DeleteAlias", "DeleteCustomKeyStore",
		"DeleteImportedKeyMaterial", "DescribeCustomKeyStores", "DisableKey", "DisableKeyRotation", "DisconnectCustomKeyStore", "EnableKey",
		"EnableKeyRotation", "GenerateRandom", "GetKeyLastUsage", "GetKeyPolicy", "GetParametersForImport", "ImportKeyMaterial", "ListAliases",
		"ListKeyPolicies", "ListKeyRotations", "ListKeys", "ListResourceTags", "ListRetirableGrants", "PutKeyPolicy", "ReplicateKey",
		"RotateKeyOnDemand", "ScheduleKeyDeletion", "SynchronizeMultiRegionKey", "TagResource", "UntagResource", "UpdateAlias",
		"UpdateCustomKeyStore", "UpdateKeyDescription", "UpdatePrimaryRegion")
	return m
}()
