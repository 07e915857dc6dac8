package controlplane

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// notThere is the refusal that says nothing.
func notThere(who, action string) string {
	return "User: " + who + " is not authorized to perform: kms:" + action + " on this resource because the resource does not exist in this Region, " +
		"no resource-based policies allow access, or a resource-based policy explicitly denies access"
}

// bodies is a request for every operation of the control plane, on the key and the alias of it, whose other target is another key.
func bodies(key, other wire, alias, grantee string) map[string]string {
	id := obj("KeyId", key.Arn)
	grant := strings.Repeat("ab", 32)
	return map[string]string{
		"CancelKeyDeletion": id, "CreateAlias": aliasBody("alias/new", key.Arn), "CreateGrant": obj("KeyId", key.Arn, "GranteePrincipal", grantee, "Operations", []string{"Decrypt"}, "DryRun", true),
		"CreateKey": "{}", "DeleteAlias": obj("AliasName", alias), "DeleteImportedKeyMaterial": id,
		"GetParametersForImport": obj("KeyId", key.Arn, "WrappingAlgorithm", "RSAES_OAEP_SHA_256", "WrappingKeySpec", "RSA_2048"),
		"ImportKeyMaterial":      obj("KeyId", key.Arn, "ImportToken", "AAAA", "EncryptedKeyMaterial", "AAAA", "ExpirationModel", materialStays), "DescribeKey": id, "DisableKey": id, "DisableKeyRotation": id, "EnableKey": id, "EnableKeyRotation": id, "GetKeyRotationStatus": id, "ListKeyRotations": id, "RotateKeyOnDemand": id, "GetKeyLastUsage": id, "GetKeyPolicy": id,
		"ListAliases": "{}", "ListGrants": id, "ListKeyPolicies": id, "ListKeys": "{}", "ListResourceTags": id,
		"ListRetirableGrants": obj("RetiringPrincipal", grantee), "PutKeyPolicy": obj("KeyId", key.Arn, "Policy", `{"Statement":[]}`),
		"RevokeGrant":         obj("KeyId", key.Arn, "GrantId", grant),
		"ReplicateKey":        obj("KeyId", key.Arn, "ReplicaRegion", "eu-west-1"),
		"UpdatePrimaryRegion": obj("KeyId", key.Arn, "PrimaryRegion", "eu-west-1"),
		"ScheduleKeyDeletion": id, "TagResource": obj("KeyId", key.Arn, "Tags", tags("a", "b")), "UntagResource": obj("KeyId", key.Arn, "TagKeys", []string{"a"}),
		"UpdateAlias": aliasBody(alias, other.Arn), "UpdateKeyDescription": obj("KeyId", key.Arn, "Description", "d"),
	}
}

// Every operation asks for its own permission: a caller without it is refused with its name, and one with every permission but it is, too.
func TestEveryOperationAsks(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	e.ok("CreateAlias", aliasBody("alias/a", m.KeyId), nil)
	e.published.take()
	nothing := e.user("nothing")
	all := bodies(m, other, "alias/a", nothing.who.ARN)
	for op := range handlers {
		if _, ok := all[op]; !ok && op != "RetireGrant" && !strings.Contains(op, "CustomKeyStore") { // TestKeyStorePermissions
			t.Errorf("%s is not tried", op)
		}
	}
	for op, body := range all {
		resource := m.Arn
		switch op {
		case "CreateKey", "ListKeys", "ListAliases":
			resource = "*"
		case "ListRetirableGrants":
			resource = nothing.who.ARN
		case "CreateAlias":
			resource = e.aliasARN(e.account, "alias/new")
		case "UpdateAlias", "DeleteAlias":
			resource = e.aliasARN(e.account, "alias/a")
		}
		nothing.fails(op, body, kmsapi.AccessDenied, "User: "+nothing.who.ARN+" is not authorized to perform: kms:"+op+" on resource: "+resource+
			" because no identity-based policy allows the kms:"+op+" action")
		but := e.user("but", statement("Allow", "*", anyResource), statement("Deny", "kms:"+op, anyResource))
		but.fails(op, body, kmsapi.AccessDenied, "User: "+but.who.ARN+" is not authorized to perform: kms:"+op+" on resource: "+resource+
			" with an explicit deny in an identity-based policy")
		if op == "CreateGrant" || op == "CancelKeyDeletion" || op == "RevokeGrant" || op == "PutKeyPolicy" || op == "ReplicateKey" || op == "UpdatePrimaryRegion" {
			continue // refused for other reasons, later
		}
		only := e.user("only", statement("Allow", "kms:"+strings.ToUpper(op), anyResource))
		if strings.Contains(op, "Import") {
			only.fails(op, body, kmsapi.UnsupportedOperation, m.Arn+" origin is AWS_KMS which is not valid for this operation.")
			continue
		}
		if resp := only.call(op, body); resp.Code != kmsapi.OK {
			t.Errorf("%s with its permission alone: %s", op, resp.Body)
		}
		switch op { // undo
		case "ScheduleKeyDeletion":
			e.ok("CancelKeyDeletion", obj("KeyId", m.KeyId), &cancelKeyDeletionOut{})
			e.ok("EnableKey", obj("KeyId", m.KeyId), nil)
		case "DisableKey":
			e.ok("EnableKey", obj("KeyId", m.KeyId), nil)
		case "CreateAlias":
			e.ok("DeleteAlias", obj("AliasName", "alias/new"), nil)
		case "DeleteAlias":
			e.ok("CreateAlias", aliasBody("alias/a", m.KeyId), nil)
		case "UpdateAlias":
			e.ok("UpdateAlias", aliasBody("alias/a", m.KeyId), nil)
		}
	}
}

// Other accounts can use the operations that AWS marks so, if both sides let them, and no others; what they are refused never tells whether there
// is such a key.
func TestAcrossAccounts(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	e.ok("CreateAlias", aliasBody("alias/a", m.KeyId), nil)
	stranger := e.elsewhere()
	user := stranger.user("stranger", statement("Allow", "*", anyResource))
	abroad := map[string]bool{"CreateGrant": true, "DescribeKey": true, "GetKeyRotationStatus": true, "ListGrants": true, "RevokeGrant": true}
	gone := strings.Replace(m.Arn, m.KeyId[:8], "00000000", 1)
	try := func(state string, open bool) {
		for op, body := range bodies(m, other, "alias/a", user.who.ARN) {
			switch op {
			case "CreateKey", "ListKeys", "ListAliases", "ListRetirableGrants", "DeleteAlias", "UpdateAlias":
				continue // the caller's own
			}
			want := notThere(user.who.ARN, op)
			user.fails(op, strings.Replace(body, m.Arn, gone, 1), kmsapi.AccessDenied, want)
			if resp := user.call(op, body); open && abroad[op] {
				if resp.Code == kmsapi.AccessDenied {
					t.Errorf("%s %s: %s", state, op, resp.Body)
				}
				continue
			}
			user.fails(op, body, kmsapi.AccessDenied, want)
		}
		for _, alias := range []string{"alias/a", "alias/none"} {
			ref := e.aliasARN(e.account, alias)
			if open && alias == "alias/a" {
				user.describe(ref)
				continue
			}
			user.fails("DescribeKey", obj("KeyId", ref), kmsapi.AccessDenied, notThere(user.who.ARN, "DescribeKey"))
		}
	}
	try("closed", false)
	for _, principal := range []string{stranger.who.ARN, stranger.account.String(), user.who.ARN} {
		e.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e, `{"Effect":"Allow","Principal":{"AWS":"`+principal+`"},"Action":"kms:*","Resource":"*"}`)), nil)
		try("open to "+principal, true)
		stranger.user("nothing").fails("DescribeKey", obj("KeyId", m.Arn), kmsapi.AccessDenied, notThere("arn:aws:iam::"+stranger.account.String()+":user/nothing", "DescribeKey"))
	}
	e.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e, `{"Effect":"Deny","Principal":{"AWS":"`+user.who.ARN+`"},"Action":"kms:*","Resource":"*"}`)), nil)
	try("denied", false)
	user.fails("ListAliases", obj("KeyId", m.Arn), kmsapi.AccessDenied, notThere(user.who.ARN, "ListAliases"))
	user.fails("UpdateAlias", aliasBody("alias/mine", m.Arn), kmsapi.AccessDenied, notThere(user.who.ARN, "UpdateAlias"))
}

// The alias and each key are asked on their own.
func TestAliasPermissions(t *testing.T) {
	e := newEnv(t)
	a, b := e.create("{}"), e.create("{}")
	e.ok("CreateAlias", aliasBody("alias/x", a.KeyId), nil)
	on := func(resources ...string) string {
		list, _ := json.Marshal(resources)
		return statement("Allow", "kms:*Alias", `"Resource":`+string(list))
	}
	alias, wild := e.aliasARN(e.account, "alias/x"), e.aliasARN(e.account, "alias/*")
	for i, c := range []struct {
		op, body string
		policy   string
		denied   string // the resource; "" for none
	}{
		{"CreateAlias", aliasBody("alias/y", a.KeyId), on(a.Arn, alias), e.aliasARN(e.account, "alias/y")},
		{"CreateAlias", aliasBody("alias/y", a.KeyId), on(wild, b.Arn), a.Arn},
		{"CreateAlias", aliasBody("alias/y", a.KeyId), on(wild, a.Arn), ""},
		{"UpdateAlias", aliasBody("alias/x", b.KeyId), on(a.Arn, b.Arn), alias},
		{"UpdateAlias", aliasBody("alias/x", b.KeyId), on(alias, b.Arn), a.Arn},
		{"UpdateAlias", aliasBody("alias/x", b.KeyId), on(alias, a.Arn), b.Arn},
		{"UpdateAlias", aliasBody("alias/x", b.KeyId), on(alias, a.Arn, b.Arn), ""},
		{"DeleteAlias", obj("AliasName", "alias/x"), on(b.Arn), alias},
		{"DeleteAlias", obj("AliasName", "alias/x"), on(alias, a.Arn), b.Arn},
		{"DeleteAlias", obj("AliasName", "alias/x"), on(alias, b.Arn), ""},
		{"DeleteAlias", obj("AliasName", "alias/none"), on(wild), "none"},
	} {
		u := e.user(fmt.Sprint("u", i), c.policy)
		switch c.denied {
		case "":
			u.ok(c.op, c.body, nil)
		case "none":
			u.fails(c.op, c.body, kmsapi.NotFound, "*")
		default:
			u.fails(c.op, c.body, kmsapi.AccessDenied, "User: "+u.who.ARN+" is not authorized to perform: kms:"+c.op+" on resource: "+c.denied+
				" because no identity-based policy allows the kms:"+c.op+" action")
		}
	}
}

// CreateKey with tags needs TagResource on the keys of the account as well.
func TestCreateKeyPermissions(t *testing.T) {
	e := newEnv(t)
	create := statement("Allow", "kms:CreateKey", anyResource)
	u := e.user("u", create)
	u.create("{}")
	u.create(`{"Tags":[]}`)
	u.fails("CreateKey", obj("Tags", tags("a", "b")), kmsapi.AccessDenied, "User: "+u.who.ARN+" is not authorized to perform: kms:TagResource on resource: arn:aws:kms:us-east-1:"+
		e.account.String()+":key/* because no identity-based policy allows the kms:TagResource action")
	for _, resource := range []string{"*", "arn:aws:kms:*:" + e.account.String() + ":key/*"} {
		e.user("v", create, statement("Allow", "kms:TagResource", `"Resource":"`+resource+`"`)).create(obj("Tags", tags("a", "b")))
	}
	e.user("w", create, statement("Allow", "kms:TagResource", `"Resource":"arn:aws:kms:*:`+e.account.String()+`:alias/*"`)).
		fails("CreateKey", obj("Tags", tags("a", "b")), kmsapi.AccessDenied, "*")
}

// What conditions see of each operation: an identity policy that allows under the condition alone, a request that meets it, and one that does not.
func TestConditions(t *testing.T) {
	e := newEnv(t)
	e.registered("s3.us-east-1.amazonaws.com", "s3.amazonaws.com")
	m := e.create(obj("Tags", tags("team", "red")))
	e.ok("CreateAlias", aliasBody("alias/c", m.KeyId), nil)
	admin := "arn:aws:iam::" + e.account.String() + ":user/administrator"
	service, source := "s3.us-east-1.amazonaws.com", "arn:aws:s3:us-east-1:111122223333:bucket"
	grant := func(pairs ...any) string {
		return obj(append([]any{"KeyId", m.KeyId, "DryRun", true}, pairs...)...)
	}
	plain := []any{"GranteePrincipal", admin, "Operations", []string{"Decrypt"}}
	constrained := func(c string) string { return grant(append(plain[:len(plain):len(plain)], "Constraints", raw(c))...) }
	toService := func(retiring string) string {
		return grant("GranteeServicePrincipal", service, "Operations", []string{"Decrypt"}, retiring, map[string]string{"RetiringPrincipal": admin, "RetiringServicePrincipal": service}[retiring],
			"Constraints", raw(`{"SourceArn":"`+source+`"}`))
	}
	for i, c := range []struct {
		op, condition string
		met, unmet    string
	}{
		{"CreateKey", `"Bool":{"kms:BypassPolicyLockoutSafetyCheck":"true"}`, `{"BypassPolicyLockoutSafetyCheck":true}`, "{}"},
		{"CreateKey", `"Bool":{"kms:BypassPolicyLockoutSafetyCheck":"false"}`, "{}", `{"BypassPolicyLockoutSafetyCheck":true}`},
		{"CreateKey", `"StringEquals":{"kms:KeySpec":"SYMMETRIC_DEFAULT","kms:KeyUsage":"ENCRYPT_DECRYPT","kms:KeyOrigin":"AWS_KMS","kms:CustomerMasterKeySpec":"SYMMETRIC_DEFAULT"}`,
			"{}", `{"KeySpec":"RSA_2048"}`},
		{"CreateKey", `"StringEquals":{"kms:KeyUsage":"ENCRYPT_DECRYPT"}`, "{}", `{"KeyUsage":"SIGN_VERIFY"}`},
		{"CreateKey", `"StringEquals":{"kms:KeyOrigin":"AWS_KMS"}`, "{}", `{"Origin":"EXTERNAL"}`},
		{"CreateKey", `"Bool":{"kms:MultiRegion":"false"}`, "{}", `{"MultiRegion":true}`},
		{"CreateKey", `"Null":{"kms:CallerAccount":"true","aws:TagKeys":"true"}`, "{}", `{"Tags":[{"TagKey":"a","TagValue":"b"}]}`},
		{"CreateKey", `"StringEquals":{"aws:RequestTag/Team":"red"}`, obj("Tags", tags("Team", "red")), obj("Tags", tags("Team", "blue"))},
		{"CreateKey", `"ForAllValues:StringEquals":{"aws:TagKeys":["a","b"]}`, obj("Tags", tags("a", "", "b", "")), obj("Tags", tags("a", "", "c", ""))},
		{"TagResource", `"StringEquals":{"aws:RequestTag/a":"1"},"ForAllValues:StringEquals":{"aws:TagKeys":"a"}`, obj("KeyId", m.KeyId, "Tags", tags("a", "1")), obj("KeyId", m.KeyId, "Tags", tags("a", "1", "b", ""))},
		{"UntagResource", `"ForAnyValue:StringEquals":{"aws:TagKeys":"a"}`, obj("KeyId", m.KeyId, "TagKeys", []string{"b", "a"}), obj("KeyId", m.KeyId, "TagKeys", []string{"b"})},
		{"ScheduleKeyDeletion", `"NumericGreaterThanEquals":{"kms:ScheduleKeyDeletionPendingWindowInDays":"10"}`, obj("KeyId", m.KeyId, "PendingWindowInDays", 10), obj("KeyId", m.KeyId, "PendingWindowInDays", 9)},
		{"PutKeyPolicy", `"Bool":{"kms:BypassPolicyLockoutSafetyCheck":"false"}`, obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e)),
			obj("KeyId", m.KeyId, "Policy", keyPolicyOf(e), "BypassPolicyLockoutSafetyCheck", true)},
		{"DescribeKey", `"StringEquals":{"kms:RequestAlias":"alias/c"}`, obj("KeyId", "alias/c"), obj("KeyId", m.KeyId)},
		{"DescribeKey", `"StringEquals":{"kms:RequestAlias":"alias/c"}`, obj("KeyId", e.aliasARN(e.account, "alias/c")), obj("KeyId", m.Arn)},
		{"DescribeKey", `"ForAnyValue:StringEquals":{"kms:ResourceAliases":"alias/c"}`, obj("KeyId", m.KeyId), obj("KeyId", e.create("{}").KeyId)},
		{"DescribeKey", `"StringEquals":{"aws:ResourceTag/team":"red","kms:KeySpec":"SYMMETRIC_DEFAULT","kms:CallerAccount":"` + e.account.String() + `"}`, obj("KeyId", m.KeyId), obj("KeyId", e.create("{}").KeyId)},
		{"CreateGrant", `"ForAllValues:StringEquals":{"kms:GrantOperations":["Decrypt","DescribeKey"]}`, grant(plain...), grant("GranteePrincipal", admin, "Operations", []string{"Decrypt", "Encrypt"})},
		{"CreateGrant", `"StringEquals":{"kms:GranteePrincipal":"` + admin + `"}`, grant(plain...), grant("GranteePrincipal", "arn:aws:iam::"+e.account.String()+":root", "Operations", []string{"Decrypt"})},
		{"CreateGrant", `"StringEquals":{"kms:RetiringPrincipal":"` + admin + `"}`, grant(append(plain[:4:4], "RetiringPrincipal", admin)...), grant(plain...)},
		{"CreateGrant", `"StringEquals":{"kms:GrantConstraintType":"EncryptionContextEquals"}`, constrained(`{"EncryptionContextEquals":{"a":"b"}}`), constrained(`{"EncryptionContextSubset":{"a":"b"}}`)},
		{"CreateGrant", `"StringEquals":{"kms:GrantConstraintType":"EncryptionContextSubset"}`, constrained(`{"EncryptionContextSubset":{"a":"b"}}`), grant(plain...)},
		{"CreateGrant", `"StringEquals":{"kms:EncryptionContext:A":"b"}`, constrained(`{"EncryptionContextSubset":{"a":"b"}}`), constrained(`{"EncryptionContextSubset":{"a":"c"}}`)},
		{"CreateGrant", `"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["a","c"]},"Null":{"kms:EncryptionContextKeys":"false"}`,
			constrained(`{"EncryptionContextSubset":{"a":"b"},"EncryptionContextEquals":{"c":"d"}}`), grant(plain...)},
		{"CreateGrant", `"ArnLike":{"kms:GrantConstraintSourceArn":"arn:aws:s3:*:*:*"}`, constrained(`{"SourceArn":"` + source + `"}`), constrained(`{"SourceArn":"` + strings.Replace(source, "s3", "sqs", 1) + `"}`)},
		{"CreateGrant", `"StringEquals":{"kms:GranteeServicePrincipal":"` + service + `"}`, toService("RetiringPrincipal"), grant(plain...)},
		{"CreateGrant", `"StringEquals":{"kms:RetiringServicePrincipal":"` + service + `"}`, toService("RetiringServicePrincipal"), toService("RetiringPrincipal")},
		{"CreateGrant", `"Null":{"kms:GrantIsForAWSResource":"true"}`, grant(plain...), ""},
	} {
		u := e.user(fmt.Sprint("u", i), statement("Allow", "kms:"+c.op, anyResource, `"Condition":{`+c.condition+"}"), statement("Allow", "kms:TagResource", `"Resource":"arn:aws:kms:*:*:key/*"`))
		if c.op == "TagResource" {
			u = e.user(fmt.Sprint("u", i), statement("Allow", "kms:"+c.op, anyResource, `"Condition":{`+c.condition+"}"))
		}
		if resp := u.call(c.op, c.met); resp.Code != kmsapi.OK && resp.Code != kmsapi.DryRunOperation {
			t.Errorf("%s %s: %s", c.op, c.condition, resp.Body)
		}
		if c.op == "ScheduleKeyDeletion" {
			e.ok("CancelKeyDeletion", obj("KeyId", m.KeyId), &cancelKeyDeletionOut{})
			e.ok("EnableKey", obj("KeyId", m.KeyId), nil)
		}
		if c.unmet != "" {
			u.fails(c.op, c.unmet, kmsapi.AccessDenied, "*")
		}
	}
	// A service that calls for its user is seen, by three operations.
	forResource := statement("Allow", "kms:*Grant*", anyResource, `"Condition":{"Bool":{"kms:GrantIsForAWSResource":"true"},"StringEquals":{"kms:ViaService":"`+service+`"}}`)
	u := e.user("via", forResource)
	for op, body := range map[string]string{
		"CreateGrant": grant(plain...), "ListGrants": obj("KeyId", m.KeyId), "RevokeGrant": obj("KeyId", m.KeyId, "GrantId", strings.Repeat("0", 64)),
	} {
		u.fails(op, body, kmsapi.AccessDenied, "*")
		if resp := u.via(service).call(op, body); resp.Code == kmsapi.AccessDenied {
			t.Errorf("%s for a service: %s", op, resp.Body)
		}
	}
	if u.via(service).call("ListRetirableGrants", obj("RetiringPrincipal", admin)).Code != kmsapi.AccessDenied {
		t.Error("ListRetirableGrants is for a resource")
	}
}

// A condition on where a request comes from sees what the data plane says of it.
func TestSourceConditions(t *testing.T) {
	e := newEnv(t)
	u := e.user("u", statement("Allow", "kms:ListKeys", anyResource,
		`"Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"},"Bool":{"aws:SecureTransport":"true"},"StringEquals":{"aws:RequestedRegion":"us-east-1"}}`))
	for _, c := range []struct {
		ip     string
		secure bool
		want   kmsapi.Code
	}{
		{"10.1.2.3", true, kmsapi.OK}, {"::ffff:10.1.2.3", true, kmsapi.OK}, {"10.1.2.3", false, kmsapi.AccessDenied},
		{"11.1.2.3", true, kmsapi.AccessDenied}, {"", true, kmsapi.AccessDenied}, {"10.1", true, kmsapi.AccessDenied},
	} {
		if resp := u.Serve(t.Context(), &Request{Signed: u.sign("ListKeys", nil), SourceIP: c.ip, SecureTransport: c.secure}); resp.Code != c.want {
			t.Errorf("%+v: %s", c, resp.Body)
		}
	}
	// What a request says of its source counts if a registered service says it.
	k := e.create(obj("Policy", `{"Version":"2012-10-17","Statement":[`+
		`{"Effect":"Allow","Principal":{"AWS":"`+e.account.String()+`"},"Action":"kms:*","Resource":"*"},`+
		`{"Effect":"Allow","Principal":"*","Action":"kms:ListGrants","Resource":"*","Condition":{"StringEquals":{"aws:SourceArn":"arn:a","aws:SourceAccount":"1"}}}]}`))
	for _, c := range []struct {
		name, arn string
		from      *env
		want      kmsapi.Code
	}{
		{"service", "arn:a", e.service("store.example.com"), kmsapi.OK},
		{"service, other source", "arn:b", e.service("store.example.com"), kmsapi.AccessDenied},
		{"user", "arn:a", e.user("v"), kmsapi.AccessDenied},
		{"service for a user", "arn:a", e.user("v").via("store.us-east-1.example.com"), kmsapi.AccessDenied},
	} {
		signed := c.from.sign("ListGrants", []byte(obj("KeyId", k.KeyId)),
			sigv4.Header{Name: []byte("x-amz-source-arn"), Value: []byte(c.arn)}, sigv4.Header{Name: []byte("x-amz-source-account"), Value: []byte("1")})
		if resp := c.from.Serve(t.Context(), &Request{Signed: signed}); resp.Code != c.want {
			t.Errorf("%s: %s", c.name, resp.Body)
		}
	}
}
