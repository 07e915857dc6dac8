package loadtest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/keyplane/keyplane/internal/kmsapi"
)

// wantPage checks what holds for every page: well-formed, nothing in it that a browser would fetch or run, and no coordinate that is no number.
// It returns the text of the page without markup.
func wantPage(t *testing.T, report outcome) (page, text string) {
	t.Helper()
	var b bytes.Buffer
	if err := report.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page = b.String()
	var words strings.Builder
	for d := xml.NewDecoder(strings.NewReader(page)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, page)
		}
		switch e := token.(type) {
		case xml.CharData:
			words.Write(e)
		case xml.StartElement:
			if name := e.Name.Local; name == "script" || name == "link" || name == "img" || name == "iframe" || name == "object" || name == "image" {
				t.Errorf("element <%s>", name)
			}
			for _, a := range e.Attr {
				if name := a.Name.Local; name == "src" || name == "href" || name == "style" || strings.HasPrefix(name, "on") {
					t.Errorf("attribute %s=%q of <%s>", name, a.Value, e.Name.Local)
				}
			}
		}
	}
	if strings.Contains(page, "url(") || strings.Contains(page, "@import") || strings.Contains(page, "NaN") || strings.Contains(page, "Inf") || strings.Contains(page, "ZgotmplZ") {
		t.Errorf("a reference or something that is no number in\n%s", page)
	}
	return page, words.String()
}

// path reads the drawn points of one series, in the drawing's units.
func path(t *testing.T, page, series string) (all []point) {
	t.Helper()
	m := regexp.MustCompile(`data-series="` + regexp.QuoteMeta(series) + `"><path [^>]* d="([^"]*)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no series %q in\n%s", series, page)
	}
	for _, at := range regexp.MustCompile(`[ML]([0-9.-]+) ([0-9.-]+)`).FindAllStringSubmatch(m[1], -1) {
		x, errX := strconv.ParseFloat(at[1], 64)
		y, errY := strconv.ParseFloat(at[2], 64)
		if errX != nil || errY != nil || x < plotLeft-.1 || x > plotWidth-plotRight+.1 || y < plotTop-.1 || y > plotHeight-plotBottom+.1 {
			t.Errorf("%s: point %q outside of the drawing", series, at[0])
		}
		all = append(all, point{x, y})
	}
	return all
}

// The page of an overload has what was offered, served, refused and lost, in figures and plots, and takes an error's text as text.
func TestPage(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, n int64) bool {
		if n%2 == 0 {
			refuse(ctx, kmsapi.Throttling, "<script>alert(1)</script>")
		}
		return n%2 == 0
	}
	cfg := testConfig(k.url)
	cfg.Profile, cfg.Rate, cfg.RateTo, cfg.Steps, cfg.Duration = Step, 100, 300, 2, 1000*ms
	p := allSent(t, nil, nil, cfg)
	page, text := wantPage(t, p)
	for _, want := range []string{"GenerateDataKey: ", "200 offered, 200 sent, ", " refused", "late itself by: p50 ", "<script>alert(1)</script>", "ThrottlingException", k.url, ReportSchema,
		"Latency over time", "Throughput over time", "Latency by percentile", "failed otherwise", "99 %"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	// The rate offered is 100 in the first half and 300 in the second; the axis begins at 0.
	offered := path(t, page, "offered")
	if len(offered) != 4 {
		t.Fatalf("%d points", len(offered))
	}
	floor, middle := plotHeight-plotBottom, (plotLeft+plotWidth-plotRight)/2
	if ratio := (floor - offered[2].y) / (floor - offered[0].y); math.Abs(ratio-3) > .02 {
		t.Errorf("the second step is drawn %v times as high", ratio)
	}
	if math.Abs(offered[1].x-middle) > .1 || math.Abs(offered[2].x-middle) > .1 {
		t.Errorf("the step is at %v and %v, the middle is %v", offered[1].x, offered[2].x, middle)
	}
	for _, p50 := range path(t, page, "p50") {
		if p99 := path(t, page, "p99"); p99[0].y > p50.y && p99[len(p99)-1].y > p50.y { // upwards is less
			t.Errorf("p99 at %v and p50 at %v", p99, p50)
		}
	}
	for _, lost := range path(t, page, "failed otherwise") {
		if math.Abs(lost.y-floor) > .1 {
			t.Errorf("failures without a refusal at %v", lost)
		}
	}
	last := point{0, math.Inf(1)}
	for _, at := range path(t, page, "latency") {
		if at.x < last.x || at.y > last.y {
			t.Errorf("percentiles go from %v to %v", last, at)
		}
		last = at
	}
}

// A page without a single success, of a closed loop, and of a search without and with a result.
func TestPageEmpty(t *testing.T) {
	k := newFakeKMS(t, nil)
	k.fault = func(ctx *fasthttp.RequestCtx, _ string, _ int64) bool {
		refuse(ctx, kmsapi.Throttling, "")
		return true
	}
	p := k.runUntil(testConfig(k.url), atLeast(10))
	if page, text := wantPage(t, p); !strings.Contains(text, "no successes") || strings.Contains(page, "offered") || strings.Contains(text, "generator") {
		t.Error(page)
	}
	search := &SearchReport{Schema: SearchSchema, Bound: 5000, Probes: []Probe{{Rate: 500, Failed: 7}}}
	if page, text := wantPage(t, search); !strings.Contains(text, "p99 within 5 ms: none") || strings.Count(page, "<circle") != 1 {
		t.Error(page)
	}
	p99 := 4200.0
	search.Probes, search.Best, search.Rate = append(search.Probes, Probe{Rate: 250, P99: &p99, Held: true}), p, 250
	if page, text := wantPage(t, search); !strings.Contains(text, "p99 within 5 ms: 250 requests/s") || strings.Count(page, "<circle") != 2 || !strings.Contains(text, "4.2 ms") {
		t.Error(page)
	}
}

// Ticks are round, few, and no label is wider than the room beside the plot.
func TestAxes(t *testing.T) {
	for _, hi := range []float64{0, 0.3, 1, 7, 20, 63, 105, 999, 1001, 52_500, 1.05e6} {
		a := linear(0, hi)
		if n := len(a.ticks); n < 2 || n > plotTicks+1 || a.ticks[0].at != 0 || a.ticks[n-1].at > a.hi*(1+1e-9) || a.ticks[n-1].at < a.hi/2 {
			t.Errorf("0 to %v: %+v", hi, a)
		}
		for _, tick := range a.ticks {
			if len(tick.label)*int(plotCharacter) > int(plotLeft) {
				t.Errorf("0 to %v: %q does not fit", hi, tick.label)
			}
		}
	}
	a := latencyAxis(series{points: []point{{0, 0}, {1, 80}, gap, {2, 45_000}}})
	if len(a.ticks) != 5 || a.ticks[0].label != "10 µs" || a.ticks[4].label != "100 ms" {
		t.Errorf("80 µs to 45 ms: %+v", a.ticks)
	}
	for us, want := range map[float64]string{0: "0 µs", 0.5: "0.5 µs", 42.04: "42 µs", 999.4: "999 µs", 999.6: "1 ms", 12_468: "12.5 ms", 999_600: "1 s", 61e6: "61 s", 7200e6: "7 200 s"} {
		if got := inUnits(us); got != want {
			t.Errorf("%v µs is written %q, want %q", us, got, want)
		}
	}
}
