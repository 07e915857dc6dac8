package apitest

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// testGrants: the five operations, from the grant's making to its end.
func testGrants(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	made := must(c.CreateKey(ctx, &kms.CreateKeyInput{}))(t).KeyMetadata
	key, root := made.Arn, str("arn:aws:iam::"+*made.AWSAccountId+":root")
	admin := str("arn:aws:iam::" + *made.AWSAccountId + ":user/administrator")
	in := &kms.CreateGrantInput{
		KeyId: made.KeyId, GranteePrincipal: admin, RetiringPrincipal: root, Name: str("first"),
		Operations:  []types.GrantOperation{types.GrantOperationEncrypt, types.GrantOperationDecrypt, types.GrantOperationRetireGrant},
		Constraints: &types.GrantConstraints{EncryptionContextSubset: map[string]string{"tenant": "1"}},
	}
	first := must(c.CreateGrant(ctx, in))(t)
	again := must(c.CreateGrant(ctx, in))(t)
	equal(t, "the same grant", *again.GrantId, *first.GrantId)
	equal(t, "the same token", *again.GrantToken == *first.GrantToken, false)
	second := must(c.CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: key, GranteePrincipal: root, Operations: []types.GrantOperation{types.GrantOperationDescribeKey}, GrantTokens: []string{*first.GrantToken},
	}))(t)

	list := must(c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: made.KeyId}))(t)
	equal(t, "grants", len(list.Grants), 2)
	i := slices.IndexFunc(list.Grants, func(g types.GrantListEntry) bool { return *g.GrantId == *first.GrantId })
	g := list.Grants[max(i, 0)]
	equal(t, "KeyId", *g.KeyId, *key)
	equal(t, "Name", *g.Name, "first")
	equal(t, "GranteePrincipal", *g.GranteePrincipal, *admin)
	equal(t, "RetiringPrincipal", *g.RetiringPrincipal, *root)
	equal(t, "IssuingAccount", *g.IssuingAccount, *root)
	equal(t, "Constraints", g.Constraints.EncryptionContextSubset["tenant"], "1")
	equal(t, "Operations", len(g.Operations), 3)
	equal(t, "CreationDate", g.CreationDate.IsZero(), false)

	// Tokens are taken by operations with and without a need of them.
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("x"), GrantTokens: []string{*first.GrantToken, *second.GrantToken}}))(t).CiphertextBlob
	must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, GrantTokens: []string{*again.GrantToken}}))(t)

	retirable := must(c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: root}))(t)
	equal(t, "retirable", slices.ContainsFunc(retirable.Grants, func(g types.GrantListEntry) bool { return *g.GrantId == *first.GrantId }), true)

	dry := aws.Bool(true)
	_, err := c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: key, GranteePrincipal: root, Operations: []types.GrantOperation{types.GrantOperationEncrypt}, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: first.GrantToken, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)
	_, err = c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key, GrantId: second.GrantId, DryRun: dry})
	refusedAs[*types.DryRunOperationException](t, err)

	must(c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: first.GrantToken}))(t)
	must(c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: made.KeyId, GrantId: second.GrantId}))(t)
	equal(t, "grants left", len(must(c.ListGrants(ctx, &kms.ListGrantsInput{KeyId: key}))(t).Grants), 0)

	_, err = c.RetireGrant(ctx, &kms.RetireGrantInput{KeyId: key, GrantId: first.GrantId})
	refusedAs[*types.NotFoundException](t, err)
	_, err = c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: key, GrantId: str("made up")})
	refusedAs[*types.InvalidGrantIdException](t, err)
	_, err = c.RetireGrant(ctx, &kms.RetireGrantInput{GrantToken: str("made up")})
	refusedAs[*types.InvalidGrantTokenException](t, err)
	_, err = c.CreateGrant(ctx, &kms.CreateGrantInput{KeyId: key, GranteePrincipal: str(*admin + "2"), Operations: []types.GrantOperation{types.GrantOperationEncrypt}})
	refusedAs[*types.InvalidArnException](t, err)
}
