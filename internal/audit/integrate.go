package audit

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	gather     = 10 * time.Millisecond // what was committed meanwhile is hashed in one go
	flushEvery = 8192                  // records, whose hashes are 256 KiB
	retryEvery = 500 * time.Millisecond
)

// tip is the tree of the first size records, whose hashes are in the files.
type tip struct {
	size uint64
	root tlog.Hash
}

// integrator adds committed records to the tree. It reads them from the segments, so it holds nobody up and needs no memory for what it is behind.
type integrator struct {
	tree    tree
	hashes  hashWriter
	first   uint64 // of the segment that it reads
	src     *os.File
	limit   committed
	entries entryReader
}

// committed is the part of a segment that was committed; it grows.
type committed struct {
	f      *os.File
	at, to int64
}

func (c *committed) Read(p []byte) (int, error) {
	if c.at >= c.to {
		return 0, io.EOF
	}
	n, err := c.f.ReadAt(p[:min(int64(len(p)), c.to-c.at)], c.at)
	c.at += int64(n)
	if n > 0 {
		err = nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than what was written
	}
	return n, err
}

// integrate is the integrator. It ends when the writer has, and all is in the tree; or with the first error after that: the next start goes on.
func (l *Log) integrate() {
	defer close(l.integratorDone)
	for last := false; ; {
		err := l.catchUp()
		l.mu.Lock()
		l.ckpt.behind = err
		l.mu.Unlock()
		if last {
			return
		}
		wait := gather
		if err != nil {
			l.tell(slog.LevelError, "audit: hashing of records is held up", "error", err)
			wait = retryEvery
		} else {
			select {
			case <-l.grown:
			case <-l.writerDone:
				last = true
				continue
			}
		}
		time.Sleep(wait)
		if err != nil {
			select {
			case <-l.writerDone:
				last = true
			default:
			}
		}
	}
}

// catchUp adds everything that is committed now.
func (l *Log) catchUp() error {
	in := &l.in
	for {
		if err := in.hashes.flush(); err != nil {
			return err
		}
		l.mu.Lock()
		if in.tree.size != l.tip.size {
			l.tip = tip{in.tree.size, in.tree.root()}
		}
		i := len(l.segments) - 1
		for ; l.segments[i].first > in.first; i-- {
		}
		seg, sealed := l.segments[i], i+1 < len(l.segments)
		var next uint64
		if sealed {
			next = l.segments[i+1].first
		}
		l.mu.Unlock()

		if sealed && in.tree.size == next {
			if err := in.open(l.cfg.Dir, next, 0); err != nil {
				return err
			}
			l.nudge(l.keep)
			continue
		}
		if in.tree.size == seg.first+seg.records {
			return nil
		}
		in.limit.to = seg.bytes
		for range flushEvery {
			entry, err := in.entries.next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("%w: %s, record %d: %w", ErrDamaged, segmentName(in.first, plainSuffix), in.tree.size, err)
			}
			if l.cfg.Observe != nil {
				l.cfg.Observe(in.tree.size, entry[2:])
			}
			in.add(entry)
		}
	}
}

// add hashes an entry into the tree. It changes the entry.
func (in *integrator) add(entry []byte) {
	h := leafHash(entry)
	in.hashes.add(0, h)
	in.tree.add(0, h)
}

// open goes on to a segment, of which skip bytes are in the tree already.
func (in *integrator) open(dir string, first uint64, skip int64) error {
	src, err := open(filepath.Join(dir, segmentName(first, plainSuffix)), os.O_RDONLY)
	if err != nil {
		return err
	}
	if err := in.hashes.segment(first, in.tree.size-first); err != nil {
		src.Close()
		return err
	}
	if in.src != nil {
		in.src.Close()
	}
	in.first, in.src = first, src
	in.limit = committed{f: src, at: skip, to: skip}
	in.entries.reset(&in.limit, skip)
	return nil
}
