package apitest

import (
	"errors"
	"strings"
	"testing"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// TestSplit: control planes and data nodes over etcd are one KMS.
func TestSplit(t *testing.T) {
	s := StartSplit(t, 2, 2)
	a, b := s.Datas[0].KMS(t), s.Datas[1].KMS(t)
	ctx := t.Context()

	key := newKey(t, a)
	sealed := must(a.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("made at one")}))(t)
	if out := must(b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}))(t); string(out.Plaintext) != "made at one" {
		t.Errorf("%q", out.Plaintext)
	}

	t.Run("Barrier", func(t *testing.T) {
		rounds := 40
		began, slowest := time.Now(), time.Duration(0)
		for i := range rounds {
			at := time.Now()
			must(a.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
			slowest = max(slowest, time.Since(at))
			if _, err := b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}); !refusedAsDisabled(err) {
				t.Fatalf("round %d: a key that was disabled through one node is used at the other: %v", i, err)
			}
			must(b.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)
			if _, err := a.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}); err != nil {
				t.Fatalf("round %d: a key that was enabled through one node is not used at the other: %v", i, err)
			}
		}
		t.Logf("%d rounds in %v; the slowest DisableKey took %v", rounds, time.Since(began), slowest)
		if slowest > 1500*time.Millisecond {
			t.Errorf("DisableKey took %v: somebody did not tell", slowest)
		}
	})
}

// TestSplitParts: what a cluster does when parts of it end, and what only all of its nodes together know.
func TestSplitParts(t *testing.T) {
	s := StartSplit(t, 2, 2)
	a, b := s.Datas[0].KMS(t), s.Datas[1].KMS(t)
	ctx := t.Context()
	key := newKey(t, a)
	sealed := must(a.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")}))(t)

	// The last use at one node is known through the other. Records have whole seconds: of uses within one at two nodes either is the last.
	time.Sleep(1100 * time.Millisecond)
	used := must(b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}))(t)
	id, _ := awsmiddleware.GetRequestIDMetadata(used.ResultMetadata)
	waitFor(t, "the use at the other node is known", func() bool {
		u := must(a.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))(t).KeyLastUsage
		return u != nil && u.KmsRequestId != nil && *u.KmsRequestId == id
	})

	// A control plane ends: cryptographic and control operations go on, those of clients that try again without a failure.
	again := func(o *kms.Options) { o.Retryer = retry.NewStandard() }
	patient := s.Datas[0].KMS(t, again)
	s.Controls[0].Close()
	for range 5 {
		must(b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}))(t)
		must(patient.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t)
	}
	must(patient.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}))(t)
	if _, err := b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}); !refusedAsDisabled(err) {
		t.Error(err)
	}
	must(patient.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId}))(t)

	// The other one too: what is in force goes on, and what would change it is refused as one that can be tried again.
	s.Controls[1].Close()
	must(b.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: sealed.CiphertextBlob}))(t)
	if _, err := a.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId}); err == nil || !strings.Contains(err.Error(), "DependencyTimeoutException") {
		t.Error("without control planes:", err)
	}
	if _, err := s.Datas[0].admin(t).iam.CreateUser(ctx, &iam.CreateUserInput{UserName: str("nobody")}); err == nil || !strings.Contains(err.Error(), "ServiceUnavailable") {
		t.Error("without control planes:", err)
	}
	s.Controls[1].Start(t)
	waitFor(t, "the control plane is back", func() bool {
		_, err := patient.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId})
		return err == nil
	})
	u := must(patient.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))(t).KeyLastUsage
	if u == nil || u.KmsRequestId == nil {
		t.Error("the control plane that was restarted knows of no use")
	}

	// Each process has a log of its own.
	s.Datas[0].Close()
	s.Datas[1].Close()
	s.Controls[1].Close()
	for _, p := range append(s.Controls, s.Datas...) {
		verifyAudit(t, p.cfg.DataDir)
	}
	unanswered := map[string]int{} // by event source: what no control plane answered is in the log of the data node
	for _, records := range recordsOf(t, s.Datas[0].cfg.DataDir) {
		for _, r := range records {
			for _, source := range []string{"kms", "iam"} {
				if strings.Contains(r, `"eventSource":"`+source+`.amazonaws.com"`) && strings.Contains(r, `"errorCode":"DependencyTimeoutException"`) {
					unanswered[source]++
				}
			}
		}
	}
	if unanswered["kms"] == 0 || unanswered["iam"] != 1 {
		t.Error("records of what was not answered:", unanswered)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it never came that", what)
		}
	}
}

func refusedAsDisabled(err error) bool {
	var e *types.DisabledException
	return errors.As(err, &e)
}
