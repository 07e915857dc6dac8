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
	"CancelKeyDeletion":         handle((*Server).cancelKeyDeletion),
	"ConnectCustomKeyStore":     handle((*Server).connectCustomKeyStore),
	"CreateAlias":               handle((*Server).createAlias),
	"CreateCustomKeyStore":      handle((*Server).createCustomKeyStore),
	"CreateGrant":               handle((*Server).createGrant),
	"CreateKey":                 handle((*Server).createKey),
	"DeleteAlias":               handle((*Server).deleteAlias),
	"DeleteCustomKeyStore":      handle((*Server).deleteCustomKeyStore),
	"DeleteImportedKeyMaterial": handle((*Server).deleteImportedKeyMaterial),
	"DescribeCustomKeyStores":   handle((*Server).describeCustomKeyStores),
	"DescribeKey":               handle((*Server).describeKey),
	"DisableKey":                handle((*Server).disableKey),
	"DisableKeyRotation":        handle((*Server).disableKeyRotation),
	"DisconnectCustomKeyStore":  handle((*Server).disconnectCustomKeyStore),
	"EnableKey":                 handle((*Server).enableKey),
	"EnableKeyRotation":         handle((*Server).enableKeyRotation),
	"GetKeyLastUsage":           handle((*Server).getKeyLastUsage),
	"GetKeyPolicy":              handle((*Server).getKeyPolicy),
	"GetKeyRotationStatus":      handle((*Server).getKeyRotationStatus),
	"GetParametersForImport":    handle((*Server).getParametersForImport),
	"ImportKeyMaterial":         handle((*Server).importKeyMaterial),
	"ListAliases":               handle((*Server).listAliases),
	"ListGrants":                handle((*Server).listGrants),
	"ListKeyPolicies":           handle((*Server).listKeyPolicies),
	"ListKeyRotations":          handle((*Server).listKeyRotations),
	"ListKeys":                  handle((*Server).listKeys),
	"ListResourceTags":          handle((*Server).listResourceTags),
	"ListRetirableGrants":       handle((*Server).listRetirableGrants),
	"PutKeyPolicy":              handle((*Server).putKeyPolicy),
	"ReplicateKey":              handle((*Server).replicateKey),
	"RetireGrant":               handle((*Server).retireGrant),
	"RevokeGrant":               handle((*Server).revokeGrant),
	"RotateKeyOnDemand":         handle((*Server).rotateKeyOnDemand),
	"ScheduleKeyDeletion":       handle((*Server).scheduleKeyDeletion),
	"TagResource":               handle((*Server).tagResource),
	"UntagResource":             handle((*Server).untagResource),
	"UpdateAlias":               handle((*Server).updateAlias),
	"UpdateCustomKeyStore":      handle((*Server).updateCustomKeyStore),
	"UpdateKeyDescription":      handle((*Server).updateKeyDescription),
	"UpdatePrimaryRegion":       handle((*Server).updatePrimaryRegion),
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
