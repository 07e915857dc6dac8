//go:build !race

package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/alloctest"
)

func TestNoAllocations(t *testing.T) {
	const key = "kms:EncryptionContext:x"
	type evaluation struct {
		doc    string
		kind   Kind
		values values
	}
	cases := map[string]evaluation{
		"default":  {defaultDocument, KeyPolicy, busyValues},
		"busy":     {busyDocument(), KeyPolicy, busyValues},
		"identity": {identityDocument, IdentityPolicy, busyValues},
		"variables": {conditioned(versionVariables, "Allow", `{"StringLike":{"`+key+`":"*${aws:username}*${aws:PrincipalTag/x, 'none'}"},`+
			`"StringEqualsIgnoreCase":{"`+key+`":"${aws:username}"},"ArnLike":{"`+key+`":["${aws:username}","arn:aws:iam::*:user/${aws:username}"]}}`), KeyPolicy,
			values{key: {userARN}, "aws:username": {"alice"}}},
	}
	policyValues := map[valueType]string{textExact: "a", textFold: "a", textLike: "*a?", number: "10.5", date: "2026-11-26T12:00:00Z", truth: "true",
		binary: "aGVsbG8=", address: "10.0.0.0/8", arn: "arn:aws:*:*:*:user/*", absence: "true"}
	all := []string{"", "a", "10", "1e999", "1e308", "9" + strings.Repeat("9", 400), "0." + strings.Repeat("0", 400) + "1", "2026-11-26T12:00:00Z", "2026-02-30", "99999999999999999999",
		"true", "yes", "10.1.2.3", "2001:db8::1", "10.0.0.256", "::1::", userARN, "arn:aws", strings.Repeat("é", 4000), "\xff\xfe"}
	for name, test := range operators {
		for _, form := range []string{"%", "ForAllValues:%IfExists", "ForAnyValue:%"} {
			if test.typ == absence && form != "%" {
				continue
			}
			doc := conditioned(versionVariables, "Allow", `{"`+strings.Replace(form, "%", name, 1)+`":{"`+key+`":["`+policyValues[test.typ]+`"],"aws:NoSuchKey":"`+policyValues[test.typ]+`"}}`)
			for i := range all {
				cases[fmt.Sprintf("%s, value %d", strings.Replace(form, "%", name, 1), i)] = evaluation{doc, KeyPolicy, values{key: all[i : i+1]}}
			}
		}
	}
	type run struct {
		name string
		p    *Policy
		r    *Request
	}
	var runs []run
	for name, c := range cases {
		p := mustParse(t, c.kind, c.doc)
		for _, caller := range []*Principal{&root, &alice, &worker, &storage, &foreign} {
			r := busyRequest()
			r.Context, r.Principal = c.values.context(), caller
			p.Evaluate(r) // Scratch grows
			runs = append(runs, run{name + ", " + caller.ARN, p, r})
		}
	}
	every := func() {
		for i := range runs {
			runs[i].p.Evaluate(runs[i].r)
			runs[i].r.Scratch.Reset()
		}
	}
	if alloctest.Mallocs(20, every) == 0 {
		return
	}
	for _, u := range runs {
		if n := alloctest.Mallocs(20, func() { u.p.Evaluate(u.r) }); n != 0 {
			t.Fatalf("%s: %d allocations in 20 runs", u.name, n)
		}
	}
	t.Error("allocations in all runs together")
}

// Without variables Scratch stays empty.
func TestNoScratch(t *testing.T) {
	p, r := mustParse(t, KeyPolicy, defaultDocument), busyRequest()
	p.Evaluate(r)
	if r.Scratch.symbols != nil || r.Scratch.text != nil || r.Scratch.action != nil {
		t.Errorf("%d, %d, %d", len(r.Scratch.symbols), len(r.Scratch.text), len(r.Scratch.action))
	}
}
