package awsjson

import (
	"strconv"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// request is a decoder as the operations have them.
type request struct {
	keyID, spec []byte
	number      int64
	dryRun      bool
	plaintext   []byte
	tokens      []string
	context     [][2]string
	missing     string // members that were null or absent
}

func decode(s *Scanner, body []byte) (r request) {
	s.Reset(body)
	if s.Object() {
		for name, ok := s.Next(); ok; name, ok = s.Next() {
			var present bool
			switch string(name) {
			case "KeyId":
				r.keyID, present = s.String()
			case "KeySpec":
				r.spec, present = s.String()
			case "NumberOfBytes":
				r.number, present = s.Int()
			case "DryRun":
				r.dryRun, present = s.Bool()
			case "Plaintext":
				r.plaintext, present = s.Base64()
			case "GrantTokens":
				if present = s.List(); present {
					for s.More() {
						if v, ok := s.String(); ok {
							r.tokens = append(r.tokens, string(v))
						}
					}
				}
			case "EncryptionContext":
				if present = s.Object(); present {
					for k, ok := s.Next(); ok; k, ok = s.Next() {
						v, _ := s.String()
						r.context = append(r.context, [2]string{string(k), string(v)})
					}
				}
			default:
				present = true
			}
			if !present {
				r.missing += string(name) + " "
			}
		}
	}
	s.End()
	return r
}

func TestDecodeRequest(t *testing.T) {
	var s Scanner
	r := decode(&s, []byte(" {\"KeyId\" : \"alias\\/a\" ,\r\n\t\"Future\":{\"a\":[1,-0.5e+3,{\"b\":null}],\"c\":\"\\ud83d\\ude00\"},\"NumberOfBytes\":-12,"+
		`"DryRun":true,"Plaintext":"aGVsbG8=","GrantTokens":["x",null,"y"],"EncryptionContext":{"k":"v","\u006b2":"é"},"KeySpec":null} `))
	if s.Fault() != None {
		t.Fatalf("fault %d: %s", s.Fault(), s.AppendFault(nil))
	}
	if string(r.keyID) != "alias/a" || r.spec != nil || r.number != -12 || !r.dryRun || string(r.plaintext) != "hello" ||
		strings.Join(r.tokens, ",") != "x,y" || len(r.context) != 2 || r.context[0] != [2]string{"k", "v"} || r.context[1] != [2]string{"k2", "é"} {
		t.Errorf("%+v", r)
	}
	if r.missing != "KeySpec " {
		t.Errorf("missing: %q", r.missing)
	}
}

func TestEmptyAndNullBodies(t *testing.T) {
	var zero Scanner
	if zero.Object() || !zero.End() {
		t.Error("the zero Scanner does not read an empty body")
	}
	for _, body := range []string{"", "{}", " {\t} ", "null", "\nnull\n"} {
		var s Scanner
		if r := decode(&s, []byte(body)); s.Fault() != None || r.keyID != nil || r.missing != "" {
			t.Errorf("%q: %+v, fault %d", body, r, s.Fault())
		}
	}
	for _, body := range []string{" ", "\n", "\ufeff{}"} {
		var s Scanner
		if decode(&s, []byte(body)); s.Fault() != Syntax {
			t.Errorf("%q: fault %d", body, s.Fault())
		}
	}
}

func TestNullsAreAbsent(t *testing.T) {
	var s Scanner
	r := decode(&s, []byte(`{"KeyId":null,"NumberOfBytes":null,"DryRun":null,"Plaintext":null,"GrantTokens":null,"EncryptionContext":null,"KeySpec":""}`))
	if s.Fault() != None || r.missing != "KeyId NumberOfBytes DryRun Plaintext GrantTokens EncryptionContext " {
		t.Errorf("missing %q, fault %d", r.missing, s.Fault())
	}
	if r.spec == nil {
		t.Error("an empty string is nil, as an absent one is")
	}
	if r = decode(&s, []byte(`{"Plaintext":""}`)); r.plaintext == nil || s.Fault() != None {
		t.Error("an empty blob is nil, as an absent one is")
	}
}

func TestFaults(t *testing.T) {
	const syntax = "Unexpected token at position "
	for _, c := range []struct {
		body  string
		fault Fault
		text  string
	}{
		// Another JSON type than asked for, in the front end's words.
		{`{"KeyId":1}`, Type, "NUMBER_VALUE can not be converted to a String"},
		{`{"KeyId":true}`, Type, "TRUE_VALUE can not be converted to a String"},
		{`{"KeyId":false}`, Type, "FALSE_VALUE can not be converted to a String"},
		{`{"KeyId":["a"]}`, Type, "Start of list found where not expected"},
		{`{"KeyId":{}}`, Type, "Start of structure or map found where not expected."},
		{`{"NumberOfBytes":"1"}`, Type, "STRING_VALUE can not be converted to an Integer"},
		{`{"NumberOfBytes":true}`, Type, "TRUE_VALUE can not be converted to an Integer"},
		{`{"NumberOfBytes":1.0}`, Type, "DECIMAL_VALUE can not be converted to an Integer"},
		{`{"NumberOfBytes":1e2}`, Type, "DECIMAL_VALUE can not be converted to an Integer"},
		{`{"NumberOfBytes":[1]}`, Type, "Start of list found where not expected"},
		{`{"DryRun":"true"}`, Type, "STRING_VALUE can not be converted to a Boolean"},
		{`{"DryRun":1}`, Type, "NUMBER_VALUE can not be converted to a Boolean"},
		{`{"Plaintext":-1}`, Type, "NUMBER_VALUE can not be converted to a Blob"},
		{`{"GrantTokens":"x"}`, Type, "Expected list or null"},
		{`{"GrantTokens":{}}`, Type, "Start of structure or map found where not expected."},
		{`{"GrantTokens":[1]}`, Type, "NUMBER_VALUE can not be converted to a String"},
		{`{"EncryptionContext":"x"}`, Type, "Expected null"},
		{`{"EncryptionContext":[]}`, Type, "Start of list found where not expected"},
		{`{"EncryptionContext":{"a":1}}`, Type, "NUMBER_VALUE can not be converted to a String"},
		{`[]`, Type, "Start of list found where not expected"},
		{`"x"`, Type, "Expected null"},

		{`{"a":1,"a":1}`, Duplicate, "Duplicate field name"},
		{`{"KeyId":"x","\u004beyId":"y"}`, Duplicate, "Duplicate field name"},
		{`{"":1,"":1}`, Duplicate, "Duplicate field name"},
		{`{"x":{"a":1,"b":[{}],"a":2}}`, Duplicate, "Duplicate field name"},
		{`{"EncryptionContext":{"a":"1","a":"1"}}`, Duplicate, "Duplicate field name"},

		{"{\"KeyId\":\"\xff\"}", UTF8, "The request body is not valid UTF-8"},
		{"{\"\xc3\":1}", UTF8, "The request body is not valid UTF-8"},
		{"{\"x\":\"\xed\xa0\x80\"}", UTF8, "The request body is not valid UTF-8"}, // an encoded surrogate
		{"{\"x\":\"\xc0\x80\"}", UTF8, "The request body is not valid UTF-8"},     // overlong
		{`{"x":"\ud83d"}`, UTF8, "The request body is not valid UTF-8"},
		{`{"x":"\ud83d\n"}`, UTF8, "The request body is not valid UTF-8"},
		{`{"x":"\ud83d\u0041"}`, UTF8, "The request body is not valid UTF-8"},
		{`{"x":"\ude00\ud83d"}`, UTF8, "The request body is not valid UTF-8"},

		{`{"NumberOfBytes":9223372036854775808}`, Range, "NUMBER_VALUE can not be converted to a Long"},
		{`{"NumberOfBytes":-9223372036854775809}`, Range, "NUMBER_VALUE can not be converted to a Long"},
		{`{"NumberOfBytes":100000000000000000000000}`, Range, "NUMBER_VALUE can not be converted to a Long"},

		{`{"Plaintext":"aGVsbG8"}`, Blob, "STRING_VALUE can not be converted to a Blob"},
		{`{"Plaintext":"aGVs\nbG8="}`, Blob, "STRING_VALUE can not be converted to a Blob"},

		{`{`, Syntax, syntax + "1"},
		{`}`, Syntax, syntax + "0"},
		{`{"a":1}}`, Syntax, syntax + "7"},
		{`{"a":1} {}`, Syntax, syntax + "8"},
		{`{"a":1,}`, Syntax, syntax + "7"},
		{`{,"a":1}`, Syntax, syntax + "1"},
		{`{"a":1"b":2}`, Syntax, syntax + "6"},
		{`{"a"1}`, Syntax, syntax + "4"},
		{`{"a":}`, Syntax, syntax + "5"},
		{`{"a"`, Syntax, syntax + "4"},
		{`{"a":`, Syntax, syntax + "5"},
		{`{"a":1,`, Syntax, syntax + "7"},
		{`{a:1}`, Syntax, syntax + "1"},
		{`{'a':1}`, Syntax, syntax + "1"},
		{`{"a":1]`, Syntax, syntax + "6"},
		{`{"a":[1}`, Syntax, syntax + "7"},
		{`{"a":[1,]}`, Syntax, syntax + "8"},
		{`{"GrantTokens":["a",]}`, Syntax, syntax + "20"},
		{`{"a":[,1]}`, Syntax, syntax + "6"},
		{`{"a":tru}`, Syntax, syntax + "5"},
		{`{"a":True}`, Syntax, syntax + "5"},
		{`{"a":nul}`, Syntax, syntax + "5"},
		{`{"KeyId":nul}`, Syntax, syntax + "9"},
		{`{"DryRun":tru}`, Syntax, syntax + "10"},
		{`{"a":nullx}`, Syntax, syntax + "9"},
		{`{"a":NaN}`, Syntax, syntax + "5"},
		{`{"a":01}`, Syntax, syntax + "7"},
		{`{"a":+1}`, Syntax, syntax + "5"},
		{`{"a":-}`, Syntax, syntax + "6"},
		{`{"a":.5}`, Syntax, syntax + "5"},
		{`{"a":1.}`, Syntax, syntax + "7"},
		{`{"a":1e}`, Syntax, syntax + "7"},
		{`{"a":1e+}`, Syntax, syntax + "8"},
		{`{"a":0x1}`, Syntax, syntax + "6"},
		{`{"NumberOfBytes":00}`, Syntax, syntax + "19"},
		{`{"a":"x}`, Syntax, syntax + "8"},
		{`{"a":"\x"}`, Syntax, syntax + "6"},
		{`{"a":"\u12g4"}`, Syntax, syntax + "6"},
		{`{"a":"\u123`, Syntax, syntax + "6"},
		{`{"a":"x\`, Syntax, syntax + "7"},
		{"{\"a\":\"x\ny\"}", Syntax, syntax + "7"},
		{"{\"a\":\"x\x00\"}", Syntax, syntax + "7"},
		{"{\"a\":\x00}", Syntax, syntax + "5"},
		{"\x00", Syntax, syntax + "0"},
		{"{} \x00", Syntax, syntax + "3"},
		{`{"a":1 /* c */}`, Syntax, syntax + "7"},
		{"{\"a\":\v1}", Syntax, syntax + "5"},
	} {
		var s Scanner
		decode(&s, []byte(c.body))
		if got := string(s.AppendFault(nil)); s.Fault() != c.fault || got != c.text {
			t.Errorf("%s: fault %d %q, want %d %q", c.body, s.Fault(), got, c.fault, c.text)
		}
	}
}

func TestCodes(t *testing.T) {
	want := map[Fault]kmsapi.Code{
		None: kmsapi.OK, Syntax: kmsapi.Serialization, Type: kmsapi.Serialization, Duplicate: kmsapi.Serialization, UTF8: kmsapi.Serialization,
		Range: kmsapi.Serialization, Blob: kmsapi.Serialization, Depth: kmsapi.Validation, Members: kmsapi.Validation,
	}
	for f := None; f <= Members; f++ {
		if f.Code() != want[f] {
			t.Errorf("fault %d: %v", f, f.Code())
		}
		s := Scanner{fault: f, got: aString, want: anInteger}
		if text := s.AppendFault(nil); (len(text) == 0) != (f == None) {
			t.Errorf("fault %d has the message %q", f, text)
		}
	}
}

func TestIntegers(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "-0": 0, "7": 7, "-1": -1, "1024": 1024, "9223372036854775807": 9223372036854775807, "-9223372036854775808": -9223372036854775808,
	} {
		var s Scanner
		if r := decode(&s, []byte(`{"NumberOfBytes":`+in+`}`)); s.Fault() != None || r.number != want || r.missing != "" {
			t.Errorf("%s: %d, fault %d", in, r.number, s.Fault())
		}
	}
}

func TestDepth(t *testing.T) {
	for _, open := range []string{`{"a":`, `[`} {
		closing := map[string]string{`{"a":`: "}", `[`: "]"}[open]
		for depth, want := range map[int]Fault{kmsapi.JSONDepthMax: None, kmsapi.JSONDepthMax + 1: Depth, 20_000: Depth} {
			body := `{"x":` + strings.Repeat(open, depth-1) + "1" + strings.Repeat(closing, depth-1) + "}"
			var s Scanner
			if decode(&s, []byte(body)); s.Fault() != want {
				t.Errorf("%s at depth %d: fault %d, want %d", open, depth, s.Fault(), want)
			}
			s.Reset([]byte(body)) // the same through the calls of a decoder
			n := 0
			enter, next := s.List, s.More
			if open != "[" {
				enter, next = s.Object, func() bool { _, ok := s.Next(); return ok }
			}
			if s.Object() {
				n++
				s.Next()
			}
			for enter() {
				n++
				next()
			}
			if want == Depth && (s.Fault() != Depth || n != kmsapi.JSONDepthMax) || want == None && n != depth {
				t.Errorf("%s at depth %d: entered %d, fault %d", open, depth, n, s.Fault())
			}
		}
	}
	var s Scanner
	decode(&s, []byte(strings.Repeat("[", 33)))
	if got := string(s.AppendFault(nil)); s.Fault() != Type {
		t.Error(got)
	}
	decode(&s, []byte(`{"x":`+strings.Repeat("[", 33)))
	if got := string(s.AppendFault(nil)); got != "The request body is nested deeper than 32 levels" {
		t.Error(got)
	}
}

// object has n distinct members.
func object(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"m` + strconv.Itoa(i) + `":` + strconv.Itoa(i))
	}
	return "{" + b.String() + "}"
}

func TestMembers(t *testing.T) {
	for n, want := range map[int]Fault{kmsapi.JSONMembersMax: None, kmsapi.JSONMembersMax + 1: Members, 5000: Members} {
		for _, body := range []string{object(n), `{"x":` + object(n) + `}`, `{"x":[1,{"y":` + object(n) + `}]}`} {
			var s Scanner
			if decode(&s, []byte(body)); s.Fault() != want {
				t.Errorf("%d members: fault %d, want %d", n, s.Fault(), want)
			}
		}
	}
	// The limit is per object, and lists have none of their own.
	var s Scanner
	body := `{"a":[` + strings.Repeat(object(kmsapi.JSONMembersMax)+",", 20) + `1],"b":[` + strings.Repeat("1,", 5000) + `1]}`
	if decode(&s, []byte(body)); s.Fault() != None {
		t.Errorf("fault %d: %s", s.Fault(), s.AppendFault(nil))
	}
	decode(&s, []byte(object(257)))
	if got := string(s.AppendFault(nil)); got != "An object in the request body has more than 256 members" {
		t.Error(got)
	}
	// A duplicate is found at the last place too.
	o := object(kmsapi.JSONMembersMax - 1)
	if decode(&s, []byte(o[:len(o)-1]+`,"m0":1}`)); s.Fault() != Duplicate {
		t.Errorf("fault %d", s.Fault())
	}
}

// Names with equal hashes are told apart by their bytes.
func TestHashCollisions(t *testing.T) {
	for _, pair := range [][2]string{{"costarring", "liquid"}, {"declinate", "macallums"}, {"altarage", "zinke"}} {
		var s Scanner
		s.Reset([]byte(`{"` + pair[0] + `":1,"` + pair[1] + `":2}`))
		s.Object()
		s.Next()
		s.Next()
		if s.Fault() != None || len(s.names) != 2 || s.names[0].hash != s.names[1].hash {
			t.Errorf("%q: fault %d, records %+v", pair, s.Fault(), s.names)
		}
	}
}

func TestUnreadAndMisusedValues(t *testing.T) {
	var s Scanner
	// Values that nobody read are skipped and still checked; a value is read once.
	s.Reset([]byte(`{"a":{"b":[1,2]},"c":"x","d":[3,[4],{"e":5}],"f":6}`))
	var names string
	if !s.Object() {
		t.Fatal("no object")
	}
	for name, ok := s.Next(); ok; name, ok = s.Next() {
		names += string(name)
		if string(name) == "c" {
			v, ok := s.String()
			w, again := s.String()
			if string(v) != "x" || !ok || w != nil || again || s.Object() || s.List() {
				t.Errorf("%q %t, then %q %t", v, ok, w, again)
			}
		}
		if string(name) == "d" && (!s.List() || !s.More() || !s.More() || !s.More() || s.More()) {
			t.Error("the list has not three elements")
		}
	}
	if names != "acdf" || !s.End() {
		t.Errorf("names %q, fault %d", names, s.Fault())
	}
	// Next in a list and More in an object read nothing.
	s.Reset([]byte(`{"a":[1]}`))
	if !s.Object() || s.More() {
		t.Error("More read an object")
	}
	if name, ok := s.Next(); !ok || string(name) != "a" || !s.List() {
		t.Error("the object cannot be read after More")
	}
	if name, ok := s.Next(); ok {
		t.Errorf("Next read %q from a list", name)
	}
	// End reads what a decoder left, at any place.
	for body, want := range map[string]Fault{`{"a":[1,{"b":2}],"c":3}`: None, `{"a":[1,{"b":2}],"c":3}x`: Syntax, `{"a":[1,{"b":2,"b":3}]}`: Duplicate, `{"a":[1`: Syntax} {
		s.Reset([]byte(body))
		s.Object()
		s.Next()
		s.List()
		if s.End() != (want == None) || s.Fault() != want {
			t.Errorf("%s: fault %d, want %d", body, s.Fault(), want)
		}
	}
	// After a fault nothing is read.
	s.Reset([]byte(`{"a":1,"a":2,"b":"x"}`))
	s.Object()
	for _, ok := s.Next(); ok; _, ok = s.Next() {
	}
	name, next := s.Next()
	v, str := s.String()
	_, i := s.Int()
	_, b := s.Bool()
	_, blob := s.Base64()
	if name != nil || next || v != nil || str || i || b || blob || s.Object() || s.List() || s.More() || s.End() || s.Fault() != Duplicate {
		t.Errorf("read on after a fault: %q %q, fault %d", name, v, s.Fault())
	}
}

// Results cannot be appended to over the rest of the body.
func TestResultsHaveNoSpareCapacity(t *testing.T) {
	var s Scanner
	s.Reset([]byte(`{"a":"\u0041bc","b":"aGVsbG8="}`))
	s.Object()
	name, _ := s.Next()
	v, _ := s.String()
	s.Next()
	blob, _ := s.Base64()
	if cap(name) != len(name) || cap(v) != len(v) || cap(blob) != len(blob) {
		t.Errorf("capacities %d, %d, %d", cap(name), cap(v), cap(blob))
	}
}

func TestReset(t *testing.T) {
	var s Scanner
	decode(&s, []byte(`{"x":{"y":`+object(200)+`},"x":1}`))
	s.Reset(nil)
	for i, m := range s.names[:cap(s.names)] {
		if m != (member{}) {
			t.Fatalf("name record %d is left: %+v", i, m)
		}
	}
	names := s.names
	s.names = nil
	if s.body != nil || s.pos != 0 || s.pending || s.fault != None || s.got != 0 || s.want != 0 || s.depth != 0 || s.frames != [kmsapi.JSONDepthMax]frame{} || len(names) != 0 {
		t.Errorf("state is left: %+v", s)
	}
	// A hostile body does not make the Scanner keep its memory for ever.
	body := strings.Repeat(`{"a":1,"b":2,"x":`, 30)
	for range 30 {
		body = strings.TrimSuffix(object(200), "}") + `,"x":` + body
		if len(body) > 100_000 {
			break
		}
	}
	s.Reset([]byte(body))
	s.End()
	if cap(s.names) <= namesKeepMax {
		t.Fatalf("the body asked for %d records only", cap(s.names))
	}
	if s.Reset(nil); cap(s.names) != 0 {
		t.Errorf("%d name records kept", cap(s.names))
	}
}

func TestStringEscapes(t *testing.T) {
	for in, want := range map[string]string{
		``: "", `abc`: "abc", `\"\\\/\b\f\n\r\t`: "\"\\/\b\f\n\r\t", `\u0000`: "\x00", `\u00e9\u00E9`: "éé", `\u20ac`: "€", `\uFFFD`: "\ufffd", `\uffff`: "\uffff",
		`\ud83d\ude00`: "😀", `\uDBFF\uDFFF`: "\U0010ffff", `a\u0062c\u0064`: "abcd", "\u007f": "\u007f", "é😀x": "é😀x", "\ufffd": "\ufffd",
		`12345678\n12345678é12345678\t1`: "12345678\n12345678é12345678\t1",
	} {
		for pad := range 17 { // every alignment of the eight-byte steps
			p := strings.Repeat("p", pad)
			var s Scanner
			s.Reset([]byte(`["` + p + in + `","next"]`))
			s.List()
			s.More()
			v, ok := s.String()
			s.More()
			next, _ := s.String()
			if s.More(); !ok || string(v) != p+want || string(next) != "next" || !s.End() {
				t.Errorf("%q: %q, %t, then %q, fault %d", p+in, v, ok, next, s.Fault())
			}
		}
	}
}

func TestPlain(t *testing.T) {
	for c := range 256 {
		stops := c < ' ' || c >= 0x80 || c == '"' || c == '\\'
		for at := range 20 {
			for _, fill := range []byte{' ', 'a', '#', '!', '[', ']', 0x7f} {
				b := []byte(strings.Repeat(string(rune(fill)), 20))
				b[at] = byte(c)
				want := 20
				if stops {
					want = at
				}
				if got := plain(b); got != want {
					t.Fatalf("byte %#x at %d in %q: %d, want %d", c, at, b, got, want)
				}
			}
		}
	}
}
