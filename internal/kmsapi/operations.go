package kmsapi

// TargetPrefix is what X-Amz-Target starts with: TrentService.<Operation>.
const TargetPrefix = "TrentService."

// Plane says who serves an operation.
type Plane uint8

const (
	DataPlane    Plane = iota + 1 // the cryptographic operations: zero allocation, batched
	ControlPlane                  // everything else
)

// Operation is one row of the operation table.
type Operation struct {
	Name  string
	Plane Plane
	Built bool // false: answered with UnsupportedOperationException until its issue is done
	Write bool // changes state (CloudTrail's readOnly is false)
}

// Operations has a row for every operation of the service model, in alphabetical order. A test holds it against the model.
var Operations = []Operation{
	{"CancelKeyDeletion", ControlPlane, true, true},
	{"ConnectCustomKeyStore", ControlPlane, true, true},
	{"CreateAlias", ControlPlane, true, true},
	{"CreateCustomKeyStore", ControlPlane, true, true},
	{"CreateGrant", ControlPlane, true, true},
	{"CreateKey", ControlPlane, true, true},
	{"Decapsulate", DataPlane, true, false},
	{"Decrypt", DataPlane, true, false},
	{"DeleteAlias", ControlPlane, true, true},
	{"DeleteCustomKeyStore", ControlPlane, true, true},
	{"DeleteImportedKeyMaterial", ControlPlane, true, true},
	{"DeriveSharedSecret", DataPlane, true, false},
	{"DescribeCustomKeyStores", ControlPlane, true, false},
	{"DescribeKey", ControlPlane, true, false},
	{"DisableKey", ControlPlane, true, true},
	{"DisableKeyRotation", ControlPlane, true, true},
	{"DisconnectCustomKeyStore", ControlPlane, true, true},
	{"EnableKey", ControlPlane, true, true},
	{"EnableKeyRotation", ControlPlane, true, true},
	{"Encapsulate", DataPlane, true, false},
	{"Encrypt", DataPlane, true, false},
	{"GenerateDataKey", DataPlane, true, false},
	{"GenerateDataKeyPair", DataPlane, true, false},
	{"GenerateDataKeyPairWithoutPlaintext", DataPlane, true, false},
	{"GenerateDataKeyWithoutPlaintext", DataPlane, true, false},
	{"GenerateMac", DataPlane, true, false},
	{"GenerateRandom", DataPlane, true, false},
	{"GetKeyLastUsage", ControlPlane, true, false},
	{"GetKeyPolicy", ControlPlane, true, false},
	{"GetKeyRotationStatus", ControlPlane, true, false},
	{"GetParametersForImport", ControlPlane, true, false},
	{"GetPublicKey", DataPlane, true, false},
	{"ImportKeyMaterial", ControlPlane, true, true},
	{"ListAliases", ControlPlane, true, false},
	{"ListGrants", ControlPlane, true, false},
	{"ListKeyPolicies", ControlPlane, true, false},
	{"ListKeyRotations", ControlPlane, true, false},
	{"ListKeys", ControlPlane, true, false},
	{"ListResourceTags", ControlPlane, true, false},
	{"ListRetirableGrants", ControlPlane, true, false},
	{"PutKeyPolicy", ControlPlane, true, true},
	{"ReEncrypt", DataPlane, true, false},
	{"ReplicateKey", ControlPlane, true, true},
	{"RetireGrant", ControlPlane, true, true},
	{"RevokeGrant", ControlPlane, true, true},
	{"RotateKeyOnDemand", ControlPlane, true, true},
	{"ScheduleKeyDeletion", ControlPlane, true, true},
	{"Sign", DataPlane, true, false},
	{"TagResource", ControlPlane, true, true},
	{"UntagResource", ControlPlane, true, true},
	{"UpdateAlias", ControlPlane, true, true},
	{"UpdateCustomKeyStore", ControlPlane, true, true},
	{"UpdateKeyDescription", ControlPlane, true, true},
	{"UpdatePrimaryRegion", ControlPlane, true, true},
	{"Verify", DataPlane, true, false},
	{"VerifyMac", DataPlane, true, false},
}

var byName = func() map[string]*Operation {
	m := make(map[string]*Operation, len(Operations))
	for i := range Operations {
		m[Operations[i].Name] = &Operations[i]
	}
	return m
}()

// Route finds the operation that an X-Amz-Target header value names, or nil. It does not allocate.
func Route(target []byte) *Operation {
	if len(target) <= len(TargetPrefix) || string(target[:len(TargetPrefix)]) != TargetPrefix {
		return nil
	}
	return byName[string(target[len(TargetPrefix):])]
}

// UnknownOperationText is the message of UnknownOperationException.
const UnknownOperationText = "The requested operation is not recognized by the service."

// NotBuiltSuffix ends the message with which an operation of the model that keyplane does not offer yet is refused; its name comes before.
const NotBuiltSuffix = " is not offered by this version of keyplane."

// NotBuiltText is that message.
func NotBuiltText(op *Operation) string { return op.Name + NotBuiltSuffix }
