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
	if len(got) != 1 || got[0]["d"] != "M70.0 256.0L830.0 34.0M830.0 256.0" {
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
	if l := Linear(0, 1100); len(l.Ticks) != 6 || l.Ticks[1].Label != "200" {
		t.Errorf("ticks %v", l.Ticks)
	}
	l := Latencies(Series{Points: []Point{At(0, 90), Gap, At(1, 2e6)}})
	if l.Lo != 10 || l.Hi != 1e7 || l.Ticks[0].Label != "10 µs" || l.Ticks[2].Label != "1 ms" || l.Ticks[5].Label != "1 s" {
		t.Errorf("latencies %+v", l)
	}
}
