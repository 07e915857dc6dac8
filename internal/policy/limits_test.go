package policy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// oneValue is a context of one key with one value.
type oneValue struct {
	key   Key
	value []byte
}

func (c oneValue) Value(k Key, _ string, i int) (Value, bool) {
	return Value{Text: c.value}, k == c.key && i == 0
}

func (c oneValue) First(k Key, name string, _ bool, v *Value) int { return first(c, k, name, v) }

// Wildcards that would cost hundreds of milliseconds are given up, on the safe side: Deny matches, Allow does not.
func TestWildcardsAreBounded(t *testing.T) {
	patterns := strings.TrimSuffix(strings.Repeat(`"*`+strings.Repeat("a", 4000)+`b",`, 7), ",")
	statement := func(effect, condition string) string {
		return `{"Effect":"` + effect + `","Principal":"*","Action":"*","Resource":"*"` + condition + `}`
	}
	costly := `,"Condition":{"StringLike":{"kms:EncryptionContext:x":[` + patterns + `]}}`
	for _, c := range []struct {
		name, statements string
		length           int
		deny, allow      bool
	}{
		{"a Deny", statement("Deny", costly), 8000, true, false},
		{"an Allow", statement("Allow", costly), 8000, false, false},
		{"an Allow behind it", statement("Allow", costly) + "," + statement("Allow", ""), 8000, false, false},
		{"an Allow before it", statement("Allow", "") + "," + statement("Allow", costly), 8000, false, true},
		{"a Deny of somebody else behind it", statement("Allow", costly) + "," + strings.Replace(statement("Deny", ""), `"*"`, `{"AWS":"999999999999"}`, 1), 8000, false, false},
		{"a short value", statement("Deny", costly) + "," + statement("Allow", ""), 50, false, true},
	} {
		p, err := Parse([]byte(`{"Version":"2012-10-17","Statement":[`+c.statements+`]}`), KeyPolicy, nil)
		if err != nil {
			t.Fatal(c.name, err)
		}
		var scratch Scratch
		r := &Request{Action: "kms:Encrypt", Resource: []byte("arn"), Principal: &Principal{Kind: User, Account: 111122223333},
			Context: oneValue{KMSEncryptionContext, bytes.Repeat([]byte("a"), c.length)}, Scratch: &scratch}
		res := p.Evaluate(r)
		if (res.Deny != 0) != c.deny || (res.Allow[Anyone] != 0) != c.allow {
			t.Errorf("%s: %+v", c.name, res)
		}
		if scratch.steps < -1 {
			t.Errorf("%s: went on for %d steps", c.name, -scratch.steps)
		}
	}
}

// A Deny with NotPrincipal leaves out the user or session that it lists, not the account and role that AWS wants listed beside it.
func TestNotPrincipalDeny(t *testing.T) {
	const a = keyid.Account(444455556666)
	user := func(name string) *Principal {
		return &Principal{Kind: User, Account: a, ARN: "arn:aws:iam::444455556666:user/" + name, ID: "AIDA" + name}
	}
	session := func(name string) *Principal {
		return &Principal{Kind: AssumedRole, Account: a, ARN: "arn:aws:sts::444455556666:assumed-role/app/" + name, RoleARN: "arn:aws:iam::444455556666:role/app", ID: "AROAAPP"}
	}
	root := &Principal{Kind: Root, Account: a, ARN: "arn:aws:iam::444455556666:root", ID: "444455556666"}
	bob := `["arn:aws:iam::444455556666:user/Bob","arn:aws:iam::444455556666:root"]`
	audit := `["arn:aws:sts::444455556666:assumed-role/app/audit","arn:aws:iam::444455556666:role/app","arn:aws:iam::444455556666:root"]`
	role := `["arn:aws:iam::444455556666:role/app","arn:aws:iam::444455556666:root"]`
	for _, c := range []struct {
		not  string
		who  *Principal
		deny bool
	}{
		{bob, user("Bob"), false}, {bob, user("Alice"), true}, {bob, root, false}, {bob, session("s"), true},
		{audit, session("audit"), false}, {audit, session("other"), true},
		{role, session("any"), false}, {role, user("Bob"), true},
		{`["*"]`, user("Alice"), false},
	} {
		p, err := Parse([]byte(`{"Version":"2012-10-17","Statement":{"Effect":"Deny","NotPrincipal":{"AWS":`+c.not+`},"Action":"kms:*","Resource":"*"}}`), KeyPolicy, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &Request{Action: "kms:Decrypt", Resource: []byte("arn"), Principal: c.who, Context: oneValue{}, Scratch: new(Scratch)}
		if got := p.Evaluate(r).Deny != 0; got != c.deny {
			t.Errorf("not %s, asked by %s: denied %t", c.not, c.who.ARN, got)
		}
	}
}

// twice is a context of one key with two values.
type twice struct {
	key    Key
	values [2]string
}

func (c twice) Value(k Key, _ string, i int) (Value, bool) {
	if k != c.key || i > 1 {
		return Value{}, false
	}
	return Value{Text: []byte(c.values[i])}, true
}

func (c twice) First(k Key, name string, _ bool, v *Value) int { return first(c, k, name, v) }

// Two pairs whose keys differ in case do not get round a condition on either: it is as if the value did not parse.
func TestNameInTwoCases(t *testing.T) {
	for _, c := range []struct {
		effect, operator string
		holds            bool
	}{{"Deny", "StringNotEquals", true}, {"Deny", "StringEquals", true}, {"Allow", "StringEquals", false}, {"Allow", "StringNotEquals", false}} {
		p, err := Parse([]byte(`{"Version":"2012-10-17","Statement":{"Effect":"`+c.effect+`","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"`+
			c.operator+`":{"kms:EncryptionContext:dept":"it"}}}}`), KeyPolicy, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &Request{Action: "kms:Encrypt", Resource: []byte("arn"), Principal: &Principal{Kind: User}, Scratch: new(Scratch)}
		r.Context = twice{KMSEncryptionContext, [2]string{"hr", "it"}}
		res := p.Evaluate(r)
		if got := res.Deny != 0 || res.Allow[Anyone] != 0; got != c.holds {
			t.Errorf("%s %s of two cases: %+v", c.effect, c.operator, res)
		}
	}
}

// Compiling takes time in proportion to the document, whatever its texts are: many statements may ask for many texts of one key. The same texts of an
// operator that is not sieved are what it is compared with.
func TestCompileIsNotQuadratic(t *testing.T) {
	took := func(operator string) time.Duration {
		var all []string
		for i := range 20 {
			var texts []string
			for j := range 200 {
				texts = append(texts, fmt.Sprintf(`"%04x"`, i*200+j))
			}
			all = append(all, `"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*","Condition":{"`+operator+`":{"kms:EncryptionContext:x":[`+strings.Join(texts, ",")+`]}}`)
		}
		doc, best := []byte(statements("2012-10-17", all...)), time.Hour
		for range 20 {
			began := time.Now()
			if _, err := Parse(doc, KeyPolicy, nil); err != nil {
				t.Fatal(err)
			}
			best = min(best, time.Since(began))
		}
		return best
	}
	if sieved, usual := took("StringEquals"), took("StringEqualsIgnoreCase"); sieved > 5*usual {
		t.Errorf("%v, of an operator that is not sieved %v", sieved, usual)
	}
}
