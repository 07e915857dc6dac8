package iam

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// At the quota, refused callers do not each walk all sessions.
func TestSweepAtMostOnceASecond(t *testing.T) {
	var s sessions
	s.counts = map[keyid.Account]int{1: SessionsMax}
	at := time.Unix(1000, 0)
	for _, c := range []struct{ after, swept time.Duration }{{0, 0}, {sweepEvery - 1, 0}, {sweepEvery, sweepEvery}} {
		if s.reserve(1, at.Add(c.after)) {
			t.Fatal("a session beyond the quota")
		}
		if !s.swept.Equal(at.Add(c.swept)) {
			t.Errorf("after %v: swept at %v", c.after, s.swept)
		}
	}
}
