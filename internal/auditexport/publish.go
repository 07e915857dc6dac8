package auditexport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"
)

// Files in the directory that are not of CloudTrail's layout.
const (
	stateFile   = "export-state.json"
	keysFile    = "digest-public-keys.json"
	pendingName = "export-pending.json"
	partialDir  = ".partial"
	sigSuffix   = ".sig"
	stateMax    = 64 << 20 // bytes of one of these files
)

// state is export-state.json: how far the export is.
type state struct {
	Version int             `json:"version"`
	Bucket  string          `json:"bucket"`
	Trail   string          `json:"trail"`
	Next    uint64          `json:"next"`  // index of the next record
	Last    []byte          `json:"last"`  // SHA-256 of the record before that
	Since   int64           `json:"since"` // where the last digests end
	Clock   int64           `json:"clock"`
	Chains  map[string]link `json:"chains"` // by account/region: the newest digest
	Keys    []PublicKey     `json:"keys"`
}

// PublicKey is a key that signed digests from a time to a time, as CloudTrail's ListPublicKeys has it.
type PublicKey struct {
	Value             []byte `json:"Value"` // PKCS #1 DER
	ValidityStartTime int64  `json:"ValidityStartTime"`
	ValidityEndTime   int64  `json:"ValidityEndTime"`
	Fingerprint       string `json:"Fingerprint"`
}

type publicKeys struct {
	PublicKeyList []PublicKey `json:"PublicKeyList"`
}

// use notes that a key signed a digest.
func (s *state) use(pkcs1 []byte, start, end int64) {
	for i := range s.Keys {
		if k := &s.Keys[i]; bytes.Equal(k.Value, pkcs1) {
			k.ValidityStartTime, k.ValidityEndTime = min(k.ValidityStartTime, start), max(k.ValidityEndTime, end)
			return
		}
	}
	s.Keys = append(s.Keys, PublicKey{pkcs1, start, end, fingerprint(pkcs1)})
}

// pendingFile is a file in the partial directory and where it belongs.
type pendingFile struct {
	Name    string `json:"name"`
	partial string
}

// pending is export-pending.json: which files are being put in their place, on the way to which state.
type pending struct {
	Next  uint64        `json:"next"`
	Since int64         `json:"since"`
	Files []pendingFile `json:"files"`
}

// recover reads the state, and undoes what an interrupted run has put in place without it.
func (x *exporter) recover() error {
	x.state = state{Version: 1, Bucket: x.cfg.Bucket, Trail: x.cfg.Trail, Chains: map[string]link{}}
	err := readJSON(filepath.Join(x.cfg.Dir, stateFile), &x.state)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if s := &x.state; s.Version != 1 {
		return fmt.Errorf("auditexport: %s: version %d is not known", stateFile, s.Version)
	} else if s.Bucket != x.cfg.Bucket || s.Trail != x.cfg.Trail {
		return fmt.Errorf("auditexport: %s was exported for the bucket %s and the trail %s: give the same", x.cfg.Dir, s.Bucket, s.Trail)
	}
	if x.state.Chains == nil {
		x.state.Chains = map[string]link{}
	}
	var p pending
	list := filepath.Join(x.cfg.Dir, pendingName)
	switch err := readJSON(list, &p); {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return err
	case p.Next != x.state.Next || p.Since != x.state.Since:
		for _, f := range p.Files {
			if !filepath.IsLocal(f.Name) {
				return fmt.Errorf("auditexport: %s names a file elsewhere", pendingName)
			}
			if err := os.Remove(filepath.Join(x.cfg.Dir, f.Name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	if err := os.Remove(list); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	left, err := os.ReadDir(filepath.Join(x.cfg.Dir, partialDir))
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.Remove(filepath.Join(x.cfg.Dir, partialDir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// stageRaw writes a file that publish will put at name.
func (x *exporter) stageRaw(name string, write func(io.Writer) error) error {
	f := pendingFile{Name: name, partial: filepath.Join(x.cfg.Dir, partialDir, strconv.Itoa(len(x.ready)))}
	w, err := os.OpenFile(f.partial, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	x.ready = append(x.ready, f)
	return errors.Join(write(w), w.Close())
}

// syncers is how many files are synced at a time: file systems commit those of one moment together.
const syncers = 16

// syncAll makes what is in the staged files durable.
func syncAll(files []pendingFile) error {
	var wg sync.WaitGroup
	errs := make([]error, syncers)
	for i := range syncers {
		wg.Go(func() {
			for j := i; j < len(files) && errs[i] == nil; j += syncers {
				errs[i] = syncFile(files[j].partial)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// publish puts the staged files in their place and then the state. The list of the files goes ahead of them: without the state that follows,
// they are removed by the next run, which makes them again.
func (x *exporter) publish() error {
	if len(x.open) > 0 {
		panic("auditexport: publish with open files")
	}
	if err := syncAll(x.ready); err != nil {
		return err
	}
	if err := writeJSON(x.cfg.Dir, pendingName, pending{x.state.Next, x.state.Since, x.ready}); err != nil {
		return err
	}
	dirs := map[string]bool{}
	for _, f := range x.ready {
		to := filepath.Join(x.cfg.Dir, f.Name)
		if dir := filepath.Dir(to); !dirs[dir] {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			for d := path.Dir(f.Name); d != "."; d = path.Dir(d) { // any of them may be new
				dirs[filepath.Join(x.cfg.Dir, d)] = true
			}
		}
		if err := os.Rename(f.partial, to); err != nil {
			return err
		}
	}
	for dir := range dirs {
		if err := syncFile(dir); err != nil {
			return err
		}
	}
	x.ready = x.ready[:0]
	if err := writeJSON(x.cfg.Dir, keysFile, publicKeys{x.state.Keys}); err != nil {
		return err
	}
	if err := writeJSON(x.cfg.Dir, stateFile, x.state); err != nil {
		return err
	}
	return os.Remove(filepath.Join(x.cfg.Dir, pendingName))
}

// writeJSON replaces a file as a whole, durably.
func writeJSON(dir, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Join(dir, partialDir), name)
	if err != nil {
		return err
	}
	if _, err = f.Write(append(b, '\n')); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	return syncFile(dir)
}

// syncFile makes a file, or the names in a directory, durable.
func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// readJSON reads what writeJSON wrote.
func readJSON(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, stateMax+1))
	if err == nil && len(b) > stateMax {
		err = fmt.Errorf("longer than %d bytes", stateMax)
	}
	if err == nil {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		err = d.Decode(v)
	}
	if err != nil {
		return fmt.Errorf("auditexport: %s: %w", path, err)
	}
	return nil
}
