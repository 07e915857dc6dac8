package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/internal/cluster"
)

// Lengths of faults. Long is longer than a lease (internal/fence), so that others do not wait any more.
const (
	shortMin, shortMax = 100 * time.Millisecond, 800 * time.Millisecond
	longMin, longMax   = 2500 * time.Millisecond, 4 * time.Second
)

// kind is a kind of fault. inject makes one and returns how to end it.
type kind struct {
	name   string
	needs  string // "split": more than one process; "serve": `keyplane serve`; "": either
	ci     bool   // in the short form
	long   bool
	inject func(*injection) (end func() error, err error)
}

// injection is one fault at a time, with what it may choose from.
type injection struct {
	*run
	rnd *rand.Rand
	ctx context.Context
	on  string // whom it is done to, for the report
}

func (i *injection) pick(of []*cluster.Node) *cluster.Node {
	n := of[i.rnd.IntN(len(of))]
	i.on = n.Name
	return n
}

// Whom a fault may be done to.
func data(i *injection) []*cluster.Node    { return i.Datas }
func control(i *injection) []*cluster.Node { return i.Controls }

// leader is the etcd member that leads now, and follower the others. Where nobody can tell, any of them.
func leader(i *injection) []*cluster.Node {
	if n, _, err := i.Leader(i.ctx); err == nil {
		return []*cluster.Node{n}
	}
	return i.Etcds
}

func follower(i *injection) []*cluster.Node {
	if _, others, err := i.Leader(i.ctx); err == nil && len(others) > 0 {
		return others
	}
	return i.Etcds
}

// two picks two different ones.
func (i *injection) two(of []*cluster.Node) (a, b *cluster.Node) {
	at := i.rnd.Perm(len(of))
	a, b = of[at[0]], of[at[1]]
	i.on = a.Name + " and " + b.Name
	return a, b
}

// isolate does something to the links of one process with others.
func (i *injection) isolate(n *cluster.Node, others []*cluster.Node, cut func(a, b string)) {
	for _, other := range others {
		if other != n {
			cut(n.Name, other.Name)
		}
	}
}

// slow delays what some processes send to others, and what they answer.
func (i *injection) slow(from, to []*cluster.Node, by time.Duration) {
	i.on = "all"
	for _, a := range from {
		for _, b := range to {
			i.Net.Set(a.Name, b.Name, cluster.Fault{Delay: by})
		}
	}
}

// resets breaks the connections of some processes to others, several times.
func resets(of func(*injection) (from, to []*cluster.Node)) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		from, to := of(i)
		i.on = "all"
		for range 3 {
			for _, a := range from {
				for _, b := range to {
					i.Net.Reset(a.Name, b.Name)
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
		return func() error { return nil }, nil
	}
}

// etcdDisk makes the disk of an etcd member fail. A member whose disk fails ends, and is started again as long as that goes on.
func etcdDisk(calls, what string) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(i.Etcds)
		wal, err := filepath.Glob(filepath.Join(n.Dir, "member", "wal", "*.wal"))
		if err != nil || len(wal) == 0 {
			return nil, errors.Join(err, errors.New("there is no WAL of etcd"))
		}
		end, err := cluster.Inject(n.Process, calls, what, append(wal, filepath.Join(n.Dir, "member", "snap", "db"))...)
		return func() error { end(); return nil }, err
	}
}

// kill ends a process at once; the fault ends when it is started again.
func kill(of func(*injection) []*cluster.Node) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(of(i))
		n.Kill()
		return n.Start, nil
	}
}

func terminate(of func(*injection) []*cluster.Node) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(of(i))
		n.Terminate()
		return n.Start, nil
	}
}

func freeze(of func(*injection) []*cluster.Node) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(of(i))
		return n.Thaw, n.Freeze()
	}
}

// network makes links bad; the fault ends when all are good.
func network(set func(*injection)) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		set(i)
		return func() error { i.Net.Heal(); return nil }, nil
	}
}

// device has the module of one node's HSM do something.
func device(s slowhsm.Settings) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(i.Datas)
		if n.HSM == nil {
			return nil, errors.New("there is no module with faults")
		}
		return func() error { return n.HSM.Set(slowhsm.Settings{}) }, n.HSM.Set(s)
	}
}

// condemned is device for what no token may do: say that it did something, and give something else. It is out of service for good then, so that the fault ends
// with another device, of a process that is started again.
func condemned(s slowhsm.Settings) func(*injection) (func() error, error) {
	fault := device(s)
	return func(i *injection) (func() error, error) {
		end, err := fault(i)
		if err != nil {
			return end, err
		}
		n := i.Datas[slices.IndexFunc(i.Datas, func(n *cluster.Node) bool { return n.Name == i.on })]
		return func() error {
			n.Kill()
			return errors.Join(end(), n.Start())
		}, nil
	}
}

// outputs are the functions of a round and of keys, which make something.
var outputs = []string{"C_Encrypt", "C_EncryptUpdate", "C_Sign", "C_GenerateRandom"}

// failing has functions answer with a code.
func failing(code hsm.CKR, functions ...string) (s slowhsm.Settings) {
	for _, f := range functions {
		s.Faults = append(s.Faults, slowhsm.Fault{Function: f, Nth: 1, Onwards: true, CKR: code})
	}
	return s
}

// befalling has something befall each n-th call of the functions that make something.
func befalling(act slowhsm.Act, n int) (s slowhsm.Settings) {
	for _, f := range outputs {
		s.Faults = append(s.Faults, slowhsm.Fault{Function: f, Nth: n, Every: true, Act: act})
	}
	return s
}

func hang(d time.Duration) (s slowhsm.Settings) {
	for _, f := range outputs {
		s.Faults = append(s.Faults, slowhsm.Fault{Function: f, Nth: 1, Hang: d})
	}
	return s
}

func auditDisk(calls, what string) func(*injection) (func() error, error) {
	return diskOf(data, calls, what)
}

// diskOf makes the disk of a process's audit log fail.
func diskOf(of func(*injection) []*cluster.Node, calls, what string) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		n := i.pick(of(i))
		segments, err := filepath.Glob(filepath.Join(n.AuditDir, "segment-*.log"))
		if err != nil || len(segments) == 0 {
			return nil, errors.Join(err, errors.New("there is no segment of an audit log"))
		}
		end, err := cluster.Inject(n.Process, calls, what, slices.Max(segments), filepath.Join(n.AuditDir, "probe.tmp"))
		return func() error { end(); return nil }, err
	}
}

// wallClock sets the wall clock of one process, and back.
func wallClock(of func(*injection) []*cluster.Node, by time.Duration) func(*injection) (func() error, error) {
	return func(i *injection) (func() error, error) {
		if !i.clocks() {
			return nil, errors.New("this build has no clock that can be set")
		}
		n := i.pick(of(i))
		return func() error { return n.SetClock(0, 0) }, n.SetClock(by, 0)
	}
}

// everything does the same to all processes.
func everything(i *injection, do func(*cluster.Node)) {
	i.on = "all"
	done := make(chan struct{})
	for _, n := range i.All() {
		go func() { do(n); done <- struct{}{} }()
	}
	for range i.All() {
		<-done
	}
}

func (i *injection) startAll() error {
	var errs []error
	for _, n := range i.All() {
		errs = append(errs, n.Start())
	}
	return errors.Join(errs...)
}

// kinds are all kinds of faults.
var kinds = []kind{
	{name: "data node killed", ci: true, inject: kill(data)},
	{name: "data node ended in good order", inject: terminate(data)},
	{name: "data node frozen for less than a lease", inject: freeze(data)},
	{name: "data node frozen for longer than a lease", ci: true, long: true, inject: freeze(data)},
	{name: "connections of clients reset", inject: func(i *injection) (func() error, error) {
		n := i.pick(i.Datas)
		for range 5 {
			i.Net.Reset(cluster.Client, n.Name)
			time.Sleep(50 * time.Millisecond)
		}
		return func() error { return nil }, nil
	}},
	{name: "clients cut off from a node", inject: network(func(i *injection) { i.Net.Cut(cluster.Client, i.pick(i.Datas).Name) })},
	{name: "a node's replies lost", inject: network(func(i *injection) { i.Net.Deaf(i.pick(i.Datas).Name, cluster.Client) })},
	{name: "latency to clients", inject: network(func(i *injection) {
		i.Net.Set(cluster.Client, i.pick(i.Datas).Name, cluster.Fault{Delay: 50 * time.Millisecond})
	})},
	{name: "audit log: EIO", ci: true, inject: auditDisk("fdatasync,fsync,write", "error=EIO")},
	{name: "audit log: ENOSPC", inject: auditDisk("write,fdatasync", "error=ENOSPC")},
	{name: "audit log: hangs", inject: auditDisk("fdatasync,write", "delay_enter=1s")},
	{name: "HSM: CKR_DEVICE_ERROR", ci: true, inject: device(failing(hsm.CKR_DEVICE_ERROR, outputs...))},
	{name: "HSM: CKR_SESSION_HANDLE_INVALID", inject: device(failing(hsm.CKR_SESSION_HANDLE_INVALID, outputs...))},
	{name: "HSM: CKR_DEVICE_MEMORY", inject: device(failing(hsm.CKR_DEVICE_MEMORY, outputs...))},
	{name: "HSM: CKR_GENERAL_ERROR", inject: device(failing(hsm.CKR_GENERAL_ERROR, outputs...))},
	{name: "HSM: a call hangs", inject: device(hang(1500 * time.Millisecond))},
	{name: "HSM: calls hang until the end", inject: device(befalling(slowhsm.Stall, 2))},
	{name: "HSM: slow", inject: device(slowhsm.Settings{Latency: 5 * time.Millisecond})},
	{name: "HSM: device down", inject: device(slowhsm.Settings{Down: true})},
	{name: "HSM: slots gone and back", inject: device(slowhsm.Settings{Gone: true})},
	{name: "HSM: slots back under another number", inject: device(slowhsm.Settings{Moved: 7})},
	{name: "HSM: wrong bytes", inject: condemned(befalling(slowhsm.Flip, 3))},
	{name: "HSM: results swapped", inject: condemned(befalling(slowhsm.Swap, 2))},
	{name: "HSM: logged out", inject: device(befalling(slowhsm.LogOut, 5))},
	{name: "HSM: all sessions end", inject: device(befalling(slowhsm.KillAll, 5))},
	{name: "HSM: the module takes the process with it", inject: device(befalling(slowhsm.Abort, 20))},
	{name: "wall clock a minute ahead", inject: wallClock(data, time.Minute)},
	{name: "wall clock a minute behind", inject: wallClock(data, -time.Minute)},
	{name: "wall clock eight days ahead", ci: true, inject: wallClock(func(i *injection) []*cluster.Node { return i.Keyplanes() }, 8*day)},
	{name: "control plane killed", needs: "split", ci: true, inject: kill(control)},
	{name: "control plane ended in good order", needs: "split", inject: terminate(control)},
	{name: "control plane frozen for less than a lease", needs: "split", inject: freeze(control)},
	{name: "control plane frozen for longer than a lease", needs: "split", long: true, inject: freeze(control)},
	{name: "all control planes killed", needs: "split", inject: func(i *injection) (func() error, error) {
		i.on = "all control planes"
		for _, n := range i.Controls {
			n.Kill()
		}
		return i.startAll, nil
	}},
	{name: "etcd leader killed", needs: "split", ci: true, inject: kill(leader)},
	{name: "etcd follower killed", needs: "split", inject: kill(follower)},
	{name: "etcd leader frozen", needs: "split", long: true, inject: freeze(leader)},
	{name: "etcd follower frozen", needs: "split", long: true, inject: freeze(follower)},
	{name: "etcd: two of three members killed", needs: "split", inject: func(i *injection) (func() error, error) {
		n, other := i.two(i.Etcds)
		n.Kill()
		other.Kill()
		return i.startAll, nil
	}},
	{name: "etcd leader cut off from its followers", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(leader(i)), i.Etcds, i.Net.Cut) })},
	{name: "etcd leader not heard by its followers", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(leader(i)), i.Etcds, i.Net.Deaf) })},
	{name: "etcd follower cut off from the others", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(follower(i)), i.Etcds, i.Net.Cut) })},
	{name: "etcd follower not heard by the others", needs: "split", inject: network(func(i *injection) { i.isolate(i.pick(follower(i)), i.Etcds, i.Net.Deaf) })},
	{name: "data node cut off from etcd", needs: "split", ci: true, long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Datas), i.Etcds, i.Net.Cut) })},
	{name: "data node not heard by etcd", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Datas), i.Etcds, i.Net.Deaf) })},
	{name: "data node does not hear etcd", needs: "split", long: true, inject: network(func(i *injection) {
		i.isolate(i.pick(i.Datas), i.Etcds, func(data, etcd string) { i.Net.Deaf(etcd, data) })
	})},
	{name: "data node reaches only an etcd member that is cut off", needs: "split", long: true, inject: network(func(i *injection) {
		lone := i.pick(follower(i))
		i.isolate(lone, i.Etcds, i.Net.Cut)
		n := i.pick(i.Datas)
		for _, other := range i.Etcds {
			if other != lone {
				i.Net.Cut(n.Name, other.Name)
			}
		}
		i.on = n.Name + " with " + lone.Name
	})},
	{name: "data node cut off from the control planes", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Datas), i.Controls, i.Net.Cut) })},
	{name: "data node not heard by the control planes", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Datas), i.Controls, i.Net.Deaf) })},
	{name: "data node does not hear the control planes", needs: "split", long: true, inject: network(func(i *injection) {
		i.isolate(i.pick(i.Datas), i.Controls, func(data, control string) { i.Net.Deaf(control, data) })
	})},
	{name: "control plane cut off from etcd", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Controls), i.Etcds, i.Net.Cut) })},
	{name: "control plane not heard by etcd", needs: "split", long: true, inject: network(func(i *injection) { i.isolate(i.pick(i.Controls), i.Etcds, i.Net.Deaf) })},
	{name: "control planes cut off from each other", needs: "split", inject: network(func(i *injection) { i.isolate(i.pick(i.Controls), i.Controls, i.Net.Cut) })},
	{name: "latency from data nodes to etcd", needs: "split", inject: network(func(i *injection) { i.slow(i.Datas, i.Etcds, 20*time.Millisecond) })},
	{name: "latency from data nodes to control planes", needs: "split", inject: network(func(i *injection) { i.slow(i.Datas, i.Controls, 50*time.Millisecond) })},
	{name: "latency between etcd members", needs: "split", inject: network(func(i *injection) { i.slow(i.Etcds, i.Etcds, 20*time.Millisecond) })},
	{name: "latency from control planes to etcd", needs: "split", inject: network(func(i *injection) { i.slow(i.Controls, i.Etcds, 20*time.Millisecond) })},
	{name: "connections from data nodes to etcd reset", needs: "split", inject: resets(func(i *injection) ([]*cluster.Node, []*cluster.Node) { return i.Datas, i.Etcds })},
	{name: "connections from data nodes to control planes reset", needs: "split", inject: resets(func(i *injection) ([]*cluster.Node, []*cluster.Node) { return i.Datas, i.Controls })},
	{name: "connections between etcd members reset", needs: "split", inject: resets(func(i *injection) ([]*cluster.Node, []*cluster.Node) { return i.Etcds, i.Etcds })},
	{name: "connections from control planes to etcd reset", needs: "split", inject: resets(func(i *injection) ([]*cluster.Node, []*cluster.Node) { return i.Controls, i.Etcds })},
	{name: "etcd member: fsync fails with EIO", needs: "split", inject: etcdDisk("fdatasync,fsync", "error=EIO")},
	{name: "etcd member: its disk is full", needs: "split", inject: etcdDisk("write,pwrite64,fallocate", "error=ENOSPC")},
	{name: "etcd member: its disk hangs", needs: "split", inject: etcdDisk("fdatasync,fsync", "delay_enter=1s")},
	{name: "control plane's audit log: EIO", needs: "split", inject: diskOf(control, "fdatasync,fsync,write", "error=EIO")},
	{name: "everything killed", ci: true, inject: func(i *injection) (func() error, error) {
		everything(i, func(n *cluster.Node) { n.Kill() })
		return i.startAll, nil
	}},
	{name: "everything ended in good order", inject: func(i *injection) (func() error, error) {
		everything(i, func(n *cluster.Node) { n.Terminate() })
		return i.startAll, nil
	}},
	{name: "everything frozen", long: true, inject: func(i *injection) (func() error, error) {
		everything(i, func(n *cluster.Node) { _ = n.Freeze() })
		return func() error { everything(i, func(n *cluster.Node) { _ = n.Thaw() }); return nil }, nil
	}},
}

// chosen are the kinds of a run, by name or those that fit.
func (r *run) chosen(short bool) ([]kind, error) {
	var all []kind
	for _, k := range kinds {
		fits := k.needs == "" || k.needs == map[bool]string{true: "split", false: "serve"}[r.split]
		if len(r.options.kinds) > 0 {
			fits = slices.Contains(r.options.kinds, k.name)
		} else if short {
			fits = fits && k.ci
		}
		if fits {
			all = append(all, k)
		}
	}
	for _, name := range r.options.kinds {
		if !slices.ContainsFunc(all, func(k kind) bool { return k.name == name }) {
			return nil, fmt.Errorf("there is no kind of fault %q", name)
		}
	}
	return all, nil
}

// inject makes one fault, ends it, and measures how long service takes to be back at every node.
func (r *run) inject(ctx context.Context, k kind) error {
	i := &injection{run: r, rnd: r.random, ctx: ctx}
	lo, hi := shortMin, shortMax
	if k.long {
		lo, hi = longMin, longMax
	}
	hold := lo + time.Duration(r.random.Int64N(int64(hi-lo)))
	counts := r.tally.enter(k.name)
	end, err := k.inject(i)
	if err != nil {
		counts.mu.Lock()
		counts.failed++
		counts.mu.Unlock()
		r.found(unexpected, "the fault could not be made on %s: %v", i.on, err)
		if end != nil {
			_ = end()
		}
		r.tally.enter("none")
		return nil
	}
	select {
	case <-time.After(hold):
	case <-ctx.Done():
	}
	began := time.Now()
	if err := end(); err != nil {
		r.found(unexpected, "on %s the fault could not be ended: %v", i.on, err)
		return fmt.Errorf("the end of %q on %s: %w", k.name, i.on, err)
	}
	back, err := r.back(ctx, began)
	if err != nil {
		if ctx.Err() == nil {
			r.found(notBack, "on %s: %v", i.on, err)
		}
		return fmt.Errorf("after %q on %s: %w", k.name, i.on, err)
	}
	counts.mu.Lock()
	counts.injections++
	counts.back = append(counts.back, back)
	counts.mu.Unlock()
	if back > backMax {
		r.found(notBack, "on %s: %v after the fault's end", i.on, back.Round(time.Millisecond))
	}
	fmt.Fprintf(r.say, "%8.1fs  %s (%s), %v: back after %v\n", time.Since(r.began).Seconds(), k.name, i.on, hold.Round(time.Millisecond), back.Round(time.Millisecond))
	r.tally.enter("none")
	return ctx.Err()
}

// rescue makes everything anew that a fault may have left broken, after which the run goes on: what was found is found, and other kinds are to be tried yet. It is what a
// person would do, and so nothing that a fault may need.
func (r *run) rescue(ctx context.Context) error {
	r.tally.enter("none")
	r.Net.Heal()
	var errs []error
	for _, n := range r.All() {
		n.Kill()
		if n.HSM != nil {
			errs = append(errs, n.HSM.Set(slowhsm.Settings{}))
		}
		if n.Role != "etcd" {
			errs = append(errs, n.SetClock(0, 0))
		}
	}
	for _, n := range r.All() {
		errs = append(errs, n.Start())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err := r.back(ctx, time.Now())
	return err
}

const (
	backMax = 5 * time.Second // how long service may take to be back
	// probeTimeout is more than a change waits for a process that is not heard of (fence.Wait): that is service too.
	probeTimeout = 2500 * time.Millisecond
	lostMax      = 90 * time.Second // after which the run is given up
)

// back waits until each node has answered a cryptographic operation and a change, and returns how long after began that was.
func (r *run) back(ctx context.Context, began time.Time) (time.Duration, error) {
	type result struct {
		at  time.Duration
		err error
	}
	type probe struct {
		op string
		in m
	}
	results := make(chan result)
	count := 0
	for node := range r.Datas {
		for _, p := range []probe{
			{"Encrypt", m{"KeyId": r.keys[0], "Plaintext": []byte("back")}},
			{"TagResource", m{"KeyId": r.keys[node%len(r.keys)], "Tags": []m{{"TagKey": fmt.Sprint("back-", node), "TagValue": fmt.Sprint(began.UnixNano())}}}},
		} {
			count++
			go func() {
				c := r.of(r.admin, node, probeTimeout)
				defer c.close()
				for {
					o := c.do(p.op, p.in, nil)
					r.answered.add(p.op, &o)
					if o.ok() {
						results <- result{at: time.Since(began)}
						return
					}
					if time.Since(began) > lostMax || ctx.Err() != nil {
						results <- result{err: fmt.Errorf("%s is not back after %v: %s: %v; it said:\n%s", r.Datas[node].Name, lostMax, p.op, &o, r.Datas[node].Tail(2000))}
						return
					}
				}
			}()
		}
	}
	var last time.Duration
	var errs []error
	for range count {
		got := <-results
		last = max(last, got.at)
		errs = append(errs, got.err)
	}
	return last, errors.Join(errs...)
}
