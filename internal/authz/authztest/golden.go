package authztest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Family is a group of cases about one part of the specification. Their answers are stated by the tables here, not by an evaluator.
type Family struct {
	Name  string
	Cases []Case
}

// Families makes all cases.
func Families() []Family {
	return []Family{
		{"absent", absentCases()},
		{"actions", actionCases()},
		{"bugs", bugCases()},
		{"flows", flowCases()},
		{"grants", grantCases()},
		{"keys", keyCases()},
		{"malformed", malformedCases()},
		{"multivalued", multivaluedCases()},
		{"operators", operatorCases()},
		{"principals", principalCases()},
		{"resources", resourceCases()},
		{"unparsable", unparsableCases()},
		{"variables", variableCases()},
	}
}

const (
	alice   = "arn:aws:iam::111122223333:user/alice"
	rootA   = "arn:aws:iam::111122223333:root"
	rootB   = "arn:aws:iam::444455556666:root"
	admin   = "arn:aws:iam::111122223333:role/Admin"
	adminS1 = "arn:aws:sts::111122223333:assumed-role/Admin/s1"
	dave    = "arn:aws:iam::444455556666:user/dave"
	partner = "arn:aws:iam::444455556666:role/Partner"
)

// callerNamed is a caller of generated worlds, by ARN.
func callerNamed(arn string) Caller {
	for _, c := range callers {
		if c.ARN == arn {
			return c
		}
	}
	panic("authztest: no caller " + arn)
}

// ask is a question of alice about a key of her account: may she decrypt?
func ask(want, name string, args ...any) Case {
	return Case{
		Name:  fmt.Sprintf(name, args...),
		World: World{Caller: callerNamed(alice)},
		Request: Request{Action: "kms:Decrypt", Resource: keyA, Owner: accountA, Now: "2026-01-01T12:00:00Z", Region: "us-east-1",
			Key: &KeyFacts{Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS"}},
		Want: want,
	}
}

func doc(statements ...string) Document {
	return Document(`{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`)
}

func oldDoc(statements ...string) Document {
	return Document(`{"Version":"2008-10-17","Statement":[` + strings.Join(statements, ",") + `]}`)
}

// Statements of key policies and, without principal, of others.
const allowAlice = `{"Effect":"Allow","Principal":{"AWS":"` + alice + `"},"Action":"kms:*","Resource":"*"}`
const delegate = `{"Effect":"Allow","Principal":{"AWS":"` + rootA + `"},"Action":"kms:*","Resource":"*"}`
const allowAll = `{"Effect":"Allow","Action":"kms:*","Resource":"*"}`
const denyAll = `{"Effect":"Deny","Action":"kms:*","Resource":"*"}`

// statementIf is a statement of a key policy about alice with a condition.
func statementIf(effect, condition string) string {
	return `{"Effect":"` + effect + `","Principal":{"AWS":"` + alice + `"},"Action":"kms:*","Resource":"*","Condition":` + condition + `}`
}

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func conditionOf(operator, key string, values []string) string {
	return encode(map[string]any{operator: map[string]any{key: values}})
}

// answers are what a condition leads to: an Allow statement with it, and a Deny statement with it beside an Allow without.
func allowIf(fulfilled bool) string {
	if fulfilled {
		return Allow
	}
	return Deny
}

// conditionCases are the two questions about one condition. prepare sets up the request.
func conditionCases(name, condition string, fulfilled bool, prepare func(c *Case)) []Case {
	a := ask(allowIf(fulfilled), "%s/allow", name)
	a.KeyPolicy = doc(statementIf("Allow", condition))
	d := ask(allowIf(!fulfilled), "%s/deny", name)
	d.KeyPolicy = doc(allowAlice, statementIf("Deny", condition))
	prepare(&a)
	prepare(&d)
	return []Case{a, d}
}

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

// elementCases are the four questions about what an element matches: it and its Not form, in Allow and in Deny.
func elementCases(name, element string, values []string, match bool, prepare func(c *Case)) (cases []Case) {
	statement := func(effect, not string) string {
		other := `"Resource":"*"`
		if element == "Resource" {
			other = `"Action":"kms:*"`
		}
		return `{"Effect":"` + effect + `",` + other + `,"` + not + element + `":` + encode(values)
	}
	principal := `,"Principal":{"AWS":"` + alice + `"}}`
	for _, not := range []string{"", "Not"} {
		applies := match != (not == "Not")
		a := ask(allowIf(applies), "%s%s/%s/allow", not, element, name)
		a.KeyPolicy = doc(statement("Allow", not) + principal)
		d := ask(allowIf(!applies), "%s%s/%s/deny", not, element, name)
		d.KeyPolicy = doc(allowAlice, statement("Deny", not)+principal)
		cases = append(cases, a, d)
		if element == "Resource" && slices.ContainsFunc(values, func(v string) bool { return v != "*" && !strings.HasPrefix(v, "arn:") }) {
			continue // malformed in identity policies
		}
		i := ask(allowIf(applies), "%s%s/%s/identity policy allows", not, element, name)
		i.KeyPolicy, i.Identity = doc(delegate), []Document{doc(statement("Allow", not) + "}")}
		j := ask(allowIf(!applies), "%s%s/%s/identity policy denies", not, element, name)
		j.KeyPolicy, j.Identity = doc(delegate), []Document{doc(allowAll, statement("Deny", not)+"}")}
		cases = append(cases, i, j)
	}
	for i := range cases {
		prepare(&cases[i])
	}
	return cases
}

func actionCases() (cases []Case) {
	for _, v := range []struct {
		values []string
		action string
		match  bool
	}{
		{list("kms:Decrypt"), "kms:Decrypt", true},
		{list("kms:decrypt"), "kms:Decrypt", true},
		{list("KMS:DECRYPT"), "kms:Decrypt", true},
		{list("kms:Encrypt"), "kms:Decrypt", false},
		{list("kms:*"), "kms:Decrypt", true},
		{list("*"), "kms:Decrypt", true},
		{list("kms:De*"), "kms:Decrypt", true},
		{list("kms:De*"), "kms:DescribeKey", true},
		{list("kms:De*"), "kms:Encrypt", false},
		{list("kms:?ecrypt"), "kms:Decrypt", true},
		{list("kms:??crypt"), "kms:Decrypt", true},
		{list("kms:??crypt"), "kms:Encrypt", true},
		{list("kms:?ncrypt"), "kms:Decrypt", false},
		{list("kms:Decryp"), "kms:Decrypt", false},
		{list("kms:Decryptt"), "kms:Decrypt", false},
		{list("kms:Decrypt?"), "kms:Decrypt", false},
		{list("kms:Decrypt*"), "kms:Decrypt", true},
		{list("kms:*crypt"), "kms:ReEncryptFrom", false},
		{list("kms:*crypt*"), "kms:ReEncryptFrom", true},
		{list("kms:ReEncrypt*"), "kms:ReEncryptFrom", true},
		{list("kms:ReEncrypt*"), "kms:ReEncryptTo", true},
		{list("kms:ReEncrypt"), "kms:ReEncryptTo", false},
		{list("kms:ReEncryptFrom"), "kms:ReEncryptTo", false},
		{list("kms:GenerateDataKey"), "kms:GenerateDataKeyWithoutPlaintext", false},
		{list("kms:GenerateDataKey*"), "kms:GenerateDataKeyPairWithoutPlaintext", true},
		{list("kms:GenerateDataKey"), "kms:GenerateDataKeyPair", false},
		{list("s3:*"), "kms:Decrypt", false},
		{list("kms:Encrypt", "kms:Decrypt"), "kms:Decrypt", true},
		{list("kms:Encrypt", "kms:Sign"), "kms:Decrypt", false},
		{list("kms:*Grant*"), "kms:CreateGrant", true},
		{list("kms:*Grant"), "kms:ListGrants", false},
		{list("kms:*a*e*K*"), "kms:GenerateDataKey", true},
	} {
		cases = append(cases, elementCases(fmt.Sprintf("%q of %s", v.values, v.action), "Action", v.values, v.match, func(c *Case) { c.Action = v.action })...)
	}
	return cases
}

func resourceCases() (cases []Case) {
	for _, v := range []struct {
		values []string
		match  bool
	}{
		{list("*"), true},
		{list(keyA), true},
		{list(keyA2), false},
		{list(keyB), false},
		{list(aliasA), false},
		{list("arn:aws:kms:us-east-1:111122223333:alias/*"), false},
		{list("arn:aws:kms:us-east-1:111122223333:*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/*"), true},
		{list("arn:aws:kms:*:*:key/*"), true},
		{list("arn:aws:kms:us-west-2:111122223333:key/*"), false},
		{list("arn:aws:kms:us-????-?:111122223333:key/*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/1234*"), true},
		{list("arn:aws:kms:us-east-1:111122223333:key/mrk-*"), false},
		{list("arn:*"), true},
		{list("*1234567890ab"), true},
		{list("*1234567890a"), false},
		{list(strings.ToUpper(keyA)), false},
		{list("ARN:aws:kms:us-east-1:111122223333:key/*"), false},
		{list(keyA2, keyA), true},
		{list(keyA2, keyB), false},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalAccount}:key/*"), true},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalTag/account}:key/*"), false},
		{list("arn:aws:kms:us-east-1:${aws:PrincipalTag/account, '111122223333'}:key/*"), true},
		{list("arn:aws:s3:::bucket/*"), false},
	} {
		cases = append(cases, elementCases(fmt.Sprintf("%q", v.values), "Resource", v.values, v.match, func(*Case) {})...)
	}
	return cases
}

// variableCases: values with variables, Version 2012-10-17 and before.
func variableCases() (cases []Case) {
	for _, v := range []struct {
		operator, key, value string
		match, old           bool // with variables, and without
	}{
		{"StringEquals", "aws:PrincipalTag/x", "${aws:username}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${AWS:UserName}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/same}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:principaltag/SAME}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/other}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none, 'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none,'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/none, 'bob'}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:PrincipalTag/other, 'alice'}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:NoSuchKey}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${aws:NoSuchKey, 'alice'}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "al${aws:PrincipalTag/ic}e", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContext:who}", true, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContextKeys}", false, false},
		{"StringEquals", "aws:PrincipalTag/x", "${kms:EncryptionContextKeys, 'alice'}", true, false},
		{"StringEqualsIgnoreCase", "aws:PrincipalTag/x", "A${aws:PrincipalTag/lice}", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${aws:username}*", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${aws:PrincipalTag/star}", false, false},
		{"StringLike", "aws:PrincipalTag/x", "*${aws:PrincipalTag/ic}*", true, false},
		{"StringLike", "aws:PrincipalTag/x", "${*}", false, false},
		{"StringLike", "aws:PrincipalTag/x", "?????", true, true},
		{"StringEquals", "aws:PrincipalTag/star", "a${*}", true, false},
		{"StringLike", "aws:PrincipalTag/star", "a${*}", true, false},
		{"StringLike", "aws:PrincipalTag/star", "a${?}", false, false},
		{"StringEquals", "aws:PrincipalTag/question", "a${?}", true, false},
		{"StringLike", "aws:PrincipalTag/question", "a${?}", true, false},
		{"StringLike", "aws:PrincipalTag/question", "${?}?", false, false},
		{"StringEquals", "aws:PrincipalTag/dollar", "a${$}", true, false},
		{"StringEquals", "aws:PrincipalTag/braces", "${aws:username}", false, true},
		{"StringEquals", "aws:PrincipalTag/braces", "${$}{aws:username}", true, false},
		{"StringLike", "aws:PrincipalTag/braces", "${*}", false, true},
		{"StringEquals", "aws:PrincipalTag/braces", "${aws:PrincipalTag/braces}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::${aws:PrincipalAccount}:user/${aws:username}", true, false},
		{"ArnEquals", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:username}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/none}", false, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/none, 'alice'}", true, false},
		{"ArnLike", "aws:PrincipalArn", "arn:aws:iam::*:user/${aws:PrincipalTag/star}", false, false},
	} {
		prepare := func(c *Case) {
			c.Caller.Tags = []Tag{{"x", "alice"}, {"same", "alice"}, {"other", "bob"}, {"ic", "ic"}, {"lice", "lice"}, {"star", "a*"},
				{"question", "a?"}, {"dollar", "a$"}, {"braces", "${aws:username}"}}
			c.EncryptionContext = map[string]string{"who": "alice"}
		}
		for _, operator := range []string{v.operator, negation[v.operator]} {
			condition := conditionOf(operator, v.key, list(v.value))
			negated := operator != v.operator
			cases = append(cases, conditionCases(fmt.Sprintf("%s/%s/%s", operator, v.key, v.value), condition, v.match != negated, prepare)...)
			for i, c := range conditionCases(fmt.Sprintf("old/%s/%s/%s", operator, v.key, v.value), condition, v.old != negated, prepare) {
				c.KeyPolicy = oldDoc(statementIf("Allow", condition))
				if i == 1 {
					c.KeyPolicy = oldDoc(allowAlice, statementIf("Deny", condition))
				}
				cases = append(cases, c)
				if i == 0 {
					c.Name = "no Version" + strings.TrimPrefix(c.Name, "old")
					c.KeyPolicy = Document(`{"Statement":` + statementIf("Allow", condition) + `}`)
					cases = append(cases, c)
				}
			}
		}
	}
	return cases
}

// keyCases: what each condition key says of a request. Each is asked for the value that it has, for another, in other case, and for absence.
func keyCases() (cases []Case) {
	session := func(c *Case) { c.Caller = callerNamed(adminS1) }
	extra := func(key, value string) func(c *Case) {
		return func(c *Case) { c.Extra = append(c.Extra, Extra{key, value}) }
	}
	for _, v := range []struct {
		key, value string // "": absent
		prepare    func(c *Case)
	}{
		{"aws:PrincipalArn", alice, nil},
		{"aws:PrincipalArn", admin, session},
		{"aws:PrincipalArn", rootA, func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:PrincipalAccount", accountA, nil},
		{"aws:PrincipalAccount", accountA, session},
		{"aws:PrincipalType", "User", nil},
		{"aws:PrincipalType", "AssumedRole", session},
		{"aws:PrincipalType", "Account", func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:PrincipalOrgID", "", nil},
		{"aws:PrincipalIsAWSService", "false", nil},
		{"aws:PrincipalTag/team", "red", func(c *Case) { c.Caller.Tags = []Tag{{"team", "red"}} }},
		{"aws:PrincipalTag/team", "red", func(c *Case) { c.Caller.Tags = []Tag{{"TEAM", "red"}} }},
		{"aws:PrincipalTag/team", "", nil},
		{"aws:PrincipalTag/team", "blue", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"team", "blue"}}
		}},
		{"aws:PrincipalTag/team", "blue", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"Team", "blue"}}
		}},
		{"aws:PrincipalTag/team", "red", func(c *Case) {
			session(c)
			c.Caller.Tags, c.Caller.SessionTags = []Tag{{"team", "red"}}, []Tag{{"cost", "5"}}
		}},
		{"aws:userid", "AIDAALICE", nil},
		{"aws:userid", "AROAADMIN:s1", session},
		{"aws:userid", accountA, func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:username", "alice", nil},
		{"aws:username", "", session},
		{"aws:username", "", func(c *Case) { c.Caller = callerNamed(rootA) }},
		{"aws:SourceIdentity", "zoe", func(c *Case) { session(c); c.Caller.Source = "zoe" }},
		{"aws:SourceIdentity", "", session},
		{"aws:TokenIssueTime", "2026-01-01T11:30:00Z", func(c *Case) { session(c); c.Caller.TokenIssued = "2026-01-01T11:30:00Z" }},
		{"aws:TokenIssueTime", "", nil},
		{"aws:SourceIp", "10.0.0.7", func(c *Case) { c.SourceIP = "10.0.0.7" }},
		{"aws:SourceIp", "2001:db8::1", func(c *Case) { c.SourceIP = "2001:db8::1" }},
		{"aws:SourceIp", "", nil},
		{"aws:SourceVpc", "", nil},
		{"aws:SourceVpce", "vpce-1", extra("aws:SourceVpce", "vpce-1")},
		{"aws:SourceArn", "arn:aws:s3:::logs", func(c *Case) { c.SourceARN = "arn:aws:s3:::logs" }},
		{"aws:SourceArn", "", nil},
		{"aws:SourceAccount", accountA, func(c *Case) { c.SourceAccount = accountA }},
		{"aws:SourceAccount", "", nil},
		{"aws:CalledVia", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledVia", "", nil},
		{"aws:CalledViaFirst", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledViaLast", "s3.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:CalledViaFirst", "", nil},
		{"aws:ViaAWSService", "true", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"aws:ViaAWSService", "false", nil},
		{"aws:SecureTransport", "true", nil},
		{"aws:SecureTransport", "false", func(c *Case) { c.Plain = true }},
		{"aws:CurrentTime", "2026-01-01T12:00:00Z", nil},
		{"aws:EpochTime", "1767268800", nil},
		{"aws:RequestedRegion", "us-east-1", nil},
		{"aws:UserAgent", "aws-cli/2.1", func(c *Case) { c.UserAgent = "aws-cli/2.1" }},
		{"aws:UserAgent", "", nil},
		{"aws:ResourceAccount", accountA, nil},
		{"aws:ResourceTag/env", "prod", func(c *Case) { c.Key.Tags = []Tag{{"env", "prod"}} }},
		{"aws:ResourceTag/env", "prod", func(c *Case) { c.Key.Tags = []Tag{{"x", "y"}, {"Env", "prod"}} }},
		{"aws:ResourceTag/env", "", nil},
		{"aws:RequestTag/env", "prod", extra("aws:RequestTag/env", "prod")},
		{"aws:RequestTag/env", "", nil},
		{"aws:TagKeys", "env", extra("aws:TagKeys", "env")},
		{"aws:TagKeys", "", nil},
		{"aws:Referer", "", nil},
		{"kms:BypassPolicyLockoutSafetyCheck", "true", extra("kms:BypassPolicyLockoutSafetyCheck", "true")},
		{"kms:CallerAccount", accountA, nil},
		{"kms:CallerAccount", accountA, session},
		{"kms:ViaService", "s3.us-east-1.amazonaws.com", func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" }},
		{"kms:ViaService", "", nil},
		{"kms:KeySpec", "SYMMETRIC_DEFAULT", nil},
		{"kms:KeySpec", "RSA_2048", func(c *Case) { c.Key.Spec = "RSA_2048" }},
		{"kms:CustomerMasterKeySpec", "SYMMETRIC_DEFAULT", nil},
		{"kms:KeyUsage", "ENCRYPT_DECRYPT", nil},
		{"kms:KeyUsage", "SIGN_VERIFY", func(c *Case) { c.Key.Usage = "SIGN_VERIFY" }},
		{"kms:CustomerMasterKeyUsage", "ENCRYPT_DECRYPT", nil},
		{"kms:KeyOrigin", "AWS_KMS", nil},
		{"kms:KeyOrigin", "EXTERNAL", func(c *Case) { c.Key.Origin = "EXTERNAL" }},
		{"kms:MultiRegion", "false", nil},
		{"kms:MultiRegion", "true", func(c *Case) { c.Key.MultiRegion, c.Key.MultiRegionKeyType = true, "PRIMARY" }},
		{"kms:MultiRegionKeyType", "REPLICA", func(c *Case) { c.Key.MultiRegion, c.Key.MultiRegionKeyType = true, "REPLICA" }},
		{"kms:MultiRegionKeyType", "", nil},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = list("alias/app") }},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = list("alias/a", "alias/app", "alias/z") }},
		{"kms:ResourceAliases", "alias/app", func(c *Case) { c.Key.Aliases = manyAliases[:50] }},
		{"kms:ResourceAliases", "", func(c *Case) { c.Key.Aliases = manyAliases[:51] }},
		{"kms:ResourceAliases", "", nil},
		{"kms:RequestAlias", "alias/app", func(c *Case) { c.RequestAlias = "alias/app" }},
		{"kms:RequestAlias", "", func(c *Case) { c.Key.Aliases = list("alias/app") }},
		{"kms:EncryptionContext:dept", "red", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red", "id": "7"} }},
		{"kms:EncryptionContext:dept", "red", func(c *Case) { c.EncryptionContext = map[string]string{"DEPT": "red"} }},
		{"kms:EncryptionContext:aws:s3:arn", "arn:aws:s3:::logs", func(c *Case) { c.EncryptionContext = map[string]string{"aws:s3:arn": "arn:aws:s3:::logs"} }},
		{"kms:EncryptionContext:dept", "", func(c *Case) { c.EncryptionContext = map[string]string{"id": "7"} }},
		{"kms:EncryptionContext:dept", "", nil},
		{"kms:EncryptionContext", "", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red"} }},
		{"kms:EncryptionContextKeys", "dept", func(c *Case) { c.EncryptionContext = map[string]string{"dept": "red"} }},
		{"kms:EncryptionContextKeys", "", func(c *Case) { c.EncryptionContext = map[string]string{} }},
		{"kms:EncryptionContextKeys", "", nil},
		{"kms:EncryptionAlgorithm", "SYMMETRIC_DEFAULT", func(c *Case) { c.EncryptionAlgorithm = "SYMMETRIC_DEFAULT" }},
		{"kms:EncryptionAlgorithm", "", nil},
		{"kms:SigningAlgorithm", "ECDSA_SHA_256", extra("kms:SigningAlgorithm", "ECDSA_SHA_256")},
		{"kms:MessageType", "DIGEST", extra("kms:MessageType", "DIGEST")},
		{"kms:MacAlgorithm", "HMAC_SHA_256", extra("kms:MacAlgorithm", "HMAC_SHA_256")},
		{"kms:KeyAgreementAlgorithm", "ECDH", extra("kms:KeyAgreementAlgorithm", "ECDH")},
		{"kms:EncapsulationAlgorithm", "ML_KEM", extra("kms:EncapsulationAlgorithm", "ML_KEM")},
		{"kms:DataKeyPairSpec", "RSA_2048", extra("kms:DataKeyPairSpec", "RSA_2048")},
		{"kms:ReEncryptOnSameKey", "true", func(c *Case) { c.Action, c.ReEncrypt, c.SameKey = "kms:ReEncryptTo", true, true }},
		{"kms:ReEncryptOnSameKey", "false", func(c *Case) { c.Action, c.ReEncrypt = "kms:ReEncryptFrom", true }},
		{"kms:ReEncryptOnSameKey", "", nil},
		{"kms:GrantConstraintType", "EncryptionContextEquals", extra("kms:GrantConstraintType", "EncryptionContextEquals")},
		{"kms:GrantConstraintSourceArn", "arn:aws:s3:::logs", extra("kms:GrantConstraintSourceArn", "arn:aws:s3:::logs")},
		{"kms:GrantOperations", "Decrypt", extra("kms:GrantOperations", "Decrypt")},
		{"kms:GranteePrincipal", admin, extra("kms:GranteePrincipal", admin)},
		{"kms:RetiringPrincipal", admin, extra("kms:RetiringPrincipal", admin)},
		{"kms:GranteeServicePrincipal", "s3.amazonaws.com", extra("kms:GranteeServicePrincipal", "s3.amazonaws.com")},
		{"kms:RetiringServicePrincipal", "s3.amazonaws.com", extra("kms:RetiringServicePrincipal", "s3.amazonaws.com")},
		{"kms:GrantIsForAWSResource", "true", extra("kms:GrantIsForAWSResource", "true")},
		{"kms:ExpirationModel", "KEY_MATERIAL_EXPIRES", extra("kms:ExpirationModel", "KEY_MATERIAL_EXPIRES")},
		{"kms:ValidTo", "1767225600", extra("kms:ValidTo", "1767225600")},
		{"kms:WrappingAlgorithm", "RSAES_OAEP_SHA_256", extra("kms:WrappingAlgorithm", "RSAES_OAEP_SHA_256")},
		{"kms:WrappingKeySpec", "RSA_4096", extra("kms:WrappingKeySpec", "RSA_4096")},
		{"kms:RotationPeriodInDays", "365", extra("kms:RotationPeriodInDays", "365")},
		{"kms:ScheduleKeyDeletionPendingWindowInDays", "7", extra("kms:ScheduleKeyDeletionPendingWindowInDays", "7")},
		{"kms:TrailingDaysWithoutKeyUsage", "90", extra("kms:TrailingDaysWithoutKeyUsage", "90")},
		{"kms:PrimaryRegion", "eu-west-1", extra("kms:PrimaryRegion", "eu-west-1")},
		{"kms:ReplicaRegion", "eu-west-1", extra("kms:ReplicaRegion", "eu-west-1")},
		{"kms:RecipientAttestation:ImageSha384", "9fedcba8", extra("kms:RecipientAttestation:ImageSha384", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "9fedcba8", extra("kms:RecipientAttestation:PCR0", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "", extra("kms:RecipientAttestation:PCR1", "9fedcba8")},
		{"kms:RecipientAttestation:PCR0", "", nil},
	} {
		add := func(what, operator, key, value string, match bool) {
			condition := conditionOf(operator, key, list(value))
			for i, c := range conditionCases(fmt.Sprintf("%s/%q/%s/%d", v.key, v.value, what, len(cases)/2), condition, match, func(c *Case) {
				if v.prepare != nil {
					v.prepare(c)
				}
			}) {
				// The principal may be anybody: the condition decides.
				c.KeyPolicy = Document(strings.ReplaceAll(string(c.KeyPolicy), `{"AWS":"`+alice+`"}`, `"*"`))
				if i == 1 && what != "its value" {
					continue
				}
				cases = append(cases, c)
			}
		}
		add("present", "Null", v.key, "false", v.value != "")
		if v.value == "" {
			add("absent", "StringLike", v.key, "*", false)
			continue
		}
		add("its value", "StringEquals", v.key, v.value, true)
		add("another value", "StringEquals", v.key, v.value+"x", false)
		add("upper case key", "StringEquals", strings.ToUpper(v.key), v.value, true)
		add("lower case key", "StringEquals", strings.ToLower(v.key), v.value, true)
		add("a key with more behind", "StringEquals", v.key+"x", v.value, false)
	}
	return cases
}

// Lines are the cases of the family as JSON, one on each line.
func (f *Family) Lines() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	for i := range f.Cases {
		if err := e.Encode(&f.Cases[i]); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}
