package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/keyplane/keyplane/internal/cluster"
)

// settings are of every keyplane process: records survive the end of a process, and on a machine that does much else nothing is given up early.
const settings = "quotas: \"off\"\naudit: {durability: write, timeout: 2s}\nqueue_time_max: 2s\nlog_level: warn\n"

func main() {
	var o options
	short := flag.Bool("short", false, "the kinds of the short form only")
	flag.Uint64Var(&o.seed, "seed", 0, "`number` that repeats the choices of a run (default another each time)")
	flag.BoolVar(&o.split, "split", false, "an etcd cluster, control planes and data nodes (default keyplane serve alone)")
	flag.IntVar(&o.injections, "injections", 3, "`number` of faults of each kind")
	flag.Func("kind", "`NAME` of a kind of fault, may be repeated (default all that fit); with -measure loss what is lost: nothing, node, token, etcd, control", func(k string) error { o.kinds = append(o.kinds, k); return nil })
	flag.IntVar(&o.load, "load", 4, "`number` of clients of each sort that encrypt and decrypt")
	flag.IntVar(&o.writers, "writers", 2, "`number` of clients that change things of their own")
	flag.IntVar(&o.trials, "trials", 2, "`number` of clients that try what an acknowledged change has ended")
	flag.IntVar(&o.trialsMin, "trials-min", 0, "go on until there were this `number` of trials")
	flag.IntVar(&o.histories, "histories", 5, "go on until this `number` of histories is checked; 0 makes none")
	flag.DurationVar(&o.pause, "pause", 10*time.Millisecond, "half of the `time` at most between two requests of a client")
	flag.StringVar(&o.dir, "dir", "", "`DIR` for data and logs (default a new one, removed after a run without violation)")
	flag.StringVar(&o.bug, "bug", "", "planted `BUG` to find")
	findBugs := flag.Bool("bugs", false, "have a run for each planted bug, which has to be found (-bug: for one)")
	measure := flag.String("measure", "", "`WHAT` to measure instead: loss, nodes, disable, or scaling (a simulation)")
	each := flag.Duration("each", 20*time.Second, "`time` of one measurement")
	tokens := flag.Int("tokens", 2, "with -measure loss: `number` of tokens of a data node, of which one is lost")
	requests := flag.Int("requests", 0, "with -measure loss: go on for longer than -each says until this `number` of requests without retries was sent for each loss")
	keyplane := flag.String("keyplane", "", "keyplane `BINARY` built with the tag testclock, and plantedbugs for those (default it is built)")
	out := flag.String("o", "", "`FILE` of the report, JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	measures := map[string]func() error{
		"loss":    func() error { return o.measureLoss(ctx, *keyplane, *each, *requests, *tokens, os.Stdout) },
		"nodes":   func() error { return o.measureNodes(ctx, *keyplane, *each, os.Stdout) },
		"clients": func() error { return o.measureClients(*each, os.Stdout) },
		"disable": func() error { return o.measureDisable(ctx, *keyplane, 1000, os.Stdout) },
		"scaling": func() error { return scaling(os.Stdout) },
	}
	if *measure != "" {
		err := fmt.Errorf("there is no measurement %q", *measure)
		if do := measures[*measure]; do != nil {
			err = do()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
			os.Exit(1)
		}
		return
	}
	if *findBugs {
		if err := o.find(ctx, o.bug, *keyplane, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "faults:", err)
			os.Exit(1)
		}
		return
	}
	p, err := o.do(ctx, *short, *keyplane, os.Stdout)
	if p != nil {
		p.print(os.Stdout)
		if *out != "" {
			err = errors.Join(err, p.write(*out))
		}
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	case len(p.Violations) > 0:
		os.Exit(3)
	}
}

// do is one run.
func (o options) do(ctx context.Context, short bool, keyplane string, say io.Writer) (p *report, err error) {
	kept := o.dir != ""
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "keyplane-faults"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err == nil && !kept && p != nil && len(p.Violations) == 0 {
			_ = os.RemoveAll(o.dir)
		} else {
			fmt.Fprintln(say, "data and logs are in", o.dir)
		}
	}()
	o.tags = []string{"testclock"}
	ahead.Store(0)
	if o.bug != "" {
		o.tags = append(o.tags, "plantedbugs")
	}
	if keyplane == "" {
		if keyplane, err = cluster.BuildKeyplane(o.dir, o.tags...); err != nil {
			return nil, err
		}
	}
	cfg := cluster.Config{Dir: filepath.Join(o.dir, "cluster"), Keyplane: keyplane, FaultyHSM: true, Proxied: true, Settings: settings, Env: func(role string) []string {
		if o.bug == "" || o.bugRole != "" && o.bugRole != role {
			return nil
		}
		return []string{"KEYPLANE_PLANTED_BUG=" + o.bug}
	}}
	if o.split {
		if cfg.Etcd, err = cluster.BuildEtcd("bin"); err != nil {
			return nil, err
		}
	}
	r := &run{options: o, tally: newTally(), say: say, random: rand.New(rand.NewPCG(o.seed, 0)), stopping: make(chan struct{}), began: time.Now()}
	r.findings = &findings{counts: map[string]int{}, examples: map[string][]string{}, tell: say, fault: r.tally.kind}
	if r.Cluster, err = cluster.Start(ctx, cfg); err != nil {
		return nil, err
	}
	defer r.Close()
	fmt.Fprintf(say, "seed %d; %d processes are ready after %.1f s\n", o.seed, len(r.All()), time.Since(r.began).Seconds())
	all, err := r.chosen(short)
	if err != nil {
		return nil, err
	}
	if err := r.setup(ctx); err != nil {
		if strings.Contains(err.Error(), "NotFoundException") {
			r.found(lostWrite, "of what was made before any fault something is not there: %v", err)
			return r.report(0), nil
		}
		return nil, fmt.Errorf("setup: %w", err)
	}
	load, unload := context.WithCancel(ctx)
	defer unload()
	r.start(load)
	began := time.Now()
	if !o.nofaults {
		err = r.injectAll(ctx, all)
	}
	last, moved := r.done(), time.Now()
	for err == nil && (!r.enough() || time.Since(began) < o.hold) && !(r.bug != "" && r.any()) {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			err = ctx.Err()
		}
		if now := r.done(); now != last {
			last, moved = now, time.Now()
		} else if time.Since(moved) > stallMax {
			r.found(unexpected, "trials and histories do not go on: %d trials, %d histories", r.trialsOf.acknowledged.Load(), r.told.checked.Load())
			break
		}
	}
	close(r.stopping)
	r.running.Wait()
	if r.bug != "" && r.any() {
		return r.report(0), err // found
	}
	if err != nil {
		return r.report(0), err
	}
	err = r.check(ctx) // whatever it says, the logs are looked at too
	for _, group := range [][]*cluster.Node{r.Datas, r.Controls} {
		for _, n := range group {
			n.Terminate()
		}
	}
	records, auditErr := r.checkAudit(ctx, keyplane)
	return r.report(records), errors.Join(err, auditErr)
}

// stallMax is for how long trials and histories may make no progress before a run stops to wait for more of them.
const stallMax = 3 * time.Minute

// done counts trials and histories.
func (r *run) done() int64 { return r.trialsOf.acknowledged.Load() + r.told.checked.Load() }

// sayEvery is after how many faults a run says how far it is.
const sayEvery = 20

// injectAll makes the faults of all kinds in an order of the seed, with moments without any between them.
func (r *run) injectAll(ctx context.Context, all []kind) error {
	var plan []kind
	for _, k := range all {
		plan = append(plan, slices.Repeat([]kind{k}, r.injections)...)
	}
	r.random.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	began := time.Now()
	for i, k := range plan {
		if i > 0 && i%sayEvery == 0 {
			spent := time.Since(began)
			fmt.Fprintf(r.say, "%d of %d faults in %v, some %v left\n", i, len(plan), spent.Round(time.Second), (spent * time.Duration(len(plan)-i) / time.Duration(i)).Round(time.Second))
		}
		select {
		case <-time.After(100*time.Millisecond + time.Duration(r.random.Int64N(int64(400*time.Millisecond)))):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := r.inject(ctx, k); err != nil {
			if ctx.Err() != nil || r.bug != "" {
				return err
			}
			if failed := r.rescue(ctx); failed != nil {
				return errors.Join(err, failed)
			}
		}
		r.calm = time.Now()
		if r.bug != "" && r.any() {
			return nil
		}
	}
	return nil
}

// enough reports whether there were as many trials and histories as were asked for.
func (r *run) enough() bool {
	return r.trialsOf.acknowledged.Load() >= int64(r.trialsMin) && r.told.checked.Load() >= int64(r.options.histories)
}

// clocks reports whether processes' clocks can be set.
func (r *run) clocks() bool { return slices.Contains(r.tags, "testclock") }

// workerPause is for how long workers have to look at what is due by a clock that was set.
func (r *run) workerPause() time.Duration { return 3 * time.Second }
