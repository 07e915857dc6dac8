package awsjson

import (
	"bytes"
	"encoding/base64"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

var seeds = []string{
	``, ` `, `{}`, `null`, `[]`, `"x"`, `1`, `{"a":1,"a":2}`, `{"a":{"b":[1,2.5e-3,true,false,null,"\u00e9\ud83d\ude00"]}}`, `{"\u0061":1,"a":2}`, `{"a":"\ud800"}`,
	"{\"a\":\"\xff\"}", `{"a":1}x`, `{"a":01}`, `[1,]`, `{"a":1,}`, `-0`, `1e400`, `9223372036854775808`, "\"\x7f\"", "\ufeff{}",
	`{"KeyId":"alias/a","NumberOfBytes":32,"DryRun":true,"Plaintext":"aGVsbG8=","GrantTokens":["a",null,"b"],"EncryptionContext":{"k":"v","l":"w"}}`,
	`{"keyid":"x","KeyId":null,"NumberOfBytes":-9223372036854775808,"Plaintext":"Zh==","GrantTokens":[],"EncryptionContext":{}}`,
	`{"NumberOfBytes":1.0}`, `{"NumberOfBytes":9223372036854775808}`, `{"Plaintext":"Zm9v\n"}`, `{"GrantTokens":"x"}`, `{"EncryptionContext":{"a":1}}`, `{"DryRun":"true"}`,
	strings.Repeat("[", 33) + strings.Repeat("]", 33), strings.Repeat(`{"a":`, 32) + "1" + strings.Repeat("}", 32), object(256), object(257),
}

// FuzzScanner holds the Scanner against a second strict reader of JSON: the same texts are accepted, apart from our limits, and give the
// same values.
func FuzzScanner(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return // an empty body stands for {}, not for JSON text
		}
		want, depth, members, err := reference(in)
		var s Scanner
		s.Reset(append([]byte(nil), in...))
		var b strings.Builder
		walk(&s, &b)
		s.End()
		if s.depth > len(s.frames) || s.pos > len(in) {
			t.Fatalf("%q: depth %d, position %d", in, s.depth, s.pos)
		}
		switch beyond := depth > kmsapi.JSONDepthMax || members > kmsapi.JSONMembersMax; {
		case s.Fault() == Depth && depth <= kmsapi.JSONDepthMax, s.Fault() == Members && members < kmsapi.JSONMembersMax:
			t.Fatalf("%q: fault %d at depth %d, %d members", in, s.Fault(), depth, members)
		case s.Fault() == None && (err != nil || beyond):
			t.Fatalf("%q: accepted at depth %d with %d members; reference: %v", in, depth, members, err)
		case s.Fault() != None && err == nil && !beyond:
			t.Fatalf("%q: fault %d, %s; reference accepts", in, s.Fault(), s.AppendFault(nil))
		case s.Fault() == None && b.String() != want:
			t.Fatalf("%q: %s; reference: %s", in, b.String(), want)
		}
		// Skipping applies the same rules as reading.
		var skip Scanner
		skip.Reset(append([]byte(nil), in...))
		if skip.End(); skip.Fault() != s.Fault() {
			t.Fatalf("%q: fault %d when skipped, %d when read", in, skip.Fault(), s.Fault())
		}
	})
}

// walk writes the tokens of the value at hand.
func walk(s *Scanner, b *strings.Builder) {
	s.space()
	if s.pos == len(s.body) {
		return
	}
	switch from := s.pos; s.body[from] {
	case '"':
		v, _ := s.String()
		b.WriteString(strconv.Quote(string(v)) + " ")
	case '{':
		if s.Object() {
			b.WriteString("{ ")
			for name, ok := s.Next(); ok; name, ok = s.Next() {
				b.WriteString(strconv.Quote(string(name)) + " ")
				walk(s, b)
			}
			b.WriteString("} ")
		}
	case '[':
		if s.List() {
			b.WriteString("[ ")
			for s.More() {
				walk(s, b)
			}
			b.WriteString("] ")
		}
	default:
		s.Skip()
		b.Write(s.body[from:s.pos])
		b.WriteByte(' ')
	}
}

// reference writes the tokens of one JSON text, with the depth and the number of members in one object that it met until its error.
func reference(in []byte) (tokens string, depth, members int, err error) {
	var b strings.Builder
	d := jsontext.NewDecoder(bytes.NewReader(in))
	for first := true; first || d.StackDepth() > 0; first = false {
		token, err := d.ReadToken()
		if err != nil {
			return "", depth, members, err
		}
		depth = max(depth, d.StackDepth())
		if kind, n := d.StackIndex(d.StackDepth()); kind == '{' {
			members = max(members, int(n+1)/2)
		}
		if token.Kind() == '"' {
			b.WriteString(strconv.Quote(token.String()) + " ")
		} else {
			b.WriteString(token.String() + " ")
		}
	}
	if _, err := d.ReadToken(); err != io.EOF {
		return "", depth, members, io.ErrUnexpectedEOF
	}
	return b.String(), depth, members, nil
}

// FuzzRequest holds a decoder as the operations have them against the same members declared as a Go struct.
func FuzzRequest(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	type members struct {
		KeyID             *string            `json:"KeyId"`
		KeySpec           *string            `json:"KeySpec"`
		NumberOfBytes     *int64             `json:"NumberOfBytes"`
		DryRun            *bool              `json:"DryRun"`
		Plaintext         *string            `json:"Plaintext"`
		GrantTokens       []*string          `json:"GrantTokens"`
		EncryptionContext map[string]*string `json:"EncryptionContext"`
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		var s Scanner
		got := decode(&s, append([]byte(nil), in...))
		if s.Fault() == Depth || s.Fault() == Members {
			return // FuzzScanner looks at the limits
		}
		var want members
		err := json.Unmarshal(in, &want)
		var blob []byte
		if err == nil && want.Plaintext != nil {
			if strings.ContainsAny(*want.Plaintext, "\r\n") {
				err = base64.CorruptInputError(0)
			} else {
				blob, err = base64.StdEncoding.Strict().DecodeString(*want.Plaintext)
			}
		}
		if (err == nil) != (s.Fault() == None) {
			t.Fatalf("%q: fault %d, %s; reference: %v", in, s.Fault(), s.AppendFault(nil), err)
		}
		if err != nil {
			return
		}
		var tokens []string
		for _, v := range want.GrantTokens {
			if v != nil {
				tokens = append(tokens, *v)
			}
		}
		var context map[string]*string
		if got.context != nil {
			context = map[string]*string{}
			for _, kv := range got.context {
				context[kv[0]] = &kv[1]
			}
		}
		for k, v := range want.EncryptionContext {
			if v == nil {
				want.EncryptionContext[k] = new(string) // decode keeps a null as ""
			}
		}
		if len(want.EncryptionContext) == 0 {
			want.EncryptionContext = nil
		}
		same := equal(got.keyID, want.KeyID) && equal(got.spec, want.KeySpec) && (want.NumberOfBytes == nil && got.number == 0 || want.NumberOfBytes != nil && *want.NumberOfBytes == got.number) &&
			(want.DryRun != nil && *want.DryRun) == got.dryRun && (want.Plaintext != nil) == (got.plaintext != nil) && bytes.Equal(got.plaintext, blob) &&
			reflect.DeepEqual(got.tokens, tokens) && reflect.DeepEqual(context, want.EncryptionContext)
		if !same {
			t.Fatalf("%q: %+v; reference: %+v", in, got, want)
		}
	})
}

// equal compares a value of the Scanner, nil where absent, with the reference's.
func equal(got []byte, want *string) bool {
	return (got == nil) == (want == nil) && (want == nil || string(got) == *want)
}
