package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

const (
	account  = "111122223333"
	keyARN   = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
	rootARN  = "arn:aws:iam::111122223333:root"
	userARN  = "arn:aws:iam::111122223333:user/team/alice"
	roleARN  = "arn:aws:iam::111122223333:role/app/worker"
	assumed  = "arn:aws:sts::111122223333:assumed-role/worker/job-1"
	userID   = "AIDAEXAMPLEALICE00001"
	roleID   = "AROAEXAMPLEWORKER0001"
	otherID  = "AIDAEXAMPLEOTHER00001"
	stranger = "444455556666"
)

// Callers.
var (
	root    = Principal{Kind: Root, Account: 111122223333, ARN: rootARN, ID: account}
	alice   = Principal{Kind: User, Account: 111122223333, ARN: userARN, ID: userID}
	worker  = Principal{Kind: AssumedRole, Account: 111122223333, ARN: assumed, RoleARN: roleARN, ID: roleID}
	storage = Principal{Kind: Service, Account: 111122223333, ARN: "s3.us-east-1.amazonaws.com"}
	foreign = Principal{Kind: User, Account: 444455556666, ARN: "arn:aws:iam::444455556666:user/bob", ID: "AIDAEXAMPLEBOB0000001"}
)

// values is a Context: the values of condition keys, by their names in any case.
type values map[string][]string

// facts are values as Evaluate asks for them, without allocating.
type facts []fact

type fact struct {
	key    Key
	name   string
	values [][]byte
	addrs  []netip.Addr
}

func (v values) context() facts {
	var f facts
	for name, texts := range v {
		a := fact{}
		if a.key, a.name = ParseKey(name); a.key == UnknownKey {
			panic("no condition key " + name)
		}
		for _, s := range texts {
			a.values = append(a.values, []byte(s))
		}
		f = append(f, a)
	}
	slices.SortFunc(f, func(a, b fact) int { return int(a.key) - int(b.key) })
	return f
}

func (f facts) Value(k Key, name string, i int) (Value, bool) {
	for j := range f {
		if a := &f[j]; a.key == k && strings.EqualFold(a.name, name) && i < len(a.values) {
			v := Value{Text: a.values[i]}
			if a.addrs != nil {
				v.Addr = a.addrs[i]
			}
			return v, true
		}
	}
	return Value{}, false
}

func (f facts) First(k Key, name string, _ bool, v *Value) int { return first(f, k, name, v) }

// first is Context.First made of Context.Value.
func first[C interface {
	Value(k Key, name string, i int) (Value, bool)
}](c C, k Key, name string, v *Value) int {
	var ok bool
	if *v, ok = c.Value(k, name, 0); !ok {
		return 0
	}
	if _, ok = c.Value(k, name, 1); ok && k.Several() {
		return 2
	}
	return 1
}

func request(caller *Principal, v values) *Request {
	return &Request{Action: "kms:Decrypt", Resource: []byte(keyARN), Principal: caller, Context: v.context(), Scratch: &Scratch{}}
}

func mustParse(t testing.TB, kind Kind, doc string) *Policy {
	t.Helper()
	p, err := Parse([]byte(doc), kind, nil)
	if err != nil {
		t.Fatalf("%s\n%v", doc, err)
	}
	return p
}

// statements is a key policy of statements, each without its braces.
func statements(version string, all ...string) string {
	return fmt.Sprintf(`{"Version":%q,"Statement":[{%s}]}`, version, strings.Join(all, "},{"))
}

// allowTo is the statement that allows all to a principal.
func allowTo(principal string) string {
	return `"Effect":"Allow","Principal":` + principal + `,"Action":"*","Resource":"*"`
}

func TestDefaultPolicy(t *testing.T) {
	p := mustParse(t, KeyPolicy, `{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow",`+
		`"Principal":{"AWS":"arn:aws:iam::111122223333:root"},"Action":"kms:*","Resource":"*"}]}`)
	if p.Len() != 1 || p.Sid(1) != "Enable IAM User Permissions" || !slices.Equal(p.Principals(), []string{rootARN}) {
		t.Errorf("%d statements, Sid %q, principals %q", p.Len(), p.Sid(1), p.Principals())
	}
	for _, tc := range []struct {
		caller *Principal
		want   Result
	}{
		{&root, Result{Allow: [matches]int{Itself: 1}}},
		{&alice, Result{Allow: [matches]int{Account: 1}}},
		{&worker, Result{Allow: [matches]int{Account: 1}}},
		{&storage, Result{}},
		{&foreign, Result{}},
	} {
		if got := p.Evaluate(request(tc.caller, nil)); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.caller.ARN, got, tc.want)
		}
	}
	r := request(&alice, nil)
	r.Action = "s3:GetObject"
	if got := p.Evaluate(r); got != (Result{}) {
		t.Errorf("%s: %+v", r.Action, got)
	}
}

func TestPrincipals(t *testing.T) {
	all := []*Principal{&root, &alice, &worker, &storage, &foreign}
	names := []string{"root", "alice", "worker", "storage", "foreign"}
	for _, tc := range []struct {
		principal string
		want      string // who is named, and how
	}{
		{`"*"`, "root anyone, alice anyone, worker anyone, storage anyone, foreign anyone"},
		{`{"AWS":"*"}`, "root anyone, alice anyone, worker anyone, storage anyone, foreign anyone"},
		{`{"AWS":["*"]}`, "root anyone, alice anyone, worker anyone, storage anyone, foreign anyone"},
		{`{"AWS":"111122223333"}`, "root itself, alice account, worker account"},
		{`{"AWS":"arn:aws:iam::111122223333:root"}`, "root itself, alice account, worker account"},
		{`{"AWS":"arn:aws:iam::444455556666:root"}`, "foreign account"},
		{`{"AWS":"arn:aws:iam::111122223333:user/team/alice"}`, "alice itself"},
		{`{"AWS":"arn:aws:iam::111122223333:user/alice"}`, ""},
		{`{"AWS":"arn:aws:iam::111122223333:user/team/Alice"}`, ""},
		{`{"AWS":"arn:aws:iam::111122223333:role/app/worker"}`, "worker role"},
		{`{"AWS":"arn:aws:iam::111122223333:role/worker"}`, ""},
		{`{"AWS":"arn:aws:sts::111122223333:assumed-role/worker/job-1"}`, "worker itself"},
		{`{"AWS":"arn:aws:sts::111122223333:assumed-role/worker/job-2"}`, ""},
		{`{"AWS":"arn:aws:sts::111122223333:federated-user/alice"}`, ""},
		{`{"AWS":"` + userID + `"}`, "alice itself"},
		{`{"AWS":"` + otherID + `"}`, ""},
		{`{"AWS":"` + roleID + `"}`, "worker role"},
		{`{"AWS":["111122223333","arn:aws:iam::111122223333:role/app/worker","arn:aws:sts::111122223333:assumed-role/worker/job-1"]}`,
			"root itself, alice account, worker account, worker role, worker itself"},
		{`{"Service":"s3.amazonaws.com"}`, "storage itself"},
		{`{"Service":"S3.AmazonAWS.com"}`, "storage itself"},
		{`{"Service":"s3.us-east-1.amazonaws.com"}`, "storage itself"},
		{`{"Service":"s3.us-east-2.amazonaws.com"}`, ""},
		{`{"Service":"s3.amazonaws.com.cn"}`, ""},
		{`{"Service":["ec2.amazonaws.com","s3.amazonaws.com"],"AWS":"444455556666"}`, "storage itself, foreign account"},
		{`{"Federated":"cognito-identity.amazonaws.com"}`, ""},
		{`{"Federated":"arn:aws:iam::111122223333:saml-provider/x"}`, ""},
	} {
		p := mustParse(t, KeyPolicy, statements(versionVariables, allowTo(tc.principal)))
		not := mustParse(t, KeyPolicy, statements(versionVariables, strings.Replace(allowTo(tc.principal), "Principal", "NotPrincipal", 1)))
		var got []string
		for i, caller := range all {
			result := p.Evaluate(request(caller, nil))
			named := false
			for m, how := range []string{Attached: " attached", Anyone: " anyone", Account: " account", Role: " role", Itself: " itself"} {
				if result.Allow[m] != 0 {
					named = true
					got = append(got, names[i]+how)
				}
			}
			// NotPrincipal is about exactly those whom Principal is not about.
			if rest := not.Evaluate(request(caller, nil)); (rest != Result{}) == named || !named && rest.Allow[Anyone] != 1 {
				t.Errorf("Not%s: %s: %+v", tc.principal, names[i], rest)
			}
		}
		if got := strings.Join(got, ", "); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.principal, got, tc.want)
		}
	}
}

// A principal that was bound is whoever has the ID, whatever it is called now.
func TestBoundPrincipals(t *testing.T) {
	var asked []string
	bind := func(arn string) (string, bool) {
		asked = append(asked, arn)
		switch arn {
		case userARN:
			return userID, true
		case roleARN, assumed:
			return roleID, true
		case account:
			return account, true
		}
		return "", false
	}
	doc := statements(versionVariables,
		allowTo(`{"AWS":["`+userARN+`","`+assumed+`"]}`), allowTo(`{"AWS":"`+roleARN+`"}`), allowTo(`{"AWS":"`+account+`","Service":"s3.amazonaws.com"}`))
	p, err := Parse([]byte(doc), KeyPolicy, bind)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{userARN, assumed, roleARN, account}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	if want := []string{account, roleARN, userARN, assumed}; !slices.Equal(p.Principals(), want) {
		t.Errorf("principals %q, want %q", p.Principals(), want)
	}
	renamed, again, sessionAgain := alice, alice, worker
	renamed.ARN = "arn:aws:iam::111122223333:user/alison"
	again.ID = otherID
	sessionAgain.ID = "AROAEXAMPLEOTHER00001"
	for _, tc := range []struct {
		name   string
		caller *Principal
		want   [matches]int
	}{
		{"user", &alice, [matches]int{Itself: 1, Account: 3}},
		{"renamed user", &renamed, [matches]int{Itself: 1, Account: 3}},
		{"user made again", &again, [matches]int{Account: 3}},
		{"session", &worker, [matches]int{Itself: 1, Role: 2, Account: 3}},
		{"session of a role made again", &sessionAgain, [matches]int{Account: 3}},
		{"root", &root, [matches]int{Itself: 3}},
	} {
		if got := p.Evaluate(request(tc.caller, nil)); got.Allow != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got.Allow, tc.want)
		}
	}
	for _, s := range []string{foreign.ARN, "444455556666", "arn:aws:iam::444455556666:root", "arn:aws:sts::111122223333:assumed-role/worker/job-2"} {
		if _, err := Parse([]byte(statements(versionVariables, allowTo(`{"AWS":"`+s+`"}`))), KeyPolicy, bind); err == nil || err.(*Error).Message != invalidPrincipals {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestElements(t *testing.T) {
	const about = `"Effect":"Allow","Principal":"*",`
	for _, tc := range []struct {
		name, statement  string
		action, resource string
		want             bool
	}{
		{"action", `"Action":"kms:Decrypt","Resource":"*"`, "kms:Decrypt", keyARN, true},
		{"action in other case", `"Action":"KMS:dEcRyPt","Resource":"*"`, "kms:Decrypt", keyARN, true},
		{"request in other case", `"Action":"kms:Decrypt","Resource":"*"`, "Kms:DECRYPT", keyARN, true},
		{"other action", `"Action":"kms:Decrypt","Resource":"*"`, "kms:DecryptX", keyARN, false},
		{"one of several", `"Action":["kms:Encrypt","kms:De*"],"Resource":"*"`, "kms:Decrypt", keyARN, true},
		{"* alone", `"Action":"*","Resource":"*"`, "kms:Decrypt", keyARN, true},
		{"* inside", `"Action":"kms:GenerateDataKey*Plaintext","Resource":"*"`, "kms:GenerateDataKeyWithoutPlaintext", keyARN, true},
		{"* inside, not at the end", `"Action":"kms:GenerateDataKey*Plaintext","Resource":"*"`, "kms:GenerateDataKeyPair", keyARN, false},
		{"?", `"Action":"kms:?ncrypt","Resource":"*"`, "kms:Encrypt", keyARN, true},
		{"? is one", `"Action":"kms:?ncrypt","Resource":"*"`, "kms:ncrypt", keyARN, false},
		{"other vendor", `"Action":"s3:*","Resource":"*"`, "kms:Decrypt", keyARN, false},
		{"long action", `"Action":"kms:` + strings.Repeat("Long", 50) + `","Resource":"*"`, "kms:" + strings.Repeat("lONG", 50), keyARN, true},
		{"long action, other", `"NotAction":"kms:` + strings.Repeat("Long", 50) + `","Resource":"*"`, "kms:" + strings.Repeat("lONG", 50), keyARN, false},
		{"NotAction", `"NotAction":"kms:Decrypt","Resource":"*"`, "kms:decrypt", keyARN, false},
		{"NotAction, other", `"NotAction":["kms:Decrypt","s3:*"],"Resource":"*"`, "kms:Encrypt", keyARN, true},
		{"NotAction, one of several", `"NotAction":["kms:Decrypt","kms:Enc*"],"Resource":"*"`, "kms:Encrypt", keyARN, false},
		{"no action", `"Resource":"*"`, "kms:Decrypt", keyARN, false},
		{"no resource", `"Action":"*"`, "kms:Decrypt", keyARN, false},
		{"neither", `"Sid":"x"`, "kms:Decrypt", keyARN, false},
		{"resource", `"Action":"*","Resource":"` + keyARN + `"`, "kms:Decrypt", keyARN, true},
		{"resource in other case", `"Action":"*","Resource":"` + strings.ToUpper(keyARN) + `"`, "kms:Decrypt", keyARN, false},
		{"other resource", `"Action":"*","Resource":"` + keyARN + `0"`, "kms:Decrypt", keyARN, false},
		{"resource with *", `"Action":"*","Resource":"arn:aws:kms:*:111122223333:key/*"`, "kms:Decrypt", keyARN, true},
		{"* over colons", `"Action":"*","Resource":"arn:*key/*"`, "kms:Decrypt", keyARN, true},
		{"alias", `"Action":"*","Resource":"arn:aws:kms:us-east-1:111122223333:alias/*"`, "kms:Decrypt", keyARN, false},
		{"no ARN", `"Action":"*","Resource":["key","","1234abcd-12ab-34cd-56ef-1234567890ab"]`, "kms:Decrypt", keyARN, false},
		{"NotResource", `"Action":"*","NotResource":"arn:aws:kms:*:*:key/*"`, "kms:Decrypt", keyARN, false},
		{"NotResource *", `"Action":"*","NotResource":"*"`, "kms:Decrypt", keyARN, false},
		{"NotResource, other", `"Action":"*","NotResource":"arn:aws:kms:*:*:alias/*"`, "kms:Decrypt", keyARN, true},
		{"NotResource, no ARN", `"Action":"*","NotResource":"key"`, "kms:Decrypt", keyARN, true},
		{"no key, *", `"Action":"*","Resource":"*"`, "kms:ListKeys", "*", true},
		{"no key, ARN", `"Action":"*","Resource":"arn:*"`, "kms:ListKeys", "*", false},
		{"variable", `"Action":"*","Resource":"arn:aws:kms:us-east-1:${aws:PrincipalAccount}:key/*"`, "kms:Decrypt", keyARN, true},
		{"variable, other", `"Action":"*","Resource":"arn:aws:kms:us-east-1:${aws:username}:key/*"`, "kms:Decrypt", keyARN, false},
		{"variable without value", `"Action":"*","Resource":"arn:aws:kms:*${aws:PrincipalTag/x}*"`, "kms:Decrypt", keyARN, false},
		{"variable without value, NotResource", `"Action":"*","NotResource":"arn:aws:kms:*${aws:PrincipalTag/x}*"`, "kms:Decrypt", keyARN, true},
		{"variable's default", `"Action":"*","Resource":"arn:aws:kms:*${aws:PrincipalTag/x, '1111'}*"`, "kms:Decrypt", keyARN, true},
		{"variable, NotResource", `"Action":"*","NotResource":"arn:aws:kms:us-east-1:${aws:PrincipalAccount}:key/*"`, "kms:Decrypt", keyARN, false},
	} {
		p := mustParse(t, KeyPolicy, statements(versionVariables, about+tc.statement))
		r := request(&alice, values{"aws:PrincipalAccount": {account}, "aws:username": {"*"}})
		r.Action, r.Resource = tc.action, []byte(tc.resource)
		if got := p.Evaluate(r).Allow[Anyone] == 1; got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		p = mustParse(t, KeyPolicy, statements(versionVariables, strings.Replace(about, "Allow", "Deny", 1)+tc.statement))
		if got := p.Evaluate(r).Deny == 1; got != tc.want {
			t.Errorf("%s: denied %v, want %v", tc.name, got, tc.want)
		}
	}
}

// In the older version a resource's variable is text.
func TestResourceWithoutVariables(t *testing.T) {
	p := mustParse(t, IdentityPolicy, statements(versionPlain, `"Effect":"Allow","Action":"*","Resource":"arn:${aws:username}*"`))
	r := request(&alice, values{"aws:username": {"aws"}})
	if got := p.Evaluate(r); got != (Result{}) {
		t.Errorf("%+v", got)
	}
	r.Resource = []byte("arn:${aws:username}:x")
	if got := p.Evaluate(r); got.Allow[Attached] != 1 {
		t.Errorf("%+v", got)
	}
}

// The first statement that denies, and the first that allows in each way.
func TestFirstStatements(t *testing.T) {
	deny := strings.Replace(allowTo(`"*"`), "Allow", "Deny", 1)
	never := `,"Condition":{"Null":{"aws:username":false}}`
	p := mustParse(t, KeyPolicy, statements(versionVariables,
		deny+never, allowTo(`{"AWS":"`+account+`"}`)+never, allowTo(`{"AWS":"`+account+`"}`), deny, allowTo(`{"AWS":["`+account+`","`+userARN+`"]}`), deny,
		allowTo(`"*"`), allowTo(`"*"`), allowTo(`{"AWS":"`+userARN+`"}`)))
	if got, want := p.Evaluate(request(&alice, nil)), (Result{Deny: 4, Allow: [matches]int{Account: 3, Itself: 5, Anyone: 7}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	p = mustParse(t, IdentityPolicy, statements(versionVariables, `"Effect":"Allow","Action":"s3:*","Resource":"*"`, `"Effect":"Allow","Action":"kms:*","Resource":"*"`,
		`"Effect":"Deny","Action":"*","Resource":"*"`, `"Effect":"Allow","Action":"*","Resource":"*"`))
	if got, want := p.Evaluate(request(&worker, nil)), (Result{Deny: 3, Allow: [matches]int{Attached: 2}}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestServiceNames(t *testing.T) {
	for _, tc := range []struct {
		registered, policy string
		want               bool
	}{
		{"s3.us-east-1.amazonaws.com", "s3.us-east-1.amazonaws.com", true},
		{"s3.us-east-1.amazonaws.com", "s3.amazonaws.com", true},
		{"S3.US-East-1.AmazonAWS.com", "s3.amazonaws.com", true},
		{"s3.us-gov-west-1.amazonaws.com", "s3.amazonaws.com", true},
		{"backup.eu-central-1.example.com", "backup.example.com", true},
		{"s3.amazonaws.com", "s3.us-east-1.amazonaws.com", false},
		{"s3.us-east-1.amazonaws.com", "s3.us-east-2.amazonaws.com", false},
		{"s3.us-east-1.amazonaws.com", "ec2.amazonaws.com", false},
		{"s3.us-east-1.amazonaws.com", "s3.amazonaws.co", false},
		{"s3.us-east-1.amazonaws.com", "s3.com", false},
		{"s3.useast1.amazonaws.com", "s3.amazonaws.com", false},
		{"s3.us-east.amazonaws.com", "s3.amazonaws.com", false},
		{"s3.1-1.amazonaws.com", "s3.amazonaws.com", false},
		{"us-east-1.amazonaws.com", "amazonaws.com", false},
		{"a.us-east-1", "a", false},
	} {
		if got := serviceIs(tc.registered, tc.policy); got != tc.want {
			t.Errorf("%s, %s: %v", tc.registered, tc.policy, got)
		}
	}
}
