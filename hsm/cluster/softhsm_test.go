package cluster

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/hsmtest"
	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
	"github.com/keyplane/keyplane/hsm/p11"
	"github.com/keyplane/keyplane/internal/pkcs11uri"
)

// ownModule is the URI of a SoftHSM token with a copy of the module that no other token of the process has, as HSMs of a cluster do not share what they keep
// in memory: a module is initialised once.
func ownModule(t testing.TB, uri string) string {
	t.Helper()
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	for i := range u.Query {
		if u.Query[i].Name != "module-path" {
			continue
		}
		module, err := os.ReadFile(u.Query[i].Value)
		if err != nil {
			t.Fatal(err)
		}
		u.Query[i].Value = filepath.Join(t.TempDir(), "libsofthsm2.so")
		if err := os.WriteFile(u.Query[i].Value, module, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return u.String()
}

// withoutPIN is the URI for OpenPIN.
func withoutPIN(t testing.TB, uri string) string {
	t.Helper()
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	u.Query = slices.DeleteFunc(u.Query, func(a pkcs11uri.Attr) bool { return a.Name == "pin-source" })
	return u.String()
}

// softHSMs is a cluster of SoftHSM tokens behind slow modules, each of which can be taken away.
func softHSMs(t testing.TB, n int) (*Cluster, []*slowhsm.HSM) {
	t.Helper()
	cfg := Config{ID: "cluster-softhsm", Ring: testRing, Blocks: testBlocks, RetryMin: 50 * time.Millisecond, RetryMax: 500 * time.Millisecond, CallTimeout: 20 * time.Second,
		MakeTimeout: 5 * time.Minute, CloseTimeout: time.Minute}
	var slow []*slowhsm.HSM
	// The copies of the module share the tokens' directory, and do not see each other's locks: one that begins while another one notes a wrong PIN reads half a file, and aborts.
	var opening sync.Mutex
	for i := range n {
		h := slowhsm.Over(t, ownModule(t, hsmtest.SoftHSM(t)), slowhsm.Settings{})
		if _, err := p11.InitRoots(h.URI()); err != nil {
			t.Fatal(err)
		}
		uri := withoutPIN(t, h.URI())
		slow = append(slow, h)
		cfg.Members = append(cfg.Members, Member{Name: string(rune('a' + i)), Open: func(pin []byte) (hsm.Token, error) {
			opening.Lock()
			defer opening.Unlock()
			return p11.OpenPIN(uri, pin)
		}, Ask: func() (hsm.TokenInfo, error) { return p11.Ask(uri) }})
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Disconnect)
	return c, slow
}

// TestSoftHSMCluster: two SoftHSM tokens are one key store. A member is taken away under load and comes back, no call fails, and it serves again. A third one
// comes later, has the key brought to it, and then serves it alone.
func TestSoftHSMCluster(t *testing.T) {
	c, slow := softHSMs(t, 3)
	if err := c.Connect(context.Background(), []byte("wrong")); !errors.Is(err, ErrPIN) {
		t.Fatalf("a wrong PIN: %v", err)
	}
	for i, h := range slow {
		// InitRoots has logged in before.
		if r, err := h.Report(); err != nil || r.Calls["C_Login"] != 2 {
			t.Errorf("%d: the wrong PIN was tried %d times, %v", i, r.Calls["C_Login"]-1, err)
		}
	}
	down(t, slow[2], true)
	if err := c.Connect(context.Background(), []byte(hsmtest.PIN)); err != nil {
		t.Fatal(err)
	}
	copies := newKey(t, c)
	if len(copies) != 2 || c.Active() != 2 {
		t.Fatalf("%d copies, %d active", len(copies), c.Active())
	}
	want := images(t, c, copies)
	everyMember(t, c, copies, want)

	load := under(t, c, copies, want)
	for round := range 4 {
		i, h := round%2, slow[round%2]
		down(t, h, true)
		eventually(t, "its loss is noticed", func() bool { return c.Active() == 1 })
		load.goesOn(t)
		if _, _, err := c.NewKey(context.Background()); !errors.Is(err, ErrTooFew) {
			t.Errorf("a key on one member: %v", err)
		}
		var b [32]byte
		if err := c.Random(b[:]); err != nil || b == [32]byte{} {
			t.Errorf("random: %v", err)
		}
		down(t, h, false)
		before := c.Stats()[i].Jobs
		eventually(t, "the member serves again", func() bool { return c.Stats()[i].Jobs > before+10 && c.Active() == 2 })
	}
	if n := load.end(); n != 0 {
		t.Errorf("%d of %d calls failed", n, load.done.Load())
	}
	t.Logf("%d calls, none failed", load.done.Load())
	everyMember(t, c, copies, want)

	down(t, slow[2], false)
	eventually(t, "the third comes", func() bool { return c.Active() == 3 })
	all, added, err := c.Repair(context.Background(), copies)
	if err != nil || !added || len(all) != 3 {
		t.Fatalf("%d copies, %v, %v", len(all), added, err)
	}
	named(all)
	everyMember(t, c, all, want)
	other := newKey(t, c)
	if everyMember(t, c, other, images(t, c, other)); len(other) != 3 {
		t.Errorf("%d copies", len(other))
	}
	down(t, slow[0], true)
	down(t, slow[1], true)
	if got := images(t, c, all); !bytes.Equal(got, want) {
		t.Error("another key")
	}
}

func down(t testing.TB, h *slowhsm.HSM, is bool) {
	t.Helper()
	if err := h.Set(slowhsm.Settings{Down: is}); err != nil {
		t.Fatal(err)
	}
}
