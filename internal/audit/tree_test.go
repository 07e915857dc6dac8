package audit

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// memHashes is tlog's own way to keep a tree.
type memHashes []tlog.Hash

func (m *memHashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		out[i] = (*m)[index]
	}
	return out, nil
}

// TestTree: the right edge and tlog agree on every size, on the hashes of tiles, and on an edge that was restored.
func TestTree(t *testing.T) {
	n := 70_000 // more than a tile of level 1 has below it
	if testing.Short() {
		n = 3000
	}
	var tr tree
	var mem memHashes
	stored := map[int][]tlog.Hash{}
	tr.store = func(level int, h tlog.Hash) { stored[level] = append(stored[level], h) }
	for i := range n {
		record := fmt.Appendf(nil, "record %d", i)
		hashes, err := tlog.StoredHashes(int64(i), record, &mem)
		if err != nil {
			t.Fatal(err)
		}
		mem = append(mem, hashes...)
		entry := append([]byte{0, byte(len(record))}, record...)
		h := leafHash(entry)
		if h != tlog.RecordHash(record) {
			t.Fatalf("leaf %d", i)
		}
		tr.add(0, h)
		if i < 1100 || i%977 == 0 || i == n-1 {
			want, err := tlog.TreeHash(int64(i+1), &mem)
			if err != nil || tr.root() != want {
				t.Fatalf("root of %d: %v", i+1, err)
			}
			var again tree
			if err := again.restore(uint64(i+1), &mem); err != nil || again.root() != want {
				t.Fatalf("restored root of %d: %v", i+1, err)
			}
		}
	}
	for level := 1; n>>(8*level) > 0; level++ {
		if len(stored[level]) != n>>(8*level) {
			t.Errorf("level %d: %d hashes", level, len(stored[level]))
		}
		for i, h := range stored[level] {
			if h != mem[tlog.StoredHashIndex(8*level, int64(i))] {
				t.Errorf("level %d, hash %d", level, i)
			}
		}
	}
	var empty tree
	if want, _ := tlog.TreeHash(0, &mem); empty.root() != want {
		t.Error("root of nothing")
	}
}

// TestTiles: what is exported is what tlog reads and what it would have written.
func TestTiles(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 100_000
	l := mustOpen(t, cfg)
	const n = 1300
	var mem memHashes
	for i := range n {
		if err := l.Append(record(i)); err != nil {
			t.Fatal(err)
		}
		hashes, err := tlog.StoredHashes(int64(i), record(i), &mem)
		if err != nil {
			t.Fatal(err)
		}
		mem = append(mem, hashes...)
	}
	mustClose(t, l)
	out := filepath.Join(t.TempDir(), "out")
	if err := ExportTiles(t.Context(), cfg.Dir, out); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCheckpoint(raw, testSigner().verifier)
	if err != nil || c.Size != n {
		t.Fatalf("%+v, %v", c, err)
	}
	want := map[string]bool{"checkpoint": true}
	for _, tile := range tlog.NewTiles(8, 0, n) {
		if tile.W < 256 || (tile.N+1)<<8 <= n>>(8*tile.L) {
			path := strings.TrimPrefix(tile.Path(), "tile/8/")
			data, err := tlog.ReadTileData(tile, &mem)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(out, "tile", path))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("tile %s: %v", path, err)
			}
			want["tile/"+path] = true
		}
	}
	index := 0
	for bundle, width := range []int{256, 256, 256, 256, 256, 20} {
		path := fmt.Sprintf("tile/entries/%03d", bundle)
		if width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		want[path] = true
		f, err := os.Open(filepath.Join(out, path))
		if err != nil {
			t.Fatal(err)
		}
		e := entryReader{r: f}
		for range width {
			entry, err := e.next()
			if err != nil || !bytes.Equal(entry[2:], record(index)) {
				t.Fatalf("record %d: %v", index, err)
			}
			index++
		}
		f.Close()
	}
	if err := filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
		if name, _ := filepath.Rel(out, path); err == nil && !d.IsDir() && !want[filepath.ToSlash(name)] {
			t.Errorf("%s is more than the layout has", name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := ExportTiles(t.Context(), cfg.Dir, out); err == nil {
		t.Error("written over")
	}
	if got := tilePath(1, 1234067, 5); filepath.ToSlash(got) != "tile/1/x001/x234/067.p/5" {
		t.Error(got)
	}
}

// After a removal there are no bundles and no level-0 tiles before the first record, and the export still proves the rest.
func TestTilesAfterRetention(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes, cfg.RetainBytes = 50_000, 50_000
	l := mustOpen(t, cfg)
	appendN(t, l, 0, 2000)
	await(t, "removal", func() bool { f, _ := list(cfg.Dir); return f.segments()[0] > 600 })
	mustClose(t, l)
	out := t.TempDir()
	if err := ExportTiles(context.Background(), cfg.Dir, out); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCheckpoint(raw, testSigner().verifier)
	if err != nil {
		t.Fatal(err)
	}
	r := tlog.TileHashReader(tlog.Tree{N: int64(c.Size), Hash: c.Root}, tileDir{out})
	index := int64(c.Size - 5)
	proof, err := tlog.ProveRecord(int64(c.Size), index, r)
	if err != nil {
		t.Fatal(err)
	}
	hashes, err := r.ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		t.Fatal(err)
	}
	if err := tlog.CheckRecord(proof, int64(c.Size), c.Root, index, hashes[0]); err != nil {
		t.Error(err)
	}
	if exists(out, "tile/0/000") || exists(out, "tile/entries/000") {
		t.Error("tiles of removed records")
	}
}

// tileDir is a tlog.TileReader over an export.
type tileDir struct{ dir string }

func (d tileDir) Height() int { return 8 }

func (d tileDir) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, tile := range tiles {
		var err error
		if out[i], err = os.ReadFile(filepath.Join(d.dir, tilePath(tile.L, uint64(tile.N), tile.W))); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d tileDir) SaveTiles([]tlog.Tile, [][]byte) {}
