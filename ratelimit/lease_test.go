package ratelimit

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/keyid"
)

// checked is a Shares that holds the sum of live shares to the rate.
type checked struct {
	*Shares
	t    testing.TB
	rate float64
	live map[string]Share
}

func (c *checked) Lease(node string, a keyid.Account, p Pool, demand float64, now time.Time) Share {
	s := c.Shares.Lease(node, a, p, demand, now)
	c.live[node] = s
	sum := 0.0
	for _, h := range c.live {
		if h.Expires.After(now) {
			sum += float64(h.Rate)
		}
	}
	if sum > c.rate*(1+1e-9) {
		c.t.Errorf("at %v the live shares are %v of %v", now.Sub(began), sum, c.rate)
	}
	return s
}

// cluster is nodes on simulated time: demand says how many requests a second come to a node then.
type cluster struct {
	nodes  []*Table
	leaser *checked
}

func newCluster(t testing.TB, n int, rate float64) *cluster {
	c := &cluster{leaser: &checked{NewShares(func(keyid.Account, Pool) Rate { return Rate(rate) }), t, rate, map[string]Share{}}}
	for i := range n {
		c.nodes = append(c.nodes, NewLeasedTable(c.leaser, fmt.Sprint("node ", i), began))
	}
	return c
}

// run simulates a time and returns what each node admitted. Nodes renew at times of their own.
func (c *cluster) run(from, span time.Duration, demand func(node int, at time.Duration) float64) []int {
	const step = 100 * time.Microsecond
	admitted, due := make([]int, len(c.nodes)), make([]float64, len(c.nodes))
	for at := from; at < from+span; at += step {
		for i, node := range c.nodes {
			now := began.Add(at)
			if (at+time.Duration(i)*7*time.Millisecond)%RenewEvery < step {
				node.Renew(now)
			}
			for due[i] += demand(i, at) * step.Seconds(); due[i] >= 1; due[i]-- {
				if node.Charge(1, 3, 1, now) {
					admitted[i]++
				}
			}
		}
	}
	return admitted
}

func total(n []int) (sum int) {
	for _, v := range n {
		sum += v
	}
	return sum
}

// Nodes under uneven demand, together half as much again as the quota or five times it, admit the quota within 2 % over 10 s, and each of
// them what is fair: all it was asked for, or as much as anybody else got.
func TestLeasesShareARate(t *testing.T) {
	for _, nodes := range []int{1, 2, 8} {
		for _, times := range []float64{1.5, 5} {
			for _, rate := range []float64{400, 2000, 20_000} {
				c := newCluster(t, nodes, rate)
				weights := 0.0
				for i := range nodes {
					weights += float64(1 + i*i)
				}
				demands := make([]float64, nodes)
				for i := range demands {
					demands[i] = times * rate * float64(1+i*i) / weights
				}
				got := c.run(0, 10*time.Second, func(node int, _ time.Duration) float64 { return demands[node] })
				name := fmt.Sprintf("%d nodes, %v times %v/s", nodes, times, rate)
				if sum, want := float64(total(got)), 10*rate; math.Abs(sum-want) > 0.02*want {
					t.Errorf("%s: %v admitted, want %v: %v", name, sum, want, got)
				} else {
					t.Logf("%s: %.4f of the quota admitted", name, sum/want)
				}
				for i, n := range got {
					fair := min(demands[i], divide(rate, append([]float64{demands[i]}, slices.Delete(slices.Clone(demands), i, i+1)...)))
					if float64(n) < 0.9*10*fair {
						t.Errorf("%s: node %d admitted %d, fair are %v", name, i, n, 10*fair)
					}
				}
			}
		}
	}
}

// Demand that moves from node to node takes its share along.
func TestSharesFollowDemand(t *testing.T) {
	const rate = 4000
	c := newCluster(t, 8, rate)
	got := c.run(0, 10*time.Second, func(node int, at time.Duration) float64 {
		if node == int(at/(2500*time.Millisecond)) {
			return 1.5 * rate
		}
		return 1 // and is not starved
	})
	if sum := float64(total(got)); sum < 0.93*10*rate || sum > 1.02*10*rate {
		t.Errorf("%v admitted: %v", sum, got)
	}
	for i := 4; i < 8; i++ {
		if got[i] < 8 {
			t.Errorf("node %d admitted %d of 10 requests", i, got[i])
		}
	}
}

// Below the quota nobody is refused, but for what came before the others gave way.
func TestLeasesBelowTheQuota(t *testing.T) {
	c := newCluster(t, 8, 8000)
	demand := func(node int, _ time.Duration) float64 { return float64(100 * (node + 1)) } // 3600/s
	c.run(0, time.Second, demand)
	got := c.run(time.Second, 10*time.Second, demand)
	for i, n := range got {
		if want := 1000 * (i + 1); n < want-1 {
			t.Errorf("node %d admitted %d of %d", i, n, want)
		}
	}
}

// A node that is lost gives its share back when its lease ends; one that has lost the Leaser stops then.
func TestLeaseEnds(t *testing.T) {
	const rate = 1000
	c := newCluster(t, 2, rate)
	both := func(int, time.Duration) float64 { return rate }
	c.run(0, time.Second, both)
	lost := c.nodes[1]
	lost.leaser = unreachable{}
	c.nodes = c.nodes[:1]
	got := total(c.run(time.Second, LeaseTerm, both))
	if got > rate*2*6/10 {
		t.Errorf("%d admitted while the other node may still use its share", got)
	}
	got = total(c.run(time.Second+LeaseTerm+2*RenewEvery, time.Second, both))
	if got < rate*95/100 {
		t.Errorf("%d of %d admitted alone", got, rate)
	}
	c.nodes = []*Table{lost}
	if got := total(c.run(time.Second, LeaseTerm, both)); got < rate*2*4/10 {
		t.Errorf("%d admitted on a lease that holds", got)
	}
	if got := total(c.run(2*time.Second+LeaseTerm, time.Second, both)); got != 0 {
		t.Errorf("%d admitted without a lease", got)
	}
}

type unreachable struct{}

func (unreachable) Lease(string, keyid.Account, Pool, float64, time.Time) Share { return Share{} }

func TestSharesAreBounded(t *testing.T) {
	s := NewShares(func(a keyid.Account, _ Pool) Rate {
		if a == 9 {
			return Unlimited
		}
		return 6400
	})
	for i := range NodesMax {
		s.Lease(fmt.Sprint(i), 1, 0, 100, began)
	}
	if got := s.Lease("one more", 1, 0, 100, began); got.Rate != 0 {
		t.Errorf("one node more has %v", got)
	}
	if got := s.Lease("one more", 9, 0, 100, began); got.Rate != Unlimited {
		t.Errorf("unlimited is shared: %v", got)
	}
	for _, demand := range []float64{-1, math.NaN(), math.Inf(1)} {
		if got := s.Lease("a", 2, 0, demand, began); got.Rate != 6400 {
			t.Errorf("demand %v gets %v", demand, got)
		}
	}
	for a := range keyid.Account(1000) {
		s.Lease("a", 100+a, 0, 1, began)
	}
	s.Lease("a", 1, 0, 1, began.Add(3*LeaseTerm))
	if len(s.pools) != 1 {
		t.Errorf("%d pools are known", len(s.pools))
	}
}

func TestLeasedChargesConcurrently(t *testing.T) {
	shares := NewShares(func(keyid.Account, Pool) Rate { return 1000 })
	var wg sync.WaitGroup
	for i := range 4 {
		table := NewLeasedTable(shares, fmt.Sprint(i), began)
		for range 2 {
			wg.Go(func() {
				for at := range 2000 {
					table.Charge(keyid.Account(at%3), 0, 1, began.Add(time.Duration(at)*time.Millisecond))
				}
			})
		}
		wg.Go(func() {
			for at := range 40 {
				table.Renew(began.Add(time.Duration(at) * RenewEvery))
			}
		})
	}
	wg.Wait()
}

func TestLeasedChargeAllocates(t *testing.T) {
	table := NewLeasedTable(NewShares(func(keyid.Account, Pool) Rate { return 1000 }), "node", began)
	table.Charge(1, 0, 1, began)
	now := began
	if n := alloctest.Mallocs(10_000, func() {
		now = now.Add(time.Microsecond)
		table.Charge(1, 0, 1, now)
	}); n > 0 {
		t.Errorf("%d allocations in 10000 charges", n)
	}
}
