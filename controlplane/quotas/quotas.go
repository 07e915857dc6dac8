package quotas

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/quota"
	"github.com/keyplane/keyplane/ratelimit"
)

// Config is what Quotas is made of. Store, Region and Profile are required.
type Config struct {
	Store   *store.Store
	Region  string
	Profile quota.Profile
	First   keyid.Account    // whose principals may change quotas, of every account
	Logger  *slog.Logger     // nil: slog.Default
	Now     func() time.Time // nil: time.Now
	// Spread returns when every process has what this one has read and written of the store. It is called before a change is acknowledged. nil: there are no others.
	Spread func()
	// Leaser makes this process, of several, share the rates of all (ratelimit.NewLeasedTable); Renew is called then. Node is its name. nil: it has the whole rates.
	Leaser func(rate func(keyid.Account, ratelimit.Pool) ratelimit.Rate) ratelimit.Leaser
	Node   string
}

// Quotas is safe for concurrent use. Load it before it is asked.
type Quotas struct {
	cfg   Config
	table *ratelimit.Table

	// change has one element while the store is read or written, until that is in effect: effects follow the store's order. A channel, so that
	// who waits can give up.
	change  chan struct{}
	strange map[keyid.Account]map[string]float64 // what was set and has no effect, as it was told in the log; guarded by change

	mu  sync.RWMutex
	own map[keyid.Account]map[string]float64 // what was set, by the names of quotas; the inner maps are not changed
}

// reloadEvery is how old a change may be that another process made, or whose outcome was not known.
const reloadEvery = 10 * time.Second

// reloadTimeout bounds a reading in Run. It is well below requestTimeout: changes of quotas wait for it.
const reloadTimeout = 2 * time.Second

// New makes Quotas with the profile's values.
func New(cfg Config) (*Quotas, error) {
	if cfg.Store == nil || cfg.Region == "" || !cfg.Profile.Valid() {
		return nil, errors.New("quotas: a part of the configuration is missing")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Spread == nil {
		cfg.Spread = func() {}
	}
	q := &Quotas{
		cfg: cfg, change: make(chan struct{}, 1), strange: map[keyid.Account]map[string]float64{}, own: map[keyid.Account]map[string]float64{},
	}
	if cfg.Leaser != nil {
		q.table = ratelimit.NewLeasedTable(cfg.Leaser(q.Rate), cfg.Node, cfg.Now())
	} else {
		q.table = ratelimit.NewTable(q.rates(nil), cfg.Now())
	}
	return q, nil
}

// rates are the rates of all pools with what an account has of its own.
func (q *Quotas) rates(own map[string]float64) *ratelimit.Rates {
	var r ratelimit.Rates
	for i := range quota.Quotas {
		if e := &quota.Quotas[i]; e.Rate {
			r[e.Pool] = ratelimit.Rate(q.valueOf(e, own))
		}
	}
	return &r
}

func (q *Quotas) valueOf(e *quota.Quota, own map[string]float64) float64 {
	if v, set := own[e.Name]; set {
		return v
	}
	return e.Value(q.cfg.Profile, q.cfg.Region)
}

// Charge takes one request out of an account's pool and reports whether it fits.
func (q *Quotas) Charge(a keyid.Account, p ratelimit.Pool, now time.Time) bool {
	return q.table.Charge(a, p, 1, now)
}

// Rate is the rate of an account's pool, of which a process of several has a share.
func (q *Quotas) Rate(a keyid.Account, p ratelimit.Pool) ratelimit.Rate {
	e := ratePools[p]
	if e == nil {
		return ratelimit.Unlimited
	}
	return ratelimit.Rate(q.valueOf(e, q.ownOf(a)))
}

// ratePools are the request quotas by their pools.
var ratePools = func() (of [ratelimit.PoolsMax]*quota.Quota) {
	for i := range quota.Quotas {
		if e := &quota.Quotas[i]; e.Rate {
			of[e.Pool] = e
		}
	}
	return of
}()

// Renew asks for new shares, where this process has a Leaser.
func (q *Quotas) Renew(now time.Time) { q.table.Renew(now) }

// Max is the value of a resource quota of an account.
func (q *Quotas) Max(a keyid.Account, name string) int {
	return int(q.valueOf(quota.Find(name), q.ownOf(a)))
}

// ownOf is what an account has instead of the usual values. It is read only.
func (q *Quotas) ownOf(a keyid.Account) map[string]float64 {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return q.own[a]
}

// Load reads what was set from the store and puts it into effect. A quota that this version does not know, or a value that it does not accept,
// is left out, and told in the log when it appears. A record that is damaged is an error; of several processes (Leaser) it changes nothing.
func (q *Quotas) Load(ctx context.Context) error {
	if err := q.lock(ctx); err != nil {
		return err
	}
	defer q.unlock()
	next := map[keyid.Account]map[string]float64{}
	var damaged []func(error)
	unread := false
	if q.cfg.Leaser != nil {
		damaged = append(damaged, func(err error) {
			unread = true
			q.cfg.Logger.Error("quotas of an account could not be read; those known stay in effect", "error", err.Error())
		})
	}
	if err := q.cfg.Store.Quotas(ctx, q.cfg.Region, func(a keyid.Account, values map[string]float64) error {
		next[a] = values
		return nil
	}, damaged...); err != nil {
		return err
	}
	q.mu.RLock()
	before := maps.Clone(q.own)
	q.mu.RUnlock()
	maps.Copy(before, q.strange)
	for a := range before {
		if next[a] == nil && !unread { // or it may be whose record is damaged
			q.apply(a, nil)
		}
	}
	for a, values := range next {
		q.apply(a, values)
	}
	return nil
}

func (q *Quotas) lock(ctx context.Context) error {
	select {
	case q.change <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (q *Quotas) unlock() { <-q.change }

// apply puts the values of an account into effect, unless they are already. change is held.
func (q *Quotas) apply(a keyid.Account, stored map[string]float64) {
	values, strange := map[string]float64{}, map[string]float64{}
	for name, v := range stored {
		if e := quota.Find(name); e == nil || e.Name != name || !e.Accepts(v) {
			strange[name] = v
			continue
		}
		values[name] = v
	}
	if !maps.Equal(q.strange[a], strange) {
		for name, v := range strange {
			q.cfg.Logger.Error("a quota that is set has no effect: this version does not know it, or not that value", "account", a.String(), "quota", name, "value", v)
		}
		keep(q.strange, a, strange)
	}
	q.mu.Lock()
	before := q.rates(q.own[a])
	keep(q.own, a, values)
	q.mu.Unlock()
	if after := q.rates(values); *after != *before { // Set rests the account's buckets
		if len(values) == 0 {
			after = nil
		}
		q.table.Set(a, after)
	}
}

// keep sets what an account has; one that has nothing is left out.
func keep(m map[keyid.Account]map[string]float64, a keyid.Account, values map[string]float64) {
	if len(values) == 0 {
		delete(m, a)
	} else {
		m[a] = values
	}
}

// Apply brings changes of quotas into effect, whoever made them. When it returns, requests that arrive later are counted by what the store had when it was called,
// or later. A record that cannot be trusted changes nothing, as in Load.
func (q *Quotas) Apply(ctx context.Context, changes []store.Change) error {
	for i := range changes {
		c := &changes[i]
		if c.What != store.QuotaChanged || c.Region != q.cfg.Region {
			continue
		}
		if err := q.reread(ctx, c.Account); errors.Is(err, store.ErrDamaged) {
			q.cfg.Logger.Error("quotas of an account could not be read; those known stay in effect", "account", c.Account.String(), "error", err.Error())
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (q *Quotas) reread(ctx context.Context, a keyid.Account) error {
	if err := q.lock(ctx); err != nil {
		return err
	}
	defer q.unlock()
	values, err := q.cfg.Store.AccountQuotas(ctx, q.cfg.Region, a)
	if err != nil {
		return err
	}
	q.apply(a, values)
	return nil
}

// set changes one quota of an account, nil to the usual value. It is in effect when set returns, in every process.
func (q *Quotas) set(ctx context.Context, a keyid.Account, e *quota.Quota, value *float64) error {
	if err := q.write(ctx, a, e, value); err != nil {
		return err
	}
	q.cfg.Spread()
	return nil
}

func (q *Quotas) write(ctx context.Context, a keyid.Account, e *quota.Quota, value *float64) error {
	if err := q.lock(ctx); err != nil {
		return err
	}
	defer q.unlock()
	values, err := q.cfg.Store.SetQuota(ctx, q.cfg.Region, a, e.Name, value)
	if err != nil {
		return err
	}
	q.apply(a, values)
	return nil
}

// Run reads the store again now and then, until ctx ends; it returns ctx's error.
func (q *Quotas) Run(ctx context.Context) error {
	ticker := time.NewTicker(reloadEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		q.reload(ctx)
	}
}

func (q *Quotas) reload(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	if err := q.Load(limited); err != nil && ctx.Err() == nil {
		q.cfg.Logger.Error("quotas could not be read; those known stay in effect", "error", err.Error())
	}
}
