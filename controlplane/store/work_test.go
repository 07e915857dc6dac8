package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
)

// One owner at a time: the next has it when the first gives it up, and when its lease has ended, of which the first learns.
func TestOwn(t *testing.T) {
	ctx := t.Context()
	first, release, err := shared.Own(ctx, "own")
	if err != nil {
		t.Fatal(err)
	}
	other, releaseOther, err := shared.Own(ctx, "own-2") // another Region
	if err != nil {
		t.Fatal(err)
	}
	defer releaseOther()
	type owner struct {
		ctx     context.Context
		release func()
	}
	next := make(chan owner)
	wait := func() {
		ctx, release, err := shared.Own(ctx, "own")
		if err != nil {
			t.Error(err)
		}
		next <- owner{ctx, release}
	}
	go wait()
	// The lease is renewed: after more than a term nobody else has it.
	select {
	case <-next:
		t.Fatal("two owners")
	case <-first.Done():
		t.Fatal("the ownership was lost")
	case <-time.After(ownerTerm + ownerTerm/3):
	}
	release()
	second := <-next
	if first.Err() == nil || second.ctx.Err() != nil || other.Err() != nil {
		t.Errorf("%v %v %v", first.Err(), second.ctx.Err(), other.Err())
	}
	go wait()
	resp, err := shared.client.Get(ctx, ownerPrefix+"own")
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatal(resp, err)
	}
	if _, err := shared.client.Revoke(ctx, clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
		t.Fatal(err)
	}
	third := <-next
	select {
	case <-second.ctx.Done():
	case <-time.After(30 * time.Second):
		t.Error("the holder of a lease that has ended does not learn of it")
	}
	second.release()
	if third.ctx.Err() != nil {
		t.Error("the release of a lost ownership took another's away")
	}
	third.release()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, _, err := shared.Own(ended, "own"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Elapsed never gets ahead of real time, whatever tickers there are.
func TestTicker(t *testing.T) {
	ctx := t.Context()
	var real time.Duration
	running := func() time.Duration { return real }
	tick := func(k *Ticker, want time.Duration) {
		t.Helper()
		got, err := k.Tick(ctx)
		if err != nil || got != want {
			t.Errorf("Tick is %v %v, want %v", got, err, want)
		}
		if stored, err := shared.Elapsed(ctx, "tick"); err != nil || stored != want {
			t.Errorf("Elapsed is %v %v, want %v", stored, err, want)
		}
	}
	a := shared.NewTicker("tick", running)
	if _, known, err := a.Now(ctx); known || err != nil {
		t.Error(known, err)
	}
	tick(a, 0)
	real += time.Hour
	if now, known, err := a.Now(ctx); now != time.Hour || !known || err != nil {
		t.Error(now, known, err)
	}
	tick(a, time.Hour)
	tick(a, time.Hour)
	// Another process, whose clock began at another moment: what passed before it came is lost to both.
	real += time.Hour
	b := shared.NewTicker("tick", func() time.Duration { return real + 1000*time.Hour })
	tick(b, time.Hour)
	if _, known, err := a.Now(ctx); known || err != nil {
		t.Error(known, err)
	}
	tick(a, time.Hour)
	real += time.Hour
	tick(b, time.Hour)
	real += time.Hour
	tick(b, 2*time.Hour)
	// A clock that runs backwards adds nothing.
	real -= 10 * time.Hour
	tick(b, 2*time.Hour)
	if _, err := shared.client.Put(ctx, elapsedKey("tick"), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Tick(ctx); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// A copy of etcd's files from before a key was deleted does not bring it back.
func TestDeletedStaysDeleted(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	open := func() *Store {
		t.Helper()
		s, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: xorSealer{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rebury(ctx); err != nil {
			t.Fatal(err)
		}
		return s
	}
	closed := func(s *Store) {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open()
	gone, stays := newKey("graves"), newKey("graves")
	for _, k := range []*Key{gone, stays} {
		if err := s.CreateKey(ctx, k, 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateAlias(ctx, gone.KeyName, "alias/gone", 50, t0, allow); err != nil {
		t.Fatal(err)
	}
	closed(s)
	backup := filepath.Join(t.TempDir(), "etcd")
	if err := os.CopyFS(backup, os.DirFS(filepath.Join(dir, "etcd"))); err != nil {
		t.Fatal(err)
	}
	s = open()
	if _, err := s.UpdateKey(ctx, gone.KeyName, func(k *Key) error {
		k.State, k.DeletionDate, k.DeletionDays = kmsapi.StatePendingDeletion, t0, 7
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	due, err := s.Due(ctx, Deletion, "graves", t0, nil, 10)
	if err != nil || len(due) != 1 {
		t.Fatal(due, err)
	}
	// The file cannot be written: the key is deleted all the same, and named in it when it can.
	file, writable := filepath.Join(dir, gravesFile), s.graves.f
	if s.graves.f, err = os.Open(file); err != nil {
		t.Fatal(err)
	}
	if _, _, done, err := s.DeleteKey(ctx, due[0], t0, 7*24*time.Hour, func(*Key) error { return nil }); !done || err != nil {
		t.Fatal(done, err)
	}
	if err := s.graves.f.Close(); err != nil {
		t.Fatal(err)
	}
	s.graves.f = writable
	if _, err := s.NewTicker("graves", func() time.Duration { return 0 }).Tick(ctx); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, line, _ := strings.Cut(string(whole), "\n")
	if head += "\n"; !strings.HasPrefix(line, gone.lifeName(milli(gone.Created))+" ") {
		t.Fatalf("%q", whole)
	}
	closed(s)

	// A crash in the middle of a line, and one before it: the tombstone names the key.
	for _, left := range []string{string(whole) + stays.path(), head + line[:20], head} {
		if err := os.WriteFile(file, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		s = open()
		if k, err := s.Key(ctx, stays.KeyName); err != nil {
			t.Fatal(err)
		} else {
			k.Wipe()
		}
		closed(s)
		if b, err := os.ReadFile(file); err != nil || string(b) != string(whole) {
			t.Fatalf("after %q: %q %v", left, b, err)
		}
	}

	// The copy comes back, and the key does not; twice, because the second start has no work to do.
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "etcd")), os.CopyFS(filepath.Join(dir, "etcd"), os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		s = open()
		if n := len(s.Reburied()); n != 1-i {
			t.Errorf("start %d deleted %d keys again", i, n)
		}
		if _, err := s.Key(ctx, gone.KeyName); !errors.Is(err, ErrNotFound) {
			t.Errorf("the key: %v", err)
		}
		if _, err := s.Alias(ctx, "graves", gone.Account, "alias/gone"); !errors.Is(err, ErrNotFound) {
			t.Errorf("its alias: %v", err)
		}
		if n, err := s.KeyCount(ctx, "graves", gone.Account); n != 1 || err != nil {
			t.Errorf("%d keys are counted, %v", n, err)
		}
		if err := s.CreateKey(ctx, gone, 10); !errors.Is(err, ErrExists) {
			t.Errorf("making it anew: %v", err)
		}
		k, err := s.Key(ctx, stays.KeyName)
		if err != nil {
			t.Fatal(err)
		}
		k.Wipe()
		closed(s)
	}
	// Nobody else can name a key in the file.
	for left, want := range map[string]string{
		string(whole) + "graves/x/y\n":                                                                        "is damaged",
		string(whole) + stays.path() + "\n":                                                                   "is damaged",
		string(whole) + stays.path() + line[len(gone.path()):]:                                                "was changed",
		string(whole) + gone.path() + " x" + line[len(gone.lifeName(milli(gone.Created))):]:                   "is damaged",
		string(whole) + gone.lifeName(milli(gone.Created)+1) + line[len(gone.lifeName(milli(gone.Created))):]: "was changed",
		string(whole) + gone.path() + line[len(gone.lifeName(milli(gone.Created))):]:                          "was changed", // of all lives
		gone.path() + "\n": "does not open",
	} {
		if err := os.WriteFile(file, []byte(left), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: xorSealer{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Rebury(ctx); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", left, err)
		}
		closed(s)
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open()
	k, err := s.Key(ctx, stays.KeyName)
	if err != nil {
		t.Fatal("another line destroyed a key:", err)
	}
	k.Wipe()
	closed(s)
}

// A replica can be deleted and made again under its ID, however often. Of an older copy of etcd's files that life is deleted again which was deleted, and none that was
// not. Lines of earlier versions of the file, which say nothing of that, still keep the key that they name from coming back.
func TestReplicaOfAnotherLife(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	etcd := filepath.Join(dir, "etcd")
	open := func() *Store {
		t.Helper()
		s, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: xorSealer{}})
		if err != nil {
			t.Fatal(err)
		}
		must(t, s.Rebury(ctx))
		return s
	}
	name := KeyName{Region: "graves", Account: 111122223333, ID: keyid.NewID([16]byte{1}, true)}
	create := func(s *Store) time.Time {
		t.Helper()
		k := &Key{
			KeyName: name, State: kmsapi.StateCreating, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Created: t0, Policy: Policy{Document: []byte("{}")},
			MultiRegion: &MultiRegion{Primary: "elsewhere", Replicas: []string{"graves"}, Epoch: 1, Revision: 1, Born: Moment{Epoch: 1, Revision: 1}},
		}
		must(t, s.CreateKey(ctx, k, 10))
		return k.Created
	}
	remove := func(s *Store) {
		t.Helper()
		_, err := s.UpdateKey(ctx, name, func(k *Key) error {
			k.State, k.DeletionDate, k.DeletionDays = kmsapi.StatePendingDeletion, t0, 7
			return nil
		})
		must(t, err)
		due, err := s.Due(ctx, Deletion, "graves", t0, nil, 10)
		if err != nil || len(due) != 1 {
			t.Fatal(due, err)
		}
		if _, _, done, err := s.DeleteKey(ctx, due[0], t0, 7*24*time.Hour, func(*Key) error { return nil }); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	// restart starts anew, from a copy of etcd's files if there is one, and says which life is there.
	restart := func(s *Store, from string) (*Store, time.Time) {
		t.Helper()
		must(t, s.Close())
		if from != "" {
			must(t, errors.Join(os.RemoveAll(etcd), os.CopyFS(etcd, os.DirFS(from))))
		}
		s = open()
		k, err := s.Key(ctx, name)
		if errors.Is(err, ErrNotFound) {
			return s, time.Time{}
		}
		must(t, err)
		return s, k.Created
	}
	backup := func(s *Store) (*Store, string) {
		t.Helper()
		must(t, s.Close())
		to := filepath.Join(t.TempDir(), "etcd")
		must(t, os.CopyFS(to, os.DirFS(etcd)))
		return open(), to
	}

	s := open()
	first := create(s)
	s, withFirst := backup(s)
	remove(s)
	second := create(s) // by a clock that was set back to the very millisecond
	if !second.After(first) {
		t.Fatalf("two lives are of %s", second)
	}
	s, withSecond := backup(s)
	file := filepath.Join(dir, gravesFile)
	secondLives, err := os.ReadFile(file)
	must(t, err)
	expect := func(what string, got, want time.Time, reburied int) {
		t.Helper()
		if !got.Equal(want) || len(s.Reburied()) != reburied {
			t.Errorf("%s: the life of %s is there, want that of %s; %d deleted again, want %d", what, got, want, len(s.Reburied()), reburied)
		}
	}
	var there time.Time
	s, there = restart(s, "")
	expect("the second life", there, second, 0)
	if _, was, err := s.buryAgain(ctx, name, lives{created: []int64{milli(first), milli(first) - 1}}); was || err != nil {
		t.Errorf("buried for other lives: %t, %v", was, err)
	}
	remove(s)
	third := create(s)
	s, there = restart(s, "")
	expect("the third life", there, third, 0)
	s, there = restart(s, withSecond)
	expect("a copy with the second life, which is over", there, time.Time{}, 1)
	if third = create(s); !third.After(second) {
		t.Errorf("the third life is of %s again", third)
	}
	s, there = restart(s, "")
	expect("the third life, after that copy", there, third, 0)
	s, there = restart(s, withFirst)
	expect("a copy with the first life, which is over", there, time.Time{}, 1)
	s, there = restart(s, "")
	expect("nothing", there, time.Time{}, 0)

	// The second life is not over as far as this copy of the file knows, which is as old as etcd's.
	must(t, os.WriteFile(file, secondLives, 0o600))
	s, there = restart(s, withSecond)
	expect("both copies of the second life", there, second, 0)

	// A file of an earlier version.
	head, _, _ := strings.Cut(string(secondLives), "\n")
	must(t, os.WriteFile(file, []byte(head+"\n"+s.graves.line(name.path())), 0o600))
	s, there = restart(s, withSecond)
	expect("an earlier file, and a copy of etcd's that knows of it", there, second, 0)
	must(t, os.WriteFile(file, []byte(head+"\n"+s.graves.line(name.path())), 0o600))
	s, there = restart(s, withFirst)
	expect("an earlier file, and a copy of etcd's from before the deletion", there, time.Time{}, 1)
	second = create(s)
	s, there = restart(s, "")
	expect("a life after that of an earlier file", there, second, 0)
	remove(s)
	s, there = restart(s, withFirst)
	expect("a life after that of an earlier file, which is over", there, time.Time{}, 1)
	must(t, s.Close())
}
