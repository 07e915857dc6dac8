package apitest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

// query sends a form that the SDK has no operation for, signed by whoever has the credentials, and reads the XML into v.
func (e Endpoint) query(t testing.TB, who aws.Credentials, service string, v any, params ...string) int {
	t.Helper()
	version := map[string]string{"iam": "2010-05-08", "sts": "2011-06-15"}[service]
	form := url.Values{"Version": {version}}
	for i := 0; i+1 < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	body := []byte(form.Encode())
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+e.Addr+"/", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(t.Context(), who, r, hex.EncodeToString(sum[:]), service, Region, e.date()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/xml") {
		t.Fatalf("%s: %v, %s %s", params[1], err, resp.Header.Get("Content-Type"), b)
	}
	if v != nil && resp.StatusCode == 200 {
		if err := xml.Unmarshal(b, v); err != nil {
			t.Fatalf("%s: %v: %s", params[1], err, b)
		}
	}
	return resp.StatusCode
}

// keyPair is an access key in an XML reply, wherever it stands there.
type keyPair struct {
	AccessKeyID, SecretAccessKey, SessionToken string
}

func (k *keyPair) UnmarshalXML(d *xml.Decoder, _ xml.StartElement) error {
	for {
		token, err := d.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if start, ok := token.(xml.StartElement); ok {
			to := map[string]*string{"AccessKeyId": &k.AccessKeyID, "SecretAccessKey": &k.SecretAccessKey, "SessionToken": &k.SessionToken}[start.Name.Local]
			if to != nil {
				if err := d.DecodeElement(to, &start); err != nil {
					return err
				}
			}
		}
	}
}

func (k *keyPair) credentials() aws.Credentials {
	return aws.Credentials{AccessKeyID: k.AccessKeyID, SecretAccessKey: k.SecretAccessKey, SessionToken: k.SessionToken}
}

// TestTwoAccounts goes through what the KMS developer guide describes of the use of keys across accounts: the key policy lets the other account
// in, its administrator delegates to a user, a role is assumed across accounts, a grant stands for a policy, and each is taken back.
func TestTwoAccounts(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx := t.Context()
	admin := s.admin(t)
	const other = "444455556666"
	var root keyPair
	equal(t, "CreateAccount", s.query(t, aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}, "iam", &root, "Action", "CreateAccount", "AccountId", other), 200)
	theirs := s.as(t, root.AccessKeyID, root.SecretAccessKey, "")
	equal(t, "Arn", *must(theirs.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))(t).Arn, "arn:aws:iam::"+other+":root")
	equal(t, "CreateAccount by a guest", s.query(t, root.credentials(), "iam", nil, "Action", "CreateAccount", "AccountId", "777788889999"), 403)

	key := newKey(t, admin.kms)
	encrypt := func(c *clients) ([]byte, error) {
		out, err := c.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.Arn, Plaintext: []byte("shared"), EncryptionContext: map[string]string{"project": "x"}})
		if err != nil {
			return nil, err
		}
		return out.CiphertextBlob, nil
	}
	_, err := encrypt(theirs)
	refusedWith(t, err, "AccessDeniedException")
	none, err2 := theirs.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(strings.Replace(*key.Arn, *key.KeyId, "11111111-2222-4333-8444-555555555555", 1))})
	_, err3 := theirs.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.Arn})
	if none != nil || err2 == nil || err3 == nil || messageOf(err2) != messageOf(err3) {
		t.Errorf("what exists in the other account shows: %v, %v", err2, err3)
	}

	// The key policy lets the other account in; there a policy of its own has to let a user.
	account := func(statements string) {
		t.Helper()
		must(admin.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String(`{"Version":"2012-10-17","Statement":[
			{"Sid":"Enable IAM policies","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":"kms:*","Resource":"*"}` + statements + `]}`)}))(t)
	}
	account(`,{"Sid":"Allow use of the key","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + other + `:root"},
		"Action":["kms:Encrypt","kms:Decrypt","kms:ReEncrypt*","kms:GenerateDataKey*","kms:DescribeKey"],"Resource":"*"}`)
	blob := must(encrypt(theirs))(t)
	must(theirs.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: aws.String("carol")}))(t)
	made := must(theirs.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: aws.String("carol")}))(t).AccessKey
	carol := s.as(t, *made.AccessKeyId, *made.SecretAccessKey, "")
	decrypt := func(c *clients) error {
		_, err := c.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"project": "x"}})
		return err
	}
	refusedWith(t, decrypt(carol), "AccessDeniedException")
	must(theirs.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: aws.String("carol"), PolicyName: aws.String("use"), PolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:Decrypt","Resource":"arn:aws:kms:*:` + Account + `:key/*"}}`)}))(t)
	if err := decrypt(carol); err != nil {
		t.Error(err)
	}
	_, err = carol.kms.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.Arn})
	refusedWith(t, err, "AccessDeniedException")
	_, err = theirs.kms.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.Arn}) // not an operation on other accounts' keys
	refusedWith(t, err, "AccessDeniedException")

	// Narrowing the policy binds before PutKeyPolicy has answered.
	account("")
	refusedWith(t, decrypt(carol), "AccessDeniedException")

	// A grant to a user of the other account, under a constraint; the user's policies need not know.
	must(theirs.iam.DeleteUserPolicy(ctx, &iam.DeleteUserPolicyInput{UserName: aws.String("carol"), PolicyName: aws.String("use")}))(t)
	carolARN := *must(theirs.iam.GetUser(ctx, &iam.GetUserInput{UserName: aws.String("carol")}))(t).User.Arn
	grant := must(admin.kms.CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: key.KeyId, GranteePrincipal: &carolARN, Operations: []types.GrantOperation{types.GrantOperationDecrypt, types.GrantOperationRetireGrant},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"project": "x"}},
	}))(t)
	if err := decrypt(carol); err != nil {
		t.Error(err)
	}
	_, err = encrypt(carol)
	refusedWith(t, err, "AccessDeniedException")
	must(carol.kms.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: grant.GrantToken}))(t)
	refusedWith(t, decrypt(carol), "AccessDeniedException")

	// A role of the key's account, assumed from the other.
	role := must(admin.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String("auditor"), AssumeRolePolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + other + `"},"Action":"sts:AssumeRole"}}`)}))(t).Role
	must(admin.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("p"), PolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}}`)}))(t)
	_, err = carol.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: role.Arn, RoleSessionName: aws.String("audit")})
	refusedWith(t, err, "AccessDenied")
	must(theirs.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: aws.String("carol"), PolicyName: aws.String("assume"), PolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"` + *role.Arn + `"}}`)}))(t)
	session := must(carol.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: role.Arn, RoleSessionName: aws.String("audit")}))(t).Credentials
	if err := decrypt(s.as(t, *session.AccessKeyId, *session.SecretAccessKey, *session.SessionToken)); err != nil {
		t.Error(err)
	}
}

// TestForwardAccessSession: a registered service acts for a user, which conditions see; nobody else can claim to.
func TestForwardAccessSession(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx := t.Context()
	admin := s.admin(t)
	operator := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}
	const service = "store." + Region + ".example.com"
	var own keyPair
	equal(t, "RegisterService", s.query(t, operator, "iam", &own, "Action", "RegisterService", "ServiceName", service, "AllAccounts", "true"), 200)
	must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: aws.String("dave")}))(t)
	must(admin.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: aws.String("dave"), PolicyName: aws.String("p"), PolicyDocument: aws.String(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:GenerateDataKey","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"` + service + `"}}},
		{"Effect":"Allow","Action":"kms:CreateGrant","Resource":"*","Condition":{"Bool":{"kms:GrantIsForAWSResource":"true"}}}]}`)}))(t)
	made := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: aws.String("dave")}))(t).AccessKey
	key := newKey(t, admin.kms)
	use := func(c *clients) error {
		_, err := c.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256})
		if err == nil {
			_, err = c.kms.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: key.KeyId, GranteePrincipal: aws.String("arn:aws:iam::" + Account + ":user/dave"),
				Operations: []types.GrantOperation{types.GrantOperationDescribeKey}})
		}
		return err
	}
	dave := s.as(t, *made.AccessKeyId, *made.SecretAccessKey, "")
	refusedWith(t, use(dave), "AccessDeniedException")
	var forward keyPair
	equal(t, "GetForwardAccessSession", s.query(t, own.credentials(), "sts", &forward, "Action", "GetForwardAccessSession", "PrincipalArn", "arn:aws:iam::"+Account+":user/dave"), 200)
	if err := use(s.as(t, forward.AccessKeyID, forward.SecretAccessKey, forward.SessionToken)); err != nil {
		t.Error(err)
	}
	equal(t, "GetForwardAccessSession by a user", s.query(t, operator, "sts", nil, "Action", "GetForwardAccessSession", "PrincipalArn", "arn:aws:iam::"+Account+":user/dave"), 403)
	equal(t, "DeregisterService", s.query(t, operator, "iam", nil, "Action", "DeregisterService", "ServiceName", service), 200)
	if err := use(s.as(t, forward.AccessKeyID, forward.SecretAccessKey, forward.SessionToken)); err == nil {
		t.Error("a service that is registered no more still acts for a user")
	}
}

// messageOf is the message of an exception, "" if err is none.
func messageOf(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorMessage()
	}
	return ""
}
