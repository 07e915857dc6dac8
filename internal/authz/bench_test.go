package authz_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// pairs is an encryption context.
type pairs []authz.Pair

func (p pairs) Len() int                       { return len(p) }
func (p pairs) Pair(i int) (key, value []byte) { return p[i].Key, p[i].Value }

const adminDocument = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

const plainKeyDocument = `{"Version":"2012-10-17","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow",` +
	`"Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`

// richKeyDocument is a key policy of twenty statements with conditions, none of which decides but the last, which leaves the key to the account.
func richKeyDocument() string {
	var all []string
	for i := range 19 {
		effect, condition := "Allow", fmt.Sprintf(`"StringEquals":{"kms:EncryptionContext:tenant":"t-%06d"}`, 100+i)
		switch i % 4 {
		case 1:
			effect, condition = "Deny", fmt.Sprintf(`"StringEquals":{"kms:EncryptionContext:purpose":"never-%d"}`, i)
		case 2:
			condition = fmt.Sprintf(`"StringLike":{"kms:EncryptionContext:tenant":"x-%d-*"},"Bool":{"aws:SecureTransport":"true"}`, i)
		case 3:
			condition = `"NotIpAddress":{"aws:SourceIp":"127.0.0.0/8"}`
		}
		all = append(all, fmt.Sprintf(`{"Sid":"s%d","Effect":%q,"Principal":{"AWS":"*"},"Action":["kms:Decrypt","kms:GenerateDataKey*","kms:Encrypt"],`+
			`"Resource":"*","Condition":{%s}}`, i, effect, condition))
	}
	all = append(all, `{"Sid":"account","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:*","Resource":"*"}`)
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(all, ",") + `]}`
}

// richIdentityDocument is an identity policy of five statements with conditions, the last of which allows.
func richIdentityDocument() string {
	var all []string
	for i, condition := range []string{
		`"StringEquals":{"kms:EncryptionContext:tenant":"t-nobody"}`,
		`"IpAddress":{"aws:SourceIp":["10.0.0.0/8","192.168.0.0/16"]}`,
		`"StringLike":{"kms:RequestAlias":"alias/other/*"}`,
		`"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}`,
		`"StringEquals":{"kms:EncryptionContext:purpose":"bench"},"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["purpose","tenant"]},` +
			`"IpAddress":{"aws:SourceIp":"127.0.0.0/8"}`,
	} {
		all = append(all, fmt.Sprintf(`{"Sid":"i%d","Effect":"Allow","Action":["kms:GenerateDataKey*","kms:Decrypt","kms:Encrypt"],"Resource":"*","Condition":{%s}}`,
			i, condition))
	}
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(all, ",") + `]}`
}

// benchQuestion is what the data plane asks for one Decrypt of a user with one identity policy.
func benchQuestion(t testing.TB, key, identity string) *authz.Question {
	parse := func(doc string, kind policy.Kind) *policy.Policy {
		p, err := policy.Parse([]byte(doc), kind, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	user := policy.Principal{Kind: policy.User, Account: 111122223333, ARN: "arn:aws:iam::111122223333:user/app", ID: "AIDAEXAMPLE0000000001"}
	subject := &authz.Subject{Principal: user, Name: "app", Identity: []*policy.Policy{parse(identity, policy.IdentityPolicy)}}
	w := &authz.Caller{Principal: user, Holder: authz.NewHolder(subject), UserName: "app", UserID: user.ID, Grantees: [3]string{user.ID, "", "111122223333"}}
	c := &authz.Context{
		Caller: w, Now: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC), SourceIP: netip.MustParseAddr("127.0.0.1"), SecureTransport: true,
		UserAgent: []byte("bench"), Region: "us-east-1", EncryptionAlgorithm: []byte("SYMMETRIC_DEFAULT"),
		Key:               &authz.KeyFacts{Account: 111122223333, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS"},
		EncryptionContext: pairs{{Key: []byte("purpose"), Value: []byte("bench")}, {Key: []byte("tenant"), Value: []byte("t-000017")}},
	}
	return &authz.Question{
		Caller: w, Action: authz.Actions["Decrypt"], Resource: []byte("arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
		Owner: 111122223333, Policy: parse(key, policy.KeyPolicy), Context: c, Scratch: &policy.Scratch{},
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, bc := range []struct{ name, key, identity string }{
		{"default", plainKeyDocument, adminDocument},
		{"rich", richKeyDocument(), richIdentityDocument()},
	} {
		b.Run(bc.name, func(b *testing.B) {
			q := benchQuestion(b, bc.key, bc.identity)
			b.ReportAllocs()
			for b.Loop() {
				d, err := authz.Decide(q)
				if err != nil || d.Reason != authz.AllowedByIdentityPolicy {
					b.Fatalf("%+v, %v", d, err)
				}
				q.Scratch.Reset()
			}
		})
	}
}

// oneSet is grants to whoever asks.
type oneSet struct{ *authz.GrantSet }

func (s oneSet) Grants(string) (*authz.GrantSet, error) { return s.GrantSet, nil }

func constrainedGrants(n int, kind string) []authz.Grant {
	list := make([]authz.Grant, n)
	for i := range list {
		list[i] = authz.Grant{ID: fmt.Sprintf("%064x", i), Operations: authz.OpDecrypt | authz.OpGenerateDataKey}
		context := []authz.Pair{{Key: []byte("purpose"), Value: []byte("bench")}, {Key: []byte("tenant"), Value: fmt.Appendf(nil, "t-%06d", i)}}
		switch kind {
		case "equals":
			list[i].HasEquals, list[i].Equals = true, context
		case "subset":
			list[i].HasSubset, list[i].Subset = true, context
		case "same": // every grant has the pair, and another operation
			list[i].HasSubset, list[i].Subset = true, context[:1]
			if i < n-1 {
				list[i].Operations = authz.OpEncrypt
			}
		}
	}
	return list
}

// A grant alone allows, the last of n that are each constrained to another encryption context.
func BenchmarkDecideByGrant(b *testing.B) {
	for _, kind := range []string{"equals", "subset", "same"} {
		for _, n := range []int{1, 1000, 50_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				q := benchQuestion(b, plainKeyDocument, `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:ListKeys","Resource":"*"}}`)
				q.Grants = oneSet{authz.NewGrantSet(constrainedGrants(n, kind))}
				q.Context.EncryptionContext = pairs{{Key: []byte("purpose"), Value: []byte("bench")}, {Key: []byte("tenant"), Value: fmt.Appendf(nil, "t-%06d", n-1)}}
				b.ReportAllocs()
				for b.Loop() {
					d, err := authz.Decide(q)
					if err != nil || d.Reason != authz.AllowedByGrant {
						b.Fatalf("%+v, %v", d, err)
					}
					q.Scratch.Reset()
				}
			})
		}
	}
}

// A set is made, and changed by one grant.
func BenchmarkGrantSet(b *testing.B) {
	for _, n := range []int{1000, 50_000} {
		list := constrainedGrants(n+1, "equals")
		b.Run(fmt.Sprintf("new/%d", n), func(b *testing.B) {
			for b.Loop() {
				authz.NewGrantSet(list[:n])
			}
		})
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) {
			set, i := authz.NewGrantSet(slices.Clone(list[:n])), 0
			b.ReportAllocs()
			for b.Loop() {
				g := list[i%n]
				set = set.Without(g.ID).With(g)
				i++
			}
		})
	}
}
