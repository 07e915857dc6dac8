package plot

import (
	"fmt"
	"html"
	"math"
	"strings"
	"unicode/utf8"
)

// Size of a plot and of the room around it for labels, in SVG user units.
const (
	width, height                        = 860.0, 320.0
	padLeft, padRight, padTop, padBottom = 70.0, 30.0, 56.0, 44.0
	character                            = 7.0 // width of one, about
)

// groupWidth is the part of its place on the x axis that a group of bars fills.
const groupWidth = 0.8

// bandOpacity lets a line be seen on a Band.
const bandOpacity = 0.5

// Plot is one drawing. A picture of its own is dark on white, whatever the page around it.
type Plot struct {
	Title, XLabel, YLabel string
	X, Y                  Axis
	Series                []Series
	BarLabel              func(float64) string // writes the value over each bar; nil writes none
	Inline                bool                 // for an SVG within a page: no ground, and texts and lines in the colour of the text around it
}

// Kind is how a series is drawn.
type Kind int

const (
	Line Kind = iota // a NaN ends a line; the next point begins another
	Band             // a broad line, for what others are held against
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
	line := func(x1, y1, x2, y2, opacity float64) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="currentColor" stroke-opacity="%g"/>`, x1, y1, x2, y2, opacity)
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" font-family="sans-serif" font-size="12" fill="currentColor"`, width, height)
	title := html.EscapeString(p.Title)
	if p.Inline {
		fmt.Fprintf(&b, `><title>%s</title>`, title)
	} else {
		fmt.Fprintf(&b, ` color="#333"><title>%s</title><rect width="%g" height="%g" fill="#fff"/>`, title, width, height)
	}
	fmt.Fprintf(&b, `<text x="4" y="16" font-size="14" font-weight="bold">%s</text>`, title)
	left, right, top, bottom := padLeft, width-padRight, padTop, height-padBottom
	for _, t := range p.Y.Ticks {
		_, y := p.place(Point{p.X.Lo, t.At})
		line(left, y, right, y, .2)
		text(&b, left-6, y+4, "end", t.Label)
	}
	for _, t := range p.X.Ticks {
		x, _ := p.place(Point{t.At, p.Y.Lo})
		line(x, top, x, bottom, .1)
		if half := character * float64(utf8.RuneCountInString(t.Label)) / 2; x+half > width {
			text(&b, width, bottom+16, "end", t.Label) // would be cut off
		} else {
			text(&b, x, bottom+16, "middle", t.Label)
		}
	}
	line(left, bottom, right, bottom, .7)
	line(left, top, left, bottom, .7)
	text(&b, (left+right)/2, height-8, "middle", p.XLabel)
	text(&b, 4, top-14, "start", p.YLabel)
	if len(p.Series) > 1 { // one needs no telling apart
		p.legend(&b, right, top-14)
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
			p.line(&b, s, 1.5, 1)
		case Band:
			p.line(&b, s, 6, bandOpacity)
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

// legend names the series in a row that ends at right.
func (p *Plot) legend(b *strings.Builder, right, baseline float64) {
	for i := len(p.Series) - 1; i >= 0; i-- {
		s := &p.Series[i]
		right -= 30 + character*float64(utf8.RuneCountInString(s.Name))
		mark, opacity := 4.0, 1.0
		switch s.Kind {
		case Band:
			mark, opacity = 6, bandOpacity
		case Bars:
			mark = 8
		}
		fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="12" height="%g" fill="%s" fill-opacity="%g"/>`, right, baseline-4-mark/2, mark, s.Colour, opacity)
		text(b, right+16, baseline, "start", s.Name)
	}
}

func (p *Plot) line(b *strings.Builder, s *Series, broad, opacity float64) {
	fmt.Fprintf(b, `<path fill="none" stroke="%s" stroke-width="%g" stroke-opacity="%g" d="`, s.Colour, broad, opacity)
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
