package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	segmentPrefix = "segment-"
	plainSuffix   = ".log"
	packedSuffix  = ".log.zst"
	hashesSuffix  = ".hashes"
	tmpSuffix     = ".tmp"
	tilesPrefix   = "tiles-"
	checkpointTip = "checkpoint"
	checkpointAll = "checkpoints"
	lockName      = "lock"
	probeName     = "probe" + tmpSuffix
)

func segmentName(first uint64, suffix string) string {
	return fmt.Sprintf("%s%020d%s", segmentPrefix, first, suffix)
}

// indexOf is the first index in the name of a segment or its hashes.
func indexOf(name, suffix string) (uint64, bool) {
	digits := strings.TrimSuffix(strings.TrimPrefix(name, segmentPrefix), suffix)
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, err == nil && segmentName(n, suffix) == name
}

// listing is what a directory holds, each list ascending.
type listing struct {
	plain, packed, hashes []uint64
	odd                   []string // names of the log that are no regular files
	foreign               []string // names that are none of the log's
}

func list(dir string) (listing, error) {
	var l listing
	entries, err := os.ReadDir(dir)
	if err != nil {
		return l, err
	}
	for _, e := range entries {
		name := e.Name()
		plain, isPlain := indexOf(name, plainSuffix)
		packed, isPacked := indexOf(name, packedSuffix)
		hashes, isHashes := indexOf(name, hashesSuffix)
		switch ours := isPlain || isPacked || isHashes || known(name); {
		case !ours && (name != lostAndFound || !e.IsDir()):
			l.foreign = append(l.foreign, name)
		case ours && !e.Type().IsRegular():
			l.odd = append(l.odd, name)
		case isPlain:
			l.plain = append(l.plain, plain)
		case isPacked:
			l.packed = append(l.packed, packed)
		case isHashes:
			l.hashes = append(l.hashes, hashes)
		}
	}
	return l, nil
}

const lostAndFound = "lost+found" // in the root of a file system

func known(name string) bool {
	if level, ok := strings.CutPrefix(name, tilesPrefix); ok {
		return len(level) == 1 && level[0] >= '1' && level[0] <= '7'
	}
	return name == checkpointTip || name == checkpointAll || name == lockName || temporary(name)
}

// temporary says whether name is that of a file that the log is about to rename or to remove.
func temporary(name string) bool {
	target, ok := strings.CutSuffix(name, tmpSuffix)
	_, hashes := indexOf(target, hashesSuffix)
	_, packed := indexOf(target, packedSuffix)
	return ok && (hashes || packed || target == checkpointTip || name == probeName)
}

// segments are the first indexes of all segments, each once.
func (l listing) segments() []uint64 { return union(l.plain, l.packed) }

func union(a, b []uint64) []uint64 {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// liveSegments are the segments that a log had at this moment, also if it is being written. A listing can miss a file that is made or renamed
// meanwhile: the next one has it, if only up to the last that the first one had.
func liveSegments(dir string) ([]uint64, error) {
	before, err := list(dir)
	if err != nil {
		return nil, err
	}
	after, err := list(dir)
	if err != nil {
		return nil, err
	}
	firsts := before.segments()
	if len(firsts) == 0 {
		return nil, nil
	}
	last := firsts[len(firsts)-1]
	return slices.DeleteFunc(union(firsts, after.segments()), func(first uint64) bool { return first > last }), nil
}

// hasSegment says whether there is a segment, compressed or not.
func hasSegment(dir string, first uint64) bool {
	src, err := openEntries(dir, first)
	if err != nil {
		return false
	}
	src.Close()
	return true
}

// Errors of an entry reader.
var (
	errTorn  = errors.New("the last record is incomplete")
	errEmpty = errors.New("a record of no bytes")
)

// entryReader reads entries (big-endian uint16 length ‖ record). The zero value with r set is ready.
type entryReader struct {
	r          io.Reader
	buf        []byte
	start, end int
	offset     int64 // in r, of the next entry
	eof        bool
}

func (e *entryReader) reset(r io.Reader, offset int64) {
	e.r, e.start, e.end, e.offset, e.eof = r, 0, 0, offset, false
}

// next returns the next entry, length and all, for the caller to use and to change until the call after. At the end of r the error is io.EOF, or
// errTorn if r ends inside an entry. After io.EOF it may be asked again, when r has grown.
func (e *entryReader) next() ([]byte, error) {
	for {
		if have := e.end - e.start; have >= 2 {
			n := int(binary.BigEndian.Uint16(e.buf[e.start:]))
			if n == 0 {
				return nil, errEmpty
			}
			if have >= 2+n {
				entry := e.buf[e.start : e.start+2+n : e.start+2+n]
				e.start += 2 + n
				e.offset += int64(2 + n)
				return entry, nil
			}
		}
		if e.eof {
			e.eof = false
			if e.start < e.end {
				return nil, errTorn
			}
			return nil, io.EOF
		}
		if err := e.fill(); err != nil {
			return nil, err
		}
	}
}

const entryBufferSize = 4 * (2 + RecordMax)

func (e *entryReader) fill() error {
	if e.buf == nil {
		e.buf = make([]byte, entryBufferSize)
	}
	e.end = copy(e.buf, e.buf[e.start:e.end])
	e.start = 0
	n, err := e.r.Read(e.buf[e.end:])
	e.end += n
	if err == io.EOF {
		e.eof, err = true, nil
	}
	return err
}

// openEntries opens a segment for reading, compressed or not, as it is at this moment.
func openEntries(dir string, first uint64) (io.ReadCloser, error) {
	for try := 0; ; try++ {
		f, err := open(filepath.Join(dir, segmentName(first, plainSuffix)), os.O_RDONLY)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		p, err := openPacked(filepath.Join(dir, segmentName(first, packedSuffix)))
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try > 0 {
			return p, err
		}
	}
}

// packed reads a compressed segment.
type packed struct {
	f *os.File
	z *zstd.Decoder
}

func (p *packed) Read(b []byte) (int, error) { return p.z.Read(b) }

func (p *packed) Close() error {
	p.z.Close()
	return p.f.Close()
}

func openPacked(path string) (io.ReadCloser, error) {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(packedWindow))
	if err != nil {
		f.Close()
		return nil, err
	}
	return &packed{f, z}, nil
}

const packedWindow = 4 << 20 // bytes that a decoder needs at most

// sealMagic begins the skippable frame of 32 bytes that ends a compressed segment; RFC 8878 §3.1.2 and decoders skip it.
var sealMagic = []byte{0x5e, 0x2a, 0x4d, 0x18, sha256.Size, 0, 0, 0}

// packSegment writes the compressed form of a sealed segment beside it, durable, and then removes the plain one.
func packSegment(dir string, first uint64) error {
	plain, target := filepath.Join(dir, segmentName(first, plainSuffix)), filepath.Join(dir, segmentName(first, packedSuffix))
	tmp := target + tmpSuffix
	src, err := open(plain, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := open(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	err = pack(dst, src)
	err = errors.Join(err, dst.Sync(), dst.Close())
	if err == nil {
		err = os.Chtimes(tmp, info.ModTime(), info.ModTime()) // retention goes by the time of the last record
	}
	if err == nil {
		err = os.Rename(tmp, target)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return os.Remove(plain)
}

func pack(dst io.Writer, src io.Reader) error {
	sum := sha256.New()
	z, err := zstd.NewWriter(io.MultiWriter(dst, sum), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, src); err != nil {
		return errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil {
		return err
	}
	sum.Write(sealMagic)
	_, err = dst.Write(sum.Sum(slices.Clone(sealMagic)))
	return err
}

// checkSeal compares a compressed segment with the hash at its end.
func checkSeal(path string) error {
	f, err := open(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	sum, body := sha256.New(), info.Size()-sha256.Size
	if body < int64(len(sealMagic)) {
		return errors.New("it is too short")
	}
	r := bufio.NewReaderSize(f, 64<<10)
	if _, err := io.CopyN(sum, r, body-int64(len(sealMagic))); err != nil {
		return err
	}
	var end [8 + sha256.Size]byte
	if _, err := io.ReadFull(r, end[:]); err != nil {
		return err
	}
	sum.Write(end[:len(sealMagic)])
	if !bytes.Equal(end[:len(sealMagic)], sealMagic) || !bytes.Equal(sum.Sum(nil), end[len(sealMagic):]) {
		return errors.New("it is not what its last 32 bytes say")
	}
	return nil
}
