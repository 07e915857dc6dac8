package main

import (
	"runtime"
	"testing"
)

func TestSetProcs(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	t.Setenv("GOMAXPROCS", "3")
	if setProcs(); runtime.GOMAXPROCS(0) != before {
		t.Errorf("%d where the operator has set it, %d before", runtime.GOMAXPROCS(0), before)
	}
	t.Setenv("GOMAXPROCS", "")
	if setProcs(); runtime.GOMAXPROCS(0) != before+procsMore {
		t.Errorf("%d, %d before", runtime.GOMAXPROCS(0), before)
	}
}
