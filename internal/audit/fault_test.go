package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// faulty is a segment whose writes hang, are cut short or fail as the test says.
type faulty struct {
	file
	f    *faults
	path string
}

type faults struct {
	mu       sync.Mutex
	hang     chan struct{} // writes wait for it to be closed
	syncErr  error
	syncHang chan struct{} // syncs that are to fail wait for it to be closed
	syncOf   string        // syncErr is that of files whose name ends so
	syncLoss func()        // called within a sync that fails: what the disk loses by it
	short    bool          // half of a write is done, then the disk is full
	opened   int
	messages int
}

func (f *faults) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *faults) open(path string, create bool) (file, error) {
	inner, err := openAppend(path, create)
	f.set(func() { f.opened++ })
	return &faulty{inner, f, path}, err
}

func (f *faulty) Write(p []byte) (int, error) {
	f.f.mu.Lock()
	hang, short := f.f.hang, f.f.short
	f.f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if short {
		n, _ := f.file.Write(p[:len(p)/2])
		return n, syscall.ENOSPC
	}
	return f.file.Write(p)
}

func (f *faulty) Sync() error {
	f.f.mu.Lock()
	err := f.f.syncErr
	hang, fails := f.f.syncHang, err != nil && strings.HasSuffix(f.path, f.f.syncOf)
	if fails && f.f.syncLoss != nil {
		f.f.syncLoss()
	}
	f.f.mu.Unlock()
	if fails {
		if hang != nil {
			<-hang
		}
		return err
	}
	return f.file.Sync()
}

// appender keeps appending from several goroutines and remembers which records succeeded.
type appender struct {
	l       *Log
	stop    atomic.Bool
	wg      sync.WaitGroup
	mu      sync.Mutex
	done    map[string]bool
	slowest time.Duration
	good    atomic.Uint64
	bad     atomic.Uint64
}

func startAppending(t testing.TB, l *Log, callers int) *appender {
	a := &appender{l: l, done: map[string]bool{}}
	for c := range callers {
		a.wg.Go(func() {
			for i := 0; !a.stop.Load(); i++ {
				rec := record(c*1_000_000 + i)
				began := time.Now()
				err := l.Append(rec)
				took := time.Since(began)
				a.mu.Lock()
				a.slowest = max(a.slowest, took)
				if err == nil {
					a.done[string(rec)] = true
				}
				a.mu.Unlock()
				switch {
				case err == nil:
					a.good.Add(1)
				case errors.Is(err, ErrUnavailable):
					a.bad.Add(1)
					time.Sleep(time.Millisecond)
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	return a
}

// end stops, closes the log and checks that every success has its record.
func (a *appender) end(t testing.TB, dir string) {
	t.Helper()
	a.stop.Store(true)
	a.wg.Wait()
	if err := a.l.Close(); err != nil {
		t.Fatal(err)
	}
	a.check(t, dir)
}

func (a *appender) check(t testing.TB, dir string) {
	t.Helper()
	there := map[string]int{}
	for _, r := range read(t, dir) {
		there[r]++
	}
	for r := range a.done {
		if there[r] != 1 {
			t.Fatalf("a record that was acknowledged is there %d times: %s", there[r], r)
		}
	}
	mustVerify(t, dir, nil)
}

func (a *appender) awaitMore(t testing.TB, what string, n *atomic.Uint64, more uint64) {
	t.Helper()
	from := n.Load()
	await(t, what, func() bool { return n.Load() >= from+more })
}

// TestHungDisk: callers of a write that does not return fail in time, later ones at once, memory stays bounded, and when the disk answers again
// so does the log.
func TestHungDisk(t *testing.T) {
	for _, d := range []Durability{Write, Fsync} {
		f := &faults{}
		cfg := testConfig(t.TempDir())
		cfg.Durability, cfg.Timeout, cfg.openSegment = d, 250*time.Millisecond, f.open
		l := mustOpen(t, cfg)
		a := startAppending(t, l, 32)
		a.awaitMore(t, "success", &a.good, 100)
		hang := make(chan struct{})
		f.set(func() { f.hang = hang })
		a.awaitMore(t, "refusal", &a.bad, 2000)
		if err := l.Err(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Err while it hangs: %v", err)
		}
		began := time.Now()
		for range 10 {
			if err := l.Append(record(0)); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took > cfg.Timeout {
			t.Errorf("ten refusals took %v", took)
		}
		a.mu.Lock()
		slowest := a.slowest
		a.mu.Unlock()
		if slowest > 20*cfg.Timeout { // a busy machine
			t.Errorf("an answer took %v", slowest)
		}
		f.set(func() { f.hang = nil })
		close(hang)
		back := time.Now()
		a.awaitMore(t, "success after it", &a.good, 1)
		t.Logf("%v: slowest answer %v, back after %v", d, slowest, time.Since(back))
		await(t, "health", func() bool { return l.Err() == nil })
		if s := l.Stats(); s.Failed == 0 || s.Refused == 0 {
			t.Errorf("stats %+v", s)
		}
		l.mu.Lock()
		if len(l.free) > groups {
			t.Errorf("%d groups", len(l.free))
		}
		l.mu.Unlock()
		a.end(t, cfg.Dir)
	}
}

// A disk that hangs for ever does not keep Close for ever, and what was acknowledged is there at the next start.
func TestHungClose(t *testing.T) {
	if testing.Short() {
		t.Skip("waits until Close gives up")
	}
	f := &faults{}
	cfg := testConfig(t.TempDir())
	cfg.Timeout, cfg.openSegment = 50*time.Millisecond, f.open
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	hang := make(chan struct{})
	f.set(func() { f.hang = hang })
	if err := l.Append(record(10)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	if err := l.Close(); err == nil {
		t.Error("closed")
	}
	close(hang)
}

// TestFailedSync: after an fdatasync that failed, the segment is left, nobody was told of a success, and what was acknowledged before is still there.
func TestFailedSync(t *testing.T) {
	f := &faults{}
	cfg := testConfig(t.TempDir())
	cfg.Durability, cfg.openSegment = Fsync, f.open
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 50)
	f.set(func() { f.syncErr = syscall.EIO })
	for i := range 20 {
		if err := l.Append(record(1000 + i)); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if err := l.Err(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Err: %v", err)
	}
	f.set(func() { f.syncErr = nil })
	began := time.Now()
	await(t, "success after it", func() bool { return l.Append(record(50)) == nil })
	t.Logf("back after %v", time.Since(began))
	appendN(t, l, 51, 9)
	mustClose(t, l)
	var want []string
	for i := range 60 {
		want = append(want, string(record(i)))
	}
	if got := read(t, cfg.Dir); !slices.Equal(got, want) {
		t.Errorf("%d records, want %d", len(got), len(want))
	}
	if r := mustVerify(t, cfg.Dir, nil); r.Segments != 2 {
		t.Errorf("%d segments", r.Segments)
	}
}

// If what was acknowledged is not on the disk after a failed fdatasync, the log stays down and says so.
func TestFailedSyncLost(t *testing.T) {
	f := &faults{}
	cfg := testConfig(t.TempDir())
	cfg.Durability, cfg.openSegment = Fsync, f.open
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 50)
	await(t, "integration", func() bool { return l.Stats().Integrated == 50 })
	f.set(func() { f.syncErr = syscall.EIO })
	if err := l.Append(record(50)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.Dir, segmentName(0, plainSuffix))
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(content[500:], "lost")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.syncErr = nil })
	await(t, "damage", func() bool { return errors.Is(l.Err(), ErrDamaged) })
	if err := l.Append(record(51)); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, ErrDamaged) {
		t.Errorf("Close: %v", err)
	}
}

// TestFailedSyncOfHashes: hashes that a failed fsync has lost are written again before a checkpoint covers them.
func TestFailedSyncOfHashes(t *testing.T) {
	for _, name := range []string{hashesSuffix, tilesName(1)} {
		for _, d := range []Durability{Write, Fsync} {
			f := &faults{}
			cfg := testConfig(t.TempDir())
			cfg.Durability, cfg.SegmentBytes, cfg.openSegment = d, 200_000, f.open
			l := mustOpen(t, cfg)
			appendN(t, l, 0, 500)
			await(t, "checkpoint", func() bool { return l.Stats().Checkpoint == 500 })
			f.set(func() { f.syncErr, f.syncOf = syscall.EIO, name })
			appendN(t, l, 500, 1000)
			await(t, "failure", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return errors.Is(l.ckpt.err, syscall.EIO) })
			await(t, "integration", func() bool { return l.Stats().Integrated == 1500 })
			if s := l.Stats(); s.Checkpoint >= 1500 {
				t.Fatalf("stats %+v", s)
			}
			covered := l.Stats().Checkpoint
			var lost error
			losses := 0
			f.set(func() { f.syncLoss = func() { losses++; lost = errors.Join(lost, loseHashes(cfg.Dir, name, covered)) } })
			await(t, "loss", func() (did bool) { f.set(func() { did = losses > 0 }); return did })
			f.set(func() { f.syncErr, f.syncLoss = nil, nil })
			if lost != nil {
				t.Fatal(lost)
			}
			await(t, "checkpoint after it", func() bool { return l.Stats().Checkpoint == 1500 })
			if r := mustVerify(t, cfg.Dir, nil); r.Covered != 1500 {
				t.Errorf("%s, %v: %+v", name, d, r)
			}
			appendN(t, l, 1500, 500)
			mustClose(t, l)
			mustVerify(t, cfg.Dir, nil)
		}
	}
}

// loseHashes clears what the files of dir whose names end in name have of the records from index covered on.
func loseHashes(dir, name string, covered uint64) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), name) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		first, _ := indexOf(e.Name(), hashesSuffix)
		from := (int(covered) - int(first)) * tlog.HashSize
		if name == tilesName(1) {
			from = int(covered) >> tileHeight * tlog.HashSize
		}
		if from = max(0, from); from < len(content) {
			clear(content[from:])
			if err := os.WriteFile(filepath.Join(dir, e.Name()), content, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestFailedSyncOfSegment: after a failed fsync of a segment nothing is signed that the disk does not have. If it has lost records, the log stays down.
func TestFailedSyncOfSegment(t *testing.T) {
	for _, gone := range []bool{false, true} {
		f := &faults{}
		cfg := testConfig(t.TempDir())
		cfg.SegmentBytes, cfg.openSegment = 200_000, f.open
		l := mustOpen(t, cfg)
		appendN(t, l, 0, 50)
		await(t, "checkpoint", func() bool { return l.Stats().Checkpoint == 50 })
		f.set(func() { f.syncErr, f.syncOf = syscall.EIO, plainSuffix })
		appendN(t, l, 50, 500)
		await(t, "integration", func() bool { return l.Stats().Integrated == 550 })
		await(t, "failure", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return errors.Is(l.ckpt.err, syscall.EIO) })
		if s := l.Stats(); s.Checkpoint >= 550 {
			t.Fatalf("stats %+v", s)
		}
		if gone {
			files, err := list(cfg.Dir)
			if err != nil {
				t.Fatal(err)
			}
			segment, err := os.OpenFile(filepath.Join(cfg.Dir, segmentName(files.plain[len(files.plain)-1], plainSuffix)), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := segment.WriteAt([]byte("lost"), 500); err != nil {
				t.Fatal(err)
			}
			segment.Close()
		}
		f.set(func() { f.syncErr = nil })
		if !gone {
			await(t, "checkpoint after it", func() bool { return l.Stats().Checkpoint == 550 })
			appendN(t, l, 550, 50)
			mustClose(t, l)
			mustVerify(t, cfg.Dir, nil)
			continue
		}
		await(t, "damage", func() bool { return errors.Is(l.Err(), ErrDamaged) })
		for range 3 { // also after commits and repairs that succeed
			l.mu.Lock()
			l.recovered()
			l.mu.Unlock()
			if err := l.Append(record(0)); !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		}
		if s := l.Stats(); s.Checkpoint >= 550 {
			t.Errorf("stats %+v", s)
		}
		if err := l.Close(); !errors.Is(err, ErrDamaged) {
			t.Errorf("Close: %v", err)
		}
	}
}

// TestShortWrite: half a record stays nowhere.
func TestShortWrite(t *testing.T) {
	f := &faults{}
	cfg := testConfig(t.TempDir())
	cfg.openSegment = f.open
	l := mustOpen(t, cfg)
	a := startAppending(t, l, 8)
	for range 5 {
		a.awaitMore(t, "success", &a.good, 20)
		f.set(func() { f.short = true })
		a.awaitMore(t, "refusal", &a.bad, 20)
		f.set(func() { f.short = false })
	}
	a.awaitMore(t, "success", &a.good, 20)
	a.end(t, cfg.Dir)
}

// mountTmpfs mounts a small file system, or skips.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=700"); err != nil {
		t.Skipf("cannot mount a tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestDiskFull fills a real file system: everybody is told, nothing is torn, and when there is room the log is back within a second.
func TestDiskFull(t *testing.T) {
	dir := mountTmpfs(t, "64m")
	for _, d := range []Durability{Write, Fsync} {
		cfg := testConfig(filepath.Join(dir, d.String()))
		cfg.Durability, cfg.SegmentBytes = d, 200_000
		l := mustOpen(t, cfg)
		a := startAppending(t, l, 8)
		a.awaitMore(t, "success", &a.good, 50)
		ballast := filepath.Join(dir, "ballast")
		for range 3 {
			fill(t, ballast)
			a.awaitMore(t, "refusal", &a.bad, 100)
			if err := l.Err(); !errors.Is(err, ErrUnavailable) {
				t.Errorf("Err on a full disk: %v", err)
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			a.awaitMore(t, "success after it", &a.good, 20)
			t.Logf("%v: back after %v", d, time.Since(began))
		}
		a.end(t, cfg.Dir)
		if err := os.RemoveAll(cfg.Dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCloseDiskFull: on a full disk Close does what it can and ends. The next start has what was acknowledged.
func TestCloseDiskFull(t *testing.T) {
	dir := mountTmpfs(t, "16m")
	cfg := testConfig(filepath.Join(dir, "audit"))
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 2)
	await(t, "checkpoint", func() bool { return l.Stats().Checkpoint == 2 })
	fill(t, filepath.Join(dir, "ballast"))
	n := 2
	for ; l.Append([]byte("{}")) == nil; n++ { // the last page of the segment has room for more records than that of the hashes
	}
	await(t, "an error of the integrator", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return errors.Is(l.ckpt.behind, syscall.ENOSPC) })
	began := time.Now()
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(began); took > closeMax/2 {
		t.Errorf("Close took %v", took)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	mustClose(t, mustOpen(t, cfg))
	if got := read(t, cfg.Dir); len(got) < n {
		t.Errorf("%d records, %d were acknowledged", len(got), n)
	}
	mustVerify(t, cfg.Dir, nil)
}

func fill(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := 64 << 10; n > 0; {
		if _, err := f.Write(make([]byte, n)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			n /= 2
		}
	}
}

// TestReadOnly opens and verifies a log on a file system that is read-only. (One that is being written to cannot be made read-only.)
func TestReadOnly(t *testing.T) {
	dir := mountTmpfs(t, "16m")
	cfg := testConfig(filepath.Join(dir, "audit"))
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 20)
	mustClose(t, l)
	remount := func(flags uintptr) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	if l, err := Open(t.Context(), cfg); !errors.Is(err, syscall.EROFS) {
		if err == nil {
			l.Close()
		}
		t.Errorf("Open on a read-only file system: %v", err)
	}
	mustVerify(t, cfg.Dir, nil)
	remount(0)
	l = mustOpen(t, cfg)
	appendN(t, l, 20, 20)
	mustClose(t, l)
	if len(read(t, cfg.Dir)) != 40 {
		t.Error("records are missing")
	}
}

// TestRotationRefused: a directory in which no segment can be begun. Root is not stopped by permissions, so the directory is moved away.
func TestRotationRefused(t *testing.T) {
	parent := t.TempDir()
	cfg := testConfig(filepath.Join(parent, "audit"))
	cfg.SegmentBytes = 20_000
	l := mustOpen(t, cfg)
	a := startAppending(t, l, 4)
	a.awaitMore(t, "success", &a.good, 50)
	away := filepath.Join(parent, "away")
	if err := os.Rename(cfg.Dir, away); err != nil {
		t.Fatal(err)
	}
	a.awaitMore(t, "refusal", &a.bad, 50)
	if err := os.Rename(away, cfg.Dir); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a.awaitMore(t, "success after it", &a.good, 50)
	t.Logf("back after %v", time.Since(began))
	a.end(t, cfg.Dir)
}

// TestRotationLeftover: an empty segment that is there already is taken, one with something in it is not.
func TestRotationLeftover(t *testing.T) {
	cfg := testConfig(t.TempDir())
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	rotate := func(content string) string {
		path := filepath.Join(cfg.Dir, segmentName(l.Stats().Next, plainSuffix))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		l.seal.Store(true)
		l.rouse()
		return path
	}
	rotate("")
	await(t, "rotation", func() bool { return l.Stats().Segments == 2 })
	appendN(t, l, 10, 10)
	path := rotate("x")
	await(t, "refusal", func() bool { return errors.Is(l.Err(), fs.ErrExist) })
	if content, err := os.ReadFile(path); err != nil || string(content) != "x" {
		t.Errorf("%q, %v", content, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	await(t, "rotation after it", func() bool { return l.Stats().Segments == 3 && l.Err() == nil })
	appendN(t, l, 20, 10)
	mustClose(t, l)
	if r := mustVerify(t, cfg.Dir, nil); r.Records != 30 {
		t.Errorf("%+v", r)
	}
}

// TestCheckpointUnnamed: a checkpoint that is in the file of all stays there when its own file cannot be written, and no other is signed before it can.
func TestCheckpointUnnamed(t *testing.T) {
	cfg := testConfig(t.TempDir())
	s := &store{}
	cfg.Newest, cfg.Publish = s.Newest, s.Publish
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	await(t, "checkpoint", func() bool { return l.Stats().Published == 10 })
	obstacle := filepath.Join(cfg.Dir, checkpointTip+tmpSuffix)
	if err := os.MkdirAll(filepath.Join(obstacle, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	appendN(t, l, 10, 10)
	await(t, "failure", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.ckpt.err != nil && l.ckpt.unnamed })
	all := load1(t, cfg.Dir, checkpointAll)
	appendN(t, l, 20, 10)
	await(t, "integration", func() bool { return l.Stats().Integrated == 30 })
	for range 3 { // attempts
		l.mu.Lock()
		l.ckpt.err = nil
		l.mu.Unlock()
		await(t, "failure", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.ckpt.err != nil })
	}
	if now := load1(t, cfg.Dir, checkpointAll); !bytes.Equal(now, all) {
		t.Errorf("the file of all checkpoints was\n%s\nand is\n%s", all, now)
	}
	if p := l.Stats().Published; p != 10 {
		t.Errorf("%d records are published", p)
	}
	if err := os.RemoveAll(obstacle); err != nil {
		t.Fatal(err)
	}
	await(t, "checkpoint", func() bool { return l.Stats().Published == 30 })
	mustClose(t, l)
	if now := load1(t, cfg.Dir, checkpointAll); !bytes.HasPrefix(now, all) || len(now) == len(all) {
		t.Errorf("the file of all checkpoints was\n%s\nand is\n%s", all, now)
	}
	if r := mustVerify(t, cfg.Dir, s.newest); len(r.Leftovers) > 0 {
		t.Errorf("%+v", r)
	}
}

func load1(t testing.TB, dir, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestManyCallers: more records than the groups hold are refused while the disk hangs, not queued.
func TestManyCallers(t *testing.T) {
	f := &faults{hang: make(chan struct{})}
	cfg := testConfig(t.TempDir())
	cfg.Timeout, cfg.openSegment = 30*time.Second, f.open
	l := mustOpen(t, cfg)
	big := make([]byte, RecordMax)
	for i := range big {
		big[i] = 'x'
	}
	var wg sync.WaitGroup
	const callers = 400 // 26 MB, of which the groups hold 8
	var refused, done atomic.Int64
	for range callers {
		wg.Go(func() {
			if err := l.Append(big); errors.Is(err, ErrUnavailable) {
				refused.Add(1)
			} else if err == nil {
				done.Add(1)
			}
		})
	}
	await(t, "refusals", func() bool { return refused.Load() >= callers-groups*(groupSize/RecordMax) })
	close(f.hang)
	f.set(func() { f.hang = nil })
	wg.Wait()
	if done.Load()+refused.Load() != callers || done.Load() == 0 {
		t.Errorf("%d stored, %d refused", done.Load(), refused.Load())
	}
	mustClose(t, l)
	if n := len(read(t, cfg.Dir)); int64(n) != done.Load() {
		t.Errorf("%d records, %d acknowledged", n, done.Load())
	}
	mustVerify(t, cfg.Dir, nil)
}

func TestDurabilityNames(t *testing.T) {
	if got := fmt.Sprint(Fsync, Write); got != "fsync write" {
		t.Error(got)
	}
}

// stuck is the handler of a Logger whose output hangs while hang is set.
type stuck struct {
	slog.Handler
	f *faults
}

func (s stuck) Enabled(context.Context, slog.Level) bool { return true }

func (s stuck) Handle(context.Context, slog.Record) error {
	s.f.mu.Lock()
	hang := s.f.hang
	s.f.messages++
	s.f.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return nil
}

// TestHungLogger: a Logger that hangs, on the same disk for instance, holds up no Append, no Stats and no Close.
func TestHungLogger(t *testing.T) {
	disk, stderr := &faults{}, &faults{hang: make(chan struct{})}
	cfg := testConfig(t.TempDir())
	cfg.Timeout, cfg.openSegment, cfg.Logger = 250*time.Millisecond, disk.open, slog.New(stuck{slog.DiscardHandler, stderr})
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 10)
	for i := range 5 { // hung and well again
		hang := make(chan struct{})
		disk.set(func() { disk.hang = hang })
		if err := l.Append(record(100 + i)); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if s := l.Stats(); s.Failed == 0 {
			t.Errorf("stats %+v", s)
		}
		disk.set(func() { disk.hang = nil })
		close(hang)
		await(t, "success after it", func() bool { return l.Append(record(200+i)) == nil })
	}
	disk.set(func() { disk.short = true })
	if err := l.Append(record(300)); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	disk.set(func() { disk.short = false })
	await(t, "success after it", func() bool { return l.Append(record(301)) == nil })
	for range 2 * messagesMax {
		l.tell(slog.LevelInfo, "one that nobody takes")
	}
	await(t, "checkpoint", func() bool { return l.Stats().Checkpoint == l.Stats().Next })
	mustClose(t, l)
	close(stderr.hang)
	<-l.reporterDone
	if stderr.messages < 2 || stderr.messages > 1+messagesMax {
		t.Errorf("%d messages came through", stderr.messages)
	}
	mustVerify(t, cfg.Dir, nil)
}
