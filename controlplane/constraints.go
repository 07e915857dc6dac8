package controlplane

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// The check functions hold one member against the service model and record what it breaks. An absent member breaks nothing unless the
// function is for a required one. Lengths are characters.

func checkLength(v *kmsapi.Violations, path string, s *string, least, most int) {
	if s == nil {
		return
	}
	switch n := utf8.RuneCountInString(*s); {
	case n < least:
		v.MinLength(path, []byte(*s), least)
	case n > most:
		v.MaxLength(path, []byte(*s), most)
	}
}

func checkPattern(v *kmsapi.Violations, path string, s *string, pattern string, ok func(r rune) bool) {
	if s != nil && strings.ContainsFunc(*s, func(r rune) bool { return !ok(r) }) {
		v.Pattern(path, []byte(*s), pattern)
	}
}

func checkEnum(v *kmsapi.Violations, path string, s *string, set []string) {
	if s != nil && !slices.Contains(set, *s) {
		v.Enum(path, []byte(*s), "["+strings.Join(set, ", ")+"]")
	}
}

func checkRange(v *kmsapi.Violations, path string, n *int32, least, most int) {
	switch {
	case n == nil:
	case int(*n) < least:
		v.Min(path, int64(*n), least)
	case int(*n) > most:
		v.Max(path, int64(*n), most)
	}
}

// checkKeyID is for a required member that names a key.
func checkKeyID(v *kmsapi.Violations, path string, s *string) {
	if s == nil {
		v.Null(path)
	}
	checkLength(v, path, s, 1, kmsapi.KeyIDMax)
}

func checkAliasName(v *kmsapi.Violations, s *string) {
	if s == nil {
		v.Null("aliasName")
	}
	checkLength(v, "aliasName", s, 1, kmsapi.AliasNameMax)
	checkPattern(v, "aliasName", s, "^[a-zA-Z0-9:/_-]+$", func(r rune) bool { return isWord(r) || strings.ContainsRune(":/-", r) })
}

// checkBlob is for a required blob.
func checkBlob(v *kmsapi.Violations, path string, b []byte, most int) {
	switch {
	case b == nil:
		v.Null(path)
	case len(b) == 0:
		v.MinLength(path, nil, 1)
	case len(b) > most:
		v.MaxLength(path, nil, most)
	}
}

func checkGrantTokens(v *kmsapi.Violations, tokens []*string) {
	if len(tokens) > kmsapi.GrantTokensMax {
		v.MaxLength("grantTokens", nil, kmsapi.GrantTokensMax)
	}
	for i, token := range tokens {
		path := "grantTokens." + strconv.Itoa(i+1) + ".member"
		if token == nil {
			v.Null(path)
		}
		checkLength(v, path, token, 1, kmsapi.GrantTokenMax)
	}
}

// checkPage is for the two members of every list operation. limitMax is the operation's own, where it is narrower than the model's.
func checkPage(v *kmsapi.Violations, limit *int32, marker *string, limitMax int) {
	checkRange(v, "limit", limit, 1, limitMax)
	checkLength(v, "marker", marker, 1, kmsapi.MarkerMax)
	checkPattern(v, "marker", marker, `[\u0020-\u00FF]*`, func(r rune) bool { return r >= 0x20 && r <= 0xff })
}

func checkPolicy(v *kmsapi.Violations, s *string) {
	checkLength(v, "policy", s, 1, kmsapi.PolicyModelMax)
	checkPattern(v, "policy", s, `[\u0009\u000A\u000D\u0020-\u00FF]+`,
		func(r rune) bool { return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xff })
}

// checkRegion is for a required member that names a Region.
func checkRegion(v *kmsapi.Violations, path string, s *string) {
	if s == nil {
		v.Null(path)
		return
	}
	checkLength(v, path, s, 1, 32)
	if !isRegion(*s) {
		v.Pattern(path, []byte(*s), `^([a-z]+-){2,3}\d+$`)
	}
}

// isRegion matches ^([a-z]+-){2,3}\d+$.
func isRegion(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) < 3 || len(parts) > 4 {
		return false
	}
	for i, p := range parts {
		number := i == len(parts)-1
		if p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return number != (r >= '0' && r <= '9') || !number && !(r >= 'a' && r <= 'z')
		}) {
			return false
		}
	}
	return true
}

func checkPolicyName(v *kmsapi.Violations, s *string) {
	checkLength(v, "policyName", s, 1, kmsapi.PolicyNameMax)
	checkPattern(v, "policyName", s, `[\w]+`, isWord)
}

// isWord is \w of the model's regular expressions, without Unicode.
func isWord(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
}

func isXksKeyID(r rune) bool { return isWord(r) || r == '-' || r == '.' }

// The enums of CreateKey, as in the service model.
var (
	keyUsages              = []string{"SIGN_VERIFY", "ENCRYPT_DECRYPT", "GENERATE_VERIFY_MAC", "KEY_AGREEMENT", "ENCAPSULATE_DECAPSULATE"}
	origins                = []string{"AWS_KMS", "EXTERNAL", "AWS_CLOUDHSM", "EXTERNAL_KEY_STORE"}
	customerMasterKeySpecs = []string{
		"RSA_2048", "RSA_3072", "RSA_4096", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "SYMMETRIC_DEFAULT",
		"HMAC_224", "HMAC_256", "HMAC_384", "HMAC_512", "SM2",
	}
	keySpecs = append(slices.Clone(customerMasterKeySpecs),
		"ML_DSA_44", "ML_DSA_65", "ML_DSA_87", "ECC_NIST_EDWARDS25519", "ML_KEM_512", "ML_KEM_768", "ML_KEM_1024")
)

// specUsages says which key usages each key spec allows (AWS KMS Developer Guide, "Key spec reference").
var specUsages = map[string][]string{
	"SYMMETRIC_DEFAULT": {"ENCRYPT_DECRYPT"},
	"RSA_2048":          {"ENCRYPT_DECRYPT", "SIGN_VERIFY"}, "RSA_3072": {"ENCRYPT_DECRYPT", "SIGN_VERIFY"},
	"RSA_4096":      {"ENCRYPT_DECRYPT", "SIGN_VERIFY"},
	"ECC_NIST_P256": {"SIGN_VERIFY", "KEY_AGREEMENT"}, "ECC_NIST_P384": {"SIGN_VERIFY", "KEY_AGREEMENT"},
	"ECC_NIST_P521": {"SIGN_VERIFY", "KEY_AGREEMENT"}, "ECC_SECG_P256K1": {"SIGN_VERIFY"}, "ECC_NIST_EDWARDS25519": {"SIGN_VERIFY"},
	"HMAC_224": {"GENERATE_VERIFY_MAC"}, "HMAC_256": {"GENERATE_VERIFY_MAC"}, "HMAC_384": {"GENERATE_VERIFY_MAC"},
	"HMAC_512":  {"GENERATE_VERIFY_MAC"},
	"ML_DSA_44": {"SIGN_VERIFY"}, "ML_DSA_65": {"SIGN_VERIFY"}, "ML_DSA_87": {"SIGN_VERIFY"},
	"ML_KEM_512": {"ENCAPSULATE_DECAPSULATE"}, "ML_KEM_768": {"ENCAPSULATE_DECAPSULATE"}, "ML_KEM_1024": {"ENCAPSULATE_DECAPSULATE"},
	"SM2": {"ENCRYPT_DECRYPT", "SIGN_VERIFY", "KEY_AGREEMENT"},
}

// offered is the spec of the key that is asked for, None for SYMMETRIC_DEFAULT. It refuses first what no KMS would make, then what this one does
// not offer; whether the HSM makes keys of the spec shows when it is asked to.
func (s *Server) offered(in *createKeyIn) (keyspec.Spec, error) {
	spec := kmsapi.SymmetricDefault
	switch {
	case in.KeySpec != nil && in.CustomerMasterKeySpec != nil:
		return keyspec.None, kmsapi.New(kmsapi.Validation,
			"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated.")
	case in.KeySpec != nil:
		spec = *in.KeySpec
	case in.CustomerMasterKeySpec != nil:
		spec = *in.CustomerMasterKeySpec
	}
	switch {
	case in.KeyUsage == nil && spec != kmsapi.SymmetricDefault:
		return keyspec.None, kmsapi.New(kmsapi.Validation, "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.")
	case in.KeyUsage != nil && !slices.Contains(specUsages[spec], *in.KeyUsage):
		return keyspec.None, kmsapi.New(kmsapi.Validation, "KeyUsage "+*in.KeyUsage+" is not compatible with KeySpec "+spec)
	case spec != kmsapi.SymmetricDefault && (s.keys == nil || keyspec.Of(spec) == keyspec.None): // SM2 is for China Regions
		return keyspec.None, notOffered("KeySpec " + spec)
	}
	if err := in.inKeyStore(spec); err != nil {
		return keyspec.None, err
	}
	if deref(in.Origin) == originExternal {
		if err := s.unimportable(spec); err != nil {
			return keyspec.None, err
		}
	}
	return keyspec.Of(spec), nil
}

func notOffered(what string) error {
	return kmsapi.New(kmsapi.UnsupportedOperation, what+" is not offered by this version of keyplane.")
}
