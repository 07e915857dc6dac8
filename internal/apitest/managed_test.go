package apitest

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/node"
)

// forwarded registers a service for every account and returns the clients of a user for whom it acts.
func (s *Server) forwarded(t *testing.T, service, user string) *clients {
	t.Helper()
	operator := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}
	var own, forward keyPair
	equal(t, "RegisterService", s.query(t, operator, "iam", &own, "Action", "RegisterService", "ServiceName", service, "AllAccounts", "true"), 200)
	equal(t, "GetForwardAccessSession", s.query(t, own.credentials(), "sts", &forward, "Action", "GetForwardAccessSession", "PrincipalArn", user), 200)
	return s.as(t, forward.AccessKeyID, forward.SecretAccessKey, forward.SessionToken)
}

// TestManagedKeys: the key behind alias/aws/<service> is made once, by the first of many who use it through the service at the same moment, and is
// nobody's to change.
func TestManagedKeys(t *testing.T) {
	t.Parallel()
	clock := NewClock(time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC))
	s := Start(t, WithClock(clock), func(c *node.Config) { c.Quotas = "off" })
	ctx, admin := t.Context(), s.admin(t)
	must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: str("erin")}))(t)
	const user = "arn:aws:iam::" + Account + ":user/erin"
	const service = "store." + Region + ".example.com"
	alias := str("alias/aws/store")

	// Before the service is registered there is nothing, and nobody makes it by asking.
	_, err := admin.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: alias})
	refusedAs[*types.NotFoundException](t, err)
	through := s.forwarded(t, service, user)
	other := s.forwarded(t, "queue."+Region+".example.com", user)
	generate := func(c *clients) (*kms.GenerateDataKeyOutput, error) {
		return c.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: alias, KeySpec: types.DataKeySpecAes256})
	}
	// Another service, and a user who calls directly, do not make it either.
	for _, c := range []*clients{other, admin} {
		_, err := generate(c)
		refusedAs[*types.NotFoundException](t, err)
	}
	for _, name := range []string{"alias/aws/", "alias/aws/nothing", "alias/aws/store/x", "alias/aws/" + service} {
		_, err := admin.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &name})
		refusedAs[*types.NotFoundException](t, err)
		_, err = through.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: &name, Plaintext: []byte("x")})
		refusedAs[*types.NotFoundException](t, err)
	}
	keysBefore := len(must(admin.kms.ListKeys(ctx, &kms.ListKeysInput{}))(t).Keys)

	// Many at once, through both planes.
	const each = 24
	var all sync.WaitGroup
	found := make(chan string, 2*each)
	start := make(chan struct{})
	for range each {
		all.Go(func() {
			<-start
			out, err := generate(through)
			if err != nil {
				t.Error(err)
				return
			}
			found <- *out.KeyId
		})
		all.Go(func() {
			<-start
			out, err := through.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: alias})
			if err != nil {
				t.Error(err)
				return
			}
			found <- *out.KeyMetadata.Arn
		})
	}
	close(start)
	all.Wait()
	close(found)
	arns := map[string]bool{}
	for arn := range found {
		arns[arn] = true
	}
	list := must(admin.kms.ListKeys(ctx, &kms.ListKeysInput{}))(t).Keys
	if len(arns) != 1 || len(list) != keysBefore+1 || !arns[*list[0].KeyArn] {
		t.Fatalf("the keys that were used are %v, those of the account %d more than before", arns, len(list)-keysBefore)
	}
	key := must(admin.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: alias}))(t).KeyMetadata
	equal(t, "KeyManager", key.KeyManager, types.KeyManagerTypeAws)
	equal(t, "CreationDate", key.CreationDate.UTC(), clock.Now())
	equal(t, "KeyState", key.KeyState, types.KeyStateEnabled)
	aliases := must(admin.kms.ListAliases(ctx, &kms.ListAliasesInput{KeyId: key.KeyId}))(t).Aliases
	if len(aliases) != 1 || *aliases[0].AliasName != *alias || *aliases[0].TargetKeyId != *key.KeyId {
		t.Errorf("aliases %v", aliases)
	}
	policy := *must(admin.kms.GetKeyPolicy(ctx, &kms.GetKeyPolicyInput{KeyId: key.KeyId}))(t).Policy
	if !strings.Contains(policy, `"kms:ViaService":["store.example.com","`+service+`"]`) || !strings.Contains(policy, `"kms:CallerAccount":"`+Account+`"`) {
		t.Errorf("policy %s", policy)
	}

	// It is used through its service alone, by a user without a policy of its own.
	made := must(generate(through))(t)
	if out := must(through.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob}))(t); string(out.Plaintext) != string(made.Plaintext) {
		t.Error("the data key does not come back")
	}
	// The service is the same without its Region, and in another Region it is not.
	bare, abroad := s.forwarded(t, "store.example.com", user), s.forwarded(t, "store.eu-west-3.example.com", user)
	if out := must(bare.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob}))(t); string(out.Plaintext) != string(made.Plaintext) {
		t.Error("the data key does not come back through the service without its Region")
	}
	equal(t, "RegisterService of another domain", s.query(t, aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}, "iam", new(keyPair),
		"Action", "RegisterService", "ServiceName", "store."+Region+".example.org", "AllAccounts", "true"), 409)
	for _, c := range []*clients{other, abroad, admin} {
		_, err := generate(c)
		refusedWith(t, err, "AccessDeniedException")
		_, err = c.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: made.CiphertextBlob})
		refusedWith(t, err, "AccessDeniedException")
	}

	// Nobody changes it: not who may do everything, and not the service.
	mine := newKey(t, admin.kms)
	open := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` + Account + `:root"},"Action":"kms:*","Resource":"*"}]}`
	for name, change := range map[string]func(*kms.Client) error{
		"ScheduleKeyDeletion": func(c *kms.Client) error {
			_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId})
			return err
		},
		"CancelKeyDeletion": func(c *kms.Client) error {
			_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId})
			return err
		},
		"DisableKey": func(c *kms.Client) error {
			_, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId})
			return err
		},
		"EnableKey": func(c *kms.Client) error {
			_, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId})
			return err
		},
		"TagResource": func(c *kms.Client) error {
			_, err := c.TagResource(ctx, &kms.TagResourceInput{KeyId: key.KeyId, Tags: []types.Tag{{TagKey: str("a"), TagValue: str("b")}}})
			return err
		},
		"UntagResource": func(c *kms.Client) error {
			_, err := c.UntagResource(ctx, &kms.UntagResourceInput{KeyId: key.KeyId, TagKeys: []string{"a"}})
			return err
		},
		"UpdateKeyDescription": func(c *kms.Client) error {
			_, err := c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: key.KeyId, Description: str("mine")})
			return err
		},
		"PutKeyPolicy": func(c *kms.Client) error {
			_, err := c.PutKeyPolicy(ctx, &kms.PutKeyPolicyInput{KeyId: key.KeyId, Policy: &open, BypassPolicyLockoutSafetyCheck: true})
			return err
		},
		"CreateAlias": func(c *kms.Client) error {
			_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/mine"), TargetKeyId: key.KeyId})
			return err
		},
		"EnableKeyRotation": func(c *kms.Client) error {
			_, err := c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: key.KeyId, RotationPeriodInDays: aws.Int32(90)})
			return err
		},
		"DisableKeyRotation": func(c *kms.Client) error {
			_, err := c.DisableKeyRotation(ctx, &kms.DisableKeyRotationInput{KeyId: key.KeyId})
			return err
		},
		"RotateKeyOnDemand": func(c *kms.Client) error {
			_, err := c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: key.KeyId})
			return err
		},
	} {
		if !kmsapi.Route([]byte(kmsapi.TargetPrefix + name)).Built {
			continue
		}
		for who, c := range map[string]*clients{"the administrator": admin, "the service": through} {
			if err := change(c.kms); !strings.Contains(codeOf(err), "AccessDenied") {
				t.Errorf("%s by %s: %v", name, who, err)
			}
		}
	}
	for name, change := range map[string]func() error{
		"CreateAlias": func() error {
			_, err := admin.kms.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/aws/mine"), TargetKeyId: mine.KeyId})
			return err
		},
		"UpdateAlias": func() error {
			_, err := admin.kms.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: alias, TargetKeyId: mine.KeyId})
			return err
		},
		"DeleteAlias": func() error {
			_, err := admin.kms.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: alias})
			return err
		},
	} {
		if err := change(); codeOf(err) != "NotAuthorizedException" {
			t.Errorf("%s: %v", name, err)
		}
	}
	after := must(admin.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t).KeyMetadata
	if *after.Arn != *key.Arn || after.KeyState != key.KeyState || aws.ToString(after.Description) != aws.ToString(key.Description) {
		t.Errorf("it has changed: %v", after)
	}

	// A service without Region makes its key too.
	mail := s.forwarded(t, "mail.example.com", user)
	out := must(mail.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: str("alias/aws/mail"), Plaintext: []byte("x")}))(t)
	equal(t, "the key of a service without Region", *must(admin.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: str("alias/aws/mail")}))(t).KeyMetadata.Arn, *out.KeyId)

	// It outlives a restart, and the aliases of services make no keys of customers.
	s.Restart(t)
	equal(t, "the key after a restart", *must(s.KMS(t).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: alias}))(t).KeyMetadata.KeyId, *key.KeyId)
	equal(t, "the other service's key", must(s.KMS(t).DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: str("alias/aws/queue")}))(t).KeyMetadata.KeyManager, types.KeyManagerTypeAws)
}

// codeOf is the name of an exception.
func codeOf(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}
