package dataplane

import (
	"errors"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The operations with keys that are not for symmetric encryption. What needs the private key runs in the HSM, one KeyJob of a request; what needs only the
// public key runs here (internal/pubkey).

// open is the way of these operations to their key: find, decide, tokens, usage and algorithm, state.
func (s *Server) open(r *request, usage keyspec.Usage) kmsapi.Code {
	var alias []byte
	var code kmsapi.Code
	if r.key, alias, code = s.find(r, r.in.keyID); code != kmsapi.OK {
		return code
	}
	if code = s.authorizeUse(r, r.key, alias); code != kmsapi.OK {
		return code
	}
	if code = s.admitTokens(r); code != kmsapi.OK {
		return code
	}
	return s.admit(r, r.key, usage, r.in.algorithm)
}

// private does one operation with the private key of k, or its HMAC key, and leaves the result in r.plain. bad is the exception for data that the operation
// cannot be done with.
func (s *Server) private(r *request, k *keyView, m hsm.Mechanism, in []byte, bad kmsapi.Code) kmsapi.Code {
	if s.parts.Keys == nil {
		return r.notOffered(k)
	}
	if code := s.likely(r); code != kmsapi.OK {
		return code
	}
	r.plain = emptied(r.plain)[:k.spec.Info().Result]
	j := &r.use
	j.Key, j.Mechanism, j.In, j.Out = &k.private, m, in, r.plain
	err := s.parts.Keys.Run(j, r.now)
	switch {
	case err == nil:
		clear(r.plain[j.N:])
		r.plain = r.plain[:j.N]
		return kmsapi.OK
	case errors.Is(err, hsm.ErrNotOffered):
		return r.notOffered(k)
	case hsm.Outcome(err) == hsm.DataError:
		return r.refuse(bad)
	}
	return s.fail(r, err)
}

// notOffered refuses what no HSM at hand does.
func (r *request) notOffered(k *keyView) kmsapi.Code {
	r.msg = append(append(emptied(r.msg), r.op.Name...), " with keys of key spec "...)
	r.msg = append(append(r.msg, k.Spec...), " is not offered by this server's HSM."...)
	return kmsapi.UnsupportedOperation
}
