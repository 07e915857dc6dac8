package dataplane

import (
	"bytes"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// headerBlock is the header of one request as it was received. Everything the service decides by is read from here, never from
// fasthttp's own fields: those resolve duplicates in two different ways (the first of most headers, the last Content-Type), and an absolute
// request target would override Host.
type headerBlock struct {
	lines [kmsapi.HeaderCountMax]sigv4.Header // names lower-cased in place; values without blanks at their ends
	n     int

	target    []byte // X-Amz-Target
	userAgent []byte
	form      bool // the body is a form: a request to IAM or STS, whose answers are XML
}

// parse reads a raw header block: the lines after the request line, each ended by CRLF, with the empty line or without. The slices it
// keeps alias raw, whose names it lower-cases. What it refuses is not HTTP as this service speaks it, so the connection is closed as well:
// bare LF, folded lines, names with blanks or other bytes that are no token, more than one of the headers that decide, a body framed in
// two ways or in chunks, an encoded body.
func (h *headerBlock) parse(raw []byte) kmsapi.Code {
	h.reset()
	var framed, encoded bool
	var hosts, types, targets, auths, dates, lengths int
	for len(raw) > 0 {
		end := bytes.IndexByte(raw, '\n')
		if end < 1 || raw[end-1] != '\r' {
			return kmsapi.BadRequest
		}
		line := raw[:end-1]
		raw = raw[end+1:]
		if len(line) == 0 {
			break
		}
		if h.n == len(h.lines) {
			return kmsapi.RequestHeaderTooLarge
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 1 {
			return kmsapi.BadRequest // also a folded line, which starts with a blank
		}
		if colon > kmsapi.HeaderNameMax {
			return kmsapi.RequestHeaderTooLarge
		}
		name, value := line[:colon], trimBlanks(line[colon+1:])
		if !lowerToken(name) || bytes.IndexByte(value, '\r') >= 0 || bytes.IndexByte(value, 0) >= 0 {
			return kmsapi.BadRequest
		}
		h.lines[h.n] = sigv4.Header{Name: name, Value: value}
		h.n++
		switch string(name) {
		case "host":
			hosts++
		case "content-type":
			types++
			h.form = bytes.HasPrefix(value, formType)
		case "user-agent":
			h.userAgent = value
		case "x-amz-target":
			h.target = value
			targets++
		case "authorization":
			if len(value) > kmsapi.AuthorizationMax {
				return kmsapi.RequestHeaderTooLarge
			}
			auths++
		case "x-amz-date":
			dates++
		case "content-length":
			lengths++
		case "transfer-encoding":
			framed = true
		case "content-encoding":
			encoded = true
		}
	}
	if hosts != 1 || types > 1 || targets > 1 || auths > 1 || dates > 1 || lengths > 1 || framed || encoded {
		return kmsapi.BadRequest
	}
	return kmsapi.OK
}

func (h *headerBlock) reset() {
	clear(h.lines[:h.n])
	h.n, h.target, h.userAgent, h.form = 0, nil, nil, false
}

var formType = []byte("application/x-www-form-urlencoded")

// value is the value of the first header of that name, nil if there is none. Verify refuses a second X-Amz-* header of one name.
func (h *headerBlock) value(name string) []byte {
	for i := range h.lines[:h.n] {
		if string(h.lines[i].Name) == name {
			return h.lines[i].Value
		}
	}
	return nil
}

// lowerToken lower-cases an HTTP token (RFC 9110 §5.6.2) in place and reports whether it is one.
func lowerToken(b []byte) bool {
	for i, c := range b {
		if c = tokenByte[c]; c == 0 {
			return false
		}
		b[i] = c
	}
	return true
}

// tokenByte maps each token byte to its lower case, every other byte to 0.
var tokenByte = func() (t [256]byte) {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
		t[c] = c
	}
	for c := byte('A'); c <= 'Z'; c++ {
		t[c] = c + 'a' - 'A'
	}
	return t
}()

func trimBlanks(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}
