package authz_test

import (
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/authz/authztest"
)

var (
	differential = flag.Int("differential", 20_000, "questions that both evaluators are asked")
	seed         = flag.Uint64("differential.seed", 1, "where the questions start")
)

// TestDifferential asks the product and the naive evaluator of package authztest the same random questions. Each decision, the result of each
// policy and the reason have to agree, and every reason has to occur.
func TestDifferential(t *testing.T) {
	worlds := uint64(*differential+authztest.Requests-1) / authztest.Requests
	var next, asked, disagreed, allowed atomic.Uint64
	var mu sync.Mutex
	reasons := map[string]int{}
	start := time.Now()
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			mine := map[string]int{}
			for disagreed.Load() < 20 {
				n := next.Add(1) - 1
				if n >= worlds {
					break
				}
				w, requests := authztest.Generate(authztest.FromSeed(*seed + n))
				difference, names := ask(w, requests)
				for _, name := range names {
					mine[name]++
				}
				if difference != "" {
					disagreed.Add(1)
					t.Errorf("seed %d: %s", *seed+n, difference)
				}
				if done := asked.Add(uint64(len(requests))); done%1_000_000 < authztest.Requests {
					fmt.Printf("%d questions, %d disagreements, %.0f s\n", done, disagreed.Load(), time.Since(start).Seconds())
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for name, n := range mine {
				reasons[name] += n
			}
		})
	}
	wg.Wait()
	for _, name := range authztest.Reasons {
		if reasons[name] == 0 {
			t.Errorf("reason %s never occurred", name)
		}
		if name[:2] == "Al" {
			allowed.Add(uint64(reasons[name]))
		}
	}
	if share := float64(allowed.Load()) / float64(asked.Load()); share < 0.15 || share > 0.85 {
		t.Errorf("%.2f of the questions were allowed: the generator is one-sided", share)
	}
	t.Logf("%d questions, %d allowed, %d disagreements, %.0f a second: %v",
		asked.Load(), allowed.Load(), disagreed.Load(), float64(asked.Load())/time.Since(start).Seconds(), reasons)
}

// ask puts requests to both evaluators; difference is "" where they agree on all.
func ask(w *authztest.World, requests []authztest.Request) (difference string, reasons []string) {
	ref, err := authztest.NewReference(w)
	if err != nil {
		return fmt.Sprintf("the reference refuses a generated policy: %v", err), nil
	}
	product, err := authztest.NewProduct(w)
	if err != nil {
		return fmt.Sprintf("the product refuses a policy that the reference takes: %v", err), nil
	}
	for i := range requests {
		d, reason := authztest.Compare(ref, product, &requests[i])
		reasons = append(reasons, reason)
		if d != "" && difference == "" {
			difference = d + authztest.Dump(w, &requests[i])
		}
	}
	return difference, reasons
}

// FuzzDecide asks both evaluators what the fuzzer's bytes choose.
func FuzzDecide(f *testing.F) {
	f.Add([]byte{})
	for i := range 64 {
		b := make([]byte, 512)
		for j := range b {
			b[j] = byte((i + 3) * (j*j + 7*i + 11) >> 2)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, requests := authztest.Generate(authztest.FromBytes(b))
		if difference, _ := ask(w, requests); difference != "" {
			t.Fatal(difference)
		}
	})
}
