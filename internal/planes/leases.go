package planes

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/ratelimit"
)

// Request quotas are shared by leases (package ratelimit): one control plane at a time, the owner, hands out parts of each rate, and every member asks it every
// ratelimit.RenewEvery, for all pools in one message.
//
// When the owner is lost, members go on with what they have, for LeaseTerm from their last answer. That is longer than it takes until another control plane owns the leases.
// The new owner knows of none: it has each member tell what it has, renews that and hands out no more, until all members have told or LeaseTerm is over, when
// what nobody told of has ended.

// LeaseTerm is for how long a member has a part of a rate. One that is lost keeps it from the others for that long; one that left does not.
const LeaseTerm = 10 * time.Second

const leaseLeftMax = 2 * LeaseTerm

// nodesEvery is how often a new owner asks who has not told yet.
const nodesEvery = 100 * time.Millisecond

// LeasesConfig is what Leases is made of. All but Logger are required.
type LeasesConfig struct {
	// Own waits until this control plane is the owner; owned ends when it is not any more. It is store.Store.Own.
	Own func(ctx context.Context) (owned context.Context, release func(), err error)
	// Nodes are the members there are, as <role>/<node ID>.
	Nodes func(ctx context.Context) ([]string, error)
	// Rate is that of an account's pool in a Region; false for a Region that there is not.
	Rate   func(region string, a keyid.Account, p ratelimit.Pool) (ratelimit.Rate, bool)
	Logger *slog.Logger
}

// Leases hands out parts of rates while it is the owner. Run has it become that. Safe for concurrent use.
type Leases struct {
	cfg LeasesConfig
	log *slog.Logger

	mu     sync.Mutex
	epoch  uint64 // of this time as the owner; 0: it is not
	began  time.Time
	all    bool            // it knows of all leases
	told   map[string]bool // members that have told what they have
	shares map[string]*ratelimit.Shares
}

// NewLeases checks the configuration.
func NewLeases(cfg LeasesConfig) (*Leases, error) {
	if cfg.Own == nil || cfg.Nodes == nil || cfg.Rate == nil {
		return nil, errors.New("planes: a part of the configuration of leases is missing")
	}
	l := &Leases{cfg: cfg, log: cfg.Logger}
	if l.log == nil {
		l.log = slog.Default()
	}
	return l, nil
}

func newEpoch() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:]) | 1
}

// Run is the owner whenever no other is, until ctx ends, whose error it returns.
func (l *Leases) Run(ctx context.Context) error {
	for {
		owned, release, err := l.cfg.Own(ctx)
		if err != nil {
			return err
		}
		l.begin()
		l.watch(owned)
		l.mu.Lock()
		l.epoch = 0
		l.mu.Unlock()
		release()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (l *Leases) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.began, l.all = newEpoch(), time.Now(), false
	l.told, l.shares = map[string]bool{}, map[string]*ratelimit.Shares{}
}

// watch learns when all leases are known.
func (l *Leases) watch(owned context.Context) {
	for {
		select {
		case <-owned.Done():
			return
		case <-time.After(nodesEvery):
		}
		nodes, err := l.cfg.Nodes(owned)
		l.mu.Lock()
		all := err == nil
		for _, n := range nodes {
			all = all && l.told[n]
		}
		l.all = all || time.Since(l.began) > LeaseTerm
		done := l.all
		l.mu.Unlock()
		if done {
			<-owned.Done()
			return
		}
	}
}

// Gone ends the leases of a member that is gone: <role>/<node ID>.
func (l *Leases) Gone(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.shares {
		s.Drop(node)
	}
}

// of is the leases in a Region; nil where there is no such Region. mu is held.
func (l *Leases) of(region string) *ratelimit.Shares {
	s := l.shares[region]
	if s == nil {
		if _, ok := l.cfg.Rate(region, 0, 0); !ok {
			return nil
		}
		s = ratelimit.NewSharesFor(LeaseTerm, func(a keyid.Account, p ratelimit.Pool) ratelimit.Rate {
			rate, _ := l.cfg.Rate(region, a, p)
			return rate
		})
		l.shares[region] = s
	}
	return s
}

// answer is what the owner says to a member.
func (l *Leases) answer(_ context.Context, node string, m *leaseMessage) (*leaseAnswer, error) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == 0 {
		return nil, refused(notOwner)
	}
	if m.epoch != l.epoch { // what it has is from another owner
		for i := range m.asks {
			ask := &m.asks[i]
			if s := l.of(ask.region); s != nil && ask.left > 0 {
				s.Claim(node, ask.account, ask.pool.pool, ratelimit.Share{Rate: ratelimit.Rate(ask.rate), Expires: now.Add(time.Duration(ask.left))})
			}
		}
		if !m.complete {
			return &leaseAnswer{epoch: l.epoch}, nil
		}
		l.told[node] = true
	}
	a := &leaseAnswer{epoch: l.epoch, shares: make([]leaseShare, len(m.asks))}
	for i := range m.asks {
		ask := &m.asks[i]
		s := l.of(ask.region)
		if s == nil {
			continue
		}
		var share ratelimit.Share
		if l.all {
			share = s.Lease(node, ask.account, ask.pool.pool, ask.demand, now)
		} else if share = s.Renew(node, ask.account, ask.pool.pool, ask.demand, now); share.Rate == 0 {
			continue // it has none, and it is not known yet what the others have
		}
		a.shares[i] = leaseShare{float64(share.Rate), int64(min(share.Expires.Sub(now), leaseLeftMax))}
	}
	return a, nil
}
