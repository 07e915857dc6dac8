package controlplane

import (
	"bytes"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/uuid"
)

type lastUsageReply struct {
	KeyId        string
	KeyLastUsage struct {
		Operation, CloudTrailEventId, KmsRequestId string
		Timestamp                                  float64
	}
	TrackingStartDate, KeyCreationDate float64
}

// replied is an instant as a reply has it.
func replied(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func TestGetKeyLastUsage(t *testing.T) {
	e := newEnv(t)
	old := e.create("{}")
	created := e.clock.now()
	ask := func(key string) (out lastUsageReply) {
		t.Helper()
		e.ok("GetKeyLastUsage", obj("KeyId", key), &out)
		return out
	}
	if got, want := ask(old.KeyId), (lastUsageReply{KeyId: old.Arn, TrackingStartDate: replied(created), KeyCreationDate: replied(created)}); got != want {
		t.Errorf("a new key:\n got %+v\nwant %+v", got, want)
	}
	if resp := e.call("GetKeyLastUsage", obj("KeyId", old.KeyId)); !bytes.Contains(resp.Body, []byte(`"KeyLastUsage":{}`)) {
		t.Errorf("without a use the object is empty, not %s", resp.Body)
	}

	var request, event [uuid.Len]byte
	ids := uuid.New()
	ids.Fill(&request)
	ids.Fill(&event)
	at := created.Add(time.Hour)
	r := &cloudtrail.Record{
		Time: at, Source: cloudtrail.KMS, Name: "Decrypt", Region: e.region, RequestID: request[:], EventID: event, ReadOnly: true, Recipient: e.account,
	}
	r.AddResource([]byte(old.Arn), e.account)
	first := *r
	first.Time, first.Name = created, "CreateKey"
	e.uses.Observe(0, first.Append(nil))
	e.uses.Observe(1, r.Append(nil))
	want := lastUsageReply{KeyId: old.Arn, TrackingStartDate: replied(created), KeyCreationDate: replied(created)}
	want.KeyLastUsage.Operation, want.KeyLastUsage.Timestamp = "Decrypt", replied(at.Truncate(time.Second))
	want.KeyLastUsage.CloudTrailEventId, want.KeyLastUsage.KmsRequestId = string(event[:]), string(request[:])
	if got := ask(old.Arn); got != want {
		t.Errorf("a used key:\n got %+v\nwant %+v", got, want)
	}

	// Records are missing: a key that is older may have been used.
	later := created.Add(48 * time.Hour).Truncate(time.Second)
	r.Time, r.Name = later, "ListKeys"
	e.uses.Observe(1000, r.Append(nil))
	want.TrackingStartDate = replied(later)
	if got := ask(old.KeyId); got != want {
		t.Errorf("an old key:\n got %+v\nwant %+v", got, want)
	}

	e.fails("GetKeyLastUsage", obj("KeyId", "alias/a"), kmsapi.NotFound, "Invalid keyId 'alias/a'")
	e.fails("GetKeyLastUsage", "{}", kmsapi.Validation, "1 validation error detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null")
	stranger := newEnv(t)
	stranger.fails("GetKeyLastUsage", obj("KeyId", old.Arn), kmsapi.AccessDenied, "*")
	e.lastUses = nil
	e.fails("GetKeyLastUsage", obj("KeyId", old.KeyId), kmsapi.UnsupportedOperation, noLastUses)
}

func TestTrailingDays(t *testing.T) {
	e := newEnv(t)
	m, other := e.create("{}"), e.create("{}")
	denied := statement("Deny", "kms:*", anyResource, `"Condition":{"NumericLessThan":{"kms:TrailingDaysWithoutKeyUsage":"90"}}`)
	user := e.user("careful", statement("Allow", "kms:*", anyResource), denied)
	ids, used := uuid.New(), e.clock.now()
	use := &cloudtrail.Record{Time: used, Source: cloudtrail.KMS, Name: "Decrypt", Region: e.region, ReadOnly: true, Recipient: e.account}
	var request [uuid.Len]byte
	ids.Fill(&request)
	ids.Fill(&use.EventID)
	use.RequestID = request[:]
	use.AddResource([]byte(m.Arn), e.account)
	e.uses.Observe(0, use.Append(nil))
	may := func(op, key string, want bool) {
		t.Helper()
		code := kmsapi.AccessDenied
		if want {
			code = kmsapi.OK
		}
		if resp := user.call(op, obj("KeyId", key)); resp.Code != code {
			t.Errorf("%s after %v: %s", op, e.clock.now().Sub(used), resp.Body)
		}
	}
	e.clock.set(used.Add(90*24*time.Hour - time.Second))
	may("DisableKey", m.KeyId, false)
	may("ScheduleKeyDeletion", m.KeyId, false)
	may("EnableKey", m.KeyId, true) // which has no such key
	may("DisableKey", other.KeyId, true)
	e.clock.set(used.Add(90 * 24 * time.Hour))
	may("DisableKey", m.KeyId, true)
	may("ScheduleKeyDeletion", m.KeyId, true)
}
