package loadtest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// blobOverheadMin is what any ciphertext blob adds to its plaintext: the nonce and tag of AES-GCM.
const blobOverheadMin = 12 + 16

// repeatCheckMin is the length from which two equal random results in a row are a fault and not chance (2^-128).
const repeatCheckMin = 16

// members are the parts of a reply that are looked at. The slices alias the reply's body.
type members struct {
	typ, message                          []byte
	plaintext, ciphertextBlob, keyID, alg []byte
}

// set stores a string value under its name; unknown names are ignored, as an SDK does.
func (m *members) set(name, value []byte) {
	switch string(name) {
	case "Plaintext":
		m.plaintext = value
	case "CiphertextBlob":
		m.ciphertextBlob = value
	case "KeyId":
		m.keyID = value
	case "EncryptionAlgorithm":
		m.alg = value
	case "__type":
		m.typ = value
	case "message", "Message":
		m.message = value
	}
}

// parseMembers reads a reply. Replies of the operations sent here are flat objects of strings without escapes, and those are read in place;
// anything else goes through encoding/json. ok is false for what is not a JSON object.
func parseMembers(body []byte) (m members, ok bool) {
	if parseFlat(body, &m) {
		return m, true
	}
	m = members{}
	var object map[string]any
	if json.Unmarshal(body, &object) != nil || object == nil {
		return m, false
	}
	for name, value := range object {
		if s, isString := value.(string); isString {
			m.set([]byte(name), []byte(s))
		}
	}
	return m, true
}

// parseFlat reads {"name":"value",...} with neither white space nor escapes, and reports whether body was exactly that.
func parseFlat(body []byte, m *members) bool {
	if len(body) < 2 || body[0] != '{' {
		return false
	}
	if len(body) == 2 {
		return body[1] == '}'
	}
	for rest := body[1:]; ; {
		name, r, ok := plainString(rest)
		if !ok || len(r) == 0 || r[0] != ':' {
			return false
		}
		value, r, ok := plainString(r[1:])
		if !ok || len(r) == 0 {
			return false
		}
		m.set(name, value)
		if r[0] == '}' {
			return len(r) == 1
		}
		if r[0] != ',' {
			return false
		}
		rest = r[1:]
	}
}

// plainString reads a JSON string of printable ASCII without escapes.
func plainString(b []byte) (s, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return nil, nil, false
	}
	n := bytes.IndexByte(b[1:], '"')
	if n < 0 {
		return nil, nil, false
	}
	s = b[1 : 1+n]
	for _, c := range s {
		if c < 0x20 || c == '\\' || c > 0x7e {
			return nil, nil, false
		}
	}
	return s, b[n+2:], true
}

// checker judges replies for one worker. Its buffers are reused.
type checker struct {
	op      *operation
	payload int
	verify  bool

	plaintext []byte // decoded, of this reply
	previous  []byte // of the one before, where results are random
	blob      []byte
}

// check returns the kind of outcome and, where it is an error, a text that says more; the text aliases the reply or is constant.
func (c *checker) check(t *target, status int, body []byte) (kind, []byte) {
	m, ok := parseMembers(body)
	if status != 200 {
		return refusal(m, ok)
	}
	if !ok {
		return kindBadReply, []byte("the body is not a JSON object")
	}
	if !c.decode(&m) {
		return kindBadReply, []byte("a member is missing or not base64")
	}
	if !c.verify {
		return kindOK, nil
	}
	return c.compare(t, &m)
}

// refusal names an error reply by its __type.
func refusal(m members, ok bool) (kind, []byte) {
	if !ok {
		return kindUnknownError, []byte("the error reply's body is not a JSON object")
	}
	typ := m.typ
	if i := bytes.LastIndexByte(typ, '#'); i >= 0 { // some AWS services put the namespace before the name
		typ = typ[i+1:]
	}
	if code := kmsapi.CodeOf(string(typ)); code != kmsapi.OK {
		return kind(code), m.message
	}
	if len(typ) > 0 {
		return kindUnknownError, typ
	}
	return kindUnknownError, m.message
}

// decode checks the reply's shape and decodes its blobs.
func (c *checker) decode(m *members) bool {
	if c.op.keyed && len(m.keyID) == 0 {
		return false
	}
	ok := true
	if c.op.plaintext {
		c.plaintext, ok = decodeBase64(c.plaintext, m.plaintext)
	}
	if ok && c.op.blob {
		c.blob, ok = decodeBase64(c.blob, m.ciphertextBlob)
	}
	return ok
}

// decodeBase64 decodes src into dst's memory; an empty src is not valid.
func decodeBase64(dst, src []byte) ([]byte, bool) {
	dst, err := base64.StdEncoding.AppendDecode(dst[:0], src)
	return dst, err == nil && len(dst) > 0
}

// compare holds the reply's content against what is known of it.
func (c *checker) compare(t *target, m *members) (kind, []byte) {
	if c.op.keyed && string(m.keyID) != t.keyARN {
		return kindVerifyMismatch, []byte("KeyId is another key's ARN")
	}
	if c.op.blob {
		if n := len(c.blob); n < c.payload+blobOverheadMin || n > kmsapi.CiphertextBlobMax {
			return kindVerifyMismatch, []byte("CiphertextBlob has an impossible length")
		}
	}
	if (c.op.decrypts() || c.op.encrypts()) && string(m.alg) != kmsapi.SymmetricDefault {
		return kindVerifyMismatch, []byte("EncryptionAlgorithm is not SYMMETRIC_DEFAULT")
	}
	if !c.op.plaintext {
		return kindOK, nil
	}
	if c.op.decrypts() {
		if !bytes.Equal(c.plaintext, t.plaintext) {
			return kindVerifyMismatch, []byte("Plaintext is not what was encrypted")
		}
		return kindOK, nil
	}
	if len(c.plaintext) != c.payload {
		return kindVerifyMismatch, []byte("Plaintext has another length than asked for")
	}
	if c.payload >= repeatCheckMin && bytes.Equal(c.plaintext, c.previous) {
		return kindVerifyMismatch, []byte("Plaintext is the same as in the reply before")
	}
	c.previous = append(c.previous[:0], c.plaintext...)
	return kindOK, nil
}

// wipe clears the plaintexts of the last replies.
func (c *checker) wipe() {
	clear(c.plaintext[:cap(c.plaintext)])
	clear(c.previous[:cap(c.previous)])
}
