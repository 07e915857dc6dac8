package ratelimit

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/alloctest"
	"github.com/keyplane/keyplane/internal/keyid"
)

var began = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func usual(rates ...Rate) *Rates {
	var r Rates
	for i := range r {
		r[i] = Unlimited
	}
	copy(r[:], rates)
	return &r
}

// offer sends requests evenly for a time and returns how many were admitted.
func offer(t *Table, a keyid.Account, p Pool, rate float64, from time.Time, d time.Duration) (admitted int) {
	gap := float64(time.Second) / rate
	for i := 0; ; i++ {
		at := time.Duration(float64(i) * gap)
		if at >= d {
			return admitted
		}
		if t.Charge(a, p, 1, from.Add(at)) {
			admitted++
		}
	}
}

// Offered half as much again as its quota, an account gets its quota within 1 % over 30 s, and another account all of what it asks for.
func TestOverload(t *testing.T) {
	for _, rate := range []Rate{34, 50, 100, 333, 1000, 1800, 20_000, 100_000} {
		table := NewTable(usual(rate), began)
		got := float64(offer(table, 1, 0, 1.5*float64(rate), began, 30*time.Second))
		if want := 30 * float64(rate); got < want || got > 1.01*want {
			t.Errorf("%v/s: %v admitted in 30 s, want %v to %v", rate, got, want, 1.01*want)
		}
		if got, want := offer(table, 2, 0, 0.99*float64(rate), began, 5*time.Second), int(math.Ceil(5*0.99*float64(rate))); got != want {
			t.Errorf("%v/s: another account got %d of %d", rate, got, want)
		}
	}
}

func TestSlowRates(t *testing.T) {
	table := NewTable(usual(0.5, 5, 0), began)
	for i, want := range []bool{true, false, true, false, true} { // every second
		if got := table.Charge(1, 0, 1, began.Add(time.Duration(i)*time.Second)); got != want {
			t.Errorf("0.5/s, second %d: %v", i, got)
		}
	}
	n := 0
	for table.Charge(1, 1, 1, began) {
		n++
	}
	if n != 5 {
		t.Errorf("a rested account took %d of 5/s at once", n)
	}
	if table.Charge(1, 2, 1, began) {
		t.Error("a rate of 0 admitted a request")
	}
	for range 100_000 {
		if !table.Charge(1, 3, 1, began) {
			t.Fatal("unlimited refused a request")
		}
	}
}

// Pools are independent, and n requests are charged whole or not at all.
func TestPoolsAndCounts(t *testing.T) {
	table := NewTable(usual(100, 100), began)
	if !table.Charge(1, 0, 10, began) || table.Charge(1, 0, 1, began) {
		t.Error("a burst of 100/s is not 10")
	}
	if !table.Charge(1, 1, 8, began) || table.Charge(1, 1, 3, began) || !table.Charge(1, 1, 2, began) {
		t.Error("three did not fit into two, or were charged nevertheless")
	}
	if !table.Charge(2, 0, 10, began) {
		t.Error("another account's requests count")
	}
}

func TestSetIsEffectiveAtOnce(t *testing.T) {
	table := NewTable(usual(0.01), began)
	table.Charge(1, 0, 1, began)
	if table.Charge(1, 0, 1, began.Add(time.Second)) {
		t.Fatal("two requests fit")
	}
	table.Set(1, usual(1000))
	if got := offer(table, 1, 0, 500, began.Add(time.Second), time.Second); got != 500 {
		t.Errorf("%d of 500 after the quota was raised", got)
	}
	table.Set(1, usual(Unlimited))
	if got := offer(table, 1, 0, 1e5, began.Add(3*time.Second), time.Second); got != 100_000 {
		t.Errorf("%d of 100000 without a quota", got)
	}
	table.Set(1, usual(0))
	if table.Charge(1, 0, 1, began.Add(5*time.Second)) {
		t.Error("a request fits 0/s")
	}
	table.Set(1, nil)
	if !table.Charge(1, 0, 1, began.Add(5*time.Second)) || table.Charge(1, 0, 1, began.Add(6*time.Second)) {
		t.Error("the usual rate is not back")
	}
	if table.Charge(2, 0, 1, began); table.Charge(2, 0, 1, began) {
		t.Error("another account has the override")
	}
}

// An instant before the start is the start: no request is refused for it.
func TestInstantBeforeStart(t *testing.T) {
	table := NewTable(usual(10), began)
	if !table.Charge(1, 0, 1, began.Add(-time.Hour)) {
		t.Error("refused")
	}
}

func TestAccountsAreBounded(t *testing.T) {
	table := NewTable(usual(0.001), began)
	for a := range keyid.Account(2 * AccountsMax) { // rested: their requests need no bucket
		table.Charge(a, 1, 1, began)
	}
	if n := table.Accounts(); n > AccountsMax {
		t.Errorf("%d rested accounts are kept", n)
	}
	refused := 0
	for a := range keyid.Account(2 * AccountsMax) {
		if !table.Charge(2*AccountsMax+a, 0, 1, began) {
			refused++
		}
	}
	if n := table.Accounts(); n != AccountsMax || refused < AccountsMax {
		t.Errorf("%d accounts are kept, %d refused", n, refused)
	}
	if !table.Charge(9*AccountsMax, 0, 1, began.Add(2000*time.Second)) {
		t.Error("rested accounts made no room")
	}
}

// Account IDs that are evenly apart, by whatever, find room up to the bound.
func TestAccountsInAnyProgression(t *testing.T) {
	for _, stride := range []keyid.Account{1, 64, 15_465, 1 << 33} {
		table := NewTable(usual(0.001), began)
		for i := range keyid.Account(AccountsMax) {
			if !table.Charge(111122223333+i*stride, 0, 1, began) {
				t.Fatalf("stride %d: account %d was refused", stride, i)
			}
		}
		if table.Charge(5, 0, 1, began) {
			t.Errorf("stride %d: one more than the bound", stride)
		}
		for i := range table.shards {
			if n := len(*table.shards[i].accounts.Load()); n > 2*AccountsMax/tableShards {
				t.Errorf("stride %d: %d accounts in one of %d shards", stride, n, tableShards)
			}
		}
	}
}

// An account that rests makes room as soon as it does, in whichever shard it is.
func TestRestedAccountsMakeRoom(t *testing.T) {
	table := NewTable(usual(0.001, 1), began)
	for a := range keyid.Account(AccountsMax) {
		table.Charge(a, 0, 1, began)
	}
	if table.Charge(AccountsMax, 1, 1, began) {
		t.Fatal("the table is not full")
	}
	table.Set(7, usual(1)) // drops the buckets; those that follow rest after a second
	if !table.Charge(7, 0, 1, began) {
		t.Fatal("no room for the account that was dropped")
	}
	other := keyid.Account(AccountsMax)
	for table.shard(other) == table.shard(7) {
		other++
	}
	if table.Charge(other, 1, 1, began.Add(999*time.Millisecond)) {
		t.Error("there was room before an account rested")
	}
	if !table.Charge(other, 1, 1, began.Add(time.Second)) {
		t.Error("a rested account made no room")
	}
	if n := table.Accounts(); n != AccountsMax {
		t.Errorf("%d accounts", n)
	}
}

func TestRefusingAnAccountAllocates(t *testing.T) {
	table := NewTable(usual(0.001), began)
	for a := range keyid.Account(AccountsMax) {
		table.Charge(a, 0, 1, began)
	}
	a := keyid.Account(AccountsMax)
	if n := alloctest.Mallocs(1000, func() {
		a++
		if table.Charge(a, 0, 1, began) {
			t.Fatal("the table is not full")
		}
	}); n > 0 {
		t.Errorf("%d allocations in 1000 refusals", n)
	}
}

// Charges race with changes of limits and with accounts that come and go. What is admitted at one instant never exceeds a burst for each change.
func TestConcurrentCharges(t *testing.T) {
	table := NewTable(usual(100), began)
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				if table.Charge(7, 0, 1, began) {
					admitted.Add(1)
				}
			}
		})
	}
	const changes = 20
	wg.Go(func() {
		for range changes {
			table.Set(7, usual(100))
		}
	})
	wg.Go(func() {
		for a := range keyid.Account(500) {
			table.Charge(1000+a, 0, 1, began)
		}
	})
	wg.Wait()
	if n := admitted.Load(); n < 10 || n > 10*(changes+1) {
		t.Errorf("%d admitted", n)
	}
}

func TestRateValid(t *testing.T) {
	for r, want := range map[Rate]bool{0: true, 0.001: true, 0.0009: false, RateMax: true, RateMax + 1: false, -1: false, Unlimited: true, Rate(math.Inf(-1)): false} {
		if r.Valid() != want {
			t.Errorf("%v: %v", r, !want)
		}
	}
	if Rate(math.NaN()).Valid() {
		t.Error("NaN is a rate")
	}
}

func TestChargeAllocates(t *testing.T) {
	table := NewTable(usual(1000), began)
	now := began
	if n := alloctest.Mallocs(10_000, func() {
		now = now.Add(time.Microsecond)
		table.Charge(111122223333, 0, 1, now)
	}); n > 1 { // the account's first request
		t.Errorf("%d allocations in 10000 charges", n)
	}
}

func BenchmarkCharge(b *testing.B) {
	b.Run("request=noroom", func(b *testing.B) {
		table := NewTable(usual(0.001), began)
		for a := range keyid.Account(AccountsMax) {
			table.Charge(a, 0, 1, began)
		}
		b.ReportAllocs()
		for b.Loop() {
			table.Charge(AccountsMax, 0, 1, began)
		}
	})
	for name, rate := range map[string]Rate{"admitted": RateMax, "refused": 0.001, "unlimited": Unlimited} {
		b.Run("request="+name, func(b *testing.B) {
			table := NewTable(usual(rate), began)
			for a := range keyid.Account(1000) {
				table.Charge(a, 0, 1, began)
			}
			now := began
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Microsecond)
				table.Charge(500, 0, 1, now)
			}
		})
	}
}
