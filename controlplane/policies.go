package controlplane

import (
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// defaultPolicy is the key policy of a key that was created without one (kms-api, "Default policy").
func defaultPolicy(partition string, a keyid.Account) string {
	return `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow",` +
		`"Principal":{"AWS":"arn:` + partition + `:iam::` + a.String() + `:root"},"Action":"kms:*","Resource":"*"}]}`
}

// validatePolicy holds a key policy to the size that KMS allows and to strict JSON: one object, no member twice, nothing behind it, not
// nested deeper than a request may be. What it says is not looked at. AWS sends no text with most MalformedPolicyDocumentExceptions.
func validatePolicy(policy []byte) error {
	if len(policy) > kmsapi.PolicyMax {
		return kmsapi.New(kmsapi.LimitExceeded, "The key policy is larger than 32768 bytes.")
	}
	d := jsontext.NewDecoder(bytes.NewReader(policy))
	if d.PeekKind() != '{' {
		return malformedPolicy("The key policy is not a JSON object.")
	}
	for {
		if k := d.PeekKind(); (k == '{' || k == '[') && d.StackDepth() == kmsapi.JSONDepthMax {
			return malformedPolicy("The key policy is nested too deeply.")
		}
		_, err := d.ReadToken()
		switch {
		case errors.Is(err, jsontext.ErrDuplicateName):
			return malformedPolicy("The key policy has a member twice.")
		case err != nil:
			return malformedPolicy("The key policy is not valid JSON.")
		}
		if d.StackDepth() > 0 {
			continue
		}
		if _, err := d.ReadToken(); err != io.EOF {
			return malformedPolicy("The key policy has data behind its JSON object.")
		}
		return nil
	}
}

func malformedPolicy(text string) error { return kmsapi.New(kmsapi.MalformedPolicyDocument, text) }

type getKeyPolicyIn struct {
	KeyId      *string
	PolicyName *string
}

func (in *getKeyPolicyIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkPolicyName(v, in.PolicyName)
}

type getKeyPolicyOut struct {
	Policy     string
	PolicyName string
}

// policyNamed refuses every policy name but the one there is.
func policyNamed(name *string) error {
	if name != nil && *name != kmsapi.PolicyNameDefault {
		return kmsapi.New(kmsapi.NotFound, "No such policy exists")
	}
	return nil
}

// GetKeyPolicy returns the policy as it was put, byte for byte.
func (s *Server) getKeyPolicy(ctx context.Context, c *call, in *getKeyPolicyIn) (getKeyPolicyOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return getKeyPolicyOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return getKeyPolicyOut{}, err
	}
	k.Wipe()
	if err := policyNamed(in.PolicyName); err != nil {
		return getKeyPolicyOut{}, err
	}
	return getKeyPolicyOut{Policy: string(k.Policy.Document), PolicyName: kmsapi.PolicyNameDefault}, nil
}

type putKeyPolicyIn struct {
	KeyId                          *string
	PolicyName                     *string
	Policy                         *string
	BypassPolicyLockoutSafetyCheck *bool
}

func (in *putKeyPolicyIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkPolicyName(v, in.PolicyName)
	if in.Policy == nil {
		v.Null("policy")
	}
	checkPolicy(v, in.Policy)
}

func (s *Server) putKeyPolicy(ctx context.Context, c *call, in *putKeyPolicyIn) (none, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return none{}, err
	}
	policy := []byte(*in.Policy)
	err = s.store.PutPolicy(ctx, n, func(k *store.Key) (store.Policy, error) {
		if err := s.admit(c, k); err != nil {
			return store.Policy{}, err
		}
		if err := policyNamed(in.PolicyName); err != nil {
			return store.Policy{}, err
		}
		return store.Policy{Document: policy}, validatePolicy(policy)
	})
	s.publishKey(n, err)
	if err != nil {
		return none{}, s.keyError(n, err)
	}
	return none{}, nil
}

type listKeyPoliciesIn struct {
	KeyId  *string
	Limit  *int32
	Marker *string
}

func (in *listKeyPoliciesIn) check(v *kmsapi.Violations) {
	checkKeyID(v, "keyId", in.KeyId)
	checkPage(v, in.Limit, in.Marker, kmsapi.LimitMax)
}

type listKeyPoliciesOut struct {
	PolicyNames []string
	Truncated   bool
}

// ListKeyPolicies: a key has one policy, so there is never a marker to come back with.
func (s *Server) listKeyPolicies(ctx context.Context, c *call, in *listKeyPoliciesIn) (listKeyPoliciesOut, error) {
	n, err := s.keyName(c, *in.KeyId)
	if err != nil {
		return listKeyPoliciesOut{}, err
	}
	k, err := s.view(ctx, c, n)
	if err != nil {
		return listKeyPoliciesOut{}, err
	}
	k.Wipe()
	if in.Marker != nil {
		return listKeyPoliciesOut{}, kmsapi.E(kmsapi.InvalidMarker)
	}
	return listKeyPoliciesOut{PolicyNames: []string{kmsapi.PolicyNameDefault}}, nil
}
