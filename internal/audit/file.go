package audit

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// file is a segment that is being written. Write appends all of p or returns an error. Sync returns when the content and the size are on the disk.
type file interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

// segmentFile is the real one.
type segmentFile struct{ *os.File }

func (f segmentFile) Sync() error { return fdatasync(f.File) }

func openAppend(path string, create bool) (file, error) {
	flags := os.O_WRONLY | os.O_APPEND
	if create {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := open(path, flags)
	if err != nil {
		return nil, err
	}
	return segmentFile{f}, nil
}

// open opens a file of the log, which is never a symbolic link.
func open(path string, flags int) (*os.File, error) {
	return os.OpenFile(path, flags|oNoFollow, 0o600)
}

// syncDir makes the names in the directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// replaceFile puts content at path: whole or not at all, and durable.
func replaceFile(path string, content []byte) error {
	tmp := path + tmpSuffix
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := open(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}
