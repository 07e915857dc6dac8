package store

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/keyplane/keyplane/internal/keyid"
)

// graves is a file beside etcd's, or in the directory of each process that writes to an external cluster, that names every deleted key, so that an older copy of etcd's files that is put back does not bring one back: what the
// file names and etcd has no tombstone of is deleted again before anything is served. A key is in it as soon as it is deleted, and at the latest at the
// next start. Whoever puts an older copy of the file back as well has no defence here; the audit log has the DeleteKey event.
//
// Its first line is a random key, sealed (Sealer); every other is <region>/<account>/<key ID>, the milliseconds since 1970 at which the key was created, and the
// HMAC-SHA-256 of the two under the key, with a space between each; the sealed key and the HMAC are in unpadded base64url: who can write the file but does not have
// the HSM destroys no key with it. With the time of its creation a line names one life of a key: a replica can be deleted and made again under the same ID. Lines of
// earlier versions lack it and name whatever there is under the ID. A last line without its end is what a crash left, and is cut off. A store without a Sealer leaves
// the file alone; the tombstones name what was deleted meanwhile.
type graves struct {
	log  *slog.Logger
	auth []byte // key of the HMAC

	mu        sync.Mutex
	f         *os.File
	size      int64    // of whole lines
	unwritten []string // names of lives that are still to be written
}

const (
	gravesFile      = "deleted-keys"
	gravesAAD       = "keyplane deleted-keys 1"
	tombstonePrefix = root + "tombstone/"
)

// lifeName names one life of a key in the file.
func (n KeyName) lifeName(created int64) string {
	return n.path() + " " + strconv.FormatInt(created, 10)
}

// line is that of one name, with its end.
func (g *graves) line(name string) string {
	mac := hmac.New(sha256.New, g.auth)
	mac.Write([]byte(name))
	return name + " " + base64.RawURLEncoding.EncodeToString(mac.Sum(nil)) + "\n"
}

// lives are those of one key ID that are over.
type lives struct {
	created []int64 // when each was created, in milliseconds since 1970
	unknown bool    // there is one of which that is not known
}

// openGraves opens the file, and says which lives of which keys, by path, it names.
func openGraves(dir string, sealer Sealer, log *slog.Logger) (g *graves, named map[string]lives, err error) {
	path := filepath.Join(dir, gravesFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("store: %w", err)
	}
	whole := bytes.LastIndexByte(b, '\n') + 1
	if whole < len(b) {
		if err := f.Truncate(int64(whole)); err != nil {
			return nil, nil, fmt.Errorf("store: %w", err)
		}
	}
	g, named = &graves{log: log, f: f, size: int64(whole)}, map[string]lives{}
	if whole == 0 {
		return g, named, g.begin(sealer)
	}
	named, err = g.read(path, b[:whole], sealer)
	return g, named, err
}

// read reads whole lines.
func (g *graves) read(path string, b []byte, sealer Sealer) (named map[string]lives, err error) {
	named = map[string]lives{}
	for line := range strings.Lines(string(b)) {
		if g.auth == nil {
			sealed, err := base64.RawURLEncoding.DecodeString(strings.TrimSuffix(line, "\n"))
			if err == nil {
				g.auth, err = sealer.Open(sealed, []byte(gravesAAD))
			}
			if err != nil {
				return nil, fmt.Errorf("store: the key of %s does not open; the file was changed, or is of another HSM: %w", path, err)
			}
			continue
		}
		name := line[:max(strings.LastIndexByte(line, ' '), 0)]
		key, created, once := strings.Cut(name, " ")
		ms, badTime := int64(0), error(nil)
		if once {
			ms, badTime = strconv.ParseInt(created, 10, 64)
		}
		if _, ok := parsePath(key); !ok || badTime != nil {
			return nil, fmt.Errorf("store: %s is damaged: a line of it names no key", path)
		}
		if !hmac.Equal([]byte(line), []byte(g.line(name))) {
			return nil, fmt.Errorf("store: %s was changed: this system did not write its line for %s", path, key)
		}
		l := named[key]
		if once {
			l.created = append(l.created, ms)
		}
		l.unknown = l.unknown || !once
		named[key] = l
	}
	return named, nil
}

// begin writes the first line of an empty file.
func (g *graves) begin(sealer Sealer) error {
	g.auth = make([]byte, sha256.Size)
	rand.Read(g.auth)
	sealed, err := sealer.Seal(g.auth, []byte(gravesAAD))
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return g.append(base64.RawURLEncoding.EncodeToString(sealed) + "\n")
}

// parsePath is the inverse of KeyName.path.
func parsePath(path string) (n KeyName, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 3 || parts[0] == "" {
		return n, false
	}
	account, accountOK := keyid.ParseAccount([]byte(parts[1]))
	id, idOK := keyid.ParseID([]byte(parts[2]))
	return KeyName{Region: parts[0], Account: account, ID: id}, accountOK && idOK
}

// add writes names of lives into the file, durably when it returns without an error. Those that it could not write are written with the next add, also one of nothing, and by
// the next start. A nil receiver has no file.
func (g *graves) add(names ...string) error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unwritten = append(g.unwritten, names...)
	if len(g.unwritten) == 0 {
		return nil
	}
	var lines strings.Builder
	for _, name := range g.unwritten {
		lines.WriteString(g.line(name))
	}
	if err := g.append(lines.String()); err != nil {
		return err
	}
	g.unwritten = nil
	return nil
}

// bury is add for keys that are deleted already: an error changes nothing of that, and is only logged.
func (g *graves) bury(names ...string) {
	if err := g.add(names...); err != nil {
		g.log.Error("deleted keys are not in the file that keeps an older copy of the store from bringing them back; it is tried again", "error", err.Error())
	}
}

func (g *graves) append(lines string) error {
	n, err := g.f.WriteString(lines)
	if err == nil {
		err = g.f.Sync()
	}
	if err != nil {
		return fmt.Errorf("store: writing %s: %w", gravesFile, errors.Join(err, g.f.Truncate(g.size))) // no half line, which the next would make a wrong one
	}
	g.size += int64(n)
	return nil
}

// Rebury reads this process's file of deleted keys and makes it and the tombstones one: a key that only the file names is deleted again. It is called once the
// Sealer works, and before anything is served.
func (s *Store) Rebury(ctx context.Context) error {
	dir, log := s.dir, s.log
	if dir == "" {
		return errors.New("store: there is no directory for the file of deleted keys")
	}
	g, named, err := openGraves(dir, s.sealer, log)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, g.f.Close)
	if err := syncDir(dir); err != nil {
		return err
	}
	var unnamed []string
	err = s.walk(ctx, tombstonePrefix, func(key string, value []byte, _ int64) error {
		path := strings.TrimPrefix(key, tombstonePrefix)
		n, ok := parsePath(path)
		var stone storedTombstone
		if err := decode(value, &stone); err != nil || !ok {
			return fmt.Errorf("%s: %w", key, ErrDamaged)
		}
		inFile, known := named[path]
		for _, created := range stone.Created {
			if !slices.Contains(inFile.created, created) {
				unnamed = append(unnamed, n.lifeName(created))
			}
		}
		if !known && len(stone.Created) == 0 {
			unnamed = append(unnamed, path)
		}
		inFile.created, inFile.unknown = slices.DeleteFunc(inFile.created, func(created int64) bool { return slices.Contains(stone.Created, created) }), false
		if named[path] = inFile; len(inFile.created) == 0 {
			delete(named, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.buryNamed(ctx, named); err != nil {
		return err
	}
	s.graves = g
	return g.add(unnamed...)
}

// Reburied is the keys that had come back with an older copy of the store and were deleted again by Rebury.
func (s *Store) Reburied() []KeyName { return s.reburied }

// buryAgain deletes a key if what there is of it is a life that is known to be over, in whatever state it is, and has the tombstone name those lives, which it
// lacks. was says that it was there.
func (s *Store) buryAgain(ctx context.Context, n KeyName, over lives) (revision int64, was bool, err error) {
	err = retry(ctx, func() (bool, error) {
		k, err := s.bareKey(ctx, n)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return false, err
		}
		var when []clientv3.Cmp
		var then []clientv3.Op
		there, dead := int64(0), false
		if k != nil {
			defer k.Wipe()
			there, dead = k.Revision, over.unknown || slices.Contains(over.created, milli(k.Created))
		}
		if dead {
			when, then, err = s.destruction(ctx, k, time.Now(), over.created...)
		} else {
			when, then, err = s.engrave(ctx, n, time.Now(), over.created)
			when = append(when, unchanged(n.key(), there))
		}
		if err != nil {
			return false, err
		}
		ok, rev, err := s.commit(ctx, when, then)
		revision, was = rev, ok && dead
		return ok, err
	})
	return revision, was, err
}
