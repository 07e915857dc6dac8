package apitest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// testErrors: every exception that an SDK has a type for and this service gives, and the generic ones by name.
func testErrors(t *testing.T, s *world) {
	t.Run("typed", func(t *testing.T) { testTypedErrors(t, s) })
	t.Run("dry run", func(t *testing.T) { testDryRun(t, s) })
	t.Run("limits", func(t *testing.T) { testLimits(t, s) })
	t.Run("generic", func(t *testing.T) { testGenericErrors(t, s) })
	t.Run("unknown", func(t *testing.T) { testUnknown(t, s) })
}

const nobody = "12345678-1234-1234-1234-123456789012" // a key ID that no key has

func testTypedErrors(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key, other, off, gone := newKey(t, c), newKey(t, c), newKey(t, c), newKey(t, c)
	alias := aliasOf(t, "taken")
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}))(t)
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	offBlob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: off.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	goneBlob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: gone.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: off.KeyId}))(t)
	must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: gone.KeyId}))(t)

	encrypt := func(id *string) error {
		_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")})
		return err
	}
	generate := func(id *string) error {
		_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: id, KeySpec: types.DataKeySpecAes256})
		return err
	}
	generateOnly := func(id *string) error {
		_, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: id, KeySpec: types.DataKeySpecAes256})
		return err
	}
	decrypt := func(blob []byte, id *string) error {
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, KeyId: id})
		return err
	}
	reEncrypt := func(blob []byte, to *string) error {
		_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: to})
		return err
	}

	for _, use := range []func(*string) error{encrypt, generate, generateOnly} {
		for _, name := range []string{nobody, "alias/nobody", "arn:aws:kms:" + Region + ":" + Account + ":key/" + nobody, "no id at all"} {
			e := refusedAs[*types.NotFoundException](t, use(&name))
			if e != nil && e.ErrorMessage() == "" {
				t.Errorf("%s: no message", name)
			}
		}
		e := refusedAs[*types.DisabledException](t, use(off.KeyId))
		if e != nil && e.ErrorMessage() != *off.Arn+" is disabled." {
			t.Errorf("the message is %q", e.ErrorMessage())
		}
		e2 := refusedAs[*types.KMSInvalidStateException](t, use(gone.KeyId))
		if e2 != nil && e2.ErrorMessage() != *gone.Arn+" is pending deletion." {
			t.Errorf("the message is %q", e2.ErrorMessage())
		}
	}
	refusedAs[*types.DisabledException](t, decrypt(offBlob, nil))
	refusedAs[*types.DisabledException](t, decrypt(offBlob, off.Arn))
	refusedAs[*types.DisabledException](t, reEncrypt(offBlob, key.KeyId))
	refusedAs[*types.DisabledException](t, reEncrypt(blob, off.KeyId))
	refusedAs[*types.KMSInvalidStateException](t, decrypt(goneBlob, nil))
	refusedAs[*types.KMSInvalidStateException](t, reEncrypt(blob, gone.KeyId))
	refusedAs[*types.NotFoundException](t, reEncrypt(blob, str(nobody)))
	refusedAs[*types.NotFoundException](t, decrypt(blob, str(nobody)))
	refusedAs[*types.IncorrectKeyException](t, decrypt(blob, other.KeyId))
	_, err := c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, SourceKeyId: other.KeyId, DestinationKeyId: key.KeyId})
	refusedAs[*types.IncorrectKeyException](t, err)
	refusedAs[*types.InvalidCiphertextException](t, decrypt([]byte("not ours"), nil))
	refusedAs[*types.InvalidCiphertextException](t, decrypt(blob[:len(blob)-1], key.KeyId))
	refusedAs[*types.InvalidCiphertextException](t, reEncrypt(append([]byte(nil), append(blob, 0)...), key.KeyId))

	refusedAs[*types.KMSInvalidStateException](t, func() error {
		_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId})
		return err
	}())
	_, err = c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: gone.KeyId})
	refusedAs[*types.KMSInvalidStateException](t, err)
	_, err = c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: gone.KeyId})
	refusedAs[*types.KMSInvalidStateException](t, err)

	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: other.KeyId})
	refusedAs[*types.AlreadyExistsException](t, err)
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/with:colon"), TargetKeyId: other.KeyId})
	refusedAs[*types.InvalidAliasNameException](t, err)
	_, err = c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: str("alias/nobody"), TargetKeyId: other.KeyId})
	refusedAs[*types.NotFoundException](t, err)
	_, err = c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &alias, TargetKeyId: str(nobody)})
	refusedAs[*types.NotFoundException](t, err)
	_, err = c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: str("alias/nobody")})
	refusedAs[*types.NotFoundException](t, err)

	for _, arn := range []string{"arn:aws:kms", "arn:aws:kms:" + Region + ":" + Account, "arn:aws:s3:" + Region + ":" + Account + ":key/" + nobody} {
		_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &arn})
		refusedAs[*types.InvalidArnException](t, err)
	}
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha256})
	refusedAs[*types.InvalidKeyUsageException](t, err)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), GrantTokens: []string{"made up"}})
	refusedAs[*types.InvalidGrantTokenException](t, err)
	_, err = c.ListKeys(ctx, &kms.ListKeysInput{Marker: str("made up")})
	refusedAs[*types.InvalidMarkerException](t, err)
	_, err = c.ListAliases(ctx, &kms.ListAliasesInput{Marker: str("made up")})
	refusedAs[*types.InvalidMarkerException](t, err)
	for _, tag := range []string{"aws:mine", "AWS:mine", "semi;colon"} {
		_, err = c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: &tag, TagValue: str("")}}})
		refusedAs[*types.TagException](t, err)
	}
	_, err = c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{
		{TagKey: str("twice"), TagValue: str("1")}, {TagKey: str("twice"), TagValue: str("2")},
	}})
	refusedAs[*types.TagException](t, err)
	for _, policy := range []string{"not JSON", "[]", `{"a":1`, `{"a":1}{}`, `{"a":1,"a":1}`} {
		_, err = c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &policy})
		refusedAs[*types.MalformedPolicyDocumentException](t, err)
		_, err = c.CreateKey(ctx, &kms.CreateKeyInput{Policy: &policy})
		refusedAs[*types.MalformedPolicyDocumentException](t, err)
	}
	_, err = c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: str("another")})
	refusedAs[*types.NotFoundException](t, err)
	for _, usage := range []types.KeyUsageType{"ENCRYPT_DECRYPT", "SIGN_VERIFY", "KEY_AGREEMENT"} {
		_, err = c.CreateKey(ctx, &kms.CreateKeyInput{KeySpec: types.KeySpecSm2, KeyUsage: usage})
		refusedAs[*types.UnsupportedOperationException](t, err)
	}
	_, err = c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), CustomKeyStoreId: str("cks-1234567890abcdef0")})
	refusedAs[*types.CustomKeyStoreNotFoundException](t, err)
}

// testDryRun: a dry run never succeeds, and tells the real refusal first.
func testDryRun(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key, off := newKey(t, c), newKey(t, c)
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: off.KeyId}))(t)
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	dry := aws.Bool(true)
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: key.KeyId, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{KeyId: key.KeyId, DryRun: dry, DryRunModifiers: []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext}})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: off.KeyId, Plaintext: []byte("x"), DryRun: dry})
	refusedAs[*types.DisabledException](t, err)
	blob[len(blob)-1] ^= 1
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, DryRun: dry})
	refusedAs[*types.InvalidCiphertextException](t, err)
}

// testLimits: each limit that a client meets, at the limit and one beyond.
func testLimits(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	for i := range kmsapi.AliasesPerKeyMax {
		must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str(aliasOf(t, fmt.Sprint(i))), TargetKeyId: key.KeyId}))(t)
	}
	_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str(aliasOf(t, "one too many")), TargetKeyId: key.KeyId})
	refusedWith(t, err, "ValidationException") // the blanks
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str(aliasOf(t, "one-too-many")), TargetKeyId: key.KeyId})
	refusedAs[*types.LimitExceededException](t, err)
	must(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: str(aliasOf(t, "7"))}))(t)
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str(aliasOf(t, "one-too-many")), TargetKeyId: key.KeyId}))(t)

	policy := func(n int) *string {
		p := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}`
		return str(p[:len(p)-1] + strings.Repeat(" ", n-len(p)) + "}")
	}
	must(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: policy(kmsapi.PolicyMax)}))(t)
	_, err = c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: policy(kmsapi.PolicyMax + 1)})
	refusedAs[*types.LimitExceededException](t, err)
	_, err = c.CreateKey(ctx, &kms.CreateKeyInput{Policy: policy(kmsapi.PolicyMax + 1)})
	refusedAs[*types.LimitExceededException](t, err)

	tags := func(n int) (list []types.Tag) {
		for i := range n {
			list = append(list, types.Tag{TagKey: str(fmt.Sprint("k", i)), TagValue: str("")})
		}
		return list
	}
	must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: tags(kmsapi.TagsPerKeyMax)}))(t)
	_, err = c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: str("more"), TagValue: str("")}}})
	refusedAs[*types.TagException](t, err)
	_, err = c.CreateKey(ctx, &kms.CreateKeyInput{Tags: tags(kmsapi.TagsPerKeyMax + 1)})
	refusedAs[*types.TagException](t, err)

	must(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key.KeyId, Description: str(strings.Repeat("ü", kmsapi.DescriptionMax))}))(t)
	valid := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s at its limit: %v", name, err)
		}
	}
	_, err = c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key.KeyId, Description: str(strings.Repeat("d", kmsapi.DescriptionMax+1))})
	refusedWith(t, err, "ValidationException")
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, kmsapi.PlaintextMax)})
	valid("Plaintext", err)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: make([]byte, kmsapi.PlaintextMax+1)})
	refusedWith(t, err, "ValidationException")
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: make([]byte, kmsapi.CiphertextBlobMax)})
	refusedAs[*types.InvalidCiphertextException](t, err)
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: make([]byte, kmsapi.CiphertextBlobMax+1)})
	refusedWith(t, err, "ValidationException")
	for _, n := range []int32{0, kmsapi.RandomBytesMax + 1} {
		_, err = c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(n)})
		refusedWith(t, err, "ValidationException")
		_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(n)})
		refusedWith(t, err, "ValidationException")
	}
	for _, n := range []int32{6, 31} {
		_, err = c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(n)})
		refusedWith(t, err, "ValidationException")
	}
	pairs := make(map[string]string)
	for i := range kmsapi.ContextPairsMax {
		pairs[fmt.Sprint("k", i)] = "v"
	}
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: pairs})
	valid("EncryptionContext", err)
	pairs["more"] = ""
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: pairs})
	refusedWith(t, err, "ValidationException")
	// 2 bytes for the number of pairs and 2 for each length: docs/ciphertext.md §2.
	long := strings.Repeat("v", kmsapi.ContextBytesMax-2-2-1-2)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: map[string]string{"k": long}})
	valid("EncryptionContext", err)
	_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: map[string]string{"k": long + "v"}})
	refusedWith(t, err, "ValidationException")
}

func testGenericErrors(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob

	_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId})
	refusedWith(t, err, "ValidationException")
	_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(8), KeySpec: types.DataKeySpecAes256})
	refusedWith(t, err, "ValidationException")
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("no-prefix"), TargetKeyId: key.KeyId})
	refusedWith(t, err, "ValidationException")
	_, err = c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/aws/mine"), TargetKeyId: key.KeyId})
	refusedWith(t, err, "NotAuthorizedException")

	// Another account's key: the same refusal whether it exists or not, before anything is looked up.
	foreign := "arn:aws:kms:" + Region + ":999999999999:key/" + *key.KeyId
	foreignAlias := "arn:aws:kms:" + Region + ":999999999999:alias/any"
	for _, name := range []*string{&foreign, &foreignAlias} {
		_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: name, Plaintext: []byte("x")})
		refusedWith(t, err, "AccessDeniedException")
		_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: name})
		refusedWith(t, err, "AccessDeniedException")
		var e smithy.APIError
		if errors.As(err, &e) && !strings.Contains(e.ErrorMessage(), "is not authorized to perform: kms:DescribeKey") {
			t.Errorf("the message is %q", e.ErrorMessage())
		}
	}
	_, err = c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &foreign})
	refusedWith(t, err, "AccessDeniedException")
	moved := bytes.Clone(blob)
	moved[7] ^= 1 // the account
	_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: moved})
	refusedWith(t, err, "AccessDeniedException")

	as := func(id, secretKey, token string) *kms.Client {
		return s.KMS(t, func(o *kms.Options) { o.Credentials = credentials.NewStaticCredentialsProvider(id, secretKey, token) })
	}
	for name, client := range map[string]*kms.Client{
		"unknown access key": as("AKIAQQQQQQQQQQQQQQQQ", s.SecretAccessKey, ""),
		"security token":     as(s.AccessKeyID, s.SecretAccessKey, "a session token"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.ListKeys(ctx, &kms.ListKeysInput{})
			refusedWith(t, err, "UnrecognizedClientException")
			_, err = client.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256})
			refusedWith(t, err, "UnrecognizedClientException")
		})
	}
	wrong := as(s.AccessKeyID, s.SecretAccessKey+"x", "")
	_, err = wrong.ListKeys(ctx, &kms.ListKeysInput{})
	refusedWith(t, err, "InvalidSignatureException")
	_, err = wrong.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
	refusedWith(t, err, "InvalidSignatureException")
	elsewhere := s.KMS(t, func(o *kms.Options) { o.Region = "eu-central-2" })
	_, err = elsewhere.ListKeys(ctx, &kms.ListKeysInput{})
	refusedWith(t, err, "InvalidSignatureException")
}

// testUnknown: every modelled operation answers, and what is none says so.
func testUnknown(t *testing.T, s *world) {
	client := s.Client(t)
	for _, op := range kmsapi.Operations {
		if r := client.Do(t, op.Name, `{"KeyId":1}`); r.Type == "UnknownOperationException" || r.Type == "UnsupportedOperationException" {
			t.Errorf("%s: %d %s", op.Name, r.Status, r.Body)
		}
	}
	r := client.Do(t, "MakeCoffee", "{}")
	equal(t, "__type", r.Type, "UnknownOperationException")
}
