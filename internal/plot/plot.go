package plot

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Size of a plot and of the room around it for labels, in SVG user units.
const (
	width, height                        = 860.0, 300.0
	padLeft, padRight, padTop, padBottom = 70.0, 30.0, 34.0, 44.0
)

// groupWidth is the part of its place on the x axis that a group of bars fills.
const groupWidth = 0.8

// Plot is one drawing.
type Plot struct {
	Title, XLabel, YLabel string
	X, Y                  Axis
	Series                []Series
	BarLabel              func(float64) string // writes the value over each bar; nil writes none
}

// Kind is how a series is drawn.
type Kind int

const (
	Line Kind = iota // a NaN ends a line; the next point begins another
	Dots
	Bars // from the bottom to each point; several such series stand side by side around the same x, one x unit apart from the next group
)

// Series is one line, or a number of dots or bars.
type Series struct {
	Name, Colour string
	Kind         Kind
	Points       []Point
}

// Point is a place in the units of the axes.
type Point struct{ X, Y float64 }

// At is the point at x and y.
func At(x, y float64) Point { return Point{x, y} }

// Gap ends a line.
var Gap = Point{math.NaN(), math.NaN()}

func (p *Plot) place(at Point) (x, y float64) {
	return p.X.place(at.X, padLeft, width-padRight), p.Y.place(at.Y, height-padBottom, padTop)
}

// SVG draws the plot: well-formed XML, every text escaped.
func (p *Plot) SVG() string {
	var b strings.Builder
	line := func(x1, y1, x2, y2 float64, colour string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`, x1, y1, x2, y2, colour)
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" font-family="sans-serif" font-size="12" fill="#333">`, width, height)
	fmt.Fprintf(&b, `<title>%s</title><rect width="%g" height="%g" fill="#fff"/>`, html.EscapeString(p.Title), width, height)
	left, right, top, bottom := padLeft, width-padRight, padTop, height-padBottom
	for _, t := range p.Y.Ticks {
		_, y := p.place(Point{p.X.Lo, t.At})
		line(left, y, right, y, "#ddd")
		text(&b, left-6, y+4, "end", t.Label)
	}
	for _, t := range p.X.Ticks {
		x, _ := p.place(Point{t.At, p.Y.Lo})
		line(x, top, x, bottom, "#eee")
		text(&b, x, bottom+16, "middle", t.Label)
	}
	line(left, bottom, right, bottom, "#666")
	line(left, top, left, bottom, "#666")
	text(&b, (left+right)/2, height-8, "middle", p.XLabel)
	text(&b, 4, top-16, "start", p.YLabel)
	legend := right
	for i := len(p.Series) - 1; i >= 0; i-- {
		s := &p.Series[i]
		legend -= 24 + 7*float64(len(s.Name))
		mark := 3
		if s.Kind == Bars {
			mark = 8
		}
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="12" height="%d" fill="%s"/>`, legend, top-20-float64(mark-3)/2, mark, s.Colour)
		text(&b, legend+16, top-16, "start", s.Name)
	}
	groups := 0
	for i := range p.Series {
		if p.Series[i].Kind == Bars {
			groups++
		}
	}
	bar := 0
	for i := range p.Series {
		s := &p.Series[i]
		fmt.Fprintf(&b, `<g data-series="%s">`, html.EscapeString(s.Name)) // for those who read the file and not the picture
		switch s.Kind {
		case Line:
			p.line(&b, s)
		case Dots:
			p.dots(&b, s)
		case Bars:
			p.bars(&b, s, bar, groups)
			bar++
		}
		b.WriteString("</g>")
	}
	b.WriteString("</svg>")
	return b.String()
}

func text(b *strings.Builder, x, y float64, anchor, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(s))
}

func (p *Plot) line(b *strings.Builder, s *Series) {
	fmt.Fprintf(b, `<path fill="none" stroke="%s" stroke-width="1.5" d="`, s.Colour)
	verb := 'M'
	for _, at := range s.Points {
		if math.IsNaN(at.Y) {
			verb = 'M'
			continue
		}
		x, y := p.place(at)
		fmt.Fprintf(b, "%c%.1f %.1f", verb, x, y)
		verb = 'L'
	}
	b.WriteString(`"/>`)
}

func (p *Plot) dots(b *strings.Builder, s *Series) {
	for _, at := range s.Points {
		x, y := p.place(at)
		fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`, x, y, s.Colour)
	}
}

// bars draws the nth of so many series of bars.
func (p *Plot) bars(b *strings.Builder, s *Series, nth, of int) {
	each := groupWidth / float64(of)
	for _, at := range s.Points {
		from := at.X - groupWidth/2 + each*float64(nth)
		x1, y := p.place(Point{from, at.Y})
		x2, bottom := p.place(Point{from + each, p.Y.Lo})
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, x1, y, max(x2-x1-1, 0.5), max(bottom-y, 0), s.Colour)
		if p.BarLabel != nil {
			text(b, (x1+x2)/2, y-3, "middle", p.BarLabel(at.Y))
		}
	}
}
