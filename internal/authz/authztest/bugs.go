package authztest

import (
	"strings"
)

// bugCases are faults that other implementations of AWS's policies are known to have, one question for each.
func bugCases() (cases []Case) {
	add := func(want, name string, keyPolicy Document, change func(c *Case)) {
		c := ask(want, "%s", name)
		c.KeyPolicy = keyPolicy
		if change != nil {
			change(&c)
		}
		cases = append(cases, c)
	}
	who := `"Principal":{"AWS":"` + alice + `"}`
	s := func(effect, rest string) string { return `{"Effect":"` + effect + `",` + rest + `}` }
	allow := func(condition string) Document { return doc(statementIf("Allow", condition)) }
	deny := func(condition string) Document { return doc(allowAlice, statementIf("Deny", condition)) }
	type m = map[string]string

	add(Deny, "NotAction skipped: what it names is not allowed", doc(s("Allow", who+`,"NotAction":"kms:Decrypt","Resource":"*"`)), nil)
	add(Allow, "NotAction skipped: what it does not name is allowed", doc(s("Allow", who+`,"NotAction":"kms:Encrypt","Resource":"*"`)), nil)
	add(Deny, "NotAction skipped: a Deny of all but", doc(allowAlice, s("Deny", who+`,"NotAction":"kms:Encrypt","Resource":"*"`)), nil)
	add(Allow, "NotAction skipped: a Deny of all but this", doc(allowAlice, s("Deny", who+`,"NotAction":"kms:dec*","Resource":"*"`)), nil)
	add(Deny, "NotResource skipped: what it names is not allowed", doc(s("Allow", who+`,"Action":"kms:*","NotResource":"*"`)), nil)
	add(Deny, "NotResource skipped: the key's own ARN", doc(s("Allow", who+`,"Action":"kms:*","NotResource":"`+keyA+`"`)), nil)
	add(Allow, "NotResource skipped: what it does not name is allowed", doc(s("Allow", who+`,"Action":"kms:*","NotResource":"`+keyB+`"`)), nil)
	add(Deny, "NotResource skipped: a Deny of all but another key", doc(allowAlice, s("Deny", who+`,"Action":"kms:*","NotResource":"`+keyA2+`"`)), nil)
	add(Deny, "NotPrincipal skipped: whom it names is not allowed", doc(s("Allow", `"NotPrincipal":{"AWS":"`+alice+`"},"Action":"kms:*","Resource":"*"`)), nil)
	add(Allow, "NotPrincipal skipped: whom it does not name is allowed", doc(s("Allow", `"NotPrincipal":{"AWS":"`+admin+`"},"Action":"kms:*","Resource":"*"`)), nil)
	add(Deny, "NotPrincipal skipped: a Deny of all but another", doc(allowAlice, s("Deny", `"NotPrincipal":{"AWS":"`+admin+`"},"Action":"kms:*","Resource":"*"`)), nil)
	add(Allow, "NotPrincipal skipped: a Deny of all but the role, asked by its session", doc(
		s("Allow", `"Principal":"*","Action":"kms:*","Resource":"*"`), s("Deny", `"NotPrincipal":{"AWS":"`+admin+`"},"Action":"kms:*","Resource":"*"`)),
		func(c *Case) { c.Caller = callerNamed(adminS1) })
	add(Deny, "Condition ignored: in an Allow", allow(`{"StringEquals":{"kms:KeyUsage":"SIGN_VERIFY"}}`), nil)
	add(Allow, "Condition ignored: in a Deny", deny(`{"StringEquals":{"kms:KeyUsage":"SIGN_VERIFY"}}`), nil)
	add(Deny, "Condition ignored: one of two operators", allow(`{"StringEquals":{"kms:KeyUsage":"ENCRYPT_DECRYPT"},"Bool":{"aws:SecureTransport":"false"}}`), nil)
	add(Deny, "Condition ignored: one of two keys", allow(`{"StringEquals":{"kms:KeyUsage":"ENCRYPT_DECRYPT","kms:KeyOrigin":"EXTERNAL"}}`), nil)
	add(Allow, "Condition ignored: two keys of an operator", allow(`{"StringEquals":{"kms:KeyUsage":"ENCRYPT_DECRYPT","kms:KeyOrigin":"AWS_KMS"}}`), nil)
	add(Allow, "Condition ignored: an empty Condition is none", allow(`{}`), nil)
	add(Deny, "Condition ignored: in an identity policy", doc(delegate), func(c *Case) {
		c.Identity = docs(doc(s("Allow", `"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:KeyUsage":"SIGN_VERIFY"}}`)))
	})
	add(Deny, "Condition ignored: in a boundary", doc(delegate), func(c *Case) {
		c.Identity = docs(doc(allowAll))
		c.Boundary = doc(s("Allow", `"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:KeyUsage":"SIGN_VERIFY"}}`))
	})
	add(Deny, "Deny ignored: before the Allow", doc(s("Deny", who+`,"Action":"kms:Decrypt","Resource":"*"`), allowAlice), nil)
	add(Deny, "Deny ignored: after the Allow", doc(allowAlice, s("Deny", who+`,"Action":"kms:Decrypt","Resource":"*"`)), nil)
	add(Deny, "Deny ignored: for everyone", doc(allowAlice, s("Deny", `"Principal":"*","Action":"kms:Decrypt","Resource":"*"`)), nil)
	add(Deny, "Deny ignored: in an identity policy, where the key policy allows", doc(allowAlice), func(c *Case) { c.Identity = docs(doc(denyAll)) })
	add(Deny, "Deny ignored: in a boundary, where the key policy allows", doc(allowAlice), func(c *Case) { c.Boundary = doc(allowAll, denyAll) })
	add(Deny, "Deny ignored: where a grant allows", doc(delegate, s("Deny", who+`,"Action":"kms:Decrypt","Resource":"*"`)), func(c *Case) {
		c.Grants = []Grant{{Grantee: alice, Operations: list("Decrypt")}}
	})
	add(Allow, "IfExists: absent", allow(`{"StringEqualsIfExists":{"kms:ViaService":"x"}}`), nil)
	add(Deny, "IfExists: present and other", allow(`{"StringEqualsIfExists":{"kms:KeySpec":"x"}}`), nil)
	add(Deny, "IfExists: absent in a Deny", deny(`{"StringEqualsIfExists":{"kms:ViaService":"x"}}`), nil)
	add(Allow, "Null: true, absent", allow(`{"Null":{"kms:ViaService":"true"}}`), nil)
	add(Deny, "Null: true, present", allow(`{"Null":{"kms:KeySpec":"true"}}`), nil)
	add(Deny, "Null: false, absent", allow(`{"Null":{"kms:ViaService":"false"}}`), nil)
	add(Allow, "Null: an unquoted false, present", allow(`{"Null":{"kms:KeySpec":false}}`), nil)
	add(Allow, "ForAllValues on an absent key is true", allow(`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"a"}}`), nil)
	add(Allow, "ForAllValues on an empty context is true", allow(`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"a"}}`),
		func(c *Case) { c.EncryptionContext = m{} })
	add(Deny, "ForAllValues with Null asks for a key that is there", allow(`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":"a"},"Null":{"kms:EncryptionContextKeys":"false"}}`), nil)
	add(Deny, "ForAnyValue on an absent key is false", allow(`{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"a"}}`), nil)
	add(Deny, "multi-valued: ForAllValues with one value too many", allow(`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["a","b"]}}`),
		func(c *Case) { c.EncryptionContext = m{"a": "1", "c": "1"} })
	add(Allow, "multi-valued: ForAnyValue with one that fits", allow(`{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":["a","b"]}}`),
		func(c *Case) { c.EncryptionContext = m{"a": "1", "c": "1"} })
	add(Allow, "case: actions have none", doc(s("Allow", who+`,"Action":"KMS:dEcRyPt","Resource":"*"`)), nil)
	add(Allow, "case: condition keys have none", allow(`{"StringEquals":{"KMS:KEYSPEC":"SYMMETRIC_DEFAULT"}}`), nil)
	add(Deny, "case: StringEquals has", allow(`{"StringEquals":{"kms:KeySpec":"symmetric_default"}}`), nil)
	add(Allow, "case: StringEqualsIgnoreCase has none", allow(`{"StringEqualsIgnoreCase":{"kms:KeySpec":"symmetric_default"}}`), nil)
	add(Deny, "case: StringLike has", allow(`{"StringLike":{"kms:KeySpec":"symmetric_*"}}`), nil)
	add(Deny, "case: resources have", doc(s("Allow", who+`,"Action":"kms:*","Resource":"`+strings.ToUpper(keyA)+`"`)), nil)
	stars := strings.Repeat("a*", 60) + "b"
	text := strings.Repeat("a", 2000)
	add(Deny, "globbing: 60 stars on 2000 letters", allow(conditionOf("StringLike", "aws:PrincipalTag/x", list(stars))), func(c *Case) { c.Caller.Tags = []Tag{{"x", text}} })
	add(Allow, "globbing: 60 stars on 2000 letters and the end", allow(conditionOf("StringLike", "aws:PrincipalTag/x", list(stars))), func(c *Case) { c.Caller.Tags = []Tag{{"x", text + "b"}} })
	add(Deny, "globbing: 60 stars in an action", doc(s("Allow", who+`,"Action":"kms:`+strings.Repeat("*e", 60)+`","Resource":"*"`)), nil)
	add(Deny, "globbing: 60 stars in a resource", doc(s("Allow", who+`,"Action":"kms:*","Resource":"arn:*`+strings.Repeat("*1", 60)+`"`)), nil)
	add(Deny, "ARN: a wildcard crosses no segment", allow(`{"ArnLike":{"aws:PrincipalArn":"arn:aws:*:user/alice"}}`), refused)
	add(Deny, "ARN: a wildcard crosses no segment, six parts", allow(`{"ArnLike":{"aws:PrincipalArn":"arn:*:111122223333:user/alice:*:*"}}`), nil)
	add(Allow, "ARN: a wildcard crosses the slashes of the last part", allow(`{"ArnLike":{"aws:PrincipalArn":"arn:aws:iam::111122223333:user/*"}}`), nil)
	add(Allow, "ARN: StringLike does cross", allow(`{"StringLike":{"aws:PrincipalArn":"arn:*alice"}}`), nil)
	add(Deny, "account principal: is not everyone in the account", doc(delegate), nil)
	add(Allow, "account principal: delegates to identity policies", doc(delegate), func(c *Case) { c.Identity = docs(doc(allowAll)) })
	add(Allow, "account principal: is the root user", doc(delegate), func(c *Case) { c.Caller = callerNamed(rootA) })
	add(Deny, "account principal: of another account", doc(s("Allow", `"Principal":{"AWS":"`+rootB+`"},"Action":"kms:*","Resource":"*"`)), func(c *Case) { c.Identity = docs(doc(allowAll)) })
	add(Deny, "alias ARN as Resource does not name the key", doc(delegate), func(c *Case) {
		c.Key.Aliases, c.RequestAlias = list("alias/app"), "alias/app"
		c.Identity = docs(doc(s("Allow", `"Action":"kms:*","Resource":"`+aliasA+`"`)))
	})
	add(Deny, "key ARN as Resource does not name the alias", nil, func(c *Case) {
		c.Action, c.Resource, c.Key = "kms:DeleteAlias", aliasA, nil
		c.Identity = docs(doc(s("Allow", `"Action":"kms:*","Resource":"`+keyA+`"`)))
	})
	via := `{"StringEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"}}`
	add(Allow, "kms:ViaService: through the service", allow(via), func(c *Case) { c.Caller.Via = "s3.us-east-1.amazonaws.com" })
	add(Deny, "kms:ViaService: direct", allow(via), nil)
	add(Deny, "kms:ViaService: through another service", allow(via), func(c *Case) { c.Caller.Via = "ec2.us-east-1.amazonaws.com" })
	add(Deny, "kms:ViaService: a direct call is denied by the negation", deny(`{"StringNotEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"}}`), nil)
	context := `{"StringEquals":{"kms:EncryptionContext:Dept":"red"}}`
	add(Allow, "kms:EncryptionContext: name in another case", allow(context), func(c *Case) { c.EncryptionContext = m{"dept": "red"} })
	add(Deny, "kms:EncryptionContext: value in another case", allow(context), func(c *Case) { c.EncryptionContext = m{"Dept": "Red"} })
	add(Deny, "kms:EncryptionContext: absent", allow(context), func(c *Case) { c.EncryptionContext = m{"other": "red"} })
	add(Deny, "kms:EncryptionContextKeys: names have case", allow(`{"ForAnyValue:StringEquals":{"kms:EncryptionContextKeys":"dept"}}`), func(c *Case) { c.EncryptionContext = m{"Dept": "red"} })
	add(Allow, "kms:EncryptionContextKeys: present", allow(`{"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["dept","id"]}}`), func(c *Case) { c.EncryptionContext = m{"dept": "red"} })
	operations := `{"ForAllValues:StringEquals":{"kms:GrantOperations":["Decrypt","Encrypt"]}}`
	creates := func(o ...string) func(c *Case) {
		return func(c *Case) {
			c.Action = "kms:CreateGrant"
			for _, name := range o {
				c.Extra = append(c.Extra, Extra{"kms:GrantOperations", name})
			}
		}
	}
	add(Allow, "kms:GrantOperations: all listed", allow(operations), creates("Encrypt", "Decrypt"))
	add(Deny, "kms:GrantOperations: one not listed", allow(operations), creates("Decrypt", "CreateGrant"))
	add(Deny, "kms:GrantIsForAWSResource: by a user", allow(`{"Bool":{"kms:GrantIsForAWSResource":"true"}}`), func(c *Case) {
		c.Action, c.Extra = "kms:CreateGrant", []Extra{{"kms:GrantIsForAWSResource", "false"}}
	})
	add(Allow, "kms:RequestAlias: named by the alias", allow(`{"StringEquals":{"kms:RequestAlias":"alias/app"}}`), func(c *Case) { c.RequestAlias = "alias/app" })
	add(Deny, "kms:RequestAlias: the key has the alias, the request does not name it", allow(`{"StringEquals":{"kms:RequestAlias":"alias/app"}}`), func(c *Case) { c.Key.Aliases = list("alias/app") })
	add(Allow, "kms:ResourceAliases: the key has the alias", allow(`{"ForAnyValue:StringLike":{"kms:ResourceAliases":"alias/a*"}}`), func(c *Case) { c.Key.Aliases = list("alias/app") })
	add(Allow, "aws:PrincipalArn: the role of a session", doc(s("Allow", `"Principal":"*","Action":"kms:*","Resource":"*","Condition":{"ArnEquals":{"aws:PrincipalArn":"`+admin+`"}}`)), func(c *Case) { c.Caller = callerNamed(adminS1) })
	add(Deny, "aws:PrincipalArn: not the session", doc(s("Allow", `"Principal":"*","Action":"kms:*","Resource":"*","Condition":{"ArnEquals":{"aws:PrincipalArn":"`+adminS1+`"}}`)), func(c *Case) { c.Caller = callerNamed(adminS1) })
	equals := []Grant{{Grantee: alice, Operations: list("Decrypt"), Equals: m{"a": "1"}}}
	subset := []Grant{{Grantee: alice, Operations: list("Decrypt"), Subset: m{"a": "1"}}}
	granted := func(g []Grant, context m) func(c *Case) {
		return func(c *Case) { c.Grants, c.EncryptionContext = g, context }
	}
	add(Allow, "grant EncryptionContextEquals: equal", doc(delegate), granted(equals, m{"a": "1"}))
	add(Deny, "grant EncryptionContextEquals: one pair more", doc(delegate), granted(equals, m{"a": "1", "b": "2"}))
	add(Deny, "grant EncryptionContextEquals: no context", doc(delegate), granted(equals, nil))
	add(Allow, "grant EncryptionContextSubset: one pair more", doc(delegate), granted(subset, m{"a": "1", "b": "2"}))
	add(Deny, "grant EncryptionContextSubset: another value", doc(delegate), granted(subset, m{"a": "2", "b": "2"}))
	add(Deny, "retired or revoked grant: is none", doc(delegate), granted(nil, nil))
	add(Allow, "policy variables: replaced", allow(`{"StringEquals":{"aws:PrincipalTag/owner":"${aws:username}"}}`), func(c *Case) { c.Caller.Tags = []Tag{{"owner", "alice"}} })
	add(Deny, "policy variables: absent", allow(`{"StringEquals":{"aws:PrincipalTag/owner":"${aws:PrincipalTag/none}"}}`), func(c *Case) { c.Caller.Tags = []Tag{{"owner", ""}} })
	add(Deny, "policy variables: a star in a value is a letter", allow(`{"StringLike":{"aws:PrincipalTag/owner":"${aws:PrincipalTag/x}"}}`), func(c *Case) { c.Caller.Tags = []Tag{{"owner", "bob"}, {"x", "*"}} })
	add(Deny, "policy variables: none in the old version", oldDoc(statementIf("Allow", `{"StringEquals":{"aws:PrincipalTag/owner":"${aws:username}"}}`)), func(c *Case) { c.Caller.Tags = []Tag{{"owner", "alice"}} })
	add(Deny, "a statement without Action has no effect", doc(s("Allow", who+`,"Resource":"*"`)), nil)
	add(Deny, "a statement without Resource has no effect", doc(s("Allow", who+`,"Action":"*"`)), nil)
	add(Allow, "a Deny without Resource has no effect", doc(allowAlice, s("Deny", who+`,"Action":"*"`)), nil)
	add(Deny, "a service in a user agent is no service", allow(via), func(c *Case) { c.UserAgent = "s3.us-east-1.amazonaws.com" })
	return cases
}
