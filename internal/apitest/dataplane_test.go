package apitest

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// testDataPlane: every cryptographic operation, all members of its reply, every way to name a key.
func testDataPlane(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	other := newKey(t, c)
	alias := aliasOf(t, "key")
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}))(t)
	aliasARN := "arn:aws:kms:" + Region + ":" + Account + ":" + alias
	pairs := map[string]string{"purpose": "test", "tenant": "äöü €", "empty": ""}

	for _, name := range []*string{key.KeyId, key.Arn, &alias, &aliasARN} {
		out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: name, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs}))(t)
		equal(t, "KeyId", *out.KeyId, *key.Arn)
		equal(t, "KeyMaterialId", *out.KeyMaterialId, *key.CurrentKeyMaterialId)
		equal(t, "the length of Plaintext", len(out.Plaintext), 32)
		equal(t, "the length of CiphertextBlob", len(out.CiphertextBlob), 117)
		if id, ok := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata); !ok || len(id) != 36 {
			t.Errorf("the SDK found the request ID %q", id)
		}
		for _, named := range []*string{nil, name} {
			back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs, KeyId: named}))(t)
			if !bytes.Equal(back.Plaintext, out.Plaintext) {
				t.Error("Decrypt returned another data key")
			}
			equal(t, "KeyId", *back.KeyId, *key.Arn)
			equal(t, "KeyMaterialId", *back.KeyMaterialId, *key.CurrentKeyMaterialId)
			equal(t, "EncryptionAlgorithm", back.EncryptionAlgorithm, symmetric)
		}
	}

	t.Run("data key lengths", func(t *testing.T) {
		seen := make(map[[32]byte]bool)
		for _, n := range []int32{1, 16, 31, 32, 64, 1023, 1024} {
			out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, NumberOfBytes: aws.Int32(n)}))(t)
			equal(t, "the length of Plaintext", len(out.Plaintext), int(n))
			back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob}))(t)
			if !bytes.Equal(back.Plaintext, out.Plaintext) {
				t.Errorf("%d bytes: Decrypt returned another data key", n)
			}
			if sum := sha256.Sum256(out.CiphertextBlob); seen[sum] {
				t.Error("one ciphertext twice")
			} else {
				seen[sum] = true
			}
		}
		out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes128}))(t)
		equal(t, "the length of an AES_128 key", len(out.Plaintext), 16)
	})

	t.Run("GenerateDataKeyWithoutPlaintext", func(t *testing.T) {
		out := must(c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{
			KeyId: &alias, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs,
		}))(t)
		equal(t, "KeyId", *out.KeyId, *key.Arn)
		equal(t, "KeyMaterialId", *out.KeyMaterialId, *key.CurrentKeyMaterialId)
		back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs}))(t)
		equal(t, "the length of the data key", len(back.Plaintext), 32)
	})

	t.Run("Encrypt", func(t *testing.T) {
		for _, n := range []int{1, 2, 31, 4095, 4096} {
			plain := bytes.Repeat([]byte{byte(n)}, n)
			out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.Arn, Plaintext: plain, EncryptionContext: pairs, EncryptionAlgorithm: symmetric}))(t)
			equal(t, "KeyId", *out.KeyId, *key.Arn)
			equal(t, "EncryptionAlgorithm", out.EncryptionAlgorithm, symmetric)
			equal(t, "the length of CiphertextBlob", len(out.CiphertextBlob), 85+n)
			back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: pairs}))(t)
			if !bytes.Equal(back.Plaintext, plain) {
				t.Errorf("%d bytes did not come back", n)
			}
		}
	})

	t.Run("ReEncrypt", func(t *testing.T) {
		plain := []byte("moves from one key to another")
		made := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: plain, EncryptionContext: pairs}))(t)
		moved := map[string]string{"moved": "yes"}
		out := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
			CiphertextBlob: made.CiphertextBlob, SourceKeyId: &alias, SourceEncryptionContext: pairs,
			DestinationKeyId: other.KeyId, DestinationEncryptionContext: moved,
		}))(t)
		equal(t, "KeyId", *out.KeyId, *other.Arn)
		equal(t, "SourceKeyId", *out.SourceKeyId, *key.Arn)
		equal(t, "SourceKeyMaterialId", *out.SourceKeyMaterialId, *key.CurrentKeyMaterialId)
		equal(t, "DestinationKeyMaterialId", *out.DestinationKeyMaterialId, *other.CurrentKeyMaterialId)
		equal(t, "SourceEncryptionAlgorithm", out.SourceEncryptionAlgorithm, symmetric)
		equal(t, "DestinationEncryptionAlgorithm", out.DestinationEncryptionAlgorithm, symmetric)
		back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, EncryptionContext: moved, KeyId: other.KeyId}))(t)
		if !bytes.Equal(back.Plaintext, plain) {
			t.Error("the plaintext did not come back")
		}
		// Under its own key again, with the context taken away.
		again := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
			CiphertextBlob: out.CiphertextBlob, SourceEncryptionContext: moved, DestinationKeyId: other.KeyId,
		}))(t)
		if bytes.Equal(again.CiphertextBlob, out.CiphertextBlob) {
			t.Error("ReEncrypt returned the ciphertext it was given")
		}
		back = must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: again.CiphertextBlob}))(t)
		if !bytes.Equal(back.Plaintext, plain) {
			t.Error("the plaintext did not come back")
		}
	})

	t.Run("GenerateRandom", func(t *testing.T) {
		seen := make(map[string]bool)
		for _, n := range []int32{1, 32, 1024} {
			out := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(n)}))(t)
			equal(t, "the length of Plaintext", len(out.Plaintext), int(n))
		}
		for range 32 {
			out := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(32)}))(t)
			if seen[string(out.Plaintext)] {
				t.Error("the same 32 random bytes twice")
			}
			seen[string(out.Plaintext)] = true
		}
	})

	t.Run("encryption context", func(t *testing.T) {
		made := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), EncryptionContext: map[string]string{"a": "bc"}}))(t)
		for _, wrong := range []map[string]string{nil, {"a": "bd"}, {"ab": "c"}, {"A": "bc"}, {"a": "bc", "d": ""}, {"": "abc"}} {
			_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, EncryptionContext: wrong})
			refusedAs[*types.InvalidCiphertextException](t, err)
		}
	})
}

// testRestart: what a node made, the next one on the same data and token reads.
func testRestart(t *testing.T, s *world) {
	ctx := t.Context()
	c := s.sdk(t)
	key, off := newKey(t, c), newKey(t, c)
	alias := aliasOf(t, "key")
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}))(t)
	must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: str("a"), TagValue: str("b")}}}))(t)
	must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: off.KeyId}))(t)
	pairs := map[string]string{"a": "1", "b": "2"}
	var made []*kms.GenerateDataKeyOutput
	for range 20 {
		made = append(made, must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs}))(t))
	}
	id := s.AccessKeyID

	s.Restart(t)

	equal(t, "the administrator's access key", s.AccessKeyID, id)
	c = s.sdk(t)
	for _, m := range made {
		back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: m.CiphertextBlob, EncryptionContext: pairs}))(t)
		if !bytes.Equal(back.Plaintext, m.Plaintext) {
			t.Error("Decrypt returned another data key after the restart")
		}
		equal(t, "KeyMaterialId", *back.KeyMaterialId, *key.CurrentKeyMaterialId)
	}
	described := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &alias}))(t)
	equal(t, "the alias's key", *described.KeyMetadata.KeyId, *key.KeyId)
	equal(t, "CreationDate", described.KeyMetadata.CreationDate.UnixMilli(), key.CreationDate.UnixMilli())
	tags := must(c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key.KeyId}))(t)
	equal(t, "the number of tags", len(tags.Tags), 1)
	_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: off.KeyId, KeySpec: types.DataKeySpecAes256})
	refusedAs[*types.DisabledException](t, err)
}
