package apitest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// Header is one header line of a request.
type Header struct{ Name, Value string }

// Request is a request on its way to the wire. Everything in it is written as it stands, so that it can be wrong in any way.
type Request struct {
	Line    string   // request line
	Headers []Header // in this order; Bytes adds Authorization and Content-Length behind them
	Body    []byte

	AccessKeyID, SecretAccessKey string
	Region, Service              string
	Unsigned                     bool // no Authorization header
	NoLength                     bool // no Content-Length header
	EOL                          string

	tamper []func(*Request)
}

// Request makes the request for an operation, as the SDK would send it, signed with the administrator's key and the present time.
func (e Endpoint) Request(op, body string, edit ...func(*Request)) *Request {
	r := &Request{
		Line: "POST / HTTP/1.1",
		Headers: []Header{
			{"Host", e.Addr},
			{"Content-Type", kmsapi.ContentType},
			{"X-Amz-Target", kmsapi.TargetPrefix + op},
			{"X-Amz-Date", string(sigv4.AppendDate(nil, e.date()))},
		},
		Body: []byte(body), AccessKeyID: e.AccessKeyID, SecretAccessKey: e.SecretAccessKey, Region: Region, Service: kmsapi.SigningName,
		EOL: "\r\n",
	}
	for _, f := range edit {
		f(r)
	}
	return r
}

// Set replaces the value of a header, or adds it.
func (r *Request) Set(name, value string) {
	for i := range r.Headers {
		if strings.EqualFold(r.Headers[i].Name, name) {
			r.Headers[i].Value = value
			return
		}
	}
	r.Headers = append(r.Headers, Header{name, value})
}

// Get returns the value of a header.
func (r *Request) Get(name string) string {
	for _, h := range r.Headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

// Del removes every header of that name.
func (r *Request) Del(name string) {
	kept := r.Headers[:0]
	for _, h := range r.Headers {
		if !strings.EqualFold(h.Name, name) {
			kept = append(kept, h)
		}
	}
	r.Headers = kept
}

// AfterSigning has f change the request when its Authorization header is among its headers already.
func AfterSigning(f func(*Request)) func(*Request) {
	return func(r *Request) { r.tamper = append(r.tamper, f) }
}

// SetHeader, AddHeader and DelHeader are edits for Do.
func SetHeader(name, value string) func(*Request) { return func(r *Request) { r.Set(name, value) } }
func AddHeader(name, value string) func(*Request) {
	return func(r *Request) { r.Headers = append(r.Headers, Header{name, value}) }
}
func DelHeader(name string) func(*Request) { return func(r *Request) { r.Del(name) } }

// Bytes signs the request and returns what goes on the wire. The error says that the signer does not sign such a request.
func (r *Request) Bytes() ([]byte, error) {
	if !r.Unsigned {
		auth, err := r.authorization()
		if err != nil {
			return nil, err
		}
		r.Headers = append(r.Headers, Header{"Authorization", auth})
	}
	if !r.NoLength {
		r.Headers = append(r.Headers, Header{"Content-Length", strconv.Itoa(len(r.Body))})
	}
	for _, f := range r.tamper {
		f(r)
	}
	var b bytes.Buffer
	b.WriteString(r.Line + r.EOL)
	for _, h := range r.Headers {
		b.WriteString(h.Name + ": " + h.Value + r.EOL)
	}
	b.WriteString(r.EOL)
	b.Write(r.Body)
	return b.Bytes(), nil
}

// authorization signs Host, Content-Type and every X-Amz-* header there is.
func (r *Request) authorization() (string, error) {
	key, err := sigv4.NewAccessKey(r.AccessKeyID, []byte(r.SecretAccessKey), sigv4.Principal{})
	if err != nil {
		return "", err
	}
	method, rest, _ := strings.Cut(r.Line, " ")
	path, _, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(path, "/") {
		path = "/" // an absolute request target is signed as the path it has
	}
	path, _, _ = strings.Cut(path, "?")
	signed := sigv4.Request{Method: []byte(method), Path: []byte(path), Body: r.Body}
	for _, h := range r.Headers {
		name := strings.ToLower(h.Name)
		if name == "host" || name == "content-type" || strings.HasPrefix(name, "x-amz-") {
			signed.Headers = append(signed.Headers, sigv4.Header{Name: []byte(name), Value: []byte(h.Value)})
		}
	}
	var scratch sigv4.Scratch
	auth, err := sigv4.AppendAuthorization(nil, key, r.Region, r.Service, &signed, &scratch)
	return string(auth), err
}

// Reply is what the server answered.
type Reply struct {
	Status  int
	Header  http.Header
	Body    []byte
	Type    string // __type of a refusal
	Message string // of a refusal
	Close   bool   // the server announced that it closes the connection
}

// readReply reads one reply; nil if the server closed the connection before the first byte of one. Half a reply or none in time is an error.
func readReply(br *bufio.Reader) (*Reply, error) {
	if _, err := br.Peek(1); err != nil {
		if err == io.EOF || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return nil, nil
		}
		return nil, fmt.Errorf("no reply: %w", err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return nil, fmt.Errorf("the reply is not HTTP: %w", err)
	}
	defer resp.Body.Close()
	r := &Reply{Status: resp.StatusCode, Header: resp.Header, Close: resp.Close}
	if r.Body, err = io.ReadAll(resp.Body); err != nil {
		return nil, fmt.Errorf("the reply's body: %w", err)
	}
	var refusal struct {
		Type    string `json:"__type"`
		Message string `json:"message"` // encoding/json takes Message as well
	}
	if r.Status != http.StatusOK && json.Unmarshal(r.Body, &refusal) == nil {
		r.Type, r.Message = refusal.Type, refusal.Message
	}
	return r, nil
}

// Members decodes a successful reply.
func (r *Reply) Members(t testing.TB, v any) {
	t.Helper()
	if r.Status != http.StatusOK {
		t.Fatalf("refused: %d %s", r.Status, r.Body)
	}
	if err := json.Unmarshal(r.Body, v); err != nil {
		t.Fatalf("the reply is not JSON: %v: %s", err, r.Body)
	}
}

// WellFormed fails t unless the reply has what every reply has, and a refusal what every refusal has.
func (r *Reply) WellFormed(t testing.TB) {
	t.Helper()
	if got := r.Header.Get("Content-Type"); got != kmsapi.ContentType {
		t.Errorf("Content-Type is %q", got)
	}
	if id := r.Header.Get("X-Amzn-Requestid"); len(id) != 36 {
		t.Errorf("x-amzn-RequestId is %q", id)
	}
	if _, err := http.ParseTime(r.Header.Get("Date")); err != nil {
		t.Errorf("Date: %v", err)
	}
	if r.Status == http.StatusOK {
		if len(r.Body) > 0 && !json.Valid(r.Body) {
			t.Errorf("the body is not JSON: %q", r.Body)
		}
		return
	}
	if !json.Valid(r.Body) {
		t.Errorf("%d: the body is not JSON: %q", r.Status, r.Body)
	}
	switch code := kmsapi.CodeOf(r.Type); {
	case code == kmsapi.OK:
		t.Errorf("%d: __type is %q: %s", r.Status, r.Type, r.Body)
	case code.Status() != r.Status:
		t.Errorf("%s came with status %d", r.Type, r.Status)
	}
}
