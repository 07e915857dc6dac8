package apitest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// testSpecs: each operation with private and HMAC keys once, through an alias; TestEverySpec has all their specs and algorithms.
func testSpecs(t *testing.T, w *world) {
	c := w.sdk(t)
	// named makes a key and an alias for it.
	named := func(name string, spec types.KeySpec, usage types.KeyUsageType) *string {
		t.Helper()
		alias := aliasOf(t, name)
		out := must(c.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage}))(t)
		must(c.CreateAlias(t.Context(), &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: out.KeyMetadata.KeyId}))(t)
		return &alias
	}
	message := []byte("message")

	signs := named("signs", "ECC_NIST_P256", "SIGN_VERIFY")
	signed := must(c.Sign(t.Context(), &kms.SignInput{KeyId: signs, Message: message, SigningAlgorithm: "ECDSA_SHA_256"}))(t)
	verified := must(c.Verify(t.Context(), &kms.VerifyInput{KeyId: signs, Message: message, SigningAlgorithm: "ECDSA_SHA_256", Signature: signed.Signature}))(t)
	equal(t, "SignatureValid", verified.SignatureValid, true)

	macs := named("macs", "HMAC_256", "GENERATE_VERIFY_MAC")
	mac := must(c.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: macs, Message: message, MacAlgorithm: "HMAC_SHA_256"}))(t)
	valid := must(c.VerifyMac(t.Context(), &kms.VerifyMacInput{KeyId: macs, Message: message, MacAlgorithm: "HMAC_SHA_256", Mac: mac.Mac}))(t)
	equal(t, "MacValid", valid.MacValid, true)

	agrees := named("agrees", "ECC_NIST_P384", "KEY_AGREEMENT")
	public := must(c.GetPublicKey(t.Context(), &kms.GetPublicKeyInput{KeyId: agrees}))(t)
	peer := must(ecdh.P384().GenerateKey(rand.Reader))(t)
	secret := must(c.DeriveSharedSecret(t.Context(), &kms.DeriveSharedSecretInput{KeyId: agrees, KeyAgreementAlgorithm: "ECDH",
		PublicKey: must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(t)}))(t)
	ours := must(must(x509.ParsePKIXPublicKey(public.PublicKey))(t).(*ecdsa.PublicKey).ECDH())(t)
	equal(t, "the peer's secret", bytes.Equal(must(peer.ECDH(ours))(t), secret.SharedSecret), true)

	encapsulates := named("encapsulates", "ML_KEM_768", "ENCAPSULATE_DECAPSULATE")
	sent := must(c.Encapsulate(t.Context(), &kms.EncapsulateInput{KeyId: encapsulates, EncapsulationAlgorithm: "ML_KEM"}))(t)
	received := must(c.Decapsulate(t.Context(), &kms.DecapsulateInput{KeyId: encapsulates, EncapsulationAlgorithm: "ML_KEM",
		SharedSecretCiphertextBlob: sent.SharedSecretCiphertextBlob}))(t)
	equal(t, "the same secret", bytes.Equal(sent.SharedSecret, received.SharedSecret), true)

	wraps := named("wraps", "SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
	pair := must(c.GenerateDataKeyPair(t.Context(), &kms.GenerateDataKeyPairInput{KeyId: wraps, KeyPairSpec: "ECC_NIST_P256"}))(t)
	opened := must(c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: pair.PrivateKeyCiphertextBlob}))(t)
	equal(t, "the private key", bytes.Equal(opened.Plaintext, pair.PrivateKeyPlaintext), true)
	must(c.GenerateDataKeyPairWithoutPlaintext(t.Context(), &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: wraps, KeyPairSpec: "ECC_NIST_P256"}))(t)
}
