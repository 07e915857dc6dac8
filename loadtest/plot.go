package loadtest

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Size of a plot and of the room around it for labels, in SVG user units.
const (
	plotWidth, plotHeight                    = 860.0, 320.0
	plotLeft, plotRight, plotTop, plotBottom = 70.0, 20.0, 56.0, 44.0
	plotTicks                                = 6   // about, on a linear axis
	plotCharacter                            = 7.0 // width of one, about
)

// plot is one SVG drawing, complete in itself: no style sheet, script or font from elsewhere. Text and lines have the colour of the text
// around it, so that it is as good on a dark page.
type plot struct {
	title, xLabel, yLabel string
	x, y                  axis
	series                []series
}

// series is one line, or a number of dots. A NaN ends a line; the next point begins another.
type series struct {
	name, colour string
	dots         bool
	wide         bool // drawn as a broad band, for what others are held against
	points       []point
}

type point struct{ x, y float64 }

var gap = point{math.NaN(), math.NaN()}

// axis maps lo..hi to the drawing; both are > 0 where log is set.
type axis struct {
	lo, hi float64
	log    bool
	ticks  []tick
}

type tick struct {
	at    float64
	label string
}

// linear is an axis from lo to at least hi with round ticks.
func linear(lo, hi float64) axis {
	if !(hi > lo) {
		hi = lo + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/plotTicks)))
	for _, f := range []float64{2, 2.5, 2} { // 1, 2, 5, 10 times a power of ten
		if (hi-lo)/step > plotTicks {
			step *= f
		}
	}
	a := axis{lo: lo, hi: hi}
	for i := math.Ceil(lo / step); i*step <= hi*(1+1e-9); i++ {
		a.ticks = append(a.ticks, tick{i * step, tickLabel(i * step)})
	}
	return a
}

// tickLabel groups the digits of large numbers, as the tables do.
func tickLabel(v float64) string {
	if v >= 1000 && v == math.Trunc(v) {
		return grouped(v)
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}

// logarithmic is an axis over whole powers of ten around lo..hi, labelled by label.
func logarithmic(lo, hi float64, label func(float64) string) axis {
	from, to := math.Floor(math.Log10(lo)), math.Ceil(math.Log10(hi))
	if to <= from {
		to = from + 1
	}
	a := axis{lo: math.Pow(10, from), hi: math.Pow(10, to), log: true}
	for e := from; e <= to; e++ {
		v := math.Pow(10, e)
		a.ticks = append(a.ticks, tick{v, label(v)})
	}
	return a
}

// latencyAxis fits the positive y values of the series, which are in microseconds.
func latencyAxis(all ...series) axis {
	lo, hi := math.Inf(1), 0.0
	for _, s := range all {
		for _, p := range s.points {
			if p.y > 0 {
				lo, hi = min(lo, p.y), max(hi, p.y)
			}
		}
	}
	if hi == 0 {
		lo, hi = 1, 10
	}
	return logarithmic(lo, hi, inUnits)
}

// inUnits writes microseconds to three digits with the unit that suits them.
func inUnits(us float64) string {
	unit := " µs"
	switch {
	case us >= 999.5e3:
		us, unit = us/1e6, " s"
	case us >= 999.5:
		us, unit = us/1e3, " ms"
	}
	if us >= 1000 { // seconds
		return grouped(us) + unit
	}
	return strconv.FormatFloat(us, 'g', 3, 64) + unit
}

// place maps v to from..to.
func (a *axis) place(v, from, to float64) float64 {
	lo, hi := a.lo, a.hi
	if a.log {
		v, lo, hi = math.Log10(max(v, a.lo)), math.Log10(lo), math.Log10(hi)
	}
	return from + (to-from)*(v-lo)/(hi-lo)
}

func (p *plot) place(at point) (x, y float64) {
	return p.x.place(at.x, plotLeft, plotWidth-plotRight), p.y.place(at.y, plotHeight-plotBottom, plotTop)
}

// svg draws the plot: well-formed XML, every text escaped.
func (p *plot) svg() string {
	var b strings.Builder
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, x, y, anchor, html.EscapeString(s))
	}
	line := func(x1, y1, x2, y2, opacity float64) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="currentColor" stroke-opacity="%g"/>`, x1, y1, x2, y2, opacity)
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" font-family="sans-serif" font-size="12" fill="currentColor">`, plotWidth, plotHeight)
	fmt.Fprintf(&b, `<title>%s</title>`, html.EscapeString(p.title))
	fmt.Fprintf(&b, `<text x="4" y="16" font-size="14" font-weight="bold">%s</text>`, html.EscapeString(p.title))
	left, right, top, bottom := plotLeft, plotWidth-plotRight, plotTop, plotHeight-plotBottom
	for _, t := range p.y.ticks {
		_, y := p.place(point{p.x.lo, t.at})
		line(left, y, right, y, .2)
		text(left-6, y+4, "end", t.label)
	}
	for _, t := range p.x.ticks {
		x, _ := p.place(point{t.at, p.y.lo})
		line(x, top, x, bottom, .1)
		if half := plotCharacter * float64(utf8.RuneCountInString(t.label)) / 2; x+half > plotWidth {
			text(plotWidth, bottom+16, "end", t.label) // would be cut off
		} else {
			text(x, bottom+16, "middle", t.label)
		}
	}
	line(left, bottom, right, bottom, .7)
	line(left, top, left, bottom, .7)
	text((left+right)/2, plotHeight-8, "middle", p.xLabel)
	text(4, top-14, "start", p.yLabel)
	legend := right
	for i := len(p.series) - 1; i >= 0 && len(p.series) > 1; i-- {
		s := &p.series[i]
		legend -= 30 + plotCharacter*float64(utf8.RuneCountInString(s.name))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="12" height="4" fill="%s"/>`, legend, top-19, s.colour)
		text(legend+16, top-14, "start", s.name)
	}
	for i := range p.series {
		p.draw(&b, &p.series[i])
	}
	b.WriteString("</svg>")
	return b.String()
}

// draw adds one series, named for those who read the file and not the picture.
func (p *plot) draw(b *strings.Builder, s *series) {
	fmt.Fprintf(b, `<g data-series="%s">`, html.EscapeString(s.name))
	if s.dots {
		for _, at := range s.points {
			x, y := p.place(at)
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`, x, y, s.colour)
		}
		b.WriteString("</g>")
		return
	}
	width, opacity := 1.5, 1.0
	if s.wide {
		width, opacity = 6, .5
	}
	fmt.Fprintf(b, `<path fill="none" stroke="%s" stroke-width="%g" stroke-opacity="%g" d="`, s.colour, width, opacity)
	verb := 'M'
	for _, at := range s.points {
		if math.IsNaN(at.y) {
			verb = 'M'
			continue
		}
		x, y := p.place(at)
		fmt.Fprintf(b, "%c%.1f %.1f", verb, x, y)
		verb = 'L'
	}
	b.WriteString(`"/></g>`)
}
