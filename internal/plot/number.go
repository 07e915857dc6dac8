package plot

import (
	"math"
	"strconv"
)

// Grouped writes a number with its digits in threes.
func Grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	var b []byte
	for i := range len(digits) {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b = append(b, ' ')
		}
		b = append(b, digits[i])
	}
	return string(b)
}

// Micros writes microseconds, which are not negative, to three digits with the unit that suits them.
func Micros(us float64) string {
	unit := " µs"
	switch {
	case us >= 999.5e3:
		us, unit = us/1e6, " s"
	case us >= 999.5:
		us, unit = us/1e3, " ms"
	}
	if us >= 1000 { // seconds
		return Grouped(uint64(us+0.5)) + unit
	}
	return strconv.FormatFloat(us, 'g', 3, 64) + unit
}

// tickLabel groups the digits of large whole numbers.
func tickLabel(v float64) string {
	if v >= 1000 && v == math.Trunc(v) {
		return Grouped(uint64(v))
	}
	return strconv.FormatFloat(v, 'g', 6, 64)
}
