package authztest

import (
	"fmt"
	"strings"
)

// grantCases: operations, grantees and constraints of grants.
func grantCases() (cases []Case) {
	// The key policy leaves everything to the account; no identity policy allows anything.
	add := func(want, name string, change func(c *Case), g ...Grant) {
		c := ask(want, "%s", name)
		c.KeyPolicy = doc(delegate)
		c.Grants = g
		if change != nil {
			change(&c)
		}
		if want == Allow && c.Caller.Kind != Root {
			c.Reason = "AllowedByGrant"
		}
		cases = append(cases, c)
	}
	all := strings.Fields(`Decrypt Encrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ReEncryptFrom ReEncryptTo Sign Verify GetPublicKey
		CreateGrant RetireGrant DescribeKey GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateMac VerifyMac DeriveSharedSecret
		Encapsulate Decapsulate`)
	for _, o := range all {
		others := []string{}
		for _, p := range all {
			if p != o {
				others = append(others, p)
			}
		}
		action := func(c *Case) { c.Action = "kms:" + o }
		add(Allow, "operation/"+o, action, Grant{Grantee: alice, Operations: list(o)})
		add(Deny, "operation/all but "+o, action, Grant{Grantee: alice, Operations: others})
	}
	for _, o := range []string{"PutKeyPolicy", "RevokeGrant", "ListGrants", "ScheduleKeyDeletion"} {
		add(Deny, "operation/none grants "+o, func(c *Case) { c.Action = "kms:" + o }, Grant{Grantee: alice, Operations: all})
	}

	identity := func(c *Case) { c.Identity = docs(doc(allowAll)) }
	encryptOnly := doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`)
	for _, v := range []struct {
		grantee, caller string
		way             int
	}{
		{alice, alice, byItself},
		{dave, alice, notNamed},
		{"arn:aws:iam::111122223333:user/Alice", alice, notNamed},
		{admin, adminS1, byRole},
		{adminS1, adminS1, byItself},
		{"arn:aws:sts::111122223333:assumed-role/Admin/s2", adminS1, notNamed},
		{admin, alice, notNamed},
		{rootA, alice, byAccount},
		{rootA, adminS1, byAccount},
		{rootB, alice, notNamed},
		{"s3.us-east-1.amazonaws.com", alice, notNamed},
	} {
		g := Grant{Grantee: v.grantee, Operations: list("Decrypt")}
		for _, foreign := range []bool{false, true} {
			name := fmt.Sprintf("grantee/%s/%s/foreign key %t/", v.grantee, v.caller, foreign)
			setup := func(more func(c *Case)) func(c *Case) {
				return func(c *Case) {
					c.Caller = callerNamed(v.caller)
					c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + rootB + `"},"Action":"kms:*","Resource":"*"}`)
					if foreign {
						c.Resource, c.Owner = keyB, accountB
					}
					more(c)
				}
			}
			add(allowIf(v.way == byItself || v.way == byRole), name+"alone", setup(func(*Case) {}), g)
			add(allowIf(v.way != notNamed), name+"and identity policy", setup(identity), g)
			add(allowIf(v.way == byItself && !foreign), name+"boundary lacks", setup(func(c *Case) { identity(c); c.Boundary = encryptOnly }), g)
			add(Deny, name+"identity policy denies", setup(func(c *Case) { c.Identity = docs(doc(allowAll, denyAll)) }), g)
			add(Deny, name+"boundary denies", setup(func(c *Case) { identity(c); c.Boundary = doc(allowAll, denyAll) }), g)
			add(Deny, name+"key policy denies", setup(func(c *Case) {
				identity(c)
				c.KeyPolicy = doc(`{"Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*"}`)
			}), g)
			if v.caller == adminS1 {
				add(allowIf(v.way == byItself && !foreign), name+"session policy lacks", setup(func(c *Case) { identity(c); c.Session = docs(encryptOnly) }), g)
				add(Deny, name+"session policy denies", setup(func(c *Case) { identity(c); c.Session = docs(doc(allowAll, denyAll)) }), g)
			}
		}
	}
	root := func(c *Case) {
		c.Caller = callerNamed(rootA)
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + dave + `"},"Action":"kms:*","Resource":"*"}`)
	}
	add(Allow, "grantee/account/its root user", root, Grant{Grantee: rootA, Operations: list("Decrypt")})
	add(Deny, "grantee/another account/root user", root, Grant{Grantee: rootB, Operations: list("Decrypt")})
	add(Deny, "grantee/user/root user of its account", root, Grant{Grantee: alice, Operations: list("Decrypt")})
	add(Deny, "grantee/a former user of the name", nil, Grant{Grantee: alice, GranteeID: "AIDAFORMER", Operations: list("Decrypt")})
	add(Deny, "grantee/a former role of the name", func(c *Case) { c.Caller = callerNamed(adminS1) }, Grant{Grantee: admin, GranteeID: "AROAFORMER", Operations: list("Decrypt")})
	add(Deny, "grantee/session of a former role", func(c *Case) { c.Caller = callerNamed(adminS1) }, Grant{Grantee: adminS1, GranteeID: "AROAFORMER", Operations: list("Decrypt")})
	service := func(c *Case) { c.Caller = callerNamed("s3.us-east-1.amazonaws.com") }
	add(Allow, "grantee/service", service, Grant{Grantee: "s3.us-east-1.amazonaws.com", Operations: list("Decrypt")})
	add(Deny, "grantee/another service", service, Grant{Grantee: "ec2.amazonaws.com", Operations: list("Decrypt")})
	add(Deny, "none", nil)
	add(Allow, "the second of two", nil, Grant{Grantee: alice, Operations: list("Encrypt")}, Grant{Grantee: alice, Operations: list("Decrypt")})
	add(Deny, "two grants are not one", nil, Grant{Grantee: alice, Operations: list("Encrypt")}, Grant{Grantee: dave, Operations: list("Decrypt")})
	add(Deny, "two constrained grants are not one", func(c *Case) { c.EncryptionContext = map[string]string{"a": "1", "b": "2"} },
		Grant{Grantee: alice, Operations: list("Decrypt"), Equals: map[string]string{"a": "1"}},
		Grant{Grantee: alice, Operations: list("Decrypt"), Equals: map[string]string{"b": "2"}})

	type m = map[string]string
	for _, v := range []struct {
		constraint, context m
		equals, subset      bool
	}{
		{m{"a": "1"}, m{"a": "1"}, true, true},
		{m{"a": "1"}, m{"a": "2"}, false, false},
		{m{"a": "1"}, m{"a": "1", "b": "2"}, false, true},
		{m{"a": "1", "b": "2"}, m{"a": "1"}, false, false},
		{m{"a": "1", "b": "2"}, m{"b": "2", "a": "1"}, true, true},
		{m{"a": "1", "b": "2"}, m{"a": "2", "b": "1"}, false, false},
		{m{"a": "1", "c": "3"}, m{"a": "1", "b": "2", "c": "3"}, false, true},
		{m{"b": "2"}, m{"a": "1", "b": "2", "c": "3"}, false, true},
		{m{"a": "1", "d": "4"}, m{"a": "1", "b": "2", "c": "3"}, false, false},
		{m{"a": "1"}, m{"A": "1"}, false, false},
		{m{"a": "x"}, m{"a": "X"}, false, false},
		{m{"a": "*"}, m{"a": "1"}, false, false},
		{m{"a": "1"}, m{}, false, false},
		{m{"a": "1"}, nil, false, false},
		{m{"a": ""}, m{"a": ""}, true, true},
		{m{"a": ""}, m{"b": ""}, false, false},
		{m{"aa": "1"}, m{"a": "a1"}, false, false},
		{m{}, m{}, true, true},
		{m{}, m{"a": "1"}, false, true},
	} {
		for _, action := range []string{"Decrypt", "Encrypt", "GenerateDataKey", "ReEncryptFrom"} {
			set := func(c *Case) { c.Action, c.EncryptionContext = "kms:"+action, v.context }
			name := fmt.Sprintf("%s of %v/%s", encode(v.constraint), encode(v.context), action)
			add(allowIf(v.equals), "Equals "+name, set, Grant{Grantee: alice, Operations: list(action), Equals: v.constraint})
			add(allowIf(v.subset), "Subset "+name, set, Grant{Grantee: alice, Operations: list(action), Subset: v.constraint})
		}
		for _, action := range []string{"DescribeKey", "RetireGrant"} {
			set := func(c *Case) { c.Action = "kms:" + action }
			name := fmt.Sprintf("constraint %s is not looked at/%s/%v", encode(v.constraint), action, encode(v.context))
			add(Allow, name, set, Grant{Grantee: alice, Operations: list(action), Equals: v.constraint})
		}
	}
	for _, v := range []struct {
		action, have string
		want         string
	}{
		{"Decrypt", "arn:aws:s3:::logs", Allow},
		{"Decrypt", "arn:aws:s3:::logs2", Deny},
		{"Decrypt", "arn:aws:s3:::LOGS", Deny},
		{"Decrypt", "", Deny},
		{"Sign", "arn:aws:s3:::logs", Allow},
		{"Sign", "", Deny},
		{"DescribeKey", "arn:aws:s3:::logs", Allow},
		{"DescribeKey", "arn:aws:s3:::logs2", Deny},
		{"RetireGrant", "", Allow},
		{"RetireGrant", "arn:aws:s3:::logs2", Allow},
	} {
		add(v.want, fmt.Sprintf("SourceArn/%s/%q", v.action, v.have), func(c *Case) { c.Action, c.SourceARN = "kms:"+v.action, v.have },
			Grant{Grantee: alice, Operations: list(v.action), SourceARN: "arn:aws:s3:::logs"})
	}
	return cases
}
