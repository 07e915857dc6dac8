package hsm

import (
	"errors"
	"strings"
)

// Action is what the shards do after an error, as a set. The letters are those of the table in rows.
type Action uint16

const (
	actD         Action = 1 << iota // the caller's data; session kept
	actS                            // replace the session
	actH                            // drop object handles, find again by CKA_ID (opening a session always does)
	actL                            // log in again, single flight
	actR                            // may be tried once more: after S, H, L here, else elsewhere
	actElsewhere                    // prefer another slot for R
	actQ                            // quarantine the slot
	actW                            // the module must be initialised again, which only happens with the slot in quarantine
	actA                            // alarm
	actX                            // stop using the slot until an operator has looked
	actCanary                       // ask the canary first: bad means Q; three such answers in ten seconds mean Q too
)

// Class is a row of the table: what to do and what the client sees when that has not helped.
type Class struct {
	Actions Action
	Result  Result
}

// Has reports whether any of the actions is in the class.
func (c Class) Has(a Action) bool { return c.Actions&a != 0 }

// phase groups PKCS#11 functions by what an answer from them can mean.
type phase uint8

const (
	anyPhase phase = iota
	opens          // interprets bytes a client made: decrypt, unwrap, verify, derive from a foreign public key
	makes          // works on our own bytes: encrypt, sign, random; a "data" error here is not the client's
	manages        // everything else: open, login, find, create
)

func phaseOf(function string) phase {
	switch {
	case strings.HasPrefix(function, "C_Decrypt") && function != "C_DecryptInit",
		strings.HasPrefix(function, "C_Verify") && function != "C_VerifyInit",
		function == "C_UnwrapKey", function == "C_DeriveKey", function == "C_DecapsulateKey":
		return opens
	case strings.HasPrefix(function, "C_Encrypt") && function != "C_EncryptInit",
		strings.HasPrefix(function, "C_Sign") && function != "C_SignInit",
		function == "C_GenerateRandom":
		return makes
	}
	return manages
}

type row struct {
	code  CKR
	phase phase // anyPhase: where no row of the function's own phase exists
	class Class
}

// device is the class of CKR_DEVICE_ERROR and of everything the table does not know.
var device = Class{actS | actR | actElsewhere | actCanary, Internal}

// fault is an operations or programming fault: no retry helps.
var fault = Class{actS | actA, Internal}

// rows is the reaction to every return value. A code may have a row for one phase and one for the rest.
// Every answer but a clean data error costs the session (S): a failed C_…Init or a short buffer leaves an operation active, and cancelling
// one works on no module we know.
var rows = []row{
	{CKR_ENCRYPTED_DATA_INVALID, opens, Class{actD, DataError}},
	{CKR_ENCRYPTED_DATA_LEN_RANGE, opens, Class{actD, DataError}},
	{CKR_AEAD_DECRYPT_FAILED, opens, Class{actD, DataError}},
	{CKR_DATA_INVALID, opens, Class{actD, DataError}},
	{CKR_DATA_LEN_RANGE, opens, Class{actD, DataError}},
	{CKR_SIGNATURE_INVALID, opens, Class{actD, DataError}},
	{CKR_SIGNATURE_LEN_RANGE, opens, Class{actD, DataError}},
	{CKR_WRAPPED_KEY_INVALID, opens, Class{actD, DataError}},
	{CKR_WRAPPED_KEY_LEN_RANGE, opens, Class{actD, DataError}},
	{CKR_PUBLIC_KEY_INVALID, opens, Class{actD, DataError}},
	{CKR_DOMAIN_PARAMS_INVALID, opens, Class{actD, DataError}},
	{CKR_ENCRYPTED_DATA_INVALID, anyPhase, fault},
	{CKR_ENCRYPTED_DATA_LEN_RANGE, anyPhase, fault},
	{CKR_AEAD_DECRYPT_FAILED, anyPhase, fault},
	{CKR_DATA_INVALID, anyPhase, fault},
	{CKR_DATA_LEN_RANGE, anyPhase, fault},
	{CKR_SIGNATURE_INVALID, anyPhase, fault},
	{CKR_SIGNATURE_LEN_RANGE, anyPhase, fault},
	{CKR_WRAPPED_KEY_INVALID, anyPhase, fault},
	{CKR_WRAPPED_KEY_LEN_RANGE, anyPhase, fault},
	{CKR_PUBLIC_KEY_INVALID, anyPhase, fault},
	{CKR_DOMAIN_PARAMS_INVALID, anyPhase, fault},

	// Some modules say GENERAL_ERROR to a wrong tag, so where a client's bytes are interpreted a good canary means bad data.
	{CKR_GENERAL_ERROR, opens, Class{actD | actCanary, DataError}},
	{CKR_FUNCTION_FAILED, opens, Class{actD | actCanary, DataError}},
	{CKR_GENERAL_ERROR, anyPhase, Class{actS | actR | actCanary, Internal}},
	{CKR_FUNCTION_FAILED, anyPhase, Class{actS | actR | actCanary, Internal}},

	{CKR_DEVICE_ERROR, anyPhase, device},
	{CKR_DEVICE_REMOVED, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actQ, Unavailable}},
	{CKR_TOKEN_NOT_PRESENT, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actQ, Unavailable}},
	{CKR_TOKEN_NOT_RECOGNIZED, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actQ, Unavailable}},
	{CKR_TOKEN_NOT_INITIALIZED, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actQ, Unavailable}},
	{CKR_SLOT_ID_INVALID, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actQ, Unavailable}},
	{CKR_DEVICE_MEMORY, anyPhase, Class{actS | actR | actElsewhere, Throttled}},
	{CKR_TOKEN_RESOURCE_EXCEEDED, anyPhase, Class{actS | actR | actElsewhere, Throttled}},
	{CKR_HOST_MEMORY, anyPhase, Class{actS | actA, Internal}},

	{CKR_SESSION_HANDLE_INVALID, anyPhase, Class{actS | actH | actR, Internal}},
	{CKR_SESSION_CLOSED, anyPhase, Class{actS | actH | actR, Internal}},
	{CKR_SESSION_COUNT, anyPhase, Class{actS | actA, Throttled}},
	{CKR_SESSION_READ_ONLY, anyPhase, fault},
	{CKR_SESSION_READ_ONLY_EXISTS, anyPhase, fault},
	{CKR_SESSION_READ_WRITE_SO_EXISTS, anyPhase, fault},
	{CKR_SESSION_EXISTS, anyPhase, fault},
	{CKR_SESSION_PARALLEL_NOT_SUPPORTED, anyPhase, fault},
	{CKR_SESSION_ASYNC_NOT_SUPPORTED, anyPhase, fault},

	{CKR_OBJECT_HANDLE_INVALID, anyPhase, Class{actS | actH | actR, Unavailable}},
	{CKR_KEY_HANDLE_INVALID, anyPhase, Class{actS | actH | actR, Unavailable}},
	{CKR_WRAPPING_KEY_HANDLE_INVALID, anyPhase, Class{actS | actH | actR, Unavailable}},
	{CKR_UNWRAPPING_KEY_HANDLE_INVALID, anyPhase, Class{actS | actH | actR, Unavailable}},
	{CKR_USER_NOT_LOGGED_IN, anyPhase, Class{actS | actH | actL | actR, Internal}},
	{CKR_USER_ALREADY_LOGGED_IN, anyPhase, Class{0, Done}}, // success of a login
	{CKR_USER_ANOTHER_ALREADY_LOGGED_IN, anyPhase, Class{actS | actR | actElsewhere | actQ | actA, Internal}},
	{CKR_USER_TOO_MANY_TYPES, anyPhase, Class{actS | actR | actElsewhere | actQ | actA, Internal}},
	{CKR_USER_TYPE_INVALID, anyPhase, fault},

	{CKR_PIN_INCORRECT, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_PIN_LOCKED, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_PIN_EXPIRED, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_PIN_INVALID, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_PIN_LEN_RANGE, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_PIN_TOO_WEAK, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_NEW_PIN_MODE, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_NEXT_OTP, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_USER_PIN_NOT_INITIALIZED, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},

	{CKR_OPERATION_ACTIVE, anyPhase, Class{actS | actR, Internal}},
	{CKR_OPERATION_NOT_INITIALIZED, anyPhase, Class{actS | actR, Internal}},
	{CKR_OPERATION_CANCEL_FAILED, anyPhase, Class{actS | actR, Internal}},
	{CKR_PENDING, anyPhase, Class{actS | actR, Internal}},
	{CKR_BUFFER_TOO_SMALL, anyPhase, fault},
	{CKR_CRYPTOKI_NOT_INITIALIZED, anyPhase, Class{actS | actH | actL | actR | actElsewhere | actW | actQ, Internal}},
	{CKR_CRYPTOKI_ALREADY_INITIALIZED, anyPhase, fault},
	{CKR_LIBRARY_LOAD_FAILED, anyPhase, fault},
	{CKR_CANT_LOCK, anyPhase, fault},
	{CKR_NEED_TO_CREATE_THREADS, anyPhase, fault},
	{CKR_MUTEX_BAD, anyPhase, fault},
	{CKR_MUTEX_NOT_LOCKED, anyPhase, fault},

	// Found by the probe, not at run time.
	{CKR_MECHANISM_INVALID, anyPhase, fault},
	{CKR_MECHANISM_PARAM_INVALID, anyPhase, fault},
	{CKR_PARAMETER_SET_NOT_SUPPORTED, anyPhase, fault},
	{CKR_FUNCTION_NOT_SUPPORTED, anyPhase, fault},
	{CKR_FUNCTION_NOT_PARALLEL, anyPhase, fault},
	{CKR_CURVE_NOT_SUPPORTED, anyPhase, fault},
	{CKR_ARGUMENTS_BAD, anyPhase, fault},
	{CKR_KEY_SIZE_RANGE, anyPhase, fault},
	{CKR_WRAPPING_KEY_SIZE_RANGE, anyPhase, fault},
	{CKR_UNWRAPPING_KEY_SIZE_RANGE, anyPhase, fault},

	// Wrong object or template: may be tampering with the object store.
	{CKR_KEY_TYPE_INCONSISTENT, anyPhase, fault},
	{CKR_WRAPPING_KEY_TYPE_INCONSISTENT, anyPhase, fault},
	{CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, anyPhase, fault},
	{CKR_KEY_FUNCTION_NOT_PERMITTED, anyPhase, fault},
	{CKR_ACTION_PROHIBITED, anyPhase, fault},
	{CKR_OPERATION_NOT_VALIDATED, anyPhase, fault},
	{CKR_TEMPLATE_INCOMPLETE, anyPhase, fault},
	{CKR_TEMPLATE_INCONSISTENT, anyPhase, fault},
	{CKR_ATTRIBUTE_READ_ONLY, anyPhase, fault},
	{CKR_ATTRIBUTE_SENSITIVE, anyPhase, fault},
	{CKR_ATTRIBUTE_TYPE_INVALID, anyPhase, fault},
	{CKR_ATTRIBUTE_VALUE_INVALID, anyPhase, fault},
	{CKR_KEY_UNEXTRACTABLE, anyPhase, fault},
	{CKR_KEY_NOT_WRAPPABLE, anyPhase, fault},
	{CKR_KEY_NOT_NEEDED, anyPhase, fault},
	{CKR_KEY_NEEDED, anyPhase, fault},
	{CKR_KEY_CHANGED, anyPhase, fault},
	{CKR_KEY_INDIGESTIBLE, anyPhase, fault},
	{CKR_KEY_EXHAUSTED, anyPhase, fault},
	{CKR_INFORMATION_SENSITIVE, anyPhase, fault},
	{CKR_SAVED_STATE_INVALID, anyPhase, fault},
	{CKR_STATE_UNSAVEABLE, anyPhase, fault},
	{CKR_TOKEN_WRITE_PROTECTED, anyPhase, fault},
	{CKR_EXCEEDED_MAX_ITERATIONS, anyPhase, fault},

	{CKR_RANDOM_NO_RNG, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_RANDOM_SEED_NOT_SUPPORTED, anyPhase, fault},
	{CKR_SEED_RANDOM_REQUIRED, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_FIPS_SELF_TEST_FAILED, anyPhase, Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}},
	{CKR_FUNCTION_CANCELED, anyPhase, fault},
	{CKR_FUNCTION_REJECTED, anyPhase, fault},
	{CKR_CANCEL, anyPhase, fault},
	{CKR_NO_EVENT, anyPhase, fault},

	// A vendor's own codes (>= 80000000) are unknown until a table for that vendor exists: as a device error.
	{CKR_VENDOR_DEFINED, anyPhase, device},
}

// Classify finds the class of a return value from a PKCS#11 function. CKR_OK has the zero Class.
func Classify(code CKR, function string) Class {
	if code == CKR_OK {
		return Class{}
	}
	c, _ := classify(code, phaseOf(function))
	return c
}

func classify(code CKR, p phase) (c Class, known bool) {
	c = device
	for i := range rows {
		if rows[i].code == code {
			if rows[i].phase == p {
				return rows[i].class, true
			}
			if rows[i].phase == anyPhase {
				c, known = rows[i].class, true
			}
		}
	}
	return c, known
}

// classOf is the class of anything a Session or a Token may return.
func classOf(err error) Class {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class()
	}
	switch {
	case errors.Is(err, ErrTimeout):
		return Class{actS | actR | actElsewhere, Timeout}
	case errors.Is(err, ErrSessionClosed):
		return Class{actS | actH | actR, Internal}
	case errors.Is(err, ErrNoRoots): // they were there at the start
		return Class{actS | actR | actElsewhere | actQ | actA, Unavailable}
	case errors.Is(err, ErrPIN), errors.Is(err, ErrWrong):
		return Class{actS | actX | actQ | actA | actR | actElsewhere, Internal}
	}
	return device
}
