package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// floorFile is, in the directory that a process has beside etcd's, the newest that it has seen of the store: a store that is not that one, or older, was put back, and is not
// served from. It may be behind what was seen by floorPause, and is never ahead. Whoever can take it away or put an older one in its place can put an older store back as well.
const (
	floorFile  = "store-seen"
	floorPause = 5 * time.Second
)

// floor is what the file says. nil: there is none.
type floor struct {
	epochOf
	revision int64
}

var floorText = regexp.MustCompile(`^keyplane store-seen 1\n([0-9a-f]{32}) ([1-9][0-9]{0,18}) ([0-9a-f]{16}) ([1-9][0-9]{0,17})\n$`)

func (f *floor) String() string { return fmt.Sprintf("%s at revision %d", f.epochOf, f.revision) }

// check says whether what the store is now may follow.
func (f *floor) check(now epochOf, revision int64) error {
	switch {
	case f == nil, now.ID == f.ID && now.Number > f.Number:
		return nil
	case now == f.epochOf && revision >= f.revision:
		return nil
	}
	return fmt.Errorf("%w: it was %s, and is %s at revision %d", ErrOlder, f, now, revision)
}

// readFloor reads the file of a directory; "" has none.
func readFloor(dir string) (*floor, error) {
	if dir == "" {
		return nil, nil
	}
	path := filepath.Join(dir, floorFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	m := floorText.FindSubmatch(b)
	if m == nil {
		return nil, fmt.Errorf("store: %s is damaged: what this process has seen of its store is not known", path)
	}
	f := &floor{epochOf: epochOf{ID: string(m[1]), Name: string(m[3])}}
	f.Number, err = strconv.ParseUint(string(m[2]), 10, 64)
	f.revision, _ = strconv.ParseInt(string(m[4]), 10, 64)
	return f, err
}

// write replaces the file, durably.
func (f *floor) write(dir string) error {
	tmp, err := os.CreateTemp(dir, floorFile+".*")
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	_, err = fmt.Fprintf(tmp, "keyplane store-seen 1\n%s %d %s %d\n", f.ID, f.Number, f.Name, f.revision)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, floorFile))
	}
	if err != nil {
		return fmt.Errorf("store: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return syncDir(dir)
}

// keepFloor writes the file, and again until Close as there is more to be seen.
func (s *Store) keepFloor(was *floor) error {
	if s.dir == "" {
		return nil
	}
	now := floor{s.identity, s.auth.seen.Load()}
	if was == nil || *was != now {
		if err := now.write(s.dir); err != nil {
			return err
		}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for last := false; !last; {
			select {
			case <-time.After(floorPause):
			case <-stop:
				last = true
			}
			seen := s.auth.seen.Load()
			if seen <= now.revision {
				continue
			}
			next := floor{s.identity, seen}
			if err := next.write(s.dir); err != nil {
				s.log.Error("what was seen of the store is not kept; it is tried again", "error", err.Error())
				continue
			}
			now = next
		}
	}()
	s.closers = append([]func() error{func() error { close(stop); <-ended; return nil }}, s.closers...)
	return nil
}
