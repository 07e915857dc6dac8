package sigv4

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// FuzzAuthorization: the parser agrees with a plain one, whatever it takes can be written back, and a refusal is worded within bounds.
func FuzzAuthorization(f *testing.F) {
	f.Add([]byte("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/kms/aws4_request, SignedHeaders=host;x-amz-date, Signature=5f00"))
	f.Add([]byte("AWS4-HMAC-SHA256 Credential=a/b/c/d/e,SignedHeaders=h,Signature=s"))
	f.Add([]byte("AWS4-HMAC-SHA256"))
	f.Add([]byte("AWS4-HMAC-SHA256 \t,"))
	f.Add([]byte("Basic YWxpY2U6c2VjcmV0"))
	f.Add([]byte("x Credential=, Credential=a, SignedHeaders==, Signature=,"))
	f.Add([]byte("AWS4-HMAC-SHA256 Signature=s , SignedHeaders=a=b\t, Credential=/////"))
	f.Fuzz(func(t *testing.T, value []byte) {
		if len(value) > kmsapi.AuthorizationMax {
			return
		}
		var s Scratch
		code := s.auth.parse(value, true, &s)
		algorithm, parameters, ok := plainAuthorization(string(value))
		if (code == kmsapi.OK) != ok {
			t.Fatalf("%q: %v %q, want ok %v", value, code, s.msg, ok)
		}
		if code != kmsapi.OK {
			if code != kmsapi.IncompleteSignature || len(s.msg) == 0 || len(s.msg) > 2*kmsapi.AuthorizationMax+200 {
				t.Fatalf("%q: %v, %d bytes of text", value, code, len(s.msg))
			}
			return
		}
		if string(s.auth.algorithm) != algorithm || string(s.auth.credential) != parameters["Credential"] ||
			string(s.auth.signedHeaders) != parameters["SignedHeaders"] || string(s.auth.signature) != parameters["Signature"] {
			t.Fatalf("%q: %q", value, []any{s.auth.algorithm, s.auth.credential, s.auth.signedHeaders, s.auth.signature})
		}
		if code := s.auth.parseCredential(&s); (code == kmsapi.OK) != (strings.Count(parameters["Credential"], "/") == 4) {
			t.Fatalf("credential %q: %v", s.auth.credential, code)
		}
		if code == kmsapi.OK && len(s.msg) == 0 {
			joined := bytes.Join([][]byte{s.auth.accessKeyID, s.auth.date, s.auth.region, s.auth.service, s.auth.terminator}, []byte("/"))
			if !bytes.Equal(joined, s.auth.credential) {
				t.Fatalf("%q is not %q", joined, s.auth.credential)
			}
		}
	})
}

// fuzzRequest reads headers as lines of "name:value".
func fuzzRequest(method, path, headers string, body []byte) *Request {
	r := &Request{Method: []byte(method), Path: []byte(path), Body: body}
	for line := range strings.SplitSeq(headers, "\n") {
		name, value, _ := strings.Cut(line, ":")
		add(r, name, value)
	}
	return r
}

// FuzzCanonicalRequest: canonical request and signature are those of the plain implementation, and what is signed is accepted.
func FuzzCanonicalRequest(f *testing.F) {
	const date = "x-amz-date:20261123T120000Z"
	f.Add("POST", "/", "host:kms\n"+date, []byte(`{"KeyId":"alias/a"}`))
	f.Add("POST", "/a%20b/../ü //~", "host: kms\t\n"+date+"\nx-amz-target:  a   b  \t c \nempty:", []byte{})
	f.Add("GET", "/%", date+"\nhost:\nzz:  \naa:x\nm_m:\x80\xff", []byte("x"))
	f.Add("GET", "/", date+"\nhost:a\nhost:b", []byte("x"))
	f.Add("GET", "/\n", date+"\nhost:a\nFoo:b", []byte("x"))
	f.Add("POST", "/", date+"\nhost:kms\nx-amz-content-sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", []byte("abc"))
	key := mustKey(f, testID, testSecret)
	v := mustVerifier(f, Config{Regions: []string{testRegion}, Keys: keyTable{testID: key}})
	f.Fuzz(func(t *testing.T, method, path, headers string, body []byte) {
		r := fuzzRequest(method, path, headers, body)
		header, plain := plainHeader(r)
		var s Scratch
		authorization, err := AppendAuthorization(nil, key, testRegion, "kms", r, &s)
		if !plain || len(r.Headers) > kmsapi.HeaderCountMax || !strings.HasPrefix(path, "/") {
			if err == nil {
				t.Fatal("signed")
			}
			return
		}
		if err != nil {
			// Refused for what plainHeader does not look at: method, date, a header Authorization.
			if signable(method, header) {
				t.Fatal(err)
			}
			return
		}
		canonical := plainCanonical(method, path, header, body)
		if string(s.canon) != canonical {
			t.Fatalf("%q\nwant %q", s.canon, canonical)
		}
		date := strings.Trim(header.Get("x-amz-date"), " \t")
		if want := plainSignature(testSecret, date, testRegion, "kms", canonical); !strings.HasSuffix(string(authorization), "Signature="+want) {
			t.Fatalf("%s, want signature %s", authorization, want)
		}
		unix, _ := parseDate([]byte(date))
		add(r, "authorization", string(authorization))
		_, code := v.Verify(r, &s, time.Unix(unix, 0))
		if want := acceptable(r, header, body); code != want {
			t.Fatalf("%v %s, want %v", code, s.Message(), want)
		}
	})
}

func signable(method string, header http.Header) bool {
	date := strings.Trim(header.Get("x-amz-date"), " \t")
	at, err := time.Parse(basicDate, date)
	return len(method) >= 1 && len(method) <= 16 && strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" &&
		err == nil && at.Format(basicDate) == date && len(header.Values("authorization")) == 0
}

// acceptable is what Verify says to a request that was signed in full.
func acceptable(r *Request, header http.Header, body []byte) kmsapi.Code {
	switch {
	case len(r.Headers) > kmsapi.HeaderCountMax || size(r) > kmsapi.HeadersMax || len(get(r, "authorization")) > kmsapi.AuthorizationMax:
		return kmsapi.RequestHeaderTooLarge
	case len(header.Values("host")) == 0:
		return kmsapi.InvalidSignature
	case len(header.Values("x-amz-security-token")) > 0:
		return kmsapi.UnrecognizedClient
	case len(header.Values("x-amz-content-sha256")) > 0:
		hash := plainCanonical("", "", nil, body)
		if strings.Trim(header.Get("x-amz-content-sha256"), " \t") != hash[len(hash)-64:] {
			return kmsapi.InvalidSignature
		}
	}
	return kmsapi.OK
}

// FuzzDateScope: a date is taken where time.Parse takes it and writes it back the same, and every combination of date, scope and clock gets
// the answer of a plain decision list.
func FuzzDateScope(f *testing.F) {
	for _, date := range []string{"20261123T120000Z", "20240229T235959Z", "20230229T000000Z", "20261131T000000Z", "20261123T240000Z", "20261123T120060Z",
		"00000101T000000Z", "99991231T235959Z", "20261123T120000z", "20261123T120000.Z", "20261123T120000", " 20261123T120000Z", "2026112３T12000"} {
		f.Add(date, date[:min(8, len(date))], testRegion, "kms", "aws4_request", int64(0))
	}
	f.Add("20261123T120000Z", "20261123", testRegion, "kms", "aws4_request", int64(300))
	f.Add("20261123T120000Z", "20261123", testRegion, "kms", "aws4_request", int64(301))
	f.Add("20261123T120000Z", "20261123", testRegion, "kms", "aws4_request", int64(-301))
	f.Add("20261123T235959Z", "20261124", testRegion, "kms", "aws4_request", int64(1))
	f.Add("20261123T120000Z", "20261123", "us-east-1", "s3", "aws5_request", int64(-300))
	v, _ := testVerifier(f)
	f.Fuzz(func(t *testing.T, date, scopeDate, region, service, term string, offset int64) {
		if strings.ContainsAny(scopeDate+region+service+term, "/,") || len(scopeDate+region+service+term) > 1000 || len(date) > 1000 ||
			hasControl([]byte(date+scopeDate+region+service+term)) || strings.Trim(term, " \t") != term {
			return
		}
		offset %= 1 << 40
		unix, ok := parseDate([]byte(strings.Trim(date, " \t")))
		at, err := time.Parse(basicDate, strings.Trim(date, " \t"))
		if plain := err == nil && at.Format(basicDate) == strings.Trim(date, " \t"); plain != ok || ok && at.Unix() != unix {
			t.Fatalf("%q: %d %v, want %v %v", date, unix, ok, at, err)
		}
		r := unsigned(testNow)
		set(r, "x-amz-date", date)
		add(r, "authorization", "AWS4-HMAC-SHA256 Credential=AKIDUNKNOWN/"+scopeDate+"/"+region+"/"+service+"/"+term+
			", SignedHeaders=amz-sdk-invocation-id;amz-sdk-request;content-length;content-type;host;x-amz-date;x-amz-target, Signature=00")
		_, code, message := verify(t, v, r, time.Unix(unix+offset, 0))
		wantCode, wantText := kmsapi.UnrecognizedClient, "The security token"
		scoped := (region == testRegion || region == "us-east-1") && service == "kms" && term == "aws4_request" && ok && scopeDate == strings.Trim(date, " \t")[:8]
		switch {
		case !ok:
			wantCode, wantText = kmsapi.IncompleteSignature, "Date must be"
		case offset > 300:
			wantCode, wantText = kmsapi.InvalidSignature, "Signature expired: "
		case offset < -300:
			wantCode, wantText = kmsapi.InvalidSignature, "Signature not yet current: "
		case !scoped:
			wantCode, wantText = kmsapi.InvalidSignature, ""
		}
		if code != wantCode || !strings.HasPrefix(message, wantText) {
			t.Fatalf("%v %q, want %v %q", code, message, wantCode, wantText)
		}
	})
}

// TestHasControl: the eight bytes at a time agree with one byte at a time, for each byte at each place.
func TestHasControl(t *testing.T) {
	for n := range 20 {
		for at := range n {
			for c := range 256 {
				b := bytes.Repeat([]byte{'\t'}, n)
				b[at] = byte(c)
				if want := c != '\t' && c < 0x20 || c == 0x7f; hasControl(b) != want {
					t.Fatalf("%d bytes, %#x at %d: %v", n, c, at, !want)
				}
				for i := range b {
					if i != at {
						b[i] = 0x80
					}
				}
				if want := c != '\t' && c < 0x20 || c == 0x7f; hasControl(b) != want {
					t.Fatalf("%d bytes among 0x80, %#x at %d: %v", n, c, at, !want)
				}
			}
		}
	}
}
