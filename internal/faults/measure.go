package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/cluster"
)

const (
	measureConns = 16
	peakFor      = 3 * time.Second
	downFor      = 2 * time.Second // a part is lost
)

// measurement is a cluster without proxies, all of whose parts share this machine with the clients. of says how many there are of what.
func (o options) measurement(ctx context.Context, keyplane string, of cluster.Config, say io.Writer) (*run, func(), error) {
	dir, remove := o.dir, func() {}
	var err error
	if dir == "" {
		if dir, err = os.MkdirTemp("", "keyplane-measure"); err != nil {
			return nil, nil, err
		}
		remove = func() { _ = os.RemoveAll(dir) }
	}
	fail := func(err error) (*run, func(), error) { remove(); return nil, nil, err }
	if keyplane == "" {
		if keyplane, err = cluster.BuildKeyplane(dir); err != nil {
			return fail(err)
		}
	}
	etcd, err := cluster.BuildEtcd("bin")
	if err != nil {
		return fail(err)
	}
	r := &run{options: o, tally: newTally(), say: say, random: rand.New(rand.NewPCG(o.seed, 0)), stopping: make(chan struct{}), began: time.Now()}
	r.findings = &findings{counts: map[string]int{}, examples: map[string][]string{}, tell: say, fault: r.tally.kind}
	r.split = true
	of.Dir, of.Keyplane, of.Etcd, of.FaultyHSM, of.Settings = filepath.Join(dir, "cluster"), keyplane, etcd, true, settings
	if r.Cluster, err = cluster.Start(ctx, of); err != nil {
		return fail(err)
	}
	end := func() { r.Close(); remove() }
	if r.admin, err = newIdentity(r.AccessKeyID, r.Secret); err == nil {
		c := r.roaming(r.admin, 0, trialTimeout)
		var k keyReply
		err = r.must(c, "CreateKey", m{}, &k)
		c.close()
		r.keys = []string{k.KeyMetadata.KeyId}
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return r, end, nil
}

// driven is what came of requests that were sent in a measurement.
type driven struct {
	requests, failed atomic.Int64
	far              atomic.Int64 // failed neither while something was lost nor soon after

	lose, back atomic.Int64 // when it was lost, and when it was there again: ns after 1970; 0: not yet
	say        io.Writer
	mu         sync.Mutex
	told       int
}

const (
	toldMost = 20              // failures of one measurement that are written out
	nearMost = 5 * time.Second // after what was lost is there again: for so long failures may be of the loss
)

// fail counts one that failed, and writes of the first ones how.
func (d *driven) fail(who string, o *outcome) {
	d.failed.Add(1)
	lose, back := d.lose.Load(), d.back.Load()
	if lose == 0 || o.ended.UnixNano() < lose || back != 0 && o.began.UnixNano() > back+int64(nearMost) {
		d.far.Add(1)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told++; d.told > toldMost {
		return
	}
	moment := fmt.Sprintf("sent %s, with nothing lost", o.began.Format("15:04:05.000"))
	if lose != 0 {
		moment = fmt.Sprintf("sent %+.0f ms, failed %+.0f ms from the loss", float64(o.began.UnixNano()-lose)/1e6, float64(o.ended.UnixNano()-lose)/1e6)
	}
	fmt.Fprintf(d.say, "  %s, node %s, connection reused: %v, %s: %v\n", who, o.node, o.reused, moment, o)
}

// pace is when requests are sent: on some connections at a rate or, if that is 0, as fast as they are answered; for some time.
type pace struct {
	conns int
	rate  float64 // requests/s of all connections
	time  time.Duration
	more  func() bool // whether to go on after that; nil: no
}

// each calls do for each request of each connection.
func (p pace) each(do func(conn int) (request func())) {
	var all sync.WaitGroup
	began := time.Now()
	for i := range p.conns {
		all.Go(func() {
			request := do(i)
			for n := 0; time.Since(began) < p.time || p.more != nil && p.more(); n++ {
				if p.rate > 0 {
					due := began.Add(time.Duration((float64(n) + float64(i)/float64(p.conns)) * float64(p.conns) / p.rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				request()
			}
		})
	}
	all.Wait()
}

// drive sends GenerateDataKey to nodes. A request that fails is not sent again. A client keeps its connection until the node closes it, and goes on to the next node then.
func (r *run) drive(p pace, d *driven, endpoints []string, healthy func(string) bool) {
	clients := make([]*client, p.conns)
	p.each(func(i int) func() {
		c := &client{identity: r.admin, endpoints: endpoints, at: i % len(endpoints), timeout: onceTimeout, healthy: healthy}
		clients[i] = c
		in := m{"KeyId": r.keys[0], "KeySpec": "AES_256"}
		return func() {
			o := c.do("GenerateDataKey", in, nil)
			d.requests.Add(1)
			if !o.ok() {
				d.fail("once", &o)
			}
		}
	})
	for _, c := range clients {
		c.close()
	}
}

// driveRetried does the same with the official SDK and its standard retries.
func (r *run) driveRetried(ctx context.Context, p pace, d *driven, healthy func(string) bool) {
	p.each(func(i int) func() {
		c := r.sdkOver(r.namedWhile(i, healthy))
		o := outcome{}
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
			o.node, o.reused = info.Conn.RemoteAddr().String(), info.Reused
		}})
		return func() {
			o = outcome{began: time.Now()}
			_, o.err = c.GenerateDataKey(traced, &kms.GenerateDataKeyInput{KeyId: &r.keys[0], KeySpec: types.DataKeySpecAes256})
			d.requests.Add(1)
			if o.err != nil {
				o.ended = time.Now()
				d.fail("SDK", &o)
			}
		}
	})
}

// healthEvery is how often health asks each node.
const healthEvery = time.Second

// health does what a load balancer does: it asks each node for /readyz, and makes new connections to those that are ready. It returns when ctx ends.
func (r *run) health(ctx context.Context) (healthy func(endpoint string) bool) {
	down := map[string]*atomic.Bool{}
	client := &http.Client{Timeout: healthEvery, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, e := range r.endpoints() {
		is := new(atomic.Bool)
		down[e] = is
		go func() {
			tick := time.NewTicker(healthEvery)
			defer tick.Stop()
			for {
				resp, err := client.Get("http://" + e + "/readyz")
				if err == nil {
					_ = resp.Body.Close()
				}
				is.Store(err != nil || resp.StatusCode != http.StatusOK)
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		}()
	}
	return func(endpoint string) bool { return !down[endpoint].Load() }
}

// measureLoss loses a node, a token and an etcd member under load at 60 % of the peak, half of it by clients without and half with retries. Each loss has a measurement of its
// own of so long, or longer where that is needed to send so many requests without retries.
func (o options) measureLoss(ctx context.Context, keyplane string, each time.Duration, requests, tokens int, say io.Writer) error {
	r, end, err := o.measurement(ctx, keyplane, cluster.Config{Datas: 3, Tokens: tokens}, say)
	if err != nil {
		return err
	}
	defer end()
	watch, unwatch := context.WithCancel(ctx)
	defer unwatch()
	healthy := r.health(watch)
	var peak float64
	for range 2 { // the first makes connections and fills caches
		d := driven{say: say}
		r.drive(pace{conns: measureConns, time: peakFor}, &d, r.endpoints(), healthy)
		peak = float64(d.requests.Load()) / peakFor.Seconds()
	}
	p := pace{conns: measureConns / 2, rate: 0.3 * peak}
	p.time = max(each, time.Duration(float64(requests)/p.rate*float64(time.Second)))
	fmt.Fprintf(say, "peak %.0f requests/s over three nodes, clients and etcd on the same machine; load %.0f/s, for %v each\n", peak, 2*p.rate, p.time.Round(time.Second))
	terms := r.Terms(ctx)
	var errs []error
	var table strings.Builder
	fmt.Fprintf(&table, "%-28s %9s %7s %7s %12s %12s %9s %7s\n", "lost", "once", "failed", "of them", "per million", "95 % sure:", "SDK", "failed")
	fmt.Fprintf(&table, "%-28s %9s %7s %7s %12s %12s %9s %7s\n", "", "", "", "apart", "with a loss", "at most", "", "")
	for _, part := range []struct {
		kind, name string
		lose, back func() error
	}{
		{"nothing", "nothing", func() error { return nil }, func() error { return nil }},
		{"node", "a data node (kill -9)", func() error { r.Datas[1].Kill(); return nil }, r.Datas[1].Start},
		{"token", "one of a data node's tokens", func() error { return r.Datas[2].HSM.Set(slowhsm.Settings{Down: true}) }, func() error { return r.Datas[2].HSM.Set(slowhsm.Settings{}) }},
		{"etcd", "the etcd leader (kill -9)", func() error {
			n, _, err := r.Leader(ctx)
			if err == nil {
				n.Kill()
				time.AfterFunc(downFor, func() { _ = n.Start() })
			}
			return err
		}, func() error { return nil }},
		{"control", "a control plane (kill -9)", func() error { r.Controls[0].Kill(); return nil }, r.Controls[0].Start},
	} {
		if len(o.kinds) > 0 && !slices.Contains(o.kinds, part.kind) {
			continue
		}
		fmt.Fprintln(say, part.name)
		once, retried := driven{say: say}, driven{say: say}
		p.more = func() bool { return once.requests.Load() < int64(requests) && ctx.Err() == nil } // a machine that does much else is late
		var all sync.WaitGroup
		all.Go(func() { r.drive(p, &once, r.endpoints(), healthy) })
		all.Go(func() { r.driveRetried(ctx, p, &retried, healthy) })
		time.Sleep(p.time / 3)
		if part.kind != "nothing" {
			now := time.Now().UnixNano()
			once.lose.Store(now)
			retried.lose.Store(now)
		}
		err := part.lose()
		time.Sleep(downFor)
		err = errors.Join(err, part.back())
		if err == nil {
			_, err = r.back(ctx, time.Now())
		}
		now := time.Now().UnixNano()
		once.back.Store(now)
		retried.back.Store(now)
		all.Wait()
		if err != nil {
			return err
		}
		n, failed, far := once.requests.Load(), once.failed.Load(), once.far.Load()
		likely, most := perMillion(failed, far, n)
		fmt.Fprintf(&table, "%-28s %9d %7d %7d %12.1f %12.1f %9d %7d\n", part.name, n, failed, far, likely, most, retried.requests.Load(), retried.failed.Load())
		if lost := retried.failed.Load(); lost > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d requests with retries failed", part.name, lost, retried.requests.Load()))
		}
		if likely > onceMost {
			errs = append(errs, fmt.Errorf("%s: %.1f per million of the requests that are sent once fail, promised are %d", part.name, likely, onceMost))
		}
	}
	fmt.Fprint(say, table.String())
	fmt.Fprintf(say, "etcd's members elected a leader %d times\n", r.Terms(ctx)-terms)
	return errors.Join(errs...)
}

// onceMost is how many of a million requests may fail that are sent once, when something is lost once.
const onceMost = 10

// perMillion is how many of a million requests fail, among which there is one loss: those that failed with it, however many were sent besides, and of those that failed apart from
// it their share. What n requests do not show of the latter most says with 95 % certainty.
func perMillion(failed, far, n int64) (likely, most float64) {
	const million = 1e6
	scale := max(1, million/float64(max(n, 1)))
	near := float64(failed - far)
	if float64(n) > million {
		near *= million / float64(n) // one loss among so many
		scale = million / float64(n)
	}
	return near + float64(far)*scale, near + poissonMost(far)*scale
}

// poissonMost is the mean at which no more than k events are seen in one of twenty cases.
func poissonMost(k int64) float64 {
	if k > 500 {
		return float64(k) + 1 + 1.645*math.Sqrt(float64(k))
	}
	low, high := float64(k), float64(k)+10+10*math.Sqrt(float64(k))
	for range 60 {
		mean := (low + high) / 2
		term, sum := math.Exp(-mean), 0.0
		for i := range k + 1 {
			sum += term
			term *= mean / float64(i+1)
		}
		if sum > 0.05 {
			low = mean
		} else {
			high = mean
		}
	}
	return high
}

// measureNodes compares what two data nodes on one core each answer with what one does on one core. There is no machine for the clients: those of a node share its core, so that a
// node has the same to itself whether it is alone or not, and both are asked for as much as they can do. etcd and the control planes run on whichever core. One and two are
// measured in turns, in one cluster, so that whatever else this machine does meets both; of the ratios of all turns it is the middle one. The ratio that counts is that of the
// processor time that nodes need for a request, of which a core has one second each second: it does not depend on how much of the cores other processes get.
func (o options) measureNodes(ctx context.Context, keyplane string, each time.Duration, say io.Writer) error {
	r, end, err := o.measurement(ctx, keyplane, cluster.Config{Datas: 2, Env: func(role string) []string {
		if role == "data" {
			return []string{"GOMAXPROCS=7"} // what a process takes on one core: six more
		}
		return nil
	}}, say)
	if err != nil {
		return err
	}
	defer end()
	core := func(i int) string { return strconv.Itoa(i % runtime.NumCPU()) }
	for i, n := range r.Datas {
		if out, err := exec.CommandContext(ctx, "taskset", "-a", "-c", "-p", core(i), strconv.Itoa(n.Pid())).CombinedOutput(); err != nil {
			return fmt.Errorf("taskset: %w: %s", err, out)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	idle := r.Datas[0].CPU()
	time.Sleep(peakFor)
	fmt.Fprintf(say, "a node that is asked nothing uses %.1f %% of a core\n", 100*(r.Datas[0].CPU()-idle).Seconds()/peakFor.Seconds())
	measure := func(nodes int, d time.Duration) (requests float64, used time.Duration, err error) {
		for i := range nodes {
			used -= r.Datas[i].CPU()
		}
		sent := make([]int64, nodes)
		errs := make([]error, nodes)
		var all sync.WaitGroup
		for i := range nodes {
			all.Go(func() {
				cmd := exec.CommandContext(ctx, "taskset", "-c", core(i), self, "-measure", "clients", "-each", d.String())
				cmd.Env = append(os.Environ(), "GOMAXPROCS=1", clientsOf+"="+strings.Join([]string{r.endpoints()[i], r.keys[0], r.AccessKeyID, r.Secret}, " "))
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err == nil {
					sent[i], err = strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
				}
				errs[i] = err
			})
		}
		all.Wait()
		for i := range nodes {
			used += r.Datas[i].CPU()
			requests += float64(sent[i])
		}
		return requests, used, errors.Join(errs...)
	}
	if _, _, err := measure(2, peakFor); err != nil {
		return err
	}
	terms := r.Terms(ctx)
	var ratios, rates []float64
	for range nodesTurns {
		var cost, rate [3]float64
		for _, nodes := range []int{1, 2} {
			requests, used, err := measure(nodes, each/nodesTurns)
			if err != nil {
				return err
			}
			cost[nodes], rate[nodes] = used.Seconds()/requests, requests/(each/nodesTurns).Seconds()
			fmt.Fprintf(say, "  %d on a core each: %6.0f requests/s, %5.1f µs of a node's processor time for each\n", nodes, rate[nodes], cost[nodes]*1e6)
		}
		ratios, rates = append(ratios, 2*cost[1]/cost[2]), append(rates, rate[2]/rate[1])
	}
	slices.Sort(ratios)
	slices.Sort(rates)
	last := nodesTurns - 1
	fmt.Fprintf(say, "two nodes on one core each, of one node on one core, by processor time: %.2f (%.2f to %.2f in %d turns)\n", ratios[nodesTurns/2], ratios[0], ratios[last], nodesTurns)
	fmt.Fprintf(say, "… by requests in the same time, beside all else on these cores: %.2f (%.2f to %.2f)\n", rates[nodesTurns/2], rates[0], rates[last])
	if now := r.Terms(ctx); now != terms {
		fmt.Fprintf(say, "etcd's members elected a leader %d times meanwhile: this machine is too busy\n", now-terms)
	}
	if ratios[nodesTurns/2] < 1.8 {
		return fmt.Errorf("two nodes do %.2f times what one does, promised are 1.8", ratios[nodesTurns/2])
	}
	return nil
}

const (
	nodesTurns = 5
	clientsOf  = "KEYPLANE_FAULTS_CLIENTS" // environment: endpoint, key, access key ID and secret
)

// measureClients is the clients of one node, in a process of their own that measureNodes starts: it prints how many requests were answered.
func (o options) measureClients(each time.Duration, say io.Writer) error {
	of := strings.Fields(os.Getenv(clientsOf))
	if len(of) != 4 {
		return errors.New(clientsOf + " is missing")
	}
	r := &run{options: o, keys: of[1:2]}
	var err error
	if r.admin, err = newIdentity(of[2], of[3]); err != nil {
		return err
	}
	d := driven{say: os.Stderr}
	r.drive(pace{conns: measureConns, time: each}, &d, of[:1], nil)
	requests, failed := d.requests.Load(), d.failed.Load()
	if failed*100 > requests {
		return fmt.Errorf("%d of %d requests failed", failed, requests)
	}
	_, err = fmt.Fprintln(say, requests-failed)
	return err
}

// measureDisable disables a key, enables it again, and so on, without faults, and then with a node that is frozen.
func (o options) measureDisable(ctx context.Context, keyplane string, count int, say io.Writer) error {
	r, end, err := o.measurement(ctx, keyplane, cluster.Config{Datas: 3}, say)
	if err != nil {
		return err
	}
	defer end()
	c := r.of(r.admin, 0, trialTimeout)
	defer c.close()
	disable := func(count int) (all []time.Duration, err error) {
		for range count {
			o := c.do("DisableKey", m{"KeyId": r.keys[0]}, nil)
			if !o.ok() {
				return nil, fmt.Errorf("DisableKey: %v", &o)
			}
			all = append(all, o.ended.Sub(o.began))
			if err := r.must(c, "EnableKey", m{"KeyId": r.keys[0]}, nil); err != nil {
				return nil, err
			}
		}
		slices.Sort(all)
		return all, nil
	}
	if _, err := disable(20); err != nil {
		return err
	}
	all, err := disable(count)
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	fmt.Fprintf(say, "DisableKey, in force at three nodes: p50 %.1f ms, p99 %.1f ms, max %.1f ms of %d\n", ms(quantile(all, 0.5)), ms(quantile(all, 0.99)), ms(quantile(all, 1)), len(all))
	if err := r.Datas[2].Freeze(); err != nil {
		return err
	}
	frozen, err := disable(3)
	if err := errors.Join(err, r.Datas[2].Thaw()); err != nil {
		return err
	}
	fmt.Fprintf(say, "… with a frozen node: max %.0f ms of %d\n", ms(quantile(frozen, 1)), len(frozen))
	return ctx.Err()
}
