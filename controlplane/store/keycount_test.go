package store

import (
	"context"
	"errors"
	"math"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

func countIs(t *testing.T, region string, want int) {
	t.Helper()
	n, err := shared.KeyCount(t.Context(), region, 111122223333)
	if err != nil || n != want {
		t.Errorf("%d keys are counted, %v; want %d", n, err, want)
	}
}

// Several control planes make keys at once: exactly as many are made as the limit allows, and none is refused below it.
func TestKeyLimitIsExact(t *testing.T) {
	const limit, planes, eachTries = 100, 3, 80
	var made, refused atomic.Int32
	var wg sync.WaitGroup
	for range planes {
		s := another(shared)
		for range 8 {
			wg.Go(func() {
				for range eachTries / 8 {
					var err error
					for { // an attempt that other processes won every time is told to be tried again
						if err = s.CreateKey(context.Background(), newKey("limit"), limit); !errors.Is(err, ErrConflict) {
							break
						}
					}
					switch {
					case err == nil:
						made.Add(1)
					case errors.Is(err, ErrKeyLimit):
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if made.Load() != limit || refused.Load() != planes*eachTries-limit {
		t.Errorf("%d keys were made, %d refused", made.Load(), refused.Load())
	}
	countIs(t, "limit", limit)
	if err := shared.CreateKey(t.Context(), newKey("limit"), limit+1); err != nil {
		t.Errorf("after the limit was raised: %v", err)
	}
	if err := shared.CreateKey(t.Context(), newKey("limit"), limit-50); !errors.Is(err, ErrKeyLimit) {
		t.Errorf("after it was lowered: %v", err)
	}
}

// A key counts until it is gone, in every state, and makes room then.
func TestDeletionMakesRoom(t *testing.T) {
	ctx := t.Context()
	k := newKey("room")
	if err := shared.CreateKey(ctx, k, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error {
		k.State, k.DeletionDate, k.DeletionDays = kmsapi.StatePendingDeletion, t0, 1
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := shared.CreateKey(ctx, newKey("room"), 1); !errors.Is(err, ErrKeyLimit) {
		t.Errorf("while it is pending deletion: %v", err)
	}
	due, err := shared.Due(ctx, Deletion, "room", t0, nil, 10)
	if err != nil || len(due) != 1 {
		t.Fatal(due, err)
	}
	if _, _, done, err := shared.DeleteKey(ctx, due[0], t0, 24*time.Hour, func(*Key) error { return nil }); !done || err != nil {
		t.Fatal(done, err)
	}
	countIs(t, "room", 0)
	if err := shared.CreateKey(ctx, newKey("room"), 1); err != nil {
		t.Errorf("after it was deleted: %v", err)
	}
}

// A store of an older version has keys and no counts.
func TestCountKeys(t *testing.T) {
	ctx := t.Context()
	const keys = 40
	for range keys {
		mustCreate(t, shared, "count")
	}
	if _, err := shared.client.Delete(ctx, countPrefix+"count/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	countIs(t, "count", 0)
	if err := shared.CountKeys(ctx, "count"); err != nil {
		t.Fatal(err)
	}
	countIs(t, "count", keys)
	mustCreate(t, shared, "count")
	if err := shared.CountKeys(ctx, "count"); err != nil { // once is enough
		t.Fatal(err)
	}
	countIs(t, "count", keys+1)
	if err := shared.CountKeys(ctx, "count-nothing"); err != nil {
		t.Error(err)
	}
}

func TestDamagedCount(t *testing.T) {
	ctx := t.Context()
	for _, bad := range []string{"", "\x01", "\x01{\"keys\":-1}", "\x02{}", "\x01{\"keys\":1,\"x\":2}"} {
		if _, err := shared.client.Put(ctx, countKey("damaged-count", 111122223333, 3), bad); err != nil {
			t.Fatal(err)
		}
		if err := shared.CreateKey(ctx, newKey("damaged-count"), 1000); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAccountQuotas(t *testing.T) {
	ctx := t.Context()
	value := func(v float64) *float64 { return &v }
	all := func() map[keyid.Account]map[string]float64 {
		m := map[keyid.Account]map[string]float64{}
		if err := shared.Quotas(ctx, "quotas", func(a keyid.Account, values map[string]float64) error {
			m[a] = values
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return m
	}
	if _, err := shared.SetQuota(ctx, "quotas", 1, "A", value(0.5)); err != nil {
		t.Fatal(err)
	}
	got, err := shared.SetQuota(ctx, "quotas", 1, "B", value(math.Inf(1)))
	if want := map[string]float64{"A": 0.5, "B": math.Inf(1)}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v", got, err)
	}
	if _, err := shared.SetQuota(ctx, "quotas", 2, "A", value(0)); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.SetQuota(ctx, "quotas2", 2, "A", value(7)); err != nil { // another Region
		t.Fatal(err)
	}
	if want := map[keyid.Account]map[string]float64{1: {"A": 0.5, "B": math.Inf(1)}, 2: {"A": 0}}; !reflect.DeepEqual(all(), want) {
		t.Errorf("%v", all())
	}
	for _, name := range []string{"A", "B", "never set"} {
		if _, err := shared.SetQuota(ctx, "quotas", 1, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if want := map[keyid.Account]map[string]float64{2: {"A": 0}}; !reflect.DeepEqual(all(), want) {
		t.Errorf("%v", all())
	}
	for _, bad := range []float64{-1, math.NaN(), math.Inf(-1)} {
		if _, err := shared.SetQuota(ctx, "quotas", 1, "A", &bad); err == nil {
			t.Errorf("%v was written", bad)
		}
	}
	for i := range QuotasMax {
		if _, err := shared.SetQuota(ctx, "quotas", 3, string(rune('A'+i)), value(1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := shared.SetQuota(ctx, "quotas", 3, "one more", value(1)); !errors.Is(err, ErrQuota) {
		t.Errorf("beyond the bound: %v", err)
	}
	if _, err := shared.client.Put(ctx, quotaKey("quotas", 4), "\x01{\"values\":{\"A\":-1}}"); err != nil {
		t.Fatal(err)
	}
	if err := shared.Quotas(ctx, "quotas", func(keyid.Account, map[string]float64) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged record: %v", err)
	}
}

// TestManagedKeysDoNotCount: an account that has all its keys still gets AWS managed ones, each alias one, and those do not take the place of others.
func TestManagedKeysDoNotCount(t *testing.T) {
	ctx := t.Context()
	if err := shared.CreateKey(ctx, newKey("managed"), 1); err != nil {
		t.Fatal(err)
	}
	recorded := 0
	first := func() error { recorded++; return nil }
	managed := func() *Key {
		k := newKey("managed")
		k.Manager, k.Aliases = AWS, []string{"alias/aws/s3"}
		return k
	}
	k := managed()
	if err := shared.CreateManagedKey(ctx, k, first); err != nil {
		t.Fatal(err)
	}
	if err := shared.CreateManagedKey(ctx, managed(), first); !errors.Is(err, ErrExists) || recorded != 1 {
		t.Errorf("a second one: %v, %d recorded", err, recorded)
	}
	if n, err := shared.KeyCount(ctx, "managed", k.Account); err != nil || n != 1 {
		t.Errorf("%d keys count: %v", n, err)
	}
	read, err := shared.Key(ctx, k.KeyName)
	if err != nil || read.Manager != AWS || len(read.Aliases) != 1 {
		t.Fatalf("%+v %v", read, err)
	}
	if alias, err := shared.Alias(ctx, "managed", k.Account, "alias/aws/s3"); err != nil || alias.Target != k.ID {
		t.Errorf("%+v %v", alias, err)
	}
	refused := errors.New("no record")
	k.Aliases = []string{"alias/aws/ebs"}
	if err := shared.CreateManagedKey(ctx, k, func() error { return refused }); !errors.Is(err, refused) {
		t.Errorf("without a record: %v", err)
	}
	if _, err := shared.Alias(ctx, "managed", k.Account, "alias/aws/ebs"); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a record: %v", err)
	}
}
