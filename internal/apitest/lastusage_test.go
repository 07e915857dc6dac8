package apitest

import (
	"testing"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
)

// testLastUsage: the audit log tells of the last successful use, and of nothing else.
func testLastUsage(t *testing.T, s *world) {
	c, ctx := s.sdk(t), t.Context()
	key, other := newKey(t, c), newKey(t, c)
	ask := func(id *string) *kms.GetKeyLastUsageOutput {
		return must(c.GetKeyLastUsage(ctx, &kms.GetKeyLastUsageInput{KeyId: id}))(t)
	}
	// wait is the answer once it names a request: a use is there soon after its reply.
	wait := func(id *string, requestID string) *kms.GetKeyLastUsageOutput {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			out := ask(id)
			if u := out.KeyLastUsage; u != nil && u.KmsRequestId != nil && *u.KmsRequestId == requestID {
				return out
			}
			if time.Now().After(end) {
				t.Fatalf("the use by request %s is not there: %+v", requestID, out.KeyLastUsage)
			}
		}
	}
	if out := ask(key.KeyId); out.KeyLastUsage == nil || out.KeyLastUsage.Operation != "" || *out.KeyId != *key.Arn || !out.TrackingStartDate.Equal(*key.CreationDate) {
		t.Errorf("an unused key: %+v %+v", out, out.KeyLastUsage)
	}
	began := time.Now().Truncate(time.Second)
	made := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key.KeyId, KeySpec: types.DataKeySpecAes256}))(t)
	first, _ := awsmiddleware.GetRequestIDMetadata(made.ResultMetadata)
	out := wait(key.Arn, first)
	if u := out.KeyLastUsage; u.Operation != types.KeyLastUsageTrackingOperationGenerateDataKey || u.CloudTrailEventId == nil || *u.CloudTrailEventId == first ||
		u.Timestamp.Before(began) || u.Timestamp.After(time.Now()) {
		t.Errorf("%+v", u)
	}
	yes := true
	_, err := c.Encrypt(ctx, &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x"), DryRun: &yes})
	refusedWith(t, err, "DryRunOperationException")
	must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key.KeyId}))(t)
	moved := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{CiphertextBlob: made.CiphertextBlob, DestinationKeyId: other.KeyId}))(t)
	second, _ := awsmiddleware.GetRequestIDMetadata(moved.ResultMetadata)
	for _, id := range []*string{key.KeyId, other.KeyId} { // records are taken in order, so nothing between is left out
		if u := wait(id, second).KeyLastUsage; u.Operation != types.KeyLastUsageTrackingOperationReEncrypt {
			t.Errorf("%+v", u)
		}
	}
}
