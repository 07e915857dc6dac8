package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/authz"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/kmsapi"
	"github.com/keyplane/keyplane/internal/secret"
	"github.com/keyplane/keyplane/internal/snapshot"
)

func openAt(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet, Sealer: xorSealer{}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestReopenKeepsEverything(t *testing.T) {
	// Longer than a Unix socket's path can be: nothing here listens on one.
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120), strings.Repeat("e", 120))
	s := openAt(t, dir)
	k := newKey("r")
	addVersion(k, 2)
	k.SetTag(Tag{"b", "2"})
	k.SetTag(Tag{"a", "1"})
	k.Policy = Policy{Document: []byte(`{"p":1}`), Bound: map[string]string{"arn:a": "AIDA1"}}
	if err := s.CreateKey(t.Context(), k, 1_000_000); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateAlias(t.Context(), k.KeyName, "alias/x", 50, t0, allow); err != nil {
		t.Fatal(err)
	}
	want, err := s.UpdateKey(t.Context(), k.KeyName, func(k *Key) error {
		k.State, k.DeletionDate = kmsapi.StatePendingDeletion, t0.Add(time.Hour)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PutAccessKey(t.Context(), &AccessKey{ID: "AKIA1", Account: 1, Active: true, Created: t0, Secret: secret.New([]byte("s"))}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openAt(t, dir)
	defer s.Close()
	got, err := s.Key(t.Context(), k.KeyName)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	if alias, err := s.Alias(t.Context(), "r", k.Account, "alias/x"); err != nil || alias.Target != k.ID || !alias.Created.Equal(t0) {
		t.Errorf("alias %+v %v", alias, err)
	}
	if due, err := s.Due(t.Context(), Deletion, "r", t0.Add(time.Hour), nil, 10); err != nil || len(due) != 1 || due[0].KeyName != k.KeyName {
		t.Errorf("due %v %v", due, err)
	}
	if a, err := s.AccessKey(t.Context(), "AKIA1"); err != nil || !a.Secret.Equal([]byte("s")) {
		t.Errorf("access key %v %v", a, err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"", "etcd", "LOCK"} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v %v", path, info.Mode(), err)
		}
	}
}

// What was acknowledged before a kill -9 is there afterwards. The child writes keys and prints each ID once it is acknowledged.
func TestKill(t *testing.T) {
	if dir := os.Getenv("KEYPLANE_KILL_DIR"); dir != "" {
		s := openAt(t, dir)
		for {
			fmt.Println("acknowledged", mustCreate(t, s, "r").ID)
		}
	}
	dir := t.TempDir()
	acknowledged := 0
	for round := range 3 {
		child := exec.Command(os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), "KEYPLANE_KILL_DIR="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		var seen bytes.Buffer
		buf := make([]byte, 4096)
		for bytes.Count(seen.Bytes(), []byte("\n")) < 20+13*round {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("the child ended: %v %s", err, seen.Bytes())
			}
			seen.Write(buf[:n])
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := out.Read(buf)
			seen.Write(buf[:n])
			if err != nil {
				break
			}
		}
		child.Wait()
		s := openAt(t, dir)
		for line := range strings.Lines(seen.String()) {
			text, complete := strings.CutSuffix(line, "\n")
			text, ours := strings.CutPrefix(text, "acknowledged ")
			if !complete || !ours {
				continue
			}
			id, ok := keyid.ParseID([]byte(text))
			if !ok {
				t.Fatalf("printed %q", line)
			}
			acknowledged++
			if _, err := s.KeyRecord(t.Context(), "r", 111122223333, id); err != nil {
				t.Errorf("round %d: key %s: %v", round, id, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if acknowledged < 90 {
		t.Errorf("only %d acknowledged writes were seen", acknowledged)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir)
	// That it comes back at all is a part of the test: etcd itself waits for the lock on its file, without end.
	_, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet})
	want := fmt.Sprintf("store: data directory %s is in use by another keyplane (pid %d)", dir, os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, "LOCK"), []byte("who knows"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "(pid unknown)") {
		t.Errorf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, dir) // free again
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{}); err == nil {
		t.Error("no directory: accepted")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: file, Logger: quiet}); err == nil {
		t.Error("a file as directory: accepted")
	}
	// Too slow: refused, and the directory is free afterwards.
	dir := t.TempDir()
	if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet, ReadyTimeout: time.Nanosecond}); err == nil ||
		!strings.Contains(err.Error(), "not ready after 1ns") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := OpenEmbedded(ctx, EmbeddedConfig{Dir: dir, Logger: quiet}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	s := openAt(t, dir) // both attempts were cut short in etcd's first start, from which etcd itself does not come back
	if _, err := s.client.Put(t.Context(), formatKey, "3"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet}); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a later format: %v", err)
	}
}

// Only a directory whose first start never ended is started over: a start that is cut short later costs nothing.
func TestInterruptedStart(t *testing.T) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "etcd.starting")
	cut := func() {
		t.Helper()
		if _, err := OpenEmbedded(t.Context(), EmbeddedConfig{Dir: dir, Logger: quiet, ReadyTimeout: time.Nanosecond}); err == nil {
			t.Fatal("ready in a nanosecond")
		}
	}
	cut()
	if found, err := exists(marker); !found || err != nil {
		t.Errorf("marker %v %v", found, err)
	}
	cut()
	s := openAt(t, dir)
	if found, err := exists(marker); found || err != nil {
		t.Errorf("marker %v %v", found, err)
	}
	k := mustCreate(t, s, "r")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cut()
	s = openAt(t, dir)
	defer s.Close()
	if _, err := s.Key(t.Context(), k.KeyName); err != nil {
		t.Error(err)
	}
}

func TestRecordRoundTrip(t *testing.T) {
	k := newKey("r")
	addVersion(k, 2)
	addVersion(k, 7)
	k.Current = 2
	k.Description = "\x00\"\\ü☃𝐀"
	k.State, k.Resume, k.DeletionDate = kmsapi.StatePendingDeletion, kmsapi.StateDisabled, t0.Add(time.Millisecond)
	k.SetTag(Tag{"b", ""})
	k.SetTag(Tag{"a", "\t"})
	k.Aliases = []string{"alias/a", "alias/b"}
	value, err := encodeKey(k)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeKey(k.KeyName, value, 42)
	if err != nil {
		t.Fatal(err)
	}
	k.Revision, k.Policy = 42, Policy{} // which is a record of its own
	if !reflect.DeepEqual(got, k) {
		t.Errorf("got  %+v\nwant %+v", got, k)
	}
	for i := range got.Versions {
		salt := got.Versions[i].Salt
		got.Wipe()
		if salt == [32]byte{} && i == 0 || got.Versions[i].Salt != [32]byte{} {
			t.Errorf("version %d: salt %x, wiped %x", i, salt, got.Versions[i].Salt)
		}
	}
	if k.Versions[0].Salt == [32]byte{} {
		t.Error("wiping a decoded record wiped another")
	}
}

// Every byte of a stored record that changes makes it another valid record or a damaged one, never one whose salt is not its own; and what
// is not our format, strict JSON or this key is damaged.
func TestDamagedRecords(t *testing.T) {
	k := mustCreate(t, shared, "damage")
	good, _, err := shared.get(t.Context(), k.key())
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i := range good {
		for _, flip := range []byte{1, 0x20, 0x80} {
			bad := bytes.Clone(good)
			bad[i] ^= flip
			got, err := decodeKey(k.KeyName, bad, 1)
			switch {
			case err != nil && !errors.Is(err, ErrDamaged):
				t.Errorf("byte %d: %v", i, err)
			case err != nil:
				refused++
			case got.Versions[0].Salt != k.Versions[0].Salt || got.Versions[0].MaterialID != k.Versions[0].MaterialID || got.KeyName != k.KeyName:
				t.Errorf("byte %d: a record with another salt or name was accepted", i)
			}
		}
	}
	if refused < len(good) {
		t.Errorf("only %d changes of %d bytes were refused", refused, len(good))
	}
	other := newKey("damage")
	otherValue, err := encodeKey(other)
	if err != nil {
		t.Fatal(err)
	}
	text := string(good[1:])
	for name, value := range map[string]string{
		"empty": "", "format 0": "\x00" + text, "format 2": "\x02" + text, "no JSON": "\x01", "cut": "\x01" + text[:len(text)-1],
		"trailing": "\x01" + text + "{}", "unknown member": "\x01" + strings.Replace(text, "{", `{"x":1,`, 1),
		"duplicate": "\x01" + strings.Replace(text, "{", `{"region":"damage",`, 1), "another key": string(otherValue),
		"state": "\x01" + strings.Replace(text, `"Enabled"`, `"enabled"`, 1), "no versions": "\x01" + `{"region":"damage"}`,
		"short root": "\x01" + strings.Replace(text, `"root":"01`, `"root":"`, 1),
	} {
		if _, err := shared.client.Put(t.Context(), k.key(), value); err != nil {
			t.Fatal(err)
		}
		if _, err := shared.Key(t.Context(), k.KeyName); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: Key: %v", name, err)
		}
		if _, err := shared.KeyRecord(t.Context(), k.Region, k.Account, k.ID); !errors.Is(err, snapshot.ErrDamaged) {
			t.Errorf("%s: KeyRecord: %v", name, err)
		}
		if _, err := shared.UpdateKey(t.Context(), k.KeyName, allow); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: UpdateKey: %v", name, err)
		}
	}
	if _, err := shared.client.Put(t.Context(), aliasKey("damage", k.Account, "alias/d"), "\x01{}"); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.AliasTarget(t.Context(), "damage", k.Account, "alias/d"); !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("alias: %v", err)
	}
	if _, _, err := shared.Aliases(t.Context(), "damage", k.Account, "", 10); !errors.Is(err, ErrDamaged) {
		t.Errorf("aliases: %v", err)
	}
}

// A policy is kept byte for byte, with the principals that it named when it was put, if they were kept at all.
func TestPolicyRecords(t *testing.T) {
	for _, want := range []Policy{
		{Document: []byte("{ \n}")}, {Document: []byte{}}, {Document: []byte("\xff\x00"), Bound: map[string]string{}},
		{Document: []byte("{}"), Bound: map[string]string{"arn:aws:iam::111122223333:user/é": "AIDA1", "b": "2"}},
	} {
		value, err := encodePolicy(&want)
		if err != nil {
			t.Fatal(err)
		}
		want.Revision = 7
		if got, err := decodePolicy([]byte(value), 7); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v %v, want %+v", got, err, want)
		}
	}
	k := mustCreate(t, shared, "policies")
	for _, value := range []string{"", "\x03{}", "\x02", "\x02\x00\x00\x00", "\x02\x00\x00\x00\x03{}", "\x02\xff\xff\xff\xff{}", "\x02\x00\x00\x00\x02[]{}", "\x02\x00\x00\x00\x04null{}"} {
		if _, err := decodePolicy([]byte(value), 1); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", value, err)
		}
		if _, err := shared.client.Put(t.Context(), k.policyKey(), value); err != nil {
			t.Fatal(err)
		}
		if _, err := shared.Key(t.Context(), k.KeyName); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: Key: %v", value, err)
		}
	}
	if _, err := shared.client.Delete(t.Context(), k.policyKey()); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.KeyRecord(t.Context(), k.Region, k.Account, k.ID); !errors.Is(err, snapshot.ErrDamaged) {
		t.Errorf("without a policy: %v", err)
	}
	// The form without principals is what older versions wrote.
	if _, err := shared.client.Put(t.Context(), k.policyKey(), "\x01{}"); err != nil {
		t.Fatal(err)
	}
	if r, err := shared.KeyRecord(t.Context(), k.Region, k.Account, k.ID); err != nil || string(r.Policy) != "{}" || r.Bound != nil || r.Revision <= k.Revision {
		t.Errorf("an older record: %+v %v", r, err)
	}
}

// What was decided on a policy is not written under another.
func TestPolicyGuardsWrites(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "guarded")
	other := Policy{Document: []byte(`{"other":1}`), Bound: map[string]string{"arn": "id"}}
	runs := 0
	if _, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error {
		if runs++; runs == 1 {
			value, err := encodePolicy(&other)
			if err != nil {
				return err
			}
			if _, err := shared.client.Put(ctx, k.policyKey(), value); err != nil {
				return err
			}
		} else if string(k.Policy.Document) != string(other.Document) || k.Policy.Bound["arn"] != "id" {
			t.Errorf("run %d: %+v", runs, k.Policy)
		}
		k.Description = "changed"
		return nil
	}); err != nil || runs != 2 {
		t.Errorf("%d runs: %v", runs, err)
	}
	r, err := shared.KeyRecord(ctx, k.Region, k.Account, k.ID)
	if err != nil || string(r.Policy) != string(other.Document) || !reflect.DeepEqual(r.Bound, other.Bound) {
		t.Errorf("%+v %v", r, err)
	}
}

func TestKeyRecordFacts(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "facts")
	if _, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error { k.SetTag(Tag{"a", "1"}); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := shared.CreateAlias(ctx, k.KeyName, "alias/f", 50, t0, allow); err != nil {
		t.Fatal(err)
	}
	r, err := shared.KeyRecord(ctx, k.Region, k.Account, k.ID)
	want := authz.KeyFacts{
		Account: k.Account, Spec: "SYMMETRIC_DEFAULT", Usage: "ENCRYPT_DECRYPT", Origin: "AWS_KMS", Tags: []authz.Tag{{Key: "a", Value: "1"}},
		Aliases: []string{"alias/f"},
	}
	if err != nil || !reflect.DeepEqual(r.Facts, want) {
		t.Errorf("%+v %v", r.Facts, err)
	}
}

// A record that breaks its invariants is not written either.
func TestInvalidRecordsAreNotWritten(t *testing.T) {
	tagged := func(n int) (list []Tag) {
		for i := range n {
			list = append(list, Tag{Key: fmt.Sprintf("%03d", i)})
		}
		return list
	}
	named := func(n int) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf("alias/%03d", i))
		}
		return list
	}
	for name, spoil := range map[string]func(*Key){
		"no versions":      func(k *Key) { k.Versions = nil },
		"current":          func(k *Key) { k.Current = 2 },
		"salt":             func(k *Key) { k.Versions[0].Salt[0] ^= 1 },
		"state":            func(k *Key) { k.State = 0 },
		"spec":             func(k *Key) { k.Spec = "" },
		"no deletion date": func(k *Key) { k.State = kmsapi.StatePendingDeletion },
		"deletion date":    func(k *Key) { k.DeletionDate = t0 },
		"tag order":        func(k *Key) { k.Tags = []Tag{{"b", ""}, {"a", ""}} },
		"tag twice":        func(k *Key) { k.Tags = []Tag{{"a", ""}, {"a", ""}} },
		"tags":             func(k *Key) { k.Tags = tagged(kmsapi.TagsPerKeyMax + 1) },
		"alias twice":      func(k *Key) { k.Aliases = []string{"alias/a", "alias/a"} },
		"aliases":          func(k *Key) { k.Aliases = named(kmsapi.AliasesPerKeyMost + 1) },
	} {
		k := newKey("invalid")
		spoil(k)
		if err := shared.CreateKey(t.Context(), k, 1000); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := shared.Key(t.Context(), k.KeyName); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s was written: %v", name, err)
		}
	}
	k := newKey("invalid")
	k.Tags, k.Aliases = tagged(kmsapi.TagsPerKeyMax), named(kmsapi.AliasesPerKeyMost)
	if err := shared.CreateKey(t.Context(), k, 1000); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

func TestUpdateKey(t *testing.T) {
	k := mustCreate(t, shared, "update")
	same, err := shared.UpdateKey(t.Context(), k.KeyName, allow)
	if err != nil || same.Revision != k.Revision {
		t.Errorf("a change that changes nothing was written: revision %d, was %d, %v", same.Revision, k.Revision, err)
	}
	refusal := errors.New("no")
	if _, err := shared.UpdateKey(t.Context(), k.KeyName, func(k *Key) error { k.Description = "x"; return refusal }); err != refusal {
		t.Errorf("got %v", err)
	}
	if got, err := shared.Key(t.Context(), k.KeyName); err != nil || got.Description != "d" {
		t.Errorf("%v %v", got, err)
	}
	if _, err := shared.UpdateKey(t.Context(), KeyName{Region: "update"}, allow); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	// Somebody else's write between read and commit: the change runs again on what is there then.
	runs := 0
	got, err := shared.UpdateKey(t.Context(), k.KeyName, func(k *Key) error {
		if runs++; runs < 3 {
			outside(t, k.KeyName, fmt.Sprint("outside ", runs))
		}
		k.Description += "+"
		return nil
	})
	if err != nil || got.Description != "outside 2+" || runs != 3 {
		t.Errorf("%q after %d runs, %v", got.Description, runs, err)
	}
	// A writer that always loses gives up, and has written nothing.
	runs = 0
	if _, err = shared.UpdateKey(t.Context(), k.KeyName, func(k *Key) error {
		runs++
		outside(t, k.KeyName, fmt.Sprint("outside ", runs))
		k.State = kmsapi.StateDisabled
		return nil
	}); !errors.Is(err, ErrConflict) || runs != attemptsMax {
		t.Errorf("%v after %d runs", err, runs)
	}
	if got, err := shared.Key(t.Context(), k.KeyName); err != nil || got.State != kmsapi.StateEnabled {
		t.Errorf("%v %v", got, err)
	}
	// The wait for another writer ends with the context, and the lock is whole afterwards.
	unlock, err := shared.keys.lock(t.Context(), k.key())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if _, err := shared.UpdateKey(ctx, k.KeyName, allow); !errors.Is(err, context.DeadlineExceeded) || !Unavailable(err) {
		t.Errorf("got %v", err)
	}
	unlock()
	if _, err := shared.UpdateKey(t.Context(), k.KeyName, allow); err != nil {
		t.Error(err)
	}
}

// outside writes a record as another process would: without this process's locks.
func outside(t *testing.T, n KeyName, description string) {
	t.Helper()
	k, err := shared.Key(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	k.Description = description
	value, err := encodeKey(k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shared.client.Put(t.Context(), n.key(), string(value)); err != nil {
		t.Fatal(err)
	}
}

// A write whose context ends may be committed: the error says so, and it counts as a store that did not answer.
func TestUncertain(t *testing.T) {
	k := mustCreate(t, shared, "uncertain")
	ctx, cancel := context.WithCancel(t.Context())
	_, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error {
		cancel()
		k.Description = "late"
		return nil
	})
	if !errors.Is(err, ErrUncertain) || !errors.Is(err, context.Canceled) || !Unavailable(err) {
		t.Errorf("got %v", err)
	}
	if Unavailable(ErrNotFound) || Unavailable(nil) || Unavailable(ErrDamaged) || Unavailable(errors.New("x")) {
		t.Error("not every error means that etcd is away")
	}
}

func TestLockOrder(t *testing.T) {
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprint("name ", i))
	}
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			a, b := names[i%len(names)], names[(i*7+3)%len(names)]
			unlock, err := shared.keys.lock(t.Context(), a, b, a)
			if err != nil {
				t.Error(err)
				return
			}
			unlock()
		})
	}
	wg.Wait()
	for i := range shared.keys.slot {
		if len(shared.keys.slot[i]) != 0 {
			t.Errorf("stripe %d is still held", i)
		}
	}
}

func TestAliasErrors(t *testing.T) {
	a, b := mustCreate(t, shared, "alias"), mustCreate(t, shared, "alias")
	missing := newKey("alias").KeyName
	ctx := t.Context()
	if err := shared.CreateAlias(ctx, missing, "alias/x", 50, t0, allow); !errors.Is(err, ErrNotFound) {
		t.Errorf("create: %v", err)
	}
	if err := shared.CreateAlias(ctx, a.KeyName, "alias/x", 50, t0, allow); err != nil {
		t.Fatal(err)
	}
	if err := shared.CreateAlias(ctx, b.KeyName, "alias/x", 50, t0, allow); !errors.Is(err, ErrExists) {
		t.Errorf("create: %v", err)
	}
	if err := shared.UpdateAlias(ctx, missing, "alias/x", 50, t0, func(_, _ *Key) error { return nil }); !errors.Is(err, ErrNoTarget) {
		t.Errorf("update: %v", err)
	}
	if err := shared.UpdateAlias(ctx, a.KeyName, "alias/y", 50, t0, func(_, _ *Key) error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("update: %v", err)
	}
	refusal := errors.New("no")
	refuse := func(*Key) error { return refusal }
	if err := shared.CreateAlias(ctx, a.KeyName, "alias/y", 50, t0, refuse); err != refusal {
		t.Errorf("create: %v", err)
	}
	if err := shared.UpdateAlias(ctx, b.KeyName, "alias/x", 50, t0, func(old, target *Key) error {
		if old.ID != a.ID || target.ID != b.ID {
			t.Error("allow got other keys")
		}
		return refusal
	}); err != refusal {
		t.Errorf("update: %v", err)
	}
	if err := shared.DeleteAlias(ctx, "alias", a.Account, "alias/x", refuse); err != refusal {
		t.Errorf("delete: %v", err)
	}
	if err := shared.PutPolicy(ctx, a.KeyName, func(*Key) (Policy, error) { return Policy{}, refusal }); err != refusal {
		t.Errorf("policy: %v", err)
	}
	if err := shared.PutPolicy(ctx, missing, func(*Key) (Policy, error) { return Policy{}, nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("policy: %v", err)
	}
	if got, err := shared.AliasTarget(ctx, "alias", a.Account, "alias/x"); err != nil || got != a.ID {
		t.Errorf("target %v %v", got, err)
	}
	if _, err := shared.AliasTarget(ctx, "elsewhere", a.Account, "alias/x"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("target: %v", err)
	}
	if _, err := shared.KeyRecord(ctx, "elsewhere", a.Account, a.ID); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("record: %v", err)
	}
	list, err := shared.AliasesNamed(ctx, "alias", a.Account, []string{"alias/none", "alias/x"})
	if err != nil || len(list) != 1 || list[0].Name != "alias/x" {
		t.Errorf("named: %v %v", list, err)
	}
	// An alias whose key is gone, which no transaction of ours leaves behind, can be deleted and moved all the same.
	for _, end := range []func() error{
		func() error {
			return shared.UpdateAlias(ctx, b.KeyName, "alias/x", 50, t0, func(old, _ *Key) error {
				if old != nil {
					t.Error("a key that is gone")
				}
				return nil
			})
		},
		func() error { return shared.DeleteAlias(ctx, "alias", a.Account, "alias/x", refuse) },
	} {
		alias, err := shared.Alias(ctx, "alias", a.Account, "alias/x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := shared.client.Delete(ctx, KeyName{Region: "alias", Account: a.Account, ID: alias.Target}.key()); err != nil {
			t.Fatal(err)
		}
		if err := end(); err != nil {
			t.Error(err)
		}
		if alias.Target == a.ID { // b lists it now; taken from there too by the next round
			if got, err := shared.Key(ctx, b.KeyName); err != nil || len(got.Aliases) != 1 {
				t.Errorf("%v %v", got, err)
			}
		}
	}
}

func TestDeleteKey(t *testing.T) {
	ctx := t.Context()
	k := mustCreate(t, shared, "delete")
	date := t0.Add(time.Hour)
	pending := func(at time.Time) {
		t.Helper()
		if _, err := shared.UpdateKey(ctx, k.KeyName, func(k *Key) error {
			k.State, k.DeletionDate, k.DeletionDays, k.DeletionSeen = kmsapi.StatePendingDeletion, at, 1, time.Millisecond
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	pending(date)
	for at, n := range map[time.Time]int{date.Add(-time.Millisecond): 0, date: 1, date.Add(time.Millisecond): 1} {
		if due, err := shared.Due(ctx, Deletion, "delete", at, nil, 10); err != nil || len(due) != n {
			t.Errorf("at %s: %v %v", at, due, err)
		}
	}
	due, err := shared.Due(ctx, Deletion, "delete", date, nil, 10)
	if err != nil {
		t.Fatal(err)
	}
	// The date holds in the transaction too, whatever the index said.
	if _, _, done, err := shared.DeleteKey(ctx, due[0], date.Add(-time.Millisecond), 24*time.Hour, func(*Key) error { return nil }); done || err != nil {
		t.Errorf("early: %v %v", done, err)
	}
	// A date that moved leaves the key alone and the new index entry in place.
	moved := date.Add(time.Hour)
	pending(moved)
	if _, _, done, err := shared.DeleteKey(ctx, due[0], moved, 24*time.Hour, func(*Key) error { return nil }); done || err != nil {
		t.Errorf("moved: %v %v", done, err)
	}
	if due, err = shared.Due(ctx, Deletion, "delete", moved, nil, 10); err != nil || len(due) != 1 || !due[0].Date.Equal(moved) {
		t.Fatalf("due %v %v", due, err)
	}
	if err := shared.CreateAlias(ctx, k.KeyName, "alias/d", 50, t0, allow); err != nil {
		t.Fatal(err)
	}
	// Not a millisecond before the waiting period has really passed, whatever the wall clock says.
	if _, _, done, err := shared.DeleteKey(ctx, due[0], moved.AddDate(10, 0, 0), 24*time.Hour, func(*Key) error { return nil }); done || err != nil {
		t.Errorf("a clock that jumped: %v %v", done, err)
	}
	aliases, revision, done, err := shared.DeleteKey(ctx, due[0], moved, 24*time.Hour+time.Millisecond, func(*Key) error { return nil })
	if err != nil || !done || fmt.Sprint(aliases) != "[alias/d]" {
		t.Fatalf("%v %v %v", aliases, done, err)
	}
	// What is left under the key's names is its tombstone.
	resp, err := shared.client.Get(ctx, root, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if strings.Contains(string(kv.Key), k.ID.String()) && string(kv.Key) != k.tombstoneKey() {
			t.Errorf("left over: %s", kv.Key)
		}
	}
	if err := shared.CreateKey(ctx, k, 1000); !errors.Is(err, ErrExists) {
		t.Errorf("the key came back: %v", err)
	}
	if _, err := shared.Alias(ctx, "delete", k.Account, "alias/d"); !errors.Is(err, ErrNotFound) {
		t.Errorf("alias: %v", err)
	}
	// History: the record is readable at its last revision until it is compacted, and then not.
	if old, err := shared.client.Get(ctx, k.key(), clientv3.WithRev(revision-1)); err != nil || len(old.Kvs) != 1 {
		t.Fatalf("before compaction: %v %v", old, err)
	}
	if err := shared.Compact(ctx, revision); err != nil {
		t.Fatal(err)
	}
	if err := shared.Compact(ctx, revision); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if old, err := shared.client.Get(ctx, k.key(), clientv3.WithRev(revision-1)); err == nil {
		t.Errorf("after compaction: %v", old)
	}
	// An index entry without a record goes away.
	if _, err := shared.client.Put(ctx, k.dueKey(Deletion, moved), "\x01"); err != nil {
		t.Fatal(err)
	}
	if due, err = shared.Due(ctx, Deletion, "delete", moved, nil, 10); err != nil || len(due) != 1 {
		t.Fatalf("due %v %v", due, err)
	}
	if _, _, done, err := shared.DeleteKey(ctx, due[0], moved, 24*time.Hour, func(*Key) error { return nil }); done || err != nil {
		t.Errorf("%v %v", done, err)
	}
	if due, err = shared.Due(ctx, Deletion, "delete", moved, nil, 10); err != nil || len(due) != 0 {
		t.Errorf("due %v %v", due, err)
	}
	for _, bad := range []string{"x", "2026-01-01T00:00:00.000Z/1/2", "2026-01-01T00:00:00.000Z/111122223333/x", "2026-13-01T00:00:00.000Z/111122223333/" + k.ID.String()} {
		at := duePrefix(Deletion, "damaged") + bad
		if _, err := shared.client.Put(ctx, at, "\x01"); err != nil {
			t.Fatal(err)
		}
		if _, err := shared.Due(ctx, Deletion, "damaged", t0.AddDate(100, 0, 0), nil, 10); err == nil && bad != "x" {
			t.Errorf("index entry %q was accepted", bad)
		}
		if _, err := shared.client.Delete(ctx, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPages(t *testing.T) {
	ctx := t.Context()
	var target *Key
	for range 7 {
		target = mustCreate(t, shared, "pages")
	}
	mustCreate(t, shared, "pages2") // a Region whose name starts like it is another Region
	other := newKey("pages")
	other.Account++
	other.Versions, other.Current = nil, 0
	addVersion(other, 1)
	if err := shared.CreateKey(ctx, other, 1000); err != nil {
		t.Fatal(err)
	}
	for limit := 1; limit <= 8; limit++ {
		var after *keyid.ID
		n, more := 0, true
		for more {
			ids, m, err := shared.Keys(ctx, "pages", target.Account, after, limit)
			if err != nil || len(ids) > limit {
				t.Fatalf("%v %v", ids, err)
			}
			for _, id := range ids {
				if after != nil && id.String() <= after.String() {
					t.Errorf("%s after %s", id, after)
				}
				after = &id
			}
			n, more = n+len(ids), m
		}
		if n != 7 {
			t.Errorf("limit %d: %d keys", limit, n)
		}
	}
	for _, name := range []string{"alias/a", "alias/a/b", "alias/b"} {
		if err := shared.CreateAlias(ctx, target.KeyName, name, 50, t0, allow); err != nil {
			t.Fatal(err)
		}
	}
	list, more, err := shared.Aliases(ctx, "pages", target.Account, "alias/a", 1)
	if err != nil || !more || len(list) != 1 || list[0].Name != "alias/a/b" {
		t.Errorf("%v %v %v", list, more, err)
	}
}

func TestAccessKeys(t *testing.T) {
	s := openAt(t, t.TempDir())
	defer s.Close()
	ctx := t.Context()
	n := walkPage + 3
	for i := range n {
		k := &AccessKey{ID: fmt.Sprintf("AKIA%04d", i), Account: 1, PrincipalARN: "arn", UserName: "u", Active: i%2 == 0, Created: t0, Secret: secret.New(fmt.Appendf(nil, "secret %d", i))}
		if err := s.PutAccessKey(ctx, k); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	if err := s.AccessKeys(ctx, func(k *AccessKey) error {
		if k.ID != fmt.Sprintf("AKIA%04d", seen) || !k.Secret.Equal(fmt.Appendf(nil, "secret %d", seen)) || k.Active != (seen%2 == 0) || !k.Created.Equal(t0) {
			t.Errorf("%d: %+v", seen, k)
		}
		seen++
		return nil
	}); err != nil || seen != n {
		t.Errorf("%d of %d, %v", seen, n, err)
	}
	stop := errors.New("stop")
	if err := s.AccessKeys(ctx, func(*AccessKey) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
	// The secret is not in the stored value, and belongs to its principal.
	value, _, err := s.get(ctx, accessKeyPrefix+"AKIA0001")
	if err != nil || bytes.Contains(value, []byte("secret 1")) {
		t.Errorf("%s %v", value, err)
	}
	if _, err := s.client.Put(ctx, accessKeyPrefix+"AKIA0001", strings.Replace(string(value), `"principalArn":"arn"`, `"principalArn":"arm"`, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AccessKey(ctx, "AKIA0001"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a secret moved to another principal: %v", err)
	}
	if err := s.AccessKeys(ctx, func(*AccessKey) error { return nil }); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	told := 0
	if err := s.AccessKeys(ctx, func(*AccessKey) error { return nil }, func(err error) { told++ }); err != nil || told == 0 {
		t.Errorf("without those that are damaged, of which %d were told: %v", told, err)
	}
	again := &AccessKey{ID: "AKIA0002", Account: 1, Created: t0, Secret: secret.New([]byte("s"))}
	if err := s.PutAccessKey(ctx, again); !errors.Is(err, ErrExists) {
		t.Errorf("got %v", err)
	}
	again.Revision = 1
	if err := s.PutAccessKey(ctx, again); !errors.Is(err, ErrConflict) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []*AccessKey{
		{ID: "a/b", Secret: again.Secret}, {ID: "", Secret: again.Secret}, {ID: strings.Repeat("a", 129), Secret: again.Secret}, {ID: "a"},
		{ID: "a", Secret: again.Secret, PrincipalARN: strings.Repeat("a", 2049)}, {ID: "a", Secret: again.Secret, UserName: strings.Repeat("a", 257)},
	} {
		if err := s.PutAccessKey(ctx, bad); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
	if _, err := s.AccessKey(ctx, "../x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}
