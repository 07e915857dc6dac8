package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

var errHung = errors.New("the disk does not answer in time")

// repairEvery is the time between attempts to write again, well below the second within which the log is to be back.
const repairEvery = 100 * time.Millisecond

// write is the writer: the only goroutine that changes segments.
func (l *Log) write() {
	defer close(l.writerDone)
	for {
		g, more := l.nextGroup()
		if !more {
			break
		}
		var err error
		if g != nil {
			err = l.commit(g)
		}
		if err == nil && l.sealDue() {
			err = l.rotate()
		}
		if err != nil {
			l.repair(err)
		}
	}
	if err := l.out.Close(); err != nil {
		l.tell(slog.LevelError, "audit: closing the segment", "error", err)
	}
}

// nextGroup waits for a group to write. It returns none when there may be something else to do, and more = false after Close, when all is written.
func (l *Log) nextGroup() (g *group, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for yielded := false; ; {
		switch {
		case len(l.full) > 0:
			g = l.full[0]
			l.full = append(l.full[:0], l.full[1:]...)
			return g, true
		case l.filling.records > 0 && !yielded:
			// Once, so that callers who are about to append come along: see batch.
			l.mu.Unlock()
			runtime.Gosched()
			l.mu.Lock()
			yielded = true
			continue
		case l.filling.records > 0 && len(l.free) > 0:
			g, l.filling = l.filling, l.take()
			return g, true
		case l.filling.records == 0 && l.state == closed:
			return nil, false
		case l.filling.records == 0:
			l.awake = false
		}
		starved := l.filling.records > 0
		l.mu.Unlock()
		if starved {
			<-l.wake // when the last callers of another group have left it
		} else {
			select {
			case <-l.wake:
			case <-l.stop:
			}
		}
		l.mu.Lock()
		l.awake = true
		if l.seal.Load() {
			return nil, true
		}
	}
}

// commit writes g and settles it.
func (l *Log) commit(g *group) error {
	l.mu.Lock()
	l.current = g
	l.begin(g.opened.Add(l.cfg.Timeout))
	l.mu.Unlock()

	_, err := l.out.Write(g.buf)
	if err == nil && l.cfg.Durability == Fsync {
		if err = l.out.Sync(); err != nil {
			err = &syncError{err}
			l.doubt.Store(true)
		}
	}

	l.mu.Lock()
	if err == nil {
		last := &l.segments[len(l.segments)-1]
		last.records += uint64(g.records)
		last.bytes += int64(len(g.buf))
		l.stats.Records += uint64(g.records)
		l.stats.Bytes += uint64(len(g.buf))
		l.stats.Commits++
		l.settle(g, stored) // too late if the watchdog was here: then the records are in the log without a success
		l.recovered()
	} else {
		l.fail(err)
	}
	l.current = nil
	l.deadline = time.Time{}
	l.mu.Unlock()
	g.done.Broadcast()
	l.release(g)
	l.nudge(l.grown)
	return err
}

// syncError is a failed fdatasync: what the kernel said it would write may be gone, and it may not say so again.
type syncError struct{ err error }

func (e *syncError) Error() string { return "fdatasync: " + e.err.Error() }
func (e *syncError) Unwrap() error { return e.err }

func (l *Log) nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// begin says until when the writer's next step has to be done. l.mu is held.
func (l *Log) begin(deadline time.Time) {
	l.deadline = deadline
	if l.armed.IsZero() || deadline.Before(l.armed) {
		l.armed = deadline
		l.watchdog.Reset(time.Until(deadline))
	}
}

// watch is the watchdog: it runs when its timer does. A step that is over when the timer ends costs nothing but the look.
func (l *Log) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = time.Time{}
	if l.deadline.IsZero() {
		return
	}
	if time.Now().Before(l.deadline) {
		l.begin(l.deadline)
		return
	}
	l.deadline = time.Time{}
	l.fail(errHung)
	l.tell(slog.LevelError, "audit: records cannot be written", "error", errHung)
}

// recovered lets callers in again, unless the log has lost records. l.mu is held.
func (l *Log) recovered() {
	if l.state == failed && l.damaged == nil {
		l.state, l.cause = ready, nil
		l.tell(slog.LevelInfo, "audit: records are written again")
	}
}

// sealDue says whether the segment is to be the last no longer.
func (l *Log) sealDue() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.segments[len(l.segments)-1]
	return last.records > 0 && (last.bytes >= l.cfg.SegmentBytes || l.seal.Load())
}

// rotate begins a new segment.
func (l *Log) rotate() error {
	l.mu.Lock()
	opened := time.Now()
	if l.filling.records > 0 {
		opened = l.filling.opened
	}
	l.begin(opened.Add(l.cfg.Timeout))
	l.mu.Unlock()
	err := l.beginSegment()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = time.Time{}
	if err != nil {
		l.fail(err)
		return err
	}
	l.recovered()
	return nil
}

// beginSegment makes the segment after the last one, closes the last one and says that it is sealed.
func (l *Log) beginSegment() error {
	l.mu.Lock()
	last := l.segments[len(l.segments)-1]
	l.mu.Unlock()
	next := segment{first: last.first + last.records, begun: time.Now()}
	path := filepath.Join(l.cfg.Dir, segmentName(next.first, plainSuffix))
	out, err := l.cfg.openSegment(path, true)
	if errors.Is(err, fs.ErrExist) { // an attempt that could not take it back
		if info, statErr := os.Lstat(path); statErr == nil && info.Mode().IsRegular() && info.Size() == 0 {
			out, err = l.cfg.openSegment(path, false)
		}
	}
	if err != nil {
		return err
	}
	if l.cfg.Durability == Fsync {
		if err := syncDir(l.cfg.Dir); err != nil {
			return errors.Join(err, out.Close(), os.Remove(path))
		}
	}
	old := l.out
	l.out = out
	l.seal.Store(false)
	l.mu.Lock()
	l.segments = append(l.segments, next)
	l.mu.Unlock()
	l.nudge(l.grown)
	if err := old.Close(); err != nil { // its records are safe: they were when they were committed
		l.tell(slog.LevelWarn, "audit: closing a segment", "error", err)
	}
	return nil
}

// repair makes the log writable again after cause, or returns when it is closed. Callers are refused meanwhile. What follows the last commit is cut
// off, and a segment with which something was wrong is not written to any more.
func (l *Log) repair(cause error) {
	l.tell(slog.LevelError, "audit: records cannot be written", "error", cause)
	var broken *syncError
	reread := errors.As(cause, &broken)
	for {
		err := l.tryRepair(reread)
		if err == nil {
			l.mu.Lock()
			l.recovered()
			l.mu.Unlock()
			return
		}
		if !errors.Is(err, errNotYet) {
			l.mu.Lock()
			if l.damaged == nil {
				l.cause = err
			}
			l.mu.Unlock()
		}
		reread = reread || errors.As(err, &broken)
		select {
		case <-l.stop:
			return
		case <-time.After(repairEvery):
		}
	}
}

var errNotYet = errors.New("the records of the segment are not in the tree yet")

func (l *Log) tryRepair(reread bool) error {
	if err := l.probe(); err != nil {
		return err
	}
	l.mu.Lock()
	last, integrated := l.segments[len(l.segments)-1], l.tip.size
	l.mu.Unlock()
	path := filepath.Join(l.cfg.Dir, segmentName(last.first, plainSuffix))
	f, err := l.cfg.openSegment(path, false)
	if err != nil {
		return err
	}
	// The cut has to be durable before a later segment exists: Open takes an incomplete record only at the very end.
	if err := f.Truncate(last.bytes); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		l.doubt.Store(true)
		return errors.Join(&syncError{err}, f.Close())
	}
	if last.records == 0 {
		l.out, f = f, l.out
		return ignoreClose(f)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if reread {
		if integrated < last.first+last.records {
			return errNotYet
		}
		if err := recheck(l.cfg.Dir, last); err != nil {
			return err
		}
	}
	return l.beginSegment()
}

// ignoreClose closes a file that has failed already.
func ignoreClose(f file) error {
	_ = f.Close()
	return nil
}

// probe tries the disk with something that is no record.
func (l *Log) probe() error {
	path := filepath.Join(l.cfg.Dir, probeName)
	f, err := open(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 64<<10))
	if err == nil && l.cfg.Durability == Fsync {
		err = fdatasync(f)
	}
	return errors.Join(err, f.Close(), os.Remove(path))
}

// recheck reads a segment from the disk, not from the page cache, and compares it with its hashes.
func recheck(dir string, s segment) error {
	f, err := open(filepath.Join(dir, segmentName(s.first, plainSuffix)), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := dropCache(f); err != nil {
		return err
	}
	hashes, err := open(filepath.Join(dir, segmentName(s.first, hashesSuffix)), os.O_RDONLY)
	if err != nil {
		return err
	}
	defer hashes.Close()
	entries := entryReader{r: f}
	sums := hashStream{r: hashes}
	for i := range s.records {
		entry, err := entries.next()
		if err != nil && err != io.EOF && err != errTorn && err != errEmpty {
			return err
		}
		sum, sumErr := sums.next()
		if err != nil || sumErr != nil || leafHash(entry) != sum {
			return fmt.Errorf("%w: record %d, which was acknowledged, is not on the disk any more", ErrDamaged, s.first+i)
		}
	}
	return nil
}
