package audit

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// ErrTampered is the error of Verify about a log that is not what was signed. The report says more.
var ErrTampered = errors.New("audit: the log is not what was signed")

// Report is what Verify found.
type Report struct {
	Origin      string
	First       uint64 // index of the first record that retention has left
	Records     uint64 // that were read
	Covered     uint64 // index before which all is covered by a checkpoint: the newest one's size
	Uncovered   uint64 // records after it: they may be right, nobody has signed yet
	Incomplete  int64  // bytes at the end that are not a whole record: an append under way, or one that a crash cut short
	Checkpoints int
	Segments    int
	Took        time.Duration
	Leftovers   []string // what a crash leaves and the next start repairs: no record and no signature is touched
	Faults      []string // what is wrong, at most faultsMax
}

const faultsMax = 100

// Verify reads the whole log and compares it with its checkpoints, and those with the public key. newest, if not nil, is the newest checkpoint that is
// kept elsewhere: with it a complete older copy is found too, and that there are no checkpoints any more; without it those of a log that has none count
// as not covered yet. The error is ErrTampered if there are faults, and another one if the log could not
// be read. A log that is being written can be verified.
func Verify(ctx context.Context, dir string, v note.Verifier, newest []byte) (Report, error) {
	return verify(ctx, dir, v, newest, settleWait)
}

func verify(ctx context.Context, dir string, v note.Verifier, newest []byte, settle time.Duration) (Report, error) {
	began := time.Now()
	c := verifier{ctx: ctx, dir: dir, settle: settle}
	err := c.run(v, newest)
	c.report.Took = time.Since(began)
	if err != nil {
		return c.report, err
	}
	if len(c.report.Faults) > 0 {
		return c.report, fmt.Errorf("%w: %s", ErrTampered, c.report.Faults[0])
	}
	return c.report, nil
}

type verifier struct {
	ctx     context.Context
	dir     string
	settle  time.Duration            // between looks at what may be changing
	tipTime time.Time                // of the file of the newest checkpoint
	parsed  map[tlog.Hash]Checkpoint // those whose signatures were verified
	report  Report
	roots   []sizedRoot // of checkpoints, ascending, those not passed yet
	tree    tree
	tiles   [tileLevels]tileCheck
	kept    uint64   // the largest index of a covered record of retention
	twice   []uint64 // segments that are there compressed and not
}

type sizedRoot struct {
	size uint64
	root tlog.Hash
	what string
}

// tileCheck compares the hashes of a file with those that are computed.
type tileCheck struct {
	f      *os.File
	stream hashStream
	have   uint64 // hashes in the file when verification began
	seen   uint64
	wrong  bool
}

func (c *verifier) fault(format string, args ...any) {
	if len(c.report.Faults) < faultsMax {
		c.report.Faults = append(c.report.Faults, fmt.Sprintf(format, args...))
	}
}

func (c *verifier) leftover(format string, args ...any) {
	if len(c.report.Leftovers) < faultsMax {
		c.report.Leftovers = append(c.report.Leftovers, fmt.Sprintf(format, args...))
	}
}

func (c *verifier) run(v note.Verifier, newest []byte) error {
	if err := c.checkpoints(v, newest); err != nil {
		return err
	}
	// Sizes of hash files before the segments: then no file can be ahead of the records that are read, also in a log that is being written.
	before, err := list(c.dir)
	if err != nil {
		return err
	}
	sizes, err := c.openTiles(before.hashes)
	defer c.closeTiles()
	if err != nil {
		return err
	}
	after, err := c.settledList()
	if err != nil {
		return err
	}
	for _, name := range after.odd {
		c.fault("%s is not a regular file", name)
	}
	for _, name := range after.foreign {
		c.fault("%s is not a file of the log", name)
	}
	firsts := union(before.segments(), after.segments())
	if len(firsts) == 0 {
		if len(c.roots) > 0 {
			c.fault("there are no segments")
		}
		return nil
	}
	c.report.First, c.report.Segments = firsts[0], len(firsts)
	if err := c.pruned(firsts[0], before.hashes, sizes); err != nil {
		return err
	}
	for i := 0; i < len(firsts); i++ {
		if firsts[i] > c.tree.size && hasSegment(c.dir, c.tree.size) { // made or renamed while the listings were
			firsts = slices.Insert(firsts, i, c.tree.size)
		}
		first := firsts[i]
		if first != c.tree.size {
			c.fault("records %d to %d are missing before %s", c.tree.size, first-1, segmentName(first, plainSuffix))
			return nil
		}
		ok, err := c.segment(first, i+1 == len(firsts), sizes)
		if err != nil || !ok {
			return err
		}
	}
	c.finish(firsts, before.hashes, sizes)
	return nil
}

// checkpoints reads the newest checkpoint and then all of them, which end with it. A log that is being written is between the two for a moment.
func (c *verifier) checkpoints(v note.Verifier, newest []byte) error {
	size := int64(-1)
	for try := 0; try <= settleTries; try++ {
		if try > 0 {
			time.Sleep(c.settle)
			if info, err := os.Lstat(filepath.Join(c.dir, checkpointTip)); err == nil && info.ModTime().Equal(c.tipTime) && info.Size() == size {
				continue
			}
		}
		c.report.Faults, c.report.Leftovers, c.roots, c.report.Checkpoints = nil, nil, nil, 0
		tip, err := os.ReadFile(filepath.Join(c.dir, checkpointTip))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if info, err := os.Lstat(filepath.Join(c.dir, checkpointTip)); err == nil {
			c.tipTime, size = info.ModTime(), info.Size()
		}
		last, before, hasNewest, err := c.history(v, newest)
		if err != nil {
			return err
		}
		switch {
		case bytes.Equal(tip, last):
		case bytes.Equal(tip, before): // also if both are nil: the first one
			c.leftover("%s is the one before the last of %s", checkpointTip, checkpointAll)
		default:
			c.fault("%s is not the last of %s", checkpointTip, checkpointAll)
		}
		if newest != nil && !hasNewest {
			c.fault("the newest checkpoint that was given is not in %s", checkpointAll)
		}
		if len(c.report.Faults)+len(c.report.Leftovers) == 0 {
			break
		}
	}
	if newest == nil {
		return nil
	}
	n, err := ParseCheckpoint(newest, v)
	if err != nil {
		return fmt.Errorf("audit: the newest checkpoint that was given: %w", err)
	}
	if c.report.Origin != "" && n.Origin != c.report.Origin {
		return fmt.Errorf("audit: the newest checkpoint that was given is of the log %q, this is %q", n.Origin, c.report.Origin)
	}
	c.roots = append(c.roots, sizedRoot{n.Size, n.Root, "the newest checkpoint that was given"})
	slices.SortStableFunc(c.roots, func(a, b sizedRoot) int { return cmp.Compare(a.size, b.size) })
	return nil
}

const (
	settleTries = 20
	settleWait  = 20 * time.Millisecond
)

// history reads all checkpoints and returns the last, the one before it, and whether newest is one of them: the log publishes none before it has it itself.
func (c *verifier) history(v note.Verifier, newest []byte) (last, before []byte, hasNewest bool, err error) {
	f, err := open(filepath.Join(c.dir, checkpointAll), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	defer f.Close()
	r := newCheckpointReader(f)
	var lastOne Checkpoint
	for n := 1; ; n++ {
		msg, err := r.next()
		if err == io.EOF {
			return last, before, hasNewest, nil
		}
		if err == errTorn { // then the file of the newest names the last whole one
			c.leftover("%s, number %d is incomplete", checkpointAll, n)
			return last, last, hasNewest, nil
		}
		if err != nil {
			c.fault("%s, number %d: %v", checkpointAll, n, err)
			return last, last, hasNewest, nil
		}
		cp, err := c.parse(msg, v)
		if err != nil {
			c.fault("%s, number %d: %v", checkpointAll, n, err)
			return last, last, hasNewest, nil
		}
		switch {
		case last == nil && cp.Previous != tlog.Hash{}:
			c.fault("%s, number %d: those before it are missing", checkpointAll, n)
		case last != nil && cp.Previous != checkpointHash(last):
			c.fault("%s, number %d: it does not follow the one before it", checkpointAll, n)
		case last != nil && (cp.Size <= lastOne.Size || cp.Origin != lastOne.Origin):
			c.fault("%s, number %d: of %d records of %s after %d of %s", checkpointAll, n, cp.Size, cp.Origin, lastOne.Size, lastOne.Origin)
		}
		c.roots = append(c.roots, sizedRoot{cp.Size, cp.Root, fmt.Sprintf("%s, number %d", checkpointAll, n)})
		c.report.Checkpoints, c.report.Covered, c.report.Origin = n, cp.Size, cp.Origin
		before, last, lastOne = last, bytes.Clone(msg), cp
		hasNewest = hasNewest || bytes.Equal(msg, newest)
		if c.ctx.Err() != nil {
			return nil, nil, false, c.ctx.Err()
		}
	}
}

// parse is ParseCheckpoint, which verifies a signature, once for each checkpoint: of a log that is being written they are read again until the newest
// was read too, and reading must be faster than writing.
func (c *verifier) parse(msg []byte, v note.Verifier) (Checkpoint, error) {
	hash := checkpointHash(msg)
	if cp, ok := c.parsed[hash]; ok {
		return cp, nil
	}
	cp, err := ParseCheckpoint(msg, v)
	if err == nil {
		if c.parsed == nil {
			c.parsed = map[tlog.Hash]Checkpoint{}
		}
		c.parsed[hash] = cp
	}
	return cp, err
}

// settledList lists the files once no segment is there both compressed and not, as it is for a moment when it is being compressed.
func (c *verifier) settledList() (listing, error) {
	for try := 0; ; try++ {
		files, err := list(c.dir)
		if err != nil {
			return files, err
		}
		twice := slices.DeleteFunc(slices.Clone(files.plain), func(first uint64) bool { return !slices.Contains(files.packed, first) })
		if len(twice) == 0 {
			return files, nil
		}
		if try == settleTries {
			c.twice = twice
			return files, c.compareTwice()
		}
		time.Sleep(c.settle)
	}
}

// compareTwice looks at segments that are there compressed and not: a crash leaves both while the plain one is about to be removed.
func (c *verifier) compareTwice() error {
	for _, first := range c.twice {
		plainName, packedName := segmentName(first, plainSuffix), segmentName(first, packedSuffix)
		if err := checkSeal(filepath.Join(c.dir, packedName)); err != nil {
			c.fault("%s: %v", packedName, err)
			continue
		}
		same, err := sameContent(filepath.Join(c.dir, plainName), filepath.Join(c.dir, packedName))
		switch {
		case err != nil && c.ctx.Err() == nil:
			c.fault("%s and %s: %v", plainName, packedName, err)
		case !same:
			c.fault("%s is not what %s is", plainName, packedName)
		default:
			c.leftover("%s is there compressed as well", plainName)
		}
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
	}
	return nil
}

func sameContent(plainPath, packedPath string) (bool, error) {
	a, err := open(plainPath, os.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openPacked(packedPath)
	if err != nil {
		return false, err
	}
	defer b.Close()
	var bufA, bufB [64 << 10]byte
	for {
		n, errA := io.ReadFull(a, bufA[:])
		m, errB := io.ReadFull(b, bufB[:])
		endA, endB := errA == io.EOF || errA == io.ErrUnexpectedEOF, errB == io.EOF || errB == io.ErrUnexpectedEOF
		switch {
		case errA != nil && !endA:
			return false, errA
		case errB != nil && !endB:
			return false, errB
		case !bytes.Equal(bufA[:n], bufB[:m]):
			return false, nil
		case endA:
			return endB, nil
		}
	}
}

// openTiles opens tiles-1 and up, and returns how many hashes each .hashes has.
func (c *verifier) openTiles(hashes []uint64) (map[uint64]uint64, error) {
	sizes := map[uint64]uint64{}
	for _, first := range hashes {
		name := segmentName(first, hashesSuffix)
		info, err := os.Lstat(filepath.Join(c.dir, name))
		if err != nil {
			return nil, err
		}
		sizes[first] = hashCount(info)
	}
	for level := 1; level < tileLevels; level++ {
		f, err := open(filepath.Join(c.dir, tilesName(level)), os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		c.tiles[level] = tileCheck{f: f, stream: hashStream{r: f}, have: hashCount(info)}
	}
	c.tree.store = c.tile
	return sizes, nil
}

// hashCount counts a hash in which the file ends as one: it compares with none.
func hashCount(info fs.FileInfo) uint64 { return uint64(info.Size()+tlog.HashSize-1) / tlog.HashSize }

// unequal is a hash in a file that is not that of the records. Open computes again those that no checkpoint covers: a power cut may have left anything.
func (c *verifier) unequal(covered bool, format string, args ...any) {
	if covered {
		c.fault(format, args...)
	} else {
		c.leftover(format, args...)
	}
}

func (c *verifier) closeTiles() {
	for _, t := range c.tiles {
		if t.f != nil {
			t.f.Close()
		}
	}
}

// tile compares the next hash of a level with what was computed.
func (c *verifier) tile(level int, h tlog.Hash) {
	t := &c.tiles[level]
	t.seen++
	if t.seen > t.have || t.wrong {
		return
	}
	if got, err := t.stream.next(); err != nil || got != h {
		t.wrong = true
		c.unequal(t.seen <= c.report.Covered>>(tileHeight*level), "%s: hash %d is not that of the records", tilesName(level), t.seen-1)
	}
}

// pruned takes what retention has removed from the hashes that are left of it.
func (c *verifier) pruned(first uint64, hashes []uint64, sizes map[uint64]uint64) error {
	upTo := prunedTo(first)
	for _, h := range hashes {
		if h >= first || h == upTo && sizes[h] == first-upTo {
			continue
		}
		// Those of segments that were removed are removed in order, after the segments: each ends where another, or the first segment, begins.
		if end := h + sizes[h]; end == h || end > first || end < first && !slices.Contains(hashes, end) {
			c.fault("%s belongs to no segment", segmentName(h, hashesSuffix))
			continue
		}
		c.leftover("%s is of a segment that was removed", segmentName(h, hashesSuffix))
	}
	t := &c.tiles[1]
	for c.tree.size < upTo {
		if t.have <= t.seen {
			c.fault("%s: it ends before the first segment", tilesName(1))
			return nil
		}
		h, err := t.stream.next()
		if err == io.ErrUnexpectedEOF {
			c.fault("%s ends inside a hash", tilesName(1))
			return nil
		}
		if err != nil {
			return err
		}
		t.seen++
		c.tree.add(tileHeight, h)
		c.passed()
	}
	if upTo == first {
		return nil
	}
	r := &hashReader{dir: c.dir, firsts: hashes, files: map[string]*os.File{}}
	defer r.close()
	var leaves [1 << tileHeight]tlog.Hash
	if err := r.read(0, upTo, leaves[:first-upTo]); err != nil {
		c.fault("the hashes of removed records from %d on: %v", upTo, err)
		return nil
	}
	for _, h := range leaves[:first-upTo] {
		c.tree.add(0, h)
		c.passed()
	}
	return nil
}

// passed compares the tree with the checkpoints of its size. Those of sizes between removed tiles stay unchecked: their records are gone.
func (c *verifier) passed() {
	for len(c.roots) > 0 && c.roots[0].size <= c.tree.size {
		if r := c.roots[0]; r.size == c.tree.size && r.root != c.tree.root() {
			c.fault("the first %d records are not those that were signed: %s", r.size, r.what)
		}
		c.roots = c.roots[1:]
	}
}

// segment reads one segment. It returns false when nothing more can be said about what follows it.
func (c *verifier) segment(first uint64, last bool, sizes map[uint64]uint64) (bool, error) {
	name := segmentName(first, plainSuffix)
	src, err := openEntries(c.dir, first)
	if err != nil {
		return false, err
	}
	defer src.Close()
	_, sealed := src.(*packed)
	if slices.Contains(c.twice, first) {
		sealed = true
	} else if sealed {
		name = segmentName(first, packedSuffix)
		if err := checkSeal(filepath.Join(c.dir, name)); err != nil {
			c.fault("%s: %v", name, err)
			return false, nil
		}
	}
	leaves := tileCheck{have: sizes[first]}
	hashName := segmentName(first, hashesSuffix)
	if f, err := open(filepath.Join(c.dir, hashName), os.O_RDONLY); err == nil {
		defer f.Close()
		leaves.stream.r = f
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	buf := entryBuffers.Get().(*[]byte)
	defer entryBuffers.Put(buf)
	entries := entryReader{r: src, buf: *buf}
	for {
		entry, err := entries.next()
		if err == io.EOF {
			break
		}
		if last && (err == errTorn || err == errEmpty) && c.tree.size >= c.report.Covered {
			info, statErr := os.Lstat(filepath.Join(c.dir, name))
			if statErr != nil {
				return false, statErr
			}
			c.report.Incomplete = info.Size() - entries.offset
			break
		}
		if err != nil {
			if c.ctx.Err() != nil {
				return false, c.ctx.Err()
			}
			c.fault("%s, record %d: %v", name, c.tree.size, err)
			return false, nil
		}
		if c.tree.size < c.report.Covered {
			c.kept = max(c.kept, retainedFrom(entry[2:]))
		}
		h := leafHash(entry)
		if leaves.seen < leaves.have && !leaves.wrong {
			if got, err := leaves.stream.next(); err != nil || got != h {
				leaves.wrong = true
				c.unequal(c.tree.size < c.report.Covered, "%s: record %d is not the one in %s", name, c.tree.size, hashName)
			}
		}
		leaves.seen++
		c.tree.add(0, h)
		c.report.Records++
		c.passed()
		if c.report.Records%4096 == 0 && c.ctx.Err() != nil {
			return false, c.ctx.Err()
		}
	}
	if sealed && c.tree.size > c.report.Covered && !c.coveredNow() {
		c.fault("%s is compressed, but no checkpoint covers it: checkpoints are missing", name)
	}
	if short := leaves.have < min(leaves.seen, max(c.report.Covered, first)-first); short || leaves.have > leaves.seen {
		covered := short || c.tree.size < c.report.Covered || c.tree.size == c.report.Covered && !last
		c.unequal(covered, "%s has %d hashes, the segment %d records", hashName, leaves.have, leaves.seen)
	}
	return true, nil
}

// coveredNow says whether there are newer checkpoints than those that were read: the log is being written, and the segment was compressed meanwhile.
func (c *verifier) coveredNow() bool {
	info, err := os.Lstat(filepath.Join(c.dir, checkpointTip))
	return err == nil && !info.ModTime().Equal(c.tipTime)
}

// finish compares the ends.
func (c *verifier) finish(firsts, hashes []uint64, sizes map[uint64]uint64) {
	size := c.tree.size
	for _, r := range c.roots {
		c.fault("the log ends with record %d, but %d were signed: %s", size, r.size, r.what)
	}
	if size > c.report.Covered {
		c.report.Uncovered = size - c.report.Covered
	}
	for level := 1; level < tileLevels; level++ {
		t := c.tiles[level]
		if short := t.have < min(t.seen, c.report.Covered>>(tileHeight*level)); short || t.have > t.seen {
			c.unequal(short || size < c.report.Covered, "%s has %d hashes, the records %d", tilesName(level), t.have, t.seen)
		}
	}
	if firsts[0] > c.kept {
		c.fault("the records before %d are missing, and there is no record of their removal", firsts[0])
	}
	for _, h := range hashes {
		if h >= firsts[0] && !slices.Contains(firsts, h) && (h != size || sizes[h] > 0) { // or the segment was begun a moment ago
			c.unequal(h < c.report.Covered, "%s belongs to no segment", segmentName(h, hashesSuffix))
		}
	}
}
