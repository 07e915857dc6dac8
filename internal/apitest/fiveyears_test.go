package apitest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/node"
)

const days = 24 * time.Hour

// longLived is a key of TestFiveYears.
type longLived struct {
	id      string
	period  time.Duration // of automatic rotation; 0: none
	enabled time.Time     // when that was enabled
	next    time.Time     // when it rotates next; zero: never
	asked   int           // how many rotations on demand there have to be
	dates   []rotation    // all there have to be
	deleted time.Time     // when it is deleted; zero: never
	blobs   []sealedThen
}

// rotation is what ListKeyRotations says of one.
type rotation struct {
	date time.Time
	how  types.RotationType
}

// sealedThen is a ciphertext and what it has to say for ever.
type sealedThen struct {
	blob     []byte
	plain    string
	material string
}

// TestFiveYears: five years of rotations and deletions at the dates that were announced, to the millisecond, on a server whose clock goes from one date to the
// next. At the end everything that was ever encrypted is decrypted, but for what was encrypted under keys that are deleted.
func TestFiveYears(t *testing.T) {
	t.Parallel()
	began := time.Now()
	clock := NewClock(time.Date(2027, 2, 27, 22, 15, 0, 123_000_000, time.UTC))
	s := Start(t, WithClock(clock), func(c *node.Config) { c.Quotas = "off" })
	c, ctx := s.KMS(t), t.Context()
	end := clock.Now().AddDate(5, 0, 0)

	var keys []*longLived
	encrypt := func(k *longLived) {
		t.Helper()
		plain := fmt.Sprintf("%s at %s", k.id, clock.Now())
		out := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: &k.id, Plaintext: []byte(plain)}))(t)
		data := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &k.id, KeySpec: types.DataKeySpecAes256}))(t)
		k.blobs = append(k.blobs, sealedThen{out.CiphertextBlob, plain, *data.KeyMaterialId}, sealedThen{data.CiphertextBlob, string(data.Plaintext), *data.KeyMaterialId})
	}
	create := func(period int32) *longLived {
		t.Helper()
		k := &longLived{id: *newKey(t, c).KeyId, period: time.Duration(period) * days, enabled: clock.Now()}
		if period > 0 {
			must(c.EnableKeyRotation(ctx, &kms.EnableKeyRotationInput{KeyId: &k.id, RotationPeriodInDays: &period}))(t)
			k.next = k.enabled.Add(k.period)
		}
		encrypt(k)
		keys = append(keys, k)
		return k
	}
	// Twelve keys with all kinds of periods, made some hours apart, one without any, and another with one that is longer than the test.
	for _, period := range []int32{90, 91, 100, 128, 180, 200, 256, 365, 365, 366, 500, 730, 0, 2560} {
		create(period)
		clock.Advance(5*time.Hour + 7*time.Millisecond)
	}
	rotated, deleted := 0, 0
	// work does what is due, and no more: the rotations of every key that is due are there, with the instant as their date.
	work := func() {
		t.Helper()
		now := clock.Now()
		s.Work(t)
		for _, k := range keys {
			if !k.next.IsZero() && !k.next.After(now) && k.deleted.IsZero() {
				k.dates, k.next = append(k.dates, rotation{now, types.RotationTypeAutomatic}), k.next.Add(k.period)
				rotated++
				encrypt(k)
			}
		}
	}
	// reach lets time pass until the date, and looks a millisecond earlier that nothing has happened yet.
	reach := func(date time.Time) {
		t.Helper()
		clock.Advance(date.Sub(clock.Now()) - time.Millisecond)
		s.Work(t)
		for _, k := range keys {
			if k.deleted.Equal(date) {
				equal(t, "the state just before the deletion", must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &k.id}))(t).KeyMetadata.KeyState, types.KeyStatePendingDeletion)
			} else if k.next.Equal(date) && k.deleted.IsZero() {
				status := must(c.GetKeyRotationStatus(ctx, &kms.GetKeyRotationStatusInput{KeyId: &k.id}))(t)
				equal(t, "NextRotationDate", aws.ToTime(status.NextRotationDate).UTC(), date)
				equal(t, "rotations before the date", len(must(c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &k.id}))(t).Rotations), len(k.dates))
			}
		}
		clock.Advance(time.Millisecond)
		work()
		for _, k := range keys {
			if k.deleted.Equal(date) {
				_, err := c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: &k.id})
				refusedAs[*types.NotFoundException](t, err)
				deleted++
			}
		}
	}
	// next is the next date on which something happens to a key.
	next := func() (date time.Time) {
		for _, k := range keys {
			due := k.next
			if !k.deleted.IsZero() {
				due = k.deleted
			}
			if due.After(clock.Now()) && (date.IsZero() || due.Before(date)) {
				date = due
			}
		}
		return date
	}
	for n := 0; ; n++ {
		date := next()
		if date.IsZero() || date.After(end) {
			break
		}
		reach(date)
		switch n % 4 {
		case 0: // a key that lives for some weeks
			k := create(0)
			window := int32(7 + n%24)
			out := must(c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: &k.id, PendingWindowInDays: &window}))(t)
			k.deleted = clock.Now().Add(time.Duration(window) * days)
			equal(t, "DeletionDate", out.DeletionDate.UTC(), k.deleted)
			s.Work(t) // which comes every minute, and sees that the waiting period has begun
		case 1: // a rotation on demand, which does not move the schedule
			if k := keys[n%14]; k.asked < 10 && (k.next.IsZero() || k.next.Sub(clock.Now()) > days) {
				must(c.RotateKeyOnDemand(ctx, &kms.RotateKeyOnDemandInput{KeyId: &k.id}))(t)
				s.Work(t)
				k.asked, k.dates = k.asked+1, append(k.dates, rotation{clock.Now(), types.RotationTypeOnDemand})
				rotated++
				encrypt(k)
			}
		}
	}
	reach(end)

	decrypted, lost := 0, 0
	for i, k := range keys {
		if !k.deleted.IsZero() && !k.deleted.After(end) {
			for _, b := range k.blobs {
				if _, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: b.blob}); codeOf(err) != "AccessDeniedException" {
					t.Errorf("a ciphertext of a deleted key: %v", err)
				}
				lost++
			}
			continue
		}
		if !k.deleted.IsZero() {
			continue // pending deletion at the end
		}
		var dates []rotation
		for _, r := range must(c.ListKeyRotations(ctx, &kms.ListKeyRotationsInput{KeyId: &k.id}))(t).Rotations {
			dates = append(dates, rotation{r.RotationDate.UTC(), r.RotationType})
		}
		if !slices.Equal(dates, k.dates) {
			t.Errorf("key %d rotates every %v: the dates are %v, want %v", i, k.period, dates, k.dates)
		}
		automatic := 0
		if k.period > 0 {
			automatic = int(end.Sub(k.enabled) / k.period)
		}
		if len(dates) != automatic+k.asked {
			t.Errorf("key %d rotates every %v: %d rotations, %d of them asked for", i, k.period, len(dates), k.asked)
		}
		for j, b := range k.blobs {
			out := must(c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: b.blob}))(t)
			if string(out.Plaintext) != b.plain || *out.KeyMaterialId != b.material {
				t.Errorf("key %d, ciphertext %d: %q under %s, want %q under %s", i, j, out.Plaintext, *out.KeyMaterialId, b.plain, b.material)
			}
			decrypted++
		}
	}
	// Each of a key's materials was used, and all are different.
	materials := map[string]bool{}
	for _, k := range keys {
		for _, b := range k.blobs {
			materials[b.material] = true
		}
	}
	equal(t, "materials", len(materials), len(keys)+rotated)
	if rotated < 80 || deleted < 20 || decrypted < 200 || lost < 40 {
		t.Errorf("too little has happened: %d rotations, %d deletions, %d ciphertexts decrypted, %d lost", rotated, deleted, decrypted, lost)
	}
	t.Logf("life: 5 years in %.1f s: %d keys, %d rotations and %d deletions, each at its date to the millisecond; %d ciphertexts of up to 5 years decrypt, %d of deleted keys do not",
		time.Since(began).Seconds(), len(keys), rotated, deleted, decrypted, lost)
}
