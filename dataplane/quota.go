package dataplane

import (
	"strings"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

// charge takes one request out of a pool of the caller's account, also where the key is another account's, and also of a dry run. It is asked
// when the caller and the form of the request are known, before anything that costs: decisions, the HSM, and keys but where the pool is that of the key.
func (s *Server) charge(r *request, p ratelimit.Pool) kmsapi.Code {
	if s.parts.Quota == nil || s.parts.Quota(r.region.index, r.who.Principal().Account, p, r.now) {
		return kmsapi.OK
	}
	// Requests that began later may have overtaken this one, on a machine that was busy elsewhere: it is refused only for what is so now.
	r.renewNow()
	if s.parts.Quota(r.region.index, r.who.Principal().Account, p, r.now) {
		return kmsapi.OK
	}
	return r.refuse(kmsapi.Throttling)
}

// pools are the request quotas of an operation: by the spec of the key that it uses, or of the key pair that it makes.
type pools struct {
	of    [keyspec.MLKEM1024 + 1]ratelimit.Pool // by keyspec.Spec; of keyspec.None that of symmetric encryption keys, and of requests whose key is not known
	byKey bool                                  // they differ by the key: it has to be found first
}

func poolsOf(op *kmsapi.Operation) (p pools) {
	pool := func(spec string) ratelimit.Pool {
		of, ok := quota.PoolOf(op, spec)
		if !ok {
			of = quota.Symmetric // of keys that the operation is refused for
		}
		return of
	}
	other := kmsapi.SymmetricDefault
	if strings.HasPrefix(op.Name, "GenerateDataKeyPair") {
		other = "SM2" // the one spec of key pairs that keyspec does not have
	}
	p.of[keyspec.None] = pool(other)
	for _, s := range keyspec.All() {
		p.of[s] = pool(s.String())
		p.byKey = p.byKey || p.of[s] != p.of[keyspec.None]
	}
	if strings.HasPrefix(op.Name, "GenerateDataKey") {
		p.byKey = false // it is a symmetric key's, or the call is refused
	}
	return p
}

// enter is what a request passes first: it is charged, and its attestation document, which costs something too, is verified. spec is that of its key, or of the
// key pair that it asks for.
func (s *Server) enter(r *request, spec keyspec.Spec) kmsapi.Code {
	if code := s.charge(r, r.op.pools.of[spec]); code != kmsapi.OK {
		return code
	}
	if r.in.has&mRecipient != 0 {
		return s.recipient(r)
	}
	return kmsapi.OK
}
