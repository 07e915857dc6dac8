package quota

import (
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/ratelimit"
)

// awsTable is AWS's table of request quotas as its documentation has it: a rate, a key spec or "*", operations.
const awsTable = `
100000 SYMMETRIC_DEFAULT Decrypt Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncrypt
100000 HMAC_256 GenerateMac VerifyMac
100000 * GenerateRandom
1000 RSA_2048 Decrypt Encrypt ReEncrypt Sign Verify
1000 RSA_4096 Decrypt Encrypt ReEncrypt Sign Verify
1000 ECC_NIST_P256 DeriveSharedSecret Sign Verify
1000 ECC_NIST_EDWARDS25519 Sign Verify
1000 SM2 DeriveSharedSecret Sign Verify Decrypt Encrypt ReEncrypt
1000 ML_DSA_65 Sign Verify
1000 ML_KEM_768 Encapsulate Decapsulate
100 ECC_NIST_P256 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ECC_NIST_P384 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ECC_NIST_P521 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ECC_SECG_P256K1 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ECC_NIST_EDWARDS25519 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
20 RSA_2048 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
4 RSA_3072 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
1 RSA_4096 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
25 SM2 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ML_KEM_512 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ML_KEM_768 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
100 ML_KEM_1024 GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext
2000 * DescribeKey GetPublicKey ListResourceTags
1000 * GetKeyPolicy GetKeyRotationStatus
500 * ListAliases ListKeys
100 * ListGrants ListKeyPolicies ListKeyRotations ListRetirableGrants
50 * CreateGrant RetireGrant RevokeGrant
15 * DeleteAlias DeleteImportedKeyMaterial EnableKeyRotation ImportKeyMaterial PutKeyPolicy ScheduleKeyDeletion
10 * TagResource
5 * CancelKeyDeletion ConnectCustomKeyStore CreateAlias CreateCustomKeyStore CreateKey DeleteCustomKeyStore DescribeCustomKeyStores DisableKey
5 * DisableKeyRotation DisconnectCustomKeyStore EnableKey GetKeyLastUsage ReplicateKey RotateKeyOnDemand UntagResource UpdateAlias
5 * UpdateCustomKeyStore UpdateKeyDescription UpdatePrimaryRegion
1 * GetParametersForImport
`

func ofPool(t *testing.T, p ratelimit.Pool) *Quota {
	t.Helper()
	var found *Quota
	for i := range Quotas {
		if q := &Quotas[i]; q.Rate && q.Pool == p {
			if found != nil {
				t.Fatalf("pool %d is %s and %s", p, found.Name, q.Name)
			}
			found = q
		}
	}
	if found == nil {
		t.Fatalf("pool %d has no quota", p)
	}
	return found
}

func TestAWSTable(t *testing.T) {
	seen, pools := map[string]bool{}, map[ratelimit.Pool]bool{}
	for line := range strings.Lines(awsTable) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		spec := f[1]
		if spec == "*" {
			spec = ""
		}
		for _, name := range f[2:] {
			op := kmsapi.Route([]byte(kmsapi.TargetPrefix + name))
			if op == nil {
				t.Fatalf("there is no operation %s", name)
			}
			seen[name] = true
			p, ok := PoolOf(op, spec)
			if !ok {
				t.Errorf("%s %s has no pool", name, spec)
				continue
			}
			pools[p] = true
			q := ofPool(t, p)
			if got := q.Value(AWS, "us-east-1"); strconv.FormatFloat(got, 'f', -1, 64) != f[0] {
				t.Errorf("%s %s: %v/s, want %s", name, spec, got, f[0])
			}
			if f[1] == "*" && name != "GenerateRandom" && q.Name != name {
				t.Errorf("%s is charged to %s", name, q.Name)
			}
		}
	}
	for i := range kmsapi.Operations {
		if !seen[kmsapi.Operations[i].Name] {
			t.Errorf("%s is not in AWS's table", kmsapi.Operations[i].Name)
		}
	}
	for i := range Quotas {
		if Quotas[i].Rate && !pools[Quotas[i].Pool] {
			t.Errorf("no operation is charged to %s", Quotas[i].Name)
		}
	}
}

func TestUnknownSpecs(t *testing.T) {
	for name, spec := range map[string]string{"Encrypt": "", "Sign": "AES_256", "GenerateDataKeyPair": "SYMMETRIC_DEFAULT", "GenerateMac": "X"} {
		if p, ok := PoolOf(kmsapi.Route([]byte(kmsapi.TargetPrefix+name)), spec); ok {
			t.Errorf("%s %q is charged to pool %d", name, spec, p)
		}
	}
}

func TestProfiles(t *testing.T) {
	for _, c := range []struct {
		name   string
		p      Profile
		region string
		want   float64
	}{
		{"Symmetric", AWS, "us-west-2", 100_000}, {"Symmetric", AWS, "eu-central-1", 20_000}, {"Symmetric", AWS, "eu-north-1", 10_000},
		{"Symmetric", Default, "eu-north-1", 100_000}, {"Symmetric", Off, "eu-north-1", math.Inf(1)},
		{"CreateKey", AWS, "us-east-1", 5}, {"CreateKey", Default, "us-east-1", 1000}, {"DescribeKey", Default, "us-east-1", 2000},
		{"GenerateDataKeyPair_RSA_4096", AWS, "cn-north-1", 0.1}, {"GenerateDataKeyPair_RSA_4096", Default, "us-east-1", 1},
		{KeysPerAccount, Off, "us-east-1", 100_000}, {AliasesPerKey, Default, "us-east-1", 50}, {GrantsPerKey, AWS, "us-east-1", 50_000},
		{CustomKeyStoresPerAccount, Default, "us-east-1", 10}, {OnDemandRotationsPerKey, Default, "us-east-1", 10}, {OnDemandRotationsPerKey, AWS, "us-east-1", 25},
		{KeyPolicyBytes, Default, "us-east-1", 32_768},
	} {
		if got := Find(c.name).Value(c.p, c.region); got != c.want {
			t.Errorf("%s in %s, profile %s: %v, want %v", c.name, c.region, c.p, got, c.want)
		}
	}
	if Profile("").Valid() || Profile("AWS").Valid() || !AWS.Valid() {
		t.Error("profiles are not told apart")
	}
}

func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for i := range Quotas {
		q := &Quotas[i]
		for _, s := range []string{q.Name, q.Code, q.Title} {
			if s == "" || seen[s] {
				t.Errorf("%q names two quotas or none", s)
			}
			seen[s] = true
		}
		if int(q.Pool) >= ratelimit.PoolsMax || strings.Trim(q.Code, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("%s: pool %d, code %s", q.Name, q.Pool, q.Code)
		}
		for _, p := range Profiles {
			if v := q.Value(p, "us-east-1"); !q.Fixed && !q.Accepts(v) {
				t.Errorf("%s cannot be set to its own value %v", q.Name, v)
			}
		}
	}
	if Find("") != nil || Find("createkey") != nil {
		t.Error("found what is not there")
	}
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		name string
		v    float64
		want bool
	}{
		{"CreateKey", 0, true}, {"CreateKey", 0.5, true}, {"CreateKey", -1, false}, {"CreateKey", math.Inf(1), true}, {"CreateKey", math.NaN(), false},
		{"CreateKey", ratelimit.RateMax + 1, false}, {KeysPerAccount, 0, true}, {KeysPerAccount, 1.5, false}, {KeysPerAccount, math.Inf(1), false},
		{AliasesPerKey, kmsapi.AliasesPerKeyMost, true}, {AliasesPerKey, kmsapi.AliasesPerKeyMost + 1, false}, {KeyPolicyBytes, 1, false},
	} {
		if got := Find(c.name).Accepts(c.v); got != c.want {
			t.Errorf("%s accepts %v: %v", c.name, c.v, got)
		}
	}
}
