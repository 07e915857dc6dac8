package kmsapi

import "time"

// Limits of the API, from the service model and its documentation. Lengths are characters for strings and decoded bytes for blobs.
const (
	KeyIDMax            = 2048
	PlaintextMax        = 4096
	CiphertextBlobMax   = 6144
	RandomBytesMax      = 1024
	PublicKeyMax        = 8192
	GrantTokensMax      = 10
	GrantTokenMax       = 8192
	GrantIDMax          = 128
	GrantNameMax        = 256
	GrantsPerKeyMax     = 50_000
	GrantPairsMax       = 8   // of one constraint
	GrantValueMax       = 384 // characters of a value in one
	PrincipalMax        = 256
	ServicePrincipalMax = 128
	SourceArnMin        = 20
	SourceArnMax        = 512
	AliasNameMax        = 256
	DescriptionMax      = 8192
	PolicyMax           = 32768  // effective; beyond it LimitExceededException
	PolicyModelMax      = 131072 // model; beyond it ValidationException
	PolicyNameMax       = 128
	TagKeyMax           = 128
	TagValueMax         = 256
	TagsPerKeyMax       = 50
	AliasesPerKeyMax    = 50
	AliasesPerKeyMost   = 100 // that the quota can be raised to: a key is deleted in one transaction, aliases and all
	PendingWindowMin    = 7
	PendingWindowMax    = 30
	PendingWindowDays   = 30 // default
	RotationPeriodMin   = 90 // days
	RotationPeriodMax   = 2560
	RotationPeriodDays  = 365 // default
	LimitMax            = 1000
	LimitAliasesMax     = 100
	LimitGrantsMax      = 100
	LimitGrantsDefault  = 50
	LimitTagsMax        = 50
	LimitDefault        = 100
	LimitAliasesDefault = 50
	MarkerMax           = 1024
	AttestationMax      = 262144
	CustomKeyStoreIDMax = 64
)

// Limits of ours on what a request may make us do (security requirements, HTTP layer).
const (
	BodyMax             = 64 << 10 // bytes
	HeadersMax          = 8 << 10  // request line and headers, bytes
	HeaderCountMax      = 64
	HeaderNameMax       = 64
	AuthorizationMax    = 2 << 10
	JSONDepthMax        = 32
	JSONMembersMax      = 256
	ContextPairsMax     = 64
	ContextBytesMax     = 8192 // canonical form
	ClockSkew           = 5 * time.Minute
	ContentType         = "application/x-amz-json-1.1"
	SigningName         = "kms"
	AliasPrefix         = "alias/"
	AliasReservedPrefix = "alias/aws/"
	PolicyNameDefault   = "default"
	SymmetricDefault    = "SYMMETRIC_DEFAULT"
	EncryptDecrypt      = "ENCRYPT_DECRYPT"
)

// KeyState is the state of a KMS key. The zero value is invalid.
type KeyState uint8

const (
	StateEnabled KeyState = iota + 1
	StateDisabled
	StatePendingDeletion
	StatePendingImport
	StatePendingReplicaDeletion
	StateUnavailable
	StateCreating
	StateUpdating
)

var keyStateNames = [...]string{"", "Enabled", "Disabled", "PendingDeletion", "PendingImport", "PendingReplicaDeletion", "Unavailable", "Creating", "Updating"}

// String is the state's name in the API.
func (s KeyState) String() string {
	if int(s) < len(keyStateNames) {
		return keyStateNames[s]
	}
	return ""
}

// KeyStateOf is the inverse of String; 0 if there is no such state.
func KeyStateOf(name string) KeyState {
	for i, n := range keyStateNames {
		if n == name && i > 0 {
			return KeyState(i)
		}
	}
	return 0
}

// KeyStates has every state, for tables and tests.
var KeyStates = []KeyState{StateEnabled, StateDisabled, StatePendingDeletion, StatePendingImport, StatePendingReplicaDeletion, StateUnavailable, StateCreating, StateUpdating}
