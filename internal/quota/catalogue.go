package quota

import (
	"math"
	"slices"
	"strings"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/ratelimit"
)

const (
	// EventSource is Service Quotas in audit records.
	EventSource = "servicequotas.amazonaws.com"
	// SigningName is Service Quotas in credential scopes, TargetPrefix what X-Amz-Target starts with, ServiceCode what AWS KMS is there.
	SigningName  = "servicequotas"
	TargetPrefix = "ServiceQuotasV20190624."
	ServiceCode  = "kms"
	ServiceName  = "AWS Key Management Service (AWS KMS)"

	// CustomKeyStoreRate is the request quota of one custom key store, per second. It is no account's, and Service Quotas does not list it.
	CustomKeyStoreRate = 1800
)

// Profile says which values accounts have that nobody set.
type Profile string

const (
	// Default is AWS's rates of the highest Region tier for cryptographic operations, and at least 1000/s for each management operation, so that
	// no test suite is throttled. AWS is the Region's table exactly. Off limits no rate.
	Default Profile = "default"
	AWS     Profile = "aws"
	Off     Profile = "off"
)

// Profiles are all of them.
var Profiles = []Profile{Default, AWS, Off}

// Valid reports whether there is such a profile.
func (p Profile) Valid() bool { return slices.Contains(Profiles, p) }

// Quota is one quota of an account in a Region.
type Quota struct {
	Name       string // for people to type: CreateKey, Symmetric, KeysPerAccount
	Code       string // AWS's quota code where we know it, else KP-<Name>
	Title      string // AWS's name, or in its manner
	Rate       bool   // it is a request quota, per second, and Pool is its pool
	Pool       ratelimit.Pool
	Adjustable bool // at AWS; here all are but Fixed
	Fixed      bool
	Most       float64 // the highest value that it can be set to, Unlimited apart; of a resource quota there is no Unlimited
	values     func(Profile, string) float64
}

// The names of resource quotas.
const (
	KeysPerAccount            = "KeysPerAccount"
	AliasesPerKey             = "AliasesPerKey"
	GrantsPerKey              = "GrantsPerKey"
	CustomKeyStoresPerAccount = "CustomKeyStoresPerAccount"
	OnDemandRotationsPerKey   = "OnDemandRotationsPerKey"
	KeyPolicyBytes            = "KeyPolicyBytes"
)

// Quotas has every quota, request quotas first by pool.
var Quotas = func() []Quota {
	rate := func(name, code, title string, pool ratelimit.Pool, values func(Profile, string) float64) Quota {
		return Quota{Name: name, Code: code, Title: title, Rate: true, Pool: pool, Adjustable: true, Most: ratelimit.RateMax, values: values}
	}
	resource := func(name, code, title string, adjustable bool, value, aws, most float64) Quota {
		return Quota{Name: name, Code: code, Title: title, Adjustable: adjustable, Fixed: most == value, Most: most, values: func(p Profile, _ string) float64 {
			if p == AWS {
				return aws
			}
			return value
		}}
	}
	all := []Quota{
		rate("Symmetric", "L-6E3AF000", "Cryptographic operations (symmetric) request rate", Symmetric, symmetricRate),
		rate("RSA", "KP-RSA", "Cryptographic operations (RSA) request rate", RSA, both(1000)),
		rate("ECC", "KP-ECC", "Cryptographic operations (ECC) request rate", ECC, both(1000)),
		rate("ML_DSA", "KP-ML-DSA", "Cryptographic operations (ML-DSA) request rate", MLDSA, both(1000)),
		rate("ML_KEM", "KP-ML-KEM", "Cryptographic operations (ML-KEM) request rate", MLKEM, both(1000)),
	}
	for i, s := range pairSpecs {
		name := "GenerateDataKeyPair_" + s.spec
		all = append(all, rate(name, "KP-"+strings.ReplaceAll(name, "_", "-"), "GenerateDataKeyPair ("+s.spec+") request rate", firstPair+ratelimit.Pool(i),
			func(p Profile, region string) float64 {
				if p == AWS && strings.HasPrefix(region, "cn-") {
					return s.cn
				}
				return s.aws
			}))
	}
	for i := range kmsapi.Operations {
		name := kmsapi.Operations[i].Name
		if pool, ok := operationPools[name]; ok {
			all = append(all, rate(name, "KP-"+name, name+" request rate", pool, func(p Profile, _ string) float64 {
				if p == AWS {
					return operationRates[name]
				}
				return max(operationRates[name], 1000)
			}))
		}
	}
	return append(all,
		resource(KeysPerAccount, "L-C2F1777E", "Customer Master Keys (CMKs)", true, 100_000, 100_000, 100_000_000),
		resource(AliasesPerKey, "L-340F62FB", "Aliases per CMK", true, kmsapi.AliasesPerKeyMax, kmsapi.AliasesPerKeyMax, kmsapi.AliasesPerKeyMost),
		resource(GrantsPerKey, "L-D594A657", "Grants per CMK", true, kmsapi.GrantsPerKeyMax, kmsapi.GrantsPerKeyMax, 1_000_000),
		resource(CustomKeyStoresPerAccount, "L-F33DCFEB", "Custom Key Stores", true, 10, 10, 100),
		resource(OnDemandRotationsPerKey, "L-0E66C9C0", "On-demand rotations per CMK", false, 10, 25, 1000),
		resource(KeyPolicyBytes, "KP-KeyPolicyBytes", "Key policy document size", false, kmsapi.PolicyMax, kmsapi.PolicyMax, kmsapi.PolicyMax),
	)
}()

func both(v float64) func(Profile, string) float64 {
	return func(Profile, string) float64 { return v }
}

// symmetricRate is AWS's by Region.
func symmetricRate(p Profile, region string) float64 {
	switch region {
	case "us-east-1", "us-west-2", "eu-west-1":
		return 100_000
	case "us-east-2", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "eu-central-1", "eu-west-2":
		if p == AWS {
			return 20_000
		}
	}
	if p == AWS {
		return 10_000
	}
	return 100_000
}

// Value is what the quota is in a profile and a Region: +Inf for a rate that is not limited.
func (q *Quota) Value(p Profile, region string) float64 {
	if q.Rate && p == Off {
		return math.Inf(1)
	}
	return q.values(p, region)
}

// Accepts reports whether the quota can be set to v, a value that a person asks for. A resource quota is a whole number.
func (q *Quota) Accepts(v float64) bool {
	switch {
	case q.Fixed || math.IsNaN(v) || v < 0:
		return false
	case q.Rate:
		return ratelimit.Rate(v).Valid()
	}
	return v <= q.Most && v == math.Trunc(v)
}

// Find returns the quota with that name, code or title, nil if there is none.
func Find(name string) *Quota {
	for i := range Quotas {
		if q := &Quotas[i]; q.Name == name || q.Code == name || q.Title == name {
			return q
		}
	}
	return nil
}
