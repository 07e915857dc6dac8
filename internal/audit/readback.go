package audit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/tlog"
)

// makeDurable makes durable what a checkpoint of t is about to cover: touched are the segments that the newest checkpoint does not cover whole.
//
// A file whose fsync failed cannot be asked again: the kernel forgets the pages that it could not write, and the next fsync succeeds. So after a
// failure the records are read from the disk and compared with the tree, and the hashes are written again. If records are gone, the log stays down.
func (l *Log) makeDurable(touched []segment, newest Checkpoint, t tip) error {
	doubt := l.doubt.Swap(false)
	err := l.syncFiles(touched, doubt)
	if err == nil && doubt {
		if err = l.readBack(touched, newest, t, false); err == nil {
			err = l.readBack(touched, newest, t, true)
		}
		if err == nil {
			err = l.syncFiles(touched, true) // the hashes, and records whose page had more appended to it
		}
	}
	if err != nil {
		l.doubt.Store(true)
	}
	if errors.Is(err, ErrDamaged) {
		l.mu.Lock()
		l.damaged = err
		l.fail(err)
		l.mu.Unlock()
	}
	return err
}

// syncFiles syncs the hashes, and the segments where commits did not or there is doubt.
func (l *Log) syncFiles(touched []segment, doubt bool) error {
	for _, s := range touched {
		if l.cfg.Durability != Fsync || doubt {
			if err := l.syncFile(segmentName(s.first, plainSuffix)); err != nil {
				return err
			}
		}
		if err := l.syncFile(segmentName(s.first, hashesSuffix)); err != nil {
			return err
		}
	}
	for level := 1; level < tileLevels; level++ {
		if err := l.syncFile(tilesName(level)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(l.cfg.Dir)
}

func (l *Log) syncFile(name string) error {
	f, err := l.cfg.openSegment(filepath.Join(l.cfg.Dir, name), false)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readBack computes the tree from the records of touched as the disk has them, not the page cache, and compares it with newest and t. With rewrite it
// writes the hashes again.
func (l *Log) readBack(touched []segment, newest Checkpoint, t tip, rewrite bool) error {
	for level := 1; level < tileLevels; level++ {
		if err := dropCacheOf(filepath.Join(l.cfg.Dir, tilesName(level))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	r, err := newHashReader(l.cfg.Dir)
	if err != nil {
		return err
	}
	defer r.close()
	var tr tree
	if err := tr.restore(touched[0].first, r); err != nil {
		return err
	}
	var hashes [tileLevels][]byte
	tr.store = func(level int, h tlog.Hash) { hashes[level] = append(hashes[level], h[:]...) }
	for _, s := range touched {
		began := tr.size
		for level := range hashes {
			hashes[level] = hashes[level][:0]
		}
		if err := addFromDisk(l.cfg.Dir, &tr, s.first, min(s.records, t.size-s.first), newest, t); err != nil {
			return err
		}
		if !rewrite {
			continue
		}
		if err := writeAt(filepath.Join(l.cfg.Dir, segmentName(s.first, hashesSuffix)), hashes[0], 0); err != nil {
			return err
		}
		for level := 1; level < tileLevels; level++ {
			if err := writeAt(filepath.Join(l.cfg.Dir, tilesName(level)), hashes[level], int64(began>>(tileHeight*level))*tlog.HashSize); err != nil {
				return err
			}
		}
	}
	return nil
}

// addFromDisk adds the first n records of a segment to the tree, which has to pass newest and t.
func addFromDisk(dir string, tr *tree, first, n uint64, newest Checkpoint, t tip) error {
	path := filepath.Join(dir, segmentName(first, plainSuffix))
	if err := dropCacheOf(path); err != nil {
		return err
	}
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	entries := entryReader{r: f}
	for i := uint64(0); ; i++ {
		if tr.size == newest.Size && newest.Size > 0 && tr.root() != newest.Root || tr.size == t.size && tr.root() != t.root {
			return fmt.Errorf("%w: the disk has other records before record %d than those that were acknowledged", ErrDamaged, tr.size)
		}
		if i == n {
			return nil
		}
		entry, err := entries.next()
		if err == io.EOF || err == errTorn || err == errEmpty {
			return fmt.Errorf("%w: record %d, which was acknowledged, is not on the disk any more", ErrDamaged, first+i)
		}
		if err != nil {
			return err
		}
		h := leafHash(entry)
		tr.store(0, h)
		tr.add(0, h)
	}
}

func dropCacheOf(path string) error {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	return errors.Join(dropCache(f), f.Close())
}

func writeAt(path string, content []byte, offset int64) error {
	if len(content) == 0 {
		return nil
	}
	f, err := open(path, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, offset)
	return errors.Join(err, f.Close())
}
