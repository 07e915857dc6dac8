package dataplane

import (
	"strings"
	"testing"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyspec"
)

// Each operation has condition keys for what it does with its key, with the value of the request, and those of no other operation.
func TestConditionsOfKeys(t *testing.T) {
	a := access{newWorld(t, worldConfig{})}
	all := a.addKinds()
	algorithm := func(name string) string {
		kind := keyKinds[name]
		return kind.spec.Algorithms(kind.usage)[0].String()
	}
	for i := range keyCalls {
		c := &keyCalls[i]
		for name, kind := range keyKinds {
			if name == "to" || !c.suits(kind.spec, kind.usage) {
				continue
			}
			conditions := map[string]string{}
			switch c.op {
			case "Sign", "Verify":
				conditions["SigningAlgorithm"], conditions["MessageType"] = algorithm(name), "RAW"
			case "GenerateMac", "VerifyMac":
				conditions["MacAlgorithm"] = algorithm(name)
			case "DeriveSharedSecret":
				conditions["KeyAgreementAlgorithm"] = "ECDH"
			case "Encapsulate", "Decapsulate":
				conditions["EncapsulationAlgorithm"] = "ML_KEM"
			case "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext":
				conditions["DataKeyPairSpec"], conditions["EncryptionAlgorithm"] = "ECC_NIST_P256", "SYMMETRIC_DEFAULT"
			case "GetPublicKey":
			default:
				conditions["EncryptionAlgorithm"] = "RSAES_OAEP_SHA_256"
				if kind.spec == keyspec.None {
					conditions["EncryptionAlgorithm"] = "SYMMETRIC_DEFAULT"
				}
			}
			body := c.named(a.world, all[name])
			for _, key := range []string{"SigningAlgorithm", "MessageType", "MacAlgorithm", "KeyAgreementAlgorithm", "EncapsulationAlgorithm", "DataKeyPairSpec", "EncryptionAlgorithm"} {
				value, has := conditions[key]
				for _, test := range []struct {
					condition string
					allowed   bool
				}{
					{`"StringEquals":{"kms:` + key + `":"` + value + `"}`, has}, {`"StringEquals":{"kms:` + key + `":"another"}`, false}, {`"Null":{"kms:` + key + `":"true"}`, !has},
				} {
					a.put(name, `{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"kms:`+strings.Replace(c.op, "ReEncrypt", "ReEncrypt*", 1)+`","Resource":"*","Condition":{`+test.condition+`}},`+
						`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}]}`)
					r := a.do(a.call(c.op, body))
					if denied := r.exception() == "AccessDeniedException"; denied != test.allowed || !denied && r.status != 200 {
						t.Errorf("%s, %s, Deny if %s: %d %s", c.op, name, test.condition, r.status, r.body)
					}
				}
			}
			a.put(name, delegating(ours))
		}
	}
}

// A grant of an operation lets another account's user do it, and no other operation.
func TestGrantsOfKeys(t *testing.T) {
	a := access{newWorld(t, worldConfig{})}
	all := a.addKinds()
	guest := a.as("AKIAGUEST", user(a, others, "guest", allowAll))
	for i := range keyCalls {
		c := &keyCalls[i]
		if c.op == "ReEncrypt" {
			continue // two operations: TestGrants
		}
		for name, kind := range keyKinds {
			if name == "to" || !c.suits(kind.spec, kind.usage) {
				continue
			}
			body := c.named(a.world, all[name])
			for _, op := range []string{c.op, "DescribeKey"} {
				a.grant(name, "AIDAguest", authz.Grant{ID: "g", Operations: authz.ParseOperation(op)})
				want := map[bool]string{true: "", false: "AccessDeniedException"}[op == c.op]
				if r := a.do(a.sign(guest, "TrentService."+c.op, []byte(body))); r.exception() != want || (want == "") != (r.status == 200) {
					t.Errorf("%s with a grant of %s, %s: %d %s", c.op, op, name, r.status, r.body)
				}
			}
		}
	}
}
