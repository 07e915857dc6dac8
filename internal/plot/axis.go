package plot

import (
	"math"
	"slices"
	"strconv"
)

const (
	ticksAbout = 6    // on a linear axis
	slack      = 1e-9 // 1000.0000001 is a thousand
)

// Axis maps Lo..Hi to the drawing; both are > 0 where Log is set.
type Axis struct {
	Lo, Hi float64
	Log    bool
	Ticks  []Tick
}

// Tick is a labelled place on an axis.
type Tick struct {
	At    float64
	Label string
}

// Linear is an axis from lo to at least hi with round ticks.
func Linear(lo, hi float64) Axis {
	if !(hi > lo) {
		hi = lo + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((hi-lo)/ticksAbout)))
	for _, f := range []float64{2, 2.5, 2} { // 1, 2, 5, 10 times a power of ten
		if (hi-lo)/step > ticksAbout {
			step *= f
		}
	}
	a := Axis{Lo: lo, Hi: hi}
	for i := math.Ceil(lo / step); i*step <= hi*(1+slack); i++ {
		a.Ticks = append(a.Ticks, Tick{i * step, tickLabel(i * step)})
	}
	return a
}

// Logarithmic is an axis over whole powers of ten around lo..hi, labelled by label.
func Logarithmic(lo, hi float64, label func(float64) string) Axis {
	from, to := math.Floor(math.Log10(lo)+slack), math.Ceil(math.Log10(hi)-slack)
	if to <= from {
		to = from + 1
	}
	a := Axis{Lo: math.Pow(10, from), Hi: math.Pow(10, to), Log: true}
	for e := from; e <= to; e++ {
		v := math.Pow(10, e)
		a.Ticks = append(a.Ticks, Tick{v, label(v)})
	}
	return a
}

// Values is a logarithmic axis with a tick at each of the values, which ascend and are > 0.
func Values(values []float64, label func(float64) string) Axis {
	a := Axis{Lo: values[0], Hi: values[len(values)-1] * 1.05, Log: true}
	for _, v := range values {
		a.Ticks = append(a.Ticks, Tick{v, label(v)})
	}
	return a
}

// Categories is an axis with a place, 0, 1, 2, …, for each name.
func Categories(names []string) Axis {
	a := Axis{Lo: -0.5, Hi: float64(len(names)) - 0.5}
	for i, name := range names {
		a.Ticks = append(a.Ticks, Tick{float64(i), name})
	}
	return a
}

// Latencies fits the positive y values of the series, which are in microseconds.
func Latencies(all ...Series) Axis {
	lo, hi := math.Inf(1), 0.0
	for _, s := range all {
		for _, p := range s.Points {
			if p.Y > 0 {
				lo, hi = min(lo, p.Y), max(hi, p.Y)
			}
		}
	}
	if hi == 0 {
		lo, hi = 1, 10
	}
	return Logarithmic(lo, hi, Micros)
}

// Percentile is the place of a percentile below 100 on the axis that Percentiles makes.
func Percentile(p float64) float64 { return 100 / (100 - p) }

// Percentiles is an axis to hi, a place from Percentile beyond 1, that gives every further nine the same room: 1/(1-q) on a logarithmic scale.
func Percentiles(hi float64) Axis {
	a := Logarithmic(1, hi, func(v float64) string { return strconv.FormatFloat(100-100/v, 'g', 9, 64) + " %" })
	a.Hi = hi
	a.Ticks = slices.DeleteFunc(a.Ticks, func(t Tick) bool { return t.At > hi*(1+slack) })
	return a
}

// place maps v to from..to.
func (a *Axis) place(v, from, to float64) float64 {
	lo, hi := a.Lo, a.Hi
	if a.Log {
		v, lo, hi = math.Log10(max(v, a.Lo)), math.Log10(lo), math.Log10(hi)
	}
	return from + (to-from)*(v-lo)/(hi-lo)
}
