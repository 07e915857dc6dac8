package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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

// measurement is a cluster without proxies, all of whose parts share this machine with the clients.
func (o options) measurement(ctx context.Context, keyplane string, datas int, say io.Writer) (*run, func(), error) {
	dir, err := os.MkdirTemp("", "keyplane-measure")
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*run, func(), error) { _ = os.RemoveAll(dir); return nil, nil, err }
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
	if r.Cluster, err = cluster.Start(ctx, cluster.Config{Dir: filepath.Join(dir, "cluster"), Keyplane: keyplane, Etcd: etcd, Datas: datas, FaultyHSM: true, Settings: settings}); err != nil {
		return fail(err)
	}
	end := func() { r.Close(); _ = os.RemoveAll(dir) }
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

// drive sends GenerateDataKey on some connections for some time, at a rate or, if that is 0, as fast as they are answered. A request that fails is not sent again.
func (r *run) drive(conns int, rate float64, d time.Duration) (requests, failed int64) {
	var sent, bad atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range conns {
		all.Go(func() {
			c := r.roaming(r.admin, i, onceTimeout)
			defer c.close()
			in := m{"KeyId": r.keys[0], "KeySpec": "AES_256"}
			for n := 0; time.Since(began) < d; n++ {
				if rate > 0 {
					due := began.Add(time.Duration((float64(n) + float64(i)/float64(conns)) * float64(conns) / rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				o := c.do("GenerateDataKey", in, nil)
				sent.Add(1)
				if !o.ok() {
					bad.Add(1)
					if o.status != 0 { // as a load balancer does with a node that says it cannot serve
						c.next()
					}
				}
			}
		})
	}
	all.Wait()
	return sent.Load(), bad.Load()
}

// driveRetried does the same with the official SDK and its standard retries.
func (r *run) driveRetried(ctx context.Context, conns int, rate float64, d time.Duration) (requests, failed int64) {
	var sent, bad atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for i := range conns {
		all.Go(func() {
			c := r.sdk(i)
			for n := 0; time.Since(began) < d; n++ {
				due := began.Add(time.Duration((float64(n) + float64(i)/float64(conns)) * float64(conns) / rate * float64(time.Second)))
				time.Sleep(time.Until(due))
				_, err := c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: &r.keys[0], KeySpec: types.DataKeySpecAes256})
				sent.Add(1)
				if err != nil {
					bad.Add(1)
				}
			}
		})
	}
	all.Wait()
	return sent.Load(), bad.Load()
}

// measureLoss loses a node, a token and an etcd member under load at 60 % of the peak, half of it by clients without and half with retries. each is for how long.
func (o options) measureLoss(ctx context.Context, keyplane string, each time.Duration, say io.Writer) error {
	r, end, err := o.measurement(ctx, keyplane, 3, say)
	if err != nil {
		return err
	}
	defer end()
	r.drive(measureConns, 0, peakFor) // connections, caches
	requests, _ := r.drive(measureConns, 0, peakFor)
	peak := float64(requests) / peakFor.Seconds()
	rate := 0.6 * peak
	fmt.Fprintf(say, "peak %.0f requests/s over three nodes, clients and etcd on the same machine; load %.0f/s\n", peak, rate)
	fmt.Fprintf(say, "%-28s %10s %8s %12s %10s %8s\n", "lost", "once", "failed", "per million", "SDK", "failed")
	var errs []error
	for _, part := range []struct {
		name       string
		lose, back func() error
	}{
		{"nothing", func() error { return nil }, func() error { return nil }},
		{"a data node (kill -9)", func() error { r.Datas[1].Kill(); return nil }, r.Datas[1].Start},
		{"a data node's token", func() error { return r.Datas[2].HSM.Set(slowhsm.Settings{Down: true}) }, func() error { return r.Datas[2].HSM.Set(slowhsm.Settings{}) }},
		{"the etcd leader (kill -9)", func() error {
			n, _, err := r.Leader(ctx)
			if err == nil {
				n.Kill()
				time.AfterFunc(downFor, func() { _ = n.Start() })
			}
			return err
		}, func() error { return nil }},
		{"a control plane (kill -9)", func() error { r.Controls[0].Kill(); return nil }, r.Controls[0].Start},
	} {
		var once, failed, retried, lost int64
		var all sync.WaitGroup
		all.Go(func() { once, failed = r.drive(measureConns/2, rate/2, each) })
		all.Go(func() { retried, lost = r.driveRetried(ctx, measureConns/2, rate/2, each) })
		time.Sleep(each / 3)
		err := part.lose()
		time.Sleep(downFor)
		err = errors.Join(err, part.back())
		all.Wait()
		if err != nil {
			return err
		}
		fmt.Fprintf(say, "%-28s %10d %8d %12.1f %10d %8d\n", part.name, once, failed, float64(failed)/float64(once)*1e6, retried, lost)
		if lost > 0 {
			errs = append(errs, fmt.Errorf("%s: %d of %d requests with retries failed", part.name, lost, retried))
		}
		if _, err := r.back(ctx, time.Now()); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

// measureNodes compares what one and two data nodes need of a processor for a request. What a node can do with a core of its own is one request for each such time; the
// clients and etcd, which share this machine's cores, would be what limits the requests that are counted here.
func (o options) measureNodes(ctx context.Context, keyplane string, each time.Duration, say io.Writer) error {
	var cost [3]time.Duration
	for _, datas := range []int{1, 2} {
		r, end, err := o.measurement(ctx, keyplane, datas, say)
		if err != nil {
			return err
		}
		r.drive(measureConns*datas, 0, peakFor) // as many for each node: how many share a round decides what a request costs
		used := func() (d time.Duration) {
			for _, n := range r.Datas {
				d += n.CPU()
			}
			return d
		}
		was := used()
		requests, failed := r.drive(measureConns*datas, 0, each)
		now := used()
		end()
		if failed > 0 || requests == 0 {
			return fmt.Errorf("%d of %d requests failed", failed, requests)
		}
		cost[datas] = (now - was) / time.Duration(requests)
		fmt.Fprintf(say, "%d data nodes: %.0f requests/s, %v of processor time for each: %.0f/s for each core\n", datas, float64(requests)/each.Seconds(), cost[datas], float64(time.Second)/float64(cost[datas]))
	}
	ratio := 2 * float64(cost[1]) / float64(cost[2])
	fmt.Fprintf(say, "two nodes on one core each, of one node on one core: %.2f\n", ratio)
	if ratio < 1.8 {
		return fmt.Errorf("two nodes do %.2f times what one does, promised are 1.8", ratio)
	}
	return nil
}

// measureDisable disables a key, enables it again, and so on, without faults, and then with a node that is frozen.
func (o options) measureDisable(ctx context.Context, keyplane string, count int, say io.Writer) error {
	r, end, err := o.measurement(ctx, keyplane, 3, say)
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
