package controlplane

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/controlplane/store/storetest"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// bubble runs a test in a testing/synctest bubble with a store of its own, etcd and all: Run waits by the bubble's time, which passes when nothing is left to do, and
// the clock is that too. A minute costs etcd's 600 ticks, some milliseconds; the tests of days and years set a clock instead.
func bubble(t *testing.T, test func(t *testing.T, st *store.Store, c *clock)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		st, err := store.OpenEmbedded(context.Background(), store.EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: storetest.NewSealer()})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(t, st, &clock{live: time.Now()})
	})
}

// run has Run work until the function that it returns is called.
func run(s *Server) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx)
	}()
	return func() { cancel(); <-ended }
}

// The worker looks for what is due every minute, at once when it begins, and at once where somebody hurries it; each to the moment.
func TestWorkerInABubble(t *testing.T) {
	bubble(t, func(t *testing.T, st *store.Store, c *clock) {
		e := newEnvOf(t, st, "eu-bubble-1", 500_000_000_001, c)
		key, imported := e.create("{}"), e.external("{}")
		e.put(imported.KeyId, "one", e.in(90)...)
		began := c.now()
		defer run(e.Server)()
		synctest.Wait()
		state := func() string { return e.keyRecord(imported).State.String() }
		at := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(time.Until(began.Add(d)))
			synctest.Wait()
			if got := state(); got != want {
				t.Errorf("after %s the key is %s, want %s", time.Since(began), got, want)
			}
		}
		at(2*time.Minute-time.Second, "Enabled") // it has expired, and the worker comes at the full minute
		at(2*time.Minute+time.Second, "PendingImport")

		// On demand it is now, between two minutes.
		before := c.now()
		e.ok("RotateKeyOnDemand", obj("KeyId", key.KeyId), &map[string]any{})
		synctest.Wait()
		if n := len(e.keyRecord(key).Versions); n != 2 || time.Since(before) >= time.Second {
			t.Errorf("%d versions %s after the request", n, time.Since(before))
		}

		// What fails is tried again a minute later.
		e.put(imported.KeyId, "one", e.in(30)...)
		e.trail.refuse(errSink)
		at(3*time.Minute+time.Second, "Enabled")
		e.trail.refuse(nil)
		at(4*time.Minute-time.Second, "Enabled")
		at(4*time.Minute+time.Second, "PendingImport")
	})
}

// A Region that does not answer is asked after 1, 2, 4 seconds and so on, up to a minute, and at once when it has begun to answer and its time has come.
func TestLanesInABubble(t *testing.T) {
	bubble(t, func(t *testing.T, st *store.Store, c *clock) {
		w := newWorldBy(t, c, []*store.Store{st, st}, []*softHSM{nil, nil})
		a, b := w.regions[0], w.regions[1]
		id := a.create(obj("MultiRegion", true)).KeyId
		a.replicateTo(id, b.region)
		began := c.now()
		var asked []string
		w.mu.Lock()
		w.fault = func(int) fault {
			asked = append(asked, time.Since(began).Round(time.Second).String())
			return lost
		}
		w.mu.Unlock()
		stop := run(a.Server)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		stop()
		want := []string{"0s", "1s", "3s", "7s", "15s", "31s", "1m3s", "2m3s", "3m3s", "4m3s"}
		if !slices.Equal(asked, want) {
			t.Errorf("asked after %v, want %v", asked, want)
		}
		if k := w.key(b, id); k.State != kmsapi.StateCreating {
			t.Errorf("the replica is %s", k.State)
		}
	})
}
