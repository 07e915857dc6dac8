// Package keyspec is the table of what AWS KMS calls key specs, key usages and algorithms, except symmetric encryption keys: which go together,
// how long their inputs and results are, and what has to be done in the HSM for them. It knows neither the API's messages nor PKCS#11.
package keyspec

// Spec is a key spec other than SYMMETRIC_DEFAULT. The numbers are not stored anywhere; the names are.
type Spec uint8

// The key specs, in the order of the service model.
const (
	None Spec = iota
	RSA2048
	RSA3072
	RSA4096
	P256
	P384
	P521
	Secp256k1
	Ed25519
	HMAC224
	HMAC256
	HMAC384
	HMAC512
	MLDSA44
	MLDSA65
	MLDSA87
	MLKEM512
	MLKEM768
	MLKEM1024
	// AES256 is no key spec of the API: it is the backing key of a SYMMETRIC_DEFAULT key that is a key of its own in the HSM, because it was imported, or has
	// to come to other Regions' HSMs (docs/ciphertext.md §3, suite 0x02). Neither Of nor All know it.
	AES256
	specs
)

// Family is what specs of one kind have in common.
type Family uint8

const (
	RSA Family = iota + 1
	EC
	Edwards
	HMAC
	MLDSA
	MLKEM
	AES
)

// Usage is a key usage, or several.
type Usage uint8

const (
	EncryptDecrypt Usage = 1 << iota
	SignVerify
	GenerateVerifyMAC
	KeyAgreement
	EncapsulateDecapsulate
)

// Info is a row of the table. Lengths are bytes.
type Info struct {
	Name   string
	Family Family
	Usages Usage // what a KMS key of the spec may be for, one of them
	Bits   int   // of the modulus, the curve, the HMAC key; the parameter set of ML-DSA and ML-KEM
	Public int   // encoded public key as the family has it: the modulus, an uncompressed point, a raw key; 0 for HMAC
	Result int   // longest result of a private operation: signature r || s, plaintext, shared secret, MAC
	Pair   bool  // GenerateDataKeyPair makes pairs of it
}

var table = [specs]Info{
	RSA2048:   {"RSA_2048", RSA, EncryptDecrypt | SignVerify, 2048, 256, 256, true},
	RSA3072:   {"RSA_3072", RSA, EncryptDecrypt | SignVerify, 3072, 384, 384, true},
	RSA4096:   {"RSA_4096", RSA, EncryptDecrypt | SignVerify, 4096, 512, 512, true},
	P256:      {"ECC_NIST_P256", EC, SignVerify | KeyAgreement, 256, 65, 64, true},
	P384:      {"ECC_NIST_P384", EC, SignVerify | KeyAgreement, 384, 97, 96, true},
	P521:      {"ECC_NIST_P521", EC, SignVerify | KeyAgreement, 521, 133, 132, true},
	Secp256k1: {"ECC_SECG_P256K1", EC, SignVerify, 256, 65, 64, true},
	Ed25519:   {"ECC_NIST_EDWARDS25519", Edwards, SignVerify, 255, 32, 64, true},
	HMAC224:   {"HMAC_224", HMAC, GenerateVerifyMAC, 224, 0, 28, false},
	HMAC256:   {"HMAC_256", HMAC, GenerateVerifyMAC, 256, 0, 32, false},
	HMAC384:   {"HMAC_384", HMAC, GenerateVerifyMAC, 384, 0, 48, false},
	HMAC512:   {"HMAC_512", HMAC, GenerateVerifyMAC, 512, 0, 64, false},
	MLDSA44:   {"ML_DSA_44", MLDSA, SignVerify, 44, 1312, 2420, false},
	MLDSA65:   {"ML_DSA_65", MLDSA, SignVerify, 65, 1952, 3309, false},
	MLDSA87:   {"ML_DSA_87", MLDSA, SignVerify, 87, 2592, 4627, false},
	MLKEM512:  {"ML_KEM_512", MLKEM, EncapsulateDecapsulate, 512, 800, 32, true},
	MLKEM768:  {"ML_KEM_768", MLKEM, EncapsulateDecapsulate, 768, 1184, 32, true},
	MLKEM1024: {"ML_KEM_1024", MLKEM, EncapsulateDecapsulate, 1024, 1568, 32, true},
	AES256:    {"AES_256", AES, 0, 256, 0, 96, false}, // six blocks: two message keys
}

// Info is the spec's row; that of None is empty.
func (s Spec) Info() *Info {
	if s >= specs {
		s = None
	}
	return &table[s]
}

func (s Spec) String() string { return s.Info().Name }

// Of is the spec of a name, None for SYMMETRIC_DEFAULT and every other text.
func Of[T string | []byte](name T) Spec {
	for s := None + 1; s < AES256; s++ {
		if table[s].Name == string(name) {
			return s
		}
	}
	return None
}

// All are the specs of the API, in the order of the table.
func All() []Spec {
	all := make([]Spec, 0, AES256-1)
	for s := None + 1; s < AES256; s++ {
		all = append(all, s)
	}
	return all
}

// Backing are the specs of keys that are kept in, or wrapped by, an HSM: those of the API, and AES256.
func Backing() []Spec { return append(All(), AES256) }

// Algorithm is an encryption, signing, MAC, key agreement or encapsulation algorithm of the API.
type Algorithm uint8

const (
	NoAlgorithm Algorithm = iota
	OAEPSHA1
	OAEPSHA256
	PSSSHA256
	PSSSHA384
	PSSSHA512
	PKCS1SHA256
	PKCS1SHA384
	PKCS1SHA512
	ECDSASHA256
	ECDSASHA384
	ECDSASHA512
	Ed25519SHA512   // pure Ed25519, of messages only
	Ed25519PHSHA512 // HashEdDSA, of digests only
	MLDSAShake256
	HMACSHA224
	HMACSHA256
	HMACSHA384
	HMACSHA512
	ECDHAgreement
	MLKEMEncapsulation
	algorithms
)

// AlgorithmInfo is a row of the table of algorithms.
type AlgorithmInfo struct {
	Name   string
	Usage  Usage
	Digest int // bytes of its hash; for ML_DSA_SHAKE_256 of the external μ; 0 where nothing is hashed
}

var algorithmTable = [algorithms]AlgorithmInfo{
	OAEPSHA1:           {"RSAES_OAEP_SHA_1", EncryptDecrypt, 20},
	OAEPSHA256:         {"RSAES_OAEP_SHA_256", EncryptDecrypt, 32},
	PSSSHA256:          {"RSASSA_PSS_SHA_256", SignVerify, 32},
	PSSSHA384:          {"RSASSA_PSS_SHA_384", SignVerify, 48},
	PSSSHA512:          {"RSASSA_PSS_SHA_512", SignVerify, 64},
	PKCS1SHA256:        {"RSASSA_PKCS1_V1_5_SHA_256", SignVerify, 32},
	PKCS1SHA384:        {"RSASSA_PKCS1_V1_5_SHA_384", SignVerify, 48},
	PKCS1SHA512:        {"RSASSA_PKCS1_V1_5_SHA_512", SignVerify, 64},
	ECDSASHA256:        {"ECDSA_SHA_256", SignVerify, 32},
	ECDSASHA384:        {"ECDSA_SHA_384", SignVerify, 48},
	ECDSASHA512:        {"ECDSA_SHA_512", SignVerify, 64},
	Ed25519SHA512:      {"ED25519_SHA_512", SignVerify, 64},
	Ed25519PHSHA512:    {"ED25519_PH_SHA_512", SignVerify, 64},
	MLDSAShake256:      {"ML_DSA_SHAKE_256", SignVerify, 64},
	HMACSHA224:         {"HMAC_SHA_224", GenerateVerifyMAC, 28},
	HMACSHA256:         {"HMAC_SHA_256", GenerateVerifyMAC, 32},
	HMACSHA384:         {"HMAC_SHA_384", GenerateVerifyMAC, 48},
	HMACSHA512:         {"HMAC_SHA_512", GenerateVerifyMAC, 64},
	ECDHAgreement:      {"ECDH", KeyAgreement, 0},
	MLKEMEncapsulation: {"ML_KEM", EncapsulateDecapsulate, 0},
}

// Info is the algorithm's row; that of NoAlgorithm is empty.
func (a Algorithm) Info() *AlgorithmInfo {
	if a >= algorithms {
		a = NoAlgorithm
	}
	return &algorithmTable[a]
}

func (a Algorithm) String() string { return a.Info().Name }

// AlgorithmOf is the algorithm of a name, NoAlgorithm for SYMMETRIC_DEFAULT and every other text.
func AlgorithmOf[T string | []byte](name T) Algorithm {
	for a := NoAlgorithm + 1; a < algorithms; a++ {
		if algorithmTable[a].Name == string(name) {
			return a
		}
	}
	return NoAlgorithm
}

// Algorithms are those of keys of the spec with the usage, in the order in which AWS KMS lists them.
func (s Spec) Algorithms(u Usage) []Algorithm {
	if s.Info().Usages&u == 0 {
		return nil
	}
	switch s.Info().Family {
	case RSA:
		if u == EncryptDecrypt {
			return []Algorithm{OAEPSHA1, OAEPSHA256}
		}
		return []Algorithm{PKCS1SHA256, PKCS1SHA384, PKCS1SHA512, PSSSHA256, PSSSHA384, PSSSHA512}
	case EC:
		if u == KeyAgreement {
			return []Algorithm{ECDHAgreement}
		}
		switch s {
		case P384:
			return []Algorithm{ECDSASHA384}
		case P521:
			return []Algorithm{ECDSASHA512}
		}
		return []Algorithm{ECDSASHA256}
	case Edwards:
		return []Algorithm{Ed25519SHA512, Ed25519PHSHA512}
	case HMAC:
		return []Algorithm{HMACSHA224 + Algorithm(s-HMAC224)}
	case MLDSA:
		return []Algorithm{MLDSAShake256}
	case MLKEM:
		return []Algorithm{MLKEMEncapsulation}
	}
	return nil
}

// Has says whether a key of the spec, used for u, has the algorithm. It allocates nothing.
func (s Spec) Has(u Usage, a Algorithm) bool {
	if s.Info().Usages&u == 0 || a.Info().Usage != u {
		return false
	}
	switch s.Info().Family {
	case RSA:
		return a >= OAEPSHA1 && a <= PKCS1SHA512
	case EC:
		switch {
		case u == KeyAgreement:
			return a == ECDHAgreement
		case s == P384:
			return a == ECDSASHA384
		case s == P521:
			return a == ECDSASHA512
		}
		return a == ECDSASHA256
	case Edwards:
		return a == Ed25519SHA512 || a == Ed25519PHSHA512
	case HMAC:
		return a == HMACSHA224+Algorithm(s-HMAC224)
	case MLDSA:
		return a == MLDSAShake256
	case MLKEM:
		return a == MLKEMEncapsulation
	}
	return false
}

var usageNames = [...]string{"ENCRYPT_DECRYPT", "SIGN_VERIFY", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT", "ENCAPSULATE_DECAPSULATE"}

// UsageOf is the usage of a name, 0 for every other text.
func UsageOf[T string | []byte](name T) Usage {
	for i, n := range usageNames {
		if n == string(name) {
			return 1 << i
		}
	}
	return 0
}

// String is the name of one usage.
func (u Usage) String() string {
	for i, n := range usageNames {
		if u == 1<<i {
			return n
		}
	}
	return ""
}

// Wrapping is a WrappingAlgorithm: how key material is encrypted for an RSA public key on its way into an HSM.
type Wrapping uint8

const (
	NoWrapping    Wrapping = iota
	WrapOAEP1              // RSAES_OAEP_SHA_1: the material itself, MGF1 with the same hash, no label
	WrapOAEP256            // RSAES_OAEP_SHA_256
	WrapRSAAES1            // RSA_AES_KEY_WRAP_SHA_1: RSAES_OAEP of an AES-256 key, then AES-KWP (RFC 5649) of the material under that, as CKM_RSA_AES_KEY_WRAP
	WrapRSAAES256          // RSA_AES_KEY_WRAP_SHA_256
	wrappings
)

var wrappingNames = [wrappings]string{"", "RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256", "RSA_AES_KEY_WRAP_SHA_1", "RSA_AES_KEY_WRAP_SHA_256"}

func (w Wrapping) String() string {
	if w >= wrappings {
		w = NoWrapping
	}
	return wrappingNames[w]
}

// WrappingOf is the wrapping algorithm of a name, NoWrapping for every other text.
func WrappingOf(name string) Wrapping {
	for w := NoWrapping + 1; w < wrappings; w++ {
		if wrappingNames[w] == name {
			return w
		}
	}
	return NoWrapping
}

// PlaintextMax is the longest plaintext that an RSA key of the spec encrypts with the algorithm.
func (s Spec) PlaintextMax(a Algorithm) int {
	return s.Info().Public - 2*a.Info().Digest - 2
}
