package loadtest

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// ReportSchema names the JSON form of Report; it changes when a field changes its meaning.
const ReportSchema = "keyplane-loadtest/2"

// lateNoted is the generator's own delay, p99 in microseconds, from which a report remarks on it.
const lateNoted = 1000

// Kinds of loop, as reported.
const (
	ClosedLoop = "closed"
	OpenLoop   = "open"
)

// Report is what one run measured. Its JSON form is the load test's machine-readable output. Counts are of requests that started in the
// measured window.
type Report struct {
	Schema          string       `json:"schema"`
	StartedAt       time.Time    `json:"started_at"` // of the warm-up
	Region          string       `json:"region"`
	Operation       string       `json:"operation"`
	Loop            string       `json:"loop"`
	Concurrency     int          `json:"concurrency"`
	Profile         string       `json:"profile"`
	Rate            float64      `json:"rate_per_second"`    // asked for; 0 in a closed loop
	RateTo          float64      `json:"rate_to_per_second"` // at the end of the window; Rate where that is constant
	Keys            int          `json:"keys"`
	KeyDistribution string       `json:"key_distribution"`
	PayloadBytes    int          `json:"payload_bytes"`
	Verified        bool         `json:"verified"`
	WarmupSeconds   float64      `json:"warmup_seconds"`
	Seconds         float64      `json:"seconds"` // of the measured window as it was, shorter when interrupted
	Interrupted     bool         `json:"interrupted"`
	Offered         float64      `json:"offered_per_second"`    // due in the window; 0 in a closed loop
	SendRate        float64      `json:"sent_per_second"`       // of those, sent; in a closed loop all that was sent
	Throughput      float64      `json:"throughput_per_second"` // successes answered in the window
	RefusalRate     float64      `json:"refused_per_second"`    // sent in the window and refused
	Requests        Requests     `json:"requests"`
	Latency         Latency      `json:"latency_us"`
	Schedule        Lag          `json:"schedule"`
	Bytes           Bytes        `json:"bytes"`
	Connections     Connections  `json:"connections"`
	Errors          []ErrorCount `json:"errors"`
	Endpoints       []Endpoint   `json:"endpoints"`
	Steps           []Interval   `json:"steps"` // of the profile Step
	Timeline        []Interval   `json:"timeline"`
	Distribution    []Point      `json:"distribution"` // of Latency, by rising percentile
	KeysRemoved     int          `json:"keys_removed"`
	Client          Client       `json:"client"`
	Notes           []string     `json:"notes"`
}

// Endpoint is the part of one endpoint.
type Endpoint struct {
	URL        string       `json:"url"`
	Workers    int          `json:"connections"`
	Requests   Requests     `json:"requests"`
	Throughput float64      `json:"throughput_per_second"`
	Latency    Latency      `json:"latency_us"`
	Errors     []ErrorCount `json:"errors"`
}

// Interval is a part of the measured window. Latency, to two digits, and failures are of requests whose intended start was in it, whenever
// they ended, so a server that stalls shows in every interval it stalled for; throughput is what was answered in it.
type Interval struct {
	At         float64 `json:"at_seconds"` // from the beginning of the window
	Seconds    float64 `json:"seconds"`
	Rate       float64 `json:"rate_per_second"` // of the requests due; 0 in a closed loop
	Throughput float64 `json:"throughput_per_second"`
	Failed     uint64  `json:"failed"`
	Refused    uint64  `json:"refused"` // of Failed
	Latency    Latency `json:"latency_us"`
}

// Otherwise counts the failures without an error reply of the server.
func (v Interval) Otherwise() uint64 { return v.Failed - v.Refused }

// Point says that Percentile per cent of the successes took at most Latency.
type Point struct {
	Percentile float64 `json:"percentile"`
	Latency    float64 `json:"latency_us"`
}

// Requests counts outcomes: Sent = Succeeded + Failed + Unfinished.
type Requests struct {
	Sent       uint64 `json:"sent"`
	Succeeded  uint64 `json:"succeeded"`
	Failed     uint64 `json:"failed"`
	Refused    uint64 `json:"refused"`    // of Failed: answered with an error of the server's
	Unfinished uint64 `json:"unfinished"` // under way when the run was stopped
}

// Otherwise counts the failures without an error reply of the server: lost connections, time-outs, wrong replies.
func (r Requests) Otherwise() uint64 { return r.Failed - r.Refused }

// Latency is of successes, in microseconds; in an open loop from the intended start.
type Latency struct {
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// Lag says how far the sending fell behind an open loop's schedule, and why: a connection was missing, or the generator was late itself.
type Lag struct {
	Missed  int64   `json:"missed"`      // requests due in the window that no connection was free for before its end
	LagMax  float64 `json:"lag_max_us"`  // from the intended to the actual start
	Waited  uint64  `json:"waited"`      // requests that were due when every connection was busy
	WaitMax float64 `json:"wait_max_us"` // until one was free
	Late    Late    `json:"late_us"`     // from when both request and connection were ready to the actual start
}

// Late is the generator's own delay, in microseconds, to two digits. It is part of the latencies reported.
type Late struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// Bytes are of whole HTTP messages, before TLS and with those of the warm-up.
type Bytes struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
}

// Connections count the whole run.
type Connections struct {
	Opened  uint64 `json:"opened"`
	Retried uint64 `json:"requests_retried"` // sent again because the server had closed an idle connection
}

// ErrorCount is one kind of failure. Type is the __type for the server's errors, the load test's name for what the client saw.
type ErrorCount struct {
	Type       string `json:"type"`
	FromServer bool   `json:"from_server"`
	Count      uint64 `json:"count"`
	Example    string `json:"example"` // the first one's message
}

// Client is the machine the load came from. Where the generator uses nearly all its CPUs it measured itself.
type Client struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
	CPUs int    `json:"cpus"`
	Go   string `json:"go"`

	CPUsUsed float64 `json:"cpus_used"` // by the generator, on average of warm-up and window; 0 where the system does not tell
}

// report adds up what the workers did; they have all returned.
func (r *run) report(startedAt time.Time, cpusUsed float64, workers []*worker) *Report {
	sum := r.recorder.total()
	window := max(r.closesAt()-r.cfg.Warmup, 0)
	p := &Report{
		Schema: ReportSchema, StartedAt: startedAt.UTC().Truncate(time.Millisecond),
		Region: r.cfg.Region, Operation: r.op.name,
		Loop: ClosedLoop, Concurrency: r.cfg.Concurrency, Profile: r.cfg.Profile, Rate: r.cfg.Rate, RateTo: r.cfg.Rate,
		Keys: r.keys, KeyDistribution: r.cfg.KeyDistribution, PayloadBytes: r.cfg.Payload, Verified: r.cfg.Verify,
		WarmupSeconds: r.cfg.Warmup.Seconds(), Seconds: window.Seconds(), Interrupted: window < r.cfg.Duration,
		Throughput:  perSecond(sum.inWindow, window),
		RefusalRate: perSecond(sum.refused(), window),
		Requests:    Requests{Succeeded: sum.succeeded, Failed: sum.failed(), Refused: sum.refused()},
		Latency:     latencyOf(sum.latency), Distribution: pointsOf(sum.latency),
		Errors: errorCounts(sum),
		Client: Client{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.GOMAXPROCS(0), Go: runtime.Version(), CPUsUsed: cpusUsed},
		Notes:  append([]string{}, r.notes...),
	}
	if r.cfg.Profile != Constant {
		p.RateTo = r.cfg.RateTo
	}
	p.Endpoints = r.endpoints(workers, window)
	for _, e := range p.Endpoints {
		p.Requests.Unfinished += e.Requests.Unfinished
	}
	for _, w := range workers {
		p.Bytes.Sent += w.client.sent
		p.Bytes.Received += w.client.received
		p.Connections.Opened += w.client.dialled
		p.Connections.Retried += w.client.retried
	}
	p.Requests.Sent = p.Requests.Succeeded + p.Requests.Failed + p.Requests.Unfinished
	p.Timeline, p.Steps = r.intervals(window)
	p.SendRate = perSecond(p.Requests.Sent, window)
	if r.schedule.open() {
		due := r.schedule.between(r.cfg.Warmup, r.closesAt())
		p.Loop, p.Offered = OpenLoop, perSecond(uint64(due), window)
		p.Schedule = Lag{Missed: max(due-int64(p.Requests.Sent), 0), LagMax: micros(int64(sum.lagMax)), Waited: sum.waited, WaitMax: micros(int64(sum.waitMax))}
		if late := latencyOf(sum.late); sum.late.TotalCount() > 0 {
			p.Schedule.Late = Late{late.P50, late.P99, late.Max}
		}
	}
	p.explain()
	return p
}

// endpoints reports each endpoint's part.
func (r *run) endpoints(workers []*worker, window time.Duration) []Endpoint {
	all := make([]Endpoint, len(r.dialers))
	for i := range all {
		sum := r.recorder.endpoint(i)
		all[i] = Endpoint{URL: r.dialers[i].to.url, Requests: Requests{Succeeded: sum.succeeded, Failed: sum.failed(), Refused: sum.refused()},
			Throughput: perSecond(sum.inWindow, window), Latency: latencyOf(sum.latency), Errors: errorCounts(sum)}
	}
	for _, w := range workers {
		all[w.endpoint].Workers++
		all[w.endpoint].Requests.Unfinished += w.unfinished
	}
	for i := range all {
		q := &all[i].Requests
		q.Sent = q.Succeeded + q.Failed + q.Unfinished
	}
	return all
}

func perSecond(n uint64, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// intervals reports the timeline as far as it was reached, and the steps of the profile Step.
func (r *run) intervals(window time.Duration) (line, steps []Interval) {
	over, answered, failed, refused := r.recorder.over()
	line, steps = []Interval{}, []Interval{}
	last := r.cfg.Warmup + window
	join := func(from, to int) Interval { // intervals from <= i < to as one
		begin, end := over.begin(from), min(over.begin(to), last)
		latency, n := newTimelineHistogram(), uint64(0)
		v := Interval{At: (begin - r.cfg.Warmup).Seconds(), Seconds: (end - begin).Seconds(), Rate: perSecond(uint64(r.schedule.between(begin, end)), end-begin)}
		for i := from; i < to; i++ {
			n += answered[i]
			v.Failed += failed[i]
			v.Refused += refused[i]
			if h := over.latency[i]; h != nil {
				latency.Merge(h)
			}
		}
		v.Throughput, v.Latency = perSecond(n, end-begin), latencyOf(latency)
		return v
	}
	for i := 0; i < over.n && over.begin(i) < last; i++ {
		line = append(line, join(i, i+1))
	}
	if r.cfg.Profile == Step {
		each := over.n / r.cfg.Steps
		for i := 0; i < over.n && over.begin(i) < last; i += each {
			steps = append(steps, join(i, i+each))
		}
	}
	return line, steps
}

// pointsOf lists percentiles that grow denser towards 100, five to each halving of what is left.
func pointsOf(h *hdrhistogram.Histogram) []Point {
	points := []Point{}
	for _, b := range h.CumulativeDistributionWithTicks(5) {
		points = append(points, Point{Percentile: b.Quantile, Latency: micros(b.ValueAt)})
	}
	return points
}

// explain adds the notes without which the figures mislead.
func (p *Report) explain() {
	if p.Loop == ClosedLoop {
		p.Notes = append(p.Notes, "closed loop: a slow server was asked less, so the tail of the latency is a lower bound; use --rate for latency at a given load")
	}
	if p.Schedule.Missed > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s requests were due but never sent, as all %s connections were busy until the end: their latency is not in the figures; if the client has CPUs to spare, more connections (--concurrency) send more", count(uint64(p.Schedule.Missed)), count(uint64(p.Concurrency))))
	}
	if p.Schedule.Late.P99 > lateNoted {
		p.Notes = append(p.Notes, fmt.Sprintf("the generator itself sent one request in a hundred %.1f ms late or more: its machine is busy, and that is part of the latencies", p.Schedule.Late.P99/1000))
	}
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	if h.TotalCount() == 0 {
		return Latency{}
	}
	at := func(q float64) float64 { return micros(h.ValueAtQuantile(q)) }
	return Latency{Mean: micros(int64(h.Mean())), Min: micros(h.Min()), P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: micros(h.Max())}
}

// micros converts nanoseconds, to a tenth.
func micros(ns int64) float64 { return float64((ns+50)/100) / 10 }

// errorCounts lists the errors, most frequent first.
func errorCounts(sum *tally) []ErrorCount {
	counts := []ErrorCount{}
	for i, n := range sum.errors {
		if n > 0 {
			k := kind(i)
			counts = append(counts, ErrorCount{Type: k.String(), FromServer: k.fromServer(), Count: n, Example: sum.examples[k]})
		}
	}
	slices.SortStableFunc(counts, func(a, b ErrorCount) int {
		switch {
		case a.Count > b.Count:
			return -1
		case a.Count < b.Count:
			return 1
		}
		return strings.Compare(a.Type, b.Type)
	})
	return counts
}

// WriteJSON writes the report as one JSON document.
func (p *Report) WriteJSON(w io.Writer) error { return writeJSON(w, p) }
