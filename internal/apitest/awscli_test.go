package apitest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/hsm/hsmtest"
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
var newerThanCLI = []string{"Decapsulate", "DeriveSharedSecret", "Encapsulate", "GetKeyLastUsage", "ListKeyRotations", "RotateKeyOnDemand"}

// TestAWSCLI: Debian's awscli knows every operation that is built but newerThanCLI, and each works with it. A call takes it about a second, most of it its own.
func TestAWSCLI(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command(awsCommand, "--version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "aws-cli/2.") {
		t.Fatalf("%s --version: %v %s: run make deps", awsCommand, err, out)
	}
	p := Command(t, filepath.Join(t.TempDir(), "data"), "--region", Region, "--region", regions[1])
	a := &awsCLI{p: p, home: t.TempDir()}
	type set struct {
		name       string
		operations []string
		run        func(*testing.T, *awsCLI)
	}
	sets := []set{
		{"keys", []string{"CreateKey", "DescribeKey", "DisableKey", "EnableKey", "UpdateKeyDescription", "ListKeys", "ScheduleKeyDeletion", "CancelKeyDeletion"}, cliKeys},
		{"rotation", []string{"EnableKeyRotation", "GetKeyRotationStatus", "DisableKeyRotation"}, cliRotation},
		{"data", []string{"Encrypt", "Decrypt", "ReEncrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateRandom"}, cliData},
		{"specs", []string{"Sign", "Verify", "GetPublicKey", "GenerateMac", "VerifyMac", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext"}, cliSpecs},
		{"aliases", []string{"CreateAlias", "UpdateAlias", "ListAliases", "DeleteAlias"}, cliAliases},
		{"tags and policies", []string{"TagResource", "ListResourceTags", "UntagResource", "PutKeyPolicy", "GetKeyPolicy", "ListKeyPolicies"}, cliTags},
		{"import", []string{"GetParametersForImport", "ImportKeyMaterial", "DeleteImportedKeyMaterial"}, cliImport},
		{"grants", []string{"CreateGrant", "ListGrants", "ListRetirableGrants", "RetireGrant", "RevokeGrant"}, cliGrants},
		{"custom key stores", []string{"CreateCustomKeyStore", "DescribeCustomKeyStores", "ConnectCustomKeyStore", "UpdateCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore"}, cliKeyStores},
		{"related keys", []string{"ReplicateKey", "UpdatePrimaryRegion"}, cliRelated},
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

func cliRotation(t *testing.T, a *awsCLI) {
	id := a.key(t)
	var status struct{ KeyRotationEnabled bool }
	a.ok(t, nil, "enable-key-rotation", "--key-id", id)
	a.ok(t, &status, "get-key-rotation-status", "--key-id", id)
	equal(t, "KeyRotationEnabled", status.KeyRotationEnabled, true)
	a.ok(t, nil, "disable-key-rotation", "--key-id", id)
	a.ok(t, &status, "get-key-rotation-status", "--key-id", id)
	equal(t, "KeyRotationEnabled", status.KeyRotationEnabled, false)
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

// cliRelated has the flow of the documentation: a multi-Region key, its replica in another Region, which decrypts what the primary encrypted, and becomes the primary.
func cliRelated(t *testing.T, a *awsCLI) {
	there := []string{"--region", regions[1]}
	type metadata struct {
		KeyId, Arn, KeyState     string
		MultiRegion              bool
		MultiRegionConfiguration struct{ MultiRegionKeyType string }
	}
	var made struct{ KeyMetadata metadata }
	a.ok(t, &made, "create-key", "--multi-region")
	id := made.KeyMetadata.KeyId
	equal(t, "MultiRegion", made.KeyMetadata.MultiRegion, true)
	var copied struct{ ReplicaKeyMetadata metadata }
	a.ok(t, &copied, "replicate-key", "--key-id", id, "--replica-region", regions[1])
	equal(t, "Arn", copied.ReplicaKeyMetadata.Arn, strings.Replace(made.KeyMetadata.Arn, Region, regions[1], 1))
	a.fails(t, "AlreadyExistsException", "replicate-key", "--key-id", id, "--replica-region", regions[1])
	a.fails(t, "UnsupportedOperationException", "replicate-key", "--key-id", a.key(t), "--replica-region", regions[1])
	seen := func() metadata {
		a.p.Do(t, "DescribeKey", marshal(t, map[string]any{"KeyId": id}), func(r *Request) { r.Region = regions[1] }).Members(t, &made)
		return made.KeyMetadata
	}
	eventually(t, "the replica is Enabled", func() bool { return seen().KeyState == "Enabled" })
	var sealed struct{ CiphertextBlob string }
	a.ok(t, &sealed, "encrypt", "--key-id", id, "--plaintext", encode([]byte("of both")))
	var opened struct{ Plaintext, KeyId string }
	a.ok(t, &opened, append([]string{"decrypt", "--ciphertext-blob", sealed.CiphertextBlob}, there...)...)
	equal(t, "Plaintext", opened.Plaintext, encode([]byte("of both")))
	equal(t, "KeyId", opened.KeyId, copied.ReplicaKeyMetadata.Arn)
	a.ok(t, nil, "update-primary-region", "--key-id", id, "--primary-region", regions[1])
	eventually(t, "the replica is the primary", func() bool {
		m := seen()
		return m.KeyState == "Enabled" && m.MultiRegionConfiguration.MultiRegionKeyType == "PRIMARY"
	})
}

// TestAWSCLIKeyStores has the flows of the documentation, of both kinds of key stores, with Debian's awscli: create, connect, create a key, use it, disconnect, delete. The
// cluster is two SoftHSM tokens that keyplane hsm init has prepared, the proxy another keyplane.
func TestAWSCLIKeyStores(t *testing.T) {
	if testing.Short() {
		t.Skip("sixty calls of awscli, a second each")
	}
	t.Parallel()
	proxy := StartXKSProxy(t)
	proxy.Offer(t, "external-1")
	dir := t.TempDir()
	anchor := writePrivate(t, dir, "customerCA.crt", string(authority(t)))
	var hsms []string
	for range 2 {
		uri := hsmtest.SoftHSM(t)
		if out, err := exec.Command(Binary(t), "hsm", "init", "--hsm", uri).CombinedOutput(); err != nil {
			t.Fatalf("keyplane hsm init: %v: %s", err, out)
		}
		hsms = append(hsms, strconv.Quote(withoutPIN(t, uri)))
	}
	config := patient + "clusters: [{id: " + ClusterID + ", trust_anchor: " + anchor + ", hsms: [" + strings.Join(hsms, ", ") + "]}]\n" +
		"xks: {trusted_roots: " + proxy.CAFile + ", hosts: {" + XKSHost + ": \"" + proxy.Addr + "\"}}\n"
	a := &awsCLI{p: Command(t, filepath.Join(dir, "data"), "--config", writePrivate(t, dir, "keyplane.yaml", config)), home: t.TempDir()}
	t.Run("CloudHSM", func(t *testing.T) {
		t.Parallel()
		cliCloudHSM(t, a, anchor)
	})
	t.Run("XKS", func(t *testing.T) {
		t.Parallel()
		cliXKS(t, a)
	})
}

// cliStore is a key store as describe-custom-key-stores has it.
type cliStore struct {
	CustomKeyStoreId, CustomKeyStoreName, CustomKeyStoreType, ConnectionState, ConnectionErrorCode string
	CloudHsmClusterId, TrustAnchorCertificate                                                      string
	XksProxyConfiguration                                                                          struct{ Connectivity, AccessKeyId, UriEndpoint, UriPath string }
}

func (a *awsCLI) store(t *testing.T, id string) cliStore {
	t.Helper()
	var list struct{ CustomKeyStores []cliStore }
	a.ok(t, &list, "describe-custom-key-stores", "--custom-key-store-id", id)
	if len(list.CustomKeyStores) != 1 {
		t.Fatalf("describe-custom-key-stores: %+v", list)
	}
	return list.CustomKeyStores[0]
}

// connects has a key store connected, or not, as its end state says.
func (a *awsCLI) connects(t *testing.T, id string) (s cliStore) {
	t.Helper()
	a.ok(t, nil, "connect-custom-key-store", "--custom-key-store-id", id)
	eventually(t, "the key store is connected, or not", func() bool {
		s = a.store(t, id)
		return s.ConnectionState != "CONNECTING"
	})
	return s
}

// usesStored is the middle of both flows: what is done with a key, and with the key store while it has one.
func (a *awsCLI) usesStored(t *testing.T, store, key string) {
	t.Helper()
	var sealed, data struct{ CiphertextBlob, Plaintext string }
	var opened struct{ Plaintext string }
	again := func(v any, args ...string) { // a proxy of a busy machine does not always answer within a quarter of a second
		t.Helper()
		for n := 0; ; n++ {
			code, out, errs := a.run(t, args...)
			if code == 0 {
				if err := json.Unmarshal(out, v); err != nil {
					t.Fatal(err)
				}
				return
			}
			if n == 10 || !strings.Contains(string(errs), "did not respond") && !strings.Contains(string(errs), "cannot communicate with the external key store proxy.") {
				t.Fatalf("aws kms %s: exit status %d: %s", strings.Join(args, " "), code, errs)
			}
		}
	}
	again(&sealed, "encrypt", "--key-id", key, "--plaintext", encode([]byte("kept elsewhere")))
	again(&opened, "decrypt", "--ciphertext-blob", sealed.CiphertextBlob)
	equal(t, "Plaintext", opened.Plaintext, encode([]byte("kept elsewhere")))
	again(&data, "generate-data-key", "--key-id", key, "--key-spec", "AES_256")
	again(&opened, "decrypt", "--ciphertext-blob", data.CiphertextBlob, "--key-id", key)
	equal(t, "Plaintext", opened.Plaintext, data.Plaintext)
	a.fails(t, "UnsupportedOperationException", "enable-key-rotation", "--key-id", key)
	a.fails(t, "UnsupportedOperationException", "generate-data-key-pair", "--key-id", key, "--key-pair-spec", "ECC_NIST_P256")

	of := []string{"--custom-key-store-id", store}
	a.fails(t, "CustomKeyStoreInvalidStateException", append([]string{"delete-custom-key-store"}, of...)...)
	a.ok(t, nil, append([]string{"disconnect-custom-key-store"}, of...)...)
	equal(t, "ConnectionState", a.store(t, store).ConnectionState, "DISCONNECTED")
	var seen struct{ KeyMetadata struct{ KeyState string } }
	a.ok(t, &seen, "describe-key", "--key-id", key)
	equal(t, "KeyState", seen.KeyMetadata.KeyState, "Unavailable")
	a.fails(t, "KMSInvalidStateException", "decrypt", "--ciphertext-blob", sealed.CiphertextBlob)
	a.fails(t, "CustomKeyStoreInvalidStateException", append([]string{"disconnect-custom-key-store"}, of...)...)
	a.fails(t, "CustomKeyStoreHasCMKsException", append([]string{"delete-custom-key-store"}, of...)...)
	a.ok(t, nil, "schedule-key-deletion", "--key-id", key, "--pending-window-in-days", "7")
	a.fails(t, "CustomKeyStoreHasCMKsException", append([]string{"delete-custom-key-store"}, of...)...)
}

func cliCloudHSM(t *testing.T, a *awsCLI, anchor string) {
	create := []string{"create-custom-key-store", "--custom-key-store-name", "hsms", "--cloud-hsm-cluster-id", ClusterID, "--trust-anchor-certificate", "file://" + anchor, "--key-store-password"}
	a.fails(t, "CloudHsmClusterNotFoundException", "create-custom-key-store", "--custom-key-store-name", "hsms", "--cloud-hsm-cluster-id", "cluster-77777777777",
		"--trust-anchor-certificate", "file://"+anchor, "--key-store-password", ClusterPassword)
	a.fails(t, "IncorrectTrustAnchorException", "create-custom-key-store", "--custom-key-store-name", "hsms", "--cloud-hsm-cluster-id", ClusterID,
		"--trust-anchor-certificate", "file://"+writePrivate(t, t.TempDir(), "other.crt", string(authority(t))), "--key-store-password", ClusterPassword)
	var made struct{ CustomKeyStoreId string }
	a.ok(t, &made, append(create, "not the password")...)
	id := made.CustomKeyStoreId
	a.fails(t, "CustomKeyStoreNameInUseException", append(create, ClusterPassword)...)
	s := a.store(t, id)
	equal(t, "CustomKeyStoreType", s.CustomKeyStoreType, "AWS_CLOUDHSM")
	equal(t, "CloudHsmClusterId", s.CloudHsmClusterId, ClusterID)
	a.fails(t, "CustomKeyStoreInvalidStateException", "create-key", "--origin", "AWS_CLOUDHSM", "--custom-key-store-id", id)
	s = a.connects(t, id)
	equal(t, "ConnectionState and ConnectionErrorCode", s.ConnectionState+" "+s.ConnectionErrorCode, "FAILED INVALID_CREDENTIALS")
	a.fails(t, "CustomKeyStoreInvalidStateException", "connect-custom-key-store", "--custom-key-store-id", id)
	a.ok(t, nil, "disconnect-custom-key-store", "--custom-key-store-id", id)
	a.ok(t, nil, "update-custom-key-store", "--custom-key-store-id", id, "--key-store-password", ClusterPassword)
	equal(t, "ConnectionState", a.connects(t, id).ConnectionState, "CONNECTED")
	a.fails(t, "CustomKeyStoreInvalidStateException", "update-custom-key-store", "--custom-key-store-id", id, "--key-store-password", "another one")
	var key struct {
		KeyMetadata struct{ KeyId, Origin, CustomKeyStoreId, CloudHsmClusterId string }
	}
	a.ok(t, &key, "create-key", "--origin", "AWS_CLOUDHSM", "--custom-key-store-id", id)
	equal(t, "Origin", key.KeyMetadata.Origin, "AWS_CLOUDHSM")
	equal(t, "CloudHsmClusterId", key.KeyMetadata.CloudHsmClusterId, ClusterID)
	var random struct{ Plaintext string }
	a.ok(t, &random, "generate-random", "--number-of-bytes", "24", "--custom-key-store-id", id)
	equal(t, "the length of Plaintext", len(random.Plaintext), 32)
	a.usesStored(t, id, key.KeyMetadata.KeyId)
}

func cliXKS(t *testing.T, a *awsCLI) {
	create := func(name, path, secret string) []string {
		return []string{
			"create-custom-key-store", "--custom-key-store-name", name, "--custom-key-store-type", "EXTERNAL_KEY_STORE", "--xks-proxy-connectivity", "PUBLIC_ENDPOINT",
			"--xks-proxy-uri-endpoint", XKSEndpoint, "--xks-proxy-uri-path", path,
			"--xks-proxy-authentication-credential", "AccessKeyId=" + XKSAccessKeyID + ",RawSecretAccessKey=" + secret,
		}
	}
	a.fails(t, "XksProxyIncorrectAuthenticationCredentialException", create("proxied", XKSPath, "x"+XKSSecret)...)
	a.fails(t, "XksProxyInvalidConfigurationException", create("proxied", "/nobodys/kms/xks/v1", XKSSecret)...)
	var made, scratch struct{ CustomKeyStoreId string }
	a.ok(t, &made, create("proxied", XKSPath, XKSSecret)...)
	id := made.CustomKeyStoreId
	a.fails(t, "XksProxyUriInUseException", create("again", XKSPath, XKSSecret)...)
	s := a.store(t, id)
	equal(t, "the proxy", s.XksProxyConfiguration.UriEndpoint+s.XksProxyConfiguration.UriPath+" "+s.XksProxyConfiguration.AccessKeyId, XKSEndpoint+XKSPath+" "+XKSAccessKeyID)
	equal(t, "ConnectionState", s.ConnectionState, "DISCONNECTED")
	a.fails(t, "CustomKeyStoreInvalidStateException", "create-key", "--origin", "EXTERNAL_KEY_STORE", "--custom-key-store-id", id, "--xks-key-id", "external-1")
	equal(t, "ConnectionState", a.connects(t, id).ConnectionState, "CONNECTED")
	a.fails(t, "XksKeyNotFoundException", "create-key", "--origin", "EXTERNAL_KEY_STORE", "--custom-key-store-id", id, "--xks-key-id", "nobodys")
	a.fails(t, "ValidationException", "create-key", "--origin", "EXTERNAL_KEY_STORE", "--custom-key-store-id", id)
	var key struct {
		KeyMetadata struct {
			KeyId, Origin       string
			XksKeyConfiguration struct{ Id string }
		}
	}
	a.ok(t, &key, "create-key", "--origin", "EXTERNAL_KEY_STORE", "--custom-key-store-id", id, "--xks-key-id", "external-1")
	equal(t, "XksKeyConfiguration", key.KeyMetadata.XksKeyConfiguration.Id, "external-1")
	a.fails(t, "XksKeyAlreadyInUseException", "create-key", "--origin", "EXTERNAL_KEY_STORE", "--custom-key-store-id", id, "--xks-key-id", "external-1")
	a.ok(t, nil, "update-custom-key-store", "--custom-key-store-id", id, "--new-custom-key-store-name", "renamed")
	a.usesStored(t, id, key.KeyMetadata.KeyId)

	a.ok(t, &scratch, "create-custom-key-store", "--custom-key-store-name", "empty", "--custom-key-store-type", "EXTERNAL_KEY_STORE", "--xks-proxy-connectivity", "VPC_ENDPOINT_SERVICE",
		"--xks-proxy-uri-endpoint", nowhere, "--xks-proxy-uri-path", "/kms/xks/v1", "--xks-proxy-vpc-endpoint-service-name", vpcService,
		"--xks-proxy-authentication-credential", "AccessKeyId="+proxyKeyID+",RawSecretAccessKey="+proxySecret)
	a.ok(t, nil, "delete-custom-key-store", "--custom-key-store-id", scratch.CustomKeyStoreId)
	a.fails(t, "CustomKeyStoreNotFoundException", "describe-custom-key-stores", "--custom-key-store-id", scratch.CustomKeyStoreId)
}
