package plot

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
)

// marks parses a drawing, which must be well-formed, and returns the attributes of the elements of one name within a series.
func marks(t *testing.T, svg, series, element string) []map[string]string {
	t.Helper()
	var found []map[string]string
	in := false
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("%v in %s", err, svg)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			attrs := map[string]string{}
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			if e.Name.Local == "g" {
				in = attrs["data-series"] == series
			} else if in && e.Name.Local == element {
				found = append(found, attrs)
			}
		case xml.EndElement:
			if e.Name.Local == "g" {
				in = false
			}
		}
	}
}

func number(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Bars stand on the axis, as high as their values, next to each other within a group and clear of the next group.
func TestBars(t *testing.T) {
	p := Plot{Title: "a <b> & c", X: Categories([]string{"one", "two"}), Y: Linear(0, 4), BarLabel: func(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) + " <x" }, Series: []Series{
		{Name: "a", Colour: "#111", Kind: Bars, Points: []Point{At(0, 1), At(1, 2)}},
		{Name: "b&", Colour: "#222", Kind: Bars, Points: []Point{At(0, 4), At(1, 0)}},
	}}
	svg := p.SVG()
	a, b := marks(t, svg, "a", "rect"), marks(t, svg, "b&", "rect")
	if len(a) != 2 || len(b) != 2 {
		t.Fatalf("%d and %d bars, want 2 and 2: %s", len(a), len(b), svg)
	}
	full := height - padBottom - padTop
	for i, want := range []float64{full / 4, full / 2} {
		if h := number(t, a[i]["height"]); h < want-0.1 || h > want+0.1 {
			t.Errorf("bar %d is %v high, want %v", i, h, want)
		}
		if end := number(t, a[i]["y"]) + number(t, a[i]["height"]); end < height-padBottom-0.2 || end > height-padBottom+0.2 {
			t.Errorf("bar %d ends at %v, not on the axis", i, end)
		}
	}
	if h := number(t, b[1]["height"]); h != 0 {
		t.Errorf("a bar of nothing is %v high", h)
	}
	x := func(m map[string]string) float64 { return number(t, m["x"]) }
	if endA := x(a[0]) + number(t, a[0]["width"]); endA > x(b[0]) || x(b[0])+number(t, b[0]["width"]) >= x(a[1]) {
		t.Errorf("bars overlap: %v %v %v", a[0], b[0], a[1])
	}
	if got := marks(t, svg, "b&", "text"); len(got) != 2 {
		t.Errorf("%d labels, want 2", len(got))
	}
}

func TestGapEndsALine(t *testing.T) {
	p := Plot{X: Linear(0, 10), Y: Linear(0, 10), Series: []Series{{Name: "l", Colour: "#111", Points: []Point{At(0, 0), At(10, 10), Gap, At(10, 0)}}}}
	got := marks(t, p.SVG(), "l", "path")
	if len(got) != 1 || got[0]["d"] != "M70.0 276.0L830.0 56.0M830.0 276.0" {
		t.Errorf("%v", got)
	}
}

func TestAxes(t *testing.T) {
	label := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	for _, c := range []struct {
		name string
		axis Axis
		at   float64
		want float64 // on 0..100
	}{
		{"linear", Linear(0, 50), 25, 50},
		{"empty", Linear(3, 3), 3, 0},
		{"logarithmic", Logarithmic(2, 900, label), 10, 100.0 / 3},
		{"logarithmic, below", Logarithmic(10, 1000, label), 0, 0},
		{"first category of four", Categories([]string{"a", "b", "c", "d"}), 0, 12.5},
		{"two nines of three", Percentiles(Percentile(99.9)), Percentile(99), 200.0 / 3},
	} {
		if got := c.axis.place(c.at, 0, 100); got < c.want-1e-6 || got > c.want+1e-6 {
			t.Errorf("%s: %v at %v, want %v", c.name, c.at, got, c.want)
		}
	}
	a := Values([]float64{1, 8, 64}, label)
	if got := []string{a.Ticks[0].Label, a.Ticks[1].Label, a.Ticks[2].Label}; strings.Join(got, " ") != "1 8 64" {
		t.Errorf("ticks %q", got)
	}
	if l := Linear(0, 1100); len(l.Ticks) != 6 || l.Ticks[1].Label != "200" || l.Ticks[5].Label != "1 000" {
		t.Errorf("ticks %v", l.Ticks)
	}
	// An axis of percentiles ends where it is told to, with the last nine before it or there.
	for at, want := range map[float64]string{99.9: "99.9 %", 99.99: "99.99 %", 99.95: "99.9 %"} {
		p := Percentiles(Percentile(at))
		if p.Hi != Percentile(at) || p.Ticks[len(p.Ticks)-1].Label != want {
			t.Errorf("percentiles to %v: %+v", at, p)
		}
	}
	l := Latencies(Series{Points: []Point{At(0, 90), Gap, At(1, 2e6)}})
	if l.Lo != 10 || l.Hi != 1e7 || l.Ticks[0].Label != "10 µs" || l.Ticks[2].Label != "1 ms" || l.Ticks[5].Label != "1 s" {
		t.Errorf("latencies %+v", l)
	}
}

// Ticks are round, few, and no label is wider than the room beside the plot.
func TestLinearTicks(t *testing.T) {
	for _, hi := range []float64{0, 0.3, 1, 7, 20, 63, 105, 999, 1001, 52_500, 1.05e6} {
		a := Linear(0, hi)
		if n := len(a.Ticks); n < 2 || n > ticksAbout+1 || a.Ticks[0].At != 0 || a.Ticks[n-1].At > a.Hi*(1+slack) || a.Ticks[n-1].At < a.Hi/2 {
			t.Errorf("0 to %v: %+v", hi, a)
		}
		for _, tick := range a.Ticks {
			if len(tick.Label)*int(character) > int(padLeft) {
				t.Errorf("0 to %v: %q does not fit", hi, tick.Label)
			}
		}
	}
}

func TestMicros(t *testing.T) {
	for us, want := range map[float64]string{0: "0 µs", 0.5: "0.5 µs", 42.04: "42 µs", 999.4: "999 µs", 999.6: "1 ms", 12_468: "12.5 ms", 999_600: "1 s", 61e6: "61 s", 7200e6: "7 200 s"} {
		if got := Micros(us); got != want {
			t.Errorf("%v µs is written %q, want %q", us, got, want)
		}
	}
}

// A picture of its own has a ground and a colour; one within a page has neither. Both have their title in sight.
func TestColours(t *testing.T) {
	p := Plot{Title: "a & b", X: Linear(0, 1), Y: Linear(0, 1)}
	const title, ground, colour = `font-weight="bold">a &amp; b</text>`, `<rect width="860" height="320" fill="#fff"/>`, ` color="#333"`
	if svg := p.SVG(); !strings.Contains(svg, title) || !strings.Contains(svg, ground) || !strings.Contains(svg, colour) {
		t.Error(svg)
	}
	p.Inline = true
	if svg := p.SVG(); !strings.Contains(svg, title) || strings.Contains(svg, "#") {
		t.Error(svg)
	}
}

// A label that would leave the picture ends at its edge.
func TestLabelAtTheEdge(t *testing.T) {
	p := Plot{X: Axis{Hi: 1, Ticks: []Tick{{0, "left, of any length"}, {1, "short"}}}, Y: Linear(0, 1)}
	if svg := p.SVG(); !strings.Contains(svg, `x="830.0" y="292.0" text-anchor="middle">short<`) {
		t.Error(svg)
	}
	p.X.Ticks[1].Label = "99.9999 % and more"
	if svg := p.SVG(); !strings.Contains(svg, `x="860.0" y="292.0" text-anchor="end">99.9999 % and more<`) {
		t.Error(svg)
	}
}

// Two series are named, one is not; a band is drawn as broad beside its name as in the plot.
func TestLegend(t *testing.T) {
	p := Plot{X: Linear(0, 1), Y: Linear(0, 1), Series: []Series{{Name: "offered", Colour: "#111", Kind: Band, Points: []Point{At(0, 1), At(1, 1)}}}}
	if svg := p.SVG(); strings.Contains(svg, ">offered<") {
		t.Errorf("a legend in %s", svg)
	}
	p.Series = append(p.Series, Series{Name: "served", Colour: "#222", Points: []Point{At(0, 1), At(1, 0)}})
	svg := p.SVG()
	if !strings.Contains(svg, ">offered<") || !strings.Contains(svg, ">served<") || !strings.Contains(svg, `height="6" fill="#111" fill-opacity="0.5"/>`) {
		t.Errorf("no legend in %s", svg)
	}
	band, line := marks(t, svg, "offered", "path"), marks(t, svg, "served", "path")
	if len(band) != 1 || len(line) != 1 || band[0]["stroke-width"] != "6" || band[0]["stroke-opacity"] != "0.5" || line[0]["stroke-width"] != "1.5" || line[0]["stroke-opacity"] != "1" {
		t.Errorf("%v %v", band, line)
	}
}
