package controlplane

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/ratelimit"
)

// fixedQuotas are the usual resource quotas but for some, and pools that refuse.
type fixedQuotas struct {
	max  map[string]int
	full map[ratelimit.Pool]bool

	mu      sync.Mutex
	charged []string
}

func (f *fixedQuotas) Charge(a keyid.Account, p ratelimit.Pool, _ time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.charged = append(f.charged, fmt.Sprint(a, " ", p))
	return !f.full[p]
}

func (f *fixedQuotas) Max(_ keyid.Account, name string) int {
	if n, set := f.max[name]; set {
		return n
	}
	return int(quota.Find(name).Value(quota.Default, "us-east-1"))
}

func (f *fixedQuotas) Serve(_ context.Context, who sigv4.Identity, target, body []byte, _, _ string, _ bool, _ []byte, _ time.Time, _ *cloudtrail.Record) (int, []byte) {
	return 207, fmt.Appendf(nil, "%s %s %s", who.Service(), target, body)
}

func poolOf(t testing.TB, operation string) ratelimit.Pool {
	t.Helper()
	p, ok := quota.PoolOf(kmsapi.Route([]byte(kmsapi.TargetPrefix+operation)), "")
	if !ok {
		t.Fatalf("%s has no pool", operation)
	}
	return p
}

// Every operation is charged once to its own pool, of the account that calls, after the form of the request was checked and before anything else.
func TestChargedPools(t *testing.T) {
	e := newEnv(t)
	f := &fixedQuotas{}
	e.quotas = f
	m := e.create("{}")
	want := fmt.Sprint(e.account, " ", poolOf(t, "CreateKey"))
	if len(f.charged) != 1 || f.charged[0] != want {
		t.Errorf("CreateKey charged %v, want %s", f.charged, want)
	}
	for name := range handlers {
		f.charged, f.full = nil, map[ratelimit.Pool]bool{poolOf(t, name): true}
		body := minimal(name, m.KeyId)
		e.fails(name, body, kmsapi.Throttling, kmsapi.Throttling.Text())
		want := fmt.Sprint(e.account, " ", poolOf(t, name))
		if len(f.charged) != 1 || f.charged[0] != want {
			t.Errorf("%s charged %v, want %s", name, f.charged, want)
		}
	}
	// One pool says nothing about another.
	f.full = map[ratelimit.Pool]bool{poolOf(t, "CreateKey"): true}
	e.ok("DescribeKey", obj("KeyId", m.KeyId), new(struct{ KeyMetadata wire }))
	// What is malformed is not charged.
	f.charged = nil
	e.fails("DescribeKey", `{`, kmsapi.Serialization, "*")
	e.fails("DescribeKey", `{}`, kmsapi.Validation, "*")
	e.fails("ConnectCustomKeyStore", "{}", kmsapi.Validation, "*")
	if len(f.charged) != 0 {
		t.Errorf("charged %v", f.charged)
	}
}

// minimal is a body that passes the constraints of an operation.
func minimal(operation, keyID string) string {
	switch operation {
	case "CreateKey", "ListKeys", "ListAliases", "DescribeCustomKeyStores":
		return "{}"
	case "CreateCustomKeyStore":
		return obj("CustomKeyStoreName", "x")
	case "ConnectCustomKeyStore", "DisconnectCustomKeyStore", "DeleteCustomKeyStore", "UpdateCustomKeyStore":
		return obj("CustomKeyStoreId", "cks-1234567890abcdef0")
	case "CreateAlias", "UpdateAlias":
		return aliasBody("alias/x", keyID)
	case "DeleteAlias":
		return obj("AliasName", "alias/x")
	case "ReplicateKey":
		return obj("KeyId", keyID, "ReplicaRegion", "eu-west-1")
	case "UpdatePrimaryRegion":
		return obj("KeyId", keyID, "PrimaryRegion", "eu-west-1")
	case "CreateGrant":
		return obj("KeyId", keyID, "GranteePrincipal", "arn:aws:iam::111122223333:root", "Operations", describing)
	case "RevokeGrant":
		return obj("KeyId", keyID, "GrantId", strings.Repeat("a", 64))
	case "RetireGrant":
		return obj("GrantToken", "AAAA")
	case "ListRetirableGrants":
		return obj("RetiringPrincipal", "arn:aws:iam::111122223333:root")
	case "PutKeyPolicy":
		return obj("KeyId", keyID, "Policy", "{}")
	case "TagResource":
		return `{"KeyId":"` + keyID + `","Tags":[{"TagKey":"a","TagValue":"b"}]}`
	case "UntagResource":
		return `{"KeyId":"` + keyID + `","TagKeys":["a"]}`
	case "GetParametersForImport":
		return obj("KeyId", keyID, "WrappingAlgorithm", "RSAES_OAEP_SHA_256", "WrappingKeySpec", "RSA_2048")
	case "ImportKeyMaterial":
		return obj("KeyId", keyID, "ImportToken", "AAAA", "EncryptedKeyMaterial", "AAAA")
	case "UpdateKeyDescription":
		return obj("KeyId", keyID, "Description", "d")
	}
	return obj("KeyId", keyID)
}

// Keys are made in parallel until the account has as many as it can have; a deleted one makes room.
func TestKeyQuota(t *testing.T) {
	e := newEnv(t)
	f := &fixedQuotas{max: map[string]int{quota.KeysPerAccount: 40}}
	e.quotas = f
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 7 {
				switch code := e.call("CreateKey", "{}").Code; code {
				case kmsapi.OK:
					made.Add(1)
				case kmsapi.LimitExceeded:
					refused.Add(1)
				default:
					t.Error(code)
				}
			}
		})
	}
	wg.Wait()
	if made.Load() != 40 || refused.Load() != 16 {
		t.Errorf("%d made, %d refused", made.Load(), refused.Load())
	}
	e.fails("CreateKey", "{}", kmsapi.LimitExceeded, "The account has reached the limit of KMS keys in this Region.")
	var list listKeysOut
	e.ok("ListKeys", "{}", &list)
	e.ok("ScheduleKeyDeletion", obj("KeyId", list.Keys[0].KeyId), new(map[string]any))
	e.ok("DisableKey", obj("KeyId", list.Keys[1].KeyId), nil)
	e.fails("CreateKey", "{}", kmsapi.LimitExceeded, "*") // every state counts
	e.work()
	e.clock.add(31 * 24 * time.Hour)
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.create("{}")
	e.fails("CreateKey", "{}", kmsapi.LimitExceeded, "*")
	f.max[quota.KeysPerAccount] = 41
	e.create("{}")
}

func TestAliasQuota(t *testing.T) {
	e := newEnv(t)
	f := &fixedQuotas{max: map[string]int{quota.AliasesPerKey: 1}}
	e.quotas = f
	m := e.create("{}")
	e.ok("CreateAlias", aliasBody("alias/a", m.KeyId), nil)
	e.fails("CreateAlias", aliasBody("alias/b", m.KeyId), kmsapi.LimitExceeded, "The key "+m.Arn+" has reached the limit of 1 aliases.")
	f.max[quota.AliasesPerKey] = kmsapi.AliasesPerKeyMost
	for i := range kmsapi.AliasesPerKeyMost - 1 {
		e.ok("CreateAlias", aliasBody(fmt.Sprintf("alias/%03d", i), m.KeyId), nil)
	}
	e.fails("CreateAlias", aliasBody("alias/b", m.KeyId), kmsapi.LimitExceeded, "*")
	if got := e.aliases(obj("KeyId", m.KeyId, "Limit", 100)); len(got.Aliases) != kmsapi.AliasesPerKeyMost {
		t.Errorf("%d aliases", len(got.Aliases))
	}
	// The largest transaction that a deletion can be.
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId), new(map[string]any))
	e.work()
	e.clock.add(31 * 24 * time.Hour)
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.NotFound, "*")
}
