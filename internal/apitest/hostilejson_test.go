package apitest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	serialization = "SerializationException"
	validation    = "ValidationException"
)

// testHostileJSON sends bodies that are signed well and wrong otherwise, to both planes.
func testHostileJSON(t *testing.T, v *victim) {
	c := v.Client(t)
	id := `"KeyId":"` + v.keyID + `"`
	data := func(member string) string { return `{` + id + `,"KeySpec":"AES_256",` + member + `}` }

	// What is no JSON, or no object, or more than one.
	for _, body := range []string{
		`{`, `}`, `{"KeyId"`, `{"KeyId":`, `{"KeyId":}`, `{"KeyId":"x"`, `{"KeyId":"x`, `{"KeyId":"x",}`, `{,}`, `{"KeyId" "x"}`, `{KeyId:"x"}`,
		`{'KeyId':'x'}`, `[]`, `[1,2]`, `"x"`, `1`, `true`, `nul`, `{"a":tru}`, `{"a":01}`, `{"a":+1}`, `{"a":1.}`, `{"a":.5}`, `{"a":-}`, `{"a":NaN}`,
		`{"a":1e}`, `{}{}`, `{} {}`, `{}x`, `{}]`, `x{}`, "\ufeff{}", "{\"a\":\"\x00\"}", "{\"a\":\"\n\"}", `{"a":"\x"}`, `{"a":"\u12"}`, `{"a":"\u123g"}`,
		"{\"a\":\"\xff\"}", "{\"a\":\"\xc0\xaf\"}", "{\"a\":\"\xed\xa0\x80\"}", `{"a":"\ud800"}`, `{"a":"\udc00\ud800"}`, "{\"\xff\":1}",
		`{"KeyId":"x","KeyId":"y"}`, `{"Key\u0049d":"x","KeyId":"y"}`, `{"a":1,"a":2}`, `{"a":{"b":1,"b":2}}`, `/**/{}`, `{}//`, "\x00", "\x1f\x8b\x08\x00",
		`{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1 2]}`, `{"a":[1}`, `{"a":{]}`, strings.Repeat("[", 30), strings.Repeat(`{"a":`, 30),
	} {
		for _, op := range []string{"GenerateDataKey", "Encrypt", "Decrypt", "GenerateRandom", "DescribeKey", "CreateKey", "TagResource"} {
			refusal(t, op+" "+body, c.Do(t, op, body), serialization)
		}
	}

	// What has the wrong type.
	for _, body := range []string{
		`{"KeyId":1}`, `{"KeyId":true}`, `{"KeyId":[]}`, `{"KeyId":["x"]}`, `{"KeyId":{}}`,
		data(`"EncryptionContext":[]`), data(`"EncryptionContext":"x"`), data(`"EncryptionContext":1`), data(`"EncryptionContext":{"a":1}`),
		data(`"EncryptionContext":{"a":{"b":"c"}}`), data(`"EncryptionContext":{"a":["b"]}`), data(`"EncryptionContext":{"a":"1","a":"1"}`),
		data(`"GrantTokens":"x"`), data(`"GrantTokens":{}`), data(`"GrantTokens":[1]`), data(`"GrantTokens":[["x"]]`),
		data(`"DryRun":"true"`), data(`"DryRun":1`), data(`"DryRun":[]`), data(`"NumberOfBytes":"32"`), data(`"NumberOfBytes":true`), data(`"NumberOfBytes":{}`),
		data(`"NumberOfBytes":1.5`), data(`"NumberOfBytes":9223372036854775808`), data(`"NumberOfBytes":1e400`),
		data(`"Recipient":"x"`), data(`"Recipient":[]`),
	} {
		refusal(t, body, c.Do(t, "GenerateDataKey", body), serialization)
	}
	for op, bodies := range map[string][]string{
		"CreateKey": {`{"Description":1}`, `{"Tags":{}}`, `{"Tags":["x"]}`, `{"Tags":[{"TagKey":1,"TagValue":""}]}`, `{"MultiRegion":"false"}`, `{"Policy":{}}`},
		"ScheduleKeyDeletion": {
			`{` + id + `,"PendingWindowInDays":"7"}`, `{` + id + `,"PendingWindowInDays":7.5}`, `{` + id + `,"PendingWindowInDays":99999999999}`,
		},
		"ListKeys": {`{"Limit":"1"}`, `{"Limit":true}`, `{"Marker":1}`, `{"Limit":[1]}`},
	} {
		for _, body := range bodies {
			refusal(t, op+" "+body, c.Do(t, op, body), serialization)
		}
	}

	// null is absent: where it may be, all is well; where it may not, the member is named.
	for _, member := range []string{`"EncryptionContext":null`, `"GrantTokens":null`, `"DryRun":null`, `"NumberOfBytes":null`, `"Recipient":null`, `"Unknown":null`} {
		if r := c.Do(t, "GenerateDataKey", data(member)); r.Status != 200 {
			t.Errorf("%s: %d %s", member, r.Status, r.Body)
		}
	}
	for op, bodies := range map[string]map[string]string{
		"GenerateDataKey": {`{"KeyId":null}`: "keyId", `{}`: "keyId", ``: "keyId"},
		"Encrypt":         {`{` + id + `,"Plaintext":null}`: "plaintext", `{"Plaintext":"` + hello + `"}`: "keyId"},
		"ReEncrypt":       {`{"CiphertextBlob":"` + hello + `"}`: "destinationKeyId"},
		"Decrypt":         {`{}`: "ciphertextBlob", `{"CiphertextBlob":null}`: "ciphertextBlob"},
		"DescribeKey":     {`{}`: "keyId", `{"KeyId":null}`: "keyId", ``: "keyId"},
		"CreateAlias":     {`{"AliasName":"alias/x"}`: "targetKeyId", `{"TargetKeyId":"x"}`: "aliasName"},
		"TagResource":     {`{` + id + `}`: "tags", `{` + id + `,"Tags":[null]}`: "tags.1.member", `{` + id + `,"Tags":[{"TagKey":null,"TagValue":""}]}`: "tags.1.member.tagKey"},
	} {
		for body, member := range bodies {
			r := c.Do(t, op, body)
			refusal(t, op+" "+body, r, validation)
			if !strings.Contains(r.Message, "'"+member+"'") || !strings.Contains(r.Message, "must not be null") {
				t.Errorf("%s %s: the message is %q", op, body, r.Message)
			}
		}
	}
	refusal(t, "a null in the context", c.Do(t, "GenerateDataKey", data(`"EncryptionContext":{"a":null}`)), validation)

	testNesting(t, v, c)
	testBase64(t, v, c)
}

// testNesting: how deep and how wide a body may be. The members that are too many or too deep are unknown ones, which are ignored otherwise.
func testNesting(t *testing.T, v *victim, c *Client) {
	id := `"KeyId":"` + v.keyID + `"`
	for _, op := range []string{"GenerateDataKeyWithoutPlaintext", "DescribeKey"} {
		// The body itself is the first level.
		for depth, ok := range map[int]bool{kmsapi.JSONDepthMax: true, kmsapi.JSONDepthMax + 1: false, 10_000: false} {
			for _, pair := range [][2]string{{`[`, `]`}, {`{"a":`, `}`}} {
				inner := strings.Repeat(pair[0], depth-1) + "1" + strings.Repeat(pair[1], depth-1)
				if pair[0] == `[` {
					inner = strings.Repeat(`[`, depth-1) + strings.Repeat(`]`, depth-1)
				}
				r := c.Do(t, op, `{`+id+`,"KeySpec":"AES_256","x":`+inner+`}`)
				what := fmt.Sprintf("%s, depth %d of %s", op, depth, pair[0])
				if !ok {
					refusal(t, what, r, validation, serialization)
				} else if r.Status != 200 {
					t.Errorf("%s: %d %s", what, r.Status, r.Body)
				}
			}
		}
		for members, ok := range map[int]bool{kmsapi.JSONMembersMax: true, kmsapi.JSONMembersMax + 1: false} {
			body := `{` + id + `,"KeySpec":"AES_256"`
			for i := 2; i < members; i++ {
				body += fmt.Sprintf(`,"x%d":0`, i)
			}
			r := c.Do(t, op, body+`}`)
			what := fmt.Sprintf("%s, %d members", op, members)
			if !ok {
				refusal(t, what, r, validation, serialization)
			} else if r.Status != 200 {
				t.Errorf("%s: %d %s", what, r.Status, r.Body)
			}
		}
	}
}

// testBase64: a blob has one encoding.
func testBase64(t *testing.T, v *victim, c *Client) {
	for _, text := range []string{
		"a", "aG", "aGV", "aGVsbG8", "aGVsbG8==", "aGVsbG8===", "aGVsbG8=x", "=", "==", "====", "aGV=bG8=", "=aGVsbG8", "aGVs bG8=", `aGVs\nbG8=`, " aGVsbG8=",
		"aGVsbG8= ", "aGVsbG9=", "aGVsbG+", "aGVs-_8=", "aGVs*G8=", "aGVsbG8\u00e4", `aGVs\u0000G8=`, "data:aGVsbG8=", "aGVsbG8=aGVsbG8=", "YR==", "YWK=",
	} {
		refusal(t, "Plaintext "+text, c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":"`+text+`"}`), serialization)
		refusal(t, "CiphertextBlob "+text, c.Do(t, "Decrypt", `{"CiphertextBlob":"`+text+`"}`), serialization)
	}
	for _, value := range []string{"1", "true", "{}", "[]", `["` + hello + `"]`} {
		refusal(t, "Plaintext "+value, c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":`+value+`}`), serialization)
		refusal(t, "CiphertextBlob "+value, c.Do(t, "Decrypt", `{"CiphertextBlob":`+value+`}`), serialization)
	}
	refusal(t, "an empty Plaintext", c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":""}`), validation)
	refusal(t, "an empty CiphertextBlob", c.Do(t, "Decrypt", `{"CiphertextBlob":""}`), validation)
	// Escapes in the text are of the JSON, not of the base64.
	var made struct{ CiphertextBlob []byte }
	c.Do(t, "Encrypt", `{"KeyId":"`+v.keyID+`","Plaintext":"\u0061GVsbG8\u003d"}`).Members(t, &made)
	var back struct{ Plaintext string }
	c.Do(t, "Decrypt", `{"CiphertextBlob":"`+strings.ReplaceAll(encode(made.CiphertextBlob), "/", `\/`)+`"}`).Members(t, &back)
	equal(t, "Plaintext", back.Plaintext, hello)
}
