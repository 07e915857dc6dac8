package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/hsm"
)

// Causes of a Fault: why a cluster does not come up. Compare with errors.Is.
var (
	ErrPIN       = errors.New("cluster: an HSM refuses the PIN")                                // INVALID_CREDENTIALS
	ErrPINLocked = errors.New("cluster: an HSM has the PIN locked, expired, or one try left")   // USER_LOCKED_OUT
	ErrNoUser    = errors.New("cluster: an HSM has no user with a PIN")                         // USER_NOT_FOUND
	ErrTwice     = errors.New("cluster: two members are one HSM, or another cluster has it")    // INTERNAL_ERROR
	ErrNoRoots   = errors.New("cluster: an HSM has no keyplane roots (run: keyplane hsm init)") // INTERNAL_ERROR
	ErrAway      = errors.New("cluster: no HSM answers")                                        // NETWORK_ERRORS
	ErrAbsent    = errors.New("cluster: no HSM is there")                                       // INSUFFICIENT_CLOUDHSM_HSMS: modules answer, and have no such token
	ErrUnusable  = errors.New("cluster: no HSM can be used")                                    // INTERNAL_ERROR: whatever else there is
)

// Other errors. What HSMs answer is wrapped, so that hsm.Final has a Result for it.
var (
	// ErrDisconnected says that there is no connection, or that it ended meanwhile.
	ErrDisconnected = errors.New("cluster: not connected")
	// ErrConnected is Connect's where there is a connection, or one is being made.
	ErrConnected = errors.New("cluster: connected already")
	// ErrFull says that as many wait for a member's random bytes as may, or that their turn does not come in time.
	ErrFull = errors.New("cluster: too many ask for random bytes")
	// ErrTooFew says that a key needs more HSMs than answer (MembersMin).
	ErrTooFew = errors.New("cluster: too few HSMs answer")
	// ErrDistrusted says that a member gave wrong answers and is left out till the next Connect.
	ErrDistrusted = errors.New("cluster: the HSM gave wrong answers, and is left out")
	// ErrDiffers says that two members have different keys where they should have copies of one.
	ErrDiffers = errors.New("cluster: an HSM has another key than the others")
)

// MemberError is what a member of the cluster answered.
type MemberError struct {
	Member string
	Err    error
}

func (e *MemberError) Error() string { return fmt.Sprintf("HSM %q: %v", e.Member, e.Err) }
func (e *MemberError) Unwrap() error { return e.Err }

// Fault is why a cluster does not come up.
type Fault struct {
	Cause   error // one of those above: errors.Is finds it, and nothing of what the members say
	Members []*MemberError
}

func (f *Fault) Error() string {
	parts := []string{f.Cause.Error()}
	for _, m := range f.Members {
		parts = append(parts, m.Error())
	}
	return strings.Join(parts, "; ")
}

func (f *Fault) Unwrap() error { return f.Cause }

// causes are those of faults, the first counts: what somebody has to change comes before what may pass, and that before what nothing is known of.
var causes = []error{ErrPIN, ErrPINLocked, ErrNoUser, ErrTwice, ErrNoRoots, ErrUnusable, ErrAway, ErrAbsent}

// causeOf is the cause that an error of opening a member is.
func causeOf(err error) error {
	e, isCode := errors.AsType[*hsm.Error](err)
	if errors.Is(err, hsm.ErrPIN) || isCode && e.Function == "C_Login" {
		switch {
		case !isCode:
			return ErrPIN
		case e.CKR == hsm.CKR_PIN_LOCKED, e.CKR == hsm.CKR_PIN_EXPIRED:
			return ErrPINLocked
		case e.CKR == hsm.CKR_USER_PIN_NOT_INITIALIZED, e.CKR == hsm.CKR_USER_TYPE_INVALID:
			return ErrNoUser
		case errors.Is(err, hsm.ErrPIN):
			return ErrPIN
		}
	}
	switch {
	case errors.Is(err, ErrTwice):
		return ErrTwice
	case errors.Is(err, hsm.ErrNoRoots):
		return ErrNoRoots
	case errors.Is(err, hsm.ErrTimeout):
		return ErrAway
	case !isCode:
		return ErrUnusable
	}
	switch e.CKR {
	case hsm.CKR_TOKEN_NOT_PRESENT, hsm.CKR_TOKEN_NOT_RECOGNIZED, hsm.CKR_TOKEN_NOT_INITIALIZED, hsm.CKR_SLOT_ID_INVALID:
		return ErrAbsent
	case hsm.CKR_DEVICE_REMOVED, hsm.CKR_DEVICE_ERROR, hsm.CKR_GENERAL_ERROR, hsm.CKR_FUNCTION_FAILED, hsm.CKR_CRYPTOKI_NOT_INITIALIZED:
		return ErrAway
	}
	return ErrUnusable
}

// refused says that a cause does not pass by itself, and that trying again could lock the PIN.
func refused(cause error) bool {
	return cause == ErrPIN || cause == ErrPINLocked || cause == ErrNoUser || cause == ErrTwice
}

// newFault has the first cause of what members say, ErrAbsent if they say nothing.
func newFault(members []*MemberError) *Fault {
	cause := ErrAbsent
	for _, f := range members {
		if x := causeOf(f.Err); slices.Index(causes, x) < slices.Index(causes, cause) {
			cause = x
		}
	}
	return &Fault{Cause: cause, Members: members}
}
