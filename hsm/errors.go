package hsm

import (
	"errors"
	"fmt"
)

// Errors that are not answers of a PKCS#11 module. Compare with errors.Is: what Run leaves in a job may wrap them.
var (
	ErrNoRoot        = errors.New("hsm: no token holds this derivation root")
	ErrNoRoots       = errors.New("hsm: the token has no keyplane roots (run: keyplane hsm init)")
	ErrNoAuditKey    = errors.New("hsm: the token has no key \"keyplane audit\" (run: keyplane hsm init, which makes what is missing)")
	ErrNoCAKey       = errors.New("hsm: the token has no key \"keyplane CA\" (run: keyplane ca init)")
	ErrUnavailable   = errors.New("hsm: no serving session")
	ErrSessionClosed = errors.New("hsm: session is closed")
	ErrTimeout       = errors.New("hsm: no answer from the module in time")
	ErrWrong         = errors.New("hsm: the module reported success and gave a wrong result")
	ErrDisputed      = errors.New("hsm: two tokens with one root give two results, each again and again")
	ErrPIN           = errors.New("hsm: PIN refused or locked; it is not tried again")
	ErrJob           = errors.New("hsm: job outside its limits")
	ErrReused        = errors.New("hsm: job was reused while it was handed in: this is a bug; its results were not delivered")
)

// Error is a PKCS#11 function's refusal.
type Error struct {
	CKR      CKR
	Function string // "C_Encrypt", …
}

func (e *Error) Error() string { return fmt.Sprintf("hsm: %s: %s", e.Function, e.CKR) }

// MaterialFault is the error of a token's call on key material from outside, or on the key that it became, where the code may be the token's fault as well as
// the material's: only a canary tells. It is an ErrMaterial and says nothing more; the code is in what it wraps.
type MaterialFault struct{ Cause error }

func (f *MaterialFault) Error() string        { return ErrMaterial.Error() }
func (f *MaterialFault) Is(target error) bool { return target == ErrMaterial }
func (f *MaterialFault) Unwrap() error        { return f.Cause }

// Class is the row of the table that applies to this code from this function.
func (e *Error) Class() Class { return Classify(e.CKR, e.Function) }

// refusal is the error of a job that may go to another shard: cause, and the permission.
type refusal struct{ cause error }

func (r *refusal) Error() string { return r.cause.Error() }
func (r *refusal) Unwrap() error { return r.cause }

// Retryable reports whether the caller may hand the job in again, once, to the shard that PickOther gives, with Attempt set.
// Nothing was delivered and no module keeps anything of the job.
func Retryable(err error) bool {
	_, ok := errors.AsType[*refusal](err)
	return ok
}

// Result is what a caller tells its client about a job.
type Result uint8

// Results. Retry comes first: while it holds, the client is told nothing and the job goes to another shard.
const (
	Done        Result = iota // no error
	Retry                     // Retryable
	Unavailable               // the key cannot be used now: no token with this root serves
	Internal                  // a fault on our side
	Timeout                   // the HSM did not answer in time
	Throttled                 // the HSM has no room for more
	DataError                 // the caller's data is bad; only where a module interprets such data (decrypt, unwrap, verify)
)

// Outcome says what a job's error means for the client. It never allocates.
func Outcome(err error) Result {
	if err == nil {
		return Done
	}
	if Retryable(err) {
		return Retry
	}
	return Final(err)
}

// Final is Outcome where no retry is left: no other shard, no time.
func Final(err error) Result {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Class().Result
	}
	switch {
	case errors.Is(err, ErrTimeout):
		return Timeout
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrNoRoot), errors.Is(err, ErrNoRoots), errors.Is(err, ErrNotOffered):
		return Unavailable
	}
	return Internal
}
