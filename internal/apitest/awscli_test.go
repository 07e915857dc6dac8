package apitest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// awsCommand is Debian's AWS command line, a client that nobody here wrote.
const awsCommand = "/usr/bin/aws"

// awsCLI runs it against a keyplane.
type awsCLI struct {
	p    *Process
	home string
}

// run returns the exit status and both outputs of `aws kms`.
func (a *awsCLI) run(t *testing.T, args ...string) (code int, stdout, stderr []byte) {
	t.Helper()
	return a.service(t, nil, append([]string{"kms"}, args...)...)
}

// service is run for a command of any service. env is added to the environment, where credentials win over the file's.
func (a *awsCLI) service(t *testing.T, env []string, args ...string) (code int, stdout, stderr []byte) {
	t.Helper()
	cmd := exec.Command(awsCommand, append([]string{
		"--endpoint-url", "http://" + a.p.Addr, "--region", Region, "--output", "json", "--no-cli-pager", "--cli-binary-format", "base64",
	}, args...)...)
	cmd.Env = append(cleanEnv("AWS_SHARED_CREDENTIALS_FILE="+filepath.Join(a.p.Dir, "credentials"), "AWS_CONFIG_FILE="+filepath.Join(a.home, "none"),
		"AWS_EC2_METADATA_DISABLED=true", "AWS_MAX_ATTEMPTS=1", "HOME="+a.home), env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: run make deps", err)
	}
	return cmd.ProcessState.ExitCode(), out.Bytes(), errs.Bytes()
}

// ok runs a command that succeeds, and decodes its output into v unless that is nil.
func (a *awsCLI) ok(t *testing.T, v any, args ...string) {
	t.Helper()
	code, out, errs := a.run(t, args...)
	if code != 0 {
		t.Fatalf("aws kms %s: exit status %d: %s", strings.Join(args, " "), code, errs)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(out, v); err != nil {
		t.Fatalf("aws kms %s: %v: %s", args[0], err, out)
	}
}

// fails runs a command that is refused with that exception.
func (a *awsCLI) fails(t *testing.T, exception string, args ...string) {
	t.Helper()
	code, _, errs := a.run(t, args...)
	if code != 254 || !strings.Contains(string(errs), "An error occurred ("+exception+")") {
		t.Errorf("aws kms %s: exit status %d: %s, want %s", strings.Join(args, " "), code, errs, exception)
	}
}

// newerThanCLI are operations that Debian's awscli, of 2023, does not know.
var newerThanCLI = []string{"Decapsulate", "DeriveSharedSecret", "Encapsulate", "GetKeyLastUsage"}

// TestAWSCLI: Debian's awscli knows every operation that is built but newerThanCLI, and each works with it. A call takes it about a second, most of it its own.
func TestAWSCLI(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command(awsCommand, "--version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "aws-cli/2.") {
		t.Fatalf("%s --version: %v %s: run make deps", awsCommand, err, out)
	}
	p := Command(t, filepath.Join(t.TempDir(), "data"))
	a := &awsCLI{p: p, home: t.TempDir()}
	type set struct {
		name       string
		operations []string
		run        func(*testing.T, *awsCLI)
	}
	sets := []set{
		{"keys", []string{"CreateKey", "DescribeKey", "DisableKey", "EnableKey", "UpdateKeyDescription", "ListKeys", "ScheduleKeyDeletion", "CancelKeyDeletion"}, cliKeys},
		{"data", []string{"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateRandom"}, cliData},
		{"specs", []string{"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"}, cliSpecs},
		{"aliases", []string{"CreateAlias", "UpdateAlias", "ListAliases", "DeleteAlias"}, cliAliases},
		{"tags and policies", []string{"TagResource", "ListResourceTags", "UntagResource", "PutKeyPolicy", "GetKeyPolicy", "ListKeyPolicies"}, cliTags},
		{"grants", []string{"CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "RevokeGrant"}, cliGrants},
	}
	for _, op := range kmsapi.Operations {
		if op.Built && !slices.Contains(newerThanCLI, op.Name) && !slices.ContainsFunc(sets, func(s set) bool { return slices.Contains(s.operations, op.Name) }) {
			t.Errorf("no set has %s", op.Name)
		}
	}
	for _, s := range sets {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, a)
		})
	}
}

// key makes a key without the command line, which is slow.
func (a *awsCLI) key(t *testing.T) string {
	t.Helper()
	var key struct{ KeyMetadata struct{ KeyId string } }
	a.p.Do(t, "CreateKey", "{}").Members(t, &key)
	return key.KeyMetadata.KeyId
}

func cliKeys(t *testing.T, a *awsCLI) {
	var made, seen struct {
		KeyMetadata struct{ KeyId, Arn, Description, KeyState, KeySpec string }
	}
	a.ok(t, &made, "create-key", "--description", "made by awscli", "--tags", "TagKey=by,TagValue=awscli")
	id := made.KeyMetadata.KeyId
	equal(t, "KeySpec", made.KeyMetadata.KeySpec, "SYMMETRIC_DEFAULT")
	a.ok(t, nil, "disable-key", "--key-id", id)
	a.fails(t, "DisabledException", "generate-data-key", "--key-id", id, "--key-spec", "AES_256")
	a.ok(t, nil, "enable-key", "--key-id", id)
	a.ok(t, nil, "update-key-description", "--key-id", id, "--description", "größer")
	a.ok(t, &seen, "describe-key", "--key-id", made.KeyMetadata.Arn)
	equal(t, "Description", seen.KeyMetadata.Description, "größer")
	equal(t, "KeyState", seen.KeyMetadata.KeyState, "Enabled")
	var list struct {
		Keys []struct{ KeyId, KeyArn string }
	}
	a.ok(t, &list, "list-keys", "--page-size", "2")
	found := 0
	for _, k := range list.Keys {
		if k.KeyId == id && k.KeyArn == made.KeyMetadata.Arn {
			found++
		}
	}
	equal(t, "how often list-keys has the key", found, 1)
	var scheduled struct {
		KeyId, KeyState, DeletionDate string
		PendingWindowInDays           int
	}
	a.ok(t, &scheduled, "schedule-key-deletion", "--key-id", id, "--pending-window-in-days", "7")
	equal(t, "KeyState", scheduled.KeyState, "PendingDeletion")
	equal(t, "PendingWindowInDays", scheduled.PendingWindowInDays, 7)
	var cancelled struct{ KeyId string }
	a.ok(t, &cancelled, "cancel-key-deletion", "--key-id", id)
	equal(t, "KeyId", cancelled.KeyId, made.KeyMetadata.Arn)
	a.fails(t, "NotFoundException", "describe-key", "--key-id", "alias/nobody")
}

func cliData(t *testing.T, a *awsCLI) {
	one, two := a.key(t), a.key(t)
	plain := writePrivate(t, t.TempDir(), "plain", "from a file\x00\xff")
	var sealed struct{ CiphertextBlob, KeyId, EncryptionAlgorithm string }
	a.ok(t, &sealed, "encrypt", "--key-id", one, "--plaintext", "fileb://"+plain, "--encryption-context", "purpose=test,tenant=a")
	equal(t, "EncryptionAlgorithm", sealed.EncryptionAlgorithm, "SYMMETRIC_DEFAULT")
	var moved struct{ CiphertextBlob, SourceKeyId, KeyId string }
	a.ok(t, &moved, "re-encrypt", "--ciphertext-blob", sealed.CiphertextBlob, "--source-encryption-context", "purpose=test,tenant=a", "--destination-key-id", two)
	if !strings.HasSuffix(moved.SourceKeyId, one) || !strings.HasSuffix(moved.KeyId, two) {
		t.Errorf("re-encrypt from %s to %s", moved.SourceKeyId, moved.KeyId)
	}
	var opened struct{ Plaintext, KeyId string }
	a.ok(t, &opened, "decrypt", "--ciphertext-blob", moved.CiphertextBlob)
	equal(t, "Plaintext", opened.Plaintext, encode([]byte("from a file\x00\xff")))
	a.fails(t, "InvalidCiphertextException", "decrypt", "--ciphertext-blob", sealed.CiphertextBlob)
	a.fails(t, "IncorrectKeyException", "decrypt", "--ciphertext-blob", sealed.CiphertextBlob, "--key-id", two)
	var dataKey struct{ CiphertextBlob, Plaintext, KeyId string }
	a.ok(t, &dataKey, "generate-data-key", "--key-id", one, "--key-spec", "AES_256")
	a.ok(t, &opened, "decrypt", "--ciphertext-blob", dataKey.CiphertextBlob, "--key-id", one)
	equal(t, "Plaintext", opened.Plaintext, dataKey.Plaintext)
	var without struct{ CiphertextBlob, Plaintext, KeyId string }
	a.ok(t, &without, "generate-data-key-without-plaintext", "--key-id", one, "--number-of-bytes", "64")
	equal(t, "Plaintext", without.Plaintext, "")
	equal(t, "the length of CiphertextBlob", len(without.CiphertextBlob), len(encode(make([]byte, 85+64))))
	var random struct{ Plaintext string }
	a.ok(t, &random, "generate-random", "--number-of-bytes", "24")
	equal(t, "the length of Plaintext", len(random.Plaintext), 32)
}

// cliSpecs has the commands of the README's examples.
func cliSpecs(t *testing.T, a *awsCLI) {
	dir := t.TempDir()
	message := writePrivate(t, dir, "message", "signed by awscli")
	var made struct {
		KeyMetadata struct{ KeyId, KeySpec string }
	}
	a.ok(t, &made, "create-key", "--key-spec", "ECC_NIST_P256", "--key-usage", "SIGN_VERIFY")
	id := made.KeyMetadata.KeyId
	equal(t, "KeySpec", made.KeyMetadata.KeySpec, "ECC_NIST_P256")
	ecdsa := []string{"--key-id", id, "--message", "fileb://" + message, "--message-type", "RAW", "--signing-algorithm", "ECDSA_SHA_256"}
	var signed struct{ Signature, SigningAlgorithm string }
	a.ok(t, &signed, append([]string{"sign"}, ecdsa...)...)
	var verified struct{ SignatureValid bool }
	a.ok(t, &verified, append([]string{"verify", "--signature", signed.Signature}, ecdsa...)...)
	equal(t, "SignatureValid", verified.SignatureValid, true)
	a.fails(t, "KMSInvalidSignatureException", append([]string{"verify", "--signature", "AAAA"}, ecdsa...)...)
	var public struct {
		PublicKey, KeySpec string
		SigningAlgorithms  []string
	}
	a.ok(t, &public, "get-public-key", "--key-id", id)
	ssl := newOpenSSL(t)
	der, signature := must(base64.StdEncoding.DecodeString(public.PublicKey))(t), must(base64.StdEncoding.DecodeString(signed.Signature))(t)
	out := ssl.run(t, "dgst", "-sha256", "-keyform", "DER", "-verify", ssl.file(t, "public", der), "-signature", ssl.file(t, "signature", signature), message)
	equal(t, "openssl's verdict", strings.TrimSpace(string(out)), "Verified OK")

	a.ok(t, &made, "create-key", "--key-spec", "HMAC_256", "--key-usage", "GENERATE_VERIFY_MAC")
	hmac := []string{"--key-id", made.KeyMetadata.KeyId, "--message", "fileb://" + message, "--mac-algorithm", "HMAC_SHA_256"}
	var mac struct{ Mac string }
	a.ok(t, &mac, append([]string{"generate-mac"}, hmac...)...)
	var valid struct{ MacValid bool }
	a.ok(t, &valid, append([]string{"verify-mac", "--mac", mac.Mac}, hmac...)...)
	equal(t, "MacValid", valid.MacValid, true)
	a.fails(t, "KMSInvalidMacException", append([]string{"verify-mac", "--mac", "AAAA"}, hmac...)...)

	var pair struct{ PrivateKeyCiphertextBlob, PrivateKeyPlaintext, PublicKey string }
	var opened struct{ Plaintext string }
	key := a.key(t)
	a.ok(t, &pair, "generate-data-key-pair", "--key-id", key, "--key-pair-spec", "ECC_NIST_P384")
	a.ok(t, &opened, "decrypt", "--ciphertext-blob", pair.PrivateKeyCiphertextBlob)
	equal(t, "the private key", opened.Plaintext, pair.PrivateKeyPlaintext)
	pair.PrivateKeyPlaintext = ""
	a.ok(t, &pair, "generate-data-key-pair-without-plaintext", "--key-id", key, "--key-pair-spec", "ECC_NIST_P384")
	equal(t, "PrivateKeyPlaintext", pair.PrivateKeyPlaintext, "")
}

func cliAliases(t *testing.T, a *awsCLI) {
	one, two := a.key(t), a.key(t)
	a.ok(t, nil, "create-alias", "--alias-name", "alias/awscli", "--target-key-id", one)
	a.fails(t, "AlreadyExistsException", "create-alias", "--alias-name", "alias/awscli", "--target-key-id", two)
	a.ok(t, nil, "update-alias", "--alias-name", "alias/awscli", "--target-key-id", two)
	var list struct {
		Aliases []struct{ AliasName, TargetKeyId, CreationDate string }
	}
	a.ok(t, &list, "list-aliases", "--key-id", two)
	if len(list.Aliases) != 1 || list.Aliases[0].AliasName != "alias/awscli" || list.Aliases[0].TargetKeyId != two || list.Aliases[0].CreationDate == "" {
		t.Errorf("list-aliases: %+v", list)
	}
	a.ok(t, nil, "delete-alias", "--alias-name", "alias/awscli")
	a.fails(t, "NotFoundException", "delete-alias", "--alias-name", "alias/awscli")
}

func cliTags(t *testing.T, a *awsCLI) {
	id := a.key(t)
	a.ok(t, nil, "tag-resource", "--key-id", id, "--tags", "TagKey=a,TagValue=1", "TagKey=b,TagValue=2")
	a.ok(t, nil, "untag-resource", "--key-id", id, "--tag-keys", "a")
	var tags struct {
		Tags []struct{ TagKey, TagValue string }
	}
	a.ok(t, &tags, "list-resource-tags", "--key-id", id)
	if len(tags.Tags) != 1 || tags.Tags[0].TagKey != "b" || tags.Tags[0].TagValue != "2" {
		t.Errorf("list-resource-tags: %+v", tags)
	}
	policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + Account + `"},"Action":"kms:*","Resource":"*"}]}`
	a.fails(t, "MalformedPolicyDocumentException", "put-key-policy", "--key-id", id, "--policy-name", "default", "--policy", `{"Version":"2012-10-17","Statement":[]}`)
	a.ok(t, nil, "put-key-policy", "--key-id", id, "--policy-name", "default", "--policy", policy)
	var got struct{ Policy string }
	a.ok(t, &got, "get-key-policy", "--key-id", id, "--policy-name", "default")
	equal(t, "Policy", got.Policy, policy)
	var names struct{ PolicyNames []string }
	a.ok(t, &names, "list-key-policies", "--key-id", id)
	if !slices.Equal(names.PolicyNames, []string{"default"}) {
		t.Errorf("list-key-policies: %v", names.PolicyNames)
	}
	a.fails(t, "MalformedPolicyDocumentException", "put-key-policy", "--key-id", id, "--policy-name", "default", "--policy", "{")
}

func cliGrants(t *testing.T, a *awsCLI) {
	id := a.key(t)
	admin := "arn:aws:iam::" + Account + ":user/administrator"
	var first, second struct{ GrantId, GrantToken string }
	a.ok(t, &first, "create-grant", "--key-id", id, "--grantee-principal", admin, "--retiring-principal", admin, "--operations", "Decrypt", "Encrypt",
		"--constraints", "EncryptionContextSubset={tenant=a}", "--name", "by-awscli")
	a.ok(t, &second, "create-grant", "--key-id", id, "--grantee-principal", admin, "--operations", "DescribeKey", "--grant-tokens", first.GrantToken)
	a.ok(t, nil, "encrypt", "--key-id", id, "--plaintext", "AAAA", "--grant-tokens", first.GrantToken)
	a.fails(t, "InvalidGrantTokenException", "encrypt", "--key-id", id, "--plaintext", "AAAA", "--grant-tokens", "AAAA")
	var list struct {
		Grants []struct {
			GrantId, Name, GranteePrincipal string
			Operations                      []string
		}
	}
	a.ok(t, &list, "list-grants", "--key-id", id, "--grant-id", first.GrantId)
	if len(list.Grants) != 1 || list.Grants[0].Name != "by-awscli" || list.Grants[0].GranteePrincipal != admin || len(list.Grants[0].Operations) != 2 {
		t.Errorf("list-grants: %+v", list)
	}
	a.ok(t, &list, "list-retirable-grants", "--retiring-principal", admin)
	a.ok(t, nil, "retire-grant", "--grant-token", first.GrantToken)
	a.ok(t, nil, "revoke-grant", "--key-id", id, "--grant-id", second.GrantId)
	a.ok(t, &list, "list-grants", "--key-id", id)
	equal(t, "grants left", len(list.Grants), 0)
}
