package dataplane

import (
	"crypto/subtle"
	"errors"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/ratelimit"
)

// A ciphertext that does not open is bad, or was derived wrongly by the device: InvalidCiphertextException would tell the client that its data is lost. The message key
// is derived once more before that is said, for so many ciphertexts of an account that forgeries cost the HSM next to nothing.

// lookLimit is of one account, allLookLimit of all together.
var (
	lookLimit    = ratelimit.Limit{Interval: 100 * time.Millisecond, Burst: 20}
	allLookLimit = ratelimit.Limit{Interval: 10 * time.Millisecond, Burst: 100}
)

// secondLooks counts them. Accounts share a bucket by chance, which costs them looks and nothing else.
type secondLooks struct {
	account [256]ratelimit.GCRA
	all     ratelimit.GCRA
}

func (l *secondLooks) take(a keyid.Account, now int64) bool {
	if ok, _ := l.account[uint64(a)*0x9E3779B97F4A7C15>>56].Take(lookLimit, now); !ok {
		return false
	}
	ok, _ := l.all.Take(allLookLimit, now)
	return ok
}

var errDerivedTwice = errors.Join(hsm.ErrWrong, errors.New("dataplane: the HSM has derived two message keys for one ciphertext"))

// deriveAgain makes the derivation of the blob that was sent once more, and says whether it is another than before. It is not where the account has had its looks.
func (s *Server) deriveAgain(r *request, d *hsm.Derivation) (differs bool, code kmsapi.Code) {
	if s.parts.Again == nil || !s.secondLooks.take(r.who.Principal().Account, time.Now().UnixNano()) {
		return false, kmsapi.OK
	}
	if code = s.likely(r); code != kmsapi.OK {
		return false, code
	}
	r.renewNow()
	before := d.Out
	defer clear(before[:])
	if r.residents == 0 {
		var err error
		if differs, err = s.parts.Again(&r.job, r.now); err != nil {
			return false, s.fail(r, err)
		}
	} else {
		r.job.Verify = true
		if code = s.roundResident(r); code != kmsapi.OK {
			return false, code
		}
		differs = subtle.ConstantTimeCompare(before[:], d.Out[:]) == 0
	}
	if differs {
		s.warn("the HSM contradicts itself", errDerivedTwice, "request", string(r.id[:]))
	}
	return differs, kmsapi.OK
}
