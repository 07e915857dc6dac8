package apitest

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/node"
)

// An HSM that cannot keep up has requests refused as they come, with ThrottlingException and nothing else; those that were let in are served, and
// when the HSM is fast again nobody is refused.
func TestOverload(t *testing.T) {
	slow := slowhsm.Over(t, hsmtest.SoftHSM(t), slowhsm.Settings{})
	if _, err := p11.InitRoots(slow.URI()); err != nil {
		t.Fatal(err)
	}
	s := Start(t, WithHSM(slow.URI()), func(c *node.Config) {
		c.SessionsPerToken, c.RoundMax, c.QueueTimeMax = 2, 2, 50*time.Millisecond
	})
	admin := s.Client(t)
	var made struct{ KeyMetadata struct{ KeyId string } }
	admin.Do(t, "CreateKey", `{}`).Members(t, &made)
	body := `{"KeyId":"` + made.KeyMetadata.KeyId + `","KeySpec":"AES_256"}`
	if r := admin.Do(t, "GenerateDataKey", body); r.Status != 200 {
		t.Fatal(r)
	}

	if err := slow.Set(slowhsm.Settings{Latency: 20 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	// A key that nobody has used yet is loaded all the same: its two rounds are not refused, only the requests' own.
	admin.Do(t, "CreateKey", `{}`).Members(t, &made)
	cold := `{"KeyId":"` + made.KeyMetadata.KeyId + `","KeySpec":"AES_256"}`
	// 60 clients at an HSM that takes 4 of them in 40 ms.
	var served, throttled atomic.Int64
	var clients sync.WaitGroup
	for range 60 {
		clients.Go(func() {
			c := s.Client(t)
			for i := range 20 {
				switch r, err := c.Try("GenerateDataKey", []string{body, cold}[i%2]); {
				case err != nil:
					t.Error(err)
					return
				case r.Status == 200:
					served.Add(1)
				case r.Type == "ThrottlingException":
					throttled.Add(1)
					time.Sleep(10 * time.Millisecond)
				default:
					t.Errorf("%d %s", r.Status, r.Body)
				}
			}
		})
	}
	clients.Wait()
	st := s.Stats().Batch
	if served.Load() == 0 || throttled.Load() == 0 || st.Full == 0 || st.Late > 0 {
		t.Errorf("%d served, %d throttled, %+v", served.Load(), throttled.Load(), st)
	}
	// A job whose shard is full asks the other one: refusals of the batcher are two for each of a client.
	if st.Full < 2*uint64(throttled.Load()) {
		t.Errorf("%d jobs found a shard full, %d requests were throttled: not every shard was asked", st.Full, throttled.Load())
	}

	if err := slow.Set(slowhsm.Settings{}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		refused := 0
		for range 50 {
			if r := admin.Do(t, "GenerateDataKey", body); r.Status != 200 {
				refused++
			}
		}
		if refused == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 50 are still refused", refused)
		}
	}
}
