package authztest

import (
	"testing"
	"time"
)

// TestGenerate checks that generated policies are well-formed and that the reference's decisions and reasons all occur.
func TestGenerate(t *testing.T) {
	const worlds = 3000
	reasons := map[string]int{}
	allowed := 0
	start := time.Now()
	for seed := range uint64(worlds) {
		w, requests := Generate(FromSeed(seed))
		ref, err := NewReference(w)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for i := range requests {
			v := ref.Decide(&requests[i])
			if v.Allow {
				allowed++
			}
			for _, r := range v.Reasons {
				reasons[r]++
			}
		}
	}
	for _, r := range Reasons {
		if reasons[r] == 0 {
			t.Errorf("reason %s never occurs", r)
		}
	}
	if allowed < worlds*Requests/6 || allowed > worlds*Requests*5/6 {
		t.Errorf("%d of %d questions are allowed", allowed, worlds*Requests)
	}
	t.Logf("%d of %d allowed, %.0f a second: %v", allowed, worlds*Requests, worlds*Requests/time.Since(start).Seconds(), reasons)
}

// TestGenerateRepeats checks that a seed and bytes always say the same.
func TestGenerateRepeats(t *testing.T) {
	for seed := range uint64(50) {
		w1, r1 := Generate(FromSeed(seed))
		w2, r2 := Generate(FromSeed(seed))
		for i := range r1 {
			if Dump(w1, &r1[i]) != Dump(w2, &r2[i]) {
				t.Fatalf("seed %d says two things", seed)
			}
		}
	}
	if w, _ := Generate(FromBytes(nil)); w.KeyPolicy == nil || w.Grants != nil {
		t.Errorf("no bytes: %s", Dump(w, &Request{}))
	}
}
