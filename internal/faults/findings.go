package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
)

// Invariants, as the report names them.
const (
	lostWrite    = "no acknowledged write is lost"
	twice        = "what is asked for once is done once at most"
	wrongPlain   = "no wrong plaintext"
	unrecorded   = "no success without an audit record"
	logBroken    = "audit logs verify"
	useAfter     = "no use after an acknowledged disable, delete, revoke or move"
	destroyed    = "no early destruction"
	notLinear    = "histories are linearizable"
	notBack      = "service is back within 5 s"
	forgedWorked = "a forged request does nothing"
	unexpected   = "the run itself works"
)

// examplesMax is how many findings of one invariant are kept in words.
const examplesMax = 5

// findings are what a run found wrong. It is safe for concurrent use.
type findings struct {
	mu       sync.Mutex
	counts   map[string]int
	examples map[string][]string
	tell     io.Writer
	fault    func() string // that is active
}

func (f *findings) found(invariant, format string, args ...any) {
	text := fmt.Sprintf(format, args...) + " (during: " + f.fault() + ")"
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts[invariant]++
	if len(f.examples[invariant]) < examplesMax {
		f.examples[invariant] = append(f.examples[invariant], text)
		fmt.Fprintf(f.tell, "VIOLATION of %q: %s\n", invariant, text)
	}
}

func (f *findings) violated() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.counts))
}

func (f *findings) any() bool { return len(f.violated()) > 0 }
