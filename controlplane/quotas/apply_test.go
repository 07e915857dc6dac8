package quotas

import (
	"context"
	"testing"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/quota"
)

// A quota that one process sets is in effect in another once the change is applied there, and not before.
func TestApply(t *testing.T) {
	const region = "ap-south-2"
	a, b := newQuotas(t, region, quota.Default), newQuotas(t, region, quota.Default)
	spread := 0
	a.cfg.Spread = func() { spread++ }
	e := quota.Find("GrantsPerKey")
	if e == nil {
		t.Fatal("no such quota")
	}
	usual, lower := b.Max(other, e.Name), 7.0
	changes := []store.Change{{What: store.QuotaChanged, Region: region, Account: other}}
	apply := func(q *Quotas, changes []store.Change) {
		t.Helper()
		if err := q.Apply(t.Context(), changes); err != nil {
			t.Fatal(err)
		}
	}
	for _, value := range []*float64{&lower, nil} {
		was, want := b.Max(other, e.Name), usual
		if value != nil {
			want = int(*value)
		}
		if err := a.set(t.Context(), other, e, value); err != nil {
			t.Fatal(err)
		}
		apply(b, []store.Change{{What: store.QuotaChanged, Region: "eu-west-1", Account: other}, {What: store.KeyChanged, Region: region, Account: other}})
		if got := b.Max(other, e.Name); got != was {
			t.Fatalf("it is %d before the change is applied", got)
		}
		apply(b, changes)
		if got := b.Max(other, e.Name); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	if spread != 2 {
		t.Errorf("others were waited for %d times", spread)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Apply(ctx, changes); err == nil {
		t.Error("a store that does not answer is no error")
	}
}
