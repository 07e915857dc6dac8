package dataplane

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"regexp"
	"testing"
	"unicode/utf8"

	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/xks"
)

// FuzzXKSInput: what the scanner reads of a body is what encoding/json reads of it, member by member, and what passes the checks is within the API's limits.
func FuzzXKSInput(f *testing.F) {
	for _, body := range []any{
		encryptBody("SGVsbG8gV29ybGQh", xksBody{"additionalAuthenticatedData": xksB64(xksTestAAD), "ciphertextDataIntegrityValueAlgorithm": "SHA_256"}),
		xksBody{"requestMetadata": metadata("Decrypt", nil), "encryptionAlgorithm": "AES_GCM", "ciphertext": "aGVsbG8=", "initializationVector": "HMrlRw85cAJUd5Ax",
			"authenticationTag": "vBxN2ncH1oEkR8WVXpmyYQ==", "ciphertextMetadata": "a2V5X3ZlcnNpb249MQ=="},
		xksBody{"requestMetadata": nil, "plaintext": nil}, xksBody{"requestMetadata": []int{1}},
	} {
		f.Add(jsonOf(f, body))
	}
	f.Add([]byte(`{"requestMetadata":{"kmsOperation":"\u0045ncrypt","kmsOperation ":1,"x":{"kmsOperation":"no"}},"more":[{"plaintext":"no"}],"plaintext":"aGk="} `))
	f.Fuzz(func(t *testing.T, body []byte) {
		var s awsjson.Scanner
		r := &request{}
		in := &r.xks.in
		if !in.scan(&s, bytes.Clone(body)) {
			return
		}
		if !utf8.Valid(body) {
			t.Fatalf("%q is accepted", body)
		}
		var all, of map[string]json.RawMessage
		if err := json.Unmarshal(body, &all); len(body) > 0 && err != nil {
			t.Fatalf("%q: %v", body, err)
		}
		if m := all["requestMetadata"]; m != nil {
			if err := json.Unmarshal(m, &of); err != nil {
				t.Fatalf("%q: %v", body, err)
			}
		}
		text := func(m map[string]json.RawMessage, name string, got []byte) {
			t.Helper()
			var want *string
			if m[name] != nil {
				if err := json.Unmarshal(m[name], &want); err != nil {
					t.Fatalf("%s of %q: %v", name, body, err)
				}
			}
			if (want == nil) != (got == nil) || want != nil && *want != string(got) {
				t.Errorf("%s of %q: %q", name, body, got)
			}
		}
		data := func(name string, got []byte) {
			t.Helper()
			encoded := []byte(nil)
			if got != nil {
				encoded = []byte(base64.StdEncoding.EncodeToString(got))
			}
			text(all, name, encoded)
		}
		text(of, "awsPrincipalArn", in.principal)
		text(of, "awsSourceVpc", in.sourceVpc)
		text(of, "awsSourceVpce", in.sourceVpce)
		text(of, "kmsKeyArn", in.keyARN)
		text(of, "kmsOperation", in.operation)
		text(of, "kmsRequestId", in.requestID)
		text(of, "kmsViaService", in.viaService)
		text(all, "encryptionAlgorithm", in.algorithm)
		text(all, "ciphertextDataIntegrityValueAlgorithm", in.cdivAlgorithm)
		data("plaintext", in.plaintext)
		data("additionalAuthenticatedData", in.aad)
		data("ciphertext", in.ciphertext)
		data("initializationVector", in.iv)
		data("authenticationTag", in.tag)
		data("ciphertextMetadata", in.metadata)
		if in.check(r, xks.Encrypt) == xks.OK && (len(in.plaintext) < 1 || len(in.plaintext) > xks.PlaintextMax || len(in.aad) > xks.AADMax || len(in.principal) == 0) {
			t.Errorf("Encrypt accepts %q", body)
		}
		if in.check(r, xks.Decrypt) == xks.OK && (len(in.ciphertext) < 1 || len(in.ciphertext) > xks.PlaintextMax || len(in.iv) != 12 || len(in.tag) != 16) {
			t.Errorf("Decrypt accepts %q", body)
		}
	})
}

// FuzzXKSRoute: a path is routed as its grammar reads it, and to no key store but the one whose whole path is there.
func FuzzXKSRoute(f *testing.F) {
	x := &XKS{}
	table := map[string]*xksPrefix{}
	for _, path := range []string{"", "/team-a", "/team-a/kms/xks/v1", "/kms"} {
		table[path] = &xksPrefix{path: path}
	}
	x.table.Store(&table)
	for _, path := range []string{"/kms/xks/v1/health", "/team-a/kms/xks/v1/keys/a.b/encrypt", "/team-a/kms/xks/v1/kms/xks/v1/keys/a/metadata", "/kms/kms/xks/v1/keys/a/decrypt",
		"//kms/xks/v1/health", "/team-a/kms/xks/v1/keys/../keys/a/encrypt", "http://x/kms/xks/v1/health", "/team-a%2fkms/xks/v1/health"} {
		f.Add([]byte(path))
	}
	grammar := regexp.MustCompile(`(?s)\A(.*)/kms/xks/v1/(?:(health)|keys/([^/]*)/(metadata|encrypt|decrypt))\z`)
	f.Fuzz(func(t *testing.T, path []byte) {
		r := &request{}
		r.signed.Path = path
		got := x.route(r)
		m := grammar.FindSubmatch(path)
		if want := m != nil && table[string(m[1])] != nil; got != want {
			t.Fatalf("%q is routed: %v", path, got)
		}
		if !got {
			return
		}
		action := r.xks.api.Path("", "k")
		if r.xks.prefix.path != string(m[1]) || !bytes.Equal(r.xks.id, m[3]) || action != "/health" && action != "/keys/k/"+string(m[4]) || (action == "/health") != (len(m[2]) > 0) {
			t.Errorf("%q goes to %q, %q, %s", path, r.xks.prefix.path, r.xks.id, action)
		}
	})
}
