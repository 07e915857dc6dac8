package dataplane

import (
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

// quotaTable is a table of buckets that remembers what it was asked.
type quotaTable struct {
	table *ratelimit.Table

	mu     sync.Mutex
	record bool
	asked  []charged
}

type charged struct {
	account keyid.Account
	pool    ratelimit.Pool
}

func newQuota(rate ratelimit.Rate) *quotaTable {
	var rates ratelimit.Rates
	for i := range rates {
		rates[i] = rate
	}
	return &quotaTable{table: ratelimit.NewTable(&rates, time.Now())}
}

func (q *quotaTable) charge(a keyid.Account, p ratelimit.Pool, now time.Time) bool {
	if q.record {
		q.mu.Lock()
		q.asked = append(q.asked, charged{a, p})
		q.mu.Unlock()
	}
	return q.table.Charge(a, p, 1, now)
}

func (q *quotaTable) take() []charged {
	q.mu.Lock()
	defer q.mu.Unlock()
	asked := q.asked
	q.asked = nil
	return asked
}

// Every request of this plane that is well-formed and signed is charged once, to the account that calls, and no other.
func TestWhatIsCharged(t *testing.T) {
	q := newQuota(ratelimit.Unlimited)
	q.record = true
	w := newWorld(t, worldConfig{plain: true, quota: q.charge})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("foreign", kmsapi.StateEnabled, 1)
	asOther := signature{key: otherKey}
	for _, c := range []struct {
		name string
		raw  []byte
		want []charged
	}{
		{"success", w.call("GenerateDataKey", `{"KeyId":"`+keyARN("k1")+`","KeySpec":"AES_256"}`), []charged{{ours, quota.Symmetric}}},
		{"random", w.call("GenerateRandom", `{"NumberOfBytes":8}`), []charged{{ours, quota.Symmetric}}},
		{"dry run", w.call("GenerateDataKey", `{"KeyId":"`+keyARN("k1")+`","KeySpec":"AES_256","DryRun":true}`), []charged{{ours, quota.Symmetric}}},
		{"another account's key", w.call("GenerateDataKey", `{"KeyId":"`+keyARN("foreign")+`","KeySpec":"AES_256"}`), []charged{{ours, quota.Symmetric}}},
		{"our key, another account", w.sign(asOther, kmsapi.TargetPrefix+"Encrypt", []byte(`{"KeyId":"`+keyARN("k1")+`","Plaintext":"eA=="}`)), []charged{{others, quota.Symmetric}}},
		{"no such key", w.call("Encrypt", `{"KeyId":"`+keyARN("nobody")+`","Plaintext":"eA=="}`), []charged{{ours, quota.Symmetric}}},
		{"malformed", w.call("Encrypt", `{"KeyId":`), nil},
		{"constraint", w.call("Encrypt", `{"KeyId":"`+keyARN("k1")+`","Plaintext":""}`), nil},
		{"the control plane's", w.call("DescribeKey", `{"KeyId":"`+keyARN("k1")+`"}`), nil},
		{"wrong signature", w.sign(signature{secret: "wrong"}, kmsapi.TargetPrefix+"GenerateRandom", []byte(`{"NumberOfBytes":8}`)), nil},
		{"no signature", w.sign(signature{none: true}, kmsapi.TargetPrefix+"GenerateRandom", []byte(`{"NumberOfBytes":8}`)), nil},
	} {
		q.take()
		r := w.do(c.raw)
		got := q.take()
		if len(got) != len(c.want) || len(got) == 1 && got[0] != c.want[0] {
			t.Errorf("%s: %d %s charged %v, want %v", c.name, r.status, r.body, got, c.want)
		}
	}
}

// A request that others have overtaken is judged by the time at which it is charged, not by that at which it came.
func TestOvertaken(t *testing.T) {
	var asked []time.Time
	w := newWorld(t, worldConfig{plain: true, quota: func(_ keyid.Account, _ ratelimit.Pool, now time.Time) bool {
		asked = append(asked, now)
		return len(asked) == 2
	}})
	raw := w.call("GenerateRandom", `{"NumberOfBytes":8}`)
	if r := w.do(raw); r.status != 200 || len(asked) != 2 || !asked[1].After(asked[0]) {
		t.Errorf("%d %s, charged at %v", r.status, r.body, asked)
	}
	asked = append(asked, time.Time{})
	if r := w.do(raw); r.exception() != "ThrottlingException" || len(asked) != 5 {
		t.Errorf("%d %s, charged at %v", r.status, r.body, asked)
	}
}

// A request that is throttled reads no key and reaches no HSM; the other account is served.
func TestThrottled(t *testing.T) {
	q := newQuota(0)
	var unlimited ratelimit.Rates
	for i := range unlimited {
		unlimited[i] = ratelimit.Unlimited
	}
	q.table.Set(others, &unlimited)
	w := newWorld(t, worldConfig{plain: true, quota: q.charge})
	w.addKey("k1", kmsapi.StateEnabled, 1)
	w.addKey("foreign", kmsapi.StateEnabled, 1)
	jobs := w.batcher.Stats().Jobs
	r := w.do(w.call("GenerateDataKey", `{"KeyId":"`+keyARN("k1")+`","KeySpec":"AES_256"}`))
	const want = `{"__type":"ThrottlingException","message":"You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."}`
	if r.status != 400 || string(r.body) != want {
		t.Errorf("%d %s", r.status, r.body)
	}
	if n := w.batcher.Stats().Jobs - jobs; n != 0 || w.records.reads != 0 {
		t.Errorf("%d jobs, %d reads of the store", n, w.records.reads)
	}
	if r := w.do(w.sign(signature{key: otherKey}, kmsapi.TargetPrefix+"GenerateDataKey", []byte(`{"KeyId":"`+keyARN("foreign")+`","KeySpec":"AES_256"}`))); r.status != 200 {
		t.Errorf("the other account: %d %s", r.status, r.body)
	}
	q.table.Set(ours, &unlimited)
	if r := w.do(w.call("GenerateDataKey", `{"KeyId":"`+keyARN("k1")+`","KeySpec":"AES_256"}`)); r.status != 200 {
		t.Errorf("after the quota was lifted: %d %s", r.status, r.body)
	}
}

// The reply to Service Quotas is JSON, those to the query APIs are XML.
func TestForwardedContentType(t *testing.T) {
	w := newWorld(t, worldConfig{plain: true})
	for service, want := range map[string]string{"servicequotas": "application/x-amz-json-1.1", "iam": "text/xml"} {
		r := w.do(w.sign(signature{service: service}, "ServiceQuotasV20190624.ListServiceQuotas", []byte("{}")))
		if got := r.header.Get("Content-Type"); r.status != 200 || got != want {
			t.Errorf("%s: %d, %s", service, r.status, got)
		}
	}
}
