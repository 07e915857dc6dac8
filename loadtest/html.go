package loadtest

import (
	"html/template"
	"io"
	"strconv"
	"time"

	"github.com/keyplane/keyplane/internal/plot"
)

const (
	colourP50, colourP99, colourP999           = "#2ca25f", "#3a87c8", "#d6453d" // told apart on white and on black
	colourDue, colourRefused, colourConnection = "#999", "#e08214", "#d6453d"
)

// document is what the page is made of.
type document struct {
	Title, Schema string
	Search        *SearchReport // nil for a plain run
	SearchPlot    template.HTML
	Report        *Report // nil for a search in which no probe held
	Plots         []template.HTML
}

// WriteHTML writes the report as one page without anything from elsewhere: tables, and plots as inline SVG. The page is well-formed XML too.
func (p *Report) WriteHTML(w io.Writer) error {
	return page.Execute(w, document{Title: p.Operation, Schema: p.Schema, Report: p, Plots: p.plots()})
}

// WriteHTML writes the search's probes and the report of the best one as one page.
func (f *SearchReport) WriteHTML(w io.Writer) error {
	var plots []template.HTML
	if f.Best != nil {
		plots = f.Best.plots()
	}
	return page.Execute(w, document{"Search", f.Schema, f, inline(f.plot()), f.Best, plots})
}

// plots draws latency and throughput over time and the distribution of latency.
func (p *Report) plots() []template.HTML {
	return []template.HTML{inline(p.latencyPlot()), inline(p.throughputPlot()), inline(p.distributionPlot())}
}

// inline draws a plot for the page. The texts in it are escaped there.
func inline(g *plot.Plot) template.HTML {
	g.Inline = true
	return template.HTML(g.SVG())
}

// overTime is a series with a level stretch per interval; ok is false where there is no value.
func (p *Report) overTime(name, colour string, value func(*Interval) (v float64, ok bool)) plot.Series {
	s := plot.Series{Name: name, Colour: colour}
	for i := range p.Timeline {
		v := &p.Timeline[i]
		if y, ok := value(v); ok {
			s.Points = append(s.Points, plot.At(v.At, y), plot.At(v.At+v.Seconds, y))
		} else {
			s.Points = append(s.Points, plot.Gap)
		}
	}
	return s
}

func (p *Report) latencyPlot() *plot.Plot {
	of := func(name, colour string, pick func(*Latency) float64) plot.Series {
		return p.overTime(name, colour, func(v *Interval) (float64, bool) { return pick(&v.Latency), v.Latency.Max > 0 })
	}
	g := &plot.Plot{Title: "Latency over time, by the time the request was due", XLabel: "seconds", YLabel: "latency", X: plot.Linear(0, p.Seconds), Series: []plot.Series{
		of("p50", colourP50, func(l *Latency) float64 { return l.P50 }),
		of("p99", colourP99, func(l *Latency) float64 { return l.P99 }),
		of("p99.9", colourP999, func(l *Latency) float64 { return l.P999 }),
	}}
	g.Y = plot.Latencies(g.Series...)
	return g
}

func (p *Report) throughputPlot() *plot.Plot {
	g := &plot.Plot{Title: "Throughput over time", XLabel: "seconds", YLabel: "requests per second", X: plot.Linear(0, p.Seconds)}
	if p.Loop == OpenLoop {
		g.Series = append(g.Series, p.overTime("offered", colourDue, func(v *Interval) (float64, bool) { return v.Rate, true }))
		g.Series[0].Kind = plot.Band
	}
	g.Series = append(g.Series,
		p.overTime("served", colourP99, func(v *Interval) (float64, bool) { return v.Throughput, true }),
		p.overTime("refused", colourRefused, func(v *Interval) (float64, bool) { return float64(v.Refused) / max(v.Seconds, 1e-9), true }),
		p.overTime("failed otherwise", colourConnection, func(v *Interval) (float64, bool) {
			return float64(v.Otherwise()) / max(v.Seconds, 1e-9), true
		}))
	top := 0.0
	for _, s := range g.Series {
		for _, at := range s.Points {
			top = max(top, at.Y)
		}
	}
	g.Y = plot.Linear(0, top*1.05)
	return g
}

// distributionPlot has the latency of every percentile recorded.
func (p *Report) distributionPlot() *plot.Plot {
	s := plot.Series{Name: "latency", Colour: colourP99}
	right := 10.0
	for _, at := range p.Distribution {
		x := 2 * right // 100 %, the largest, stands where one more halving of what is left would
		if at.Percentile < 100 {
			x = plot.Percentile(at.Percentile)
			right = max(right, x)
		}
		s.Points = append(s.Points, plot.At(x, at.Latency))
		if at.Percentile >= 100 {
			right = x
			break
		}
	}
	g := &plot.Plot{Title: "Latency by percentile", XLabel: "per cent of the requests take no longer", YLabel: "latency", Series: []plot.Series{s}, Y: plot.Latencies(s)}
	g.X = plot.Percentiles(right)
	return g
}

// plot draws the probes: which rates held the bound.
func (f *SearchReport) plot() *plot.Plot {
	held, failed := plot.Series{Name: "held", Colour: colourP50, Kind: plot.Dots}, plot.Series{Name: "failed", Colour: colourP999, Kind: plot.Dots}
	bound := plot.Series{Name: "bound", Colour: colourDue}
	hi := 1.0
	for _, p := range f.Probes {
		hi = max(hi, p.Rate)
		switch {
		case p.Held:
			held.Points = append(held.Points, plot.At(p.Rate, *p.P99))
		case p.P99 != nil:
			failed.Points = append(failed.Points, plot.At(p.Rate, *p.P99))
		default:
			failed.Points = append(failed.Points, plot.At(p.Rate, 10*f.Bound)) // it has no p99; drawn clearly above the bound
		}
	}
	g := &plot.Plot{Title: "Probes: p99 at the rates offered", XLabel: "requests per second offered", YLabel: "p99", X: plot.Linear(0, hi*1.05)}
	bound.Points = []plot.Point{plot.At(0, f.Bound), plot.At(g.X.Hi, f.Bound)}
	g.Series = []plot.Series{bound, held, failed}
	g.Y = plot.Latencies(g.Series...)
	return g
}

var page = template.Must(template.New("report").Funcs(template.FuncMap{
	"grouped": grouped, "count": count, "loop": (*Report).loopText, "client": (*Report).clientText, "failures": failures, "time": plot.Micros,
	"keys":    func(n int) string { return count(uint64(n)) },
	"missed":  func(n int64) string { return count(uint64(n)) },
	"seconds": func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) },
	"at":      func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"p99": func(p *float64) string {
		if p == nil {
			return "none"
		}
		return plot.Micros(*p)
	},
}).Parse(`<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width"/>
<title>keyplane loadtest: {{.Title}}</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.4 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h1 { font-size: 1.6em; line-height: 1.2 }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd }
td { white-space: nowrap }
th:first-child, td:first-child, .text { text-align: left }
td.text { white-space: normal }
svg { display: block; width: 100%; height: auto; margin: 1.5em 0 }
@media (prefers-color-scheme: dark) {
body { color: #ddd; background: #161616 }
th, td { border-color: #444 }
}
</style>
</head>
<body>
{{define "latency"}}{{if .Max}}<td>{{time .P50}}</td><td>{{time .P99}}</td><td>{{time .P999}}</td><td>{{time .Max}}</td>{{else}}<td colspan="4">no successes</td>{{end}}{{end -}}
{{define "latencyhead"}}<th>p50</th><th>p99</th><th>p99.9</th><th>max</th>{{end -}}
{{with .Search}}<h1>Highest rate with p99 within {{time .Bound}}: {{if .Best}}{{grouped .Rate}} requests/s{{else}}none{{end}}</h1>
{{$.SearchPlot}}
<table>
<tr><th>offered/s</th><th>served/s</th><th>p99</th><th>failed</th><th>never sent</th><th>generator late, p99</th><th>result</th></tr>
{{range .Probes}}<tr><td>{{grouped .Rate}}</td><td>{{grouped .Throughput}}</td><td>{{p99 .P99}}</td><td>{{count .Failed}}</td><td>{{missed .Missed}}</td><td>{{time .Late}}</td><td>{{if .Held}}held{{else}}failed{{end}}</td></tr>
{{end}}</table>
{{range .Notes}}<p>{{.}}</p>
{{end}}{{end -}}
{{with .Report}}<h1>{{.Operation}}: {{grouped .Throughput}} requests/s</h1>
<table>
<tr><td>started</td><td class="text">{{at .StartedAt}}</td></tr>
<tr><td>loop</td><td class="text">{{loop .}}</td></tr>
<tr><td>time</td><td class="text">{{seconds .Seconds}} s after {{seconds .WarmupSeconds}} s of warm-up{{if .Interrupted}}, interrupted{{end}}</td></tr>
<tr><td>keys</td><td class="text">{{keys .Keys}}, {{.KeyDistribution}}, payload {{.PayloadBytes}} bytes</td></tr>
{{if eq .Loop "open"}}<tr><td>per second</td><td class="text">{{grouped .Offered}} offered, {{grouped .SendRate}} sent, {{grouped .Throughput}} served, {{grouped .RefusalRate}} refused</td></tr>
{{end}}<tr><td>requests</td><td class="text">{{count .Requests.Sent}} sent, {{count .Requests.Succeeded}} succeeded, {{failures .Requests.Failed .Requests.Refused}}, {{count .Requests.Unfinished}} unfinished</td></tr>
{{if eq .Loop "open"}}<tr><td>schedule</td><td class="text">{{missed .Schedule.Missed}} never sent, {{count .Schedule.Waited}} waited for a connection, for at most {{time .Schedule.WaitMax}}</td></tr>
<tr><td>generator</td><td class="text">late itself by: p50 {{time .Schedule.Late.P50}}, p99 {{time .Schedule.Late.P99}}, max {{time .Schedule.Late.Max}}</td></tr>
{{end}}<tr><td>client</td><td class="text">{{client .}}</td></tr>
</table>
{{range $.Plots}}{{.}}
{{end}}<table>
<tr><th>endpoint</th><th>connections</th><th>served/s</th><th>refused</th><th>failed otherwise</th>{{template "latencyhead"}}</tr>
{{range .Endpoints}}<tr><td>{{.URL}}</td><td>{{.Workers}}</td><td>{{grouped .Throughput}}</td><td>{{count .Requests.Refused}}</td><td>{{count .Requests.Otherwise}}</td>{{template "latency" .Latency}}</tr>
{{end}}{{if gt (len .Endpoints) 1}}<tr><td>all</td><td>{{.Concurrency}}</td><td>{{grouped .Throughput}}</td><td>{{count .Requests.Refused}}</td><td>{{count .Requests.Otherwise}}</td>{{template "latency" .Latency}}</tr>
{{end}}</table>
{{if .Steps}}<table>
<tr><th>step from</th><th>offered/s</th><th>served/s</th><th>refused</th><th>failed otherwise</th>{{template "latencyhead"}}</tr>
{{range .Steps}}<tr><td>{{seconds .At}} s</td><td>{{grouped .Rate}}</td><td>{{grouped .Throughput}}</td><td>{{count .Refused}}</td><td>{{count .Otherwise}}</td>{{template "latency" .Latency}}</tr>
{{end}}</table>
{{end}}{{if .Errors}}<table>
<tr><th>error</th><th>count</th><th class="text">first message</th></tr>
{{range .Errors}}<tr><td>{{.Type}}</td><td>{{count .Count}}</td><td class="text">{{.Example}}</td></tr>
{{end}}</table>
{{end}}{{range .Notes}}<p>{{.}}</p>
{{end}}{{end}}<p><small>{{.Schema}}</small></p>
</body>
</html>
`))
