package sigv4

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	testID     = "AKIAIOSFODNN7EXAMPLE"
	testSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	testRegion = "eu-central-1"
)

var testNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// keyTable is the KeySource of the tests.
type keyTable map[string]*AccessKey

func (k keyTable) AccessKey(id []byte) *AccessKey { return k[string(id)] }

func mustKey(t testing.TB, id, secretKey string) *AccessKey {
	t.Helper()
	k, err := NewAccessKey(id, []byte(secretKey), Principal{Account: 111122223333, ARN: "arn:aws:iam::111122223333:user/alice", UserName: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustVerifier(t testing.TB, cfg Config) *Verifier {
	t.Helper()
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testVerifier serves two regions and knows testID.
func testVerifier(t testing.TB) (*Verifier, *AccessKey) {
	t.Helper()
	k := mustKey(t, testID, testSecret)
	return mustVerifier(t, Config{Regions: []string{"us-east-1", testRegion}, Keys: keyTable{testID: k}}), k
}

// unsigned is a GenerateDataKey request as an SDK makes it, without Authorization.
func unsigned(now time.Time) *Request {
	r := &Request{Method: []byte("POST"), Path: []byte("/"), Body: []byte(`{"KeyId":"alias/app","KeySpec":"AES_256"}`)}
	add(r, "host", "kms.eu-central-1.amazonaws.com")
	add(r, "content-type", "application/x-amz-json-1.1")
	add(r, "x-amz-date", string(AppendDate(nil, now)))
	add(r, "x-amz-target", "TrentService.GenerateDataKey")
	add(r, "content-length", "41")
	add(r, "amz-sdk-invocation-id", "f2b7f0a4-31e5-4b4c-9d5a-0d5a1f4f1c2e")
	add(r, "amz-sdk-request", "attempt=1; max=3")
	return r
}

// signWith signs all of r's headers and adds Authorization and two headers that are not signed.
func signWith(t testing.TB, k *AccessKey, region, service string, r *Request) *Request {
	t.Helper()
	var s Scratch
	value, err := AppendAuthorization(nil, k, region, service, r, &s)
	if err != nil {
		t.Fatal(err)
	}
	add(r, "authorization", string(value))
	add(r, "user-agent", "aws-sdk-go-v2/1.47  os/linux")
	add(r, "accept-encoding", "identity")
	return r
}

func add(r *Request, name, value string) {
	r.Headers = append(r.Headers, Header{[]byte(name), []byte(value)})
}

func del(r *Request, name string) {
	r.Headers = slices.DeleteFunc(r.Headers, func(h Header) bool { return string(h.Name) == name })
}

func get(r *Request, name string) string {
	for _, h := range r.Headers {
		if string(h.Name) == name {
			return string(h.Value)
		}
	}
	return ""
}

func set(r *Request, name, value string) {
	for i := range r.Headers {
		if string(r.Headers[i].Name) == name {
			r.Headers[i].Value = []byte(value)
			return
		}
	}
	add(r, name, value)
}

// swap changes a part of the Authorization header, which has to be there.
func swap(t testing.TB, r *Request, old, new string) {
	t.Helper()
	a := get(r, "authorization")
	if !strings.Contains(a, old) {
		t.Fatalf("Authorization %q has no %q", a, old)
	}
	set(r, "authorization", strings.Replace(a, old, new, 1))
}

// size is what checkShape measures.
func size(r *Request) int {
	n := len(r.Method) + len(r.Path) + len(r.Query)
	for _, h := range r.Headers {
		n += len(h.Name) + len(h.Value)
	}
	return n
}

// verify runs Verify and checks what holds for every outcome: a message with every refusal and with no success, no identity with a refusal,
// and nothing of a key left in the scratch memory.
func verify(t testing.TB, v *Verifier, r *Request, now time.Time) (Identity, kmsapi.Code, string) {
	t.Helper()
	var s Scratch
	id, code := v.Verify(r, &s, now)
	message := string(s.Message())
	switch {
	case code == kmsapi.OK && (!id.Valid() || message != ""):
		t.Fatalf("accepted with identity %v and message %q", id, message)
	case code != kmsapi.OK && (id != Identity{} || message == ""):
		t.Fatalf("%v with identity %v and message %q", code, id, message)
	}
	if s.mac != (mac{}) {
		t.Fatal("a key is left in the scratch memory")
	}
	s.Reset()
	if n := bytes.Count(s.canon[:cap(s.canon)], []byte{0}) + bytes.Count(s.msg[:cap(s.msg)], []byte{0}); n != cap(s.canon)+cap(s.msg) {
		t.Fatal("Reset left bytes of the request")
	}
	return id, code, message
}
