package controlplane

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keyplane/keyplane/controlplane/iam"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// Every built operation has a row, and rows are for operations there are.
func TestTrailsAreTheHandlers(t *testing.T) {
	for name := range handlers {
		if _, ok := trails[name]; !ok {
			t.Errorf("%s has no row", name)
		}
	}
	for name, row := range trails {
		op := kmsapi.Route([]byte(kmsapi.TargetPrefix + name))
		if op == nil || handlers[name] == nil {
			t.Errorf("%s is no operation", name)
			continue
		}
		// AWS's examples of UpdatePrimaryRegion have none, nor have those of custom key stores, but of their creation.
		if (row.keyID || row.reply != nil) != (op.Write && name != "UpdatePrimaryRegion" && (!strings.Contains(name, "CustomKeyStore") || name == "CreateCustomKeyStore")) {
			t.Errorf("%s: responseElements are for what changes something, and for all of that", name)
		}
	}
}

// secretMembers are never shown (CloudTrail records of KMS leave them out).
var secretMembers = strings.Fields("Plaintext SharedSecret PrivateKeyPlaintext Message Mac Signature CiphertextBlob CiphertextForRecipient " +
	"EncryptedKeyMaterial ImportToken GrantToken GrantTokens KeyStorePassword XksProxyAuthenticationCredential AccessKeyId RawSecretAccessKey Recipient")

func TestNoSecretIsShown(t *testing.T) {
	var walk func(operation string, members []shown)
	walk = func(operation string, members []shown) {
		for _, m := range members {
			for _, secret := range secretMembers {
				if m.name == secret {
					t.Errorf("%s shows %s", operation, secret)
				}
			}
			walk(operation, m.members)
		}
	}
	for name, row := range trails {
		walk(name, row.request)
		walk(name, row.reply)
	}
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// record takes the one record that a call left, checks what all have in common and returns the rest as text: name, error, requestParameters,
// responseElements, additionalEventData, resources.
func (e *env) record() string {
	e.Helper()
	list := e.trail.take()
	if len(list) != 1 {
		e.Fatalf("%d records of one call", len(list))
	}
	v := list[0]
	for name, want := range map[string]any{
		"eventVersion": "1.11", "eventTime": "2026-11-23T12:00:00Z", "eventSource": "kms.amazonaws.com", "awsRegion": e.region,
		"sourceIPAddress": "127.0.0.1", "requestID": "test", "eventType": "AwsApiCall", "managementEvent": true, "eventCategory": "Management",
		"recipientAccountId": e.account.String(),
	} {
		if v[name] != want {
			e.Errorf("%s is %v, want %v", name, v[name], want)
		}
	}
	if who, _ := v["userIdentity"].(map[string]any); who["accountId"] != e.account.String() || who["accessKeyId"] != e.keyID || who["type"] != "IAMUser" {
		e.Errorf("userIdentity %v", v["userIdentity"])
	}
	if id, _ := v["eventID"].(string); !uuidForm.MatchString(id) {
		e.Errorf("eventID %v", v["eventID"])
	}
	op := kmsapi.Route([]byte(kmsapi.TargetPrefix + fmt.Sprint(v["eventName"])))
	if op == nil || v["readOnly"] != !op.Write {
		e.Errorf("%v: readOnly %v", v["eventName"], v["readOnly"])
	}
	var arns []string
	resources, _ := v["resources"].([]any)
	for _, r := range resources {
		r := r.(map[string]any)
		if r["type"] != "AWS::KMS::Key" || r["accountId"] != e.account.String() {
			e.Errorf("resource %v", r)
		}
		arns = append(arns, r["ARN"].(string))
	}
	text := fmt.Sprint(v["eventName"])
	if v["errorCode"] != nil {
		text += " " + fmt.Sprint(v["errorCode"])
	}
	for _, name := range []string{"requestParameters", "responseElements", "additionalEventData"} {
		b, err := json.Marshal(v[name], json.Deterministic(true))
		if err != nil {
			e.Fatal(err)
		}
		text += " " + string(b)
	}
	return text + " " + strings.Join(arns, " ")
}

// expect compares a record with text in which K, A and P stand for an ARN's beginning, the alias's ARN and the account.
func (e *env) expect(want string) {
	e.Helper()
	want = strings.NewReplacer("KEY:", "arn:aws:kms:us-east-1:"+e.account.String()+":key/", "ALIAS:", "arn:aws:kms:us-east-1:"+e.account.String()+":alias/",
		"ACCOUNT", e.account.String()).Replace(want)
	if got := e.record(); got != want {
		e.Errorf("\n got %s\nwant %s", got, want)
	}
}

// One record of every operation that this plane has, in each case of a success and a refusal.
func TestRecordOfEveryOperation(t *testing.T) {
	e := newEnv(t)
	seen := map[string]bool{}
	refused := map[string]bool{}
	ok := func(operation, body, want string) {
		t.Helper()
		resp := e.call(operation, body)
		if resp.Code != kmsapi.OK {
			t.Errorf("%s: %s", operation, resp.Body)
		}
		e.expect(operation + " " + want)
		seen[operation] = true
	}
	no := func(operation, body, want string) {
		t.Helper()
		if resp := e.call(operation, body); resp.Code == kmsapi.OK {
			t.Errorf("%s: no refusal", operation)
		}
		e.expect(operation + " " + want)
		refused[operation] = true
	}
	const gone = "00000000-0000-4000-8000-000000000000"
	notFound := func(operation, body, parameters string) {
		t.Helper()
		no(operation, body, "NotFoundException "+parameters+" null null KEY:"+gone)
	}
	user := "arn:aws:iam::" + e.account.String() + ":root"

	resp := e.call("CreateKey", obj("Description", "a \"key\"", "Tags", tags("a", "b"), "Unknown", "sesame"))
	var made metadataReply
	if err := json.Unmarshal(resp.Body, &made); err != nil || resp.Code != kmsapi.OK {
		t.Fatalf("%s %v", resp.Body, err)
	}
	m := made.KeyMetadata
	key := "KEY:" + m.KeyId
	e.expect(`CreateKey {"description":"a \"key\"","tags":[{"tagKey":"a","tagValue":"b"}]} {"keyMetadata":{"aWSAccountId":"ACCOUNT","arn":"` + key +
		`","creationDate":"Nov 23, 2026, 12:00:00 PM","currentKeyMaterialId":"` + m.CurrentKeyMaterialId + `","customerMasterKeySpec":"SYMMETRIC_DEFAULT",` +
		`"description":"a \"key\"","enabled":true,"encryptionAlgorithms":["SYMMETRIC_DEFAULT"],"keyId":"` + m.KeyId + `","keyManager":"CUSTOMER",` +
		`"keySpec":"SYMMETRIC_DEFAULT","keyState":"Enabled","keyUsage":"ENCRYPT_DECRYPT","multiRegion":false,"origin":"AWS_KMS"}} null ` + key)
	seen["CreateKey"] = true
	no("CreateKey", obj("KeySpec", "none"), `ValidationException {"keySpec":"none"} null null `)
	id := `{"keyId":"` + m.KeyId + `"}`
	keyID := `{"keyId":"` + key + `"}`
	goneID := `{"keyId":"` + gone + `"}`

	ok("DescribeKey", obj("KeyId", m.KeyId, "GrantTokens", []string{}), id+" null null "+key)
	notFound("DescribeKey", obj("KeyId", gone), goneID)
	for _, operation := range []string{"DisableKey", "EnableKey"} {
		ok(operation, obj("KeyId", m.KeyId), id+" "+keyID+" null "+key)
		notFound(operation, obj("KeyId", gone), goneID)
	}
	ok("UpdateKeyDescription", obj("KeyId", m.Arn, "Description", "new"), `{"description":"new","keyId":"`+key+`"} `+keyID+" null "+key)
	notFound("UpdateKeyDescription", obj("KeyId", gone, "Description", "x"), `{"description":"x","keyId":"`+gone+`"}`)
	ok("ListKeys", obj("Limit", 1000), `{"limit":1000} null null `)
	no("ListKeys", obj("Limit", 0), `ValidationException {"limit":0} null null `)

	ok("CreateAlias", obj("AliasName", "alias/a", "TargetKeyId", m.KeyId),
		`{"aliasName":"alias/a","targetKeyId":"`+m.KeyId+`"} `+keyID+" null ALIAS:a "+key)
	no("CreateAlias", obj("AliasName", "alias/b", "TargetKeyId", gone), `NotFoundException {"aliasName":"alias/b","targetKeyId":"`+gone+`"} null null ALIAS:b`)
	ok("ListAliases", obj("KeyId", m.KeyId), id+" null null "+key)
	ok("ListAliases", "{}", "null null null ")
	notFound("ListAliases", obj("KeyId", gone), goneID)
	other := e.create("{}")
	e.trail.take()
	ok("UpdateAlias", obj("AliasName", "alias/a", "TargetKeyId", other.KeyId),
		`{"aliasName":"alias/a","targetKeyId":"`+other.KeyId+`"} {"keyId":"KEY:`+other.KeyId+`"} null ALIAS:a `+key+" KEY:"+other.KeyId)
	no("UpdateAlias", obj("AliasName", "alias/b", "TargetKeyId", m.KeyId), `NotFoundException {"aliasName":"alias/b","targetKeyId":"`+m.KeyId+`"} null null ALIAS:b`)
	ok("DeleteAlias", obj("AliasName", "alias/a"), `{"aliasName":"alias/a"} {"keyId":"KEY:`+other.KeyId+`"} null ALIAS:a KEY:`+other.KeyId)
	no("DeleteAlias", obj("AliasName", "alias/a"), `NotFoundException {"aliasName":"alias/a"} null null ALIAS:a`)

	ok("TagResource", obj("KeyId", m.KeyId, "Tags", tags("c", "d")), `{"keyId":"`+m.KeyId+`","tags":[{"tagKey":"c","tagValue":"d"}]} `+keyID+" null "+key)
	notFound("TagResource", obj("KeyId", gone, "Tags", tags("c", "d")), `{"keyId":"`+gone+`","tags":[{"tagKey":"c","tagValue":"d"}]}`)
	ok("UntagResource", obj("KeyId", m.KeyId, "TagKeys", []string{"c"}), `{"keyId":"`+m.KeyId+`","tagKeys":["c"]} `+keyID+" null "+key)
	notFound("UntagResource", obj("KeyId", gone, "TagKeys", []string{"c"}), `{"keyId":"`+gone+`","tagKeys":["c"]}`)
	ok("ListResourceTags", obj("KeyId", m.KeyId), id+" null null "+key)
	notFound("ListResourceTags", obj("KeyId", gone), goneID)

	ok("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", "default"), `{"keyId":"`+m.KeyId+`","policyName":"default"} null null `+key)
	notFound("GetKeyPolicy", obj("KeyId", gone), goneID)
	ok("GetKeyLastUsage", obj("KeyId", m.KeyId), id+" null null "+key)
	notFound("GetKeyLastUsage", obj("KeyId", gone), goneID)
	ok("ListKeyPolicies", obj("KeyId", m.KeyId), id+" null null "+key)
	notFound("ListKeyPolicies", obj("KeyId", gone), goneID)
	document := defaultPolicy(e.partition, e.account)
	quoted, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", document, "BypassPolicyLockoutSafetyCheck", true),
		`{"bypassPolicyLockoutSafetyCheck":true,"keyId":"`+m.KeyId+`","policy":`+string(quoted)+`} `+keyID+" null "+key)
	notFound("PutKeyPolicy", obj("KeyId", gone, "Policy", document), `{"keyId":"`+gone+`","policy":`+string(quoted)+`}`)

	var grant struct{ GrantToken, GrantId string }
	created := obj("KeyId", m.KeyId, "GranteePrincipal", user, "Operations", []string{"Decrypt"}, "Name", "n",
		"Constraints", raw(`{"EncryptionContextSubset":{"a":"b"}}`))
	resp = e.call("CreateGrant", created)
	if err := json.Unmarshal(resp.Body, &grant); err != nil || resp.Code != kmsapi.OK {
		t.Fatalf("%s %v", resp.Body, err)
	}
	if lines := strings.Join(e.trail.lines, ""); strings.Contains(lines, grant.GrantToken) {
		t.Errorf("a grant token is shown: %s", lines)
	}
	parameters := `{"constraints":{"encryptionContextSubset":{"a":"b"}},"granteePrincipal":"` + user + `","keyId":"` + m.KeyId + `","name":"n","operations":["Decrypt"]}`
	e.expect("CreateGrant " + parameters + ` {"grantId":"` + grant.GrantId + `","keyId":"` + key + `"} null ` + key)
	seen["CreateGrant"] = true
	notFound("CreateGrant", strings.ReplaceAll(created, m.KeyId, gone), strings.ReplaceAll(parameters, m.KeyId, gone))
	ok("ListGrants", obj("KeyId", m.KeyId), id+" null null "+key)
	notFound("ListGrants", obj("KeyId", gone), goneID)
	ok("ListRetirableGrants", obj("RetiringPrincipal", user), `{"retiringPrincipal":"`+user+`"} null null `)
	no("ListRetirableGrants", "{", "SerializationException null null null ")
	no("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", grant.GrantId, "DryRun", true),
		`DryRunOperationException {"dryRun":true,"grantId":"`+grant.GrantId+`","keyId":"`+m.KeyId+`"} null null `+key)
	ok("RevokeGrant", obj("KeyId", m.KeyId, "GrantId", grant.GrantId), `{"grantId":"`+grant.GrantId+`","keyId":"`+m.KeyId+`"} `+keyID+" null "+key)
	e.ok("CreateGrant", created, &grant)
	e.trail.take()
	ok("RetireGrant", obj("GrantToken", grant.GrantToken), `null `+keyID+` {"grantId":"`+grant.GrantId+`"} `+key)
	no("RetireGrant", obj("GrantToken", grant.GrantToken), `NotFoundException null null {"grantId":"`+grant.GrantId+`"} `+key)

	ok("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 90), `{"keyId":"`+m.KeyId+`","rotationPeriodInDays":90} `+keyID+" null "+key)
	no("EnableKeyRotation", obj("KeyId", m.KeyId, "RotationPeriodInDays", 1), `ValidationException {"keyId":"`+m.KeyId+`","rotationPeriodInDays":1} null null `)
	for _, operation := range []string{"GetKeyRotationStatus", "ListKeyRotations"} {
		ok(operation, obj("KeyId", m.KeyId), id+" null null "+key)
		notFound(operation, obj("KeyId", gone), goneID)
	}
	for _, operation := range []string{"DisableKeyRotation", "RotateKeyOnDemand"} {
		ok(operation, obj("KeyId", m.KeyId), id+" "+keyID+" null "+key)
		notFound(operation, obj("KeyId", gone), goneID)
	}

	ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), `{"keyId":"`+m.KeyId+`","pendingWindowInDays":7} {"deletionDate":`+
		`"Nov 30, 2026, 12:00:00 PM","keyId":"`+key+`","keyState":"PendingDeletion","pendingWindowInDays":7} null `+key)
	no("ScheduleKeyDeletion", obj("KeyId", m.KeyId), "KMSInvalidStateException "+id+" null null "+key)
	ok("CancelKeyDeletion", obj("KeyId", m.KeyId), id+" "+keyID+" null "+key)
	no("CancelKeyDeletion", obj("KeyId", m.KeyId), "KMSInvalidStateException "+id+" null null "+key)

	for operation, member := range map[string]string{"ReplicateKey": "replicaRegion", "UpdatePrimaryRegion": "primaryRegion"} {
		shown := `{"keyId":"` + gone + `","` + member + `":"eu-west-1"}`
		notFound(operation, obj("KeyId", gone, strings.ToUpper(member[:1])+member[1:], "eu-west-1"), shown)
		seen[operation] = true // TestReplicateKey, TestReplicationFaults
	}
	imported := e.external("{}")
	ext := "KEY:" + imported.KeyId
	extID, extKeyID := `{"keyId":"`+imported.KeyId+`"`, `{"keyId":"`+ext+`"`
	e.trail.take()
	wrapping := `,"wrappingAlgorithm":"RSAES_OAEP_SHA_256","wrappingKeySpec":"RSA_2048"}`
	ok("GetParametersForImport", e.parametersBody(imported.KeyId), extID+wrapping+" null null "+ext)
	notFound("GetParametersForImport", e.parametersBody(gone), `{"keyId":"`+gone+`"`+wrapping)
	token := e.token(imported.KeyId)
	e.trail.take()
	validity := `{"expirationModel":"KEY_MATERIAL_EXPIRES","importType":"NEW_KEY_MATERIAL","keyId":"` + imported.KeyId + `","keyMaterialDescription":"d","validTo":"Nov 23, 2026, 12:01:40 PM"} `
	with := []any{"ExpirationModel", materialExpires, "ImportType", newMaterial, "ValidTo", 1795435300, "KeyMaterialDescription", "d"}
	no("ImportKeyMaterial", importing64(imported.KeyId, token, "bad", with...), "InvalidCiphertextException "+validity+"null null "+ext)
	resp = e.call("ImportKeyMaterial", importing64(imported.KeyId, token, "one", with...))
	var done importReply
	if err := json.Unmarshal(resp.Body, &done); err != nil || resp.Code != kmsapi.OK {
		t.Fatalf("%s %v", resp.Body, err)
	}
	material := `,"keyMaterialId":"` + done.KeyMaterialId + `"}`
	e.expect("ImportKeyMaterial " + validity + extKeyID + material + " null " + ext)
	seen["ImportKeyMaterial"] = true
	ok("DeleteImportedKeyMaterial", obj("KeyId", imported.KeyId, "KeyMaterialId", done.KeyMaterialId), extID+material+" "+extKeyID+material+" null "+ext)
	notFound("DeleteImportedKeyMaterial", obj("KeyId", gone), goneID)

	resp = e.call("CreateCustomKeyStore", clusterBody("CustomKeyStoreName", "first", "CloudHsmClusterId", "cluster-abcdefghijk"))
	var ks createCustomKeyStoreOut
	if err := json.Unmarshal(resp.Body, &ks); err != nil || resp.Code != kmsapi.OK {
		t.Fatalf("%s %v", resp.Body, err)
	}
	storeID, of := `{"customKeyStoreId":"`+ks.CustomKeyStoreId+`"}`, `{"clusterId":"cluster-abcdefghijk","customKeyStoreName":"first"}`
	e.expect(`CreateCustomKeyStore {"clusterId":"cluster-abcdefghijk","customKeyStoreName":"first"} ` + storeID + " null ")
	seen["CreateCustomKeyStore"] = true
	no("CreateCustomKeyStore", proxyBody("CustomKeyStoreName", "first", "XksProxyUriEndpoint", "https://p.example"), `CustomKeyStoreNameInUseException {"customKeyStoreName":"first",`+
		`"customKeyStoreType":"EXTERNAL_KEY_STORE","xksProxyConnectivity":"PUBLIC_ENDPOINT","xksProxyUriEndpoint":"https://p.example","xksProxyUriPath":"/kms/xks/v1"} null null `)
	goneStore := obj("CustomKeyStoreId", "cks-00000000000000000")
	goneStoreID := `CustomKeyStoreNotFoundException {"customKeyStoreId":"cks-00000000000000000"} null null `
	ok("ConnectCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId), storeID+" null "+of+" ")
	e.turns()
	ok("UpdateCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId, "NewCustomKeyStoreName", "second"), `{"customKeyStoreId":"`+ks.CustomKeyStoreId+`","newCustomKeyStoreName":"second"} null `+of+" ")
	of = strings.Replace(of, "first", "second", 1)
	no("DeleteCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId), "CustomKeyStoreInvalidStateException "+storeID+" null "+of+" ")
	no("UpdateCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId, "KeyStorePassword", "kmsPassword2"), "CustomKeyStoreInvalidStateException "+storeID+" null "+of+" ")
	no("ConnectCustomKeyStore", goneStore, goneStoreID)
	no("DisconnectCustomKeyStore", goneStore, goneStoreID)
	no("DescribeCustomKeyStores", goneStore, goneStoreID)
	ok("DescribeCustomKeyStores", "{}", "null null null ")
	ok("DisconnectCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId), storeID+" null "+of+" ")
	ok("DeleteCustomKeyStore", obj("CustomKeyStoreId", ks.CustomKeyStoreId), storeID+" null "+of+" ")

	for name := range handlers {
		if !seen[name] || !refused[name] {
			t.Errorf("%s: success recorded %v, refusal recorded %v", name, seen[name], refused[name])
		}
	}
}

// Members of a wrong form, secrets and what the model does not have are left out; the rest stays.
func TestShownForms(t *testing.T) {
	for body, want := range map[string]string{
		`{"KeyId":{"a":1},"Operations":"x","Constraints":[],"Name":["x"]}`:                                     "{",
		`{"KeyId":null,"Operations":["a",null,{},7],"GrantTokens":["t"],"GranteePrincipal":true}`:              `{"granteePrincipal":true,"operations":["a",7]`,
		`{"Constraints":{"EncryptionContextEquals":{"k":"v","a":""},"EncryptionContextSubset":{"k":1},"x":1}}`: `{"constraints":{"encryptionContextEquals":{"a":"","k":"v"}}`,
		`[]`: "{", `{"Name":"a","Name":"b"}`: "{", ``: "{", "{\"Name\":\"\xff\"}": "{",
	} {
		if got := string(appendShown([]byte("{"), []byte(body), trails["CreateGrant"].request)); got != want {
			t.Errorf("%s:\n got %s\nwant %s", body, got, want)
		}
	}
}

var errSink = errors.New("disk full")

// Without a record there is no success, whatever the operation did, and no part of its reply gets out.
func TestFailingSink(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.trail.refuse(errSink)
	for operation, body := range map[string]string{
		"CreateKey": "{}", "DescribeKey": obj("KeyId", m.KeyId), "ListKeys": "{}", "DisableKey": obj("KeyId", m.KeyId), "DropKey": "{}", "EnableKey": "{",
	} {
		e.fails(operation, body, kmsapi.KMSInternal, kmsapi.KMSInternal.Text())
	}
	unsigned := e.sign("ListKeys", nil)
	unsigned.Headers = unsigned.Headers[:len(unsigned.Headers)-1]
	if resp := e.Serve(t.Context(), &Request{Signed: unsigned}); resp.Code != kmsapi.KMSInternal {
		t.Errorf("a stranger: %s", resp.Body)
	}
	if n := e.Unrecorded(); n != 7 {
		t.Errorf("%d unrecorded, want 7", n)
	}
	e.trail.refuse(nil)
	if got := e.describe(m.KeyId); got.KeyState != "Disabled" { // what the call changed stays
		t.Errorf("the key is %s", got.KeyState)
	}
}

// A key is destroyed after the record of it: without one it stays, and the next turn tries again.
func TestDeletionIsRecordedFirst(t *testing.T) {
	e := newEnvIn(t, shared, "eu-audit-1")
	m := e.create("{}")
	e.ok("ScheduleKeyDeletion", obj("KeyId", m.KeyId, "PendingWindowInDays", 7), new(map[string]any))
	e.work()
	e.clock.add(8 * 24 * time.Hour)
	e.trail.take()
	e.trail.refuse(errSink)
	if err := e.deleteDue(t.Context()); !errors.Is(err, errSink) {
		t.Fatalf("deleting without a record: %v", err)
	}
	e.trail.refuse(nil)
	if got := e.describe(m.KeyId); got.KeyState != "PendingDeletion" {
		t.Fatalf("the key is %s", got.KeyState)
	}
	e.trail.take()
	if err := e.deleteDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.NotFound, "*")
	list := e.trail.take()
	if len(list) != 2 {
		t.Fatalf("%d records", len(list))
	}
	id, _ := list[0]["eventID"].(string)
	if want := map[string]any{
		"eventVersion": "1.11", "userIdentity": map[string]any{"accountId": e.account.String(), "invokedBy": "AWS Internal"},
		"eventTime": "2026-12-01T12:00:00Z", "eventSource": "kms.amazonaws.com", "eventName": "DeleteKey", "awsRegion": "eu-audit-1",
		"sourceIPAddress": "AWS Internal", "userAgent": "AWS Internal", "requestParameters": nil, "responseElements": nil, "eventID": id,
		"readOnly": false, "resources": []any{map[string]any{"accountId": e.account.String(), "type": "AWS::KMS::Key", "ARN": m.Arn}},
		"eventType": "AwsServiceEvent", "managementEvent": true, "recipientAccountId": e.account.String(), "eventCategory": "Management",
	}; !reflect.DeepEqual(list[0], want) || !uuidForm.MatchString(id) {
		t.Errorf("\n got %v\nwant %v", list[0], want)
	}
}

// Requests that nobody is known to have sent are recorded up to a rate; the next record says how many were not.
func TestStrangersCannotFillTheLog(t *testing.T) {
	e := newEnv(t)
	unsigned := e.sign("DisableKey", []byte(obj("KeyId", "sesame")))
	send := func() map[string]any {
		t.Helper()
		if resp := e.Serve(context.Background(), &Request{Signed: unsigned, RequestID: "test"}); resp.Code != kmsapi.InvalidSignature {
			t.Fatal(resp.Code)
		}
		if list := e.trail.take(); len(list) > 0 {
			return list[0]
		}
		return nil
	}
	for i := range unsigned.Headers {
		if string(unsigned.Headers[i].Name) == "x-amz-target" {
			unsigned.Headers[i].Value = []byte(kmsapi.TargetPrefix + "EnableKey")
		}
	}
	v := send()
	if want := map[string]any{"type": "Unknown", "accessKeyId": e.keyID}; !reflect.DeepEqual(v["userIdentity"], want) || v["eventName"] != "EnableKey" ||
		v["errorCode"] != "InvalidSignatureException" || v["requestParameters"] != nil || v["recipientAccountId"] != "000000000000" {
		t.Errorf("%v", v)
	}
	recorded := 1
	for range 499 {
		if send() != nil {
			recorded++
		}
	}
	if recorded != strangers.Burst {
		t.Errorf("%d records, want %d", recorded, strangers.Burst)
	}
	e.clock.add(time.Second)
	v = send()
	if want := map[string]any{"notRecorded": float64(500 - recorded)}; v == nil || !reflect.DeepEqual(v["additionalEventData"], want) {
		t.Errorf("%v, want %v", v["additionalEventData"], want)
	}
	e.ok("ListKeys", "{}", new(map[string]any)) // whose name is known is recorded always
	if len(e.trail.take()) != 1 {
		t.Error("a signed call has no record")
	}
}

// Requests to IAM and STS leave their records here too; without one the credentials that were made do not get out.
func TestIAMIsRecorded(t *testing.T) {
	e := newEnv(t)
	query, err := iam.NewServer(iam.ServerConfig{Table: e.creds, First: e.account, Regions: []string{e.region}, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	e.iam = query
	if e.verifier, err = sigv4.New(sigv4.Config{Regions: []string{e.region}, Keys: e.creds, Others: []sigv4.Service{{Name: "iam", Regions: []string{"us-east-1"}}}}); err != nil {
		t.Fatal(err)
	}
	secure := false
	send := func(body string) Response {
		t.Helper()
		r := &sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Body: []byte(body), Headers: []sigv4.Header{
			{Name: []byte("content-type"), Value: []byte("application/x-www-form-urlencoded")}, {Name: []byte("host"), Value: []byte("localhost")},
			{Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, e.clock.now())},
		}}
		key, err := sigv4.NewAccessKey(e.keyID, []byte(e.secret), sigv4.Principal{})
		if err != nil {
			t.Fatal(err)
		}
		var scratch sigv4.Scratch
		authorization, err := sigv4.AppendAuthorization(nil, key, "us-east-1", "iam", r, &scratch)
		if err != nil {
			t.Fatal(err)
		}
		r.Headers = append(r.Headers, sigv4.Header{Name: []byte("authorization"), Value: authorization})
		return e.Serve(t.Context(), &Request{Signed: r, RequestID: "test", SourceIP: "127.0.0.1", SecureTransport: secure})
	}
	const create = "Action=CreateUser&Version=2010-05-08&UserName=u"
	if resp := send(create); resp.Status != 200 {
		t.Fatalf("%s", resp.Body)
	}
	if list := e.trail.take(); len(list) != 1 || list[0]["eventSource"] != "iam.amazonaws.com" || list[0]["eventName"] != "CreateUser" ||
		list[0]["errorCode"] != nil || list[0]["awsRegion"] != "us-east-1" || list[0]["recipientAccountId"] != e.account.String() || list[0]["resources"] != nil {
		t.Errorf("%v", list)
	}
	if resp := send(create); resp.Status != 409 {
		t.Fatalf("%s", resp.Body)
	}
	if list := e.trail.take(); len(list) != 1 || list[0]["errorCode"] != "EntityAlreadyExists" || list[0]["responseElements"] != nil {
		t.Errorf("%v", list)
	}
	// What is refused before IAM sees it is recorded under the name of what was tried; what names no operation is Unknown, and never the client's text.
	secret := e.secret
	e.secret = strings.Repeat("x", len(secret))
	for _, c := range []struct {
		body, name string
		readOnly   bool
	}{
		{create, "CreateUser", false},
		{"Action=ListUsers&Version=2010-05-08", "ListUsers", true},
		{"Action=Sesame&Version=2010-05-08", cloudtrail.UnknownEvent, true},
		{"Action=CreateUser&Action=ListUsers", cloudtrail.UnknownEvent, true},
		{"%", cloudtrail.UnknownEvent, true},
		{"", cloudtrail.UnknownEvent, true},
	} {
		if resp := send(c.body); resp.Status == 200 {
			t.Errorf("%q with a wrong signature: %d", c.body, resp.Status)
		}
		if list := e.trail.take(); len(list) != 1 || list[0]["eventSource"] != "iam.amazonaws.com" || list[0]["eventName"] != c.name || list[0]["readOnly"] != c.readOnly ||
			list[0]["requestParameters"] != nil || list[0]["errorCode"] == nil {
			t.Errorf("%q with a wrong signature: %v, want %s", c.body, list, c.name)
		}
	}
	e.secret = secret
	e.iam = secureIAM{}
	for _, secure = range []bool{true, false} {
		if resp := send(create); string(resp.Body) != fmt.Sprint(secure) {
			t.Errorf("%s is told of a request whose transport is secure: %t", resp.Body, secure)
		}
	}
	e.iam = query
	e.trail.refuse(errSink)
	resp := send("Action=CreateAccessKey&Version=2010-05-08&UserName=u")
	if text := string(resp.Body); resp.Status != 500 || !strings.Contains(text, "<Code>InternalFailure</Code>") || strings.Contains(text, "SecretAccessKey") {
		t.Errorf("%d %s", resp.Status, text)
	}
}

// secureIAM answers whether a request came over TLS.
type secureIAM struct{}

func (secureIAM) Serve(_ context.Context, _ sigv4.Identity, _ string, _ []byte, _, _ string, secure bool, _ []byte, _ time.Time, _ *cloudtrail.Record) (int, []byte) {
	return 200, fmt.Append(nil, secure)
}

func (secureIAM) Event(string, []byte) (string, bool) { return "", false }

// A caller of another account: one record, in the caller's account, with what it asked for; the refusal says no more than the client heard.
func TestCrossAccountRecord(t *testing.T) {
	e, other := newEnv(t), newEnv(t)
	m := e.create("{}")
	other.fails("DescribeKey", obj("KeyId", m.Arn), kmsapi.AccessDenied, "*")
	list := other.trail.take()
	if len(list) != 1 || list[0]["recipientAccountId"] != other.account.String() || list[0]["errorCode"] != "AccessDeniedException" {
		t.Fatalf("%v", list)
	}
	if want := []any{map[string]any{"accountId": e.account.String(), "type": "AWS::KMS::Key", "ARN": m.Arn}}; !reflect.DeepEqual(list[0]["resources"], want) {
		t.Errorf("resources %v, want %v", list[0]["resources"], want)
	}
}
