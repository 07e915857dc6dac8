package quotas

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/quota"
)

const (
	listMax = 100 // quotas on one page

	// unlimitedValue stands for a request quota that is not limited where Service Quotas has a number: the highest that can be asked for.
	unlimitedValue = 1e10
)

type period struct {
	PeriodValue int
	PeriodUnit  string
}

// serviceQuota is a quota as Service Quotas shows it.
type serviceQuota struct {
	ServiceCode         string
	ServiceName         string
	QuotaArn            string
	QuotaCode           string
	QuotaName           string
	Value               float64
	Unit                string
	Adjustable          bool
	GlobalQuota         bool
	Period              *period `json:",omitempty"`
	QuotaAppliedAtLevel string
}

func (c *call) show(a keyid.Account, e *quota.Quota, value float64) serviceQuota {
	q := serviceQuota{
		ServiceCode: quota.ServiceCode, ServiceName: quota.ServiceName, QuotaArn: c.quotaARN(a, e), QuotaCode: e.Code, QuotaName: e.Title,
		Value: min(value, unlimitedValue), Unit: "None", Adjustable: e.Adjustable, QuotaAppliedAtLevel: "ACCOUNT",
	}
	if e.Rate {
		q.Period = &period{1, "SECOND"}
	}
	return q
}

// applied is what an account has, usual what it has unless somebody sets another value.
func (c *call) applied(e *quota.Quota) float64 { return c.valueOf(e, c.ownOf(c.caller.Account)) }
func (c *call) usual(e *quota.Quota) float64   { return c.valueOf(e, nil) }

type quotaIn struct {
	ServiceCode string
	QuotaCode   string
}

func (in *quotaIn) find() (*quota.Quota, error) {
	if in.ServiceCode != quota.ServiceCode {
		return nil, refuse("NoSuchResourceException", "The request failed because the specified service does not exist.")
	}
	e := quota.Find(in.QuotaCode)
	if e == nil || e.Code != in.QuotaCode {
		return nil, refuse("NoSuchResourceException", "The request failed because the specified service quota does not exist.")
	}
	return e, nil
}

type quotaOut struct{ Quota serviceQuota }

func (c *call) getServiceQuota(_ context.Context, in *quotaIn) (any, error) {
	return c.get(in, c.applied)
}
func (c *call) getDefault(_ context.Context, in *quotaIn) (any, error) { return c.get(in, c.usual) }

func (c *call) get(in *quotaIn, value func(*quota.Quota) float64) (any, error) {
	if err := c.permit("*", c.caller.Account, false); err != nil {
		return nil, err
	}
	e, err := in.find()
	if err != nil {
		return nil, err
	}
	return quotaOut{c.show(c.caller.Account, e, value(e))}, nil
}

type listIn struct {
	ServiceCode string
	QuotaCode   string
	MaxResults  *int
	NextToken   string
}

type listOut struct {
	Quotas    []serviceQuota
	NextToken string `json:",omitempty"`
}

func (c *call) listServiceQuotas(_ context.Context, in *listIn) (any, error) {
	return c.list(in, c.applied)
}
func (c *call) listDefaults(_ context.Context, in *listIn) (any, error) { return c.list(in, c.usual) }

// list shows the quotas from the one that NextToken numbers on.
func (c *call) list(in *listIn, value func(*quota.Quota) float64) (any, error) {
	if err := c.permit("*", c.caller.Account, false); err != nil {
		return nil, err
	}
	if in.ServiceCode != quota.ServiceCode {
		return nil, refuse("NoSuchResourceException", "The request failed because the specified service does not exist.")
	}
	size := listMax
	if in.MaxResults != nil {
		if size = *in.MaxResults; size < 1 || size > listMax {
			return nil, refuse("IllegalArgumentException", "MaxResults is 1 to 100.")
		}
	}
	from := 0
	if in.NextToken != "" {
		n, err := strconv.ParseUint(in.NextToken, 10, 16)
		if err != nil || n == 0 || int(n) >= len(quota.Quotas) {
			return nil, refuse("InvalidPaginationTokenException", "Invalid input was provided.")
		}
		from = int(n)
	}
	out := listOut{Quotas: []serviceQuota{}}
	for i := from; i < len(quota.Quotas); i++ {
		e := &quota.Quotas[i]
		if in.QuotaCode != "" && e.Code != in.QuotaCode {
			continue
		}
		if len(out.Quotas) == size {
			out.NextToken = strconv.Itoa(i)
			break
		}
		out.Quotas = append(out.Quotas, c.show(c.caller.Account, e, value(e)))
	}
	return out, nil
}

type increaseIn struct {
	ServiceCode  string
	QuotaCode    string
	DesiredValue *float64
}

type requestedQuota struct {
	Id           string
	ServiceCode  string
	ServiceName  string
	QuotaCode    string
	QuotaName    string
	DesiredValue float64
	Status       string
	Created      float64 // seconds since 1970
	LastUpdated  float64
	Requester    string
	QuotaArn     string
	GlobalQuota  bool
	Unit         string
}

type requestedQuotaOut struct{ RequestedQuota requestedQuota }

// RequestServiceQuotaIncrease is granted at once.
func (c *call) requestIncrease(ctx context.Context, in *increaseIn) (any, error) {
	e, unknown := (&quotaIn{in.ServiceCode, in.QuotaCode}).find()
	a := c.caller.Account
	if err := c.permit(c.quotaARN(a, e), a, true); err != nil {
		return nil, err
	}
	if unknown != nil {
		return nil, unknown
	}
	if in.DesiredValue == nil || !e.Accepts(*in.DesiredValue) || *in.DesiredValue <= c.applied(e) {
		return nil, refuse("IllegalArgumentException", "The quota cannot have that value, or has as much already.")
	}
	if err := c.set(ctx, a, e, in.DesiredValue); err != nil {
		return nil, err
	}
	now := float64(c.now.UnixMilli()) / float64(time.Second/time.Millisecond)
	return requestedQuotaOut{requestedQuota{
		Id: newID(), ServiceCode: quota.ServiceCode, ServiceName: quota.ServiceName, QuotaCode: e.Code, QuotaName: e.Title, DesiredValue: *in.DesiredValue,
		Status: "APPROVED", Created: now, LastUpdated: now, Requester: c.caller.ARN, QuotaArn: c.quotaARN(a, e), Unit: "None",
	}}, nil
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// changeIn is the input of the operations that AWS does not have. Without AccountId they are about the caller's account. Quota is a name, a
// code or AWS's title.
type changeIn struct {
	AccountId string
	Quota     string
	Value     *float64
	Unlimited bool
}

func (c *call) account(id string) (keyid.Account, error) {
	if id == "" {
		return c.caller.Account, nil
	}
	a, ok := keyid.ParseAccount([]byte(id))
	if !ok {
		return 0, refuse("IllegalArgumentException", "An account ID has 12 digits.")
	}
	return a, nil
}

// exists refuses an account that the store does not have, so that a mistyped ID does not look like success. The caller's exists.
func (c *call) exists(ctx context.Context, a keyid.Account) error {
	if a == c.caller.Account {
		return nil
	}
	_, err := c.cfg.Store.Account(ctx, a)
	if errors.Is(err, store.ErrNotFound) {
		return refuse("NoSuchResourceException", "The request failed because there is no account "+a.String()+".")
	}
	return err
}

// similar is a hint at the quota whose name, code or title differs from what was asked for in case and punctuation only, "" for none.
func similar(name string) string {
	want := letters(name)
	for i := range quota.Quotas {
		if e := &quota.Quotas[i]; want == letters(e.Name) || want == letters(e.Code) || want == letters(e.Title) {
			return " Did you mean " + e.Name + "?"
		}
	}
	return ""
}

// letters is the letters and digits of a name, in lower case.
func letters(name string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsLetter(c) || unicode.IsDigit(c) {
			return unicode.ToLower(c)
		}
		return -1
	}, name)
}

// SetQuota gives an account another value of a quota, higher or lower.
func (c *call) setQuota(ctx context.Context, in *changeIn) (any, error) {
	if in.Unlimited == (in.Value != nil) {
		return nil, refuse("IllegalArgumentException", "Value or Unlimited is needed, and not both.")
	}
	value := math.Inf(1)
	if in.Value != nil {
		value = *in.Value
	}
	return c.changeQuota(ctx, in, &value)
}

// values says what a quota can be set to.
func values(e *quota.Quota) string {
	switch {
	case e.Fixed:
		return "it does not change."
	case e.Rate:
		return "it is unlimited, 0, or 0.001 to " + strconv.FormatFloat(e.Most, 'f', -1, 64) + "."
	}
	return "it is a whole number up to " + strconv.FormatFloat(e.Most, 'f', -1, 64) + "."
}

// ResetQuota gives an account the usual value of a quota again.
func (c *call) resetQuota(ctx context.Context, in *changeIn) (any, error) {
	return c.changeQuota(ctx, in, nil)
}

func (c *call) changeQuota(ctx context.Context, in *changeIn, value *float64) (any, error) {
	a, err := c.account(in.AccountId)
	if err != nil {
		return nil, err
	}
	e := quota.Find(in.Quota)
	if err := c.permit(c.quotaARN(a, e), a, true); err != nil {
		return nil, err
	}
	if e == nil {
		return nil, refuse("NoSuchResourceException", "The request failed because the specified service quota does not exist."+similar(in.Quota))
	}
	if value != nil || len(c.ownOf(a)) == 0 { // what was set for an account can be reset in any case
		if err := c.exists(ctx, a); err != nil {
			return nil, err
		}
	}
	if value != nil && (!e.Accepts(*value) || math.Signbit(*value)) { // -0 is no value
		return nil, refuse("IllegalArgumentException", e.Name+" cannot have that value: "+values(e))
	}
	if err := c.set(ctx, a, e, value); err != nil {
		return nil, err
	}
	return c.detail(ctx, a, e)
}

// quotaDetail is a quota as keyplane's own operations show it. Value and Usual are numbers or "unlimited".
type quotaDetail struct {
	Name  string
	Code  string
	Title string
	Value any
	Usual any
	Set   bool // Value was set for this account
	Rate  bool // requests per second
	Usage *int `json:",omitempty"`
}

func number(v float64) any {
	if math.IsInf(v, 1) {
		return "unlimited"
	}
	return v
}

func (c *call) detail(ctx context.Context, a keyid.Account, e *quota.Quota) (quotaDetail, error) {
	own := c.ownOf(a)
	_, set := own[e.Name]
	d := quotaDetail{Name: e.Name, Code: e.Code, Title: e.Title, Value: number(c.valueOf(e, own)), Usual: number(c.usual(e)), Set: set, Rate: e.Rate}
	var err error
	n := 0
	switch e.Name {
	case quota.KeysPerAccount:
		n, err = c.cfg.Store.KeyCount(ctx, c.cfg.Region, a)
	case quota.CustomKeyStoresPerAccount:
		n, err = c.cfg.Store.KeyStoreCount(ctx, c.cfg.Region, a)
	default:
		return d, nil
	}
	d.Usage = &n
	return d, err
}

type showOut struct {
	AccountId string
	Region    string
	Profile   string
	Quotas    []quotaDetail
}

// ShowQuotas lists all quotas of an account, with usage where it is counted.
func (c *call) showQuotas(ctx context.Context, in *changeIn) (any, error) {
	a, err := c.account(in.AccountId)
	if err != nil {
		return nil, err
	}
	if err := c.permit("*", a, false); err != nil {
		return nil, err
	}
	if err := c.exists(ctx, a); err != nil {
		return nil, err
	}
	out := showOut{AccountId: a.String(), Region: c.cfg.Region, Profile: string(c.cfg.Profile)}
	for i := range quota.Quotas {
		d, err := c.detail(ctx, a, &quota.Quotas[i])
		if err != nil {
			return nil, err
		}
		out.Quotas = append(out.Quotas, d)
	}
	return out, nil
}
