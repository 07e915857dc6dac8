package cluster

import (
	"testing"
	"time"
)

// TestEtcd: three members find a leader through the proxies between them, another one when that is cut off from the others, and it is one of them again afterwards.
func TestEtcd(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the etcd server")
	}
	etcd, err := BuildEtcd(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{cfg: Config{Dir: t.TempDir(), Etcd: etcd, Etcds: 3, Proxied: true}, ports: map[int]bool{}}
	c.Net = newNetwork(c.pids)
	t.Cleanup(c.Close)
	for _, name := range []string{"etcd1", "etcd2", "etcd3"} {
		n, err := c.node(name, "etcd")
		if err != nil {
			t.Fatal(err)
		}
		c.Etcds = append(c.Etcds, n)
	}
	if err := c.etcd(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Etcds {
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
	}
	var first *Node
	leads := func(not *Node, of int) func() bool {
		return func() bool {
			leader, followers, err := c.Leader(t.Context())
			if err != nil || leader == not || len(followers) < of {
				return false
			}
			first = leader
			return true
		}
	}
	eventually(t, "a leader", leads(nil, 2))
	was := first
	for _, n := range c.Etcds {
		if n != was {
			c.Net.Cut(was.Name, n.Name)
		}
	}
	began := time.Now()
	eventually(t, "another leader", func() bool {
		for _, n := range c.Etcds {
			if n == was {
				continue
			}
			s, err := c.etcdStatus(t.Context(), n)
			if err != nil || s.Leader == "0" {
				return false
			}
			if s.Leader == s.Header.MemberID {
				return true
			}
		}
		return false
	})
	t.Logf("another leader %v after the cut", time.Since(began))
	c.Net.Heal()
	eventually(t, "one leader of three", func() bool {
		count := map[string]int{}
		for _, n := range c.Etcds {
			if s, err := c.etcdStatus(t.Context(), n); err == nil {
				count[s.Leader]++
			}
		}
		return len(count) == 1 && count["0"] == 0
	})
}
