package store

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// record is a value of a backup.
type record struct {
	key, value string
}

func export(t testing.TB, s *Store) (Exported, []record) {
	t.Helper()
	var list []record
	e, err := s.Export(t.Context(), func(key string, value []byte) error {
		list = append(list, record{key, string(value)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return e, list
}

func putAll(list []record) func(put func(string, []byte) error) error {
	return func(put func(string, []byte) error) error {
		for _, r := range list {
			if err := put(r.key, []byte(r.value)); err != nil {
				return err
			}
		}
		return nil
	}
}

// What is exported is what was there at one revision, but for what is damaged and what hangs on leases; and what is restored from it is the same, in another epoch, once it is all there.
func TestExportAndRestore(t *testing.T) {
	ctx := t.Context()
	s := openAt(t, t.TempDir())
	if _, err := s.Export(ctx, nil); !errors.Is(err, errNoKey) {
		t.Error("unauthenticated:", err)
	}
	must(t, s.Authenticate(ctx, Trust{}))
	must(t, s.Rebury(ctx))
	var keys []*Key
	for range 2*rewritePage + 1 {
		keys = append(keys, mustCreate(t, s, "export"))
	}
	_, err := s.Pin(ctx, "account", "a")
	must(t, err)
	must(t, s.PutSession(ctx, newSession("ASIAEXPORT000001", 1), t0))
	_, err = s.Join(ctx, Member{ID: "n", Role: DataMember})
	must(t, err)
	_, release, err := s.Own(ctx, "export")
	must(t, err)
	defer release()
	_, err = s.client.Put(ctx, keys[0].tombstoneKey()+"x", "\x01{}")
	must(t, err)
	putRaw(t, s, keys[1].policyKey(), "\x01{}")
	once := true
	var list []record
	e, err := s.Export(ctx, func(key string, value []byte) error {
		if once {
			once = false
			mustCreate(t, s, "export") // it is not seen
		}
		list = append(list, record{key, string(value)})
		return nil
	})
	must(t, err)
	if !slices.Equal(e.Damaged, []string{keys[1].policyKey()}) || e.Tombstones != 1 || e.Store != s.identity.ID || e.Epoch != 1 {
		t.Errorf("%+v", e)
	}
	for _, r := range list {
		for _, never := range []string{"owner/", "member/", "iam/session/", "meta/format", "meta/store", "meta/barrier"} {
			if strings.HasPrefix(r.key, root+never) {
				t.Errorf("%s is in the backup", r.key)
			}
		}
	}
	// Keys and policies, the one less; the tombstone, the pin and the counts.
	if n := len(list) - (2*len(keys) - 1) - 2; n < 1 || n > countSlots {
		t.Errorf("%d values of %d keys", len(list), len(keys))
	}
	list = slices.DeleteFunc(list, func(r record) bool { return r.key == keys[0].tombstoneKey()+"x" })
	must(t, s.Close())

	dir := t.TempDir()
	from := Restored{Exported: e}
	r := openAt(t, dir)
	mustCreate(t, r, "export")
	if err := r.Restore(ctx, from, putAll(list)); !errors.Is(err, ErrNotEmpty) {
		t.Error("not empty:", err)
	}
	must(t, errors.Join(r.Close(), os.RemoveAll(dir)))
	// Cut short: nobody serves from it, whatever is vouched for, and the next one begins anew.
	r = openAt(t, dir)
	if err := r.Restore(ctx, from, func(put func(string, []byte) error) error {
		for _, l := range list[:rewritePage+1] {
			if err := put(l.key, []byte(l.value)); err != nil {
				return err
			}
		}
		return errStop
	}); !errors.Is(err, errStop) {
		t.Error(err)
	}
	must(t, r.Close())
	r = openAt(t, dir)
	if err := r.Authenticate(ctx, Trust{Plain: true, Older: true}); !errors.Is(err, ErrRestoring) {
		t.Error("half a backup:", err)
	}
	for _, bad := range []string{formatKey, identityKey, memberPrefix + "x", ownerPrefix + "x", "/other"} {
		if err := r.Restore(ctx, from, putAll([]record{{bad, ""}})); err == nil {
			t.Errorf("%s was restored", bad)
		}
	}
	must(t, r.Close())
	r = openAt(t, dir)
	must(t, r.CheckRestore(ctx, from))
	must(t, r.Restore(ctx, from, putAll(list)))
	check := func() {
		t.Helper()
		now, got := export(t, r)
		if !slices.Equal(got, list) {
			t.Errorf("%d values, want %d", len(got), len(list))
		}
		if now.Store != e.Store || now.Epoch != e.Epoch+1 || now.EpochName == e.EpochName {
			t.Errorf("%+v after %+v", now, e)
		}
	}
	check()
	if kv := raw(t, r, keys[0].key()); kv.Version != 1 {
		t.Error("version", kv.Version)
	}
	must(t, r.Close())
	if _, err := os.Stat(filepath.Join(dir, floorFile)); err != nil {
		t.Error(err)
	}
	r = openAt(t, dir)
	must(t, r.Authenticate(ctx, Trust{}))
	must(t, r.Rebury(ctx))
	check()
	if _, err := r.Key(ctx, keys[1].KeyName); !errors.Is(err, ErrDamaged) {
		t.Error("a key without its policy:", err)
	}
	// Another process that saw the store before takes the new epoch, and one that saw the new epoch not the old.
	seen := floor{epochOf{e.Store, e.Epoch, e.EpochName}, 1 << 40, 7}
	if err := seen.check(r.identity, 5, 0); err != nil {
		t.Error(err)
	}
	seen = floor{r.identity, 5, 0}
	for _, old := range []epochOf{{e.Store, e.Epoch, e.EpochName}, {e.Store, r.identity.Number, e.EpochName}, {strings.Repeat("0", 32), r.identity.Number + 1, ""}} {
		if err := seen.check(old, 1<<40, 1<<40); !errors.Is(err, ErrOlder) {
			t.Errorf("%v after %v: %v", old, seen, err)
		}
	}
	must(t, r.Close())
}

// Keys that any file of deleted keys names stay deleted.
func TestRestoreBuries(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := openAt(t, dir)
	must(t, s.Authenticate(ctx, Trust{}))
	must(t, s.Rebury(ctx))
	here, there, stays := mustCreate(t, s, "bury"), mustCreate(t, s, "bury"), mustCreate(t, s, "bury")
	e, list := export(t, s)
	must(t, s.Barrier(ctx))
	must(t, s.graves.add(there.lifeName(milli(there.Created))))
	elsewhere := filepath.Join(t.TempDir(), "deleted")
	b, err := os.ReadFile(filepath.Join(dir, gravesFile))
	must(t, err)
	must(t, os.WriteFile(elsewhere, b, 0o600))
	must(t, s.Close())
	must(t, os.Remove(filepath.Join(dir, gravesFile)))
	must(t, os.RemoveAll(filepath.Join(dir, "etcd")))
	g, _, err := openGraves(dir, xorSealer{}, quiet)
	must(t, err)
	must(t, g.add(here.lifeName(milli(here.Created))))
	must(t, g.f.Close())
	r := openAt(t, dir)
	from := Restored{Exported: e, DeletedKeys: []string{elsewhere}}
	if err := r.Restore(ctx, from, putAll(list)); !errors.Is(err, ErrOlder) {
		t.Error("older than it was:", err)
	}
	from.Older = true
	must(t, r.Restore(ctx, from, putAll(list)))
	if n := len(r.Reburied()); n != 2 {
		t.Errorf("%d were deleted again", n)
	}
	for _, k := range []*Key{here, there} {
		if _, err := r.Key(ctx, k.KeyName); !errors.Is(err, ErrNotFound) {
			t.Error("a deleted key:", err)
		}
		if stone, _, err := r.tombstone(ctx, k.KeyName); err != nil || len(stone.Created) != 1 {
			t.Errorf("%+v %v", stone, err)
		}
		if got, err := r.client.Get(ctx, k.policyKey(), clientv3.WithCountOnly()); err != nil || got.Count != 0 {
			t.Error(got, err)
		}
	}
	if k, err := r.Key(ctx, stays.KeyName); err != nil {
		t.Error(err)
	} else {
		k.Wipe()
	}
	must(t, r.Close())
	if b, err := os.ReadFile(filepath.Join(dir, gravesFile)); err != nil || strings.Count(string(b), "\n") != 3 {
		t.Errorf("%q %v", b, err)
	}
}

// TestFloorOfLongLives: what workers have run for is kept however long it is.
func TestFloorOfLongLives(t *testing.T) {
	for _, ran := range []time.Duration{1, 40 * 365 * 24 * time.Hour, math.MaxInt64} {
		dir := t.TempDir()
		was := floor{epochOf{"0123456789abcdef0123456789abcdef", 3, "0123456789abcdef"}, math.MaxInt64 / 10, ran}
		if err := was.write(dir); err != nil {
			t.Fatal(err)
		}
		if now, err := readFloor(dir); err != nil || *now != was {
			t.Errorf("%v is read as %v, %v", &was, now, err)
		}
	}
}
