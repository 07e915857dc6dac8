package controlplane

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

func TestCreateKey(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	want := wire{
		AWSAccountId: e.account.String(), KeyId: m.KeyId, Arn: "arn:aws:kms:us-east-1:" + e.account.String() + ":key/" + m.KeyId,
		KeyUsage: "ENCRYPT_DECRYPT", KeyState: "Enabled", Origin: "AWS_KMS", KeyManager: "CUSTOMER",
		CustomerMasterKeySpec: "SYMMETRIC_DEFAULT", KeySpec: "SYMMETRIC_DEFAULT", CurrentKeyMaterialId: m.CurrentKeyMaterialId,
		CreationDate: 1795435200.123, Enabled: true, EncryptionAlgorithms: []string{"SYMMETRIC_DEFAULT"},
	}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", m, want)
	}
	if got := e.published.take(); got != "key "+m.KeyId+"\n" {
		t.Errorf("published %q", got)
	}

	// What the data plane reads is the same key.
	n := e.name(m.KeyId)
	r, err := shared.KeyRecord(t.Context(), n.Region, n.Account, n.ID)
	if err != nil {
		t.Fatal(err)
	}
	v := r.Versions[r.Current]
	if r.State != kmsapi.StateEnabled || v.Number != 1 || string(v.Root[:]) != "testroot" || v.Salt == [32]byte{} ||
		string(v.MaterialID[:]) != m.CurrentKeyMaterialId || v.MaterialID != snapshot.MaterialID(n.Account, n.ID, 1, &v.Salt) {
		t.Errorf("record %+v", r)
	}

	// Every member that a symmetric key can be made with.
	policy := " " + statement("Allow", "kms:Get*,kms:List*", anyone, anyResource) + "\n"
	m = e.create(obj("Description", "für ☃", "KeyUsage", "ENCRYPT_DECRYPT", "KeySpec", "SYMMETRIC_DEFAULT", "Origin", "AWS_KMS",
		"MultiRegion", false, "BypassPolicyLockoutSafetyCheck", true, "Tags", tags("a", "1", "A", ""), "Policy", policy, "Unknown", raw(`[{}]`)))
	if m.Description != "für ☃" {
		t.Errorf("description %q", m.Description)
	}
	var p struct{ Policy, PolicyName string }
	e.ok("GetKeyPolicy", obj("KeyId", m.KeyId), &p)
	if p.Policy != policy || p.PolicyName != "default" {
		t.Errorf("policy %+v", p)
	}
	var lt struct {
		Tags      []tag
		Truncated bool
	}
	e.ok("ListResourceTags", obj("KeyId", m.KeyId), &lt)
	if fmt.Sprint(lt.Tags) != fmt.Sprint(tags("A", "", "a", "1")) || lt.Truncated {
		t.Errorf("tags %+v", lt)
	}
	if m := e.create(obj("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT")); m.KeySpec != "SYMMETRIC_DEFAULT" {
		t.Errorf("spec %q", m.KeySpec)
	}
	if m := e.create(`{"Description":null,"Tags":null,"KeySpec":null,"MultiRegion":null,"Policy":null}`); m.Description != "" {
		t.Errorf("null is not absent: %+v", m)
	}
	e.create("") // an empty body is {}
}

func TestCreateKeyRefusals(t *testing.T) {
	e := newEnv(t)
	const unsupported = " is not offered by this version of keyplane."
	for _, c := range []struct {
		body    string
		code    kmsapi.Code
		message string
	}{
		{obj("KeySpec", "RSA_2048"), kmsapi.Validation, "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys."},
		{obj("KeySpec", "RSA_2048", "KeyUsage", "KEY_AGREEMENT"), kmsapi.Validation, "KeyUsage KEY_AGREEMENT is not compatible with KeySpec RSA_2048"},
		{obj("KeyUsage", "SIGN_VERIFY"), kmsapi.Validation, "KeyUsage SIGN_VERIFY is not compatible with KeySpec SYMMETRIC_DEFAULT"},
		{obj("KeySpec", "RSA_2048", "CustomerMasterKeySpec", "RSA_2048"), kmsapi.Validation,
			"You cannot specify KeySpec and CustomerMasterKeySpec in the same request. CustomerMasterKeySpec is deprecated."},
		{obj("KeySpec", "SM2", "KeyUsage", "SIGN_VERIFY"), kmsapi.UnsupportedOperation, "KeySpec SM2" + unsupported},
		{obj("CustomerMasterKeySpec", "SM2", "KeyUsage", "KEY_AGREEMENT"), kmsapi.UnsupportedOperation, "KeySpec SM2" + unsupported},
		{obj("CustomerMasterKeySpec", "ML_DSA_44", "KeyUsage", "SIGN_VERIFY"), kmsapi.Validation, "*"}, // the old member's enum lacks it
		{obj("KeySpec", "ML_DSA_65", "KeyUsage", "SIGN_VERIFY", "Origin", "EXTERNAL"), kmsapi.UnsupportedOperation, "Origin EXTERNAL is not valid for KMS keys with KeySpec ML_DSA_65."},
		{obj("KeySpec", "ML_KEM_512", "KeyUsage", "ENCAPSULATE_DECAPSULATE", "Origin", "EXTERNAL"), kmsapi.UnsupportedOperation, "Origin EXTERNAL is not valid for KMS keys with KeySpec ML_KEM_512."},
		{obj("KeySpec", "AES"), kmsapi.Validation, "1 validation error detected: Value 'AES' at 'keySpec' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [" + strings.Join(keySpecs, ", ") + "]"},
		{obj("Origin", "", "XksKeyId", "k/"), kmsapi.Validation, "2 validation errors detected: Value '' at 'origin' failed to satisfy constraint: " +
			"Member must satisfy enum value set: [AWS_KMS, EXTERNAL, AWS_CLOUDHSM, EXTERNAL_KEY_STORE]; Value 'k/' at 'xksKeyId' failed to " +
			"satisfy constraint: Member must satisfy regular expression pattern: ^[a-zA-Z0-9-_.]+$"},
		{obj("Policy", "[]"), kmsapi.MalformedPolicyDocument, "*"},
		{obj("Policy", "{"+strings.Repeat(" ", kmsapi.PolicyMax-1)+"}"), kmsapi.LimitExceeded, "The key policy is larger than 32768 bytes."},
		{obj("Tags", tags("a", "1", "a", "2")), kmsapi.Tag, "Duplicate tag keys"},
		{obj("Tags", tags("Aws:x", "1")), kmsapi.Tag, "Tags beginning with aws: are reserved"},
		{obj("Tags", raw(`[{"TagKey":"a"},null,{"TagValue":""}]`)), kmsapi.Validation,
			"3 validation errors detected: Value null at 'tags.1.member.tagValue' failed to satisfy constraint: Member must not be null; " +
				"Value null at 'tags.2.member' failed to satisfy constraint: Member must not be null; " +
				"Value null at 'tags.3.member.tagKey' failed to satisfy constraint: Member must not be null"},
	} {
		e.fails("CreateKey", c.body, c.code, c.message)
	}
	if got := e.published.take(); got != "" {
		t.Errorf("published %q", got)
	}
	var list struct {
		Keys       []keyListEntry
		NextMarker string
		Truncated  bool
	}
	e.ok("ListKeys", "{}", &list)
	if len(list.Keys) != 0 || list.Truncated {
		t.Errorf("a refused CreateKey left %v", list)
	}
}

func TestCreateKeyHSMFailure(t *testing.T) {
	e := newEnv(t)
	e.random = func([]byte) error { return errors.New("CKR_DEVICE_ERROR in slot 7") }
	e.fails("CreateKey", "{}", kmsapi.KMSInternal, kmsapi.KMSInternal.Text())

	// Random numbers that repeat collide with the first key; two keys never share an ID.
	e.random = func(b []byte) error { clear(b); return nil }
	e.create("{}")
	e.fails("CreateKey", "{}", kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	if got := e.published.take(); strings.Count(got, "key ") != 1 {
		t.Errorf("published %q", got)
	}
}

// KeyId of every operation that takes one, in every form of kms-api §7.
func TestKeyReferences(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.ok("CreateAlias", obj("AliasName", "alias/ref", "TargetKeyId", m.KeyId), nil)
	alias := "arn:aws:kms:us-east-1:" + e.account.String() + ":alias/ref"
	missing := "12345678-1234-4234-8234-123456789012"
	missingARN := strings.TrimSuffix(m.Arn, m.KeyId) + missing

	for _, ref := range []string{m.KeyId, m.Arn, "alias/ref", alias} {
		if got := e.describe(ref); got.KeyId != m.KeyId {
			t.Errorf("DescribeKey %s: %v", ref, got)
		}
	}
	e.fails("DescribeKey", obj("KeyId", "alias/none"), kmsapi.NotFound, "Alias "+strings.TrimSuffix(alias, "ref")+"none is not found.")

	members := map[string]string{ // what each operation needs besides KeyId
		"UpdateKeyDescription": `"Description":"",`, "TagResource": `"Tags":[],`, "UntagResource": `"TagKeys":[],`, "PutKeyPolicy": `"Policy":"{}",`,
		"GetParametersForImport": `"WrappingAlgorithm":"RSAES_OAEP_SHA_256","WrappingKeySpec":"RSA_2048",`,
		"ImportKeyMaterial":      `"ImportToken":"AAAA","EncryptedKeyMaterial":"AAAA","ExpirationModel":"KEY_MATERIAL_DOES_NOT_EXPIRE",`,
	}
	for _, op := range []string{
		"CancelKeyDeletion", "DeleteImportedKeyMaterial", "DescribeKey", "DisableKey", "DisableKeyRotation", "EnableKey", "EnableKeyRotation", "GetKeyPolicy", "GetKeyRotationStatus", "GetParametersForImport", "ImportKeyMaterial",
		"ListAliases", "ListKeyPolicies", "ListKeyRotations", "ListResourceTags", "PutKeyPolicy", "RotateKeyOnDemand", "ScheduleKeyDeletion", "TagResource", "UntagResource", "UpdateKeyDescription",
	} {
		with := func(ref string) string {
			return "{" + members[op] + `"KeyId":` + string(kmsapi.AppendString(nil, ref)) + "}"
		}
		e.fails(op, with(missing), kmsapi.NotFound, "Key '"+missingARN+"' does not exist")
		e.fails(op, with(missingARN), kmsapi.NotFound, "Key '"+missingARN+"' does not exist")
		e.fails(op, with("no-such-form"), kmsapi.NotFound, "Invalid keyId 'no-such-form'")
		e.fails(op, with(strings.ToUpper(m.KeyId)+"x"), kmsapi.NotFound, "Invalid keyId '"+strings.ToUpper(m.KeyId)+"x'")
		e.fails(op, with(strings.Replace(m.Arn, "us-east-1", "eu-west-3", 1)), kmsapi.NotFound, "Invalid arn eu-west-3")
		e.fails(op, with(strings.Replace(m.Arn, "arn:aws:", "arn:aws-cn:", 1)), kmsapi.NotFound, "Invalid arn us-east-1")
		e.fails(op, with("arn:aws:s3:::bucket"), kmsapi.InvalidArn, "Invalid arn 'arn:aws:s3:::bucket'")
		e.fails(op, with(strings.Repeat("k", kmsapi.KeyIDMax)), kmsapi.NotFound, "Invalid keyId")
		e.fails(op, with(strings.Repeat("k", kmsapi.KeyIDMax+1)), kmsapi.Validation,
			"1 validation error detected: Value at 'keyId' failed to satisfy constraint: Member must have length less than or equal to 2048")
		e.fails(op, with(""), kmsapi.Validation,
			"1 validation error detected: Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1")
		e.fails(op, with(strings.Replace(m.Arn, e.account.String(), "999999999999", 1)), kmsapi.AccessDenied,
			"User: arn:aws:iam::"+e.account.String()+":user/administrator is not authorized to perform: kms:"+op+" on this resource because the "+
				"resource does not exist in this Region, no resource-based policies allow access, or a resource-based policy explicitly denies access")
		if op != "DescribeKey" {
			e.fails(op, with("alias/ref"), kmsapi.NotFound, "Invalid keyId 'alias/ref'")
			e.fails(op, with("alias/a:b"), kmsapi.NotFound, "Invalid keyId 'alias/a:b'")
			e.fails(op, with(alias), kmsapi.InvalidArn, "Invalid arn '"+alias+"'")
		}
		if op != "ListAliases" {
			e.fails(op, "{"+strings.TrimSuffix(members[op], ",")+"}", kmsapi.Validation,
				"1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null")
		}
	}
	if got := e.describe(m.KeyId); got.KeyState != "Enabled" {
		t.Errorf("a refused operation changed the key: %v", got)
	}
}

func TestSwitchState(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.published.take()
	for _, step := range []struct {
		op, state string
		enabled   bool
	}{{"EnableKey", "Enabled", true}, {"DisableKey", "Disabled", false}, {"DisableKey", "Disabled", false}, {"EnableKey", "Enabled", true}} {
		e.ok(step.op, obj("KeyId", m.Arn), nil)
		if got := e.describe(m.KeyId); got.KeyState != step.state || got.Enabled != step.enabled {
			t.Errorf("after %s: %v", step.op, got)
		}
		// Published each time, changed or not: an earlier call that did the change may still be publishing.
		if got := e.published.take(); got != "key "+m.KeyId+"\n" {
			t.Errorf("%s published %q", step.op, got)
		}
	}
}

func TestUpdateKeyDescription(t *testing.T) {
	e := newEnv(t)
	m := e.create(obj("Description", "first"))
	most := strings.Repeat("ß", kmsapi.DescriptionMax)
	for _, d := range []string{"", "x", most[:len(most)-2], most} {
		e.ok("UpdateKeyDescription", obj("KeyId", m.KeyId, "Description", d), nil)
		if got := e.describe(m.KeyId); got.Description != d {
			t.Errorf("description of %d bytes came back with %d", len(d), len(got.Description))
		}
	}
	e.fails("UpdateKeyDescription", obj("KeyId", m.KeyId, "Description", most+"x"), kmsapi.Validation,
		"1 validation error detected: Value at 'description' failed to satisfy constraint: Member must have length less than or equal to 8192")
	e.fails("UpdateKeyDescription", obj("Description", raw("null")), kmsapi.Validation,
		"2 validation errors detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null; "+
			"Value null at 'description' failed to satisfy constraint: Member must not be null")
}

func TestDescribeKeyGrantTokens(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	list := func(n, length int) []string {
		var tokens []string
		for range n {
			tokens = append(tokens, strings.Repeat("t", length))
		}
		return tokens
	}
	var out metadataReply
	e.ok("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", list(kmsapi.GrantTokensMax, 1)), &out)
	e.ok("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", list(1, kmsapi.GrantTokenMax)), &out)
	e.fails("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", list(kmsapi.GrantTokensMax+1, 1)), kmsapi.Validation,
		"1 validation error detected: Value at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10")
	e.fails("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", list(1, kmsapi.GrantTokenMax+1)), kmsapi.Validation,
		"1 validation error detected: Value at 'grantTokens.1.member' failed to satisfy constraint: Member must have length less than or equal to 8192")
	e.fails("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", raw(`["a",null,""]`)), kmsapi.Validation,
		"2 validation errors detected: Value null at 'grantTokens.2.member' failed to satisfy constraint: Member must not be null; "+
			"Value '' at 'grantTokens.3.member' failed to satisfy constraint: Member must have length greater than or equal to 1")
}

func TestListKeys(t *testing.T) {
	e := newEnv(t)
	made := map[string]bool{}
	for range 23 {
		made[e.create("{}").KeyId] = true
	}
	other := newEnv(t)
	other.create("{}") // another account's key is not listed
	for _, limit := range []int{1, 2, 22, 23, 24, 1000} {
		seen := map[string]bool{}
		pages, last := 0, ""
		body := obj("Limit", limit)
		for {
			var out struct {
				Keys       []struct{ KeyId, KeyArn string }
				NextMarker string
				Truncated  bool
			}
			e.ok("ListKeys", body, &out)
			pages++
			if len(out.Keys) > limit || out.Truncated != (out.NextMarker != "") || len(out.NextMarker) > kmsapi.MarkerMax {
				t.Fatalf("limit %d: %+v", limit, out)
			}
			for _, k := range out.Keys {
				if seen[k.KeyId] || k.KeyId <= last || !strings.HasSuffix(k.KeyArn, ":key/"+k.KeyId) {
					t.Fatalf("limit %d: %v after %s", limit, k, last)
				}
				seen[k.KeyId], last = true, k.KeyId
			}
			if !out.Truncated {
				break
			}
			body = obj("Limit", limit, "Marker", out.NextMarker)
		}
		if fmt.Sprint(seen) != fmt.Sprint(made) || pages != (23+limit-1)/limit {
			t.Errorf("limit %d: %d of %d keys in %d pages", limit, len(seen), len(made), pages)
		}
	}
	for _, c := range []struct {
		limit   int
		message string
	}{
		{0, "1 validation error detected: Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{-1, "1 validation error detected: Value '-1' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1"},
		{1001, "1 validation error detected: Value '1001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000"},
	} {
		e.fails("ListKeys", obj("Limit", c.limit), kmsapi.Validation, c.message)
	}
}

// The default page size, and that a list of exactly one page is not truncated.
func TestListKeysDefault(t *testing.T) {
	e := newEnv(t)
	for range kmsapi.LimitDefault {
		e.create("{}")
	}
	var out struct {
		Keys       []keyListEntry
		NextMarker string
		Truncated  bool
	}
	e.ok("ListKeys", "{}", &out)
	if len(out.Keys) != kmsapi.LimitDefault || out.Truncated {
		t.Errorf("%d keys, truncated %v", len(out.Keys), out.Truncated)
	}
	e.create("{}")
	e.ok("ListKeys", "{}", &out)
	if len(out.Keys) != kmsapi.LimitDefault || !out.Truncated {
		t.Errorf("%d keys, truncated %v", len(out.Keys), out.Truncated)
	}
}
