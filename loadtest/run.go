package loadtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2" // see distribution.go
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	stopGrace = time.Second
	// After a failure to sign again, the next attempt.
	resignRetry = 5 * time.Second
)

// run is the state the workers share.
type run struct {
	*setup
	cfg      Config
	schedule *schedule
	recorder *recorder
	seed     uint64

	measuredFrom int64 // number of the first request due in the measured window; of an open loop

	base    time.Time    // when the first request may start; set before any worker runs
	closes  atomic.Int64 // end of the measured window, nanoseconds after base; earlier when stopped
	stopped chan struct{}
	aborted atomic.Bool

	mu    sync.Mutex
	notes []string // guarded by mu
}

func newRun(s *setup, cfg *Config) *run {
	schedule := newSchedule(cfg)
	return &run{
		setup:        s,
		cfg:          *cfg,
		schedule:     schedule,
		recorder:     newRecorder(len(s.dialers), newTimeline(cfg), schedule.open(), cfg.Progress != nil),
		seed:         rand.Uint64(),
		measuredFrom: schedule.between(0, cfg.Warmup),
		stopped:      make(chan struct{}),
	}
}

// now is the time since the run's start.
func (r *run) now() time.Duration { return time.Since(r.base) }

// closesAt is when the measured window ends.
func (r *run) closesAt() time.Duration { return time.Duration(r.closes.Load()) }

func (r *run) note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, text)
}

// Run does one load test. When ctx ends it stops, gives requests under way a second and reports what was measured so far.
// An error means that nothing was measured.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s, err := prepare(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer s.close()
	report, err := newRun(s, &cfg).measure(ctx)
	removed, cleanErr := s.clean(ctx)
	if err != nil {
		return nil, errors.Join(err, cleanErr)
	}
	report.KeysRemoved = removed
	if cleanErr != nil {
		report.Notes = append(report.Notes, cleanErr.Error())
	}
	return report, nil
}

// measure connects, sends and reports.
func (r *run) measure(ctx context.Context) (*Report, error) {
	workers := make([]*worker, r.cfg.Concurrency)
	for i := range workers {
		workers[i] = newWorker(r, i)
	}
	if err := r.connectAll(ctx, workers); err != nil {
		return nil, err
	}
	startedAt, busy := time.Now(), processorTime()
	r.send(ctx, workers)
	used := float64(processorTime()-busy) / float64(time.Since(startedAt))
	return r.report(startedAt, math.Round(100*used)/100, workers), nil
}

// connectAll opens every worker's connection before the clock starts. It fails only if no endpoint takes the first connection to it; other
// workers that fail, or are not connected within the time for one connection, try again during the run, where it is counted.
func (r *run) connectAll(ctx context.Context, workers []*worker) error {
	first := make([]error, len(r.dialers))
	_ = parallel(ctx, len(first), func(ctx context.Context, e int) error {
		if err := workers[e].client.connect(ctx); err != nil {
			first[e] = fmt.Errorf("cannot connect to %s: %w", r.dialers[e].to.url, err)
		}
		return nil
	})
	if !slices.Contains(first, nil) {
		return errors.Join(first...)
	}
	for _, err := range first {
		if err != nil {
			r.note(err.Error())
		}
	}
	connecting, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	_ = parallel(connecting, len(workers), func(ctx context.Context, i int) error {
		if e := i % len(first); first[e] == nil {
			_ = workers[i].client.connect(ctx) // the worker's first request tries again and has the error
		}
		return nil
	})
	if ctx.Err() == nil {
		return nil
	}
	for _, w := range workers {
		w.client.close()
	}
	return ctx.Err()
}

// send runs the workers and their helpers until the window is over or ctx ends, and waits for all of them.
func (r *run) send(ctx context.Context, workers []*worker) {
	sending, sent := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the grace period
	defer sent()
	r.base = time.Now()
	r.closes.Store(int64(r.cfg.Warmup + r.cfg.Duration))

	var working, helping sync.WaitGroup
	for _, w := range workers {
		working.Go(func() { w.loop(sending) })
	}
	helping.Go(func() { r.resign(sending) })
	helping.Go(func() { r.watch(ctx, sending, sent, workers) })
	if r.cfg.Progress != nil {
		helping.Go(func() { r.progress(sending) })
	}
	working.Wait()
	sent()
	helping.Wait()
}

// watch ends the run early when ctx ends: at first no new requests, after the grace period no old ones either.
func (r *run) watch(ctx, sending context.Context, sent context.CancelFunc, workers []*worker) {
	select {
	case <-sending.Done():
		return
	case <-ctx.Done():
	}
	r.closes.Store(min(r.closes.Load(), int64(r.now())))
	close(r.stopped)
	grace := time.NewTimer(r.cfg.grace)
	defer grace.Stop()
	select {
	case <-sending.Done():
		return
	case <-grace.C:
	}
	r.aborted.Store(true)
	for _, w := range workers {
		w.client.abort()
	}
	sent() // ends connection attempts
}

// resign renews the signatures before they are too old.
func (r *run) resign(sending context.Context) {
	timer := time.NewTimer(time.Until(r.again))
	defer timer.Stop()
	for {
		select {
		case <-sending.Done():
			return
		case <-timer.C:
		}
		next, err := r.signer.signAll(sending, r.targets)
		if err != nil {
			if sending.Err() == nil {
				r.note("could not sign again: " + err.Error())
			}
			next = time.Now().Add(resignRetry)
		}
		r.again = next
		timer.Reset(time.Until(next))
	}
}
