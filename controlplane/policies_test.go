package controlplane

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func TestPolicies(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.published.take()
	type reply struct{ Policy, PolicyName string }
	var got reply
	e.ok("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", "default"), &got)
	want := reply{`{"Version":"2012-10-17","Id":"key-default-1","Statement":[{"Sid":"Enable IAM User Permissions","Effect":"Allow","Principal":` +
		`{"AWS":"arn:aws:iam::` + e.account.String() + `:root"},"Action":"kms:*","Resource":"*"}]}`, "default"}
	if got != want {
		t.Errorf("got %+v", got)
	}
	for _, policy := range []string{
		want.Policy, "\t" + strings.ReplaceAll(want.Policy, ":[", " :\r\n[ ") + "\n", strings.Replace(want.Policy, `"kms:*"`, "[ \"kms:\\u002a\",\t\"KMS:?ecrypt\" ]", 1), strings.Replace(want.Policy, "key-default-1", "ÿ", 1), want.Policy,
	} {
		e.ok("PutKeyPolicy", obj("KeyId", m.Arn, "PolicyName", "default", "Policy", policy, "BypassPolicyLockoutSafetyCheck", true), nil)
		e.ok("GetKeyPolicy", obj("KeyId", m.Arn), &got)
		if got.Policy != policy {
			t.Errorf("put %q, got %q", policy, got.Policy)
		}
		if p := e.published.take(); p != "key "+m.KeyId+"\n" {
			t.Errorf("published %q", p)
		}
	}
	var names struct {
		PolicyNames []string
		Truncated   bool
	}
	for _, body := range []string{obj("KeyId", m.KeyId), obj("KeyId", m.KeyId, "Limit", 1), obj("KeyId", m.KeyId, "Limit", 1000)} {
		e.ok("ListKeyPolicies", body, &names)
		if fmt.Sprint(names) != "{[default] false}" {
			t.Errorf("names %+v", names)
		}
	}
	for _, limit := range []int{0, 1001} {
		e.fails("ListKeyPolicies", obj("KeyId", m.KeyId, "Limit", limit), kmsapi.Validation, "*")
	}

	e.fails("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", "other"), kmsapi.NotFound, "No such policy exists")
	e.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", "other", "Policy", "{}"), kmsapi.NotFound, "No such policy exists")
	e.fails("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", strings.Repeat("n", 128)), kmsapi.NotFound, "No such policy exists")
	e.fails("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", strings.Repeat("n", 129)), kmsapi.Validation, "1 validation error detected: Value '"+
		strings.Repeat("n", 129)+"' at 'policyName' failed to satisfy constraint: Member must have length less than or equal to 128")
	e.fails("GetKeyPolicy", obj("KeyId", m.KeyId, "PolicyName", "a-b"), kmsapi.Validation,
		`1 validation error detected: Value 'a-b' at 'policyName' failed to satisfy constraint: Member must satisfy regular expression pattern: [\w]+`)
	e.fails("PutKeyPolicy", obj("KeyId", m.KeyId), kmsapi.Validation,
		"1 validation error detected: Value null at 'policy' failed to satisfy constraint: Member must not be null")
	e.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", "\x00Ā"), kmsapi.Validation, "1 validation error detected: Value '\x00Ā' at 'policy' "+
		`failed to satisfy constraint: Member must satisfy regular expression pattern: [\u0009\u000A\u000D\u0020-\u00FF]+`)
	e.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", ""), kmsapi.Validation, "*")
	e.ok("GetKeyPolicy", obj("KeyId", m.Arn), &got)
	if got != want {
		t.Errorf("a refused policy was kept: %+v", got)
	}
}

// A key policy is read by package policy, whose refusals come with AWS's exception; a refused one changes nothing.
func TestMalformedPolicies(t *testing.T) {
	e := newEnv(t)
	m := e.create("{}")
	e.published.take()
	size := func(n int) string {
		s := keyPolicyOf(e)
		return s + strings.Repeat(" ", n-len(s))
	}
	for _, c := range []struct {
		policy string
		code   kmsapi.Code
	}{
		{size(kmsapi.PolicyMax), kmsapi.OK}, {size(kmsapi.PolicyMax + 1), kmsapi.LimitExceeded},
		{"{}", kmsapi.MalformedPolicyDocument}, {"[]", kmsapi.MalformedPolicyDocument}, {"not a policy", kmsapi.MalformedPolicyDocument},
		{keyPolicyOf(e) + "{}", kmsapi.MalformedPolicyDocument},
		{statement("Allow", "kms:*", anyResource), kmsapi.MalformedPolicyDocument}, // nobody is named
		{statement("Permit", "kms:*", anyone, anyResource), kmsapi.MalformedPolicyDocument},
		{statement("Allow", "kms:*", anyone, anyResource, `"Condition":{"StringResembles":{"aws:username":"x"}}`), kmsapi.MalformedPolicyDocument},
		{statement("Allow", "kms:*", anyone, anyResource, `"Effect":"Deny"`), kmsapi.MalformedPolicyDocument},
	} {
		body := obj("KeyId", m.KeyId, "Policy", c.policy)
		if c.code == kmsapi.OK {
			e.ok("PutKeyPolicy", body, nil)
			e.create(obj("Policy", c.policy))
			e.published.take()
			continue
		}
		e.fails("PutKeyPolicy", body, c.code, "*")
		e.fails("CreateKey", obj("Policy", c.policy), c.code, "*")
		if got := e.published.take(); got != "" {
			t.Errorf("%.60q: published %q", c.policy, got)
		}
	}
	const invalid = "Policy contains a statement with one or more invalid principals."
	for _, principal := range []string{"arn:aws:iam::" + e.account.String() + ":user/nobody", "arn:aws:iam::999999999999:root", "arn:aws:iam::" + e.account.String() + ":role/none", "x",
		"arn:aws-cn:iam::" + e.account.String() + ":root", "arn:aws-us-gov:iam::" + e.account.String() + ":user/administrator", "arn:aws-cn:sts::" + e.account.String() + ":federated-user/bob"} {
		p := keyPolicyOf(e, `{"Effect":"Allow","Principal":{"AWS":"`+principal+`"},"Action":"kms:*","Resource":"*"}`)
		e.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", p), kmsapi.MalformedPolicyDocument, invalid)
		e.fails("CreateKey", obj("Policy", p), kmsapi.MalformedPolicyDocument, invalid)
	}
}

// A new key policy must let its maker change it again, unless that is waived.
func TestLockOut(t *testing.T) {
	e := newEnv(t)
	everything := statement("Allow", "*", anyResource)
	user, role, root := e.user("maker", everything), e.session("maker", "s", everything), e.root(e.account)
	other := e.elsewhere()
	allow := func(effect, principal, action string, more ...string) string {
		return statement(effect, action, append([]string{`"Principal":` + principal, anyResource}, more...)...)
	}
	aws := func(arn string) string { return `{"AWS":"` + arn + `"}` }
	both := func(a, b string) string {
		var p, q struct {
			Version   string
			Statement []json.RawMessage
		}
		if err := json.Unmarshal([]byte(a), &p); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(b), &q); err != nil {
			t.Fatal(err)
		}
		p.Statement = append(p.Statement, q.Statement...)
		out, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	account := aws(e.account.String())
	for name, c := range map[string]struct {
		who    *env
		policy string
		fine   bool
	}{
		"nothing":                     {user, allow("Allow", "{\"AWS\":\"*\"}", "kms:Get*"), false},
		"only denied":                 {user, allow("Deny", `"*"`, "kms:*"), false},
		"the account":                 {user, allow("Allow", account, "kms:*"), true},
		"the account, one action":     {user, allow("Allow", account, "kms:PutKeyPolicy"), true},
		"the account, another action": {user, allow("Allow", account, "kms:GetKeyPolicy"), false},
		"another account":             {user, allow("Allow", aws(other.account.String()), "kms:*"), false},
		"the user":                    {user, allow("Allow", aws(user.who.ARN), "kms:Put*"), true},
		"another user":                {e.user("u2", everything), allow("Allow", aws(user.who.ARN), "kms:*"), false},
		"anyone":                      {user, allow("Allow", `"*"`, "kms:*"), true},
		"the role":                    {role, allow("Allow", aws(role.who.RoleARN), "kms:*"), true},
		"the session":                 {role, allow("Allow", aws(role.who.ARN), "kms:*"), true},
		"the account, a session":      {role, allow("Allow", account, "kms:*"), true},
		"another role":                {role, allow("Allow", aws(user.who.ARN), "kms:*"), false},
		"root":                        {root, allow("Allow", account, "kms:*"), true},
		"not root":                    {root, allow("Allow", aws(user.who.ARN), "kms:*"), false},
		"a service":                   {user, allow("Allow", `{"Service":"s3.amazonaws.com"}`, "kms:*"), false},
		"allowed and denied":          {user, both(allow("Allow", account, "kms:*"), allow("Deny", aws(user.who.ARN), "kms:PutKeyPolicy")), false},
		"denied to others":            {user, both(allow("Allow", account, "kms:*"), allow("Deny", aws(role.who.RoleARN), "kms:PutKeyPolicy")), true},
		"under a condition":           {user, allow("Allow", account, "kms:*", `"Condition":{"StringEquals":{"aws:username":"maker"}}`), true},
		"under another condition":     {user, allow("Allow", account, "kms:*", `"Condition":{"StringEquals":{"aws:username":"other"}}`), false},
		"of a tag":                    {user, allow("Allow", account, "kms:*", `"Condition":{"StringEquals":{"aws:ResourceTag/t":"v"}}`), true},
		"another key":                 {user, strings.Replace(allow("Allow", account, "kms:*"), anyResource, `"Resource":"arn:aws:kms:us-east-1:111122223333:key/*"`, 1), false},
		"keys of the account":         {user, strings.Replace(allow("Allow", account, "kms:*"), anyResource, `"Resource":"arn:aws:kms:*:`+e.account.String()+`:key/*"`, 1), true},
	} {
		m := e.create(obj("Tags", tags("t", "v")))
		if c.fine {
			c.who.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", c.policy), nil)
			c.who.create(obj("Policy", c.policy, "Tags", tags("t", "v")))
			continue
		}
		before := e.get(m.KeyId)
		c.who.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", c.policy), kmsapi.MalformedPolicyDocument, lockedOut)
		c.who.fails("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", c.policy, "BypassPolicyLockoutSafetyCheck", false), kmsapi.MalformedPolicyDocument, lockedOut)
		if e.get(m.KeyId) != before {
			t.Errorf("%s: a refused policy was kept", name)
		}
		if c.who != root { // who may create nothing without an identity policy but is root
			c.who.fails("CreateKey", obj("Policy", c.policy), kmsapi.MalformedPolicyDocument, lockedOut)
		}
		c.who.create(obj("Policy", c.policy, "BypassPolicyLockoutSafetyCheck", true))
		c.who.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", c.policy, "BypassPolicyLockoutSafetyCheck", true), nil)
	}
}

func (e *env) get(key string) string {
	e.Helper()
	var out getKeyPolicyOut
	e.ok("GetKeyPolicy", obj("KeyId", key), &out)
	return out.Policy
}

// A key policy means the principals that it named when it was put: one of the same name that was made later is another. A policy from before
// that was kept names by ARN.
func TestPolicyBindsPrincipals(t *testing.T) {
	e := newEnv(t)
	first := e.user("same")
	m := e.create(obj("Policy", keyPolicyOf(e, `{"Effect":"Allow","Principal":{"AWS":"`+first.who.ARN+`"},"Action":"kms:DescribeKey","Resource":"*"}`)))
	first.describe(m.KeyId)
	r, err := shared.KeyRecord(t.Context(), e.region, e.account, e.name(m.KeyId).ID)
	want := map[string]string{first.who.ARN: first.who.ID, e.account.String(): e.account.String()}
	if err != nil || fmt.Sprint(r.Bound) != fmt.Sprint(want) {
		t.Errorf("bound %v %v, want %v", r.Bound, err, want)
	}
	w := *first.who
	w.ID = "AIDAANOTHER"
	w.Grantees[0] = w.ID
	e.exists(w.ARN, w.ID)
	second := e.as(&w)
	second.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.AccessDenied, "*")
	policy := e.get(m.KeyId)
	e.ok("PutKeyPolicy", obj("KeyId", m.KeyId, "Policy", policy), nil)
	second.describe(m.KeyId)
	first = e.as(first.who)
	first.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.AccessDenied, "*")
	if err := shared.PutPolicy(t.Context(), e.name(m.KeyId), func(*store.Key) (store.Policy, error) { return store.Policy{Document: []byte(policy)}, nil }); err != nil {
		t.Fatal(err)
	}
	first.describe(m.KeyId)
	// What this version cannot read allows nothing, to nobody, whenever it was put.
	unreadable := store.Policy{Document: []byte("{}")}
	put := func() {
		t.Helper()
		if err := shared.PutPolicy(t.Context(), e.name(m.KeyId), func(*store.Key) (store.Policy, error) { return unreadable, nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, bound := range []map[string]string{nil, {}} {
		unreadable.Bound = bound
		put()
		for _, who := range []*env{e, first, e.root(e.account)} {
			who.fails("DescribeKey", obj("KeyId", m.KeyId), kmsapi.AccessDenied, "*")
		}
	}
}
