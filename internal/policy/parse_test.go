package policy

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func parseError(doc string, kind Kind) string {
	_, err := Parse([]byte(doc), kind, nil)
	if err == nil {
		return "accepted"
	}
	var e *Error
	if !errors.As(err, &e) {
		return "not an *Error: " + err.Error()
	}
	return e.Message
}

const (
	syntaxErrors = "Syntax errors in policy."
	notJSON      = "The key policy is not valid JSON."
)

func TestRefusedKeyPolicies(t *testing.T) {
	with := func(more string) string { return statements(versionVariables, allowTo(`"*"`)+more) }
	for _, tc := range []struct{ name, doc, want string }{
		{"empty", ``, notJSON},
		{"list", `[]`, "The key policy's document is not a JSON object."},
		{"string", `"x"`, "The key policy's document is not a JSON object."},
		{"null", `null`, "The key policy's document is not a JSON object."},
		{"cut off", `{"Version":"2012-10-17"`, notJSON},
		{"comma too many", `{"Version":"2012-10-17",}`, notJSON},
		{"comment", `{/**/}`, notJSON},
		{"data behind", with("") + `{}`, "The key policy has data behind its JSON object."},
		{"invalid UTF-8", with(`,"Sid":"` + "\xff" + `"`), notJSON},
		{"half a surrogate pair", with(`,"Sid":"\ud800"`), notJSON},
		{"member twice", `{"Version":"2012-10-17","Version":"2012-10-17"}`, "The key policy has a member twice."},
		{"element twice", with(`,"Action":"*"`), "The key policy has a member twice."},
		{"element twice, escaped", with(`,"\u0041ction":"*"`), "The key policy has a member twice."},
		{"operator twice", with(`,"Condition":{"Bool":{"aws:x":true},"Bool":{"aws:y":true}}`), "The key policy has a member twice."},
		{"condition key twice", with(`,"Condition":{"Bool":{"aws:x":true,"aws:x":false}}`), "The key policy has a member twice."},
		{"nothing", `{}`, "The key policy has no Statement."},
		{"no statement", `{"Version":"2012-10-17","Statement":[]}`, "The key policy has no Statement."},
		{"statement a string", `{"Statement":"x"}`, "The key policy's Statement is not a JSON object."},
		{"statement null", `{"Statement":null}`, "The key policy's Statement is not a JSON object."},
		{"statement in two lists", `{"Statement":[[{}]]}`, "The key policy's Statement is not a JSON object."},
		{"deep", `{"Statement":` + strings.Repeat("[", 10000), "The key policy's Statement is not a JSON object."},
		{"deep value", with(`,"Condition":{"Bool":{"aws:x":` + strings.Repeat("[", 10000)), "The key policy's Condition is not a string."},
		{"unknown element", `{"Version":"2012-10-17","Statements":[]}`, "The key policy has an element that does not exist."},
		{"element in other case", `{"version":"2012-10-17"}`, "The key policy has an element that does not exist."},
		{"unknown element of a statement", with(`,"Actions":"*"`), "A statement of the key policy has an element that does not exist."},
		{"Id a number", `{"Id":1}`, "The key policy's Id is not a string."},
		{"Version a number", `{"Version":2012}`, "The key policy's Version is not a string."},
		{"Version newer", `{"Version":"2020-01-01"}`, "The key policy's Version is neither 2012-10-17 nor 2008-10-17."},
		{"Version empty", `{"Version":""}`, "The key policy's Version is neither 2012-10-17 nor 2008-10-17."},
		{"Sid a number", with(`,"Sid":1`), "The key policy's Sid is not a string."},
		{"Sid twice", statements(versionVariables, allowTo(`"*"`)+`,"Sid":"a"`, allowTo(`"*"`)+`,"Sid":"a"`), "Statement IDs (SID) in a single policy must be unique."},
		{"no Effect", statements(versionVariables, `"Principal":"*","Action":"*","Resource":"*"`), "A statement's Effect is neither Allow nor Deny."},
		{"Effect in other case", statements(versionVariables, `"Effect":"allow","Principal":"*","Action":"*","Resource":"*"`), "A statement's Effect is neither Allow nor Deny."},
		{"no Principal", statements(versionVariables, `"Effect":"Allow","Action":"*","Resource":"*"`), "Missing required field Principal"},
		{"both principals", with(`,"NotPrincipal":"*"`), "A statement has both Principal and NotPrincipal."},
		{"both actions", with(`,"NotAction":"kms:x"`), "A statement has both Action and NotAction."},
		{"both resources", with(`,"NotResource":"*"`), "A statement has both Resource and NotResource."},
		{"no action in a list", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":[],"Resource":"*"`), "The key policy's Action is empty."},
		{"no resource in a list", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"*","NotResource":[]`), "The key policy's NotResource is empty."},
		{"action a number", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":1`), "The key policy's Action is not a string."},
		{"action a Boolean in a list", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":[true]`), "The key policy's Action is not a string."},
		{"action null", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":null`), "The key policy's Action is not a string."},
		{"action without vendor", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"Decrypt"`),
			"Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc."},
		{"action ?", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"?"`), "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc."},
		{"action with two colons", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"kms:a:b"`), "Actions/Condition can contain only one colon."},
		{"vendor with wildcard", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"k*:Decrypt"`), "Vendor is not valid"},
		{"vendor empty", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":":Decrypt"`), "Vendor is not valid"},
		{"action empty", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"kms:"`), "A statement's Action is not the name of an action."},
		{"action with a variable", statements(versionVariables, `"Effect":"Allow","Principal":"*","Action":"kms:${a}"`), "A statement's Action is not the name of an action."},
		{"Condition a list", with(`,"Condition":[]`), "The key policy's Condition is not a JSON object."},
		{"Condition null", with(`,"Condition":null`), "The key policy's Condition is not a JSON object."},
		{"operator a list", with(`,"Condition":{"Bool":[]}`), "The key policy's Condition is not a JSON object."},
		{"operator without key", with(`,"Condition":{"Bool":{}}`), "A condition operator has no condition key."},
		{"key without values", with(`,"Condition":{"Bool":{"aws:x":[]}}`), "The key policy's Condition is empty."},
		{"value null", with(`,"Condition":{"StringEquals":{"aws:x":null}}`), "The key policy's Condition is not a string."},
		{"value an object", with(`,"Condition":{"StringEquals":{"aws:x":{}}}`), "The key policy's Condition is not a string."},
		{"key empty", with(`,"Condition":{"Bool":{"":true}}`), "A statement has a condition key without a name."},
	} {
		if got := parseError(tc.doc, KeyPolicy); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, operator := range []string{"", "Equals", "stringEquals", "StringEqual", "StringLikes", "NumericLike", "BoolEquals", "NotBool", "IpNotAddress", "NullIfExists",
		"ForAllValues:Null", "ForAnyValue:Null", "ForAllValues", "ForAllValues:", "ForSomeValues:StringEquals", "ForAllValues:ForAnyValue:StringEquals",
		"forAllValues:StringEquals", "StringEqualsIfExistsIfExists", "IfExists", "StringEqualsIfexists", "StringEqualsForAllValues:"} {
		want := "A statement has a condition operator that does not exist."
		if got := parseError(with(`,"Condition":{"`+operator+`":{"aws:x":"true"}}`), KeyPolicy); got != want {
			t.Errorf("operator %q: %q, want %q", operator, got, want)
		}
	}
	for operator, all := range map[string][]string{
		"NumericEquals": {"", "x", "1,0", "0x10", "1e", "NaN", "Inf", " 1", "1e400", "${aws:x}", "true"},
		"DateLessThan":  {"", "x", "2026-13", "2026-02-29", "2026-1-1", "2026-11-26T12:00:00", "2026-11-26 12:00:00Z", "1.5", "1e9", "${aws:CurrentTime}"},
		"Bool":          {"", "yes", "1", "truee", "${aws:x}"},
		"BinaryEquals":  {"aGVsbG8", "a", "aGVs\\nbG8=", "aGVsbG9=", "${aws:x}"},
		"IpAddress":     {"", "x", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "*", "fe80::1%eth0", "${aws:SourceIp}"},
		"ArnLike":       {"", "x", "**", "arn:*", "arn:aws:iam::111122223333", "?"},
		"ArnNotEquals":  {"alice"},
		"Null":          {"", "yes", "${aws:x}"},
	} {
		for _, v := range all {
			want := "A condition's value is not one of its operator's type."
			if got := parseError(with(`,"Condition":{"`+operator+`":{"aws:x":["`+v+`"]}}`), KeyPolicy); got != want {
				t.Errorf("%s %q: %q, want %q", operator, v, got, want)
			}
		}
	}
}

func TestRefusedPrincipals(t *testing.T) {
	for _, principal := range []string{
		`""`, `"111122223333"`, `"arn:aws:iam::111122223333:root"`, `{}`, `{"CanonicalUser":"79a59df900b949e5"}`, `{"aws":"*"}`, `{"*":"*"}`, `{"Group":"x"}`,
		`{"AWS":""}`, `{"AWS":"**"}`, `{"AWS":"1111222233334"}`, `{"AWS":"11112222333"}`, `{"AWS":"alice"}`,
		`{"AWS":"arn:aws:iam::111122223333:*"}`, `{"AWS":"arn:aws:iam::*:root"}`, `{"AWS":"arn:aws:iam::111122223333:user/*"}`, `{"AWS":"arn:aws:iam::111122223333:role/a?"}`,
		`{"AWS":"arn:aws:iam::111122223333:user/*/a"}`, `{"AWS":"arn:aws:iam::111122223333:user/"}`, `{"AWS":"arn:aws:iam::111122223333:user"}`,
		`{"AWS":"arn:aws:iam::111122223333:user/a/"}`, `{"AWS":"arn:aws:iam::111122223333:user/${aws:username}"}`, `{"AWS":"arn:aws:iam::111122223333:user/${aws:username}/a"}`,
		`{"AWS":"arn:aws:iam::111122223333:group/admins"}`, `{"AWS":"arn:aws:iam::111122223333:instance-profile/x"}`, `{"AWS":"arn:aws:iam::111122223333:ROOT"}`,
		`{"AWS":"arn:aws:iam::111122223333:root/x"}`, `{"AWS":"arn:aws:iam:us-east-1:111122223333:root"}`, `{"AWS":"arn:aws:iam::1111:root"}`,
		`{"AWS":"arn:aws:sts::111122223333:root"}`, `{"AWS":"arn:aws:sts::111122223333:user/alice"}`, `{"AWS":"arn:aws:sts::111122223333:assumed-role/worker"}`,
		`{"AWS":"arn:aws:sts::111122223333:assumed-role/worker/"}`, `{"AWS":"arn:aws:sts::111122223333:assumed-role/app/worker/s"}`,
		`{"AWS":"arn:aws:sts::111122223333:assumed-role/worker/*"}`, `{"AWS":"arn:aws:sts::111122223333:federated-user/"}`, `{"AWS":"arn:aws:iam::111122223333:assumed-role/w/s"}`,
		`{"AWS":"arn:other:iam::111122223333:root"}`, `{"AWS":"arn:aws-:iam::111122223333:root"}`, `{"AWS":"arn::iam::111122223333:root"}`, `{"AWS":"ARN:aws:iam::111122223333:root"}`,
		`{"AWS":"arn:aws:iam::111122223333:user/a:b"}`, `{"AWS":"arn:aws:s3:::bucket"}`, `{"AWS":"AIDASHORT"}`, `{"AWS":"AKIAEXAMPLEALICE00001"}`, `{"AWS":"AIDAexamplealice00001"}`,
		`{"AWS":"arn:aws:iam::111122223333:user/` + strings.Repeat("n", nameMax+1) + `"}`, `{"AWS":"arn:aws:iam::111122223333:user/` + strings.Repeat("p", pathMax) + `/n"}`,
		`{"Service":"*"}`, `{"Service":""}`, `{"Service":"s3"}`, `{"Service":"s3..com"}`, `{"Service":"s3.*.amazonaws.com"}`, `{"Service":".s3.com"}`, `{"Federated":"*"}`, `{"Federated":""}`,
	} {
		if got := parseError(statements(versionVariables, allowTo(principal)), KeyPolicy); got != invalidPrincipals {
			t.Errorf("%s: %q", principal, got)
		}
		if got := parseError(statements(versionVariables, strings.Replace(allowTo(principal), "Principal", "NotPrincipal", 1)), KeyPolicy); got != invalidPrincipals {
			t.Errorf("NotPrincipal %s: %q", principal, got)
		}
	}
	for _, principal := range []string{`1`, `null`, `["*"]`, `{"AWS":1}`, `{"AWS":[]}`, `{"AWS":["*",null]}`, `{"AWS":{}}`} {
		if got := parseError(statements(versionVariables, allowTo(principal)), KeyPolicy); !strings.HasPrefix(got, "The key policy's Principal is ") {
			t.Errorf("%s: %q", principal, got)
		}
	}
	for _, arn := range []string{"arn:aws-us-gov:iam::111122223333:root", "arn:aws-cn:iam::111122223333:user/a", "arn:aws:iam::000000000000:root",
		"arn:aws:iam::111122223333:user/" + strings.Repeat("n", nameMax), "arn:aws:iam::111122223333:user/" + strings.Repeat("p", pathMax-1) + "/n",
		"arn:aws:iam::111122223333:role/a+b=c,d.e@f-g_h"} {
		if p := mustParse(t, KeyPolicy, statements(versionVariables, allowTo(`{"AWS":"`+arn+`"}`))); len(p.Principals()) != 1 || p.Principals()[0] != arn {
			t.Errorf("%s: principals %q", arn, p.Principals())
		}
	}
}

func TestRefusedIdentityPolicies(t *testing.T) {
	for _, tc := range []struct{ name, statement, want string }{
		{"fine", `"Effect":"Allow","Action":"kms:*","Resource":"*"`, "accepted"},
		{"Sid", `"Sid":"Abc123","Effect":"Allow","Action":"kms:*","Resource":"*"`, "accepted"},
		{"Sid with a space", `"Sid":"a b","Effect":"Allow","Action":"kms:*","Resource":"*"`,
			"Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*"},
		{"Principal", `"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"`, "Policy document should not specify a principal."},
		{"NotPrincipal", `"Effect":"Allow","NotPrincipal":"*","Action":"kms:*","Resource":"*"`, "Policy document should not specify a principal."},
		{"no action", `"Effect":"Allow","Resource":"*"`, "Policy statement must contain actions."},
		{"no resource", `"Effect":"Allow","Action":"kms:*"`, "Policy statement must contain resources."},
		{"no ARN", `"Effect":"Allow","Action":"kms:*","Resource":"key/x"`, `Resource must be in ARN format or "*".`},
		{"no ARN in NotResource", `"Effect":"Allow","Action":"kms:*","NotResource":["*","key/x"]`, `Resource must be in ARN format or "*".`},
		{"bad Effect", `"Effect":"ALLOW","Action":"kms:*","Resource":"*"`, syntaxErrors},
		{"unknown element", `"Effect":"Allow","Action":"kms:*","Resource":"*","X":1`, syntaxErrors},
		{"unknown operator", `"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"X":{"aws:x":"y"}}`, syntaxErrors},
		{"not JSON", `"Effect":`, syntaxErrors},
		{"action twice", `"Effect":"Allow","Action":"kms:*","Action":"kms:*","Resource":"*"`, syntaxErrors},
	} {
		if got := parseError(statements(versionVariables, tc.statement), IdentityPolicy); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestRefusedTrustPolicies(t *testing.T) {
	const user = `"Principal":{"AWS":"arn:aws:iam::111122223333:user/a"}`
	for _, tc := range []struct{ name, statement, want string }{
		{"fine", `"Effect":"Allow",` + user + `,"Action":"sts:AssumeRole"`, "accepted"},
		{"several", `"Effect":"Allow",` + user + `,"Action":["sts:AssumeRole","STS:TagSession"]`, "accepted"},
		{"federated", `"Effect":"Allow","Principal":{"Federated":"accounts.google.com"},"Action":"sts:AssumeRoleWithWebIdentity"`, "accepted"},
		{"no principal", `"Effect":"Allow","Action":"sts:AssumeRole"`, "Missing required field Principal"},
		{"resource", `"Effect":"Allow",` + user + `,"Action":"sts:AssumeRole","Resource":"*"`, "Has prohibited field Resource"},
		{"no action", `"Effect":"Allow",` + user, "Policy statement must contain actions."},
		{"other action", `"Effect":"Allow",` + user + `,"Action":"kms:Decrypt"`, "AssumeRole policy may only specify STS AssumeRole actions."},
		{"bad principal", `"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:group/a"},"Action":"sts:AssumeRole"`,
			`Invalid principal in policy: "AWS":"arn:aws:iam::111122223333:group/a"`},
		{"principal that is not repeated", `"Effect":"Allow","Principal":{"AWS":"é"},"Action":"sts:AssumeRole"`, invalidPrincipals},
	} {
		if got := parseError(statements(versionVariables, tc.statement), TrustPolicy); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	p := mustParse(t, TrustPolicy, statements(versionVariables, `"Effect":"Allow","Principal":{"AWS":"`+userARN+`"},"Action":"sts:AssumeRole","Condition":{"StringEquals":{"sts:ExternalId":"42"}}`))
	r := request(&alice, values{"sts:ExternalId": {"42"}})
	r.Action, r.Resource = "sts:AssumeRole", []byte(roleARN)
	if got, want := p.Evaluate(r), (Result{Allow: [matches]int{Itself: 1}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Every limit is held at, and refused beyond.
func TestLimits(t *testing.T) {
	list := func(n int, of string) string { return `[` + strings.TrimSuffix(strings.Repeat(of+",", n), ",") + `]` }
	for _, tc := range []struct {
		name string
		doc  func(n int) string
		max  int
	}{
		{"document", func(n int) string {
			doc := statements(versionVariables, allowTo(`"*"`))
			return doc + strings.Repeat(" ", n-len(doc))
		}, 32768},
		{"statements", func(n int) string {
			return `{"Statement":` + list(n, `{"Effect":"Deny","Principal":"*"}`) + `}`
		}, 512},
		{"values", func(n int) string {
			return conditioned(versionVariables, "Allow", `{"StringEquals":{"a:b":`+list(n, `""`)+`}}`)
		}, 4096},
		{"value", func(n int) string {
			return conditioned(versionVariables, "Allow", `{"StringEquals":{"a:b":"`+strings.Repeat("x", n)+`"}}`)
		}, 8192},
		{"condition key", func(n int) string {
			return conditioned(versionVariables, "Allow", `{"StringEquals":{"a:`+strings.Repeat("x", n-2)+`":""}}`)
		}, 2048},
		{"resource", func(n int) string {
			return statements(versionVariables, `"Effect":"Deny","Principal":"*","Action":"*","Resource":"arn:`+strings.Repeat("x", n-4)+`"`)
		}, 2048},
		{"action", func(n int) string {
			return statements(versionVariables, `"Effect":"Deny","Principal":"*","Resource":"*","Action":"kms:`+strings.Repeat("x", n-4)+`"`)
		}, 256},
		{"Sid", func(n int) string {
			return statements(versionVariables, allowTo(`"*"`)+`,"Sid":"`+strings.Repeat("x", n)+`"`)
		}, 8192},
		{"Id", func(n int) string {
			return strings.Replace(statements(versionVariables, allowTo(`"*"`)), "{", `{"Id":"`+strings.Repeat("x", n)+`",`, 1)
		}, 8192},
	} {
		if got := parseError(tc.doc(tc.max), KeyPolicy); got != "accepted" {
			t.Errorf("%s of %d: %q", tc.name, tc.max, got)
		}
		if got := parseError(tc.doc(tc.max+1), KeyPolicy); got == "accepted" {
			t.Errorf("%s of %d: accepted", tc.name, tc.max+1)
		}
	}
}

// Wherever AWS allows a list it allows one value without a list, of statements too.
func TestListsOfOne(t *testing.T) {
	want := Result{Allow: [matches]int{Itself: 1}}
	for _, doc := range []string{
		`{"Statement":{"Effect":"Allow","Principal":{"AWS":%q},"Action":"kms:Decrypt","Resource":"*","Condition":{"StringEquals":{"aws:username":"alice"}}}}`,
		`{"Statement":[{"Effect":"Allow","Principal":{"AWS":[%q]},"Action":["kms:Decrypt"],"Resource":["*"],"Condition":{"StringEquals":{"aws:username":["alice"]}}}]}`,
		" {\t\"Statement\":\r\n[{\"Condition\":{\"StringEquals\":{\"aws:username\":[\"alice\"]}},\"Resource\":\"*\",\"Action\":\"kms:Decrypt\",\"Principal\":{\"AWS\":[%q]},\"Effect\":\"Allow\"}],\"Version\":\"2012-10-17\" } ",
	} {
		doc := fmt.Sprintf(doc, userARN)
		if got := mustParse(t, KeyPolicy, doc).Evaluate(request(&alice, values{"aws:username": {"alice"}})); got != want {
			t.Errorf("%s: %+v, want %+v", doc, got, want)
		}
	}
}

func TestEmptySidsAreNoSids(t *testing.T) {
	p := mustParse(t, KeyPolicy, statements(versionVariables, allowTo(`"*"`)+`,"Sid":""`, allowTo(`"*"`)+`,"Sid":""`, allowTo(`"*"`)+`,"Sid":"x"`))
	if p.Len() != 3 || p.Sid(1) != "" || p.Sid(3) != "x" {
		t.Errorf("%d, %q, %q", p.Len(), p.Sid(1), p.Sid(3))
	}
}
