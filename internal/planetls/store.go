package planetls

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
)

const newSuffix = ".new"

// Store puts a new certificate chain and its key, in PEM, in the place of those in the files, 0600. Both are durable under other names before either gets its own, so
// that whoever opens the files after an interruption finishes it (settle).
func (f Files) Store(chain, key []byte) error {
	for _, w := range []struct {
		path string
		text []byte
	}{{f.Key, key}, {f.Cert, chain}} {
		if err := WriteFile(w.path+newSuffix, w.text); err != nil {
			return err
		}
	}
	for _, path := range []string{f.Key, f.Cert} {
		if err := os.Rename(path+newSuffix, path); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(f.Cert))
}

// settle finishes a Store that ended between its two renames: then the key is the new one, and the certificate for it still under its other name.
func (f Files) settle() {
	chain, err := readFile(f.Cert+newSuffix, false)
	if err != nil {
		return
	}
	key, err := readFile(f.Key, true)
	if err != nil {
		return
	}
	defer clear(key)
	if _, err := tls.X509KeyPair(chain, key); err == nil {
		_ = os.Rename(f.Cert+newSuffix, f.Cert) // what load says next is the error
	}
}

// WriteFile writes a private file whole and durable, or leaves what was there.
func WriteFile(path string, text []byte) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
