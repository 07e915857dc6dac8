package node

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/audit/auditkey"
	"github.com/keyplane/keyplane/internal/backup"
	"github.com/keyplane/keyplane/internal/planetls"
)

// backupTries is how often a backup begins anew when a key that is deleted takes the revision away at which the store is read.
const backupTries = 5

// backupName is under which name the HSM's audit key signs backups: that of the audit log of the Region and account that the data directory was made with.
func backupName(ctx context.Context, st *store.Store) (string, error) {
	region, err := st.Pinned(ctx, "region")
	if err != nil {
		return "", err
	}
	account, err := st.Pinned(ctx, "account")
	if err != nil {
		return "", err
	}
	if region == "" || account == "" {
		return "", errors.New("node: the store is not that of a keyplane server that has served")
	}
	return AuditKeyName(&Config{Region: region, Account: account}), nil
}

// writeBackup writes a backup of a store, which the audit key signs.
func writeBackup(ctx context.Context, w io.Writer, st *store.Store, roots []hsm.RootID, name string, key auditkey.Key) (m backup.Manifest, damaged []string, err error) {
	signer, err := auditkey.NewSigner(name, key)
	if err != nil {
		return m, nil, err
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	to := backup.NewWriter(buffered)
	m.Time = time.Now().UTC().Truncate(time.Second)
	of, err := st.Export(ctx, to.Add)
	if err != nil {
		return m, nil, err
	}
	m.Store, m.Epoch, m.EpochName, m.Revision, m.Tombstones, m.LeftOut = of.Store, of.Epoch, of.EpochName, of.Revision, of.Tombstones, int64(len(of.Damaged))
	for _, r := range roots {
		m.Tokens = append(m.Tokens, hex.EncodeToString(r[:]))
	}
	if m, err = to.Close(m, signer); err != nil {
		return m, nil, err
	}
	return m, of.Damaged, buffered.Flush()
}

// serveBackup answers GET /backup of the stats socket.
func (n *Node) serveBackup(w http.ResponseWriter, r *http.Request) {
	if err := http.NewResponseController(w).SetWriteDeadline(time.Time{}); err != nil {
		n.log.Error("backup", "error", err)
	}
	name, err := backupName(r.Context(), n.store)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	m, damaged, err := writeBackup(r.Context(), w, n.store, n.shards.Roots(), name, n.audit)
	if err != nil {
		n.log.Error("the backup was not finished", "error", err)
		panic(http.ErrAbortHandler) // the client sees that it is cut short, and so it would by its contents
	}
	for _, key := range damaged {
		n.log.Error("a value is damaged, and not in the backup", "key", key)
	}
	n.log.Info("a backup was made", "revision", m.Revision, "values", m.Values)
}

// etcdFlags are those of commands for an external cluster. They win over the file's.
type etcdFlags struct {
	endpoints string
	files     planetls.Files
}

func (e *etcdFlags) add(fs *flag.FlagSet) {
	fs.StringVar(&e.endpoints, "etcd", "", "`URL,…` of the members of an external etcd cluster (default: the file's, else the etcd in the data directory)")
	fs.StringVar(&e.files.Cert, "etcd-cert", "", "PEM `FILE` of the client certificate for it")
	fs.StringVar(&e.files.Key, "etcd-key", "", "PEM `FILE` of its private key, mode 0600")
	fs.StringVar(&e.files.CA, "etcd-ca", "", "PEM `FILE` of the CA of the cluster's certificates, which need no role then")
}

// set puts those that were given in the place of the file's.
func (e *etcdFlags) set(cfg *EtcdConfig) {
	if e.endpoints != "" {
		cfg.Endpoints = strings.Split(e.endpoints, ",")
	}
	if e.files.Cert != "" || e.files.Key != "" {
		cfg.Cert, cfg.Key = e.files.Cert, e.files.Key
	}
	if e.files.CA != "" {
		cfg.CA = e.files.CA
	}
}

// openExternal opens the cluster of a configuration. dir is what the process has beside it, "" of one that only reads.
func openExternal(cfg *Config, dir string, log *slog.Logger) opener {
	return func(ctx context.Context, s store.Sealer) (*store.Store, error) {
		var config *tls.Config
		if !cfg.Etcd.plain() {
			var err error
			if config, err = cfg.etcdTLS(log, nil); err != nil {
				return nil, fmt.Errorf("node: etcd: %w", err)
			}
		}
		return store.OpenExternal(ctx, store.ExternalConfig{Endpoints: cfg.Etcd.Endpoints, TLS: config, Logger: log, Sealer: s, Dir: dir})
	}
}

// command is what the commands about backups have in common.
type command struct {
	fs     *flag.FlagSet
	file   *string
	dir    *string
	hsms   []string
	pin    *string
	etcd   etcdFlags
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
}

func newCommand(name, arguments string, stdout, stderr io.Writer) *command {
	c := &command{fs: flag.NewFlagSet(name, flag.ContinueOnError), stdout: stdout, stderr: stderr}
	c.log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c.fs.SetOutput(stderr)
	c.fs.Usage = func() {
		fmt.Fprintf(stderr, "usage: %s %s\n", name, arguments)
		c.fs.PrintDefaults()
	}
	return c
}

// store adds the flags that say which store, and of which tokens.
func (c *command) store() *command {
	c.file = c.fs.String("config", "", "YAML `FILE` of the server, or of a control plane of the cluster; flags win over it")
	c.dir = c.fs.String("data-dir", "", "`DIR` of all state (default ./keyplane-data)")
	c.pin = c.fs.String("soft-token-pin-file", "", "`FILE` that unseals the soft token (default DATA-DIR/softtoken/pin)")
	c.fs.Func("hsm", "PKCS#11 `URI` of a token of the server, may be repeated (default: the file's, else the soft token)", func(uri string) error {
		c.hsms = append(c.hsms, uri)
		return nil
	})
	c.etcd.add(c.fs)
	return c
}

func (c *command) config() (cfg Config, err error) {
	if *c.file != "" {
		if cfg, err = ReadConfig(*c.file); err != nil {
			return cfg, fmt.Errorf("%s: %w", *c.file, err)
		}
	}
	if *c.dir != "" {
		cfg.DataDir = *c.dir
	}
	if *c.pin != "" {
		cfg.SoftTokenPINFile = *c.pin
	}
	if c.hsms != nil {
		cfg.HSM = c.hsms
	}
	c.etcd.set(&cfg.Etcd)
	cfg.Defaults()
	return cfg, nil
}

// errArguments is of a command that was not given what it needs.
var errArguments = errors.New("see the usage")

// run parses the arguments, of which n are left (below 0: do looks, and returns errArguments), and returns the exit status.
func (c *command) run(args []string, n int, do func(ctx context.Context) error) int {
	if err := c.fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if n >= 0 && c.fs.NArg() != n {
		c.fs.Usage()
		return 2
	}
	err := do(context.Background())
	if errors.Is(err, errArguments) {
		c.fs.Usage()
		return 2
	}
	if err != nil {
		fmt.Fprintf(c.stderr, "%s: %v\n", c.fs.Name(), err)
		return 1
	}
	return 0
}

// BackupMain is keyplane backup, and returns the exit status.
func BackupMain(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "verify" {
		return backupVerifyMain(args[1:], stdout, stderr)
	}
	c := newCommand("keyplane backup", "--out FILE [--socket PATH | --data-dir DIR | --etcd URL,…] [--hsm URI]...\n       keyplane backup verify [--key KEY] FILE", stdout, stderr).store()
	out := c.fs.String("out", "", "`FILE` to write, which must not exist")
	socket := c.fs.String("socket", "", "`PATH` of the stats socket of a server that runs, which makes the backup (keyplane serve --stats-socket)")
	return c.run(args, 0, func(ctx context.Context) error {
		if *out == "" {
			return errors.New("where to? --out FILE")
		}
		if _, err := os.Lstat(*out); err == nil {
			return fmt.Errorf("%s exists", *out)
		}
		var write func(w io.Writer) error
		if *socket != "" {
			write = func(w io.Writer) error { return fetchBackup(ctx, w, *socket) }
		} else {
			cfg, err := c.config()
			if err != nil {
				return err
			}
			o, err := c.open(ctx, &cfg)
			if err != nil {
				return err
			}
			defer o.Close()
			name, key, err := o.auditKey(ctx)
			if err != nil {
				return err
			}
			defer key.Close()
			write = func(w io.Writer) error {
				_, damaged, err := writeBackup(ctx, w, o.Store, o.Roots, name, key)
				for _, k := range damaged {
					fmt.Fprintf(c.stderr, "%s is damaged, and not in the backup\n", k)
				}
				return err
			}
		}
		m, err := writeFile(*out, write)
		if err != nil {
			return err
		}
		c.tell(&m)
		return nil
	})
}

// open opens the store to back up.
func (c *command) open(ctx context.Context, cfg *Config) (*Offline, error) {
	if len(cfg.Etcd.Endpoints) > 0 {
		return openAuthenticated(ctx, cfg, c.log, openExternal(cfg, "", c.log))
	}
	return OpenOffline(ctx, cfg, c.log)
}

// auditKey opens the key that the store keeps for its audit log.
func (o *Offline) auditKey(ctx context.Context) (name string, key *hsm.AuditKey, err error) {
	if name, err = backupName(ctx, o.Store); err != nil {
		return "", nil, err
	}
	kept, err := o.Store.Pinned(ctx, "audit-key")
	if err != nil {
		return "", nil, err
	}
	var want *ecdsa.PublicKey
	if kept != "" {
		if _, want, err = auditkey.ParseVerifierKey(kept); err != nil {
			return "", nil, err
		}
	}
	key, err = hsm.OpenAuditKey(o.Tokens, want, auditTimeout)
	if err != nil {
		return "", nil, fmt.Errorf("node: no token given has the key that signs: %w", err)
	}
	return name, key, nil
}

// tell prints what a backup is of.
func (c *command) tell(m *backup.Manifest) {
	fmt.Fprintf(c.stdout, "store %s epoch %d revision %d of %s: %d values, %d deleted keys\n", m.Store, m.Epoch, m.Revision, m.Time.Format(time.RFC3339), m.Values, m.Tombstones)
	if m.LeftOut > 0 {
		fmt.Fprintf(c.stdout, "%d values are damaged and were left out\n", m.LeftOut)
	}
}

// writeFile makes a file of mode 0600 that is whole and durable, or none. It reads the backup again.
func writeFile(path string, write func(io.Writer) error) (m backup.Manifest, err error) {
	for range backupTries {
		if m, err = tryWriteFile(path, write); err == nil {
			break
		}
	}
	return m, err
}

func tryWriteFile(path string, write func(io.Writer) error) (m backup.Manifest, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return m, err
	}
	defer os.Remove(tmp.Name())
	if err = write(tmp); err == nil {
		if _, err = tmp.Seek(0, io.SeekStart); err == nil {
			m, err = backup.Unverified(bufio.NewReaderSize(tmp, 1<<20))
		}
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return m, err
	}
	if err := os.Link(tmp.Name(), path); err != nil { // never over another
		return m, err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return m, err
	}
	return m, errors.Join(d.Sync(), d.Close())
}

// fetchBackup has a server make one.
func fetchBackup(ctx context.Context, w io.Writer, socket string) error {
	var dialer net.Dialer
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://keyplane/backup", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the server does not make a backup: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

func backupVerifyMain(args []string, stdout, stderr io.Writer) int {
	c := newCommand("keyplane backup verify", "[--key KEY] FILE", stdout, stderr)
	key := c.fs.String("key", "", "`KEY` that the file has to be signed with, as keyplane audit public-key prints it (default: whatever signed it)")
	return c.run(args, 1, func(context.Context) error {
		f, err := os.Open(c.fs.Arg(0))
		if err != nil {
			return err
		}
		defer f.Close()
		var m backup.Manifest
		if r := bufio.NewReaderSize(f, 1<<20); *key == "" {
			if m, err = backup.Unverified(r); err == nil {
				fmt.Fprintln(c.stderr, "the file is whole; who signed it was not checked: give the key with --key")
			}
		} else {
			v, badKey := verifierOf(*key)
			if badKey != nil {
				return badKey
			}
			m, err = backup.Read(r, v, nil)
		}
		if err != nil {
			return err
		}
		c.tell(&m)
		return nil
	})
}

// verifierOf reads a key as keyplane audit public-key prints it.
func verifierOf(key string) (note.Verifier, error) {
	name, public, err := auditkey.ParseVerifierKey(key)
	if err != nil {
		return nil, err
	}
	return auditkey.NewVerifier(name, public)
}

// RestoreMain is keyplane restore, and returns the exit status.
func RestoreMain(args []string, stdout, stderr io.Writer) int {
	c := newCommand("keyplane restore", "[--data-dir DIR] [--etcd URL,…] [--hsm URI]... [--deleted-keys FILE]... [--accept-older TEXT] [--key KEY] FILE", stdout, stderr).store()
	older := c.fs.String("accept-older", "", "`TEXT` that says what is lost by restoring a backup that is older than the store was; without it the command says which")
	key := c.fs.String("key", "", "`KEY` that signed the file, as keyplane audit public-key printed it, if the token that held it is lost (default: a token given has to hold it)")
	var deleted []string
	c.fs.Func("deleted-keys", "a further `FILE` deleted-keys, of another control plane: what it names does not come back either; may be repeated", func(path string) error {
		deleted = append(deleted, path)
		return nil
	})
	return c.run(args, 1, func(ctx context.Context) (err error) {
		cfg, err := c.config()
		if err != nil {
			return err
		}
		f, err := os.Open(c.fs.Arg(0))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
			return err
		}
		open := openEmbedded(&cfg, c.log)
		if len(cfg.Etcd.Endpoints) > 0 {
			open = openExternal(&cfg, cfg.DataDir, c.log)
		}
		o := &Offline{}
		defer func() { err = errors.Join(err, o.Close()) }()
		if err := o.openTokens(&cfg, c.log); err != nil {
			return err
		}
		m, verifier, err := o.trust(f, *key)
		if err != nil {
			return err
		}
		if err := o.openStore(ctx, open); err != nil {
			return err
		}
		from := store.Restored{Exported: store.Exported{Store: m.Store, Epoch: m.Epoch, EpochName: m.EpochName, Revision: m.Revision}, DeletedKeys: deleted}
		text := fmt.Sprintf("what was written after revision %d is lost", m.Revision)
		from.Older = *older == text
		switch err := o.Store.CheckRestore(ctx, from); {
		case errors.Is(err, store.ErrOlder):
			return fmt.Errorf("%w. If that is meant: --accept-older %q", err, text)
		case errors.Is(err, store.ErrNotEmpty) && len(cfg.Etcd.Endpoints) == 0:
			return fmt.Errorf("%w: move %s away first", err, filepath.Join(cfg.DataDir, "etcd"))
		case err != nil:
			return err
		}
		if err := o.Store.Restore(ctx, from, func(put func(key string, value []byte) error) error {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			again, err := backup.Read(bufio.NewReaderSize(f, 1<<20), verifier, put)
			if err == nil && again.Sum != m.Sum {
				err = fmt.Errorf("%w: it was changed while it was read", backup.ErrFile)
			}
			return err
		}); err != nil {
			return err
		}
		c.tell(&m)
		for _, k := range o.Store.Reburied() {
			fmt.Fprintf(c.stdout, "deleted again: %s %s %s\n", k.Region, k.Account, k.ID)
		}
		return nil
	})
}

// trust reads a backup to its end and says whether it was signed by the key, or without one by a token given, and can be used with the tokens given.
func (o *Offline) trust(f io.ReadSeeker, key string) (m backup.Manifest, v note.Verifier, err error) {
	if key != "" {
		if v, err = verifierOf(key); err != nil {
			return m, nil, err
		}
		if m, err = backup.Read(bufio.NewReaderSize(f, 1<<20), v, nil); err != nil {
			return m, nil, err
		}
		return m, v, o.holds(&m)
	}
	names, err := backup.Signers(f)
	if err != nil {
		return m, nil, err
	}
	for _, t := range o.Tokens {
		key, err := hsm.OpenAuditKey([]hsm.Token{t}, nil, auditTimeout)
		if errors.Is(err, hsm.ErrNoAuditKey) {
			continue
		}
		if err != nil {
			return m, nil, err
		}
		public := key.Public()
		if err := key.Close(); err != nil {
			return m, nil, err
		}
		for _, name := range names {
			if v, err = auditkey.NewVerifier(name, public); err != nil {
				return m, nil, err
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return m, nil, err
			}
			if m, err = backup.Read(bufio.NewReaderSize(f, 1<<20), v, nil); err == nil {
				return m, v, o.holds(&m)
			}
		}
	}
	if err == nil {
		err = errors.New("no token given can sign")
	}
	return m, nil, fmt.Errorf("node: the backup is not signed by a token given (if that token is lost: --key): %w", err)
}

// holds says whether the tokens have every root that the backup's keys can be under.
func (o *Offline) holds(m *backup.Manifest) error {
	for _, want := range m.Tokens {
		if !slices.ContainsFunc(o.Roots, func(r hsm.RootID) bool { return hex.EncodeToString(r[:]) == want }) {
			return fmt.Errorf("node: the backup has keys under root %s, which no token given holds", want)
		}
	}
	return nil
}
