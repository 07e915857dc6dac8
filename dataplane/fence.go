package dataplane

import (
	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/invariants"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/xks"
)

// What a process of several must not do: answer from a view that is older than what somebody was told to be in force (internal/fence, docs/ARCHITECTURE.md §5). Nothing
// of this is done without a lease. With one a request meets it four times:
//
//	first    before anything is looked up. What the process knows is then as new as the lease says and only gets newer, so that whatever was in force for a client
//	         when it sent the request is in the decision.
//	likely   before each job for an HSM or a proxy: by the cheap clock, so as not to ask in vain.
//	still    before the record is written: the lease by the cheap clock; and what the decision was made from, keys, grants and the caller's policies, has to be
//	         current. Where it is not, it is read and decided again, and refused as it is now. The record says so.
//	last     after the record, which takes a write to a disk: both again, the lease by fence.Now. Who fails here is told of an internal error and may try again. Of it
//	         there is the record of the success that was not told, and no second one: to write that would take the time that has just run out.
//
// An alias is not looked at again: which key it names gives nobody a right.

// seen is what a request was decided from.
type seen struct {
	marks     [2 + 2*len(authz.Caller{}.Grantees)]cache.Mark // of keys and grants
	marked    int
	subject   *authz.Subject // of the caller; nil: nothing was decided
	decisions [2]decision
	decided   int
}

// decision is one that was made about a key of the request, for it to be made again.
type decision struct {
	kind             decisionKind
	dest             bool // about r.dest, else about r.key
	action           *authz.Action
	context          authz.Pairs
	algorithm, alias []byte // borrow
}

type decisionKind uint8

const (
	decidedKey   decisionKind = iota // by authorize
	decidedUse                       // by authorizeUse
	decidedAlone                     // by authorizeAlone
)

// saw takes note of what a decision is made from.
func (s *Server) saw(r *request, m cache.Mark) {
	if s.cfg.Lease == nil {
		return
	}
	v := &r.seen
	invariants.Check(v.marked < len(v.marks), "a request is decided from more than it can remember")
	if v.marked < len(v.marks) {
		v.marks[v.marked] = m
		v.marked++
	}
}

// decides takes note of a decision that is going to be made.
func (s *Server) decides(r *request, d decision) {
	if s.cfg.Lease == nil {
		return
	}
	v := &r.seen
	v.subject = r.who.Principal().Caller.Holder.Subject()
	invariants.Check(v.decided < len(v.decisions), "a request has more decisions than it can remember")
	if v.decided < len(v.decisions) {
		v.decisions[v.decided] = d
		v.decided++
	}
}

// current says that all that r was decided from is as it was.
func (r *request) current() bool {
	v := &r.seen
	for i := range v.marks[:v.marked] {
		if !v.marks[i].Current() {
			return false
		}
	}
	return v.subject == nil || v.subject == r.who.Principal().Caller.Holder.Subject()
}

// fenced says whether a lease is to be asked about the request: there is one, and the answer is this process's.
func (s *Server) fenced(r *request) bool {
	return s.cfg.Lease != nil && (r.recorded == recordCall || r.recorded == recordNoise)
}

// first refuses a request while the process may not answer. Nobody is known to have sent it.
func (s *Server) first(r *request) kmsapi.Code {
	if s.cfg.Lease.Valid() {
		return kmsapi.OK
	}
	r.recorded = recordNoise
	return r.refuse(kmsapi.KMSInternal)
}

// likely refuses to go on where the lease has run out since.
func (s *Server) likely(r *request) kmsapi.Code {
	if s.cfg.Lease.Likely() {
		return kmsapi.OK
	}
	return r.refuse(kmsapi.KMSInternal)
}

// still is what a request is recorded and answered with that ended with code.
func (s *Server) still(r *request, code kmsapi.Code) kmsapi.Code {
	if !s.fenced(r) {
		return code
	}
	if !s.cfg.Lease.Likely() {
		r.withdraw()
		return r.refuse(kmsapi.KMSInternal)
	}
	if code != kmsapi.OK || r.current() {
		return code
	}
	if code = s.again(r); code != kmsapi.OK {
		r.withdraw()
	}
	return code
}

// last is what a request is answered with that was recorded with code.
func (s *Server) last(r *request, code kmsapi.Code) kmsapi.Code {
	if !s.fenced(r) {
		return code
	}
	if s.cfg.Lease.Valid() && (code != kmsapi.OK || r.current() || s.again(r) == kmsapi.OK && s.cfg.Lease.Valid()) {
		return code
	}
	r.withdraw()
	return r.refuse(kmsapi.KMSInternal)
}

// withdraw wipes what was not told.
func (r *request) withdraw() {
	r.out, r.plain, r.ctext = emptied(r.out), emptied(r.plain), emptied(r.ctext)
}

// again decides a request that was done from what there is now: the state of its keys, and whether the caller may. The keys that did it stay those of the record.
func (s *Server) again(r *request) kmsapi.Code {
	decisions, n := r.seen.decisions, r.seen.decided
	r.seen = seen{}
	var keys [2]*keyView
	for i, old := range [...]*keyView{r.key, r.dest} {
		if old == nil {
			continue
		}
		k, err := s.key(r, old.Account, old.ID)
		switch {
		case err != nil:
			return s.fail(r, err)
		case k == nil:
			r.msg = append(append(append(emptied(r.msg), "Key '"...), old.ARN...), "' does not exist"...)
			return kmsapi.NotFound
		}
		keys[i] = k
	}
	for i := range decisions[:n] {
		d := &decisions[i]
		k := keys[0]
		if d.dest {
			k = keys[1]
		}
		code := kmsapi.OK
		switch d.kind {
		case decidedKey:
			code = s.authorizeAs(r, k, d)
		case decidedUse:
			code = s.authorizeUse(r, k, d.alias)
		case decidedAlone:
			code = s.authorizeAlone(r, d.action)
		}
		if code != kmsapi.OK {
			return code
		}
	}
	for _, k := range keys {
		if k == nil {
			continue
		}
		if code := s.admitState(r, k); code != kmsapi.OK {
			return code
		}
	}
	return kmsapi.OK
}

// Of the proxy of an external key store.

const textFenced = "The key manager cannot tell now whether the key may be used."

func (x *XKS) first(r *request) xks.Failure {
	if x.s.cfg.Lease.Valid() {
		return xks.OK
	}
	return r.refuseXKS(xks.Internal, textFenced)
}

func (x *XKS) still(r *request, code xks.Failure) xks.Failure {
	s := x.s
	if !s.fenced(r) {
		return code
	}
	if !s.cfg.Lease.Likely() {
		r.withdraw()
		return r.refuseXKS(xks.Internal, textFenced)
	}
	if code != xks.OK || r.current() {
		return code
	}
	if code = x.again(r); code != xks.OK {
		r.withdraw()
	}
	return code
}

func (x *XKS) last(r *request, code xks.Failure) xks.Failure {
	s := x.s
	if !s.fenced(r) {
		return code
	}
	if s.cfg.Lease.Valid() && (code != xks.OK || r.current() || x.again(r) == xks.OK && s.cfg.Lease.Valid()) {
		return code
	}
	r.withdraw()
	return r.refuseXKS(xks.Internal, textFenced)
}

// again is Server.again for the key of a proxy, of which the configuration says who may use it.
func (x *XKS) again(r *request) xks.Failure {
	old := r.key
	r.seen = seen{}
	if old == nil {
		return xks.OK
	}
	if code := x.admitKey(r); code != xks.OK {
		r.key = old
		return code
	}
	if r.xks.api == xks.GetKeyMetadata {
		return x.getKeyMetadata(r) // it is the state that is asked for
	}
	r.key = old // which the record is about
	return xks.OK
}
