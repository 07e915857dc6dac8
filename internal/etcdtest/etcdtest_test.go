package etcdtest

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A cluster serves through the loss of any one member, and not of two; members come back with what they knew.
func TestCluster(t *testing.T) {
	ctx := t.Context()
	c, err := Start(ctx, Config{Members: 3, Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	client, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	put := func(value string) error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err := client.Put(ctx, "k", value)
		return err
	}
	eventually := func(what string, f func() error) {
		t.Helper()
		var err error
		for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if err = f(); err == nil {
				return
			}
		}
		t.Fatalf("%s: %v", what, err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	leader, err := c.Leader(ctx)
	must(err)
	must(c.Kill(leader))
	eventually("without its leader", func() error { return put("2") })
	next, err := c.Leader(ctx)
	must(err)
	if next == leader {
		t.Error("the dead leader leads")
	}
	must(c.Stop(next))
	if put("3") == nil {
		t.Error("one member of three serves")
	}
	must(c.Cont(next))
	must(c.Restart(leader))
	must(c.Ready(ctx, leader))
	must(c.Stop(next))
	eventually("with the one that was dead", func() error { return put("4") })
	must(c.Close())
	for i := range c.members {
		must(c.Restart(i))
	}
	eventually("after all were killed", func() error {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		resp, err := client.Get(ctx, "k")
		if err == nil && (len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "4") {
			t.Fatalf("got %v", resp.Kvs)
		}
		return err
	})
}

// A proxy passes, cuts, holds up and heals.
func TestProxy(t *testing.T) {
	ctx := t.Context()
	c, err := Start(ctx, Config{Dir: t.TempDir(), NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	p, err := NewProxy(c.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.URL}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	get := func(timeout time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		_, err := client.Get(ctx, "k")
		return err
	}
	for _, step := range []struct {
		name string
		do   func()
		ok   bool
	}{{"new", func() {}, true}, {"held up", p.Hold, false}, {"healed", p.Heal, true}, {"cut", p.Cut, false}, {"healed again", p.Heal, true}} {
		step.do()
		timeout := startTimeout
		if !step.ok {
			timeout = 300 * time.Millisecond
		}
		if err := get(timeout); (err == nil) != step.ok {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}
