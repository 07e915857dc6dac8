package apitest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/keyplane/keyplane/internal/audit"
	"github.com/keyplane/keyplane/internal/node"
)

// regions are those of the servers here, Region first.
var regions = []string{Region, "us-west-2", "ap-northeast-1"}

func withRegions(c *node.Config) { c.Regions = regions }

// in has clients of a Region.
func in(region string) func(*kms.Options) { return func(o *kms.Options) { o.Region = region } }

// testRelated: a key of two Regions of one server, which have the same token.
func testRelated(t *testing.T, s *world) {
	ctx, id := t.Context(), ""
	here, there := s.sdk(t), s.KMS(t, in(regions[1]))
	key := must(here.CreateKey(ctx, &kms.CreateKeyInput{MultiRegion: aws.Bool(true)}))(t).KeyMetadata
	id = *key.KeyId
	replica := must(here.ReplicateKey(ctx, &kms.ReplicateKeyInput{KeyId: &id, ReplicaRegion: &regions[1]}))(t).ReplicaKeyMetadata
	equal(t, "Arn", *replica.Arn, strings.Replace(*key.Arn, Region, regions[1], 1))
	eventually(t, "the replica is Enabled", func() bool { return state(t, there, &id) == types.KeyStateEnabled })
	both := func() {
		t.Helper()
		for _, c := range [][2]*kms.Client{{here, there}, {there, here}} {
			blob := must(c[0].Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("of both")}))(t).CiphertextBlob
			equal(t, "Plaintext", string(must(c[1].Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob}))(t).Plaintext), "of both")
		}
	}
	both()
	must(here.UpdatePrimaryRegion(ctx, &kms.UpdatePrimaryRegionInput{KeyId: &id, PrimaryRegion: &regions[1]}))(t)
	eventually(t, "the primary is the other", func() bool {
		m := must(there.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id}))(t).KeyMetadata
		return m.KeyState == types.KeyStateEnabled && m.MultiRegionConfiguration.MultiRegionKeyType == types.MultiRegionKeyTypePrimary
	})
	both()
}

// TestRegions: one server is of three Regions, and each is as if it were alone.
func TestRegions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t, withRegions)
	var clients []*kms.Client
	var keys []*types.KeyMetadata
	var blobs [][]byte
	for i, region := range regions {
		c := s.KMS(t, in(region))
		key := newKey(t, c)
		equal(t, "Arn", *key.Arn, "arn:aws:kms:"+region+":"+Account+":key/"+*key.KeyId)
		must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/same"), TargetKeyId: key.KeyId}))(t)
		out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: str("alias/same"), Plaintext: []byte(region)}))(t)
		equal(t, "Encrypt's KeyId", *out.KeyId, *key.Arn)
		clients, keys, blobs = append(clients, c), append(keys, key), append(blobs, out.CiphertextBlob)
		if i > 0 {
			equal(t, "keys of a new Region", len(must(c.ListKeys(ctx, &kms.ListKeysInput{}))(t).Keys), 1)
		}
	}
	notFound := func(err error, text string) {
		t.Helper()
		if e := refusedAs[*types.NotFoundException](t, err); e != nil && e.ErrorMessage() != text {
			t.Errorf("got %q, want %q", e.ErrorMessage(), text)
		}
	}
	for i, c := range clients {
		equal(t, "the alias's key", *must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: str("alias/same")}))(t).KeyMetadata.Arn, *keys[i].Arn)
		equal(t, "aliases", len(must(c.ListAliases(ctx, &kms.ListAliasesInput{}))(t).Aliases), 1)
		other := (i + 1) % len(regions)
		equal(t, "plaintext", string(must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blobs[i]}))(t).Plaintext), regions[i])
		_, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blobs[other]})
		refusedWith(t, err, "AccessDeniedException")
		for _, id := range []string{*keys[other].KeyId, *keys[other].Arn} {
			want := "Invalid arn " + regions[other]
			if !strings.HasPrefix(id, "arn:") {
				want = "Key 'arn:aws:kms:" + regions[i] + ":" + Account + ":key/" + id + "' does not exist"
			}
			_, err = c.Encrypt(ctx, &kms.EncryptInput{KeyId: &id, Plaintext: []byte("x")})
			notFound(err, want)
			_, err = c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &id})
			notFound(err, want)
			_, err = c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: &id})
			notFound(err, want)
			_, err = c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: blobs[i], DestinationKeyId: &id})
			notFound(err, want)
		}
		aliasARN := "arn:aws:kms:" + regions[other] + ":" + Account + ":alias/same"
		_, err = c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &aliasARN, KeySpec: types.DataKeySpecAes256})
		notFound(err, "Invalid arn "+regions[other])
	}
	_, err := s.KMS(t, in("sa-east-1")).ListKeys(ctx, &kms.ListKeysInput{})
	refusedWith(t, err, "InvalidSignatureException")
	if err == nil || !strings.Contains(err.Error(), "Credential should be scoped to a valid region, not 'sa-east-1'.") {
		t.Error(err)
	}

	t.Run("changes", func(t *testing.T) { testRegionChanges(t, s, clients, keys) })
	t.Run("grants", func(t *testing.T) { testRegionGrants(t, s, clients, keys) })
	t.Run("policies", func(t *testing.T) { testRegionPolicies(t, s, keys) })
	t.Run("quotas", func(t *testing.T) { testRegionQuotas(t, s, clients) })
	t.Run("records", func(t *testing.T) { testRegionRecords(t, s, clients) })
	t.Run("last uses", func(t *testing.T) { testRegionLastUses(t, clients) })
	t.Run("restart", func(t *testing.T) { testRegionRestart(t, s, blobs) })
}

// A change in one Region is none in another, whatever is cached.
func testRegionChanges(t *testing.T, s *Server, clients []*kms.Client, keys []*types.KeyMetadata) {
	ctx := t.Context()
	use := func(c *kms.Client) (string, error) {
		out, err := c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{KeyId: str("alias/same"), KeySpec: types.DataKeySpecAes128})
		if err != nil {
			return "", err
		}
		return *out.KeyId, nil
	}
	for i, c := range clients {
		must(c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: keys[i].KeyId}))(t)
		for j, d := range clients {
			arn, err := use(d)
			if j == i {
				refusedAs[*types.DisabledException](t, err)
				continue
			}
			equal(t, "the alias's key", arn, *keys[j].Arn)
		}
		must(c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: keys[i].KeyId}))(t)
		next := newKey(t, c)
		must(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: str("alias/same"), TargetKeyId: next.KeyId}))(t)
		for j, d := range clients {
			want := keys[j].Arn
			if j == i {
				want = next.Arn
			}
			equal(t, "the alias's key", must(use(d))(t), *want)
		}
		must(c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: str("alias/same"), TargetKeyId: keys[i].KeyId}))(t)
	}
}

// A grant is one on a key of its Region, and listed there alone.
func testRegionGrants(t *testing.T, s *Server, clients []*kms.Client, keys []*types.KeyMetadata) {
	ctx := t.Context()
	admin := s.admin(t)
	user := must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: str("grantee")}))(t).User
	made := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: user.UserName}))(t).AccessKey
	e := s.Endpoint
	e.AccessKeyID, e.SecretAccessKey = *made.AccessKeyId, *made.SecretAccessKey
	try := func(i int) error {
		_, err := e.KMS(t, in(regions[i])).GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: keys[i].KeyId, KeySpec: types.DataKeySpecAes256})
		return err
	}
	for i := range clients {
		refusedWith(t, try(i), "AccessDeniedException")
	}
	grant := must(clients[1].CreateGrant(ctx, &kms.CreateGrantInput{
		KeyId: keys[1].KeyId, GranteePrincipal: user.Arn, RetiringPrincipal: user.Arn, Operations: []types.GrantOperation{types.GrantOperationGenerateDataKey},
	}))(t)
	for i, c := range clients {
		n := len(must(c.ListRetirableGrants(ctx, &kms.ListRetirableGrantsInput{RetiringPrincipal: user.Arn}))(t).Grants)
		if i == 1 {
			equal(t, "retirable grants", n, 1)
			must(0, try(i))(t)
			continue
		}
		equal(t, "retirable grants", n, 0)
		refusedWith(t, try(i), "AccessDeniedException")
		_, err := c.RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: keys[i].KeyId, GrantId: grant.GrantId})
		refusedWith(t, err, "NotFoundException")
	}
	must(clients[1].RevokeGrant(ctx, &kms.RevokeGrantInput{KeyId: keys[1].KeyId, GrantId: grant.GrantId}))(t)
	refusedWith(t, try(1), "AccessDeniedException")
}

// aws:RequestedRegion is the Region that a request is signed for, in both planes, and the simulator knows it by the key; users, and STS, are of all Regions.
func testRegionPolicies(t *testing.T, s *Server, keys []*types.KeyMetadata) {
	ctx := t.Context()
	admin := s.admin(t)
	user := must(admin.iam.CreateUser(ctx, &iam.CreateUserInput{UserName: str("regional")}))(t).User
	made := must(admin.iam.CreateAccessKey(ctx, &iam.CreateAccessKeyInput{UserName: user.UserName}))(t).AccessKey
	document := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"kms:*","Resource":"*","Condition":{"StringEquals":{"aws:RequestedRegion":"` + regions[1] + `"}}}]}`
	must(admin.iam.PutUserPolicy(ctx, &iam.PutUserPolicyInput{UserName: user.UserName, PolicyName: str("regional"), PolicyDocument: &document}))(t)
	e := s.Endpoint
	e.AccessKeyID, e.SecretAccessKey = *made.AccessKeyId, *made.SecretAccessKey
	for i, region := range regions {
		c := e.KMS(t, in(region))
		_, random := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
		_, list := c.ListKeys(ctx, &kms.ListKeysInput{})
		_, use := c.Encrypt(ctx, &kms.EncryptInput{KeyId: keys[i].KeyId, Plaintext: []byte("x")})
		for _, err := range []error{random, list, use} {
			if i == 1 {
				must(0, err)(t)
			} else {
				refusedWith(t, err, "AccessDeniedException")
			}
		}
		simulated := must(admin.iam.SimulatePrincipalPolicy(ctx, &iam.SimulatePrincipalPolicyInput{
			PolicySourceArn: user.Arn, ActionNames: []string{"kms:Encrypt"}, ResourceArns: []string{*keys[i].Arn},
		}))(t).EvaluationResults[0].EvalDecision
		equal(t, "simulated to be allowed in "+region, simulated == "allowed", i == 1)
	}
	_, err := admin.iam.SimulatePrincipalPolicy(ctx, &iam.SimulatePrincipalPolicyInput{
		PolicySourceArn: user.Arn, ActionNames: []string{"kms:Encrypt"}, ResourceArns: []string{strings.Replace(*keys[0].Arn, Region, "sa-east-1", 1)},
	})
	refusedWith(t, err, "InvalidInput")
	for _, region := range append([]string{"us-east-1"}, regions...) {
		out := must(admin.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}, func(o *sts.Options) { o.Region = region }))(t)
		equal(t, "Arn", *out.Arn, "arn:aws:iam::"+Account+":user/administrator")
	}
	_, err = admin.sts.GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{}, func(o *sts.Options) { o.Region = "sa-east-1" })
	refusedWith(t, err, "SignatureDoesNotMatch")
}

// Quotas and what counts against them are a Region's.
func testRegionQuotas(t *testing.T, s *Server, clients []*kms.Client) {
	ctx := t.Context()
	s.quota(t, "set", "--quota", "Symmetric", "--value", "0", "--region", regions[2])
	usage := s.shownQuota(t, "KeysPerAccount", "--region", regions[2]).Usage
	s.quota(t, "set", "--quota", "KeysPerAccount", "--value", fmt.Sprint(*usage), "--region", regions[2])
	for i, c := range clients {
		_, random := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
		_, create := c.CreateKey(ctx, &kms.CreateKeyInput{})
		if i != 2 {
			must(0, errors.Join(random, create))(t)
			continue
		}
		refusedWith(t, random, "ThrottlingException")
		refusedAs[*types.LimitExceededException](t, create)
	}
	for i, region := range regions {
		equal(t, "set in "+region, s.shownQuota(t, "Symmetric", "--region", region).Set, i == 2)
	}
	equal(t, "keys", *s.shownQuota(t, "KeysPerAccount", "--region", regions[2]).Usage, *usage)
	s.quota(t, "reset", "--quota", "Symmetric", "--region", regions[2])
	s.quota(t, "reset", "--quota", "KeysPerAccount", "--region", regions[2])
	must(clients[2].GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)}))(t)
}

// Records tell the Region that a request was signed for, of both planes and of refusals; one that nobody signed is the home Region's.
func testRegionRecords(t *testing.T, s *Server, clients []*kms.Client) {
	ctx := t.Context()
	want := map[string]string{}
	for i, c := range clients {
		out := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: str("alias/same"), KeySpec: types.DataKeySpecAes256}))(t)
		id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
		want[id] = regions[i]
		listed := must(c.ListKeys(ctx, &kms.ListKeysInput{}))(t)
		id, _ = awsmiddleware.GetRequestIDMetadata(listed.ResultMetadata)
		want[id] = regions[i]
		r := s.Do(t, "Encrypt", `{"KeyId":"alias/none","Plaintext":"eA=="}`, func(r *Request) { r.Region = regions[i] })
		equal(t, "type", r.Type, "NotFoundException")
		want[r.Header.Get("x-amzn-RequestId")] = regions[i]
	}
	r := s.Do(t, "ListKeys", `{}`, func(r *Request) { r.Unsigned = true })
	want[r.Header.Get("x-amzn-RequestId")] = Region
	dir := filepath.Join(s.cfg.DataDir, "audit")
	for _, region := range regions {
		if err := audit.Search(ctx, dir, audit.Filter{Region: region}, func(record []byte) bool {
			var v struct {
				RequestID   string `json:"requestID"`
				EventSource string `json:"eventSource"`
				Resources   []struct{ ARN string }
			}
			if err := json.Unmarshal(record, &v); err != nil {
				t.Fatal(err)
			}
			for _, resource := range v.Resources {
				if v.EventSource == "kms.amazonaws.com" && !strings.HasPrefix(resource.ARN, "arn:aws:kms:"+region+":") {
					t.Errorf("a record of %s: %s", region, record)
				}
			}
			if w, ok := want[v.RequestID]; ok {
				equal(t, "awsRegion", region, w)
				equal(t, "eventSource", v.EventSource, "kms.amazonaws.com")
				delete(want, v.RequestID)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	for id, region := range want {
		t.Errorf("request %s to %s has no record there", id, region)
	}
}

// A key's last use is found in its Region.
func testRegionLastUses(t *testing.T, clients []*kms.Client) {
	ctx := t.Context()
	for _, c := range clients {
		made := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: str("alias/same"), Plaintext: []byte("x")}))(t)
		want, _ := awsmiddleware.GetRequestIDMetadata(made.ResultMetadata)
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			u := must(c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: made.KeyId}))(t).KeyLastUsage
			if u != nil && u.KmsRequestId != nil && *u.KmsRequestId == want {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the use by request %s is not there: %+v", want, u)
			}
		}
	}
}

// A Region that has keys cannot be left out, nor the home Region change; others come and go.
func testRegionRestart(t *testing.T, s *Server, blobs [][]byte) {
	s.Close()
	refused := func(want string, names ...string) {
		t.Helper()
		cfg := s.cfg
		cfg.Region, cfg.Regions = names[0], names
		n, err := node.Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err == nil {
			n.Close()
			t.Errorf("%v is accepted", names)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", names, err)
		}
	}
	refused("has keys of Region ap-northeast-1 too: start it with --region ap-northeast-1 besides", regions[0], regions[1])
	refused("has "+Region+" for its home Region: it is the first --region, not us-west-2", regions[1], regions[0], regions[2])
	refused("holds the keys of Region "+Region+": start it with --region "+Region+", not us-west-2", regions[1], regions[2])
	s.cfg.Regions = append([]string{"eu-north-1"}, regions...)
	s.start(t)
	must(s.KMS(t, in("eu-north-1")).ListKeys(t.Context(), &kms.ListKeysInput{}))(t)
	s.cfg.Regions = regions
	s.Restart(t)
	for i, blob := range blobs {
		out := must(s.KMS(t, in(regions[i])).Decrypt(t.Context(), &kms.DecryptInput{CiphertextBlob: blob}))(t)
		equal(t, "plaintext", string(out.Plaintext), regions[i])
	}
}

// TestRegionsNeverCross: under a mixed load with changes in every Region, a ciphertext opens in its own Region and as what it was, and nowhere else.
func TestRegionsNeverCross(t *testing.T) {
	t.Parallel()
	const workers, rounds = 9, 150
	s := Start(t, withRegions)
	ctx := t.Context()
	var keys []*types.KeyMetadata
	for _, region := range regions {
		c := s.KMS(t, in(region))
		keys = append(keys, newKey(t, c))
		must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: str("alias/same"), TargetKeyId: keys[len(keys)-1].KeyId}))(t)
	}
	stop, cancel := context.WithCancel(ctx)
	var changes atomic.Int64
	var changing sync.WaitGroup
	for i, region := range regions { // keys that nobody uses; each change makes names in the caches old
		c := s.KMS(t, in(region))
		changing.Go(func() {
			for stop.Err() == nil {
				_, err := c.UpdateKeyDescription(ctx, &kms.UpdateKeyDescriptionInput{KeyId: keys[i].KeyId, Description: str(fmt.Sprint(changes.Load()))})
				if err == nil {
					_, err = c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: str("alias/same"), TargetKeyId: keys[i].KeyId})
				}
				if err != nil {
					t.Error(err)
					return
				}
				changes.Add(1)
			}
		})
	}
	var done atomic.Int64
	var working sync.WaitGroup
	for w := range workers {
		client := s.Client(t)
		rnd := rand.New(rand.NewSource(int64(w)))
		at := func(i int) func(*Request) { return func(r *Request) { r.Region = regions[i] } }
		working.Go(func() {
			for n := range rounds {
				i := rnd.Intn(len(regions))
				other := (i + 1 + rnd.Intn(len(regions)-1)) % len(regions)
				canary := fmt.Sprintf("%s of worker %d round %d", regions[i], w, n)
				id := []string{"alias/same", *keys[i].KeyId, *keys[i].Arn}[rnd.Intn(3)]
				plain, _ := json.Marshal([]byte(canary))
				sealed, err := client.Try("Encrypt", `{"KeyId":"`+id+`","Plaintext":`+string(plain)+`}`, at(i))
				if err != nil || sealed == nil || sealed.Status != 200 {
					t.Errorf("Encrypt in %s: %v %+v", regions[i], err, sealed)
					return
				}
				var out struct {
					KeyId          string
					CiphertextBlob []byte
					Plaintext      []byte
				}
				if !decodes(sealed.Body, &out) || out.KeyId != *keys[i].Arn {
					t.Errorf("Encrypt in %s used %s, want %s", regions[i], out.KeyId, *keys[i].Arn)
				}
				blob, _ := json.Marshal(out.CiphertextBlob)
				opened, err := client.Try("Decrypt", `{"CiphertextBlob":`+string(blob)+`}`, at(i))
				if err != nil || opened == nil || opened.Status != 200 || !decodes(opened.Body, &out) || string(out.Plaintext) != canary || out.KeyId != *keys[i].Arn {
					t.Errorf("Decrypt in %s: %v %+v", regions[i], err, opened)
					return
				}
				crossed, err := client.Try("Decrypt", `{"CiphertextBlob":`+string(blob)+`}`, at(other))
				if err != nil || crossed == nil || crossed.Type != "AccessDeniedException" {
					t.Errorf("Decrypt of %s's in %s: %v %+v", regions[i], regions[other], err, crossed)
					return
				}
				done.Add(1)
			}
		})
	}
	working.Wait()
	cancel()
	changing.Wait()
	equal(t, "rounds", done.Load(), workers*rounds)
	if changes.Load() == 0 {
		t.Error("nothing was changed meanwhile")
	}
}
