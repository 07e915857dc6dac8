package policy

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// unsieved is the policy with every statement looked at one by one.
func unsieved(p *Policy) *Policy {
	q := *p
	q.sieves = slices.Clone(p.sieves)
	for i := range q.sieves {
		q.sieves[i].asks = nil
	}
	return &q
}

// What sieves rule out changes no result: policies of more statements than a sieve holds, of the conditions that sieves know and of some they do not.
func TestSieve(t *testing.T) {
	operators := map[string][]string{
		"StringEquals": {"a", "b", "abc", "", "*"}, "StringNotEquals": {"a", "b", "abc"}, "StringLike": {"a*", "ab*", "*c", "b", "*"}, "StringNotLike": {"a*", "ab*", "b"},
		"StringEqualsIfExists": {"a", "c"}, "StringEqualsIgnoreCase": {"A"}, "ForAllValues:StringEquals": {"a", "ab"}, "ForAnyValue:StringLike": {"a*", "b"},
		"Bool": {"true", "false"}, "Null": {"true", "false"}, "IpAddress": {"10.0.0.0/8", "10.1.0.0/16", "::/0"}, "NotIpAddress": {"10.0.0.0/8", "192.0.2.1/32"},
		"DateLessThan": {"2026-01-01T00:00:00Z", "1800000000"}, "DateNotEquals": {"2026-01-01T00:00:00Z"}, "DateGreaterThanEqualsIfExists": {"2026-01-01"},
		"NumericEquals": {"1", "2"},
	}
	var names []string
	for name := range operators {
		names = append(names, name)
	}
	slices.Sort(names)
	keys := []string{"kms:EncryptionContext:x", "kms:EncryptionContext:y", "aws:SourceIp", "aws:CurrentTime", "aws:SecureTransport", "kms:EncryptionContextKeys", "aws:PrincipalTag/t"}
	texts := []string{"a", "ab", "abc", "b", "", "A", "true", "false", "maybe", "10.1.2.3", "10.2.3.4", "192.0.2.1", "2001:db8::1", "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "1", "2"}
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	differ, allowed, denied := 0, 0, 0
	for range 300 {
		var all []string
		for i := range 1 + rnd.IntN(100) {
			effect := "Allow"
			if rnd.IntN(40) == 0 {
				effect = "Deny"
			}
			conditions := ""
			for j := range 1 + rnd.IntN(3) {
				if j > 0 {
					conditions += ","
				}
				name := names[(rnd.IntN(len(names)/3)*3+j)%len(names)] // no operator twice
				conditions += fmt.Sprintf("%q:{%q:[%q,%q]}", name, pick(keys), pick(operators[name]), pick(operators[name]))
			}
			all = append(all, fmt.Sprintf(`"Sid":"s%d","Effect":%q,"Principal":%s,"Action":%q,"Resource":"*","Condition":{%s}`, i, effect,
				pick([]string{`"*"`, `{"AWS":"111122223333"}`, `{"AWS":"arn:aws:iam::111122223333:user/team/alice"}`}), pick([]string{"kms:*", "kms:Decrypt", "kms:Encrypt"}), conditions))
		}
		p := mustParse(t, KeyPolicy, statements("2012-10-17", all...))
		for range 20 {
			v := values{}
			for _, k := range keys {
				if rnd.IntN(4) > 0 {
					v[k] = []string{pick(texts)}
				}
			}
			if rnd.IntN(4) == 0 {
				v["kms:EncryptionContextKeys"] = []string{pick(texts), pick(texts)}
			}
			if rnd.IntN(8) == 0 {
				v["kms:EncryptionContext:x"] = []string{"a", "b"}
			}
			r := request(&alice, v)
			if rnd.IntN(2) == 0 {
				r.Code = CodeOf(r.Action)
			}
			got, want := p.Evaluate(r), unsieved(p).Evaluate(r)
			if got != want {
				t.Fatalf("%+v, one by one %+v; %v of %.2000v", got, want, v, all)
			}
			if got != (Result{}) {
				differ++
			}
			if got.Deny > 0 {
				denied++
			}
			if got.Allow[Itself] > sieveMax {
				allowed++
			}
		}
	}
	if differ < 1000 || denied < 100 || allowed < 20 {
		t.Errorf("%d of 6000 evaluations found a statement, %d one that denies, %d one of a second sieve", differ, denied, allowed)
	}
}

// Texts are found among many, and the statements behind the first 64.
func TestSieveOfManyTexts(t *testing.T) {
	var all []string
	for i := range 200 {
		all = append(all, fmt.Sprintf(`%s,"Sid":"s%d","Condition":{"StringEquals":{"kms:EncryptionContext:tenant":["t-%03d","u-%03d"]}}`, allowTo(`"*"`), i, i, i))
	}
	p := mustParse(t, KeyPolicy, statements("2012-10-17", all...))
	for i := range 200 {
		for _, c := range []string{"t", "u"} {
			r := request(&alice, values{"kms:EncryptionContext:tenant": {fmt.Sprintf("%s-%03d", c, i)}})
			r.Code = CodeOf(r.Action)
			if got := p.Evaluate(r); got.Allow[Anyone] != i+1 {
				t.Errorf("%d: %+v", i, got)
			}
		}
	}
	r := request(&alice, values{"kms:EncryptionContext:tenant": {string(bytes.Repeat([]byte("t"), 5))}})
	if got := p.Evaluate(r); got != (Result{}) {
		t.Errorf("%+v", got)
	}
}

// Marks rule out only what does not match: they are right about every pair of these texts.
func TestMarks(t *testing.T) {
	texts := []string{"", "a", "b", "ab", "abcdefg", "abcdefgh", "abcdefgi", "abcdefghi", "abcdefghj", "bcdefghi", "xbcdefghi", "\x00", "a\x00", "abcdefg\x00"}
	for _, want := range texts {
		for _, have := range texts {
			e := expected{text: want, mark: firstOf(want)}
			if strings.HasPrefix(have, want) && !e.begins(firstOf([]byte(have))) {
				t.Errorf("%q does not begin with %q", have, want)
			}
			if want == have && lastOf(want) != lastOf([]byte(have)) {
				t.Errorf("%q is not itself", have)
			}
			if len(want) >= 8 && len(have) >= 8 && e.begins(firstOf(have)) != (want[:8] == have[:8]) {
				t.Errorf("%q, %q: a mark says nothing", want, have)
			}
		}
	}
}
