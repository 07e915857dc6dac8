package controlplane

import (
	"bytes"
	"context"
	"errors"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// ManagedFor is Managed for a request that another process sends, to a data plane of which it came: who calls is what its signature says, and the request has to
// name the alias. The reply is that process's, and the record of the call.
func (s *Server) ManagedFor(ctx context.Context, signed *sigv4.Request, alias string) error {
	if len(signed.Body) > kmsapi.BodyMax {
		return kmsapi.E(kmsapi.RequestEntityTooLarge)
	}
	applied := s.appliedNow()
	var scratch sigv4.Scratch
	defer scratch.Reset()
	identity, code := s.verifier.Verify(signed, &scratch, s.now())
	if code != kmsapi.OK {
		return kmsapi.New(code, string(scratch.Message()))
	}
	w := identity.Principal()
	if identity.Service() != kmsapi.SigningName || identity.Region() != s.region || w == nil || w.Caller == nil || !namesAlias(signed.Body, w.Account, alias) {
		return errors.New("controlplane: an AWS managed key is asked for by a request that does not use it")
	}
	return s.Managed(s.under(ctx, applied, identity), w.Caller, alias)
}

// namesAlias reports whether a request to use a key names the alias of the account, by its name or its ARN.
func namesAlias(body []byte, a keyid.Account, alias string) bool {
	var in struct{ KeyId, SourceKeyId, DestinationKeyId string }
	if json.Unmarshal(body, &in) != nil {
		return false
	}
	for _, text := range []string{in.KeyId, in.SourceKeyId, in.DestinationKeyId} {
		ref, fault := keyid.Parse([]byte(text))
		if fault == keyid.None && bytes.Equal(ref.Alias, []byte(alias)) && (ref.Kind != keyid.AliasARN || ref.Account == a) {
			return true
		}
	}
	return false
}
