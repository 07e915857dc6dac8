package main

import (
	"testing"
	"time"

	"github.com/keyplane/keyplane/loadtest"
)

// TestSurgeCount: both loads add up over the time of the overload only, and "a second later" is the first whole second from then.
func TestSurgeCount(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	base := &loadtest.Report{StartedAt: start, WarmupSeconds: 1, Errors: []loadtest.ErrorCount{{Type: "ThrottlingException", Count: 41}, {Type: "timeout", Count: 2}}}
	for at := range 12 {
		v := loadtest.Interval{At: float64(at), Seconds: 1, Rate: 100, Throughput: 100, Latency: loadtest.Latency{P50: 10, P99: 20}}
		switch {
		case at >= 4 && at < 8: // the overload is from 3.5 to 8
			v.Throughput, v.Failed, v.Latency.P99 = 60, 40, 500
		case at == 8:
			v.Failed = 1
		case at == 9:
			v.Throughput, v.Latency.P50 = 99, 15
		}
		base.Timeline = append(base.Timeline, v)
	}
	extra := &loadtest.Report{StartedAt: start.Add(4500 * time.Millisecond), Seconds: 4.5, Throughput: 200,
		Requests: loadtest.Requests{Sent: 4500, Succeeded: 900, Failed: 3600, Unfinished: 3},
		Errors:   []loadtest.ErrorCount{{Type: "ThrottlingException", Count: 3600}}}
	var s surge
	s.count(base, extra)
	want := surge{Offered: 1100, Served: 260, Refused: 840, Other: 5, OtherType: "timeout", P99: 500, AfterServed: 0.99, AfterP50: 1.5}
	if s != want {
		t.Errorf("got  %+v\nwant %+v", s, want)
	}
}
