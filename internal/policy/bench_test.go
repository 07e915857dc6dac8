package policy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

const defaultDocument = `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow",` +
	`"Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`

// busyDocument is a key policy of twenty statements with conditions, such as a key that several teams and services share has. The last one
// allows alice to decrypt.
func busyDocument() string {
	all := []string{
		`"Sid":"admins","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/admin","arn:aws:iam::111122223333:role/breakglass"]},` +
			`"Action":["kms:Create*","kms:Describe*","kms:Enable*","kms:List*","kms:Put*","kms:Update*","kms:Revoke*","kms:Disable*"],"Resource":"*"`,
		`"Sid":"tls","Effect":"Deny","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":false}}`,
		`"Sid":"networks","Effect":"Deny","Principal":"*","Action":["kms:Decrypt","kms:Encrypt"],"Resource":"*",` +
			`"Condition":{"NotIpAddress":{"aws:SourceIp":["10.0.0.0/8","192.168.0.0/16","2001:db8::/32"]},"Bool":{"aws:ViaAWSService":"false"}}`,
		`"Sid":"grants","Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":"kms:CreateGrant","Resource":"*",` +
			`"Condition":{"Bool":{"kms:GrantIsForAWSResource":true}}`,
		`"Sid":"tenant","Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*",` +
			`"Condition":{"StringNotEquals":{"kms:EncryptionContext:tenant":"${aws:PrincipalTag/tenant}"}}`,
	}
	for i := range 14 {
		all = append(all, fmt.Sprintf(`"Sid":"team%d","Effect":"Allow","Principal":{"AWS":["arn:aws:iam::111122223333:role/team-%d","arn:aws:iam::111122223333:user/team/user-%d"]},`+
			`"Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"*",`+
			`"Condition":{"StringEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"},"StringLike":{"kms:EncryptionContext:bucket":"team-%d-*"}}`, i, i, i, i))
	}
	all = append(all, `"Sid":"alice","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/team/alice"},"Action":["kms:Encrypt","kms:Decrypt"],"Resource":"*",`+
		`"Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"blue"},"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::*:user/team/*"}}`)
	return `{"Version":"2012-10-17","Statement":[{` + strings.Join(all, "},{") + `}]}`
}

// identityDocument is an identity policy of five statements with conditions.
const identityDocument = `{"Version":"2012-10-17","Statement":[
	{"Effect":"Allow","Action":"s3:*","Resource":"*"},
	{"Effect":"Allow","Action":["kms:Decrypt","kms:GenerateDataKey"],"Resource":"arn:aws:kms:*:111122223333:key/*","Condition":{"StringEquals":{"aws:RequestedRegion":["us-east-1","us-east-2"]}}},
	{"Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"DateGreaterThan":{"aws:CurrentTime":"2030-01-01T00:00:00Z"}}},
	{"Effect":"Deny","Action":"kms:ScheduleKeyDeletion","Resource":"*","Condition":{"NumericLessThan":{"kms:ScheduleKeyDeletionPendingWindowInDays":"30"}}},
	{"Effect":"Allow","Action":"kms:*","Resource":"arn:aws:kms:us-east-1:111122223333:key/${aws:PrincipalTag/tenant}","Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}]}`

var busyValues = values{
	"aws:SecureTransport":          {"true"},
	"aws:SourceIp":                 {"10.1.2.3"},
	"aws:ViaAWSService":            {"false"},
	"aws:PrincipalTag/tenant":      {"blue"},
	"aws:PrincipalArn":             {userARN},
	"aws:CurrentTime":              {"2026-11-26T12:00:00Z"},
	"aws:RequestedRegion":          {"us-east-1"},
	"kms:EncryptionContext:tenant": {"blue"},
}

func busyRequest() *Request {
	f := busyValues.context()
	for i := range f {
		if f[i].key == AWSSourceIP {
			f[i].addrs = []netip.Addr{netip.MustParseAddr("10.1.2.3")}
		}
	}
	return &Request{Action: "kms:Decrypt", Code: CodeOf("kms:Decrypt"), Resource: []byte(keyARN), Principal: &alice, Context: f, Scratch: &Scratch{}}
}

func TestBusyPolicy(t *testing.T) {
	p := mustParse(t, KeyPolicy, busyDocument())
	if got, want := p.Evaluate(busyRequest()), (Result{Allow: [matches]int{Itself: 20}}); p.Len() != 20 || got != want {
		t.Errorf("%d statements, %+v, want %+v", p.Len(), got, want)
	}
	p = mustParse(t, IdentityPolicy, identityDocument)
	if got, want := p.Evaluate(busyRequest()), (Result{Allow: [matches]int{Attached: 2}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func BenchmarkEvaluate(b *testing.B) {
	for _, bc := range []struct {
		name, doc string
		kind      Kind
	}{
		{"default", defaultDocument, KeyPolicy},
		{"busy", busyDocument(), KeyPolicy},
		{"identity", identityDocument, IdentityPolicy},
	} {
		b.Run(bc.name, func(b *testing.B) {
			p, r := mustParse(b, bc.kind, bc.doc), busyRequest()
			b.ReportAllocs()
			for b.Loop() {
				p.Evaluate(r)
			}
		})
	}
}

func BenchmarkParse(b *testing.B) {
	doc := []byte(busyDocument())
	b.SetBytes(int64(len(doc)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(doc, KeyPolicy, nil); err != nil {
			b.Fatal(err)
		}
	}
}
