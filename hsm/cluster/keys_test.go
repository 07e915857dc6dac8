package cluster

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
)

// TestNewKeyWithMemberAway: two that answer are enough, and the third has its copy when it is back.
func TestNewKeyWithMemberAway(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.connect(t)
	r.members[2].down()
	copies := newKey(t, r.Cluster)
	if len(copies) != 2 {
		t.Fatalf("%d copies", len(copies))
	}
	if all, added, err := r.Repair(context.Background(), copies); added || err != nil && !errors.Is(err, hsm.ErrUnavailable) {
		t.Errorf("repaired a member that is away: %d copies, %v", len(all), err)
	}
	r.members[1].down()
	if _, _, err := r.NewKey(context.Background()); !errors.Is(err, ErrTooFew) {
		t.Errorf("a key on one member: %v", err)
	}
	if n := r.Active(); n != 1 {
		t.Errorf("%d active", n)
	}
	r.members[1].up()
	r.members[2].up()
	eventually(t, "all are back", func() bool { return r.Active() == 3 })
	want := images(t, r.Cluster, copies)
	all, added, err := r.Repair(context.Background(), copies)
	if err != nil || !added || len(all) != 3 {
		t.Fatalf("%d copies, %v, %v", len(all), added, err)
	}
	named(all)
	everyMember(t, r.Cluster, all, want)
	for i, k := range copies {
		if !bytes.Equal(k.Wrapped, all[i].Wrapped) {
			t.Error("a copy changed its place")
		}
	}
	// The member serves it now.
	r.members[0].down()
	r.members[1].down()
	if got := images(t, r.Cluster, all); !bytes.Equal(got, want) {
		t.Error("another key")
	}
}

// TestNewKeyFaults: whatever happens meanwhile, a key is on all members that answer, and on two at least, or there is none.
func TestNewKeyFaults(t *testing.T) {
	forever := func(op hsmtest.Op, code hsm.CKR) hsmtest.Fault {
		return hsmtest.Fault{Op: op, Times: hsmtest.Forever, CKR: code}
	}
	for name, c := range map[string]struct {
		spoil func(r *rig)
		want  error
		only  []int // members that answer then; nil: all
	}{
		"one import fails once": {func(r *rig) { r.members[1].token().Add(hsmtest.Fault{Op: hsmtest.Import, CKR: hsm.CKR_ARGUMENTS_BAD}) }, nil, nil},
		"imports fail":          {func(r *rig) { r.members[1].token().Add(forever(hsmtest.Import, hsm.CKR_ARGUMENTS_BAD)) }, &hsm.Error{}, nil},
		"exports fail":          {func(r *rig) { r.members[0].token().Add(forever(hsmtest.Export, hsm.CKR_KEY_UNEXTRACTABLE)) }, &hsm.Error{}, nil},
		"the first makes none":  {func(r *rig) { r.members[0].token().Add(forever(hsmtest.Generate, hsm.CKR_ARGUMENTS_BAD)) }, nil, nil}, // it takes another's
		"the first goes away as it makes the key": {func(r *rig) {
			r.members[0].token().Add(hsmtest.Fault{Op: hsmtest.Generate, CKR: hsm.CKR_DEVICE_REMOVED})
			r.members[0].vanish()
		}, nil, []int{1, 2}},
		"the first goes away when it has made the key": {func(r *rig) {
			r.members[0].token().Add(hsmtest.Fault{Op: hsmtest.Export, CKR: hsm.CKR_DEVICE_REMOVED})
			r.members[0].vanish()
		}, nil, []int{1, 2}},
		"the second goes away as it takes it": {func(r *rig) {
			r.members[1].token().Add(hsmtest.Fault{Op: hsmtest.Import, CKR: hsm.CKR_DEVICE_REMOVED})
			r.members[1].vanish()
		}, nil, []int{0, 2}},
		"two go away": {func(r *rig) {
			for _, m := range r.members[1:] {
				m.token().Add(hsmtest.Fault{Op: hsmtest.Import, CKR: hsm.CKR_DEVICE_REMOVED})
				m.vanish()
			}
		}, ErrTooFew, nil},
		"the second has another key": {func(r *rig) { r.members[1].token().Add(hsmtest.Fault{Op: hsmtest.Use, Wrong: true}) }, ErrDiffers, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 0, 1, 2)
			r.connect(t)
			c.spoil(r)
			copies, _, err := r.NewKey(context.Background())
			if _, ok := c.want.(*hsm.Error); ok {
				if _, ok := errors.AsType[*hsm.Error](err); !ok || copies != nil {
					t.Fatalf("%v", err)
				}
				if m, ok := errors.AsType[*MemberError](err); !ok || m.Member == "" {
					t.Errorf("whose fault it is, is not said: %v", err)
				}
				return
			}
			if !errors.Is(err, c.want) || (err == nil) != (copies != nil) {
				t.Fatalf("%v, %d copies", err, len(copies))
			}
			if err != nil {
				return
			}
			named(copies)
			want := images(t, r.Cluster, copies)
			have := 0
			for _, s := range r.conn.Load().seats {
				l := s.link.Load()
				if l == nil || l.is("quarantined") {
					continue
				}
				k := copyOf(copies, l.root)
				if k == nil {
					t.Errorf("%s has no copy", s.Name)
					continue
				}
				j := blocks()
				j.Key = k
				if err := l.ring.Run(j, time.Now()); err == nil {
					have++
					if !bytes.Equal(j.Out[:j.N], want) {
						t.Errorf("%s has another key", s.Name)
					}
				}
			}
			if c.only != nil && have != len(c.only) || c.only == nil && have != 3 {
				t.Errorf("%d have it", have)
			}
		})
	}
}

// TestRepairRefusesOther: copies that are not the same key are not brought to anybody.
func TestRepairRefusesOther(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.connect(t)
	one, other := newKey(t, r.Cluster), newKey(t, r.Cluster)
	mixed := []hsm.Key{one[0], other[1]}
	if mixed[0].Root == mixed[1].Root {
		t.Fatal("copies in another order")
	}
	all, added, err := r.Repair(context.Background(), mixed)
	if !errors.Is(err, ErrDiffers) || added || len(all) != 2 {
		t.Errorf("%d copies, %v, %v", len(all), added, err)
	}
	foreign := []hsm.Key{one[0]}
	foreign[0].Root[0] ^= 1
	if all, added, err := r.Repair(context.Background(), foreign); !errors.Is(err, hsm.ErrUnavailable) || added || len(all) != 1 {
		t.Errorf("a key that nobody has: %d copies, %v, %v", len(all), added, err)
	}
}

// TestRepairSameRoots: one copy is made for the members of one root, and each of them proves it.
func TestRepairSameRoots(t *testing.T) {
	r := newRig(t, 0, 0, 1, 1)
	r.connect(t)
	r.members[2].down()
	r.members[3].down()
	copies := newKey(t, r.Cluster)
	r.members[2].up()
	r.members[3].up()
	eventually(t, "all are back", func() bool { return r.Active() == 4 })
	before := r.members[2].token().Calls(hsmtest.Use)
	last := r.members[3].token().Calls(hsmtest.Use)
	all, added, err := r.Repair(context.Background(), copies)
	if err != nil || !added || len(copies) != 1 || len(all) != 2 {
		t.Fatalf("%d copies, then %d, %v, %v", len(copies), len(all), added, err)
	}
	if r.members[2].token().Calls(hsmtest.Use) == before || r.members[3].token().Calls(hsmtest.Use) == last {
		t.Error("a member was not asked for images")
	}
	if n := r.members[2].token().Calls(hsmtest.Import) + r.members[3].token().Calls(hsmtest.Import); n != 1 {
		t.Errorf("%d imports", n)
	}
}

// TestNewKeyWhileMembersComeAndGo: whoever can be reached from before a key is asked for until it is there has it, however briefly it was away before.
func TestNewKeyWhileMembersComeAndGo(t *testing.T) {
	r := newRig(t, 0, 1, 2, 0, 1)
	r.cfg.RetryMin, r.cfg.RetryMax = time.Hour, time.Hour // whoever looks after members is of no help here
	r.connect(t)
	// since counts how often a member has come or gone; it is even while it is there.
	var since [5]atomic.Int64
	stop := make(chan struct{})
	var going, making sync.WaitGroup
	defer going.Wait()
	defer close(stop)
	for i, m := range r.members {
		if i == 0 { // with another one there are two at any time
			continue
		}
		going.Go(func() {
			for {
				for _, change := range []struct {
					is   func()
					most time.Duration
				}{{m.down, 200 * time.Millisecond}, {m.up, time.Second}} {
					if away := since[i].Load()%2 != 0; !away {
						since[i].Add(1)
						change.is()
					} else {
						change.is()
						since[i].Add(1)
					}
					select {
					case <-stop:
						return
					case <-time.After(rand.N(change.most)):
					}
				}
			}
		})
	}
	// A ring of each root tells what its members have, whether or not they are there.
	rings := map[hsm.RootID]*hsm.KeyRing{}
	var roots []hsm.RootID
	for _, m := range r.members {
		root, err := m.soft.Roots()
		if err != nil {
			t.Fatal(err)
		}
		if roots = append(roots, root.ID); rings[root.ID] == nil {
			ring, done, err := testRing(m.soft)
			if err != nil {
				t.Fatal(err)
			}
			defer done()
			rings[root.ID] = ring
		}
	}
	var made, refused, asked atomic.Int64
	deadline := time.Now().Add(2 * time.Second)
	for range 3 {
		making.Go(func() {
			for made.Load() < 10 || time.Now().Before(deadline) {
				var before [5]int64
				for i := range before {
					before[i] = since[i].Load()
				}
				copies, _, err := r.NewKey(t.Context())
				if err != nil {
					refused.Add(1)
					continue
				}
				made.Add(1)
				named(copies)
				var want []byte
				for i := range before {
					if now := since[i].Load(); now != before[i] || now%2 != 0 {
						continue
					}
					asked.Add(1)
					k := copyOf(copies, roots[i])
					if k == nil {
						t.Errorf("hsm-%d was there all the time and has no copy", i)
						continue
					}
					j := blocks()
					j.Key = k
					if err := rings[roots[i]].Run(j, time.Now()); err != nil || want != nil && !bytes.Equal(want, j.Out[:j.N]) {
						t.Errorf("hsm-%d has another key: %v", i, err)
					}
					want = bytes.Clone(j.Out[:j.N])
				}
			}
		})
	}
	making.Wait()
	t.Logf("%d keys, %d times refused, %d members asked", made.Load(), refused.Load(), asked.Load())
}

// TestComesBackMeanwhile: a member that comes back while a key is made has it too.
func TestComesBackMeanwhile(t *testing.T) {
	r := newRig(t, 0, 1, 2)
	r.cfg.RetryMin, r.cfg.RetryMax = time.Hour, time.Hour
	r.connect(t)
	r.members[2].down()
	if n := r.Active(); n != 2 {
		t.Fatalf("%d active", n)
	}
	hang := make(chan struct{})
	m := r.members[0].token()
	before := m.Calls(hsmtest.Generate)
	m.Add(hsmtest.Fault{Op: hsmtest.Generate, Times: 1, Hang: hang})
	go func() {
		defer close(hang)
		eventually(t, "the key is made", func() bool { return m.Calls(hsmtest.Generate) > before })
		r.members[2].up()
		time.Sleep(awayPause) // it counts as away for as long
	}()
	if copies := newKey(t, r.Cluster); len(copies) != 3 {
		t.Errorf("%d copies", len(copies))
	}
}
