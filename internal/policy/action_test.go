package policy

import (
	"strings"
	"testing"
)

// TestCodes asks about every action of KMS by its code and by its name alone.
func TestCodes(t *testing.T) {
	for _, action := range []string{"kms:*", "*", "kms:Re*", "KMS:decrypt", "kms:?ncrypt", "kms:GenerateDataKey*", "kms:*o*Key", "s3:*", "kms:Nothing"} {
		for _, element := range []string{"Action", "NotAction"} {
			p := mustParse(t, KeyPolicy, statements(versionPlain, `"Effect":"Allow","Principal":"*","Resource":"*","`+element+`":"`+action+`"`))
			for name, code := range actionCodes {
				if code == 0 || CodeOf(strings.ToLower(name)) != 0 {
					t.Fatalf("%s has code %d", name, code)
				}
				r := request(&alice, nil)
				r.Action = name
				slow := p.Evaluate(r)
				r.Code = code
				if fast := p.Evaluate(r); fast != slow {
					t.Errorf("%s %s, %s: by code %+v, by name %+v", element, action, name, fast, slow)
				}
			}
		}
	}
}

// TestSeveral asks for the second value of every kind of key that may have one.
func TestSeveral(t *testing.T) {
	for _, key := range []string{"aws:TagKeys", "aws:CalledVia", "kms:ResourceAliases", "kms:EncryptionContextKeys", "kms:GrantOperations", "kms:GrantConstraintType"} {
		p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEquals":{"`+key+`":"b"},"ForAnyValue:StringEquals":{"`+key+`":["b","c"]}}`))
		if got := p.Evaluate(request(&alice, values{key: {"a", "b"}})); got.Allow[Anyone] != 1 {
			t.Errorf("%s: %+v, want statement 1 to allow", key, got)
		}
	}
	for _, key := range []string{"kms:EncryptionContext:x", "aws:PrincipalTag/x", "aws:ResourceTag/x", "aws:RequestTag/x"} {
		p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEquals":{"`+key+`":["a","b"]}}`))
		if got := p.Evaluate(request(&alice, values{key: {"a", "b"}})); got != (Result{}) {
			t.Errorf("%s in two cases: %+v, want nothing", key, got)
		}
	}
}

// TestManyKeys has more condition keys in a policy than an evaluation keeps values of.
func TestManyKeys(t *testing.T) {
	v := values{}
	var conditions []string
	for i := range 2*slotsMax + 1 {
		key := "kms:EncryptionContext:" + strings.Repeat("k", i+1)
		v[key] = []string{"b"}
		conditions = append(conditions, `"`+key+`":"b"`)
	}
	p := mustParse(t, KeyPolicy, conditioned(versionVariables, "Allow", `{"StringEquals":{`+strings.Join(conditions, ",")+`}}`))
	r := request(&alice, v)
	if got := p.Evaluate(r); got.Allow[Anyone] != 1 {
		t.Errorf("%+v, want statement 1 to allow", got)
	}
	for key := range v { // any one that is missing
		less := values{}
		for k, texts := range v {
			if k != key {
				less[k] = texts
			}
		}
		r.Context = less.context()
		if got := p.Evaluate(r); got != (Result{}) {
			t.Errorf("without %s: %+v, want nothing", key, got)
		}
	}
	r.Scratch.Reset()
	if s := r.Scratch; s.used != 0 || s.asked != 0 || s.values[0].Text != nil || s.values[slotsMax].Text != nil {
		t.Error("Reset leaves values behind")
	}
}
