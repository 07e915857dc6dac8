package auditexport

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Source yields the log's records, each one line of JSON, from an index on in the log's order; an error ends it. A record is valid until the
// next is asked for. An index that the log no longer has is an error. An export that goes on asks for the last record that it had, too.
type Source func(from uint64) iter.Seq2[[]byte, error]

const (
	windowSeconds = 5 * 60
	hourSeconds   = 60 * 60
	recordMax     = 256 << 10 // bytes of a record
	fileMax       = 1 << 30   // bytes of a log file, uncompressed, about
	bufferMax     = 32 << 20  // bytes of records in memory, about; more go to the disk until their file is compressed
	pendingMax    = 1000      // files that wait to be put in their place, roughly
)

// Config says what is exported where.
type Config struct {
	Dir       string          // made with mode 0700
	Bucket    string          // s3Bucket of the digests; "": keyplane-audit
	Trail     string          // name of the trail in digest file names; "": keyplane
	Key       *rsa.PrivateKey // signs digests
	Records   Source
	FileBytes int              // of a log file, uncompressed, about; 0: 50 MiB
	Now       func() time.Time // nil: time.Now

	buffer int // tests set another bufferMax
}

// Report says what an export did.
type Report struct {
	Records int64  // read
	Copies  int64  // made for the owners of resources
	Skipped int64  // lines that are no CloudTrail record with an account
	Files   int    // log files
	Digests int    // digest files
	Next    uint64 // index of the first record that is not exported
}

func (c Config) withDefaults() (Config, error) {
	if c.Bucket == "" {
		c.Bucket = "keyplane-audit"
	}
	if c.Trail == "" {
		c.Trail = "keyplane"
	}
	if c.FileBytes == 0 {
		c.FileBytes = 50 << 20
	}
	if c.buffer == 0 {
		c.buffer = bufferMax
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Dir == "":
		return c, errors.New("auditexport: no directory")
	case c.Key == nil || c.Key.N.BitLen() < 2048:
		return c, errors.New("auditexport: the digest key must be RSA with 2048 bits or more")
	case c.Records == nil:
		return c, errors.New("auditexport: no records")
	case c.FileBytes < 1 || c.FileBytes > fileMax:
		return c, fmt.Errorf("auditexport: the size of a log file is not 1 to %d bytes", fileMax)
	case !validName(c.Bucket, "abcdefghijklmnopqrstuvwxyz0123456789.-", 63):
		return c, fmt.Errorf("auditexport: %q is no name of a bucket", c.Bucket)
	case !validName(c.Trail, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-", 128):
		return c, fmt.Errorf("auditexport: %q cannot name a trail: letters, digits, - and . only", c.Trail)
	}
	return c, nil
}

func validName(s, letters string, most int) bool {
	return len(s) >= 3 && len(s) <= most && strings.Trim(s, letters) == ""
}

// exporter is one run.
type exporter struct {
	cfg    Config
	state  state
	now    int64 // Unix seconds, as all times here
	window int64 // start of the 5 minutes that the open files are of
	open   map[chain]*logFile
	held   int // bytes of records in memory
	done   map[chain][]logEntry
	ready  []pendingFile
	report Report
}

// Export writes what the log has since the last export to the same directory. After an error, or when the process was killed, it is run again.
func Export(ctx context.Context, cfg Config) (Report, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Report{}, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, partialDir), 0o700); err != nil {
		return Report{}, err
	}
	unlock, err := lock(cfg.Dir)
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	x := &exporter{cfg: cfg, now: cfg.Now().Unix(), open: map[chain]*logFile{}, done: map[chain][]logEntry{}}
	if err := x.recover(); err != nil {
		return Report{}, err
	}
	from := x.state.Next
	known := from > 0 // the record that comes first is the last that was exported: that it is the same says that this is the same log
	if known {
		from--
	}
	for record, err := range cfg.Records(from) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && !known {
			err = x.add(record)
		} else if err == nil && !bytes.Equal(hashOf(record), x.state.Last) {
			err = errOtherLog
		}
		if err != nil {
			return x.report, err
		}
		known = false
	}
	if known {
		return x.report, errOtherLog
	}
	err = x.finish()
	x.report.Next = x.state.Next
	return x.report, err
}

var errOtherLog = errors.New("auditexport: this is not the log that was exported, or an older copy of it: its records are not those exported before")

// hashOf is the SHA-256 of a record without its line's end.
func hashOf(record []byte) []byte {
	sum := sha256.Sum256(bytes.TrimRight(record, "\n"))
	return sum[:]
}

func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("auditexport: %s: another export is running", dir)
	}
	return func() { f.Close() }, nil
}

// add exports one record.
func (x *exporter) add(record []byte) error {
	if len(record) > recordMax {
		return fmt.Errorf("auditexport: record %d has %d bytes, more than %d", x.state.Next, len(record), recordMax)
	}
	e, ok := parse(record)
	if !ok {
		x.report.Skipped++
		x.count(record)
		return nil
	}
	if err := x.tick(min(e.EventTime.Unix(), x.now)); err != nil {
		return err
	}
	index := x.state.Next
	x.count(record)
	owners := e.owners()
	if len(owners) == 0 {
		return x.put(chain{e.Recipient, e.Region}, index, record, e.EventTime)
	}
	original, copies, err := share(record, &e, owners)
	if err != nil {
		return fmt.Errorf("auditexport: record %d: %w", index, err)
	}
	if err := x.put(chain{e.Recipient, e.Region}, index, original, e.EventTime); err != nil {
		return err
	}
	for i, c := range copies {
		if err := x.put(chain{owners[i], e.Region}, index, c, e.EventTime); err != nil {
			return err
		}
		x.report.Copies++
	}
	return nil
}

// count notes that a record is on its way: what is published from here on includes it.
func (x *exporter) count(record []byte) {
	x.report.Records++
	x.state.Next++
	x.state.Last = hashOf(record)
}

// tick moves the clock on, and closes the 5 minutes and the hours that are over.
func (x *exporter) tick(t int64) error {
	s := &x.state
	if s.Clock == 0 {
		s.Since = t - t%hourSeconds
		s.Clock = t
	}
	s.Clock = max(s.Clock, t)
	if w := s.Clock - s.Clock%windowSeconds; w != x.window {
		if err := x.closeAll(); err != nil {
			return err
		}
		x.window = w
	}
	hours := false
	for {
		end := s.Since - s.Since%hourSeconds + hourSeconds
		if s.Clock < end {
			break
		}
		if err := x.digests(end); err != nil {
			return err
		}
		hours = true
		if len(x.ready) >= pendingMax {
			if err := x.publish(); err != nil {
				return err
			}
		}
	}
	if hours {
		return x.publish()
	}
	return nil
}

// finish ends the last digests where the records end.
func (x *exporter) finish() error {
	if x.report.Records == 0 {
		return nil
	}
	if err := x.closeAll(); err != nil {
		return err
	}
	if len(x.done) > 0 {
		if err := x.digests(x.state.Clock + 1); err != nil {
			return err
		}
		x.state.Clock = x.state.Since
	}
	return x.publish()
}
