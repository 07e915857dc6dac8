package cluster

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyplane/keyplane/hsm/hsmtest/slowhsm"
)

// Of every cluster here.
const (
	Account = "111122223333"
	Region  = "us-east-1"
)

// readyMax bounds how long processes take to be ready, on a machine that does much else.
const readyMax = 120 * time.Second

// Config says what runs.
type Config struct {
	Dir       string                     // of everything, made if it is not there
	Keyplane  string                     // the binary
	Etcd      string                     // likewise; "": `keyplane serve` alone
	Etcds     int                        // members; default 3
	Controls  int                        // control planes; default 2
	Datas     int                        // data nodes; default 3
	Tokens    int                        // of each data node, with the same roots: all but one may be lost; default 1
	FaultyHSM bool                       // the first token of each is behind a module whose faults can be scripted
	Proxied   bool                       // every connection between processes goes through a Network
	Settings  string                     // lines of YAML for the configuration of every keyplane process
	Env       func(role string) []string // for keyplane processes of a role, besides
}

// Node is a process with what belongs to it.
type Node struct {
	*Process
	Addr     string       // what it listens on for clients: of a data node the KMS API, of an etcd member its client API, of a control plane the planes listener
	Endpoint string       // where clients find it: Addr, or the proxy in front of it
	AuditDir string       // "": it has no audit log
	TokenDir string       // of its SoftHSM tokens
	HSM      *slowhsm.HSM // in front of its first token; nil unless Config.FaultyHSM

	peer, peerEndpoint string   // of an etcd member
	URI                string   // of the first token
	direct             string   // URI of the first token, past the module with faults
	others             []string // URIs of the other tokens
	clockFile          string
}

// Cluster is processes that run together.
type Cluster struct {
	Etcds, Controls, Datas []*Node // of `keyplane serve` alone one of Datas
	Net                    *Network
	AccessKeyID, Secret    string // the administrator's
	Credentials            string // AWS shared credentials file with them

	cfg    Config
	inside *http.Client // with a certificate of the cluster's; nil where there are none
	ports  map[int]bool
}

// Start makes and starts a cluster, and returns when it serves.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	for n, of := range map[*int]int{&cfg.Etcds: 3, &cfg.Controls: 2, &cfg.Datas: 3, &cfg.Tokens: 1} {
		if *n == 0 {
			*n = of
		}
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, ports: map[int]bool{}, Credentials: filepath.Join(cfg.Dir, "credentials")}
	c.Net = newNetwork(c.pids)
	if err := c.start(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	id, secret := make([]byte, 16), make([]byte, 30)
	_, _ = rand.Read(id)
	_, _ = rand.Read(secret)
	for i, b := range id {
		id[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[b%32]
	}
	c.AccessKeyID, c.Secret = "AKIA"+string(id), base64.StdEncoding.EncodeToString(secret)
	text := "[default]\naws_access_key_id = " + c.AccessKeyID + "\naws_secret_access_key = " + c.Secret + "\n"
	if err := errors.Join(os.MkdirAll(c.cfg.Dir, 0o700), os.WriteFile(c.Credentials, []byte(text), 0o600)); err != nil {
		return err
	}
	if c.cfg.Etcd == "" {
		n, err := c.single()
		if err != nil {
			return err
		}
		c.Datas = []*Node{n}
	} else if err := c.split(); err != nil {
		return err
	}
	for _, n := range c.Etcds {
		if err := n.Start(); err != nil {
			return err
		}
	}
	if err := c.led(ctx); err != nil {
		return err
	}
	for i, n := range c.Keyplanes() {
		if i == 0 { // it makes the administrator's access key
			n.introduce("KEYPLANE_ADMIN_ACCESS_KEY_ID="+c.AccessKeyID, "KEYPLANE_ADMIN_SECRET_ACCESS_KEY="+c.Secret)
		}
		if err := n.Start(); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		if err := c.Ready(ctx, n, readyMax); err != nil {
			return err
		}
		n.introduce()
	}
	for _, n := range c.Keyplanes() {
		if err := c.Ready(ctx, n, readyMax); err != nil {
			return err
		}
	}
	return nil
}

// single is `keyplane serve`.
func (c *Cluster) single() (*Node, error) {
	n, err := c.node("serve", "serve")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.keyplane(n), c.makeTokens([]*Node{n})); err != nil {
		return nil, err
	}
	err = n.setUp("serve", c.cfg.Settings)
	n.args = append(n.args, "--listen", n.Addr)
	return n, err
}

// node makes a node that listens on a port of its own, and the proxy in front of it.
func (c *Cluster) node(name, role string) (*Node, error) {
	dir := filepath.Join(c.cfg.Dir, name)
	n := &Node{Process: &Process{Name: name, Role: role, Dir: filepath.Join(dir, "data"), Log: filepath.Join(dir, "log")}}
	var err error
	n.Addr, n.Endpoint, err = c.address(name)
	return n, errors.Join(err, os.MkdirAll(n.Dir, 0o700))
}

// address is a new address to listen on, and the one at which others reach it.
func (c *Cluster) address(name string) (addr, endpoint string, err error) {
	port, err := c.freePort()
	if err != nil {
		return "", "", err
	}
	addr = local(port)
	if !c.cfg.Proxied {
		return addr, addr, nil
	}
	if port, err = c.freePort(); err != nil {
		return "", "", err
	}
	return addr, local(port), c.Net.front(local(port), name, addr)
}

// keyplane gives a keyplane process its environment.
func (c *Cluster) keyplane(n *Node) error {
	n.AuditDir, n.clockFile = filepath.Join(n.Dir, "audit"), filepath.Join(filepath.Dir(n.Dir), "clock")
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "AWS_") && !strings.HasPrefix(v, "KEYPLANE_") {
			n.env = append(n.env, v)
		}
	}
	n.env = append(n.env, "KEYPLANE_CLOCK_FILE="+n.clockFile)
	if c.cfg.Env != nil {
		n.env = append(n.env, c.cfg.Env(n.Role)...)
	}
	n.command = c.cfg.Keyplane
	return n.SetClock(0, 0)
}

// setUp fills in how a keyplane process is started.
func (n *Node) setUp(command, settings string) error {
	config := filepath.Join(filepath.Dir(n.Dir), "keyplane.yaml")
	n.args = []string{command, "--config", config, "--data-dir", n.Dir, "--account", Account, "--region", Region, "--hsm", n.URI}
	for _, uri := range n.others {
		n.args = append(n.args, "--hsm", uri)
	}
	return os.WriteFile(config, []byte(settings), 0o600)
}

// SetClock sets a process's clocks, in a build with the tag testclock: by how much its wall clock and its running time are ahead of this machine's. It takes some
// milliseconds.
func (n *Node) SetClock(wall, running time.Duration) error {
	next := n.clockFile + ".next"
	return errors.Join(os.WriteFile(next, []byte(fmt.Sprintln(int64(wall), int64(running))), 0o600), os.Rename(next, n.clockFile))
}

// All are all nodes, in the order in which they are started.
func (c *Cluster) All() []*Node {
	return append(append(append([]*Node(nil), c.Etcds...), c.Controls...), c.Datas...)
}

// Keyplanes are the nodes that are not etcd's.
func (c *Cluster) Keyplanes() []*Node { return append(append([]*Node(nil), c.Controls...), c.Datas...) }

func (c *Cluster) pids() map[string]int {
	pids := map[string]int{Client: os.Getpid()}
	for _, n := range c.All() {
		if pid := n.Pid(); pid != 0 {
			pids[n.Name] = pid
		}
	}
	return pids
}

// Ready waits until a keyplane process says that it is ready, on its own address.
func (c *Cluster) Ready(ctx context.Context, n *Node, patience time.Duration) error {
	client, scheme := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}, "http://"
	if n.Role == "control" {
		client, scheme = c.inside, "https://"
	}
	for deadline := time.Now().Add(patience); ; {
		resp, err := client.Get(scheme + n.Addr + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %v; it said:\n%s", n.Name, patience, n.Tail(4000))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Close ends all processes, data nodes first, in good order.
func (c *Cluster) Close() {
	c.Net.Heal()
	for _, group := range [][]*Node{c.Datas, c.Controls, c.Etcds} {
		ended := make(chan struct{})
		for _, n := range group {
			go func() { n.Terminate(); ended <- struct{}{} }()
		}
		for range group {
			<-ended
		}
	}
	c.Net.Close()
}

// Describe says what runs, and how to use and to end it.
func (c *Cluster) Describe(w io.Writer) {
	for _, n := range c.All() {
		fmt.Fprintf(w, "%-9s process %-7d %-21s log %s\n", n.Name, n.Pid(), n.Addr, n.Log)
	}
	fmt.Fprint(w, "\nKMS endpoints:")
	for _, n := range c.Datas {
		fmt.Fprint(w, " http://", n.Endpoint)
	}
	fmt.Fprintf(w, "\nadministrator's credentials: %s\n\nTry:\n  AWS_SHARED_CREDENTIALS_FILE=%s aws --endpoint-url http://%s --region %s kms create-key\n", c.Credentials, c.Credentials, c.Datas[0].Endpoint, Region)
	fmt.Fprintf(w, "\nEnd it with Ctrl-C, or with kill %d. A process that is killed is started again: kill -9 any of them.\n", os.Getpid())
}
