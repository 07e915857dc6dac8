package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/fence"
)

// TestSettler: what was applied here fence.Wait ago is settled, anything later once a control plane says so, or after fence.Wait where none does.
func TestSettler(t *testing.T) {
	var now time.Duration
	var asked []int64
	var refused error
	s := &settler{now: func() time.Duration { return now }, ask: func(_ context.Context, revision int64) error {
		asked = append(asked, revision)
		return refused
	}}
	check := func(revision int64, want bool) {
		t.Helper()
		if s.settled(revision) != want {
			t.Errorf("at %v revision %d: settled is not %t", now, revision, want)
		}
	}
	check(1, false)
	s.heard(10)
	now += fence.Wait / 2
	s.heard(20)
	now += fence.Wait/2 - 1
	check(10, false)
	now++
	check(10, true)
	check(11, false)

	if err := s.wait(t.Context(), 10); err != nil || len(asked) != 0 {
		t.Errorf("%v, %v: what is settled was asked for", err, asked)
	}
	if err := s.wait(t.Context(), 30); err != nil || len(asked) != 1 || asked[0] != 30 {
		t.Errorf("%v, %v", err, asked)
	}
	check(30, true)
	check(31, false)

	refused = errors.New("nobody")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.wait(ctx, 40); !errors.Is(err, context.Canceled) {
		t.Errorf("%v: what was not waited for is settled", err)
	}
	check(40, false)
	began := time.Now()
	if err := s.wait(t.Context(), 40); err != nil || time.Since(began) < fence.Wait {
		t.Errorf("%v after %v, nobody had said that it is settled", err, time.Since(began))
	}
	check(40, true)
}
