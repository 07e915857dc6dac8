package main

import (
	"container/heap"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// What is asked for, and what a node and a cell can do. docs/scaling.md says where each figure is from.
const (
	wantKeys = 10_000_000
	wantRate = 10_000_000 // requests/s

	nodeCores   = 32
	requestCost = 80 * time.Microsecond // processor time of a request, records written, quotas on
	busy        = 0.6                   // of its cores that a node uses at the peak, so that others can be lost
	nodesLost   = 2

	roundTime = time.Millisecond // of one call into an HSM at the far end of a network
	roundJobs = 64               // requests that share one; 256 are the most
	sessions  = 16               // of one node with its HSM

	keyBytes   = 2 << 10 // of a key with its policy, an alias and some grants in etcd
	cellBytes  = 4 << 30 // of an etcd cluster: half of what etcd is recommended for
	cacheBytes = 800     // of a key in a node's cache

	tellP50 = 2 * time.Millisecond // from a commit until a node has told that it has applied it
	tellP99 = 12 * time.Millisecond
)

// scaling is how many nodes, HSMs and etcd cells that takes, on paper, and what queues and changes then look like, by simulation.
func scaling(w io.Writer) error {
	perNode := float64(nodeCores) / requestCost.Seconds() * busy
	nodes := int(math.Ceil(wantRate/perNode)) + nodesLost
	perHSM := float64(sessions) / roundTime.Seconds() * roundJobs
	cells := int(math.Ceil(float64(wantKeys) * keyBytes / cellBytes))
	fmt.Fprintf(w, "%d keys, %d requests/s\n", wantKeys, wantRate)
	fmt.Fprintf(w, "  data nodes: %d, of %d cores each: %.0f requests/s at %.0f %% of them, and %d nodes may be lost\n", nodes, nodeCores, perNode, busy*100, nodesLost)
	fmt.Fprintf(w, "  HSMs: one for each node does %.0f requests/s in rounds of %d over %d sessions; a node needs %.0f\n", perHSM, roundJobs, sessions, wantRate/float64(nodes-nodesLost))
	fmt.Fprintf(w, "  etcd cells: %d of three members, %d keys each; each node asks each cell 6 times a second what is new: %d a second in a cell\n", cells, wantKeys/cells, 6*nodes)
	fmt.Fprintf(w, "  a node's cache of all keys: %.1f GB\n\n", float64(wantKeys)*cacheBytes/(1<<30))
	rnd := rand.New(rand.NewPCG(1, 2))
	fmt.Fprintln(w, "a request's wait for a core, of a million that come at random:")
	for _, lost := range []int{0, nodesLost, 2 * nodesLost, nodes / 3} {
		rate := float64(wantRate) / float64(nodes-lost)
		load := rate * requestCost.Seconds() / nodeCores
		if load >= 1 {
			fmt.Fprintf(w, "  %2d of %d nodes lost: a node is asked for %.0f %% of what it can do: it refuses the rest\n", lost, nodes, load*100)
			continue
		}
		p50, p99 := queue(rnd, rate, nodeCores, requestCost, 1_000_000)
		fmt.Fprintf(w, "  %2d of %d nodes lost: cores %.0f %% busy, p50 %v, p99 %v\n", lost, nodes, load*100, p50.Round(time.Microsecond), p99.Round(time.Microsecond))
	}
	fmt.Fprintln(w, "a change is in force when the last node has told, of 100 000 changes:")
	for _, n := range []int{3, nodes, 4 * nodes} {
		p50, p99 := slowest(rnd, n, 100_000)
		fmt.Fprintf(w, "  %3d nodes: p50 %v, p99 %v\n", n, p50.Round(100*time.Microsecond), p99.Round(100*time.Microsecond))
	}
	return nil
}

// free are the times at which cores are free, a heap.
type free []float64

func (f free) Len() int           { return len(f) }
func (f free) Less(i, j int) bool { return f[i] < f[j] }
func (f free) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *free) Push(any)          {}
func (f *free) Pop() any          { return nil }

// queue is how long requests wait for one of the cores if they come at random, at a rate.
func queue(rnd *rand.Rand, rate float64, cores int, cost time.Duration, count int) (p50, p99 time.Duration) {
	at := make(free, cores)
	waits := make([]time.Duration, count)
	now := 0.0
	for i := range waits {
		now += rnd.ExpFloat64() / rate
		begin := max(now, at[0])
		waits[i] = time.Duration((begin - now) * float64(time.Second))
		at[0] = begin + cost.Seconds()
		heap.Fix(&at, 0)
	}
	slices.Sort(waits)
	return quantile(waits, 0.5), quantile(waits, 0.99)
}

// slowest is how long the slowest of n nodes takes to tell, if each takes a time of the same log-normal distribution.
func slowest(rnd *rand.Rand, n, count int) (p50, p99 time.Duration) {
	mu := math.Log(tellP50.Seconds())
	sigma := (math.Log(tellP99.Seconds()) - mu) / 2.326
	all := make([]time.Duration, count)
	for i := range all {
		worst := 0.0
		for range n {
			worst = max(worst, math.Exp(mu+sigma*rnd.NormFloat64()))
		}
		all[i] = time.Duration(worst * float64(time.Second))
	}
	slices.Sort(all)
	return quantile(all, 0.5), quantile(all, 0.99)
}
