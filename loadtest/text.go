package loadtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keyplane/keyplane/internal/plot"
)

const progressEvery = time.Second

// WriteText writes the report for people.
func (p *Report) WriteText(w io.Writer) error {
	var b bytes.Buffer
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-12s"+format+"\n", append([]any{name}, args...)...)
	}
	urls := make([]string, len(p.Endpoints))
	for i, e := range p.Endpoints {
		urls[i] = e.URL
	}
	fmt.Fprintf(&b, "%s at %s (%s)\n", p.Operation, strings.Join(urls, ", "), p.Region)
	line("loop", "%s", p.loopText())
	line("time", "%.1f s after %.1f s of warm-up", p.Seconds, p.WarmupSeconds)
	if p.Keys > 0 {
		line("keys", "%d, %s", p.Keys, p.KeyDistribution)
	}
	line("payload", "%d bytes", p.PayloadBytes)
	line("client", "%s", p.clientText())
	b.WriteByte('\n')
	line("throughput", "%s requests/s", grouped(p.Throughput))
	if p.Loop == OpenLoop {
		line("per second", "%s offered, %s sent, %s served, %s refused", grouped(p.Offered), grouped(p.SendRate), grouped(p.Throughput), grouped(p.RefusalRate))
	}
	line("requests", "%s sent, %s succeeded, %s, %s unfinished", count(p.Requests.Sent), count(p.Requests.Succeeded),
		failures(p.Requests.Failed, p.Requests.Refused), count(p.Requests.Unfinished))
	l := p.Latency
	line("latency µs", "p50 %.1f   p90 %.1f   p99 %.1f   p99.9 %.1f   max %.1f", l.P50, l.P90, l.P99, l.P999, l.Max)
	line("bytes", "%s sent, %s received", count(p.Bytes.Sent), count(p.Bytes.Received))
	line("connections", "%s opened, %s requests sent again", count(p.Connections.Opened), count(p.Connections.Retried))
	if p.Loop == OpenLoop {
		s := &p.Schedule
		line("schedule", "%s never sent, %s waited for a connection, for at most %.1f µs", count(uint64(s.Missed)), count(s.Waited), s.WaitMax)
		line("generator", "late itself by µs: p50 %.1f   p99 %.1f   max %.1f", s.Late.P50, s.Late.P99, s.Late.Max)
	}
	for _, s := range p.Steps {
		line("step", "%s requests/s for %.1f s: %s served, %s, %s", grouped(s.Rate), s.Seconds, grouped(s.Throughput), s.Latency.brief(), failures(s.Failed, s.Refused))
	}
	if len(p.Endpoints) > 1 {
		for _, e := range p.Endpoints {
			line("endpoint", "%s: %s requests/s over %d connections, %s, %s", e.URL, grouped(e.Throughput), e.Workers, e.Latency.brief(), failures(e.Requests.Failed, e.Requests.Refused))
		}
	}
	if len(p.Errors) == 0 {
		line("errors", "none")
	}
	for _, e := range p.Errors {
		line("error", "%s × %s: %s", count(e.Count), e.Type, e.Example)
	}
	if p.KeysRemoved > 0 {
		line("clean-up", "%d keys scheduled for deletion", p.KeysRemoved)
	}
	if p.Interrupted {
		line("note", "interrupted before the end")
	}
	for _, note := range p.Notes {
		line("note", "%s", note)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// WriteText writes the probes' outcome and the best probe's report for people.
func (f *SearchReport) WriteText(w io.Writer) error {
	var b bytes.Buffer
	switch {
	case f.Best == nil:
		fmt.Fprintf(&b, "no rate that was tried holds p99 within %.1f µs\n", f.Bound)
	case f.RateFailed == 0:
		fmt.Fprintf(&b, "p99 within %.1f µs: %s requests/s hold, and nothing above was seen to fail\n", f.Bound, grouped(f.Rate))
	default:
		fmt.Fprintf(&b, "p99 within %.1f µs: %s requests/s hold, %s fail\n", f.Bound, grouped(f.Rate), grouped(f.RateFailed))
	}
	if f.Interrupted {
		b.WriteString("interrupted: the search had not ended\n")
	}
	if f.KeysRemoved > 0 {
		fmt.Fprintf(&b, "%d keys scheduled for deletion\n", f.KeysRemoved)
	}
	for _, note := range f.Notes {
		fmt.Fprintf(&b, "note: %s\n", note)
	}
	if f.Best != nil {
		b.WriteString("\nat that rate: ")
		if err := f.Best.WriteText(&b); err != nil {
			return err
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// String is the probe's line.
func (p Probe) String() string {
	p99, verdict := "p99 out of reach", "fails"
	if p.P99 != nil {
		p99 = fmt.Sprintf("p99 %.1f µs", *p.P99)
	}
	if p.Held {
		verdict = "holds"
	}
	return fmt.Sprintf("probe %s/s: %s, %s/s served, %s failed, %s never sent, generator late %.1f µs: %s", grouped(p.Rate), p99, grouped(p.Throughput), count(p.Failed), count(uint64(p.Missed)), p.Late, verdict)
}

// loopText says in words how requests were offered.
func (p *Report) loopText() string {
	if p.Loop != OpenLoop {
		return fmt.Sprintf("closed, %d at a time", p.Concurrency)
	}
	rate := grouped(p.Rate)
	if p.Profile != Constant {
		rate = fmt.Sprintf("%s from %s to %s", p.Profile, rate, grouped(p.RateTo))
	}
	return fmt.Sprintf("open, %s requests/s, at most %d at a time", rate, p.Concurrency)
}

// brief is a latency within a line.
func (l *Latency) brief() string {
	if l.Max == 0 {
		return "no successes"
	}
	return fmt.Sprintf("p50 %.1f   p99 %.1f   p99.9 %.1f µs", l.P50, l.P99, l.P999)
}

// failures says how many requests failed, and how many of them the server refused.
func failures(failed, refused uint64) string {
	if failed == 0 {
		return "0 failed"
	}
	return fmt.Sprintf("%s failed (%s refused)", count(failed), count(refused))
}

func (p *Report) clientText() string {
	c := &p.Client
	text := fmt.Sprintf("%s/%s, %d CPUs", c.OS, c.Arch, c.CPUs)
	if c.CPUsUsed > 0 {
		text += fmt.Sprintf(" (%.2f used)", c.CPUsUsed)
	}
	return text + ", " + c.Go
}

// grouped prints a number without fraction, its digits in threes.
func grouped(f float64) string { return count(uint64(f + 0.5)) }

func count(n uint64) string { return plot.Grouped(n) }

// progress draws one line a second over the last one, until the sending ends.
func (r *run) progress(sending context.Context) {
	ticker := time.NewTicker(progressEvery)
	defer ticker.Stop()
	recent := newHistogram()
	var failed uint64
	last := r.now()
	for {
		select {
		case <-sending.Done():
			fmt.Fprint(r.cfg.Progress, "\r\x1b[K") // the report follows on an empty line
			return
		case <-ticker.C:
		}
		failed += r.recorder.recentInto(recent)
		now := r.now()
		rate := float64(recent.TotalCount()) / (now - last).Seconds()
		last = now
		phase, at, of := "warm-up", now, r.cfg.Warmup
		if now >= r.cfg.Warmup {
			phase, at, of = r.op.name, now-r.cfg.Warmup, r.cfg.Duration
		}
		l := latencyOf(recent)
		fmt.Fprintf(r.cfg.Progress, "\r\x1b[K%s %.0f/%.0f s  %s/s  p50 %.0f µs  p99 %.0f µs  %s errors",
			phase, at.Seconds(), of.Seconds(), grouped(rate), l.P50, l.P99, count(failed))
	}
}
