package dataplane

import (
	"context"
	"slices"

	"github.com/keyplane/keyplane/cache"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// grantList is what is cached of one grantee's grants of one key; there are as many names as key and grantee can make, and most have none.
type grantList struct{ grants []authz.Grant }

// question is what one request asks authz.Decide, and the authz.Grants that it reads. It is a part of a pooled request.
type question struct {
	authz.Question
	context authz.Context
	scratch policy.Scratch

	s      *Server
	key    *snapshot.Key
	leases [len(authz.Caller{}.Grantees)]cache.Lease[grantList]
	held   int
	name   []byte // buffer: cache names
}

const grantNameCap = keyNameLen + 128

func (q *question) reset() {
	q.release()
	q.Question = authz.Question{}
	q.context.Reset()
	q.scratch.Reset()
	q.s, q.key = nil, nil
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
func (q *question) Grants(grantee string) ([]authz.Grant, error) {
	s, k := q.s, q.key
	q.name = append(appendKeyName(emptied(q.name), k.Account, k.ID), grantee...)
	lease, ok := s.grants.Get(q.name)
	if !ok {
		var err error
		if lease, err = s.loadGrants(q.name, k, grantee); err != nil {
			return nil, err
		}
	}
	list := lease.Value()
	if list == nil {
		lease.Release()
		return nil, nil
	}
	q.leases[q.held] = lease
	q.held++
	return list.grants, nil
}

func (s *Server) loadGrants(name []byte, k *snapshot.Key, grantee string) (cache.Lease[grantList], error) {
	return s.grants.Load(name, func() (*grantList, int64, error) {
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		grants, err := s.parts.Records.Grants(ctx, s.cfg.Region, k.Account, k.ID, grantee)
		if err != nil || len(grants) == 0 {
			return nil, 0, err
		}
		// Those without constraints first: most often the first one that is looked at allows.
		slices.SortStableFunc(grants, func(a, b authz.Grant) int { return constraints(&a) - constraints(&b) })
		size := int64(64)
		for i := range grants {
			size += grantSize(&grants[i])
		}
		return &grantList{grants}, size, nil
	})
}

func constraints(g *authz.Grant) int {
	if g.HasEquals || g.HasSubset || g.SourceARN != "" {
		return 1
	}
	return 0
}

func grantSize(g *authz.Grant) int64 {
	n := 160 + len(g.ID) + len(g.SourceARN)
	for _, pairs := range [...][]authz.Pair{g.Equals, g.Subset} {
		for i := range pairs {
			n += 64 + len(pairs[i].Key) + len(pairs[i].Value)
		}
	}
	return int64(n)
}

// GrantChanged is KeyChanged for the grants of a key to one grantee, a name of authz.Caller.Grantees.
func (s *Server) GrantChanged(a keyid.Account, id keyid.ID, grantee string) {
	s.grants.Invalidate(append(appendKeyName(nil, a, id), grantee...))
}

// question is what the request asks, with what every decision about it goes by filled in.
func (r *request) question(s *Server) *question {
	q := &r.ask
	if q.s != nil {
		return q
	}
	w := r.who.Principal().Caller
	q.s = s
	q.Caller, q.Context, q.Scratch, q.Question.Grants = w, &q.context, &q.scratch, q
	c := &q.context
	c.Caller, c.Now, c.SourceIP, c.SecureTransport = w, r.now, r.ip, s.cfg.TLS
	c.UserAgent, c.Region = r.header.userAgent, s.cfg.Region
	if w.Kind == policy.Service {
		// Only a registered service can tell for which resource of its own it calls; of anybody else the headers mean nothing.
		c.SourceArn, c.SourceAccount = r.header.value("x-amz-source-arn"), r.header.value("x-amz-source-account")
	}
	return q
}

// authorize decides whether the caller may do the action on the key, under the encryption context of this half of the request. alias is how
// the request names the key, if by an alias.
func (s *Server) authorize(r *request, k *snapshot.Key, action *authz.Action, context authz.Pairs, algorithm, alias []byte) kmsapi.Code {
	q := r.question(s)
	q.key = k
	q.Action, q.Resource, q.Owner, q.Policy = action, k.ARN, k.Account, k.Policy
	c := &q.context
	c.Key, c.EncryptionContext, c.RequestAlias, c.EncryptionAlgorithm = &k.Facts, context, alias, algorithm
	if algorithm == nil {
		c.EncryptionAlgorithm = symmetricDefault
	}
	return s.decide(r, q)
}

var symmetricDefault = []byte(kmsapi.SymmetricDefault)

// authorizeAlone decides about an action that concerns no key.
func (s *Server) authorizeAlone(r *request, action *authz.Action) kmsapi.Code {
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
