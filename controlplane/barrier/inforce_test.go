package barrier

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"flag"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/follower"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/etcdtest"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

var (
	trialsFlag = flag.Int("barrier.trials", 2000, "how many changes TestInForce makes")
	figures    = flag.Bool("barrier.figures", false, "hold TestLatency to its limits, on a machine that has nothing else to do")
)

const (
	region  = "barrier"
	account = keyid.Account(111122223333)
)

// process is one that answers from its view of the store: what each key's description says. It reaches etcd through proxies of its own.
type process struct {
	store   *store.Store
	lease   fence.Lease
	own     *follower.Follower
	barrier *Barrier // of the first
	proxies []*etcdtest.Proxy
	end     func()

	views sync.Mutex
	view  map[keyid.ID]int

	frozen sync.RWMutex // held to keep it from applying anything
	silent atomic.Bool  // tells nobody what it has applied
}

func newProcess(t testing.TB, c *etcdtest.Cluster, sealer store.Sealer, role string) *process {
	t.Helper()
	ctx := context.Background()
	p := &process{view: map[keyid.ID]int{}}
	var urls []string
	for _, e := range c.Endpoints() {
		proxy, err := etcdtest.NewProxy(e)
		if err != nil {
			t.Fatal(err)
		}
		p.proxies, urls = append(p.proxies, proxy), append(urls, proxy.URL)
	}
	var err error
	if p.store, err = store.OpenExternal(ctx, store.ExternalConfig{Endpoints: urls, Logger: storetest.Quiet, Sealer: sealer}); err != nil {
		t.Fatal(err)
	}
	if err := p.store.Authenticate(ctx, store.Trust{}); err != nil {
		t.Fatal(err)
	}
	p.own, err = follower.New(follower.Config{
		Store: p.store, Lease: &p.lease, Member: store.Member{ID: "p", Role: role}, Load: p.load, Apply: p.apply, Logger: storetest.Quiet,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	p.end = func() {
		p.heal()
		cancel()
		<-ended
		if err := p.store.Close(); err != nil {
			t.Error(err)
		}
		for _, proxy := range p.proxies {
			proxy.Close()
		}
	}
	if role == store.ControlMember {
		p.barrier = New(p.store, p.own, storetest.Quiet)
	}
	go func() {
		defer close(ended)
		if err := p.own.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a process ended with %v", err)
		}
	}()
	return p
}

func (p *process) heal() {
	for _, proxy := range p.proxies {
		proxy.Heal()
	}
}

// tellTo tells a Barrier what the process applies, always the newest, until ctx ends.
func (p *process) tellTo(ctx context.Context, b *Barrier) {
	for told := ""; ; {
		text := p.own.Incarnation() + strconv.FormatInt(p.own.Applied(), 10)
		if text != told && !p.silent.Load() {
			incarnation := p.own.Incarnation()
			b.Tell(incarnation, p.own.Applied())
			told = text
		}
		waiting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		_ = p.own.Wait(waiting, p.own.Applied()+1)
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

func (p *process) load(ctx context.Context) error {
	if p.barrier != nil {
		if err := p.barrier.Load(ctx); err != nil {
			return err
		}
	}
	ids, _, err := p.store.Keys(ctx, region, account, nil, 1000)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := p.read(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) read(ctx context.Context, id keyid.ID) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	k, err := p.store.Key(ctx, store.KeyName{Region: region, Account: account, ID: id})
	if err != nil {
		return err
	}
	k.Wipe()
	value, err := strconv.Atoi(k.Description)
	if err != nil {
		return err
	}
	p.views.Lock()
	defer p.views.Unlock()
	p.view[id] = value
	return nil
}

func (p *process) apply(ctx context.Context, changes []store.Change) error {
	p.frozen.RLock()
	defer p.frozen.RUnlock()
	if p.barrier != nil {
		p.barrier.Apply(changes)
	}
	for i := range changes {
		if c := &changes[i]; c.What == store.KeyChanged && c.Region == region && !c.Gone {
			if err := p.read(ctx, c.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask is a request: the answer, and whether the process may give it.
func (p *process) ask(id keyid.ID) (value int, ok bool) {
	p.views.Lock()
	value = p.view[id]
	p.views.Unlock()
	return value, p.lease.Valid()
}

// world is a cluster of etcd, one process that makes changes and some that answer.
type world struct {
	etcd    *etcdtest.Cluster
	control *process
	data    []*process
	keys    []store.KeyName
}

func newWorld(t testing.TB, processes, keys int, noSync bool) *world {
	t.Helper()
	ctx := t.Context()
	c, err := etcdtest.Start(ctx, etcdtest.Config{Members: 3, Dir: t.TempDir(), NoSync: noSync})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{etcd: c}
	sealer := storetest.NewSealer()
	w.control = newProcess(t, c, sealer, store.ControlMember)
	for range keys {
		w.keys = append(w.keys, createKey(t, w.control.store))
	}
	telling, stop := context.WithCancel(context.Background())
	var tellers sync.WaitGroup
	for range processes {
		p := newProcess(t, c, sealer, store.DataMember)
		w.data = append(w.data, p)
		tellers.Go(func() { p.tellTo(telling, w.control.barrier) })
	}
	t.Cleanup(func() {
		stop()
		tellers.Wait()
		for _, p := range append(w.data, w.control) {
			p.end()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range append(w.data, w.control) {
		eventually(t, "a lease", p.lease.Valid)
	}
	return w
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func createKey(t testing.TB, s *store.Store) store.KeyName {
	t.Helper()
	var random [48]byte
	rand.Read(random[:])
	k := &store.Key{
		KeyName:     store.KeyName{Region: region, Account: account, ID: keyid.NewID([16]byte(random[:16]), false)},
		Description: "0", State: kmsapi.StateEnabled, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Created: time.Now(),
		Policy: store.Policy{Document: []byte("{}")}, Current: 1,
	}
	v := store.Version{Created: k.Created}
	v.Number, v.Root = 1, [8]byte{1}
	copy(v.Salt[:], random[16:])
	v.MaterialID = snapshot.MaterialID(k.Account, k.ID, 1, &v.Salt)
	k.Versions = append(k.Versions, v)
	if err := s.CreateKey(t.Context(), k, 1000); err != nil {
		t.Fatal(err)
	}
	return k.KeyName
}

// set changes a key until that is answered.
func (w *world) set(ctx context.Context, n store.KeyName, value int) error {
	for {
		trying, cancel := context.WithTimeout(ctx, 2*time.Second)
		k, err := w.control.store.UpdateKey(trying, n, func(k *store.Key) error { k.Description = strconv.Itoa(value); return nil })
		cancel()
		switch {
		case err == nil:
			k.Wipe()
			return nil
		case !store.Unavailable(err) && !errors.Is(err, store.ErrUncertain) || ctx.Err() != nil:
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Once a change is answered no process answers from before it, whatever happens to processes, to their connections and to etcd. Without the wait they do.
func TestInForce(t *testing.T) {
	const writers = 120
	trials := *trialsFlag
	if testing.Short() {
		trials = min(trials, 500)
	}
	w := newWorld(t, 3, writers, true)
	ctx := t.Context()

	// What would be found, is: a process that has not heard of a change answers from before it, and may.
	p := w.data[0]
	stale := false
	for try := 0; try < 100 && !stale; try++ {
		eventually(t, "a lease", p.lease.Valid)
		p.frozen.Lock()
		if err := w.set(ctx, w.keys[0], 1+try); err != nil {
			t.Fatal(err)
		}
		value, ok := p.ask(w.keys[0].ID)
		stale = ok && value < 1+try
		p.frozen.Unlock()
	}
	if !stale {
		t.Fatal("no process is ever behind: the test shows nothing")
	}

	// Nobody applies anything: the change is in force when none of them may answer.
	for _, p := range w.data {
		eventually(t, "a lease", p.lease.Valid)
	}
	for _, p := range w.data {
		p.frozen.Lock()
	}
	if err := w.set(ctx, w.keys[0], 500); err != nil {
		t.Fatal(err)
	}
	w.control.barrier.Wait(ctx, w.control.store.Committed())
	for i, p := range w.data {
		if value, ok := p.ask(w.keys[0].ID); ok && value < 500 {
			t.Errorf("process %d, which applies nothing, answers %d with %v of its lease", i, value, p.lease.Left())
		}
		p.frozen.Unlock()
	}

	var answers, refusals, next atomic.Int64
	var slowest atomic.Int64
	stop := make(chan struct{})
	var faults map[string]int
	var running sync.WaitGroup
	running.Go(func() { faults = w.disturb(t, stop) })
	var writing sync.WaitGroup
	for i := range writers {
		writing.Go(func() {
			n := w.keys[i]
			for value := 1000; next.Add(1) <= int64(trials); value++ {
				if err := w.set(ctx, n, value); err != nil {
					t.Errorf("changing a key: %v", err)
					return
				}
				began := time.Now()
				w.control.barrier.Wait(ctx, w.control.store.Committed())
				took := time.Since(began)
				for old := slowest.Load(); old < int64(took) && !slowest.CompareAndSwap(old, int64(took)); old = slowest.Load() {
				}
				for j, p := range append(w.data[:len(w.data):len(w.data)], w.control) {
					got, ok := p.ask(n.ID)
					switch {
					case !ok:
						refusals.Add(1)
					case got < value:
						t.Errorf("process %d answers %d %v after %d was in force, with %v of its lease", j, got, took, value, p.lease.Left())
					default:
						answers.Add(1)
					}
				}
			}
		})
	}
	writing.Wait()
	close(stop)
	running.Wait()
	t.Logf("%d changes: %d answers, %d refusals; the longest wait %v; faults %v", trials, answers.Load(), refusals.Load(), time.Duration(slowest.Load()), faults)
	if answers.Load() < int64(trials) {
		t.Errorf("%d answers of %d processes to %d changes", answers.Load(), len(w.data)+1, trials)
	}
	for _, p := range append(w.data, w.control) {
		eventually(t, "a lease when all is well again", p.lease.Valid)
	}
	// And all of them end up with the same.
	for _, n := range w.keys {
		k, err := w.control.store.Key(ctx, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.data {
			eventually(t, "the last value", func() bool { got, _ := p.ask(n.ID); return strconv.Itoa(got) == k.Description })
		}
	}
}

// disturb does something to somebody, one after the other, until stop is closed, and heals it all.
func (w *world) disturb(t *testing.T, stop chan struct{}) map[string]int {
	count := map[string]int{}
	for {
		var random [4]byte
		rand.Read(random[:])
		p := w.data[int(random[0])%len(w.data)]
		last := time.Duration(binary.BigEndian.Uint16(random[2:])) * (2500 * time.Millisecond) / (1 << 16)
		pause := func(d time.Duration) bool {
			select {
			case <-stop:
				return false
			case <-time.After(d):
				return true
			}
		}
		var what string
		more := true
		switch random[1] % 6 {
		case 0:
			what = "a process does not apply"
			p.frozen.Lock()
			more = pause(last)
			p.frozen.Unlock()
		case 1:
			what = "a process does not tell"
			p.silent.Store(true)
			more = pause(last)
			p.silent.Store(false)
		case 2:
			what = "a process is cut off"
			for _, proxy := range p.proxies {
				proxy.Cut()
			}
			more = pause(last)
			p.heal()
		case 3:
			what = "a process's network loses everything"
			for _, proxy := range p.proxies {
				proxy.Hold()
			}
			more = pause(last)
			p.heal()
		case 4, 5:
			what = "etcd's leader is killed"
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			leader, err := w.etcd.Leader(ctx)
			cancel()
			if err != nil {
				continue
			}
			if random[1]%6 == 4 {
				if err := w.etcd.Kill(leader); err != nil {
					t.Error(err)
				}
				more = pause(last)
				if err := w.etcd.Restart(leader); err != nil {
					t.Error(err)
				}
			} else {
				what = "etcd's leader hangs"
				if err := w.etcd.Stop(leader); err != nil {
					t.Error(err)
				}
				more = pause(last)
				if err := w.etcd.Cont(leader); err != nil {
					t.Error(err)
				}
			}
		}
		count[what]++
		if !more || !pause(300*time.Millisecond) {
			return count
		}
	}
}

// TestLatency measures how long a change takes to be in force when all is well.
func TestLatency(t *testing.T) {
	w := newWorld(t, 3, 1, false)
	changes := 200
	if testing.Short() {
		changes = 50
	}
	var waits, whole []time.Duration
	for i := range changes {
		began := time.Now()
		if err := w.set(t.Context(), w.keys[0], 1+i); err != nil {
			t.Fatal(err)
		}
		committed := time.Now()
		w.control.barrier.Wait(t.Context(), w.control.store.Committed())
		waits, whole = append(waits, time.Since(committed)), append(whole, time.Since(began))
	}
	at := func(list []time.Duration, percent int) time.Duration {
		slices.Sort(list)
		return list[len(list)*percent/100]
	}
	t.Logf("in force everywhere after it was committed: p50 %v, p99 %v; with the commit: p50 %v, p99 %v", at(waits, 50), at(waits, 99), at(whole, 50), at(whole, 99))
	most := [2]time.Duration{fence.Wait / 2, fence.Wait + time.Second} // it is told, not waited out
	if *figures {
		most = [2]time.Duration{20 * time.Millisecond, 100 * time.Millisecond}
	}
	for i, percent := range []int{50, 99} {
		if got := at(waits, percent); got > most[i] {
			t.Errorf("p%d is %v, more than %v", percent, got, most[i])
		}
	}
}
