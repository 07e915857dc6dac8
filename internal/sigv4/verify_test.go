package sigv4

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestVerifyAccepts(t *testing.T) {
	v, k := testVerifier(t)
	for name, edit := range map[string]func(*Request){
		"as signed":             func(*Request) {},
		"no blank after commas": func(r *Request) { swap(t, r, ", ", ","); swap(t, r, ", ", ",") },
		"many blanks":           func(r *Request) { swap(t, r, ", ", " \t,  \t"); swap(t, r, "256 ", "256 \t ") },
		"blanks around values":  func(r *Request) { set(r, "host", " \tkms.eu-central-1.amazonaws.com\t ") },
		"more inner spaces":     func(r *Request) { set(r, "amz-sdk-request", "attempt=1;    max=3") },
		"parameters reordered": func(r *Request) {
			a := strings.SplitN(get(r, "authorization"), " ", 2)
			set(r, "authorization", a[0]+" "+reversed(a[1]))
		},
		"headers reordered":      func(r *Request) { r.Headers[0], r.Headers[5] = r.Headers[5], r.Headers[0] },
		"unsigned headers twice": func(r *Request) { add(r, "accept-encoding", "gzip"); add(r, "user-agent", "x") },
		"trace header unsigned":  func(r *Request) { add(r, "x-amzn-trace-id", "Root=1-2") },
	} {
		t.Run(name, func(t *testing.T) {
			r := signWith(t, k, testRegion, "kms", unsigned(testNow))
			edit(r)
			id, code, message := verify(t, v, r, testNow)
			if code != kmsapi.OK {
				t.Fatalf("%v %q", code, message)
			}
			if p := id.Principal(); p != k.Principal() || p.Account != 111122223333 || p.UserName != "alice" || p.Root {
				t.Fatalf("principal %+v", p)
			}
			if id.AccessKeyID() != testID || id.Region() != testRegion {
				t.Fatalf("identity %q %q", id.AccessKeyID(), id.Region())
			}
		})
	}
}

func reversed(list string) string {
	parts := strings.Split(list, ", ")
	parts[0], parts[2] = parts[2], parts[0]
	return strings.Join(parts, ", ")
}

func TestIdentityZero(t *testing.T) {
	var id Identity
	if id.Valid() || id.Principal() != nil || id.AccessKeyID() != "" || id.Region() != "" {
		t.Fatal("the zero identity is somebody")
	}
}

// refusal is one rule. before changes the request that is signed, after the one that arrives.
type refusal struct {
	name          string
	before, after func(t *testing.T, r *Request)
	code          kmsapi.Code
	message       string // "" is the default text of code
}

const (
	requires      = "Authorization header requires "
	needDate      = requires + "existence of either a 'X-Amz-Date' or a 'Date' header."
	needCred      = requires + "'Credential' parameter."
	needSignature = requires + "'Signature' parameter."
	needHeaders   = requires + "'SignedHeaders' parameter."
)

func authorize(value string) func(*testing.T, *Request) {
	return func(_ *testing.T, r *Request) { set(r, "authorization", value) }
}

func replace(old, new string) func(*testing.T, *Request) {
	return func(t *testing.T, r *Request) { swap(t, r, old, new) }
}

func put(name, value string) func(*testing.T, *Request) {
	return func(_ *testing.T, r *Request) { set(r, name, value) }
}

func also(name, value string) func(*testing.T, *Request) {
	return func(_ *testing.T, r *Request) { add(r, name, value) }
}

func without(name string) func(*testing.T, *Request) {
	return func(_ *testing.T, r *Request) { del(r, name) }
}

var refusalTests = []refusal{
	// Authorization header.
	{"no Authorization", nil, without("authorization"), kmsapi.MissingAuthenticationToken, "Missing Authentication Token"},
	{"empty Authorization", nil, authorize(" \t "), kmsapi.MissingAuthenticationToken, ""},
	{"two Authorizations", nil, also("authorization", "x"), kmsapi.InvalidSignature, "The request has more than one 'authorization' header."},
	{"basic", nil, authorize("Basic YWxpY2U6c2VjcmV0"), kmsapi.IncompleteSignature,
		"'YWxpY2U6c2VjcmV0' not a valid key=value pair (missing equal-sign) in Authorization header: 'Basic YWxpY2U6c2VjcmV0'."},
	{"empty part", nil, authorize("AWS4-HMAC-SHA256 Signature=a,"), kmsapi.IncompleteSignature,
		"'' not a valid key=value pair (missing equal-sign) in Authorization header: 'AWS4-HMAC-SHA256 Signature=a,'."},
	{"algorithm alone", nil, authorize("AWS4-HMAC-SHA256"), kmsapi.IncompleteSignature, needCred + " " + needSignature + " " + needHeaders},
	{"nothing at all", nil, func(_ *testing.T, r *Request) { del(r, "x-amz-date"); set(r, "authorization", "AWS4-HMAC-SHA256 ") },
		kmsapi.IncompleteSignature, needCred + " " + needSignature + " " + needHeaders + " " + needDate},
	{"no Credential", nil, replace("Credential=", "Credential=,x="), kmsapi.IncompleteSignature, "Authorization header has an unknown parameter 'x'."},
	{"empty Credential", nil, authorize("AWS4-HMAC-SHA256 Credential=, SignedHeaders=host, Signature=0"), kmsapi.IncompleteSignature, needCred},
	{"no Signature", nil, authorize("AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host"), kmsapi.IncompleteSignature, needSignature},
	{"no SignedHeaders", nil, authorize("AWS4-HMAC-SHA256 Credential=a, Signature=0"), kmsapi.IncompleteSignature, needHeaders},
	{"parameter name case", nil, replace("Credential=", "credential="), kmsapi.IncompleteSignature, "Authorization header has an unknown parameter 'credential'."},
	{"two Credentials", nil, replace("Credential=", "Credential=a, Credential="), kmsapi.IncompleteSignature, "Authorization header has more than one 'Credential' parameter."},
	{"two Signatures", nil, replace("Signature=", "Signature=, Signature="), kmsapi.IncompleteSignature, "Authorization header has more than one 'Signature' parameter."},
	{"two SignedHeaders", nil, replace("SignedHeaders=", "SignedHeaders=host, SignedHeaders="), kmsapi.IncompleteSignature, "Authorization header has more than one 'SignedHeaders' parameter."},
	{"SigV4A", nil, replace("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), kmsapi.IncompleteSignature, "Unsupported AWS 'algorithm': 'AWS4-ECDSA-P256-SHA256'."},
	{"algorithm case", nil, replace("AWS4-HMAC-SHA256", "aws4-hmac-sha256"), kmsapi.IncompleteSignature, "Unsupported AWS 'algorithm': 'aws4-hmac-sha256'."},
	{"four elements", nil, replace("/aws4_request", ""), kmsapi.IncompleteSignature,
		"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '" + testID + "/20261123/eu-central-1/kms'"},
	{"six elements", nil, replace("/aws4_request", "/aws4_request/"), kmsapi.IncompleteSignature,
		"Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '" + testID + "/20261123/eu-central-1/kms/aws4_request/'"},

	// Query form.
	{"presigned", nil, func(_ *testing.T, r *Request) {
		del(r, "authorization")
		r.Query = []byte("X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=00")
	}, kmsapi.IncompleteSignature, textQuery},
	{"signature in both", nil, func(_ *testing.T, r *Request) { r.Query = []byte("X-Amz-Signature=00") }, kmsapi.IncompleteSignature, textQuery},
	{"query", nil, func(_ *testing.T, r *Request) { r.Query = []byte("a=b") }, kmsapi.IncompleteSignature, textQuery},

	// Date.
	{"no X-Amz-Date", nil, without("x-amz-date"), kmsapi.IncompleteSignature, needDate},
	{"Date does not replace it", nil, func(_ *testing.T, r *Request) { del(r, "x-amz-date"); add(r, "date", "Mon, 23 Nov 2026 12:00:00 GMT") },
		kmsapi.IncompleteSignature, needDate},
	{"two X-Amz-Dates", nil, also("x-amz-date", "20261123T120000Z"), kmsapi.InvalidSignature, "The request has more than one 'x-amz-date' header."},
	{"extended format", nil, put("x-amz-date", "2026-11-23T12:00:00Z"), kmsapi.IncompleteSignature,
		"Date must be in ISO-8601 'basic format'. Got '2026-11-23T12:00:00Z'. See http://en.wikipedia.org/wiki/ISO_8601"},
	{"long date", nil, put("x-amz-date", strings.Repeat("2", 400)), kmsapi.IncompleteSignature,
		"Date must be in ISO-8601 'basic format'. Got '" + strings.Repeat("2", 32) + "'. See http://en.wikipedia.org/wiki/ISO_8601"},

	// SignedHeaders.
	{"host unsigned", without("host"), also("host", "kms"), kmsapi.InvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."},
	{"no host", without("host"), nil, kmsapi.InvalidSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."},
	{"two hosts", nil, also("host", "evil"), kmsapi.InvalidSignature, "The request has more than one 'host' header."},
	{"two targets", nil, also("x-amz-target", "TrentService.Decrypt"), kmsapi.InvalidSignature, "The request has more than one 'x-amz-target' header."},
	{"two content types", nil, also("content-type", "text/plain"), kmsapi.InvalidSignature, "The request has more than one 'content-type' header."},
	{"two of another signed one", nil, also("amz-sdk-request", "attempt=1; max=3"), kmsapi.InvalidSignature, "The request has more than one 'amz-sdk-request' header."},
	{"x-amz-date unsigned", nil, replace("x-amz-date;", ""), kmsapi.InvalidSignature, "'x-amz-date' must be a 'SignedHeader' in the AWS Authorization."},
	{"target unsigned", without("x-amz-target"), also("x-amz-target", "TrentService.Decrypt"), kmsapi.InvalidSignature,
		"'x-amz-target' must be a 'SignedHeader' in the AWS Authorization."},
	{"any x-amz unsigned", nil, also("x-amz-new", "1"), kmsapi.InvalidSignature, "'x-amz-new' must be a 'SignedHeader' in the AWS Authorization."},
	{"content type unsigned", without("content-type"), also("content-type", "text/plain"), kmsapi.InvalidSignature,
		"'content-type' must be a 'SignedHeader' in the AWS Authorization."},
	{"token unsigned", nil, also("x-amz-security-token", "AQoD"), kmsapi.InvalidSignature,
		"'x-amz-security-token' must be a 'SignedHeader' in the AWS Authorization."},
	{"signed but absent", nil, without("amz-sdk-request"), kmsapi.InvalidSignature,
		"The request has no header 'amz-sdk-request', which is a 'SignedHeader' in the AWS Authorization."},
	{"not sorted", nil, replace("host;x-amz-date", "x-amz-date;host"), kmsapi.InvalidSignature, textSignedOrder},
	{"repeated", nil, replace("host;x-amz-date", "host;host;x-amz-date"), kmsapi.InvalidSignature, textSignedOrder},
	{"capital", nil, replace("host;x-amz-date", "Host;x-amz-date"), kmsapi.InvalidSignature, textSignedOrder},
	{"empty name", nil, replace("host;x-amz-date", "host;;x-amz-date"), kmsapi.InvalidSignature, textSignedOrder},
	{"trailing semicolon", nil, replace("x-amz-target,", "x-amz-target;,"), kmsapi.InvalidSignature, textSignedOrder},
	{"blank in the list", nil, replace("host;x-amz-date", "host; x-amz-date"), kmsapi.InvalidSignature, textSignedOrder},

	// Scope.
	{"region", nil, replace("eu-central-1/kms", "eu-west-1/kms"), kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not 'eu-west-1'."},
	{"region case", nil, replace("eu-central-1/kms", "EU-CENTRAL-1/kms"), kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not 'EU-CENTRAL-1'."},
	{"empty region", nil, replace("eu-central-1/kms", "/kms"), kmsapi.InvalidSignature, "Credential should be scoped to a valid region, not ''."},
	{"service", nil, replace("/kms/", "/s3/"), kmsapi.InvalidSignature, "Credential should be scoped to correct service: 'kms'."},
	{"terminator", nil, replace("aws4_request", "aws5_request"), kmsapi.InvalidSignature,
		"Credential should be scoped with a valid terminator: 'aws4_request', not 'aws5_request'."},
	{"scope date", nil, replace("/20261123/", "/20261122/"), kmsapi.InvalidSignature,
		"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20261122' != '20261123', from '20261123T120000Z'."},
	{"whole scope", nil, replace("/20261123/eu-central-1/kms/aws4_request", "/b/c/d/e"), kmsapi.InvalidSignature,
		"Credential should be scoped to a valid region, not 'c'. Credential should be scoped to correct service: 'kms'. " +
			"Credential should be scoped with a valid terminator: 'aws4_request', not 'e'. " +
			"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: 'b' != '20261123', from '20261123T120000Z'."},

	// Access key.
	{"unknown access key", nil, replace(testID, "AKIAI44QH8DHBEXAMPLE"), kmsapi.UnrecognizedClient, "The security token included in the request is invalid."},
	{"empty access key ID", nil, replace(testID, ""), kmsapi.UnrecognizedClient, ""},
	{"access key ID with a hyphen", nil, replace(testID, "AKIA-X"), kmsapi.UnrecognizedClient, ""},
	{"session token", also("x-amz-security-token", "AQoDYXdzEPT"), nil, kmsapi.UnrecognizedClient, ""},
	{"session token, wrong signature", also("x-amz-security-token", "AQoDYXdzEPT"), func(_ *testing.T, r *Request) { r.Body = nil }, kmsapi.UnrecognizedClient, ""},

	// Signature.
	{"body changed", nil, func(_ *testing.T, r *Request) { r.Body = append(r.Body, ' ') }, kmsapi.InvalidSignature, ""},
	{"method changed", nil, func(_ *testing.T, r *Request) { r.Method = []byte("PUT") }, kmsapi.InvalidSignature, ""},
	{"path changed", nil, func(_ *testing.T, r *Request) { r.Path = []byte("//") }, kmsapi.InvalidSignature, ""},
	{"target changed", nil, put("x-amz-target", "TrentService.Decrypt"), kmsapi.InvalidSignature, ""},
	{"host changed", nil, put("host", "kms.us-east-1.amazonaws.com"), kmsapi.InvalidSignature, ""},
	{"date changed", nil, put("x-amz-date", "20261123T120001Z"), kmsapi.InvalidSignature, ""},
	{"header dropped from the list", nil, replace("amz-sdk-request;", ""), kmsapi.InvalidSignature, ""},
	{"authorization in the list", nil, replace("amz-sdk-request;", "amz-sdk-request;authorization;"), kmsapi.InvalidSignature, ""},
	{"other served region", nil, replace("eu-central-1/kms", "us-east-1/kms"), kmsapi.InvalidSignature, ""},
	{"short signature", nil, func(_ *testing.T, r *Request) { a := get(r, "authorization"); set(r, "authorization", a[:len(a)-1]) }, kmsapi.InvalidSignature, ""},
	{"long signature", nil, func(_ *testing.T, r *Request) { set(r, "authorization", get(r, "authorization")+"0") }, kmsapi.InvalidSignature, ""},
	{"capital signature", nil, func(_ *testing.T, r *Request) {
		head, hex, _ := strings.Cut(get(r, "authorization"), "Signature=")
		set(r, "authorization", head+"Signature="+strings.ToUpper(hex))
	}, kmsapi.InvalidSignature, ""},

	// Payload hash.
	{"hash of another body", put("x-amz-content-sha256", strings.Repeat("0", 64)), nil, kmsapi.InvalidSignature, textContentSHA256},
	{"unsigned payload", put("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), nil, kmsapi.InvalidSignature, textContentSHA256},
	{"streaming payload", put("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), nil, kmsapi.InvalidSignature, textContentSHA256},
	{"two payload hashes", nil, func(_ *testing.T, r *Request) { add(r, "x-amz-content-sha256", ""); add(r, "x-amz-content-sha256", "") },
		kmsapi.InvalidSignature, "The request has more than one 'x-amz-content-sha256' header."},

	// HTTP below the signature.
	{"folded header", nil, put("amz-sdk-request", "attempt=1;\r\n max=3"), kmsapi.BadRequest, "The HTTP request is malformed."},
	{"folded unsigned header", nil, put("user-agent", "a\n b"), kmsapi.BadRequest, ""},
	{"carriage return", nil, put("user-agent", "a\rb"), kmsapi.BadRequest, ""},
	{"NUL", nil, put("user-agent", "aaaaaaaaaaaa\x00"), kmsapi.BadRequest, ""},
	{"DEL", nil, put("user-agent", "aaaaaaa\x7faaaa"), kmsapi.BadRequest, ""},
	{"capital header name", nil, also("X-Amz-New", "1"), kmsapi.BadRequest, ""},
	{"blank in a header name", nil, also("x-amz-new ", "1"), kmsapi.BadRequest, ""},
	{"empty header name", nil, also("", "1"), kmsapi.BadRequest, ""},
	{"no method", nil, func(_ *testing.T, r *Request) { r.Method = nil }, kmsapi.BadRequest, ""},
	{"line feed in the method", nil, func(_ *testing.T, r *Request) { r.Method = []byte("POST\n/") }, kmsapi.BadRequest, ""},
	{"no path", nil, func(_ *testing.T, r *Request) { r.Path = nil }, kmsapi.BadRequest, ""},
	{"relative path", nil, func(_ *testing.T, r *Request) { r.Path = []byte("x") }, kmsapi.BadRequest, ""},
}

func TestVerifyRefuses(t *testing.T) {
	v, k := testVerifier(t)
	for _, c := range refusalTests {
		t.Run(c.name, func(t *testing.T) {
			r := unsigned(testNow)
			if c.before != nil {
				c.before(t, r)
			}
			r = signWith(t, k, testRegion, "kms", r)
			if c.after != nil {
				c.after(t, r)
			}
			want := c.message
			if want == "" {
				want = c.code.Text()
			}
			if _, code, message := verify(t, v, r, testNow); code != c.code || message != want {
				t.Fatalf("%v %q\nwant %v %q", code, message, c.code, want)
			}
		})
	}
}

// The right payload hash is accepted, and only in lower case.
func TestVerifyContentSHA256(t *testing.T) {
	v, k := testVerifier(t)
	const hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for value, want := range map[string]kmsapi.Code{hash: kmsapi.OK, " " + hash: kmsapi.OK, strings.ToUpper(hash): kmsapi.InvalidSignature, "": kmsapi.InvalidSignature} {
		r := unsigned(testNow)
		r.Body = nil
		add(r, "x-amz-content-sha256", value)
		if _, code, message := verify(t, v, signWith(t, k, testRegion, "kms", r), testNow); code != want {
			t.Errorf("%q: %v %q", value, code, message)
		}
	}
}

// TestVerifySignedFew: with SignedFew a client may sign host and date alone; it has to sign these, and what it signs counts.
func TestVerifySignedFew(t *testing.T) {
	k := mustKey(t, testID, testSecret)
	strict := mustVerifier(t, Config{Service: "kms-xks-proxy", Regions: []string{testRegion}, Keys: keyTable{testID: k}})
	few := mustVerifier(t, Config{Service: "kms-xks-proxy", Regions: []string{testRegion}, Keys: keyTable{testID: k}, SignedFew: true})
	signed := func() *Request {
		r := &Request{Method: []byte("POST"), Path: []byte("/team-a/kms/xks/v1/health"), Body: []byte("{}")}
		add(r, "host", "xks.test")
		add(r, "x-amz-date", string(AppendDate(nil, testNow)))
		return signWith(t, k, testRegion, "kms-xks-proxy", r)
	}
	for name, c := range map[string]struct {
		edit        func(r *Request)
		strict, few kmsapi.Code
	}{
		"as signed":             {func(*Request) {}, kmsapi.OK, kmsapi.OK},
		"content type":          {func(r *Request) { add(r, "content-type", "application/json") }, kmsapi.InvalidSignature, kmsapi.OK},
		"another x-amz header":  {func(r *Request) { add(r, "x-amz-more", "1") }, kmsapi.InvalidSignature, kmsapi.OK},
		"hash that is not it":   {func(r *Request) { add(r, "x-amz-content-sha256", strings.Repeat("0", 64)) }, kmsapi.InvalidSignature, kmsapi.InvalidSignature},
		"date left unsigned":    {func(r *Request) { swap(t, r, "host;x-amz-date", "host") }, kmsapi.InvalidSignature, kmsapi.InvalidSignature},
		"host left unsigned":    {func(r *Request) { swap(t, r, "host;x-amz-date", "x-amz-date") }, kmsapi.InvalidSignature, kmsapi.InvalidSignature},
		"another host":          {func(r *Request) { set(r, "host", "xks.tesu") }, kmsapi.InvalidSignature, kmsapi.InvalidSignature},
		"another body":          {func(r *Request) { r.Body = []byte("[]") }, kmsapi.InvalidSignature, kmsapi.InvalidSignature},
		"a session's token too": {func(r *Request) { add(r, "x-amz-security-token", "t") }, kmsapi.InvalidSignature, kmsapi.UnrecognizedClient},
	} {
		for v, want := range map[*Verifier]kmsapi.Code{strict: c.strict, few: c.few} {
			r := signed()
			c.edit(r)
			if _, code, text := verify(t, v, r, testNow); code != want {
				t.Errorf("%s, few %v: %v %s, want %v", name, v.few, code, text, want)
			}
		}
	}
}

func TestVerifyWrongSecret(t *testing.T) {
	v, _ := testVerifier(t)
	r := signWith(t, mustKey(t, testID, "another"), testRegion, "kms", unsigned(testNow))
	if _, code, _ := verify(t, v, r, testNow); code != kmsapi.InvalidSignature {
		t.Fatal(code)
	}
}

// Every single bit of the 64 digits counts.
func TestVerifySignatureBits(t *testing.T) {
	v, k := testVerifier(t)
	r := signWith(t, k, testRegion, "kms", unsigned(testNow))
	good := get(r, "authorization")
	for i := len(good) - 64; i < len(good); i++ {
		for bit := range 8 {
			b := []byte(good)
			b[i] ^= 1 << bit
			set(r, "authorization", string(b))
			_, code, _ := verify(t, v, r, testNow)
			// Some flips make no digit but a comma, a control byte or the like: refused before the signature is computed.
			if code != kmsapi.InvalidSignature && code != kmsapi.BadRequest && code != kmsapi.IncompleteSignature {
				t.Fatalf("digit %d bit %d: %v", i, bit, code)
			}
		}
		for _, digit := range []byte(hexDigits) {
			b := []byte(good)
			if b[i] == digit {
				continue
			}
			b[i] = digit
			set(r, "authorization", string(b))
			if _, code, _ := verify(t, v, r, testNow); code != kmsapi.InvalidSignature {
				t.Fatalf("digit %d = %c: %v", i, digit, code)
			}
		}
	}
	set(r, "authorization", good)
	if _, code, _ := verify(t, v, r, testNow); code != kmsapi.OK {
		t.Fatal(code)
	}
}

// Every byte of what is signed counts.
func TestVerifyEveryByte(t *testing.T) {
	v, k := testVerifier(t)
	r := signWith(t, k, testRegion, "kms", unsigned(testNow))
	signedCount := len(r.Headers) - 3
	for i := range r.Headers[:signedCount] {
		for j := range r.Headers[i].Value {
			r.Headers[i].Value[j] ^= 1
			if _, code, _ := verify(t, v, r, testNow); code == kmsapi.OK {
				t.Fatalf("%s byte %d", r.Headers[i].Name, j)
			}
			r.Headers[i].Value[j] ^= 1
		}
	}
	for j := range r.Body {
		r.Body[j] ^= 0x80
		if _, code, _ := verify(t, v, r, testNow); code != kmsapi.InvalidSignature {
			t.Fatalf("body byte %d: %v", j, code)
		}
		r.Body[j] ^= 0x80
	}
	if _, code, _ := verify(t, v, r, testNow); code != kmsapi.OK {
		t.Fatal(code)
	}
}

func TestVerifyWindow(t *testing.T) {
	k := mustKey(t, testID, testSecret)
	for _, skew := range []time.Duration{0, time.Minute, 5 * time.Minute} {
		v := mustVerifier(t, Config{Regions: []string{testRegion}, Keys: keyTable{testID: k}, Skew: skew})
		width := skew
		if width == 0 {
			width = 5 * time.Minute
		}
		r := signWith(t, k, testRegion, "kms", unsigned(testNow))
		expired := fmt.Sprintf("Signature expired: 20261123T120000Z is now earlier than 20261123T120001Z (%s - %d min.)",
			AppendDate(nil, testNow.Add(width+time.Second)), width/time.Minute)
		early := fmt.Sprintf("Signature not yet current: 20261123T120000Z is still later than 20261123T115959Z (%s + %d min.)",
			AppendDate(nil, testNow.Add(-width-time.Second)), width/time.Minute)
		for _, c := range []struct {
			now     time.Time
			code    kmsapi.Code
			message string
		}{
			{testNow, kmsapi.OK, ""},
			{testNow.Add(width), kmsapi.OK, ""},
			{testNow.Add(width + 999*time.Millisecond), kmsapi.OK, ""},
			{testNow.Add(width + time.Second), kmsapi.InvalidSignature, expired},
			{testNow.Add(-width), kmsapi.OK, ""},
			{testNow.Add(-width - time.Second), kmsapi.InvalidSignature, early},
			{testNow.Add(width).In(time.FixedZone("", 3600)), kmsapi.OK, ""},
		} {
			if _, code, message := verify(t, v, r, c.now); code != c.code || message != c.message {
				t.Errorf("skew %v, now %v: %v %q, want %v %q", skew, c.now, code, message, c.code, c.message)
			}
		}
	}
}

func TestVerifyLimits(t *testing.T) {
	v, k := testVerifier(t)
	fill := func(r *Request, to int) {
		add(r, "x-amz-fill", "")
		set(r, "x-amz-fill", strings.Repeat("f", to-size(r)))
	}
	for _, c := range []struct {
		name string
		edit func(r *Request, over int) // makes a signed request that is over bytes or headers beyond the limit
		sign func(r *Request, over int)
	}{
		{name: "headers", sign: func(r *Request, over int) {
			for len(r.Headers) < kmsapi.HeaderCountMax-3+over {
				add(r, fmt.Sprintf("x-amz-%02d", len(r.Headers)), "v")
			}
		}},
		{name: "header name", sign: func(r *Request, over int) { add(r, strings.Repeat("n", kmsapi.HeaderNameMax), "v") },
			edit: func(r *Request, over int) {
				if over > 0 {
					add(r, strings.Repeat("m", kmsapi.HeaderNameMax+over), "v")
				}
			}},
		{name: "authorization", edit: func(r *Request, over int) {
			a := get(r, "authorization")
			set(r, "authorization", a+strings.Repeat(" ", kmsapi.AuthorizationMax+over-len(a)))
		}},
		{name: "total", edit: func(r *Request, over int) {
			add(r, "fill", "")
			set(r, "fill", strings.Repeat("f", kmsapi.HeadersMax+over-size(r)))
		}},
	} {
		for over, want := range []kmsapi.Code{kmsapi.OK, kmsapi.RequestHeaderTooLarge} {
			r := unsigned(testNow)
			if c.sign != nil {
				c.sign(r, over)
			}
			signWith(t, k, testRegion, "kms", r)
			if c.edit != nil {
				c.edit(r, over)
			}
			if _, code, message := verify(t, v, r, testNow); code != want {
				t.Errorf("%s, %d over: %v %q", c.name, over, code, message)
			}
		}
	}
	for n, want := range map[int]kmsapi.Code{16: kmsapi.InvalidSignature, 17: kmsapi.BadRequest} {
		r := signWith(t, k, testRegion, "kms", unsigned(testNow))
		r.Method = []byte(strings.Repeat("M", n))
		if _, code, _ := verify(t, v, r, testNow); code != want {
			t.Errorf("method of %d bytes: %v", n, code)
		}
	}
	// A signed value that fills the request to the last byte.
	r := unsigned(testNow)
	fill(r, kmsapi.HeadersMax-600)
	if _, code, message := verify(t, v, signWith(t, k, testRegion, "kms", r), testNow); code != kmsapi.OK {
		t.Errorf("long signed value: %v %q", code, message)
	}
}

func TestNew(t *testing.T) {
	keys := keyTable{}
	long := func(n int) string { return strings.Repeat("r", n) }
	for _, c := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"least", Config{Regions: []string{"r"}, Keys: keys}, true},
		{"four regions", Config{Regions: []string{"a", "b", "c", "d"}, Keys: keys}, true},
		{"nine regions", Config{Regions: strings.Fields("a b c d e f g h i"), Keys: keys}, true},
		{"ten regions", Config{Regions: strings.Fields("a b c d e f g h i j"), Keys: keys}, false},
		{"no region", Config{Keys: keys}, false},
		{"empty region", Config{Regions: []string{""}, Keys: keys}, false},
		{"region twice", Config{Regions: []string{"a", "a"}, Keys: keys}, false},
		{"region of 64", Config{Regions: []string{long(64)}, Keys: keys}, true},
		{"region of 65", Config{Regions: []string{long(65)}, Keys: keys}, false},
		{"region with a slash", Config{Regions: []string{"a/b"}, Keys: keys}, false},
		{"service of 32", Config{Regions: []string{"a"}, Service: long(32), Keys: keys}, true},
		{"service of 33", Config{Regions: []string{"a"}, Service: long(33), Keys: keys}, false},
		{"skew of 5 min", Config{Regions: []string{"a"}, Keys: keys, Skew: 5 * time.Minute}, true},
		{"skew of 6 min", Config{Regions: []string{"a"}, Keys: keys, Skew: 6 * time.Minute}, false},
		{"skew below 1 min", Config{Regions: []string{"a"}, Keys: keys, Skew: 59 * time.Second}, false},
		{"skew of 90 s", Config{Regions: []string{"a"}, Keys: keys, Skew: 90 * time.Second}, false},
		{"no keys", Config{Regions: []string{"a"}}, false},
	} {
		if v, err := New(c.cfg); (err == nil) != c.ok || (v != nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The longest scope fits the string to sign.
func TestLongestScope(t *testing.T) {
	region, service := strings.Repeat("r", regionMax), strings.Repeat("s", serviceMax)
	k := mustKey(t, strings.Repeat("K", accessKeyIDMax), strings.Repeat("s", secretMax))
	v := mustVerifier(t, Config{Regions: []string{region}, Service: service, Keys: keyTable{k.ID(): k}})
	if _, code, message := verify(t, v, signWith(t, k, region, service, unsigned(testNow)), testNow); code != kmsapi.OK {
		t.Fatalf("%v %q", code, message)
	}
}
