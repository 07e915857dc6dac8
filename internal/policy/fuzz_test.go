package policy

import (
	"bytes"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzParse: no document panics, the same document always gives the same policy, and what is accepted can be evaluated.
func FuzzParse(f *testing.F) {
	f.Add([]byte(defaultDocument), uint8(KeyPolicy), "kms:Decrypt", "x")
	f.Add([]byte(busyDocument()), uint8(KeyPolicy), "kms:Decrypt", "10.0.0.1")
	f.Add([]byte(identityDocument), uint8(IdentityPolicy), "kms:Encrypt", "2026-11-26T12:00:00Z")
	f.Add([]byte(`{"Statement":{"Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"sts:AssumeRole"}}`), uint8(TrustPolicy), "sts:AssumeRole", "")
	for name, test := range operators {
		v := map[valueType]string{number: "1", date: "2026", truth: "true", binary: "", address: "::/0", arn: "arn:aws:*:*:*:${aws:username}", absence: "false"}[test.typ]
		f.Add([]byte(conditioned(versionVariables, "Deny", `{"ForAllValues:`+name+`IfExists":{"kms:EncryptionContext:x":["`+v+`"]}}`)), uint8(KeyPolicy), "kms:Decrypt", "1")
		f.Add([]byte(conditioned(versionVariables, "Allow", `{"`+name+`":{"aws:TagKeys":["`+v+`","${aws:username, 'x'}*"]}}`)), uint8(KeyPolicy), "kms:Decrypt", "*")
	}
	f.Fuzz(func(t *testing.T, doc []byte, kind uint8, action, value string) {
		k := Kind(kind%uint8(TrustPolicy)) + KeyPolicy
		p, err := Parse(doc, k, nil)
		q, again := Parse(bytes.Clone(doc), k, nil)
		if (err == nil) != (again == nil) || err != nil && *err.(*Error) != *again.(*Error) || !reflect.DeepEqual(p, q) {
			t.Fatalf("%v, %v; %+v, %+v", err, again, p, q)
		}
		if err != nil {
			if err.(*Error).Message == "" || !utf8.ValidString(err.(*Error).Message) || len(err.(*Error).Message) > 600 {
				t.Fatalf("text %q", err.(*Error).Message)
			}
			return
		}
		r := &Request{Action: action, Resource: []byte(keyARN), Scratch: &Scratch{}, Context: everywhere{[]byte(value), []byte(userARN)}}
		for _, caller := range []*Principal{&root, &alice, &worker, &storage, &foreign} {
			r.Principal = caller
			got := p.Evaluate(r)
			if got != q.Evaluate(r) || got.Deny > p.Len() {
				t.Fatalf("%+v", got)
			}
			for m, n := range got.Allow {
				if n > p.Len() || (Match(m) == Attached) != (k == IdentityPolicy) && n != 0 {
					t.Fatalf("%+v", got)
				}
			}
		}
		for n := range p.Len() {
			p.Sid(n + 1)
		}
	})
}

// everywhere has the same values for all condition keys.
type everywhere [][]byte

func (e everywhere) Value(k Key, name string, i int) (Value, bool) {
	if i >= len(e) || i > 0 && !k.multivalued() {
		return Value{}, false
	}
	return Value{Text: e[i]}, true
}

func (e everywhere) First(k Key, name string, _ bool, v *Value) int { return first(e, k, name, v) }

// naiveMatch is what a pattern means, in quadratic space: reach[i][j] is whether the first i symbols match the first j characters.
func naiveMatch(pattern, text string) bool {
	p, v := []rune(pattern), []rune(text)
	reach := make([][]bool, len(p)+1)
	for i := range reach {
		reach[i] = make([]bool, len(v)+1)
		for j := range reach[i] {
			switch {
			case i == 0:
				reach[i][j] = j == 0
			case p[i-1] == '*':
				reach[i][j] = reach[i-1][j] || j > 0 && reach[i][j-1]
			default:
				reach[i][j] = j > 0 && reach[i-1][j-1] && (p[i-1] == '?' || p[i-1] == v[j-1])
			}
		}
	}
	return reach[len(p)][len(v)]
}

// FuzzGlob against the naive matcher, for text and for the parts of an ARN.
func FuzzGlob(f *testing.F) {
	for _, s := range [][2]string{{"", ""}, {"*", ""}, {"a*b?c", "axxbyc"}, {"*?*?", "é€"}, {"**a**", "bab"}, {"*aab", "aaaab"}, {"?é*", "€éx"}, {"*a?", "aab"},
		{"arn:aws:iam::*:user/*", userARN}, {"*:*:*:*:*:*", userARN}, {"a:*:c", "a:b:c"}} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern)*len(text) > 1<<16 || !utf8.ValidString(pattern) || !utf8.ValidString(text) {
			return
		}
		g := newGlob(pattern)
		want := naiveMatch(pattern, text)
		if got := g.match([]byte(text)); got != want {
			t.Fatalf("%q, %q: %v, want %v", pattern, text, got, want)
		}
		if got := match(g.symbols(), []byte(text)); got != want {
			t.Fatalf("%q, %q as a pattern: %v, want %v", pattern, text, got, want)
		}
		if !match(appendLiteral(nil, text), []byte(text)) {
			t.Fatalf("%q does not match itself", text)
		}
		if parts, values := strings.SplitN(pattern, ":", 6), strings.SplitN(text, ":", 6); isARN([]byte(text)) != (len(values) == 6) {
			t.Fatalf("isARN(%q)", text)
		} else if len(values) == 6 {
			want := len(parts) == 6
			for i := range parts {
				want = want && naiveMatch(parts[i], values[i])
			}
			// Stars in a row are one: so also they alone are the pattern that matches all.
			want = want || pattern != "" && strings.Trim(pattern, "*") == ""
			if got := matchARN(g.symbols(), []byte(text)); got != want {
				t.Fatalf("ARN %q, %q: %v, want %v", pattern, text, got, want)
			}
		}
	})
}

// The matcher does not try what it has tried: what takes a naive one for ever it does in the product of the lengths.
func TestGlobSteps(t *testing.T) {
	pattern := strings.Repeat("*a", patternMax/2-1) + "*b"
	text := []byte(strings.Repeat("a", valueMax))
	g := newGlob(pattern)
	began := time.Now()
	for range 10 {
		if g.match(text) {
			t.Fatal("matches")
		}
	}
	if took := time.Since(began); took > 20*time.Second { // some milliseconds on an idle machine
		t.Errorf("ten matches took %v", took)
	}
}

var dateForm = regexp.MustCompile(`^\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d))?)?)?$`)

// plainDate is parseDate with the standard library.
func plainDate(s string) (time.Time, bool) {
	if dateForm.MatchString(s) {
		for _, layout := range []string{"2006", "2006-01", "2006-01-02", "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05Z07:00"} {
			if t, err := time.Parse(layout, s); err == nil {
				// time.Parse takes offsets of 24 hours and of 60 minutes.
				if n := len(s); n > 10 && s[n-1] != 'Z' && (s[n-5:n-3] > "23" || s[n-2:] > "59") {
					return t, false
				}
				return t, true
			}
		}
		return time.Time{}, false
	}
	if !regexp.MustCompile(`^-?\d{1,15}$`).MatchString(s) {
		return time.Time{}, false
	}
	sec, err := strconv.ParseInt(s, 10, 64)
	return time.Unix(sec, 0), err == nil
}

func FuzzDate(f *testing.F) {
	for _, s := range []string{"", "2026", "-2026", "2026-11", "2026-11-26", "2024-02-29", "2100-02-29", "2000-02-29", "0000-01-01", "9999-12-31T23:59:59.999999999-23:59", "1795694400",
		"2026-11-26T12:00Z", "2026-11-26T12:00:00.5+01:00", "2026-11-26T24:00:00Z", "2026-11-26T12:00:60Z", "2026-11-26T12:00:00", "2026-11-26T12:00:00+24:00", "0", "-1", "-",
		"999999999999999", "1000000000000000", "0000-02-29T00:00:00+00:01"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseDate([]byte(s))
		want, wantOK := plainDate(s)
		if ok != wantOK || ok && (got.sec != want.Unix() || int(got.nano) != want.Nanosecond()) {
			t.Fatalf("%q: %+v, %v; want %v, %v", s, got, ok, want.UTC(), wantOK)
		}
	})
}

var numberForm = regexp.MustCompile(`^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

func FuzzNumber(f *testing.F) {
	for _, s := range []string{"", "0", "-0", "+1", "1.5", "1.", ".5", "1e3", "1E-3", "1e", "1e+", "9.9e307", "1e308", "1e-400", "0e999999999999", "0.000e400", "0x1", "1_0", "NaN", "Inf",
		"00012", "0.0000000001e318", "1000000000e299", "-123456789012345678901234567890"} {
		f.Add(s)
	}
	bound := new(big.Float).SetPrec(2000)
	bound.SetString("1e308")
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseNumber([]byte(s))
		want, err := strconv.ParseFloat(s, 64)
		wantOK := numberForm.MatchString(s)
		if wantOK && (err != nil || math.Abs(want) > 9.9e307) {
			// Near the bound, which is decimal, digits decide and not the nearest float64. What is far beyond is not worth its digits.
			b, _, err := new(big.Float).SetPrec(2000).Parse(s, 10)
			wantOK = err == nil && len(s) < 300 && b.Abs(b).Cmp(bound) < 0
		}
		if ok != wantOK || ok && got != want {
			t.Fatalf("%q: %v, %v; want %v, %v", s, got, ok, want, wantOK)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"", "10.0.0.1", "010.0.0.1", "10.0.0", "10.0.0.256", "::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1:2:3:4:5:6:7:8:9", "1::2::3", ":1", "1:",
		"::ffff:10.0.0.1", "1:2:3:4:5:6:10.0.0.1", "1:2:3:4:5:6:7:10.0.0.1", "::10.0.0.1:1", "fe80::1%eth0", "12345::", "::g", "2001:DB8::", "10.0.0.0/8", "::/0", "::ffff:10.0.0.0/104", "::ffff:0:0/95",
		"10.0.0.1/33", "1::/129", "10.0.0.0/08", "10.0.0.0/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseAddr([]byte(s))
		want, err := netip.ParseAddr(s)
		wantOK := err == nil && want.Zone() == ""
		if ok != wantOK || ok && got != want.Unmap() {
			t.Fatalf("%q: %v, %v; want %v, %v", s, got, ok, want, err)
		}
		p, ok := parseRange(s)
		if prefix, err := netip.ParsePrefix(s); wantOK || err == nil {
			if !ok {
				t.Fatalf("range %q is refused", s)
			}
			a := want
			if err == nil {
				a = prefix.Addr()
			}
			// The address that a range is written with is in it.
			if a := a.Unmap(); p.Addr().Is4() == a.Is4() && !p.Contains(a) || p != p.Masked() {
				t.Fatalf("range %q: %v", s, p)
			}
		} else if ok {
			t.Fatalf("range %q is accepted: %v", s, p)
		}
	})
}

var (
	identityForm = regexp.MustCompile(`^arn:aws(-[A-Za-z0-9-]{1,28})?:iam::[0-9]{12}:(root|(user|role)/([!-~]{0,511}/)?[A-Za-z0-9_+=,.@-]{1,64})$`)
	sessionForm  = regexp.MustCompile(`^arn:aws(-[A-Za-z0-9-]{1,28})?:sts::[0-9]{12}:(assumed-role/[A-Za-z0-9_+=,.@-]{1,64}/|federated-user/)[A-Za-z0-9_+=,.@-]{1,64}$`)
	uniqueForm   = regexp.MustCompile(`^(AIDA|AROA)[A-Z0-9]{12,124}$`)
	digitsForm   = regexp.MustCompile(`^[0-9]{12}$`)
)

func FuzzPrincipal(f *testing.F) {
	for _, s := range []string{"", "*", account, rootARN, userARN, roleARN, assumed, userID, roleID, "arn:aws:sts::111122223333:federated-user/x", "arn:aws-cn:iam::111122223333:user//a",
		"arn:aws:iam::111122223333:user/a*", "arn:aws:iam::111122223333:role/${x}/a", "arn:aws:iam::111122223333:group/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := compiler{reader: newReader(nil, KeyPolicy), policy: &Policy{}}
		var p principals
		c.principal(&p, named{"AWS", s})
		arn := (identityForm.MatchString(s) || sessionForm.MatchString(s)) && !strings.ContainsAny(s, `*?"`) && !strings.Contains(s, "${") && strings.Count(s, ":") == 5
		if want := s == "*" || arn || uniqueForm.MatchString(s) || digitsForm.MatchString(s); (c.err == nil) != want {
			t.Fatalf("%q: %v, want accepted %v", s, c.err, want)
		}
	})
}
