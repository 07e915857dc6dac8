package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// Open opens the log, or begins one in an empty directory, and starts its goroutines. It repairs what a crash leaves behind: an incomplete last
// record, hashes that were not written yet, a compression or a removal that was not finished. ctx is that of Newest.
func Open(ctx context.Context, cfg Config) (*Log, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := open(filepath.Join(cfg.Dir, lockName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if err := lockFile(lock); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l := &Log{
		cfg: cfg, lock: lock, wake: make(chan struct{}, 1), stop: make(chan struct{}), grown: make(chan struct{}, 1), keep: make(chan struct{}, 1),
		writerDone: make(chan struct{}), integratorDone: make(chan struct{}), keepDone: make(chan struct{}),
		messages: make(chan message, messagesMax), reporterDone: make(chan struct{}),
		free: make([]*group, 0, groups), full: make([]*group, 0, groups),
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	rolledBack, err := l.recover(ctx)
	if err != nil {
		l.cancel()
		if l.out != nil {
			err = errors.Join(err, l.out.Close())
		}
		return nil, errors.Join(err, l.in.hashes.close(), lock.Close())
	}
	for range groups {
		l.free = append(l.free, l.newGroup())
	}
	l.filling = l.take()
	l.watchdog = time.AfterFunc(time.Hour, l.watch)
	l.ckpt.good = time.Now()
	go l.write()
	go l.integrate()
	go l.keeper()
	go l.report()
	if rolledBack != nil {
		details := map[string]any{"published": string(rolledBack), "keptRecords": l.tip.size}
		if err := l.appendOwn(eventRollback, details); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// recover sets the log to what the directory has. It returns the published checkpoint that the log does not continue, if that is accepted.
func (l *Log) recover(ctx context.Context) (rolledBack []byte, err error) {
	files, err := l.tidy()
	if err != nil {
		return nil, err
	}
	if err := l.loadCheckpoint(); err != nil {
		return nil, err
	}
	firsts := files.segments()
	if len(firsts) == 0 {
		if l.ckpt.raw != nil || len(files.hashes) > 0 {
			return nil, fmt.Errorf("%w: there is no segment, but there are hashes or checkpoints", ErrDamaged)
		}
		if l.out, err = l.cfg.openSegment(filepath.Join(l.cfg.Dir, segmentName(0, plainSuffix)), true); err != nil {
			return nil, err
		}
		firsts = []uint64{0}
	}
	for i, first := range firsts {
		s := segment{first: first, packed: slices.Contains(files.packed, first), begun: time.Now()}
		if i+1 < len(firsts) {
			s.records = firsts[i+1] - first
		}
		l.segments = append(l.segments, s)
	}
	if err := l.recoverTree(files); err != nil {
		return nil, err
	}
	if firsts[0] > 0 {
		if err := pruneHashes(l.cfg.Dir, firsts[0]); err != nil { // a removal that was not finished
			return nil, err
		}
	}
	if err := l.observeFrom(); err != nil {
		return nil, err
	}
	if err := l.catchUp(); err != nil {
		return nil, err
	}
	if rolledBack, err = l.compareNewest(ctx); err != nil {
		return nil, err
	}
	if l.out == nil {
		last := l.segments[len(l.segments)-1]
		if l.out, err = l.cfg.openSegment(filepath.Join(l.cfg.Dir, segmentName(last.first, plainSuffix)), false); err != nil {
			return nil, err
		}
	}
	return rolledBack, syncDir(l.cfg.Dir)
}

// tidy removes the log's temporary files, and the plain form of a segment that was compressed.
func (l *Log) tidy() (listing, error) {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return listing{}, err
	}
	for _, e := range entries {
		if temporary(e.Name()) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(l.cfg.Dir, e.Name())); err != nil {
				return listing{}, err
			}
		}
	}
	files, err := list(l.cfg.Dir)
	if err != nil {
		return files, err
	}
	if len(files.odd) > 0 {
		return files, fmt.Errorf("%w: %s is not a regular file", ErrDamaged, filepath.Join(l.cfg.Dir, files.odd[0]))
	}
	if n := len(files.foreign); n > 0 {
		l.cfg.Logger.Warn("audit: there are files in the directory that are not the log's", "dir", l.cfg.Dir, "first", files.foreign[0], "files", n)
	}
	for _, first := range files.packed {
		if !slices.Contains(files.plain, first) {
			continue
		}
		if err := checkSeal(filepath.Join(l.cfg.Dir, segmentName(first, packedSuffix))); err != nil {
			return files, fmt.Errorf("%w: %s: %w", ErrDamaged, segmentName(first, packedSuffix), err)
		}
		if err := os.Remove(filepath.Join(l.cfg.Dir, segmentName(first, plainSuffix))); err != nil {
			return files, err
		}
	}
	files.plain = slices.DeleteFunc(files.plain, func(first uint64) bool { return slices.Contains(files.packed, first) })
	return files, nil
}

// loadCheckpoint reads the newest checkpoint, and cuts off one that was written in part.
func (l *Log) loadCheckpoint() error {
	tip, err := os.ReadFile(filepath.Join(l.cfg.Dir, checkpointTip))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		tip = nil
	}
	f, err := open(filepath.Join(l.cfg.Dir, checkpointAll), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) && tip == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, checkpointAll)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	newest, end, err := lastCheckpoint(f, info.Size(), tip)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, checkpointAll, err)
	}
	if end < info.Size() {
		if err := errors.Join(f.Truncate(end), f.Sync()); err != nil {
			return err
		}
	}
	l.ckpt.end = end
	if newest == nil {
		return nil
	}
	c, err := ParseCheckpoint(newest, l.cfg.Verifier)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrDamaged, checkpointAll, err)
	}
	if c.Origin != l.cfg.Origin {
		return fmt.Errorf("audit: this is the log %q, not %q", c.Origin, l.cfg.Origin)
	}
	l.ckpt.newest, l.ckpt.raw = c, newest
	if string(newest) != string(tip) {
		return replaceFile(filepath.Join(l.cfg.Dir, checkpointTip), newest)
	}
	return nil
}

// recoverTree restores the tree that the newest checkpoint covers, and finds where the segments after it end.
func (l *Log) recoverTree(files listing) error {
	size := l.ckpt.newest.Size
	at := len(l.segments) - 1
	for ; at > 0 && l.segments[at].first > size; at-- {
	}
	if l.segments[at].first > size {
		return fmt.Errorf("%w: the first segment begins at record %d, the newest checkpoint covers %d", ErrDamaged, l.segments[at].first, size)
	}
	if l.segments[0].first > 0 && l.ckpt.raw == nil {
		return fmt.Errorf("%w: there are no checkpoints", ErrDamaged)
	}
	r, err := newHashReader(l.cfg.Dir)
	if err != nil {
		return err
	}
	defer r.close()
	if err := l.in.tree.restore(size, r); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if l.ckpt.raw != nil && l.in.tree.root() != l.ckpt.newest.Root {
		return fmt.Errorf("%w: the hashes are not those of the newest checkpoint", ErrDamaged)
	}
	for _, s := range l.segments[:at] {
		info, err := os.Lstat(filepath.Join(l.cfg.Dir, segmentName(s.first, hashesSuffix)))
		if err != nil || info.Size() != int64(s.records)*tlog.HashSize {
			return fmt.Errorf("%w: %s does not have the records %d to %d, or a segment after it is missing", ErrDamaged, segmentName(s.first, hashesSuffix),
				s.first, s.first+s.records-1)
		}
	}
	if err := l.cutHashes(files, size); err != nil {
		return err
	}
	var skip int64
	for i := at; i < len(l.segments); i++ {
		last := i+1 == len(l.segments)
		seen, offset, err := l.scan(r, &l.segments[i], size, last)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrDamaged, segmentName(l.segments[i].first, plainSuffix), err)
		}
		if i == at {
			skip = offset
		}
		if !last && seen != l.segments[i].records {
			return fmt.Errorf("%w: %s has %d records, not %d", ErrDamaged, segmentName(l.segments[i].first, plainSuffix), seen, l.segments[i].records)
		}
		l.segments[i].records = seen
	}
	if end := l.segments[at].first + l.segments[at].records; end < size {
		return fmt.Errorf("%w: the last segment ends with record %d, the newest checkpoint covers %d", ErrDamaged, end, size)
	}
	l.in.hashes.dir = l.cfg.Dir
	for level := 1; level < tileLevels; level++ {
		l.in.hashes.levels[level].count = size >> (tileHeight * level)
	}
	l.in.tree.store = l.in.hashes.add
	l.tip = tip{size, l.in.tree.root()}
	return l.in.open(l.cfg.Dir, l.segments[at].first, skip)
}

// cutHashes removes the hashes of records after the first size ones: they were not made durable, and are computed again.
func (l *Log) cutHashes(files listing, size uint64) error {
	for _, first := range files.hashes {
		path := filepath.Join(l.cfg.Dir, segmentName(first, hashesSuffix))
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		stray := first == size && !slices.ContainsFunc(l.segments, func(s segment) bool { return s.first == first })
		if first > size || stray { // of a segment that the machine has lost, or that is there without hashes again
			err = os.Remove(path)
		} else if keep := int64(size-first) * tlog.HashSize; info.Size() > keep {
			err = os.Truncate(path, keep)
		}
		if err != nil {
			return err
		}
	}
	for level := 1; level < tileLevels; level++ {
		path, keep := filepath.Join(l.cfg.Dir, tilesName(level)), int64(size>>(tileHeight*level))*tlog.HashSize
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) && keep == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if info.Size() < keep {
			return fmt.Errorf("%w: %s is too short", ErrDamaged, tilesName(level))
		}
		if err := os.Truncate(path, keep); err != nil {
			return err
		}
	}
	return nil
}

// scan reads a plain segment: how many records it has, how many bytes (into s), and the offset of record size, the first without a checkpoint.
// Records with one are compared with their hashes. An incomplete record at the end of the last segment is cut off.
func (l *Log) scan(r *hashReader, s *segment, size uint64, last bool) (records uint64, offset int64, err error) {
	f, err := open(filepath.Join(l.cfg.Dir, segmentName(s.first, plainSuffix)), os.O_RDWR)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	entries := entryReader{r: f}
	var want [256]tlog.Hash
	for {
		index := s.first + records
		if index == size {
			offset = entries.offset
		}
		entry, err := entries.next()
		switch {
		case err == io.EOF:
			s.bytes = entries.offset
			return records, offset, nil
		case (err == errTorn || err == errEmpty) && last && index >= size:
			// Power cuts leave zeros behind as well; anything else after an empty record is no append that was cut short.
			if err == errEmpty && !onlyZeros(f, entries.offset) {
				return 0, 0, fmt.Errorf("record %d: %w", index, err)
			}
			s.bytes = entries.offset
			l.cfg.Logger.Warn("audit: the last record is incomplete and was never acknowledged; it is removed", "index", index)
			return records, offset, errors.Join(f.Truncate(entries.offset), f.Sync())
		case err != nil:
			return 0, 0, fmt.Errorf("record %d: %w", index, err)
		}
		if index < size {
			i := records % uint64(len(want))
			if i == 0 {
				if err := r.read(0, index, want[:min(uint64(len(want)), size-index)]); err != nil {
					return 0, 0, err
				}
			}
			if leafHash(entry) != want[i] {
				return 0, 0, fmt.Errorf("record %d is not the one that was signed", index)
			}
		}
		records++
	}
}

func onlyZeros(f *os.File, from int64) bool {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.ReadAt(buf, from)
		for _, b := range buf[:n] {
			if b != 0 {
				return false
			}
		}
		if err != nil {
			return err == io.EOF
		}
		from += int64(n)
	}
}

// observeFrom shows Observe the records that it has not seen and that catchUp will not show it.
func (l *Log) observeFrom() error {
	if l.cfg.Observe == nil || l.cfg.ObserveFrom == nil {
		return nil
	}
	from := *l.cfg.ObserveFrom
	if from >= l.tip.size { // after an end in good order; or the last segment would be read for nothing
		return nil
	}
	for i, s := range l.segments {
		if s.first >= l.tip.size {
			break
		}
		if i+1 < len(l.segments) && l.segments[i+1].first <= from {
			continue
		}
		err := eachEntry(l.cfg.Dir, s.first, func(index uint64, entry []byte) bool {
			if index >= from && index < l.tip.size {
				l.cfg.Observe(index, entry[2:])
			}
			return index+1 < l.tip.size
		})
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return nil
}

// eachEntry reads a segment, compressed or not, until yield returns false.
func eachEntry(dir string, first uint64, yield func(index uint64, entry []byte) bool) error {
	src, err := openEntries(dir, first)
	if err != nil {
		return err
	}
	defer src.Close()
	buf := entryBuffers.Get().(*[]byte)
	defer entryBuffers.Put(buf)
	entries := entryReader{r: src, buf: *buf}
	for index := first; ; index++ {
		entry, err := entries.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("segment %d, record %d: %w", first, index, err)
		}
		if !yield(index, entry) {
			return nil
		}
	}
}

var entryBuffers = sync.Pool{New: func() any {
	buf := make([]byte, entryBufferSize)
	return &buf
}}

// compareNewest checks that the log continues what is published.
func (l *Log) compareNewest(ctx context.Context) (rolledBack []byte, err error) {
	if l.cfg.Newest == nil {
		return nil, nil
	}
	raw, err := l.cfg.Newest(ctx)
	if err != nil {
		return nil, fmt.Errorf("audit: reading the published checkpoint: %w", err)
	}
	l.ckpt.outside = raw
	if raw == nil {
		return nil, nil
	}
	c, err := ParseCheckpoint(raw, l.cfg.Verifier)
	if err != nil {
		return nil, fmt.Errorf("audit: the published checkpoint: %w", err)
	}
	why := ""
	switch {
	case c.Origin != l.cfg.Origin:
		return nil, fmt.Errorf("audit: the published checkpoint is of the log %q", c.Origin)
	case c.Size > l.tip.size:
		why = fmt.Sprintf("it has %d records, %d are published", l.tip.size, c.Size)
	default:
		r, err := newHashReader(l.cfg.Dir)
		if err != nil {
			return nil, err
		}
		defer r.close()
		root, err := tlog.TreeHash(int64(c.Size), r)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if root == c.Root {
			l.ckpt.published = c.Size
			return nil, nil
		}
		why = fmt.Sprintf("its first %d records are not those that are published", c.Size)
	}
	if !l.cfg.AcceptRollback {
		return nil, fmt.Errorf("%w: %s", ErrRolledBack, why)
	}
	l.cfg.Logger.Warn("audit: going on with a log that was rolled back, as configured", "reason", why)
	return raw, nil
}
