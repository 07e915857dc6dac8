package apitest

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"hash"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
)

// encrypt: RSA-OAEP with both hashes, the shortest plaintext and the longest, encrypted by the service, by Go and by openssl.
func (w *specWorld) encrypt(t *testing.T, k *specKey) {
	t.Helper()
	symmetric := newKey(t, w.c)
	public := parsed[*rsa.PublicKey](t, k)
	for _, a := range k.algorithms {
		algorithm := types.EncryptionAlgorithmSpec(a)
		h, name := map[string]func() hash.Hash{"RSAES_OAEP_SHA_1": sha1.New, "RSAES_OAEP_SHA_256": sha256.New}[a], strings.ToLower(strings.ReplaceAll(a[len("RSAES_OAEP_"):], "_", ""))
		longest := public.Size() - 2*h().Size() - 2
		decrypt := func(blob []byte) ([]byte, error) {
			out, err := w.c.Decrypt(t.Context(), &kms.DecryptInput{KeyId: k.id, CiphertextBlob: blob, EncryptionAlgorithm: algorithm})
			if err != nil {
				return nil, err
			}
			equal(t, "KeyId", *out.KeyId, *k.arn)
			equal(t, "EncryptionAlgorithm", out.EncryptionAlgorithm, algorithm)
			equal(t, "KeyMaterialId", out.KeyMaterialId == nil, true)
			return out.Plaintext, nil
		}
		for _, plaintext := range [][]byte{{0}, bytes.Repeat([]byte{'p'}, longest)} {
			out := must(w.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: k.id, Plaintext: plaintext, EncryptionAlgorithm: algorithm}))(t)
			equal(t, "KeyId", *out.KeyId, *k.arn)
			equal(t, "EncryptionAlgorithm", out.EncryptionAlgorithm, algorithm)
			equal(t, "length of the ciphertext", len(out.CiphertextBlob), public.Size())
			ssl := newOpenSSL(t)
			byOpenSSL := ssl.run(t, "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", k.pem, "-in", ssl.file(t, "plaintext", plaintext),
				"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:"+name, "-pkeyopt", "rsa_mgf1_md:"+name)
			byGo := must(rsa.EncryptOAEP(h(), rand.Reader, public, plaintext, nil))(t)
			for by, blob := range map[string][]byte{"the service": out.CiphertextBlob, "Go": byGo, "openssl": byOpenSSL} {
				if got, err := decrypt(blob); err != nil || !bytes.Equal(got, plaintext) {
					t.Errorf("%s, %d bytes encrypted by %s: %v", a, len(plaintext), by, err)
				}
				w.add(&w.counts.ciphertexts)
			}
			for _, bad := range append(ends(out.CiphertextBlob), out.CiphertextBlob[1:], append([]byte{0}, out.CiphertextBlob...)) {
				_, err := decrypt(bad)
				refusedAs[*types.InvalidCiphertextException](t, err)
				w.add(&w.counts.refusedCiphertexts)
			}
		}
		_, err := w.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: k.id, Plaintext: make([]byte, longest+1), EncryptionAlgorithm: algorithm})
		refusedWith(t, err, "ValidationException")
		labelled := must(rsa.EncryptOAEP(h(), rand.Reader, public, []byte("p"), []byte("label")))(t)
		_, err = decrypt(labelled)
		refusedAs[*types.InvalidCiphertextException](t, err)
		_, err = w.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: k.id, Plaintext: []byte("p"), EncryptionAlgorithm: algorithm,
			EncryptionContext: map[string]string{"a": "b"}})
		refusedWith(t, err, "ValidationException")
		w.add(&w.counts.refusedInput)

		// From the symmetric key to this one, and back.
		blob := must(w.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: symmetric.KeyId, Plaintext: []byte("there and back")}))(t).CiphertextBlob
		there := must(w.c.ReEncrypt(t.Context(), &kms.ReEncryptInput{CiphertextBlob: blob, DestinationKeyId: k.id, DestinationEncryptionAlgorithm: algorithm}))(t)
		equal(t, "DestinationEncryptionAlgorithm", there.DestinationEncryptionAlgorithm, algorithm)
		back := must(w.c.ReEncrypt(t.Context(), &kms.ReEncryptInput{CiphertextBlob: there.CiphertextBlob, SourceKeyId: k.id, SourceEncryptionAlgorithm: algorithm,
			DestinationKeyId: symmetric.KeyId}))(t)
		equal(t, "SourceEncryptionAlgorithm", back.SourceEncryptionAlgorithm, algorithm)
		got := must(w.c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: back.CiphertextBlob}))(t)
		equal(t, "the plaintext", string(got.Plaintext), "there and back")
		w.add(&w.counts.ciphertexts)
	}
	for _, algorithm := range []types.EncryptionAlgorithmSpec{"", types.EncryptionAlgorithmSpecSymmetricDefault} {
		_, err := w.c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: k.id, Plaintext: []byte("p"), EncryptionAlgorithm: algorithm})
		refusedAs[*types.InvalidKeyUsageException](t, err)
	}
	_, err := w.c.Sign(t.Context(), &kms.SignInput{KeyId: k.id, Message: []byte("m"), SigningAlgorithm: types.SigningAlgorithmSpecRsassaPssSha256})
	refusedAs[*types.InvalidKeyUsageException](t, err)
}

// mac: MACs are as long as the hash, the same for the same message, others for others. Nobody outside has the key.
func (w *specWorld) mac(t *testing.T, k *specKey) {
	t.Helper()
	algorithm := types.MacAlgorithmSpec(k.algorithms[0])
	size := map[string]int{"HMAC_SHA_224": 28, "HMAC_SHA_256": 32, "HMAC_SHA_384": 48, "HMAC_SHA_512": 64}[k.algorithms[0]]
	seen := map[string]bool{}
	for _, message := range [][]byte{{0}, []byte("m"), bytes.Repeat([]byte("longest "), 512)} {
		generate := func() []byte {
			out := must(w.c.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: k.id, Message: message, MacAlgorithm: algorithm}))(t)
			equal(t, "KeyId", *out.KeyId, *k.arn)
			equal(t, "MacAlgorithm", out.MacAlgorithm, algorithm)
			return out.Mac
		}
		verify := func(message, mac []byte) error {
			out, err := w.c.VerifyMac(t.Context(), &kms.VerifyMacInput{KeyId: k.id, Message: message, MacAlgorithm: algorithm, Mac: mac})
			if err == nil && (!out.MacValid || *out.KeyId != *k.arn || out.MacAlgorithm != algorithm) {
				t.Errorf("VerifyMac answered %+v", out)
			}
			return err
		}
		mac := generate()
		w.add(&w.counts.macs)
		equal(t, "length of the MAC", len(mac), size)
		equal(t, "the MAC of the same message", bytes.Equal(mac, generate()), true)
		equal(t, "the MAC of another message is the same", seen[string(mac)], false)
		seen[string(mac)] = true
		if err := verify(message, mac); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		for _, bad := range append(ends(mac), mac[1:], append([]byte{0}, mac...)) {
			refusedAs[*types.KMSInvalidMacException](t, verify(message, bad))
			w.add(&w.counts.refusedMACs)
		}
		refusedAs[*types.KMSInvalidMacException](t, verify(flipped(message, 1), mac))
		w.add(&w.counts.refusedMACs)
	}
	for _, other := range types.MacAlgorithmSpec("").Values() {
		if other != algorithm {
			_, err := w.c.GenerateMac(t.Context(), &kms.GenerateMacInput{KeyId: k.id, Message: []byte("m"), MacAlgorithm: other})
			refusedAs[*types.InvalidKeyUsageException](t, err)
			w.add(&w.counts.refusedInput)
		}
	}
	_, err := w.c.GetPublicKey(t.Context(), &kms.GetPublicKeyInput{KeyId: k.id})
	refusedAs[*types.UnsupportedOperationException](t, err)
}

// agree: the secret is the one that the peer computes.
func (w *specWorld) agree(t *testing.T, k *specKey) {
	t.Helper()
	curves := map[types.KeySpec]ecdh.Curve{"ECC_NIST_P256": ecdh.P256(), "ECC_NIST_P384": ecdh.P384(), "ECC_NIST_P521": ecdh.P521()}
	ours := must(curves[k.spec].NewPublicKey(k.raw))(t)
	derive := func(peer []byte) (*kms.DeriveSharedSecretOutput, error) {
		return w.c.DeriveSharedSecret(t.Context(), &kms.DeriveSharedSecretInput{KeyId: k.id, PublicKey: peer, KeyAgreementAlgorithm: types.KeyAgreementAlgorithmSpecEcdh})
	}
	for range 4 {
		peer := must(curves[k.spec].GenerateKey(rand.Reader))(t)
		der := must(x509.MarshalPKIXPublicKey(peer.PublicKey()))(t)
		out := must(derive(der))(t)
		w.add(&w.counts.secrets)
		if want := must(peer.ECDH(ours))(t); !bytes.Equal(out.SharedSecret, want) {
			t.Errorf("%s: the shared secret is not the peer's", k.spec)
		}
		equal(t, "KeyId", *out.KeyId, *k.arn)
		equal(t, "KeyAgreementAlgorithm", out.KeyAgreementAlgorithm, types.KeyAgreementAlgorithmSpecEcdh)
		equal(t, "KeyOrigin", out.KeyOrigin, types.OriginTypeAwsKms)
		for _, bad := range [][]byte{flipped(der, -1), flipped(der, 0), der[:len(der)-1], append(bytes.Clone(der), 0)} {
			_, err := derive(bad)
			refusedWith(t, err, "ValidationException")
			w.add(&w.counts.refusedInput)
		}
	}
	for spec, curve := range curves {
		if spec != k.spec {
			_, err := derive(must(x509.MarshalPKIXPublicKey(must(curve.GenerateKey(rand.Reader))(t).PublicKey()))(t))
			refusedWith(t, err, "ValidationException")
			w.add(&w.counts.refusedInput)
		}
	}
}

// encapsulate: by the service and outside; the service decapsulates both to the same secret.
func (w *specWorld) encapsulate(t *testing.T, k *specKey) {
	t.Helper()
	algorithm := types.EncapsulationAlgorithmSpecMlKem
	decapsulate := func(blob []byte) ([]byte, error) {
		out, err := w.c.Decapsulate(t.Context(), &kms.DecapsulateInput{KeyId: k.id, EncapsulationAlgorithm: algorithm, SharedSecretCiphertextBlob: blob})
		if err != nil {
			return nil, err
		}
		equal(t, "KeyId", *out.KeyId, *k.arn)
		equal(t, "EncapsulationAlgorithm", out.EncapsulationAlgorithm, algorithm)
		return out.SharedSecret, nil
	}
	out := must(w.c.Encapsulate(t.Context(), &kms.EncapsulateInput{KeyId: k.id, EncapsulationAlgorithm: algorithm}))(t)
	equal(t, "KeyId", *out.KeyId, *k.arn)
	equal(t, "EncapsulationAlgorithm", out.EncapsulationAlgorithm, algorithm)
	equal(t, "length of the secret", len(out.SharedSecret), 32)
	again := must(w.c.Encapsulate(t.Context(), &kms.EncapsulateInput{KeyId: k.id, EncapsulationAlgorithm: algorithm}))(t)
	equal(t, "a second secret is the same", bytes.Equal(out.SharedSecret, again.SharedSecret), false)
	secret, ciphertext := encapsulatedOutside(t, k)
	for by, c := range map[string][2][]byte{"the service": {out.SharedSecret, out.SharedSecretCiphertextBlob}, "outside": {secret, ciphertext}} {
		if got, err := decapsulate(c[1]); err != nil || !bytes.Equal(got, c[0]) {
			t.Errorf("%s: encapsulated by %s: %v", k.spec, by, err)
		}
		w.add(&w.counts.encapsulations)
		// Implicit rejection: another secret, always the same, and no error.
		for _, bad := range ends(c[1]) {
			got := must(decapsulate(bad))(t)
			if bytes.Equal(got, c[0]) || !bytes.Equal(got, must(decapsulate(bad))(t)) {
				t.Errorf("%s: a changed ciphertext was not rejected as it should be", k.spec)
			}
			w.add(&w.counts.refusedCiphertexts)
		}
		for _, bad := range [][]byte{c[1][1:], append([]byte{0}, c[1]...)} {
			_, err := decapsulate(bad)
			refusedAs[*types.InvalidCiphertextException](t, err)
			w.add(&w.counts.refusedCiphertexts)
		}
	}
}

// encapsulatedOutside makes a secret for the key with other code than the service's; for ML-KEM-512, which Go leaves out, with the library alone.
func encapsulatedOutside(t *testing.T, k *specKey) (secret, ciphertext []byte) {
	t.Helper()
	switch k.spec {
	case types.KeySpecMlKem768:
		return must(mlkem.NewEncapsulationKey768(k.raw))(t).Encapsulate()
	case types.KeySpecMlKem1024:
		return must(mlkem.NewEncapsulationKey1024(k.raw))(t).Encapsulate()
	}
	public := must(mlkem512.Scheme().UnmarshalBinaryPublicKey(k.raw))(t)
	ciphertext, secret, err := mlkem512.Scheme().Encapsulate(public)
	if err != nil {
		t.Fatal(err)
	}
	return secret, ciphertext
}
