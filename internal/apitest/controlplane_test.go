package apitest

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// testControlPlane: every operation on keys, aliases, tags, policies and grants, all members of its reply.
func testControlPlane(t *testing.T, s *world) {
	t.Run("keys", func(t *testing.T) { testKeys(t, s) })
	t.Run("deletion", func(t *testing.T) { testDeletion(t, s) })
	t.Run("rotation", func(t *testing.T) { testRotation(t, s) })
	t.Run("aliases", func(t *testing.T) { testAliases(t, s) })
	t.Run("tags", func(t *testing.T) { testTags(t, s) })
	t.Run("policies", func(t *testing.T) { testPolicies(t, s) })
	t.Run("last usage", func(t *testing.T) { testLastUsage(t, s) })
	t.Run("grants", func(t *testing.T) { testGrants(t, s) })
	t.Run("pages", func(t *testing.T) { testPages(t, s) })
}

// state is the key's state as DescribeKey tells it.
func state(t *testing.T, c *kms.Client, id *string) types.KeyState {
	t.Helper()
	m := must(c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: id}))(t).KeyMetadata
	equal(t, "Enabled", m.Enabled, m.KeyState == types.KeyStateEnabled)
	return m.KeyState
}

func testKeys(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	before := time.Now().Add(-time.Second)
	made := must(c.CreateKey(ctx, &kms.CreateKeyInput{
		Description: str("a key with everything"), KeySpec: types.KeySpecSymmetricDefault, KeyUsage: types.KeyUsageTypeEncryptDecrypt,
		Origin: types.OriginTypeAwsKms, MultiRegion: aws.Bool(false), Tags: []types.Tag{{TagKey: str("team"), TagValue: str("payments")}},
	}))(t).KeyMetadata
	equal(t, "AWSAccountId", *made.AWSAccountId, Account)
	equal(t, "Arn", *made.Arn, "arn:aws:kms:"+Region+":"+Account+":key/"+*made.KeyId)
	equal(t, "the length of KeyId", len(*made.KeyId), 36)
	equal(t, "Description", *made.Description, "a key with everything")
	equal(t, "KeyUsage", made.KeyUsage, types.KeyUsageTypeEncryptDecrypt)
	equal(t, "KeySpec", made.KeySpec, types.KeySpecSymmetricDefault)
	//lint:ignore SA1019 deprecated, and sent all the same
	equal(t, "CustomerMasterKeySpec", string(made.CustomerMasterKeySpec), "SYMMETRIC_DEFAULT")
	equal(t, "KeyState", made.KeyState, types.KeyStateEnabled)
	equal(t, "Enabled", made.Enabled, true)
	equal(t, "Origin", made.Origin, types.OriginTypeAwsKms)
	equal(t, "KeyManager", made.KeyManager, types.KeyManagerTypeCustomer)
	equal(t, "MultiRegion", *made.MultiRegion, false)
	if !slices.Equal(made.EncryptionAlgorithms, []types.EncryptionAlgorithmSpec{symmetric}) {
		t.Errorf("EncryptionAlgorithms is %v", made.EncryptionAlgorithms)
	}
	if !isMaterialID(made.CurrentKeyMaterialId) {
		t.Errorf("CurrentKeyMaterialId is %v", made.CurrentKeyMaterialId)
	}
	if made.CreationDate.Before(before) || made.CreationDate.After(time.Now().Add(time.Second)) {
		t.Errorf("CreationDate is %v", made.CreationDate)
	}
	if made.DeletionDate != nil {
		t.Errorf("DeletionDate is %v", made.DeletionDate)
	}

	described := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: made.Arn}))(t).KeyMetadata
	a, b := must(json.Marshal(made))(t), must(json.Marshal(described))(t)
	if string(a) != string(b) {
		t.Errorf("DescribeKey says %s, CreateKey said %s", b, a)
	}

	must(c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: made.KeyId, Description: str("\"new\" – größer\n")}))(t)
	described = must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: made.KeyId}))(t).KeyMetadata
	equal(t, "Description", *described.Description, "\"new\" – größer\n")

	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: made.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	for range 2 { // each is idempotent
		must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: made.KeyId}))(t)
		equal(t, "KeyState", state(t, c, made.KeyId), types.KeyStateDisabled)
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		refusedAs[*types.DisabledException](t, err)
	}
	for range 2 {
		must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: made.Arn}))(t)
		equal(t, "KeyState", state(t, c, made.KeyId), types.KeyStateEnabled)
		must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t)
	}
}

func testDeletion(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	for _, days := range []int32{0, 7, 30} { // 0: not sent
		in := &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId}
		want := int32(30)
		if days > 0 {
			in.PendingWindowInDays, want = aws.Int32(days), days
		}
		out := must(c.ScheduleKeyDeletion(ctx, in))(t)
		equal(t, "KeyId", *out.KeyId, *key.Arn)
		equal(t, "KeyState", out.KeyState, types.KeyStatePendingDeletion)
		equal(t, "PendingWindowInDays", *out.PendingWindowInDays, want)
		due := time.Now().Add(time.Duration(want) * 24 * time.Hour)
		if d := out.DeletionDate.Sub(due); d < -time.Minute || d > time.Minute {
			t.Errorf("DeletionDate is %v, want about %v", out.DeletionDate, due)
		}
		m := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t).KeyMetadata
		equal(t, "KeyState", m.KeyState, types.KeyStatePendingDeletion)
		if m.DeletionDate == nil || !m.DeletionDate.Equal(*out.DeletionDate) {
			t.Errorf("DescribeKey's DeletionDate is %v, ScheduleKeyDeletion's %v", m.DeletionDate, out.DeletionDate)
		}
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob})
		refusedAs[*types.KMSInvalidStateException](t, err)

		cancelled := must(c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId}))(t)
		equal(t, "KeyId", *cancelled.KeyId, *key.Arn)
		equal(t, "KeyState", state(t, c, key.KeyId), types.KeyStateDisabled)
	}
	must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
	must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t)
}

func testRotation(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	blob := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t).CiphertextBlob
	before := time.Now().Truncate(time.Millisecond)
	must(c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: aws.Int32(90)}))(t)
	status := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))(t)
	equal(t, "KeyId", *status.KeyId, *key.Arn)
	equal(t, "KeyRotationEnabled", status.KeyRotationEnabled, true)
	equal(t, "RotationPeriodInDays", *status.RotationPeriodInDays, 90)
	if d := status.NextRotationDate.Sub(before.AddDate(0, 0, 90)); d < 0 || d > time.Minute {
		t.Errorf("NextRotationDate is %v", status.NextRotationDate)
	}
	must(c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: key.KeyId}))(t)
	equal(t, "KeyId", *must(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId}))(t).KeyId, *key.Arn)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		status = must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: key.KeyId}))(t)
		if status.OnDemandRotationStartDate == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the key is not rotated")
		}
	}
	equal(t, "KeyRotationEnabled", status.KeyRotationEnabled, false)
	current := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t).KeyMetadata.CurrentKeyMaterialId
	all := must(c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: key.KeyId, IncludeKeyMaterial: types.IncludeKeyMaterialAllKeyMaterial}))(t).Rotations
	equal(t, "the number of materials", len(all), 2)
	equal(t, "KeyMaterialId", *all[0].KeyMaterialId, *key.CurrentKeyMaterialId)
	equal(t, "KeyMaterialState", all[0].KeyMaterialState, types.KeyMaterialStateNonCurrent)
	equal(t, "KeyMaterialId", *all[1].KeyMaterialId, *current)
	equal(t, "KeyMaterialState", all[1].KeyMaterialState, types.KeyMaterialStateCurrent)
	equal(t, "RotationType", all[1].RotationType, types.RotationTypeOnDemand)
	if d := all[1].RotationDate.Sub(before); d < 0 || d > time.Minute {
		t.Errorf("RotationDate is %v", all[1].RotationDate)
	}
	// The old version decrypts, the new one encrypts.
	old := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t)
	equal(t, "KeyMaterialId", *old.KeyMaterialId, *key.CurrentKeyMaterialId)
	dataKey := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256}))(t)
	equal(t, "KeyMaterialId", *dataKey.KeyMaterialId, *current)
}

func testAliases(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	one, two := newKey(t, c), newKey(t, c)
	name := aliasOf(t, "moving")
	list := func(id *string) []types.AliasListEntry {
		t.Helper()
		return must(c.ListAliases(ctx, &kms.ListAliasesInput{KeyId: id}))(t).Aliases
	}
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: one.Arn}))(t)
	got := list(one.KeyId)
	if len(got) != 1 || len(list(two.KeyId)) != 0 {
		t.Fatalf("the first key has %v, the second %v", got, list(two.KeyId))
	}
	equal(t, "AliasName", *got[0].AliasName, name)
	equal(t, "AliasArn", *got[0].AliasArn, "arn:aws:kms:"+Region+":"+Account+":"+name)
	equal(t, "TargetKeyId", *got[0].TargetKeyId, *one.KeyId)
	if got[0].CreationDate == nil || got[0].LastUpdatedDate == nil || time.Since(*got[0].CreationDate) > time.Minute {
		t.Errorf("dates: %v, %v", got[0].CreationDate, got[0].LastUpdatedDate)
	}
	must(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &name, TargetKeyId: two.KeyId}))(t)
	moved := list(two.KeyId)
	if len(moved) != 1 || len(list(one.KeyId)) != 0 {
		t.Fatalf("the first key has %v, the second %v", list(one.KeyId), moved)
	}
	equal(t, "TargetKeyId", *moved[0].TargetKeyId, *two.KeyId)
	if !moved[0].CreationDate.Equal(*got[0].CreationDate) || moved[0].LastUpdatedDate.Before(*got[0].LastUpdatedDate) {
		t.Errorf("dates after UpdateAlias: %v, %v", moved[0].CreationDate, moved[0].LastUpdatedDate)
	}
	out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &name, Plaintext: []byte("x")}))(t)
	equal(t, "the alias's key", *out.KeyId, *two.Arn)
	must(c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &name}))(t)
	if n := len(list(two.KeyId)); n != 0 {
		t.Errorf("%d aliases are left", n)
	}
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: &name, Plaintext: []byte("x")})
	refusedAs[*types.NotFoundException](t, err)
}

func testTags(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	tags := func() map[string]string {
		t.Helper()
		m := make(map[string]string)
		for _, tag := range must(c.ListResourceTags(ctx, &kms.ListResourceTagsInput{KeyId: key.Arn}))(t).Tags {
			m[*tag.TagKey] = *tag.TagValue
		}
		return m
	}
	must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{
		{TagKey: str("one"), TagValue: str("1")}, {TagKey: str("Größe"), TagValue: str("")},
	}}))(t)
	must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{
		{TagKey: str("one"), TagValue: str("uno")}, {TagKey: str("two"), TagValue: str("2")},
	}}))(t)
	if got := fmt.Sprint(tags()); got != "map[Größe: one:uno two:2]" {
		t.Errorf("tags: %s", got)
	}
	must(c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: key.KeyId, TagKeys: []string{"one", "never there"}}))(t)
	if got := fmt.Sprint(tags()); got != "map[Größe: two:2]" {
		t.Errorf("tags: %s", got)
	}
}

func testPolicies(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key := newKey(t, c)
	standard := must(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId}))(t)
	equal(t, "PolicyName", *standard.PolicyName, "default")
	var parsed struct {
		Version   string
		Statement []struct{ Effect, Action string }
	}
	if err := json.Unmarshal([]byte(*standard.Policy), &parsed); err != nil || parsed.Version != "2012-10-17" || len(parsed.Statement) != 1 {
		t.Errorf("the default policy is %s (%v)", *standard.Policy, err)
	}
	mine := `{"Version": "2012-10-17",  "Statement": [{"Sid":"ä","Effect":"Allow","Principal":{"AWS":"*"},"Action":"kms:*","Resource":"*"}]}` + "\n"
	must(c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.Arn, Policy: &mine, PolicyName: str("default")}))(t)
	got := must(c.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId, PolicyName: str("default")}))(t)
	equal(t, "Policy", *got.Policy, mine)
	names := must(c.ListKeyPolicies(ctx, &kms.ListKeyPoliciesInput{KeyId: key.KeyId}))(t)
	if !slices.Equal(names.PolicyNames, []string{"default"}) || names.Truncated {
		t.Errorf("ListKeyPolicies: %v, truncated %v", names.PolicyNames, names.Truncated)
	}
}

// testPages walks every list with the SDK's paginators at small limits: everything once, nothing twice.
func testPages(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	want := make(map[string]bool)
	for range 11 {
		want[*newKey(t, c).KeyId] = true
	}
	seen := make(map[string]int)
	for _, limit := range []int32{3, 1000} {
		clear(seen)
		for p := kms.NewListKeysPaginator(c, &kms.ListKeysInput{Limit: aws.Int32(limit)}); p.HasMorePages(); {
			page := must(p.NextPage(ctx))(t)
			if len(page.Keys) > int(limit) {
				t.Errorf("a page has %d keys", len(page.Keys))
			}
			for _, k := range page.Keys {
				equal(t, "KeyArn", *k.KeyArn, "arn:aws:kms:"+Region+":"+Account+":key/"+*k.KeyId)
				seen[*k.KeyId]++
			}
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("ListKeys had key %s %d times", id, n)
			}
		}
		for id := range want {
			if seen[id] != 1 {
				t.Errorf("ListKeys by %d had key %s %d times", limit, id, seen[id])
			}
		}
	}

	key := newKey(t, c)
	names := make(map[string]int)
	var tags []types.Tag
	for i := range 9 {
		name := aliasOf(t, fmt.Sprint(i))
		must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &name, TargetKeyId: key.KeyId}))(t)
		names[name] = 0
		tags = append(tags, types.Tag{TagKey: str(fmt.Sprint("k", i)), TagValue: str("v")})
	}
	must(c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: tags}))(t)
	for _, id := range []*string{key.KeyId, nil} {
		for p := kms.NewListAliasesPaginator(c, &kms.ListAliasesInput{KeyId: id, Limit: aws.Int32(2)}); p.HasMorePages(); {
			for _, a := range must(p.NextPage(ctx))(t).Aliases {
				if _, ok := names[*a.AliasName]; ok {
					names[*a.AliasName]++
				} else if id != nil {
					t.Errorf("ListAliases of a key had %s", *a.AliasName)
				}
			}
		}
	}
	for name, n := range names {
		if n != 2 {
			t.Errorf("ListAliases had %s %d times in two walks", name, n)
		}
	}
	n := 0
	for p := kms.NewListResourceTagsPaginator(c, &kms.ListResourceTagsInput{KeyId: key.KeyId, Limit: aws.Int32(4)}); p.HasMorePages(); {
		n += len(must(p.NextPage(ctx))(t).Tags)
	}
	equal(t, "the number of tags", n, 9)
	n = 0
	for p := kms.NewListKeyPoliciesPaginator(c, &kms.ListKeyPoliciesInput{KeyId: key.KeyId}); p.HasMorePages(); {
		n += len(must(p.NextPage(ctx))(t).PolicyNames)
	}
	equal(t, "the number of policies", n, 1)
}
