package loadtest

import (
	"context"
	"math/rand/v2" // see distribution.go
	"time"
)

// A worker whose connection cannot be opened waits before it tries again, so that a closed loop does not spin on a server that is down.
const (
	redialWaitMin = 10 * time.Millisecond
	redialWaitMax = time.Second
)

// worker owns one connection and sends one request at a time.
type worker struct {
	run      *run
	endpoint int // the one its connection goes to
	client   *client
	check    checker
	random   *rand.Rand
	shard    *shard
	sleep    *sleeper

	free       time.Duration // when it could take the request at hand
	redialWait time.Duration
	unfinished uint64 // measured requests given up because the run was stopped
}

func newWorker(r *run, i int) *worker {
	e := i % len(r.dialers)
	return &worker{
		run:      r,
		endpoint: e,
		client:   newClient(r.dialers[e]),
		check:    checker{op: r.op, payload: r.cfg.Payload, verify: r.cfg.Verify},
		random:   rand.New(rand.NewPCG(r.seed, uint64(i))),
		shard:    r.recorder.shard(i),
		sleep:    newSleeper(),
	}
}

// loop sends until the window closes or the run is stopped.
func (w *worker) loop(ctx context.Context) {
	defer w.sleep.close()
	defer w.check.wipe()
	defer w.client.close()
	for {
		due, ok := w.next()
		if !ok {
			return
		}
		w.one(ctx, due)
	}
}

// next waits until the worker's next request is due and returns when that was to be; ok is false when there is none.
func (w *worker) next() (due time.Duration, ok bool) {
	r := w.run
	w.free = r.now()
	if !r.schedule.open() {
		return w.free, w.free < r.closesAt()
	}
	if w.free >= r.closesAt() {
		return 0, false // what is still due by now is reported as missed
	}
	due = r.schedule.take()
	if due < r.cfg.Warmup && w.free >= r.cfg.Warmup {
		due = r.schedule.skip(r.measuredFrom) // what the warm-up left over is no part of the window
	}
	if due >= r.closesAt() {
		return 0, false
	}
	w.sleep.until(r, due)
	return due, due < r.closesAt() // if the generator is late, it is sent still; if it was stopped, not
}

// one sends a request that was due at due, and records it.
func (w *worker) one(ctx context.Context, due time.Duration) {
	r := w.run
	t := r.targets[r.distribution.pick(w.random)]
	res := result{due: due, measured: due >= r.cfg.Warmup}
	if r.schedule.open() {
		res.waited = max(w.free-due, 0)
		res.late = r.now() - due - res.waited
	}
	status, err := w.client.exchange(ctx, *t.signed[w.endpoint].Load())
	end := r.now()
	res.latency = end - due
	res.inWindow = res.measured && end <= r.closesAt()
	if err != nil {
		w.failed(&res, err)
		return
	}
	w.redialWait = 0
	res.kind, res.text = w.check.check(t, status, w.client.response.Body())
	w.shard.add(&res)
}

// failed records a request without an answer.
func (w *worker) failed(res *result, err error) {
	if w.run.aborted.Load() {
		if res.measured {
			w.unfinished++
		}
		return
	}
	res.kind, res.text = kindOfError(err), []byte(err.Error())
	w.shard.add(res)
	if w.client.net == nil && !w.run.schedule.open() {
		w.redialWait = min(max(2*w.redialWait, redialWaitMin), redialWaitMax)
		w.sleep.until(w.run, w.run.now()+w.redialWait)
	}
}
