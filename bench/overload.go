package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/loadtest"
)

// The HSM of the first half: rounds of at most 32 requests on two sessions, 10 ms a call. GenerateDataKey takes two calls, so that some 3 000 a
// second are the most it can do: few enough that a generator on the same cores can offer five times as many.
const (
	overloadHSM     = "sessions_per_token: 2\nround_max: 32\n"
	overloadLatency = 10 * time.Millisecond
	overloadOp      = "GenerateDataKey"

	steadyConns = 64  // of the load that never stops, at half the highest rate
	closedConns = 128 // of the closed loop that finds the highest rate: twice what rounds have room for
	surgeConns  = 512 // of the load on top of it
	leadIn      = 3 * time.Second
	leadOut     = 4 * time.Second

	hsmBound = "HSM-bound"
	cpuBound = "CPU-bound"
)

// overloads are how much is offered, in highest rates.
var overloads = []float64{2, 5}

// surge is what a measurement of the table of overload holds. Rates are per second, over the time of the overload.
type surge struct {
	Highest   float64 // the rate served in a closed loop before
	Due       float64 // what was to be offered
	Offered   float64 // what the generator could send
	Served    float64
	Refused   float64 // ThrottlingException
	Other     uint64  // requests that ended in any other way, from first to last; none expected
	OtherType string  // the most frequent of them
	MeanRound float64
	P99       float64 // of those served, of the load that never stops; microseconds, from the intended start

	ResidentBefore, ResidentPeak, ResidentAfter       int64   // bytes
	ResidentGrowth                                    float64 // from the first quarter of the overload to the last
	GoroutinesBefore, GoroutinesPeak, GoroutinesAfter int
	Threads                                           int // most, of the operating system

	// The load that never stops in the first whole second that begins a second after the overload, to that before it.
	AfterServed float64 // part of what was due
	AfterFailed uint64
	AfterP50    float64 // of the p50 before
}

// overloadTable offers more than the server can do, open loop: first where the HSM is the bottleneck and the server has to refuse, then where
// the processor is, which the generator has to share.
func (p *plan) overloadTable() error {
	slow, err := p.slowHSM("overload", slowhsm.Settings{})
	if err != nil {
		return err
	}
	config, err := p.config("overload", overloadHSM)
	if err != nil {
		return err
	}
	server, err := startThrough(slow, func() (*target, error) {
		return startKeyplane(hsmName, p.keyplane, filepath.Join(p.tmp, "hsm-overload"), slow.URI(), config...)
	})
	if err != nil {
		return err
	}
	if err := slow.Set(slowhsm.Settings{Latency: overloadLatency}); err != nil {
		server.stop()
		return err
	}
	err = p.overload(server, hsmBound)
	server.stop()
	if err != nil {
		return err
	}
	if server, err = p.startSoftHSM("overload-cpu"); err != nil {
		return err
	}
	defer server.stop()
	if err := p.overload(server, cpuBound); err != nil {
		return err
	}
	p.promiseOverload()
	return nil
}

// overload offers a server several times its highest rate.
func (p *plan) overload(t *target, bottleneck string) error {
	for _, times := range overloads {
		if p.ctx.Err() != nil {
			return errors.New("interrupted")
		}
		s, err := p.surgeOnce(t, times)
		for attempt := 1; errors.Is(err, errStill) && attempt < 3; attempt++ {
			p.repeated++
			fmt.Printf("%s, %g times the highest rate: measured again: %v\n", bottleneck, times, err)
			s, err = p.surgeOnce(t, times)
		}
		if err != nil {
			return err
		}
		p.all = append(p.all, measurement{Table: "overload", Op: overloadOp, Case: bottleneck, Target: fmt.Sprintf("%g times the highest rate", times),
			Conns: steadyConns + surgeConns, PerSecond: s.Served, P99: s.P99, Surge: s})
	}
	return nil
}

// surgeOnce finds the highest rate in a closed loop. Then it offers half of it all the time and, for p.surge, what is missing to so many times
// the highest rate.
func (p *plan) surgeOnce(t *target, times float64) (*surge, error) {
	found, err := p.startLoad(t, 0, closedConns, max(p.surge/4, 2*time.Second), time.Second).wait()
	if err != nil {
		return nil, err
	}
	highest := found.Throughput
	s := &surge{Highest: highest, Due: times * highest}
	watched := watch(t)
	defer watched.end()
	steady := p.startLoad(t, highest/2, steadyConns, leadIn+p.surge+leadOut, time.Second)
	defer steady.stop()
	time.Sleep(time.Second + leadIn)
	extra, err := p.startLoad(t, (times-0.5)*highest, surgeConns, p.surge, 0).wait()
	if err != nil {
		return nil, err
	}
	base, err := steady.wait()
	if err != nil {
		return nil, err
	}
	watched.end()
	if watched.err != nil {
		return nil, watched.err
	}
	s.count(base, extra)
	watched.sum(s, extra.StartedAt, extra.StartedAt.Add(seconds(extra.Seconds)))
	if math.IsNaN(s.AfterServed) || math.IsNaN(s.AfterP50) || math.IsNaN(s.ResidentGrowth) || math.IsNaN(s.MeanRound) {
		return nil, errors.New("the overload left no figures: too short, or everything stood still")
	}
	return s, nil
}

// count takes what both loads report.
func (s *surge) count(base, extra *loadtest.Report) {
	zero := base.StartedAt.Add(seconds(base.WarmupSeconds))
	from := extra.StartedAt.Sub(zero).Seconds()
	to := from + extra.Seconds
	window := extra.Seconds
	s.Offered = float64(extra.Requests.Sent) / window
	s.Served = extra.Throughput
	s.Refused = float64(throttled(extra)) / window
	var before []float64 // p50
	var during, after []loadtest.Interval
	for _, v := range base.Timeline {
		end := v.At + v.Seconds
		switch {
		case end <= from-0.2: // the generator of the surge is starting
			if v.Latency.P50 > 0 {
				before = append(before, v.Latency.P50)
			}
		case v.At >= from && end <= to:
			during = append(during, v)
		case v.At >= to+1:
			after = append(after, v)
		}
	}
	var served, failed, span float64
	for _, v := range during {
		served += v.Throughput * v.Seconds
		failed += float64(v.Failed)
		span += v.Seconds
		s.P99 = max(s.P99, v.Latency.P99)
	}
	if span > 0 {
		s.Served += served / span
		s.Refused += failed / span
		s.Offered += (served + failed) / span
	}
	if s.AfterServed = math.NaN(); len(after) > 0 {
		s.AfterServed = after[0].Throughput / after[0].Rate
		s.AfterFailed = after[0].Failed
		s.AfterP50 = after[0].Latency.P50 / middle(before)
	}
	for _, r := range []*loadtest.Report{base, extra} {
		for _, e := range r.Errors {
			if e.Type != kmsapi.Throttling.Type() {
				s.Other += e.Count
				s.OtherType = e.Type
			}
		}
		s.Other += r.Requests.Unfinished
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func throttled(r *loadtest.Report) (n uint64) {
	for _, e := range r.Errors {
		if e.Type == kmsapi.Throttling.Type() {
			n += e.Count
		}
	}
	return n
}

// Bounds of the promises that the issue leaves in words.
const (
	residentGrowthMax = 1.10 // of the last quarter of an overload on the first
	goroutinesSpare   = 64   // of an idle server, and of connections that have just been closed
	afterServedMin    = 0.95
	afterP50Max       = 2.0
)

// promiseOverload compares with what is promised where the HSM is the bottleneck, and where the processor is, that the process stays within
// bounds: what it then serves depends on how much of the processor the generator takes.
func (p *plan) promiseOverload() {
	for i := range p.all {
		m := &p.all[i]
		s := m.Surge
		if s == nil {
			continue
		}
		name := m.Case + ", " + m.Target + ": "
		if m.Case == hsmBound {
			p.promise(name+"offered, of what was to be", s.Offered/s.Due, atLeast, 0.9)
			p.promise(name+"served, of the highest rate", s.Served/s.Highest, atLeast, 0.9)
			p.promise(name+"served or refused with "+kmsapi.Throttling.Type()+", of what was offered", (s.Served+s.Refused)/s.Offered, atLeast, 0.99)
			p.promise(name+"a second later served, of what was due", s.AfterServed, atLeast, afterServedMin)
			p.promise(name+"a second later refused", float64(s.AfterFailed), atMost, 0)
			p.promise(name+"a second later p50, of the p50 before", s.AfterP50, atMost, afterP50Max)
		}
		p.promise(name+"other errors", float64(s.Other), atMost, 0)
		p.promise(name+"resident memory in the last quarter, of the first", s.ResidentGrowth, atMost, residentGrowthMax)
		p.promise(name+"goroutines above one for each connection", float64(s.GoroutinesPeak-steadyConns-surgeConns), atMost, goroutinesSpare)
	}
}

// printOverload is the table of overload.
func (p *plan) printOverload(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, strings.Join([]string{"bottleneck", "overload", "highest/s", "offered/s", "of what was due", "served/s", "of the highest", "refused/s", "other errors", "mean round", "p99 ms",
		"resident MB before", "peak", "after", "goroutines before", "peak", "after", "threads", "a second later served", "refused", "p50 of before"}, "\t")+"\t")
	mb := func(n int64) int64 { return n >> 20 }
	for i := range p.all {
		m := &p.all[i]
		s := m.Surge
		if s == nil {
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.0f\t%.2f\t%.0f\t%.2f\t%.0f\t%d %s\t%.1f\t%.0f\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%.2f\t%d\t%.2f\t\n", m.Case, m.Target, s.Highest, s.Offered, s.Offered/s.Due,
			s.Served, s.Served/s.Highest, s.Refused, s.Other, s.OtherType, s.MeanRound, s.P99/1000, mb(s.ResidentBefore), mb(s.ResidentPeak), mb(s.ResidentAfter),
			s.GoroutinesBefore, s.GoroutinesPeak, s.GoroutinesAfter, s.Threads, s.AfterServed, s.AfterFailed, s.AfterP50)
	}
	_ = tw.Flush()
}
