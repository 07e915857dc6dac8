package dataplane

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/keyspec"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// Every call of this plane leaves one record in CloudTrail's shape: what the client asked for, without what is secret of it, whom and which keys it
// was about, and how it ended.
func TestRecords(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.addKey("k1", kmsapi.StateEnabled, 2)
	w.addKey("k2", kmsapi.StateEnabled, 1)
	w.addKey("off", kmsapi.StateDisabled, 1)
	w.addPrivateKey("sign", kmsapi.StateEnabled, keyspec.P256, keyspec.SignVerify)
	w.addPrivateKey("mac", kmsapi.StateEnabled, keyspec.HMAC256, keyspec.GenerateVerifyMAC)
	w.addPrivateKey("agree", kmsapi.StateEnabled, keyspec.P256, keyspec.KeyAgreement)
	w.addPrivateKey("kem", kmsapi.StateEnabled, keyspec.MLKEM768, keyspec.EncapsulateDecapsulate)
	w.addPrivateKey("rsa", kmsapi.StateEnabled, keyspec.RSA2048, keyspec.EncryptDecrypt)
	w.addKey("foreign", kmsapi.StateEnabled, 1)
	w.records.aliases["alias/a"] = keyID("k1")
	k1, k2 := keyID("k1").String(), keyID("k2").String()
	const secret = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA=="
	old := base64.StdEncoding.EncodeToString(w.blob("k1", 1, map[string]string{"tenant": "t-1"}, []byte("old")))
	material := func(key string, version int) string {
		m := w.records.keys[keyID(key)].Versions[version-1].MaterialID
		return string(m[:])
	}
	resource := func(key string) map[string]any {
		return map[string]any{"accountId": ours.String(), "type": "AWS::KMS::Key", "ARN": keyARN(key)}
	}
	type object = map[string]any
	token := strings.Repeat("g", 100)
	for _, c := range []struct {
		name, op, body string
		code           string
		parameters     object
		additional     object
		resources      []any
	}{
		{"encrypt", "Encrypt", `{"KeyId":"alias/a","Plaintext":"` + secret + `","EncryptionContext":{"b":"2","a":"1\""}}`, "",
			object{"keyId": "alias/a", "encryptionAlgorithm": "SYMMETRIC_DEFAULT", "encryptionContext": object{"a": `1"`, "b": "2"}},
			object{"keyMaterialId": material("k1", 2)}, []any{resource("k1")}},
		{"decrypt under an old version", "Decrypt", `{"CiphertextBlob":"` + old + `","EncryptionContext":{"tenant":"t-1"}}`, "",
			object{"keyId": keyARN("k1"), "encryptionAlgorithm": "SYMMETRIC_DEFAULT", "encryptionContext": object{"tenant": "t-1"}},
			object{"keyMaterialId": material("k1", 1)}, []any{resource("k1")}},
		{"data key", "GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256"}`, "", object{"keyId": k1, "keySpec": "AES_256"},
			object{"keyMaterialId": material("k1", 2)}, []any{resource("k1")}},
		{"data key without plaintext", "GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + keyARN("k1") + `","NumberOfBytes":17}`, "",
			object{"keyId": keyARN("k1"), "numberOfBytes": 17.0}, object{"keyMaterialId": material("k1", 2)}, []any{resource("k1")}},
		{"re-encrypt", "ReEncrypt", `{"CiphertextBlob":"` + old + `","SourceEncryptionContext":{"tenant":"t-1"},"DestinationKeyId":"` + k2 + `","DestinationEncryptionContext":{"x":"y"}}`, "",
			object{"sourceKeyId": keyARN("k1"), "destinationKeyId": k2, "sourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT", "destinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
				"sourceEncryptionContext": object{"tenant": "t-1"}, "destinationEncryptionContext": object{"x": "y"}},
			object{"sourceKeyMaterialId": material("k1", 1), "destinationKeyMaterialId": material("k2", 1)}, []any{resource("k1"), resource("k2")}},
		{"random", "GenerateRandom", `{"NumberOfBytes":32}`, "", object{"numberOfBytes": 32.0}, nil, []any{}},
		{"dry run", "GenerateDataKey", `{"KeyId":"` + k1 + `","KeySpec":"AES_256","DryRun":true}`, "DryRunOperationException",
			object{"keyId": k1, "keySpec": "AES_256", "dryRun": true}, nil, []any{resource("k1")}},
		{"disabled", "GenerateDataKey", `{"KeyId":"` + keyID("off").String() + `","KeySpec":"AES_256"}`, "DisabledException",
			object{"keyId": keyID("off").String(), "keySpec": "AES_256"}, nil, []any{resource("off")}},
		{"unknown key", "Encrypt", `{"KeyId":"alias/none","Plaintext":"` + secret + `"}`, "NotFoundException",
			object{"keyId": "alias/none", "encryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil, []any{}},
		{"another account's", "Encrypt", `{"KeyId":"` + keyARN("foreign") + `","Plaintext":"` + secret + `"}`, "AccessDeniedException",
			object{"keyId": keyARN("foreign"), "encryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil, []any{}},
		{"invalid", "Encrypt", `{"KeyId":"` + k1 + `","GrantTokens":["` + token + `"]}`, "ValidationException",
			object{"keyId": k1, "encryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil, []any{}},
		{"no JSON", "Encrypt", `{"KeyId":"` + k1 + `"`, "SerializationException", nil, nil, []any{}},
		{"wrong context", "Decrypt", `{"KeyId":"` + k1 + `","CiphertextBlob":"` + old + `"}`, "InvalidCiphertextException",
			object{"keyId": k1, "encryptionAlgorithm": "SYMMETRIC_DEFAULT"}, nil, []any{resource("k1")}},
		{"sign", "Sign", `{"KeyId":"` + keyID("sign").String() + `","Message":"` + secret + `","SigningAlgorithm":"ECDSA_SHA_256"}`, "",
			object{"keyId": keyID("sign").String(), "messageType": "RAW", "signingAlgorithm": "ECDSA_SHA_256"}, nil, []any{resource("sign")}},
		{"verify", "Verify", `{"KeyId":"` + keyID("sign").String() + `","Message":"` + secret + `","MessageType":"RAW","SigningAlgorithm":"ECDSA_SHA_256","Signature":"` + secret + `"}`,
			"KMSInvalidSignatureException", object{"keyId": keyID("sign").String(), "messageType": "RAW", "signingAlgorithm": "ECDSA_SHA_256"}, nil, []any{resource("sign")}},
		{"mac", "GenerateMac", `{"KeyId":"` + keyARN("mac") + `","Message":"` + secret + `","MacAlgorithm":"HMAC_SHA_256"}`, "",
			object{"keyId": keyARN("mac"), "macAlgorithm": "HMAC_SHA_256"}, nil, []any{resource("mac")}},
		{"verify a mac", "VerifyMac", `{"KeyId":"` + keyARN("mac") + `","Message":"` + secret + `","Mac":"` + secret + `","MacAlgorithm":"HMAC_SHA_256"}`, "KMSInvalidMacException",
			object{"keyId": keyARN("mac"), "macAlgorithm": "HMAC_SHA_256"}, nil, []any{resource("mac")}},
		{"agree", "DeriveSharedSecret", `{"KeyId":"` + keyARN("agree") + `","KeyAgreementAlgorithm":"ECDH","PublicKey":"` + secret + `"}`, "ValidationException",
			object{"keyId": keyARN("agree"), "keyAgreementAlgorithm": "ECDH"}, nil, []any{resource("agree")}},
		{"encapsulate", "Encapsulate", `{"KeyId":"` + keyARN("kem") + `","EncapsulationAlgorithm":"ML_KEM"}`, "",
			object{"keyId": keyARN("kem"), "encapsulationAlgorithm": "ML_KEM"}, nil, []any{resource("kem")}},
		{"public key", "GetPublicKey", `{"KeyId":"` + keyARN("kem") + `"}`, "", object{"keyId": keyARN("kem")}, nil, []any{resource("kem")}},
		{"RSA", "Encrypt", `{"KeyId":"` + keyARN("rsa") + `","Plaintext":"` + secret + `","EncryptionAlgorithm":"RSAES_OAEP_SHA_256"}`, "",
			object{"keyId": keyARN("rsa"), "encryptionAlgorithm": "RSAES_OAEP_SHA_256"}, nil, []any{resource("rsa")}},
		{"re-encrypt to RSA", "ReEncrypt", `{"CiphertextBlob":"` + old + `","SourceEncryptionContext":{"tenant":"t-1"},"DestinationKeyId":"` + keyARN("rsa") + `","DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_1"}`, "",
			object{"sourceKeyId": keyARN("k1"), "destinationKeyId": keyARN("rsa"), "sourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT", "destinationEncryptionAlgorithm": "RSAES_OAEP_SHA_1",
				"sourceEncryptionContext": object{"tenant": "t-1"}}, object{"sourceKeyMaterialId": material("k1", 1)}, []any{resource("k1"), resource("rsa")}},
		{"key pair", "GenerateDataKeyPair", `{"KeyId":"` + k1 + `","KeyPairSpec":"ECC_NIST_P256","EncryptionContext":{"a":"b"}}`, "",
			object{"keyId": k1, "keyPairSpec": "ECC_NIST_P256", "encryptionContext": object{"a": "b"}}, object{"keyMaterialId": material("k1", 2)}, []any{resource("k1")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.audit.taken()
			r := w.do(w.sign(signature{}, kmsapi.TargetPrefix+c.op, []byte(c.body), "user-agent: tests/1"))
			lines := w.audit.taken()
			if r.exception() != c.code || len(lines) != 1 {
				t.Fatalf("%s, %d records: %s", r.body, len(lines), lines)
			}
			for _, s := range []string{secret, token, old, "CiphertextBlob", "laintext\":"} {
				if strings.Contains(lines[0], s) {
					t.Errorf("the record has %s: %s", s, lines[0])
				}
			}
			var got object
			if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
				t.Fatal(err, lines[0])
			}
			code, _ := got["errorCode"].(string)
			want := object{
				"eventName": c.op, "eventSource": "kms.amazonaws.com", "awsRegion": testRegion, "requestID": r.header.Get("x-amzn-RequestId"), "userAgent": "tests/1",
				"readOnly": true, "recipientAccountId": ours.String(), "responseElements": nil, "eventType": "AwsApiCall",
				"requestParameters": nullable(c.parameters), "additionalEventData": nullable(c.additional), "resources": c.resources,
			}
			for name, want := range want {
				if !reflect.DeepEqual(got[name], want) {
					t.Errorf("%s: %v, want %v", name, got[name], want)
				}
			}
			if message, _ := got["errorMessage"].(string); code != c.code || code != "" && !bytes.Contains(r.body, []byte(strings.ReplaceAll(message, `"`, `\"`))) {
				t.Errorf("%s %q, the client got %s", code, message, r.body)
			}
			identity, _ := got["userIdentity"].(object)
			if identity["type"] != "IAMUser" || identity["arn"] != userARN(ours, "administrator") || identity["accessKeyId"] != adminKey {
				t.Errorf("userIdentity: %v", identity)
			}
		})
	}
}

func nullable(o map[string]any) any {
	if o == nil {
		return nil
	}
	return o
}

// A call that cannot be recorded fails, whatever came of it, and nothing of its result leaves.
func TestNoReplyWithoutRecord(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	blob := base64.StdEncoding.EncodeToString(w.blob("k1", 1, nil, []byte("a plaintext that stays here")))
	calls := [][2]string{
		{"Decrypt", `{"CiphertextBlob":"` + blob + `"}`}, {"GenerateDataKey", `{"KeyId":"` + keyID("k1").String() + `","KeySpec":"AES_256"}`},
		{"GenerateRandom", `{"NumberOfBytes":32}`}, {"Encrypt", `{"KeyId":"alias/none","Plaintext":"AAAA"}`},
	}
	w.audit.fail(errors.New("the disk is full"))
	for _, c := range calls {
		r := w.do(w.call(c[0], c[1]))
		if r.status != 500 || string(r.body) != `{"__type":"KMSInternalException","message":"`+kmsapi.KMSInternal.Text()+`"}` {
			t.Errorf("%s: %d %s", c[0], r.status, r.body)
		}
	}
	w.audit.fail(nil)
	for _, c := range calls[:3] {
		if r := w.do(w.call(c[0], c[1])); r.status != 200 {
			t.Errorf("%s, when records can be written again: %d %s", c[0], r.status, r.body)
		}
	}
}

// Calls that the control plane answers are recorded there, and what is no call is not recorded.
func TestRecordsOfOthers(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.audit.taken()
	for name, raw := range map[string][]byte{
		"the control plane's": w.call("DescribeKey", `{}`),
		"STS's":               w.sign(signature{service: "sts"}, "", []byte("Action=GetCallerIdentity")),
		"no HTTP":             []byte("POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
		"health":              []byte("GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"),
	} {
		if w.do(raw); len(w.audit.taken()) != 0 {
			t.Errorf("%s is recorded", name)
		}
	}
}

// A bug leaves a record as well.
func TestRecordOfPanic(t *testing.T) {
	w := newWorld(t, worldConfig{})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.instead = func() error { panic("a bug") }
	w.audit.taken()
	r := w.do(w.call("GenerateDataKey", `{"KeyId":"`+keyID("k1").String()+`","KeySpec":"AES_256"}`))
	lines := w.audit.taken()
	if r.status != 500 || len(lines) != 1 || !strings.Contains(lines[0], `"errorCode":"KMSInternalException"`) ||
		!strings.Contains(lines[0], `"eventName":"GenerateDataKey"`) || !strings.Contains(lines[0], r.header.Get("x-amzn-RequestId")) {
		t.Errorf("%d %s, records %s", r.status, r.body, lines)
	}
	w.panics.Store(0) // it was meant
}

// What one account does with another's key has an ID that both of their records share; of what it may not do the other account's key stays unknown.
func TestRecordAcrossAccounts(t *testing.T) {
	w := newWorld(t, worldConfig{})
	k := w.addKey("foreign", kmsapi.StateEnabled, 1)
	body := `{"KeyId":"` + keyARN("foreign") + `","KeySpec":"AES_256"}`
	w.audit.taken()
	w.do(w.call("GenerateDataKey", body))
	if lines := w.audit.taken(); len(lines) != 1 || strings.Contains(lines[0], "sharedEventID") || !strings.Contains(lines[0], `"resources":[]`) {
		t.Errorf("refused: %s", lines)
	}
	k.Policy = []byte(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"` + ours.String() + `"},"Action":"kms:*","Resource":"*"}]}`)
	w.KeyChanged(others, keyID("foreign"))
	if r := w.do(w.call("GenerateDataKey", body)); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if lines := w.audit.taken(); len(lines) != 1 || !strings.Contains(lines[0], `"sharedEventID":"`) ||
		!strings.Contains(lines[0], `"resources":[{"accountId":"`+others.String()+`"`) || !strings.Contains(lines[0], `"recipientAccountId":"`+ours.String()+`"`) {
		t.Errorf("allowed: %s", lines)
	}
}

// What a stranger sends as the name of an operation, or as credentials, is not in the record: it cannot pass for somebody else's, nor for the log's own.
func TestRecordsOfStrangers(t *testing.T) {
	w := newWorld(t, worldConfig{})
	forged := `Decrypt","userIdentity":{"type":"Root"},"eventSource":"audit.keyplane","x":"`
	for _, c := range []struct {
		name, event string
		raw         []byte
	}{
		{"a forged name", "Unknown", w.sign(signature{none: true}, forged, []byte(`{}`))},
		{"a forged name, signed", "Unknown", w.sign(signature{}, kmsapi.TargetPrefix+forged, []byte(`{}`))},
		{"no JSON", "Unknown", w.sign(signature{none: true}, `no json "`, []byte(`{}`))},
		{"an operation", "Decrypt", w.sign(signature{none: true}, kmsapi.TargetPrefix+"Decrypt", []byte(`{}`))},
		{"a wrong signature", "Encrypt", w.sign(signature{secret: "wrong"}, kmsapi.TargetPrefix+"Encrypt", []byte(`{}`))},
		{"other credentials", "Decrypt", w.sign(signature{none: true}, kmsapi.TargetPrefix+"Decrypt", []byte(`{}`), "authorization: Bearer s3cr3t-bearer")},
	} {
		w.audit.taken()
		if r := w.do(c.raw); r.status == 200 {
			t.Errorf("%s: %d %s", c.name, r.status, r.body)
		}
		lines := w.audit.taken()
		if len(lines) != 1 {
			t.Fatalf("%s: %d records", c.name, len(lines))
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[0]), &got); err != nil || got["eventName"] != c.event || got["eventSource"] != "kms.amazonaws.com" {
			t.Errorf("%s: %v: %s", c.name, err, lines[0])
		}
		for _, s := range []string{"audit.keyplane", `"Root"`, "s3cr3t"} {
			if strings.Contains(lines[0], s) {
				t.Errorf("%s: the record has %s: %s", c.name, s, lines[0])
			}
		}
	}
	// Many are told of by one.
	w.audit.taken()
	for range 150 {
		w.do(w.sign(signature{none: true}, "", nil))
	}
	if n := len(w.audit.taken()); n < 50 || n > 110 {
		t.Errorf("%d records of 150 strangers", n)
	}
}
