package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Records are the records of a log from an index on that its newest checkpoint covers, in order, without verifying them; an error ends them. Those
// after it are left for the next time: a commit that fails gives their index to other records. They are borrowed. It is an error where retention has
// removed the first of them. ctx ends them too.
func Records(ctx context.Context, dir string, from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		size, err := coveredSize(dir)
		if err != nil {
			yield(nil, err)
			return
		}
		if from >= size {
			return
		}
		firsts, err := liveSegments(dir)
		if err != nil {
			yield(nil, err)
			return
		}
		if len(firsts) > 0 && firsts[0] > from {
			yield(nil, fmt.Errorf("audit: the records before %d are removed, and %d is wanted", firsts[0], from))
			return
		}
		for i, first := range firsts {
			if i+1 < len(firsts) && firsts[i+1] <= from {
				continue
			}
			if first > from {
				yield(nil, fmt.Errorf("%w: record %d is missing", ErrDamaged, from))
				return
			}
			on := true
			err := eachEntry(dir, first, func(index uint64, entry []byte) bool {
				if index%1024 == 0 && ctx.Err() != nil {
					return false
				}
				if index == from {
					from++
					on = yield(entry[2:], nil)
				}
				return on && from < size
			})
			switch {
			case !on || from == size:
				return
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case errors.Is(err, fs.ErrNotExist):
				yield(nil, fmt.Errorf("audit: retention removed the segment %d meanwhile", first))
				return
			case err != nil:
				yield(nil, err)
				return
			}
		}
		yield(nil, fmt.Errorf("%w: record %d is missing, the newest checkpoint covers %d", ErrDamaged, from, size))
	}
}

// coveredSize is the size of the newest checkpoint, 0 if there is none. The signature is not checked.
func coveredSize(dir string) (uint64, error) {
	tip, err := os.ReadFile(filepath.Join(dir, checkpointTip))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	lines := strings.SplitN(string(tip), "\n", 3) // c2sp.org/tlog-checkpoint
	if len(lines) < 3 {
		return 0, fmt.Errorf("%w: %s", ErrDamaged, checkpointTip)
	}
	size, err := strconv.ParseUint(lines[1], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%w: %s: %w", ErrDamaged, checkpointTip, err)
	}
	return size, nil
}
