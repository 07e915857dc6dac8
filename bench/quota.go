package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/loadtest"
	"github.com/keyplane/keyplane/ratelimit"
)

// What the table of quotas offers: half as much again as one account may send, far below what the server can do, and beside it another
// account's load that stays inside its quota.
const (
	quotaRate    = 2000 // requests a second
	quotaOffered = 1.5  // of it
	quotaTime    = 30 * time.Second
	otherAccount = "444455556666"
	otherRate    = 500
	otherOffered = 0.8 // of it
)

// quotaRun is what one account was offered and got.
type quotaRun struct {
	Quota, Offered, Served, Throttled float64 // per second
	OfQuota                           float64 // served in all, of what the quota is over the time
	ThrottledAll                      uint64
	Other                             uint64 // requests that ended in any other way
}

// setQuota sets a quota of an account.
func (t *target) setQuota(account, name string, value float64) error {
	body, err := json.Marshal(map[string]any{"AccountId": account, "Quota": name, "Value": value})
	if err != nil {
		return err
	}
	_, err = t.send(quota.SigningName, "KeyplaneQuotas.SetQuota", string(body))
	return err
}

func (p *plan) quotaTable() error {
	t, err := p.startSoftHSM("quota")
	if err != nil {
		return err
	}
	defer t.stop()
	b, err := t.iam("CreateAccount", "AccountId", otherAccount)
	if err != nil {
		return err
	}
	var made struct {
		ID     string `xml:"CreateAccountResult>AccessKey>AccessKeyId"`
		Secret string `xml:"CreateAccountResult>AccessKey>SecretAccessKey"`
	}
	if err := xml.Unmarshal(b, &made); err != nil {
		return err
	}
	other := *t
	if other.key, err = sigv4.NewAccessKey(made.ID, []byte(made.Secret), sigv4.Principal{}); err != nil {
		return err
	}
	if err := errors.Join(other.prepare(), t.setQuota(benchAccount, "Symmetric", quotaRate), t.setQuota(otherAccount, "Symmetric", otherRate)); err != nil {
		return err
	}
	over := p.startLoad(t, quotaOffered*quotaRate, p.conns, quotaTime, 0)
	defer over.stop()
	inside := p.startLoadAs(&other, made.ID, made.Secret, otherOffered*otherRate, p.conns, quotaTime, 0)
	defer inside.stop()
	for _, l := range []struct {
		*load
		account string
		quota   float64
	}{{over, "above its quota", quotaRate}, {inside, "inside its quota", otherRate}} {
		r, err := l.wait()
		if err != nil {
			return err
		}
		p.all = append(p.all, measurement{Table: "quota", Op: overloadOp, Case: l.account, Target: hsmName, Conns: p.conns, PerSecond: r.Throughput, Quota: quotaFigures(r, l.quota)})
	}
	a, c := p.all[len(p.all)-2].Quota, p.all[len(p.all)-1].Quota
	p.promise("offered 1.5 times its quota, an account's requests served in 30 s, of the quota, at least", a.OfQuota, atLeast, 0.99)
	p.promise("offered 1.5 times its quota, an account's requests served in 30 s, of the quota, at most", a.OfQuota, atMost, 1.01)
	p.promise("offered, of the quota", a.Offered/a.Quota, atLeast, 0.98*quotaOffered)
	p.promise("that ended neither served nor with "+kmsapi.Throttling.Type(), float64(a.Other+c.Other), atMost, 0)
	p.promise("another account inside its quota: throttled", float64(c.ThrottledAll), atMost, 0)
	return nil
}

func quotaFigures(r *loadtest.Report, rate float64) *quotaRun {
	q := &quotaRun{Quota: rate, Offered: float64(r.Requests.Sent) / r.Seconds, Served: r.Throughput, ThrottledAll: throttled(r), Other: r.Requests.Unfinished}
	q.OfQuota = r.Throughput / rate
	q.Throttled = float64(q.ThrottledAll) / r.Seconds
	for _, e := range r.Errors {
		if e.Type != kmsapi.Throttling.Type() {
			q.Other += e.Count
		}
	}
	return q
}

func (p *plan) printQuota(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "account\tquota/s\toffered/s\tserved/s\tof the quota\tthrottled/s\tother errors\t")
	for i := range p.all {
		if q := p.all[i].Quota; q != nil {
			fmt.Fprintf(tw, "%s\t%.0f\t%.0f\t%.0f\t%.4f\t%.0f\t%d\t\n", p.all[i].Case, q.Quota, q.Offered, q.Served, q.OfQuota, q.Throttled, q.Other)
		}
	}
	_ = tw.Flush()
}

const (
	fewKeys       = 100
	describeCalls = 3000 // one after the other, for a latency
	readyMax      = 10 * time.Second
)

// keysRun is an account with as many keys as it may have.
type keysRun struct {
	Keys           int
	CreatedIn      float64 // seconds
	ListedIn       float64 // seconds, pages of 1000
	DescribeP50    float64 // microseconds, over random keys, with all keys
	DescribeP50Few float64 // likewise, with fewKeys
	ReadyIn        float64 // seconds from the start of the process until it serves
}

// quotaKeysTable makes as many keys as an account may have, over the API and in parallel, and compares the service then with one of a hundred.
func (p *plan) quotaKeysTable() error {
	t, err := p.startSoftHSM("quotakeys")
	if err != nil {
		return err
	}
	defer func() { t.stop() }()
	if err := errors.Join(t.setQuota(benchAccount, "CreateKey", ratelimit.RateMax), t.setQuota(benchAccount, "DescribeKey", ratelimit.RateMax)); err != nil {
		return err
	}
	if p.keys != 100_000 {
		if err := t.setQuota(benchAccount, quota.KeysPerAccount, float64(p.keys)); err != nil {
			return err
		}
	}
	r := &keysRun{Keys: p.keys}
	create := func(int) error { _, err := t.post("CreateKey", `{}`); return err }
	if err := p.parallel(fewKeys-1, create); err != nil { // prepare made one
		return err
	}
	ids, err := t.listKeys()
	if err != nil {
		return err
	}
	if r.DescribeP50Few, err = t.describe(ids); err != nil {
		return err
	}
	began := time.Now()
	if err := p.parallel(p.keys-fewKeys, create); err != nil {
		return err
	}
	r.CreatedIn = time.Since(began).Seconds()
	refused := create(0)
	began = time.Now()
	if ids, err = t.listKeys(); err != nil {
		return err
	}
	r.ListedIn = time.Since(began).Seconds()
	if r.DescribeP50, err = t.describe(ids); err != nil {
		return err
	}
	slices.Sort(ids)
	listed := len(slices.Compact(ids))
	t.stop()
	cmd, _ := keyplaneCommand(p.keyplane, filepath.Join(p.tmp, "hsm-quotakeys"), p.uri)
	began = time.Now()
	again, err := start(hsmName, cmd)
	if err != nil {
		return err
	}
	t = again
	if err := t.untilReady(time.Minute); err != nil {
		return err
	}
	r.ReadyIn = time.Since(began).Seconds()
	p.all = append(p.all, measurement{Table: "quotakeys", Op: "DescribeKey", Target: hsmName, Conns: 1, Keys: r})
	last := 0.0
	if refused != nil && strings.Contains(refused.Error(), kmsapi.LimitExceeded.Type()) {
		last = 1
	}
	p.promise(fmt.Sprintf("with %d keys, the next CreateKey refused with %s (1: yes)", p.keys, kmsapi.LimitExceeded.Type()), last, atLeast, 1)
	p.promise("keys on the pages of ListKeys, of all", float64(listed)/float64(p.keys), atLeast, 1)
	p.promise(fmt.Sprintf("DescribeKey p50 with %d keys, of that with %d", p.keys, fewKeys), r.DescribeP50/r.DescribeP50Few, atMost, 1.5)
	p.promise(fmt.Sprintf("ready with %d keys, seconds from the start of the process", p.keys), r.ReadyIn, atMost, readyMax.Seconds())
	return nil
}

// listKeys reads all pages.
func (t *target) listKeys() (ids []string, err error) {
	for marker := ""; ; {
		body := `{"Limit":1000}`
		if marker != "" {
			body = fmt.Sprintf(`{"Limit":1000,"Marker":%q}`, marker)
		}
		var page struct {
			Keys       []struct{ KeyId string }
			NextMarker string
			Truncated  bool
		}
		if err := t.call("ListKeys", body, &page); err != nil {
			return nil, err
		}
		for _, k := range page.Keys {
			ids = append(ids, k.KeyId)
		}
		if marker = page.NextMarker; !page.Truncated {
			return ids, nil
		}
	}
}

// describe describes keys all over the list, one call after the other, and returns the median in microseconds.
func (t *target) describe(ids []string) (float64, error) {
	var all []float64
	for i := range describeCalls {
		began := time.Now()
		if _, err := t.post("DescribeKey", `{"KeyId":"`+ids[i*7919%len(ids)]+`"}`); err != nil {
			return 0, err
		}
		all = append(all, float64(time.Since(began).Microseconds()))
	}
	return middle(all), nil
}

// untilReady waits for /readyz.
func (t *target) untilReady(most time.Duration) error {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		status, _, err := fasthttp.Get(nil, t.url+"/readyz")
		if err == nil && status == fasthttp.StatusOK {
			return nil
		}
		if time.Since(began) > most {
			return fmt.Errorf("not ready within %v: %d %w", most, status, err)
		}
	}
}

func (p *plan) printQuotaKeys(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "keys\tcreated in s\tper s\tlisted in s\tDescribeKey p50 µs\twith 100 keys\tready in s\t")
	for i := range p.all {
		if r := p.all[i].Keys; r != nil {
			fmt.Fprintf(tw, "%d\t%.1f\t%.0f\t%.1f\t%.0f\t%.0f\t%.2f\t\n", r.Keys, r.CreatedIn, float64(r.Keys-fewKeys)/r.CreatedIn, r.ListedIn, r.DescribeP50, r.DescribeP50Few, r.ReadyIn)
		}
	}
	_ = tw.Flush()
}
