package dataplane

import (
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

// charge takes one request out of a pool of the caller's account, also where the key is another account's, and also of a dry run. It is asked
// when the caller and the form of the request are known, before anything that costs: keys, decisions, the HSM.
func (s *Server) charge(r *request, p ratelimit.Pool) kmsapi.Code {
	if s.parts.Quota == nil || s.parts.Quota(r.who.Principal().Account, p, r.now) {
		return kmsapi.OK
	}
	// Requests that began later may have overtaken this one, on a machine that was busy elsewhere: it is refused only for what is so now.
	r.renewNow()
	if s.parts.Quota(r.who.Principal().Account, p, r.now) {
		return kmsapi.OK
	}
	return r.refuse(kmsapi.Throttling)
}

// symmetricPool is the pool of an operation while every key is a symmetric encryption key, so that it can be charged before the key is read.
// Keys of other specs are charged by quota.PoolOf when their spec is known.
func symmetricPool(op *kmsapi.Operation) ratelimit.Pool {
	p, ok := quota.PoolOf(op, kmsapi.SymmetricDefault)
	if !ok {
		panic("dataplane: " + op.Name + " has no pool of requests")
	}
	return p
}
