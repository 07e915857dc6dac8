package dataplane

import (
	"context"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// question is what one request asks authz.Decide, and the authz.Grants that it reads. It is a part of a pooled request.
type question struct {
	authz.Question
	context authz.Context
	scratch policy.Scratch

	s       *Server
	request *request // whose part it is
	region  *region
	key     *keyView
	leases  [len(authz.Caller{}.Grantees)]cache.Lease[authz.GrantSet]
	held    int
	name    []byte // buffer: cache names
}

const grantNameCap = keyNameLen + 128

func (q *question) reset() {
	q.release()
	q.Question = authz.Question{}
	q.context.Reset()
	q.scratch.Reset()
	q.s, q.request, q.region, q.key = nil, nil, nil, nil
	q.name = wiped(q.name, grantNameCap)
}

// release gives back the grants that the last decision was made from.
func (q *question) release() {
	for i := range q.leases[:q.held] {
		q.leases[i].Release()
	}
	q.held = 0
}

// Grants implements authz.Grants: from the cache, else from the store.
func (q *question) Grants(grantee string) (*authz.GrantSet, error) {
	s, k := q.s, q.key
	q.name = append(q.region.appendKeyName(emptied(q.name), k.Account, k.ID), grantee...)
	lease, ok := s.grants.Get(q.name)
	if !ok {
		var err error
		if lease, err = s.loadGrants(q.name, k, grantee); err != nil {
			return nil, err
		}
	}
	s.saw(q.request, lease.Mark())
	set := lease.Value()
	if set == nil {
		lease.Release()
		return nil, nil
	}
	q.leases[q.held] = lease
	q.held++
	return set, nil
}

func (s *Server) loadGrants(name []byte, k *keyView, grantee string) (cache.Lease[authz.GrantSet], error) {
	return s.grants.Load(name, func() (*authz.GrantSet, int64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		grants, err := s.parts.Records.Grants(ctx, k.Region, k.Account, k.ID, grantee)
		if err != nil {
			return nil, 0, err
		}
		set := authz.NewGrantSet(grants)
		return set, set.Size(), nil
	})
}

// question is what the request asks, with what every decision about it goes by filled in.
func (r *request) question(s *Server) *question {
	q := &r.ask
	if q.s != nil {
		return q
	}
	w := r.who.Principal().Caller
	q.s, q.request, q.region = s, r, r.region
	q.Caller, q.Context, q.Scratch, q.Question.Grants = w, &q.context, &q.scratch, q
	c := &q.context
	c.Caller, c.Now, c.SourceIP, c.SecureTransport = w, r.date, r.ip, s.cfg.TLS
	c.UserAgent, c.Region = r.header.userAgent, r.region.name
	if r.attested != nil {
		c.Extra = attestation(r.attested)
	}
	if w.Kind == policy.Service {
		// Only a registered service can tell for which resource of its own it calls; of anybody else the headers mean nothing.
		c.SourceArn, c.SourceAccount = r.header.value("x-amz-source-arn"), r.header.value("x-amz-source-account")
	}
	return q
}

// authorize decides whether the caller may do the action on the key, under the encryption context of this half of the request. alias is how
// the request names the key, if by an alias.
func (s *Server) authorize(r *request, k *keyView, action *authz.Action, context authz.Pairs, algorithm, alias []byte) kmsapi.Code {
	return s.authorizeAs(r, k, &decision{kind: decidedKey, dest: k == r.dest, action: action, context: context, algorithm: algorithm, alias: alias})
}

func (s *Server) authorizeAs(r *request, k *keyView, d *decision) kmsapi.Code {
	s.decides(r, *d)
	q := r.question(s)
	q.key = k
	q.Action, q.Resource, q.Owner, q.Policy = d.action, k.ARN, k.Account, k.Policy
	c := &q.context
	c.Key, c.EncryptionContext, c.RequestAlias, c.EncryptionAlgorithm = &k.Facts, d.context, d.alias, d.algorithm
	if d.algorithm == nil {
		c.EncryptionAlgorithm = symmetricDefault
	}
	return s.decide(r, q)
}

// authorizeUse is authorize for an operation without an encryption context: what it does with the key is a condition key of its own.
func (s *Server) authorizeUse(r *request, k *keyView, alias []byte) kmsapi.Code {
	s.decides(r, decision{kind: decidedUse, alias: alias})
	q, in := r.question(s), &r.in
	q.key = k
	q.Action, q.Resource, q.Owner, q.Policy = r.op.action, k.ARN, k.Account, k.Policy
	c := &q.context
	c.Key, c.RequestAlias = &k.Facts, alias
	switch {
	case in.has&mSigningAlgorithm != 0:
		c.SigningAlgorithm = in.algorithm
		if c.MessageType = in.messageType; c.MessageType == nil {
			c.MessageType = messageRaw
		}
	case in.has&mMacAlgorithm != 0:
		c.MacAlgorithm = in.algorithm
	case in.has&mKeyAgreementAlgorithm != 0:
		c.KeyAgreementAlgorithm = in.algorithm
	case in.has&mEncapsulationAlgorithm != 0:
		c.EncapsulationAlgorithm = in.algorithm
	}
	return s.decide(r, q)
}

var symmetricDefault = []byte(kmsapi.SymmetricDefault)

// authorizeAlone decides about an action that concerns no key.
func (s *Server) authorizeAlone(r *request, action *authz.Action) kmsapi.Code {
	s.decides(r, decision{kind: decidedAlone, action: action})
	q := r.question(s)
	q.Action, q.Resource, q.Owner, q.Alone = action, everything, q.Caller.Account, true
	return s.decide(r, q)
}

var everything = []byte("*")

func (s *Server) decide(r *request, q *question) kmsapi.Code {
	d, err := authz.Decide(&q.Question)
	q.release()
	switch {
	case err != nil:
		r.renewNow()
		return s.fail(r, err)
	case !d.Reason.Allowed():
		return r.denied(&d)
	}
	return kmsapi.OK
}

func (r *request) denied(d *authz.Decision) kmsapi.Code {
	r.msg = d.AppendDenied(emptied(r.msg), &r.ask.Question) // it may replace a longer text
	return kmsapi.AccessDenied
}

// denyUnknown refuses a key of another account that does not exist, in the words for one that does.
func (s *Server) denyUnknown(r *request, action *authz.Action) kmsapi.Code {
	r.question(s).Action = action
	return r.denied(&authz.Decision{Reason: authz.NotAbroad})
}
