package loadtest

import (
	"math"
	"math/rand/v2"
	"testing"
)

// Each target comes up as often as its distribution says, within five standard deviations.
func TestDistribution(t *testing.T) {
	const draws = 200_000
	for _, name := range []string{Uniform, Zipf} {
		for _, n := range []int{1, 2, 100} {
			weight, sum := make([]float64, n), 0.0
			for i := range weight {
				weight[i] = 1
				if name == Zipf {
					weight[i] = math.Pow(float64(i+1), -0.99)
				}
				sum += weight[i]
			}
			d, r, counts := newDistribution(name, n), rand.New(rand.NewPCG(1, 2)), make([]int, n)
			for range draws {
				counts[d.pick(r)]++
			}
			for i, got := range counts {
				p := weight[i] / sum
				if want, sigma := p*draws, math.Sqrt(draws*p*(1-p)); math.Abs(float64(got)-want) > 5*sigma {
					t.Errorf("%s of %d: target %d came up %d times, want %.0f ± %.0f", name, n, i, got, want, 5*sigma)
				}
			}
		}
	}
	// The skew by which zipf deserves its name: of 1000 keys the first 10 get about two fifths of the requests.
	d, r, hot := newDistribution(Zipf, 1000), rand.New(rand.NewPCG(3, 4)), 0
	for range draws {
		if d.pick(r) < 10 {
			hot++
		}
	}
	if share := float64(hot) / draws; share < 0.37 || share > 0.41 {
		t.Errorf("the ten hottest of 1000 keys get %.3f of the requests", share)
	}
}
