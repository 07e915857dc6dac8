package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// SearchSchema names the JSON form of SearchReport; it changes when a field changes its meaning.
const SearchSchema = "keyplane-loadtest-search/1"

const (
	searchStart     = 500.0 // requests per second, where Config.Rate is 0
	searchTolerance = 1.05  // the search ends when the lowest rate that fails is at most so many times the highest that holds
	searchQuantile  = 0.99
)

// SearchReport is the outcome of a search.
type SearchReport struct {
	Schema      string   `json:"schema"`
	Bound       float64  `json:"p99_max_us"`
	Rate        float64  `json:"rate_per_second"`        // the highest that held; 0 is none
	RateFailed  float64  `json:"rate_failed_per_second"` // the lowest that did not; 0 is none
	Seconds     float64  `json:"probe_seconds"`          // of each probe, after its warm-up
	Probes      []Probe  `json:"probes"`                 // in the order they were made
	Best        *Report  `json:"best"`                   // of the last probe at Rate; null if none held
	Interrupted bool     `json:"interrupted"`            // the search did not end by itself
	KeysRemoved int      `json:"keys_removed"`
	Notes       []string `json:"notes"`
}

// Probe is one short open loop.
type Probe struct {
	Rate       float64  `json:"rate_per_second"` // offered
	Throughput float64  `json:"throughput_per_second"`
	P99        *float64 `json:"p99_us"` // of all requests due; null where more than one in a hundred had no good answer
	Failed     uint64   `json:"failed"`
	Missed     int64    `json:"missed"`
	Late       float64  `json:"late_p99_us"` // of it the generator's own delay
	Held       bool     `json:"held"`
}

// Search finds the highest constant rate at which 99 of 100 requests are answered well within bound of when they were due. Those refused,
// failed or never sent count as slower than any bound. It doubles the rate from cfg.Rate (or searchStart) until a probe fails, then bisects. cfg.Duration and
// cfg.Warmup are one probe's. A probe that fails is repeated once, so that one disturbance of the machine does not decide. seen, if not
// nil, is called after each probe. When ctx ends, the report says what was found so far.
func Search(ctx context.Context, cfg Config, bound time.Duration, seen func(Probe)) (*SearchReport, error) {
	if err := validateSearch(&cfg, bound); err != nil {
		return nil, err
	}
	cfg.Progress = nil
	s, err := prepare(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer s.close()
	found := &SearchReport{Schema: SearchSchema, Bound: micros(int64(bound)), Seconds: cfg.Duration.Seconds(), Probes: []Probe{}, Notes: []string{}}
	err = found.search(cfg.Rate, seen, func(rate float64) (Probe, *Report, error) {
		cfg.Rate = rate
		return probeOnce(ctx, s, &cfg, bound)
	})
	removed, cleanErr := s.clean(ctx)
	if err != nil {
		return nil, errors.Join(err, cleanErr)
	}
	found.KeysRemoved = removed
	if cleanErr != nil {
		found.Notes = append(found.Notes, cleanErr.Error())
	}
	return found, nil
}

func validateSearch(cfg *Config, bound time.Duration) error {
	err := cfg.validate()
	if bound <= 0 || bound > timeoutMax {
		err = errors.Join(err, fmt.Errorf("the bound of p99 must be more than 0 and at most %v", timeoutMax))
	}
	if cfg.Profile != Constant {
		err = errors.Join(err, fmt.Errorf("a search needs the profile %s", Constant))
	}
	return err
}

// search probes from a rate on, 0 being searchStart, until the bracket is narrow enough.
func (f *SearchReport) search(start float64, seen func(Probe), probe func(rate float64) (Probe, *Report, error)) error {
	b := bracket{start: start}
	if b.start == 0 {
		b.start = searchStart
	}
	for rate, more := b.next(); more; rate, more = b.next() {
		held := false
		for attempt := 0; attempt < 2 && !held; attempt++ {
			p, report, err := probe(rate)
			if err != nil {
				if len(f.Probes) == 0 {
					return err
				}
				f.Notes = append(f.Notes, "the last probe could not start: "+err.Error())
				f.Interrupted = true
				return nil
			}
			if report.Interrupted {
				f.Interrupted = true
				return nil
			}
			f.Probes = append(f.Probes, p)
			if held = p.Held; held {
				f.Best = report
			}
			if seen != nil {
				seen(p)
			}
		}
		b.learn(rate, held)
		f.Rate, f.RateFailed = b.holds, b.fails
	}
	if f.RateFailed == 0 {
		f.Notes = append(f.Notes, "the bound holds at the highest rate the load test can offer")
	}
	for i := len(f.Probes) - 1; i >= 0; i-- {
		if p := &f.Probes[i]; p.Rate == f.RateFailed && p.Late > f.Bound/2 {
			f.Notes = append(f.Notes, fmt.Sprintf("at %.0f requests/s the generator itself was late by more than half of the bound: its machine, not the server, may be what failed", p.Rate))
			break
		}
	}
	return nil
}

// probeOnce offers cfg.Rate once.
func probeOnce(ctx context.Context, s *setup, cfg *Config, bound time.Duration) (Probe, *Report, error) {
	r := newRun(s, cfg)
	p, err := r.measure(ctx)
	if err != nil {
		return Probe{}, nil, err
	}
	probe := Probe{Rate: cfg.Rate, Throughput: p.Throughput, Failed: p.Requests.Failed + p.Requests.Unfinished, Missed: p.Schedule.Missed, Late: p.Schedule.Late.P99}
	due := float64(p.Requests.Sent) + float64(p.Schedule.Missed)
	if of := searchQuantile * due / float64(p.Requests.Succeeded); of <= 1 { // NaN and infinity where there are none
		p99 := micros(r.recorder.total().latency.ValueAtQuantile(100 * of))
		probe.P99, probe.Held = &p99, p99 <= micros(int64(bound))
	}
	return probe, p, nil
}

// bracket is a search's state: where the highest rate that holds must be.
type bracket struct {
	start float64
	holds float64 // the highest known to hold; 0 is none
	fails float64 // the lowest known to fail; 0 is none
}

// next is the rate to try; more is false at the end. Rates are whole numbers from 1 to rateMax, the first perhaps excepted.
func (b *bracket) next() (rate float64, more bool) {
	switch {
	case b.holds == 0 && b.fails == 0:
		return b.start, true
	case b.fails == 0:
		return min(math.Round(2*b.holds), rateMax), b.holds < rateMax
	case b.holds == 0:
		return max(math.Round(b.fails/2), 1), b.fails > 1
	}
	rate = math.Round(math.Sqrt(b.holds * b.fails))
	return rate, b.fails > searchTolerance*b.holds && rate > b.holds && rate < b.fails
}

func (b *bracket) learn(rate float64, held bool) {
	if held {
		b.holds = rate
	} else {
		b.fails = rate
	}
}

// WriteJSON writes the report as one JSON document.
func (f *SearchReport) WriteJSON(w io.Writer) error { return writeJSON(w, f) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
