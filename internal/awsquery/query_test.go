package awsquery

import (
	"bytes"
	"encoding/xml"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestParse(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat("x=1&", ParametersMax+1), "&")
	for i := 0; strings.Contains(many, "x="); i++ {
		many = strings.Replace(many, "x=", string(rune('a'+i/676))+string(rune('a'+i/26%26))+string(rune('a'+i%26))+"=", 1)
	}
	for _, c := range []struct {
		name, body string
		ok         bool
	}{
		{"empty", "", true},
		{"one", "Action=GetCallerIdentity&Version=2011-06-15", true},
		{"escapes", "a=%C3%A4+%2b%2B&b=", true},
		{"most parameters", many[:strings.LastIndexByte(many, '&')], true},
		{"one more", many, false},
		{"longest name", strings.Repeat("n", NameMax) + "=1", true},
		{"longer name", strings.Repeat("n", NameMax+1) + "=1", false},
		{"twice", "a=1&a=1", false},
		{"twice, escaped", "a=1&%61=1", false},
		{"no equals sign", "a", false},
		{"no name", "=1", false},
		{"trailing ampersand", "a=1&", false},
		{"two ampersands", "a=1&&b=1", false},
		{"half an escape", "a=%4", false},
		{"no escape", "a=%zz", false},
		{"half an escape in a name", "a%=1", false},
		{"no UTF-8", "a=%ff", false},
		{"no UTF-8, raw", "a=\xff", false},
	} {
		q, err := Parse([]byte(c.body))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", c.name, err)
		}
		if (q != nil) != c.ok {
			t.Errorf("%s: %v", c.name, q)
		}
	}
	q, err := Parse([]byte("a=%C3%A4+%2b%2B&b="))
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := q.Get("a"); v != "ä ++" || !ok {
		t.Errorf("%q %v", v, ok)
	}
	if n := q.Unread(); n != "b" {
		t.Errorf("unread %q", n)
	}
	if v, ok := q.Get("b"); v != "" || !ok {
		t.Errorf("%q %v", v, ok)
	}
	if v, ok := q.Get("c"); v != "" || ok || q.Unread() != "" {
		t.Errorf("%q %v", v, ok)
	}
}

func TestLists(t *testing.T) {
	q, err := Parse([]byte("L.member.1=a&L.member.2=&L.member.4=d&Tags.member.1.Key=k&Tags.member.1.Value=v&Tags.member.2.Key=only&E=&F=&G=x"))
	if err != nil {
		t.Fatal(err)
	}
	if l := q.List("L"); !slices.Equal(l, []string{"a", ""}) {
		t.Errorf("%q", l)
	}
	if l := q.Structs("Tags", "Key", "Value"); len(l) != 2 || !slices.Equal(l[0], []string{"k", "v"}) || !slices.Equal(l[1], []string{"only", ""}) {
		t.Errorf("%q", l)
	}
	if q.List("E") != nil || q.Structs("F", "Key") != nil || q.List("G") != nil || q.List("none") != nil {
		t.Error("an empty list has members")
	}
	if n := q.Unread(); n != "G" { // a value that is no list
		t.Errorf("unread %q", n)
	}
	q.Get("G")
	if n := q.Unread(); n != "L.member.4" { // behind a gap
		t.Errorf("unread %q", n)
	}
}

func TestReply(t *testing.T) {
	r := NewReply("GetUser", "https://iam.amazonaws.com/doc/2010-05-08/")
	r.Open("User")
	r.Text("UserName", `<a>&"b`)
	r.Text("Odd", "\x00\r\n\t\ufffe\xff")
	r.Some("Absent", "")
	r.Text("Empty", "")
	r.Int("N", -3)
	r.Bool("B", true)
	r.Time("CreateDate", time.Date(2026, 1, 2, 3, 4, 5, 999, time.UTC))
	got := string(r.Finish("id"))
	want := `<GetUserResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><GetUserResult><User><UserName>&lt;a&gt;&amp;&#34;b</UserName>` +
		"<Odd>\ufffd&#xD;\n\t\ufffd\ufffd</Odd><Empty></Empty><N>-3</N><B>true</B><CreateDate>2026-01-02T03:04:05Z</CreateDate></User></GetUserResult>" +
		"<ResponseMetadata><RequestId>id</RequestId></ResponseMetadata></GetUserResponse>"
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	var parsed struct {
		UserName string `xml:"GetUserResult>User>UserName"`
	}
	if err := xml.Unmarshal([]byte(got), &parsed); err != nil || parsed.UserName != `<a>&"b` {
		t.Errorf("%+v %v", parsed, err)
	}
	if got := string(AppendPercent(nil, `{"a": "ä~-._"}`)); got != "%7B%22a%22%3A%20%22%C3%A4~-._%22%7D" {
		t.Error(got)
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		e      *Error
		status int
		text   string
	}{
		{NewError("NoSuchEntity", "a<b"), 404, "<ErrorResponse><Error><Type>Sender</Type><Code>NoSuchEntity</Code><Message>a&lt;b</Message></Error><RequestId>id</RequestId></ErrorResponse>"},
		{NewError("DeleteConflict", ""), 409, "<ErrorResponse><Error><Type>Sender</Type><Code>DeleteConflict</Code></Error><RequestId>id</RequestId></ErrorResponse>"},
		{FromKMS(kmsapi.E(kmsapi.KMSInternal)), 500, "<ErrorResponse><Error><Type>Receiver</Type><Code>InternalFailure</Code><Message>An internal error occurred. You can retry the request.</Message></Error><RequestId>id</RequestId></ErrorResponse>"},
	} {
		if got := string(AppendError(nil, c.e, "id")); got != c.text || c.e.Status != c.status {
			t.Errorf("%d %s", c.e.Status, got)
		}
	}
	for code, want := range map[kmsapi.Code]struct {
		name   string
		status int
	}{
		kmsapi.AccessDenied: {"AccessDenied", 403}, kmsapi.UnrecognizedClient: {"InvalidClientTokenId", 403}, kmsapi.InvalidSignature: {"SignatureDoesNotMatch", 403},
		kmsapi.ExpiredToken: {"ExpiredToken", 403}, kmsapi.MissingAuthenticationToken: {"MissingAuthenticationToken", 403}, kmsapi.IncompleteSignature: {"IncompleteSignature", 400},
		kmsapi.LimitExceeded: {"LimitExceeded", 409}, kmsapi.UnknownOperation: {"InvalidAction", 400}, kmsapi.RequestEntityTooLarge: {"RequestEntityTooLargeException", 413},
		kmsapi.DependencyTimeout: {"ServiceUnavailable", 503}, kmsapi.Validation: {"ValidationError", 400},
	} {
		if e := FromKMS(kmsapi.New(code, "text")); e.Code != want.name || e.Status != want.status || e.Message != "text" {
			t.Errorf("%s: %+v", code, e)
		}
	}
	if !errors.Is(NewError("A", "x"), NewError("A", "y")) || errors.Is(NewError("A", "x"), NewError("B", "x")) {
		t.Error("errors do not compare by code")
	}
}

// FuzzQuery: what is accepted, net/url accepts too, with the same parameters; and every parameter is read or told unread.
func FuzzQuery(f *testing.F) {
	for _, s := range []string{
		"", "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&Tags.member.1.Key=a&Tags.member.1.Value=b+c",
		"a=1&a=2", "a=%", "a=%4", "=&=", "L.member.1=a&L.member.2=b", "L=", "a;b=c", "a=b=c", "%=1", "a=\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := Parse(body)
		if err != nil {
			return
		}
		want := map[string]string{}
		if len(body) > 0 {
			for pair := range bytes.SplitSeq(body, []byte("&")) {
				name, value, found := bytes.Cut(pair, []byte("="))
				n, err := url.QueryUnescape(string(name))
				v, err2 := url.QueryUnescape(string(value))
				if _, twice := want[n]; err != nil || err2 != nil || twice || !found {
					t.Fatalf("accepted %q: %v %v", body, err, err2)
				}
				want[n] = v
			}
		}
		q.List("L")
		q.Structs("Tags", "Key", "Value")
		read := 0
		for {
			name := q.Unread()
			if name == "" {
				break
			}
			if v, ok := q.Get(name); !ok || v != want[name] {
				t.Fatalf("%q: %q, want %q", name, v, want[name])
			}
			if read++; read > len(want) {
				t.Fatal("a parameter is never read")
			}
		}
		if len(q.values) != len(want) {
			t.Fatalf("%d parameters, want %d", len(q.values), len(want))
		}
	})
}
