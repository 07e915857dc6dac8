package apitest

import (
	"bytes"
	"crypto/rsa"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/attest/attesttest"
	"github.com/keyplane/keyplane/internal/node"
)

// enclave is one image, with the key pair it made.
type enclave struct {
	authority *attesttest.Authority
	key       *rsa.PrivateKey
	pcrs      [][]byte
}

// recipient is what the enclave sends along: a document made now.
func (e *enclave) recipient(t *testing.T) *types.RecipientInfo {
	t.Helper()
	return &types.RecipientInfo{KeyEncryptionAlgorithm: types.KeyEncryptionMechanismRsaesOaepSha256,
		AttestationDocument: e.authority.Document(t, &e.key.PublicKey, e.pcrs, time.Now())}
}

// open decrypts CiphertextForRecipient with the enclave's private key, and fails the test if the plaintext came along.
func (e *enclave) open(t *testing.T, sealed, plaintext []byte) []byte {
	t.Helper()
	if len(plaintext) != 0 {
		t.Error("the reply to an enclave has the plaintext")
	}
	got, err := attesttest.Open(e.key, sealed)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestAttestation: an enclave's round trips with AWS's SDK, and a key that one image may use and another may not.
func TestAttestation(t *testing.T) {
	a := attesttest.New(t, time.Now())
	image := func(b byte) [][]byte { return [][]byte{bytes.Repeat([]byte{b}, 48), bytes.Repeat([]byte{1}, 48)} }
	good, bad := &enclave{a, attesttest.NewRecipient(t), image(7)}, &enclave{a, attesttest.NewRecipient(t), image(8)}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, a.RootPEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	s := Start(t, func(c *node.Config) { c.AttestationRoots = roots })
	ctx, c := t.Context(), s.KMS(t)
	key := newKey(t, c)
	made := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256}))(t)
	// Only the image 07…07 may use the key, and only as an enclave.
	must(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: aws.String(`{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":["kms:PutKeyPolicy","kms:DescribeKey"],"Resource":"*"},
		{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":["kms:Decrypt","kms:GenerateDataKey*"],"Resource":"*","Condition":{
			"StringEqualsIgnoreCase":{"kms:RecipientAttestation:ImageSha384":"` + hex.EncodeToString(good.pcrs[0]) + `","kms:RecipientAttestation:PCR1":"` + hex.EncodeToString(good.pcrs[1]) + `"}}}]}`)}))(t)

	t.Run("Decrypt", func(t *testing.T) {
		out := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, Recipient: good.recipient(t)}))(t)
		if got := good.open(t, out.CiphertextForRecipient, out.Plaintext); !bytes.Equal(got, made.Plaintext) {
			t.Error("the enclave got another data key")
		}
		equal(t, "KeyId", *out.KeyId, *key.Arn)
		if out.KeyMaterialId != nil {
			t.Error("the reply to an enclave has a KeyMaterialId")
		}
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, Recipient: bad.recipient(t)})
		refusedWith(t, err, "AccessDeniedException")
		_, err = c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob})
		refusedWith(t, err, "AccessDeniedException")
	})
	t.Run("GenerateDataKey", func(t *testing.T) {
		out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, Recipient: good.recipient(t)}))(t)
		got := good.open(t, out.CiphertextForRecipient, out.Plaintext)
		back := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: out.CiphertextBlob, Recipient: good.recipient(t)}))(t)
		if !bytes.Equal(good.open(t, back.CiphertextForRecipient, back.Plaintext), got) || len(got) != 32 {
			t.Error("CiphertextBlob is of another data key")
		}
		_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, Recipient: bad.recipient(t)})
		refusedWith(t, err, "AccessDeniedException")
		_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, Recipient: good.recipient(t), DryRun: aws.Bool(true)})
		refusedAs[*types.DryRunOperationException](t, err)
	})
	t.Run("GenerateRandom", func(t *testing.T) {
		out := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(1024), Recipient: bad.recipient(t)}))(t)
		equal(t, "the number of random bytes", len(bad.open(t, out.CiphertextForRecipient, out.Plaintext)), 1024)
	})
	t.Run("refused", func(t *testing.T) {
		stranger := &enclave{attesttest.New(t, time.Now()), good.key, good.pcrs}
		old := good.recipient(t)
		old.AttestationDocument = a.Document(t, &good.key.PublicKey, good.pcrs, time.Now().Add(-10*time.Minute))
		for name, r := range map[string]*types.RecipientInfo{"another authority's document": stranger.recipient(t), "an old document": old} {
			for _, err := range []error{
				second(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob, Recipient: r})),
				second(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256, Recipient: r})),
				second(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), Recipient: r})),
			} {
				if err == nil {
					t.Errorf("%s is accepted", name)
				}
				refusedWith(t, err, "ValidationException")
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// TestAttestationNotOffered: without roots a request with a document gets nothing.
func TestAttestationNotOffered(t *testing.T) {
	e := &enclave{attesttest.New(t, time.Now()), attesttest.NewRecipient(t), [][]byte{make([]byte, 48)}}
	c := Start(t).KMS(t)
	_, err := c.GenerateRandom(t.Context(), &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8), Recipient: e.recipient(t)})
	refusedAs[*types.UnsupportedOperationException](t, err)
}
