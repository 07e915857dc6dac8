package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/controlplane/keystores"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/audit"
)

// Stats are the counters of the process and its parts, and what GET /stats on the stats socket answers as JSON. They count since the start.
type Stats struct {
	Go    GoStats     `json:"go"`
	Batch batch.Stats `json:"batch"`
	HSM   hsm.Stats   `json:"hsm"`
	// Keys are the sessions, and the loaded keys, of operations with private and HMAC keys; KeyBatch their rounds.
	Keys     hsm.KeyStats `json:"keys"`
	KeyBatch batch.Stats  `json:"key_batch"`
	Audit    audit.Stats  `json:"audit"` // zero where there are no records
	// KeyStores are the custom key stores.
	KeyStores []keystores.Stats `json:"key_stores"`
	Panics    uint64            `json:"panics"` // requests that ended in a recovered panic
}

// GoStats are the runtime's own figures.
type GoStats struct {
	Mallocs    uint64 `json:"mallocs"` // heap objects allocated, by everything in the process
	Frees      uint64 `json:"frees"`
	HeapBytes  uint64 `json:"heap_bytes"` // of live and not yet collected objects
	Goroutines int    `json:"goroutines"`
	Threads    int    `json:"threads"` // of the operating system, made so far
	GCCycles   uint32 `json:"gc_cycles"`
}

func goStats() GoStats {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return GoStats{
		Mallocs: m.Mallocs, Frees: m.Frees, HeapBytes: m.HeapAlloc, GCCycles: m.NumGC,
		Goroutines: runtime.NumGoroutine(), Threads: pprof.Lookup("threadcreate").Count(),
	}
}

// Stats reads the counters.
func (n *Node) Stats() Stats {
	s := Stats{Go: goStats(), Batch: n.batcher.Stats(), HSM: n.shards.Stats()}
	if n.data != nil {
		s.Panics = n.data.Panics()
	}
	s.Keys = n.keys.Stats()
	if n.keyBatcher != nil {
		s.KeyBatch = n.keyBatcher.Stats()
	}
	s.KeyStores = n.keyStores.Stats()
	if n.records != nil {
		s.Audit = n.records.Stats()
	}
	return s
}

// serveStats answers GET /stats, and GET /audit/checkpoint with the audit log's newest checkpoint as the store has it and GET /backup with a backup, on a Unix socket that only this user can open. Nothing there is a secret, but how busy a service is is not
// for everybody, and reading it stops the runtime for a moment.
func (n *Node) serveStats(path string) error {
	if path == "" {
		return nil
	}
	ln, err := listenPrivate(path)
	if err != nil {
		return fmt.Errorf("node: stats socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(n.Stats()); err != nil {
			n.log.Warn("the stats could not be sent", "error", err)
		}
	})
	mux.HandleFunc("GET /audit/checkpoint", func(w http.ResponseWriter, r *http.Request) {
		newest, err := n.store.AuditCheckpoint(r.Context(), n.auditLog())
		if err != nil || newest == nil {
			http.Error(w, "no checkpoint is published", http.StatusNotFound)
			return
		}
		_, _ = w.Write(newest)
	})
	mux.HandleFunc("GET /backup", n.serveBackup)
	s := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 4 << 10}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.log.Error("the stats socket has ended", "error", err)
		}
	}()
	n.onClose(func() {
		n.logIf("closing the stats socket", errors.Join(os.Remove(path), s.Close()))
		<-ended
	})
	return nil
}

// listenPrivate listens on a Unix socket with mode 0600. The socket is made in a directory of its own that nobody else can enter and
// moved into place when its mode is set, so that there is no moment at which others could connect. What lies at path from an earlier
// process, a socket that nobody answers on, is replaced.
func listenPrivate(path string) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s exists and is not a socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("%s is in use by another process", path)
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".s") // short: a socket's path has at most 107 bytes
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // it would be the old path
	if err := errors.Join(os.Chmod(made, 0o600), os.Rename(made, path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}
