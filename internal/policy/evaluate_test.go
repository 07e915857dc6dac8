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

// lent is a Context whose values are good until the next call and no longer.
type lent struct {
	of  Context
	buf []byte
}

func (l *lent) Value(k Key, name string, i int) (Value, bool) {
	for j := range l.buf {
		l.buf[j] = '!'
	}
	v, ok := l.of.Value(k, name, i)
	l.buf = append(l.buf[:0], v.Text...)
	v.Text = l.buf
	return v, ok
}

func request(caller *Principal, v values) *Request {
	return &Request{Action: "kms:Decrypt", Resource: []byte(keyARN), Principal: caller, Context: &lent{of: v.context()}, Scratch: &Scratch{}}
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
		case rootARN:
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
	if want := []string{userARN, assumed, roleARN, rootARN}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q, want %q", asked, want)
	}
	if want := []string{roleARN, rootARN, userARN, assumed}; !slices.Equal(p.Principals(), want) {
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
