package lastuse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keyplane/keyplane/internal/keyid"
)

// The file: magic (8) || position (8) || start (8) || number of Regions (1) || Regions || entries || SHA-256 of all before (32). A Region: length (1) || name.
// An entry: account (8) || key ID (16) || multi-Region (1) || operation (1) || seconds (8) || event ID (16) || request ID (16) || which of the Regions (1).
// Numbers are big-endian.
const (
	magic     = "KPLSTUS2"
	headerLen = len(magic) + 17
	entryLen  = 67
)

var errDamaged = errors.New("lastuse: the file is damaged, or of an earlier version")

// Open reads the file at path. Without one the index is empty and wants the log's first record; so it is after a damaged one, of which err tells
// beside an index that can be used. Until there is a record, the answer is complete from now on.
func Open(path string, now time.Time) (x *Index, err error) {
	x = newIndex(path, now)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return x, nil
	}
	if err == nil {
		err = x.decode(b)
	}
	if err != nil {
		x.reset(now)
		return x, fmt.Errorf("lastuse: %s: %w", filepath.Base(path), err)
	}
	return x, nil
}

func (x *Index) decode(b []byte) error {
	if len(b) < headerLen+sha256.Size || string(b[:len(magic)]) != magic {
		return errDamaged
	}
	end := len(b) - sha256.Size
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:]) {
		return errDamaged
	}
	regions := make([]string, b[headerLen-1])
	entries := b[headerLen:end]
	for i := range regions {
		if len(entries) == 0 || len(entries) <= int(entries[0]) {
			return errDamaged
		}
		regions[i], entries = string(entries[1:1+entries[0]]), entries[1+entries[0]:]
	}
	if len(entries)%entryLen != 0 || len(entries)/entryLen > 2*Max {
		return errDamaged
	}
	x.regions.Store(&regions)
	x.position.Store(binary.BigEndian.Uint64(b[len(magic):]))
	x.saved.Store(x.position.Load())
	x.start.Store(int64(binary.BigEndian.Uint64(b[len(magic)+8:])))
	for b := entries; len(b) > 0; b = b[entryLen:] {
		k := name{account: keyid.Account(binary.BigEndian.Uint64(b)), id: keyid.ID{UUID: [16]byte(b[8:24]), MultiRegion: b[24] == 1}, region: b[66]}
		u := Use{Operation: Operation(b[25]), Seconds: int64(binary.BigEndian.Uint64(b[26:])), EventID: [16]byte(b[34:50]), RequestID: [16]byte(b[50:66])}
		if k.account > keyid.AccountMax || int(k.region) >= len(regions) || int(u.Operation) >= len(operations) || u.Operation == 0 {
			return errDamaged
		}
		x.put(k, u)
	}
	return nil
}

// Save writes the file, and is durable when it returns. What comes meanwhile may be in it or not: it begins with the position from which the
// records are to be taken again.
func (x *Index) Save() error {
	x.saving.Lock()
	defer x.saving.Unlock()
	b := append(make([]byte, 0, headerLen+entryLen*(int(x.size.Load())+1024)+sha256.Size), magic...)
	position := x.position.Load()
	b = binary.BigEndian.AppendUint64(b, position)
	b = binary.BigEndian.AppendUint64(b, 0)
	regions := *x.regions.Load()
	b = append(b, byte(len(regions)))
	for _, r := range regions {
		b = append(append(b, byte(len(r))), r...)
	}
	for i := range x.shards {
		b = x.shards[i].append(b, len(regions))
	}
	binary.BigEndian.PutUint64(b[len(magic)+8:], uint64(x.start.Load())) // after the entries: what was forgotten meanwhile is before it
	sum := sha256.Sum256(b)
	if err := replace(x.path, append(b, sum[:]...)); err != nil {
		return err
	}
	x.saved.Store(position)
	return nil
}

// append writes the keys of the first Regions. A key of one that is newer was used after the position that was written.
func (s *shard) append(b []byte, regions int) []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for n, u := range s.m {
		if int(n.region) >= regions {
			continue
		}
		b = append(binary.BigEndian.AppendUint64(b, uint64(n.account)), n.id.UUID[:]...)
		if n.id.MultiRegion {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
		b = binary.BigEndian.AppendUint64(append(b, byte(u.Operation)), uint64(u.Seconds))
		b = append(append(append(b, u.EventID[:]...), u.RequestID[:]...), n.region)
	}
	return b
}

// replace puts b in the place of the file, whole or not at all, also if the machine stops.
func replace(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

// Run saves the index at the interval and once more when ctx ends, whose error it returns. failed is told of what could not be saved.
func (x *Index) Run(ctx context.Context, interval time.Duration, failed func(error)) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		ended := false
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ended = true
		}
		if x.Position() != x.saved.Load() {
			if err := x.Save(); err != nil {
				failed(err)
			}
		}
		if ended {
			return ctx.Err()
		}
	}
}
