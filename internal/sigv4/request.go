package sigv4

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	terminator = "aws4_request"

	methodMax = 16 // bytes; the longest registered method has 17 (UPDATEREDIRECTREF), KMS uses POST
)

// Header is one header line. Name is lower case, as the HTTP layer left it; Value is as received, blanks at its ends allowed.
type Header struct{ Name, Value []byte }

// Request is what a signature covers. All slices are borrowed: they must not change while a call runs, and no call keeps them.
// Path and Query are raw, as on the request line, without the question mark. Body is the whole body; its length is the caller's to limit.
type Request struct {
	Method, Path, Query []byte
	Headers             []Header
	Body                []byte
}

// Scratch is the working memory of one request, pooled by its owner. The zero value is ready.
type Scratch struct {
	auth  authorization
	at    headerIndex
	order [kmsapi.HeaderCountMax]uint8 // indexes of the signed headers in Request.Headers, ascending by name
	canon []byte                       // canonical request
	msg   []byte                       // text of the refusal
	mac   mac
}

// headerIndex says where in Request.Headers the headers stand that Verify reads itself; -1 where there is none.
type headerIndex struct {
	authorization, date, contentSHA256, token int
}

// Reset wipes everything a request left behind and keeps the buffers. Verify and AppendAuthorization call it first.
func (s *Scratch) Reset() {
	clear(s.canon)
	clear(s.msg)
	s.canon, s.msg = s.canon[:0], s.msg[:0]
	s.auth = authorization{}
	s.at = headerIndex{}
	clear(s.order[:])
	s.mac.wipe()
}

// Message is the text for the client after a refusal, empty after success. It is valid until the next use of s.
func (s *Scratch) Message() []byte { return s.msg }

// refuse records the default text of c.
func (s *Scratch) refuse(c kmsapi.Code) kmsapi.Code {
	s.msg = append(s.msg[:0], c.Text()...)
	return c
}

// refuseText records a text of c's that repeats nothing of the request.
func (s *Scratch) refuseText(c kmsapi.Code, text string) kmsapi.Code {
	s.msg = append(s.msg[:0], text...)
	return c
}

// refuseName records before + part + after as the text of c. part is from the Authorization header or the name of a header, within the
// limits of both.
func (s *Scratch) refuseName(c kmsapi.Code, before string, part []byte, after string) kmsapi.Code {
	s.msg = s.msg[:0]
	s.say(before, part, after)
	return c
}

// say appends before + part + after to the text.
func (s *Scratch) say(before string, part []byte, after string) {
	s.msg = append(s.msg, before...)
	s.msg = append(s.msg, part...)
	s.msg = append(s.msg, after...)
}

// checkShape bounds the request and finds the headers Verify reads itself. What it refuses never gets as far as a signature.
func (s *Scratch) checkShape(r *Request) kmsapi.Code {
	s.at = headerIndex{-1, -1, -1, -1}
	if len(r.Headers) > kmsapi.HeaderCountMax {
		return s.refuse(kmsapi.RequestHeaderTooLarge)
	}
	size := len(r.Method) + len(r.Path) + len(r.Query)
	for i := range r.Headers {
		if len(r.Headers[i].Name) > kmsapi.HeaderNameMax {
			return s.refuse(kmsapi.RequestHeaderTooLarge)
		}
		size += len(r.Headers[i].Name) + len(r.Headers[i].Value)
	}
	if size > kmsapi.HeadersMax {
		return s.refuse(kmsapi.RequestHeaderTooLarge)
	}
	if !validMethod(r.Method) || len(r.Path) == 0 || r.Path[0] != '/' {
		return s.refuse(kmsapi.BadRequest)
	}
	for i := range r.Headers {
		h := &r.Headers[i]
		if !validName(h.Name) || hasControl(h.Value) {
			return s.refuse(kmsapi.BadRequest)
		}
		if at := s.at.of(h.Name); at != nil {
			if *at >= 0 {
				return s.refuseDuplicate(h.Name)
			}
			*at = i
		}
	}
	if len(r.Query) > 0 {
		return s.refuseText(kmsapi.IncompleteSignature, textQuery)
	}
	if s.at.authorization < 0 || len(trimBlanks(r.Headers[s.at.authorization].Value)) == 0 {
		return s.refuse(kmsapi.MissingAuthenticationToken)
	}
	if len(r.Headers[s.at.authorization].Value) > kmsapi.AuthorizationMax {
		return s.refuse(kmsapi.RequestHeaderTooLarge)
	}
	return kmsapi.OK
}

func (x *headerIndex) of(name []byte) *int {
	switch string(name) {
	case "authorization":
		return &x.authorization
	case "x-amz-date":
		return &x.date
	case "x-amz-content-sha256":
		return &x.contentSHA256
	case "x-amz-security-token":
		return &x.token
	}
	return nil
}

func (s *Scratch) refuseDuplicate(name []byte) kmsapi.Code {
	return s.refuseName(kmsapi.InvalidSignature, "The request has more than one '", name, "' header.")
}

// validMethod takes upper-case letters only, so that a method cannot hold a line feed and reach into the canonical request.
func validMethod(b []byte) bool {
	for _, c := range b {
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= methodMax
}

// nameByte holds the bytes of a lower-case header name: token of RFC 9110 §5.6.2 without capitals.
var nameByte = func() (t [256]bool) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = true
	}
	return t
}()

func validName(b []byte) bool {
	for _, c := range b {
		if !nameByte[c] {
			return false
		}
	}
	return len(b) > 0
}

// hasControl reports whether a header value holds a control byte other than tab. A line feed or carriage return means that the HTTP layer
// joined a folded header (RFC 9112 §5.2).
func hasControl(b []byte) bool {
	const (
		ones = 0x0101010101010101
		tops = 0x8080808080808080
	)
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		d := x ^ 0x7f*ones
		// A byte of x below 0x20, or a byte of d that is zero, makes its top bit. False alarms (a tab) are settled byte by byte.
		if ((x-0x20*ones)&^x|(d-ones)&^d)&tops != 0 && slowControl(b[:8]) {
			return true
		}
	}
	return slowControl(b)
}

func slowControl(b []byte) bool {
	for _, c := range b {
		if c < 0x20 && c != '\t' || c == 0x7f {
			return true
		}
	}
	return false
}

func trimBlanks(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// mustBeSigned reports whether a header that is present has to be among the signed ones.
func mustBeSigned(name []byte) bool {
	return bytes.HasPrefix(name, []byte("x-amz-")) || string(name) == "host" || string(name) == "content-type"
}

const hexDigits = "0123456789abcdef"

func appendHex(dst []byte, h *[sha256.Size]byte) []byte {
	for _, c := range h {
		dst = append(dst, hexDigits[c>>4], hexDigits[c&15])
	}
	return dst
}

// parseHex reads 64 lower-case hexadecimal digits.
func parseHex(dst *[sha256.Size]byte, b []byte) bool {
	if len(b) != 2*len(dst) {
		return false
	}
	for i := range dst {
		hi, lo := hexValue(b[2*i]), hexValue(b[2*i+1])
		if hi|lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func hexValue(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}
