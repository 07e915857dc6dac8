package apitest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// specPairs are the key specs with their usages, and the algorithms as AWS KMS lists them.
var specPairs = []struct {
	spec       types.KeySpec
	usage      types.KeyUsageType
	algorithms string
	curve      string // what openssl calls it; "" where it does not know such keys
}{
	{"RSA_2048", "ENCRYPT_DECRYPT", oaep, "2048 bit"},
	{"RSA_3072", "ENCRYPT_DECRYPT", oaep, "3072 bit"},
	{"RSA_4096", "ENCRYPT_DECRYPT", oaep, "4096 bit"},
	{"RSA_2048", "SIGN_VERIFY", rsaSigning, "2048 bit"},
	{"RSA_3072", "SIGN_VERIFY", rsaSigning, "3072 bit"},
	{"RSA_4096", "SIGN_VERIFY", rsaSigning, "4096 bit"},
	{"ECC_NIST_P256", "SIGN_VERIFY", "ECDSA_SHA_256", "prime256v1"},
	{"ECC_NIST_P384", "SIGN_VERIFY", "ECDSA_SHA_384", "secp384r1"},
	{"ECC_NIST_P521", "SIGN_VERIFY", "ECDSA_SHA_512", "secp521r1"},
	{"ECC_SECG_P256K1", "SIGN_VERIFY", "ECDSA_SHA_256", "secp256k1"},
	{"ECC_NIST_P256", "KEY_AGREEMENT", "ECDH", "prime256v1"},
	{"ECC_NIST_P384", "KEY_AGREEMENT", "ECDH", "secp384r1"},
	{"ECC_NIST_P521", "KEY_AGREEMENT", "ECDH", "secp521r1"},
	{"ECC_NIST_EDWARDS25519", "SIGN_VERIFY", "ED25519_SHA_512 ED25519_PH_SHA_512", "ED25519"},
	{"HMAC_224", "GENERATE_VERIFY_MAC", "HMAC_SHA_224", ""},
	{"HMAC_256", "GENERATE_VERIFY_MAC", "HMAC_SHA_256", ""},
	{"HMAC_384", "GENERATE_VERIFY_MAC", "HMAC_SHA_384", ""},
	{"HMAC_512", "GENERATE_VERIFY_MAC", "HMAC_SHA_512", ""},
	{"ML_DSA_44", "SIGN_VERIFY", "ML_DSA_SHAKE_256", ""},
	{"ML_DSA_65", "SIGN_VERIFY", "ML_DSA_SHAKE_256", ""},
	{"ML_DSA_87", "SIGN_VERIFY", "ML_DSA_SHAKE_256", ""},
	{"ML_KEM_512", "ENCAPSULATE_DECAPSULATE", "ML_KEM", ""},
	{"ML_KEM_768", "ENCAPSULATE_DECAPSULATE", "ML_KEM", ""},
	{"ML_KEM_1024", "ENCAPSULATE_DECAPSULATE", "ML_KEM", ""},
}

const (
	oaep       = "RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256"
	rsaSigning = "RSASSA_PKCS1_V1_5_SHA_256 RSASSA_PKCS1_V1_5_SHA_384 RSASSA_PKCS1_V1_5_SHA_512 RSASSA_PSS_SHA_256 RSASSA_PSS_SHA_384 RSASSA_PSS_SHA_512"
)

// specTokens are the servers of TestEverySpec, and what is done in software on them although the token is asked first.
var specTokens = []struct {
	name     string
	uri      func(testing.TB) string
	software []types.KeySpec
}{
	{"softtoken", nil, nil},
	{"SoftHSM", hsmtest.SoftHSM, softHSMLacks},
}

// specCounts are how much of each thing TestEverySpec did on one token, so that nothing is left out unseen.
type specCounts struct {
	keys, publicKeys                      int64
	signatures, refusedSignatures         int64
	opensslVerified                       int64
	ciphertexts, refusedCiphertexts       int64
	macs, refusedMACs                     int64
	secrets, encapsulations, refusedInput int64
	pairs                                 int64
}

var specCountsWant = specCounts{
	keys: 24, publicKeys: 20, // HMAC keys have none
	signatures:         3*6*2*2 + 4*2*2 + 2*2 + 3*2*2, // RSA, ECDSA, Ed25519 and ML-DSA: keys or algorithms × messages × types of message
	refusedSignatures:  5 * 104,
	opensslVerified:    3*6*2*2 + 4*2*2 + 2,
	ciphertexts:        3 * 2 * (2*3 + 1),
	refusedCiphertexts: 3*2*2*5 + 3*2*5 + 11*2, // RSA-OAEP, ML-KEM, data key pairs
	macs:               4 * 3, refusedMACs: 4 * 3 * 6,
	secrets: 3 * 4, encapsulations: 3 * 2,
	refusedInput: (18+4)*2 + 2 + 3 + 3*2 + 3*2 + 4*3 + 3*(4*4+2), // messages, plaintexts, MAC algorithms, peers' keys
	pairs:        11 + 9,
}

// specWorld is a server, and the runs on it.
type specWorld struct {
	*Server
	c      *kms.Client
	counts specCounts
}

func (w *specWorld) add(n *int64) { atomic.AddInt64(n, 1) }

// TestEverySpec: every key spec with every usage, each operation, algorithm and type of message, with AWS's SDK. What comes out is checked with
// other code than ours, with the public key as GetPublicKey gives it, and with openssl where it knows the algorithm. Each signature, MAC and
// ciphertext is refused with one bit of it changed.
func TestEverySpec(t *testing.T) {
	for _, token := range specTokens {
		t.Run(token.name, func(t *testing.T) {
			t.Parallel()
			s := startOn(t, token.uri, WithSoftwareKeys)
			w := &specWorld{Server: s, c: s.KMS(t)}
			t.Run("keys", func(t *testing.T) {
				for _, p := range specPairs {
					t.Run(fmt.Sprintf("%s %s", p.spec, p.usage), func(t *testing.T) {
						t.Parallel()
						k := w.specKey(t, p.spec, p.usage, strings.Fields(p.algorithms), slices.Contains(token.software, p.spec))
						if p.usage == types.KeyUsageTypeGenerateVerifyMac {
							w.mac(t, k)
							return
						}
						w.publicKey(t, k, p.curve)
						switch p.usage {
						case types.KeyUsageTypeSignVerify:
							w.sign(t, k)
						case types.KeyUsageTypeEncryptDecrypt:
							w.encrypt(t, k)
						case types.KeyUsageTypeKeyAgreement:
							w.agree(t, k)
						case types.KeyUsageTypeEncapsulateDecapsulate:
							w.encapsulate(t, k)
						}
					})
				}
				t.Run("data key pairs", func(t *testing.T) {
					t.Parallel()
					w.dataKeyPairs(t)
				})
			})
			if w.counts != specCountsWant {
				t.Errorf("done:\n     %+v\nwant %+v", w.counts, specCountsWant)
			}
			if n := s.Stats().Panics; n != 0 {
				t.Errorf("%d requests ended in a panic", n)
			}
		})
	}
}

// specKey is a KMS key under test.
type specKey struct {
	id, arn    *string
	spec       types.KeySpec
	usage      types.KeyUsageType
	algorithms []string
	der        []byte // of the public key
	raw        []byte // what is in it
	pem        string // path of a file with der
}

// specKey makes a key and checks what DescribeKey says of it.
func (w *specWorld) specKey(t *testing.T, spec types.KeySpec, usage types.KeyUsageType, algorithms []string, software bool) *specKey {
	t.Helper()
	made := must(w.c.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: spec, KeyUsage: usage}))(t).KeyMetadata
	w.add(&w.counts.keys)
	m := must(w.c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: made.KeyId}))(t).KeyMetadata
	equal(t, "KeySpec", m.KeySpec, spec)
	//lint:ignore SA1019 the old member is answered too
	equal(t, "CustomerMasterKeySpec", string(m.CustomerMasterKeySpec), string(spec))
	equal(t, "KeyUsage", m.KeyUsage, usage)
	equal(t, "KeyState", m.KeyState, types.KeyStateEnabled)
	equal(t, "CurrentKeyMaterialId", m.CurrentKeyMaterialId == nil, true)
	lists := map[types.KeyUsageType]string{
		types.KeyUsageTypeEncryptDecrypt: joined(m.EncryptionAlgorithms), types.KeyUsageTypeSignVerify: joined(m.SigningAlgorithms),
		types.KeyUsageTypeGenerateVerifyMac: joined(m.MacAlgorithms), types.KeyUsageTypeKeyAgreement: joined(m.KeyAgreementAlgorithms),
		types.KeyUsageTypeEncapsulateDecapsulate: joined(m.EncapsulationAlgorithms),
	}
	for u, list := range lists {
		want := ""
		if u == usage {
			want = strings.Join(algorithms, " ")
		}
		equal(t, "algorithms of "+string(u), list, want)
	}
	// The SDK leaves out the member that AWS has not.
	var reply struct {
		KeyMetadata struct{ KeyplaneProtection string }
	}
	w.Do(t, "DescribeKey", `{"KeyId":"`+*made.KeyId+`"}`).Members(t, &reply)
	equal(t, "KeyplaneProtection is SOFTWARE", reply.KeyMetadata.KeyplaneProtection == "SOFTWARE", software)
	return &specKey{id: made.KeyId, arn: made.Arn, spec: spec, usage: usage, algorithms: algorithms}
}

// joined is a list as text.
func joined[T ~string](list []T) string {
	var s []string
	for _, v := range list {
		s = append(s, string(v))
	}
	return strings.Join(s, " ")
}

// publicKey fills in the key's public half and checks GetPublicKey's reply. name is how openssl describes the key.
func (w *specWorld) publicKey(t *testing.T, k *specKey, name string) {
	t.Helper()
	out := must(w.c.GetPublicKey(t.Context(), &kms.GetPublicKeyInput{KeyId: k.id}))(t)
	w.add(&w.counts.publicKeys)
	equal(t, "KeyId", *out.KeyId, *k.arn)
	equal(t, "KeySpec", out.KeySpec, k.spec)
	//lint:ignore SA1019 the old member is answered too
	equal(t, "CustomerMasterKeySpec", string(out.CustomerMasterKeySpec), string(k.spec))
	equal(t, "KeyUsage", out.KeyUsage, k.usage)
	all := joined(out.EncryptionAlgorithms) + joined(out.SigningAlgorithms) + joined(out.KeyAgreementAlgorithms) + joined(out.EncapsulationAlgorithms)
	equal(t, "algorithms", all, strings.Join(k.algorithms, " "))
	k.der = out.PublicKey
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if rest, err := asn1.Unmarshal(k.der, &spki); err != nil || len(rest) != 0 {
		t.Fatalf("the public key is no SubjectPublicKeyInfo: %v, %d bytes more", err, len(rest))
	}
	k.raw = spki.Key.RightAlign()
	equal(t, "the key's algorithm", spki.Algorithm.Algorithm.String(), publicKeyOIDs[k.spec])
	if name == "" {
		return
	}
	ssl := newOpenSSL(t)
	k.pem = ssl.file(t, "public.der", k.der)
	if text := ssl.run(t, "pkey", "-pubin", "-inform", "DER", "-in", k.pem, "-noout", "-text"); !bytes.Contains(text, []byte(name)) {
		t.Errorf("openssl does not find %q in:\n%s", name, text)
	}
}

// publicKeyOIDs are the algorithms in SubjectPublicKeyInfo (RFC 3279, 5480, 8410, 9881, 9935).
var publicKeyOIDs = map[types.KeySpec]string{
	"RSA_2048": "1.2.840.113549.1.1.1", "RSA_3072": "1.2.840.113549.1.1.1", "RSA_4096": "1.2.840.113549.1.1.1",
	"ECC_NIST_P256": "1.2.840.10045.2.1", "ECC_NIST_P384": "1.2.840.10045.2.1", "ECC_NIST_P521": "1.2.840.10045.2.1", "ECC_SECG_P256K1": "1.2.840.10045.2.1",
	"ECC_NIST_EDWARDS25519": "1.3.101.112", "ML_DSA_44": "2.16.840.1.101.3.4.3.17", "ML_DSA_65": "2.16.840.1.101.3.4.3.18", "ML_DSA_87": "2.16.840.1.101.3.4.3.19",
	"ML_KEM_512": "2.16.840.1.101.3.4.4.1", "ML_KEM_768": "2.16.840.1.101.3.4.4.2", "ML_KEM_1024": "2.16.840.1.101.3.4.4.3",
}

// parsed is the key as Go's own parser has it.
func parsed[T *rsa.PublicKey | *ecdsa.PublicKey | ed25519.PublicKey](t *testing.T, k *specKey) T {
	t.Helper()
	public, ok := must(x509.ParsePKIXPublicKey(k.der))(t).(T)
	if !ok {
		t.Fatalf("%s: GetPublicKey gave another kind of key", k.spec)
	}
	return public
}

// flipped is b with its bit i changed, counted from the end if i is negative.
func flipped(b []byte, i int) []byte {
	b = slices.Clone(b)
	if i < 0 {
		i += 8 * len(b)
	}
	b[i/8] ^= 1 << (i % 8)
	return b
}

// ends are the first and last bit of b, and one in the middle.
func ends(b []byte) [][]byte { return [][]byte{flipped(b, 0), flipped(b, 4*len(b)), flipped(b, -1)} }

// softHSMLacks is what SoftHSM does not make keys of, or, of Edwards25519, does not wrap.
var softHSMLacks = []types.KeySpec{
	"ECC_NIST_EDWARDS25519", "ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024",
}

// TestNotOffered: without software keys, CreateKey makes what the token does and says of all else that it is not offered.
func TestNotOffered(t *testing.T) {
	t.Parallel()
	c := startOn(t, hsmtest.SoftHSM).KMS(t)
	refused := 0
	for _, p := range specPairs {
		if strings.HasPrefix(string(p.spec), "RSA") { // takes long, and is made in TestEverySpec
			continue
		}
		_, err := c.CreateKey(t.Context(), &kms.CreateKeyInput{KeySpec: p.spec, KeyUsage: p.usage})
		if !slices.Contains(softHSMLacks, p.spec) {
			if err != nil {
				t.Errorf("%s: %v", p.spec, err)
			}
			continue
		}
		refused++
		refusedAs[*types.UnsupportedOperationException](t, err)
	}
	equal(t, "refused specs", refused, len(softHSMLacks))
}
