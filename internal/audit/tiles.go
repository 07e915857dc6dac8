package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// ExportTiles writes the log as of its newest checkpoint into out, which must be empty or not exist, in the layout of c2sp.org/tlog-tiles:
// checkpoint, tile/<L>/<N>[.p/<W>] and tile/entries/<N>[.p/<W>]. What retention has removed is left out: entry bundles and level-0 tiles before
// the first record that is kept. It does not verify.
func ExportTiles(ctx context.Context, dir, out string) error {
	raw, err := os.ReadFile(filepath.Join(dir, checkpointTip))
	if err != nil {
		return fmt.Errorf("audit: there is nothing signed to export: %w", err)
	}
	size, err := unverifiedSize(raw)
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
		return fmt.Errorf("audit: %s is not empty", out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	r, err := newHashReader(dir)
	if err != nil {
		return err
	}
	defer r.close()
	firsts, err := liveSegments(dir)
	if err != nil {
		return err
	}
	if len(firsts) == 0 {
		return errors.New("audit: there are no segments")
	}
	for level := 0; level < tileLevels && size>>(tileHeight*level) > 0; level++ {
		if err := exportLevel(ctx, r, out, level, size, firsts[0]); err != nil {
			return err
		}
	}
	if err := exportEntries(ctx, dir, out, firsts, size); err != nil {
		return err
	}
	return writeNew(filepath.Join(out, checkpointTip), raw)
}

// unverifiedSize is the second line of a checkpoint.
func unverifiedSize(raw []byte) (uint64, error) {
	lines := strings.SplitN(string(raw), "\n", 3)
	if len(lines) < 3 {
		return 0, errors.New("audit: the checkpoint has no size")
	}
	return strconv.ParseUint(lines[1], 10, 63)
}

func exportLevel(ctx context.Context, r *hashReader, out string, level int, size, first uint64) error {
	hashes := size >> (tileHeight * level)
	n := uint64(0)
	if level == 0 {
		n = prunedTo(first) >> tileHeight
	}
	var tile [1 << tileHeight]tlog.Hash
	var content []byte
	for ; n<<tileHeight < hashes; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		width := min(uint64(len(tile)), hashes-n<<tileHeight)
		if err := r.read(level, n<<tileHeight, tile[:width]); err != nil {
			return err
		}
		content = content[:0]
		for _, h := range tile[:width] {
			content = append(content, h[:]...)
		}
		if err := writeNew(filepath.Join(out, tilePath(level, n, int(width))), content); err != nil {
			return err
		}
	}
	return nil
}

// exportEntries writes the bundles of 256 entries. The one that the first kept record is inside of is left out.
func exportEntries(ctx context.Context, dir, out string, firsts []uint64, size uint64) error {
	var bundle []byte
	n, width := uint64(0), 0
	flush := func() error {
		if width == 0 {
			return nil
		}
		err := writeNew(filepath.Join(out, tilePath(-1, n, width)), bundle)
		bundle, width = bundle[:0], 0
		return err
	}
	from := (firsts[0] + 1<<tileHeight - 1) &^ (1<<tileHeight - 1)
	for _, first := range firsts {
		if first >= size {
			break
		}
		var failed error
		err := eachEntry(dir, first, func(index uint64, entry []byte) bool {
			if index >= size {
				return false
			}
			if index < from {
				return true
			}
			bundle = append(bundle, entry...)
			n, width = index>>tileHeight, width+1
			if width == 1<<tileHeight {
				if failed = flush(); failed == nil {
					failed = ctx.Err()
				}
			}
			return failed == nil
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
	}
	return flush()
}

// tilePath is the path of a tile of width hashes; level -1 is entries. tlog writes tile/<height>/<level or data>/…
func tilePath(level int, n uint64, width int) string {
	path := tlog.Tile{H: tileHeight, L: level, N: int64(n), W: width}.Path()
	path = strings.TrimPrefix(path, "tile/8/")
	if rest, ok := strings.CutPrefix(path, "data/"); ok {
		path = "entries/" + rest
	}
	return filepath.FromSlash("tile/" + path)
}

func writeNew(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := open(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}
