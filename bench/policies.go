package main

import (
	"encoding/xml"
	"fmt"
	"net/url"
	"strings"

	"github.com/keyplane/keyplane/internal/sigv4"
)

const (
	defaultPolicyName = "SoftHSM, default policy"
	manyPoliciesName  = "SoftHSM, 20 statements, 5 of an identity, 1000 grants"
	oneGrantName      = "SoftHSM, one of the 1000 grants allows"

	benchStatements = 20
	benchGrants     = 1000
	policyContext   = `,"EncryptionContext":{"purpose":"bench","tenant":"t-000017"}`
)

// policiesTable compares the default key policy, used by an administrator, with a key that has a policy of 20 statements with conditions and
// 1000 grants: used by a user with five identity statements with conditions, who is allowed by policies, and by the grantee, whom one of
// the grants alone allows. All answer the same requests in one process.
func (p *plan) policiesTable() error {
	plain, err := p.startSoftHSM("policies")
	if err != nil {
		return err
	}
	defer plain.stop()
	plain.name = defaultPolicyName
	rich, granted := *plain, *plain // the same process, another key and other callers
	rich.name, granted.name = manyPoliciesName, oneGrantName
	if err := p.manyPolicies(plain, &rich, &granted); err != nil {
		return err
	}
	targets := []*target{plain, &rich, &granted}
	for _, t := range targets {
		if t.bodies, err = contextBodies(t); err != nil {
			return err
		}
	}
	var cells []cell
	for _, op := range []string{"GenerateDataKey", "Decrypt"} {
		floor, _, err := p.startFloor(plain, op)
		if err != nil {
			return err
		}
		defer floor.stop()
		for _, t := range append([]*target{floor}, targets...) {
			cells = append(cells, p.cell(t, op, "", p.conns))
		}
	}
	if err := p.alternate("policies", cells); err != nil {
		return err
	}
	for _, op := range []string{"GenerateDataKey", "Decrypt"} {
		p.promise(fmt.Sprintf("%s, %d policy statements, 5 of an identity, %d grants, requests/s of the default policy", op, benchStatements, benchGrants),
			p.ratio("policies", op, "", manyPoliciesName, defaultPolicyName, perSecond), atLeast, 0.97)
		for _, name := range []string{manyPoliciesName, oneGrantName} {
			p.promise(op+" on "+name+", allocations per request, the process's own included", p.median("policies", op, "", name, mallocs), atMost, mallocsMax)
		}
	}
	return nil
}

// contextBodies are the request bodies of a target's key under an encryption context that the conditions of the policies look at.
func contextBodies(t *target) (map[string]string, error) {
	var made struct{ CiphertextBlob string }
	if err := t.call("GenerateDataKeyWithoutPlaintext", `{"KeyId":"`+t.keyID+`","KeySpec":"AES_256"`+policyContext+`}`, &made); err != nil {
		return nil, err
	}
	return map[string]string{
		"GenerateDataKey": `{"KeyId":"` + t.keyID + `","KeySpec":"AES_256"` + policyContext + `}`,
		"Decrypt":         `{"CiphertextBlob":"` + made.CiphertextBlob + `"` + policyContext + `}`,
	}, nil
}

// manyPolicies makes the key with its policy, the user who is rich's caller, and granted's, who has the grants and no policies. None of the
// policy's statements for others decides about them; the one that leaves the key to the account is the last.
func (p *plan) manyPolicies(t, rich, granted *target) (err error) {
	const user, grantee = "bench-user", "bench-grantee"
	var identity []string
	for i, condition := range []string{
		`"StringEquals":{"kms:EncryptionContext:tenant":"t-nobody"}`,
		`"IpAddress":{"aws:SourceIp":["10.0.0.0/8","192.168.0.0/16"]}`,
		`"StringLike":{"kms:RequestAlias":"alias/other/*"}`,
		`"DateLessThan":{"aws:CurrentTime":"2020-01-01T00:00:00Z"}`,
		`"StringEquals":{"kms:EncryptionContext:purpose":"bench"},"ForAllValues:StringEquals":{"kms:EncryptionContextKeys":["purpose","tenant"]},"IpAddress":{"aws:SourceIp":"127.0.0.0/8"}`,
	} {
		identity = append(identity, fmt.Sprintf(`{"Sid":"i%d","Effect":"Allow","Action":["kms:GenerateDataKey*","kms:Decrypt","kms:Encrypt"],"Resource":"*","Condition":{%s}}`, i, condition))
	}
	if rich.key, err = t.user(user); err != nil {
		return err
	}
	if granted.key, err = t.user(grantee); err != nil {
		return err
	}
	if _, err := t.iam("PutUserPolicy", "UserName", user, "PolicyName", "bench", "PolicyDocument", document(identity)); err != nil {
		return err
	}
	var statements []string
	for i := range benchStatements - 1 {
		effect, condition := "Allow", fmt.Sprintf(`"StringEquals":{"kms:EncryptionContext:tenant":"t-%06d"}`, 100+i)
		switch i % 4 {
		case 1:
			effect, condition = "Deny", fmt.Sprintf(`"StringEquals":{"kms:EncryptionContext:purpose":"never-%d"}`, i)
		case 2:
			condition = fmt.Sprintf(`"StringLike":{"kms:EncryptionContext:tenant":"x-%d-*"},"Bool":{"aws:SecureTransport":"true"}`, i)
		case 3:
			condition = `"NotIpAddress":{"aws:SourceIp":"127.0.0.0/8"}`
		}
		statements = append(statements, fmt.Sprintf(`{"Sid":"s%d","Effect":%q,"Principal":{"AWS":"*"},"Action":["kms:Decrypt","kms:GenerateDataKey*","kms:Encrypt"],"Resource":"*","Condition":{%s}}`, i, effect, condition))
	}
	statements = append(statements, `{"Sid":"account","Effect":"Allow","Principal":{"AWS":"`+benchAccount+`"},"Action":"kms:*","Resource":"*"}`)
	var created struct{ KeyMetadata struct{ KeyId string } }
	if err := t.call("CreateKey", fmt.Sprintf(`{"Policy":%q}`, document(statements)), &created); err != nil {
		return err
	}
	rich.keyID, granted.keyID = created.KeyMetadata.KeyId, created.KeyMetadata.KeyId
	grant := func(tenant int) error {
		_, err := t.post("CreateGrant", fmt.Sprintf(`{"KeyId":%q,"GranteePrincipal":"arn:aws:iam::%s:user/%s","Operations":["Decrypt","GenerateDataKey","GenerateDataKeyWithoutPlaintext"],"Constraints":{"EncryptionContextSubset":{"tenant":"t-%06d"}}}`,
			rich.keyID, benchAccount, grantee, tenant))
		return err
	}
	if err := p.parallel(benchGrants-1, func(i int) error { return grant(1000 + i) }); err != nil {
		return err
	}
	return grant(17) // policyContext's
}

// user makes a user without policies and an access key for it.
func (t *target) user(name string) (*sigv4.AccessKey, error) {
	if _, err := t.iam("CreateUser", "UserName", name); err != nil {
		return nil, err
	}
	b, err := t.iam("CreateAccessKey", "UserName", name)
	if err != nil {
		return nil, err
	}
	var made struct {
		ID     string `xml:"CreateAccessKeyResult>AccessKey>AccessKeyId"`
		Secret string `xml:"CreateAccessKeyResult>AccessKey>SecretAccessKey"`
	}
	if err := xml.Unmarshal(b, &made); err != nil {
		return nil, err
	}
	return sigv4.NewAccessKey(made.ID, []byte(made.Secret), sigv4.Principal{})
}

func document(statements []string) string {
	return `{"Version":"2012-10-17","Statement":[` + strings.Join(statements, ",") + `]}`
}

// iam calls an operation of IAM with names and values in turn.
func (t *target) iam(action string, params ...string) ([]byte, error) {
	form := url.Values{"Action": {action}, "Version": {"2010-05-08"}}
	for i := 0; i+1 < len(params); i += 2 {
		form.Set(params[i], params[i+1])
	}
	return t.send("iam", action, form.Encode())
}
