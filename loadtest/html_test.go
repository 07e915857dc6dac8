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
	"github.com/keyplane/keyplane/internal/plot"
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

// frame is where the axes are drawn, in the drawings' units; upwards is less.
type frame struct{ left, right, top, bottom float64 }

// frameOf reads the axes of the page's drawings, which all have the same.
func frameOf(t *testing.T, page string) frame {
	t.Helper()
	axes := regexp.MustCompile(`<line x1="(\S+)" y1="(\S+)" x2="(\S+)" y2="(\S+)" stroke="currentColor" stroke-opacity="0.7"/>`).FindAllStringSubmatch(page, -1)
	if len(axes) < 2 {
		t.Fatalf("no axes in\n%s", page)
	}
	number := func(s string) float64 {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	x, y := axes[0], axes[1]
	return frame{number(x[1]), number(x[3]), number(y[2]), number(y[4])}
}

// path reads the drawn points of one series.
func path(t *testing.T, page, series string) (all []plot.Point) {
	t.Helper()
	m := regexp.MustCompile(`data-series="` + regexp.QuoteMeta(series) + `"><path [^>]* d="([^"]*)"`).FindStringSubmatch(page)
	if m == nil {
		t.Fatalf("no series %q in\n%s", series, page)
	}
	in := frameOf(t, page)
	for _, at := range regexp.MustCompile(`[ML]([0-9.-]+) ([0-9.-]+)`).FindAllStringSubmatch(m[1], -1) {
		x, errX := strconv.ParseFloat(at[1], 64)
		y, errY := strconv.ParseFloat(at[2], 64)
		if errX != nil || errY != nil || x < in.left-.1 || x > in.right+.1 || y < in.top-.1 || y > in.bottom+.1 {
			t.Errorf("%s: point %q outside of the drawing", series, at[0])
		}
		all = append(all, plot.At(x, y))
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
	if strings.Count(page, "<svg") != 3 || strings.Contains(page, `color="#`) {
		t.Errorf("drawings that do not take the page's colours in\n%s", page)
	}
	// The rate offered is 100 in the first half and 300 in the second; the axis begins at 0.
	offered := path(t, page, "offered")
	if len(offered) != 4 {
		t.Fatalf("%d points", len(offered))
	}
	in := frameOf(t, page)
	floor, middle := in.bottom, (in.left+in.right)/2
	if ratio := (floor - offered[2].Y) / (floor - offered[0].Y); math.Abs(ratio-3) > .02 {
		t.Errorf("the second step is drawn %v times as high", ratio)
	}
	if math.Abs(offered[1].X-middle) > .1 || math.Abs(offered[2].X-middle) > .1 {
		t.Errorf("the step is at %v and %v, the middle is %v", offered[1].X, offered[2].X, middle)
	}
	for _, p50 := range path(t, page, "p50") {
		if p99 := path(t, page, "p99"); p99[0].Y > p50.Y && p99[len(p99)-1].Y > p50.Y { // upwards is less
			t.Errorf("p99 at %v and p50 at %v", p99, p50)
		}
	}
	for _, lost := range path(t, page, "failed otherwise") {
		if math.Abs(lost.Y-floor) > .1 {
			t.Errorf("failures without a refusal at %v", lost)
		}
	}
	last := plot.At(0, math.Inf(1))
	for _, at := range path(t, page, "latency") {
		if at.X < last.X || at.Y > last.Y {
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
