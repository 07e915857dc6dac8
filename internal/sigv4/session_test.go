package sigv4

import (
	"bytes"
	"crypto/sha256"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	sessionID    = "ASIAIOSFODNN7EXAMPLE"
	sessionToken = "IQoJb3JpZ2luX2VjEXAMPLE+token/with=signs"
)

func sessionKey(t testing.TB, id, token string) *AccessKey {
	t.Helper()
	k, err := NewTemporaryKey(id, []byte(testSecret), sha256.Sum256([]byte(token)), testNow.Add(time.Hour), Principal{Account: 111122223333})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A temporary key is good with its own token until it expires; every other token, or none, gets the answer of an unknown access key.
func TestSessionToken(t *testing.T) {
	session, other, long := sessionKey(t, sessionID, sessionToken), sessionKey(t, "ASIAOTHER", "another token"), mustKey(t, testID, testSecret)
	v := mustVerifier(t, Config{Regions: []string{testRegion}, Keys: keyTable{sessionID: session, "ASIAOTHER": other, testID: long}})
	const invalid = "The security token included in the request is invalid."
	for _, c := range []struct {
		name  string
		key   *AccessKey
		token string // "" for none
		now   time.Time
		code  kmsapi.Code
		text  string
	}{
		{"its token", session, sessionToken, testNow, kmsapi.OK, ""},
		{"its token between blanks", session, " " + sessionToken + "\t", testNow, kmsapi.OK, ""},
		{"no token", session, "", testNow, kmsapi.UnrecognizedClient, invalid},
		{"another session's token", session, "another token", testNow, kmsapi.UnrecognizedClient, invalid},
		{"its token and a byte", session, sessionToken + "x", testNow, kmsapi.UnrecognizedClient, invalid},
		{"token of a long-term key", long, sessionToken, testNow, kmsapi.UnrecognizedClient, invalid},
		{"just before the end", session, sessionToken, testNow.Add(time.Hour - time.Second), kmsapi.OK, ""},
		{"at the end", session, sessionToken, testNow.Add(time.Hour), kmsapi.ExpiredToken, "The security token included in the request is expired"},
		{"after the end with a wrong token", session, "another token", testNow.Add(2 * time.Hour), kmsapi.UnrecognizedClient, invalid},
	} {
		r := unsigned(c.now)
		if c.token != "" {
			add(r, "x-amz-security-token", c.token)
		}
		if _, code, text := verify(t, v, signWith(t, c.key, testRegion, "kms", r), c.now); code != c.code || text != c.text {
			t.Errorf("%s: %v %q, want %v %q", c.name, code, text, c.code, c.text)
		}
	}
	// Of an expired session whose signature is wrong, only that is told.
	r := unsigned(testNow.Add(time.Hour))
	add(r, "x-amz-security-token", sessionToken)
	signWith(t, session, testRegion, "kms", r)
	r.Body = []byte("{}")
	if _, code, _ := verify(t, v, r, testNow.Add(time.Hour)); code != kmsapi.InvalidSignature {
		t.Errorf("expired and wrongly signed: %v", code)
	}
	if !session.Temporary() || long.Temporary() || !session.Expires().Equal(testNow.Add(time.Hour)) || !long.Expires().IsZero() {
		t.Error("which key is temporary, and until when")
	}
	// What signs with the dummy's secret is nobody, token or not.
	r = unsigned(testNow)
	add(r, "x-amz-security-token", sessionToken)
	if _, code, _ := verify(t, v, signWith(t, v.dummy, testRegion, "kms", r), testNow); code != kmsapi.UnrecognizedClient {
		t.Errorf("the dummy: %v", code)
	}
}

// Each service has its own regions, and a signature for one is none for another.
func TestServices(t *testing.T) {
	k := mustKey(t, testID, testSecret)
	v := mustVerifier(t, Config{
		Regions: []string{testRegion}, Keys: keyTable{testID: k},
		Others: []Service{{"sts", []string{testRegion, "us-east-1"}}, {"iam", []string{"us-east-1"}}},
	})
	for _, c := range []struct {
		service, region string
		code            kmsapi.Code
		text            string
	}{
		{"kms", testRegion, kmsapi.OK, ""},
		{"sts", testRegion, kmsapi.OK, ""},
		{"sts", "us-east-1", kmsapi.OK, ""},
		{"iam", "us-east-1", kmsapi.OK, ""},
		{"kms", "us-east-1", kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not 'us-east-1'."},
		{"iam", testRegion, kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not 'eu-central-1'."},
		{"s3", testRegion, kmsapi.InvalidSignature, "Credential should be scoped to correct service: 'kms'."},
	} {
		for range 2 { // derived, then kept
			r := signWith(t, k, c.region, c.service, unsigned(testNow))
			id, code, text := verify(t, v, r, testNow)
			if code != c.code || text != c.text {
				t.Errorf("%s in %s: %v %q, want %v %q", c.service, c.region, code, text, c.code, c.text)
			}
			if code == kmsapi.OK && (id.Service() != c.service || id.Region() != c.region) {
				t.Errorf("%s in %s: is for %s in %s", c.service, c.region, id.Service(), id.Region())
			}
			if code == kmsapi.OK && c.service != "kms" {
				swap(t, r, "/"+c.service+"/", "/kms/")
				swap(t, r, "/"+c.region+"/", "/"+testRegion+"/")
				if _, code, _ := verify(t, v, r, testNow); code != kmsapi.InvalidSignature {
					t.Errorf("a signature for %s passes for kms: %v", c.service, code)
				}
			}
		}
	}
	for name, others := range map[string][]Service{
		"four others": {{"a", []string{"r"}}, {"b", []string{"r"}}, {"c", []string{"r"}}, {"d", []string{"r"}}},
		"kms again":   {{"kms", []string{"r"}}},
		"no region":   {{"sts", nil}},
		"bad name":    {{"S", []string{"r"}}},
	} {
		if _, err := New(Config{Regions: []string{"r"}, Keys: keyTable{}, Others: others}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Of a million signed requests that differ in one byte from what was signed, none is accepted. The bytes are all that a signature covers:
// method, path, signed headers with their names, body, and the Authorization header itself.
func TestMutationsRefused(t *testing.T) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	session := sessionKey(t, sessionID, sessionToken)
	v := mustVerifier(t, Config{Regions: []string{testRegion}, Keys: keyTable{sessionID: session}})
	r := unsigned(testNow)
	add(r, "x-amz-security-token", sessionToken)
	var s Scratch
	authorization, err := AppendAuthorization(nil, session, testRegion, "kms", r, &s)
	if err != nil {
		t.Fatal(err)
	}
	add(r, "authorization", string(authorization))
	parts := [][]byte{r.Method, r.Path, r.Body}
	for i := range r.Headers {
		parts = append(parts, r.Headers[i].Name, r.Headers[i].Value)
	}
	total := 0
	for _, p := range parts {
		total += len(p)
	}
	signed := r.Headers[len(r.Headers)-1].Value
	random := rand.New(rand.NewPCG(2026, 11))
	refusals := map[kmsapi.Code]int{}
	for range n {
		at := random.IntN(total)
		var p []byte
		for _, p = range parts {
			if at < len(p) {
				break
			}
			at -= len(p)
		}
		was := p[at]
		p[at] = was ^ byte(1+random.IntN(255))
		_, code := v.Verify(r, &s, testNow)
		// A tab for the blank behind a comma of the Authorization header is the same header.
		same := &p[0] == &signed[0] && was == ' ' && p[at] == '\t' && signed[at-1] == ','
		if code == kmsapi.OK && !same {
			t.Fatalf("accepted with %q for %q at %d of %q", p[at], was, at, p)
		}
		p[at] = was
		refusals[code]++
	}
	if _, code := v.Verify(r, &s, testNow); code != kmsapi.OK || !bytes.Equal(authorization, signed) {
		t.Fatalf("the request itself: %v", code)
	}
	if refusals[kmsapi.InvalidSignature] < n/2 || refusals[kmsapi.UnrecognizedClient] == 0 {
		t.Errorf("refusals: %v", refusals)
	}
	t.Logf("%d mutations refused: %v", n-refusals[kmsapi.OK], refusals)
}
