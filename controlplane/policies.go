package controlplane

import (
	"context"
	"errors"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
)

// defaultPolicy is the key policy of a key that was created without one (kms-api, "Default policy").
func defaultPolicy(partition string, a keyid.Account) string {
	return `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow",` +
		`"Principal":{"AWS":"arn:` + partition + `:iam::` + a.String() + `:root"},"Action":"kms:*","Resource":"*"}]}`
}

// lockedOut is AWS's text for a key policy that its maker could not change any more.
const lockedOut = "The new key policy will not allow you to update the key policy in the future."

// newPolicy checks a key policy that a caller puts on the key k, whose ARN is arn, and binds the principals that it names. Unless bypass says so, it has to
// leave PutKeyPolicy to the caller, or to the caller's account.
func (s *Server) newPolicy(c *call, k *store.Key, arn string, document []byte, bypass *bool) (store.Policy, error) {
	put, p, err := s.parsePolicy(document, s.bind)
	if err != nil {
		return store.Policy{}, err
	}
	return put, s.lockout(c, k, arn, p, bypass)
}

// bind is a policy.Binder over the principals that there are.
func (s *Server) bind(arn string) (string, bool) {
	return s.principals.Bind(policy.PrincipalARN(arn, s.partition))
}

// parsePolicy checks a key policy and binds its principals.
func (s *Server) parsePolicy(document []byte, bind policy.Binder) (store.Policy, *policy.Policy, error) {
	if len(document) > kmsapi.PolicyMax {
		return store.Policy{}, nil, kmsapi.New(kmsapi.LimitExceeded, "The key policy is larger than 32768 bytes.")
	}
	put := store.Policy{Document: document, Bound: map[string]string{}}
	p, err := policy.Parse(document, policy.KeyPolicy, func(arn string) (string, bool) {
		id, ok := bind(arn)
		if ok {
			put.Bound[arn] = id
		}
		return id, ok
	})
	if err == nil {
		err = p.Within(s.partition)
	}
	if err != nil {
		if e, ok := errors.AsType[*policy.Error](err); ok {
			return store.Policy{}, nil, malformedPolicy(e.Message)
		}
		return store.Policy{}, nil, err
	}
	return put, p, nil
}

// lockout refuses a policy of the key k, whose ARN is arn, that its maker could not change any more.
func (s *Server) lockout(c *call, k *store.Key, arn string, p *policy.Policy, bypass *bool) error {
	if bypass != nil && *bypass {
		return nil
	}
	w := c.principal()
	if w == nil {
		return malformedPolicy(lockedOut)
	}
	facts := k.Facts()
	c.context.Key = &facts
	result := p.Evaluate(&policy.Request{
		Action: authz.Actions["PutKeyPolicy"].Name, Resource: []byte(arn), Principal: &w.Principal, Context: &c.context,
		Scratch: &c.scratch,
	})
	if result.Deny != 0 || result.Allow == (policy.Result{}).Allow {
		return malformedPolicy(lockedOut)
	}
	return nil
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
	c.context.Extra = append(c.context.Extra, bypassing(in.BypassPolicyLockoutSafetyCheck))
	err = s.store.PutPolicy(ctx, n, func(k *store.Key) (store.Policy, error) {
		if err := s.admit(ctx, c, k); err != nil {
			return store.Policy{}, err
		}
		if err := policyNamed(in.PolicyName); err != nil {
			return store.Policy{}, err
		}
		return s.newPolicy(c, k, s.keyARN(n), []byte(*in.Policy), in.BypassPolicyLockoutSafetyCheck)
	})
	s.publishKey(n, err)
	if err != nil {
		return none{}, s.keyError(c, n, err)
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
