package loadtest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestCheck(t *testing.T) {
	const arn = "arn:aws:kms:us-east-1:111122223333:key/1"
	key := `"KeyId":"` + arn + `"`
	blob := func(n int) string { return `"CiphertextBlob":"` + base64Of(n) + `"` }
	alg := `"EncryptionAlgorithm":"SYMMETRIC_DEFAULT"`
	secret := []byte("hello, hello, hello")
	for _, c := range []struct {
		op, body string
		payload  int
		want     kind
	}{
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `",` + blob(117) + `}`, 32, kindOK},
		{"GenerateDataKey", ` { ` + key + ` , "Plaintext" : "` + base64Of(32) + `",` + blob(117) + `,"KeyMaterialId":"x","More":{"a":[1,null]}}`, 32, kindOK},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(31) + `",` + blob(117) + `}`, 32, kindVerifyMismatch},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(33) + `",` + blob(117) + `}`, 32, kindVerifyMismatch},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `",` + blob(59) + `}`, 32, kindVerifyMismatch},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `",` + blob(60) + `}`, 32, kindOK},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `",` + blob(6144) + `}`, 32, kindOK},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `",` + blob(6145) + `}`, 32, kindVerifyMismatch},
		{"GenerateDataKey", `{"KeyId":"` + arn + `2","Plaintext":"` + base64Of(32) + `",` + blob(117) + `}`, 32, kindVerifyMismatch},
		{"GenerateDataKey", `{` + key + `,` + blob(117) + `}`, 32, kindBadReply},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"` + base64Of(32) + `"}`, 32, kindBadReply},
		{"GenerateDataKey", `{"Plaintext":"` + base64Of(32) + `",` + blob(117) + `}`, 32, kindBadReply},
		{"GenerateDataKey", `{` + key + `,"Plaintext":"!!!!",` + blob(117) + `}`, 32, kindBadReply},
		{"GenerateDataKey", `{` + key + `,"Plaintext":17,` + blob(117) + `}`, 32, kindBadReply},
		{"GenerateDataKey", ``, 32, kindBadReply},
		{"GenerateDataKey", `null`, 32, kindBadReply},
		{"GenerateDataKey", `[]`, 32, kindBadReply},
		{"GenerateDataKeyWithoutPlaintext", `{` + key + `,` + blob(117) + `}`, 32, kindOK},
		{"GenerateDataKeyWithoutPlaintext", `{` + key + `}`, 32, kindBadReply},
		{"Encrypt", `{` + key + `,` + alg + `,` + blob(117) + `}`, 32, kindOK},
		{"Encrypt", `{` + key + `,` + blob(117) + `}`, 32, kindVerifyMismatch},
		{"Decrypt", `{` + key + `,` + alg + `,"Plaintext":"aGVsbG8sIGhlbGxvLCBoZWxsbw=="}`, 19, kindOK},
		{"Decrypt", `{` + key + `,` + alg + `,"Plaintext":"aGVsbG8sIGhlbGxvLCBoZWxsbg=="}`, 19, kindVerifyMismatch},
		{"Decrypt", `{` + key + `,` + alg + `,"Plaintext":"aGVsbG8sIGhlbGxvLCBoZWxs"}`, 19, kindVerifyMismatch},
		{"Decrypt", `{` + key + `,"EncryptionAlgorithm":"RSAES_OAEP_SHA_1","Plaintext":"aGVsbG8sIGhlbGxvLCBoZWxsbw=="}`, 19, kindVerifyMismatch},
		{"GenerateRandom", `{"Plaintext":"` + base64Of(1024) + `"}`, 1024, kindOK},
		{"GenerateRandom", `{"Plaintext":"\u0041A=="}`, 1, kindOK},
	} {
		checker := checker{op: findOperation(c.op), payload: c.payload, verify: true}
		got, text := checker.check(&target{keyARN: arn, plaintext: secret}, 200, []byte(c.body))
		if got != c.want || (got != kindOK) != (len(text) > 0) {
			t.Errorf("%s %.120s: %v (%s), want %v", c.op, c.body, got, text, c.want)
		}
		if c.want == kindVerifyMismatch {
			checker.verify = false
			if got, _ := checker.check(&target{keyARN: arn, plaintext: secret}, 200, []byte(c.body)); got != kindOK {
				t.Errorf("%s %.120s without verification: %v", c.op, c.body, got)
			}
		}
	}
}

func base64Of(n int) string {
	b, _ := json.Marshal(make([]byte, n))
	return strings.Trim(string(b), `"`)
}

// A server that hands out one random result twice is found out; two equal single bytes are chance.
func TestCheckRepeats(t *testing.T) {
	for _, c := range []struct {
		payload int
		want    kind
	}{{repeatCheckMin, kindVerifyMismatch}, {repeatCheckMin - 1, kindOK}} {
		checker := checker{op: findOperation("GenerateRandom"), payload: c.payload, verify: true}
		body := []byte(`{"Plaintext":"` + base64Of(c.payload) + `"}`)
		first, _ := checker.check(&target{}, 200, body)
		second, _ := checker.check(&target{}, 200, body)
		if first != kindOK || second != c.want {
			t.Errorf("%d bytes: %v, then %v", c.payload, first, second)
		}
		checker.wipe()
		for _, b := range append(checker.plaintext, checker.previous...) {
			if b != 0 {
				t.Fatal("not wiped")
			}
		}
	}
}

// --verify finds a plaintext with one wrong bit, over the whole path; --verify=false lets it pass.
func TestVerify(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, op string, n int64) bool {
		var in map[string]any
		json.Unmarshal(ctx.Request.Body(), &in)
		out, code := k.answer(op, in, true)
		if code != kmsapi.OK {
			return false
		}
		if n%10 == 0 {
			out.(map[string]any)["Plaintext"].([]byte)[3] ^= 1
		}
		reply(ctx, out)
		return true
	}
	cfg := testConfig(k.url)
	cfg.Operation, cfg.Keys = "Decrypt", 2
	p := k.runUntil(cfg, atLeast(50))
	if want := uint64(k.calls.Load() / 10); p.count(kindVerifyMismatch) != want || p.Requests.Failed != want || want == 0 {
		t.Fatalf("requests %+v, errors %+v, want %d mismatches", p.Requests, p.Errors, want)
	}
	cfg.Verify = false
	if p := k.runUntil(cfg, atLeast(50)); p.Requests.Failed != 0 || p.Verified {
		t.Fatalf("requests %+v, errors %+v", p.Requests, p.Errors)
	}
}

func FuzzParseMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"Plaintext":"AAA=","KeyId":"x"}`, `{"a":"b","a":"c"}`, `{"__type":"x","Message":"y"}`, `{"a":"\u0041"}`, `{"a":1}`, `{"a":"b",}`,
		`{"a":"b"} `, ` {}`, `{`, `{"`, `{"a"`, `{"a":`, `{"a":"`, `{"a":"b"`, "{\"a\":\"\x01\"}", `{"a":"` + "\xff" + `"}`, `null`, ``, `{"":""}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var flat members
		if !parseFlat(body, &flat) {
			parseMembers(body)
			return
		}
		var object map[string]string
		if err := json.Unmarshal(body, &object); err != nil {
			t.Fatalf("%q is not JSON: %v", body, err)
		}
		if string(flat.plaintext) != object["Plaintext"] || string(flat.ciphertextBlob) != object["CiphertextBlob"] ||
			string(flat.keyID) != object["KeyId"] || string(flat.typ) != object["__type"] {
			t.Fatalf("%q: %+v", body, flat)
		}
	})
}
