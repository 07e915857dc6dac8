package snapshot

import (
	"testing"

	"github.com/keyplane/keyplane/internal/policy"
)

func TestCompilePolicy(t *testing.T) {
	const (
		alice   = "arn:aws:iam::111122223333:user/alice"
		account = `{"Statement":{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}}`
		named   = `{"Statement":{"Effect":"Allow","Principal":{"AWS":"` + alice + `"},"Action":"kms:*","Resource":"*"}}`
	)
	for _, c := range []struct {
		name, document string
		bound          map[string]string
		who            policy.Principal
		want           policy.Match // how the first statement names who; policy.Attached: it does not
		fails          bool
	}{
		{"bound to her ID", named, map[string]string{alice: "AIDAONE"}, policy.Principal{Kind: policy.User, Account: 111122223333, ARN: alice, ID: "AIDAONE"}, policy.Itself, false},
		{"bound to another's", named, map[string]string{alice: "AIDATWO"}, policy.Principal{Kind: policy.User, Account: 111122223333, ARN: alice, ID: "AIDAONE"}, policy.Attached, false},
		{"a principal that is not bound", named, map[string]string{}, policy.Principal{}, 0, true},
		{"unreadable", `{"Statement":[]}`, map[string]string{}, policy.Principal{}, 0, true},
		{"older", named, nil, policy.Principal{Kind: policy.User, Account: 111122223333, ARN: alice, ID: "AIDAONE"}, policy.Itself, false},
		{"older and unreadable", `{"Statement":[]}`, nil, policy.Principal{}, 0, true},
		{"older and no object", `[]`, nil, policy.Principal{}, 0, true},
		{"digits", account, map[string]string{"111122223333": "111122223333"}, policy.Principal{Kind: policy.User, Account: 111122223333}, policy.Account, false},
		{"digits that were kept as ARN", account, map[string]string{"arn:aws:iam::111122223333:root": "111122223333"}, policy.Principal{Kind: policy.User, Account: 111122223333}, policy.Account, false},
		{"digits that are not bound", account, map[string]string{alice: "AIDAONE"}, policy.Principal{}, 0, true},
	} {
		p, err := CompilePolicy([]byte(c.document), c.bound)
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil {
			continue
		}
		res := p.Evaluate(&policy.Request{Action: "kms:Decrypt", Resource: []byte("arn:aws:kms:us-east-1:111122223333:key/1"), Principal: &c.who, Scratch: new(policy.Scratch)})
		got := policy.Attached
		for m := range res.Allow {
			if res.Allow[m] != 0 {
				got = policy.Match(m)
			}
		}
		if got != c.want {
			t.Errorf("%s: %+v, want %v", c.name, res, c.want)
		}
	}
}
