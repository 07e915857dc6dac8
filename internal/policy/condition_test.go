package policy

import (
	"strings"
	"testing"
)

// conditioned is a key policy of one statement that is about everybody and everything, if condition holds.
func conditioned(version, effect, condition string) string {
	return statements(version, `"Effect":"`+effect+`","Principal":"*","Action":"*","Resource":"*","Condition":`+condition)
}

// outcome is what a condition is for an Allow and for a Deny: they differ for values of a request that are malformed.
type outcome string

const (
	yes       outcome = "fulfilled"
	no        outcome = "not fulfilled"
	malformed outcome = "malformed value" // no for Allow, yes for Deny
)

func outcomeOf(t *testing.T, version, condition string, v values) outcome {
	t.Helper()
	allow := mustParse(t, KeyPolicy, conditioned(version, "Allow", condition)).Evaluate(request(&alice, v)).Allow[Anyone] == 1
	deny := mustParse(t, KeyPolicy, conditioned(version, "Deny", condition)).Evaluate(request(&alice, v)).Deny == 1
	switch {
	case allow && deny:
		return yes
	case deny:
		return malformed
	case allow:
		t.Fatalf("%s %v: Allow fulfilled, Deny not", condition, v)
	}
	return no
}

// TestOperators has the request's values of kms:EncryptionContext:x, which may be any text, or of a key with several values.
func TestOperators(t *testing.T) {
	const key = "kms:EncryptionContext:x"
	tested := map[string]bool{}
	for _, tc := range []struct {
		operator, policy string // the policy's values, as JSON
		value            string
		want             outcome
	}{
		{"StringEquals", `"a*"`, "a*", yes},
		{"StringEquals", `"a*"`, "ab", no},
		{"StringEquals", `["a","b"]`, "b", yes},
		{"StringEquals", `"a"`, "A", no},
		{"StringEquals", `""`, "", yes},
		{"StringEquals", `7`, "7", yes},
		{"StringEquals", `1e3`, "1e3", yes},
		{"StringEquals", `true`, "true", yes},
		{"StringNotEquals", `"a"`, "b", yes},
		{"StringNotEquals", `"a"`, "a", no},
		{"StringNotEquals", `["a","b"]`, "b", no},
		{"StringNotEquals", `["a","b"]`, "c", yes},
		{"StringEqualsIgnoreCase", `"Straße É"`, "sTRAßE é", yes},
		{"StringEqualsIgnoreCase", `"k"`, "\u212a", yes},
		{"StringEqualsIgnoreCase", `"ss"`, "ß", no},
		{"StringNotEqualsIgnoreCase", `"ABC"`, "abc", no},
		{"StringNotEqualsIgnoreCase", `"ABC"`, "abd", yes},
		{"StringLike", `"a*c"`, "abbbc", yes},
		{"StringLike", `"a*c"`, "abbbd", no},
		{"StringLike", `"a?c"`, "aéc", yes},
		{"StringLike", `"a?c"`, "ac", no},
		{"StringLike", `"A*"`, "abc", no},
		{"StringLike", `"*"`, "", yes},
		{"StringNotLike", `["x*","a*"]`, "abc", no},
		{"StringNotLike", `["x*","y*"]`, "abc", yes},

		{"NumericEquals", `"10"`, "10.0", yes},
		{"NumericEquals", `1e1`, "10", yes},
		{"NumericEquals", `["1","2"]`, "2", yes},
		{"NumericEquals", `10`, "11", no},
		{"NumericEquals", `10`, "ten", malformed},
		{"NumericEquals", `10`, "", malformed},
		{"NumericNotEquals", `10`, "11", yes},
		{"NumericNotEquals", `10`, "10", no},
		{"NumericNotEquals", `10`, "ten", malformed},
		{"NumericLessThan", `10`, "9", yes},
		{"NumericLessThan", `10`, "10", no},
		{"NumericLessThan", `["5","10"]`, "7", yes},
		{"NumericLessThan", `10`, "x", malformed},
		{"NumericLessThanEquals", `10`, "10", yes},
		{"NumericLessThanEquals", `10`, "10.5", no},
		{"NumericGreaterThan", `10`, "1e2", yes},
		{"NumericGreaterThan", `10`, "10", no},
		{"NumericGreaterThanEquals", `-10`, "-10", yes},
		{"NumericGreaterThanEquals", `-10`, "-11", no},

		{"DateEquals", `"2026-11-26T12:00:00Z"`, "2026-11-26T13:00:00+01:00", yes},
		{"DateEquals", `1795694400`, "2026-11-26T12:00:00Z", yes},
		{"DateEquals", `"2026"`, "2026-01-01T00:00:00Z", yes},
		{"DateEquals", `"2026"`, "soon", malformed},
		{"DateNotEquals", `"2026"`, "2027", yes},
		{"DateNotEquals", `"2026"`, "2026-01-01", no},
		{"DateNotEquals", `"2026"`, "soon", malformed},
		{"DateLessThan", `"2026-11-26T12:00:00Z"`, "2026-11-26T11:59:59.999Z", yes},
		{"DateLessThan", `"2026-11-26T12:00:00Z"`, "2026-11-26T12:00:00Z", no},
		{"DateLessThanEquals", `"2026-11-26T12:00:00Z"`, "2026-11-26T12:00:00Z", yes},
		{"DateLessThanEquals", `"2026-11-26T12:00:00Z"`, "2026-11-26T12:00:00.001Z", no},
		{"DateGreaterThan", `"2026-11-26T12:00Z"`, "2026-11-26T12:00:01Z", yes},
		{"DateGreaterThan", `"2026-11-26T12:00Z"`, "2026-11-26T12:00:00Z", no},
		{"DateGreaterThanEquals", `"2026-11-26T12:00Z"`, "2026-11-26T12:00:00Z", yes},
		{"DateGreaterThanEquals", `"2026-11-26T12:00Z"`, "2026-11-26T11:00:00Z", no},

		{"Bool", `true`, "true", yes},
		{"Bool", `"TRUE"`, "True", yes},
		{"Bool", `"true"`, "false", no},
		{"Bool", `["true","false"]`, "false", yes},
		{"Bool", `"true"`, "1", malformed},

		{"BinaryEquals", `"aGVsbG8="`, "hello", yes},
		{"BinaryEquals", `"aGVsbG8="`, "aGVsbG8=", no},
		{"BinaryEquals", `""`, "", yes},

		{"IpAddress", `"203.0.113.0/24"`, "203.0.113.77", yes},
		{"IpAddress", `"203.0.113.0/24"`, "203.0.114.1", no},
		{"IpAddress", `"203.0.113.9/24"`, "203.0.113.77", yes},
		{"IpAddress", `"203.0.113.9"`, "203.0.113.9", yes},
		{"IpAddress", `"203.0.113.9"`, "203.0.113.8", no},
		{"IpAddress", `["10.0.0.0/8","2001:db8::/32"]`, "2001:db8:1::7", yes},
		{"IpAddress", `"2001:db8::/32"`, "2001:db9::", no},
		{"IpAddress", `"0.0.0.0/0"`, "2001:db8::1", no},
		{"IpAddress", `"10.0.0.0/8"`, "::ffff:10.1.2.3", yes},
		{"IpAddress", `"::ffff:10.0.0.0/104"`, "10.1.2.3", yes},
		{"IpAddress", `"10.0.0.0/8"`, "10.1.2", malformed},
		{"IpAddress", `"10.0.0.0/8"`, "fe80::1%eth0", malformed},
		{"NotIpAddress", `"10.0.0.0/8"`, "11.0.0.1", yes},
		{"NotIpAddress", `["11.0.0.0/8","10.0.0.0/8"]`, "10.0.0.1", no},
		{"NotIpAddress", `"10.0.0.0/8"`, "garbage", malformed},

		{"ArnEquals", `"arn:aws:iam::*:user/*"`, userARN, yes},
		{"ArnLike", `"arn:aws:iam::*:user/*"`, userARN, yes},
		{"ArnLike", `"arn:aws:iam::111122223333:user/team/alice"`, userARN, yes},
		{"ArnLike", `"arn:aws:iam::111122223333:user/team/alic"`, userARN, no},
		{"ArnLike", `"arn:*:user/*::::"`, userARN, no},
		{"ArnLike", `"arn:aws:*:*:*:user/*"`, userARN, yes},
		{"ArnLike", `"arn:aws:s*:::*"`, "arn:aws:s3:us-east-1::bucket", no}, // * stays within its part
		{"ArnLike", `"arn:aws:sns:*:*:topic:*"`, "arn:aws:sns:us-east-1:111122223333:topic:sub:more", yes},
		{"ArnLike", `"arn:aws:sns:?:*:topic"`, "arn:aws:sns::111122223333:topic", no},
		{"ArnLike", `"*"`, userARN, yes},
		{"ArnLike", `"*"`, "alice", malformed},
		{"ArnLike", `"arn:aws:iam::*:user/*"`, "arn:aws:iam::111122223333", malformed},
		{"ArnNotEquals", `"arn:aws:iam::*:user/*"`, userARN, no},
		{"ArnNotLike", `"arn:aws:iam::*:role/*"`, userARN, yes},
		{"ArnNotLike", `"arn:aws:iam::*:role/*"`, "x", malformed},
	} {
		tested[tc.operator] = true
		cond := `{"` + tc.operator + `":{"` + key + `":` + tc.policy + `}}`
		for _, version := range []string{versionPlain, versionVariables} {
			if got := outcomeOf(t, version, cond, values{key: {tc.value}}); got != tc.want {
				t.Errorf("%s, value %q: %s, want %s", cond, tc.value, got, tc.want)
			}
		}
		// One value: all set operators say the same of it, and IfExists makes no difference.
		for _, form := range []string{"ForAllValues:%", "ForAnyValue:%", "%IfExists", "ForAllValues:%IfExists", "ForAnyValue:%IfExists"} {
			cond := `{"` + strings.Replace(form, "%", tc.operator, 1) + `":{"` + key + `":` + tc.policy + `}}`
			if got := outcomeOf(t, versionVariables, cond, values{key: {tc.value}}); got != tc.want {
				t.Errorf("%s, value %q: %s, want %s", cond, tc.value, got, tc.want)
			}
		}
		// Absent: the negated operators hold, ForAllValues and IfExists hold, ForAnyValue does not.
		negated := operators[tc.operator].negated
		for form, want := range map[string]bool{
			"%": negated, "ForAllValues:%": true, "ForAnyValue:%": false, "%IfExists": true, "ForAllValues:%IfExists": true, "ForAnyValue:%IfExists": true,
		} {
			for _, key := range []string{key, "aws:NoSuchKey", "kms:EncryptionContext"} {
				cond := `{"` + strings.Replace(form, "%", tc.operator, 1) + `":{"` + key + `":` + tc.policy + `}}`
				if got := outcomeOf(t, versionVariables, cond, nil); (got == yes) != want || got == malformed {
					t.Errorf("%s, absent: %s, want %v", cond, got, want)
				}
			}
		}
	}
	for name := range operators {
		if name != "Null" && !tested[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
}

func TestSeveralValues(t *testing.T) {
	const key = "aws:TagKeys"
	for _, tc := range []struct {
		cond   string
		values []string
		want   outcome
	}{
		{`"StringEquals":"a"`, []string{"b", "a"}, yes},
		{`"StringEquals":"a"`, []string{"b", "c"}, no},
		{`"StringNotEquals":"a"`, []string{"b", "a"}, no},
		{`"StringNotEquals":"a"`, []string{"b", "c"}, yes},
		{`"ForAllValues:StringEquals":["a","b"]`, []string{"b", "a", "b"}, yes},
		{`"ForAllValues:StringEquals":["a","b"]`, []string{"b", "c"}, no},
		{`"ForAllValues:StringLike":["a*"]`, []string{"ab", "ac"}, yes},
		{`"ForAllValues:StringNotEquals":["a"]`, []string{"b", "c"}, yes},
		{`"ForAllValues:StringNotEquals":["a"]`, []string{"b", "a"}, no},
		{`"ForAnyValue:StringEquals":["a","x"]`, []string{"b", "a"}, yes},
		{`"ForAnyValue:StringEquals":["x"]`, []string{"b", "a"}, no},
		{`"ForAnyValue:StringNotEquals":["a"]`, []string{"a", "b"}, yes},
		{`"ForAnyValue:StringNotEquals":["a","b"]`, []string{"a", "b"}, no},
		{`"ForAnyValue:NumericLessThan":5`, []string{"9", "4"}, yes},
		{`"ForAllValues:NumericLessThan":5`, []string{"9", "4"}, no},
		// A malformed value decides, wherever it stands and whatever the others are.
		{`"ForAnyValue:NumericLessThan":5`, []string{"4", "x"}, malformed},
		{`"ForAnyValue:NumericLessThan":5`, []string{"x", "4"}, malformed},
		{`"NumericLessThan":5`, []string{"4", "x"}, malformed},
		{`"NumericNotEquals":5`, []string{"5", "x"}, malformed},
		{`"ForAllValues:IpAddress":"10.0.0.0/8"`, []string{"11.0.0.1", "x"}, malformed},
	} {
		operator, policy, _ := strings.Cut(tc.cond, `":`)
		cond := `{` + operator + `":{"` + key + `":` + policy + `}}`
		if got := outcomeOf(t, versionVariables, cond, values{key: tc.values}); got != tc.want {
			t.Errorf("%s of %q: %s, want %s", cond, tc.values, got, tc.want)
		}
	}
}

func TestNull(t *testing.T) {
	for _, tc := range []struct {
		values          string
		present, absent outcome
	}{
		{`"true"`, no, yes},
		{`true`, no, yes},
		{`"false"`, yes, no},
		{`false`, yes, no},
		{`["true","false"]`, yes, yes},
	} {
		cond := `{"Null":{"aws:SourceIp":` + tc.values + `}}`
		if got := outcomeOf(t, versionVariables, cond, values{"aws:SourceIp": {""}}); got != tc.present {
			t.Errorf("%s, present: %s, want %s", cond, got, tc.present)
		}
		if got := outcomeOf(t, versionVariables, cond, nil); got != tc.absent {
			t.Errorf("%s, absent: %s, want %s", cond, got, tc.absent)
		}
	}
	if got := outcomeOf(t, versionVariables, `{"Null":{"aws:NoSuchKey":"true"}}`, nil); got != yes {
		t.Errorf("an unknown key is not absent: %s", got)
	}
}

// All operators and all keys must hold.
func TestConditionsAreJoined(t *testing.T) {
	const cond = `{"StringEquals":{"aws:username":"alice","aws:RequestedRegion":"us-east-1"},"Bool":{"aws:SecureTransport":true}}`
	all := values{"aws:username": {"alice"}, "aws:RequestedRegion": {"us-east-1"}, "aws:SecureTransport": {"true"}}
	if got := outcomeOf(t, versionVariables, cond, all); got != yes {
		t.Errorf("all: %s", got)
	}
	for key := range all {
		some := values{}
		for k, v := range all {
			some[k] = v
		}
		some[key] = []string{"false"}
		if got := outcomeOf(t, versionVariables, cond, some); got != no {
			t.Errorf("without %s: %s", key, got)
		}
	}
	if got := outcomeOf(t, versionVariables, `{}`, nil); got != yes {
		t.Errorf("no condition: %s", got)
	}
}

func TestConditionKeys(t *testing.T) {
	for k := UnknownKey + 1; k < keyCount; k++ {
		name := k.String()
		if name == "" {
			t.Fatalf("key %d has no name", k)
		}
		want := ""
		if last := name[len(name)-1]; last == '/' || last == ':' {
			want = "Some/Name:x"
			name += want
		}
		for _, s := range []string{name, strings.ToUpper(name), strings.ToLower(name)} {
			if got, n := ParseKey(s); got != k || !strings.EqualFold(n, want) {
				t.Errorf("ParseKey(%q) = %v, %q, want %v", s, got, n, k)
			}
			cond := `{"StringEquals":{"` + s + `":"v"}}`
			if got := outcomeOf(t, versionVariables, cond, values{name: {"v"}}); got != yes {
				t.Errorf("%s: %s", cond, got)
			}
			p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", cond))
			for other := UnknownKey + 1; other < keyCount; other++ {
				if p.Mentions(other) != (other == k) {
					t.Errorf("%s: Mentions(%v) = %v", cond, other, p.Mentions(other))
				}
			}
		}
	}
	for _, s := range []string{"", "aws", "aws:", "aws:SourceIp/", "aws:PrincipalTag", "aws:PrincipalTag:x", "kms:EncryptionContext", "kms:EncryptionContext/x",
		"kms:ViaServices", "aws:ſourceip", "\u212ams:viaservice", "/", ":", "::", "kms:ViaService:x"} {
		if k, _ := ParseKey(s); k != UnknownKey {
			t.Errorf("ParseKey(%q) = %v", s, k)
		}
	}
	if k, n := ParseKey("KMS:encryptionCONTEXT:Dept/A:b"); k != KMSEncryptionContext || n != "Dept/A:b" {
		t.Errorf("%v, %q", k, n)
	}
}

func TestVariables(t *testing.T) {
	request := values{
		"aws:username":             {"alice"},
		"aws:PrincipalTag/team":    {"b*e"},
		"aws:PrincipalTag/a b":     {"spaced"},
		"aws:PrincipalArn":         {userARN},
		"aws:TagKeys":              {"only"},
		"kms:EncryptionContext:ab": {"one", "two"},
		"aws:SourceIdentity":       {""},
	}
	for _, tc := range []struct {
		operator, policy, value string
		want                    outcome
	}{
		{"StringEquals", "${aws:username}", "alice", yes},
		{"StringEquals", "${AWS:UserName}", "alice", yes},
		{"StringEquals", "${ aws:username }", "alice", yes},
		{"StringEquals", "x-${aws:username}-y", "x-alice-y", yes},
		{"StringEquals", "${aws:username}${aws:username}", "alicealice", yes},
		{"StringEquals", "${aws:username}", "bob", no},
		{"StringEquals", "${aws:PrincipalTag/a b}", "spaced", yes},
		{"StringEquals", "a${aws:SourceIdentity}b", "ab", yes},
		{"StringEqualsIgnoreCase", "X-${aws:username}", "x-ALICE", yes},
		{"StringNotEquals", "${aws:username}", "alice", no},
		{"StringNotEquals", "${aws:username}", "bob", yes},
		{"StringLike", "${aws:username}*", "alice/x", yes},
		{"StringLike", "*${aws:username}", "my alice", yes},
		{"StringLike", "?${aws:username}", "alice", no},
		// A value's wildcards stand for themselves.
		{"StringLike", "${aws:PrincipalTag/team}", "b*e", yes},
		{"StringLike", "${aws:PrincipalTag/team}", "blue", no},
		{"StringLike", "${aws:PrincipalTag/no, '*'}", "blue", no},
		{"StringLike", "${aws:PrincipalTag/no, '*'}", "*", yes},
		{"ArnLike", "${aws:PrincipalArn}", userARN, yes},
		{"ArnLike", "arn:aws:iam::*:user/team/${aws:username}", userARN, yes},
		{"ArnLike", "arn:aws:iam::*:user/${aws:username}", userARN, no},
		{"ArnLike", "${aws:username}", userARN, no}, // no ARN matches what is none
		{"ArnNotLike", "${aws:username}", userARN, yes},
		// Absent keys.
		{"StringEquals", "${aws:PrincipalTag/no}", "", no},
		{"StringEquals", "${aws:PrincipalTag/no}", "${aws:PrincipalTag/no}", no},
		{"StringLike", "*${aws:PrincipalTag/no}*", "x", no},
		{"StringNotEquals", "${aws:PrincipalTag/no}", "x", yes},
		{"StringNotLike", "*${aws:PrincipalTag/no}*", "x", yes},
		{"ArnNotLike", "${aws:PrincipalTag/no}", userARN, yes},
		{"StringEquals", "${aws:NoSuchKey}", "x", no},
		{"StringEquals", "${aws:PrincipalTag/no, 'none'}", "none", yes},
		{"StringEquals", "${aws:PrincipalTag/no,'no}ne'}!", "no}ne!", yes},
		{"StringEquals", "${aws:PrincipalTag/no , ''}", "", yes},
		{"StringEquals", "${aws:username, 'none'}", "alice", yes},
		// Keys with several values have none here.
		{"StringEquals", "${aws:TagKeys}", "only", no},
		{"StringEquals", "${aws:TagKeys, 'd'}", "d", yes},
		{"StringEquals", "${kms:EncryptionContext:ab}", "one", no},
		// Characters.
		{"StringLike", "a${*}c", "a*c", yes},
		{"StringLike", "a${*}c", "abc", no},
		{"StringLike", "a${?}*", "a?bc", yes},
		{"StringLike", "a${?}*", "abc", no},
		{"StringLike", "a${*}", "a*", yes},
		{"StringLike", "a${*}", "ab", no},
		{"StringEquals", "a${*}c${?}", "a*c?", yes},
		{"StringEquals", "${$}{aws:username}", "${aws:username}", yes},
		{"StringEquals", "$aws:username", "$aws:username", yes},
		{"StringEquals", "$", "$", yes},
		{"StringEquals", "$${aws:username}", "$alice", yes},
	} {
		cond := `{"` + tc.operator + `":{"kms:EncryptionContext:x":"` + tc.policy + `"}}`
		request["kms:EncryptionContext:x"] = []string{tc.value}
		if got := outcomeOf(t, versionVariables, cond, request); got != tc.want {
			t.Errorf("%s, value %q: %s, want %s", cond, tc.value, got, tc.want)
		}
	}
	// In the older version there are none.
	for _, doc := range []string{
		conditioned(versionPlain, "Allow", `{"StringEquals":{"kms:EncryptionContext:x":"${aws:username}"}}`),
		strings.Replace(conditioned(versionPlain, "Allow", `{"StringEquals":{"kms:EncryptionContext:x":"${aws:username}"}}`), `"Version":"2008-10-17",`, "", 1),
		conditioned(versionPlain, "Allow", `{"StringLike":{"kms:EncryptionContext:x":["${","${aws:username}"]}}`),
	} {
		for value, want := range map[string]int{"${aws:username}": 1, "alice": 0} {
			request["kms:EncryptionContext:x"] = []string{value}
			if got := mustParse(t, KeyPolicy, doc).Evaluate(requestOf(request)).Allow[Anyone]; got != want {
				t.Errorf("%s, value %q: %d, want %d", doc, value, got, want)
			}
		}
	}
	if p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEquals":{"aws:username":"${aws:PrincipalTag/x}"}}`)); !p.Mentions(AWSPrincipalTag) {
		t.Error("a variable's key is not mentioned")
	}
	for _, s := range []string{"${", "${aws:username", "${}", "${ }", "${aws:username,}", "${aws:username, none}", "${aws:username, 'none}", "${aws:username, 'no'ne'}",
		"${aws:username, 'none' x}", "a${b${aws:username}}"} {
		doc := conditioned(versionVariables, "Allow", `{"StringEquals":{"aws:username":"`+s+`"}}`)
		if _, err := Parse([]byte(doc), KeyPolicy, nil); err == nil {
			t.Errorf("%q is accepted", s)
		}
	}
}

func requestOf(v values) *Request { return request(&alice, v) }

// A value of the request that is longer than the text, and the other way round, is found to differ before memory is spent on it.
func TestLongVariables(t *testing.T) {
	long := strings.Repeat("é", 5000)
	p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEquals":{"kms:EncryptionContext:x":"${aws:username}${aws:username}"}}`))
	r := request(&alice, values{"aws:username": {long}, "kms:EncryptionContext:x": {"é"}})
	if got := p.Evaluate(r); got != (Result{}) || cap(r.Scratch.symbols) > 100 {
		t.Errorf("%+v, %d symbols", got, cap(r.Scratch.symbols))
	}
	r = request(&alice, values{"aws:username": {long}, "kms:EncryptionContext:x": {long + long}})
	if got := p.Evaluate(r); got.Allow[Anyone] != 1 {
		t.Errorf("%+v", got)
	}
	r.Scratch.Reset()
	for _, s := range r.Scratch.symbols[:cap(r.Scratch.symbols)] {
		if s != 0 {
			t.Fatal("Reset leaves what was there")
		}
	}
	// A Kelvin sign has three bytes, the letter that it is in another case one.
	p = mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEqualsIgnoreCase":{"kms:EncryptionContext:x":"${aws:username}"}}`))
	r = request(&alice, values{"aws:username": {strings.Repeat("\u212a", 10)}, "kms:EncryptionContext:x": {strings.Repeat("k", 10)}})
	if got := p.Evaluate(r); got.Allow[Anyone] != 1 {
		t.Errorf("%+v", got)
	}
}
