package quota

import (
	"strings"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/ratelimit"
)

// The pools that several operations share. Pools of one operation follow them, in the order of kmsapi.Operations.
const (
	Symmetric ratelimit.Pool = iota // symmetric encryption keys and HMAC keys, and GenerateRandom
	RSA
	ECC // also SM2
	MLDSA
	MLKEM
	firstPair
)

// pairSpecs are the specs of data key pairs. Each has a pool of its own, for GenerateDataKeyPair and GenerateDataKeyPairWithoutPlaintext.
var pairSpecs = [...]struct {
	spec    string
	aws, cn float64 // requests per second, elsewhere and in the Regions of China
}{
	{"ECC_NIST_P256", 100, 100}, {"ECC_NIST_P384", 100, 100}, {"ECC_NIST_P521", 100, 100}, {"ECC_SECG_P256K1", 100, 100},
	{"ECC_NIST_EDWARDS25519", 100, 100}, {"RSA_2048", 20, 1}, {"RSA_3072", 4, 0.5}, {"RSA_4096", 1, 0.1},
	{"SM2", 25, 25}, {"ML_KEM_512", 100, 100}, {"ML_KEM_768", 100, 100}, {"ML_KEM_1024", 100, 100},
}

const firstOperation = firstPair + ratelimit.Pool(len(pairSpecs))

// PoolOf is the pool that a request of an operation is charged to. spec is that of the KMS key it uses, of the key pair it asks for, "" for
// GenerateRandom; operations that have a pool of their own do not look at it. ReEncrypt is charged once to the pool of each of its two keys,
// and once in all if that is the same. ok is false for an operation that cannot work with such a key.
func PoolOf(op *kmsapi.Operation, spec string) (p ratelimit.Pool, ok bool) {
	if p, own := operationPools[op.Name]; own {
		return p, true
	}
	switch op.Name {
	case "GenerateRandom":
		return Symmetric, true
	case "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext":
		for i := range pairSpecs {
			if pairSpecs[i].spec == spec {
				return firstPair + ratelimit.Pool(i), true
			}
		}
		return 0, false
	}
	switch {
	case spec == kmsapi.SymmetricDefault, strings.HasPrefix(spec, "HMAC_"):
		return Symmetric, true
	case strings.HasPrefix(spec, "RSA_"):
		return RSA, true
	case strings.HasPrefix(spec, "ECC_"), spec == "SM2":
		return ECC, true
	case strings.HasPrefix(spec, "ML_DSA_"):
		return MLDSA, true
	case strings.HasPrefix(spec, "ML_KEM_"):
		return MLKEM, true
	}
	return 0, false
}

// operationRates are the request quotas of single operations at AWS, per second.
var operationRates = map[string]float64{
	"DescribeKey": 2000, "GetPublicKey": 2000, "ListResourceTags": 2000,
	"GetKeyPolicy": 1000, "GetKeyRotationStatus": 1000,
	"ListAliases": 500, "ListKeys": 500,
	"ListGrants": 100, "ListKeyPolicies": 100, "ListKeyRotations": 100, "ListRetirableGrants": 100,
	"CreateGrant": 50, "RetireGrant": 50, "RevokeGrant": 50,
	"DeleteAlias": 15, "DeleteImportedKeyMaterial": 15, "EnableKeyRotation": 15, "ImportKeyMaterial": 15, "PutKeyPolicy": 15, "ScheduleKeyDeletion": 15,
	"TagResource":       10,
	"CancelKeyDeletion": 5, "ConnectCustomKeyStore": 5, "CreateAlias": 5, "CreateCustomKeyStore": 5, "CreateKey": 5, "DeleteCustomKeyStore": 5,
	"DescribeCustomKeyStores": 5, "DisableKey": 5, "DisableKeyRotation": 5, "DisconnectCustomKeyStore": 5, "EnableKey": 5, "GetKeyLastUsage": 5,
	"ReplicateKey": 5, "RotateKeyOnDemand": 5, "UntagResource": 5, "UpdateAlias": 5, "UpdateCustomKeyStore": 5, "UpdateKeyDescription": 5,
	"UpdatePrimaryRegion":    5,
	"GetParametersForImport": 1,
}

var operationPools = func() map[string]ratelimit.Pool {
	m := map[string]ratelimit.Pool{}
	for i := range kmsapi.Operations {
		if name := kmsapi.Operations[i].Name; operationRates[name] > 0 {
			m[name] = firstOperation + ratelimit.Pool(len(m))
		}
	}
	return m
}()
