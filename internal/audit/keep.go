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
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// checkpointing is what the keeper has signed and published.
type checkpointing struct {
	newest    Checkpoint
	raw       []byte // newest as signed; nil: none yet
	end       int64  // where the next one goes in the file of all
	unnamed   bool   // newest is in the file of all, but not in its own yet
	published uint64 // size of what is published
	outside   []byte // what is published; nil: nothing

	good   time.Time // when all that there was to sign was signed and published
	err    error     // of the last attempt
	behind error     // of the integrator
}

// removal is a removal of segments that the log has a record of.
type removal struct {
	first uint64 // index from which on records are kept; 0: none is due
	after uint64 // size of a checkpoint that covers the record of it
}

// keeper is what is done once in a while: checkpoints, compression, retention.
func (l *Log) keeper() {
	defer close(l.keepDone)
	tick := time.NewTicker(l.cfg.CheckpointEvery)
	defer tick.Stop()
	var due removal
	for last, failed := false, false; !last; {
		select {
		case <-tick.C:
		case <-l.keep:
		case <-l.integratorDone:
			last = true
		}
		if failed { // a publication that is not answered takes until the next tick, which would be chosen again and again
			select {
			case <-l.integratorDone:
				last = true
			default:
			}
		}
		err := l.checkpoint()
		l.mu.Lock()
		err = errors.Join(err, l.ckpt.behind)
		if l.ckpt.err = err; err == nil {
			l.ckpt.good = time.Now()
		}
		l.sealOld()
		l.mu.Unlock()
		if failed = err != nil; failed {
			l.tell(slog.LevelError, "audit: no checkpoint", "error", err)
		}
		if last {
			return
		}
		if err := l.packNext(); err != nil {
			l.tell(slog.LevelError, "audit: compressing a segment", "error", err)
		}
		if due, err = l.retain(due); err != nil {
			l.tell(slog.LevelError, "audit: removing old segments", "error", err)
		}
	}
}

// sealOld has the writer begin a new segment when the last one is old. l.mu is held.
func (l *Log) sealOld() {
	last := l.segments[len(l.segments)-1]
	if last.records > 0 && time.Since(last.begun) >= l.cfg.SegmentAge {
		l.seal.Store(true)
		l.rouse()
	}
}

// checkpoint signs the tree as it is now, if it has grown, and publishes what is not published yet.
func (l *Log) checkpoint() error {
	l.mu.Lock()
	t, c, damaged := l.tip, l.ckpt, l.damaged
	var touched []segment
	for i, s := range l.segments {
		if s.first < t.size && (i+1 == len(l.segments) || l.segments[i+1].first > c.newest.Size) {
			touched = append(touched, s)
		}
	}
	l.mu.Unlock()
	if damaged != nil {
		return damaged
	}
	if c.unnamed {
		if err := l.nameCheckpoint(c.raw); err != nil {
			return err
		}
	}
	if t.size > c.newest.Size {
		if err := l.makeDurable(touched, c.newest, t); err != nil {
			return err
		}
		next := Checkpoint{Origin: l.cfg.Origin, Size: t.size, Root: t.root}
		if c.raw != nil {
			next.Previous = checkpointHash(c.raw)
		}
		raw, err := next.sign(l.cfg.Signer)
		if err != nil {
			return fmt.Errorf("signing a checkpoint: %w", err)
		}
		end, err := l.storeCheckpoint(raw, c.end)
		if err != nil {
			return err
		}
		l.mu.Lock()
		l.ckpt.newest, l.ckpt.raw, l.ckpt.end, l.ckpt.unnamed = next, raw, end, true
		l.mu.Unlock()
		if err := l.nameCheckpoint(raw); err != nil {
			return err
		}
	}
	return l.publish()
}

// storeCheckpoint puts raw at offset end of the file of all checkpoints, durable. It returns the new end.
func (l *Log) storeCheckpoint(raw []byte, end int64) (int64, error) {
	f, err := open(filepath.Join(l.cfg.Dir, checkpointAll), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return 0, err
	}
	line := append(bytes.Clone(raw), '\n')
	err = f.Truncate(end) // an earlier attempt may have come as far as this
	if err == nil {
		_, err = f.WriteAt(line, end)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	return end + int64(len(line)), nil
}

// nameCheckpoint puts raw, which is the last in the file of all checkpoints, into the file of the newest. Until that is done no other is signed: what
// this file has is never removed from the other, and is at most one behind.
func (l *Log) nameCheckpoint(raw []byte) error {
	if err := replaceFile(filepath.Join(l.cfg.Dir, checkpointTip), raw); err != nil {
		return err
	}
	l.mu.Lock()
	l.ckpt.unnamed = false
	l.mu.Unlock()
	return nil
}

// publish puts the newest checkpoint where Publish keeps it.
func (l *Log) publish() error {
	l.mu.Lock()
	raw, size, old := l.ckpt.raw, l.ckpt.newest.Size, l.ckpt.outside
	l.mu.Unlock()
	if l.cfg.Publish == nil || raw == nil || bytes.Equal(raw, old) {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, publishMax)
	defer cancel()
	go func() { // Close does not wait for as long
		select {
		case <-l.stop:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(publishLastMax):
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := l.cfg.Publish(ctx, old, raw); err != nil {
		// It may have been published all the same: then the next attempt has to know.
		if l.cfg.Newest == nil {
			return fmt.Errorf("publishing a checkpoint: %w", err)
		}
		now, newestErr := l.cfg.Newest(ctx)
		switch {
		case newestErr != nil || bytes.Equal(now, old):
			return fmt.Errorf("publishing a checkpoint: %w", err)
		case !bytes.Equal(now, raw):
			return fmt.Errorf("publishing a checkpoint: another log publishes under the same name: %w", err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ckpt.outside, l.ckpt.published = raw, size
	return nil
}

const (
	publishMax = 5 * time.Second
	// publishLastMax is for how long each publication goes on once the log is being closed. What is not published then is published by whoever opens the log next.
	publishLastMax = time.Second
)

// packNext compresses the oldest sealed segment that a checkpoint covers and that is not compressed yet.
func (l *Log) packNext() error {
	l.mu.Lock()
	at := -1
	for i := range len(l.segments) - 1 {
		if !l.segments[i].packed && l.segments[i+1].first <= l.ckpt.newest.Size {
			at = i
			break
		}
	}
	if at < 0 {
		l.mu.Unlock()
		return nil
	}
	first := l.segments[at].first
	l.mu.Unlock()
	if err := packSegment(l.cfg.Dir, first); err != nil {
		return err
	}
	l.mu.Lock()
	l.segments[at].packed = true // only the keeper removes from the front
	l.mu.Unlock()
	l.nudge(l.keep) // there may be another one
	return nil
}

// retain removes the segments of due once its record is covered, or finds that some are due and records that.
func (l *Log) retain(due removal) (removal, error) {
	l.mu.Lock()
	segments, covered := append([]segment(nil), l.segments...), l.ckpt.newest.Size
	if l.cfg.Publish != nil {
		covered = min(covered, l.ckpt.published)
	}
	l.mu.Unlock()
	if due.first > 0 {
		if covered < due.after {
			return due, nil
		}
		return removal{}, l.remove(due.first)
	}
	first, err := l.retainFrom(segments, covered)
	if err != nil || first == segments[0].first {
		return removal{}, err
	}
	if err := l.appendOwn(eventRetention, map[string]any{"firstIndex": first}); err != nil {
		return removal{}, err
	}
	return removal{first, l.Stats().Next}, nil
}

// retainFrom is the index from which on the retention keeps.
func (l *Log) retainFrom(segments []segment, covered uint64) (uint64, error) {
	sealed := segments[:len(segments)-1]
	if l.cfg.RetainBytes == 0 && l.cfg.RetainAge == 0 {
		return segments[0].first, nil
	}
	sizes, ages := make([]int64, len(sealed)), make([]time.Duration, len(sealed))
	var total int64
	for i, s := range sealed {
		suffix := plainSuffix
		if s.packed {
			suffix = packedSuffix
		}
		info, err := os.Lstat(filepath.Join(l.cfg.Dir, segmentName(s.first, suffix)))
		if err != nil {
			return 0, err
		}
		sizes[i], ages[i] = info.Size(), time.Since(info.ModTime())
		total += sizes[i]
	}
	i := 0
	for ; i < len(sealed); i++ {
		old := l.cfg.RetainAge > 0 && ages[i] > l.cfg.RetainAge
		large := l.cfg.RetainBytes > 0 && total > l.cfg.RetainBytes
		if !old && !large || segments[i+1].first > covered {
			break
		}
		total -= sizes[i]
	}
	return segments[i].first, nil
}

// remove removes the segments before first, oldest first, and the leaf hashes that the rest does not need.
func (l *Log) remove(first uint64) error {
	for {
		l.mu.Lock()
		s := l.segments[0]
		l.mu.Unlock()
		if s.first >= first {
			break
		}
		suffix := plainSuffix
		if s.packed {
			suffix = packedSuffix
		}
		if err := os.Remove(filepath.Join(l.cfg.Dir, segmentName(s.first, suffix))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		l.mu.Lock()
		l.segments = l.segments[1:]
		l.mu.Unlock()
	}
	return pruneHashes(l.cfg.Dir, first)
}

// pruneHashes removes the leaf hashes of records before first. Those of the tile that first is in are kept, in a file of their own: the rest is known
// by the hashes of tiles-1.
func pruneHashes(dir string, first uint64) error {
	r, err := newHashReader(dir)
	if err != nil {
		return err
	}
	defer r.close()
	upTo := prunedTo(first)
	if upTo < first {
		edge := make([]tlog.Hash, first-upTo)
		if err := r.read(0, upTo, edge); err != nil {
			return err
		}
		var content []byte
		for _, h := range edge {
			content = append(content, h[:]...)
		}
		if err := replaceFile(filepath.Join(dir, segmentName(upTo, hashesSuffix)), content); err != nil {
			return err
		}
	}
	for _, f := range r.firsts {
		if f >= first || f == upTo {
			continue
		}
		if err := os.Remove(filepath.Join(dir, segmentName(f, hashesSuffix))); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// prunedTo is the index before which the tree is known by the hashes of tiles-1, if the first record that is kept has index first.
func prunedTo(first uint64) uint64 { return first &^ (1<<tileHeight - 1) }
