package authztest

import (
	"strings"
)

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
		{`"*"`, s3, byAnyone},
		{`{"AWS":"*"}`, s3, byAnyone},
		{`{"Service":"ec2.amazonaws.com","AWS":"*"}`, s3, byAnyone},
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
