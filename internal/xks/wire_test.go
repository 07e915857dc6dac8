package xks

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// decoded is a JSON object as another reader sees it.
func decoded(t *testing.T, body []byte) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return m
}

func base64Of(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func TestRequests(t *testing.T) {
	full := &Metadata{Principal: `arn:aws:iam::111122223333:user/"é`, SourceVpc: "vpc-1", SourceVpce: "vpce-1", KeyARN: "arn:aws:kms:eu-west-1:111122223333:key/k", Operation: "Decrypt",
		RequestID: "r-1", ViaService: "ebs"}
	metadata := map[string]any{"awsPrincipalArn": full.Principal, "awsSourceVpc": "vpc-1", "awsSourceVpce": "vpce-1", "kmsKeyArn": full.KeyARN, "kmsOperation": "Decrypt", "kmsRequestId": "r-1",
		"kmsViaService": "ebs"}
	few := &Metadata{Operation: "CreateCustomKeyStore", RequestID: "r-2"}
	fewMetadata := map[string]any{"kmsOperation": "CreateCustomKeyStore", "kmsRequestId": "r-2"}
	s := example(t)
	bare := *s
	bare.Metadata = nil
	aad := []byte(exampleAAD)
	for _, c := range []struct {
		what string
		got  []byte
		want map[string]any
	}{
		{"health", AppendRequest(nil, few), map[string]any{"requestMetadata": fewMetadata}},
		{"metadata", AppendRequest(nil, full), map[string]any{"requestMetadata": metadata}},
		{"nothing", AppendRequest(nil, &Metadata{}), map[string]any{"requestMetadata": map[string]any{}}},
		{"encrypt", AppendEncrypt(nil, full, []byte("Hello World!"), aad), map[string]any{"requestMetadata": metadata, "plaintext": "SGVsbG8gV29ybGQh",
			"additionalAuthenticatedData": "cHJvamVjdD1uaWxlLGRlcGFydG1lbnQ9bWFya2V0aW5n", "encryptionAlgorithm": "AES_GCM", "ciphertextDataIntegrityValueAlgorithm": "SHA_256"}},
		{"encrypt without AAD", AppendEncrypt(nil, few, []byte("Hello World!"), nil), map[string]any{"requestMetadata": fewMetadata, "plaintext": "SGVsbG8gV29ybGQh",
			"encryptionAlgorithm": "AES_GCM", "ciphertextDataIntegrityValueAlgorithm": "SHA_256"}},
		{"decrypt", AppendDecrypt(nil, full, s, aad), map[string]any{"requestMetadata": metadata, "ciphertext": "ghxkK1txeDNn3q8Y", "ciphertextMetadata": "a2V5X3ZlcnNpb249MQ==",
			"initializationVector": "HMrlRw85cAJUd5Ax", "authenticationTag": "vBxN2ncH1oEkR8WVXpmyYQ==", "additionalAuthenticatedData": base64Of(aad), "encryptionAlgorithm": "AES_GCM"}},
		{"decrypt without metadata", AppendDecrypt(nil, few, &bare, nil), map[string]any{"requestMetadata": fewMetadata, "ciphertext": "ghxkK1txeDNn3q8Y",
			"initializationVector": "HMrlRw85cAJUd5Ax", "authenticationTag": "vBxN2ncH1oEkR8WVXpmyYQ==", "encryptionAlgorithm": "AES_GCM"}},
	} {
		if got := decoded(t, c.got); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	for api, want := range map[API]string{GetHealthStatus: "/p/kms/xks/v1/health", GetKeyMetadata: "/p/kms/xks/v1/keys/k.1/metadata", Encrypt: "/p/kms/xks/v1/keys/k.1/encrypt",
		Decrypt: "/p/kms/xks/v1/keys/k.1/decrypt"} {
		if got := api.Path("/p/kms/xks/v1", "k.1"); got != want {
			t.Errorf("%s: %s, want %s", api, got, want)
		}
	}
}

const exampleAnswer = `{"authenticationTag":"vBxN2ncH1oEkR8WVXpmyYQ==","ciphertext":"ghxkK1txeDNn3q8Y","ciphertextDataIntegrityValue":"` + exampleCDIV + `",` +
	`"ciphertextMetadata":"a2V5X3ZlcnNpb249MQ==","initializationVector":"HMrlRw85cAJUd5Ax"}`

// answer is an answer to Encrypt with a CDIV that fits.
func answer(s *Sealed, aad []byte) []byte {
	sum := CDIV(s, aad)
	body, _ := json.Marshal(map[string]any{"ciphertext": base64Of(s.Ciphertext), "initializationVector": base64Of(s.IV), "authenticationTag": base64Of(s.Tag),
		"ciphertextMetadata": base64Of(s.Metadata), "ciphertextDataIntegrityValue": base64Of(sum[:])})
	return body
}

func TestReadEncrypt(t *testing.T) {
	body := []byte(exampleAnswer)
	got, err := ReadEncrypt(body, 12, []byte(exampleAAD))
	clear(body) // the result is no part of it
	if err != nil || !reflect.DeepEqual(&got, example(t)) {
		t.Fatalf("%+v, %v", got, err)
	}
	iv16 := &Sealed{IV: make([]byte, 16), Ciphertext: make([]byte, PlaintextMax), Tag: make([]byte, 16)}
	if _, err := ReadEncrypt(answer(iv16, nil), PlaintextMax, nil); err != nil {
		t.Errorf("IV of 16 bytes, longest plaintext, no metadata: %v", err)
	}

	with := func(change func(*Sealed)) []byte {
		s := example(t)
		change(s)
		return answer(s, []byte(exampleAAD))
	}
	replaced := func(old, new string) []byte { return []byte(strings.Replace(exampleAnswer, old, new, 1)) }
	for what, body := range map[string][]byte{
		"empty":                 {},
		"no object":             []byte(`[]`),
		"empty object":          []byte(`{}`),
		"HTML":                  []byte("<html>busy</html>"),
		"cut off":               []byte(exampleAnswer[:len(exampleAnswer)-1]),
		"two objects":           []byte(exampleAnswer + exampleAnswer),
		"shorter ciphertext":    with(func(s *Sealed) { s.Ciphertext = s.Ciphertext[1:] }),
		"longer ciphertext":     with(func(s *Sealed) { s.Ciphertext = append(s.Ciphertext, 0) }),
		"IV of 11":              with(func(s *Sealed) { s.IV = s.IV[1:] }),
		"IV of 13":              with(func(s *Sealed) { s.IV = append(s.IV, 0) }),
		"no IV":                 with(func(s *Sealed) { s.IV = nil }),
		"tag of 15":             with(func(s *Sealed) { s.Tag = s.Tag[1:] }),
		"tag of 17":             with(func(s *Sealed) { s.Tag = append(s.Tag, 0) }),
		"metadata of 21":        with(func(s *Sealed) { s.Metadata = make([]byte, 21) }),
		"another CDIV":          replaced("qHA/", "qHB/"),
		"no CDIV":               replaced("ciphertextDataIntegrityValue", "other"),
		"empty CDIV":            replaced(exampleCDIV, ""),
		"CDIV no base64":        replaced(exampleCDIV, exampleCDIV[1:]),
		"tag no base64":         replaced("vBxN", "v-xN"),
		"ciphertext is null":    replaced(`"ghxkK1txeDNn3q8Y"`, "null"),
		"ciphertext is a list":  replaced(`"ghxkK1txeDNn3q8Y"`, `["ghxkK1txeDNn3q8Y"]`),
		"members twice":         replaced("{", `{"ciphertext":"ghxkK1txeDNn3q8Y",`),
		"metadata not in CDIV":  replaced("a2V5X3ZlcnNpb249MQ==", ""),
		"case of a name":        replaced("ciphertext\"", "Ciphertext\""),
		"nested too deep":       replaced("{", `{"x":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)+`,`),
		"CDIV of another AAD":   answer(example(t), []byte("project=rhine")),
		"CDIV without the AAD":  answer(example(t), nil),
		"no UTF-8":              replaced("{", "{\"x\":\"\xff\","),
		"tag as part of cipher": with(func(s *Sealed) { s.Ciphertext, s.Tag = append(s.Ciphertext, s.Tag...), nil }),
	} {
		if got, err := ReadEncrypt(bytes.Clone(body), 12, []byte(exampleAAD)); err == nil || got.Ciphertext != nil {
			t.Errorf("%s is taken: %s", what, body)
		}
	}
	if _, err := ReadEncrypt(replaced("{", `{"new":{"a":[1,"x"]},`), 12, []byte(exampleAAD)); err != nil {
		t.Errorf("a member of a later version: %v", err)
	}
}

func TestReadDecrypt(t *testing.T) {
	body := []byte(`{"plaintext":"SGVsbG8gV29ybGQh"}`)
	got, err := ReadDecrypt(body, 12)
	clear(body)
	if err != nil || string(got) != "Hello World!" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, body := range []string{"", "{}", "null", `{"plaintext":null}`, `{"plaintext":""}`, `{"plaintext":"SGVsbG8gV29ybGQ="}`, `{"plaintext":"SGVsbG8gV29ybGQhIQ=="}`, `{"plaintext":12}`,
		`{"plaintext":"SGVsbG8gV29ybGQ\u0000"}`, `{"plaintext":"SGVsbG8gV29ybGQh"}}`} {
		if got, err := ReadDecrypt([]byte(body), 12); err == nil || got != nil {
			t.Errorf("%s is taken", body)
		}
	}
}

const exampleHealth = `{"xksProxyFleetSize":2,"xksProxyVendor":"Acme Corp","xksProxyModel":"Acme XKS Proxy 1.0","ekmVendor":"Thales Group","ekmFleetDetails":[` +
	`{"id":"hsm-id-1","model":"Luna 5.0","healthStatus":"DEGRADED"},{"id":"hsm-id-2","model":"Luna 5.1","healthStatus":"UNAVAILABLE"}]}`

func TestReadHealth(t *testing.T) {
	h, err := ReadHealth([]byte(exampleHealth))
	want := &Health{2, "Acme Corp", "Acme XKS Proxy 1.0", "Thales Group", []EKM{{"hsm-id-1", "Luna 5.0", "DEGRADED"}, {"hsm-id-2", "Luna 5.1", "UNAVAILABLE"}}}
	if err != nil || !reflect.DeepEqual(h, want) || !h.Available() {
		t.Fatalf("%+v, %v", h, err)
	}
	replaced := func(old, new string) []byte { return []byte(strings.ReplaceAll(exampleHealth, old, new)) }
	if h, err := ReadHealth(replaced("DEGRADED", "UNAVAILABLE")); err != nil || h.Available() {
		t.Errorf("no HSM available: %+v, %v", h, err)
	}
	fleet := func(n int) []byte {
		entry := `{"id":"hsm-id-1","model":"Luna 5.0","healthStatus":"ACTIVE"}`
		return []byte(exampleHealth[:strings.Index(exampleHealth, "[")+1] + strings.TrimSuffix(strings.Repeat(entry+",", n), ",") + "]}")
	}
	if h, err := ReadHealth(fleet(10)); err != nil || len(h.Fleet) != 10 {
		t.Errorf("ten HSMs: %+v, %v", h, err)
	}
	for what, body := range map[string][]byte{
		"empty": {}, "size 0": replaced(":2,", ":0,"), "size -1": replaced(":2,", ":-1,"), "size 2.5": replaced(":2,", ":2.5,"), "size a string": replaced(":2,", `:"2",`),
		"no vendor": replaced("Acme Corp", ""), "no model": replaced("xksProxyModel", "x"), "no EKM vendor": replaced("ekmVendor", "x"), "no HSMs": fleet(0), "eleven HSMs": fleet(11),
		"no list": replaced("ekmFleetDetails", "x"), "another status": replaced("DEGRADED", "BUSY"), "no id": replaced("hsm-id-1", ""), "no HSM model": replaced("Luna 5.1", ""),
		"null HSM": []byte(exampleHealth[:strings.Index(exampleHealth, "[")+1] + "null]}"),
	} {
		if h, err := ReadHealth(bytes.Clone(body)); err == nil {
			t.Errorf("%s is taken: %+v", what, h)
		}
	}
}

func TestReadKeyMetadata(t *testing.T) {
	for _, c := range []struct{ body, unfit string }{
		{`{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}`, ""},
		{`{"keySpec":"AES_256","keyUsage":["WRAP","DECRYPT","ENCRYPT","UNWRAP"],"keyStatus":"ENABLED","x":1}`, ""},
		{`{"keySpec":"RSA_2048","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}`,
			"The key spec of the external key must be AES_256. The key spec of specified external key is RSA_2048."},
		{`{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"DISABLED"}`,
			"The status of the external key must be ENABLED. The status of specified external key is DISABLED."},
		{`{"keySpec":"AES_256","keyUsage":["ENCRYPT","WRAP"],"keyStatus":"ENABLED"}`,
			"The key usage of the external key must include ENCRYPT and DECRYPT. The key usage of specified external key is ENCRYPT, WRAP."},
	} {
		m, err := ReadKeyMetadata([]byte(c.body))
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		unfit := m.Unfit()
		if c.unfit == "" && unfit != nil {
			t.Errorf("%s: %v", c.body, unfit)
		}
		if c.unfit != "" && (unfit == nil || unfit.Failure != UnfitKey || unfit.Refusal.Code != kmsapi.XksKeyInvalidConfiguration || unfit.Refusal.Message != c.unfit) {
			t.Errorf("%s: %v", c.body, unfit)
		}
	}
	for _, body := range []string{"", "{}", `{"keySpec":"AES_256","keyUsage":[],"keyStatus":"ENABLED"}`, `{"keySpec":"AES_256","keyUsage":"ENCRYPT","keyStatus":"ENABLED"}`,
		`{"keySpec":"AES_256","keyUsage":["ENCRYPT",null],"keyStatus":"ENABLED"}`, `{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"]}`,
		`{"keySpec":"<b>","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}`, `{"keySpec":"` + strings.Repeat("A", 65) + `","keyUsage":["ENCRYPT"],"keyStatus":"ENABLED"}`,
		`{"keySpec":"AES_256","keyUsage":[` + strings.Repeat(`"ENCRYPT",`, 10) + `"DECRYPT"],"keyStatus":"ENABLED"}`} {
		if m, err := ReadKeyMetadata([]byte(body)); err == nil {
			t.Errorf("%s is taken: %+v", body, m)
		}
	}
}

func TestReadError(t *testing.T) {
	for _, c := range []struct {
		body    string
		failure Failure
		message string
	}{
		{`{"errorName":"KeyNotFoundException","errorMessage":"no such key"}`, KeyNotFound, "no such key"},
		{`{"errorMessage":"~ ","errorName":"ThrottlingException","x":[]}`, Throttling, "~ "},
		{`{"errorName":"InternalException"}`, Internal, ""},
		{`{"errorName":"InternalException","errorMessage":"a\nb"}`, Internal, ""},
		{`{"errorName":"InternalException","errorMessage":"é"}`, Internal, ""},
		{`{"errorName":"InternalException","errorMessage":"` + strings.Repeat("x", 511) + `"}`, Internal, strings.Repeat("x", 511)},
		{`{"errorName":"InternalException","errorMessage":"` + strings.Repeat("x", 512) + `"}`, Internal, ""},
		{`{"errorName":"SomeException","errorMessage":"x"}`, Malformed, ""},
		{`{"errorName":"Malformed"}`, Malformed, ""},
		{`{"errorName":null}`, Malformed, ""},
		{`{"errorName":"InternalException"`, Malformed, ""},
		{`{"errorMessage":"x"}`, Malformed, ""},
		{`<html>`, Malformed, ""},
		{``, Malformed, ""},
	} {
		if f, message := ReadError([]byte(c.body)); f != c.failure || message != c.message {
			t.Errorf("%s: %s, %q", c.body, f, message)
		}
	}
}

// FuzzAnswers: what is taken has the values that another reader sees, and the lengths of the API.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{exampleAnswer, exampleHealth, `{"plaintext":"SGVsbG8gV29ybGQh"}`, `{"keySpec":"AES_256","keyUsage":["ENCRYPT","DECRYPT"],"keyStatus":"ENABLED"}`,
		`{"errorName":"KeyNotFoundException","errorMessage":"no such key"}`, `{"\u0063iphertext":"gh\u0078k"}`, `null`, ``} {
		f.Add([]byte(s), 12, []byte(exampleAAD))
	}
	f.Fuzz(func(t *testing.T, body []byte, n int, aad []byte) {
		blob := func(name string) []byte {
			value, _ := decoded(t, body)[name].(string)
			b, err := base64.StdEncoding.Strict().DecodeString(value)
			if err != nil {
				t.Fatalf("%s of %s: %v", name, body, err)
			}
			return b
		}
		if s, err := ReadEncrypt(bytes.Clone(body), n, aad); err == nil {
			sum := CDIV(&s, aad)
			if len(s.Ciphertext) != n || len(s.Tag) != 16 || len(s.IV) != 12 && len(s.IV) != 16 || len(s.Metadata) > 20 || !bytes.Equal(sum[:], blob("ciphertextDataIntegrityValue")) ||
				!bytes.Equal(s.Ciphertext, blob("ciphertext")) || !bytes.Equal(s.Tag, blob("authenticationTag")) || !bytes.Equal(s.IV, blob("initializationVector")) ||
				!bytes.Equal(s.Metadata, blob("ciphertextMetadata")) {
				t.Fatalf("%s: %+v", body, s)
			}
			if again, err := ReadEncrypt(answer(&s, aad), n, aad); err != nil || !reflect.DeepEqual(again.Ciphertext, s.Ciphertext) {
				t.Fatalf("%s: written again: %v", body, err)
			}
		}
		if plaintext, err := ReadDecrypt(bytes.Clone(body), n); err == nil && len(body) > 0 && (len(plaintext) != n || !bytes.Equal(plaintext, blob("plaintext"))) {
			t.Fatalf("%s: %x", body, plaintext)
		}
		if h, err := ReadHealth(bytes.Clone(body)); err == nil {
			m := decoded(t, body)
			if strconv.FormatFloat(m["xksProxyFleetSize"].(float64), 'f', 0, 64) != strconv.FormatInt(h.FleetSize, 10) && h.FleetSize < 1<<53 || m["ekmVendor"] != h.EKMVendor ||
				len(m["ekmFleetDetails"].([]any)) != len(h.Fleet) {
				t.Fatalf("%s: %+v", body, h)
			}
		}
		if m, err := ReadKeyMetadata(bytes.Clone(body)); err == nil && (decoded(t, body)["keySpec"] != m.Spec || len(m.Usages) > 10) {
			t.Fatalf("%s: %+v", body, m)
		}
		if failure, message := ReadError(bytes.Clone(body)); failure != Malformed && decoded(t, body)["errorName"] != failure.Name() || len(message) > 511 {
			t.Fatalf("%s: %s %q", body, failure, message)
		}
	})
}
