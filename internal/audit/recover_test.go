package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestTornTail cuts a log at every byte of its unsigned end: what is whole stays, the rest goes.
func TestTornTail(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 5)
	mustClose(t, l)
	signed := len(bytes.Join(entriesOf(t, segmentName(0, plainSuffix), load(t, cfg.Dir)[segmentName(0, plainSuffix)]), nil))
	whole := load(t, cfg.Dir)
	name := segmentName(0, plainSuffix)
	var tail []byte
	ends := []int{signed}
	for i := 5; i < 7; i++ {
		tail = append(tail, byte(len(record(i))>>8), byte(len(record(i))))
		tail = append(tail, record(i)...)
		ends = append(ends, signed+len(tail))
	}
	whole[name] = append(whole[name], tail...)
	step := 11
	if testing.Short() {
		step = 97
	}
	for end := signed; end <= len(whole[name]); end += step {
		for _, zeros := range []int{0, 5000} {
			c := load(t, cfg.Dir)
			torn := copyOf{}
			for k, v := range whole {
				torn[k] = v
			}
			torn[name] = append(bytes.Clone(whole[name][:end]), make([]byte, zeros)...)
			torn.save(t, cfg.Dir, c)
			want := 5
			for i, e := range ends {
				if end >= e {
					want = 5 + i
				}
			}
			// Zeros after half a record may complete it: it was never acknowledged, but it is a record.
			l := mustOpen(t, cfg)
			if err := l.Append(record(99)); err != nil {
				t.Fatal(err)
			}
			mustClose(t, l)
			got := read(t, cfg.Dir)
			if zeros == 0 && len(got) != want+1 || len(got) < want+1 || got[len(got)-1] != string(record(99)) {
				t.Fatalf("cut at %d with %d zeros: %d records, want %d", end, zeros, len(got), want+1)
			}
			mustVerify(t, cfg.Dir, nil)
		}
	}
}

// TestOpenDamaged: what Open needs and what is not as it was signed is refused, with the file's name.
func TestOpenDamaged(t *testing.T) {
	v := makeVictim(t, "", 4000, 0)
	names := map[string]string{}
	for name := range v.whole {
		switch {
		case strings.HasSuffix(name, packedSuffix):
			if first, _ := indexOf(name, packedSuffix); first > 0 {
				names["middle"] = name
			}
		case strings.HasSuffix(name, plainSuffix) && name > names["plain"]: // others may not be compressed yet
			names["plain"] = name
			names["hashes"] = strings.TrimSuffix(name, plainSuffix) + hashesSuffix
		}
	}
	for what, change := range map[string]func(c copyOf){
		"a record of the last segment":    func(c copyOf) { c[names["plain"]] = flip(c[names["plain"]], 20) },
		"a length in the last segment":    func(c copyOf) { c[names["plain"]] = flip(c[names["plain"]], 0) },
		"the end of the last segment":     func(c copyOf) { c[names["plain"]] = c[names["plain"]][:10] },
		"the last segment":                func(c copyOf) { delete(c, names["plain"]) },
		"a segment in the middle":         func(c copyOf) { delete(c, names["middle"]) },
		"the hashes of the last segment":  func(c copyOf) { delete(c, names["hashes"]) },
		"a hash of the tip":               func(c copyOf) { c[names["hashes"]] = flip(c[names["hashes"]], 5) },
		"a hash of level 1":               func(c copyOf) { c[tilesName(1)] = flip(c[tilesName(1)], 5) },
		"level 1":                         func(c copyOf) { delete(c, tilesName(1)) },
		"half of level 1":                 func(c copyOf) { c[tilesName(1)] = c[tilesName(1)][:32] },
		"the newest checkpoint":           func(c copyOf) { c[checkpointTip] = flip(c[checkpointTip], 30) },
		"all checkpoints":                 func(c copyOf) { delete(c, checkpointAll) },
		"the last one of all checkpoints": func(c copyOf) { c[checkpointAll] = flip(c[checkpointAll], len(c[checkpointAll])-30) },
		"all segments": func(c copyOf) {
			for name := range c {
				if strings.HasSuffix(name, plainSuffix) || strings.HasSuffix(name, packedSuffix) {
					delete(c, name)
				}
			}
		},
	} {
		c := copyOf{}
		for name, content := range v.whole {
			c[name] = content
		}
		change(c)
		cfg := testConfig(t.TempDir())
		cfg.SegmentBytes = 4000
		c.save(t, cfg.Dir, nil)
		if l, err := Open(t.Context(), cfg); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				l.Close()
			}
		}
	}
}

// TestForeignFiles: what is not the log's stays and stops no start, and is a fault to Verify; lost+found is none. The log's names are files of its own.
func TestForeignFiles(t *testing.T) {
	cfg := testConfig(t.TempDir())
	var out bytes.Buffer
	cfg.Logger = slog.New(slog.NewTextHandler(&out, nil))
	at := func(name string) string { return filepath.Join(cfg.Dir, name) }
	if err := os.Mkdir(at(lostAndFound), 0o700); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	mustClose(t, l)
	if out.Len() > 0 {
		t.Errorf("lost+found: %s", &out)
	}
	mustVerify(t, cfg.Dir, nil)
	for _, name := range []string{"notes", "notes" + tmpSuffix, "segment-1.log", "tiles-8", tmpSuffix, segmentName(0, plainSuffix) + tmpSuffix} {
		if err := os.WriteFile(at(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		mustClose(t, mustOpen(t, cfg))
		if !strings.Contains(out.String(), "level=WARN") || !strings.Contains(out.String(), "first="+name+" files=1") {
			t.Errorf("%s: %s", name, &out)
		}
		if r, err := Verify(t.Context(), cfg.Dir, testSigner().verifier, nil); !errors.Is(err, ErrTampered) || len(r.Faults) != 1 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if err := os.Remove(at(name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{probeName, checkpointTip + tmpSuffix, segmentName(7, hashesSuffix) + tmpSuffix, segmentName(7, packedSuffix) + tmpSuffix} {
		if err := os.WriteFile(at(name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, cfg.Dir, nil)
		mustClose(t, mustOpen(t, cfg))
		if _, err := os.Lstat(at(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{segmentName(10, plainSuffix), segmentName(10, hashesSuffix), tilesName(1), probeName} {
		if err := os.Symlink("/dev/null", at(name)); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(t.Context(), cfg); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s is a link: %v", name, err)
			if err == nil {
				l.Close()
			}
		}
		if err := os.Remove(at(name)); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// TestOpenAfterCrash: states that a crash leaves behind are repaired.
func TestOpenAfterCrash(t *testing.T) {
	v := makeVictim(t, "", 4000, 0)
	var packedName, plain string
	for name := range v.whole {
		if strings.HasSuffix(name, packedSuffix) {
			packedName = name
		} else if strings.HasSuffix(name, plainSuffix) {
			plain = max(plain, name) // others may not be compressed yet
		}
	}
	all := checkpointsOf(t, v.whole)
	for what, change := range map[string]func(c copyOf){
		"the newest checkpoint is not replaced yet": func(c copyOf) { c[checkpointTip] = bytes.TrimSuffix(all[len(all)-2], []byte("\n")) },
		"half a checkpoint":                         func(c copyOf) { c[checkpointAll] = append(bytes.Clone(c[checkpointAll]), all[0][:50]...) },
		"temporary files":                           func(c copyOf) { c[packedName+tmpSuffix] = []byte("x"); c[probeName] = []byte("x") },
		"a compressed segment that is still there": func(c copyOf) {
			c[strings.TrimSuffix(packedName, ".zst")] = bytes.Join(entriesOf(t, packedName, c[packedName]), nil)
		},
		"a new segment without hashes": func(c copyOf) {
			first, _ := indexOf(plain, plainSuffix)
			c[segmentName(first+uint64(len(entriesOf(t, plain, c[plain]))), plainSuffix)] = nil
		},
		"hashes of a segment that was lost": func(c copyOf) { c[segmentName(1440, hashesSuffix)] = nil },
		"hashes that no checkpoint covers": func(c copyOf) {
			name := strings.TrimSuffix(plain, plainSuffix) + hashesSuffix
			c[name] = append(bytes.Clone(c[name]), make([]byte, 77)...)
			c[tilesName(1)] = append(bytes.Clone(c[tilesName(1)]), make([]byte, 50)...)
		},
	} {
		c := copyOf{}
		for name, content := range v.whole {
			c[name] = content
		}
		change(c)
		cfg := testConfig(t.TempDir())
		cfg.SegmentBytes = 4000
		s := &store{newest: v.newest}
		cfg.Newest, cfg.Publish = s.Newest, s.Publish
		c.save(t, cfg.Dir, nil)
		if r, err := verify(t.Context(), cfg.Dir, testSigner().verifier, s.newest, 0); err != nil || r.Covered != 1440 ||
			(len(r.Leftovers) == 0) != slices.Contains([]string{"temporary files", "a new segment without hashes", "hashes of a segment that was lost"}, what) {
			t.Errorf("%s, before the start: %+v, %v", what, r, err)
		}
		l, err := Open(t.Context(), cfg)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if before := l.Stats(); before.Next != 1440 {
			t.Errorf("%s: %+v", what, before)
		}
		before := l.Stats().Next
		appendN(t, l, 0, 300)
		mustClose(t, l)
		if r := mustVerify(t, cfg.Dir, s.newest); r.Covered != before+300 {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

// TestVerifyBegun: a log that has no checkpoint yet is not covered, and is not taken for one that never had any.
func TestVerifyBegun(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.CheckpointEvery = time.Hour
	l := mustOpen(t, cfg)
	mustVerify(t, cfg.Dir, nil)
	appendN(t, l, 0, 10)
	if r := mustVerify(t, cfg.Dir, nil); r.Covered != 0 || r.Checkpoints != 0 || r.Uncovered != 10 {
		t.Errorf("%+v", r)
	}
	await(t, "integration", func() bool { return l.Stats().Integrated == 10 })
	c := load(t, cfg.Dir)
	mustClose(t, l)
	newest := load(t, cfg.Dir)[checkpointTip]
	dir := t.TempDir()
	c.save(t, dir, nil)
	if r, err := Verify(t.Context(), dir, testSigner().verifier, newest); !errors.Is(err, ErrTampered) {
		t.Errorf("without the checkpoint that is kept elsewhere: %+v, %v", r, err)
	}
	// The first checkpoint, on its way.
	all := load(t, cfg.Dir)[checkpointAll]
	for _, part := range [][]byte{all, all[:50], {}} {
		c[checkpointAll] = part
		c.save(t, dir, nil)
		if r, err := verify(t.Context(), dir, testSigner().verifier, nil, 0); err != nil || len(part) > 0 && len(r.Leftovers) == 0 {
			t.Errorf("%d bytes of the first checkpoint: %+v, %v", len(part), r, err)
		}
	}
}

// TestVerifyRemoval: a removal that a crash ended in the middle verifies, and is finished at the start. Without a record of it, it does not.
func TestVerifyRemoval(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 4000
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 400)
	mustClose(t, l)
	files, err := list(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	firsts := files.segments()
	first := firsts[len(firsts)-10]
	remove := func(c copyOf, before uint64) {
		for _, s := range firsts {
			if s < before {
				delete(c, segmentName(s, plainSuffix))
				delete(c, segmentName(s, packedSuffix))
			}
		}
	}
	c := load(t, cfg.Dir)
	remove(c, first)
	dir := t.TempDir()
	c.save(t, dir, nil)
	if r, err := verify(t.Context(), dir, testSigner().verifier, nil, 0); !errors.Is(err, ErrTampered) {
		t.Fatalf("without a record of it: %+v, %v", r, err)
	}

	l = mustOpen(t, cfg)
	if err := l.appendOwn(eventRetention, map[string]any{"firstIndex": first}); err != nil {
		t.Fatal(err)
	}
	mustClose(t, l)
	cfg.SegmentBytes = 1 << 20
	for before := range uint64(len(firsts) - 9) { // how far the removal has come
		c := load(t, cfg.Dir)
		remove(c, firsts[before])
		broken := cfg
		broken.Dir = t.TempDir()
		c.save(t, broken.Dir, nil)
		r, err := verify(t.Context(), broken.Dir, testSigner().verifier, nil, 0)
		if err != nil || r.First != firsts[before] || (before > 1) != (len(r.Leftovers) > 0) { // the first ones are those of the tile that is kept
			t.Errorf("%d segments removed: %+v, %v", before, r, err)
		}
		if before > 0 { // hashes of nothing that was removed
			name := segmentName(firsts[before]-1, hashesSuffix)
			if _, ok := c[name]; !ok {
				if err := os.WriteFile(filepath.Join(broken.Dir, name), make([]byte, 3*32), 0o600); err != nil {
					t.Fatal(err)
				}
				if r, err := verify(t.Context(), broken.Dir, testSigner().verifier, nil, 0); !errors.Is(err, ErrTampered) {
					t.Errorf("%d segments removed, foreign hashes: %+v, %v", before, r, err)
				}
				if err := os.Remove(filepath.Join(broken.Dir, name)); err != nil {
					t.Fatal(err)
				}
			}
		}
		mustClose(t, mustOpen(t, broken))
		if r := mustVerify(t, broken.Dir, nil); len(r.Leftovers) > 0 {
			t.Errorf("%d segments removed, after a start: %+v", before, r)
		}
	}
}

// TestUnsignedTail: hashes and segments after the newest checkpoint are found again, and observed.
func TestUnsignedTail(t *testing.T) {
	v := makeVictim(t, "", 4000, 0)
	c := copyOf{}
	all := checkpointsOf(t, v.whole)
	for name, content := range v.whole {
		c[name] = content
	}
	// The state of the machine's disk, had it stopped before the last checkpoint was signed: nothing of it is compressed.
	before, err := ParseCheckpoint(bytes.TrimSuffix(all[len(all)-2], []byte("\n")), testSigner().verifier)
	if err != nil {
		t.Fatal(err)
	}
	c[checkpointTip] = bytes.TrimSuffix(all[len(all)-2], []byte("\n"))
	c[checkpointAll] = bytes.Join(all[:len(all)-1], nil)
	for name, content := range v.whole {
		first, ok := indexOf(name, packedSuffix)
		if entries := entriesOfIf(t, ok, name, content); ok && first+uint64(len(entries)) > before.Size {
			delete(c, name)
			c[segmentName(first, plainSuffix)] = bytes.Join(entries, nil)
		}
	}
	for _, from := range []*uint64{nil, new(uint64), ptr(before.Size - 7), ptr(before.Size + 7), ptr(uint64(math.MaxUint64))} {
		cfg := testConfig(t.TempDir())
		cfg.SegmentBytes = 4000
		var seen []uint64
		cfg.Observe = func(index uint64, _ []byte) { seen = append(seen, index) }
		cfg.ObserveFrom = from
		c.save(t, cfg.Dir, nil)
		l := mustOpen(t, cfg)
		mustClose(t, l)
		mustVerify(t, cfg.Dir, nil)
		want := before.Size
		if from != nil {
			want = min(want, *from)
		}
		if len(seen) != int(1440-want) || seen[0] != want {
			t.Errorf("from %v: observed %d records", from, len(seen))
		}
	}
}

func entriesOfIf(t *testing.T, ok bool, name string, content []byte) [][]byte {
	if !ok {
		return nil
	}
	return entriesOf(t, name, content)
}

func ptr[T any](v T) *T { return &v }

// TestRollback: an older copy of the whole log, or none, is refused at start, unless the operator takes it; then the log says so.
func TestRollback(t *testing.T) {
	v := makeVictim(t, "", 4000, 0)
	for what, c := range map[string]copyOf{"an older copy": v.older[2], "nothing": {}} {
		cfg := testConfig(t.TempDir())
		s := &store{newest: v.newest}
		cfg.Newest, cfg.Publish = s.Newest, s.Publish
		c.save(t, cfg.Dir, nil)
		if l, err := Open(t.Context(), cfg); !errors.Is(err, ErrRolledBack) {
			if err == nil {
				l.Close()
			}
			t.Fatalf("%s: %v", what, err)
		}
		cfg.AcceptRollback = true
		l := mustOpen(t, cfg)
		mustClose(t, l)
		mustVerify(t, cfg.Dir, s.newest)
		found := 0
		if err := Search(t.Context(), cfg.Dir, Filter{EventName: eventRollback}, func(record []byte) bool {
			found++
			return true
		}); err != nil || found != 1 {
			t.Errorf("%s: %d records of it, %v", what, found, err)
		}
		cfg.AcceptRollback = false
		mustClose(t, mustOpen(t, cfg))
	}

	// Another log, as long: it does not continue the published one.
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 2000)
	mustClose(t, l)
	s := &store{newest: v.newest}
	cfg.Newest = s.Newest
	if l, err := Open(t.Context(), cfg); !errors.Is(err, ErrRolledBack) {
		if err == nil {
			l.Close()
		}
		t.Errorf("another log: %v", err)
	}
	cfg.Newest = func(context.Context) ([]byte, error) { return nil, context.DeadlineExceeded }
	if _, err := Open(t.Context(), cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	cfg.Origin = "keyplane/us-east-1/other"
	if _, err := Open(t.Context(), cfg); err == nil {
		t.Error("opened under another name")
	}
}

// TestPublish: a checkpoint that cannot be published is tried again, also when it had been after all; another log under the name is an error.
func TestPublish(t *testing.T) {
	cfg := testConfig(t.TempDir())
	s := &store{}
	cfg.Newest, cfg.Publish = s.Newest, s.Publish
	l := mustOpen(t, cfg)
	set := func(change func()) {
		s.mu.Lock()
		defer s.mu.Unlock()
		change()
	}
	set(func() { s.fail = errors.New("no leader") })
	appendN(t, l, 0, 1)
	await(t, "an unhealthy log", func() bool { err := l.Err(); return err != nil && strings.Contains(err.Error(), "no leader") })
	set(func() { s.fail = nil })
	await(t, "a healthy log", func() bool { return l.Err() == nil && l.Stats().Published == 1 })
	set(func() { s.lose = true })
	appendN(t, l, 1, 1)
	await(t, "publication", func() bool { return l.Stats().Published == 2 })
	appendN(t, l, 2, 1)
	await(t, "publication", func() bool { return l.Stats().Published == 3 })
	set(func() { s.newest = []byte("another log's") })
	appendN(t, l, 3, 1)
	await(t, "an unhealthy log", func() bool { err := l.Err(); return err != nil && strings.Contains(err.Error(), "another log") })
	if err := l.Close(); err == nil {
		t.Error("Close says nothing of a checkpoint that is not published")
	}
}

// TestCloseUnpublished: Close does not wait for a store that does not answer as long as a log that goes on does.
func TestCloseUnpublished(t *testing.T) {
	cfg := testConfig(t.TempDir())
	asked := make(chan struct{}, 100)
	var mu sync.Mutex
	var ends []error
	cfg.Publish = func(ctx context.Context, _, _ []byte) error {
		asked <- struct{}{}
		<-ctx.Done()
		mu.Lock()
		defer mu.Unlock()
		ends = append(ends, ctx.Err())
		return ctx.Err()
	}
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 1)
	<-asked
	if err := l.Close(); err == nil {
		t.Error("Close says nothing of a checkpoint that is not published")
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ends) > 3 { // that on its way, another that began before the end of the integrator, the last one
		t.Errorf("%d publications", len(ends))
	}
	for i, err := range ends {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("publication %d of %d ended with %v", i, len(ends), err)
		}
	}
	mustVerify(t, cfg.Dir, nil)
}

// TestSignerFails: records are appended all the same, Err tells, and the next signature covers them.
func TestSignerFails(t *testing.T) {
	cfg := testConfig(t.TempDir())
	s := &failingSigner{signer: testSigner()}
	s.fail(errors.New("CKR_DEVICE_ERROR"))
	cfg.Signer = s
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	await(t, "an unhealthy log", func() bool { err := l.Err(); return err != nil && strings.Contains(err.Error(), "CKR_DEVICE_ERROR") })
	appendN(t, l, 10, 10)
	s.fail(nil)
	await(t, "a checkpoint", func() bool { return l.Stats().Checkpoint == 20 && l.Err() == nil })
	mustClose(t, l)
	mustVerify(t, cfg.Dir, nil)
}

// TestSignerHangs: Err tells that as well.
func TestSignerHangs(t *testing.T) {
	cfg := testConfig(t.TempDir())
	s := &failingSigner{signer: testSigner()}
	cfg.Signer = s
	l := mustOpen(t, cfg)
	s.mu.Lock()
	appendN(t, l, 0, 10)
	await(t, "an unhealthy log", func() bool { return l.Err() != nil })
	appendN(t, l, 10, 10)
	s.mu.Unlock()
	await(t, "a healthy log", func() bool { return l.Err() == nil })
	mustClose(t, l)
}

type failingSigner struct {
	signer
	mu  sync.Mutex
	err error
}

func (s *failingSigner) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *failingSigner) Sign(msg []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return s.signer.Sign(msg)
}

// TestVerifyWhileWriting: a log that is being written, sealed and compressed is never taken for a tampered one.
func TestVerifyWhileWriting(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 200_000
	l := mustOpen(t, cfg)
	a := startAppending(t, l, 2)
	await(t, "checkpoint", func() bool { return l.Stats().Checkpoint > 0 })
	for range 20 {
		a.awaitMore(t, "success", &a.good, 100)
		if r, err := Verify(t.Context(), cfg.Dir, testSigner().verifier, nil); err != nil {
			t.Fatalf("%v\n%+v", err, r)
		}
	}
	a.end(t, cfg.Dir)
}

// The child of TestKill: it appends for ever and prints the number of each record that is acknowledged.
func TestKillChild(t *testing.T) {
	dir := os.Getenv("AUDIT_KILL_DIR")
	if dir == "" {
		t.Skip("only as a child of TestKill")
	}
	der, err := base64.StdEncoding.DecodeString(os.Getenv("AUDIT_KILL_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	sign, err := newSigner(key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(dir)
	cfg.Signer, cfg.Verifier, cfg.SegmentBytes = sign, sign.verifier, 100_000
	if os.Getenv("AUDIT_KILL_FSYNC") != "" {
		cfg.Durability = Fsync
	}
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	for c := range 8 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), c, i)
				if err := l.Append([]byte(`{"eventID":"` + id + `","pad":"` + strings.Repeat("x", 700) + `"}`)); err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Println("acknowledged", id)
				mu.Unlock()
			}
		}()
	}
	select {}
}

// TestKill kills a process that appends, again and again: every record that was acknowledged is there, and the log goes on.
func TestKill(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	der, err := x509.MarshalPKCS8PrivateKey(testSigner().key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	acknowledged := 0
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKillChild$")
		cmd.Env = append(os.Environ(), "AUDIT_KILL_DIR="+dir, "AUDIT_KILL_KEY="+base64.StdEncoding.EncodeToString(der))
		if round%2 == 1 {
			cmd.Env = append(cmd.Env, "AUDIT_KILL_FSYNC=1")
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var ids []string
		enough := 100 + rand.IntN(2000)
		var kill *time.Timer
		for lines.Scan() {
			id, ok := strings.CutPrefix(lines.Text(), "acknowledged ")
			if !ok {
				t.Fatalf("child: %s", lines.Text())
			}
			if ids = append(ids, id); len(ids) == enough {
				kill = time.AfterFunc(time.Duration(rand.IntN(20))*time.Millisecond, func() { cmd.Process.Kill() })
			}
		}
		if kill == nil {
			rest, _ := io.ReadAll(out)
			t.Fatalf("the child ended by itself after %d records: %v %s", len(ids), cmd.Wait(), rest)
		}
		cmd.Wait()
		there := map[string]int{}
		for _, r := range read(t, dir) {
			id, _, _ := strings.Cut(strings.TrimPrefix(r, `{"eventID":"`), `"`)
			there[id]++
		}
		for i, id := range ids {
			if there[id] != 1 && i < len(ids)-1 || there[id] > 1 { // the last line may be cut
				t.Fatalf("round %d: record %s was acknowledged and is there %d times", round, id, there[id])
			}
		}
		acknowledged += len(ids)
		if r, err := verify(t.Context(), dir, testSigner().verifier, nil, 0); err != nil {
			t.Errorf("round %d, before the restart: %+v, %v", round, r, err)
		}
	}
	mustClose(t, mustOpen(t, testConfig(dir)))
	r := mustVerify(t, dir, nil)
	t.Logf("%d acknowledged over %d kills, %d in the log", acknowledged, rounds, r.Records)
}
