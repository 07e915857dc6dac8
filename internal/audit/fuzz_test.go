package audit

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// FuzzEntries reads any bytes as a segment: what is read, written again, is what was there.
func FuzzEntries(f *testing.F) {
	f.Add([]byte("\x00\x02{}\x00\x01x"), 3)
	f.Add([]byte("\x00\x02{}\x00"), 1)
	f.Add([]byte("\x00\x00"), 2)
	f.Add([]byte("\xff\xff{}"), 7)
	f.Fuzz(func(t *testing.T, data []byte, chunk int) {
		e := entryReader{r: &chunks{data: data, n: max(1, chunk)}}
		var out []byte
		for {
			entry, err := e.next()
			if err != nil {
				rest := data[len(out):]
				switch {
				case err == io.EOF && len(rest) != 0, err == errTorn && len(rest) == 0, err == errEmpty && (len(rest) < 2 || rest[0] != 0 || rest[1] != 0):
					t.Fatalf("%v with %d bytes left", err, len(rest))
				case err != io.EOF && err != errTorn && err != errEmpty:
					t.Fatal(err)
				}
				break
			}
			if int(entry[0])<<8|int(entry[1]) != len(entry)-2 || len(entry) < 3 {
				t.Fatalf("entry %x", entry)
			}
			out = append(out, entry...)
			if e.offset != int64(len(out)) {
				t.Fatalf("offset %d after %d bytes", e.offset, len(out))
			}
		}
		if !bytes.HasPrefix(data, out) {
			t.Fatal("other bytes than were there")
		}
	})
}

// chunks returns n bytes at a time.
type chunks struct {
	data []byte
	n    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// FuzzPacked reads any bytes as a compressed segment.
func FuzzPacked(f *testing.F) {
	var good bytes.Buffer
	if err := pack(&good, bytes.NewReader([]byte("\x00\x02{}\x00\x01x"))); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:10])
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, segmentName(0, packedSuffix))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sealed := checkSeal(path) == nil
		read := 0
		err := eachEntry(dir, 0, func(uint64, []byte) bool { read++; return read < 100_000 })
		if bytes.Equal(data, good.Bytes()) && (!sealed || err != nil || read != 2) {
			t.Fatalf("sealed %v, %d entries, %v", sealed, read, err)
		}
	})
}

// FuzzCheckpoint: what is accepted is exactly what would be written.
func FuzzCheckpoint(f *testing.F) {
	s := testSigner()
	for _, c := range []Checkpoint{{Origin: "a", Size: 1}, {Origin: testOrigin, Size: 1 << 40, Root: tlog.Hash{1}, Previous: tlog.Hash{2}}} {
		msg, err := c.sign(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		// A verifier that takes any signature: nobody can make a valid one here.
		c, err := ParseCheckpoint(msg, anySignature{s.verifier})
		if err == nil && (!bytes.HasPrefix(msg, []byte(c.text()+"\n— "+testOrigin+" ")) || bytes.Count(msg, []byte("— ")) < 1) {
			t.Fatalf("%q became %+v", msg, c)
		}
		r := newCheckpointReader(bytes.NewReader(msg))
		for {
			if _, err := r.next(); err != nil {
				break
			}
		}
		if r.offset > int64(len(msg)) {
			t.Fatal("read more than there is")
		}
		if _, end, err := lastCheckpoint(bytes.NewReader(msg), int64(len(msg)), nil); err == nil && end > int64(len(msg)) {
			t.Fatal("an end behind the end")
		}
	})
}

type anySignature struct{ noteVerifier }

func (anySignature) Verify(_, _ []byte) bool { return true }

type noteVerifier interface {
	Name() string
	KeyHash() uint32
	Verify(msg, sig []byte) bool
}

// FuzzHashes reads any bytes as the hash files of a log of any size.
func FuzzHashes(f *testing.F) {
	f.Add(make([]byte, 32*300), make([]byte, 32), uint64(300), uint64(7), 100)
	f.Add([]byte("x"), []byte(nil), uint64(1)<<62, uint64(0), 0)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, leaves, upper []byte, size, at uint64, split int) {
		split = min(len(leaves), max(0, split)) / 32 * 32
		if split == 0 {
			return
		}
		first := uint64(split / 32)
		for name, content := range map[string][]byte{segmentName(0, hashesSuffix): leaves[:split], segmentName(first, hashesSuffix): leaves[split:], tilesName(1): upper} {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := &hashReader{dir: dir, firsts: []uint64{0, first}, files: map[string]*os.File{}}
		defer r.close()
		size &= 1<<62 - 1
		var tr tree
		if err := tr.restore(size, r); err == nil && size > 0 {
			want, err := tlog.TreeHash(int64(size), r)
			if err != nil || want != tr.root() {
				t.Fatalf("root of %d: %v", size, err)
			}
		}
		var h [3]tlog.Hash
		at %= 1 << 40
		if err := r.read(0, at, h[:]); err == nil {
			if int(at+3)*32 > len(leaves) || !bytes.Equal(h[0][:], leaves[at*32:at*32+32]) {
				t.Fatalf("hash %d of %d", at, len(leaves)/32)
			}
		}
	})
}

// FuzzRecord: Search looks into any record.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(record(1)), "GenerateDataKey")
	f.Add([]byte(`{"eventName":"é"}`), "é")
	f.Fuzz(func(t *testing.T, record []byte, name string) {
		filter := Filter{EventName: name, Principal: name}
		filter.matches(record)
		retainedFrom(record)
	})
}
