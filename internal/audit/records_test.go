package audit

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
)

// recordsOf is what Records yields before its first error.
func recordsOf(t testing.TB, dir string, from uint64) (out []string, err error) {
	t.Helper()
	for r, err := range Records(t.Context(), dir, from) {
		if err != nil {
			return out, err
		}
		out = append(out, string(r))
	}
	return out, nil
}

func numbered(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, string(record(i)))
	}
	return out
}

// TestRecords: from any index on, over compressed segments and plain ones, up to the newest checkpoint.
func TestRecords(t *testing.T) {
	cfg := testConfig(t.TempDir())
	if got, err := recordsOf(t, cfg.Dir, 0); err != nil || len(got) != 0 {
		t.Errorf("an empty directory: %d records, %v", len(got), err)
	}
	cfg.SegmentBytes = 20_000
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 100)
	mustClose(t, l)
	for _, from := range []int{0, 1, 17, 50, 99, 100, 1000} {
		got, err := recordsOf(t, cfg.Dir, uint64(from))
		if err != nil || !slices.Equal(got, numbered(from, 100)) {
			t.Errorf("from %d: %d records, %v", from, len(got), err)
		}
	}
	for r := range Records(t.Context(), cfg.Dir, 0) { // a reader that has enough
		if string(r) != string(record(0)) {
			t.Error(r)
		}
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range Records(ctx, cfg.Dir, 0) {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	cfg.CheckpointEvery, cfg.SegmentBytes = time.Hour, 1<<20
	l = mustOpen(t, cfg)
	appendN(t, l, 100, 50)
	if got, err := recordsOf(t, cfg.Dir, 0); err != nil || len(got) != 100 {
		t.Errorf("%d records, 100 are covered: %v", len(got), err)
	}
	mustClose(t, l)
	if got, err := recordsOf(t, cfg.Dir, 100); err != nil || !slices.Equal(got, numbered(100, 150)) {
		t.Errorf("%d records, %v", len(got), err)
	}

	whole := load(t, cfg.Dir)
	files, err := list(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	last := segmentName(files.plain[len(files.plain)-1], plainSuffix)
	for what, change := range map[string]func(c copyOf){
		"the end":         func(c copyOf) { c[last] = c[last][:len(c[last])-10] },
		"the last record": func(c copyOf) { c[last] = c[last][:len(c[last])-len(record(149))-2] },
		"the last one":    func(c copyOf) { delete(c, last) },
		"the middle": func(c copyOf) {
			delete(c, segmentName(files.segments()[1], packedSuffix))
			delete(c, segmentName(files.segments()[1], plainSuffix))
		},
		"the first":      func(c copyOf) { delete(c, segmentName(0, packedSuffix)); delete(c, segmentName(0, plainSuffix)) },
		"the checkpoint": func(c copyOf) { c[checkpointTip] = c[checkpointTip][:10] },
		"its size": func(c copyOf) {
			c[checkpointTip] = bytes.Replace(c[checkpointTip], []byte("\n150\n"), []byte("\n-150\n"), 1)
		},
	} {
		dir, c := t.TempDir(), copyOf{}
		for name, content := range whole {
			c[name] = content
		}
		change(c)
		c.save(t, dir, nil)
		if got, err := recordsOf(t, dir, 0); err == nil {
			t.Errorf("without %s: %d records and no error", what, len(got))
		}
	}
}

// TestRecordsUncommitted: a record whose commit fails is never shown, for its index becomes another's.
func TestRecordsUncommitted(t *testing.T) {
	f := &faults{}
	cfg := testConfig(t.TempDir())
	cfg.Durability, cfg.CheckpointEvery, cfg.openSegment = Fsync, time.Hour, f.open
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 1)
	f.set(func() { f.syncErr, f.syncHang = syscall.EIO, make(chan struct{}) })
	done := make(chan error, 1)
	go func() { done <- l.Append(record(1000)) }()
	await(t, "the record in the file", func() bool {
		content, err := os.ReadFile(filepath.Join(cfg.Dir, segmentName(0, plainSuffix)))
		return err == nil && bytes.Contains(content, record(1000))
	})
	if got, err := recordsOf(t, cfg.Dir, 0); err != nil || len(got) != 0 {
		t.Errorf("%d records, nothing is covered: %v", len(got), err)
	}
	close(f.syncHang)
	if err := <-done; !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	f.set(func() { f.syncErr = nil })
	await(t, "success after it", func() bool { return l.Append(record(1)) == nil })
	mustClose(t, l)
	if got, err := recordsOf(t, cfg.Dir, 0); err != nil || !slices.Equal(got, numbered(0, 2)) {
		t.Errorf("%d records, %v", len(got), err)
	}
}
