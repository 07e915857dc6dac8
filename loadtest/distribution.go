package loadtest

import (
	"math"
	"math/rand/v2" // which key a request names is no secret and has to be cheap
	"sort"
)

// zipfExponent makes key k (1 for the most used) as likely as k^-0.99: the skew the YCSB benchmark uses for "some keys are hot".
const zipfExponent = 0.99

// distribution says how often each of n targets is asked. It is immutable and shared by the workers.
type distribution struct {
	n          int
	cumulative []float64 // zipf: cumulative[i] is the probability of a target <= i; nil for uniform
}

func newDistribution(name string, n int) *distribution {
	d := &distribution{n: n}
	if name != Zipf {
		return d
	}
	d.cumulative = make([]float64, n)
	sum := 0.0
	for i := range d.cumulative {
		sum += math.Pow(float64(i+1), -zipfExponent)
		d.cumulative[i] = sum
	}
	for i := range d.cumulative {
		d.cumulative[i] /= sum
	}
	return d
}

// pick draws a target with the worker's own generator.
func (d *distribution) pick(r *rand.Rand) int {
	if d.n == 1 {
		return 0
	}
	if d.cumulative == nil {
		return r.IntN(d.n)
	}
	return min(sort.SearchFloat64s(d.cumulative, r.Float64()), d.n-1)
}
