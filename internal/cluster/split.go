package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// certificateHours is for how long certificates are valid that nobody renews, those of etcd members and of this process.
const certificateHours = "720"

// split is an etcd cluster, control planes and data nodes, with certificates of a CA whose key is in the HSM.
func (c *Cluster) split() error {
	add := func(to *[]*Node, count int, role string) error {
		for i := range count {
			n, err := c.node(fmt.Sprint(role, i+1), role)
			if err != nil {
				return err
			}
			*to = append(*to, n)
		}
		return nil
	}
	if err := errors.Join(add(&c.Etcds, c.cfg.Etcds, "etcd"), add(&c.Controls, c.cfg.Controls, "control"), add(&c.Datas, c.cfg.Datas, "data")); err != nil {
		return err
	}
	var endpoints, control []string
	for _, n := range c.Etcds {
		endpoints = append(endpoints, strconv.Quote("https://"+n.Endpoint))
	}
	for _, n := range c.Controls {
		control = append(control, strconv.Quote("https://"+n.Endpoint))
	}
	for _, n := range c.Keyplanes() {
		if err := c.keyplane(n); err != nil {
			return err
		}
	}
	if err := c.makeTokens(c.Keyplanes()); err != nil {
		return err
	}
	for _, n := range c.Controls { // each can issue certificates
		if err := c.run(n.env, c.cfg.Keyplane, "ca", "init", "--hsm", n.URI, "--ca", c.caFile()); err != nil {
			return err
		}
	}
	// One after the other: of several processes that open a token of SoftHSM at the same time some do not find it.
	for _, n := range c.All() {
		hours := "24" // they renew them
		if n.Role == "etcd" {
			hours = certificateHours
		}
		if err := c.issue(n.Role, n.Name, hours); err != nil {
			return err
		}
	}
	if err := c.issue("client", Client, certificateHours); err != nil {
		return err
	}
	if err := c.etcd(); err != nil {
		return err
	}
	for _, n := range c.Keyplanes() {
		dir := c.Certificates(n.Name)
		text := fmt.Sprintf("node_id: %s\netcd: {endpoints: [%s]}\nplanes: {control: [%s], cert: %s/cert.pem, key: %s/key.pem, ca: %s/ca.pem%s}\n",
			n.Name, strings.Join(endpoints, ", "), strings.Join(control, ", "), dir, dir, dir, map[bool]string{true: ", listen: \"" + n.Addr + "\""}[n.Role == "control"])
		if err := n.setUp(map[string]string{"control": "controlplane", "data": "dataplane"}[n.Role], c.cfg.Settings+text); err != nil {
			return err
		}
		if n.Role == "data" {
			n.args = append(n.args, "--listen", n.Addr)
		}
	}
	return c.trust()
}

func (c *Cluster) caFile() string { return filepath.Join(c.cfg.Dir, "ca.pem") }

// Certificates is the folder of a node's certificate, its key and the CA.
func (c *Cluster) Certificates(name string) string { return filepath.Join(c.cfg.Dir, "tls", name) }

// issue makes a certificate for a node of this machine.
func (c *Cluster) issue(role, name, hours string) error {
	first := c.Controls[0]
	return c.run(first.env, c.cfg.Keyplane, "ca", "issue", "--hsm", first.direct, "--ca", c.caFile(), "--role", role, "--node", name, "--host", "127.0.0.1", "--hours", hours, "--out", c.Certificates(name))
}

// trust makes the client with which this process asks members of etcd and control planes how they are.
func (c *Cluster) trust() error {
	dir := c.Certificates(Client)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c.inside = &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}, DisableKeepAlives: true,
	}}
	return nil
}

// etcd fills in how the members of the etcd cluster are started. With certificates, if there are some.
func (c *Cluster) etcd() error {
	scheme, secured := "http://", c.cfg.Keyplane != ""
	if secured {
		scheme = "https://"
	}
	var initial []string
	for _, n := range c.Etcds {
		var err error
		if n.peer, n.peerEndpoint, err = c.address(n.Name); err != nil {
			return err
		}
		initial = append(initial, n.Name+"="+scheme+n.peerEndpoint)
	}
	for _, n := range c.Etcds {
		n.command = c.cfg.Etcd
		n.args = []string{
			"--name", n.Name, "--data-dir", n.Dir, "--listen-client-urls", scheme + n.Addr, "--advertise-client-urls", scheme + n.Endpoint, "--listen-peer-urls", scheme + n.peer,
			"--initial-advertise-peer-urls", scheme + n.peerEndpoint, "--initial-cluster", strings.Join(initial, ","), "--log-level", "warn", "--auto-compaction-retention", "5m",
			"--heartbeat-interval", "50", "--election-timeout", "500", // a leader that is lost is replaced before leases run out (docs/planes.md)
		}
		if !secured {
			continue
		}
		dir := c.Certificates(n.Name)
		for _, of := range []string{"", "peer-"} {
			n.args = append(n.args, "--"+of+"cert-file", dir+"/cert.pem", "--"+of+"key-file", dir+"/key.pem", "--"+of+"trusted-ca-file", dir+"/ca.pem", "--"+of+"client-cert-auth")
		}
		n.args = append(n.args, "--tls-min-version", "TLS1.3")
	}
	return nil
}

// led waits until the etcd cluster, if there is one, has a leader.
func (c *Cluster) led(ctx context.Context) error {
	if len(c.Etcds) == 0 {
		return nil
	}
	for began := time.Now(); ; {
		_, _, err := c.Leader(ctx)
		if err == nil {
			return nil
		}
		if time.Since(began) > readyMax {
			return fmt.Errorf("%w; a member said:\n%s", err, c.Etcds[0].Tail(4000))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Terms is the number of elections that the members of etcd know of, 0 if none answers.
func (c *Cluster) Terms(ctx context.Context) (most int) {
	for _, n := range c.Etcds {
		if s, err := c.etcdStatus(ctx, n); err == nil {
			term, _ := strconv.Atoi(s.Term)
			most = max(most, term)
		}
	}
	return most
}

// Leader is the etcd member that leads, as the members see it, and the others.
func (c *Cluster) Leader(ctx context.Context) (leader *Node, followers []*Node, err error) {
	for _, n := range c.Etcds {
		s, err := c.etcdStatus(ctx, n)
		if err != nil {
			continue
		}
		if s.Header.MemberID == s.Leader && s.Leader != "0" {
			leader = n
		} else {
			followers = append(followers, n)
		}
	}
	if leader == nil {
		return nil, nil, errors.New("cluster: no member of etcd leads")
	}
	return leader, followers, nil
}

type etcdStatus struct {
	Header struct {
		MemberID string `json:"member_id"`
	} `json:"header"`
	Leader string `json:"leader"`
	Term   string `json:"raftTerm"`
}

// etcdStatus asks a member over the JSON that etcd speaks besides gRPC.
func (c *Cluster) etcdStatus(ctx context.Context, n *Node) (s etcdStatus, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	client, scheme := http.DefaultClient, "http://"
	if c.inside != nil {
		client, scheme = c.inside, "https://"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, scheme+n.Addr+"/v3/maintenance/status", strings.NewReader("{}"))
	if err != nil {
		return s, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}
