package ratelimit

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Several nodes share the rate of one pool by leases: each node may use a part of the rate, a share, until its lease ends. A node asks when a
// request finds no live lease, and again every RenewEvery while requests come, with how many came: shares follow demand. The sum of the live
// shares of a pool is never more than its rate. Where one node serves alone there are no leases: its Table has the whole rate.

// Share is a part of a pool's rate.
type Share struct {
	Rate    Rate
	Expires time.Time
}

// Leaser hands out shares. Lease is called concurrently; it replaces the lease that the node has on the pool. demand is how many requests a
// second came to the node lately, admitted or not. A share of 0 is an answer too, until it expires. A Leaser that cannot be reached answers
// the zero Share, which changes nothing: the lease that the node has stays until its own end, and then requests are refused.
type Leaser interface {
	Lease(node string, a keyid.Account, p Pool, demand float64, now time.Time) Share
}

const (
	// LeaseTerm is how long a share holds: a node that is lost keeps its share from the others for that long, and a control plane that is
	// lost goes unnoticed for that long. RenewEvery is how often shares follow demand.
	LeaseTerm  = 2 * time.Second
	RenewEvery = 50 * time.Millisecond

	// NodesMax bounds the nodes that can have a lease on one pool at one time.
	NodesMax = 64
)

// Shares is a Leaser over the rates of accounts. The zero value is not usable: see NewShares.
type Shares struct {
	rate func(keyid.Account, Pool) Rate
	term time.Duration

	mu    sync.Mutex
	pools map[leasedPool]*[]holding
	swept time.Time
}

type leasedPool struct {
	account keyid.Account
	pool    Pool
}

// holding is the lease of one node on one pool.
type holding struct {
	node    string
	rate    float64
	demand  float64
	expires time.Time
}

// NewShares makes a Leaser that asks rate for the rate of an account's pool each time.
func NewShares(rate func(keyid.Account, Pool) Rate) *Shares {
	return &Shares{rate: rate, term: LeaseTerm, pools: map[leasedPool]*[]holding{}}
}

// NewSharesFor is NewShares with another term than LeaseTerm.
func NewSharesFor(term time.Duration, rate func(keyid.Account, Pool) Rate) *Shares {
	s := NewShares(rate)
	s.term = term
	return s
}

// Claim takes over a lease that a node has from another Shares, whatever others have.
func (s *Shares) Claim(node string, a keyid.Account, p Pool, share Share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held(leasedPool{a, p})
	*held = slices.DeleteFunc(*held, func(h holding) bool { return h.node == node })
	if len(*held) < NodesMax && share.Rate != Unlimited {
		*held = append(*held, holding{node, float64(share.Rate), float64(share.Rate), share.Expires})
	}
}

// Drop ends all leases of a node that is gone.
func (s *Shares) Drop(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, held := range s.pools {
		*held = slices.DeleteFunc(*held, func(h holding) bool { return h.node == node })
	}
}

// held is the leases on a pool. mu is held.
func (s *Shares) held(key leasedPool) *[]holding {
	held := s.pools[key]
	if held == nil {
		held = &[]holding{}
		s.pools[key] = held
	}
	return held
}

// Lease implements Leaser. The node's share is what it would have if the rate was divided among the nodes now (divide), as far as the others
// have left it: those whose part has become smaller hold on to the difference until they renew.
func (s *Shares) Lease(node string, a keyid.Account, p Pool, demand float64, now time.Time) Share {
	return s.lease(node, a, p, demand, now, false)
}

// Renew is Lease for who does not know of all leases yet: the node gets no more than it has.
func (s *Shares) Renew(node string, a keyid.Account, p Pool, demand float64, now time.Time) Share {
	return s.lease(node, a, p, demand, now, true)
}

func (s *Shares) lease(node string, a keyid.Account, p Pool, demand float64, now time.Time, noMore bool) Share {
	total := s.rate(a, p)
	until := now.Add(s.term)
	if total == Unlimited {
		return Share{Unlimited, until}
	}
	if !(demand >= 0) || math.IsInf(demand, 1) {
		demand = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	held, has := s.held(leasedPool{a, p}), 0.0
	for _, h := range *held {
		if h.node == node && h.expires.After(now) {
			has = h.rate
		}
	}
	*held = slices.DeleteFunc(*held, func(h holding) bool { return h.node == node || !h.expires.After(now) })
	if len(*held) == NodesMax {
		return Share{0, now.Add(RenewEvery)}
	}
	left := float64(total)
	demands := []float64{demand}
	for _, h := range *held {
		left -= h.rate
		demands = append(demands, h.demand)
	}
	rate := max(min(divide(float64(total), demands), left), 0)
	if noMore {
		rate = min(rate, has)
	}
	*held = append(*held, holding{node, rate, demand, until})
	if rate == 0 {
		until = now.Add(RenewEvery) // the others give way within that time
	}
	return Share{Rate(rate), until}
}

// divide is the first demand's part of total: what the demands leave goes to all in equal parts; if they are more than there is, nobody gets more
// than it asks for, and those who ask for more get the same (max-min fairness). A demand counts a little higher than it is, and as a hundredth of
// an equal part at least, so that it can grow. It changes demands.
func divide(total float64, demands []float64) float64 {
	sum := 0.0
	for i, d := range demands {
		demands[i] = max(1.01*d, total/float64(100*len(demands)))
		sum += demands[i]
	}
	mine := demands[0]
	if sum <= total {
		return mine + (total-sum)/float64(len(demands))
	}
	sorted := slices.Sorted(slices.Values(demands))
	left := total
	for i, d := range sorted {
		level := left / float64(len(sorted)-i)
		if d >= level {
			return min(mine, level)
		}
		left -= d
	}
	return mine
}

// sweep forgets pools that nobody has a lease on, now and then.
func (s *Shares) sweep(now time.Time) {
	if now.Sub(s.swept) < s.term {
		return
	}
	s.swept = now
	for key, held := range s.pools {
		if !slices.ContainsFunc(*held, func(h holding) bool { return h.expires.After(now) }) {
			delete(s.pools, key)
		}
	}
}

// lease is a node's lease on one pool, as its requests see it.
type lease struct {
	interval atomic.Int64 // Limit.Interval of the share
	expires  atomic.Int64 // on the table's clock; 0: there was never one
	came     atomic.Int64 // requests since then (since)

	mu     sync.Mutex // of who asks
	since  int64      // when requests began to be counted
	demand float64    // requests a second before
}

// cameMin is how many requests that came, or should have, make a demand; fewer are counted for a second.
const cameMin = 16

type leases [PoolsMax]lease

// NewLeasedTable makes a table whose accounts have the shares that a Leaser gives this node. Renew is called every RenewEvery.
func NewLeasedTable(l Leaser, node string, start time.Time) *Table {
	t := NewTable(new(Rates), start)
	t.leaser, t.node = l, node
	return t
}

// charge is Charge with a lease. Only a request that finds none waits for the Leaser.
func (t *Table) chargeLeased(a keyid.Account, acct *account, p Pool, n int, now time.Time) bool {
	l := &acct.leases[p]
	l.came.Add(int64(n))
	at := t.nanos(now)
	if l.expires.Load() <= at {
		l.mu.Lock()
		if l.expires.Load() <= at {
			l.ask(t, a, p, &acct.buckets[p], at, now)
		}
		l.mu.Unlock()
		if l.expires.Load() <= at {
			return false
		}
	}
	interval := l.interval.Load()
	switch {
	case interval == 0:
		return true
	case interval < 0:
		return false
	}
	// The burst of all shares together is that of the whole rate, but for small ones: they have two requests from one a second up, so that a
	// request that comes a little early is not refused.
	burst := max(int(burstSeconds*float64(time.Second))/int(interval), 1)
	if burst == 1 && interval <= int64(time.Second) {
		burst = 2
	}
	ok, _ := acct.buckets[p].TakeN(Limit{time.Duration(interval), burst}, n, at)
	return ok
}

// ask gets a share. mu is held.
func (l *lease) ask(t *Table, a keyid.Account, p Pool, b *GCRA, at int64, now time.Time) {
	came, seconds := l.came.Load(), float64(at-l.since)/float64(time.Second)
	if came >= cameMin || l.demand*seconds >= cameMin || seconds >= 1 {
		l.demand, l.since = float64(came)/max(seconds, 1e-9), at
		l.came.Add(-came)
	}
	share := t.leaser.Lease(t.node, a, p, l.demand, now)
	if share.Expires.IsZero() {
		return
	}
	old, interval := l.interval.Load(), int64(share.Rate.limit().Interval)
	if old > 0 && interval > 0 {
		b.rescale(old, interval, at)
	}
	l.interval.Store(interval)
	l.expires.Store(t.nanos(share.Expires))
}

// rescale keeps what a limit owes, in events, when its interval changes. A charge at the same moment wins.
func (g *GCRA) rescale(old, interval, now int64) {
	if tat := g.tat.Load(); tat > now {
		g.tat.CompareAndSwap(tat, now+int64(float64(tat-now)*float64(interval)/float64(old)))
	}
}

// demandMin is below what a node lets its lease end, in requests a second.
const demandMin = 0.01

// Renew asks for new shares of all pools that requests come to.
func (t *Table) Renew(now time.Time) {
	at := t.nanos(now)
	for i := range t.shards {
		for a, acct := range *t.shards[i].accounts.Load() {
			for p := range acct.leases {
				l := &acct.leases[p]
				if l.expires.Load() <= at && l.came.Load() == 0 {
					continue // it has ended; the next request asks
				}
				l.mu.Lock()
				if l.came.Load() > 0 || l.demand >= demandMin {
					l.ask(t, a, Pool(p), &acct.buckets[p], at, now)
				}
				l.mu.Unlock()
			}
		}
	}
}
