//go:build !race

package alloctest

import "testing"

var sink *int

func TestMallocs(t *testing.T) {
	if n := Mallocs(1000, func() {}); n != 0 {
		t.Errorf("%d allocations of nothing", n)
	}
	i := 0
	if n := Mallocs(1000, func() {
		if i++; i%10 == 0 { // rare ones count
			sink = new(int)
		}
	}); n < 100 || n > 200 {
		t.Errorf("%d allocations, want 100", n)
	}
}
