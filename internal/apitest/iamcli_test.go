package apitest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	iamserver "github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/internal/iamcli"
)

// keyplane runs the command as whoever a credentials file belongs to.
func (s *Server) keyplane(t testing.TB, credentialsFile string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(Binary(t), args...)
	cmd.Env = cleanEnv("AWS_SHARED_CREDENTIALS_FILE="+credentialsFile, "AWS_CONFIG_FILE="+filepath.Join(t.TempDir(), "none"), "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL=http://"+s.Addr, "AWS_REGION="+Region, "HOME="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// iam runs `keyplane iam`, which succeeds, and decodes its output into v unless that is nil.
func (s *Server) iam(t *testing.T, credentialsFile string, v any, args ...string) {
	t.Helper()
	code, out, errs := s.keyplane(t, credentialsFile, append([]string{"iam"}, args...)...)
	if code != 0 || errs != "" {
		t.Fatalf("keyplane iam %s: exit status %d: %s", strings.Join(args, " "), code, errs)
	}
	if v == nil {
		equal(t, "output of "+args[0], out, "")
		return
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		t.Fatalf("keyplane iam %s: %v: %s", args[0], err, out)
	}
}

// TestIAMCommands: the command line has every action of the server, and the server every command.
func TestIAMCommands(t *testing.T) {
	t.Parallel()
	for _, service := range []string{"iam", "sts"} {
		have, want := iamcli.Actions(service), iamserver.Actions(service)
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("%s: commands for %v\nactions %v", service, have, want)
		}
	}
}

// TestIAMCLI: an account, users, roles and services by `keyplane iam`, with secrets in files, down to a session that encrypts.
func TestIAMCLI(t *testing.T) {
	t.Parallel()
	s := Start(t)
	dir := t.TempDir()
	admin := s.node.CredentialsPath()
	file := func(name, text string) string { return writePrivate(t, dir, name, text) }

	var who struct{ Account, Arn, UserId string }
	s.iam(t, admin, &who, "get-caller-identity")
	equal(t, "Arn", who.Arn, "arn:aws:iam::"+Account+":user/administrator")

	var account struct {
		Account   struct{ AccountId, Arn string }
		AccessKey struct{ AccessKeyId, SecretAccessKey string }
	}
	root := filepath.Join(dir, "root")
	s.iam(t, admin, &account, "create-account", "--account-id", "444455556666", "--credentials-file", root)
	equal(t, "SecretAccessKey beside a credentials file", account.AccessKey.SecretAccessKey, "")
	if info, err := os.Stat(root); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("credentials file: %v, %v", info, err)
	}
	s.iam(t, root, &who, "get-caller-identity")
	equal(t, "Arn of the new account", who.Arn, "arn:aws:iam::444455556666:root")
	var accounts struct{ Accounts []struct{ AccountId string } }
	s.iam(t, admin, &accounts, "list-accounts")
	equal(t, "accounts", len(accounts.Accounts), 2)
	if code, out, errs := s.keyplane(t, root, "iam", "list-accounts"); code != 1 || out != "" || !strings.HasPrefix(errs, "AccessDenied: User: arn:aws:iam::444455556666:root") {
		t.Errorf("list-accounts of another account: %d %s %s", code, out, errs)
	}

	var user struct {
		User struct {
			Arn  string
			Tags []struct{ Key, Value string }
		}
	}
	s.iam(t, root, &user, "create-user", "--user-name", "alice", "--path=/team/", "--tags", "Key=team,Value=red", "Key=note,Value=a=b")
	equal(t, "Arn", user.User.Arn, "arn:aws:iam::444455556666:user/team/alice")
	equal(t, "second tag", user.User.Tags[0].Value+"|"+user.User.Tags[1].Value, "a=b|red")
	document := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["sts:AssumeRole"],"Resource":"*"}]}`
	s.iam(t, root, nil, "put-user-policy", "--user-name", "alice", "--policy-name", "p", "--policy-document", "file://"+file("p.json", document))
	var shown struct{ PolicyDocument json.RawMessage }
	s.iam(t, root, &shown, "get-user-policy", "--user-name", "alice", "--policy-name", "p")
	var compact bytes.Buffer
	if err := json.Compact(&compact, shown.PolicyDocument); err != nil || compact.String() != document {
		t.Errorf("PolicyDocument: %v %s", err, shown.PolicyDocument)
	}
	var names struct{ PolicyNames []string }
	s.iam(t, root, &names, "list-user-policies", "--user-name", "alice")
	equal(t, "PolicyNames", strings.Join(names.PolicyNames, " "), "p")

	var made struct {
		AccessKey struct{ AccessKeyId, SecretAccessKey string }
	}
	s.iam(t, root, &made, "create-access-key", "--user-name", "alice")
	alice := file("alice", "[default]\naws_access_key_id = "+made.AccessKey.AccessKeyId+"\naws_secret_access_key = "+made.AccessKey.SecretAccessKey+"\n")
	s.iam(t, alice, &who, "get-caller-identity")
	equal(t, "Arn", who.Arn, user.User.Arn)

	s.iam(t, root, &struct{}{}, "create-role", "--role-name", "app", "--assume-role-policy-document",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::444455556666:root"},"Action":"sts:AssumeRole"}]}`)
	s.iam(t, root, nil, "put-role-policy", "--role-name", "app", "--policy-name", "all", "--policy-document", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`)
	session := filepath.Join(dir, "session")
	s.iam(t, alice, &struct{}{}, "assume-role", "--role-arn", "arn:aws:iam::444455556666:role/app", "--role-session-name", "cli", "--credentials-file", session)
	s.iam(t, session, &who, "get-caller-identity")
	equal(t, "Arn of the session", who.Arn, "arn:aws:sts::444455556666:assumed-role/app/cli")

	// More users than one page, in one list; a page of one where it is asked for.
	for _, name := range []string{"bob", "carol"} {
		s.iam(t, session, &user, "create-user", "--user-name", name)
	}
	var users struct {
		Users       []struct{ UserName string }
		IsTruncated bool
		Marker      string
	}
	s.iam(t, session, &users, "list-users", "--max-items", "2")
	if len(users.Users) != 2 || !users.IsTruncated || users.Marker == "" {
		t.Errorf("list-users --max-items 2: %+v", users)
	}
	marker := users.Marker
	users.Marker, users.Users, users.IsTruncated = "", nil, false
	s.iam(t, session, &users, "list-users", "--max-items", "2", "--marker", marker)
	if len(users.Users) != 1 || users.Users[0].UserName != "carol" || users.IsTruncated {
		t.Errorf("list-users --marker: %+v", users)
	}

	s.iam(t, root, nil, "update-access-key", "--user-name", "alice", "--access-key-id", made.AccessKey.AccessKeyId, "--status", "Inactive")
	if code, _, errs := s.keyplane(t, alice, "iam", "get-caller-identity"); code != 1 || !strings.HasPrefix(errs, "InvalidClientTokenId: ") {
		t.Errorf("an inactive access key: %d %s", code, errs)
	}
	s.iam(t, root, nil, "delete-access-key", "--user-name", "alice", "--access-key-id", made.AccessKey.AccessKeyId)
	s.iam(t, root, nil, "delete-user-policy", "--user-name", "alice", "--policy-name", "p")
	s.iam(t, root, nil, "delete-user", "--user-name", "alice")

	// A service, and what it may do for a role.
	service := filepath.Join(dir, "service")
	s.iam(t, admin, &struct{}{}, "register-service", "--service-name", "store.us-east-1.example.com", "--accounts", "444455556666", Account, "--credentials-file", service)
	forward := filepath.Join(dir, "forward")
	s.iam(t, service, &struct{}{}, "get-forward-access-session", "--principal-arn", "arn:aws:iam::444455556666:role/app", "--credentials-file", forward)
	s.iam(t, forward, &who, "get-caller-identity")
	equal(t, "Account of the forward access session", who.Account, "444455556666")
	s.iam(t, admin, nil, "deregister-service", "--service-name", "store.us-east-1.example.com")
	if code, _, _ := s.keyplane(t, forward, "iam", "get-caller-identity"); code != 1 {
		t.Errorf("a forward access session outlived its service: %d", code)
	}

	before := filepath.Join(dir, "none", "file")
	if code, _, _ := s.keyplane(t, root, "iam", "create-access-key", "--credentials-file", before); code != 1 {
		t.Errorf("a credentials file that cannot be written: %d", code)
	}
	var keys struct {
		AccessKeyMetadata []struct{ AccessKeyId string }
	}
	s.iam(t, root, &keys, "list-access-keys")
	equal(t, "access keys of root after the failure", len(keys.AccessKeyMetadata), 1)
}

// TestSimulate: what keyplane policy simulate says of a request is what the server then does with it.
func TestSimulate(t *testing.T) {
	t.Parallel()
	s := Start(t)
	ctx := t.Context()
	admin := s.admin(t)
	file := s.node.CredentialsPath()
	dir := t.TempDir()
	const arn = "arn:aws:iam::" + Account
	user := func(name, document string) *clients {
		must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: &name}))(t)
		if document != "" {
			must(admin.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: &name, PolicyName: aws.String("use"), PolicyDocument: &document}))(t)
		}
		k := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: &name}))(t).AccessKey
		return s.as(t, *k.AccessKeyId, *k.SecretAccessKey, "")
	}
	const tenantA = `"Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"a"}}`
	identity := `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":"x"}}},
		{"Sid":"TenantA","Effect":"Allow","Action":"kms:Encrypt","Resource":"*",` + tenantA + `}]}`
	who := map[string]*clients{arn + ":user/alice": user("alice", identity), arn + ":user/bob": user("bob", "")}
	trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + Account + `"},"Action":"sts:AssumeRole"}]}`
	must(admin.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: aws.String("app"), AssumeRolePolicyDocument: &trust}))(t)
	c := must(admin.sts.AssumeRole(ctx, &sts.AssumeRoleInput{RoleArn: aws.String(arn + ":role/app"), RoleSessionName: aws.String("one")}))(t).Credentials
	const session = "arn:aws:sts::" + Account + ":assumed-role/app/one"
	who[session] = s.as(t, *c.AccessKeyId, *c.SecretAccessKey, *c.SessionToken)

	key := func(statements string) string {
		out := must(admin.kms.CreateKey(ctx, &kms.CreateKeyInput{}))(t)
		if statements != "" {
			admins := `{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"` + arn + `:user/administrator"},"Action":"kms:*","Resource":"*"}`
			document := `{"Version":"2012-10-17","Statement":[` + admins + `,` + statements + `]}`
			must(admin.kms.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: out.KeyMetadata.KeyId, Policy: &document}))(t)
		}
		return *out.KeyMetadata.Arn
	}
	plain := key("")
	named := key(`{"Sid":"AllowUse","Effect":"Allow","Principal":{"AWS":["` + arn + `:user/bob","` + arn + `:role/app"]},"Action":"kms:Encrypt","Resource":"*"}`)
	denying := key(`{"Effect":"Allow","Principal":"*","Action":"kms:Encrypt","Resource":"*"},
		{"Sid":"NoEmpty","Effect":"Deny","Principal":"*","Action":"kms:Encrypt","Resource":"*","Condition":{"Null":{"kms:EncryptionContextKeys":"true"}}}`)
	closed := key(`{"Effect":"Allow","Principal":"*","Action":"kms:Decrypt","Resource":"*"}`)
	aliased := key(`{"Effect":"Allow","Principal":"*","Action":"kms:Encrypt","Resource":"*","Condition":{"StringEquals":{"kms:RequestAlias":"alias/simulated"}}}`)
	must(admin.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: aws.String("alias/simulated"), TargetKeyId: &aliased}))(t)
	alias := strings.Replace(aliased, aliased[strings.LastIndex(aliased, ":")+1:], "alias/simulated", 1)
	granted := key(`{"Effect":"Allow","Principal":"*","Action":"kms:Decrypt","Resource":"*"}`)
	grant := must(admin.kms.CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: &granted, GranteePrincipal: aws.String(arn + ":user/bob"), Operations: []types.GrantOperation{types.GrantOperationEncrypt},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"tenant": "b"}},
	}))(t)

	for _, q := range []struct {
		who, key, context, want string
	}{
		{"user/alice", plain, "tenant=a", `allowed  by statement 2 "TenantA" of identity policy "use"`},
		{"user/alice", plain, "tenant=b", `denied  no identity-based policy allows kms:Encrypt`},
		{"user/alice", plain, "tenant=x", `denied  explicitly by statement 1 of identity policy "use"`},
		{"user/alice", denying, "tenant=x", `denied  explicitly by statement 1 of identity policy "use"`},
		{"user/bob", plain, "tenant=a", `denied  no identity-based policy allows kms:Encrypt`},
		{"user/bob", named, "", `allowed  by statement 2 "AllowUse" of the key policy`},
		{"user/alice", named, "tenant=a", `denied  no key policy and no grant allows kms:Encrypt`},
		{session, named, "", `allowed  by statement 2 "AllowUse" of the key policy`},
		{session, plain, "", `denied  no identity-based policy allows kms:Encrypt`},
		{"user/bob", denying, "", `denied  explicitly by statement 3 "NoEmpty" of the key policy`},
		{"user/bob", denying, "Tenant=q", `allowed  by statement 2 of the key policy`},
		{"user/bob", closed, "tenant=a", `denied  no key policy and no grant allows kms:Encrypt`},
		{"user/bob", granted, "tenant=b", `allowed  by grant ` + *grant.GrantId},
		{"user/bob", granted, "tenant=c", `denied  no key policy and no grant allows kms:Encrypt`},
		{"user/bob", alias, "", `allowed  by statement 2 of the key policy`},
		{"user/bob", aliased, "", `denied  no key policy and no grant allows kms:Encrypt`},
	} {
		if strings.HasPrefix(q.who, "user/") {
			q.who = arn + ":" + q.who
		}
		args := []string{"policy", "simulate", "--principal", q.who, "--action", "kms:Encrypt", "--key", q.key}
		in := &kms.EncryptInput{KeyId: &q.key, Plaintext: []byte("x")}
		if name, value, ok := strings.Cut(q.context, "="); ok {
			args = append(args, "--context", "kms:EncryptionContext:"+q.context)
			in.EncryptionContext = map[string]string{name: value}
		}
		code, out, errs := s.keyplane(t, file, args...)
		want := 3
		if strings.HasPrefix(q.want, "allowed") {
			want = 0
		}
		if code != want || out != q.want+"\n" {
			t.Errorf("%s on %s, %s: exit status %d, %s%swant %s", q.who, q.key, q.context, code, out, errs, q.want)
		}
		_, err := who[q.who].kms.Encrypt(ctx, in)
		if err != nil && !strings.Contains(err.Error(), "AccessDeniedException") {
			t.Fatal(err)
		}
		if (err == nil) != (want == 0) {
			t.Errorf("%s on %s, %s: the simulation says %s, the server %v", q.who, q.key, q.context, out, err)
		}
	}

	// Without a server, on files.
	keyPolicy := writePrivate(t, dir, "key.json", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"`+Account+`"},"Action":"kms:*","Resource":"*"}]}`)
	use := writePrivate(t, dir, "use.json", identity)
	narrow := writePrivate(t, dir, "narrow.json", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:Decrypt","Resource":"*"}]}`)
	for _, q := range []struct {
		args string
		code int
		want string
	}{
		{"--identity-policy " + use + " --context kms:EncryptionContext:tenant=a", 0, `allowed  by statement 2 "TenantA" of identity policy "` + use + `"`},
		{"--identity-policy " + use, 3, `denied  no identity-based policy allows kms:Encrypt`},
		{"--identity-policy " + use + " --boundary " + narrow + " --context kms:EncryptionContext:tenant=a", 3, `denied  the permissions boundary does not allow kms:Encrypt`},
		{"--identity-policy " + use + " --session-policy " + narrow + " --context kms:EncryptionContext:tenant=a", 3, `denied  a session policy does not allow kms:Encrypt`},
		{"--identity-policy " + use + " --context kms:EncryptionContext:tenant=a --json", 0,
			`{"EvalDecision":"allowed","EvalReason":"by statement 2 \"TenantA\" of identity policy \"` + use + `\"","Statement":2,"Sid":"TenantA"}`},
		{"--identity-policy " + use + " --context aws:username=bob", 1, ``},
		{"--identity-policy " + use + " --context kms:NoSuchKey=1", 1, ``},
	} {
		args := append([]string{"policy", "simulate", "--principal", arn + ":user/alice", "--action", "kms:encrypt", "--key", plain, "--key-policy", keyPolicy}, strings.Fields(q.args)...)
		code, out, errs := s.keyplane(t, "/nowhere", args...)
		if code != q.code || strings.TrimSuffix(out, "\n") != q.want {
			t.Errorf("%s: exit status %d, %s%s", q.args, code, out, errs)
		}
	}

	// Bob may not simulate, nobody another account's key, nor a key that is not there.
	k := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: aws.String("bob")}))(t).AccessKey
	bob := writePrivate(t, dir, "bob", "[default]\naws_access_key_id = "+*k.AccessKeyId+"\naws_secret_access_key = "+*k.SecretAccessKey+"\n")
	for _, q := range []struct{ file, key, want string }{
		{bob, plain, "AccessDenied: "},
		{file, strings.Replace(plain, Account, "444455556666", 1), "InvalidInput: "},
		{file, plain[:len(plain)-36] + "00000000-0000-0000-0000-000000000000", "NoSuchEntity: "},
		{file, "*", "InvalidInput: "},
	} {
		code, out, errs := s.keyplane(t, q.file, "policy", "simulate", "--principal", arn+":user/alice", "--action", "kms:Encrypt", "--key", q.key)
		if code != 1 || out != "" || !strings.HasPrefix(errs, q.want) {
			t.Errorf("%s: exit status %d, %s%s, want %s", q.key, code, out, errs, q.want)
		}
	}
}
