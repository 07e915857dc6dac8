package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// RecordMax is the longest record in bytes: the length of an entry is a uint16.
const RecordMax = 1<<16 - 1

// Errors of Append.
var (
	ErrUnavailable = errors.New("audit: the log cannot be written")                // the write failed, takes too long, or there is no room for more callers
	ErrRecord      = errors.New("audit: a record is one line of 1 to 65535 bytes") // the record was refused, the log is well
	ErrClosed      = errors.New("audit: the log is closed")
)

// Errors of Open.
var (
	ErrRolledBack = errors.New("audit: the log is older than, or differs from, the newest published checkpoint")
	ErrDamaged    = errors.New("audit: the log is damaged")
	ErrLocked     = errors.New("audit: another process has the log open")
)

// Durability is what a record survives once Append has returned.
type Durability uint8

const (
	Fsync Durability = iota // a power cut: the write is followed by fdatasync
	Write                   // the end of the process, kill -9 included, but not of the machine
)

// Config says where the log is, how safe, how often signed and how long kept.
type Config struct {
	Dir        string // made with mode 0700
	Durability Durability
	Timeout    time.Duration // from Append to the end of its commit; 0: 250 ms

	Origin   string // first line of checkpoints, such as keyplane/us-east-1/<log ID>
	Signer   note.Signer
	Verifier note.Verifier
	// Newest returns the newest checkpoint that is kept outside the directory, nil if there is none. nil: nothing is.
	Newest func(ctx context.Context) (checkpoint []byte, err error)
	// Publish replaces old (nil: nothing) with new outside the directory, if old is what is there. nil: nothing is published.
	Publish         func(ctx context.Context, old, new []byte) error
	CheckpointEvery time.Duration // while there are new records; 0: 5 s
	AcceptRollback  bool          // go on where Open would return ErrRolledBack, and record that

	SegmentBytes int64         // a segment that has as much is sealed; 0: 256 MiB
	SegmentAge   time.Duration // so is one that is as old; 0: 24 h
	RetainBytes  int64         // sealed segments beyond it, as they are stored, are removed, oldest first; 0: none
	RetainAge    time.Duration // segments whose last record is older are removed; 0: none

	// Observe is called in order for every record that was committed, soon after it, and by Open for those after the newest checkpoint. It
	// borrows record. nil: nobody does.
	Observe     func(index uint64, record []byte)
	ObserveFrom *uint64 // Open begins here already, with what retention has left; nil: at the newest checkpoint

	Logger *slog.Logger // nil: slog.Default()

	// Tests replace how segments are opened for writing.
	openSegment func(path string, create bool) (file, error)
}

// withDefaults fills in what is zero and refuses what cannot be.
func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Timeout, 250*time.Millisecond)
	setDefault(&c.CheckpointEvery, 5*time.Second)
	setDefault(&c.SegmentBytes, 256<<20)
	setDefault(&c.SegmentAge, 24*time.Hour)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.openSegment == nil {
		c.openSegment = openAppend
	}
	switch {
	case c.Dir == "":
		return c, errors.New("audit: no directory")
	case c.Durability > Write:
		return c, fmt.Errorf("audit: unknown durability %d", c.Durability)
	case c.Signer == nil || c.Verifier == nil:
		return c, errors.New("audit: a signer and its verifier are required")
	case c.Signer.Name() != c.Verifier.Name() || c.Signer.KeyHash() != c.Verifier.KeyHash():
		return c, errors.New("audit: the verifier is not the signer's")
	case !validOrigin(c.Origin):
		return c, fmt.Errorf("audit: origin %q: not one line of text", c.Origin)
	case c.Timeout < time.Millisecond || c.CheckpointEvery < time.Millisecond:
		return c, fmt.Errorf("audit: timeout %v, checkpoint every %v: at least 1 ms", c.Timeout, c.CheckpointEvery)
	case c.SegmentBytes < 1 || c.SegmentAge < 0 || c.RetainBytes < 0 || c.RetainAge < 0:
		return c, errors.New("audit: a size or an age is negative")
	}
	return c, nil
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

func validOrigin(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == 0xfffd })
}

func (d Durability) String() string {
	if d == Write {
		return "write"
	}
	return "fsync"
}
