package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// asymmetricPairs are the specs with the usages that AWS documents ("Key spec reference"), written out here once more, and what each lists as
// its algorithms.
var asymmetricPairs = map[[2]string]string{
	{"RSA_2048", "ENCRYPT_DECRYPT"}:            "[RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256]",
	{"RSA_3072", "ENCRYPT_DECRYPT"}:            "[RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256]",
	{"RSA_4096", "ENCRYPT_DECRYPT"}:            "[RSAES_OAEP_SHA_1 RSAES_OAEP_SHA_256]",
	{"RSA_2048", "SIGN_VERIFY"}:                rsaSigning,
	{"RSA_3072", "SIGN_VERIFY"}:                rsaSigning,
	{"RSA_4096", "SIGN_VERIFY"}:                rsaSigning,
	{"ECC_NIST_P256", "SIGN_VERIFY"}:           "[ECDSA_SHA_256]",
	{"ECC_NIST_P384", "SIGN_VERIFY"}:           "[ECDSA_SHA_384]",
	{"ECC_NIST_P521", "SIGN_VERIFY"}:           "[ECDSA_SHA_512]",
	{"ECC_NIST_P256", "KEY_AGREEMENT"}:         "[ECDH]",
	{"ECC_NIST_P384", "KEY_AGREEMENT"}:         "[ECDH]",
	{"ECC_NIST_P521", "KEY_AGREEMENT"}:         "[ECDH]",
	{"ECC_SECG_P256K1", "SIGN_VERIFY"}:         "[ECDSA_SHA_256]",
	{"ECC_NIST_EDWARDS25519", "SIGN_VERIFY"}:   "[ED25519_SHA_512 ED25519_PH_SHA_512]",
	{"HMAC_224", "GENERATE_VERIFY_MAC"}:        "[HMAC_SHA_224]",
	{"HMAC_256", "GENERATE_VERIFY_MAC"}:        "[HMAC_SHA_256]",
	{"HMAC_384", "GENERATE_VERIFY_MAC"}:        "[HMAC_SHA_384]",
	{"HMAC_512", "GENERATE_VERIFY_MAC"}:        "[HMAC_SHA_512]",
	{"ML_DSA_44", "SIGN_VERIFY"}:               "[ML_DSA_SHAKE_256]",
	{"ML_DSA_65", "SIGN_VERIFY"}:               "[ML_DSA_SHAKE_256]",
	{"ML_DSA_87", "SIGN_VERIFY"}:               "[ML_DSA_SHAKE_256]",
	{"ML_KEM_512", "ENCAPSULATE_DECAPSULATE"}:  "[ML_KEM]",
	{"ML_KEM_768", "ENCAPSULATE_DECAPSULATE"}:  "[ML_KEM]",
	{"ML_KEM_1024", "ENCAPSULATE_DECAPSULATE"}: "[ML_KEM]",
}

const rsaSigning = "[RSASSA_PKCS1_V1_5_SHA_256 RSASSA_PKCS1_V1_5_SHA_384 RSASSA_PKCS1_V1_5_SHA_512 RSASSA_PSS_SHA_256 RSASSA_PSS_SHA_384 RSASSA_PSS_SHA_512]"

// Every spec with every usage, by both members that name a spec: what KMS makes is made and described, every other pair is a
// ValidationException and costs the HSM nothing.
func TestCreateKeySpecs(t *testing.T) {
	e := newEnv(t)
	made, refused := 0, 0
	for _, member := range []string{"KeySpec", "CustomerMasterKeySpec"} {
		for _, spec := range keySpecs {
			if spec == "SYMMETRIC_DEFAULT" || spec == "SM2" || member == "CustomerMasterKeySpec" && !slices.Contains(customerMasterKeySpecs, spec) {
				continue
			}
			for _, usage := range keyUsages {
				e.made = nil
				body := obj(member, spec, "KeyUsage", usage)
				want, fits := asymmetricPairs[[2]string{spec, usage}]
				if !fits {
					refused++
					e.fails("CreateKey", body, kmsapi.Validation, "KeyUsage "+usage+" is not compatible with KeySpec "+spec)
					if e.made != nil {
						t.Errorf("%s %s: a refused request made %v", spec, usage, e.made)
					}
					continue
				}
				made++
				m := e.create(body)
				e.describes(m, spec, usage, want)
				if fmt.Sprint(e.made) != "["+spec+"]" {
					t.Errorf("%s %s: made %v", spec, usage, e.made)
				}
				if d := e.describe(m.KeyId); fmt.Sprint(d) != fmt.Sprint(m) {
					t.Errorf("described as %+v, made as %+v", d, m)
				}
			}
		}
	}
	// 24 pairs by KeySpec; the other member's enum lacks ML-DSA, ML-KEM and Edwards25519.
	if made != 24+17 || refused != (18+11)*5-made {
		t.Errorf("%d pairs were made, %d refused", made, refused)
	}
}

// describes checks what CreateKey said of a key, and that the data plane reads a key of its own.
func (e *env) describes(m wire, spec, usage, algorithms string) {
	e.Helper()
	lists := map[string][]string{
		"ENCRYPT_DECRYPT": m.EncryptionAlgorithms, "SIGN_VERIFY": m.SigningAlgorithms, "GENERATE_VERIFY_MAC": m.MacAlgorithms,
		"KEY_AGREEMENT": m.KeyAgreementAlgorithms, "ENCAPSULATE_DECAPSULATE": m.EncapsulationAlgorithms,
	}
	for u, list := range lists {
		if want := map[bool]string{true: algorithms, false: "[]"}[u == usage]; fmt.Sprint(list) != want {
			e.Errorf("%s for %s: algorithms of %s are %v, want %s", spec, usage, u, list, want)
		}
	}
	protection := ""
	if keyspec.Of(spec).Info().Family == keyspec.MLDSA { // as makeKey has it
		protection = protectionSoftware
	}
	if m.KeySpec != spec || m.CustomerMasterKeySpec != spec || m.KeyUsage != usage || m.CurrentKeyMaterialId != "" || m.KeyState != "Enabled" || !m.Enabled ||
		m.Origin != "AWS_KMS" || m.KeyplaneProtection != protection {
		e.Errorf("%s for %s: %+v", spec, usage, m)
	}
	n := e.name(m.KeyId)
	r, err := shared.KeyRecord(e.Context(), n.Region, n.Account, n.ID)
	if err != nil {
		e.Fatal(err)
	}
	p := r.Private
	if len(r.Versions) != 0 || p == nil || string(p.Root[:5]) != "token" || p.Software != (protection != "") ||
		p.ID != snapshot.PrivateKeyID(n.Account, n.ID, r.Spec, r.Usage, p) || (p.Public == nil) != (usage == "GENERATE_VERIFY_MAC") {
		e.Errorf("%s for %s: record %+v, private %+v", spec, usage, r, p)
	}
}

// No key is made in the HSM for a request that is refused anyway.
func TestCreateKeyRefusedFirst(t *testing.T) {
	e := newEnv(t)
	f := &fixedQuotas{max: map[string]int{quota.KeysPerAccount: 1}}
	e.quotas = f
	rsa := []any{"KeySpec", "RSA_4096", "KeyUsage", "SIGN_VERIFY"}
	for _, c := range []struct {
		with []any
		code kmsapi.Code
	}{
		{[]any{"Policy", "[]"}, kmsapi.MalformedPolicyDocument},
		{[]any{"Policy", statement("Deny", "kms:*", anyone, anyResource)}, kmsapi.MalformedPolicyDocument},
		{[]any{"Tags", tags("aws:x", "")}, kmsapi.Tag},
		{[]any{"CustomKeyStoreId", "cks-1", "Origin", "AWS_CLOUDHSM"}, kmsapi.UnsupportedOperation},
		{[]any{"XksKeyId", "k"}, kmsapi.Validation},
	} {
		e.fails("CreateKey", obj(append(c.with, rsa...)...), c.code, "*")
	}
	e.user("nobody").fails("CreateKey", obj(rsa...), kmsapi.AccessDenied, "*")
	if len(e.made) != 0 {
		t.Errorf("refused requests made %v", e.made)
	}
	e.create(obj(rsa...))
	e.fails("CreateKey", obj(rsa...), kmsapi.LimitExceeded, "The account has reached the limit of KMS keys in this Region.")
	if len(e.made) != 1 {
		t.Errorf("beyond the limit: made %v", e.made)
	}
}

// What the HSM says to CreateKey.
func TestCreateKeyRefusedByHSM(t *testing.T) {
	e := newEnv(t)
	body := obj("KeySpec", "ML_DSA_44", "KeyUsage", "SIGN_VERIFY")
	e.keys = fakeKeys{make: func(s keyspec.Spec) (*snapshot.PrivateKey, error) {
		return nil, kmsapi.New(kmsapi.UnsupportedOperation, "The KeySpec "+s.String()+" is not offered by this key store.")
	}}
	e.fails("CreateKey", body, kmsapi.UnsupportedOperation, "The KeySpec ML_DSA_44 is not offered by this key store.")
	e.keys = fakeKeys{make: func(keyspec.Spec) (*snapshot.PrivateKey, error) { return nil, errors.New("CKR_DEVICE_ERROR in slot 7") }}
	e.fails("CreateKey", body, kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	e.keys = nil
	e.fails("CreateKey", body, kmsapi.UnsupportedOperation, "KeySpec ML_DSA_44 is not offered by this version of keyplane.")
	e.create("{}")

	// A key that took longer than the operation may take is kept all the same.
	ctx, cancel := context.WithCancel(t.Context())
	e.keys = fakeKeys{make: func(s keyspec.Spec) (*snapshot.PrivateKey, error) {
		cancel()
		return e.makeKey(s)
	}}
	if resp := e.Serve(ctx, &Request{Signed: e.sign("CreateKey", []byte(body)), RequestID: "late"}); resp.Code != kmsapi.OK {
		t.Errorf("after a slow HSM: %s", resp.Body)
	}
}

// Aliases stay with their kind of key, grants say only what a key can do: with keys as CreateKey makes them.
func TestKindsOfKeys(t *testing.T) {
	e := newEnv(t)
	keys := map[string]wire{"SYMMETRIC_DEFAULT ENCRYPT_DECRYPT": e.create("{}")}
	for _, k := range [][2]string{{"RSA_2048", "ENCRYPT_DECRYPT"}, {"RSA_2048", "SIGN_VERIFY"}, {"ECC_NIST_P256", "SIGN_VERIFY"},
		{"ECC_NIST_P256", "KEY_AGREEMENT"}, {"HMAC_224", "GENERATE_VERIFY_MAC"}, {"HMAC_512", "GENERATE_VERIFY_MAC"}, {"ML_KEM_512", "ENCAPSULATE_DECAPSULATE"}} {
		keys[k[0]+" "+k[1]] = e.create(obj("KeySpec", k[0], "KeyUsage", k[1]))
	}
	moves := 0
	for from, a := range keys {
		for to, b := range keys {
			alias := "alias/from-" + a.KeyId + "-" + b.KeyId
			e.ok("CreateAlias", aliasBody(alias, a.KeyId), nil)
			if keyClass(a.KeySpec) == keyClass(b.KeySpec) && a.KeyUsage == b.KeyUsage {
				moves++
				e.ok("UpdateAlias", aliasBody(alias, b.KeyId), nil)
			} else {
				e.fails("UpdateAlias", aliasBody(alias, b.KeyId), kmsapi.Validation, "*")
			}
			if e.describe(alias).KeyId != map[bool]string{true: b.KeyId, false: a.KeyId}[keyClass(a.KeySpec) == keyClass(b.KeySpec) && a.KeyUsage == b.KeyUsage] {
				t.Errorf("alias from %s to %s", from, to)
			}
		}
	}
	if moves != 8+2+2 { // each to itself, between the two that sign, between the two HMAC keys
		t.Errorf("%d moves", moves)
	}

	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	for key, m := range keys {
		grant := func(with ...any) string {
			return obj(append([]any{"KeyId", m.KeyId, "GranteePrincipal", admin}, with...)...)
		}
		for op, usage := range map[string]string{"Sign": "SIGN_VERIFY", "GenerateMac": "GENERATE_VERIFY_MAC", "DeriveSharedSecret": "KEY_AGREEMENT",
			"Decapsulate": "ENCAPSULATE_DECAPSULATE", "Encrypt": "ENCRYPT_DECRYPT"} {
			body := grant("Operations", []string{op, "DescribeKey"})
			if usage == m.KeyUsage {
				e.ok("CreateGrant", body, new(createGrantOut))
				continue
			}
			e.fails("CreateGrant", body, kmsapi.Validation,
				"Grant operation "+op+" is not valid for a KMS key with KeySpec "+m.KeySpec+" and KeyUsage "+m.KeyUsage+".")
		}
		body := grant("Operations", []string{"DescribeKey"}, "Constraints", map[string]any{"EncryptionContextSubset": map[string]string{"a": "b"}})
		if key == "SYMMETRIC_DEFAULT ENCRYPT_DECRYPT" {
			e.ok("CreateGrant", body, new(createGrantOut))
		} else {
			e.fails("CreateGrant", body, kmsapi.Validation, "EncryptionContext is supported only when creating a grant for a symmetric encryption KMS key.")
		}
	}
}

// The record of CreateKey has the lists of algorithms too.
func TestRecordOfKeySpecs(t *testing.T) {
	e := newEnv(t)
	m := e.create(obj("KeySpec", "ML_DSA_44", "KeyUsage", "SIGN_VERIFY"))
	e.expect(`CreateKey {"keySpec":"ML_DSA_44","keyUsage":"SIGN_VERIFY"} {"keyMetadata":{"aWSAccountId":"ACCOUNT","arn":"` + m.Arn +
		`","creationDate":"Nov 23, 2026, 12:00:00 PM","customerMasterKeySpec":"ML_DSA_44","description":"","enabled":true,"keyId":"` + m.KeyId +
		`","keyManager":"CUSTOMER","keySpec":"ML_DSA_44","keyState":"Enabled","keyUsage":"SIGN_VERIFY","keyplaneProtection":"SOFTWARE",` +
		`"multiRegion":false,"origin":"AWS_KMS","signingAlgorithms":["ML_DSA_SHAKE_256"]}} null ` + m.Arn)
}
