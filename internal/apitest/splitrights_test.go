package apitest

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	iamtypes "github.com/aws/aws-sdk-go-v2/service/iam/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// TestSplitRights: who may do what, and how often, is the same at all nodes of a cluster, at once.
func TestSplitRights(t *testing.T) {
	t.Parallel()
	s := StartSplit(t, 2, 2)
	ctx := t.Context()
	a, b := s.Datas[0].admin(t), s.Datas[1].admin(t)
	key := newKey(t, a.kms)
	sealed := must(a.kms.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t)

	t.Run("IAM", func(t *testing.T) {
		allow := func(action string) *string {
			return aws.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"` + action + `","Resource":"*"}]}`)
		}
		alice := aws.String("alice")
		must(a.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: alice}))(t)
		for i := range 5 {
			must(a.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: alice, PolicyName: aws.String("p"), PolicyDocument: allow("kms:Decrypt")}))(t)
			k := must(a.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: alice}))(t).AccessKey
			at := s.Datas[1].as(t, *k.AccessKeyId, *k.SecretAccessKey, "")
			decrypt := func() error {
				_, err := at.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob})
				return err
			}
			if err := decrypt(); err != nil {
				t.Fatalf("round %d: what was allowed through one node is refused at the other: %v", i, err)
			}
			must(a.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: alice, PolicyName: aws.String("p"), PolicyDocument: allow("kms:DescribeKey")}))(t)
			refusedWith(t, decrypt(), "AccessDeniedException")
			must(at.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t)
			must(a.iam.UpdateAccessKey(ctx, &iam.UpdateAccessKeyInput{UserName: alice, AccessKeyId: k.AccessKeyId, Status: iamtypes.StatusTypeInactive}))(t)
			refusedWith(t, decrypt(), "UnrecognizedClientException")
			_, err := at.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
			refusedWith(t, err, "InvalidClientTokenId")
			must(b.iam.DeleteAccessKey(ctx, &iam.DeleteAccessKeyInput{UserName: alice, AccessKeyId: k.AccessKeyId}))(t)
		}
	})

	t.Run("ManagedKey", func(t *testing.T) {
		// The first uses of the key come through both data nodes at the same moment, and are no requests for a control plane by themselves.
		operator := aws.Credentials{AccessKeyID: s.AccessKeyID, SecretAccessKey: s.SecretAccessKey}
		var own, forward keyPair
		service := "store." + Region + ".example.com"
		equal(t, "RegisterService", s.Datas[0].query(t, operator, "iam", &own, "Action", "RegisterService", "ServiceName", service, "AllAccounts", "true"), 200)
		equal(t, "GetForwardAccessSession", s.Datas[1].query(t, own.credentials(), "sts", &forward, "Action", "GetForwardAccessSession", "PrincipalArn", "arn:aws:iam::"+Account+":user/alice"), 200)
		var all sync.WaitGroup
		var mu sync.Mutex
		made := map[string][]byte{}
		for i := range 16 {
			c := s.Datas[i%2].as(t, forward.AccessKeyID, forward.SecretAccessKey, forward.SessionToken)
			all.Go(func() {
				out, err := c.kms.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: aws.String("alias/aws/store"), KeySpec: types.DataKeySpecAes256})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				made[*out.KeyId] = out.CiphertextBlob
			})
		}
		all.Wait()
		equal(t, "managed keys", len(made), 1)
		for arn, blob := range made {
			through := s.Datas[1].as(t, forward.AccessKeyID, forward.SecretAccessKey, forward.SessionToken)
			equal(t, "KeyId", *must(through.kms.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t).KeyId, arn)
			equal(t, "KeyManager", must(b.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &arn}))(t).KeyMetadata.KeyManager, types.KeyManagerTypeAws)
		}
	})

	t.Run("Commands", func(t *testing.T) {
		file := writePrivate(t, t.TempDir(), "credentials", "[default]\naws_access_key_id = "+s.AccessKeyID+"\naws_secret_access_key = "+s.SecretAccessKey+"\n")
		for i, c := range []struct {
			args []string
			want string
		}{
			{[]string{"iam", "get-user", "--user-name", "alice"}, ":user/alice"},
			{[]string{"quota", "show"}, "account " + Account},
			{[]string{"policy", "simulate", "--principal", "arn:aws:iam::" + Account + ":user/alice", "--action", "kms:DescribeKey", "--key", *key.Arn}, "allowed"},
		} {
			out, said, err := s.Datas[i%2].keyplane(t, file, c.args...)
			if err != nil || !strings.Contains(strings.ToLower(out), strings.ToLower(c.want)) {
				t.Errorf("%v: %v: %s%s", c.args, err, out, said)
			}
		}
	})

	t.Run("Quota", func(t *testing.T) {
		// Last, since its pool stays empty. With a rate of 40 a second over both nodes together no more than that goes through, beyond what a second's burst is.
		file := writePrivate(t, t.TempDir(), "credentials", "[default]\naws_access_key_id = "+s.AccessKeyID+"\naws_secret_access_key = "+s.SecretAccessKey+"\n")
		const rate = 40
		if out, said, err := s.Datas[0].keyplane(t, file, "quota", "set", "--quota", "Symmetric", "--value", "40"); err != nil {
			t.Fatalf("quota set: %v: %s%s", err, out, said)
		}
		began := time.Now()
		var taken, throttled [2]atomic.Int64
		var all sync.WaitGroup
		for i := range taken {
			for range 4 {
				c := s.Datas[i].KMS(t)
				all.Go(func() {
					for time.Since(began) < 4*time.Second {
						_, err := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
						switch {
						case err == nil:
							taken[i].Add(1)
						case strings.Contains(err.Error(), "ThrottlingException"):
							throttled[i].Add(1)
						default:
							t.Error(err)
							return
						}
						time.Sleep(5 * time.Millisecond)
					}
				})
			}
		}
		all.Wait()
		seconds := time.Since(began).Seconds()
		n := taken[0].Load() + taken[1].Load()
		t.Logf("%d and %d in %.1f s, %d and %d throttled", taken[0].Load(), taken[1].Load(), seconds, throttled[0].Load(), throttled[1].Load())
		if high := rate*(seconds+1)*1.15 + 4; float64(n) > high {
			t.Errorf("%d requests went through in %.1f s, more than %.0f", n, seconds, high)
		}
		if float64(n) < rate*seconds*0.5 {
			t.Errorf("only %d requests went through in %.1f s", n, seconds)
		}
		for i := range taken {
			if taken[i].Load() == 0 || throttled[i].Load() == 0 {
				t.Errorf("at node %d %d went through and %d were throttled", i, taken[i].Load(), throttled[i].Load())
			}
		}
	})
}

// keyplane runs the command against the endpoint, as whoever a credentials file belongs to.
func (e Endpoint) keyplane(t testing.TB, credentialsFile string, args ...string) (out, said string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Binary(t), args...)
	cmd.Env = cleanEnv("AWS_SHARED_CREDENTIALS_FILE="+credentialsFile, "AWS_CONFIG_FILE="+filepath.Join(t.TempDir(), "none"), "AWS_EC2_METADATA_DISABLED=true",
		"AWS_ENDPOINT_URL=http://"+e.Addr, "AWS_REGION="+Region, "HOME="+t.TempDir())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	return stdout.String(), stderr.String(), err
}
