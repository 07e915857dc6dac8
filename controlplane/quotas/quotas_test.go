package quotas

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/cloudtrail"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/policy"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/sigv4"
)

// shared is one embedded etcd for the whole package; tests keep apart by Region.
var shared *store.Store

func TestMain(m *testing.M) {
	os.Exit(storetest.Run(m, func(s *store.Store) {
		shared = s
		for _, a := range []keyid.Account{first, other} {
			if err := s.CreateAccount(context.Background(), &store.Account{ID: a, Created: now}, nil); err != nil {
				panic(err)
			}
		}
	}))
}

const (
	first = keyid.Account(111122223333)
	other = keyid.Account(444455556666)
)

var now = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func newQuotas(t testing.TB, region string, p quota.Profile) *Quotas {
	t.Helper()
	q, err := New(Config{Store: shared, Region: region, Profile: p, First: first, Logger: storetest.Quiet, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q
}

// keys is a sigv4.KeySource of one key.
type keys struct{ key *sigv4.AccessKey }

func (k keys) AccessKey([]byte) *sigv4.AccessKey { return k.key }

// caller signs as a user of an account with an identity policy of one statement, "" for none.
type caller struct {
	testing.TB
	*Quotas
	identity sigv4.Identity
}

func (q *Quotas) as(t testing.TB, a keyid.Account, statement string, edit ...func(*authz.Caller)) caller {
	t.Helper()
	p := policy.Principal{Kind: policy.User, Account: a, ARN: "arn:aws:iam::" + a.String() + ":user/u", ID: "AIDAU"}
	subject := &authz.Subject{Principal: p, Name: "u"}
	if statement != "" {
		parsed, err := policy.Parse([]byte(`{"Version":"2012-10-17","Statement":`+statement+`}`), policy.IdentityPolicy, nil)
		if err != nil {
			t.Fatal(err)
		}
		subject.Identity = []*policy.Policy{parsed}
	}
	w := &authz.Caller{Principal: p, Holder: authz.NewHolder(subject), UserName: "u", UserID: p.ID}
	for _, f := range edit {
		f(w)
	}
	const secretKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	key, err := sigv4.NewAccessKey("AKIAQUOTAS", []byte(secretKey), sigv4.Principal{Account: a, ARN: p.ARN, Caller: w})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := sigv4.New(sigv4.Config{Service: quota.SigningName, Regions: []string{q.cfg.Region}, Keys: keys{key}})
	if err != nil {
		t.Fatal(err)
	}
	r := &sigv4.Request{Method: []byte("POST"), Path: []byte("/"), Headers: []sigv4.Header{
		{Name: []byte("host"), Value: []byte("localhost")}, {Name: []byte("x-amz-date"), Value: sigv4.AppendDate(nil, now)},
	}}
	var scratch sigv4.Scratch
	authorization, err := sigv4.AppendAuthorization(nil, key, q.cfg.Region, quota.SigningName, r, &scratch)
	if err != nil {
		t.Fatal(err)
	}
	r.Headers = append(r.Headers, sigv4.Header{Name: []byte("authorization"), Value: authorization})
	identity, code := verifier.Verify(r, &scratch, now)
	if code != kmsapi.OK {
		t.Fatal(code, string(scratch.Message()))
	}
	return caller{t, q, identity}
}

// call returns the reply's members; a refusal has __type.
func (c caller) call(target, body string) map[string]any {
	c.Helper()
	status, reply := c.Serve(c.Context(), c.identity, []byte(target), []byte(body), "test", "127.0.0.1", false, nil, now, new(cloudtrail.Record))
	var out map[string]any
	if err := json.Unmarshal(reply, &out); err != nil {
		c.Fatalf("%s: %v in %s", target, err, reply)
	}
	if _, refused := out["__type"]; refused == (status == 200) {
		c.Errorf("%s: status %d of %s", target, status, reply)
	}
	return out
}

func (c caller) ok(target, body string) map[string]any {
	c.Helper()
	out := c.call(target, body)
	if out["__type"] != nil {
		c.Fatalf("%s %s: %v", target, body, out)
	}
	return out
}

func (c caller) fails(exception, target, body string) {
	c.Helper()
	if out := c.call(target, body); out["__type"] != exception {
		c.Errorf("%s %s: %v, want %s", target, body, out, exception)
	}
}

const everything = `{"Effect":"Allow","Action":"*","Resource":"*"}`

func TestWhoMayWhat(t *testing.T) {
	q := newQuotas(t, "eu-quota-1", quota.Default)
	const set = `{"Quota":"CreateKey","Value":7}`
	admin := q.as(t, first, everything)
	admin.ok(ownPrefix+"SetQuota", set)
	admin.ok(ownPrefix+"SetQuota", `{"Quota":"CreateKey","Value":7,"AccountId":"444455556666"}`)
	admin.ok(ownPrefix+"ShowQuotas", `{"AccountId":"444455556666"}`)
	for name, c := range map[string]struct {
		who caller
		may string // of the operations below
	}{
		"nobody":           {q.as(t, first, ""), ""},
		"KMS only":         {q.as(t, first, `{"Effect":"Allow","Action":"kms:*","Resource":"*"}`), ""},
		"reader":           {q.as(t, first, `{"Effect":"Allow","Action":["servicequotas:List*","servicequotas:Get*"],"Resource":"*"}`), "Get List Show"},
		"one quota":        {q.as(t, first, `{"Effect":"Allow","Action":"servicequotas:RequestServiceQuotaIncrease","Resource":"arn:aws:servicequotas:eu-quota-1:111122223333:kms/KP-CreateKey"}`), "Set Increase"},
		"another quota":    {q.as(t, first, `{"Effect":"Allow","Action":"servicequotas:RequestServiceQuotaIncrease","Resource":"arn:aws:servicequotas:*:*:kms/KP-DescribeKey"}`), ""},
		"other account":    {q.as(t, other, everything), "Get List Show"},
		"forward session":  {q.as(t, first, everything, func(w *authz.Caller) { w.Via = "s.example.com" }), ""},
		"deleted meantime": {q.as(t, first, everything, func(w *authz.Caller) { w.Holder = authz.NewHolder(nil) }), ""},
	} {
		for short, r := range map[string][2]string{
			"Get":  {quota.TargetPrefix + "GetServiceQuota", `{"ServiceCode":"kms","QuotaCode":"KP-CreateKey"}`},
			"List": {quota.TargetPrefix + "ListServiceQuotas", `{"ServiceCode":"kms"}`}, "Show": {ownPrefix + "ShowQuotas", `{}`},
			"Set": {ownPrefix + "SetQuota", set}, "Increase": {quota.TargetPrefix + "RequestServiceQuotaIncrease", `{"ServiceCode":"kms","QuotaCode":"KP-CreateKey","DesiredValue":8}`},
		} {
			admin.ok(ownPrefix+"SetQuota", set)
			out := c.who.call(r[0], r[1])
			if may := strings.Contains(c.may, short); may != (out["__type"] == nil) {
				t.Errorf("%s, %s: %v", name, short, out)
			}
		}
	}
	stranger := q.as(t, other, everything)
	stranger.fails("AccessDeniedException", ownPrefix+"ShowQuotas", `{"AccountId":"111122223333"}`)
	stranger.fails("AccessDeniedException", ownPrefix+"ResetQuota", `{"Quota":"CreateKey"}`)
	status, reply := q.Serve(t.Context(), sigv4.Identity{}, []byte(ownPrefix+"ShowQuotas"), []byte("{}"), "test", "", false, nil, now, new(cloudtrail.Record))
	if status != 400 || !strings.Contains(string(reply), "UnrecognizedClientException") {
		t.Errorf("nobody: %d %s", status, reply)
	}
}

func TestInputs(t *testing.T) {
	q := newQuotas(t, "eu-quota-2", quota.Default)
	c := q.as(t, first, everything)
	c.fails("UnknownOperationException", quota.TargetPrefix+"ListServices", `{}`)
	c.fails("UnknownOperationException", "TrentService.CreateKey", `{}`)
	c.fails("SerializationException", ownPrefix+"SetQuota", `{"Quota":`)
	c.fails("SerializationException", ownPrefix+"SetQuota", `{"Quota":5}`)
	for _, body := range []string{
		`{"Quota":"CreateKey"}`, `{"Quota":"CreateKey","Value":1,"Unlimited":true}`, `{"Quota":"CreateKey","Value":-1}`, `{"Quota":"CreateKey","Value":-0}`, `{"Quota":"KeysPerAccount","Value":-0.0}`, `{"Quota":"CreateKey","Value":1e9}`,
		`{"Quota":"KeysPerAccount","Unlimited":true}`, `{"Quota":"KeysPerAccount","Value":1.5}`, `{"Quota":"KeyPolicyBytes","Value":1}`, `{"Quota":"CreateKey","Value":1,"AccountId":"x"}`,
	} {
		c.fails("IllegalArgumentException", ownPrefix+"SetQuota", body)
	}
	c.fails("NoSuchResourceException", ownPrefix+"ResetQuota", `{"Quota":"Nothing"}`)
	for _, body := range []string{`{"ServiceCode":"kms","MaxResults":0}`, `{"ServiceCode":"kms","MaxResults":101}`} {
		c.fails("IllegalArgumentException", quota.TargetPrefix+"ListServiceQuotas", body)
	}
	for _, token := range []string{"0", "-1", "x", "9999"} {
		c.fails("InvalidPaginationTokenException", quota.TargetPrefix+"ListServiceQuotas", `{"ServiceCode":"kms","NextToken":"`+token+`"}`)
	}
	for _, value := range []string{"1000", "5", "1e10"} {
		c.fails("IllegalArgumentException", quota.TargetPrefix+"RequestServiceQuotaIncrease", `{"ServiceCode":"kms","QuotaCode":"KP-CreateKey","DesiredValue":`+value+`}`)
	}
	c.fails("IllegalArgumentException", quota.TargetPrefix+"RequestServiceQuotaIncrease", `{"ServiceCode":"kms","QuotaCode":"KP-CreateKey"}`)
	// Pages of every size give each quota once.
	for size := 1; size <= 40; size += 13 {
		seen, token := map[any]bool{}, ""
		for {
			out := c.ok(quota.TargetPrefix+"ListServiceQuotas", `{"ServiceCode":"kms","MaxResults":`+string(must(json.Marshal(size)))+`,"NextToken":"`+token+`"}`)
			for _, v := range out["Quotas"].([]any) {
				seen[v.(map[string]any)["QuotaCode"]] = true
			}
			next, more := out["NextToken"].(string)
			if !more {
				break
			}
			token = next
		}
		if len(seen) != len(quota.Quotas) {
			t.Errorf("pages of %d show %d quotas of %d", size, len(seen), len(quota.Quotas))
		}
	}
}

// An account ID that is mistyped is not taken for an account.
func TestAccountThatDoesNotExist(t *testing.T) {
	q := newQuotas(t, "eu-quota-8", quota.Default)
	c := q.as(t, first, everything)
	const nobody = keyid.Account(444455556667)
	for target, body := range map[string]string{
		"SetQuota": `{"Quota":"CreateKey","Value":7,"AccountId":"444455556667"}`, "ResetQuota": `{"Quota":"CreateKey","AccountId":"444455556667"}`,
		"ShowQuotas": `{"AccountId":"444455556667"}`,
	} {
		out := c.call(ownPrefix+target, body)
		if text, _ := out["Message"].(string); out["__type"] != "NoSuchResourceException" || !strings.Contains(text, "account 444455556667") {
			t.Errorf("%s: %v", target, out)
		}
		q.as(t, other, everything).fails("AccessDeniedException", ownPrefix+target, body)
	}
	if own := q.ownOf(nobody); own != nil {
		t.Errorf("in effect: %v", own)
	}
	// What was set nevertheless can be taken back.
	v := 7.0
	if _, err := shared.SetQuota(t.Context(), "eu-quota-8", nobody, "CreateKey", &v); err != nil {
		t.Fatal(err)
	}
	if err := q.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ok(ownPrefix+"ResetQuota", `{"Quota":"CreateKey","AccountId":"444455556667"}`)
	if own := q.ownOf(nobody); own != nil {
		t.Errorf("in effect: %v", own)
	}
}

// Who may not change quotas does not learn which there are; who may is told the name that is meant.
func TestQuotaThatDoesNotExist(t *testing.T) {
	q := newQuotas(t, "eu-quota-9", quota.Default)
	const increase = `{"ServiceCode":"kms","QuotaCode":"KP-Nothing","DesiredValue":8}`
	for name, c := range map[string]caller{"nobody": q.as(t, first, ""), "other account": q.as(t, other, everything)} {
		if out := c.call(quota.TargetPrefix+"RequestServiceQuotaIncrease", increase); out["__type"] != "AccessDeniedException" {
			t.Errorf("%s, RequestServiceQuotaIncrease: %v", name, out)
		}
		if out := c.call(ownPrefix+"SetQuota", `{"Quota":"Nothing","Value":1}`); out["__type"] != "AccessDeniedException" {
			t.Errorf("%s, SetQuota: %v", name, out)
		}
	}
	c := q.as(t, first, everything)
	c.fails("NoSuchResourceException", quota.TargetPrefix+"RequestServiceQuotaIncrease", increase)
	c.fails("NoSuchResourceException", quota.TargetPrefix+"RequestServiceQuotaIncrease", `{"ServiceCode":"ec2","QuotaCode":"KP-CreateKey","DesiredValue":8}`)
	for name, hint := range map[string]string{
		"createkey": " Did you mean CreateKey?", "keys-per-account": " Did you mean KeysPerAccount?", "ml-dsa": " Did you mean ML_DSA?", "l-c2f1777e": " Did you mean KeysPerAccount?",
		"Nothing": ".", "": ".",
	} {
		out := c.call(ownPrefix+"SetQuota", `{"Quota":"`+name+`","Value":1}`)
		if text, _ := out["Message"].(string); out["__type"] != "NoSuchResourceException" || !strings.HasSuffix(text, hint) {
			t.Errorf("%s: %v, want %q", name, out, hint)
		}
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

// A change is in effect when it is answered, in this process, and after a Load in another.
func TestEffect(t *testing.T) {
	q := newQuotas(t, "eu-quota-3", quota.Default)
	second := newQuotas(t, "eu-quota-3", quota.Default)
	c := q.as(t, first, everything)
	c.ok(ownPrefix+"SetQuota", `{"Quota":"Symmetric","Value":0}`)
	c.ok(ownPrefix+"SetQuota", `{"Quota":"AliasesPerKey","Value":3}`)
	c.ok(ownPrefix+"SetQuota", `{"Quota":"RSA","Unlimited":true,"AccountId":"444455556666"}`)
	check := func(q *Quotas, symmetric bool, aliases int, rsa float64) {
		t.Helper()
		if got := q.Charge(first, quota.Symmetric, now); got != symmetric {
			t.Errorf("charged: %v", got)
		}
		if !q.Charge(other, quota.Symmetric, now) {
			t.Error("another account is throttled")
		}
		if got := q.Max(first, quota.AliasesPerKey); got != aliases {
			t.Errorf("%d aliases", got)
		}
		if got := q.valueOf(quota.Find("RSA"), q.ownOf(other)); got != rsa {
			t.Errorf("RSA: %v", got)
		}
	}
	check(q, false, 3, math.Inf(1))
	check(second, true, 50, 1000)
	if err := second.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(second, false, 3, math.Inf(1))
	c.ok(ownPrefix+"ResetQuota", `{"Quota":"Symmetric"}`)
	c.ok(ownPrefix+"ResetQuota", `{"Quota":"AliasesPerKey"}`)
	c.ok(ownPrefix+"ResetQuota", `{"Quota":"RSA","AccountId":"444455556666"}`)
	check(q, true, 50, 1000)
	if err := second.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(second, true, 50, 1000)
}

// What another version wrote and this one does not know has no effect, and keeps nothing else from having one.
func TestUnknownRecords(t *testing.T) {
	for name, v := range map[string]float64{"Nothing": 5, quota.KeyPolicyBytes: 1, quota.AliasesPerKey: kmsapi.AliasesPerKeyMost + 1, "L-C2F1777E": 5, quota.KeysPerAccount: 6} {
		if _, err := shared.SetQuota(t.Context(), "eu-quota-4", first, name, &v); err != nil {
			t.Fatal(err)
		}
	}
	q := newQuotas(t, "eu-quota-4", quota.AWS)
	if got := q.ownOf(first); len(got) != 1 || q.Max(first, quota.KeysPerAccount) != 6 || q.Max(first, quota.AliasesPerKey) != 50 {
		t.Errorf("in effect: %v", got)
	}
}

// What the audit record says of a call, allowed or refused.
func TestRecords(t *testing.T) {
	q := newQuotas(t, "eu-quota-7", quota.Default)
	for _, c := range []struct {
		who                  caller
		target, body         string
		name, params, refuse string
		readOnly             bool
	}{
		{q.as(t, first, everything), ownPrefix + "SetQuota", `{"Quota":"CreateKey","Value":0.5,"AccountId":"444455556666","X":1}`, "SetQuota", `{"quota":"CreateKey","accountId":"444455556666","value":0.5}`, "", false},
		{q.as(t, first, everything), ownPrefix + "SetQuota", `{"Quota":"CreateKey","Unlimited":true}`, "SetQuota", `{"quota":"CreateKey","unlimited":true}`, "", false},
		{q.as(t, first, ""), ownPrefix + "ResetQuota", `{"Quota":"CreateKey"}`, "ResetQuota", `{"quota":"CreateKey"}`, "AccessDeniedException", false},
		{q.as(t, first, everything), quota.TargetPrefix + "RequestServiceQuotaIncrease", `{"ServiceCode":"kms","QuotaCode":"KP-ListKeys","DesiredValue":1}`,
			"RequestServiceQuotaIncrease", `{"serviceCode":"kms","quotaCode":"KP-ListKeys","desiredValue":1}`, "IllegalArgumentException", false},
		{q.as(t, first, everything), ownPrefix + "ShowQuotas", `{}`, "ShowQuotas", "", "", true},
		{q.as(t, first, everything), ownPrefix + "ShowQuotas", `{`, "ShowQuotas", "", "SerializationException", true},
		{q.as(t, first, everything), ownPrefix + "Nothing", `{}`, "", "", "UnknownOperationException", false},
	} {
		var r cloudtrail.Record
		q.Serve(t.Context(), c.who.identity, []byte(c.target), []byte(c.body), "test", "127.0.0.1", false, nil, now, &r)
		if r.Name != c.name || string(r.RequestParameters) != c.params || r.ErrorCode != c.refuse || r.ReadOnly != c.readOnly {
			t.Errorf("%s %s: %s, %s, %s, read only %v", c.target, c.body, r.Name, r.RequestParameters, r.ErrorCode, r.ReadOnly)
		}
	}
}

func TestStoreGone(t *testing.T) {
	q := newQuotas(t, "eu-quota-5", quota.Default)
	c := q.as(t, first, everything)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	status, reply := q.Serve(ctx, c.identity, []byte(ownPrefix+"SetQuota"), []byte(`{"Quota":"CreateKey","Value":7}`), "test", "127.0.0.1", false, nil, now, new(cloudtrail.Record))
	if status != 503 || !strings.Contains(string(reply), "ServiceException") {
		t.Errorf("%d %s", status, reply)
	}
	if err := q.Run(ctx); err == nil {
		t.Error("Run went on")
	}
}

// aws:SecureTransport is of each request.
func TestSecureTransport(t *testing.T) {
	q := newQuotas(t, "eu-quota-20", quota.Default)
	c := q.as(t, first, `{"Effect":"Allow","Action":"servicequotas:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}`)
	for secure, want := range map[bool]int{false: 400, true: 200} {
		status, reply := q.Serve(t.Context(), c.identity, []byte(ownPrefix+"ShowQuotas"), []byte(`{}`), "test", "127.0.0.1", secure, nil, now, new(cloudtrail.Record))
		if status != want || strings.Contains(string(reply), "AccessDenied") == secure {
			t.Errorf("secure %v: %d %s", secure, status, reply)
		}
	}
}

// While the store is read, which takes as long as it takes, changes end at their own time, and so does a reading of Run.
func TestNobodyWaitsForever(t *testing.T) {
	q := newQuotas(t, "eu-quota-10", quota.Default)
	c := q.as(t, first, everything)
	if err := q.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	set := []byte(`{"Quota":"CreateKey","Value":7}`)
	status, reply := q.Serve(ctx, c.identity, []byte(ownPrefix+"SetQuota"), set, "test", "127.0.0.1", false, nil, now, new(cloudtrail.Record))
	if status != 503 || !strings.Contains(string(reply), "ServiceException") {
		t.Errorf("%d %s", status, reply)
	}
	q.reload(t.Context()) // returns
	q.unlock()
	c.ok(ownPrefix+"SetQuota", string(set))
}

// Buckets keep what they owe when a quota changes that is no rate, also with every reading of the store.
func TestResourceQuotasLeaveRatesAlone(t *testing.T) {
	q := newQuotas(t, "eu-quota-11", quota.Default)
	c := q.as(t, first, everything)
	c.ok(ownPrefix+"SetQuota", `{"Quota":"CreateKey","Value":1}`)
	if !q.Charge(first, quota.Find("CreateKey").Pool, now) {
		t.Fatal("a rested account is throttled")
	}
	for _, op := range [][2]string{{"SetQuota", `{"Quota":"AliasesPerKey","Value":3}`}, {"SetQuota", `{"Quota":"CreateKey","Value":1}`}, {"ResetQuota", `{"Quota":"AliasesPerKey"}`}} {
		c.ok(ownPrefix+op[0], op[1])
		if q.Charge(first, quota.Find("CreateKey").Pool, now) {
			t.Errorf("%s %s rested the account", op[0], op[1])
		}
	}
	c.ok(ownPrefix+"ResetQuota", `{"Quota":"CreateKey"}`)
	if !q.Charge(first, quota.Find("CreateKey").Pool, now) {
		t.Error("the usual rate is not in effect")
	}
}

// What has no effect is told when it appears, not with every reading.
func TestUnknownQuotasAreToldOnce(t *testing.T) {
	var log bytes.Buffer
	q, err := New(Config{Store: shared, Region: "eu-quota-12", Profile: quota.Default, First: first, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	store := func(name string, value *float64) {
		t.Helper()
		if _, err := shared.SetQuota(t.Context(), "eu-quota-12", first, name, value); err != nil {
			t.Fatal(err)
		}
	}
	told := func(want int) {
		t.Helper()
		log.Reset()
		if err := q.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), "has no effect"); n != want {
			t.Errorf("told %d times, want %d: %s", n, want, log.String())
		}
	}
	v := 5.0
	store("Nothing", &v)
	told(1)
	told(0)
	store("Another", &v)
	told(2)
	told(0)
	store("Nothing", nil)
	store("Another", nil)
	told(0)
	store("Nothing", &v) // again
	told(1)
}

func TestConcurrentChanges(t *testing.T) {
	q := newQuotas(t, "eu-quota-6", quota.Default)
	c := q.as(t, first, everything)
	var wg sync.WaitGroup
	for _, name := range []string{"CreateKey", "DescribeKey", "ListKeys", quota.KeysPerAccount} {
		wg.Go(func() {
			for range 10 {
				c.ok(ownPrefix+"SetQuota", `{"Quota":"`+name+`","Value":9}`)
				if err := q.Load(c.Context()); err != nil {
					t.Error(err)
				}
				q.Charge(first, quota.Symmetric, now)
			}
		})
	}
	wg.Wait()
	if got := q.ownOf(first); len(got) != 4 {
		t.Errorf("in effect: %v", got)
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	for _, cfg := range []Config{{Region: "r", Profile: quota.AWS}, {Store: shared, Profile: quota.AWS}, {Store: shared, Region: "r"}, {Store: shared, Region: "r", Profile: "AWS"}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}

// Quotas of what there is are shown with how much there is of it.
func TestUsage(t *testing.T) {
	q := newQuotas(t, "eu-quota-7", quota.Default)
	c := q.as(t, first, everything)
	k := &store.KeyStore{
		KeyStoreName: store.KeyStoreName{Region: "eu-quota-7", Account: first, ID: store.NewKeyStoreID([9]byte{1})}, CustomName: "n", Type: store.CloudHSM, Created: now, State: store.Disconnected,
		Cluster: "cluster-quotaquota", TrustAnchor: "-----BEGIN", Secret: secret.New([]byte("password")),
	}
	if err := shared.CreateKeyStore(t.Context(), k, 10, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{quota.KeysPerAccount: 0.0, quota.CustomKeyStoresPerAccount: 1.0}
	for _, d := range c.ok(ownPrefix+"ShowQuotas", "{}")["Quotas"].([]any) {
		d := d.(map[string]any)
		if name := d["Name"].(string); d["Usage"] != want[name] {
			t.Errorf("%s: %v are in use", name, d["Usage"])
		}
	}
}
