package apitest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	badRequest     = "BadRequestException"
	bodyTooLarge   = "RequestEntityTooLargeException"
	headerTooLarge = "RequestHeaderFieldsTooLargeException"
)

// bytesOf signs and returns a request.
func (v *victim) bytesOf(t *testing.T, op, body string, edit ...func(*Request)) []byte {
	t.Helper()
	return must(v.Request(op, body, edit...).Bytes())(t)
}

// testHostileHTTP: requests whose signature is right, or would be, and whose HTTP is not what this service speaks.
func testHostileHTTP(t *testing.T, v *victim) {
	body := `{"KeyId":"` + v.keyID + `"}`
	op := "GenerateDataKeyWithoutPlaintext"
	body = body[:len(body)-1] + `,"KeySpec":"AES_256"}`
	send := func(edit ...func(*Request)) *Reply { return v.Exchange(t, v.bytesOf(t, op, body, edit...)) }
	if r := send(); r == nil || r.Status != 200 {
		t.Fatalf("the request that all others are changed from: %+v", r)
	}

	// Each header that decides, twice: with the same value, with another, in other letters.
	for name, other := range map[string]string{
		"Host": "example.com", "Content-Type": "text/plain", "X-Amz-Target": "TrentService.ListKeys", "X-Amz-Date": "20200101T000000Z",
		"Authorization": "AWS4-HMAC-SHA256 x", "Content-Length": "1",
	} {
		for _, value := range []string{"", other} {
			for _, spelt := range []string{name, strings.ToUpper(name), strings.ToLower(name)} {
				r := send(AfterSigning(func(r *Request) {
					if value == "" {
						value = r.Get(name)
					}
					r.Headers = append(r.Headers, Header{spelt, value})
				}))
				closedOr(t, spelt+" twice", r, badRequest)
				r = send(AfterSigning(func(r *Request) { r.Headers = append([]Header{{spelt, value}}, r.Headers...) }))
				closedOr(t, spelt+" twice, the other first", r, badRequest)
			}
		}
	}
	for _, name := range []string{"X-Amz-Content-Sha256", "X-Amz-Security-Token", "X-Amz-User-Agent"} {
		r := send(SetHeader(name, "x"), AfterSigning(AddHeader(name, "y")))
		refusal(t, name+" twice", r, "InvalidSignatureException", "IncompleteSignatureException", badRequest)
	}

	// A body that is framed in two ways, or in chunks, or encoded.
	chunked := func(r *Request) {
		r.Headers = append(r.Headers, Header{"Transfer-Encoding", "chunked"})
		r.Body = fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(r.Body), r.Body)
	}
	closedOr(t, "Content-Length and Transfer-Encoding", send(AfterSigning(AddHeader("Transfer-Encoding", "chunked"))), badRequest)
	closedOr(t, "Content-Length and chunks", send(AfterSigning(chunked)), badRequest)
	noLength := func(r *Request) { r.NoLength = true }
	closedOr(t, "chunks", send(noLength, AfterSigning(chunked)), badRequest)
	for _, coding := range []string{"identity", "gzip", "chunked, chunked", "gzip, chunked", " chunked", "chunked;x", "xchunked", "\tchunked"} {
		closedOr(t, "Transfer-Encoding "+coding, send(AfterSigning(AddHeader("Transfer-Encoding", coding))), badRequest)
		closedOr(t, "only Transfer-Encoding "+coding, send(noLength, AfterSigning(AddHeader("Transfer-Encoding", coding))), badRequest)
	}
	closedOr(t, "Content-Encoding", send(AfterSigning(AddHeader("Content-Encoding", "gzip"))), badRequest)
	for _, length := range []string{"-1", "+5", "0x10", "5 5", "5,5", "", "a", "1e3", "99999999999999999999999"} {
		closedOr(t, "Content-Length "+length, send(AfterSigning(SetHeader("Content-Length", length))), badRequest, bodyTooLarge, "RequestTimeoutException")
	}

	// Other methods, targets and versions. A signature over them is right, and still they are not this service.
	line := func(line string) func(*Request) { return func(r *Request) { r.Line = line } }
	for _, l := range []string{
		"GET / HTTP/1.1", "PUT / HTTP/1.1", "DELETE / HTTP/1.1", "OPTIONS / HTTP/1.1", "PATCH / HTTP/1.1", "BREW / HTTP/1.1",
		"POST /x HTTP/1.1", "POST // HTTP/1.1", "POST /./ HTTP/1.1", "POST /%2f HTTP/1.1", "POST /healthz HTTP/1.1", "POST /../ HTTP/1.1",
		"POST http://" + v.Addr + "/ HTTP/1.1", "POST http://example.com/ HTTP/1.1", "POST https://kms.example.com HTTP/1.1",
	} {
		closedOr(t, l, send(line(l)), badRequest)
	}
	for _, l := range []string{
		"post / HTTP/1.1", "POST * HTTP/1.1", "POST  / HTTP/1.1", "POST / HTTP/1.1 ", "POST /", "POST", "", " POST / HTTP/1.1", "POST / HTTP/2.0", "POST / HTTP/1.2", "POST / http/1.1",
		"POST / HTTP/1.1\r", "POST\t/\tHTTP/1.1", "PRI * HTTP/2.0", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"POST /\x00 HTTP/1.1", "CONNECT kms:443 HTTP/1.1",
	} {
		r := send(AfterSigning(line(l)))
		if r != nil && r.Status == 200 {
			t.Errorf("request line %q: %d %s", l, r.Status, r.Body)
		} else {
			closedOr(t, l, r, badRequest, "InvalidSignatureException")
		}
	}
	query := "POST /?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=" + v.AccessKeyID + "%2F20260101%2F" + Region + "%2Fkms%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-SignedHeaders=host&X-Amz-Signature=00 HTTP/1.1"
	unsigned := func(r *Request) { r.Unsigned = true }
	for _, l := range []string{query, "POST /?x=1 HTTP/1.1", "POST /?%20 HTTP/1.1"} {
		what := strings.SplitN(l, " ", 3)[1]
		closedOr(t, "signed in header and query "+what, send(AfterSigning(line(l))), badRequest, "InvalidSignatureException", "IncompleteSignatureException")
		closedOr(t, "query "+what, send(unsigned, AfterSigning(line(l))), badRequest, "MissingAuthenticationTokenException", "IncompleteSignatureException")
	}
	if r := send(AfterSigning(line("POST / HTTP/1.0"))); r != nil && r.Status != 200 {
		closedOr(t, "HTTP/1.0", r, badRequest)
	}

	// Lines that are no header lines.
	for what, f := range map[string]func(*Request){
		"bare LF":                   func(r *Request) { r.EOL = "\n" },
		"CR alone":                  func(r *Request) { r.EOL = "\r" },
		"a folded line":             AddHeader("X-Folded", "a\r\n b"),
		"a folded line after a tab": AddHeader("X-Folded", "a\r\n\tb"),
		"a blank before the colon":  func(r *Request) { r.Headers[1].Name += " " },
		"a name with a blank":       AddHeader("X Y", "z"),
		"no name":                   AddHeader("", "x"),
		"a NUL in a value":          AddHeader("X-Nul", "a\x00b"),
		"a CR in a value":           AddHeader("X-Cr", "a\rb"),
		"an LF in a value":          AddHeader("X-Lf", "a\nX-Amz-Target: TrentService.ListKeys"),
		"a name with UTF-8":         AddHeader("X-Größe", "1"),
		"a name in quotes":          AddHeader(`"X"`, "1"),
		"no Host":                   DelHeader("Host"),
		"a second request line":     func(r *Request) { r.Headers = append([]Header{{"POST / HTTP/1.1\r\nX", "y"}}, r.Headers...) },
		"a first header that starts with a blank": func(r *Request) { r.Headers[0].Name = " Host" },
	} {
		r := send(AfterSigning(f))
		if r != nil && r.Status == 200 {
			t.Errorf("%s: %d %s", what, r.Status, r.Body)
			continue
		}
		// Without a line end as HTTP has it the header has no end either.
		closedOr(t, what, r, badRequest, "RequestTimeoutException")
	}

	testHTTPLimits(t, v, op, body)
}

// testHTTPLimits: the sizes of a request, at the limit and one beyond.
func testHTTPLimits(t *testing.T, v *victim, op, body string) {
	ok := func(what string, raw []byte) {
		t.Helper()
		if r := v.Exchange(t, raw); r == nil || r.Status != 200 {
			t.Errorf("%s at its limit: %+v", what, r)
		}
	}
	pad := func(n int) string { return body + strings.Repeat(" ", n-len(body)) }
	ok("body", v.bytesOf(t, op, pad(kmsapi.BodyMax)))
	for _, n := range []int{kmsapi.BodyMax + 1, 1 << 20} {
		refusal(t, fmt.Sprintf("a body of %d bytes", n), v.Exchange(t, v.bytesOf(t, op, pad(n))), bodyTooLarge)
	}
	announced := AfterSigning(SetHeader("Content-Length", "1073741824"))
	refusal(t, "a body of 1 GiB that is not sent", v.Exchange(t, v.bytesOf(t, op, "", announced)), bodyTooLarge)

	// The request line and all header lines together.
	headers := func(n int) []byte {
		raw := v.bytesOf(t, op, body, AddHeader("X-Pad", ""))
		return v.bytesOf(t, op, body, AddHeader("X-Pad", strings.Repeat("p", n-(len(raw)-len(body)))))
	}
	ok("headers", headers(kmsapi.HeadersMax))
	for _, n := range []int{kmsapi.HeadersMax + 1, 2 * kmsapi.HeadersMax, 1 << 20} {
		refusal(t, fmt.Sprintf("headers of %d bytes", n), v.Exchange(t, headers(n)), headerTooLarge)
	}
	// Host, Content-Type, X-Amz-Target, X-Amz-Date, Authorization, Content-Length are there already.
	many := func(n int) []byte {
		return v.bytesOf(t, op, body, func(r *Request) {
			for i := range n - 6 {
				r.Headers = append(r.Headers, Header{fmt.Sprint("X-", i), "1"})
			}
		})
	}
	ok("the number of headers", many(kmsapi.HeaderCountMax))
	refusal(t, "65 headers", v.Exchange(t, many(kmsapi.HeaderCountMax+1)), headerTooLarge)
	ok("a header's name", v.bytesOf(t, op, body, AddHeader(strings.Repeat("n", kmsapi.HeaderNameMax), "1")))
	refusal(t, "a header's name of 65 bytes", v.Exchange(t, v.bytesOf(t, op, body, AddHeader(strings.Repeat("n", kmsapi.HeaderNameMax+1), "1"))), headerTooLarge)
	long := AfterSigning(func(r *Request) {
		a := r.Get("Authorization")
		r.Set("Authorization", a+strings.Repeat(" ", 1)+strings.Repeat("0", kmsapi.AuthorizationMax-len(a)))
	})
	refusal(t, "an Authorization of 2049 bytes", v.Exchange(t, v.bytesOf(t, op, body, long)), headerTooLarge)

	// A body that its sender does not start without being asked to.
	if r := v.Exchange(t, v.bytesOf(t, op, body, AfterSigning(AddHeader("Connection", "close")))); r == nil || r.Status != 200 || !r.Close {
		t.Errorf("Connection: close: %+v", r)
	}
}
