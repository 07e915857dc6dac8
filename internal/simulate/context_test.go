package simulate

import (
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/policy"
)

// TestFill: what an entry says is what conditions see, and what cannot be so is refused.
func TestFill(t *testing.T) {
	for _, c := range []struct {
		action, entries string // K=V|V;K=V
		refused         string // a part of the refusal
		k               policy.Key
		want            string
	}{
		{"kms:Decrypt", "kms:EncryptionContext:b=2;kms:EncryptionContext:a=1", "", policy.KMSEncryptionContextKeys, "a b"},
		{"kms:Decrypt", "kms:EncryptionContext:a=1;kms:EncryptionContext:A=2", "", policy.KMSEncryptionContextKeys, "A a"},
		{"kms:Decrypt", "kms:EncryptionContext:a=1;kms:EncryptionContextKeys=a", "", policy.KMSEncryptionContextKeys, "a"},
		{"kms:Decrypt", "kms:EncryptionContextKeys=a", "is not a", 0, ""},
		{"kms:Decrypt", "kms:EncryptionContext:a=1;kms:EncryptionContextKeys=b", "is not b", 0, ""},
		{"kms:Decrypt", "", "", policy.KMSEncryptionAlgorithm, "SYMMETRIC_DEFAULT"},
		{"kms:DescribeKey", "", "", policy.KMSEncryptionAlgorithm, ""},
		{"kms:ReEncryptTo", "", "", policy.KMSReEncryptOnSameKey, "false"},
		{"kms:PutKeyPolicy", "", "", policy.KMSBypassPolicyLockoutSafetyCheck, "false"},
		{"kms:PutKeyPolicy", "kms:bypasspolicylockoutsafetycheck=true", "", policy.KMSBypassPolicyLockoutSafetyCheck, "true"},
		{"kms:Decrypt", "aws:SourceIp=192.0.2.1", "", policy.AWSSourceIP, "192.0.2.1"},
		{"kms:Decrypt", "aws:SourceIp=here", "cannot be here", 0, ""},
		{"kms:Decrypt", "aws:CurrentTime=2030-01-02T03:04:05+01:00", "", policy.AWSCurrentTime, "2030-01-02T02:04:05Z"},
		{"kms:Decrypt", "aws:CurrentTime=tomorrow", "cannot be tomorrow", 0, ""},
		{"kms:Decrypt", "aws:EpochTime=86400", "", policy.AWSCurrentTime, "1970-01-02T00:00:00Z"},
		{"kms:Decrypt", "aws:SecureTransport=true", "", policy.AWSSecureTransport, "true"},
		{"kms:Decrypt", "aws:SecureTransport=yes", "cannot be yes", 0, ""},
		{"kms:Decrypt", "aws:username=alice", "", policy.AWSUsername, "alice"},
		{"kms:Decrypt", "aws:username=bob", "is not bob", 0, ""},
		{"kms:Decrypt", "kms:KeySpec=RSA_2048", "is not RSA_2048", 0, ""},
		{"kms:Decrypt", "aws:SourceArn=arn:aws:s3:::b", "cannot be", 0, ""},
		{"kms:Decrypt", "kms:ViaService=s3.us-east-1.amazonaws.com", "", policy.AWSCalledVia, "s3.amazonaws.com"},
		{"kms:CreateGrant", "kms:ViaService=s3.us-east-1.amazonaws.com", "", policy.KMSGrantIsForAWSResource, "true"},
		{"kms:CreateGrant", "kms:GrantOperations=Decrypt|Encrypt", "", policy.KMSGrantOperations, "Decrypt Encrypt"},
		{"kms:Decrypt", "kms:RequestAlias=alias/a|alias/b", "has one value", 0, ""},
		{"kms:Decrypt", "kms:NoSuchKey=1", "no request has a value", 0, ""},
		{"kms:Decrypt", "kms:EncryptionContext:=1", "no request has a value", 0, ""},
		{"kms:Decrypt", "kms:ViaService=a.b;KMS:viaservice=c.d", "given twice", 0, ""},
	} {
		who := &authz.Caller{Principal: policy.Principal{Kind: policy.User, Account: 1, ARN: "arn:aws:iam::000000000001:user/alice"}, UserName: "alice"}
		who.Holder = authz.NewHolder(&authz.Subject{Principal: who.Principal})
		var entries []Entry
		for part := range strings.SplitSeq(c.entries, ";") {
			if key, values, ok := strings.Cut(part, "="); ok {
				entries = append(entries, Entry{key, strings.Split(values, "|")})
			}
		}
		context := &authz.Context{Caller: who, Now: time.Now(), Key: &authz.KeyFacts{Account: 1, Spec: "SYMMETRIC_DEFAULT"}}
		err := Fill(context, who, nil, c.action, entries)
		if c.refused != "" {
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v, want %s", c.entries, err, c.refused)
			}
			continue
		}
		var got []string
		for i := 0; ; i++ {
			v, ok := context.Value(c.k, "", i)
			if !ok {
				break
			}
			got = append(got, string(v.Text))
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, %s is %q, want %q", c.entries, err, c.k, got, c.want)
		}
	}
}

// A key that is made up is as the entries say.
func TestFillFacts(t *testing.T) {
	who := &authz.Caller{Principal: policy.Principal{Kind: policy.User, Account: 1}}
	who.Holder = authz.NewHolder(&authz.Subject{})
	facts := &authz.KeyFacts{Account: 1}
	context := &authz.Context{Caller: who, Key: facts}
	err := Fill(context, who, facts, "kms:Decrypt", []Entry{{"kms:KeySpec", []string{"RSA_2048"}}, {"aws:ResourceTag/team", []string{"red"}}, {"kms:ResourceAliases", []string{"alias/a", "alias/b"}}})
	if err != nil || facts.Spec != "RSA_2048" || len(facts.Tags) != 1 || facts.Tags[0] != (authz.Tag{Key: "team", Value: "red"}) || len(facts.Aliases) != 2 {
		t.Errorf("%v, %+v", err, facts)
	}
}

// Every permission of KMS has its name in any case; others are none.
func TestFind(t *testing.T) {
	for name, a := range authz.Actions {
		if got, ok := Find("kms:" + name); !ok || got != a {
			t.Errorf("kms:%s: %v %v", name, got, ok)
		}
		if got, ok := Find("KMS:" + strings.ToLower(name)); !ok || got != a {
			t.Errorf("KMS:%s: %v %v", strings.ToLower(name), got, ok)
		}
	}
	for _, name := range []string{"", "kms:", "kms:*", "Decrypt", "kms:ReEncrypt", "iam:CreateUser"} {
		if _, ok := Find(name); ok {
			t.Errorf("%q is an action", name)
		}
	}
	for name := range keyless {
		if authz.Actions[name] == nil {
			t.Errorf("%s is no permission", name)
		}
	}
}
