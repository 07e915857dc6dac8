package controlplane

import (
	"fmt"
	"strings"
	"testing"

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
