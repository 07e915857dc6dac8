package authztest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func docs(d ...Document) []Document { return d }

// principalCases: in which way does a principal name a caller, and what does each way lead to?
func principalCases() (cases []Case) {
	const s3 = "s3.us-east-1.amazonaws.com"
	carol := "arn:aws:iam::111122223333:user/eng/Carol"
	deployCI := "arn:aws:sts::111122223333:assumed-role/Deploy/ci"
	for _, v := range []struct {
		principal, caller string
		way               int
	}{
		{`"*"`, alice, byAnyone},
		{`"*"`, adminS1, byAnyone},
		{`"*"`, s3, byAnyone},
		{`{"AWS":"*"}`, alice, byAnyone},
		{`{"AWS":["` + dave + `","*"]}`, adminS1, byAnyone},
		{`{"AWS":"` + alice + `"}`, alice, byItself},
		{`{"AWS":["` + dave + `","` + alice + `"]}`, alice, byItself},
		{`{"AWS":["` + rootA + `","` + alice + `"]}`, alice, byItself},
		{`{"AWS":"arn:aws:iam::111122223333:user/Alice"}`, alice, notNamed},
		{`{"AWS":"arn:aws:iam::444455556666:user/alice"}`, alice, notNamed},
		{`{"AWS":"` + dave + `"}`, alice, notNamed},
		{`{"AWS":"` + carol + `"}`, carol, byItself},
		{`{"AWS":"arn:aws:iam::111122223333:user/Carol"}`, carol, notNamed},
		{`{"AWS":"` + rootA + `"}`, alice, byAccount},
		{`{"AWS":"111122223333"}`, alice, byAccount},
		{`{"AWS":["111122223333"]}`, adminS1, byAccount},
		{`{"AWS":"` + rootA + `"}`, adminS1, byAccount},
		{`{"AWS":"` + rootB + `"}`, alice, notNamed},
		{`{"AWS":"444455556666"}`, adminS1, notNamed},
		{`{"AWS":"` + rootA + `"}`, rootA, byItself},
		{`{"AWS":"111122223333"}`, rootA, byItself},
		{`{"AWS":"` + rootB + `"}`, rootA, notNamed},
		{`{"AWS":"` + alice + `"}`, rootA, notNamed},
		{`"*"`, rootA, byAnyone},
		{`{"AWS":"` + admin + `"}`, adminS1, byRole},
		{`{"AWS":"` + adminS1 + `"}`, adminS1, byItself},
		{`{"AWS":["` + admin + `","` + adminS1 + `"]}`, adminS1, byItself},
		{`{"AWS":"arn:aws:sts::111122223333:assumed-role/Admin/s2"}`, adminS1, notNamed},
		{`{"AWS":"arn:aws:iam::111122223333:role/admin"}`, adminS1, notNamed},
		{`{"AWS":"arn:aws:iam::111122223333:role/eng/Deploy"}`, deployCI, byRole},
		{`{"AWS":"arn:aws:iam::111122223333:role/Deploy"}`, deployCI, notNamed},
		{`{"AWS":"` + partner + `"}`, adminS1, notNamed},
		{`{"AWS":"` + admin + `"}`, alice, notNamed},
		{`{"Service":"s3.amazonaws.com"}`, s3, byItself},
		{`{"Service":"` + s3 + `"}`, s3, byItself},
		{`{"Service":"S3.AmazonAWS.com"}`, s3, byItself},
		{`{"Service":["ec2.amazonaws.com","s3.amazonaws.com"]}`, s3, byItself},
		{`{"Service":"s3.us-west-2.amazonaws.com"}`, s3, notNamed},
		{`{"Service":"ec2.amazonaws.com"}`, s3, notNamed},
		{`{"Service":"vault.example.com"}`, "vault.example.com", byItself},
		{`{"AWS":"` + rootA + `"}`, s3, notNamed},
		{`{"AWS":"` + alice + `"}`, s3, notNamed},
		{`{"Service":"s3.amazonaws.com"}`, alice, notNamed},
		{`{"Service":"s3.amazonaws.com","AWS":"` + alice + `"}`, alice, byItself},
		{`{"Service":"s3.amazonaws.com","AWS":"` + alice + `"}`, s3, byItself},
		{`{"Federated":"cognito-identity.amazonaws.com"}`, alice, notNamed},
		{`{"Federated":"arn:aws:iam::111122223333:saml-provider/p"}`, adminS1, notNamed},
		{`{"Federated":"cognito-identity.amazonaws.com","AWS":"` + admin + `"}`, adminS1, byRole},
	} {
		statement := func(effect, element string) string {
			return `{"Effect":"` + effect + `","` + element + `":` + v.principal + `,"Action":"kms:*","Resource":"*"}`
		}
		caller := callerNamed(v.caller)
		nobodyLimits := caller.Kind == Root || caller.Kind == Service
		add := func(want, what string, keyPolicy Document, change func(c *Case)) {
			c := ask(want, "%s/%s/%s", v.principal, v.caller, what)
			c.Caller, c.KeyPolicy = caller, keyPolicy
			if change != nil {
				change(&c)
			}
			cases = append(cases, c)
		}
		identity := func(c *Case) { c.Identity = docs(doc(allowAll)) }
		everyone := `{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`
		named := v.way != notNamed

		add(allowIf(v.way == byItself || v.way == byRole || v.way == byAnyone), "key policy alone", doc(statement("Allow", "Principal")), nil)
		add(allowIf(!named), "denied", doc(everyone, statement("Deny", "Principal")), nil)
		add(allowIf(!named), "not the principal", doc(statement("Allow", "NotPrincipal")), nil)
		// An account does not exempt its users, nor a role the sessions where one is listed.
		exempt := v.way == byItself || v.way == byAnyone || v.way == byRole && !strings.Contains(v.principal, ":assumed-role/")
		add(allowIf(exempt), "not the principal is denied", doc(everyone, statement("Deny", "NotPrincipal")), nil)
		if caller.Kind == Service {
			continue
		}
		add(allowIf(named && caller.Kind == Root), "of another account, key policy alone", doc(statement("Allow", "Principal")), func(c *Case) {
			c.Resource, c.Owner = keyB, accountB
		})
		if nobodyLimits {
			continue
		}
		add(allowIf(named), "and identity policy", doc(statement("Allow", "Principal")), identity)
		add(allowIf(v.way == byItself), "boundary lacks", doc(statement("Allow", "Principal")), func(c *Case) {
			identity(c)
			c.Boundary = doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`)
		})
		add(Deny, "boundary denies", doc(statement("Allow", "Principal")), func(c *Case) {
			identity(c)
			c.Boundary = doc(allowAll, denyAll)
		})
		add(allowIf(named), "of another account, and identity policy", doc(statement("Allow", "Principal")), func(c *Case) {
			c.Resource, c.Owner = keyB, accountB
			identity(c)
		})
		add(Deny, "of another account, boundary lacks", doc(statement("Allow", "Principal")), func(c *Case) {
			c.Resource, c.Owner = keyB, accountB
			identity(c)
			c.Boundary = doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`)
		})
		add(Deny, "of another account, an action for its own account", doc(statement("Allow", "Principal")), func(c *Case) {
			c.Resource, c.Owner, c.Action = keyB, accountB, "kms:PutKeyPolicy"
			identity(c)
		})
		if caller.Kind == AssumedRole {
			add(allowIf(v.way == byItself), "session policy lacks", doc(statement("Allow", "Principal")), func(c *Case) {
				identity(c)
				c.Session = docs(doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`))
			})
			add(allowIf(v.way == byItself), "one of two session policies lacks", doc(statement("Allow", "Principal")), func(c *Case) {
				identity(c)
				c.Session = docs(doc(allowAll), doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`))
			})
			add(Deny, "session policy denies", doc(statement("Allow", "Principal")), func(c *Case) {
				identity(c)
				c.Session = docs(doc(allowAll, denyAll))
			})
		}
	}

	// A principal that was deleted and made again is another principal.
	for _, v := range []struct{ principal, caller string }{{alice, alice}, {admin, adminS1}, {adminS1, adminS1}} {
		statement := `{"Effect":"Allow","Principal":{"AWS":"` + v.principal + `"},"Action":"kms:*","Resource":"*"}`
		for _, former := range []bool{false, true} {
			c := ask(allowIf(!former), "made again/%s/%s/%t", v.principal, v.caller, former)
			c.Caller, c.KeyPolicy = callerNamed(v.caller), doc(statement)
			d := ask(allowIf(former), "made again/not %s/%s/%t", v.principal, v.caller, former)
			d.Caller, d.KeyPolicy = c.Caller, doc(strings.Replace(statement, "Principal", "NotPrincipal", 1))
			if former {
				c.Bind = map[string]string{v.principal: "AIDAFORMER"}
				d.Bind = c.Bind
			}
			cases = append(cases, c, d)
		}
	}
	return cases
}

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

// flowCases are the paths of the KMS developer guide through accounts, roles, boundaries and services.
func flowCases() (cases []Case) {
	add := func(want, reason, name string, change func(c *Case)) {
		c := ask(want, "%s", name)
		c.Reason = reason
		change(&c)
		cases = append(cases, c)
	}
	const decrypt = `{"Effect":"Allow","Action":"kms:Decrypt","Resource":"` + keyA + `"}`
	const decryptB = `{"Effect":"Allow","Action":"kms:Decrypt","Resource":"` + keyB + `"}`
	keyOfB := func(c *Case) { c.Resource, c.Owner = keyB, accountB }

	add(Deny, "", "default key policy: no identity policy", func(c *Case) { c.KeyPolicy = doc(delegate) })
	add(Allow, "AllowedByIdentityPolicy", "default key policy: identity policy allows", func(c *Case) {
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(decrypt))
	})
	add(Allow, "AllowedByIdentityPolicy", "default key policy: the second identity policy allows", func(c *Case) {
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`), doc(decrypt))
	})
	add(Deny, "NoIdentityPolicyAllows", "default key policy: identity policy for another key", func(c *Case) {
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(`{"Effect":"Allow","Action":"kms:*","Resource":"`+keyA2+`"}`))
	})
	add(Deny, "DeniedByIdentityPolicy", "default key policy: one identity policy denies", func(c *Case) {
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(decrypt), doc(denyAll))
	})
	add(Allow, "", "default key policy: root user", func(c *Case) { c.KeyPolicy, c.Caller = doc(delegate), callerNamed(rootA) })
	add(Deny, "NoKeyPolicyAllows", "identity policy alone does not suffice", func(c *Case) {
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + admin + `"},"Action":"kms:*","Resource":"*"}`)
		c.Identity = docs(doc(allowAll))
	})
	add(Deny, "NoKeyPolicyAllows", "root user has no rights that the key policy does not give", func(c *Case) {
		c.KeyPolicy, c.Caller = doc(allowAlice), callerNamed(rootA)
	})
	add(Allow, "AllowedByKeyPolicy", "key policy alone suffices", func(c *Case) { c.KeyPolicy = doc(allowAlice) })
	add(Deny, "DeniedByKeyPolicy", "key policy denies the root user", func(c *Case) {
		c.KeyPolicy = doc(delegate, `{"Effect":"Deny","Principal":{"AWS":"`+rootA+`"},"Action":"kms:Decrypt","Resource":"*"}`)
		c.Caller = callerNamed(rootA)
	})
	add(Deny, "DeniedByKeyPolicy", "a denied account principal denies the account's users", func(c *Case) {
		c.KeyPolicy = doc(allowAlice, `{"Effect":"Deny","Principal":{"AWS":"`+rootA+`"},"Action":"kms:Decrypt","Resource":"*"}`)
	})
	add(Deny, "DeniedByBoundary", "boundary denies what the key policy allows by name", func(c *Case) {
		c.KeyPolicy, c.Boundary = doc(allowAlice), doc(allowAll, denyAll)
	})
	add(Allow, "AllowedByKeyPolicy", "boundary does not limit what the key policy gives a user by name", func(c *Case) {
		c.KeyPolicy, c.Boundary = doc(allowAlice), doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`)
	})
	add(Deny, "NoBoundaryAllows", "boundary limits identity policies", func(c *Case) {
		c.KeyPolicy, c.Identity, c.Boundary = doc(delegate), docs(doc(allowAll)), doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`)
	})
	add(Deny, "", "boundary alone allows nothing", func(c *Case) { c.KeyPolicy, c.Boundary = doc(delegate), doc(allowAll) })
	add(Deny, "", "session policy alone allows nothing", func(c *Case) {
		c.Caller, c.KeyPolicy, c.Session = callerNamed(adminS1), doc(delegate), docs(doc(allowAll))
	})
	add(Allow, "AllowedByKeyPolicy", "session policy does not limit what the key policy gives the session by name", func(c *Case) {
		c.Caller, c.Session = callerNamed(adminS1), docs(doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`))
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + adminS1 + `"},"Action":"kms:*","Resource":"*"}`)
	})
	add(Deny, "NoSessionPolicyAllows", "session policy limits what the key policy gives the role", func(c *Case) {
		c.Caller, c.Session = callerNamed(adminS1), docs(doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`))
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + admin + `"},"Action":"kms:*","Resource":"*"}`)
	})
	add(Deny, "NoSessionPolicyAllows", "session policy limits the role's identity policies", func(c *Case) {
		c.Caller, c.KeyPolicy = callerNamed(adminS1), doc(delegate)
		c.Identity, c.Session = docs(doc(allowAll)), docs(doc(`{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}`))
	})
	add(Deny, "DeniedBySessionPolicy", "session policy denies", func(c *Case) {
		c.Caller, c.Session = callerNamed(adminS1), docs(doc(allowAll, denyAll))
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + adminS1 + `"},"Action":"kms:*","Resource":"*"}`)
	})
	add(Deny, "", "condition of the delegation is not fulfilled", func(c *Case) {
		c.Identity = docs(doc(allowAll))
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + rootA + `"},"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"}}}`)
	})
	add(Allow, "AllowedByIdentityPolicy", "condition of the delegation is fulfilled", func(c *Case) {
		c.Identity, c.Caller.Via = docs(doc(allowAll)), "s3.us-east-1.amazonaws.com"
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"` + rootA + `"},"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:ViaService":"s3.us-east-1.amazonaws.com"}}}`)
	})
	add(Allow, "AllowedByKeyPolicy", "everyone of one account, by kms:CallerAccount", func(c *Case) {
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:CallerAccount":"` + accountA + `"}}}`)
	})
	add(Deny, "", "everyone of another account, by kms:CallerAccount", func(c *Case) {
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"kms:CallerAccount":"` + accountB + `"}}}`)
	})
	add(Deny, "", "a deleted user", func(c *Case) { c.KeyPolicy, c.Identity, c.Caller.Deleted = doc(allowAlice), docs(doc(allowAll)), true })

	// Other accounts.
	for _, who := range []struct{ name, principal string }{
		{"account", rootA}, {"digits", accountA}, {"user", alice}, {"everyone", "*"},
	} {
		keySide := doc(`{"Effect":"Allow","Principal":{"AWS":"` + who.principal + `"},"Action":["kms:Decrypt","kms:DescribeKey","kms:PutKeyPolicy"],"Resource":"*"}`)
		add(Allow, "", "other account/"+who.name+"/both sides allow", func(c *Case) {
			keyOfB(c)
			c.KeyPolicy, c.Identity = keySide, docs(doc(decryptB))
		})
		add(Deny, "", "other account/"+who.name+"/key side alone", func(c *Case) { keyOfB(c); c.KeyPolicy = keySide })
		add(Deny, "", "other account/"+who.name+"/identity policy is for a key of the own account", func(c *Case) {
			keyOfB(c)
			c.KeyPolicy, c.Identity = keySide, docs(doc(decrypt))
		})
		add(Deny, "", "other account/"+who.name+"/identity policy for another action", func(c *Case) {
			keyOfB(c)
			c.KeyPolicy, c.Identity = keySide, docs(doc(`{"Effect":"Allow","Action":"kms:DescribeKey","Resource":"*"}`))
		})
		add(Deny, "", "other account/"+who.name+"/an action that is for the own account only", func(c *Case) {
			keyOfB(c)
			c.Action, c.KeyPolicy, c.Identity = "kms:PutKeyPolicy", keySide, docs(doc(allowAll))
		})
		add(Deny, "", "other account/"+who.name+"/key side denies", func(c *Case) {
			keyOfB(c)
			c.KeyPolicy = doc(`{"Effect":"Allow","Principal":{"AWS":"`+who.principal+`"},"Action":"kms:*","Resource":"*"}`,
				`{"Effect":"Deny","Principal":{"AWS":"`+who.principal+`"},"Action":"kms:Decrypt","Resource":"*"}`)
			c.Identity = docs(doc(decryptB))
		})
	}
	add(Deny, "NotAbroad", "other account/own side alone", func(c *Case) {
		keyOfB(c)
		c.KeyPolicy, c.Identity = doc(`{"Effect":"Allow","Principal":{"AWS":"`+rootB+`"},"Action":"kms:*","Resource":"*"}`), docs(doc(allowAll))
	})
	add(Allow, "", "other account/root user", func(c *Case) { keyOfB(c); c.Caller, c.KeyPolicy = callerNamed(rootA), doc(delegate) })
	add(Deny, "", "other account/root user of an account that is not named", func(c *Case) {
		keyOfB(c)
		c.Caller, c.KeyPolicy = callerNamed(rootA), doc(`{"Effect":"Allow","Principal":{"AWS":"`+rootB+`"},"Action":"kms:*","Resource":"*"}`)
	})
	usableAbroad := map[string]bool{
		"DescribeKey": true, "CreateGrant": true, "ListGrants": true, "RevokeGrant": true, "RetireGrant": true, "GetKeyRotationStatus": true,
		"Encrypt": true, "Decrypt": true, "ReEncryptFrom": true, "ReEncryptTo": true, "GenerateDataKey": true,
		"GenerateDataKeyWithoutPlaintext": true, "GenerateDataKeyPair": true, "GenerateDataKeyPairWithoutPlaintext": true, "GenerateMac": true,
		"VerifyMac": true, "Sign": true, "Verify": true, "DeriveSharedSecret": true, "Encapsulate": true, "Decapsulate": true,
		"GetPublicKey": true,
		"EnableKey":    false, "DisableKey": false, "UpdateKeyDescription": false, "ScheduleKeyDeletion": false, "CancelKeyDeletion": false,
		"GetKeyLastUsage": false, "GetKeyPolicy": false, "PutKeyPolicy": false, "ListKeyPolicies": false, "CreateAlias": false,
		"UpdateAlias": false, "DeleteAlias": false, "TagResource": false, "UntagResource": false, "ListResourceTags": false,
		"EnableKeyRotation": false, "DisableKeyRotation": false, "RotateKeyOnDemand": false, "ListKeyRotations": false,
		"GetParametersForImport": false, "ImportKeyMaterial": false, "DeleteImportedKeyMaterial": false, "ReplicateKey": false,
		"UpdatePrimaryRegion": false,
	}
	for _, action := range slices.Sorted(maps.Keys(usableAbroad)) {
		usable := usableAbroad[action]
		for _, foreign := range []bool{false, true} {
			add(allowIf(usable || !foreign), "", fmt.Sprintf("other account/action/%s/%t", action, foreign), func(c *Case) {
				if foreign {
					keyOfB(c)
				}
				c.Action, c.KeyPolicy, c.Identity = "kms:"+action, doc(delegate), docs(doc(allowAll))
			})
		}
	}

	// Operations without a key.
	for _, action := range []string{"CreateKey", "ListKeys", "ListAliases", "GenerateRandom", "ListRetirableGrants", "CreateAlias", "DeleteAlias",
		"CreateCustomKeyStore", "DescribeCustomKeyStores"} {
		resource := "*"
		if strings.HasSuffix(action, "Alias") {
			resource = aliasA
		}
		none := func(change func(c *Case)) func(c *Case) {
			return func(c *Case) {
				c.Action, c.Resource, c.Key = "kms:"+action, resource, nil
				change(c)
			}
		}
		only := `{"Effect":"Allow","Action":"kms:` + action + `","Resource":"` + resource + `"}`
		add(Deny, "NoIdentityPolicyAllows", "no key/"+action+"/no policy", none(func(*Case) {}))
		add(Allow, "AllowedByIdentityPolicy", "no key/"+action+"/identity policy", none(func(c *Case) { c.Identity = docs(doc(only)) }))
		add(Deny, "NoIdentityPolicyAllows", "no key/"+action+"/identity policy for a key", none(func(c *Case) {
			c.Identity = docs(doc(`{"Effect":"Allow","Action":"kms:*","Resource":"` + keyA + `"}`))
		}))
		add(Deny, "DeniedByIdentityPolicy", "no key/"+action+"/denied", none(func(c *Case) { c.Identity = docs(doc(only), doc(denyAll)) }))
		add(Deny, "NoBoundaryAllows", "no key/"+action+"/boundary lacks", none(func(c *Case) {
			c.Identity, c.Boundary = docs(doc(only)), doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`)
		}))
		add(Deny, "NoSessionPolicyAllows", "no key/"+action+"/session policy lacks", none(func(c *Case) {
			c.Caller, c.Identity, c.Session = callerNamed(adminS1), docs(doc(only)), docs(doc(`{"Effect":"Allow","Action":"s3:*","Resource":"*"}`))
		}))
		add(Allow, "", "no key/"+action+"/root user", none(func(c *Case) { c.Caller = callerNamed(rootA) }))
		add(Deny, "", "no key/"+action+"/service", none(func(c *Case) { c.Caller = callerNamed("s3.us-east-1.amazonaws.com") }))
		add(Deny, "NoIdentityPolicyAllows", "no key/"+action+"/grants are not asked", none(func(c *Case) {
			c.Grants = []Grant{{Grantee: alice, Operations: list("Decrypt", "CreateGrant")}}
		}))
	}

	// Services.
	service := func(principal string, change func(c *Case)) func(c *Case) {
		return func(c *Case) {
			c.Caller = callerNamed("s3.us-east-1.amazonaws.com")
			c.KeyPolicy = doc(`{"Effect":"Allow","Principal":` + principal + `,"Action":"kms:*","Resource":"*"}`)
			change(c)
		}
	}
	self := `{"Service":"s3.amazonaws.com"}`
	add(Allow, "AllowedByKeyPolicy", "service/named", service(self, func(*Case) {}))
	add(Deny, "", "service/its registering account is not it", service(`{"AWS":"`+rootA+`"}`, func(*Case) {}))
	add(Allow, "AllowedByKeyPolicy", "service/key of another account", service(self, keyOfB))
	add(Deny, "", "service/key of another account, an action for the own account", service(self, func(c *Case) { keyOfB(c); c.Action = "kms:PutKeyPolicy" }))
	add(Allow, "AllowedByKeyPolicy", "service/an action for the own account", service(self, func(c *Case) { c.Action = "kms:PutKeyPolicy" }))
	add(Deny, "DeniedByKeyPolicy", "service/denied", service(self, func(c *Case) {
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}`, `{"Effect":"Deny","Principal":`+self+`,"Action":"kms:*","Resource":"*"}`)
	}))
	onlyFor := func(source string) func(c *Case) {
		return func(c *Case) {
			c.SourceARN = source
			c.KeyPolicy = doc(`{"Effect":"Allow","Principal":` + self + `,"Action":"kms:*","Resource":"*","Condition":{"ArnLike":{"aws:SourceArn":"arn:aws:s3:::logs*"}}}`)
		}
	}
	add(Allow, "AllowedByKeyPolicy", "service/for a resource", service(self, onlyFor("arn:aws:s3:::logs-1")))
	add(Deny, "", "service/for another resource", service(self, onlyFor("arn:aws:s3:::other")))
	add(Deny, "", "service/for no resource", service(self, onlyFor("")))
	add(Deny, "", "a user that a service calls for is not the service", func(c *Case) {
		c.Caller.Via = "s3.us-east-1.amazonaws.com"
		c.KeyPolicy = doc(`{"Effect":"Allow","Principal":` + self + `,"Action":"kms:*","Resource":"*"}`)
	})
	return cases
}

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

// refused says that a document of the case is refused: an ARN pattern of fewer than six parts.
func refused(c *Case) { c.Want = Malformed }

// malformedCases are documents that have to be refused.
func malformedCases() (cases []Case) {
	add := func(name, document string) {
		c := ask(Malformed, "%s", name)
		c.KeyPolicy = Document(document)
		cases = append(cases, c)
	}
	whole := func(statement string) string { return string(doc(statement)) }
	with := func(more string) string {
		return whole(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*",` + more + `}`)
	}
	condition := func(operator, value string) string {
		return with(`"Condition":{"` + operator + `":{"aws:PrincipalTag/x":` + value + `}}`)
	}
	add("no object", `[]`)
	add("a text", `"x"`)
	add("no Statement", `{"Version":"2012-10-17"}`)
	add("Statement is a text", `{"Version":"2012-10-17","Statement":"x"}`)
	add("statement is a text", `{"Version":"2012-10-17","Statement":["x"]}`)
	add("unknown version", `{"Version":"2012-10-18","Statement":`+allowAlice+`}`)
	add("version is a number", `{"Version":2012,"Statement":`+allowAlice+`}`)
	add("unknown element", `{"Version":"2012-10-17","Statement":`+allowAlice+`,"Other":1}`)
	add("element in another case", `{"version":"2012-10-17","Statement":`+allowAlice+`}`)
	add("Version twice", `{"Version":"2012-10-17","Version":"2012-10-17","Statement":`+allowAlice+`}`)
	add("Statement twice", `{"Statement":`+allowAlice+`,"Statement":`+allowAlice+`}`)
	add("unknown element in a statement", with(`"Other":1`))
	add("statement element in another case", with(`"condition":{}`))
	add("Effect twice", with(`"Effect":"Allow"`))
	add("Condition operator twice", with(`"Condition":{"Null":{"aws:username":"true"},"Null":{"aws:userid":"true"}}`))
	add("Condition key twice", with(`"Condition":{"Null":{"aws:username":"true","aws:username":"false"}}`))
	add("no Effect", whole(`{"Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("Effect in lower case", whole(`{"Effect":"allow","Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("other Effect", whole(`{"Effect":"Permit","Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("Effect is a list", whole(`{"Effect":["Allow"],"Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("no Principal", whole(`{"Effect":"Allow","Action":"kms:*","Resource":"*"}`))
	add("Principal and NotPrincipal", with(`"NotPrincipal":"*"`))
	add("Action and NotAction", with(`"NotAction":"kms:Decrypt"`))
	add("Resource and NotResource", with(`"NotResource":"x"`))
	add("Principal is a name", whole(`{"Effect":"Allow","Principal":"alice","Action":"kms:*","Resource":"*"}`))
	add("Principal of unknown kind", whole(`{"Effect":"Allow","Principal":{"User":"alice"},"Action":"kms:*","Resource":"*"}`))
	add("Principal with a wildcard", whole(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/*"},"Action":"kms:*","Resource":"*"}`))
	add("Principal with a short account", whole(`{"Effect":"Allow","Principal":{"AWS":"11112222333"},"Action":"kms:*","Resource":"*"}`))
	add("Action is a number", whole(`{"Effect":"Allow","Principal":"*","Action":7,"Resource":"*"}`))
	add("Action is an object", whole(`{"Effect":"Allow","Principal":"*","Action":{},"Resource":"*"}`))
	add("Resource is null", whole(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":null}`))
	add("Condition is a list", with(`"Condition":[]`))
	add("Condition operator is a text", with(`"Condition":{"StringEquals":"x"}`))
	add("text after the document", string(doc(allowAlice))+"{}")
	add("unfinished document", strings.TrimSuffix(string(doc(allowAlice)), "}"))
	add("comment", "// x\n"+string(doc(allowAlice)))
	for _, o := range []string{"StringEqual", "stringequals", "StringMatches", "NumericLike", "BoolNotEquals", "ArnLikeIgnoreCase", "", "NullIfExists",
		"ForSomeValues:StringEquals", "ForAllValues:", "forallvalues:StringEquals", "StringEqualsIfExistsIfExists", "IfExists", "StringEqualsifexists"} {
		add("operator/"+o, condition(o, `"x"`))
	}
	for _, v := range []struct{ operator, value string }{
		{"NumericEquals", `"x"`}, {"NumericLessThan", `""`}, {"NumericEquals", `"0x10"`}, {"NumericEquals", `["1","x"]`}, {"NumericEquals", `"NaN"`},
		{"NumericEquals", `"${aws:PrincipalTag/x}"`},
		{"DateEquals", `"x"`}, {"DateLessThan", `"2026-13-01"`}, {"DateEquals", `"2026-02-30"`}, {"DateEquals", `"${aws:CurrentTime}"`},
		{"Bool", `"yes"`}, {"Bool", `"1"`}, {"Bool", `"${aws:SecureTransport}"`}, {"Null", `"x"`}, {"Null", `"${aws:SecureTransport}"`},
		{"IpAddress", `"10.0.0"`}, {"IpAddress", `"10.0.0.0/33"`}, {"NotIpAddress", `"x"`}, {"IpAddress", `"${aws:SourceIp}"`},
		{"BinaryEquals", `"!!!"`}, {"BinaryEquals", `"cmV"`}, {"ArnLike", `"arn:aws:iam"`}, {"ArnEquals", `"alice"`},
		{"StringEquals", `{"a":"b"}`}, {"StringEquals", `null`}, {"StringEquals", `[["x"]]`},
	} {
		add("value/"+v.operator+"/"+v.value, condition(v.operator, v.value))
	}

	unknown := ask(Malformed, "principal that does not exist")
	unknown.KeyPolicy, unknown.Bind = doc(allowAlice), map[string]string{alice: ""}
	cases = append(cases, unknown)
	for _, v := range []struct{ name, statement string }{
		{"with Principal", allowAlice},
		{"with NotPrincipal", `{"Effect":"Allow","NotPrincipal":"*","Action":"kms:*","Resource":"*"}`},
		{"without Action", `{"Effect":"Allow","Resource":"*"}`},
		{"without Resource", `{"Effect":"Allow","Action":"kms:*"}`},
		{"with a Resource that is no ARN", `{"Effect":"Allow","Action":"kms:*","Resource":"*key/*"}`},
		{"with a NotResource that is no ARN", `{"Effect":"Allow","Action":"kms:*","NotResource":"alias/app"}`},
		{"with a Resource with upper case ARN", `{"Effect":"Allow","Action":"kms:*","Resource":"ARN:aws:kms:us-east-1:111122223333:key/*"}`},
	} {
		c := ask(Malformed, "identity policy %s", v.name)
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(v.statement))
		cases = append(cases, c)
	}
	return cases
}
