package apitest

import (
	"encoding/base64"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// step is one change of the world: do returns when its 200 is there, and from then until the next step begins every request must be
// answered as want says.
type step struct {
	name string
	do   func() error
	want func(*Reply) bool
}

// query is a request that is sent over and over.
type query struct{ op, body string }

const (
	atOnceWorkers  = 8
	atOnceChecks   = 8 // answered requests that each step waits for
	atOnceDeadline = 100 * time.Second
)

// atOnce runs the steps in a circle, rounds times, while workers send the queries. A request is held against a step only if it began after
// the step's 200 and ended before the next step began: in between the step is all that counts. It returns how many were.
func atOnce(t *testing.T, e Endpoint, rounds int, queries []query, steps []step) int {
	t.Helper()
	// phase is 2n after step n-1 is done and 2n+1 while step n is under way; an odd phase expects nothing.
	var phase, checked, total atomic.Int64
	var failed atomic.Bool
	fail := func(format string, args ...any) {
		failed.Store(true)
		t.Errorf(format, args...)
	}
	stop := make(chan struct{})
	var workers sync.WaitGroup
	for w := range atOnceWorkers {
		client := e.Client(t)
		workers.Go(func() {
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				q := queries[i%len(queries)]
				began := phase.Load()
				r, err := client.Try(q.op, q.body)
				if err != nil || r == nil {
					fail("%s: %v", q.op, err)
					return
				}
				if began == 0 || began%2 == 1 || phase.Load() != began {
					continue
				}
				if s := &steps[(began/2-1)%int64(len(steps))]; !s.want(r) {
					fail("after %s, %s was answered with %d %.300s", s.name, q.op, r.Status, r.Body)
					return
				}
				checked.Add(1)
				total.Add(1)
			}
		})
	}
	deadline := time.Now().Add(atOnceDeadline)
	for n := 0; n < rounds*len(steps) && !failed.Load(); n++ {
		s := &steps[n%len(steps)]
		phase.Store(int64(2*n + 1))
		if err := s.do(); err != nil {
			fail("%s: %v", s.name, err)
			break
		}
		checked.Store(0)
		phase.Store(int64(2*n + 2))
		for checked.Load() < atOnceChecks && !failed.Load() {
			if time.Now().After(deadline) {
				fail("step %d of %d, %s: %d requests were answered in time", n, rounds*len(steps), s.name, checked.Load())
			}
			time.Sleep(50 * time.Microsecond)
		}
	}
	close(stop)
	workers.Wait()
	return int(total.Load())
}

// succeeded and refused are what a step may want.
func succeeded(r *Reply) bool { return r.Status == 200 }

func refused(typ string) func(*Reply) bool {
	return func(r *Reply) bool { return r.Type == typ }
}

// testAtOnce: a change holds when its 200 is there. No request that begins later sees the state before, whatever is cached.
func testAtOnce(t *testing.T, s *world) {
	rounds := 200
	if testing.Short() {
		rounds = 25
	}
	t.Run("key state", func(t *testing.T) { testStateAtOnce(t, s, rounds) })
	t.Run("alias", func(t *testing.T) { testAliasAtOnce(t, s, rounds) })
}

func testStateAtOnce(t *testing.T, s *world, rounds int) {
	c, ctx := s.sdk(t), t.Context()
	key, other := newKey(t, c), newKey(t, c)
	alias := aliasOf(t, "key")
	must(c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: key.KeyId}))(t)
	encrypted := func(id *string) string {
		return base64.StdEncoding.EncodeToString(must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: id, Plaintext: []byte("x")}))(t).CiphertextBlob)
	}
	blob, foreign := encrypted(key.KeyId), encrypted(other.KeyId)
	queries := []query{
		{"Decrypt", `{"CiphertextBlob":"` + blob + `"}`},
		{"GenerateDataKey", `{"KeyId":"` + *key.KeyId + `","KeySpec":"AES_256"}`},
		{"Decrypt", `{"KeyId":"` + alias + `","CiphertextBlob":"` + blob + `"}`},
		{"GenerateDataKey", `{"KeyId":"` + alias + `","KeySpec":"AES_128"}`},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + *key.Arn + `","NumberOfBytes":32}`},
		{"Encrypt", `{"KeyId":"` + *key.KeyId + `","Plaintext":"eA=="}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + blob + `","DestinationKeyId":"` + *other.KeyId + `"}`},
		{"ReEncrypt", `{"CiphertextBlob":"` + foreign + `","DestinationKeyId":"` + *key.KeyId + `"}`},
		{"Decrypt", `{"CiphertextBlob":"` + blob + `","DryRun":true}`},
	}
	works := func(r *Reply) bool { return succeeded(r) || r.Type == "DryRunOperationException" }
	disable := step{"DisableKey", func() error {
		_, err := c.DisableKey(ctx, &kms.DisableKeyInput{KeyId: key.KeyId})
		return err
	}, refused("DisabledException")}
	enable := step{"EnableKey", func() error {
		_, err := c.EnableKey(ctx, &kms.EnableKeyInput{KeyId: key.KeyId})
		return err
	}, works}
	schedule := step{"ScheduleKeyDeletion", func() error {
		_, err := c.ScheduleKeyDeletion(ctx, &kms.ScheduleKeyDeletionInput{KeyId: key.KeyId})
		return err
	}, refused("KMSInvalidStateException")}
	cancel := step{"CancelKeyDeletion", func() error {
		_, err := c.CancelKeyDeletion(ctx, &kms.CancelKeyDeletionInput{KeyId: key.KeyId})
		return err
	}, refused("DisabledException")}

	n := atOnce(t, s.Endpoint, rounds, queries, []step{disable, enable, schedule, cancel, enable})
	t.Logf("%d requests held against a change that was done", n)
	if least := rounds * 5 * atOnceChecks; n < least {
		t.Errorf("%d requests were checked, want at least %d", n, least)
	}
}

func testAliasAtOnce(t *testing.T, s *world, rounds int) {
	c, ctx := s.sdk(t), t.Context()
	one, two := newKey(t, c), newKey(t, c)
	alias := aliasOf(t, "moving")
	queries := []query{
		{"GenerateDataKey", `{"KeyId":"` + alias + `","KeySpec":"AES_256"}`},
		{"Encrypt", `{"KeyId":"arn:aws:kms:` + Region + ":" + Account + ":" + alias + `","Plaintext":"eA=="}`},
		{"GenerateDataKeyWithoutPlaintext", `{"KeyId":"` + alias + `","NumberOfBytes":1}`},
	}
	answeredBy := func(arn string) func(*Reply) bool {
		return func(r *Reply) bool {
			var out struct{ KeyId string }
			return succeeded(r) && decodes(r.Body, &out) && out.KeyId == arn
		}
	}
	move := func(id *string, arn string) step {
		return step{"UpdateAlias to " + fmt.Sprint(*id), func() error {
			_, err := c.UpdateAlias(ctx, &kms.UpdateAliasInput{AliasName: &alias, TargetKeyId: id})
			return err
		}, answeredBy(arn)}
	}
	create := step{"CreateAlias", func() error {
		_, err := c.CreateAlias(ctx, &kms.CreateAliasInput{AliasName: &alias, TargetKeyId: one.KeyId})
		return err
	}, answeredBy(*one.Arn)}
	remove := step{"DeleteAlias", func() error {
		_, err := c.DeleteAlias(ctx, &kms.DeleteAliasInput{AliasName: &alias})
		return err
	}, refused("NotFoundException")}

	n := atOnce(t, s.Endpoint, rounds, queries, []step{create, move(two.KeyId, *two.Arn), move(one.KeyId, *one.Arn), remove})
	t.Logf("%d requests held against a change that was done", n)
	if least := rounds * 4 * atOnceChecks; n < least {
		t.Errorf("%d requests were checked, want at least %d", n, least)
	}
}
