package authztest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

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
