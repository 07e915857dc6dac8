package ratelimit

import (
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// Pool numbers one request quota. What the numbers mean is the caller's.
type Pool uint8

// PoolsMax bounds the pools of a Table.
const PoolsMax = 96

// Rate is in requests per second. 0 refuses every request; Unlimited counts none.
type Rate float64

// Unlimited is the rate of a pool that nothing is charged to. RateMax is the highest other one: 100 ns between two requests.
var Unlimited = Rate(math.Inf(1))

const RateMax = 10_000_000

// Valid reports whether a pool can have the rate: Unlimited, 0, or from one request in 1000 seconds to RateMax.
func (r Rate) Valid() bool { return r == 0 || r == Unlimited || r >= 0.001 && r <= RateMax }

// burstSeconds is how far a rested account may run ahead of its rate: a tenth of a second's requests, so that over 30 s of more than it may
// send an account gets at most 0.34 % above its quota, and over any second at most a tenth. Below 100/s it is burstRequests, or one second's
// if those are fewer, as AWS, which counts in seconds, lets a second's requests come at once; that stays within 1 % over 30 s from 34/s up.
const (
	burstSeconds  = 0.1
	burstRequests = 10
)

// limit is a Rate as buckets use it: Limit.Interval 0 is Unlimited, less than 0 refuses everything.
func (r Rate) limit() Limit {
	switch {
	case r == Unlimited:
		return Limit{}
	case r <= 0:
		return Limit{Interval: -1}
	}
	burst := max(float64(r)*burstSeconds, min(float64(r), burstRequests), 1)
	return Limit{Interval: time.Duration(math.Round(float64(time.Second) / float64(r))), Burst: int(burst)}
}

// Rates has a rate for every pool.
type Rates [PoolsMax]Rate

const (
	tableShards = 64 // a power of two

	// AccountsMax bounds the accounts that a Table keeps buckets of at one time, about 1 KiB each.
	AccountsMax = 16_384
)

// Table has the buckets of every account that was charged. It is safe for concurrent use; Charge takes no lock and allocates nothing but on
// an account's first request. The number of accounts is bounded: at the bound those that are rested make room, and while none is a request
// of another account is refused.
type Table struct {
	start  time.Time
	leaser Leaser // nil: the accounts have the whole rates (lease.go)
	node   string
	shards [tableShards]tableShard

	write  sync.Mutex // held while a shard's accounts are replaced, and guards what follows
	kept   int        // accounts in all shards
	restAt int64      // before this instant none of them rests, known while the table is full; nanoseconds of the table's clock

	mu       sync.RWMutex // guards what follows; write may be held
	usual    *limits
	override map[keyid.Account]*limits
}

type limits [PoolsMax]Limit

type tableShard struct {
	accounts atomic.Pointer[map[keyid.Account]*account] // copied on write
}

// account is the buckets of one account. A change of its limits is a new account.
type account struct {
	limits  *limits
	leases  *leases // of a table with a Leaser
	buckets [PoolsMax]GCRA
}

// NewTable makes a table in which every account has the rates given, which are valid. start is before every instant that is charged.
func NewTable(rates *Rates, start time.Time) *Table {
	t := &Table{start: start, usual: rates.limits(), override: map[keyid.Account]*limits{}}
	for i := range t.shards {
		t.shards[i].accounts.Store(&map[keyid.Account]*account{})
	}
	return t
}

func (r *Rates) limits() *limits {
	var l limits
	for i := range r {
		l[i] = r[i].limit()
	}
	return &l
}

// Charge takes n requests out of a pool of an account at now, all or none, and reports whether they fit.
func (t *Table) Charge(a keyid.Account, p Pool, n int, now time.Time) bool {
	acct := (*t.shard(a).accounts.Load())[a]
	if acct == nil {
		if acct = t.add(a, now); acct == nil {
			return false
		}
	}
	if acct.leases != nil {
		return t.chargeLeased(a, acct, p, n, now)
	}
	l := acct.limits[p]
	switch {
	case l.Interval == 0:
		return true
	case l.Interval < 0:
		return false
	}
	ok, _ := acct.buckets[p].TakeN(l, n, t.nanos(now))
	return ok
}

// Set gives an account rates of its own, nil for the usual ones again. Requests that come later go by them, with rested buckets.
func (t *Table) Set(a keyid.Account, rates *Rates) {
	t.mu.Lock()
	if rates == nil {
		delete(t.override, a)
	} else {
		t.override[a] = rates.limits()
	}
	t.mu.Unlock()
	s := t.shard(a)
	t.write.Lock()
	defer t.write.Unlock()
	old := *s.accounts.Load()
	if old[a] == nil {
		return
	}
	next := maps.Clone(old)
	delete(next, a)
	s.accounts.Store(&next)
	t.kept--
}

// Accounts is the number of accounts with buckets.
func (t *Table) Accounts() (n int) {
	for i := range t.shards {
		n += len(*t.shards[i].accounts.Load())
	}
	return n
}

// nanos is now on the clock of the buckets, which starts with 0.
func (t *Table) nanos(now time.Time) int64 { return max(int64(now.Sub(t.start)), 0) }

// shard is by the finalizer of MurmurHash3: account IDs in any arithmetic progression spread.
func (t *Table) shard(a keyid.Account) *tableShard {
	h := uint64(a)
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return &t.shards[(h^h>>33)%tableShards]
}

// add gives an account buckets. nil: the table is full of accounts that are not rested, and the request is refused.
func (t *Table) add(a keyid.Account, now time.Time) *account {
	s := t.shard(a)
	t.write.Lock()
	defer t.write.Unlock()
	if have := (*s.accounts.Load())[a]; have != nil {
		return have
	}
	if t.kept >= AccountsMax && !t.makeRoom(t.nanos(now)) {
		return nil
	}
	t.mu.RLock()
	acct := &account{limits: t.usual}
	if own := t.override[a]; own != nil {
		acct.limits = own
	}
	t.mu.RUnlock()
	if t.leaser != nil {
		acct.leases = new(leases)
	}
	old := *s.accounts.Load()
	next := make(map[keyid.Account]*account, len(old)+1)
	maps.Copy(next, old)
	next[a] = acct
	s.accounts.Store(&next)
	t.kept, t.restAt = t.kept+1, 0
	return acct
}

// makeRoom drops the accounts that are rested and reports whether there were any. If not, it looks at none again before the first will be:
// buckets and leases move on; one that rescale moves back has a live lease. write is held.
func (t *Table) makeRoom(now int64) bool {
	if now < t.restAt {
		return false
	}
	before := t.kept
	t.restAt = math.MaxInt64
	for i := range t.shards {
		s := &t.shards[i]
		old := *s.accounts.Load()
		rested := 0
		for _, v := range old {
			if at := v.restAt(); at <= now {
				rested++
			} else {
				t.restAt = min(t.restAt, at)
			}
		}
		if rested == 0 {
			continue
		}
		// A request that has loaded the map before may still charge an account that is dropped here: it is one that was rested.
		next := make(map[keyid.Account]*account, len(old))
		for k, v := range old {
			if v.restAt() > now {
				next[k] = v
			}
		}
		s.accounts.Store(&next)
		t.kept -= len(old) - len(next)
	}
	return t.kept < before
}

// restAt is the instant from which on new buckets would be no better than these.
func (c *account) restAt() (at int64) {
	for i := range c.buckets {
		at = max(at, c.buckets[i].tat.Load())
		if c.leases != nil {
			at = max(at, c.leases[i].expires.Load())
		}
	}
	return at
}
