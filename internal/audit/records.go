package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
)

// Records are the records of a log from an index on, in order, without verifying them; an error ends them. They are borrowed. It is an error where
// retention has removed the first of them. ctx ends them too.
func Records(ctx context.Context, dir string, from uint64) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
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
			last := i+1 == len(firsts)
			if !last && firsts[i+1] <= from {
				continue
			}
			on := true
			err := eachEntry(dir, first, func(index uint64, entry []byte) bool {
				if index%1024 == 0 && ctx.Err() != nil {
					return false
				}
				if index >= from {
					on = yield(entry[2:], nil)
				}
				return on
			})
			switch {
			case !on:
				return
			case ctx.Err() != nil:
				yield(nil, ctx.Err())
				return
			case last && (errors.Is(err, errTorn) || errors.Is(err, errEmpty)): // an append is under way
			case errors.Is(err, fs.ErrNotExist):
				yield(nil, fmt.Errorf("audit: retention removed the segment %d meanwhile", first))
				return
			case err != nil:
				yield(nil, err)
				return
			}
		}
	}
}
