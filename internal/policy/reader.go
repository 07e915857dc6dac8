package policy

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

// reader takes a document's JSON apart: strict syntax, valid UTF-8, no member twice, no deeper than what is asked for, nothing behind it.
// The first fault stays in err, and everything read after it is empty.
type reader struct {
	d    *jsontext.Decoder
	kind Kind
	err  *Error
}

func newReader(document []byte, kind Kind) *reader {
	return &reader{d: jsontext.NewDecoder(bytes.NewReader(document)), kind: kind}
}

// fail refuses the document with a text of AWS's.
func (r *reader) fail(text string) {
	if r.err == nil {
		r.err = &Error{Message: text}
	}
}

// syntax refuses the document for its grammar. IAM has one text for all such faults; KMS documents none, so it says what is wrong.
func (r *reader) syntax(text string) {
	if r.kind != KeyPolicy {
		text = "Syntax errors in policy."
	}
	r.fail(text)
}

// token is the next token; ok false after a fault.
func (r *reader) token() (t jsontext.Token, ok bool) {
	if r.err != nil {
		return t, false
	}
	t, err := r.d.ReadToken()
	switch {
	case err == nil:
		return t, true
	case errors.Is(err, jsontext.ErrDuplicateName):
		r.syntax("The key policy has a member twice.")
	default:
		r.syntax("The key policy is not valid JSON.")
	}
	return t, false
}

// peek is the kind of the next token, 0 after a fault or where no token can be.
func (r *reader) peek() jsontext.Kind {
	if r.err != nil {
		return 0
	}
	return r.d.PeekKind()
}

// object enters an object; what names it in the text of a refusal.
func (r *reader) object(what string) bool {
	t, ok := r.token()
	if ok && t.Kind() != '{' {
		r.syntax("The key policy's " + what + " is not a JSON object.")
		return false
	}
	return ok
}

// next is the name of the object's next member; ok false at its end, which it leaves.
func (r *reader) next() (name string, ok bool) {
	t, ok := r.token()
	if !ok || t.Kind() == '}' {
		return "", false
	}
	return t.String(), true
}

// text reads a string of at most max bytes.
func (r *reader) text(what string, max int) string {
	t, ok := r.token()
	if !ok {
		return ""
	}
	if t.Kind() != '"' {
		r.syntax("The key policy's " + what + " is not a string.")
		return ""
	}
	return r.bounded(what, t.String(), max)
}

// scalar reads a string, a Boolean or a number, as the text that it is written with.
func (r *reader) scalar(what string, max int) string {
	t, ok := r.token()
	if !ok {
		return ""
	}
	switch t.Kind() {
	case '"', 't', 'f', '0':
		return r.bounded(what, t.String(), max)
	}
	r.syntax("The key policy's " + what + " is not a string.")
	return ""
}

func (r *reader) bounded(what, s string, max int) string {
	if len(s) > max {
		r.syntax("The key policy's " + what + " is too long.")
		return ""
	}
	return s
}

// list reads what one reads, once or as often as a list has it: a list is never empty.
func (r *reader) list(what string, max int, one func(what string, max int) string) []string {
	if r.peek() != '[' {
		return []string{one(what, max)}
	}
	r.token()
	var all []string
	for r.err == nil && r.peek() != ']' {
		if len(all) == valuesMax {
			r.syntax("The key policy's " + what + " has too many values.")
			return nil
		}
		all = append(all, one(what, max))
	}
	r.token()
	if len(all) == 0 {
		r.syntax("The key policy's " + what + " is empty.")
	}
	return all
}

// end refuses what follows the document.
func (r *reader) end() {
	if r.err != nil {
		return
	}
	if _, err := r.d.ReadToken(); err != io.EOF {
		r.syntax("The key policy has data behind its JSON object.")
	}
}
