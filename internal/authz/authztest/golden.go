package authztest

import (
	"bytes"
	"encoding/json"
	"fmt"
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

func docs(d ...Document) []Document { return d }
