package controlplane

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/internal/awsjson"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// blanks are the insignificant white space of JSON (RFC 8259, section 2).
const blanks = " \t\r\n"

// decode reads a request body into the input that v points to. An empty body is {}. Unknown members are ignored, null is absent; a
// duplicate member, invalid UTF-8, trailing data or a value of another type is a SerializationException, as is a body that is no object.
func decode(body []byte, v any) error {
	if len(bytes.TrimLeft(body, blanks)) == 0 {
		return nil
	}
	if err := bound(body); err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return kmsapi.New(kmsapi.Serialization, mismatch(err))
	}
	return nil
}

var (
	errDepth   = kmsapi.New(kmsapi.Validation, "The request body is nested deeper than "+strconv.Itoa(kmsapi.JSONDepthMax)+" levels")
	errMembers = kmsapi.New(kmsapi.Validation, "An object in the request body has more than "+strconv.Itoa(kmsapi.JSONMembersMax)+" members")
)

// bound walks a body once and refuses what is not strict JSON or goes beyond the limits on depth and members.
func bound(body []byte) error {
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		if d.PeekKind() == '{' || d.PeekKind() == '[' {
			if d.StackDepth() == kmsapi.JSONDepthMax {
				return errDepth
			}
		}
		_, err := d.ReadToken()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if errors.Is(err, jsontext.ErrDuplicateName) {
				return kmsapi.New(kmsapi.Serialization, "Duplicate field name")
			}
			return kmsapi.New(kmsapi.Serialization, "Unexpected token at position "+strconv.FormatInt(d.InputOffset(), 10))
		}
		if kind, n := d.StackIndex(d.StackDepth()); kind == '{' && n > 2*kmsapi.JSONMembersMax {
			return errMembers
		}
		if d.StackDepth() == 0 {
			// The value is complete: only blanks may follow.
			if len(bytes.TrimLeft(body[d.InputOffset():], blanks)) > 0 {
				return kmsapi.New(kmsapi.Serialization, "Unexpected token at position "+strconv.FormatInt(d.InputOffset(), 10))
			}
			return nil
		}
	}
}

// mismatch words a value of the wrong type as AWS's JSON front end does. No bytes of the body are repeated.
func mismatch(err error) string {
	var e *json.SemanticError
	if !errors.As(err, &e) {
		return "The request body could not be read"
	}
	want := ""
	if e.GoType != nil {
		switch e.GoType.Kind() {
		case reflect.Slice:
			if want = "list"; e.GoType.Elem().Kind() == reflect.Uint8 {
				want = "a Blob"
			}
		case reflect.Struct, reflect.Map:
			want = "structure"
		case reflect.Bool:
			want = "a Boolean"
		case reflect.String:
			want = "a String"
		default:
			want = "an Integer"
		}
	}
	switch k := e.JSONKind; {
	case k == '[':
		return "Start of list found where not expected"
	case k == '{':
		return "Start of structure or map found where not expected."
	case want == "list":
		return "Expected list or null"
	case want == "structure":
		return "Expected null"
	case k == '"':
		return "STRING_VALUE can not be converted to " + want
	case k == 't':
		return "TRUE_VALUE can not be converted to " + want
	case k == 'f':
		return "FALSE_VALUE can not be converted to " + want
	}
	return "NUMBER_VALUE can not be converted to " + want
}

// timestamp is a time in a reply: a JSON number of seconds since 1970 with milliseconds.
type timestamp struct{ time.Time }

func (t timestamp) MarshalJSON() ([]byte, error) {
	return awsjson.AppendTimestamp(nil, t.UnixMilli()), nil
}
