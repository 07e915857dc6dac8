// Package etcdtest runs etcd clusters for tests: real members, each a process of its own on loopback, which can be killed, stopped and started again.
package etcdtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Config is a cluster's. Only Dir has no default.
type Config struct {
	Members int    // 1 if 0
	Dir     string // for data and logs
	// Files are of a member's certificate, which it shows clients and other members, of its key, and of the roots that it checks theirs with. nil: no TLS.
	Files func(member int) (cert, key, ca string)
	TLS   *tls.Config // of a client, with Files
	// Heartbeat and Election are 50 and 500 ms if 0: a leader that is gone is replaced within a second or two.
	Heartbeat, Election time.Duration
	NoSync              bool // no fsync: faster, and as good as long as the machine does not end
}

// startTimeout is for how long a cluster may take to answer, on a machine that has other things to do.
const startTimeout = time.Minute

// Cluster is a running cluster. Its methods are not safe for concurrent use.
type Cluster struct {
	cfg     Config
	program string
	members []*member
}

type member struct {
	name, dir    string
	client, peer string // URLs
	cmd          *exec.Cmd
	stdin        io.Closer
	ended        chan struct{} // closed when the process has
	stopped      bool
}

// Start starts a cluster and waits until it answers.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg.Members = max(cfg.Members, 1)
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = 50 * time.Millisecond
	}
	if cfg.Election == 0 {
		cfg.Election = 500 * time.Millisecond
	}
	if cfg.Dir == "" || (cfg.Files == nil) != (cfg.TLS == nil) {
		return nil, errors.New("etcdtest: a directory is needed, and Files and TLS together")
	}
	program, err := Build(ctx)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, program: program}
	scheme := "http://"
	if cfg.Files != nil {
		scheme = "https://"
	}
	for i := range cfg.Members {
		m := &member{name: "m" + strconv.Itoa(i)}
		m.dir = filepath.Join(cfg.Dir, m.name)
		for _, url := range []*string{&m.client, &m.peer} {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			*url = scheme + "127.0.0.1:" + port
		}
		c.members = append(c.members, m)
	}
	for i := range c.members {
		if err := errors.Join(c.configure(i), c.run(i)); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for i := range c.members {
		if err := c.Ready(ctx, i); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// building is whoever of this process builds the program.
var building sync.Mutex

// Build makes the program of a member, or finds that it is made already, and returns where it is.
func Build(ctx context.Context) (string, error) {
	building.Lock()
	defer building.Unlock()
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("etcdtest: %w", err)
	}
	dir = filepath.Join(dir, "keyplane", "etcdtest")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("etcdtest: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("etcdtest: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("etcdtest: %w", err)
	}
	program := filepath.Join(dir, "member")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/keyplane/keyplane/internal/etcdtest/member").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("etcdtest: building a member: %w\n%s", err, out)
	}
	return program, nil
}

// freePort finds a port below those that the system gives to outgoing connections: it has to be free again when a member is restarted.
func freePort() (string, error) {
	for range 100 {
		var random [2]byte
		rand.Read(random[:])
		port := strconv.Itoa(20_000 + int(binary.BigEndian.Uint16(random[:]))%12_000)
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			return port, l.Close()
		}
	}
	return "", errors.New("etcdtest: no free port")
}

func (c *Cluster) configure(i int) error {
	m := c.members[i]
	var initial []string
	for _, o := range c.members {
		initial = append(initial, o.name+"="+o.peer)
	}
	cfg := map[string]any{ // YAML reads JSON
		"name": m.name, "data-dir": filepath.Join(m.dir, "data"),
		"listen-client-urls": m.client, "advertise-client-urls": m.client, "listen-peer-urls": m.peer, "initial-advertise-peer-urls": m.peer,
		"initial-cluster": strings.Join(initial, ","), "initial-cluster-token": filepath.Base(c.cfg.Dir), "initial-cluster-state": "new",
		"heartbeat-interval": c.cfg.Heartbeat.Milliseconds(), "election-timeout": c.cfg.Election.Milliseconds(), "unsafe-no-fsync": c.cfg.NoSync,
		"log-level": "warn", "log-outputs": []string{filepath.Join(m.dir, "log")},
	}
	if c.cfg.Files != nil {
		cert, key, ca := c.cfg.Files(i)
		security := map[string]any{"cert-file": cert, "key-file": key, "trusted-ca-file": ca, "client-cert-auth": true}
		cfg["client-transport-security"], cfg["peer-transport-security"] = security, security
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(m.dir, 0o700), os.WriteFile(m.config(), text, 0o600))
}

func (m *member) config() string { return filepath.Join(m.dir, "config.yaml") }

func (c *Cluster) run(i int) error {
	m := c.members[i]
	out, err := os.OpenFile(filepath.Join(m.dir, "stderr"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(c.program, m.config())
	cmd.Stdout, cmd.Stderr = out, out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("etcdtest: %w", err)
	}
	m.cmd, m.stdin, m.ended, m.stopped = cmd, stdin, make(chan struct{}), false
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(m.ended)
	return nil
}

// Ready waits until a member answers a linearizable read.
func (c *Cluster) Ready(ctx context.Context, i int) error {
	m := c.members[i]
	client, err := c.dial(i)
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		asking, cancel := context.WithTimeout(ctx, time.Second)
		_, err := client.Get(asking, "/", clientv3.WithCountOnly())
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-m.ended:
			said, _ := os.ReadFile(filepath.Join(m.dir, "stderr"))
			return fmt.Errorf("etcdtest: member %d has ended: %s", i, said)
		case <-ctx.Done():
			return fmt.Errorf("etcdtest: member %d does not answer: %w", i, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Cluster) dial(i int) (*clientv3.Client, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.members[i].client}, TLS: c.cfg.TLS, Logger: zap.NewNop()})
	if err != nil {
		return nil, fmt.Errorf("etcdtest: %w", err)
	}
	return client, nil
}

// Endpoints are the members' URLs for clients.
func (c *Cluster) Endpoints() (urls []string) {
	for _, m := range c.members {
		urls = append(urls, m.client)
	}
	return urls
}

// Leader waits until the members that run agree on a leader that runs, and returns which it is.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if i, ok := c.leader(ctx); ok {
			return i, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("etcdtest: no leader: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *Cluster) leader(ctx context.Context) (int, bool) {
	ids, says := map[uint64]int{}, map[uint64]bool{}
	for i, m := range c.members {
		if !m.running() {
			continue
		}
		client, err := c.dial(i)
		if err != nil {
			return 0, false
		}
		asking, cancel := context.WithTimeout(ctx, time.Second)
		status, err := client.Status(asking, m.client)
		cancel()
		client.Close()
		if err != nil {
			return 0, false
		}
		ids[status.Header.MemberId], says[status.Leader] = i, true
	}
	for id := range says {
		i, runs := ids[id]
		return i, runs && len(says) == 1
	}
	return 0, false
}

func (m *member) running() bool {
	if m.cmd == nil || m.stopped {
		return false
	}
	select {
	case <-m.ended:
		return false
	default:
		return true
	}
}

// Kill ends a member with SIGKILL.
func (c *Cluster) Kill(i int) error {
	m := c.members[i]
	if m.cmd == nil {
		return nil
	}
	err := m.cmd.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	if err == nil {
		<-m.ended
		m.stdin.Close()
		m.cmd = nil
	}
	return err
}

// Stop makes a member stand still, SIGSTOP: it keeps its connections and does not answer.
func (c *Cluster) Stop(i int) error { return c.signal(i, syscall.SIGSTOP, true) }

// Cont lets a member go on that stands still.
func (c *Cluster) Cont(i int) error { return c.signal(i, syscall.SIGCONT, false) }

func (c *Cluster) signal(i int, s syscall.Signal, stopped bool) error {
	m := c.members[i]
	if m.cmd == nil {
		return fmt.Errorf("etcdtest: member %d does not run", i)
	}
	m.stopped = stopped
	return m.cmd.Process.Signal(s)
}

// Restart starts a member again on its data, after killing it if it runs. It does not wait until it is Ready, which without a majority it never is.
func (c *Cluster) Restart(i int) error {
	if err := c.Kill(i); err != nil {
		return err
	}
	return c.run(i)
}

// Close ends all members.
func (c *Cluster) Close() error {
	var errs []error
	for i := range c.members {
		errs = append(errs, c.Kill(i))
	}
	return errors.Join(errs...)
}
