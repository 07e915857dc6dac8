package snapshot

import (
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
)

// CompilePolicy compiles a key policy as it is stored, for both planes. bound has the unique ID of each principal that the document names; nil is
// a document that was stored before policies were evaluated, whose principals are who has their ARN now. Of those, one that cannot be read
// leaves the key to its account a, whose every caller could use it then. Any other that cannot be read is an error, and allows nothing.
func CompilePolicy(document []byte, bound map[string]string, a keyid.Account) (*policy.Policy, error) {
	if bound != nil {
		return policy.Parse(document, policy.KeyPolicy, func(arn string) (string, bool) { id, ok := bound[arn]; return id, ok })
	}
	p, err := policy.Parse(document, policy.KeyPolicy, nil)
	if err == nil {
		return p, nil
	}
	return policy.Parse([]byte(`{"Statement":{"Effect":"Allow","Principal":{"AWS":"`+a.String()+`"},"Action":"kms:*","Resource":"*"}}`), policy.KeyPolicy, nil)
}
