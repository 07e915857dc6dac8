package node

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyplane/keyplane/batch"
	"github.com/keyplane/keyplane/dataplane"
	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/internal/keyid"
	"github.com/keyplane/keyplane/internal/sigv4"
	"github.com/keyplane/keyplane/internal/snapshot"
	"github.com/keyplane/keyplane/internal/xks"
	"github.com/keyplane/keyplane/ratelimit"
)

// XKSProxyConfig is the proxy of external key stores of AWS KMS: docs/xks-proxy.md.
type XKSProxyConfig struct {
	// Listen is the address, host:port, at which AWS KMS reaches this process. Default none: there is no proxy. AWS KMS calls port 443 only, and only by a name.
	Listen string `yaml:"listen"`
	// TLSCert and TLSKey are PEM files of that address's certificate chain and private key (mode 0600). Default none: plain HTTP, which is accepted on loopback
	// only, for a process of this host that terminates TLS.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// ClientCA is a PEM file of the roots that a client's certificate has to chain to: then only clients with one connect. Amazon Trust Services' for AWS KMS.
	// Default none: clients show no certificate.
	ClientCA string `yaml:"client_ca"`
	// ClientNames are the subject common names that a client's certificate may have. Default cks.kms.<region>.amazonaws.com of each prefix's Region.
	ClientNames []string `yaml:"client_names"`
	// ConnsMax and ConnsPerIPMax bound open connections, in all and of one client address, which may be a load balancer's. Defaults 20000 and ConnsMax.
	ConnsMax      int `yaml:"conns_max"`
	ConnsPerIPMax int `yaml:"conns_per_ip_max"`
	// Prefixes are the external key stores.
	Prefixes []XKSPrefixConfig `yaml:"prefixes"`
}

// XKSPrefixConfig is one external key store.
type XKSPrefixConfig struct {
	// Path is what comes before /kms/xks/v1 in XksProxyUriPath: "" or, as /team-a, a slash and letters, digits, slashes, - and _.
	Path string `yaml:"path"`
	// Region is the AWS Region of the KMS that calls.
	Region string `yaml:"region"`
	// Credentials are what it signs with: one, or two while they are rotated.
	Credentials []XKSCredentialConfig `yaml:"credentials"`
	// Keys are the keys that are offered.
	Keys []XKSKeyConfig `yaml:"keys"`
	// Rate is how many requests about them are served in a second; a tenth of it may come at once. Default 0: as many as the HSM can.
	Rate int `yaml:"rate"`
}

// XKSCredentialConfig is an XksProxyAuthenticationCredential.
type XKSCredentialConfig struct {
	AccessKeyID string `yaml:"access_key_id"` // 20 to 30 of A-Z and 2-7
	SecretFile  string `yaml:"secret_file"`   // file, mode 0600, of the secret: 43 to 64 of letters, digits, /, + and =
}

// XKSKeyConfig is an external key.
type XKSKeyConfig struct {
	// ID is its XksKeyId: 1 to 128 letters, digits, ., _ and -.
	ID string `yaml:"id"`
	// Key is the ARN of the KMS key of this server that it is: a symmetric encryption key of one Region with origin AWS_KMS.
	Key string `yaml:"key"`
	// Principals, Operations and ViaServices are patterns, with * and ?, of the awsPrincipalArn, kmsOperation and kmsViaService of requests that may use it.
	// Default none: all may. Operations that are listed have to include CreateKey, for a KMS key to be made of the external key.
	Principals  []string `yaml:"principals"`
	Operations  []string `yaml:"operations"`
	ViaServices []string `yaml:"via_services"`
	// ReadOnly lets it decrypt only. AWS KMS makes no KMS key of such an external key, since it asks for both usages; one that was made before goes on decrypting.
	ReadOnly bool `yaml:"read_only"`
}

// Limits of the configuration, so that a mistake shows.
const (
	xksPrefixesMax = 1000
	xksKeysMax     = 100_000 // of a prefix
	xksPatternMax  = xks.ArnMax
	xksRateMax     = 1_000_000
)

func (c *XKSProxyConfig) validate(regions []string, bad func(string, ...any)) {
	if c.Listen == "" {
		if len(c.Prefixes) > 0 || c.TLSCert != "" || c.TLSKey != "" || c.ClientCA != "" || len(c.ClientNames) > 0 || c.ConnsMax != 0 || c.ConnsPerIPMax != 0 {
			bad("xks_proxy.listen: without it nothing else of xks_proxy has an effect")
		}
		return
	}
	host, _, err := net.SplitHostPort(c.Listen)
	switch {
	case err != nil:
		bad("xks_proxy.listen: %q is not host:port", c.Listen)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		bad("xks_proxy.tls_cert and tls_key: both or neither")
	case c.TLSCert == "" && !loopback(host):
		bad("xks_proxy.tls_cert: without TLS the proxy listens on a loopback address only, not on %q", c.Listen)
	}
	if c.ClientCA != "" && c.TLSCert == "" {
		bad("xks_proxy.client_ca: without tls_cert nobody shows a certificate")
	}
	if len(c.ClientNames) > 0 && c.ClientCA == "" {
		bad("xks_proxy.client_names: without client_ca nobody shows a certificate")
	}
	if slices.Contains(c.ClientNames, "") {
		bad("xks_proxy.client_names: a name is empty")
	}
	if c.ConnsMax < 0 || c.ConnsPerIPMax < 0 {
		bad("xks_proxy.conns_max and conns_per_ip_max: at least 1")
	}
	if len(c.Prefixes) == 0 || len(c.Prefixes) > xksPrefixesMax {
		bad("xks_proxy.prefixes: 1 to %d are needed", xksPrefixesMax)
	}
	paths, arns := map[string]bool{}, map[string]bool{}
	for i := range c.Prefixes {
		p := &c.Prefixes[i]
		p.validate(regions, arns, func(format string, args ...any) { bad("xks_proxy.prefixes[%d]."+format, append([]any{i}, args...)...) })
		if paths[p.Path] {
			bad("xks_proxy.prefixes[%d].path: %q is listed twice", i, p.Path)
		}
		paths[p.Path] = true
	}
}

// validate adds to arns the KMS keys that an external key encrypts with: one in all prefixes, for the credential of another would decrypt what it has encrypted.
func (p *XKSPrefixConfig) validate(regions []string, arns map[string]bool, bad func(string, ...any)) {
	if !xks.ValidPath(p.Path + xks.BasePath) {
		bad("path: %q is not empty, and not a slash before letters, digits, slashes, - and _, %d in all with %s", p.Path, xks.PathMax, xks.BasePath)
	}
	if !validRegion(p.Region) {
		bad("region: %q is not a Region name like us-east-1", p.Region)
	}
	if len(p.Credentials) < 1 || len(p.Credentials) > 2 {
		bad("credentials: one is needed, or two while they are rotated")
	}
	for j, c := range p.Credentials {
		if !xks.ValidAccessKeyID(c.AccessKeyID) {
			bad("credentials[%d].access_key_id: not 20 to 30 of A-Z and 2-7", j)
		}
		if j > 0 && c.AccessKeyID == p.Credentials[0].AccessKeyID {
			bad("credentials[%d].access_key_id: that of both credentials", j)
		}
		if c.SecretFile == "" {
			bad("credentials[%d].secret_file: missing", j)
		}
	}
	if p.Rate < 0 || p.Rate > xksRateMax {
		bad("rate: %d is not 0 to %d", p.Rate, xksRateMax)
	}
	if len(p.Keys) > xksKeysMax {
		bad("keys: %d are more than %d", len(p.Keys), xksKeysMax)
	}
	ids := map[string]bool{}
	for j := range p.Keys {
		k := &p.Keys[j]
		switch {
		case !xks.ValidKeyID(k.ID):
			bad("keys[%d].id: %q is not 1 to 128 letters, digits, ., _ and -", j, k.ID)
		case ids[k.ID]:
			bad("keys[%d].id: %q is listed twice", j, k.ID)
		}
		ids[k.ID] = true
		ref, fault := keyid.Parse([]byte(k.Key))
		switch {
		case fault != keyid.None || ref.Kind != keyid.KeyARN:
			bad("keys[%d].key: %q is not the ARN of a KMS key", j, k.Key)
		case !slices.Contains(regions, string(ref.Region)) || string(ref.Partition) != keyid.Partition(string(ref.Region)):
			bad("keys[%d].key: %s is of a Region that is not this server's", j, k.Key)
		case ref.ID.MultiRegion:
			bad("keys[%d].key: %s is a multi-Region key, which cannot be an external key", j, k.Key)
		case arns[k.Key] && !k.ReadOnly:
			bad("keys[%d].key: %s is another external key already, of this prefix or another; one more can be read_only", j, k.Key)
		}
		arns[k.Key] = arns[k.Key] || !k.ReadOnly
		for _, list := range [...]struct {
			name     string
			patterns []string
		}{{"principals", k.Principals}, {"operations", k.Operations}, {"via_services", k.ViaServices}} {
			for _, pattern := range list.patterns {
				if pattern == "" || len(pattern) > xksPatternMax {
					bad("keys[%d].%s: a pattern is empty or has more than %d bytes", j, list.name, xksPatternMax)
				}
			}
		}
	}
}

// loopback says whether a host is this machine, for whoever is on it.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// xksTimeMax is how long after it came a request of AWS KMS may start its last round: it is given up after 250 ms, at the other end.
const xksTimeMax = 200 * time.Millisecond

// xksWipeDelay is how long credentials that were replaced stay, for requests that were under way: verifying one takes microseconds.
const xksWipeDelay = 10 * time.Second

// xksProxy is the running proxy of a node.
type xksProxy struct {
	addr   string                   // "": there is none
	server *dataplane.XKS           // nil: there is none
	names  atomic.Pointer[[]string] // subject common names that a client's certificate may have

	refused  ratelimit.GCRA // of certificates: how often it is logged
	unlogged atomic.Uint64  // refused since the last that was logged

	mu          sync.Mutex
	credentials []*sigv4.AccessKey // guarded by mu: those in use
}

// serveXKS listens for AWS KMS until Close.
func (n *Node) serveXKS(ctx context.Context) error {
	cfg := &n.cfg.XKSProxy
	if cfg.Listen == "" {
		return nil
	}
	prefixes, credentials, err := xksPrefixes(cfg)
	if err != nil {
		return err
	}
	n.xks.credentials = credentials
	n.onClose(func() { n.xks.replace(nil, 0) })
	tlsConfig, err := n.xksTLS(cfg)
	if err != nil {
		return err
	}
	timeMax := min(xksTimeMax, n.cfg.QueueTimeMax+n.cfg.RoundTimeout)
	dispatch := &hsm.Dispatch{Shards: n.shards, Do: n.batcher.Do, Full: batch.ErrFull, QueueTimeMax: timeMax, Once: true}
	if n.xks.server, err = n.data.NewXKS(dataplane.XKSConfig{
		Prefixes: prefixes, Fleet: n.fleet, Root: n.shards.Primary, Ready: n.checkState, Run: dispatch.Run, TimeMax: timeMax, Version: n.cfg.Version,
		TLS: cfg.TLSCert != "", ConnsMax: cfg.ConnsMax, ConnsPerIPMax: cfg.ConnsPerIPMax,
	}); err != nil {
		return err
	}
	n.tellXKS(ctx, prefixes)
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("node: XKS proxy: %w", err)
	}
	n.xks.addr = ln.Addr().String()
	if tlsConfig != nil {
		ln = tls.NewListener(&handshakeLimit{Listener: ln, limit: handshakes}, tlsConfig)
	} else {
		n.log.Warn("the XKS proxy listens without TLS: it is for a process of this host that terminates TLS in front of it", "listen", n.xks.addr)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.xks.server.Serve(ln); err != nil {
			n.log.Error("the XKS proxy's listener ended", "error", err)
			n.phase("the XKS proxy's listener has ended")
		}
	}()
	n.onClose(func() {
		ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
		defer cancel()
		n.logIf("draining the XKS proxy", n.xks.server.Shutdown(ctx))
		_ = ln.Close()
		select {
		case <-ended:
		case <-time.After(drainTimeout):
			n.log.Error("the XKS proxy's listener does not end; it is left behind")
		}
	})
	return nil
}

// ReloadXKS replaces the external key stores of a running proxy: prefixes, credentials, keys and who may use them, and the names that clients' certificates may have.
// What else of the configuration has changed has no effect. Where it returns an error, all stays as it was.
func (n *Node) ReloadXKS(ctx context.Context, cfg XKSProxyConfig) error {
	if n.xks.server == nil {
		return errors.New("node: there is no XKS proxy")
	}
	if cfg.Listen == "" {
		return errors.New("node: xks_proxy.listen: missing; the XKS proxy runs until the process ends")
	}
	var errs []error
	cfg.validate(n.cfg.AllRegions(), func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) })
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	prefixes, credentials, err := xksPrefixes(&cfg)
	if err != nil {
		return err
	}
	if err := n.xks.server.SetPrefixes(prefixes); err != nil {
		wipeKeys(credentials)
		return err
	}
	n.xks.names.Store(cfg.clientNames())
	n.xks.replace(credentials, xksWipeDelay)
	n.tellXKS(ctx, prefixes)
	return nil
}

// XKSAddr is the address that AWS KMS, or what is in front of this process, connects to; "" without a proxy.
func (n *Node) XKSAddr() string { return n.xks.addr }

// replace wipes the credentials that were in use, after a delay.
func (x *xksProxy) replace(credentials []*sigv4.AccessKey, delay time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.credentials
	x.credentials = credentials
	if delay > 0 {
		time.AfterFunc(delay, func() { wipeKeys(old) })
		return
	}
	wipeKeys(old)
}

func wipeKeys(keys []*sigv4.AccessKey) {
	for _, k := range keys {
		k.Wipe()
	}
}

// xksPrefixes is the configuration as the data plane takes it, with the secrets read. The caller wipes the credentials.
func xksPrefixes(cfg *XKSProxyConfig) (prefixes []dataplane.XKSPrefix, credentials []*sigv4.AccessKey, err error) {
	for i := range cfg.Prefixes {
		p := &cfg.Prefixes[i]
		made := dataplane.XKSPrefix{Path: p.Path, Region: p.Region}
		if p.Rate > 0 {
			made.Rate = ratelimit.Limit{Interval: time.Second / time.Duration(p.Rate), Burst: max(p.Rate/10, 1)}
		}
		for _, c := range p.Credentials {
			k, err := readXKSCredential(c)
			if err != nil {
				wipeKeys(credentials)
				return nil, nil, fmt.Errorf("node: XKS proxy: credential %s of path %q: %w", c.AccessKeyID, p.Path, err)
			}
			made.Credentials, credentials = append(made.Credentials, k), append(credentials, k)
		}
		for j := range p.Keys {
			k := &p.Keys[j]
			ref, _ := keyid.Parse([]byte(k.Key))
			made.Keys = append(made.Keys, dataplane.XKSKey{
				ID: k.ID, Region: string(ref.Region), Account: ref.Account, Key: ref.ID, Principals: k.Principals, Operations: k.Operations, Services: k.ViaServices,
				ReadOnly: k.ReadOnly,
			})
		}
		prefixes = append(prefixes, made)
	}
	return prefixes, credentials, nil
}

func readXKSCredential(c XKSCredentialConfig) (*sigv4.AccessKey, error) {
	b, err := readPrivate(c.SecretFile)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	secret := bytes.TrimRight(b, "\r\n")
	if !xks.ValidSecret(secret) {
		return nil, fmt.Errorf("%s: a secret has %d to %d letters, digits, /, + and =", c.SecretFile, xks.SecretMin, xks.SecretMax)
	}
	return sigv4.NewAccessKey(c.AccessKeyID, secret, sigv4.Principal{})
}

// clientNames are the subject common names that a client's certificate may have.
func (c *XKSProxyConfig) clientNames() *[]string {
	names := slices.Clone(c.ClientNames)
	if len(names) == 0 {
		for i := range c.Prefixes {
			names = append(names, "cks.kms."+c.Prefixes[i].Region+".amazonaws.com")
		}
	}
	return &names
}

// xksTLS is the TLS of the proxy's listener, nil without a certificate. A client's certificate has to chain to the roots and to bear one of the names, which
// ReloadXKS replaces.
func (n *Node) xksTLS(cfg *XKSProxyConfig) (*tls.Config, error) {
	if cfg.TLSCert == "" {
		return nil, nil
	}
	c, err := tlsConfig(cfg.TLSCert, cfg.TLSKey, n.log)
	if err != nil || cfg.ClientCA == "" {
		return c, err
	}
	roots, err := os.ReadFile(cfg.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("node: roots of the XKS proxy's clients: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(roots) {
		return nil, fmt.Errorf("node: roots of the XKS proxy's clients: %s has no certificate", cfg.ClientCA)
	}
	n.xks.names.Store(cfg.clientNames())
	c.ClientAuth = tls.RequireAndVerifyClientCert
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("node: the client has no certificate")
		}
		if name := s.PeerCertificates[0].Subject.CommonName; !slices.Contains(*n.xks.names.Load(), name) {
			n.refusedXKS(name)
			return errors.New("node: the client's certificate is somebody else's")
		}
		return nil
	}
	return c, nil
}

// xksRefusedLimit is for the log: roots of clients' certificates are public ones, and anybody may have a certificate of theirs.
var xksRefusedLimit = ratelimit.Limit{Interval: time.Second, Burst: 10}

// refusedXKS says in the log whose certificate was refused: a name that is missing in the configuration shows nowhere else.
func (n *Node) refusedXKS(name string) {
	if ok, _ := n.xks.refused.Take(xksRefusedLimit, time.Now().UnixNano()); !ok {
		n.xks.unlogged.Add(1)
		return
	}
	n.log.Warn("a client of the XKS proxy shows a certificate with a name that is not in client_names", "common_name", name[:min(len(name), xksNameMax)],
		"not_logged", n.xks.unlogged.Swap(0))
}

// xksNameMax is the length of a common name by X.520.
const xksNameMax = 64

// tellXKS says in the log which external keys cannot be used as things are. That is no fault: a KMS key can be made, or enabled, later.
func (n *Node) tellXKS(ctx context.Context, prefixes []dataplane.XKSPrefix) {
	keys := 0
	for i := range prefixes {
		p := &prefixes[i]
		keys += len(p.Keys)
		for j := range p.Keys {
			k := &p.Keys[j]
			rec, err := n.store.KeyRecord(ctx, k.Region, k.Account, k.Key)
			if err != nil && !errors.Is(err, snapshot.ErrNotFound) {
				n.log.Warn("an external key was not looked at", "path", p.Path, "external_key", k.ID, "error", err)
				return // the store does not answer; there may be many keys
			}
			reason := "its KMS key does not exist"
			if err == nil {
				reason = unfit(rec)
				rec.Wipe()
			}
			if reason != "" {
				n.log.Warn("an external key cannot be used", "path", p.Path, "external_key", k.ID, "reason", reason)
			}
		}
	}
	n.log.Info("external key stores are offered", "prefixes", len(prefixes), "keys", keys)
}

// unfit says why a KMS key cannot be an external key, "" if it can. The data plane decides; this is for the log.
func unfit(rec *snapshot.Record) string {
	if rec.Private != nil || rec.Store != nil || rec.Origin != "AWS_KMS" || len(rec.Versions) == 0 {
		return "its KMS key is not a symmetric encryption key of one Region with origin AWS_KMS"
	}
	return ""
}

// fleet is what GetHealthStatus says of the tokens.
func (n *Node) fleet() []xks.EKM {
	stats := n.shards.Stats()
	sessions := make([]int, len(stats.Slots))
	for i := range stats.Shards {
		sessions[stats.Shards[i].Slot]++
	}
	fleet := make([]xks.EKM, 0, len(stats.Slots))
	for i := range stats.Slots {
		s := &stats.Slots[i]
		status := "ACTIVE"
		switch {
		case s.Serving == 0:
			status = "UNAVAILABLE"
		case s.Serving < sessions[i]:
			status = "DEGRADED"
		}
		fleet = append(fleet, xks.EKM{
			ID:     cmp.Or(s.Info.Serial, s.Info.Label, "unnamed"),
			Model:  cmp.Or(strings.Join(strings.Fields(s.Info.Manufacturer+" "+s.Info.Model+" "+s.Info.Firmware), " "), "unnamed"),
			Status: status,
		})
	}
	return fleet
}
