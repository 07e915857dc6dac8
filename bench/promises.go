package main

import (
	"fmt"
	"io"
	"math"
)

// promise is a figure that the design promises, and what was measured.
type promise struct {
	text     string
	measured float64
	bound    bound
	value    float64
}

type bound int

const (
	atLeast bound = iota
	atMost
)

// mallocsMax is what counts as no allocation per request: each connection of a run makes eight, etcd sixty a second, the reading of the
// counters a hundred; together a few thousandths of the requests of a run of some seconds.
const mallocsMax = 0.02

func (p *plan) promise(text string, measured float64, b bound, value float64) {
	p.promises = append(p.promises, promise{text, measured, b, value})
}

func (q promise) kept() bool {
	if q.bound == atLeast {
		return q.measured >= q.value
	}
	return q.measured <= q.value // a NaN, nothing measured, is a promise missed
}

// printPromises lists the promises of the tables that were measured, and returns how many were missed.
func (p *plan) printPromises(w io.Writer) int {
	missed := 0
	fmt.Fprintln(w, "promises:")
	for _, q := range p.promises {
		verdict, sign := "kept  ", "≥"
		if q.bound == atMost {
			sign = "≤"
		}
		if !q.kept() {
			verdict = "MISSED"
			missed++
		}
		fmt.Fprintf(w, "  %s  %s: %s, promised %s %v\n", verdict, q.text, significant(q.measured), sign, q.value)
	}
	return missed
}

// significant prints three digits of small figures and whole large ones.
func significant(v float64) string {
	if math.Abs(v) >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3f", v)
}
