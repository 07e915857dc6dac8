package apitest

import (
	"bytes"
	"crypto"
	"crypto/mlkem"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/cloudflare/circl/kem/mlkem/mlkem512"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
)

// pairSpecs are what GenerateDataKeyPair makes, and whether openssl reads the private key.
var pairSpecs = map[types.DataKeyPairSpec]bool{
	"RSA_2048": true, "RSA_3072": true, "ECC_NIST_P256": true, "ECC_NIST_P384": true, "ECC_NIST_P521": true, "ECC_SECG_P256K1": true,
	"ECC_NIST_EDWARDS25519": true, "ML_KEM_512": false, "ML_KEM_768": false, "ML_KEM_1024": false, "RSA_4096": true,
}

// dataKeyPairs: each pair's halves belong together, and Decrypt gives the private one back.
func (w *specWorld) dataKeyPairs(t *testing.T) {
	t.Helper()
	k := newKey(t, w.c)
	context := map[string]string{"purpose": "pairs"}
	for spec, known := range pairSpecs {
		pair := must(w.c.GenerateDataKeyPair(t.Context(), &kms.GenerateDataKeyPairInput{KeyId: k.KeyId, KeyPairSpec: spec, EncryptionContext: context}))(t)
		w.add(&w.counts.pairs)
		equal(t, "KeyId", *pair.KeyId, *k.Arn)
		equal(t, "KeyPairSpec", pair.KeyPairSpec, spec)
		equal(t, "KeyMaterialId", *pair.KeyMaterialId, *k.CurrentKeyMaterialId)
		w.pairFits(t, spec, known, pair.PrivateKeyPlaintext, pair.PublicKey)
		decrypt := func(blob []byte, context map[string]string) ([]byte, error) {
			out, err := w.c.Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: context})
			if err != nil {
				return nil, err
			}
			return out.Plaintext, nil
		}
		if got, err := decrypt(pair.PrivateKeyCiphertextBlob, context); err != nil || !bytes.Equal(got, pair.PrivateKeyPlaintext) {
			t.Errorf("%s: Decrypt does not give the private key back: %v", spec, err)
		}
		_, err := decrypt(flipped(pair.PrivateKeyCiphertextBlob, -1), context)
		refusedAs[*types.InvalidCiphertextException](t, err)
		w.add(&w.counts.refusedCiphertexts)
		_, err = decrypt(pair.PrivateKeyCiphertextBlob, nil)
		refusedAs[*types.InvalidCiphertextException](t, err)
		w.add(&w.counts.refusedCiphertexts)

		if spec == types.DataKeyPairSpecRsa4096 || spec == types.DataKeyPairSpecRsa3072 {
			continue // takes long to make
		}
		sealed := must(w.c.GenerateDataKeyPairWithoutPlaintext(t.Context(), &kms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: k.KeyId, KeyPairSpec: spec}))(t)
		w.add(&w.counts.pairs)
		equal(t, "KeyPairSpec", sealed.KeyPairSpec, spec)
		equal(t, "a second pair is the same", bytes.Equal(sealed.PublicKey, pair.PublicKey), false)
		private, err := decrypt(sealed.PrivateKeyCiphertextBlob, nil)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		w.pairFits(t, spec, known, private, sealed.PublicKey)
	}
}

// pairFits checks that PKCS #8 and SubjectPublicKeyInfo are two halves of one key.
func (w *specWorld) pairFits(t *testing.T, spec types.DataKeyPairSpec, known bool, private, public []byte) {
	t.Helper()
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	var pkcs8 struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
		Rest      asn1.RawValue `asn1:"optional,tag:1"`
	}
	if rest, err := asn1.Unmarshal(public, &spki); err != nil || len(rest) != 0 {
		t.Fatalf("%s: public key: %v", spec, err)
	}
	if rest, err := asn1.Unmarshal(private, &pkcs8); err != nil || len(rest) != 0 {
		t.Fatalf("%s: private key: %v", spec, err)
	}
	equal(t, "algorithm", pkcs8.Algorithm.Algorithm.String(), spki.Algorithm.Algorithm.String())
	equal(t, "algorithm", pkcs8.Algorithm.Algorithm.String(), publicKeyOIDs[types.KeySpec(spec)])
	var got []byte // the public key that the private one has
	switch spec {
	case types.DataKeyPairSpecEccSecgP256k1:
		var sec1 struct {
			Version int
			Scalar  []byte
			Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
			Point   asn1.BitString        `asn1:"optional,explicit,tag:1"`
		}
		if rest, err := asn1.Unmarshal(pkcs8.Key, &sec1); err != nil || len(rest) != 0 {
			t.Fatalf("%s: private key: %v", spec, err)
		}
		got = secp256k1.PrivKeyFromBytes(sec1.Scalar).PubKey().SerializeUncompressed()
	case types.DataKeyPairSpecMlKem512, types.DataKeyPairSpecMlKem768, types.DataKeyPairSpecMlKem1024:
		seed := asn1.RawValue{} // [0] of 64 bytes: RFC 9935
		if rest, err := asn1.Unmarshal(pkcs8.Key, &seed); err != nil || len(rest) != 0 || seed.Class != asn1.ClassContextSpecific || seed.Tag != 0 || len(seed.Bytes) != 64 {
			t.Fatalf("%s: the private key is not in the form of its seed: %v", spec, err)
		}
		switch spec {
		case types.DataKeyPairSpecMlKem512:
			k, _ := mlkem512.NewKeyFromSeed(seed.Bytes)
			got = must(k.MarshalBinary())(t)
		case types.DataKeyPairSpecMlKem768:
			got = must(mlkem.NewDecapsulationKey768(seed.Bytes))(t).EncapsulationKey().Bytes()
		default:
			got = must(mlkem.NewDecapsulationKey1024(seed.Bytes))(t).EncapsulationKey().Bytes()
		}
	default:
		key := must(x509.ParsePKCS8PrivateKey(private))(t).(crypto.Signer)
		if der := must(x509.MarshalPKIXPublicKey(key.Public()))(t); !bytes.Equal(der, public) {
			t.Errorf("%s: the private key is another's", spec)
		}
	}
	if got != nil && !bytes.Equal(got, spki.Key.RightAlign()) {
		t.Errorf("%s: the private key is another's", spec)
	}
	if known {
		ssl := newOpenSSL(t)
		der := ssl.run(t, "pkey", "-inform", "DER", "-in", ssl.file(t, "private.der", private), "-pubout", "-outform", "DER")
		if !bytes.Equal(der, public) {
			t.Errorf("%s: openssl finds another public key in the private one", spec)
		}
	}
}
