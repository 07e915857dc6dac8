package apitest

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// clients are the SDK's clients of one principal.
type clients struct {
	iam *iam.Client
	sts *sts.Client
	kms *kms.Client
}

// as makes the clients of whoever has these credentials.
func (e Endpoint) as(t testing.TB, id, secretKey, token string) *clients {
	t.Helper()
	provider := credentials.NewStaticCredentialsProvider(id, secretKey, token)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	hc := &http.Client{Transport: transport, Timeout: exchangeTimeout}
	at := aws.String("http://" + e.Addr)
	return &clients{
		iam: iam.New(iam.Options{Region: Region, BaseEndpoint: at, Credentials: provider, Retryer: aws.NopRetryer{}, HTTPClient: hc}, func(o *iam.Options) {
			if e.now != nil {
				o.HTTPSignerV4 = signer{e}
			}
		}),
		sts: sts.New(sts.Options{Region: Region, BaseEndpoint: at, Credentials: provider, Retryer: aws.NopRetryer{}, HTTPClient: hc}, func(o *sts.Options) {
			if e.now != nil {
				o.HTTPSignerV4 = signer{e}
			}
		}),
		kms: e.KMS(t, func(o *kms.Options) { o.Credentials = provider }),
	}
}

func (e Endpoint) admin(t testing.TB) *clients { return e.as(t, e.AccessKeyID, e.SecretAccessKey, "") }

// TestIAM: a user, a role and its sessions through AWS's SDK, from nothing to a decrypted message, and what takes it away again at once.
func TestIAM(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx := t.Context()
	admin := s.admin(t)
	who := must(admin.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))(t)
	equal(t, "Arn", *who.Arn, "arn:aws:iam::"+Account+":user/administrator")
	equal(t, "Account", *who.Account, Account)

	user := must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: aws.String("alice"), Tags: []iamtypes.Tag{{Key: aws.String("team"), Value: aws.String("red")}}}))(t).User
	_, err := admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: aws.String("alice")})
	refusedAs[*iamtypes.EntityAlreadyExistsException](t, err)
	_, err = admin.iam.GetUser(ctx, &iam.GetUserInput{UserName: aws.String("bob")})
	refusedAs[*iamtypes.NoSuchEntityException](t, err)
	made := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: user.UserName}))(t).AccessKey
	alice := s.as(t, *made.AccessKeyId, *made.SecretAccessKey, "")
	equal(t, "UserId", *must(alice.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}))(t).UserId, *user.UserId)

	key := newKey(t, admin.kms)
	sealed := must(admin.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("message")}))(t)
	decrypt := func(c *clients) error {
		out, err := c.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob, KeyId: key.Arn})
		if err == nil && string(out.Plaintext) != "message" {
			t.Errorf("decrypted %q", out.Plaintext)
		}
		return err
	}
	refusedWith(t, decrypt(alice), "AccessDeniedException")

	role := must(admin.iam.CreateRole(ctx, &iam.CreateRoleInput{
		RoleName: aws.String("reader"), AssumeRolePolicyDocument: aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + *user.Arn +
			`"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"sts:ExternalId":"1234"}}}]}`),
	}))(t).Role
	document := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["kms:Decrypt","kms:DescribeKey"],"Resource":"` + *key.Arn + `"}]}`
	must(admin.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("read"), PolicyDocument: &document}))(t)
	shown := must(admin.iam.GetRolePolicy(ctx, &iam.GetRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("read")}))(t)
	if text, err := url.QueryUnescape(*shown.PolicyDocument); err != nil || text != document {
		t.Errorf("the policy came back as %s, %v", text, err)
	}
	assume := &sts.AssumeRoleInput{RoleArn: role.Arn, RoleSessionName: aws.String("work")}
	_, err = alice.sts.AssumeRole(ctx, assume)
	refusedWith(t, err, "AccessDenied")
	assume.ExternalId = aws.String("1234")
	session := func(in *sts.AssumeRoleInput) *clients {
		t.Helper()
		out := must(alice.sts.AssumeRole(ctx, in))(t)
		equal(t, "Arn", *out.AssumedRoleUser.Arn, "arn:aws:sts::"+Account+":assumed-role/reader/work")
		return s.as(t, *out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken)
	}
	reader := session(assume)
	if err := decrypt(reader); err != nil {
		t.Error(err)
	}
	narrow := *assume
	narrow.Policy = aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:DescribeKey","Resource":"*"}]}`)
	narrowed := session(&narrow)
	refusedWith(t, decrypt(narrowed), "AccessDeniedException")
	must(narrowed.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.Arn}))(t)
	// The session lives on after a restart; what is taken away binds at once.
	out := must(alice.sts.AssumeRole(ctx, assume))(t).Credentials
	s.Restart(t)
	again := s.admin(t)
	reader = s.as(t, *out.AccessKeyId, *out.SecretAccessKey, *out.SessionToken)
	if err := decrypt(reader); err != nil {
		t.Errorf("the session is lost: %v", err)
	}
	must(again.iam.DeleteRolePolicy(ctx, &iam.DeleteRolePolicyInput{RoleName: role.RoleName, PolicyName: aws.String("read")}))(t)
	refusedWith(t, decrypt(reader), "AccessDeniedException")
	must(again.iam.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: role.RoleName, PolicyArn: aws.String("arn:aws:iam::aws:policy/AdministratorAccess")}))(t)
	if err := decrypt(reader); err != nil {
		t.Error(err)
	}
	must(again.iam.DetachRolePolicy(ctx, &iam.DetachRolePolicyInput{RoleName: role.RoleName, PolicyArn: aws.String("arn:aws:iam::aws:policy/AdministratorAccess")}))(t)
	must(again.iam.DeleteRole(ctx, &iam.DeleteRoleInput{RoleName: role.RoleName}))(t)
	if err := decrypt(reader); err == nil {
		t.Error("the session of a deleted role decrypts")
	}
	must(again.iam.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: user.UserName, AccessKeyId: made.AccessKeyId, Status: iamtypes.StatusTypeInactive}))(t)
	_, err = s.as(t, *made.AccessKeyId, *made.SecretAccessKey, "").sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	refusedWith(t, err, "InvalidClientTokenId")
	_, err = s.as(t, s.AccessKeyID, "wrong", "").sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
	refusedWith(t, err, "SignatureDoesNotMatch")
	_, err = again.iam.DeleteUser(ctx, &iam.DeleteUserInput{UserName: user.UserName})
	refusedAs[*iamtypes.DeleteConflictException](t, err)
	must(again.iam.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: user.UserName, AccessKeyId: made.AccessKeyId}))(t)
	must(again.iam.DeleteUser(ctx, &iam.DeleteUserInput{UserName: user.UserName}))(t)
}

// TestAWSCLISessions: an operator's commands: a user, a role, a session, and with the session's credentials aws kms decrypt.
func TestAWSCLISessions(t *testing.T) {
	t.Parallel()
	p := Command(t, t.TempDir()+"/data")
	a := &awsCLI{p: p, home: t.TempDir()}
	call := func(v any, args ...string) {
		t.Helper()
		code, out, errs := a.service(t, nil, args...)
		if code != 0 {
			t.Fatalf("aws %s: exit status %d: %s", strings.Join(args, " "), code, errs)
		}
		if v != nil {
			if err := json.Unmarshal(out, v); err != nil {
				t.Fatalf("aws %s: %v: %s", strings.Join(args, " "), err, out)
			}
		}
	}
	var identity struct{ UserId, Account, Arn string }
	call(&identity, "sts", "get-caller-identity")
	equal(t, "Arn", identity.Arn, "arn:aws:iam::"+identity.Account+":user/administrator")
	var made struct {
		User struct{ UserName, UserId, Arn string }
	}
	call(&made, "iam", "create-user", "--user-name", "cli")
	var role struct{ Role struct{ Arn string } }
	call(&role, "iam", "create-role", "--role-name", "cli", "--assume-role-policy-document",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"`+identity.Arn+`"},"Action":"sts:AssumeRole"}]}`)
	call(nil, "iam", "put-role-policy", "--role-name", "cli", "--policy-name", "all", "--policy-document",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}]}`)
	var session struct {
		Credentials struct{ AccessKeyId, SecretAccessKey, SessionToken string }
	}
	call(&session, "sts", "assume-role", "--role-arn", role.Role.Arn, "--role-session-name", "cli")
	key := a.key(t)
	var sealed struct{ CiphertextBlob string }
	a.ok(t, &sealed, "encrypt", "--key-id", key, "--plaintext", encode([]byte("message")))
	env := []string{
		"AWS_ACCESS_KEY_ID=" + session.Credentials.AccessKeyId, "AWS_SECRET_ACCESS_KEY=" + session.Credentials.SecretAccessKey, "AWS_SESSION_TOKEN=" + session.Credentials.SessionToken,
	}
	code, out, errs := a.service(t, env, "kms", "decrypt", "--ciphertext-blob", sealed.CiphertextBlob)
	var opened struct{ Plaintext string }
	if err := json.Unmarshal(out, &opened); code != 0 || err != nil || opened.Plaintext != encode([]byte("message")) {
		t.Errorf("aws kms decrypt with the session: exit status %d, %v: %s%s", code, err, out, errs)
	}
	if code, _, errs := a.service(t, env, "kms", "list-keys"); code != 254 || !strings.Contains(string(errs), "(AccessDeniedException)") {
		t.Errorf("aws kms list-keys with the session: exit status %d: %s", code, errs)
	}
	if code, _, errs := a.service(t, nil, "iam", "get-user", "--user-name", "nobody"); code != 254 || !strings.Contains(string(errs), "(NoSuchEntity)") {
		t.Errorf("aws iam get-user: exit status %d: %s", code, errs)
	}
}

// TestSimulateAWSCLI: `aws iam simulate-principal-policy`, on a real key.
func TestSimulateAWSCLI(t *testing.T) {
	t.Parallel()
	p := Command(t, filepath.Join(t.TempDir(), "data"))
	a := &awsCLI{p: p, home: t.TempDir()}
	var key struct{ KeyMetadata struct{ Arn string } }
	p.Do(t, "CreateKey", "{}").Members(t, &key)
	code, out, errs := a.service(t, nil, "iam", "simulate-principal-policy", "--policy-source-arn", "arn:aws:iam::"+Account+":user/administrator",
		"--action-names", "kms:Decrypt", "iam:CreateUser", "--resource-arns", key.KeyMetadata.Arn,
		"--policy-input-list", `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"x"}}}]}`,
		"--context-entries", "ContextKeyName=kms:EncryptionContext:tenant,ContextKeyValues=x,ContextKeyType=string")
	var results struct {
		IsTruncated       bool
		EvaluationResults []struct {
			EvalActionName, EvalResourceName, EvalDecision string
			MatchedStatements                              []struct{ SourcePolicyId, SourcePolicyType string }
		}
	}
	if code != 0 || json.Unmarshal(out, &results) != nil || len(results.EvaluationResults) != 2 {
		t.Fatalf("exit status %d: %s%s", code, out, errs)
	}
	denied, allowed := results.EvaluationResults[0], results.EvaluationResults[1]
	equal(t, "EvalActionName", denied.EvalActionName, "kms:Decrypt")
	equal(t, "EvalResourceName", denied.EvalResourceName, key.KeyMetadata.Arn)
	equal(t, "EvalDecision", denied.EvalDecision, "explicitDeny")
	equal(t, "EvalDecision of iam:CreateUser", allowed.EvalDecision, "allowed")
	equal(t, "matched", len(denied.MatchedStatements)+len(allowed.MatchedStatements), 2)
	equal(t, "SourcePolicyId", denied.MatchedStatements[0].SourcePolicyId, "PolicyInputList.1")
	equal(t, "SourcePolicyId", allowed.MatchedStatements[0].SourcePolicyId, "AdministratorAccess")
	equal(t, "SourcePolicyType", allowed.MatchedStatements[0].SourcePolicyType, "user")
}
