package controlplane

import (
	"context"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// handler runs one operation on a request body and returns the body of the reply.
type handler func(s *Server, ctx context.Context, c *call, body []byte) ([]byte, error)

// handlers has a row for every operation that kmsapi.Operations gives to the control plane and says is built; a test compares the two.
var handlers = map[string]handler{
	"CancelKeyDeletion":    handle((*Server).cancelKeyDeletion),
	"CreateAlias":          handle((*Server).createAlias),
	"CreateGrant":          handle((*Server).createGrant),
	"CreateKey":            handle((*Server).createKey),
	"DeleteAlias":          handle((*Server).deleteAlias),
	"DescribeKey":          handle((*Server).describeKey),
	"DisableKey":           handle((*Server).disableKey),
	"EnableKey":            handle((*Server).enableKey),
	"GetKeyLastUsage":      handle((*Server).getKeyLastUsage),
	"GetKeyPolicy":         handle((*Server).getKeyPolicy),
	"ListAliases":          handle((*Server).listAliases),
	"ListGrants":           handle((*Server).listGrants),
	"ListKeyPolicies":      handle((*Server).listKeyPolicies),
	"ListKeys":             handle((*Server).listKeys),
	"ListResourceTags":     handle((*Server).listResourceTags),
	"ListRetirableGrants":  handle((*Server).listRetirableGrants),
	"PutKeyPolicy":         handle((*Server).putKeyPolicy),
	"RetireGrant":          handle((*Server).retireGrant),
	"RevokeGrant":          handle((*Server).revokeGrant),
	"ScheduleKeyDeletion":  handle((*Server).scheduleKeyDeletion),
	"TagResource":          handle((*Server).tagResource),
	"UntagResource":        handle((*Server).untagResource),
	"UpdateAlias":          handle((*Server).updateAlias),
	"UpdateKeyDescription": handle((*Server).updateKeyDescription),
}

// input is the decoded body of an operation. Members are pointers: nil is absent, and so is null. check records every constraint of the
// service model that the input breaks; what needs more than one member or AWS words otherwise is the operation's own business.
type input[In any] interface {
	*In
	check(v *kmsapi.Violations)
}

// none is the output of operations that have none: the reply's body is empty.
type none struct{}

// handle makes the handler of an operation.
func handle[P input[In], In, Out any](run func(*Server, context.Context, *call, P) (Out, error)) handler {
	return func(s *Server, ctx context.Context, c *call, body []byte) ([]byte, error) {
		in := P(new(In))
		if err := decode(body, in); err != nil {
			return nil, err
		}
		var v kmsapi.Violations
		in.check(&v)
		if err := v.Err(); err != nil {
			return nil, err
		}
		if err := s.charge(c); err != nil {
			return nil, err
		}
		out, err := run(s, ctx, c, in)
		if err != nil {
			return nil, err
		}
		if _, empty := any(out).(none); empty {
			return nil, nil
		}
		return json.Marshal(out)
	}
}
