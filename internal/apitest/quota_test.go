package apitest

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/internal/node"
)

// quota runs `keyplane quota`, which succeeds, and returns what it printed.
func (s *Server) quota(t *testing.T, args ...string) string {
	t.Helper()
	code, out, errs := s.keyplane(t, s.node.CredentialsPath(), append([]string{"quota"}, args...)...)
	if code != 0 || errs != "" {
		t.Fatalf("keyplane quota %s: exit status %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// shown is what `keyplane quota show --json` says of one quota.
type shown struct {
	Name         string
	Value, Usual any
	Set          bool
	Usage        *int
}

func (s *Server) shownQuota(t *testing.T, name string, args ...string) shown {
	t.Helper()
	var out struct{ Quotas []shown }
	text := s.quota(t, append([]string{"show", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatal(err)
	}
	for _, q := range out.Quotas {
		if q.Name == name {
			return q
		}
	}
	t.Fatalf("there is no quota %s", name)
	return shown{}
}

// TestQuotaCLI: quotas that are set by `keyplane quota` hold from the next request on, also after a restart, for one account and not for another.
func TestQuotaCLI(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := Start(t)
	c := s.KMS(t)
	throttled := func(err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), "ThrottlingException") {
			t.Errorf("got %v, want a ThrottlingException", err)
		}
	}
	create := func() error {
		_, err := c.CreateKey(ctx, &kms.CreateKeyInput{})
		return err
	}
	for range 3 {
		must(0, create())(t)
	}
	if q := s.shownQuota(t, "KeysPerAccount"); q.Usage == nil || *q.Usage != 3 || q.Value != 100_000.0 || q.Set {
		t.Errorf("shown: %+v", q)
	}
	// Request quotas, down and up.
	s.quota(t, "set", "--quota", "CreateKey", "--value", "0")
	throttled(create())
	s.quota(t, "set", "--quota", "CreateKey request rate", "--value", "unlimited")
	for range 5 {
		must(0, create())(t)
	}
	if q := s.shownQuota(t, "CreateKey"); q.Value != "unlimited" || q.Usual != 1000.0 || !q.Set {
		t.Errorf("shown: %+v", q)
	}
	s.quota(t, "set", "--quota", "Symmetric", "--value", "0")
	random := func() error {
		_, err := c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: aws.Int32(8)})
		return err
	}
	throttled(random())
	// Resource quotas.
	s.quota(t, "set", "--quota", "L-C2F1777E", "--value", "9")
	must(0, create())(t)
	refusedAs[*types.LimitExceededException](t, create())

	s.Restart(t)
	c = s.KMS(t)
	throttled(random())
	refusedAs[*types.LimitExceededException](t, create())
	for _, name := range []string{"Symmetric", "CreateKey", "KeysPerAccount"} {
		s.quota(t, "reset", "--quota", name)
		if q := s.shownQuota(t, name); q.Set || q.Value != q.Usual {
			t.Errorf("shown after reset: %+v", q)
		}
	}
	must(0, random())(t)
	must(0, create())(t)

	// Another account sees its own and changes none; the first account changes them.
	const other = "444455556666"
	root := filepath.Join(t.TempDir(), "root")
	s.iam(t, s.node.CredentialsPath(), new(any), "create-account", "--account-id", other, "--credentials-file", root)
	if code, out, errs := s.keyplane(t, root, "quota", "show"); code != 0 || !strings.Contains(out, "account "+other) {
		t.Errorf("show: exit status %d: %s", code, errs)
	}
	for _, args := range [][]string{
		{"set", "--quota", "CreateKey", "--value", "7"}, {"reset", "--quota", "CreateKey"}, {"set", "--quota", "CreateKey", "--value", "7", "--account", Account},
		{"show", "--account", Account},
	} {
		if code, _, errs := s.keyplane(t, root, append([]string{"quota"}, args...)...); code != 1 || !strings.HasPrefix(errs, "AccessDeniedException: User: arn:aws:iam::"+other+":root is not authorized") {
			t.Errorf("%v: exit status %d: %s", args, code, errs)
		}
	}
	s.quota(t, "set", "--quota", "KeysPerAccount", "--value", "0", "--account", other)
	e := s.Endpoint
	e.AccessKeyID, e.SecretAccessKey = readCredentials(t, root)
	_, err := e.KMS(t).CreateKey(ctx, &kms.CreateKeyInput{})
	refusedAs[*types.LimitExceededException](t, err)
	must(0, create())(t)

	for _, c := range []struct {
		code int
		want string
		args []string
	}{
		{1, "NoSuchResourceException: ", []string{"set", "--quota", "Nothing", "--value", "7"}},
		{1, "IllegalArgumentException: KeysPerAccount cannot have that value: it is a whole number up to 100000000.", []string{"set", "--quota", "KeysPerAccount", "--value", "unlimited"}},
		{1, "IllegalArgumentException: KeyPolicyBytes cannot have that value: it does not change.", []string{"set", "--quota", "KeyPolicyBytes", "--value", "7"}},
		{1, "IllegalArgumentException: An account ID has 12 digits.", []string{"show", "--account", "1"}},
		{2, "keyplane quota set: --value \"many\" is neither a number nor unlimited", []string{"set", "--quota", "CreateKey", "--value", "many"}},
		{2, "keyplane quota set: --value is missing", []string{"set", "--quota", "CreateKey"}},
		{2, "keyplane quota reset: --quota is missing", []string{"reset"}},
		{2, "keyplane quota show: unexpected argument \"x\"", []string{"show", "x"}},
		{2, "keyplane quota: there is no command \"raise\"", []string{"raise"}},
	} {
		if code, _, errs := s.keyplane(t, s.node.CredentialsPath(), append([]string{"quota"}, c.args...)...); code != c.code || !strings.HasPrefix(errs, c.want) {
			t.Errorf("%v: exit status %d: %s", c.args, code, errs)
		}
	}
}

// TestKeysUpToTheQuota is the short form of `make quota-keys`: keys are made in parallel, exactly as many as the quota, and listed on pages.
func TestKeysUpToTheQuota(t *testing.T) {
	t.Parallel()
	const quota, workers = 300, 16
	ctx := t.Context()
	s := Start(t, func(c *node.Config) { c.Quotas = "off" })
	s.quota(t, "set", "--quota", "KeysPerAccount", "--value", fmt.Sprint(quota))
	c := s.KMS(t)
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range (quota + 20) / workers {
				_, err := c.CreateKey(ctx, &kms.CreateKeyInput{})
				switch {
				case err == nil:
					made.Add(1)
				case strings.Contains(err.Error(), "LimitExceededException"):
					refused.Add(1)
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if made.Load() != quota || refused.Load() != 20 {
		t.Errorf("%d keys were made, %d refused", made.Load(), refused.Load())
	}
	seen := map[string]bool{}
	pages := kms.NewListKeysPaginator(c, &kms.ListKeysInput{Limit: aws.Int32(70)})
	for pages.HasMorePages() {
		for _, k := range must(pages.NextPage(ctx))(t).Keys {
			seen[*k.KeyId] = true
		}
	}
	if len(seen) != quota {
		t.Errorf("%d keys are listed", len(seen))
	}
}

// TestQuotasProfile: with --quotas aws a sixth CreateKey in a moment is throttled; the SDK's retries get it through.
func TestQuotasProfile(t *testing.T) {
	t.Parallel()
	s := Start(t, func(c *node.Config) { c.Quotas = "aws" })
	c := s.Client(t)
	refused := 0
	for range 200 {
		if r := c.Do(t, "CreateKey", "{}"); r.Status != 200 {
			refused++
		}
	}
	if refused == 0 {
		t.Error("200 keys were made without a ThrottlingException")
	}
	patient := s.KMS(t, func(o *kms.Options) {
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts = 10 })
	})
	must(patient.CreateKey(t.Context(), &kms.CreateKeyInput{}))(t)
}

// TestServiceQuotasCLI: Debian's awscli reads and raises quotas.
func TestServiceQuotasCLI(t *testing.T) {
	t.Parallel()
	p := Command(t, filepath.Join(t.TempDir(), "data"))
	a := &awsCLI{p: p, home: t.TempDir()}
	ok := func(v any, args ...string) {
		t.Helper()
		code, out, errs := a.service(t, nil, append([]string{"service-quotas"}, args...)...)
		if code != 0 {
			t.Fatalf("%v: exit status %d: %s", args, code, errs)
		}
		if err := json.Unmarshal(out, v); err != nil {
			t.Fatal(err)
		}
	}
	fails := func(exception string, args ...string) {
		t.Helper()
		code, _, errs := a.service(t, nil, append([]string{"service-quotas"}, args...)...)
		if code != 254 || !strings.Contains(string(errs), "An error occurred ("+exception+")") {
			t.Errorf("%v: exit status %d: %s, want %s", args, code, errs, exception)
		}
	}
	type quota struct {
		QuotaCode, QuotaName, QuotaArn string
		Value                          float64
		Period                         struct{ PeriodUnit string }
	}
	var list struct{ Quotas []quota }
	ok(&list, "list-service-quotas", "--service-code", "kms", "--page-size", "20")
	seen := map[string]quota{}
	for _, q := range list.Quotas {
		seen[q.QuotaCode] = q
	}
	if len(seen) != len(list.Quotas) || len(seen) < 60 || seen["L-6E3AF000"].Value != 100_000 || seen["L-6E3AF000"].Period.PeriodUnit != "SECOND" {
		t.Errorf("%d quotas, %d different, symmetric %+v", len(list.Quotas), len(seen), seen["L-6E3AF000"])
	}
	var one struct{ Quota quota }
	ok(&one, "get-service-quota", "--service-code", "kms", "--quota-code", "L-C2F1777E")
	equal(t, "QuotaArn", one.Quota.QuotaArn, "arn:aws:servicequotas:"+Region+":"+Account+":kms/L-C2F1777E")
	equal(t, "QuotaName", one.Quota.QuotaName, "Customer Master Keys (CMKs)")
	var request struct{ RequestedQuota struct{ Status string } }
	ok(&request, "request-service-quota-increase", "--service-code", "kms", "--quota-code", "L-C2F1777E", "--desired-value", "100001")
	equal(t, "Status", request.RequestedQuota.Status, "APPROVED")
	ok(&one, "get-service-quota", "--service-code", "kms", "--quota-code", "L-C2F1777E")
	if one.Quota.Value != 100_001 {
		t.Errorf("granted, and it is %v", one.Quota.Value)
	}
	ok(&one, "get-aws-default-service-quota", "--service-code", "kms", "--quota-code", "L-C2F1777E")
	if one.Quota.Value != 100_000 {
		t.Errorf("the default is %v", one.Quota.Value)
	}
	ok(&list, "list-aws-default-service-quotas", "--service-code", "kms")
	fails("IllegalArgumentException", "request-service-quota-increase", "--service-code", "kms", "--quota-code", "L-C2F1777E", "--desired-value", "5")
	fails("NoSuchResourceException", "get-service-quota", "--service-code", "kms", "--quota-code", "L-none")
	fails("NoSuchResourceException", "list-service-quotas", "--service-code", "ec2")
	fails("InvalidPaginationTokenException", "list-service-quotas", "--service-code", "kms", "--starting-token", "x", "--page-size", "10")
	fails("UnknownOperationException", "list-services")
}
