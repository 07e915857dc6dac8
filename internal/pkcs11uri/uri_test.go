package pkcs11uri

import (
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	u, err := Parse("pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;serial=01?module-path=/usr/lib/m.so&pin-source=file:/etc/pin%3F&x-init-args=configdir%3D'a%20b'")
	if err != nil {
		t.Fatal(err)
	}
	want := &URI{
		Path: []Attr{{"token", "The Software PKCS#11 Softtoken"}, {"serial", "01"}},
		Query: []Attr{{"module-path", "/usr/lib/m.so"}, {"pin-source", "file:/etc/pin?"},
			{"x-init-args", "configdir='a b'"}},
	}
	if !reflect.DeepEqual(u, want) {
		t.Fatalf("%+v, want %+v", u, want)
	}
	if Get(u.Path, "serial") != "01" || Get(u.Query, "serial") != "" || !Has(u.Path, "serial") || Has(u.Query, "serial") {
		t.Error("Get and Has disagree with the components")
	}
	wantText := "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;serial=01" +
		"?module-path=/usr/lib/m.so&pin-source=file:/etc/pin?&x-init-args=configdir='a%20b'"
	if got := u.String(); got != wantText {
		t.Errorf("String: %s, want %s", got, wantText)
	}
	if u, err := Parse("PKCS11:"); err != nil || len(u.Path)+len(u.Query) != 0 {
		t.Errorf("empty URI: %v, %v", u, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", "pkcs11", "http://x", "pkcs11:token", "pkcs11:=x", "pkcs11:token=a;token=b", "pkcs11:tokn=a", "pkcs11:token=a?pin=1",
		"pkcs11:module-path=/x", "pkcs11:?token=a", "pkcs11:token=a b", "pkcs11:token=%2", "pkcs11:token=%zz", "pkcs11:token=a/b",
		"pkcs11:token=a;", "pkcs11:;token=a", "pkcs11:token=a?module-path=/x&", "pkcs11:to\x00ken=a", "pkcs11:token=\xff", "pkcs11:token=a#f",
		"pkcs11:x-" + strings.Repeat("n", 63) + "=a",
	} {
		if u, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %+v", s, u)
		}
	}
}

func TestLimits(t *testing.T) {
	long := "pkcs11:token=" + strings.Repeat("a", LenMax-len("pkcs11:token="))
	if _, err := Parse(long); err != nil {
		t.Errorf("at the length limit: %v", err)
	}
	if _, err := Parse(long + "a"); err == nil {
		t.Error("one byte over the length limit was accepted")
	}
	var attrs []string
	for i := range AttrMax {
		attrs = append(attrs, "x-"+string(rune('a'+i%26))+strings.Repeat("b", i/26+1)+"=1")
	}
	if _, err := Parse("pkcs11:" + strings.Join(attrs, ";")); err != nil {
		t.Errorf("at the attribute limit: %v", err)
	}
	if _, err := Parse("pkcs11:" + strings.Join(attrs, ";") + "?pin-source=a"); err == nil {
		t.Error("one attribute over the limit was accepted")
	}
	if _, err := Parse("pkcs11:x-" + strings.Repeat("n", 62) + "=a"); err != nil {
		t.Errorf("at the name limit: %v", err)
	}
}

func TestSecretsStayOut(t *testing.T) {
	u, err := Parse("pkcs11:token=a?pin-value=hunter2")
	if err != nil {
		t.Fatal(err)
	}
	if s := u.Redacted(); strings.Contains(s, "hunter2") || !strings.Contains(s, "pin-value=REDACTED") {
		t.Errorf("Redacted: %s", s)
	}
	if Get(u.Query, "pin-value") != "hunter2" {
		t.Error("Redacted changed the URI")
	}
	if _, err := Parse("pkcs11:token=a?pin-value=hunter2%zz"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error text: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"pkcs11:", "pkcs11:token=a;serial=0?module-path=/m&pin-source=file:/p", "pkcs11:id=%00%ff;object=k;type=private",
		"pkcs11:x-a=1;x-b=%3b?x-c=%26", "pkcs11:token=%", "PKCS11:?pin-value=a|b",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(u.String())
		if err != nil {
			if len(u.String()) > LenMax {
				return
			}
			t.Fatalf("%q -> %q: %v", s, u.String(), err)
		}
		if !reflect.DeepEqual(u, again) || u.String() != again.String() {
			t.Fatalf("%q: %+v became %+v", s, u, again)
		}
	})
}
