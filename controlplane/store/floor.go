package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// floorFile is, in the directory that a process has beside etcd's, the newest that it has seen of the store: a store that is not that one, or older, was put back, and is not
// served from. It may be behind what was seen by floorPause, and is never ahead. Whoever can take it away or put an older one in its place can put an older store back as well.
//
// The revision is etcd's, and who has an older copy can raise it. So the file also has for how long workers have run over the store, of all Regions together (Elapsed): these records
// are authenticated, only ever grow, and are written every minute while a worker runs.
const (
	floorFile  = "store-seen"
	floorPause = 5 * time.Second
	floorLast  = time.Second // how long Close waits for what there is to be seen
)

// floor is what the file says. nil: there is none.
type floor struct {
	epochOf
	revision int64
	ran      time.Duration // 0: not known
}

var floorText = regexp.MustCompile(`^keyplane store-seen (?:1\n([0-9a-f]{32}) ([1-9][0-9]{0,18}) ([0-9a-f]{16}) ([1-9][0-9]{0,17})|2\n([0-9a-f]{32}) ([1-9][0-9]{0,18}) ([0-9a-f]{16}) ([1-9][0-9]{0,17}) ([1-9][0-9]{0,18}))\n$`)

func (f *floor) String() string {
	return fmt.Sprintf("%s at revision %d, over which workers have run for %v", f.epochOf, f.revision, f.ran)
}

// check says whether what the store is now may follow.
func (f *floor) check(now epochOf, revision int64, ran time.Duration) error {
	switch {
	case f == nil, now.ID == f.ID && now.Number > f.Number:
		return nil
	case now == f.epochOf && revision >= f.revision && ran >= f.ran:
		return nil
	}
	return fmt.Errorf("%w: it was %s, and is %s", ErrOlder, f, &floor{now, revision, ran})
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
	if m = m[1:]; len(m[0]) == 0 {
		m = m[4:]
	}
	f := &floor{epochOf: epochOf{ID: string(m[0]), Name: string(m[2])}}
	f.Number, err = strconv.ParseUint(string(m[1]), 10, 64)
	f.revision, _ = strconv.ParseInt(string(m[3]), 10, 64)
	if len(m) > 4 && len(m[4]) > 0 {
		ran, _ := strconv.ParseInt(string(m[4]), 10, 64) // as many as there can be, where it is more
		f.ran = time.Duration(ran)
	}
	return f, err
}

// write replaces the file, durably.
func (f *floor) write(dir string) error {
	tmp, err := os.CreateTemp(dir, floorFile+".*")
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	text := fmt.Sprintf("keyplane store-seen 1\n%s %d %s %d\n", f.ID, f.Number, f.Name, f.revision)
	if f.ran > 0 {
		text = fmt.Sprintf("keyplane store-seen 2\n%s %d %s %d %d\n", f.ID, f.Number, f.Name, f.revision, int64(f.ran))
	}
	_, err = tmp.WriteString(text)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, floorFile))
	}
	if err != nil {
		return fmt.Errorf("store: %w", errors.Join(err, os.Remove(tmp.Name())))
	}
	return syncDir(dir)
}

// ranFor is the sum of Elapsed over all Regions. A record that does not verify by key counts as none.
func (s *Store) ranFor(ctx context.Context, key *macKey) (sum time.Duration, err error) {
	resp, err := s.auth.KV.Get(ctx, elapsedKey(""), clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("store: %w", err)
	}
	for _, kv := range resp.Kvs {
		value, err := key.open(kv)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(string(value), 10, 64); err == nil && n > 0 {
			sum += min(time.Duration(n), math.MaxInt64-sum) // three centuries, which a test's clock gets to
		}
	}
	return sum, nil
}

// floorNow is what was seen by now.
func (s *Store) floorNow(ctx context.Context) (floor, error) {
	ran, err := s.ranFor(ctx, s.auth.key.Load())
	return floor{s.identity, s.auth.seen.Load(), ran}, err
}

// keepFloor writes the file, and again until Close as there is more to be seen.
func (s *Store) keepFloor(ctx context.Context, was *floor) error {
	if s.dir == "" {
		return nil
	}
	now, err := s.floorNow(ctx)
	if err != nil {
		return err
	}
	s.ran.Store(int64(now.ran))
	if was == nil || *was != now {
		if err := now.write(s.dir); err != nil {
			return err
		}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for last := false; !last; {
			limit := floorPause
			select {
			case <-time.After(floorPause):
			case <-stop:
				last, limit = true, floorLast
			}
			if s.auth.seen.Load() <= now.revision {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			next, err := s.floorNow(ctx)
			cancel()
			if err != nil { // etcd does not answer
				next.ran = now.ran
			}
			s.ran.Store(int64(next.ran))
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
