package audit

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// copyOf is the files of a log.
type copyOf map[string][]byte

func load(t testing.TB, dir string) copyOf {
	t.Helper()
	files := copyOf{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == lockName {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // of a log that is open: its keeper has renamed or removed it since
		}
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = content
	}
	return files
}

func (c copyOf) save(t testing.TB, dir string, was copyOf) {
	t.Helper()
	for name := range was {
		if _, ok := c[name]; !ok {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, content := range c {
		if old, ok := was[name]; ok && bytes.Equal(old, content) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func equal(a, b copyOf) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// tampering changes a copy. It may do nothing when what it is about is not there.
type tampering struct {
	name string
	do   func(r *rand.Rand, c copyOf, t testing.TB)
}

func anyFile(r *rand.Rand, c copyOf) string {
	names := slices.Sorted(maps.Keys(c))
	return names[r.IntN(len(names))]
}

// entriesOf is the entries of a segment, and its name.
func anySegment(r *rand.Rand, c copyOf, t testing.TB) (name string, entries [][]byte) {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if strings.HasSuffix(name, plainSuffix) || strings.HasSuffix(name, packedSuffix) {
			names = append(names, name)
		}
	}
	name = names[r.IntN(len(names))]
	return name, entriesOf(t, name, c[name])
}

func entriesOf(t testing.TB, name string, content []byte) (entries [][]byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	first, _ := indexOf(strings.TrimSuffix(name, ".zst"), plainSuffix)
	if err := eachEntry(filepath.Dir(path), first, func(_ uint64, entry []byte) bool {
		entries = append(entries, bytes.Clone(entry))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return entries
}

// put writes entries as a segment, sealed as it should be: whoever can write the files can do that.
func put(c copyOf, t testing.TB, name string, entries [][]byte) {
	content := bytes.Join(entries, nil)
	if strings.HasSuffix(name, packedSuffix) {
		var out bytes.Buffer
		if err := pack(&out, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		content = out.Bytes()
	}
	c[name] = content
}

// forge makes the hashes those of the records, for a log that begins with record 0.
func forge(c copyOf, t testing.TB) {
	var tr tree
	var leaves []byte
	levels := map[int][]byte{}
	tr.store = func(level int, h tlog.Hash) { levels[level] = append(levels[level], h[:]...) }
	for _, name := range slices.Sorted(maps.Keys(c)) {
		base, ok := strings.CutSuffix(strings.TrimSuffix(name, ".zst"), plainSuffix)
		if !ok {
			continue
		}
		leaves = nil
		for _, e := range entriesOf(t, name, c[name]) {
			h := leafHash(e)
			leaves = append(leaves, h[:]...)
			tr.add(0, h)
		}
		c[base+hashesSuffix] = leaves
	}
	for level, hashes := range levels {
		c[tilesName(level)] = hashes
	}
}

func checkpointsOf(t testing.TB, c copyOf) (out [][]byte) {
	r := newCheckpointReader(bytes.NewReader(c[checkpointAll]))
	for {
		msg, err := r.next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, append(bytes.Clone(msg), '\n'))
	}
}

var tamperings = []tampering{
	{"flip a bit", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		if b := bytes.Clone(c[name]); len(b) > 0 {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			c[name] = b
		}
	}},
	{"change bytes", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		b := bytes.Clone(c[name])
		for i := r.IntN(len(b) + 1); i < len(b) && r.IntN(8) > 0; i++ {
			b[i] = byte(r.Uint32())
		}
		c[name] = b
	}},
	{"zero bytes", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		b := bytes.Clone(c[name])
		at := r.IntN(len(b) + 1)
		clear(b[at:min(len(b), at+1+r.IntN(512))])
		c[name] = b
	}},
	{"delete bytes", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		at := r.IntN(len(c[name]) + 1)
		c[name] = slices.Delete(bytes.Clone(c[name]), at, min(len(c[name]), at+1+r.IntN(100)))
	}},
	{"insert bytes", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		b := make([]byte, 1+r.IntN(100))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		c[name] = slices.Insert(bytes.Clone(c[name]), r.IntN(len(c[name])+1), b...)
	}},
	{"append a copy of the end", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		b := c[name]
		c[name] = append(bytes.Clone(b), b[len(b)-min(len(b), 1+r.IntN(64)*32):]...)
	}},
	{"truncate", func(r *rand.Rand, c copyOf, _ testing.TB) {
		name := anyFile(r, c)
		c[name] = bytes.Clone(c[name][:r.IntN(len(c[name])+1)])
	}},
	{"delete a file", func(r *rand.Rand, c copyOf, _ testing.TB) { delete(c, anyFile(r, c)) }},
	{"delete the checkpoints", func(_ *rand.Rand, c copyOf, _ testing.TB) { delete(c, checkpointAll); delete(c, checkpointTip) }},
	{"swap two files", func(r *rand.Rand, c copyOf, _ testing.TB) {
		a, b := anyFile(r, c), anyFile(r, c)
		c[a], c[b] = c[b], c[a]
	}},
	{"put a file in another's place", func(r *rand.Rand, c copyOf, _ testing.TB) { c[anyFile(r, c)] = c[anyFile(r, c)] }},
	{"add a segment", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, entries := anySegment(r, c, t)
		if r.IntN(2) == 0 {
			name = segmentName(r.Uint64N(5000), plainSuffix)
		}
		put(c, t, strings.TrimSuffix(name, ".zst"), entries)
	}},
	{"delete a segment with its hashes", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, _ := anySegment(r, c, t)
		delete(c, name)
		delete(c, strings.TrimSuffix(strings.TrimSuffix(name, ".zst"), plainSuffix)+hashesSuffix)
	}},
	{"delete the segments at the front", func(r *rand.Rand, c copyOf, t testing.TB) {
		last, _ := anySegment(r, c, t)
		for name := range maps.Clone(c) {
			if strings.HasPrefix(name, segmentPrefix) && !strings.HasSuffix(name, hashesSuffix) && name <= last {
				delete(c, name)
			}
		}
	}},
	{"delete the segments at the end", func(r *rand.Rand, c copyOf, t testing.TB) {
		from, _ := anySegment(r, c, t)
		for name := range maps.Clone(c) {
			if strings.HasPrefix(name, segmentPrefix) && name[:len("segment-00000000000000000000")] >= from[:len("segment-00000000000000000000")] {
				delete(c, name)
			}
		}
	}},
	{"delete a record", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		i := r.IntN(len(e))
		put(c, t, name, slices.Delete(e, i, i+1))
	}},
	{"repeat a record", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		put(c, t, name, slices.Insert(e, r.IntN(len(e)+1), e[r.IntN(len(e))]))
	}},
	{"swap two records", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		a, b := r.IntN(len(e)), r.IntN(len(e))
		e[a], e[b] = e[b], e[a]
		put(c, t, name, e)
	}},
	{"change a record", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		i := r.IntN(len(e))
		e[i][2+r.IntN(len(e[i])-2)] ^= 1
		put(c, t, name, e)
	}},
	{"change a record and all hashes", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		i := r.IntN(len(e))
		e[i][2+r.IntN(len(e[i])-2)] ^= 1
		put(c, t, name, e)
		forge(c, t)
	}},
	{"delete a record and its hashes", func(r *rand.Rand, c copyOf, t testing.TB) {
		name, e := anySegment(r, c, t)
		i := r.IntN(len(e))
		put(c, t, name, slices.Delete(e, i, i+1))
		forge(c, t)
	}},
	{"delete a checkpoint", func(r *rand.Rand, c copyOf, t testing.TB) {
		all := checkpointsOf(t, c)
		i := r.IntN(len(all))
		c[checkpointAll] = bytes.Join(slices.Delete(all, i, i+1), nil)
	}},
	{"swap two checkpoints", func(r *rand.Rand, c copyOf, t testing.TB) {
		all := checkpointsOf(t, c)
		a, b := r.IntN(len(all)), r.IntN(len(all))
		all[a], all[b] = all[b], all[a]
		c[checkpointAll] = bytes.Join(all, nil)
	}},
	{"put an older checkpoint back", func(r *rand.Rand, c copyOf, t testing.TB) {
		all := checkpointsOf(t, c)
		i := r.IntN(len(all))
		c[checkpointTip] = bytes.TrimSuffix(all[i], []byte("\n"))
		if r.IntN(2) == 0 {
			c[checkpointAll] = bytes.Join(all[:i+1], nil)
		}
	}},
}

// victim is a log to tamper with: closed, so that all of it is covered, with older copies of it and the newest checkpoint that is kept elsewhere.
type victim struct {
	name   string
	whole  copyOf
	older  []copyOf
	newest []byte
}

func makeVictim(t testing.TB, name string, segmentBytes, retain int64) victim {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes, cfg.RetainBytes = segmentBytes, retain
	s := &store{}
	cfg.Newest, cfg.Publish = s.Newest, s.Publish
	v := victim{name: name}
	small := func(i int) []byte {
		return fmt.Appendf(nil, `{"eventTime":"%s","eventName":"Decrypt","requestID":"%08x"}`, time.Unix(int64(i), 0).UTC().Format(time.RFC3339), i)
	}
	n := 0
	for range 6 {
		l := mustOpen(t, cfg)
		for range 2 {
			for range 120 {
				if err := l.Append(small(n)); err != nil {
					t.Fatal(err)
				}
				n++
			}
			await(t, "checkpoint", func() bool { return l.Stats().Checkpoint >= uint64(n) })
		}
		mustClose(t, l)
		v.older = append(v.older, load(t, cfg.Dir))
	}
	v.whole, v.newest = v.older[5], s.newest
	v.older = v.older[:5]
	return v
}

var tamperingCases = flag.Int("tamperings", 1500, "cases of TestTampering")

// TestTampering changes logs in every way it knows, at random, and asks Verify each time. The seed is fixed and every case is made from its number.
func TestTampering(t *testing.T) {
	n := *tamperingCases
	if testing.Short() {
		n = 400
	}
	victims := []victim{makeVictim(t, "compressed", 4000, 0), makeVictim(t, "retained", 4000, 3000), makeVictim(t, "one segment", 1<<20, 0)}
	for _, v := range victims {
		files := slices.Sorted(maps.Keys(v.whole))
		if packed := exists2(files, packedSuffix); packed == (v.name == "one segment") {
			t.Fatalf("%s: %q", v.name, files)
		}
	}
	kinds := map[string]int{}
	found, leftovers := 0, 0
	dirs := make([]string, len(victims))
	for i, v := range victims {
		dirs[i] = t.TempDir()
		v.whole.save(t, dirs[i], nil)
		if r := mustVerify(t, dirs[i], v.newest); r.Uncovered != 0 || r.Incomplete != 0 || (r.First > 0) != (v.name == "retained") {
			t.Fatalf("%s: %+v", v.name, r)
		}
	}
	for i := 0; found < n; i++ {
		r := rand.New(rand.NewPCG(1, uint64(i)))
		k := r.IntN(len(victims))
		v, dir := victims[k], dirs[k]
		changed, newest, kind := maps.Clone(v.whole), []byte(nil), "put an older copy back"
		if j := r.IntN(len(tamperings) + 1); j < len(tamperings) {
			kind = tamperings[j].name
			tamperings[j].do(r, changed, t)
			if r.IntN(2) == 0 {
				newest = v.newest
			}
		} else {
			changed, newest = v.older[r.IntN(len(v.older))], v.newest
		}
		if equal(changed, v.whole) {
			continue
		}
		if kind == "put an older checkpoint back" && !bytes.Equal(changed[checkpointAll], v.whole[checkpointAll]) {
			newest = v.newest // with both files it is an older copy, as far as it goes: only the checkpoint that is kept elsewhere tells
		}
		changed.save(t, dir, v.whole)
		report, err := verify(t.Context(), dir, testSigner().verifier, newest, 0)
		if err == nil && report.Uncovered == 0 && report.Incomplete == 0 && len(report.Leftovers) == 0 {
			t.Fatalf("case %d of %s, %s, is not found: %+v", i, v.name, kind, report)
		}
		if err != nil && !errors.Is(err, ErrTampered) {
			t.Fatalf("case %d of %s, %s: %v", i, v.name, kind, err)
		}
		if err == nil && len(report.Leftovers) > 0 {
			// What looks as after a crash is what Open repairs, and then nothing is missing.
			repaired(t, fmt.Sprintf("case %d of %s, %s", i, v.name, kind), changed, v)
			leftovers++
		}
		kinds[kind]++
		found++
		v.whole.save(t, dir, changed)
	}
	for _, tampering := range tamperings {
		if kinds[tampering.name] == 0 {
			t.Errorf("%s never happened", tampering.name)
		}
	}
	t.Logf("%d of %d tamperings of %d kinds found, %d of them as what a crash leaves", found, n, len(kinds), leftovers)
	for i, v := range victims {
		mustVerify(t, dirs[i], v.newest) // what was changed was put back, so each case was alone
	}
}

// repaired opens what was changed, and finds every record that was covered there.
func repaired(t *testing.T, what string, changed copyOf, v victim) {
	t.Helper()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 1 << 20
	changed.save(t, cfg.Dir, nil)
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("%s: verified, but Open: %v", what, err)
	}
	mustClose(t, l)
	r, err := verify(t.Context(), cfg.Dir, testSigner().verifier, v.newest, 0)
	if err != nil || len(r.Leftovers) > 0 || r.Uncovered > 0 {
		t.Fatalf("%s: after Open: %+v, %v", what, r, err)
	}
}

func exists2(names []string, suffix string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, suffix) })
}
