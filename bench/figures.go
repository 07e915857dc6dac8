package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/keyplane/keyplane/internal/plot"
)

// colours of targets and of operations.
var colours = map[string]string{
	echoName: "#999999", softName: "#7fbf7b", hsmName: "#2166ac", baselineName: "#d95f02", noRoundsName: "#762a83", oneKeyName: "#92c5de", manyKeysName: "#2166ac",
	"GenerateDataKey": "#2166ac", "Decrypt": "#d95f02", "Encrypt": "#1b7837",
}

func colour(name string) string {
	if c, ok := colours[name]; ok {
		return c
	}
	return "#333333"
}

// draw writes the figures of the tables that were measured. Their names do not change, so that pages can link them.
func (p *plan) draw() error {
	figures := map[string]*plot.Plot{}
	for _, t := range p.tables {
		switch t {
		case "floor":
			figures["floor"] = p.bars(t, "Requests per second, of the echo", perSecond)
			figures["cpu"] = p.bars(t, "Server CPU time per request, of the echo", cpuMicros)
			figures["latency"] = p.latencies()
		case "conns":
			figures["conns"] = p.byConns()
		case "rounds":
			figures["rounds"] = p.roundHistogram()
			figures["norounds"] = p.bars(t, "Requests per second with and without rounds, of the echo", perSecond)
		case "payload":
			figures["payload"] = p.bars(t, "Requests per second by payload, of the echo of the same sizes", perSecond)
		case "tls":
			figures["tls"] = p.bars(t, "Requests per second, of the echo with the same transport", perSecond)
		case "keys":
			figures["keys"] = p.bars(t, "Requests per second with one key and with many, of the echo", perSecond)
		}
	}
	for name, g := range figures {
		if err := os.WriteFile(filepath.Join(p.out, name+".svg"), []byte(g.SVG()+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bars draws the ratio to the echo: a group for each operation and a bar for each target, or in a table that varies something for one
// target, a group for each case and a bar for each operation.
func (p *plan) bars(table, title string, pick func(*measurement) float64) *plot.Plot {
	var groups, names []string
	rows := p.rows(table)
	place := func(r row) (group, name string) {
		if r.in == "" {
			return r.op, r.target
		}
		return r.in, r.op
	}
	for _, r := range rows {
		group, name := place(r)
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
		if r.target != echoName && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	g := &plot.Plot{Title: title, YLabel: "times the echo", X: plot.Categories(groups), BarLabel: func(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }}
	top := 1.0
	for _, n := range names {
		s := plot.Series{Name: n, Colour: colour(n), Kind: plot.Bars}
		for _, r := range rows {
			group, name := place(r)
			if r.target == echoName || name != n {
				continue
			}
			v := p.ratio(table, r.op, r.in, r.target, echoName, pick)
			top = max(top, v)
			s.Points = append(s.Points, plot.At(float64(slices.Index(groups, group)), v))
		}
		g.Series = append(g.Series, s)
	}
	g.Y = plot.Linear(0, top*1.1)
	g.Series = append(g.Series, plot.Series{Name: echoName, Colour: colour(echoName), Points: []plot.Point{plot.At(g.X.Lo, 1), plot.At(g.X.Hi, 1)}})
	return g
}

// byConns draws throughput over the number of connections.
func (p *plan) byConns() *plot.Plot {
	var at []float64
	for _, n := range connCounts {
		at = append(at, float64(n))
	}
	g := &plot.Plot{
		Title: "Throughput by connections", YLabel: "Requests per second", XLabel: "connections",
		X: plot.Values(at, func(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }),
	}
	top := 1.0
	for _, r := range p.rows("conns") {
		name := r.op + ", " + r.target
		i := slices.IndexFunc(g.Series, func(s plot.Series) bool { return s.Name == name })
		if i < 0 {
			i = len(g.Series)
			c := colour(r.op)
			if r.target == echoName {
				c = greys[i%len(greys)]
			}
			g.Series = append(g.Series, plot.Series{Name: name, Colour: c})
		}
		v := p.median("conns", r.op, r.in, r.target, perSecond)
		top = max(top, v)
		g.Series[i].Points = append(g.Series[i].Points, plot.At(float64(p.of("conns", r.op, r.in, r.target)[0].Conns), v))
	}
	g.Y = plot.Linear(0, top*1.05)
	return g
}

// greys tell the floors of the operations apart.
var greys = []string{"#888888", "#aaaaaa", "#bbbbbb", "#cccccc"}

// latencies draws the percentiles of the first operation, medians over the rounds.
func (p *plan) latencies() *plot.Plot {
	op := p.ops[0]
	g := &plot.Plot{
		Title: "Latency by percentile", YLabel: fmt.Sprintf("Latency of %s at %d connections", op, p.conns), XLabel: "percentile",
		X: plot.Percentiles(plot.Percentile(percentiles[len(percentiles)-1])),
	}
	for _, r := range p.rows("floor") {
		if r.op != op {
			continue
		}
		s := plot.Series{Name: r.target, Colour: colour(r.target)}
		for i, percent := range percentiles {
			s.Points = append(s.Points, plot.At(plot.Percentile(percent), p.median("floor", r.op, r.in, r.target, func(m *measurement) float64 { return m.Latencies[i] })))
		}
		g.Series = append(g.Series, s)
	}
	g.Y = plot.Latencies(g.Series...)
	return g
}

// roundHistogram draws how large rounds were where they are on.
func (p *plan) roundHistogram() *plot.Plot {
	g := &plot.Plot{
		Title: "Sizes of rounds", YLabel: fmt.Sprintf("%% of rounds, %s, %d connections", hsmName, p.conns), XLabel: "requests in a round",
		X: plot.Categories(roundLabels), BarLabel: func(v float64) string {
			if v < 0.5 {
				return ""
			}
			return strconv.FormatFloat(v, 'f', 0, 64)
		},
	}
	top := 1.0
	for _, r := range p.rows("rounds") {
		sizes := p.roundSizes("rounds", r)
		if r.target != hsmName || sizes == nil {
			continue
		}
		s := plot.Series{Name: r.op, Colour: colour(r.op), Kind: plot.Bars}
		for i, part := range sizes {
			top = max(top, part*100)
			s.Points = append(s.Points, plot.At(float64(i), part*100))
		}
		g.Series = append(g.Series, s)
	}
	if len(g.Series) == 1 { // of which there is no legend
		g.Title += ", " + g.Series[0].Name
	}
	g.Y = plot.Linear(0, top*1.1)
	return g
}
