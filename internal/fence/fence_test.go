package fence

import (
	"testing"
	"time"
)

func TestLease(t *testing.T) {
	var l Lease
	if l.Valid() || l.Likely() || l.Left() != 0 {
		t.Error("a new lease is valid")
	}
	began := Now()
	l.Extend(began)
	if left := l.Left(); !l.Valid() || !l.Likely() || left > Term || left < Term/2 {
		t.Errorf("%v are left of an extended lease", left)
	}
	l.Extend(began - time.Hour)
	if !l.Valid() {
		t.Error("an older view shortened the lease")
	}
	l.End()
	if l.Valid() || l.Likely() {
		t.Error("an ended lease is valid")
	}
	l.Extend(Now() - Term)
	if l.Valid() || l.Likely() || l.Left() != 0 {
		t.Error("a lease is valid when its term is over")
	}
	var none *Lease
	if !none.Valid() || !none.Likely() {
		t.Error("without a lease there is no view but this process's")
	}
	// docs/planes.md: clocks may differ in speed by a tenth, and a change is in force within 2 s, its commit included.
	if Term+Term/10 >= Wait || Wait > 2*time.Second-150*time.Millisecond {
		t.Errorf("a term of %v and a wait of %v do not fit", Term, Wait)
	}
}

func TestNow(t *testing.T) {
	a := Now()
	time.Sleep(2 * time.Millisecond)
	if d := Now() - a; d < time.Millisecond || d > time.Minute {
		t.Errorf("2 ms took %v", d)
	}
}

func BenchmarkValid(b *testing.B) {
	l := new(Lease)
	l.Extend(Now())
	for b.Loop() {
		l.Valid()
	}
}

func BenchmarkLikely(b *testing.B) {
	l := new(Lease)
	l.Extend(Now())
	for b.Loop() {
		l.Likely()
	}
}
