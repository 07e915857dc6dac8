package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// ErrFrozen says that a property that related keys share cannot change now, because another Region may have become the primary.
var ErrFrozen = errors.New("store: the primary Region of the key is changing")

// shared is the part of a key that its related keys have too, but for the moment and the material itself: equal for equal shared properties.
func (k *Key) shared() []byte {
	st := storedKey{
		Spec: k.Spec, Usage: k.Usage, Origin: k.Origin, Current: k.Current, MultiRegion: &storedRegions{Primary: k.MultiRegion.Primary, Replicas: k.MultiRegion.Replicas},
		Import: sharedImport(k.Import),
	}
	if r := k.Rotation; r != (Rotation{}) {
		st.Rotation = &storedRotation{Enabled: r.Enabled, Period: r.Period, Next: milli(r.Next), OnDemand: milli(r.OnDemand)}
	}
	for i := range k.Versions {
		v := &k.Versions[i]
		st.Versions = append(st.Versions, storedVersion{
			Number: v.Number, MaterialID: string(v.MaterialID[:]), Created: milli(v.Created), Rotated: milli(v.Rotated), OnDemand: v.OnDemand, Import: sharedImport(v.Import),
		})
	}
	b, err := encode(&st)
	if err != nil {
		panic(err) // texts and numbers
	}
	return b
}

func sharedImport(m *Import) *storedImport {
	if m == nil {
		return nil
	}
	return encodeImport(&Import{Description: m.Description, Fingerprint: m.Fingerprint})
}

// countShared gives a primary whose shared properties are not old's the next revision, so that no change of them can be forgotten on the way to the
// replicas. A change that sets the moment itself, or makes another Region the primary, is left as it is. Of one that is frozen they change only with what
// ends that.
func (k *Key) countShared(old *Key) error {
	if !k.IsPrimary() || !old.IsPrimary() || bytes.Equal(k.shared(), old.shared()) {
		return nil
	}
	if old.MultiRegion.Frozen && k.MultiRegion.Frozen {
		return ErrFrozen
	}
	if k.MultiRegion.At() != old.MultiRegion.At() {
		return nil
	}
	m := *k.MultiRegion
	m.Revision++
	k.MultiRegion = &m
	return nil
}

// Farewell is what is left of a replica that was deleted until its primary knows of it.
type Farewell struct {
	KeyName
	Primary string // Region, when the replica was deleted

	revision int64
}

func farewellPrefix(region string) string { return root + "farewell/" + region + "/" }

func (n KeyName) farewellKey() string { return root + "farewell/" + n.path() }

// farewell is the part of the transaction that deletes a key that leaves one; nothing of others.
func (k *Key) farewell() ([]clientv3.Op, error) {
	if !k.IsReplica() {
		return nil, nil
	}
	value, err := encode(&storedFarewell{k.MultiRegion.Primary})
	if err != nil {
		return nil, err
	}
	return []clientv3.Op{clientv3.OpPut(k.farewellKey(), string(value))}, nil
}

type storedFarewell struct {
	Primary string `json:"primary"`
}

// Farewells lists those of a Region, those after the one given (nil: from the start), at most limit.
func (s *Store) Farewells(ctx context.Context, region string, after *Farewell, limit int) (list []Farewell, err error) {
	prefix := farewellPrefix(region)
	from := prefix
	if after != nil {
		from = after.farewellKey() + "\x00"
	}
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		account, id, _ := strings.Cut(string(kv.Key[len(prefix):]), "/")
		a, accountOK := keyid.ParseAccount([]byte(account))
		i, idOK := keyid.ParseID([]byte(id))
		var st storedFarewell
		if err := decode(kv.Value, &st); err != nil || !accountOK || !idOK {
			return nil, ErrDamaged
		}
		list = append(list, Farewell{KeyName{region, a, i}, st.Primary, kv.ModRevision})
	}
	return list, nil
}

// Redirect gives a farewell another primary, or with "" removes it. One that has changed since it was listed stays as it is.
func (s *Store) Redirect(ctx context.Context, f Farewell, primary string) error {
	op := clientv3.OpDelete(f.farewellKey())
	if primary != "" {
		value, err := encode(&storedFarewell{primary})
		if err != nil {
			return err
		}
		op = clientv3.OpPut(f.farewellKey(), string(value))
	}
	_, _, err := s.commit(ctx, []clientv3.Cmp{unchanged(f.farewellKey(), f.revision)}, []clientv3.Op{op})
	return err
}
