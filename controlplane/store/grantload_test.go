package store

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
)

// BenchmarkGrants reads the grants of a key to one grantee, and makes the set of them.
func BenchmarkGrants(b *testing.B) {
	for _, n := range []int{1000, manyGrants} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := mustCreate(b, shared, fmt.Sprintf("load-%d", n))
			putGrants(b, k, n)
			b.Run("read", func(b *testing.B) {
				for b.Loop() {
					list, err := shared.Grants(b.Context(), k.Region, k.Account, k.KeyName.ID, "AIDAGRANTEE")
					if err != nil || len(list) != n {
						b.Fatalf("%d grants, %v", len(list), err)
					}
				}
			})
			b.Run("read and index", func(b *testing.B) {
				for b.Loop() {
					list, err := shared.Grants(b.Context(), k.Region, k.Account, k.KeyName.ID, "AIDAGRANTEE")
					if err != nil || authz.NewGrantSet(list).Len() != n {
						b.Fatalf("%d grants, %v", len(list), err)
					}
				}
			})
		})
	}
}

// putGrants writes n grants' entries by grantee, without their records, a hundred in a transaction.
func putGrants(t testing.TB, k *Key, n int) {
	t.Helper()
	var ops []clientv3.Op
	for i := range n {
		g := newGrant(k)
		g.HasEquals, g.Equals = true, []authz.Pair{{Key: []byte("purpose"), Value: []byte("bench")}, {Key: []byte("tenant"), Value: fmt.Appendf(nil, "t-%06d", i)}}
		entry, err := encode(g.granteeEntry())
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops, clientv3.OpPut(g.granteeKey(), string(entry)))
		if len(ops) == 100 || i == n-1 {
			if _, _, err := shared.commit(t.Context(), nil, ops); err != nil {
				t.Fatal(err)
			}
			ops = nil
		}
	}
}
