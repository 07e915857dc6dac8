package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/internal/cluster"
)

// Patience of clients. A frozen process answers when it goes on.
const (
	onceTimeout  = 5 * time.Second
	trialTimeout = 20 * time.Second
	settleMax    = 60 * time.Second
)

// options are what a run is asked for.
type options struct {
	seed       uint64
	split      bool
	injections int
	kinds      []string // "": all that fit
	load       int      // clients of each sort that encrypt and decrypt
	writers    int
	trials     int // goroutines
	trialsMin  int // the run goes on until there were as many
	histories  int
	pause      time.Duration // of clients between two requests
	tags       []string      // of the build
	dir        string
	bug        string
	bugRole    string        // of the processes that have it; "": all
	nofaults   bool          // clients only
	hold       time.Duration // for how long clients run at least
}

// run is one run of the fault runner.
type run struct {
	options
	*cluster.Cluster
	*findings
	tally *tally
	say   io.Writer
	admin identity

	random   *rand.Rand // of the main goroutine
	stopping chan struct{}
	running  sync.WaitGroup

	keys      []string // that are always enabled
	user      identity // of a user who may do only what grants say
	userARN   string
	kept      blobs
	answered  answered
	writersOf []*writer
	doomed    []*doomedKey
	trialers  []*trialer
	trialsOf  trialCounts
	told      struct{ checked, operations, unsure atomic.Int64 } // of histories
	began     time.Time
	calm      time.Time // when the last fault was over
	disabling latencies
}

func (r *run) endpoints() []string {
	var all []string
	for _, n := range r.Datas {
		all = append(all, n.Endpoint)
	}
	return all
}

// roaming is a client of all nodes, the n-th first.
func (r *run) roaming(who identity, n int, timeout time.Duration) *client {
	return &client{identity: who, endpoints: r.endpoints(), at: n % len(r.Datas), timeout: timeout}
}

// of is a client of one node.
func (r *run) of(who identity, n int, timeout time.Duration) *client {
	return &client{identity: who, endpoints: r.endpoints()[n : n+1], timeout: timeout}
}

// source makes the n-th goroutine's random numbers: what it does is repeated with the seed, though not when.
func (r *run) source(n int) *rand.Rand { return rand.New(rand.NewPCG(r.seed, uint64(n))) }

func (r *run) stopped() bool {
	select {
	case <-r.stopping:
		return true
	default:
		return false
	}
}

// rest lets a moment pass between a client's requests.
func (r *run) rest(rnd *rand.Rand) {
	if r.pause > 0 {
		time.Sleep(time.Duration(rnd.Int64N(2 * int64(r.pause))))
	}
}

// insist repeats a request until it has a definite answer. It is for what may be done twice.
func (r *run) insist(c *client, op string, in, out any) (outcome, error) {
	for began := time.Now(); ; {
		o := c.do(op, in, out)
		r.answered.add(op, &o)
		switch {
		case !o.unsure() && !undecided(o.code):
			return o, nil
		case time.Since(began) > settleMax:
			return o, fmt.Errorf("%s has had no definite answer for %v: %v", op, settleMax, &o)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// must is insist for what has to succeed.
func (r *run) must(c *client, op string, in, out any) error {
	o, err := r.insist(c, op, in, out)
	if err == nil && !o.ok() {
		err = fmt.Errorf("%s %v: %v", op, in, &o)
	}
	return err
}

// background runs something until the run ends; an error is a finding.
func (r *run) background(what string, f func() error) {
	r.running.Add(1)
	go func() {
		defer r.running.Done()
		if err := f(); err != nil {
			r.found(unexpected, "%s: %v", what, err)
		}
	}()
}

// setup makes what all clients use.
func (r *run) setup(ctx context.Context) error {
	var err error
	if r.admin, err = newIdentity(r.AccessKeyID, r.Secret); err != nil {
		return err
	}
	c := r.roaming(r.admin, 0, trialTimeout)
	defer c.close()
	for range 8 {
		var k keyReply
		if err := r.must(c, "CreateKey", m{}, &k); err != nil {
			return err
		}
		r.keys = append(r.keys, k.KeyMetadata.KeyId)
	}
	if err := r.makeUser(ctx); err != nil {
		return fmt.Errorf("the user of grants: %w", err)
	}
	for i := range r.trials {
		t, err := r.newTrialer(ctx, 4000+i)
		if err != nil {
			return fmt.Errorf("trials: %w", err)
		}
		r.trialers = append(r.trialers, t)
	}
	return r.doom(c)
}

// start lets all clients loose.
func (r *run) start(ctx context.Context) {
	for i := range r.load {
		r.background("load", func() error { return r.loadOnce(1000 + i) })
		r.background("load with retries", func() error { return r.loadRetried(ctx, 2000+i) })
	}
	for i := range r.writers {
		w := &writer{run: r, name: fmt.Sprint("w", i), aliases: map[string]*cell{}}
		r.writersOf = append(r.writersOf, w)
		r.background("writer", func() error { return w.work(3000 + i) })
	}
	for _, t := range r.trialers {
		r.background("trials", func() error { return t.work(ctx) })
	}
	if r.options.histories > 0 {
		r.background("histories", func() error { return r.historiesOf(5000) })
	}
}

// check is what is looked at when all faults are over and the clients have ended.
func (r *run) check(ctx context.Context) error {
	c := r.roaming(r.admin, 0, trialTimeout)
	defer c.close()
	errs := []error{r.kept.check(r, c)}
	for _, w := range r.writersOf {
		errs = append(errs, w.check(c))
	}
	errs = append(errs, r.forge(ctx, c), r.checkOnce(c), r.checkDoomed(ctx, c))
	return errors.Join(errs...)
}
