package planes

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/ratelimit"
)

// Leaser is the leases of one member on all pools of all Regions. A request never waits for it: what it answers is the last that the owner said, and for a pool
// that no request came to for a while, and while no owner answers for so long that the lease has ended, an equal part of the rate (the rate over the number of members), until the next
// answer. So a cold pool costs no round trip, and members go on without a control plane. What is admitted beyond a rate is bounded by that: the equal
// part, for some RenewEvery after a pool was cold; and while a member is cut off from the owner, and the others are not, one equal part.
type Leaser struct {
	ask   func(ctx context.Context, m *leaseMessage) (*leaseAnswer, error)
	nodes func() int

	kick  chan struct{} // capacity 1: a cold pool has a request
	mu    sync.Mutex
	epoch uint64
	pools map[pool]*leased

	renewing sync.Mutex
	tables   []func(now time.Time)
}

// leased is what is known of one pool.
type leased struct {
	demand   float64
	asked    bool // since the last message
	rate     float64
	expires  time.Time // zero: it was never told
	answered time.Time // when the owner said so
	used     time.Time // when it was asked for last
}

// leaseTimeout is how long a message may take; the next one does not wait longer than that.
const leaseTimeout = time.Second

// provisional is for how long an equal part is good, until it is asked for again.
const provisional = 2 * ratelimit.RenewEvery

// NewLeaser makes the leaser of a member; nodes is how many members there are that share what this one asks for. own is the Leases of this process, if it is a
// control plane, else nil.
func NewLeaser(c *Client, own *Leases, node string, nodes func() int) *Leaser {
	l := &Leaser{nodes: nodes, kick: make(chan struct{}, 1), pools: map[pool]*leased{}}
	l.ask = func(ctx context.Context, m *leaseMessage) (*leaseAnswer, error) {
		if own != nil {
			if a, err := own.answer(ctx, node, m); err == nil {
				return a, nil
			}
		}
		if c == nil {
			return nil, ErrUnavailable
		}
		return c.lease(ctx, m)
	}
	return l
}

// lease asks the owner, which is the one of the control planes that does not refuse.
func (c *Client) lease(ctx context.Context, m *leaseMessage) (*leaseAnswer, error) {
	frame := appendLeaseMessage(nil, m)
	errs := []error{ErrUnavailable}
	for _, at := range c.order(&c.owner) {
		if !c.targets[at].up.Load() {
			break // they come last
		}
		b, _, err := c.send(ctx, c.targets[at], pathLease, frame, leaseMax)
		if err == nil {
			c.owner.Store(int32(at))
			return parseLeaseAnswer(b)
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// In is the leaser of one Region, whose rates are these. renew is called, by Run, for new shares to take effect: ratelimit.Table.Renew of the table that has it.
func (l *Leaser) In(region string, rate func(keyid.Account, ratelimit.Pool) ratelimit.Rate) ratelimit.Leaser {
	return &regionLeaser{l, region, rate}
}

// Renews adds a table.
func (l *Leaser) Renews(renew func(now time.Time)) {
	l.renewing.Lock()
	defer l.renewing.Unlock()
	l.tables = append(l.tables, renew)
}

type regionLeaser struct {
	*Leaser
	region string
	rate   func(keyid.Account, ratelimit.Pool) ratelimit.Rate
}

// Lease is a ratelimit.Leaser's.
func (l *regionLeaser) Lease(_ string, a keyid.Account, p ratelimit.Pool, demand float64, now time.Time) ratelimit.Share {
	total := l.rate(a, p)
	if total == ratelimit.Unlimited {
		return ratelimit.Share{Rate: total, Expires: now.Add(LeaseTerm)}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	key := pool{l.region, a, p}
	e := l.pools[key]
	if e == nil {
		e = new(leased)
		l.pools[key] = e
	}
	e.demand, e.asked, e.used = demand, true, now
	switch {
	case e.expires.After(now):
		return ratelimit.Share{Rate: min(ratelimit.Rate(e.rate), total), Expires: e.expires}
	case now.Sub(e.answered) < leaseTimeout: // its share was for a moment, as those are of who gets none yet
		return ratelimit.Share{Rate: min(ratelimit.Rate(e.rate), total), Expires: now.Add(ratelimit.RenewEvery)}
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return ratelimit.Share{Rate: total / ratelimit.Rate(max(l.nodes(), 1)), Expires: now.Add(provisional)}
}

// Run asks for all pools that requests come to, every RenewEvery and at once for one that was cold, until ctx ends, whose error it returns.
func (l *Leaser) Run(ctx context.Context) error {
	tick := time.NewTicker(ratelimit.RenewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			l.renew()
		case <-l.kick:
		}
		if l.exchange(ctx) {
			l.renew() // what has come takes effect
		}
	}
}

func (l *Leaser) renew() {
	l.renewing.Lock()
	defer l.renewing.Unlock()
	now := time.Now()
	for _, renew := range l.tables {
		renew(now)
	}
}

// exchange asks the owner for what was asked of l since, and reports whether it has answered.
func (l *Leaser) exchange(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	epoch, asks := l.collect(false)
	if len(asks) == 0 {
		return false
	}
	ok := false
	for part := range slices.Chunk(asks, LeaseAsksMax) {
		began := time.Now()
		a, err := l.ask(ctx, &leaseMessage{epoch: epoch, asks: part})
		if err != nil {
			return ok
		}
		if a.epoch != epoch { // another owner
			return l.introduce(ctx)
		}
		ok = l.take(part, a, began) || ok
	}
	return ok
}

// introduce tells a new owner all that this member has.
func (l *Leaser) introduce(ctx context.Context) bool {
	_, asks := l.collect(true)
	for {
		part := asks[:min(len(asks), LeaseAsksMax)]
		asks = asks[len(part):]
		began := time.Now()
		a, err := l.ask(ctx, &leaseMessage{complete: len(asks) == 0, asks: part})
		if err != nil {
			return false
		}
		if len(asks) == 0 {
			l.mu.Lock()
			l.epoch = a.epoch
			l.mu.Unlock()
			return l.take(part, a, began)
		}
	}
}

// collect is what to ask for: what requests came to, and for a new owner whatever there is a lease on. It forgets what nobody asks for any more.
func (l *Leaser) collect(all bool) (epoch uint64, asks []leaseAsk) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, e := range l.pools {
		live := e.expires.After(now)
		if e.asked || all && live {
			ask := leaseAsk{pool: key, demand: e.demand}
			if live {
				ask.rate, ask.left = e.rate, min(int64(e.expires.Sub(now)), int64(leaseLeftMax))
			}
			asks = append(asks, ask)
			e.asked = false
		} else if !live && now.Sub(e.used) > LeaseTerm {
			delete(l.pools, key)
		}
	}
	return l.epoch, asks
}

// take keeps what the owner has answered to asks. Its times count from before they were sent.
func (l *Leaser) take(asks []leaseAsk, a *leaseAnswer, began time.Time) bool {
	if len(a.shares) != len(asks) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range asks {
		if e := l.pools[asks[i].pool]; e != nil && a.shares[i].left > 0 { // else the owner does not know yet
			e.rate, e.expires, e.answered = a.shares[i].rate, began.Add(time.Duration(a.shares[i].left)), time.Now()
		}
	}
	return true
}
