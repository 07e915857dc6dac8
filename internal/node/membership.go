package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/controlplane/barrier"
	"github.com/keyplane/keyplane/controlplane/follower"
	"github.com/keyplane/keyplane/controlplane/store"
	"github.com/keyplane/keyplane/internal/fence"
	"github.com/keyplane/keyplane/internal/planeca"
	"github.com/keyplane/keyplane/internal/planes"
	"github.com/keyplane/keyplane/internal/planetls"
)

// EtcdConfig is the etcd cluster of a control plane or data node.
type EtcdConfig struct {
	// Endpoints are its members' client URLs, https://host:2379. Members that do not answer are no reason not to start, as long as most do.
	Endpoints []string `yaml:"endpoints"`
	// Cert, Key and CA are PEM files of what members are shown and how they are verified. Default those of planes: then members have certificates of the same CA, with
	// the role etcd. They are reread when they change.
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

// PlanesConfig is how the processes of a cluster reach each other: docs/planes-tls.md.
type PlanesConfig struct {
	// Listen is the address, host:port, at which a control plane serves data nodes and other control planes.
	Listen string `yaml:"listen"`
	// Control are the URLs of all control planes, https://host:port. A control plane may be named in its own list, so that all processes can have the same. A control plane without
	// the others in its list waits 1.8 seconds for each of them at every change.
	Control []string `yaml:"control"`
	// Cert, Key and CA are PEM files of this process's certificate, its key (mode 0600) and the CA of all others. The certificate says which role and node this is. They are reread
	// when they change; a control plane with the CA's key in its token renews them.
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	CA   string `yaml:"ca"`
}

func (c *PlanesConfig) files() planetls.Files {
	return planetls.Files{Cert: c.Cert, Key: c.Key, CA: c.CA}
}

// ValidateControl is Validate for `keyplane controlplane`.
func (c *Config) ValidateControl() error {
	return c.validateIn(control)
}

// ValidateData is Validate for `keyplane dataplane`.
func (c *Config) ValidateData() error {
	return c.validateIn(data)
}

// validateCluster checks what a process of a cluster has, and others have not.
func (c *Config) validateCluster(s shape, bad func(format string, args ...any)) {
	if s == whole {
		if len(c.Etcd.Endpoints) > 0 {
			bad("etcd.endpoints: keyplane serve has a store of its own; keyplane controlplane and keyplane dataplane share one")
		}
		return
	}
	if len(c.Etcd.Endpoints) == 0 {
		bad("etcd.endpoints: missing")
	}
	schemes := map[string]bool{}
	for _, e := range c.Etcd.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Port() == "" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" {
			bad("etcd.endpoints: %q is not https://host:port", e)
			continue
		}
		schemes[u.Scheme] = true
	}
	if len(schemes) > 1 {
		bad("etcd.endpoints: some are https://, and some http://")
	}
	if (c.Etcd.Cert == "") != (c.Etcd.Key == "") {
		bad("etcd.cert and key: both or neither")
	}
	if s == control {
		if _, _, err := net.SplitHostPort(c.Planes.Listen); err != nil {
			bad("planes.listen: %q is not host:port", c.Planes.Listen)
		}
	} else if len(c.Planes.Control) == 0 {
		bad("planes.control: missing: the URLs of the control planes")
	}
	for _, u := range c.Planes.Control {
		if planes.CheckURL(u) != nil {
			bad("planes.control: %q is not https://host:port", u)
		}
	}
	if c.Planes.Cert == "" || c.Planes.Key == "" || c.Planes.CA == "" {
		bad("planes.cert, key and ca: missing; keyplane ca makes them")
	}
}

// splitPart is what a process of a cluster has besides.
type splitPart struct {
	role, id string
	source   *planetls.Source
	revoked  *planetls.Revoked // certificates, as the store has them
	lease    *fence.Lease
	follower *follower.Follower
	settler  *settler       // of a data node
	client   *planes.Client // nil: a control plane that knows of no others
	leaser   *planes.Leaser
	peers    atomic.Int32  // members of this one's role
	moved    chan struct{} // capacity 1: somebody joined or left

	// Of a control plane.
	server   *planes.Server
	leases   *planes.Leases
	lastUses *planes.LastUses
}

// followTimeout is how long a start may take to know all that is in the store and to become a member.
const followTimeout = 30 * time.Second

// identify reads who this process is.
func (n *Node) identify(role string) error {
	cfg := &n.cfg.Planes
	var err error
	c := &splitPart{lease: new(fence.Lease), moved: make(chan struct{}, 1), revoked: new(planetls.Revoked)}
	if c.source, err = planetls.Open(cfg.files(), n.log); err != nil {
		return fmt.Errorf("node: planes: %w", err)
	}
	c.source.Refuse(c.revoked)
	c.role, c.id = c.source.Name()
	switch {
	case c.role != role:
		return fmt.Errorf("node: planes.cert: %s is the certificate of role %q, not %s", cfg.Cert, c.role, role)
	case n.cfg.NodeID != "" && n.cfg.NodeID != c.id:
		return fmt.Errorf("node: planes.cert: %s is the certificate of %s %q, and node_id says %q", cfg.Cert, role, c.id, n.cfg.NodeID)
	}
	n.split = c
	return nil
}

// findControl looks for control planes.
func (n *Node) findControl() error {
	cfg, c := &n.cfg.Planes, n.split
	if len(cfg.Control) == 0 {
		return nil
	}
	tlsConfig, err := c.source.Client(planetls.RoleControl, hostsOf(cfg.Control)...)
	if err != nil {
		return err
	}
	if c.client, err = planes.NewClient(planes.ClientConfig{URLs: cfg.Control, TLS: tlsConfig, Revoked: c.revoked, Logger: n.log}); err != nil {
		return err
	}
	n.onClose(c.client.Close)
	n.background("probing control planes", c.client.Run)
	return nil
}

func hostsOf(urls []string) (hosts []string) {
	for _, text := range urls {
		if u, err := url.Parse(text); err == nil && !slices.Contains(hosts, u.Hostname()) {
			hosts = append(hosts, u.Hostname())
		}
	}
	return hosts
}

// openSharedStore opens the store of the cluster.
func (n *Node) openSharedStore(ctx context.Context) error {
	n.phase("starting: the store is not open")
	cfg := store.ExternalConfig{Endpoints: n.cfg.Etcd.Endpoints, Logger: n.log, Sealer: n.seal, Dir: n.cfg.DataDir}
	var err error
	if cfg.TLS, err = n.etcdTLS(); err != nil {
		return fmt.Errorf("node: etcd: %w", err)
	}
	if n.store, err = store.OpenExternal(ctx, cfg); err != nil {
		return err
	}
	n.onClose(func() { n.logIf("closing the store", n.store.Close()) })
	return nil
}

// etcdTLS is the TLS of connections to etcd; nil for http:// endpoints.
func (n *Node) etcdTLS() (*tls.Config, error) {
	cfg := &n.cfg.Etcd
	if cfg.plain() {
		if slices.ContainsFunc(hostsOf(cfg.Endpoints), func(host string) bool { return !loopback(host) }) {
			n.log.Warn("etcd is reached without TLS: who is on the way can read and change what is in the store, and stop everything", "endpoints", cfg.Endpoints)
		}
		return nil, nil
	}
	if cfg.CA == "" && cfg.Cert == "" {
		return n.split.source.Client(planetls.RoleEtcd, hostsOf(cfg.Endpoints)...)
	}
	return n.cfg.etcdTLS(n.log, n.split.revoked)
}

// plain says that there is no TLS.
func (c *EtcdConfig) plain() bool { return strings.HasPrefix(c.Endpoints[0], "http://") }

// etcdTLS is the TLS of connections to etcd, by the files of etcd and, for what is not there, those of planes.
func (c *Config) etcdTLS(log *slog.Logger, revoked *planetls.Revoked) (*tls.Config, error) {
	files := planetls.Files{Cert: c.Etcd.Cert, Key: c.Etcd.Key, CA: c.Etcd.CA}
	role := "" // of another CA's certificates
	if files.Cert == "" {
		files.Cert, files.Key = c.Planes.Cert, c.Planes.Key
	}
	if files.CA == "" {
		files.CA, role = c.Planes.CA, planetls.RoleEtcd
	}
	source, err := planetls.Open(files, log)
	if err != nil {
		return nil, err
	}
	source.Refuse(revoked)
	return source.Client(role, hostsOf(c.Etcd.Endpoints)...)
}

// newLeaser makes n.split.leaser, and has it run once the tables are there.
func (n *Node) newLeaser() *planes.Leaser {
	c := n.split
	c.peers.Store(1)
	c.leaser = planes.NewLeaser(c.client, c.leases, c.role+"/"+c.id, func() int { return int(c.peers.Load()) })
	return c.leaser
}

// follow has this process know what is in the store and all that changes there, and makes it a member of the cluster; it returns when it is one. When the node is closed
// it leaves.
func (n *Node) follow(ctx context.Context) error {
	n.phase("starting: the changes of the store are not followed")
	c := n.split
	var err error
	cfg := follower.Config{Store: n.store, Lease: c.lease, Member: store.Member{ID: c.id, Role: c.role}, Load: n.loadAll, Apply: n.applyAll, Logger: n.log}
	if c.client != nil {
		c.settler = &settler{now: fence.Now, ask: c.client.Settled}
		cfg.Applied = func(revision int64) {
			c.settler.heard(revision)
			c.client.Applied(revision)
		}
	}
	if c.follower, err = follower.New(cfg); err != nil {
		return err
	}
	if n.shape == control {
		n.barrier = barrier.New(n.store, c.follower, n.log)
	}
	if c.client != nil {
		n.background("telling control planes", func(ctx context.Context) error { return c.client.Tell(ctx, c.follower.Incarnation) })
	}
	n.background("watching members", n.watchMembers)
	n.background("following the store", c.follower.Run)
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	for !c.lease.Valid() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("node: following the store: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// loadAll is reload, and says that members may have come and gone.
func (n *Node) loadAll(ctx context.Context) error {
	n.membersMoved()
	if err := n.loadRevoked(ctx); err != nil {
		return err
	}
	return n.reload(ctx)
}

// applyAll is apply, and says that members have come or gone.
func (n *Node) applyAll(ctx context.Context, changes []store.Change) error {
	for i := range changes {
		if c := &changes[i]; c.What == store.CertificateRevoked && !c.Gone {
			n.revoke(c.Name)
		}
	}
	if err := n.apply(ctx, changes); err != nil {
		return err
	}
	if slices.ContainsFunc(changes, func(c store.Change) bool { return c.What == store.MemberChanged }) {
		n.membersMoved()
	}
	return nil
}

func (n *Node) membersMoved() {
	select {
	case n.split.moved <- struct{}{}:
	default:
	}
}

// watchMembers counts the members of this one's role, and ends the leases of those that are gone.
func (n *Node) watchMembers(ctx context.Context) error {
	c := n.split
	before := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.moved:
		}
		names, err := n.memberNames(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
				n.membersMoved()
			}
			continue
		}
		now, peers := map[string]bool{}, 0
		for _, name := range names {
			if now[name] = true; strings.HasPrefix(name, c.role+"/") {
				peers++
			}
		}
		c.peers.Store(int32(max(peers, 1)))
		for name := range before {
			if !now[name] && c.leases != nil {
				c.leases.Gone(name)
			}
		}
		before = now
	}
}

// memberNames are the members, as <role>/<node ID>.
func (n *Node) memberNames(ctx context.Context) ([]string, error) {
	members, _, err := n.store.Members(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range members {
		if name := m.Role + "/" + m.ID; m.ID != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// renewCertificate renews this process's certificate while it runs.
func (n *Node) renewCertificate(ca *planeca.CA) error {
	c := n.split
	var renewer planeca.Renewer
	switch {
	case ca != nil:
		renewer = planeca.Own{CA: ca, Source: c.source}
	case c.client != nil:
		tlsConfig, err := c.source.Client(planetls.RoleControl, hostsOf(n.cfg.Planes.Control)...)
		if err != nil {
			return err
		}
		transport := &http.Transport{TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 5 * time.Second, DisableKeepAlives: true}
		var urls []string
		for _, u := range n.cfg.Planes.Control {
			urls = append(urls, strings.TrimRight(u, "/"))
		}
		renewer = planeca.Remote{Client: &http.Client{Transport: transport}, URLs: urls}
	default:
		return nil // somebody else replaces the files
	}
	n.background("renewing the certificate", func(ctx context.Context) error {
		planeca.Keep(ctx, c.source, renewer, n.log)
		return ctx.Err()
	})
	return nil
}
