package controlplane

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/controlplane/replication"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/snapshot"
)

// world is several Regions of one account, with a network between them whose faults a test chooses.
type world struct {
	testing.TB
	regions []*env
	signers map[string]*ecdsa.PrivateKey
	sealers map[string]store.Sealer

	mu     sync.Mutex
	sent   int      // requests
	bodies [][]byte // everything that was sent, requests and answers
	away   map[string]bool
	hangs  map[string]chan struct{} // requests to these Regions wait until it is closed
	hung   map[string]int           // how many wait
	fault  func(n int) fault        // of the n-th request, from 0; nil: none
	old    [][]byte                 // requests, to whom they were
	oldTo  []string
}

// fault is what happens to a request.
type fault string

const (
	delivered     fault = ""
	lost          fault = "lost"           // it does not arrive
	answerLost    fault = "answer lost"    // it arrives, and the answer does not come back
	twice         fault = "twice"          // it arrives a second time, as it was
	crashedBefore fault = "crashed before" // its sender ends before it sends
	crashedAfter  fault = "crashed after"  // its sender ends when the answer comes
	stale         fault = "stale"          // all earlier requests arrive once more, before it
)

var errLost = errors.New("the message is lost")

// crash is what a panic of a sender that ends says.
type crash struct{}

var worlds int

// newWorld makes Regions, the n-th of which has the n-th HSM and store.
func newWorld(t testing.TB, stores []*store.Store, hsms []*softHSM) *world {
	t.Helper()
	return newWorldBy(t, newClock(), stores, hsms)
}

func newWorldBy(t testing.TB, clock *clock, stores []*store.Store, hsms []*softHSM) *world {
	t.Helper()
	envMu.Lock()
	envs++
	worlds++
	account, number := keyid.Account(500_000_000_000+envs), worlds
	envMu.Unlock()
	w := &world{TB: t, signers: map[string]*ecdsa.PrivateKey{}, sealers: map[string]store.Sealer{}, away: map[string]bool{}, hangs: map[string]chan struct{}{}, hung: map[string]int{}}
	for i, h := range hsms {
		e := newEnvOf(t, stores[i], fmt.Sprintf("mr-%c-%d", 'a'+i, number), account, clock)
		key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.signers[e.region], w.sealers[e.region] = key, storetest.NewSealer()
		if j := slices.Index(hsms, h); h != nil && j < i {
			w.sealers[e.region] = w.sealers[w.regions[j].region] // it is the root's
		}
		if h != nil {
			e.use(h)
			e.Server.sealer = w.sealers[e.region]
		}
		w.regions = append(w.regions, e)
	}
	for _, e := range w.regions {
		w.connect(e)
	}
	return w
}

// connect gives a Region a new end, as a start does.
func (w *world) connect(e *env) {
	w.Helper()
	e.clock.add(time.Millisecond) // what was sent before is older than the end
	var peers []replication.Peer
	for _, p := range w.regions {
		if p != e {
			peers = append(peers, replication.Peer{Region: p.region, Public: &w.signers[p.region].PublicKey, Send: w.send(e, p)})
		}
	}
	var err error
	e.Server.endpoint, err = replication.New(replication.Config{
		Region: e.region, Public: &w.signers[e.region].PublicKey, Peers: peers, Now: e.clock.now, Since: e.Server.running,
		Sign: func(digest []byte) ([]byte, error) { return ecdsa.SignASN1(rand.Reader, w.signers[e.region], digest) },
	})
	if err != nil {
		w.Fatal(err)
	}
	e.Server.away.mu.Lock()
	e.Server.away.peers = nil
	e.Server.away.mu.Unlock()
}

func (w *world) send(from, to *env) func(context.Context, []byte) ([]byte, error) {
	return func(ctx context.Context, envelope []byte) ([]byte, error) {
		w.mu.Lock()
		f := delivered
		if w.fault != nil {
			f = w.fault(w.sent)
		}
		w.sent++
		old, oldTo := slices.Clone(w.old), slices.Clone(w.oldTo)
		w.old, w.oldTo = append(w.old, bytes.Clone(envelope)), append(w.oldTo, to.region)
		w.bodies = append(w.bodies, bytes.Clone(envelope))
		away, hang := w.away[to.region] || w.away[from.region], w.hangs[to.region]
		if hang != nil {
			w.hung[to.region]++
		}
		w.mu.Unlock()
		if hang != nil {
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.hung[to.region]--
			}()
			select {
			case <-hang:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		switch {
		case away || f == lost:
			return nil, errLost
		case f == crashedBefore:
			panic(crash{})
		case f == stale:
			for i, b := range old {
				if a, err := w.in(oldTo[i]).Replicate(ctx, b); err == nil {
					w.Errorf("a message that was received before was answered with %q", a)
				}
			}
		}
		answer, err := to.Replicate(ctx, envelope)
		if f == twice {
			if a, err := to.Replicate(ctx, envelope); err == nil {
				w.Errorf("a message that was received before was answered with %q", a)
			}
		}
		w.mu.Lock()
		w.bodies = append(w.bodies, bytes.Clone(answer))
		w.mu.Unlock()
		switch f {
		case answerLost:
			return nil, errLost
		case crashedAfter:
			panic(crash{})
		}
		return answer, err
	}
}

func (w *world) in(region string) *env {
	for _, e := range w.regions {
		if e.region == region {
			return e
		}
	}
	w.Fatalf("no Region %s", region)
	return nil
}

// turn has a Region do what is due, and start again if it ended meanwhile.
func (w *world) turn(e *env) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			w.connect(e)
		}
	}()
	return e.Server.replicate(w.Context())
}

// settle has all Regions work, without faults, until there is nothing to tell any more.
func (w *world) settle() {
	w.Helper()
	w.mu.Lock()
	w.fault = nil
	w.mu.Unlock()
	for range 20 {
		for _, e := range w.regions {
			w.connect(e) // forgets who was away
			if err := e.Server.replicate(w.Context()); err != nil {
				w.Logf("%s: %v", e.region, err)
			}
		}
		if w.quiet() {
			return
		}
	}
	w.Fatal("the Regions do not come to an end")
}

// quiet says that no Region has anything to tell.
func (w *world) quiet() bool {
	for _, e := range w.regions {
		due, err := e.store.Due(w.Context(), store.Replicating, e.region, store.AtOnce, nil, 10)
		farewells, err2 := e.store.Farewells(w.Context(), e.region, nil, 10)
		if err != nil || err2 != nil {
			w.Fatal(err, err2)
		}
		if len(due)+len(farewells) > 0 {
			return false
		}
	}
	return true
}

func (w *world) key(e *env, id string) *store.Key {
	w.Helper()
	k, err := e.store.Key(w.Context(), e.name(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		w.Fatal(err)
	}
	return k
}

// agree checks that the key's records of all Regions are related: one primary that names exactly those who have it, and equal shared properties and
// material, and returns the primary.
func (w *world) agree(id string) *env {
	w.Helper()
	var primary *env
	var first *store.Key
	var have []string
	for _, e := range w.regions {
		k := w.key(e, id)
		if k == nil {
			continue
		}
		have = append(have, e.region)
		if k.IsPrimary() {
			if primary != nil {
				w.Fatalf("two primaries, %s and %s", primary.region, e.region)
			}
			primary = e
		}
		if k.State == kmsapi.StateCreating || k.State == kmsapi.StateUpdating {
			w.Errorf("%s: the key is %s", e.region, k.State)
		}
		for i := range k.Versions {
			v := &k.Versions[i]
			images, err := e.keys.Images(specOf(k), v.Resident)
			if err != nil {
				w.Fatal(err)
			}
			if got := snapshot.ResidentMaterialID(k.Account, k.ID, images); got != v.MaterialID {
				w.Errorf("%s: version %d has other material than its ID says", e.region, v.Number)
			}
		}
		if first == nil {
			first = k
			continue
		}
		a, b := summary(first), summary(k)
		if a != b {
			w.Errorf("%s and %s differ:\n%s\n%s", first.Region, k.Region, a, b)
		}
	}
	if primary == nil {
		w.Fatalf("no primary in %v", have)
	}
	m := w.key(primary, id).MultiRegion
	slices.Sort(have)
	if got := withRegion(m.Replicas, m.Primary); !slices.Equal(got, have) {
		w.Errorf("the primary knows of %v, and the key is in %v", got, have)
	}
	return primary
}

func summary(k *store.Key) string {
	s := fmt.Sprint(k.Spec, k.Usage, k.Origin, k.Current, k.Rotation, k.MultiRegion.Primary, k.MultiRegion.Replicas, k.MultiRegion.At())
	for _, v := range k.Versions {
		s += fmt.Sprint(" ", v.Number, string(v.MaterialID[:8]), v.Rotated, v.OnDemand, v.Missing)
	}
	if k.Private != nil {
		s += fmt.Sprintf(" %x", k.Private.Public)
	}
	return s
}
