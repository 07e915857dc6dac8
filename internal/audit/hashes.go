package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/mod/sumdb/tlog"
)

const tileLevels = 8 // levels of tiles that 2^63 records can have; level 0 is in the segments' .hashes

func tilesName(level int) string { return tilesPrefix + strconv.Itoa(level) }

// hashWriter appends to the hash files. What was not written, because the disk is full for instance, is written again at its place.
type hashWriter struct {
	dir    string
	levels [tileLevels]hashFile
	first  uint64 // of the segment whose leaf hashes are in levels[0]
}

type hashFile struct {
	f       *os.File
	count   uint64 // hashes in f
	pending []byte // hashes after those
}

// segment goes on to the leaf hashes of another segment, of which count are there already. Nothing may be pending.
func (w *hashWriter) segment(first, count uint64) error {
	f, err := open(filepath.Join(w.dir, segmentName(first, hashesSuffix)), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	if w.levels[0].f != nil {
		err = w.levels[0].f.Close()
	}
	w.first, w.levels[0].f, w.levels[0].count = first, f, count
	return err
}

func (w *hashWriter) add(level int, h tlog.Hash) {
	w.levels[level].pending = append(w.levels[level].pending, h[:]...)
}

// flush writes what is pending.
func (w *hashWriter) flush() error {
	for level := range w.levels {
		l := &w.levels[level]
		if len(l.pending) == 0 {
			continue
		}
		if l.f == nil {
			f, err := open(filepath.Join(w.dir, tilesName(level)), os.O_RDWR|os.O_CREATE)
			if err != nil {
				return err
			}
			l.f = f
		}
		if _, err := l.f.WriteAt(l.pending, int64(l.count)*tlog.HashSize); err != nil {
			return err
		}
		l.count += uint64(len(l.pending) / tlog.HashSize)
		l.pending = l.pending[:0]
	}
	return nil
}

func (w *hashWriter) close() error {
	var err error
	for level := range w.levels {
		if f := w.levels[level].f; f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// hashReader reads the tree from the hash files. It implements tlog.HashReader.
type hashReader struct {
	dir    string
	firsts []uint64 // of the .hashes files
	files  map[string]*os.File
}

func newHashReader(dir string) (*hashReader, error) {
	l, err := list(dir)
	return &hashReader{dir: dir, firsts: l.hashes, files: map[string]*os.File{}}, err
}

func (r *hashReader) close() {
	for _, f := range r.files {
		f.Close()
	}
}

// ReadHashes returns the hashes of complete subtrees, by tlog's numbering.
func (r *hashReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	var buf [1 << (tileHeight - 1)]tlog.Hash
	for i, index := range indexes {
		level, n := tlog.SplitStoredHashIndex(index)
		below := level % tileHeight // levels above the stored one
		hashes := buf[:1<<below]
		if err := r.read(level/tileHeight, uint64(n)<<below, hashes); err != nil {
			return nil, err
		}
		for ; len(hashes) > 1; hashes = hashes[:len(hashes)/2] {
			for j := range len(hashes) / 2 {
				hashes[j] = nodeHash(&hashes[2*j], &hashes[2*j+1])
			}
		}
		out[i] = hashes[0]
	}
	return out, nil
}

// read fills out with hashes from n on of a level of tiles. Those of level 0 may be in several files.
func (r *hashReader) read(level int, n uint64, out []tlog.Hash) error {
	for len(out) > 0 {
		name, offset, count := tilesName(level), n, uint64(len(out))
		if level == 0 {
			i, found := slices.BinarySearch(r.firsts, n)
			if !found {
				i--
			}
			if i < 0 {
				return fmt.Errorf("the hash of record %d: %w", n, fs.ErrNotExist)
			}
			name, offset = segmentName(r.firsts[i], hashesSuffix), n-r.firsts[i]
			if i+1 < len(r.firsts) {
				count = min(count, r.firsts[i+1]-n)
			}
		}
		f := r.files[name]
		if f == nil {
			var err error
			if f, err = open(filepath.Join(r.dir, name), os.O_RDONLY); err != nil {
				return err
			}
			r.files[name] = f
		}
		buf := make([]byte, count*tlog.HashSize)
		if _, err := f.ReadAt(buf, int64(offset)*tlog.HashSize); err != nil {
			return fmt.Errorf("%s, hash %d: %w", name, offset, err)
		}
		for i := range count {
			copy(out[i][:], buf[i*tlog.HashSize:])
		}
		out, n = out[count:], n+count
	}
	return nil
}

// hashStream reads hashes in order.
type hashStream struct {
	r   io.Reader
	buf *bufio.Reader
}

func (s *hashStream) next() (h tlog.Hash, err error) {
	if s.buf == nil {
		s.buf = bufio.NewReaderSize(s.r, 8<<10)
	}
	_, err = io.ReadFull(s.buf, h[:])
	return h, err
}
