package controlplane

import "github.com/keyplane/keyplane/internal/kmsapi"

// verdict is what a key state means for an operation.
type verdict uint8

const (
	forbidden verdict = iota // no row: the operation is not for keys in states
	allowed
	refused    // KMSInvalidStateException "<key ARN> is <state>."
	notPending // KMSInvalidStateException "<key ARN> is not pending deletion."
	disabled   // DisabledException "<key ARN> is disabled."
	external   // UnsupportedOperationException: only keys whose material is imported are in that state
)

// states is a row of the key state matrix (AWS KMS Developer Guide, "Key states of AWS KMS keys"), one verdict per column.
type states struct {
	enabled, disabled, pendingDeletion, pendingImport, unavailable, creating, updating verdict
}

var (
	everyState = states{allowed, allowed, allowed, allowed, allowed, allowed, allowed}
	notPD      = states{allowed, allowed, refused, allowed, allowed, allowed, allowed}
	switching  = states{allowed, allowed, refused, refused, allowed, refused, refused}
	scheduling = states{allowed, disabled, refused, external, refused, refused, allowed}
)

// matrix has the operations of the control plane that concern one key. For UpdateAlias it is the state of the new target that counts.
var matrix = map[string]states{
	"CancelKeyDeletion":         {notPending, notPending, allowed, notPending, notPending, notPending, notPending},
	"CreateAlias":               notPD,
	"CreateGrant":               {allowed, disabled, refused, refused, allowed, refused, allowed},
	"DeleteAlias":               everyState,
	"DeleteImportedKeyMaterial": {allowed, allowed, allowed, allowed, refused, refused, refused},
	"DescribeKey":               everyState,
	"DisableKey":                switching,
	"DisableKeyRotation":        scheduling,
	"EnableKey":                 switching,
	"EnableKeyRotation":         scheduling,
	"GetKeyLastUsage":           everyState,
	"GetKeyPolicy":              everyState,
	"GetKeyRotationStatus":      {allowed, allowed, allowed, external, refused, allowed, allowed},
	"GetParametersForImport":    {allowed, allowed, refused, allowed, refused, refused, refused},
	"ImportKeyMaterial":         {allowed, allowed, refused, allowed, refused, refused, allowed},
	"ListAliases":               everyState,
	"ListGrants":                everyState,
	"ListKeyPolicies":           everyState,
	"ListKeyRotations":          {allowed, allowed, allowed, allowed, refused, allowed, allowed},
	"ListResourceTags":          everyState,
	"PutKeyPolicy":              everyState,
	"ReplicateKey":              {allowed, disabled, refused, refused, refused, refused, refused},
	"RetireGrant":               everyState,
	"RevokeGrant":               everyState,
	"RotateKeyOnDemand":         {allowed, disabled, refused, refused, refused, refused, allowed},
	"ScheduleKeyDeletion":       {allowed, allowed, refused, allowed, allowed, allowed, refused},
	"TagResource":               notPD,
	"UntagResource":             notPD,
	"UpdateAlias":               notPD,
	"UpdateKeyDescription":      notPD,
	"UpdatePrimaryRegion":       {allowed, disabled, refused, refused, refused, refused, allowed},
}

// in is the verdict of the column that state belongs to.
func (row states) in(state kmsapi.KeyState) verdict {
	switch state {
	case kmsapi.StateEnabled:
		return row.enabled
	case kmsapi.StateDisabled:
		return row.disabled
	case kmsapi.StatePendingDeletion, kmsapi.StatePendingReplicaDeletion:
		return row.pendingDeletion
	case kmsapi.StatePendingImport:
		return row.pendingImport
	case kmsapi.StateUnavailable:
		return row.unavailable
	case kmsapi.StateCreating:
		return row.creating
	case kmsapi.StateUpdating:
		return row.updating
	}
	return forbidden
}

var stateTexts = map[kmsapi.KeyState]string{
	kmsapi.StateEnabled:                " is enabled.",
	kmsapi.StateDisabled:               " is disabled.",
	kmsapi.StatePendingDeletion:        " is pending deletion.",
	kmsapi.StatePendingReplicaDeletion: " is pending replica deletion.",
	kmsapi.StatePendingImport:          " is pending import.",
	kmsapi.StateUnavailable:            " is unavailable.",
	kmsapi.StateCreating:               " is creating.",
	kmsapi.StateUpdating:               " is updating.",
}

// stateError is the refusal of an operation on a key in that state, nil where the matrix allows it.
func stateError(operation string, state kmsapi.KeyState, arn string) error {
	switch matrix[operation].in(state) {
	case allowed:
		return nil
	case refused:
		return kmsapi.New(kmsapi.KMSInvalidState, arn+stateTexts[state])
	case disabled:
		return kmsapi.New(kmsapi.Disabled, arn+stateTexts[state])
	case notPending:
		return kmsapi.New(kmsapi.KMSInvalidState, arn+" is not pending deletion.")
	case external:
		return wrongOrigin(arn, originExternal)
	}
	return kmsapi.E(kmsapi.KMSInternal)
}

// after is the state of a key once an operation that switches states was allowed and done.
func after(operation string, state kmsapi.KeyState) kmsapi.KeyState {
	switch operation {
	case "EnableKey":
		return kmsapi.StateEnabled
	case "DisableKey", "CancelKeyDeletion":
		return kmsapi.StateDisabled
	case "ScheduleKeyDeletion":
		return kmsapi.StatePendingDeletion
	}
	return state
}
