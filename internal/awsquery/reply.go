package awsquery

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// ContentType is that of replies.
const ContentType = "text/xml"

// Reply is the XML of a successful answer, built from the outside in.
type Reply struct {
	action string
	buf    []byte
	open   []string
}

// NewReply begins the answer to an action.
func NewReply(action, namespace string) *Reply {
	r := &Reply{action: action}
	r.buf = append(append(append(append(r.buf, '<'), action...), `Response xmlns="`...), namespace...)
	r.buf = append(r.buf, '"', '>')
	r.Open(action + "Result")
	return r
}

// Open begins an element, Close ends the one that was begun last.
func (r *Reply) Open(name string) {
	r.buf = append(append(append(r.buf, '<'), name...), '>')
	r.open = append(r.open, name)
}

func (r *Reply) Close() {
	last := len(r.open) - 1
	r.buf = append(append(append(r.buf, '<', '/'), r.open[last]...), '>')
	r.open = r.open[:last]
}

// Text writes an element with a text, even an empty one.
func (r *Reply) Text(name, text string) {
	r.Open(name)
	r.buf = appendEscaped(r.buf, text)
	r.Close()
}

// Some is Text, but nothing for "".
func (r *Reply) Some(name, text string) {
	if text != "" {
		r.Text(name, text)
	}
}

func (r *Reply) Int(name string, n int)   { r.Text(name, strconv.Itoa(n)) }
func (r *Reply) Bool(name string, b bool) { r.Text(name, strconv.FormatBool(b)) }

// Time writes an instant in seconds.
func (r *Reply) Time(name string, t time.Time) {
	r.Text(name, t.UTC().Format("2006-01-02T15:04:05Z"))
}

// Finish closes what is open and returns the document.
func (r *Reply) Finish(requestID string) []byte {
	for len(r.open) > 0 {
		r.Close()
	}
	r.open = append(r.open, r.action+"Response")
	r.Open("ResponseMetadata")
	r.Text("RequestId", requestID)
	for len(r.open) > 0 {
		r.Close()
	}
	return r.buf
}

// appendEscaped writes text as the content of an element. What XML 1.0 cannot hold becomes U+FFFD.
func appendEscaped(dst []byte, text string) []byte {
	for i := 0; i < len(text); {
		c, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case c == '&':
			dst = append(dst, "&amp;"...)
		case c == '<':
			dst = append(dst, "&lt;"...)
		case c == '>':
			dst = append(dst, "&gt;"...)
		case c == '"':
			dst = append(dst, "&#34;"...)
		case c == '\r':
			dst = append(dst, "&#xD;"...)
		case c < ' ' && c != '\t' && c != '\n', c == 0xfffe, c == 0xffff:
			dst = utf8.AppendRune(dst, utf8.RuneError)
		default:
			dst = utf8.AppendRune(dst, c)
		}
		i += n
	}
	return dst
}

// AppendPercent appends text with everything but unreserved characters escaped (RFC 3986), as IAM shows policy documents.
func AppendPercent(dst []byte, text string) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range []byte(text) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
			dst = append(dst, c)
		default:
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}

// Error is a refusal of the query protocol.
type Error struct {
	Code    string
	Status  int // of HTTP
	Message string
}

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code
	}
	return e.Code + ": " + e.Message
}

// Is compares codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// NewError is the error of that code with the status that goes with it.
func NewError(code, message string) *Error {
	e := &Error{Code: code, Status: 400, Message: message}
	switch code {
	case "AccessDenied", "InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken", "MissingAuthenticationToken":
		e.Status = 403
	case "NoSuchEntity":
		e.Status = 404
	case "EntityAlreadyExists", "DeleteConflict", "LimitExceeded", "ConcurrentModification":
		e.Status = 409
	case "ServiceUnavailable":
		e.Status = 503
	case "InternalFailure":
		e.Status = 500
	}
	return e
}

// queryNames are the query protocol's names of what kmsapi names for the JSON protocol.
var queryNames = map[kmsapi.Code]string{
	kmsapi.AccessDenied: "AccessDenied", kmsapi.DependencyTimeout: "ServiceUnavailable", kmsapi.ExpiredToken: "ExpiredToken",
	kmsapi.IncompleteSignature: "IncompleteSignature", kmsapi.InvalidSignature: "SignatureDoesNotMatch", kmsapi.KMSInternal: "InternalFailure",
	kmsapi.LimitExceeded: "LimitExceeded", kmsapi.MalformedPolicyDocument: "MalformedPolicyDocument",
	kmsapi.MissingAuthenticationToken: "MissingAuthenticationToken", kmsapi.NotAuthorized: "NotAuthorized", kmsapi.ServiceUnavailable: "ServiceUnavailable",
	kmsapi.Throttling: "Throttling", kmsapi.UnknownOperation: "InvalidAction", kmsapi.UnrecognizedClient: "InvalidClientTokenId",
	kmsapi.Validation: "ValidationError", kmsapi.BadRequest: "MalformedQueryString", kmsapi.Serialization: "MalformedInput",
}

// FromKMS is the query protocol's form of an exception: its name, the status that goes with the name and the same message. Exceptions that
// only KMS has keep their name.
func FromKMS(e *kmsapi.Error) *Error {
	if name := queryNames[e.Code]; name != "" {
		return NewError(name, e.Message)
	}
	return &Error{Code: e.Code.Type(), Status: e.Code.Status(), Message: e.Message}
}

// AppendError appends the XML of a refusal.
func AppendError(dst []byte, e *Error, requestID string) []byte {
	side := "Sender"
	if e.Status >= 500 {
		side = "Receiver"
	}
	dst = append(append(append(dst, "<ErrorResponse><Error><Type>"...), side...), "</Type><Code>"...)
	dst = append(appendEscaped(dst, e.Code), "</Code>"...)
	if e.Message != "" {
		dst = append(appendEscaped(append(dst, "<Message>"...), e.Message), "</Message>"...)
	}
	dst = append(append(dst, "</Error><RequestId>"...), requestID...)
	return append(dst, "</RequestId></ErrorResponse>"...)
}
