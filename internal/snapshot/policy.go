package snapshot

import (
	"github.com/keyplane/keyplane/internal/policy"
)

// CompilePolicy compiles a key policy as it is stored, for both planes. bound has the unique ID of each principal that the document names; nil is
// a document that was stored before policies were evaluated, whose principals are who has their ARN now. One that cannot be read is an
// error, and allows nobody anything, PutKeyPolicy neither: also of the older ones, which could be any JSON object.
func CompilePolicy(document []byte, bound map[string]string) (*policy.Policy, error) {
	if bound == nil {
		return policy.Parse(document, policy.KeyPolicy, nil)
	}
	return policy.Parse(document, policy.KeyPolicy, Bound(bound))
}

// Bound binds the principals of a stored policy to who they were when it was put.
func Bound(bound map[string]string) policy.Binder {
	return func(arn string) (string, bool) {
		id, ok := bound[arn]
		if !ok && arn[0] != 'a' { // an account's 12 digits, which earlier versions kept as its ARN
			id, ok = bound["arn:aws:iam::"+arn+":root"]
		}
		return id, ok
	}
}
