package xksclient

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/xks"
)

func TestBreaker(t *testing.T) {
	b := &breaker{tripsAfter: 3, restsFor: time.Second}
	start := time.Unix(1_000_000, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	admit := func(d time.Duration, wantPass pass, want xks.Failure) {
		t.Helper()
		if p, f := b.admit(at(d)); f != want || f == xks.OK && p != wantPass {
			t.Fatalf("after %s: pass %d, %s; want %d, %s", d, p, f, wantPass, want)
		}
	}
	fail := func(p pass, d time.Duration, f xks.Failure, want bool) {
		t.Helper()
		if changed := b.failed(p, at(d), f); changed != want {
			t.Fatalf("after %s: changed %v", d, changed)
		}
	}

	// An answer between failures keeps it closed, three in a row open it.
	fail(passClosed, 0, xks.TimedOut, false)
	fail(passClosed, 0, xks.TimedOut, false)
	if b.answered() {
		t.Fatal("it was open")
	}
	fail(passClosed, 0, xks.TimedOut, false)
	fail(passHealth, 0, xks.TimedOut, false)
	b.abandoned(passClosed)
	admit(0, passClosed, xks.OK)
	fail(passClosed, 0, xks.Unreachable, true)
	admit(0, 0, xks.Unreachable)
	admit(999*time.Millisecond, 0, xks.Unreachable)
	// Calls from before do not put the next try off.
	fail(passClosed, 900*time.Millisecond, xks.TLS, false)
	fail(passHealth, 900*time.Millisecond, xks.TLS, false)
	// One tries, and fails; the failure is the new one.
	admit(time.Second, passTry, xks.OK)
	admit(time.Second, 0, xks.Unreachable)
	admit(time.Hour, 0, xks.Unreachable)
	fail(passTry, 2*time.Second, xks.TimedOut, false)
	admit(2*time.Second, 0, xks.TimedOut)
	// One tries, and its caller goes: the next one may.
	admit(3*time.Second, passTry, xks.OK)
	b.abandoned(passTry)
	admit(3*time.Second, passTry, xks.OK)
	if !b.answered() {
		t.Fatal("it was closed")
	}
	admit(3*time.Second, passClosed, xks.OK)
	// It takes as many failures as before.
	fail(passClosed, 0, xks.TimedOut, false)
	fail(passClosed, 0, xks.TimedOut, false)
	fail(passClosed, 0, xks.TimedOut, true)
	// The answer to a health check closes it while another tries; what that comes to counts as any.
	admit(time.Minute, passTry, xks.OK)
	if !b.answered() {
		t.Fatal("it was closed")
	}
	fail(passTry, time.Minute, xks.TimedOut, false)
	admit(time.Minute, passClosed, xks.OK)
}
