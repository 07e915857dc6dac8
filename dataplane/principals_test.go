package dataplane

import (
	"crypto/sha256"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// allowAll is the identity policy of an administrator.
const allowAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

// delegating is the default key policy of an account.
func delegating(a keyid.Account) string {
	return `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + a.String() + `:root"},"Action":"kms:*","Resource":"*"}]}`
}

func userARN(a keyid.Account, name string) string {
	return "arn:aws:iam::" + a.String() + ":user/" + name
}

func parse(t testing.TB, kind policy.Kind, documents ...string) []*policy.Policy {
	t.Helper()
	var list []*policy.Policy
	for _, d := range documents {
		p, err := policy.Parse([]byte(d), kind, nil)
		if err != nil {
			t.Fatalf("%v: %s", err, d)
		}
		list = append(list, p)
	}
	return list
}

// user is a user with identity policies; its unique ID is AIDA and its name.
func user(t testing.TB, a keyid.Account, name string, identity ...string) *authz.Caller {
	t.Helper()
	p := policy.Principal{Kind: policy.User, Account: a, ARN: userARN(a, name), ID: "AIDA" + name}
	return &authz.Caller{
		Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p, Name: name, Identity: parse(t, policy.IdentityPolicy, identity...)}),
		Grantees: [3]string{p.ID, "", a.String()}, UserName: name, UserID: p.ID,
	}
}

// session is a session of a role with identity policies, whose unique ID is AROA and its name.
func session(t testing.TB, a keyid.Account, role, name string, identity ...string) *authz.Caller {
	t.Helper()
	p := policy.Principal{
		Kind: policy.AssumedRole, Account: a, ID: "AROA" + role, RoleARN: "arn:aws:iam::" + a.String() + ":role/" + role,
		ARN: "arn:aws:sts::" + a.String() + ":assumed-role/" + role + "/" + name,
	}
	return &authz.Caller{
		Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p, Name: role, Identity: parse(t, policy.IdentityPolicy, identity...)}),
		Grantees: [3]string{p.ID + ":" + name, p.ID, a.String()}, UserID: p.ID + ":" + name,
	}
}

// service is a registered service that calls for itself.
func service(name, short string) *authz.Caller {
	p := policy.Principal{Kind: policy.Service, Account: others, ARN: name}
	return &authz.Caller{Principal: p, Holder: authz.NewHolder(&authz.Subject{Principal: p}), Grantees: [3]string{name}, ViaName: short}
}

// asSession is as for a temporary access key with a security token.
func (w *world) asSession(id, token string, c *authz.Caller) signature {
	w.Helper()
	k, err := sigv4.NewTemporaryKey(id, []byte(adminSecret), sha256.Sum256([]byte(token)), time.Now().Add(time.Hour), sigv4.Principal{Account: c.Account, ARN: c.ARN, Caller: c})
	w.must(err)
	w.signer[id] = k
	return signature{key: id, token: token}
}

// as gives the caller an access key and returns how its requests are signed.
func (w *world) as(id string, c *authz.Caller) signature {
	w.Helper()
	k, err := sigv4.NewAccessKey(id, []byte(adminSecret), sigv4.Principal{Account: c.Account, ARN: c.ARN, UserName: c.UserName, Caller: c})
	w.must(err)
	w.signer[id] = k
	return signature{key: id, secret: adminSecret}
}
