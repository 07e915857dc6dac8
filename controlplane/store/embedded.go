package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
)

// EmbeddedConfig says where the embedded etcd lives.
type EmbeddedConfig struct {
	Dir          string        // data directory; made with mode 0700 if it does not exist
	Logger       *slog.Logger  // gets etcd's warnings and errors; nil is slog.Default
	Sealer       Sealer        // nil: no access keys, no Authenticate and no Rebury
	ReadyTimeout time.Duration // how long etcd may take to serve; 0 is 60 s
}

const (
	readyTimeoutDefault = 60 * time.Second

	// quotaBytes bounds etcd's database: about 2.5 million keys. Beyond it writes fail until something is deleted and defragmented.
	quotaBytes = 8 << 30
	// retention is how far back etcd's history goes for a watcher that was away. Deleting a key compacts at once, whatever this says.
	retention = "10m"

	memberName = "keyplane"
	// memberURL names this member inside its own cluster of one. etcd wants a URL, but nothing listens there and nothing dials it.
	memberURL = "http://127.0.0.1:1"
)

// OpenEmbedded starts etcd in this process and opens the store in it. Close ends both.
//
// etcd gets no listener at all, neither TCP nor a Unix socket: the client calls the server's functions (v3client). A socket would be a way
// in for other processes, and its path, limited to 107 bytes, would limit where the data directory can be.
func OpenEmbedded(ctx context.Context, cfg EmbeddedConfig) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("store: no data directory")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = readyTimeoutDefault
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	s, err := openLocked(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	s.closers = append(s.closers, unlock)
	return s, nil
}

// openLocked starts etcd in a directory that is ours alone.
//
// etcd does not come back from a first start that was cut short: its write-ahead log exists, so it does not found its cluster again, but
// holds no member that could elect itself. Hence the marker, which is there from before etcd's first file until it has served once. A
// directory with a marker holds nothing that anybody was told of, and is started over.
func openLocked(ctx context.Context, cfg EmbeddedConfig) (*Store, error) {
	dir, marker := filepath.Join(cfg.Dir, "etcd"), filepath.Join(cfg.Dir, "etcd.starting")
	first, err := exists(marker)
	if err == nil && first {
		err = os.RemoveAll(dir)
	}
	if err == nil && !first {
		var member bool
		member, err = exists(filepath.Join(dir, "member"))
		first = !member
	}
	if err == nil && first {
		err = errors.Join(os.WriteFile(marker, nil, 0o600), syncDir(cfg.Dir), os.MkdirAll(dir, 0o700))
	}
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s, err := startEtcd(ctx, cfg, dir)
	if err != nil {
		return nil, err
	}
	if first {
		// On disk before anything is acknowledged, or a power failure would bring the marker back and cost what came after it.
		if err := errors.Join(os.Remove(marker), syncDir(cfg.Dir)); err != nil {
			return nil, errors.Join(fmt.Errorf("store: %w", err), s.Close())
		}
	}
	s.dir, s.log = cfg.Dir, cfg.Logger
	return s, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// syncDir makes what was made or removed in a directory last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func startEtcd(ctx context.Context, cfg EmbeddedConfig, dir string) (*Store, error) {
	ec, err := etcdConfig(dir, cfg.Logger)
	if err != nil {
		return nil, err
	}
	etcd, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("store: starting etcd: %w", err)
	}
	stop := func() error {
		etcd.Close()
		return nil
	}
	timer := time.NewTimer(cfg.ReadyTimeout)
	defer timer.Stop()
	select {
	case <-etcd.Server.ReadyNotify():
	case err := <-etcd.Err():
		return nil, errors.Join(fmt.Errorf("store: etcd ended at once: %w", err), stop())
	case <-timer.C:
		return nil, errors.Join(fmt.Errorf("store: etcd was not ready after %s", cfg.ReadyTimeout), stop())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), stop())
	}
	s := newStore(v3client.New(etcd.Server), cfg.Sealer)
	s.closers = append(s.closers, stop)
	if err := s.checkFormat(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := s.disown(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("store: %w", err), s.Close())
	}
	return s, nil
}

func etcdConfig(dir string, logger *slog.Logger) (*embed.Config, error) {
	member, err := url.Parse(memberURL)
	if err != nil {
		return nil, err
	}
	ec := embed.NewConfig()
	ec.Name = memberName
	ec.Dir = dir
	ec.ListenPeerUrls, ec.ListenClientUrls = nil, nil
	ec.AdvertisePeerUrls, ec.AdvertiseClientUrls = []url.URL{*member}, nil
	ec.InitialCluster = ec.InitialClusterFromName(memberName)
	ec.AuthToken = "" // no users: nobody but this process can ask
	ec.QuotaBackendBytes = quotaBytes
	ec.AutoCompactionMode, ec.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	ec.UnsafeNoFsync = false
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapToSlog(logger))
	return ec, nil
}

// lockDir takes the data directory for this process until the returned function is called or the process ends, however it ends. It comes
// before etcd, whose own file lock would make a second process wait instead of telling its operator why it cannot start.
func lockDir(dir string) (unlock func() error, err error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("store: locking the data directory %s: %w", dir, err)
		}
		return nil, fmt.Errorf("store: data directory %s is in use by another keyplane (pid %s)", dir, readPID(f))
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store: %w", err), f.Close())
	}
	return f.Close, nil // closing gives the lock up; the file stays
}

// InUse is the error with which OpenEmbedded would refuse the directory because another process has it, nil otherwise.
func InUse(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "LOCK")); err != nil {
		return nil
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	return unlock()
}

// readPID is what the lock's holder wrote, for a message: the lock itself is the kernel's.
func readPID(f *os.File) string {
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0)
	pid := strings.TrimSpace(string(b[:n]))
	if _, err := strconv.Atoi(pid); err != nil {
		return "unknown"
	}
	return pid
}
