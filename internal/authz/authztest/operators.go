package authztest

import (
	"fmt"
	"strings"
)

// row is one row of an operator's truth table: does the request's value match one of the policy's?
type row struct {
	operator string
	have     string
	want     []string
	match    bool
}

func list(s ...string) []string { return s }

// negation is the operator that holds when another does not.
var negation = map[string]string{
	"StringEquals": "StringNotEquals", "StringEqualsIgnoreCase": "StringNotEqualsIgnoreCase", "StringLike": "StringNotLike",
	"NumericEquals": "NumericNotEquals", "DateEquals": "DateNotEquals", "IpAddress": "NotIpAddress", "ArnEquals": "ArnNotEquals",
	"ArnLike": "ArnNotLike",
}

const noon = "2026-01-01T12:00:00Z"

var truthTable = []row{
	{"StringEquals", "red", list("red"), true},
	{"StringEquals", "red", list("Red"), false},
	{"StringEquals", "red", list("re*"), false},
	{"StringEquals", "red", list("?ed"), false},
	{"StringEquals", "re*", list("re*"), true},
	{"StringEquals", "red", list("blue", "red"), true},
	{"StringEquals", "red", list("blue", "green"), false},
	{"StringEquals", "", list(""), true},
	{"StringEquals", "red", list(""), false},
	{"StringEquals", "", list("red"), false},
	{"StringEquals", "red", list(" red"), false},
	{"StringEquals", "red ", list("red"), false},
	{"StringEquals", "caf\u00e9", list("caf\u00e9"), true},
	{"StringEquals", "cafe\u0301", list("caf\u00e9"), false},
	{"StringEqualsIgnoreCase", "red", list("RED"), true},
	{"StringEqualsIgnoreCase", "rEd", list("ReD"), true},
	{"StringEqualsIgnoreCase", "red", list("blue"), false},
	{"StringEqualsIgnoreCase", "red", list("R*"), false},
	{"StringEqualsIgnoreCase", "CAF\u00c9", list("caf\u00e9"), true},
	{"StringEqualsIgnoreCase", "\u212aing", list("king"), true},
	{"StringEqualsIgnoreCase", "stra\u00dfe", list("STRASSE"), false},
	{"StringLike", "red", list("red"), true},
	{"StringLike", "red", list("Red"), false},
	{"StringLike", "red", list("r*"), true},
	{"StringLike", "red", list("*d"), true},
	{"StringLike", "red", list("*e*"), true},
	{"StringLike", "red", list("*"), true},
	{"StringLike", "", list("*"), true},
	{"StringLike", "", list("?"), false},
	{"StringLike", "", list(""), true},
	{"StringLike", "red", list("?ed"), true},
	{"StringLike", "red", list("???"), true},
	{"StringLike", "red", list("????"), false},
	{"StringLike", "red", list("??"), false},
	{"StringLike", "red", list("red*"), true},
	{"StringLike", "red", list("red?"), false},
	{"StringLike", "red", list("r*x"), false},
	{"StringLike", "red", list("ed*"), false},
	{"StringLike", "red", list("blue*", "re?"), true},
	{"StringLike", "a/b:c d", list("a*d"), true},
	{"StringLike", "caf\u00e9", list("caf?"), true},
	{"StringLike", "abcabc", list("*abc"), true},
	{"StringLike", "abab", list("a*ab"), true},
	{"StringLike", "ab", list("a*ab"), false},
	{"StringLike", "a[b]c", list("a[b]c"), true},
	{"StringLike", "abc", list("a[b]c"), false},
	{"StringLike", "a.c", list("a.c"), true},
	{"StringLike", "abc", list("a.c"), false},
	{"StringLike", `a\b`, list(`a\b`), true},
	{"StringLike", `a\*`, list(`a\*`), true},
	{"StringLike", `a*`, list(`a\*`), false},
	{"NumericEquals", "10", list("10"), true},
	{"NumericEquals", "10", list("10.0"), true},
	{"NumericEquals", "10", list("1e1"), true},
	{"NumericEquals", "1E+1", list("10"), true},
	{"NumericEquals", "100e-1", list("10"), true},
	{"NumericEquals", "010", list("10"), true},
	{"NumericEquals", "10", list("11"), false},
	{"NumericEquals", "10", list("9", "10"), true},
	{"NumericEquals", "+7", list("7"), true},
	{"NumericEquals", "-3", list("-3"), true},
	{"NumericEquals", "-3", list("3"), false},
	{"NumericEquals", "-0", list("0"), true},
	{"NumericEquals", "0.1", list("0.10"), true},
	{"NumericLessThan", "9", list("10"), true},
	{"NumericLessThan", "10", list("10"), false},
	{"NumericLessThan", "11", list("10"), false},
	{"NumericLessThan", "-11", list("-10"), true},
	{"NumericLessThan", "7", list("5", "10"), true},
	{"NumericLessThanEquals", "9", list("10"), true},
	{"NumericLessThanEquals", "10", list("10.0"), true},
	{"NumericLessThanEquals", "10.5", list("10"), false},
	{"NumericGreaterThan", "11", list("10"), true},
	{"NumericGreaterThan", "10", list("10"), false},
	{"NumericGreaterThan", "9", list("10"), false},
	{"NumericGreaterThan", "100", list("20"), true},
	{"NumericGreaterThanEquals", "10", list("10"), true},
	{"NumericGreaterThanEquals", "11", list("10"), true},
	{"NumericGreaterThanEquals", "9.99", list("10"), false},
	{"DateEquals", noon, list(noon), true},
	{"DateEquals", noon, list("2026-01-01T12:00Z"), true},
	{"DateEquals", noon, list("2026-01-01T12:00:00.000Z"), true},
	{"DateEquals", noon, list("2026-01-01T13:00:00+01:00"), true},
	{"DateEquals", noon, list("2026-01-01T06:30:00-05:30"), true},
	{"DateEquals", noon, list("1767268800"), true},
	{"DateEquals", noon, list("2026-01-01T12:00:01Z"), false},
	{"DateEquals", noon, list("2026-01-01T12:00:00.5Z"), false},
	{"DateEquals", noon, list("2026-01-01T12:00:00+01:00"), false},
	{"DateEquals", "2026-01-01T00:00:00Z", list("2026-01-01"), true},
	{"DateEquals", "2026-01-01T00:00:00Z", list("2026-01"), true},
	{"DateEquals", "2026-01-01T00:00:00Z", list("2026"), true},
	{"DateEquals", "1767225600", list("2026-01-01"), true},
	{"DateEquals", "1767225600", list("1767225600"), true},
	{"DateEquals", "7", list("1970-01-01T00:00:07Z"), true},
	{"DateEquals", "1970", list("1970-01-01"), true},
	{"DateEquals", "1970", list("01970"), false},
	{"DateLessThan", "365", list("1970-01-02"), true},
	{"DateLessThan", "2025-12-31T23:59:59Z", list("2026-01-01"), true},
	{"DateLessThan", "2026-01-01T00:00:00Z", list("2026-01-01"), false},
	{"DateLessThan", noon, list("2026-01-01T12:00:00-01:00"), true},
	{"DateLessThan", noon, list("2020-01-01", "2027-01-01"), true},
	{"DateLessThanEquals", noon, list(noon), true},
	{"DateLessThanEquals", noon, list("2026-01-01T11:59:59Z"), false},
	{"DateGreaterThan", noon, list("2026-01-01"), true},
	{"DateGreaterThan", noon, list(noon), false},
	{"DateGreaterThan", noon, list("1767268799"), true},
	{"DateGreaterThanEquals", noon, list("1767268800"), true},
	{"DateGreaterThanEquals", noon, list("2026-01-01T12:00:01Z"), false},
	{"Bool", "true", list("true"), true},
	{"Bool", "true", list("TRUE"), true},
	{"Bool", "True", list("true"), true},
	{"Bool", "true", list("false"), false},
	{"Bool", "false", list("true"), false},
	{"Bool", "FALSE", list("false"), true},
	{"Bool", "false", list("true", "false"), true},
	{"BinaryEquals", "red", list("cmVk"), true},
	{"BinaryEquals", "red", list("cmVE"), false},
	{"BinaryEquals", "cmVk", list("cmVk"), false},
	{"BinaryEquals", "", list(""), true},
	{"IpAddress", "10.0.0.7", list("10.0.0.0/8"), true},
	{"IpAddress", "10.0.0.7", list("10.0.0.7"), true},
	{"IpAddress", "10.0.0.7", list("10.0.0.7/32"), true},
	{"IpAddress", "10.0.0.7", list("10.0.0.0/29"), true},
	{"IpAddress", "10.0.0.7", list("10.0.0.8/29"), false},
	{"IpAddress", "10.0.0.7", list("10.0.0.8"), false},
	{"IpAddress", "10.0.0.7", list("192.0.2.0/24", "10.0.0.0/24"), true},
	{"IpAddress", "10.0.0.7", list("0.0.0.0/0"), true},
	{"IpAddress", "10.0.0.7", list("::/0"), false},
	{"IpAddress", "11.0.0.7", list("10.0.0.0/8"), false},
	{"IpAddress", "2001:db8::1", list("2001:db8::/32"), true},
	{"IpAddress", "2001:db8::1", list("2001:0db8:0:0::1"), true},
	{"IpAddress", "2001:db9::1", list("2001:db8::/32"), false},
	{"IpAddress", "2001:db8::1", list("0.0.0.0/0"), false},
	{"IpAddress", "2001:db8::1", list("::/0"), true},
	{"ArnLike", alice, list(alice), true},
	{"ArnLike", alice, list("arn:aws:iam::111122223333:user/*"), true},
	{"ArnLike", alice, list("arn:aws:iam::111122223333:user/?lice"), true},
	{"ArnLike", alice, list("arn:aws:iam::111122223333:*"), true},
	{"ArnLike", alice, list("arn:aws:iam::*:user/alice"), true},
	{"ArnLike", alice, list("arn:*:*:*:*:*"), true},
	{"ArnLike", alice, list("*"), true},
	{"ArnLike", alice, list("arn:aws:iam::1111????3333:user/alice"), true},
	{"ArnLike", alice, list("arn:aws:iam::111122223333:user/Alice"), false},
	{"ArnLike", alice, list("arn:aws:iam::444455556666:user/*"), false},
	{"ArnLike", alice, list("arn:aws:*:111122223333:user/alice:x"), false},
	{"ArnLike", alice, list("arn:aws:iam:*:user/alice:*"), false},
	{"ArnLike", alice, list("arn:aws:iam:?:111122223333:user/alice"), false},
	{"ArnLike", alice, list("arn:aws:sts::*:*", "arn:aws:iam::*:*"), true},
	{"ArnLike", "arn:aws:iam::111122223333:user/eng/Carol", list("arn:aws:iam::111122223333:user/*"), true},
	{"ArnLike", "arn:aws:iam::111122223333:user/eng/Carol", list("arn:aws:iam::111122223333:user/*/Carol"), true},
	{"ArnLike", "arn:aws:logs:us-east-1:111122223333:log-group:g:*", list("arn:aws:logs:us-east-1:111122223333:log-group:*"), true},
	{"ArnLike", "arn:aws:logs:us-east-1:111122223333:log-group:g", list("arn:aws:logs:*:log-group:g:*"), false},
}

// subject is where a row's value stands in the request: a tag of the principal, or the address that the request came from.
func subject(r row) (key string, prepare func(c *Case)) {
	if r.operator == "IpAddress" {
		return "aws:SourceIp", func(c *Case) { c.SourceIP = r.have }
	}
	return "aws:PrincipalTag/x", func(c *Case) { c.Caller.Tags = []Tag{{"x", r.have}} }
}

// operatorCases: each operator on present values, with its negation, suffix and set prefixes: one value answers all the same.
func operatorCases() (cases []Case) {
	for i, r := range truthTable {
		key, prepare := subject(r)
		add := func(operator string, fulfilled bool) {
			name := fmt.Sprintf("%s/%d/%q in %q", operator, i, r.have, r.want)
			cases = append(cases, conditionCases(name, conditionOf(operator, key, r.want), fulfilled, prepare)...)
		}
		add(r.operator, r.match)
		add(r.operator+"IfExists", r.match)
		if i%3 == 0 {
			add("ForAnyValue:"+r.operator, r.match)
			add("ForAllValues:"+r.operator, r.match)
		}
		not := negation[r.operator]
		if r.operator == "ArnLike" {
			add("ArnEquals", r.match)
			add("ArnNotEquals", !r.match)
		}
		if not == "" {
			continue
		}
		add(not, !r.match)
		if i%3 == 1 {
			add(not+"IfExists", !r.match)
			add("ForAnyValue:"+not, !r.match)
			add("ForAllValues:"+not, !r.match)
		}
	}
	return cases
}

// sample is a value that each operator takes.
func sample(operator string) string {
	switch {
	case strings.HasPrefix(operator, "Numeric"):
		return "10"
	case strings.HasPrefix(operator, "Date"):
		return noon
	case operator == "Bool":
		return "true"
	case strings.HasSuffix(operator, "IpAddress"):
		return "10.0.0.0/8"
	case strings.HasPrefix(operator, "Arn"):
		return alice
	case operator == "BinaryEquals":
		return "cmVk"
	}
	return "red"
}

// everyOperator tells of each operator but Null whether it is a negated one.
var everyOperator = []struct {
	name    string
	negated bool
}{
	{"StringEquals", false}, {"StringNotEquals", true}, {"StringEqualsIgnoreCase", false}, {"StringNotEqualsIgnoreCase", true},
	{"StringLike", false}, {"StringNotLike", true}, {"NumericEquals", false}, {"NumericNotEquals", true}, {"NumericLessThan", false},
	{"NumericLessThanEquals", false}, {"NumericGreaterThan", false}, {"NumericGreaterThanEquals", false}, {"DateEquals", false},
	{"DateNotEquals", true}, {"DateLessThan", false}, {"DateLessThanEquals", false}, {"DateGreaterThan", false},
	{"DateGreaterThanEquals", false}, {"Bool", false}, {"BinaryEquals", false}, {"IpAddress", false}, {"NotIpAddress", true},
	{"ArnEquals", false}, {"ArnLike", false}, {"ArnNotEquals", true}, {"ArnNotLike", true},
}

// absentCases: every operator on a key that the request does not have.
func absentCases() (cases []Case) {
	for _, o := range everyOperator {
		for _, v := range []struct {
			operator  string
			fulfilled bool
		}{
			{o.name, o.negated},
			{o.name + "IfExists", true},
			{"ForAllValues:" + o.name, true},
			{"ForAnyValue:" + o.name, false},
			{"ForAllValues:" + o.name + "IfExists", true},
			{"ForAnyValue:" + o.name + "IfExists", true},
		} {
			condition := conditionOf(v.operator, "aws:PrincipalTag/x", list(sample(o.name)))
			cases = append(cases, conditionCases("absent tag/"+v.operator, condition, v.fulfilled, func(*Case) {})...)
		}
		for _, key := range []string{"aws:NoSuchKey", "kms:NoSuchKey", "other:Key"} {
			condition := conditionOf(o.name, key, list(sample(o.name)))
			cases = append(cases, conditionCases("unknown key/"+o.name+"/"+key, condition, o.negated, func(*Case) {})...)
		}
	}
	for _, v := range []struct {
		values    []string
		absent    bool
		fulfilled bool
	}{
		{list("true"), true, true},
		{list("true"), false, false},
		{list("false"), true, false},
		{list("false"), false, true},
		{list("TRUE"), true, true},
		{list("true", "false"), true, true},
		{list("true", "false"), false, true},
	} {
		for _, key := range []string{"aws:PrincipalTag/x", "AWS:principaltag/X"} {
			condition := conditionOf("Null", key, v.values)
			cases = append(cases, conditionCases(fmt.Sprintf("Null/%s/%q/absent %t", key, v.values, v.absent), condition, v.fulfilled, func(c *Case) {
				if !v.absent {
					c.Caller.Tags = []Tag{{"x", "red"}}
				}
			})...)
		}
	}
	empty := conditionOf("Null", "aws:PrincipalTag/x", list("true"))
	cases = append(cases, conditionCases("Null/an empty value is present", empty, false, func(c *Case) { c.Caller.Tags = []Tag{{"x", ""}} })...)
	return cases
}

// unparsableCases: a request's value that is none of the operator's type never lets an Allow apply, and always a Deny.
func unparsableCases() (cases []Case) {
	bad := map[string][]string{
		"Numeric": {"x", "", "0x10", "1_000", "NaN", "Inf", "1,5", "10 ", "1e", "--1"},
		"Date":    {"x", "", "yesterday", "2026-13-01", "2026-02-30", "2026-01-01 12:00:00", "12:00"},
		"Bool":    {"x", "", "1", "yes"},
		"Ip":      {"x", "", "10.0.0", "10.0.0.256", "10.0.0.0/8"},
		"Arn":     {"x", "", "arn:aws:iam", "alice", "arn:aws:iam::111122223333"},
	}
	for _, o := range everyOperator {
		for _, family := range []string{"Numeric", "Date", "Bool", "Ip", "Arn"} {
			if !strings.Contains(o.name, family) {
				continue
			}
			for i, v := range bad[family] {
				operators := []string{o.name}
				if i == 0 {
					operators = append(operators, o.name+"IfExists", "ForAnyValue:"+o.name, "ForAllValues:"+o.name)
				}
				for _, operator := range operators {
					condition := conditionOf(operator, "aws:PrincipalTag/x", list(sample(o.name)))
					two := conditionCases(fmt.Sprintf("%s/%q", operator, v), condition, false, func(c *Case) { c.Caller.Tags = []Tag{{"x", v}} })
					two[1].Want = Deny
					cases = append(cases, two...)
				}
			}
		}
	}
	return cases
}

// multivaluedCases: kms:EncryptionContextKeys with none, one, several values.
func multivaluedCases() (cases []Case) {
	contexts := []struct {
		name string
		keys []string
	}{{"absent", nil}, {"empty", list()}, {"a", list("a")}, {"b", list("b")}, {"a b", list("a", "b")}, {"a b c", list("a", "b", "c")}}
	for _, v := range []struct {
		operator string
		values   []string
		want     [6]bool // by context
	}{
		{"StringEquals", list("a"), [6]bool{false, false, true, false, true, true}},
		{"StringEquals", list("a", "b"), [6]bool{false, false, true, true, true, true}},
		{"StringEquals", list("x"), [6]bool{}},
		{"StringNotEquals", list("a"), [6]bool{true, true, false, true, false, false}},
		{"StringNotEquals", list("a", "b"), [6]bool{true, true, false, false, false, false}},
		{"StringNotEquals", list("x"), [6]bool{true, true, true, true, true, true}},
		{"ForAllValues:StringEquals", list("a"), [6]bool{true, true, true, false, false, false}},
		{"ForAllValues:StringEquals", list("a", "b"), [6]bool{true, true, true, true, true, false}},
		{"ForAllValues:StringEquals", list("A", "B"), [6]bool{true, true, false, false, false, false}},
		{"ForAllValues:StringEqualsIgnoreCase", list("A", "B"), [6]bool{true, true, true, true, true, false}},
		{"ForAllValues:StringLike", list("?"), [6]bool{true, true, true, true, true, true}},
		{"ForAllValues:StringLike", list("[ab]"), [6]bool{true, true, false, false, false, false}},
		{"ForAllValues:StringNotEquals", list("a"), [6]bool{true, true, false, true, false, false}},
		{"ForAllValues:StringNotEquals", list("c"), [6]bool{true, true, true, true, true, false}},
		{"ForAllValues:StringNotLike", list("a*", "c*"), [6]bool{true, true, false, true, false, false}},
		{"ForAllValues:StringNotEqualsIgnoreCase", list("C"), [6]bool{true, true, true, true, true, false}},
		{"ForAllValues:StringEqualsIfExists", list("a"), [6]bool{true, true, true, false, false, false}},
		{"ForAnyValue:StringEquals", list("a"), [6]bool{false, false, true, false, true, true}},
		{"ForAnyValue:StringEquals", list("c"), [6]bool{false, false, false, false, false, true}},
		{"ForAnyValue:StringEquals", list("b", "c"), [6]bool{false, false, false, true, true, true}},
		{"ForAnyValue:StringLike", list("c*"), [6]bool{false, false, false, false, false, true}},
		{"ForAnyValue:StringNotEquals", list("a"), [6]bool{false, false, false, true, true, true}},
		{"ForAnyValue:StringNotEquals", list("a", "b"), [6]bool{false, false, false, false, false, true}},
		{"ForAnyValue:StringNotEqualsIgnoreCase", list("A", "B"), [6]bool{false, false, false, false, false, true}},
		{"ForAnyValue:StringNotLike", list("?"), [6]bool{}},
		{"ForAnyValue:StringEqualsIfExists", list("a"), [6]bool{true, true, true, false, true, true}},
		{"Null", list("true"), [6]bool{true, true, false, false, false, false}},
		{"Null", list("false"), [6]bool{false, false, true, true, true, true}},
	} {
		for i, x := range contexts {
			name := fmt.Sprintf("%s/%q/%s", v.operator, v.values, x.name)
			cases = append(cases, conditionCases(name, conditionOf(v.operator, "kms:EncryptionContextKeys", v.values), v.want[i], func(c *Case) {
				if x.keys == nil {
					return
				}
				c.EncryptionContext = map[string]string{}
				for _, k := range x.keys {
					c.EncryptionContext[k] = "v"
				}
			})...)
		}
	}
	return cases
}
