package authz

import (
	"testing"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// A question about a key whose policy somebody forgot allows nobody anything, whatever the identity policies say.
func TestForgottenKeyPolicy(t *testing.T) {
	all, err := policy.Parse([]byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`), policy.IdentityPolicy, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []policy.PrincipalKind{policy.User, policy.Root, policy.AssumedRole, policy.Service} {
		p := policy.Principal{Kind: kind, Account: 111122223333, ARN: "arn:aws:iam::111122223333:user/u", ID: "AIDAU"}
		w := &Caller{Principal: p, Holder: NewHolder(&Subject{Principal: p, Identity: []*policy.Policy{all}})}
		for _, owner := range []keyid.Account{111122223333, 444455556666} {
			q := &Question{Caller: w, Action: Actions["Decrypt"], Resource: []byte("arn"), Owner: owner, Context: &Context{Caller: w}, Scratch: new(policy.Scratch)}
			d, err := Decide(q)
			if err != nil || d.Reason.Allowed() {
				t.Errorf("kind %d, key of %d: %+v, %v", kind, owner, d, err)
			}
			if q.Alone = true; kind == policy.User && owner == 111122223333 {
				if d, _ := Decide(q); !d.Reason.Allowed() {
					t.Errorf("without a key: %+v", d)
				}
			}
		}
	}
}
