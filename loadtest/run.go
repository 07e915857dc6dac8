package loadtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2" // see distribution.go
	"sync"
	"sync/atomic"
	"time"
)

const (
	// A stopped run waits this long for answers that are on their way.
	stopGrace = time.Second
	// Clean-up after a run has its own time: the run's context may be over.
	cleanupMax = 5 * time.Minute
	// After a failure to sign again, the next attempt.
	resignRetry = 5 * time.Second
)

// run is the state the workers share.
type run struct {
	cfg          Config
	op           *operation
	dialer       *dialer
	signer       *signer
	targets      []*target
	distribution *distribution
	schedule     *schedule
	recorder     *recorder
	seed         uint64

	base    time.Time    // when the first request may start; set before any worker runs
	closes  atomic.Int64 // end of the measured window, nanoseconds after base; earlier when stopped
	stopped chan struct{}
	aborted atomic.Bool

	mu    sync.Mutex
	notes []string // guarded by mu
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
	site, err := connectSite(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	defer site.close()
	r := &run{
		cfg:      cfg,
		op:       findOperation(cfg.Operation),
		dialer:   site.dialer,
		schedule: newSchedule(cfg.Rate),
		recorder: newRecorder(cfg.Progress != nil),
		seed:     rand.Uint64(),
		stopped:  make(chan struct{}),
	}
	r.signer = &signer{credentials: site.credentials, region: cfg.Region, host: site.dialer.to.host, operation: r.op.name, now: time.Now}
	defer r.signer.wipe()

	ring := &keyring{api: site.api}
	report, err := r.measure(ctx, ring)
	if cfg.Cleanup {
		removed, cleanErr := clean(ctx, ring)
		if report == nil {
			return nil, errors.Join(err, cleanErr)
		}
		report.KeysRemoved = removed
		if cleanErr != nil {
			report.Notes = append(report.Notes, "clean-up: "+cleanErr.Error())
		}
	}
	return report, err
}

func clean(ctx context.Context, ring *keyring) (removed int, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupMax)
	defer cancel()
	return ring.clean(ctx)
}

// measure sets up, sends and reports.
func (r *run) measure(ctx context.Context, ring *keyring) (*Report, error) {
	var keys []key
	var err error
	if r.op.keyed {
		if keys, err = ring.open(ctx, r.cfg.KeyIDs, r.cfg.Keys); err != nil {
			return nil, err
		}
	}
	if r.targets, err = ring.targets(ctx, r.op, keys, r.cfg.Payload); err != nil {
		return nil, err
	}
	r.distribution = newDistribution(r.cfg.KeyDistribution, len(r.targets))
	again, err := r.signer.signAll(ctx, r.targets)
	if err != nil {
		return nil, err
	}
	workers := make([]*worker, r.cfg.Concurrency)
	for i := range workers {
		workers[i] = newWorker(r, i)
	}
	if err := connectAll(ctx, workers); err != nil {
		return nil, fmt.Errorf("cannot connect to %s: %w", r.dialer.to.url, err)
	}
	startedAt := time.Now()
	r.send(ctx, workers, again)
	return r.report(startedAt, workers, len(keys)), nil
}

// connectAll opens every worker's connection before the clock starts. It fails only if the first cannot be opened; other workers that
// fail, or are not connected within the time for one connection, try again during the run, where it is counted.
func connectAll(ctx context.Context, workers []*worker) error {
	if err := workers[0].client.connect(ctx); err != nil {
		return err
	}
	connecting, cancel := context.WithTimeout(ctx, workers[0].client.dialer.timeout)
	defer cancel()
	_ = parallel(connecting, len(workers), func(ctx context.Context, i int) error {
		_ = workers[i].client.connect(ctx) // the worker's first request tries again and has the error
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
func (r *run) send(ctx context.Context, workers []*worker, again time.Time) {
	sending, sent := context.WithCancel(context.WithoutCancel(ctx)) // outlives ctx by the grace period
	defer sent()
	r.base = time.Now()
	r.closes.Store(int64(r.cfg.Warmup + r.cfg.Duration))

	var working, helping sync.WaitGroup
	for _, w := range workers {
		working.Go(func() { w.loop(sending) })
	}
	helping.Go(func() { r.resign(sending, again) })
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
	grace := time.NewTimer(stopGrace)
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
func (r *run) resign(sending context.Context, again time.Time) {
	timer := time.NewTimer(time.Until(again))
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
		timer.Reset(time.Until(next))
	}
}
