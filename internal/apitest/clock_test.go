package apitest

import (
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

// TestClock: everything of a server that goes by a date goes by the one that the test owns.
func TestClock(t *testing.T) {
	t.Parallel()
	date := time.Date(2031, 2, 28, 23, 59, 58, 765_000_000, time.UTC)
	clock := NewClock(date)
	s := Start(t, WithClock(clock))
	c := s.KMS(t)
	key := newKey(t, c)
	equal(t, "CreationDate", key.CreationDate.UTC(), date)

	// Signatures: a client whose clock is this machine's is refused in both planes, and one that is four minutes off is not.
	late := s.Endpoint
	late.now = nil
	for _, op := range []string{"DescribeKey", "GetPublicKey"} {
		if r := late.Do(t, op, `{"KeyId":"`+*key.KeyId+`"}`); r.Type != "InvalidSignatureException" {
			t.Errorf("%s, signed years ago: %d %s", op, r.Status, r.Body)
		}
	}
	late.now = func() time.Time { return clock.Now().Add(4 * time.Minute) }
	if r := late.Do(t, "DescribeKey", `{"KeyId":"`+*key.KeyId+`"}`); r.Status != http.StatusOK {
		t.Errorf("four minutes ahead: %s", r.Body)
	}

	// Conditions on the date, in both planes.
	limited := must(c.CreateKey(t.Context(), &kms.CreateKeyInput{Policy: str(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::` +
		Account + `:root"},"Action":"kms:*","Resource":"*"},{"Effect":"Deny","Principal":"*","Action":["kms:Encrypt","kms:EnableKey"],"Resource":"*",` +
		`"Condition":{"DateGreaterThan":{"aws:CurrentTime":"2031-03-01T00:00:00Z"}}}]}`)}))(t).KeyMetadata
	uses := func() []error {
		_, encrypting := c.Encrypt(t.Context(), &kms.EncryptInput{KeyId: limited.KeyId, Plaintext: []byte("x")})
		_, enabling := c.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: limited.KeyId})
		return []error{encrypting, enabling}
	}
	for i, err := range uses() {
		if err != nil {
			t.Errorf("use %d before the date: %v", i, err)
		}
	}

	// Sessions.
	role := must(s.admin(t).iam.CreateRole(t.Context(), &iam.CreateRoleInput{RoleName: str("user"), AssumeRolePolicyDocument: str(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":{"AWS":"` + Account + `"},"Action":"sts:AssumeRole"}}`)}))(t).Role
	must(s.admin(t).iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: role.RoleName, PolicyName: str("p"), PolicyDocument: str(
		`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"kms:Encrypt","Resource":"*"}}`)}))(t)
	session := must(s.admin(t).sts.AssumeRole(t.Context(), &sts.AssumeRoleInput{RoleArn: role.Arn, RoleSessionName: str("clock"), DurationSeconds: aws.Int32(3600)}))(t).Credentials
	equal(t, "the session's end", session.Expiration.UTC(), date.Truncate(time.Second).Add(time.Hour))
	inSession := s.as(t, *session.AccessKeyId, *session.SecretAccessKey, *session.SessionToken).kms
	for _, step := range []struct {
		advance time.Duration
		ends    bool
	}{{0, false}, {time.Hour - time.Second, false}, {2 * time.Second, true}} {
		clock.Advance(step.advance)
		_, err := inSession.Encrypt(t.Context(), &kms.EncryptInput{KeyId: key.KeyId, Plaintext: []byte("x")})
		if step.ends {
			refusedWith(t, err, "ExpiredTokenException")
		} else if err != nil {
			t.Error(err)
		}
	}
	for _, err := range uses() {
		refusedWith(t, err, "AccessDeniedException")
	}

	// What the log keeps, of both planes.
	used := must(c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))(t)
	for end := time.Now().Add(30 * time.Second); used.KeyLastUsage.Timestamp == nil && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		used = must(c.GetKeyLastUsage(t.Context(), &kms.GetKeyLastUsageInput{KeyId: key.KeyId}))(t)
	}
	if at := aws.ToTime(used.KeyLastUsage.Timestamp); at.Before(date.Truncate(time.Second)) || at.After(clock.Now()) {
		t.Errorf("the key was last used at %v", at)
	}

	// And the workers.
	due := must(c.ScheduleKeyDeletion(t.Context(), &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId, PendingWindowInDays: aws.Int32(7)}))(t)
	equal(t, "DeletionDate", due.DeletionDate.UTC(), clock.Now().Add(7*24*time.Hour))
	s.Work(t) // sees that the waiting period has begun
	clock.Advance(7*24*time.Hour - time.Millisecond)
	s.Work(t)
	equal(t, "the state before the date", must(c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key.KeyId}))(t).KeyMetadata.KeyState,
		types.KeyStatePendingDeletion)
	clock.Advance(time.Hour)
	s.Work(t)
	_, err := c.DescribeKey(t.Context(), &kms.DescribeKeyInput{KeyId: key.KeyId})
	refusedAs[*types.NotFoundException](t, err)
}
