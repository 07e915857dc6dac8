package planes

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/lastuse"
	"github.com/keyplane/keyplane/internal/planetls"
)

// Control planes know the last use of a key at all nodes, within moments; after a restart of either side too.
func TestUses(t *testing.T) {
	w := newWorld(t)
	c1, c2 := w.control("c1", ""), w.control("c2", "")
	start := time.Unix(1_700_000_000, 0).UTC()
	type node struct {
		x    *lastuse.Index
		path string
	}
	tell := func(id, path string) *node {
		x, err := lastuse.Open(path, start)
		if err != nil {
			t.Fatal(err)
		}
		c := w.client(planetls.RoleData, id, c1.addr, c2.addr)
		w.run(func(ctx context.Context) error { return c.TellUses(ctx, x) })
		return &node{x, path}
	}
	entry := func(key byte, seconds int64) lastuse.Entry {
		return lastuse.Entry{Region: "eu-central-1", Account: 1, ID: keyid.ID{UUID: [16]byte{key}}, Use: lastuse.Use{Seconds: seconds, Operation: 1, EventID: [16]byte{key}}}
	}
	last := func(l *LastUses, key byte) int64 {
		u, _ := l.Last("eu-central-1", 1, keyid.ID{UUID: [16]byte{key}})
		return u.Seconds
	}
	if c1.uses.Start().Before(start.Add(time.Hour)) {
		t.Error("it claims to know what nobody has told it")
	}
	a, b := tell("a", filepath.Join(t.TempDir(), "x")), tell("b", filepath.Join(t.TempDir(), "x"))
	a.x.Merge([]lastuse.Entry{entry(1, 10), entry(2, 20)})
	b.x.Merge([]lastuse.Entry{entry(1, 30), entry(2, 5)})
	both := func(key byte, seconds int64) func() bool {
		return func() bool { return last(c1.uses, key) == seconds && last(c2.uses, key) == seconds }
	}
	eventually(t, "key 1 was used last at b", both(1, 30))
	eventually(t, "key 2 was used last at a", both(2, 20))
	a.x.Merge([]lastuse.Entry{entry(1, 40)})
	eventually(t, "key 1 was used last at a", both(1, 40))
	eventually(t, "both nodes have told since when they know", func() bool { return c1.uses.Start().Equal(start) && c2.uses.Start().Equal(start) })

	c1.stop()
	c1 = w.control("c1", c1.addr)
	eventually(t, "a control plane that was restarted knows all", func() bool { return last(c1.uses, 1) == 40 && last(c1.uses, 2) == 20 })
	if err := a.x.Save(); err != nil {
		t.Fatal(err)
	}
	again := tell("a", a.path)
	if u, ok := again.x.Last("eu-central-1", 1, keyid.ID{UUID: [16]byte{1}}); !ok || u.Seconds != 40 {
		t.Errorf("the node's index has %+v", u)
	}
	again.x.Merge([]lastuse.Entry{entry(3, 50)})
	eventually(t, "a node that was restarted tells", both(3, 50))
}
