package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"
)

// kindReport is of one kind of fault.
type kindReport struct {
	Kind         string  `json:"kind"`
	Injections   int     `json:"injections"`
	NotMade      int     `json:"not_made"`
	WithoutRetry calls   `json:"without_retry"` // raw clients, each request once
	WithRetry    calls   `json:"with_retry"`    // the official SDK's standard retry
	BackP50      float64 `json:"back_p50_seconds"`
	BackMax      float64 `json:"back_max_seconds"`
}

// invariantReport is of one invariant that did not hold.
type invariantReport struct {
	Invariant string   `json:"invariant"`
	Count     int      `json:"count"`
	Examples  []string `json:"examples"`
}

// report is a run in figures.
type report struct {
	Seed       uint64            `json:"seed"`
	Shape      string            `json:"shape"`
	Bug        string            `json:"planted_bug,omitempty"`
	Began      time.Time         `json:"began"`
	Seconds    float64           `json:"seconds"`
	Kinds      []kindReport      `json:"kinds"`
	Violations []invariantReport `json:"violations"`
	Trials     struct {
		Acknowledged int64 `json:"acknowledged"`
		Faulty       int64 `json:"during_faults"`
		Refused      int64 `json:"uses_refused"`
		Unavailable  int64 `json:"uses_without_an_answer"`
		Unsure       int64 `json:"changes_without_an_answer"`
	} `json:"trials"`
	Disable struct {
		Count int     `json:"count"`
		P50   float64 `json:"p50_ms"`
		P99   float64 `json:"p99_ms"`
		Max   float64 `json:"max_ms"`
	} `json:"disable_without_faults"`
	Histories struct {
		Checked    int64 `json:"checked"`
		Operations int64 `json:"operations"`
		Unsure     int64 `json:"operations_without_an_answer"`
	} `json:"histories"`
	Writes struct {
		Keys    int `json:"keys"`
		Aliases int `json:"aliases"`
		Tags    int `json:"tags"`
		Grants  int `json:"grants"`
		Unsure  int `json:"without_an_answer"`
	} `json:"acknowledged_writes"`
	Ciphertexts  int            `json:"ciphertexts_kept"`
	Successes    int            `json:"successes"`
	AuditRecords int            `json:"audit_records"`
	Respawned    map[string]int `json:"processes_that_ended_by_themselves"`
}

func (r *run) report(records int) *report {
	p := &report{Seed: r.seed, Shape: map[bool]string{true: "split", false: "serve"}[r.split], Bug: r.bug, Began: r.began, Seconds: time.Since(r.began).Seconds(),
		Ciphertexts: len(r.kept.all), Successes: len(r.answered.of), AuditRecords: records, Respawned: map[string]int{}}
	for _, name := range slices.Sorted(maps.Keys(r.tally.of)) {
		c := r.tally.of[name]
		slices.Sort(c.back)
		p.Kinds = append(p.Kinds, kindReport{Kind: name, Injections: c.injections, NotMade: c.failed,
			WithoutRetry: calls{c.once.requests.Load(), c.once.failures.Load()}, WithRetry: calls{c.retried.requests.Load(), c.retried.failures.Load()},
			BackP50: quantile(c.back, 0.5).Seconds(), BackMax: quantile(c.back, 1).Seconds()})
	}
	for _, name := range r.violated() {
		p.Violations = append(p.Violations, invariantReport{name, r.counts[name], r.examples[name]})
	}
	p.Trials.Acknowledged, p.Trials.Faulty, p.Trials.Refused = r.trialsOf.acknowledged.Load(), r.trialsOf.faulty.Load(), r.trialsOf.refused.Load()
	p.Trials.Unavailable, p.Trials.Unsure = r.trialsOf.unavailable.Load(), r.trialsOf.unsure.Load()
	d := slices.Sorted(slices.Values(r.disabling.all))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	p.Disable.Count, p.Disable.P50, p.Disable.P99, p.Disable.Max = len(d), ms(quantile(d, 0.5)), ms(quantile(d, 0.99)), ms(quantile(d, 1))
	p.Histories.Checked, p.Histories.Operations, p.Histories.Unsure = r.told.checked.Load(), r.told.operations.Load(), r.told.unsure.Load()
	for _, w := range r.writersOf {
		for _, k := range w.keys {
			p.Writes.Keys++
			for _, t := range k.tags {
				p.Writes.Tags++
				p.Writes.Unsure += len(t.maybe)
			}
			for _, g := range k.grants {
				p.Writes.Grants++
				p.Writes.Unsure += len(g.maybe)
			}
		}
		for _, a := range w.aliases {
			p.Writes.Aliases++
			p.Writes.Unsure += len(a.maybe)
		}
	}
	for _, n := range r.All() {
		if k := len(n.Exits()); k > 0 {
			p.Respawned[n.Name] = k
		}
	}
	return p
}

// quantile is of sorted durations; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func (p *report) write(path string) error {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// print shows the report to a person.
func (p *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-50s %4s  %18s  %18s  %8s %8s\n", "kind of fault", "n", "once: failed/all", "SDK: failed/all", "back p50", "max")
	injections := 0
	for _, k := range p.Kinds {
		fmt.Fprintf(w, "%-50s %4d  %18s  %18s  %7.2fs %7.2fs\n", k.Kind, k.Injections, fmt.Sprint(k.WithoutRetry.Failures, "/", k.WithoutRetry.Requests),
			fmt.Sprint(k.WithRetry.Failures, "/", k.WithRetry.Requests), k.BackP50, k.BackMax)
		injections += k.Injections
	}
	fmt.Fprintf(w, "%d injections, seed %d, %.0f s; %d trials of changes (%d during faults), %d uses refused after them, %d histories of %d operations\n", injections, p.Seed, p.Seconds,
		p.Trials.Acknowledged, p.Trials.Faulty, p.Trials.Refused, p.Histories.Checked, p.Histories.Operations)
	fmt.Fprintf(w, "acknowledged: %d keys, %d aliases, %d tags, %d grants; %d ciphertexts kept; %d successes, %d audit records\n", p.Writes.Keys, p.Writes.Aliases, p.Writes.Tags, p.Writes.Grants,
		p.Ciphertexts, p.Successes, p.AuditRecords)
	fmt.Fprintf(w, "DisableKey without faults: p50 %.1f ms, p99 %.1f ms, max %.1f ms of %d\n", p.Disable.P50, p.Disable.P99, p.Disable.Max, p.Disable.Count)
	if len(p.Violations) == 0 {
		fmt.Fprintln(w, "no violation")
	}
	for _, v := range p.Violations {
		fmt.Fprintf(w, "VIOLATED %d times: %s\n", v.Count, v.Invariant)
		for _, e := range v.Examples {
			fmt.Fprintln(w, "   ", e)
		}
	}
}
