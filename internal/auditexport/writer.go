package auditexport

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// logFile is a log file that still gets records. They are in buf, those before them in the spool, as they will be before compression.
type logFile struct {
	chain          chain
	name           string // path below the directory
	buf            []byte
	spool          string // "": everything is in buf
	size           int
	newest, oldest time.Time
}

// logEntry is a log file in a digest.
type logEntry struct {
	S3Bucket        string `json:"s3Bucket"`
	S3Object        string `json:"s3Object"`
	HashValue       string `json:"hashValue"`
	HashAlgorithm   string `json:"hashAlgorithm"`
	NewestEventTime string `json:"newestEventTime"`
	OldestEventTime string `json:"oldestEventTime"`
}

const (
	extended  = "2006-01-02T15:04:05Z"
	day       = "2006/01/02"
	fileStamp = "20060102T1504Z"
	endStamp  = "20060102T150405Z"
)

func utc(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

// put appends a record to the open file of a chain.
func (x *exporter) put(c chain, index uint64, record []byte, t time.Time) error {
	record = bytes.TrimRight(record, "\n")
	f := x.open[c]
	if f != nil && f.size+len(record) > x.cfg.FileBytes {
		if err := x.close(f); err != nil {
			return err
		}
		f = nil
	}
	if f == nil {
		f = &logFile{chain: c, name: logName(c, x.window, index), newest: t, oldest: t}
		x.open[c] = f
		f.buf = append(f.buf, `{"Records":[`...)
	} else {
		f.buf = append(f.buf, ',')
	}
	f.buf = append(f.buf, record...)
	f.size += len(record) + 1
	if t.After(f.newest) {
		f.newest = t
	}
	if t.Before(f.oldest) {
		f.oldest = t
	}
	if x.held += len(record) + 1; x.held > x.cfg.buffer {
		return x.spill()
	}
	return nil
}

// logName is unlike any other: of one chain, no two files begin with the same record. A repeated export gives the same name.
func logName(c chain, window int64, first uint64) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	sum := sha256.Sum256(fmt.Appendf(nil, "keyplane audit export file\n%s\n%d", c, first))
	var random [16]byte
	for i := range random {
		random[i] = letters[int(sum[i])%len(letters)]
	}
	t := utc(window)
	return fmt.Sprintf("AWSLogs/%s/CloudTrail/%s/%s/%s_CloudTrail_%s_%s_%s.json.gz", c.Account, c.Region, t.Format(day), c.Account, c.Region, t.Format(fileStamp), random[:])
}

// spill writes all buffers to the disk.
func (x *exporter) spill() error {
	for _, f := range x.open {
		if f.spool == "" {
			f.spool = filepath.Join(x.cfg.Dir, partialDir, "spool-"+strings.ReplaceAll(f.name, "/", "_"))
		}
		w, err := os.OpenFile(f.spool, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		_, err = w.Write(f.buf)
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
		f.buf = nil
	}
	x.held = 0
	return nil
}

// closeAll compresses the open files, in the order of their names: a repeated export gives the same digests.
func (x *exporter) closeAll() error {
	var files []*logFile
	for _, f := range x.open {
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *logFile) int { return strings.Compare(a.name, b.name) })
	for _, f := range files {
		if err := x.close(f); err != nil {
			return err
		}
	}
	return nil
}

// close compresses a file and notes it for its digest.
func (x *exporter) close(f *logFile) error {
	x.held -= len(f.buf)
	delete(x.open, f.chain)
	var text io.Reader = io.MultiReader(bytes.NewReader(f.buf), strings.NewReader("]}"))
	if f.spool != "" {
		r, err := os.Open(f.spool)
		if err != nil {
			return err
		}
		defer os.Remove(f.spool)
		defer r.Close()
		text = io.MultiReader(r, text)
	}
	hash, err := x.stage(f.name, text)
	if err != nil {
		return err
	}
	x.report.Files++
	x.done[f.chain] = append(x.done[f.chain], logEntry{
		S3Bucket: x.cfg.Bucket, S3Object: f.name, HashValue: hash, HashAlgorithm: "SHA-256",
		NewestEventTime: f.newest.UTC().Format(extended), OldestEventTime: f.oldest.UTC().Format(extended),
	})
	return nil
}

// stage compresses text into a file that publish will put at name, and returns the text's SHA-256 in hexadecimal.
func (x *exporter) stage(name string, text io.Reader) (hash string, err error) {
	h := sha256.New()
	err = x.stageRaw(name, func(w io.Writer) error {
		z := gzip.NewWriter(w) // without a time: a repeated export gives the same bytes
		if _, err := io.Copy(io.MultiWriter(z, h), text); err != nil {
			return err
		}
		return z.Close()
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
