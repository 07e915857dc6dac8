package planes

import (
	"context"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/planetls"
	"github.com/keyplane/keyplane/ratelimit"
)

// member is a node with a table of leased quotas.
type member struct {
	leaser *Leaser
	table  *ratelimit.Table
}

func (w *world) member(id string, nodes int, addrs ...string) *member {
	c := w.client(planetls.RoleData, id, addrs...)
	m := &member{leaser: NewLeaser(c, nil, "data/"+id, func() int { return nodes })}
	rate := func(keyid.Account, ratelimit.Pool) ratelimit.Rate { return w.rate }
	m.table = ratelimit.NewLeasedTable(m.leaser.In("eu-central-1", rate), id, time.Now())
	m.leaser.Renews(m.table.Renew)
	w.run(m.leaser.Run)
	w.mu.Lock()
	w.nodes = append(w.nodes, "data/"+id)
	w.mu.Unlock()
	return m
}

// load sends perSecond requests a second for a while and returns how many were admitted.
func (m *member) load(perSecond float64, span time.Duration) (admitted int) {
	began := time.Now()
	for sent := 0; ; {
		passed := min(time.Since(began), span)
		for ; float64(sent) < perSecond*passed.Seconds(); sent++ {
			if m.table.Charge(1, 3, 1, time.Now()) {
				admitted++
			}
		}
		if passed == span {
			return admitted
		}
		time.Sleep(time.Millisecond)
	}
}

// Nodes with uneven demand, together half as much again as the rate, admit the rate within 2 % over 10 s, with HTTP between them and the owner.
func TestNodesShareARate(t *testing.T) {
	span := 10 * time.Second
	if testing.Short() {
		span = 2 * time.Second
	}
	w := newWorld(t)
	w.rate = 3000
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	var nodes []*member
	for i := range 3 {
		nodes = append(nodes, w.member(fmt.Sprint("d", i), 3, c1.addr, c2.addr))
	}
	load := func(span time.Duration) (sum float64) {
		var mu sync.Mutex
		var all sync.WaitGroup
		for i, n := range nodes {
			all.Go(func() {
				got := n.load(1.5*float64(w.rate)*float64(1+i*i)/8, span) // 1, 2 and 5 eighths
				mu.Lock()
				defer mu.Unlock()
				sum += float64(got)
			})
		}
		all.Wait()
		return sum
	}
	eventually(t, "shares are handed out", func() bool { load(100 * time.Millisecond); return known(c1.leases) || known(c2.leases) })
	for try := 1; ; try++ {
		load(time.Second / 2) // the bursts of rested buckets
		sum, want := load(span), float64(w.rate)*span.Seconds()
		t.Logf("%.4f of the quota admitted", sum/want)
		slack := 0.02
		if testing.Short() {
			slack = 0.05
		}
		if math.Abs(sum-want) <= slack*want {
			return
		}
		if sum > want || try == 3 { // less is what a busy machine can make of it
			t.Fatalf("%v admitted, want %v", sum, want)
		}
	}
}

func known(l *Leases) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch != 0 && l.all
}

// A new owner gives nobody more than it has until it knows what all have, and then divides anew; a member that left keeps nothing.
func TestNewOwner(t *testing.T) {
	w := newWorld(t)
	w.rate = 1000
	w.nodes = []string{"data/a", "data/b"}
	l, err := NewLeases(LeasesConfig{
		Own: func(ctx context.Context) (context.Context, func(), error) { return ctx, func() {}, nil },
		Nodes: func(context.Context) ([]string, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.nodes, nil
		},
		Rate: func(string, keyid.Account, ratelimit.Pool) (ratelimit.Rate, bool) { return w.rate, true }, Logger: quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(node string, epoch uint64, complete bool, demand, has float64) *leaseAnswer {
		t.Helper()
		m := &leaseMessage{epoch: epoch, complete: complete, asks: []leaseAsk{{pool: pool{"r", 1, 1}, demand: demand, rate: has}}}
		if has > 0 {
			m.asks[0].left = int64(5 * time.Second)
		}
		a, err := l.answer(t.Context(), node, m)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if _, err := l.answer(t.Context(), "data/a", &leaseMessage{}); err != refused(notOwner) {
		t.Fatal(err)
	}
	w.run(l.Run)
	eventually(t, "it is the owner", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.epoch != 0 })
	if a := ask("data/a", 17, false, 900, 300); len(a.shares) != 0 || a.epoch == 17 {
		t.Fatalf("somebody who has a lease of another owner is answered %+v", a)
	}
	a := ask("data/a", 0, true, 900, 300)
	if got := a.shares[0].rate; got != 300 {
		t.Errorf("it has 300 and gets %v", got)
	}
	time.Sleep(3 * nodesEvery) // the other has not told: nothing changes, whatever is waited within the term
	if got := ask("data/a", a.epoch, false, 900, 300).shares[0]; got.rate != 300 {
		t.Errorf("it has 300 and gets %v", got.rate)
	}
	if got := ask("data/c", 0, true, 900, 0).shares[0]; got.left != 0 {
		t.Errorf("one that has none gets %+v", got)
	}
	l.Gone("data/c")
	if got := ask("data/b", 0, true, 10, 700).shares[0].rate; got > 700 {
		t.Errorf("it has 700 and gets %v", got)
	}
	eventually(t, "it knows of all", func() bool { return known(l) })
	ask("data/b", a.epoch, false, 10, 700) // gives way
	if got := ask("data/a", a.epoch, false, 900, 300).shares[0].rate; got < 800 {
		t.Errorf("it gets %v of what the other does not need", got)
	}
	l.Gone("data/a")
	if got := ask("data/b", a.epoch, false, 900, 0).shares[0].rate; got < 900 {
		t.Errorf("it gets %v when the other has left", got)
	}
}

// Without an owner members go on: with what they have, and then with an equal part. The first request to a pool waits for nobody.
func TestWithoutOwner(t *testing.T) {
	w := newWorld(t)
	w.rate = 1000
	m := w.member("d1", 4, "127.0.0.1:1")
	began := time.Now()
	if !m.table.Charge(1, 3, 1, began) {
		t.Error("the first request to a pool is refused")
	}
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	m.load(2000, time.Second/5)
	got := float64(m.load(2000, 2*time.Second))
	if got > 1.1*500 || got < 0.5*500 {
		t.Errorf("%v of the 500 were admitted that are a quarter of the rate", got)
	}
}
